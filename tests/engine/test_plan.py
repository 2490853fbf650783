"""A plan says what a run does before it does it: each is compared with the run that follows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    Plan,
    ResultCache,
    StepPlan,
    StepStatus,
    TokenUsage,
    UnknownStepError,
    errors,
    tool,
)
from tagent_nb.engine.dry_run import history as expectation
from tagent_nb.runners.tools.registry import forget_tool


class Lab:
    """A pipeline of Python cells with cache and storage in a folder; ``ran`` says which ran, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.broken: set[Any] = set()
        self.pipeline = Pipeline("lab")
        self.cache: ResultCache | None = ResultCache(folder / "cache")

    def cell(self, name: str, expression: str, **options: Any) -> None:
        text = f"run({name!r})\n{expression}"
        self.pipeline.put(PipelineStep.from_cell(name, text, python=True, max_retries=0, **options))

    def note(self, name: str) -> None:
        self.ran.append(name)

    def check(self, value: Any) -> Any:
        if value in self.broken:
            raise ValueError(f"{value} is broken")
        return value

    @property
    def executor(self) -> PipelineExecutor:
        return PipelineExecutor(
            self.pipeline,
            storage=self.folder / "runs",
            cache=self.cache,
            model=TestModel(custom_output_text="an answer"),
            namespace={"run": self.note, "check": self.check},
        )

    async def plan(self, **options: Any) -> Plan:
        """The plan; it must run nothing, and record nothing."""
        self.ran.clear()
        executor = self.executor
        before = await executor.history()
        plan = await executor.plan(**options)
        assert self.ran == []
        assert executor.result is None
        assert await executor.history() == before
        return plan

    async def go(self, **options: Any) -> Any:
        self.ran.clear()
        return await self.executor.execute(**options)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def actions(plan: Plan) -> dict[str, str]:
    return {forecast.step: forecast.action for forecast in plan}


def chain(lab: Lab) -> None:
    lab.cell("a", "[1, 2, 3]")
    lab.cell("b", "len(a)")
    lab.cell("c", "b + 1")


# -- what would happen, and why ---------------------------------------------------------------


async def test_before_the_first_run_everything_runs_and_nothing_is_known(lab: Lab) -> None:
    chain(lab)
    plan = await lab.plan()
    assert actions(plan) == {"a": "run", "b": "run", "c": "run"}
    assert plan["a"].why == "first run"
    assert plan["b"].why == "first run; input a may change, because a runs"
    assert (plan["a"].seconds, plan["a"].tokens, plan["a"].cost) == (None, 0, 0.0)
    assert plan.seconds is None
    assert plan.total == "3 steps: 3 run. No run of a, b, c is recorded to go by."


async def test_after_a_run_the_cache_answers_and_nothing_is_spent(lab: Lab) -> None:
    chain(lab)
    await lab.go()
    plan = await lab.plan()
    assert set(actions(plan).values()) == {"cached"}
    assert (plan.seconds, plan.tokens, plan.cost) == (0, 0, 0)
    assert plan.total == "3 steps: 3 are cached. It costs nothing."
    await lab.go()
    assert lab.ran == []


async def test_a_changed_step_runs_and_what_reads_it_may(lab: Lab) -> None:
    chain(lab)
    await lab.go()
    lab.cell("a", "[4, 5, 6]")
    plan = await lab.plan()
    assert actions(plan) == {"a": "run", "b": "may run", "c": "may run"}
    assert plan["a"].why == "code changed"
    assert plan["b"].why == "input a may change, because a runs"
    assert plan["c"].why == "input b may change, because b may run"
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert plan.total.startswith("3 steps: 1 runs, 2 may run. At most ")
    await lab.go()
    assert lab.ran == ["a", "b"]


async def test_a_step_that_changed_itself_runs_whatever_its_input_becomes(lab: Lab) -> None:
    chain(lab)
    await lab.go()
    lab.cell("a", "[4, 5]")
    lab.cell("b", "len(a) + 1")
    plan = await lab.plan()
    assert plan["b"].action == "run"
    assert plan["b"].why == "code changed; input a may change, because a runs"


async def test_a_step_that_only_waits_for_another_is_not_unsure(lab: Lab) -> None:
    lab.cell("a", "1")
    lab.cell("after", "2", depends_on=["a"])
    await lab.go()
    lab.cell("a", "3")
    assert actions(await lab.plan()) == {"a": "run", "after": "cached"}


async def test_without_a_cache_everything_runs(lab: Lab) -> None:
    chain(lab)
    await lab.go()
    for plan in (await lab.plan(use_cache=False), await without_cache(lab).plan()):
        assert set(actions(plan).values()) == {"run"}
        assert plan["a"].why == "the cache is not asked"
    assert plan.total.startswith("3 steps: 3 run. About ")


def without_cache(lab: Lab) -> Lab:
    lab.cache = None
    return lab


async def test_a_lost_cache_is_reported(lab: Lab) -> None:
    chain(lab)
    await lab.go()
    assert lab.cache is not None
    lab.cache.clear()
    assert (await lab.plan())["a"].why == "its earlier answer is not in the cache"


async def test_without_storage_or_cache_nothing_is_compared() -> None:
    pipeline = Pipeline("bare")
    pipeline.put(PipelineStep.from_cell("a", "1", python=True))
    pipeline.put(PipelineStep.from_cell("b", "a", python=True))
    executor = PipelineExecutor(pipeline)
    await executor.execute()
    plan = await executor.plan()
    assert plan["a"].why == "the cache is not asked"
    assert plan["b"].why == "input a may change, because a runs"
    assert plan.seconds is not None


async def test_options_are_those_of_a_run(lab: Lab) -> None:
    chain(lab)
    await lab.go()
    plan = await lab.plan(force=["a"], until="b")
    assert actions(plan) == {"a": "run", "b": "may run"}
    assert plan["a"].why == "forced"
    assert (await lab.plan(force=True))["b"].why == "forced"
    with pytest.raises(UnknownStepError, match="Did you mean 'a'"):
        await lab.plan(force=["aa"])
    with pytest.raises(errors.DefinitionError, match="on_change must be"):
        await lab.plan(on_change="ask")


async def test_what_a_run_refuses_a_plan_refuses(lab: Lab) -> None:
    with pytest.raises(PipelineValidationError, match="has no steps"):
        await lab.plan()


async def test_a_step_without_an_earlier_result(lab: Lab) -> None:
    chain(lab)
    await lab.go(until="b")
    plan = await lab.plan()
    assert (plan["c"].action, plan["c"].why) == ("run", "it has no earlier result")
    assert plan.total.endswith("No run of c is recorded to go by.")


async def test_a_step_whose_edit_is_undone_may_be_answered(lab: Lab) -> None:
    """Also by what another step has computed: what its inputs will be is not known yet."""
    lab.cell("a", "1")
    lab.pipeline.put(PipelineStep.from_cell("b", "a + 1", python=True))
    lab.pipeline.put(PipelineStep.from_cell("c", "a + 3", python=True))
    await lab.go()
    lab.pipeline.put(PipelineStep.from_cell("b", "a + 2", python=True))
    await lab.go()
    lab.cell("a", "0 + 1")
    lab.pipeline.put(PipelineStep.from_cell("b", "a + 1", python=True))
    lab.pipeline.put(PipelineStep.from_cell("c", "a + 4", python=True))
    plan = await lab.plan()
    assert actions(plan) == {"a": "run", "b": "may run", "c": "run"}
    assert plan["b"].why.startswith("code changed")
    result = await lab.go()
    assert [step.status.value for step in result.steps.values()] == ["completed", "cached", "completed"]


async def test_a_step_that_failed_says_so_as_the_run_does(lab: Lab) -> None:
    lab.cell("a", "check(1)")
    lab.cell("b", "a")
    lab.broken = {1}
    await lab.go()
    for options in ({}, {"resume": True}):
        plan = await lab.plan(**options)
        assert plan["a"].why == "the last time it failed (ValueError: 1 is broken)"
        assert plan["b"].why.startswith("the last time it was skipped (step 'a' failed); input a may change")
    lab.cell("c", "1")
    lab.cell("d", "c")
    assert (await lab.plan())["d"].why.startswith("it has no earlier result; ")


async def test_steps_that_do_the_same_share_an_answer(lab: Lab) -> None:
    lab.pipeline.put(PipelineStep.from_cell("a", "41 + 1", python=True))
    lab.pipeline.put(PipelineStep.from_cell("b", "41 + 1", python=True))
    lab.pipeline.put(PipelineStep.from_cell("c", "b", python=True))
    plan = await lab.plan()
    assert (plan["b"].action, plan["b"].why) == ("cached", "it does the same as a")
    assert plan["c"].why == "first run; input b may change, because b is not certain yet"
    result = await lab.go()
    assert result.steps["b"].status is StepStatus.CACHED


# -- conditions -----------------------------------------------------------------------------------


async def test_conditions_skip_and_what_needs_the_step_follows(lab: Lab) -> None:
    lab.cell("a", "1")
    lab.cell("b", "a", when="a > 5")
    lab.cell("c", "b")
    lab.cell("d", "1 if b is None else 2", depends_on=["b:weak"])
    plan = await lab.plan()
    assert plan["b"].action == "may run"
    assert plan["b"].why.endswith("; its condition depends on a")
    await lab.go()
    plan = await lab.plan()
    assert actions(plan) == {"a": "cached", "b": "skip", "c": "skip", "d": "cached"}
    assert plan["b"].why == "condition not met: a > 5"
    assert plan["c"].why == "step 'b' is skipped"
    assert plan.total == "4 steps: 2 are cached, 2 are skipped. It costs nothing."


async def test_a_condition_that_cannot_be_decided_fails_the_step(lab: Lab) -> None:
    lab.cell("a", "'text'")
    lab.cell("b", "1", when="a > 5")
    lab.cell("c", "b")
    await lab.go()
    plan = await lab.plan()
    assert actions(plan) == {"a": "cached", "b": "fail", "c": "skip"}
    assert plan["c"].why == "step 'b' fails"


async def test_a_step_whose_condition_holds_runs(lab: Lab) -> None:
    lab.cell("a", "1")
    lab.cell("b", "a", when="a == 1")
    await lab.go()
    lab.cell("b", "a + 1", when="a == 1")
    assert actions(await lab.plan()) == {"a": "cached", "b": "run"}


async def test_a_cached_step_behind_an_open_condition_is_not_certain(lab: Lab) -> None:
    lab.cell("a", "1")
    lab.cell("b", "2", when="a == 1")
    lab.cell("c", "b")
    await lab.go()
    lab.cell("a", "1 + 0")
    plan = await lab.plan()
    assert (plan["b"].action, plan["b"].why) == ("cached", "its condition depends on a")
    assert plan["c"].action == "may run"


# -- mapped steps -----------------------------------------------------------------------------------


async def test_of_a_mapped_step_the_new_items_run(lab: Lab) -> None:
    lab.cell("rows", "[1, 2, 3]")
    lab.cell("each", "rows * 10", map_over="rows")
    lab.cell("total", "sum(each)")
    plan = await lab.plan()
    assert (plan["each"].items, plan["each"].items_done) == (None, None)
    await lab.go()
    plan = await lab.plan()
    assert (plan["each"].action, plan["each"].items, plan["each"].items_done) == ("cached", 3, 3)
    assert plan["total"].action == "cached"
    took = (await lab.executor.load_result()).steps["each"].seconds

    lab.cell("rows", "[1, 2, 3, 4, 5, 5]")
    unsure = (await lab.plan())["each"]
    assert unsure.action == "may run"
    assert unsure.seconds == pytest.approx(took)
    await lab.go(until="rows")
    plan = await lab.plan()
    each = plan["each"]
    assert each.state == "run (4 of 6 items cached)"
    assert each.why == "the other items are new, have changed, or failed"
    assert each.seconds == pytest.approx(took * 2 / 3)
    assert plan["total"].action == "may run"
    await lab.go()
    assert lab.ran == ["each", "each", "total"]


async def test_a_map_that_changed_runs_all_its_items(lab: Lab) -> None:
    lab.cell("rows", "[1, 2]")
    lab.cell("each", "rows * 10", map_over="rows")
    await lab.go()
    lab.cell("each", "rows * 11", map_over="rows")
    plan = await lab.plan()
    assert plan["each"].state == "run (0 of 2 items cached)"
    assert plan["each"].why == "code changed"


async def test_large_maps_let_the_loop_breathe(lab: Lab) -> None:
    lab.cell("rows", "list(range(450))")
    lab.pipeline.put(PipelineStep.from_cell("each", "rows", python=True, map_over="rows"))
    await lab.go(until="rows")
    assert (await lab.plan())["each"].items == 450


async def test_what_cannot_be_mapped_over_is_reported(lab: Lab) -> None:
    lab.cell("rows", "5")
    lab.cell("each", "rows", map_over="rows")
    await lab.go(until="rows")
    each = (await lab.plan())["each"]
    assert each.action == "fail"
    assert "cannot map over" in each.why


async def test_a_map_of_nothing_has_a_known_value(lab: Lab) -> None:
    lab.cell("rows", "[]")
    lab.cell("each", "rows", map_over="rows")
    await lab.go(until="rows")
    assert (await lab.plan())["each"].state == "cached (0 of 0 items cached)"


# -- resuming -----------------------------------------------------------------------------------------


async def test_a_resumed_run_is_planned_from_its_record(lab: Lab) -> None:
    lab.cell("a", "1")
    lab.cell("rows", "[1, 2, 3]")
    lab.cell("each", "check(rows)", map_over="rows")
    lab.cell("end", "each")
    lab.cache = None
    lab.broken = {2}
    first = await lab.go()
    plan = await lab.plan(resume=True)
    assert plan.run_id == first.run_id
    assert actions(plan) == {"a": "recorded", "rows": "recorded", "each": "run", "end": "run"}
    assert plan["each"].state == "run (2 of 3 items cached)"
    lab.broken = set()
    await lab.go(resume=True)
    assert lab.ran == ["each", "end"]
    plan = await lab.plan(resume=first.run_id)
    assert set(actions(plan).values()) == {"recorded"}
    assert plan.total == "4 steps: 4 are recorded. It costs nothing."


async def test_changes_that_would_refuse_a_resumed_run_are_reported(lab: Lab) -> None:
    chain(lab)
    lab.cache = None
    run = await lab.go()
    lab.cell("b", "len(a) + 0")
    plan = await lab.plan(resume=True)
    assert list(plan.conflicts) == ["b"]
    assert plan["a"].action == "recorded"
    assert plan["b"].action == "run"
    assert plan["b"].why.startswith("code changed")
    assert plan["c"].action == "may run"
    assert f"Run {run.run_id} would not be resumed as it is" in plan.refusal
    assert plan.refusal in repr(plan)
    again = await lab.plan(resume=True, on_change="rerun")
    assert again.conflicts == {}
    assert again.refusal == ""
    await lab.go(resume=True, on_change="rerun")
    assert lab.ran == ["b"]


async def test_a_map_that_is_recorded_item_by_item_counts_as_recorded(lab: Lab) -> None:
    """Its source changes to the same value, so that the map itself is no longer kept."""
    lab.cell("rows", "[1, 2]")
    lab.cell("each", "rows", map_over="rows")
    await lab.go()
    lab.cell("rows", "[1] + [2]")
    await lab.go(until="rows")  # another run: the cache knows the new source
    runs = await lab.executor.history()
    plan = await lab.plan(resume=runs[0].run_id, on_change="rerun")
    assert plan["rows"].action == "cached"
    assert plan["each"].state == "recorded (2 of 2 items cached)"


async def test_nothing_to_resume(lab: Lab) -> None:
    chain(lab)
    with pytest.raises(errors.NotStoredError):
        await lab.plan(resume=True)


# -- agent steps --------------------------------------------------------------------------------------


async def test_tokens_of_the_last_run_are_expected_and_unknown_prices_stay_unknown(lab: Lab) -> None:
    lab.pipeline.step("ask", "Say hello.")
    plan = await lab.plan()
    assert (plan["ask"].seconds, plan["ask"].tokens, plan["ask"].cost) == (None, None, None)
    done = await lab.go()
    plan = await lab.plan(force=True)
    assert plan["ask"].tokens == done.steps["ask"].usage.total_tokens > 0
    lab.cell("note", "context.spend(None, None) if False else 1")
    assert (await lab.plan())["note"].tokens is None


async def test_a_step_without_a_known_price_has_no_expected_cost(lab: Lab) -> None:
    lab.cell("spends", "context.spend(usage, None)\n1")
    executor = lab.executor
    executor.namespace = {**executor.namespace, "usage": TokenUsage(input_tokens=1200, output_tokens=300)}
    await executor.execute()
    plan = await executor.plan(force=True)
    assert plan["spends"].tokens == 1500
    assert plan["spends"].cost is None
    assert plan.cost is None
    assert plan.tokens == 1500
    assert plan.total.endswith("1.5k tokens, going by earlier runs; the price of spends is unknown.")


async def test_offline_an_uncached_answer_may_come_from_a_recorded_call(lab: Lab) -> None:
    lab.cell("a", "[1]")
    lab.pipeline.step("ask", "Say {{ a }}.")
    lab.pipeline.step("each", "Say {{ a }}.", map_over="a")
    await lab.go(until="a")
    plan = await lab.plan(offline=True)
    assert actions(plan) == {"a": "cached", "ask": "may run", "each": "may run"}
    assert plan["each"].items == 1
    lab.cell("a", "[2]")
    plan = await lab.plan(offline=True)
    assert plan["ask"].why.startswith("the run is offline: the cache or recorded calls answer, or it fails; ")
    assert plan["ask"].action == "may run"


async def test_what_a_cached_step_learned_counts_for_later_fingerprints(lab: Lab) -> None:
    lab.cell("teach", "context.learn('tone', 'kind')\ncontext.save_memory('seen', 1)\n1")
    lab.pipeline.step("ask", "Say hello.", depends_on=["teach"])
    await lab.go()
    await lab.go()
    assert set(actions(await lab.plan()).values()) == {"cached"}
    plan = await lab.plan(force=["teach"])
    assert plan["ask"].action == "may run"
    assert plan["ask"].why == (
        "fact tone may change, because teach runs; memory seen may change, because teach runs"
    )


async def test_a_tool_that_is_missing_is_reported_instead_of_a_plan(lab: Lab) -> None:
    @tool
    def lookup(word: str) -> str:
        """Look it up."""
        return word

    forget_tool("lookup")
    lab.pipeline.step("ask", "Say hello.", tools_filter=["lookup"])
    with pytest.raises(PipelineValidationError, match="'lookup', which is no tool"):
        await lab.plan()


# -- what is expected -----------------------------------------------------------------------------------


async def test_the_newest_run_in_which_a_step_ran_is_the_one_to_go_by(lab: Lab) -> None:
    chain(lab)
    first = await lab.go()
    await lab.go()  # all cached: nothing to go by
    runs = await lab.executor.history()
    plan = await lab.plan(force=True)
    assert plan["a"].seconds == first.steps["a"].seconds
    # Someone deletes or damages that one: the one before it does as well.
    [journal] = (lab.folder / "runs").rglob(f"*{runs[-1].run_id[-8:]}.journal")
    journal.write_bytes(b"x" * 300 + journal.read_bytes())
    plan = await lab.plan(use_cache=False)
    assert plan["a"].action == "run"
    assert plan["a"].seconds == first.steps["a"].seconds


async def test_old_runs_are_not_searched_for_ever(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(lab)
    await lab.go()
    await lab.go()
    monkeypatch.setattr(expectation, "MOST_RUNS", 1)
    assert (await lab.plan(force=True))["a"].seconds is None


# -- the plan itself ------------------------------------------------------------------------------------


async def test_a_plan_is_a_frame_and_a_text(lab: Lab) -> None:
    lab.cell("rows", "[1, 2]")
    lab.cell("each", "rows", map_over="rows")
    await lab.go(until="rows")
    plan = await lab.plan()
    frame = plan.to_frame()
    assert list(frame.index) == ["rows", "each"]
    columns = ["action", "why", "items", "items_done", "seconds", "tokens", "cost"]
    assert list(frame.columns[:7]) == columns
    assert frame.loc["each", "items"] == 2
    assert frame["items"].isna().tolist() == [True, False]
    assert frame["seconds"].isna().tolist() == [False, True]
    assert str(frame["tokens"].dtype) == "Int64"
    assert repr(plan).splitlines() == [
        "Plan of lab (a new run)",
        "  rows: cached",
        "  each: run (0 of 2 items cached); it has no earlier result",
        "2 steps: 1 runs, 1 is cached. No run of each is recorded to go by.",
    ]
    assert len(plan) == 2
    with pytest.raises(UnknownStepError, match="Did you mean 'rows'"):
        plan["row"]


def test_many_unknown_steps_are_summed_up() -> None:
    steps = [StepPlan(f"s{number}", "run", seconds=None, tokens=None, cost=None) for number in range(6)]
    summary = "6 steps: 6 run. No run of s0, s1, s2, s3 and 2 more is recorded to go by."
    assert Plan("p", steps).total == summary
    assert Plan("p", []).total == "0 steps: nothing to do. It costs nothing."


async def test_history_and_stored_results(lab: Lab) -> None:
    chain(lab)
    assert await lab.executor.history() == []
    with pytest.raises(errors.NotStoredError):
        await lab.executor.load_result()
    first = await lab.go()
    await lab.go()
    assert [run.steps_cached for run in await lab.executor.history()] == [0, 3]
    assert (await lab.executor.load_result())["c"] == 4
    assert (await lab.executor.load_result(first.run_id)).run_id == first.run_id


async def test_a_plan_can_be_cancelled_while_it_waits(tmp_path: Path) -> None:
    """Being stopped is nothing that a step of the plan is to blame for."""
    waits = asyncio.Event()

    class SlowCache(ResultCache):
        async def aget(self, *args: Any, **options: Any) -> Any:
            waits.set()
            await asyncio.Event().wait()

    lab = Lab(tmp_path)
    lab.cell("one", "1")
    lab.cache = SlowCache(tmp_path / "slow")
    planning = asyncio.ensure_future(lab.executor.plan())
    await waits.wait()
    planning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await planning
