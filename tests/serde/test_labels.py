"""Indexes of mapped steps: as they were, from labels and plain notes."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pandas as pd
import pytest

from tagent_nb.serde import from_tree, index_of, levels_of, notes_to_tree


def stored(value: Any) -> Any:
    """What a record gives back."""
    return from_tree(json.loads(json.dumps(notes_to_tree({"v": value})))["v"])


INDEXES = {
    "range": pd.RangeIndex(2, 8, 2, name="i"),
    "int8": pd.Index([1, 2, 3], dtype="int8", name="a"),
    "float32": pd.Index([0.1, 2.5, float("nan")], dtype="float32"),
    "Int64": pd.Index([1, None, 3], dtype="Int64"),
    "text": pd.Index(["a", None, "c"], name=("x", 1)),
    "string of Python": pd.Index(["a", "b", None], dtype=pd.StringDtype("python")),
    "objects": pd.Index(["a", 1, None], dtype=object),
    "tuples": pd.Index([(1, 2), (3, 4), (5, 6)], tupleize_cols=False, name="pair"),
    "categories": pd.CategoricalIndex(["a", None, "c"], categories=["c", "b", "a"], ordered=True, name="k"),
    "intervals as categories": pd.CategoricalIndex(pd.cut([1, 5, 9], 3)),
    "days": pd.date_range("2024-01-31", periods=3, freq="ME", tz="Europe/Berlin", name="day"),
    "times": pd.DatetimeIndex(["2024-01-01", "2024-01-03", "2024-02-01"]),
    "spans": pd.timedelta_range("1h", periods=3),
    "quarters": pd.period_range("2024", periods=3, freq="Q"),
    "Arrow": pd.Index([1, None, 3], dtype="int64[pyarrow]"),
    "levels": pd.MultiIndex.from_arrays([["x", "x", "y"], [1, 2, 1]], names=["g", "n"]),
    "typed levels": pd.MultiIndex.from_arrays(
        [pd.CategoricalIndex(["x", "x", "y"]), pd.date_range("2024", periods=3, tz="UTC")], names=[None, "t"]
    ),
    "one level": pd.MultiIndex.from_arrays([["x", "x", "y"]], names=["g"]),
    "no rows": pd.MultiIndex.from_arrays([[], []], names=["g", "n"]),
    "no labels": pd.Index([], dtype="int16", name="e"),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_an_index_comes_back_with_its_names_levels_and_dtypes(index: pd.Index) -> None:
    for source in (pd.Series(range(len(index)), index), pd.DataFrame({"a": 1}, index)):
        index_read = index_of(stored(index.tolist()), stored(levels_of(source)))
        pd.testing.assert_index_equal(index_read, index, exact=True)
        assert getattr(index_read, "freq", None) == getattr(index, "freq", None)


def test_notes_of_levels_can_be_compared() -> None:
    """Results are compared with ==, which an Index would not allow."""
    for index in INDEXES.values():
        frame = pd.DataFrame({"a": 1}, index)
        assert levels_of(frame) == levels_of(frame.copy())


def test_values_without_an_index_have_no_levels() -> None:
    assert levels_of([1, 2]) is None
    assert levels_of(None) is None


def test_labels_without_notes_are_what_they_are() -> None:
    assert index_of([1, 2], None).equals(pd.Index([1, 2]))
    assert index_of([("a", 1), ("b", 2)], None).equals(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    assert len(index_of([], None)) == 0


def test_gaps_in_a_range_or_in_days_keep_the_labels_and_the_name() -> None:
    days = pd.date_range("2024-01-01", periods=4, name="day")
    levels = levels_of(pd.Series(range(4), days))
    left = index_of([days[0], days[2], days[3]], levels)
    assert left.tolist() == [days[0], days[2], days[3]]
    assert left.name == "day"
    ranged = levels_of(pd.Series(range(3), pd.RangeIndex(3, name="i")))
    assert index_of([0, 2], ranged).equals(pd.Index([0, 2]))
    assert index_of([0, 2], ranged).name == "i"


def test_a_type_that_cannot_be_read_by_its_name_is_left_to_pandas() -> None:
    days = pd.Index([dt.date(2024, 1, 1)], dtype=object, name="d")
    levels = levels_of(pd.Series([1], days))
    assert levels is not None
    levels[0]["dtype"] = "no such type"
    index_read = index_of(days.tolist(), levels)
    assert index_read.tolist() == days.tolist()
    assert index_read.name == "d"


def test_labels_that_are_only_keys_are_no_levels() -> None:
    """A map that was stopped half-way knows its items by their keys."""
    levels = levels_of(pd.Series([1], pd.MultiIndex.from_tuples([("a", 1)], names=["g", "n"])))
    assert index_of(["('a', 1)"], levels).tolist() == ["('a', 1)"]


def test_labels_that_no_text_of_arrow_can_have_are_objects() -> None:
    index = index_of(["\ud800", "x"], None)
    assert index.dtype == object
    assert index.tolist() == ["\ud800", "x"]
