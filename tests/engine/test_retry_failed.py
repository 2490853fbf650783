"""Failed rows are run again alone, and what reads them after them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, ResultCache, UnknownStepError, events
from tagent_nb.pipeline import StepStatus


class World:
    """What fails now, and what was run. With a lock it is no part of a fingerprint."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bad: set[Any] = {"b", "d"}
        self.ran: list[Any] = []

    def take(self) -> list[Any]:
        """What was run since the last call, sorted."""
        ran, self.ran = sorted(map(str, self.ran)), []
        return ran


def flow(world: World, **options: Any) -> Pipeline:
    pipeline = Pipeline("letters")

    @pipeline.task
    def load() -> list[str]:
        world.ran.append("load")
        return list("abcde")

    @pipeline.task(map_over="load", max_retries=0, **{"min_success": 0.5, **options})
    def upper(item: str) -> str:
        world.ran.append(item)
        if item in world.bad:
            raise ValueError(f"{item} is bad")
        return item.upper()

    @pipeline.task
    def total(upper: list[str | None]) -> str:
        world.ran.append("total")
        return "".join(letter or "-" for letter in upper)

    @pipeline.task
    def other(load: list[str]) -> int:
        world.ran.append("other")
        return len(load)

    return pipeline


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=["memory", "file", "cache"])
def executor(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> PipelineExecutor:
    """In memory there are no fingerprints; the cache must neither answer nor be needed."""
    where: dict[str, dict[str, Any]] = {
        "memory": {},
        "file": {"storage": tmp_path / "runs"},
        "cache": {"cache": ResultCache(tmp_path / "cache")},
    }
    return PipelineExecutor(flow(world), **where[request.param])


def test_failed_rows_of_a_run_that_succeeded_are_run_alone(executor: PipelineExecutor, world: World) -> None:
    first = executor.run()
    assert first.success
    assert first["total"] == "A-C-E"
    world.take()
    world.bad.clear()
    again = executor.retry_failed("upper")
    # What reads them runs again; what does not is left as it was.
    assert world.take() == ["b", "d", "total"]
    assert again["total"] == "ABCDE"
    assert again.run_id == first.run_id
    assert again.steps["upper"].reason == "2 failed items are tried again"


def test_rows_that_fail_again_stay_failed_and_can_be_tried_once_more(
    executor: PipelineExecutor, world: World
) -> None:
    executor.run()
    world.take()
    world.bad = {"d"}
    assert executor.retry_failed()["total"] == "ABC-E"
    world.take()
    world.bad.clear()
    assert executor.retry_failed()["total"] == "ABCDE"
    assert world.take() == ["d", "total"]
    with pytest.raises(DefinitionError, match="nothing failed, so there is nothing to try again"):
        executor.retry_failed()
    assert world.take() == []


def test_rows_that_fail_as_before_cost_nothing_below(world: World, tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    executor.run()
    world.take()
    assert executor.retry_failed("upper")["total"] == "A-C-E"
    assert world.take() == ["b", "d"]


def test_failed_rows_of_a_step_that_failed_are_run_alone(world: World, tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(world, min_success=1.0), storage=tmp_path)
    assert executor.run().failed_steps == ["upper"]
    world.take()
    world.bad.clear()
    assert executor.retry_failed("upper")["total"] == "ABCDE"
    assert world.take() == ["b", "d", "total"]


def test_another_process_tries_the_rows_of_a_run_that_is_stored(world: World, tmp_path: Path) -> None:
    first = PipelineExecutor(flow(world), storage=tmp_path).run()
    PipelineExecutor(flow(world), storage=tmp_path).run()
    world.take()
    world.bad.clear()
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    again = executor.run(resume=first.run_id, retry_failed=["upper"])
    assert again.run_id == first.run_id
    assert world.take() == ["b", "d", "total"]


def test_rows_of_a_map_below_run_again_only_where_theirs_have_changed(world: World, tmp_path: Path) -> None:
    pipeline = flow(world)

    @pipeline.task(map_over="upper", min_success=0.0)
    def praise(item: str | None) -> str:
        world.ran.append(f"praise {item}")
        return f"{item}!"

    executor = PipelineExecutor(pipeline, storage=tmp_path)
    executor.run()
    world.take()
    world.bad.clear()
    assert executor.retry_failed()["praise"] == ["A!", "B!", "C!", "D!", "E!"]
    assert world.take() == ["b", "d", "praise B", "praise D", "total"]


async def test_the_plan_says_what_is_tried_again(world: World, tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    await executor.execute()
    plan = await executor.plan(retry_failed="upper")
    steps = {step.step: step for step in plan.steps}
    assert (steps["upper"].action, steps["upper"].items, steps["upper"].items_done) == ("run", 5, 3)
    assert {steps[name].action for name in ("load", "other")} == {"recorded"}
    with pytest.raises(DefinitionError, match="step 'load' has no failed rows"):
        await executor.plan(retry_failed=["load"])


def test_a_resumed_run_without_a_say_leaves_failed_rows_alone(world: World, tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    executor.run()
    world.take()
    assert executor.run(resume=True, retry_failed=[])["total"] == "A-C-E"
    assert executor.run(resume=True, retry_failed=False).success
    assert world.take() == []


def test_a_changed_definition_is_refused_as_for_every_resumed_run(world: World, tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    executor.run()
    changed = executor.pipeline.get_step("upper").with_(body=None, goal="{{ load }}", model="test")
    executor.pipeline.put(changed)
    with pytest.raises(Exception, match="on_change"):
        executor.retry_failed("upper")


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        (["uper"], UnknownStepError, "upper"),
        (["load"], DefinitionError, "step 'load' has no failed rows"),
        (["upper", "total"], DefinitionError, "step 'total' has no failed rows"),
    ],
)
def test_a_step_of_which_nothing_failed_is_refused_before_anything_runs(
    world: World, tmp_path: Path, steps: list[str], error: type[Exception], message: str
) -> None:
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    executor.run()
    world.take()
    with pytest.raises(error, match=message):
        executor.retry_failed(*steps)
    assert world.take() == []
    assert [event for event in executor.memory.events if isinstance(event, events.RunResumed)] == []  # type: ignore[union-attr]


def test_a_step_that_is_left_out_is_not_tried(world: World, tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    executor.run()
    with pytest.raises(DefinitionError, match="step 'upper' has no failed rows"):
        executor.run(retry_failed="upper", until="other")


def test_a_plain_step_that_failed_is_tried_by_its_name(tmp_path: Path) -> None:
    world = World()
    pipeline = Pipeline("plain")

    @pipeline.task(max_retries=0)
    def only() -> int:
        if world.bad:
            raise ValueError("bad")
        return 1

    executor = PipelineExecutor(pipeline, storage=tmp_path)
    executor.run()
    world.bad.clear()
    assert executor.retry_failed("only")["only"] == 1


def test_one_row_is_one_row(world: World, tmp_path: Path) -> None:
    world.bad = {"c"}
    executor = PipelineExecutor(flow(world), storage=tmp_path)
    executor.run()
    assert executor.retry_failed().steps["upper"].reason == "1 failed item is tried again"


def test_what_was_stopped_early_goes_on_in_memory_without_paying_twice(world: World) -> None:
    """Without fingerprints, too, what was run stays run while its definition is the same."""
    executor = PipelineExecutor(flow(world, max_failures=0), max_concurrency=1)
    assert executor.run().failed_steps == ["upper"]
    assert world.take() == ["a", "b", "load", "other"]
    world.bad.clear()
    result = executor.retry_failed("upper")
    assert result["total"] == "ABCDE"
    assert world.take() == ["b", "c", "d", "e", "total"]
    assert {item.status for item in (result.steps["upper"].items or {}).values()} == {StepStatus.COMPLETED}


def test_a_step_that_was_defined_anew_is_trusted_no_more(world: World) -> None:
    executor = PipelineExecutor(flow(world, max_failures=0), max_concurrency=1)
    executor.run()
    world.take()
    world.bad.clear()
    executor.pipeline.put(executor.pipeline.get_step("upper").with_(timeout=60))
    executor.run(resume=True)
    assert world.take() == ["a", "b", "c", "d", "e", "total"]
