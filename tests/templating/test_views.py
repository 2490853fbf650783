"""Views: lazy, plain, and without a way to the object behind them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from tagent_nb.errors import TemplateError
from tagent_nb.templating import MISSING, Record, Rows, Table, plain_text, view
from tagent_nb.templating.views import join_path, missing


class Score(BaseModel):
    value: float
    words: list[str] = []


@dataclasses.dataclass
class Point:
    x: int


FRAME = pd.DataFrame({"text": ["good", "bad"], "n": [1, 2], "share": [0.5, None]})


def test_records_read_like_dicts_and_give_views() -> None:
    record = view({"a": {"b": [1]}, "items": 5}, "load")
    assert isinstance(record, Record)
    assert list(record) == ["a", "items"]
    assert len(record) == 2
    assert isinstance(record["a"], Record)
    assert isinstance(record["a"]["b"], Rows)
    assert record["items"] == 5
    assert record == {"a": {"b": [1]}, "items": 5}
    with pytest.raises(KeyError):
        record["c"]


@pytest.mark.parametrize("value", [{"value": 0.5, "words": ["a"]}, Score(value=0.5, words=["a"])])
def test_models_and_dicts_look_the_same(value: Any) -> None:
    record = view(value)
    assert record == {"value": 0.5, "words": ["a"]}
    assert record.names() == ["value", "words"]


def test_a_dataclass_is_a_record() -> None:
    assert view(Point(3)) == {"x": 3}


def test_a_declared_field_that_a_model_lacks_is_missing() -> None:
    """``model_construct`` makes models without all of their fields."""
    assert view(Score.model_construct(words=[])).read("value") is MISSING


@pytest.mark.parametrize("name", ["model_dump", "model_fields", "__class__", "__dict__", "copy"])
def test_a_record_has_no_attributes_of_its_object(name: str) -> None:
    assert view(Score(value=1)).read(name) is MISSING


def test_lists_give_items_slices_and_no_fields() -> None:
    rows = view([{"a": 1}, {"a": 2}, {"a": 3}], "load")
    assert isinstance(rows, Rows)
    assert [row["a"] for row in rows] == [1, 2, 3]
    assert rows[-1] == {"a": 3}
    assert rows[1:] == [{"a": 2}, {"a": 3}]
    assert rows.read("0") == {"a": 1}
    assert rows.names() == []
    for key in ("a", "3", 3, -4, "append", None):
        assert rows.read(key) is MISSING
    with pytest.raises(IndexError):
        rows[3]


def test_lists_are_equal_by_their_items() -> None:
    assert view([1, [2]]) == [1, [2]]
    assert view((1, 2)) == view([1, 2])
    assert view([1]) != [1, 2]
    assert view([1]) != 1


def test_a_frame_is_its_rows_and_its_columns() -> None:
    table = view(FRAME, "load")
    assert isinstance(table, Table)
    assert len(table) == 2
    assert [row["text"] for row in table] == ["good", "bad"]
    assert table[0] == {"text": "good", "n": 1, "share": 0.5}
    assert table[-1]["n"] == 2
    assert table.read("text") == ["good", "bad"]
    assert table.read("share") == [0.5, None]
    assert table.read("1") == {"text": "bad", "n": 2, "share": None}
    assert len(table[:1]) == 1
    assert isinstance(table[:1], Table)
    assert table.names() == ["text", "n", "share"]
    for key in ("head", "iloc", "__class__", "2"):
        assert table.read(key) is MISSING


def test_a_row_keeps_whole_numbers_beside_fractions() -> None:
    assert type(view(FRAME)[0]["n"]) is int


def test_columns_that_are_numbers_go_by_their_text_and_rows_by_theirs_come_first() -> None:
    table = view(pd.DataFrame({7: ["a"], 0: ["b"]}))
    assert table.names() == ["7", "0"]
    assert table.read("7") == ["a"]
    assert table.read(0) == {"7": "a", "0": "b"}


TENTH = np.float32(0.1)
"""As Python's float, 0.10000000149011612."""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (TENTH, "0.1"),
        (np.float16(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (np.longdouble(0.5), "0.5"),
        (np.float32(1e20), "1e+20"),
        (np.float32("nan"), "nan"),
        ({"x": TENTH}, '{"x": 0.1}'),
        ([TENTH], "[0.1]"),
        (np.array([0.1], "f4"), "[0.1]"),
        (np.array([[0.1]], "f2"), "[[0.1]]"),
        (np.array(0.5, "f4"), "[0.5]"),
        (pd.Index([0.1], dtype="float32"), "[0.1]"),
        (pd.Series([0.1, None], dtype="float32"), "[0.1, null]"),
        (pd.Series([0.1, None], dtype="Float32"), "[0.1, null]"),
        (pd.Series([0.1], ["x"], dtype="float32"), '{"x": 0.1}'),
        (pd.DataFrame({"x": pd.array([0.1, None], "Float32"), "y": ["a", "b"]}), "x,y\n0.1,a\n,b\n"),
        (pd.DataFrame({"x": [TENTH, 0.25]}, dtype="float[pyarrow]"), "x\n0.1\n0.25\n"),
    ],
)
def test_short_floats_read_as_their_own_type_shows_them(value: Any, text: str) -> None:
    """0.10000000149011612 in a prompt is noise, and costs tokens."""
    assert plain_text(value) == text


def test_a_cell_and_a_column_of_short_floats_read_so_too() -> None:
    table = view(pd.DataFrame({"x": np.array([0.1, np.nan], "f4"), "n": [1, 2]}))
    assert table[0]["x"] == 0.1
    assert list(table.read("x")) == [0.1, None]
    assert [type(value) for value in table[0].values()] == [float, int]


def test_a_view_of_a_view_is_itself() -> None:
    record = view({"a": 1})
    assert view(record) is record


def test_views_say_what_they_hold() -> None:
    assert str(view({"a": [1]})) == repr(view({"a": [1]})) == '{"a": [1]}'
    assert str(view(FRAME[["n"]])) == "n\n1\n2\n"


def test_missing_stands_out() -> None:
    assert repr(MISSING) == "MISSING"


@pytest.mark.parametrize(
    "value", [len, object(), (letter for letter in "ab"), SecretStr("key"), Score, lambda: None, iter([1])]
)
def test_objects_are_refused_with_the_place_and_the_remedy(value: object) -> None:
    record = view({"a": [value]}, "load")
    with pytest.raises(TemplateError, match=r"'load\.a\[0\]' is of type .*, which goals") as caught:
        record["a"][0]
    assert "Let its step return text" in str(caught.value)
    assert "key" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "key", "whole"),
    [
        ("load", "text", "load.text"),
        ("load.rows", 0, "load.rows[0]"),
        ("load", "-1", "load[-1]"),
        ("load", "a b", "load['a b']"),
        ("load", "it's", 'load["it\'s"]'),
        ("load", "é", "load.é"),
    ],
)
def test_paths_are_written_as_in_a_goal(path: str, key: object, whole: str) -> None:
    assert join_path(path, key) == whole


@pytest.mark.parametrize(
    ("value", "key", "words"),
    [
        ({"text": 1, "label": 2}, "txt", "'load.txt' is not there. Did you mean 'text'? Known: text, label."),
        ({}, "a", "'load.a' is not there. Known: nothing, it is empty."),
        (FRAME, "txt", "'load.txt' is not there. Did you mean 'text'? Known: text, n, share."),
        ([1, 2], "5", "'load[5]' is not there: 'load' is a list of 2, counted from 0."),
        ([1, 2], "a", "as in load[0], or loop: {% for one in load %} ... {% endfor %}."),
        (None, "a", "'load.a' is not there: 'load' is None, as it is when a weak or optional step gave no"),
        ("text", "a", "'load.a' is not there: 'load' is of type str, which has no such field."),
    ],
)
def test_the_message_for_a_missing_part_says_what_is_there(value: object, key: str, words: str) -> None:
    assert words in missing(view(value, "load"), key, "load")


def test_a_long_list_of_known_names_is_cut() -> None:
    text = missing(view({f"f{n}": n for n in range(30)}), "zzz", "load")
    assert "f19, ..." in text
    assert "f20" not in text


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(TREES)
def test_a_view_equals_the_plain_data_it_shows(tree: Any) -> None:
    assert view(tree) == tree


@given(st.dictionaries(st.text(), TREES, min_size=1), st.data())
def test_every_part_of_a_record_can_be_read_by_its_name(tree: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(tree)))
    assert view(tree).read(key) == tree[key]
    assert view(tree).part(key) is tree[key]
