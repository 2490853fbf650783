"""Results as DataFrames: one row a step, an item or a record, with dtypes that lose nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from dtypes import TEXT, UNIT
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel, computed_field

from tagent_nb import FileStorageBackend, Pipeline, PipelineExecutor, events
from tagent_nb.errors import DefinitionError, UnknownStepError
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import ItemResult, OutputMap, PipelineResult, StepResult, is_frame, rows_of, table_text
from tagent_nb.serde import StoredValue, digest


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    n: int


class Review(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str
    score: float | None = None
    count: int | None = None
    colour: Colour = Colour.RED
    parts: list[Part] = []

    @computed_field
    @property
    def words(self) -> int:
        return len(self.text.split())


@dataclass
class Point:
    x: int
    y: float = 0.5


Pair = namedtuple("Pair", "a b")


def result_of(*steps: StepResult, **fields: Any) -> PipelineResult:
    outputs = {step.name: step.output for step in steps if step.output is not None}
    return PipelineResult(
        "reviews",
        True,
        1.0,
        step_outputs=OutputMap(outputs),
        steps={step.name: step for step in steps},
        **fields,
    )


def frame_of(value: Any) -> pd.DataFrame:
    """What ``output_frame`` makes of a step's value."""
    return result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(value))).output_frame("s")


def dtypes(frame: pd.DataFrame) -> dict[Any, str]:
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


# -- output_frame -----------------------------------------------------------------------------------


def test_a_list_of_models_gives_a_row_each_and_a_column_a_field() -> None:
    rows = [
        Review(text="a b", score=1, parts=[Part(n=1)]),
        Review(text="c", count=3, extra="more"),  # type: ignore[call-arg]
    ]
    frame = frame_of(rows)
    assert list(frame.columns) == ["text", "score", "count", "colour", "parts", "words", "extra"]
    assert dtypes(frame) == {
        "text": TEXT,
        "score": "float64",
        "count": "Int64",
        "colour": TEXT,
        "parts": "object",
        "words": "int64",
        "extra": TEXT,
    }
    assert frame["parts"].tolist() == [[{"n": 1}], []]
    assert frame["score"].tolist()[0] == 1.0
    assert frame["count"].tolist() == [pd.NA, 3]
    assert frame.index.equals(pd.RangeIndex(2))


@pytest.mark.parametrize(
    "value",
    [
        {"x": 1, "y": 0.5},
        Point(1),
        RootModel[dict[str, float]]({"x": 1, "y": 0.5}),
        type("M", (BaseModel,), {"__annotations__": {"x": int, "y": float}})(x=1, y=0.5),
        namedtuple("XY", "x y")(1, 0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_single_record_is_one_row(value: Any) -> None:
    frame = frame_of(value)
    assert frame.to_dict("records") == [{"x": 1, "y": 0.5}]
    assert frame_of([value, value]).to_dict("records") == [{"x": 1, "y": 0.5}] * 2


def test_a_frame_is_itself() -> None:
    frame = pd.DataFrame({"a": [1]}, index=["x"])
    assert frame_of(frame) is frame


def test_series_arrays_and_scalars() -> None:
    assert frame_of(pd.Series([1, 2], name="n")).to_dict("list") == {"n": [1, 2]}
    assert frame_of(pd.Series([1], index=["x"])).to_dict("index") == {"x": {"value": 1}}
    assert frame_of(np.eye(2)).to_dict("list") == {0: [1.0, 0.0], 1: [0.0, 1.0]}
    assert frame_of(np.array([1, 2])).to_dict("list") == {"value": [1, 2]}
    assert frame_of("text").to_dict("list") == {"value": ["text"]}
    assert frame_of(3).to_dict("list") == {"value": [3]}
    assert frame_of(None).to_dict("list") == {"value": [None]}
    assert frame_of([1, "a", {"x": 1}]).to_dict("list") == {"value": [1, "a", {"x": 1}]}
    assert frame_of({3, 1, 2}).to_dict("list") == {"value": [1, 2, 3]}
    assert frame_of((1, 2)).to_dict("list") == {"value": [1, 2]}
    assert frame_of([None, None]).to_dict("list") == {"value": [None, None]}
    assert frame_of([np.int64(1), np.float32(0.5)]).to_dict("list") == {"value": [1.0, 0.5]}
    assert frame_of(RootModel[list[int]]([1, 2])).to_dict("list") == {"value": [1, 2]}


def test_nothing_is_an_empty_frame() -> None:
    assert frame_of([]).empty
    assert frame_of([]).shape == (0, 0)
    assert frame_of([{}, {}]).shape == (2, 0)


def test_a_missing_record_is_a_row_of_blanks() -> None:
    frame = frame_of([{"n": 1, "t": "x"}, None])
    assert dtypes(frame) == {"n": "Int64", "t": TEXT}
    assert frame.isna().values.tolist() == [[False, False], [True, True]]


def test_columns_come_in_the_order_in_which_they_first_appear() -> None:
    assert list(frame_of([{"b": 1}, {"a": 2, "b": 3}, {"c": 1}]).columns) == ["b", "a", "c"]


def test_columns_that_python_calls_equal_stay_apart_from_others() -> None:
    frame = frame_of([{1: "a", "1": "b", None: "c"}])
    assert frame.columns.tolist() == [1, "1", None]
    assert frame.values.tolist() == [["a", "b", "c"]]


BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2024, 7, 1, 12, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        ([True, False], "bool"),
        ([True, None], "boolean"),
        ([1, 2], "int64"),
        ([1, None], "Int64"),
        ([2**63], "object"),
        ([-(2**63), 2**63 - 1], "int64"),
        ([2**63 - 1, None], "Int64"),
        ([1, 2.5], "float64"),
        ([1.5, None], "float64"),
        ([2**53, 0.5], "float64"),
        ([2**53 + 1, 0.5], "object"),
        ([True, 1], "object"),
        (["a", None], TEXT),
        (["\ud800"], "object"),
        (["a", 1], "object"),
        ([b"a"], "object"),
        ([datetime(2024, 1, 1), None], f"datetime64[{UNIT}]"),
        ([NOW, NOW], f"datetime64[{UNIT}, Europe/Berlin]"),
        ([NOW, NOW.replace(tzinfo=UTC)], "object"),
        ([datetime(1, 1, 1)], "object" if UNIT == "ns" else "datetime64[us]"),
        ([pd.Timestamp(2024, 1, 1), pd.NaT], f"datetime64[{UNIT}]"),
        ([date(2024, 1, 1)], "object"),
        ([timedelta(1), None], f"timedelta64[{UNIT}]"),
        ([timedelta.max], "object"),
        ([Decimal("1.10")], "object"),
        ([[1], [2]], "object"),
        ([Colour.RED, None], TEXT),
        ([pd.NA, 1], "Int64"),
    ],
)
def test_a_column_gets_the_dtype_of_its_cells_where_that_loses_nothing(cells: list[Any], dtype: str) -> None:
    frame = frame_of([{"c": cell} for cell in cells])
    assert dtypes(frame) == {"c": dtype}
    for kept, cell in zip(frame["c"].tolist(), cells, strict=True):
        if cell is None or cell is pd.NA or cell is pd.NaT:
            assert pd.isna(kept)
        else:
            assert kept == (cell.value if isinstance(cell, Enum) else cell)


CELL = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.datetimes(timezones=st.none() | st.sampled_from([UTC, BERLIN, timezone(timedelta(hours=1))]))
    | st.timedeltas()
    | st.dates()
)


@given(st.lists(CELL, max_size=5))
def test_no_cell_changes_in_a_column(cells: list[Any]) -> None:
    """Whatever dtype a column gets, every cell equals what went in."""
    for kept, cell in zip(frame_of([{"c": cell} for cell in cells]).get("c", []), cells, strict=True):
        assert pd.isna(kept) if cell is None else kept == cell


def test_an_object_that_holds_itself_still_has_a_frame() -> None:
    value: dict[str, Any] = {}
    value["self"] = [value]
    assert frame_of(value).shape == (1, 1)


def test_the_same_value_gives_the_same_frame_live_and_stored() -> None:
    """Also after a resume, when values come back from storage."""
    value = [{"b": 1, "a": None, "c": {3, 1}}, {"d": (1,)}]
    live = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(value)))
    stored = PipelineResult.from_json(live.to_json())
    pd.testing.assert_frame_equal(live.output_frame("s"), stored.output_frame("s"))


# -- mapped steps -----------------------------------------------------------------------------------


def mapped(outputs: list[Any], labels: list[Any]) -> PipelineResult:
    """A mapped step; an output that is an exception is a failed item."""
    items = {}
    for number, (output, label) in enumerate(zip(outputs, labels, strict=True)):
        item = items[str(number)] = ItemResult(str(number), label, StepStatus.COMPLETED)
        if isinstance(output, Exception):
            item.status, item.error_type, item.error = StepStatus.FAILED, type(output).__name__, str(output)
        else:
            item.output = StoredValue.of(output)
    return result_of(StepResult("s", StepStatus.COMPLETED, items=items, items_total=len(items)))


def test_a_mapped_step_has_a_row_an_item_with_the_labels_of_its_source() -> None:
    result = mapped([Part(n=1), ValueError("no"), Part(n=3)], ["x", "y", "x"])
    frame = result.output_frame("s")
    assert frame.index.tolist() == ["x", "y", "x"]
    assert dtypes(frame) == {"n": "Int64", "error": TEXT}
    assert frame["n"].tolist() == [1, pd.NA, 3]
    assert frame["error"].isna().tolist() == [True, False, True]
    assert frame["error"].tolist()[1] == "ValueError: no"


def test_a_mapped_step_of_plain_values() -> None:
    frame = mapped(["a", ValueError("no")], [0, 1]).output_frame("s")
    assert dtypes(frame) == {"value": TEXT, "error": TEXT}
    assert frame.index.tolist() == [0, 1]


def test_all_items_failed_or_none_were_there() -> None:
    frame = mapped([ValueError("no")], [5]).output_frame("s")
    assert frame["error"].tolist() == ["ValueError: no"]
    assert list(mapped([], []).output_frame("s").columns) == ["error"]
    assert len(mapped([], []).output_frame("s")) == 0


def test_labels_of_several_levels_and_times() -> None:
    frame = mapped([1, 2], [("a", 1), ("b", 2)]).output_frame("s")
    assert frame.index.equals(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    days = pd.date_range("2024-01-01", periods=2)
    assert mapped([1, 2], list(days)).output_frame("s").index.tolist() == list(days)


def test_a_field_named_error_keeps_its_name() -> None:
    frame = mapped([{"error": "mine"}, KeyError("k")], [0, 1]).output_frame("s")
    assert list(frame.columns) == ["error", "step_error"]
    assert frame["step_error"].tolist()[1] == "KeyError: 'k'"


# -- what has no value ------------------------------------------------------------------------------


def test_a_step_without_a_value_says_why() -> None:
    failed = StepResult("f", StepStatus.FAILED, error_type="ValueError", error="no")
    skipped = StepResult("k", StepStatus.SKIPPED, reason="f failed")
    result = result_of(failed, skipped, StepResult("p"), run_id="run-1")
    for name, message in (
        ("f", "Step 'f' of run 'run-1' has no value: it failed (ValueError: no)."),
        ("k", "Step 'k' of run 'run-1' has no value: it was skipped (f failed)."),
        ("p", "Step 'p' of run 'run-1' has no value: it has not run."),
    ):
        with pytest.raises(UnknownStepError) as caught:
            result.output_frame(name)
        assert str(caught.value) == message


def test_an_unknown_step_gets_a_suggestion() -> None:
    result = result_of(StepResult("load", StepStatus.COMPLETED, StoredValue.of(1)), run_id="run-1")
    with pytest.raises(UnknownStepError, match=r"Run 'run-1' has no step 'laod'\. Did you mean 'load'\?"):
        result.output_frame("laod")
    with pytest.raises(UnknownStepError, match="Run 'p' has no step 'x'. Steps: none."):
        PipelineResult("p", True, 0.0).output_frame("x")


# -- to_frame, usage_frame, events_frame --------------------------------------------------------------


def run() -> PipelineResult:
    load = StepResult("load", StepStatus.COMPLETED, StoredValue.of(pd.DataFrame({"a": [1, 2]})), 1, 0.5)
    ask = StepResult("ask", StepStatus.CACHED, StoredValue.of("two\nlines"))
    ask.usage, ask.saved_cost = TokenUsage(10, 5, 1, 2, 1, 3), 0.25
    free = StepResult("free", StepStatus.COMPLETED, StoredValue.of(None), 2, 1.0)
    free.usage, free.cost, free.saved_cost = TokenUsage(1, 1, requests=1), None, None
    bad = StepResult("bad", StepStatus.FAILED, None, 3, 1.5, cost=0.5, error_type="KeyError", error="a\nb")
    skipped = StepResult("skipped", StepStatus.SKIPPED, reason="bad failed")
    return result_of(load, ask, free, bad, skipped, StepResult("later"))


def test_to_frame_has_one_row_a_step() -> None:
    frame = run().to_frame()
    assert frame.index.name == "step"
    assert frame.index.tolist() == ["load", "ask", "free", "bad", "skipped", "later"]
    assert dtypes(frame) == {
        "status": TEXT,
        "value": TEXT,
        "attempts": "int64",
        "seconds": "float64",
        "input_tokens": "int64",
        "output_tokens": "int64",
        "cost": "float64",
        "saved_cost": "float64",
        "error": TEXT,
    }
    assert frame["status"].tolist() == ["completed", "cached", "completed", "failed", "skipped", "pending"]
    assert frame["value"].tolist() == ["DataFrame, 2 rows x 1 column", "two lines", "None", "", "", ""]
    assert frame["error"].tolist() == ["", "", "", "KeyError: a b", "bad failed", ""]
    assert frame["cost"].isna().tolist() == [False, False, True, False, False, False]


def test_frames_of_a_result_without_steps_have_the_same_columns() -> None:
    empty = PipelineResult("p", True, 0.0)
    assert dtypes(empty.to_frame()) == dtypes(run().to_frame())
    assert dtypes(empty.usage_frame()) == dtypes(run().usage_frame())
    assert empty.usage_frame().index.tolist() == ["total"]
    assert dtypes(empty.events_frame()) == dtypes(happened().events_frame())


def test_usage_frame_sums_what_is_known() -> None:
    frame = run().usage_frame()
    assert frame.index.tolist()[-1] == "total"
    assert frame.index.name == "step"
    assert list(frame.columns) == [
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "requests",
        "tool_calls",
        "cost",
        "saved_cost",
    ]
    assert frame.loc["total"].tolist() == [11, 6, 17, 1, 2, 2, 3, 0.5, 0.25]
    assert {str(dtype) for dtype in frame.dtypes[:7]} == {"int64"}
    assert frame.loc["free", ["cost", "saved_cost"]].isna().all()


def test_a_result_put_together_by_hand_has_frames_too() -> None:
    """As the specification writes it: outputs, costs and errors by step, nothing else."""
    result = PipelineResult(
        "p",
        False,
        1.0,
        cost_per_step={"a": 0.5, "b": None, "d": 0.25},
        token_usage={"a": TokenUsage(1)},
        step_outputs={"a": {"x": 1}, "c": None},
        failed_steps=["b"],
        error_details={"b": "ValueError: no"},
    )
    frame = result.to_frame()
    assert frame["status"].to_dict() == {
        "a": "completed",
        "c": "completed",
        "b": "failed",
        "d": "pending",
    }
    assert frame.loc["b", "error"] == "ValueError: no"
    assert result.output_frame("a").to_dict("records") == [{"x": 1}]
    assert result.usage_frame().loc["a", "input_tokens"] == 1
    assert "ValueError: no" in result._repr_html_()


def happened() -> PipelineResult:
    base: dict[str, Any] = {"run_id": "r", "at": 1_700_000_000.123456}
    fields = base | {"step": "a"}
    result = PipelineResult("p", True, 1.0)
    result.events = [
        events.RunStarted(**base, pipeline="p", steps=("a",)),
        events.StepStarted(**fields, why="first run"),
        events.StepProgress(**fields, kind="tool", detail={"name": "search", "object": object}),
        events.StepRetried(**fields, attempt=1, error_type="OSError", message="gone\naway", delay=1.0),
        events.FactLearned(**fields, key="k", value=[1]),
        events.MemorySaved(**fields, key="k", value="v"),
        events.StepFinished(**fields, item="x", attempt=2, output=StoredValue.of([1])),
        events.StepCached(**fields, key="k", output=StoredValue.unstorable("output: gone")),
        events.StepFailed(**fields, error_type="KeyError", message="no"),
        events.StepSkipped(**fields, reason="a failed"),
        events.StepCancelled(**fields),
        events.Warned(**base, message="careful", step="a"),
        events.RunFinished(**base, success=True),
        events.RunFinished(**base, success=False),
        events.RunFinished(**base, success=False, cancelled=True),
        events.StepProgress(**fields, kind="tool", detail={"sizes": {(1, 2): 3}}),
    ]
    return result


def test_events_frame_has_one_row_an_event() -> None:
    frame = happened().events_frame()
    assert dtypes(frame) == {
        "at": "datetime64[us, UTC]",
        "event": TEXT,
        "step": TEXT,
        "item": TEXT,
        "attempt": "Int64",
        "detail": TEXT,
    }
    assert frame["at"][0] == pd.Timestamp("2023-11-14 22:13:20.123456", tz="UTC")
    assert frame["event"][0] == "RunStarted"
    assert frame["detail"].tolist() == [
        "",
        "first run",
        'tool {"name": "search", "object": "<class \'object\'>"}',
        "OSError: gone away",
        "k = [1]",
        "k = v",
        "[1]",
        "(not stored: output: gone)",
        "KeyError: no",
        "a failed",
        "",
        "careful",
        "success",
        "failed",
        "cancelled",
        "tool {'sizes': {(1, 2): 3}}",  # JSON has no such keys
    ]
    assert frame["attempt"].tolist()[3:7] == [1, pd.NA, pd.NA, 2]
    assert frame["item"].tolist()[6] == "x"
    assert pd.isna(frame["step"][0])


# -- files ------------------------------------------------------------------------------------------


def test_csv_of_the_steps_and_of_one_step(tmp_path: Path) -> None:
    result = run()
    result.to_csv(tmp_path / "steps.csv")
    assert pd.read_csv(tmp_path / "steps.csv", index_col="step").index.tolist() == list(result.steps)
    result.to_csv(str(tmp_path / "load.csv"), "load")
    assert (tmp_path / "load.csv").read_text() == "a\n1\n2\n"


def odd() -> PipelineResult:
    """Cells that files do not know."""
    first = {
        "list": [1, "ü"],
        "mixed": 1,
        "model": Part(n=1),
        "day": date(2024, 1, 1),
        "set": {2, 1},
        "inside": [{2, 1}, date(2024, 1, 1)],
        "keys": {(1, 2): 3},
        "big": 2**70,
        "bytes": b"x",
        "half": "\ud800",
        "plain": 1,
    }
    rows = [first, dict.fromkeys(first) | {"mixed": "a", "bytes": b"y", "plain": 2}]
    return result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(rows)))


def test_cells_that_files_do_not_know_are_written_as_json(tmp_path: Path) -> None:
    odd().to_csv(tmp_path / "odd.csv", "s")
    odd().to_parquet(tmp_path / "odd.parquet", "s")
    for frame in (pd.read_csv(tmp_path / "odd.csv"), pd.read_parquet(tmp_path / "odd.parquet")):
        first = frame.iloc[0]
        assert json.loads(first["list"]) == [1, "ü"]
        assert json.loads(first["model"]) == {"n": 1}
        assert json.loads(first["set"]) == [1, 2]
        assert json.loads(first["inside"]) == [[1, 2], "2024-01-01"]
        assert (first["mixed"], first["day"], first["plain"]) == ("1", "2024-01-01", 1)
        assert (first["keys"], int(first["big"]), first["half"]) == ("{(1, 2): 3}", 2**70, "?")
        assert frame["list"].isna().tolist() == [False, True]
    assert pd.read_parquet(tmp_path / "odd.parquet")["bytes"].tolist() == [b"x", b"y"]


def test_parquet_keeps_dtypes_and_index(tmp_path: Path) -> None:
    result = mapped([Part(n=1), ValueError("no")], ["x", "y"])
    result.to_parquet(tmp_path / "s.parquet", "s")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "s.parquet"), result.output_frame("s"))
    result.to_parquet(tmp_path / "steps.parquet")
    assert pd.read_parquet(tmp_path / "steps.parquet")["status"].tolist() == ["completed"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [date(2024, 1, 1), {1, 2}, len, b"x", pd.Series([1])], ids=repr)
def test_parquet_leaves_out_attributes_of_a_frame_that_it_does_not_know(tmp_path: Path, value: Any) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    frame.attrs.update({"source": "x", "odd": value})
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(frame)))
    result.to_parquet(tmp_path / "s.parquet", "s")
    result.to_csv(tmp_path / "s.csv", "s")
    written = pd.read_parquet(tmp_path / "s.parquet")
    assert written["a"].tolist() == pd.read_csv(tmp_path / "s.csv")["a"].tolist() == [1, 2]
    assert written.attrs == {"source": "x"}
    assert frame.attrs["odd"] is value


def test_parquet_takes_columns_that_are_no_text(tmp_path: Path) -> None:
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(np.eye(2))))
    result.to_parquet(tmp_path / "s.parquet", "s")
    assert list(pd.read_parquet(tmp_path / "s.parquet").columns) == ["0", "1"]


def test_writing_a_frame_changes_no_value(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [[1], [2]]})
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(frame)))
    result.to_csv(tmp_path / "s.csv", "s")
    assert frame["a"].tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("labels", "written"),
    [
        ([1, "1"], ["1", "1_2"]),
        (["a", "a"], ["a", "a_2"]),
        ([None, ("x", 1)], ["None", "('x', 1)"]),
        (["\ud800"], ["?"]),
    ],
)
def test_columns_of_any_label_are_written_under_distinct_names(
    labels: list[Any], written: list[str], tmp_path: Path
) -> None:
    frame = pd.DataFrame([[7] * len(labels)], columns=pd.Index(labels, dtype=object, tupleize_cols=False))
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(frame)))
    result.to_parquet(tmp_path / "s.parquet", "s")
    result.to_csv(tmp_path / "s.csv", "s")
    for back in (pd.read_parquet(tmp_path / "s.parquet"), pd.read_csv(tmp_path / "s.csv")):
        assert list(back.columns) == written
        assert back.to_numpy().tolist() == [[7] * len(labels)]


@pytest.mark.parametrize(
    ("index", "name", "labels"),
    [
        (pd.Index([1, "a"], dtype=object), None, ["1", "a"]),
        (pd.Index([("a", 1), None], tupleize_cols=False, name="n"), "n_2", ['["a", 1]', None]),
        (pd.Index([1j, 2j], name=0), "0", ["1j", "2j"]),
        (pd.Index(["x", "y"], name="n"), "n_2", ["x", "y"]),
        (pd.RangeIndex(2, name="n"), "n_2", [0, 1]),
        (pd.Index(["\ud800", "y"], dtype=object), None, ["?", "y"]),
    ],
)
def test_an_index_of_any_labels_is_written(
    index: pd.Index, name: Any, labels: list[Any], tmp_path: Path
) -> None:
    frame = pd.DataFrame({"n": [1, 2]}, index=index)
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(frame)))
    result.to_parquet(tmp_path / "s.parquet", "s")
    back = pd.read_parquet(tmp_path / "s.parquet")
    assert back.index.name == name
    assert [None if pd.isna(label) else label for label in back.index.tolist()] == labels
    assert back["n"].tolist() == [1, 2]
    result.to_csv(tmp_path / "s.csv", "s")
    assert pd.read_csv(tmp_path / "s.csv")["n"].tolist() == [1, 2]


def test_levels_and_columns_of_types_that_parquet_does_not_know_are_text(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_tuples([(2024, 1), (2024, "x")], names=["day", "day"])
    frame = pd.DataFrame({"c": [1j, 2j], "s": pd.arrays.SparseArray([0, 1]), "n": [1, 2]}, index=index)
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(frame)))
    result.to_parquet(tmp_path / "s.parquet", "s")
    back = pd.read_parquet(tmp_path / "s.parquet")
    assert back.index.tolist() == [(2024, "1"), (2024, "x")]
    assert back.index.names == ["day", "day_2"]
    assert back["c"].tolist() == ["1j", "2j"]
    assert back["n"].tolist() == [1, 2]
    empty = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(pd.DataFrame(index=["a"]))))
    empty.to_parquet(tmp_path / "e.parquet", "s")
    assert pd.read_parquet(tmp_path / "e.parquet").index.tolist() == ["a"]


def test_cells_written_as_json_are_json(tmp_path: Path) -> None:
    """No NaN inside of them, and what is missing is a cell that is missing."""
    rows = [{"a": [1.5, float("nan")], "b": {"x": [float("inf")]}, "c": float("nan"), "d": {np.nan}},
            {"a": None, "b": None, "c": "x", "d": None}]  # fmt: skip
    result = result_of(StepResult("s", StepStatus.COMPLETED, StoredValue.of(rows)))
    result.to_csv(tmp_path / "s.csv", "s")
    first = pd.read_csv(tmp_path / "s.csv").iloc[0]
    assert (first["a"], first["b"], first["d"]) == ("[1.5, null]", '{"x": [null]}', "[null]")
    assert pd.isna(first["c"])


@pytest.mark.parametrize(
    ("fields", "added"),
    [
        (["n"], "error"),
        (["error"], "step_error"),
        (["error", "step_error"], "step_error_2"),
        (["step_error"], "error"),
        (["error", "step_error", "step_error_2"], "step_error_3"),
    ],
)
def test_a_column_of_the_values_is_never_written_over(fields: list[str], added: str) -> None:
    frame = mapped([dict.fromkeys(fields, 1), KeyError("k")], ["x", "y"]).output_frame("s")
    assert list(frame.columns) == [*fields, added]
    assert frame[fields].iloc[0].tolist() == [1] * len(fields)
    assert frame[added].tolist()[1] == "KeyError: 'k'"


def test_an_unknown_step_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownStepError):
        run().to_csv(tmp_path / "x.csv", "lod")
    assert list(tmp_path.iterdir()) == []


def test_table_text_says_how_much_it_leaves_out() -> None:
    frame = pd.DataFrame({"n": range(30), "t": ["two\nlines " + "x" * 100] * 30})
    text = table_text(frame, 5)
    assert text.splitlines()[-1] == "... 25 more rows"
    assert len(text.splitlines()) == 7
    assert "two lines" in text
    assert "more rows" not in table_text(frame.head(5), 5)


# -- rows of mapped steps -----------------------------------------------------------------------------


def test_items_of_lists_and_the_like() -> None:
    assert rows_of(["a", "b"]) == [("0", 0, "a"), ("1", 1, "b")]
    plain = [(1, 2), deque([1, 2]), range(1, 3), {2, 1}, frozenset({1, 2}), {1: 1, 2: 2}.keys()]
    plain += [pd.array([1, 2]), pd.Series([1, 2]).unique(), pd.Categorical([1, 2]), {1: 1, 2: 2}.values()]
    assert rows_of(pd.array(["a", None])) == [("0", 0, "a"), ("1", 1, None)]
    assert [item for _, _, item in rows_of({"a": 1}.items())] == [("a", 1)]
    for value in (*plain, np.array([1, 2]), pd.Index([1, 2])):
        assert rows_of(value) == [("0", 0, 1), ("1", 1, 2)]
    assert rows_of(RootModel[list[int]]([1])) == [("0", 0, 1)]
    assert rows_of(np.eye(2)) == [("0", 0, [1.0, 0.0]), ("1", 1, [0.0, 1.0])]
    assert rows_of([]) == []


def test_short_floats_are_items_that_read_as_their_column_shows_them() -> None:
    frame = pd.DataFrame({"x": np.array([0.1, np.nan], "f4"), "y": pd.array([0.2, None], "Float32")})
    assert [item for _, _, item in rows_of(frame)] == [{"x": 0.1, "y": 0.2}, {"x": None, "y": None}]
    assert [item for _, _, item in rows_of(frame["x"])] == [0.1, None]
    assert [item for _, _, item in rows_of(np.array([0.1], "f4"))] == [0.1]
    assert [item for _, _, item in rows_of(np.array([[0.1], [0.2]], "f2"))] == [[0.1], [0.2]]
    assert frame_of([{"x": np.float32(0.1)}])["x"].tolist() == [0.1]


def test_a_set_is_sorted_so_that_every_kernel_sees_the_same_order() -> None:
    assert [item for _, _, item in rows_of({"c", "b", "a"})] == ["a", "b", "c"]
    assert [item for _, _, item in rows_of({"b", (2,), None, 3, 1})] == [None, 1, 3, "b", (2,)]


def test_rows_of_a_frame_are_records_of_python_values() -> None:
    numbers = pd.array([1, None], dtype="Int64")
    frame = pd.DataFrame({"text": ["a", None], "n": numbers, "x": [0.5, np.nan], 7: [[1], []]})
    rows = rows_of(frame)
    assert rows == [
        ("0", 0, {"text": "a", "n": 1, "x": 0.5, "7": [1]}),
        ("1", 1, {"text": None, "n": None, "x": None, "7": []}),
    ]
    assert [type(cell) for cell in rows[0][2].values()] == [str, int, float, list]
    for _, _, row in rows:
        assert digest(row)


def test_an_index_that_says_something_is_part_of_the_rows() -> None:
    frame = pd.DataFrame({"n": [1, 2]}, index=pd.Index(["x", "y"], name="id"))
    assert rows_of(frame) == [("x", "x", {"id": "x", "n": 1}), ("y", "y", {"id": "y", "n": 2})]


def test_rows_without_columns_and_frames_without_rows() -> None:
    assert rows_of(pd.DataFrame(index=range(2))) == [("0", 0, {}), ("1", 1, {})]
    assert rows_of(pd.DataFrame({"a": []})) == []


def test_items_of_a_series_have_its_labels() -> None:
    assert rows_of(pd.Series([1, None], index=["x", "y"])) == [("x", "x", 1.0), ("y", "y", None)]


def test_labels_that_occur_twice_are_numbered() -> None:
    labels: list[Any] = ["x", "x", "x#2", "x", 1, "1"]
    frame = pd.Series(range(6), index=pd.Index(labels, dtype=object))
    assert [key for key, _, _ in rows_of(frame)] == ["x", "x#3", "x#2", "x#4", "1", "1#2"]
    assert [label for _, label, _ in rows_of(frame)] == labels


@given(
    st.lists(st.text(max_size=3) | st.integers(0, 3) | st.just("a#2") | st.text(min_size=90, max_size=120))
)
def test_keys_are_unique_short_and_can_be_written(labels: list[Any]) -> None:
    series = pd.Series([0] * len(labels), index=pd.Index(labels, dtype=object))
    keys = [key for key, _, _ in rows_of(series)]
    assert len(set(keys)) == len(labels)
    assert all(len(key) <= 110 and key.encode() is not None for key in keys)


def test_long_labels_with_one_beginning_have_keys_of_their_own() -> None:
    frame = pd.Series([1, 2], index=["x" * 200 + "a", "x" * 200 + "b"])
    first, other = (key for key, _, _ in rows_of(frame))
    assert first != other
    assert len(first) == len(other) == 100


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rows": [1], "n": 2}, "it is a single record with the fields rows, n. Name the one that holds "
                                "the items, such as its field 'rows', or return a list."),
        (Part(n=1), "it is a single record with the fields n."),
        (Pair(1, 2), "it is a single record with the fields a, b."),
        ("text", "it is of type str, which has no items. Return a list or a DataFrame."),
        (3, "it is of type int"),
        ({}, "it is of type dict"),
        (np.array(1), "it is of type ndarray"),
        ((item for item in ()), "it is of type generator"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "it has two columns named 'a'. Rename one of them."),
    ],
)  # fmt: skip
def test_what_has_no_items_says_what_to_return(value: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        rows_of(value)
    assert message in str(caught.value)


def test_is_frame_knows_frames_only() -> None:
    assert is_frame(pd.DataFrame())
    assert not is_frame(pd.Series(dtype=object))
    assert not is_frame([])


def test_items_are_reported_without_loading_pandas_or_numpy() -> None:
    code = (
        "import sys\n"
        "from tagent_nb.results import is_frame, rows_of\n"
        "assert rows_of([1]) == [('0', 0, 1)] and not is_frame([1])\n"
        "from tagent_nb.results.result import PipelineResult\n"
        "PipelineResult('p', True, 0.0, step_outputs={'a': [1]})._repr_html_()\n"
        "print([one for one in ('pandas', 'numpy', 'pyarrow', 'pydantic') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- with their sources, nested and exploded -----------------------------------------------------


class Verdict(BaseModel):
    text: str
    place: Point | None = None
    tags: list[str] = []
    parts: list[Part] = []


def reviewed(source: Any, **inputs: Any) -> PipelineResult:
    """A step that gives verdicts on the rows of ``source``; it fails for a row whose text is bad."""

    def judge(load: Any) -> Verdict:
        text = load["text"]
        if text == "bad":
            raise NameError("unreadable")
        return Verdict(text=text.upper(), place=Point(1), tags=list(text), parts=[Part(n=1)])

    pipeline = Pipeline("reviews", inputs=inputs)
    if not inputs:
        pipeline.task(lambda: source, name="load")
    pipeline.task(judge, map_over="load", min_success=0.0)
    return PipelineExecutor(pipeline).run()


@pytest.mark.parametrize("given_as", ["step", "input"])
def test_answers_stand_beside_the_rows_that_they_are_about(given_as: str) -> None:
    """By label, a failed one too; a name that both have is the source's dotted one, as in goals."""
    load = pd.DataFrame(
        {"text": ["ok", "bad", "go"], "stars": [5, 1, 3]}, index=pd.Index([7, 9, 9], name="id")
    )
    result = reviewed(load) if given_as == "step" else reviewed(None, load=load)
    frame = result.output_frame("judge", source=True)
    assert list(frame.columns) == ["load.text", "stars", "text", "place", "tags", "parts", "error"]
    assert frame.index.equals(load.index)
    assert frame["stars"].tolist() == [5, 1, 3]
    assert frame["text"].tolist()[::2] == ["OK", "GO"]
    assert frame["error"].tolist()[1] == "NameError: unreadable"
    assert PipelineResult.from_json(result.to_json()).output_frame("judge", source=True)[
        "stars"
    ].tolist() == [5, 1, 3]


def test_the_source_may_be_a_part_of_a_value_and_is_known_of_a_stored_run(tmp_path: Path) -> None:
    pipeline = Pipeline("parts")
    pipeline.task(lambda: {"rows": ["a", "bb"], "more": 1}, name="load")
    pipeline.task(lambda load: len(load), name="size", map_over="load.rows")
    storage = FileStorageBackend(tmp_path)
    PipelineExecutor(pipeline, storage=storage).run()
    frame = asyncio.run(PipelineExecutor(Pipeline("parts"), storage=storage).load_result()).output_frame(
        "size", source=True
    )
    assert frame["load.rows.value"].tolist() == ["a", "bb"]
    assert frame["value"].tolist() == [1, 2]


def test_a_source_that_is_not_there_is_one_clear_error() -> None:
    """The step is not mapped, its result is of an earlier version, or the source has no value."""
    result = reviewed([{"text": "ok"}])
    with pytest.raises(DefinitionError, match="'load' is not mapped"):
        result.output_frame("load", source=True)
    result.sources = {}
    with pytest.raises(UnknownStepError, match="not recorded in this result"):
        result.output_frame("judge", source=True)
    result.sources = {"judge": "lost"}
    with pytest.raises(UnknownStepError, match="no step 'lost'"):
        result.output_frame("judge", source=True)


def test_nested_records_become_dicts_columns_or_stay_objects() -> None:
    result = reviewed([{"text": "ok"}, {"text": "bad"}])
    assert result.output_frame("judge")["place"].tolist() == [{"x": 1, "y": 0.5}, None]
    kept = result.output_frame("judge", nested="object")
    assert kept["place"].tolist() == [Point(1), None]
    assert kept["parts"].tolist()[0] == [Part(n=1)]
    assert str(kept["text"].dtype) == str(result.output_frame("judge")["text"].dtype)
    wide = result.output_frame("judge", nested="columns")
    assert list(wide.columns) == ["text", "place.x", "place.y", "tags", "parts", "error"]
    assert str(wide["place.x"].dtype) == "Int64"
    with pytest.raises(DefinitionError, match="nested must be 'dict', 'columns', 'object', not 'wide'"):
        result.output_frame("judge", nested="wide")


def test_nested_columns_go_down_to_fields_that_are_no_records() -> None:
    """Cells of other kinds beside records keep the column whole; a frame without columns stays one."""
    deep = result_with([{"a": {"b": {"c": 1}, "d": []}, "m": {"x": 1}}, {"a": {"b": {"c": 2}}, "m": "text"}])
    wide = deep.output_frame("s", nested="columns")
    assert list(wide.columns) == ["a.b.c", "a.d", "m"]
    assert wide["a.b.c"].tolist() == [1, 2]
    assert result_with([]).output_frame("s", nested="columns").shape == (0, 0)
    assert result_with(pd.DataFrame(index=[1, 2])).output_frame("s", nested="columns").shape == (2, 0)
    single = result_with({"a": {"b": 1}}).output_frame("s", nested="object")
    assert single["a"].tolist() == [{"b": 1}]


def test_lists_get_a_row_an_item() -> None:
    frame = reviewed([{"text": "ok"}, {"text": "bad"}]).output_frame("judge", explode="tags")
    assert frame.index.tolist() == [0, 0, 1]
    assert frame["tags"].tolist()[:2] == ["o", "k"]
    assert str(frame["tags"].dtype) == TEXT
    both = result_with([{"a": [1, 2], "b": ["x", "y"]}]).output_frame("s", explode=["a", "b"])
    assert both.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}
    with pytest.raises(DefinitionError, match="no column 'tag' to explode. Did you mean 'tags'"):
        reviewed([{"text": "ok"}]).output_frame("judge", explode="tag")


def result_with(value: Any) -> PipelineResult:
    """A result whose step ``s`` has this value."""
    return PipelineResult("p", True, 0.0, step_outputs={"s": value})


def test_what_cannot_be_exploded_is_one_clear_error() -> None:
    """Records, lists of other lengths, and columns of one name; other columns may have one name."""
    with pytest.raises(DefinitionError, match="column 'd' holds records, not lists. nested='columns'"):
        result_with([{"d": {"q": 1}}]).output_frame("s", explode="d")
    with pytest.raises(DefinitionError, match="not equally long in row 1. Explode one"):
        result_with([{"a": [1], "b": [2]}, {"a": [1, 2], "b": [1]}]).output_frame("s", explode=["a", "b"])
    twice = pd.DataFrame([[[1, 2], 3, 4]], columns=["a", "b", "b"])
    assert result_with(twice).output_frame("s", explode="a").shape == (2, 3)
    with pytest.raises(DefinitionError, match="has 2 columns 'b'"):
        result_with(twice).output_frame("s", explode="b")
    blank = result_with([{"a": [], "n": 1}, {"a": None, "n": 2}, {"a": "text", "n": 3}])
    exploded = blank.output_frame("s", explode="a")
    assert exploded["n"].tolist() == [1, 2, 3]
    assert exploded["a"].isna().tolist() == [True, True, False]


def test_exploded_models_stay_objects_where_they_are_to() -> None:
    frame = result_with([{"parts": [Part(n=1), Part(n=2)]}]).output_frame(
        "s", nested="object", explode="parts"
    )
    assert frame["parts"].tolist() == [Part(n=1), Part(n=2)]


def test_dotted_names_that_are_taken_are_numbered() -> None:
    wide = result_with([{"a": {"b": 1}, "a.b": 2}]).output_frame("s", nested="columns")
    assert sorted(wide.columns) == ["a.b", "a.b_2"]
    beside = reviewed([{"text": "ok", "load.text": "taken"}]).output_frame("judge", source=True)
    assert beside.columns[0] == "load.text_2"


def test_half_a_character_in_an_error_does_not_break_the_frame() -> None:
    def broken(load: int) -> int:
        raise NameError("\ud83d bad")

    pipeline = Pipeline("p")
    pipeline.task(lambda: [1], name="load")
    pipeline.task(broken, map_over="load", min_success=0.0)
    result = PipelineExecutor(pipeline).run()
    assert result.output_frame("broken")["error"].tolist()[0].endswith(" bad")
