"""A mapped step of which too many items fail stops early, and goes on where it stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, PipelineStep, ResultCache, StepContext
from tagent_nb.display import step_card
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import PipelineResult


class Bad:
    """Which rows fail, and which were run. With a lock it is no part of a fingerprint."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.lock = threading.Lock()
        self.fails = fails
        self.ran: list[int] = []


def flow(bad: Bad, rows: int = 100, **options: Any) -> Pipeline:
    pipeline = Pipeline("rows").share(rows=rows)

    @pipeline.task
    def load(context: StepContext) -> list[int]:
        return list(range(context.shared["rows"]))

    @pipeline.task(map_over="load", max_retries=0, **options)
    async def classify(item: int) -> int:
        bad.ran.append(item)
        if bad.fails(item):
            raise (KeyError if item % 10 == 9 else ValueError)(f"row {item} is bad")
        return item

    return pipeline


def run(pipeline: Pipeline, **options: Any) -> PipelineResult:
    return PipelineExecutor(pipeline, max_concurrency=1, **options).run()


def test_no_further_row_starts_once_more_have_failed_than_may() -> None:
    bad = Bad(lambda row: row % 2 == 1)
    result = run(flow(bad, max_failures=5))
    assert result.failed_steps == ["classify"]
    assert bad.ran == list(range(12))  # 1, 3, 5, 7, 9 and 11 have failed
    assert len(result.steps["classify"].items or {}) == 12


def test_the_error_has_the_kinds_of_failures_the_first_one_and_the_remedy() -> None:
    result = run(flow(Bad(lambda row: row > 3), max_failures=7))
    assert result.error_details["classify"] == (
        "StepError: Stopped early: 8 of 12 items that ran failed (7 x ValueError, 1 x KeyError), and "
        "max_failures is 7. 88 items were not begun. What is done is kept: mend what fails, or raise "
        "max_failures (--max-failures), then go on with resume=True (--resume). The first is item '4': "
        "ValueError: row 4 is bad"
    )


def test_as_many_as_may_fail_leave_the_rest_alone() -> None:
    bad = Bad(lambda row: row < 5)
    assert run(flow(bad, max_failures=5, min_success=0.9)).success
    assert len(bad.ran) == 100


def test_without_a_limit_all_rows_are_run() -> None:
    bad = Bad(lambda row: True)
    assert "0 of 100 items succeeded; all must. The first" in run(flow(bad)).error_details["classify"]
    assert len(bad.ran) == 100


def test_the_card_names_the_limit() -> None:
    pipeline = flow(Bad(bool), max_failures=1)
    assert "stops early beyond 1 failed item" in step_card(pipeline, pipeline.get_step("classify")).text


async def test_the_plan_names_the_limit_of_a_step_that_runs(tmp_path: Path) -> None:
    executor = PipelineExecutor(flow(Bad(lambda row: False), max_failures=0.1), storage=tmp_path)
    plan = await executor.plan()
    assert plan.steps[1].why.endswith("stops early beyond 10% failed items")
    await executor.execute()
    assert "stops early" not in repr(await executor.plan(resume=True))


def test_none_may_fail() -> None:
    bad = Bad(lambda row: row == 3)
    assert not run(flow(bad, max_failures=0, min_success=0.0)).success
    assert bad.ran == [0, 1, 2, 3]


async def test_rows_under_way_come_to_their_end() -> None:
    begun = asyncio.Event()
    pipeline = Pipeline("rows").share(rows=[0, 1, 2, 3])

    @pipeline.task
    def load(context: StepContext) -> list[int]:
        return list(context.shared["rows"])

    @pipeline.task(map_over="load", max_retries=0, max_failures=0)
    async def classify(item: int) -> int:
        if item == 0:
            await asyncio.wait_for(begun.wait(), 60)
            raise ValueError("bad")
        begun.set()
        for _ in range(50):
            await asyncio.sleep(0)
        return item

    executor = PipelineExecutor(pipeline, max_concurrency=2)
    result = await executor.execute()
    items = result.steps["classify"].items or {}
    assert {key: item.status for key, item in items.items()} == {
        "0": StepStatus.FAILED,
        "1": StepStatus.COMPLETED,
    }


def test_a_resumed_run_goes_on_with_the_rest_and_counts_from_zero(tmp_path: Path) -> None:
    bad = Bad(lambda row: row % 2 == 1)
    executor = PipelineExecutor(flow(bad, max_failures=5), max_concurrency=1, storage=tmp_path)
    executor.run()
    bad.ran.clear()
    assert executor.run(resume=True).failed_steps == ["classify"]
    assert bad.ran == list(range(12, 24))  # those that have failed come last
    bad.ran.clear()
    bad.fails = lambda row: False
    assert executor.run(resume=True)["classify"] == list(range(100))
    assert bad.ran == [*range(24, 100), *range(1, 24, 2)]


@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "with a cache"])
def test_each_resume_comes_further_though_as_many_fail(cached: bool, tmp_path: Path) -> None:
    bad = Bad(lambda row: row % 2 == 1)
    cache = ResultCache(tmp_path / "cache") if cached else None
    flow_of_rows = flow(bad, rows=40, max_failures=5)
    executor = PipelineExecutor(flow_of_rows, max_concurrency=1, storage=tmp_path / "runs", cache=cache)
    executor.run()
    for _ in range(3):
        executor.run(resume=True)
    assert set(bad.ran) == set(range(40))


def test_what_was_done_is_cached(tmp_path: Path) -> None:
    bad = Bad(lambda row: row > 9)
    cache = ResultCache(tmp_path)
    run(flow(bad, max_failures=3), cache=cache)
    bad.ran.clear()
    # A limit is no part of a key.
    run(flow(bad, max_failures=4), cache=cache)
    assert bad.ran == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "with a cache"])
def test_a_share_counts_from_20_rows_on(cached: bool, tmp_path: Path) -> None:
    bad = Bad(lambda row: row in (0, 1, 2) or row >= 50)
    assert not run(flow(bad, max_failures=0.1), cache=cached and ResultCache(tmp_path)).success
    # 3 of 20 are more than a tenth; those before the 20th row are not looked at.
    assert bad.ran == list(range(20))


def test_a_share_grows_with_the_rows() -> None:
    bad = Bad(lambda row: row in (0, 1) or row >= 50)
    run(flow(bad, max_failures=0.1), cache=False)
    assert bad.ran == list(range(54))  # 6 of 54 are more than a tenth, 5 of 53 are not


def test_fewer_rows_than_a_share_is_of_are_all_run() -> None:
    bad = Bad(lambda row: True)
    assert "0 of 19 items succeeded" in run(flow(bad, rows=19, max_failures=0.1)).error_details["classify"]
    assert len(bad.ran) == 19


def test_rows_that_the_cache_answers_for_do_not_count(tmp_path: Path) -> None:
    bad = Bad(lambda row: False)
    cache = ResultCache(tmp_path)
    run(flow(bad, rows=60, max_failures=0.5), cache=cache)
    bad.ran.clear()
    bad.fails = lambda row: True
    run(flow(bad, rows=100, max_failures=0.5), cache=cache)
    assert bad.ran == list(range(60, 80))


def test_rows_whose_condition_breaks_count_and_nothing_is_run() -> None:
    bad = Bad(lambda row: False)
    result = run(flow(bad, max_failures=2, when="1 / item > 0 if item % 20 == 0 else item.x > 1"))
    assert "Stopped early" in result.error_details["classify"]
    assert bad.ran == []


def test_rows_that_lack_what_the_goal_reads_count_before_a_model_is_asked(tmp_path: Path) -> None:
    pipeline = Pipeline("rows", model="test")

    @pipeline.task
    def load() -> list[dict[str, int]]:
        return [{"stars": 3}] * 10

    pipeline.step("classify", "Classify {{ load.text }}", map_over="load", max_failures=2)
    result = run(pipeline, cache=ResultCache(tmp_path))
    assert "Stopped early: 3 of 3 items that ran failed" in result.error_details["classify"]
    assert result.token_usage["classify"].requests == 0


def test_a_budget_that_is_used_up_is_no_failing_pattern() -> None:
    pipeline = Pipeline("rows", model="test").share(rows=list(range(10)))

    @pipeline.task
    def load(context: StepContext) -> list[int]:
        return list(context.shared["rows"])

    pipeline.step("classify", "Say {{ item }}.", map_over="load", budget="4 requests", max_failures=0)
    result = run(pipeline)
    assert "4 of 10 items are done" in result.error_details["classify"]


def test_a_step_that_stops_early_fails_though_rows_wait_for_a_person() -> None:
    bad = Bad(lambda row: row > 1)
    executor = PipelineExecutor(flow(bad, max_failures=1, approve=True), max_concurrency=1)
    result = executor.run()
    assert result.failed_steps == ["classify"]
    assert bad.ran == [0, 1, 2, 3]
    assert [request.item for request in executor.pending_approvals()] == ["0", "1"]


@pytest.mark.parametrize("value", [-1, 0.0, 1.0, 1.5, True, "20", float("nan")])
def test_what_is_no_number_of_rows_is_refused(value: Any) -> None:
    with pytest.raises(DefinitionError, match="must be a number of items such as 20, or a share"):
        PipelineStep("classify", "go", map_over="load", max_failures=value)


def test_a_step_that_reduces_rows_has_min_success_in_its_place() -> None:
    with pytest.raises(DefinitionError, match="reduce_over asks for parts of rows. min_success="):
        Pipeline("rows").step("total", "Sum {{ load }}", reduce_over="load", max_failures=3)


def test_a_step_that_runs_once_has_no_such_limit() -> None:
    with pytest.raises(DefinitionError, match=r"Add map_over= \(--map-over\)"):
        PipelineStep("classify", "go", max_failures=20)
    assert PipelineStep("classify", "go", max_failures=None).max_failures is None


@pytest.mark.parametrize("value", [0, 20, 0.25])
def test_json_and_yaml_keep_it_a_number_or_a_share(value: float) -> None:
    pipeline = (
        Pipeline("rows").step("load", "go").step("each", "{{ load }}", map_over="load", max_failures=value)
    )
    for copy in (Pipeline.from_json(pipeline.to_json()), Pipeline.from_yaml(pipeline.to_yaml())):
        again = copy.get_step("each").max_failures
        assert (type(again), again) == (type(value), value)
