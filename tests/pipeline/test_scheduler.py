"""The scheduler: order, readiness, doom and cycles, compared with a second, obvious implementation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagent_nb.errors import CycleError, DefinitionError, IllegalTransitionError, UnknownStepError
from tagent_nb.pipeline import (
    Change,
    Dependency,
    DependencyType,
    Pipeline,
    PipelineScheduler,
    StepStatus,
    find_cycle,
)

PENDING, READY, RUNNING, WAITING = (
    StepStatus.PENDING,
    StepStatus.READY,
    StepStatus.RUNNING,
    StepStatus.WAITING,
)
COMPLETED, CACHED, FAILED, SKIPPED, CANCELLED = (
    StepStatus.COMPLETED,
    StepStatus.CACHED,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)
ENDS = (COMPLETED, CACHED, FAILED, SKIPPED, CANCELLED)


def pipeline(**depends_on: str) -> Pipeline:
    """``pipeline(a="", b="a c:weak")``: steps in this order, with these dependencies."""
    made = Pipeline("p")
    for name, written in depends_on.items():
        made.step(name, "goal", depends_on=written.split())
    return made


def scheduler(**depends_on: str) -> PipelineScheduler:
    return PipelineScheduler(pipeline(**depends_on))


def ready(of: PipelineScheduler) -> list[str]:
    return [step.name for step in of.get_ready_steps()]


class TestOrder:
    def test_a_step_comes_after_all_it_waits_for(self) -> None:
        order = scheduler(report="clean stats", clean="load", stats="load", load="").get_execution_order()
        assert order == ["load", "clean", "stats", "report"]

    def test_the_order_is_a_copy(self) -> None:
        schedule = scheduler(a="", b="a")
        schedule.get_execution_order().clear()
        assert schedule.get_execution_order() == ["a", "b"]

    def test_the_graph_names_each_dependency_once(self) -> None:
        schedule = scheduler(a="", b="a a", c="a a:weak b:optional gone:optional")
        assert schedule.dependency_graph == {"a": [], "b": ["a"], "c": ["a", "b"]}
        assert schedule.mark("a", COMPLETED) == Change(["b"])
        assert schedule.mark("b", COMPLETED) == Change(["c"])

    def test_what_goals_conditions_maps_and_bodies_read_is_waited_for(self) -> None:
        made = pipeline(a="", b="", c="", d="")
        made.step("goal", "Say {{ a }}")
        made.step("condition", "goal", when="b > 1")
        made.step("mapped", "goal", map_over="c.rows")

        @made.task
        def body(d: Any) -> Any:
            return d

        graph = PipelineScheduler(made).dependency_graph
        assert [graph[name] for name in ("goal", "condition", "mapped", "body")] == [
            ["a"],
            ["b"],
            ["c"],
            ["d"],
        ]

    def test_later_changes_of_the_pipeline_are_not_seen(self) -> None:
        made = pipeline(a="")
        schedule = PipelineScheduler(made)
        made.step("b", "goal")
        assert schedule.get_execution_order() == ["a"]
        assert schedule.pipeline is made

    def test_an_empty_pipeline_is_done(self) -> None:
        schedule = scheduler()
        assert schedule.is_done
        assert not schedule.has_deadlock()
        assert schedule.get_execution_order() == schedule.get_ready_steps() == []


class TestRefusals:
    def test_an_unknown_dependency_is_named_with_a_near_one(self) -> None:
        with pytest.raises(UnknownStepError) as caught:
            scheduler(load="", more="", report="more laod")
        assert str(caught.value) == (
            "Step 'report' depends on unknown step 'laod'. Did you mean 'load'? "
            "Add a step of that name or correct the name. "
            "For a value that no step makes, pass inputs={'laod': ...} (--input)."
        )

    def test_weak_dependencies_must_exist_and_optional_ones_need_not(self) -> None:
        with pytest.raises(UnknownStepError, match="depends on unknown step 'gone'"):
            scheduler(a="gone:weak")
        assert ready(scheduler(a="gone:optional")) == ["a"]

    def test_a_cycle_is_shown_as_a_path_from_its_first_step(self) -> None:
        with pytest.raises(CycleError) as caught:
            scheduler(start="", a="start b", b="a", end="b")
        assert caught.value.path == ["a", "b", "a"]
        assert "a -> b -> a" in str(caught.value)

    def test_the_path_goes_the_way_of_the_arrows(self) -> None:
        with pytest.raises(CycleError) as caught:
            scheduler(outside="two", one="three", two="one", three="two:weak")
        assert caught.value.path == ["one", "two", "three", "one"]

    def test_a_step_that_waits_for_itself_is_a_cycle(self) -> None:
        with pytest.raises(CycleError) as caught:
            scheduler(a="a")
        assert caught.value.path == ["a", "a"]

    def test_a_cycle_of_100_000_steps_is_found_without_recursion(self) -> None:
        size = 100_000
        path = find_cycle({str(n): [str((n + 1) % size)] for n in range(size)})
        assert path is not None
        assert len(path) == size + 1
        assert path[:2] == ["0", str(size - 1)]
        assert path[-1] == "0"

    def test_detect_cycle_finds_none_in_what_was_accepted(self) -> None:
        schedule = scheduler(a="", b="a", c="a b")
        assert schedule.detect_cycle() is None
        schedule.dependency_graph["a"].append("b")
        assert schedule.detect_cycle() == ["a", "b", "a"]

    @pytest.mark.parametrize("names", ["aa", "aba", "abab", "aabbb"])
    def test_duplicate_names_are_refused_and_each_is_named(self, names: str) -> None:
        made = Pipeline("p")
        for name in names:
            made.step(name, "goal")
        with pytest.raises(DefinitionError, match="Duplicate step names found") as refused:
            PipelineScheduler(made)
        for name in set(names):
            named = f"{names.count(name)} steps are named {name!r}" in str(refused.value)
            assert named is (names.count(name) > 1)


class TestStatusesAsAMapping:
    """``step_status`` is a mapping of the specification: what is set in it counts as if it was marked."""

    def test_a_status_that_is_set_makes_dependents_ready(self) -> None:
        chain = scheduler(a="", b="a")
        chain.step_status["a"] = COMPLETED
        assert ready(chain) == ["b"]
        assert dict(chain.step_status) == {"a": COMPLETED, "b": READY}
        chain.step_status.update(b="completed")  # by its value, too
        assert chain.is_done

    def test_a_status_that_cannot_follow_is_refused(self) -> None:
        chain = scheduler(a="", b="a")
        chain.step_status["a"] = FAILED
        with pytest.raises(IllegalTransitionError, match="'a' is failed and cannot become completed"):
            chain.step_status["a"] = COMPLETED
        with pytest.raises(DefinitionError, match="there is no such status"):
            chain.step_status["b"] = "done"  # type: ignore[assignment]
        with pytest.raises(UnknownStepError, match="no step 'c'"):
            chain.step_status["c"] = COMPLETED

    def test_no_step_can_be_taken_out(self) -> None:
        chain = scheduler(a="")
        with pytest.raises(DefinitionError, match="cannot be deleted"):
            del chain.step_status["a"]
        assert "a" in chain.step_status
        assert len(chain.step_status) == 1
        assert repr(chain.step_status) == "{'a': 'ready'}"


class TestMarking:
    def test_a_step_is_ready_when_the_last_of_its_dependencies_has_a_value(self) -> None:
        schedule = scheduler(a="", b="", c="a b")
        assert ready(schedule) == ["a", "b"]
        assert schedule.mark("a", COMPLETED) == Change()
        assert schedule.status_of("c") is PENDING
        assert schedule.mark("b", CACHED) == Change(["c"])
        assert schedule.status_of("c") is READY
        assert ready(schedule) == ["c"]

    def test_a_step_passes_through_running_and_waiting_any_number_of_times(self) -> None:
        schedule = scheduler(a="", b="a")
        for status in (RUNNING, WAITING, RUNNING, READY, RUNNING):
            assert schedule.mark("a", status) == Change()
            assert schedule.status_of("a") is status
            assert ready(schedule) == (["a"] if status is READY else [])
        assert schedule.mark("a", COMPLETED) == Change(["b"])

    def test_ready_steps_come_in_definition_order(self) -> None:
        schedule = scheduler(z="first", y="", x="first", first="", w="")
        schedule.mark("first", COMPLETED)
        schedule.mark("y", RUNNING)
        assert ready(schedule) == ["z", "x", "w"]

    @pytest.mark.parametrize("end", [FAILED, SKIPPED, CANCELLED])
    def test_an_end_without_a_value_dooms_strong_dependents_and_frees_the_others(
        self, end: StepStatus
    ) -> None:
        schedule = scheduler(a="", strong="a", weak="a:weak", optional="a:optional", below="strong")
        assert schedule.mark("a", end) == Change(["weak", "optional"], [("strong", "a")])
        assert schedule.status_of("strong") is PENDING
        assert schedule.mark("strong", SKIPPED) == Change([], [("below", "strong")])

    def test_a_step_below_a_failed_one_has_one_step_to_blame_and_is_never_ready(self) -> None:
        schedule = scheduler(a="", b="", c="", d="a b c:weak")
        assert schedule.mark("a", FAILED) == Change([], [("d", "a")])
        assert schedule.mark("b", FAILED) == Change()
        assert schedule.mark("c", COMPLETED) == Change()
        assert schedule.status_of("d") is PENDING

    def test_a_step_below_a_failed_one_is_not_freed_by_the_failure_of_a_weak_one(self) -> None:
        schedule = scheduler(a="", b="", c="a b:weak")
        schedule.mark("a", FAILED)
        assert schedule.mark("b", FAILED) == Change()

    def test_a_step_that_has_a_value_already_is_neither_readied_nor_ruled_out(self) -> None:
        """A resumed run marks recorded steps as completed before what is above them ran."""
        schedule = scheduler(a="", b="a", c="", d="c")
        schedule.mark("b", COMPLETED)
        schedule.mark("d", CACHED)
        assert schedule.mark("a", COMPLETED) == Change()
        assert schedule.mark("c", FAILED) == Change()
        assert schedule.is_done

    def test_an_unknown_step_is_refused_with_a_near_one(self) -> None:
        schedule = scheduler(load="")
        for ask in (lambda: schedule.mark("laod", RUNNING), lambda: schedule.status_of("laod")):
            with pytest.raises(
                UnknownStepError, match="Pipeline 'p' has no step 'laod'. Did you mean 'load'?"
            ):
                ask()

    def test_a_status_may_be_given_by_its_value(self) -> None:
        schedule = scheduler(a="", b="a")
        schedule.mark("a", "running")
        assert schedule.mark("a", "completed") == Change(["b"])
        assert schedule.status_of("a") is COMPLETED
        assert schedule.mark("a", "completed") == Change()
        with pytest.raises(IllegalTransitionError, match="'a' is completed and cannot become failed"):
            schedule.mark("a", "failed")

    @pytest.mark.parametrize("status", ["complete", "", None, 3])
    def test_what_is_no_status_is_refused(self, status: Any) -> None:
        schedule = scheduler(a="")
        with pytest.raises(
            DefinitionError, match="there is no such status.*Use one of pending, ready"
        ) as caught:
            schedule.mark("a", status)
        assert ("Did you mean 'completed'?" in str(caught.value)) == (status == "complete")
        assert schedule.get_ready_steps()[0].name == "a"

    @pytest.mark.parametrize("end", ENDS)
    def test_what_has_ended_stays_so(self, end: StepStatus) -> None:
        schedule = scheduler(a="", b="a")
        first = schedule.mark("a", end)
        assert first != Change()
        assert schedule.mark("a", end) == Change()
        for status in StepStatus:
            if status is not end:
                with pytest.raises(IllegalTransitionError) as caught:
                    schedule.mark("a", status)
                assert str(caught.value) == (
                    f"Step 'a' is {end.value} and cannot become {status.value}. "
                    "Start another run to run it again."
                )
        assert schedule.status_of("a") is end

    def test_no_step_becomes_pending_again(self) -> None:
        schedule = scheduler(a="", b="a")
        assert schedule.mark("b", PENDING) == Change()
        with pytest.raises(IllegalTransitionError, match="Step 'a' is ready and cannot become pending"):
            schedule.mark("a", PENDING)
        assert ready(schedule) == ["a"]


class TestQuestions:
    def test_blocked_steps_say_what_they_wait_for(self) -> None:
        schedule = scheduler(a="", b="", c="a b", d="c")
        schedule.mark("a", COMPLETED)
        schedule.mark("b", RUNNING)
        assert schedule.blocked_steps() == {"c": ["b"], "d": ["c"]}
        schedule.mark("b", FAILED)
        assert schedule.blocked_steps() == {"c": [], "d": ["c"]}

    def test_a_deadlock_is_when_something_is_left_and_nothing_can_go_on(self) -> None:
        schedule = scheduler(a="", b="a")
        for status in (READY, RUNNING, WAITING):
            schedule.mark("a", status)
            assert not schedule.has_deadlock()
        schedule.mark("a", FAILED)
        assert schedule.has_deadlock()
        schedule.mark("b", SKIPPED)
        assert not schedule.has_deadlock()
        assert schedule.is_done

    def test_upstream_and_downstream_include_the_steps_themselves(self) -> None:
        schedule = scheduler(a="", b="a", c="a", d="b c:weak", alone="")
        assert schedule.downstream(["b"]) == {"b", "d"}
        assert schedule.downstream("a") == {"a", "b", "c", "d"}
        assert schedule.upstream(["d", "alone"]) == {"a", "b", "c", "d", "alone"}
        assert schedule.upstream([]) == set()
        for ask in (schedule.downstream, schedule.upstream):
            with pytest.raises(UnknownStepError, match="has no step 'e'"):
                ask(["a", "e"])


# -- size ---------------------------------------------------------------------------------------


class CountingList(list[str]):
    """A list that counts how many of its elements were looked at."""

    looked = 0

    def __iter__(self) -> Iterator[str]:
        for step in super().__iter__():
            CountingList.looked += 1
            yield step


def run_through(schedule: PipelineScheduler) -> list[str]:
    """Run every step, going on with whatever becomes ready; returns the order."""
    order = ready(schedule)
    for name in order:
        schedule.mark(name, RUNNING)
        order.extend(schedule.mark(name, COMPLETED).ready)
    return order


class TestSize:
    def test_a_chain_of_100_000_steps(self) -> None:
        size = 100_000
        made = Pipeline("chain")
        made.step("s0", "goal")
        for n in range(1, size):
            made.step(f"s{n}", "goal", depends_on=[f"s{n - 1}"])
        schedule = PipelineScheduler(made)
        expected = [f"s{n}" for n in range(size)]
        assert schedule.get_execution_order() == expected
        assert len(schedule.downstream(["s0"])) == len(schedule.upstream([expected[-1]])) == size
        assert run_through(schedule) == expected
        assert schedule.is_done

    def test_a_loop_over_ready_steps_does_not_look_at_all_others(self) -> None:
        """20,000 questions about 20,000 steps: would take minutes if each looked at all."""
        size = 20_000
        made = Pipeline("chain").step("s0", "goal")
        for n in range(1, size):
            made.step(f"s{n}", "goal", depends_on=[f"s{n - 1}"])
        schedule = PipelineScheduler(made)
        lookups = 0
        while not schedule.is_done:
            for step in schedule.get_ready_steps():
                schedule.mark(step.name, COMPLETED)
                lookups += 1
        assert lookups == size

    def test_a_fan_in_of_2_000_steps(self) -> None:
        schedule = scheduler(
            **{f"s{n}": "" for n in range(2_000)}, end=" ".join(f"s{n}" for n in range(2_000))
        )
        for n in range(1_999):
            assert schedule.mark(f"s{n}", COMPLETED) == Change()
        assert schedule.blocked_steps() == {"end": ["s1999"]}
        assert schedule.mark("s1999", COMPLETED) == Change(["end"])

    @pytest.mark.parametrize("end", [COMPLETED, FAILED])
    def test_a_run_looks_at_each_edge_once(self, end: StepStatus) -> None:
        """Counted in both directions, with all marks of a whole run."""
        size = 60
        schedule = scheduler(**{f"s{n}": " ".join(f"s{m}:weak" for m in range(n)) for n in range(size)})
        for direction in (schedule._dependents, schedule.dependency_graph):
            direction.update({name: CountingList(names) for name, names in direction.items()})
        CountingList.looked = 0
        for name in schedule.get_execution_order():
            for status in (RUNNING, WAITING, RUNNING, end):
                schedule.mark(name, status)
        assert schedule.is_done
        assert CountingList.looked == size * (size - 1) // 2


# -- against a second implementation ------------------------------------------------------------


class Obvious:
    """Looks at everything after every change: slow, and easy to believe."""

    def __init__(self, edges: dict[str, dict[str, DependencyType]]) -> None:
        self.edges = edges
        self.status = dict.fromkeys(edges, PENDING)
        self.upstream_failed: dict[str, str] = {}
        self.look()

    def look(self) -> Change:
        change = Change()
        for name, above in self.edges.items():
            if self.status[name] is not PENDING or name in self.upstream_failed:
                continue
            blame = [
                dependency
                for dependency, kind in above.items()
                if kind is DependencyType.STRONG
                and self.status[dependency].is_final
                and not self.status[dependency].has_value
            ]
            if blame:
                self.upstream_failed[name] = blame[0]
                change.upstream_failed.append((name, blame[0]))
            elif all(self.status[dependency].is_final for dependency in above):
                self.status[name] = READY
                change.ready.append(name)
        return change

    def mark(self, name: str, status: StepStatus) -> Change:
        self.status[name] = status
        return self.look()


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, dict[str, DependencyType]]:
    """Up to 12 steps, defined in any order, each with dependencies of any type on earlier ones."""
    names = [f"s{n}" for n in range(draw(st.integers(1, 12)))]
    kinds = st.sampled_from(DependencyType)
    edges = {
        name: draw(st.dictionaries(st.sampled_from(names[:index]), kinds, max_size=4)) if index else {}
        for index, name in enumerate(names)
    }
    return {name: edges[name] for name in draw(st.permutations(names))}


def built(edges: dict[str, dict[str, DependencyType]]) -> Pipeline:
    made = Pipeline("random")
    for name, above in edges.items():
        made.step(name, "goal", depends_on=[Dependency(*dependency) for dependency in above.items()])
    return made


@settings(max_examples=300)
@given(edges=graphs(), data=st.data())
def test_every_run_of_every_graph_goes_as_the_obvious_implementation_says(
    edges: dict[str, dict[str, DependencyType]], data: st.DataObject
) -> None:
    made = built(edges)
    fast, obvious = PipelineScheduler(made), Obvious(edges)
    assert fast.dependency_graph == {name: list(above) for name, above in edges.items()}
    order = fast.get_execution_order()
    assert sorted(order) == sorted(edges)
    assert all(order.index(parent) < order.index(name) for name, above in edges.items() for parent in above)
    while not fast.is_done:
        assert fast.step_status == obvious.status
        assert ready(fast) == [name for name in edges if obvious.status[name] is READY]
        waits = {
            name: [dependency for dependency in above if not obvious.status[dependency].is_final]
            for name, above in edges.items()
            if obvious.status[name] is PENDING
        }
        assert fast.blocked_steps() == waits
        under_way = any(status in (READY, RUNNING, WAITING) for status in obvious.status.values())
        assert fast.has_deadlock() is not under_way
        open_steps = [
            name
            for name, status in obvious.status.items()
            if not status.is_final and (status is not PENDING or name in obvious.upstream_failed)
        ]
        name = data.draw(st.sampled_from(sorted(open_steps)))
        status = (
            SKIPPED
            if name in obvious.upstream_failed
            else data.draw(st.sampled_from([*ENDS, RUNNING, WAITING]))
        )
        change, expected = fast.mark(name, status), obvious.mark(name, status)
        assert sorted(change.ready) == sorted(expected.ready)
        assert sorted(change.upstream_failed) == sorted(expected.upstream_failed)
    assert all(status.is_final for status in obvious.status.values())
    assert not fast.has_deadlock()


def _closure(edges: dict[str, list[str]], name: str) -> set[str]:
    return {name}.union(*(_closure(edges, dependency) for dependency in edges[name]))


@given(edges=graphs())
def test_upstream_and_downstream_are_each_others_mirror(edges: dict[str, dict[str, DependencyType]]) -> None:
    schedule = PipelineScheduler(built(edges))
    for name in edges:
        up = _closure(schedule.dependency_graph, name)
        assert schedule.upstream([name]) == up
        assert {other for other in edges if name in schedule.downstream([other])} == up


@given(
    graph=st.integers(1, 8).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(0, size), unique=True, max_size=3), min_size=size, max_size=size
        )
    )
)
def test_a_cycle_is_found_exactly_when_there_is_one(graph: list[list[int]]) -> None:
    """Against: take away whatever waits for nothing, until nothing changes."""
    named = {f"s{n}": [f"s{other}" for other in above] for n, above in enumerate(graph)}
    left = {name: {other for other in above if other in named} for name, above in named.items()}
    while free := [name for name, above in left.items() if not above & left.keys()]:
        for name in free:
            del left[name]
    path = find_cycle(named)
    assert (path is not None) is bool(left)
    if path is not None:
        assert path[0] == path[-1] == min(path, key=list(named).index)
        assert len(set(path)) == len(path) - 1
        assert all(above in named[name] for above, name in pairwise(path))


def test_names_that_are_written_down_are_those_of_the_moment_in_which_the_schedule_was_made() -> None:
    pipeline = Pipeline("p", model="test")
    for name in ("a", "b"):
        pipeline.step(name, "Say hello.")
    pipeline.step("c", "Say hello.", depends_on=["a"])
    schedule = PipelineScheduler(pipeline)
    pipeline.get_step("c").depends_on.append("b")
    assert list(schedule.above("c")) == schedule.dependency_graph["c"] == ["a"]
