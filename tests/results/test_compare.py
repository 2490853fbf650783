"""Two results side by side, and answers against a truth: every difference is reported, and no other."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    DefinitionError,
    Event,
    ExecutionMode,
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    ResultCache,
    StepFinished,
    UnknownStepError,
)
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import DataExists


class Score(BaseModel):
    score: int


ROWS = [{"text": f"t{place}", "label": "good" if place % 3 else "bad"} for place in range(12)]


def classified(name: str, labels: dict[str, Any], rows: Any = ROWS, **inputs: Any) -> PipelineResult:
    """A run that answers rows by their text; those without an answer fail."""

    def classify(load: Any) -> dict[str, Any]:
        return {"label": labels[load["text"]], "more": {"size": len(load["text"])}}

    pipeline = Pipeline(name, inputs=inputs)
    if not inputs:
        pipeline.task(lambda: rows, name="load")
    pipeline.task(classify, map_over="load", min_success=0.0, max_retries=0)
    return PipelineExecutor(pipeline).run()


RIGHT = {row["text"]: row["label"] for row in ROWS}


def test_rows_and_fields_that_differ_are_listed_with_both_values() -> None:
    """By the key of the item; a row that one of them has no answer for differs in each field."""
    other = {**RIGHT, "t0": "good"}
    del other["t5"]
    comparison = classified("reviews", RIGHT).compare(classified("strict", other))
    rows = comparison.rows
    assert list(rows.columns) == ["step", "item", "field", "reviews", "strict"]
    assert rows[["item", "field"]].values.tolist() == [
        ["0", "label"],
        ["5", "label"],
        ["5", "more.size"],
        ["5", "error"],
    ]
    assert rows["reviews"].tolist()[:3] == ["bad", "good", 2]
    assert rows["reviews"].isna().tolist() == [False, False, False, True]
    assert rows["strict"].isna().tolist() == [False, True, True, False]
    assert rows["strict"].tolist()[::3] == ["good", "KeyError: 't5'"]
    steps = comparison.steps
    assert steps.loc["classify", ["rows", "differ"]].tolist() == [12, 2]
    assert steps["agreement"].tolist() == [1.0, 1 - 2 / 12]
    assert (steps[["cost_reviews", "cost_strict"]] == 0.0).all().all()
    assert (steps[["seconds_reviews", "seconds_strict"]] >= 0.0).all().all()
    assert comparison.total.startswith("2 of 24 rows differ; reviews $0")
    assert "2 of 24 rows differ" in repr(comparison)
    assert "KeyError: &#x27;t5&#x27;" in comparison._repr_html_()


def test_equal_results_agree_and_are_called_by_their_runs() -> None:
    result = classified("reviews", RIGHT)
    comparison = result.compare(result)
    assert comparison.total.startswith("all 24 rows agree")
    assert comparison.names == (result.run_id, f"{result.run_id}_2")
    assert len(comparison.rows) == 0
    assert "text/html" not in comparison._repr_html_()
    assert result.compare(result, ["before", "step"]).names == ("before", "step_2")
    with pytest.raises(DefinitionError, match="names must be two names"):
        result.compare(result, ["one"])


def test_more_than_ten_differences_are_cut_where_they_are_shown() -> None:
    wrong = dict.fromkeys(RIGHT, "none")
    comparison = classified("a", RIGHT).compare(classified("b", wrong))
    assert len(comparison.rows) == 12
    assert repr(comparison).endswith("and 2 more: see .rows")
    assert "and 2 more: see .rows" in comparison._repr_html_()


def by_hand(**values: Any) -> PipelineResult:
    return PipelineResult("p", True, 0.0, run_id="r", step_outputs=values)


def test_steps_that_only_one_has_and_steps_without_a_value_are_no_rows() -> None:
    first = by_hand(a=1, c=[1, 2])
    first.steps = {}
    second = by_hand(a=2, b=3, c=[1, 3, 4])
    comparison = first.compare(second, ["x", "y"])
    assert comparison.only == {"x": [], "y": ["b"]}
    assert "only y has b" in comparison.total
    assert comparison.rows[["step", "y"]].values.tolist() == [["a", 2], ["c", 3], ["c", 4]]
    assert comparison.rows["item"].isna().tolist() == [True, False, False]
    assert comparison.rows["item"].tolist()[1:] == ["1", "2"]
    assert comparison.rows["x"].tolist()[:2] == [1, 2]
    assert comparison.rows["x"].isna().tolist() == [False, False, True]
    failed = PipelineResult("p", False, 0.0, failed_steps=["a"])
    assert len(failed.compare(failed).steps) == 0
    assert repr(failed.compare(failed)).count("\n") == 0
    assert "<table" not in failed.compare(failed)._repr_html_()
    one_sided = failed.compare(by_hand(a=1))
    assert one_sided.rows.iloc[0, -1] == 1
    empty = by_hand(a=[]).compare(by_hand(a=[]))
    assert empty.steps["agreement"].isna().all()


class Awkward:
    """Cannot be compared."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Awkward {self.name}"


def test_values_that_cannot_be_compared_are_compared_by_what_they_show() -> None:
    same = by_hand(a=Awkward("x")).compare(by_hand(a=Awkward("x")))
    assert len(same.rows) == 0
    arrays = by_hand(a={"v": np.array([1, 2])}).compare(by_hand(a={"v": np.array([1, 3])}))
    assert len(arrays.rows) == 1
    assert len(by_hand(a={"v": float("nan")}).compare(by_hand(a={"v": None})).rows) == 0


def test_what_changed_in_the_definition_is_named(tmp_path: Any) -> None:
    """For runs that know their fingerprints: here by a cache."""

    def run(name: str, goal: str) -> PipelineResult:
        pipeline = Pipeline(name, model="test")
        pipeline.task(lambda: 1, name="load")
        pipeline.step("report", goal)
        return PipelineExecutor(pipeline, cache=ResultCache(tmp_path)).run()

    comparison = run("a", "Report {{ load }}").compare(run("b", "Tell {{ load }}"))
    assert comparison.steps["changed"].tolist() == ["", "goal"]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, ""),
        ({"report.goal": "Tell {{ load }}"}, "goal"),
        ({"report.tools": [len]}, "tools"),
        ({"report.checks": [print]}, "checks"),
        ({"report.settings.temperature": 0.5}, "settings"),
        ({"report.samples": 2}, "samples"),
        ({"report.rows_per_call": 3}, "rows_per_call"),
        ({"report.model": TestModel(custom_output_text="x")}, "model"),
        ({"report.when": DataExists("load")}, "when"),
        ({"report.output_schema": Score}, "output_schema"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_changed_is_named_without_fingerprints(options: dict[str, Any], changed: str) -> None:
    """A run without a cache and a durable storage knows none."""
    pipeline = Pipeline("a", model="test")
    pipeline.task(lambda: [1], name="load")
    pipeline.step("report", "Report {{ load }}", map_over="load", settings={"temperature": 0.0})
    first = PipelineExecutor(pipeline).run()
    second = PipelineExecutor(pipeline.fork("b", options)).run()
    copy = pickle.loads(pickle.dumps(second))
    for result in (second, copy, PipelineResult.from_json(second.to_json(), schemas=[Score])):
        assert first.compare(result).steps["changed"].tolist() == ["", changed]


def test_unknown_prices_are_not_nothing() -> None:
    result = by_hand(a=1)
    result.cost_per_step = {"a": None}
    result.token_usage = {"a": TokenUsage(input_tokens=1)}
    assert "unknown price" in result.compare(by_hand(a=1), ["x", "y"]).total


def test_a_confusion_table_counts_pairs_of_values() -> None:
    other = {**RIGHT, "t0": "good", "t3": "good"}
    del other["t1"]
    comparison = classified("reviews", RIGHT).compare(classified("strict", other))
    table = comparison.confusion("classify.label")
    assert (table.index.name, table.columns.name) == ("reviews", "strict")
    assert table.loc["bad", "good"] == 2
    assert table.loc["good", "(no answer)"] == 1
    assert table.to_numpy().sum() == 12
    with pytest.raises(
        DefinitionError, match="no field 'classify.lable' in common. They have: classify.label"
    ):
        comparison.confusion("classify.lable")
    with pytest.raises(DefinitionError, match="They have: load, classify"):
        comparison.confusion("judge.label")
    with pytest.raises(DefinitionError, match="They have: none"):
        PipelineResult("p", True, 0.0).compare(PipelineResult("p", True, 0.0)).confusion("a")


def test_answers_are_evaluated_by_class_with_intervals() -> None:
    """A row that has no answer is a wrong one; a figure is the same each time."""
    answers = {**RIGHT, "t1": "bad", "t2": "bad"}
    del answers["t4"]
    evaluation = classified("reviews", answers).evaluate("classify.label", "load.label")
    assert evaluation.rows == 12
    assert evaluation.accuracy == 9 / 12
    low, high = evaluation.interval
    assert low < 0.75 < high
    assert (
        evaluation.interval == classified("again", answers).evaluate("classify.label", "load.label").interval
    )
    classes = evaluation.classes
    assert classes["rows"].tolist() == [4, 8]
    assert classes.loc["bad", ["precision", "recall"]].tolist() == [4 / 6, 1.0]
    assert classes.loc["good", ["precision", "recall"]].tolist() == [1.0, 5 / 8]
    assert classes.loc["good", "f1"] == pytest.approx(2 * 5 / (8 + 5))
    assert (classes["f1_low"] <= classes["f1"]).all()
    assert (classes["f1_high"] >= classes["f1"]).all()
    assert evaluation.confusion.loc["good"].tolist() == [2, 5, 1]
    assert "75.0% of 12 rows are right (95 % interval" in repr(evaluation)
    assert "75.0% of 12 rows" in evaluation._repr_html_()


def test_a_class_that_is_never_answered_has_no_precision() -> None:
    evaluation = classified("reviews", dict.fromkeys(RIGHT, "good")).evaluate("classify.label", "load.label")
    assert pd.isna(evaluation.classes.loc["bad", "precision"])
    assert evaluation.classes.loc["bad", "recall"] == 0.0
    nothing = classified("reviews", dict.fromkeys(RIGHT, "other")).evaluate("classify.label", "load.label")
    assert pd.isna(nothing.classes.loc["other", ["recall", "recall_low"]]).all()
    assert nothing.interval == (0.0, 0.0)


def test_the_truth_may_be_an_input_and_rows_without_one_are_left_out() -> None:
    load = pd.DataFrame(ROWS)
    load.loc[0, "label"] = None
    evaluation = classified("reviews", RIGHT, load=load).evaluate("classify.label", "load.label")
    assert (evaluation.rows, evaluation.accuracy) == (11, 1.0)


def test_what_cannot_be_evaluated_is_one_clear_error() -> None:
    result = classified("reviews", RIGHT)
    with pytest.raises(UnknownStepError, match="'classify' has no field 'lable'. Did you mean 'label'"):
        result.evaluate("classify.lable", "load.label")
    with pytest.raises(UnknownStepError, match="no step 'judge'"):
        result.evaluate("judge.label", "load.label")
    result.inputs = {"truth": [1, 2]}
    with pytest.raises(DefinitionError, match="classify.label has 12 rows and truth has 2"):
        result.evaluate("classify.label", "truth")
    frame = pd.DataFrame(ROWS, index=[f"row {place}" for place in range(12)])
    labelled = classified("reviews", RIGHT, load=frame)
    labelled.inputs = {**labelled.inputs, "truth": [row["label"] for row in ROWS]}
    assert labelled.evaluate("classify.label", "truth").accuracy == 1.0
    blank = classified("reviews", RIGHT, [{"text": "t1", "label": None}])
    with pytest.raises(DefinitionError, match="load.label has no value in any row"):
        blank.evaluate("classify.label", "load.label")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", None])), min_size=1, max_size=30)
)
def test_scores_are_those_of_their_definitions(pairs: list[tuple[str, str | None]]) -> None:
    """Accuracy, precision, recall and F1, each by counting anew."""
    result = by_hand(truth=[pair[0] for pair in pairs], answer=[pair[1] for pair in pairs])
    evaluation = result.evaluate("answer", "truth")
    assert evaluation.accuracy == pytest.approx(sum(true == cell for true, cell in pairs) / len(pairs))
    for label, scores in evaluation.classes.iterrows():
        right = sum(true == cell == label for true, cell in pairs)
        true, answered = (sum(pair[place] == label for pair in pairs) for place in (0, 1))
        assert scores["rows"] == true
        assert scores["precision"] == pytest.approx(
            right / answered if answered else float("nan"), nan_ok=True
        )
        assert scores["recall"] == pytest.approx(right / true if true else float("nan"), nan_ok=True)
        assert scores["f1"] == pytest.approx(2 * right / (true + answered), nan_ok=True)
    assert evaluation.confusion.to_numpy().sum() == len(pairs)


def test_rows_are_paired_by_their_keys_whatever_order_they_ended_in(tmp_path: Path) -> None:
    """Of a run that was stopped and loaded again; a row without an answer is a wrong one."""

    async def classify(load: dict[str, Any]) -> dict[str, Any]:
        if load["label"] == "0":
            await asyncio.Event().wait()
        return {"label": load["label"]}

    pipeline = Pipeline("stopped", default_mode=ExecutionMode.CONCURRENT)
    pipeline.task(lambda: [{"label": str(place)} for place in range(8)], name="load")
    pipeline.task(classify, map_over="load")
    storage = FileStorageBackend(tmp_path)
    executor = PipelineExecutor(pipeline, storage=storage)

    def stop(event: Event) -> None:
        if isinstance(event, StepFinished) and event.item == "7":
            executor.cancel()

    executor.subscribe(stop)
    executor.run()
    stored = asyncio.run(PipelineExecutor(pipeline, storage=storage).load_result())
    evaluation = stored.evaluate("classify.label", "load.label")
    assert (evaluation.rows, evaluation.accuracy) == (8, 7 / 8)


def test_equal_values_of_other_types_are_the_same_class() -> None:
    """1 and 1.0, and truth values however they are written; nothing else."""
    result = by_hand(
        whole=[1, 0, 1], real=[1.0, 0.0, None], truth=[True, False, True], text=["true", "False ", "yes"]
    )
    assert result.evaluate("whole", "real").accuracy == 1.0
    assert result.evaluate("whole", "truth").accuracy == 1.0
    assert result.evaluate("text", "truth").accuracy == 2 / 3
    assert result.evaluate("text", "whole").accuracy == 0.0
    assert by_hand(a=[0.5]).evaluate("a", "a").classes.index.tolist() == ["0.5"]
    table = by_hand(a=[True, False]).compare(by_hand(a=[1, 0]), ["x", "y"]).confusion("a")
    assert table.index.tolist() == table.columns.tolist() == ["False", "True"]


def test_the_truth_may_lie_in_the_part_that_the_step_maps_over() -> None:
    pipeline = Pipeline("parts")
    pipeline.task(lambda: {"rows": [{"u": 1}, {"u": 2}]}, name="flat")
    pipeline.task(lambda flat: {"u": flat["u"]}, name="d", map_over="flat.rows")
    pipeline.task(lambda d: d["u"], name="again", map_over="d")
    result = PipelineExecutor(pipeline).run()
    assert result.evaluate("d.u", "flat.rows.u").accuracy == 1.0
    assert result.evaluate("again", "d.u").accuracy == 1.0
    assert result.evaluate("again", "again").accuracy == 1.0
    with pytest.raises(UnknownStepError, match="'flat.rows' has no field 'v'. Fields: u"):
        result.evaluate("d.u", "flat.rows.v")


def test_arrays_and_nan_inside_of_lists_are_compared_by_content() -> None:
    long, other = np.zeros(3000), np.zeros(3000)
    other[1500] = 1
    for cell, changed in (
        ([long], [other]),
        ({"f": pd.DataFrame({"a": long})}, {"f": pd.DataFrame({"a": other})}),
    ):
        assert len(by_hand(a={"v": cell}).compare(by_hand(a={"v": changed})).rows) == 1
        assert len(by_hand(a={"v": cell}).compare(by_hand(a={"v": cell})).rows) == 0
    nan = {"v": [float("nan")]}
    assert len(by_hand(a=nan).compare(by_hand(a={"v": [float("nan")]})).rows) == 0


def test_rows_of_a_frame_are_compared_by_their_labels() -> None:
    """In another order they agree; one that is gone differs alone."""
    frame = pd.DataFrame({"a": [1, 2, 3]}, index=[10, 20, 30])
    assert len(by_hand(f=frame).compare(by_hand(f=frame.loc[[30, 10, 20]])).rows) == 0
    rows = by_hand(f=frame).compare(by_hand(f=frame.loc[[10, 30]])).rows
    assert rows["item"].tolist() == ["20"]


def test_a_result_is_compared_with_a_result() -> None:
    with pytest.raises(DefinitionError, match="compared with another result, not with b"):
        by_hand(a=1).compare("b")  # type: ignore[arg-type]
