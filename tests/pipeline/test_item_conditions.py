"""A condition beside ``map_over`` that is about the items: it leaves items out, and not the step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tagent_nb import (
    And,
    Condition,
    Contains,
    DataExists,
    IsEmpty,
    IsGreaterThan,
    Not,
    Or,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    ResultCache,
    ResumeConflictError,
    StepSkipped,
    StepStatus,
    TemplateError,
)
from tagent_nb.engine.unit.map import AT_ONCE
from tagent_nb.graph import to_svg
from tagent_nb.notebook.panel.details import details_html
from tagent_nb.results import MapProgress, RunView, map_progress, run_html, run_text

ROWS = [{"text": "Great", "stars": 5}, {"text": "Bad", "stars": 1}, {"text": "Fine", "stars": 4}]


def cell(name: str, code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell(name, code, python=True, **options)


def flow(
    when: str | Condition, map_over: str = "rows", code: str = "item['stars'] * 10", **options: Any
) -> Pipeline:
    return Pipeline("flow").put(cell("each", code, map_over=map_over, when=when, **options))


def run(pipeline: Pipeline, rows: Any = ROWS, **options: Any) -> PipelineResult:
    inputs = {
        name: {"rows": rows, "limit": 3, "load": {"rows": rows, "count": 3}}[name]
        for name in _inputs(pipeline)
    }
    return PipelineExecutor(pipeline, **options).run(inputs=inputs)


def _inputs(pipeline: Pipeline) -> list[str]:
    names = [dependency.name for step in pipeline.steps for dependency in pipeline.dependencies(step)]
    return [name for name in dict.fromkeys(names) if name not in pipeline]


FILTERS: dict[str, str | Condition] = {
    "a field of the source": "rows.stars > 3",
    "a field in brackets": 'rows["stars"] > 3',
    "the item": "item.stars > 3",
    "a method of a field": "not rows.text.startswith('B')",
    "another input": "rows.stars > limit",
    "the whole too": "rows.stars > 3 and rows | length == 3 and len(rows) == 3 and rows[0].stars == 5",
    "a condition": IsGreaterThan("rows.stars", 3),
    "a condition on the item": IsGreaterThan("item.stars", 3),
    "joined conditions": And(Not(Contains("rows.text", "Bad")), DataExists("rows"), ~IsEmpty("rows[0]")),
    "one of two": Or(IsGreaterThan("rows.stars", 4), Contains("rows.text", "ine")),
}


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("rows", [ROWS, pd.DataFrame(ROWS, index=["a", "b", "c"])], ids=["list", "frame"])
def test_items_whose_condition_does_not_hold_are_skipped_and_keep_their_place(kind: str, rows: Any) -> None:
    result = run(flow(FILTERS[kind]), rows)
    assert result.success
    assert result["each"] == [50, None, 40]
    items = list((result.steps["each"].items or {}).values())
    assert [item.status.value for item in items] == ["completed", "skipped", "completed"]
    assert items[1].reason.startswith("condition not met: ")
    assert (items[1].attempts, items[1].cost, items[1].error) == (0, 0.0, "")
    assert result.step_metadata["each"]["items_skipped"] == 1
    assert result.step_metadata["each"]["items_failed"] == 0


WHOLE: dict[str, tuple[str | Condition, str]] = {
    "the source itself": ("rows | length > 3", "rows"),
    "a row of it": ("rows[0].stars > 5", "rows"),
    "a method of it": ("rows.index(1) > 3", "rows"),
    "another": ("limit > 3", "rows"),
    "beside the rows": ("load.count > 3", "load.rows"),
    "the rows": ("load.rows | length > 3", "load.rows"),
    "a condition on it": (IsGreaterThan("limit", 3), "rows"),
    "joined": (IsEmpty("rows") | Not(DataExists("load.rows")), "load.rows"),
}


@pytest.mark.parametrize(
    "kind",
    ["the source itself", "a row of it", "another", "beside the rows", "the rows", "a condition on it"],
)
def test_a_condition_on_other_things_decides_on_the_whole_step(kind: str) -> None:
    when, source = WHOLE[kind]
    result = run(flow(when, source))
    assert result.steps["each"].status is StepStatus.SKIPPED
    assert result.steps["each"].items is None


@pytest.mark.parametrize("kind", WHOLE)
def test_such_a_condition_is_none_of_items(kind: str) -> None:
    when, source = WHOLE[kind]
    assert flow(when, source).get_step("each").item_condition is None
    assert cell("plain", "1", when="rows.stars > 3").item_condition is None
    assert cell("plain", "1", map_over="rows").item_condition is None


@pytest.mark.parametrize(
    "when", ["load.rows.stars > 3", "item.stars > 3", IsGreaterThan("load.rows.stars", 3)]
)
def test_what_is_mapped_over_may_be_a_part_of_a_value(when: str | Condition) -> None:
    assert run(flow(when, "load.rows"))["each"] == [50, None, 40]


class Lucky(Condition):
    """A condition of the user's own: it cannot be asked about an item."""

    def evaluate(self, values: Any) -> bool:
        return len(values["rows"]) == 3

    def references(self) -> Any:
        return IsEmpty("rows").references()

    def describe(self) -> str:
        return "lucky"

    def to_dict(self) -> dict[str, Any]:
        return {"type": "Lucky"}


def test_a_condition_of_ones_own_decides_on_the_whole_step() -> None:
    assert run(flow(Lucky()))["each"] == [50, 10, 40]


def test_a_condition_that_cannot_be_read_is_refused_with_its_step() -> None:
    with pytest.raises(TemplateError, match="Step 'each', when: unexpected 'end of template'"):
        _ = cell("each", "item", map_over="rows", when="rows.stars >").item_condition


def test_items_cost_nothing_and_do_not_count_as_failures() -> None:
    result = run(flow("item.stars < 5", code="assert item['stars'] < 4\n1", max_retries=0, min_success=0.5))
    assert result["each"] == [None, 1, None]
    assert result.step_metadata["each"]["items_failed"] == 1
    strict = run(flow("item.stars < 5", code="assert item['stars'] < 4\n1", max_retries=0))
    assert "1 of 2 items succeeded; all must" in strict.error_details["each"]
    none = run(flow("item.stars > 5"))
    assert (none.success, none["each"]) == (True, [None, None, None])
    assert run(flow("item.stars > 5"), [])["each"] == []


def test_an_item_whose_condition_cannot_be_decided_fails_alone() -> None:
    rows = [*ROWS, {"text": "?"}]
    result = run(flow("rows.stars > 3", min_success=0.5), rows)
    assert result["each"] == [50, None, 40, None]
    error = result.output_frame("each")["error"].tolist()
    assert "'item.stars' is not there" in error[3] or "'stars' is not there" in error[3]
    with pytest.raises(TemplateError, match="Step 'each', when"):
        run(flow("rows.stars >"))


def test_frames_details_tables_graph_and_report_tell_skipped_items_from_others() -> None:
    pipeline = flow("rows.stars > 3")
    result = run(pipeline)
    assert result.output_frame("each")["value"].tolist()[::2] == [50, 40]
    assert result.output_frame("each")["error"].tolist()[1] == "skipped: condition not met: rows.stars > 3"
    assert result.output_frame("each")["error"].isna().tolist() == [True, False, True]
    assert "1: skipped · condition not met" in details_html(pipeline, "each", result.steps)
    view = RunView("flow", result.steps, "completed", 1.0, items=map_progress(result.steps))
    assert view.items == {"each": MapProgress(3, (2, 0, 0, 1))}
    assert "1 of 3 items skipped" in run_text(view)
    assert "3/3 items, 1 skipped" in run_html(view)
    assert "3/3 items, 1 skipped" in to_svg(pipeline, result.steps)
    assert "2 of 3 items, 1 skipped" in result._repr_html_()
    again = PipelineResult.from_json(result.to_json())
    items = list((again.steps["each"].items or {}).values())
    assert [item.reason for item in items] == ["", "condition not met: rows.stars > 3", ""]


def test_many_skipped_items_are_recorded_together(tmp_path: Path) -> None:
    rows = [{"stars": number % 2} for number in range(1000)]
    result = run(flow("item.stars > 0"), rows, storage=tmp_path)
    assert sum(isinstance(event, StepSkipped) for event in result.events) == 500
    assert sum(value is None for value in result["each"]) == 500


def test_a_condition_that_lets_all_items_in_records_none_as_skipped() -> None:
    rows = [{"stars": 1}] * (AT_ONCE + 1)
    result = run(flow("item.stars > 0"), rows)
    assert result["each"] == [10] * len(rows)
    assert not any(isinstance(event, StepSkipped) for event in result.events)


def test_another_condition_pays_for_the_items_that_it_lets_in_alone(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    run(flow("item.stars > 4"), cache=cache)
    result = run(flow("item.stars > 3"), cache=cache)
    assert [item.status.value for item in (result.steps["each"].items or {}).values()] == [
        "cached",
        "skipped",
        "completed",
    ]
    assert run(flow("item.stars > 3"), cache=cache).steps["each"].status is StepStatus.CACHED


def test_a_plan_counts_the_items_that_the_condition_lets_in(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)

    def plan(pipeline: Pipeline, **inputs: Any) -> Any:
        return asyncio.run(PipelineExecutor(pipeline, cache=cache).plan(inputs=inputs))["each"]

    first = plan(flow("item.stars > 3"), rows=ROWS)
    assert (first.action, first.items, first.items_done) == ("run", 2, 0)
    assert "its condition skips 1 of 3 items" in first.why
    run(flow("item.stars > 4"), cache=cache)
    assert (plan(flow("item.stars > 3"), rows=ROWS).state) == "run (1 of 2 items cached)"
    assert plan(flow("item.stars > 4"), rows=ROWS).action == "cached"
    assert plan(flow("item.stars > 4", min_success=0.5), rows=[*ROWS, {}]).action == "run"
    unsure = flow("item.stars > other").put(cell("other", "3"))
    planned = plan(unsure, rows=ROWS)
    assert (planned.action, planned.items) == ("may run", 3)
    assert "its condition depends on other" in planned.why
    above = flow("rows.stars > 3").put(cell("rows", "[]"))
    assert "its condition" not in plan(above).why


def test_a_resumed_run_asks_the_condition_again(tmp_path: Path) -> None:
    def half(when: str, fails: bool, **options: Any) -> PipelineResult:
        pipeline = flow(when)
        pipeline.put(cell("last", "assert not fails\nsum(one or 0 for one in each)", max_retries=0))
        executor = PipelineExecutor(pipeline, storage=tmp_path, namespace={"rows": ROWS, "fails": fails})
        return executor.run(**options)

    assert half("rows.stars > 4", True).failed_steps == ["last"]
    with pytest.raises(ResumeConflictError, match="each: the condition for each item changed"):
        half("rows.stars > 3", False, resume=True)
    result = half("rows.stars > 3", False, resume=True, on_change="rerun")
    assert (result["each"], result["last"]) == ([50, None, 40], 90)
    statuses = [item.status.value for item in (result.steps["each"].items or {}).values()]
    assert statuses == ["completed", "skipped", "completed"]
    assert half("rows.stars > 3", False, resume=True)["each"] == [50, None, 40]
    fewer = half("rows.stars > 4", False, resume=True, on_change="rerun")
    assert fewer["each"] == [50, None, None]


def test_length_is_asked_as_in_python() -> None:
    assert run(flow("len(rows) > 3")).steps["each"].status is StepStatus.SKIPPED
    assert run(flow("len(rows) == 3"))["each"] == [50, 10, 40]
    with pytest.raises(TemplateError, match=r"'open' cannot be called.*len\(\), range\(\) and namespace\(\)"):
        flow("open(rows)")
