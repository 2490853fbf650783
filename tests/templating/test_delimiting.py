"""Data in a goal: printed sensibly, between tags that no value can close."""

from __future__ import annotations

import enum
import json
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tagent_nb.errors import TemplateError
from tagent_nb.templating import DATA_RULE, delimit, plain_text
from tagent_nb.templating.views import MAX_DEPTH, MAX_PARTS, MAX_ROWS, Delimited, json_text, own_text


class Label(enum.Enum):
    GOOD = "good"


class Review(BaseModel):
    label: Label
    at: datetime
    price: Decimal
    file: Path
    raw: bytes
    parts: list[Review] = []


REVIEW = Review(
    label=Label.GOOD, at=datetime(2024, 1, 2), price=Decimal("1.50"), file=Path("a/b"), raw=b"\xff\x00"
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.5, "0.5"),
        (True, "True"),
        (None, "None"),
        (Decimal("1.50"), "1.50"),
        (datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1), "1 day, 0:00:00"),
    ],
)
def test_numbers_and_dates_stand_bare(value: object, text: str) -> None:
    assert delimit(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("hello", "<data>hello</data>"),
        ("", "<data></data>"),
        ("two\nlines", "<data>\ntwo\nlines\n</data>"),
        ("ends\n", "<data>\nends\n</data>"),
        ("a\rb", "<data>\na\rb\n</data>"),
        (b"bytes", "<data>bytes</data>"),
        (b"\xff\x00", "<data>base64:/wA=</data>"),
        (Path("a/b"), "<data>a/b</data>"),
        (Label.GOOD, "<data>good</data>"),
        ([1, "a", None], '<data>[1, "a", null]</data>'),
        ({"é": {"b": True}}, '<data>{"é": {"b": true}}</data>'),
        (iter([1, 2]), "<data>[1, 2]</data>"),
    ],
)
def test_everything_else_stands_between_tags(value: object, text: str) -> None:
    assert delimit(value) == text


def test_models_print_their_fields_at_any_depth() -> None:
    nested = REVIEW.model_copy(update={"parts": [REVIEW]})
    shown = json.loads(plain_text({"all": [nested]}))["all"][0]
    flat = {
        "label": "good",
        "at": "2024-01-02T00:00:00",
        "price": "1.50",
        "file": "a/b",
        "raw": "base64:/wA=",
        "parts": [],
    }
    assert shown == {**flat, "parts": [flat]}


def test_a_frame_is_csv() -> None:
    frame = pd.DataFrame({"text": ["a,b", "c\nd", None], "more": [{"x": 1}, REVIEW.at, 2]})
    assert delimit(frame) == (
        '<data>\ntext,more\n"a,b","{""x"": 1}"\n"c\nd",2024-01-02T00:00:00\n,2\n</data>'
    )


def test_a_long_frame_is_cut_and_says_so() -> None:
    rows = MAX_ROWS + 1_034
    text = delimit(pd.DataFrame({"n": range(rows)}))
    assert text.endswith("\n199\n</data> (the first 200 of 1,234 rows; 1,034 are left out)")
    assert text.count("\n") == MAX_ROWS + 2
    assert "left out" not in delimit(pd.DataFrame({"n": range(MAX_ROWS)}))


def test_a_frame_inside_a_record_is_its_rows() -> None:
    short = {"f": pd.DataFrame({"n": [1]})}
    assert plain_text(short) == '{"f": [{"n": 1}]}'
    long = json.loads(json_text({"f": pd.DataFrame({"n": range(MAX_ROWS + 3)})}))["f"]
    assert len(long) == MAX_ROWS + 1
    assert long[-1] == "... 3 more rows"


def test_columns_of_one_name_are_all_shown() -> None:
    assert plain_text(pd.DataFrame([[1, 2]], columns=["a", "a"])) == "a,a\n1,2\n"


@pytest.mark.parametrize(
    "missing",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float64("nan"),
        np.float32("inf"),
        pd.NA,
        pd.NaT,
        None,
        Decimal("NaN"),
        Decimal("Infinity"),
        np.datetime64("NaT"),
    ],
    ids=repr,
)
def test_what_json_does_not_have_is_null_in_every_place(missing: Any) -> None:
    """As in the rows of a table, so that what a model reads is JSON."""
    for value, text in (
        ([missing, 1.5], "[null, 1.5]"),
        ([{"a": missing, "b": [missing]}], '[{"a": null, "b": [null]}]'),
        ({"a": {"b": (missing,)}}, '{"a": {"b": [null]}}'),
        (pd.DataFrame({"a": pd.Series([missing], dtype=object)}).to_dict("records"), '[{"a": null}]'),
        ({"t": pd.DataFrame({"a": pd.Series([missing, 1], dtype=object)})}, '{"t": [{"a": null}, {"a": 1}]}'),
    ):
        assert json_text(value) == text
        assert delimit(value) == f"<data>{text}</data>"
    assert json_text(Decimal("1E+400")) == '"1E+400"'


def test_columns_of_one_name_are_all_in_the_records() -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"])
    assert json_text(frame) == '[{"a": 1, "a_2": 2, "b": 3}]'
    index = pd.MultiIndex.from_tuples([(2024, 1)], names=["day", "day"])
    assert json_text(pd.DataFrame({"n": [5]}, index=index)) == '[{"day": 2024, "day_2": 1, "n": 5}]'


def test_json_text_quotes_text_and_indents() -> None:
    assert json_text("a") == '"a"'
    assert json_text(True) == "true"
    assert json_text({"a": 1}, indent=1) == '{\n "a": 1\n}'


def test_text_that_is_delimited_stays_so() -> None:
    once = delimit("a")
    assert delimit(once) is once
    assert delimit(str(once)) != once


def test_own_text_is_left_alone_and_other_values_are_data() -> None:
    assert own_text("formal <data>") == "formal <data>"
    assert own_text("half \ud800") == "half \ufffd"
    assert own_text([1]) == "<data>[1]</data>"
    assert own_text(Delimited("<data>x</data>")) == "<data>x</data>"


def test_a_method_is_not_text() -> None:
    with pytest.raises(TemplateError, match=r"'upper' is a method. Call it, as in upper\(\)"):
        plain_text("a".upper)


def test_a_value_that_holds_itself_is_an_error() -> None:
    circle: list[Any] = []
    circle.extend([circle, circle])
    with pytest.raises(TemplateError, match="or holds itself"):
        delimit(circle)


def test_depth_and_size_are_bounded() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert delimit(deep)
    with pytest.raises(TemplateError, match="nested deeper than 100 levels"):
        delimit([deep])
    laughs: Any = "ha"
    for _ in range(30):
        laughs = [laughs] * 2
    with pytest.raises(TemplateError, match=f"more than {MAX_PARTS:,} parts"):
        delimit(laughs)


def test_the_rule_for_the_model_names_the_tags() -> None:
    assert "<data>" in DATA_RULE
    assert "</data>" in DATA_RULE


# -- no value closes its block ----------------------------------------------------------------

PIECES = st.sampled_from(
    ["<", "</", "/", "data", "DATA", ">", "</data>", "<data>", "< / data >", "\u200b", "\ufeff", "\n", "\t",
     " ", "&lt;", "\\", '"', "\\u003c", "\uff1c", "\ufe64", "\ud800", "x", "</data", "dAtA>"]
)  # fmt: skip
HOSTILE = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)
SHAPES = st.sampled_from(
    [
        lambda text: text,
        lambda text: {"k": text},
        lambda text: {text: 1},
        lambda text: [text, [text]],
        lambda text: pd.DataFrame({"c": [text, "x"]}, dtype=object),
        lambda text: pd.DataFrame([[1]], columns=pd.Index([text], dtype=object)),
        lambda text: text.encode("utf-8", "replace"),
        lambda text: Path("/" + text.replace("\0", "")),
    ]
)


@given(HOSTILE, SHAPES)
def test_no_value_closes_its_block(text: str, shape: Any) -> None:
    """Whatever a value says, the first closing tag is the last thing of its text."""
    shown = delimit(shape(text))
    assert shown.startswith("<data>")
    assert shown.endswith("</data>")
    inside = shown.removeprefix("<data>").removesuffix("</data>")
    squeezed = (
        re.sub(r"[\s\u200b-\u200f\u2060\ufeff]", "", inside).lower().translate({0xFF1C: "<", 0xFE64: "<"})
    )
    assert "</data" not in squeezed
    assert "<data" not in squeezed
    shown.encode()


@given(HOSTILE)
def test_json_stays_json_that_reads_as_the_value(text: str) -> None:
    """The escape is JSON's own, so that a model that parses it reads the value itself."""
    inside = delimit({"k": text}).removeprefix("<data>").removesuffix("</data>")
    assert json.loads(inside)["k"] == re.sub("[\ud800-\udfff]", "\ufffd", text)


def test_a_text_of_openings_takes_no_longer_than_another() -> None:
    """Each ``<`` is looked at once: 300,000 of them end within the test's time."""
    assert delimit("<" * 300_000)
    assert delimit("< " * 300_000)
