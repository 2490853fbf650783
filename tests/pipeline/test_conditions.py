"""Conditions: real values, one typing mistake never a silent skip, and JSON there and back."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tagent_nb.errors import DefinitionError, EncodeError, TemplateError
from tagent_nb.pipeline import (
    And,
    Condition,
    Contains,
    DataExists,
    IsEmpty,
    IsEqualTo,
    IsGreaterThan,
    IsLessThan,
    Not,
    Or,
    PipelineStep,
    holds,
)
from tagent_nb.pipeline.conditions import condition_from_dict
from tagent_nb.templating import Reference


class Label(Enum):
    GOOD = "good"


class Answer(BaseModel):
    label: Label = Label.GOOD
    score: float = 0.5
    words: list[str] = ["a", "b"]
    best: Answer | None = None
    day: date = date(2024, 5, 6)


VALUES: dict[str, Any] = {
    "answer": Answer(),
    "text": "hello",
    "empty": {"text": "", "list": [], "dict": {}, "zero": 0, "no": False, "none": None},
    "frame": pd.DataFrame({"n": [1, 2]}),
    "nothing": pd.DataFrame({"n": []}),
    "failed": None,
}


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        (DataExists("answer"), True),
        (DataExists("answer.score"), True),
        (DataExists("answer.typo"), False),
        (DataExists("answer.best"), False),
        (DataExists("answer.best.score"), False),
        (DataExists("empty.zero"), True),
        (DataExists("empty.text"), True),
        (DataExists("empty.no"), True),
        (DataExists("empty.none"), False),
        (DataExists("failed"), False),
        (DataExists("absent.x"), False),
        (DataExists("frame.n"), True),
        (DataExists("frame[5]"), False),
        (IsEmpty("empty.text"), True),
        (IsEmpty("empty.list"), True),
        (IsEmpty("empty.dict"), True),
        (IsEmpty("empty.none"), True),
        (IsEmpty("empty.zero"), False),
        (IsEmpty("empty.no"), False),
        (IsEmpty("failed.x"), True),
        (IsEmpty("nothing"), True),
        (IsEmpty("frame"), False),
        (IsEmpty("answer"), False),
        (IsEmpty("text"), False),
        (IsEqualTo("answer.label", Label.GOOD), True),
        (IsEqualTo("answer.label", "good"), True),
        (IsEqualTo("answer.words", ["a", "b"]), True),
        (IsEqualTo("answer.words", ("a", "b")), True),
        (IsEqualTo("answer.words", ["a"]), False),
        (IsEqualTo("answer", Answer()), True),
        (IsEqualTo("frame", [{"n": 1}, {"n": 2}]), True),
        (IsEqualTo("failed", None), True),
        (IsEqualTo("text", 3), False),
        (IsGreaterThan("answer.score", 0.4), True),
        (IsGreaterThan("answer.score", 0.5), False),
        (IsGreaterThan("answer.score", Decimal("0.1")), True),
        (IsGreaterThan("answer.day", date(2024, 1, 1)), True),
        (IsGreaterThan("frame[1].n", 1), True),
        (IsGreaterThan("failed.score", 0), False),
        (IsGreaterThan("answer.best.score", 0), False),
        (IsLessThan("answer.score", 0.6), True),
        (IsLessThan("answer.score", 0.5), False),
        (IsLessThan("failed", 0), False),
        (Contains("text", "ell"), True),
        (Contains("text", "x"), False),
        (Contains("answer.words", "a"), True),
        (Contains("answer.words", "c"), False),
        (Contains("answer", "score"), True),
        (Contains("answer", "scores"), False),
        (Contains("frame", "n"), True),
        (Contains("frame.n", 2), True),
        (Contains("frame", "m"), False),
        (Contains("failed", "x"), False),
    ],
    ids=lambda value: value.describe() if isinstance(value, Condition) else str(value),
)
def test_conditions_see_real_values_and_fields(condition: Condition, truth: bool) -> None:
    assert condition.evaluate(VALUES) is truth
    assert (~condition).evaluate(VALUES) is not truth


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (IsEqualTo("answer.lable", 1), "'answer.lable' is not there. Did you mean 'label'?"),
        (IsEmpty("answer.typo"), "'answer.typo' is not there. Known: label, score"),
        (IsGreaterThan("text", 3), "'text > 3' cannot be decided: 'text' is of type str"),
        (IsLessThan("answer", 3), "'answer < 3' cannot be decided: 'answer' is of type Record"),
        (Contains("answer.score", 3), "'answer.score contains 3' cannot be decided"),
        (IsEqualTo("text", len), "'the value to compare with' is of type builtin_function_or_method"),
    ],
)
def test_what_cannot_be_decided_names_the_step_the_field_and_the_remedy(
    condition: Condition, words: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        holds(condition, VALUES, step="x")
    assert str(caught.value).startswith("Step 'x', when: ")
    assert words in str(caught.value)


def test_the_cause_of_an_impossible_comparison_stays_attached() -> None:
    with pytest.raises(TemplateError) as caught:
        holds(IsGreaterThan("text", 3), VALUES, step="x")
    assert isinstance(caught.value.__cause__, TypeError)


YES, NO, BROKEN = DataExists("text"), DataExists("failed"), IsEmpty("answer.typo")


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        (And(YES, YES), True),
        (And(YES, NO), False),
        (Or(NO, YES), True),
        (Or(NO, NO), False),
        (Not(YES), False),
        (YES & ~NO, True),
        ((NO | YES) & YES, True),
        (And(YES), True),
        (And(NO, BROKEN), False),
        (Or(YES, BROKEN), True),
    ],
)
def test_conditions_combine_and_stop_at_the_first_that_decides(condition: Condition, truth: bool) -> None:
    assert condition.evaluate(VALUES) is truth


def test_combining_with_and_or_not_is_an_error_and_not_half_a_condition() -> None:
    with pytest.raises(DefinitionError, match=r"'text exists' is neither true nor false .* & \| ~"):
        YES and NO  # noqa: B018
    with pytest.raises(DefinitionError):
        not YES  # noqa: B018


@pytest.mark.parametrize("make", [lambda: And(), lambda: Or()])
def test_joining_nothing_is_an_error(make: Any) -> None:
    with pytest.raises(DefinitionError, match="joins no conditions. Pass at least one"):
        make()


@pytest.mark.parametrize(
    "make", [lambda: And(YES, "load"), lambda: Or("load"), lambda: Not("load"), lambda: YES & "load"]
)
def test_joining_something_else_is_an_error(make: Any) -> None:
    with pytest.raises(DefinitionError, match=r"joins conditions, not str \('load'\)"):
        make()


@pytest.mark.parametrize("reference", ["", "a b", 3])
def test_a_wrong_reference_is_an_error_where_it_is_written(reference: Any) -> None:
    with pytest.raises(TemplateError, match="is not a reference"):
        DataExists(reference)


def test_references_are_those_of_all_parts_once() -> None:
    condition = And(YES, Or(IsEmpty("load.rows"), ~YES), IsEqualTo("shared.mode", 1))
    assert condition.references() == (Reference("text", (), "when"), Reference("load", ("rows",), "when"))
    assert PipelineStep("x", "go", when=condition).references == condition.references()


def test_conditions_describe_themselves_in_words() -> None:
    condition = And(YES, Or(IsEmpty("a.b"), ~IsGreaterThan("n", 3)), Contains("t", "x"))
    assert condition.describe() == "(text exists and (a.b is empty or not (n > 3)) and t contains 'x')"
    assert IsEqualTo("a", 1).describe() == "a == 1"
    assert IsLessThan("a", 1).describe() == "a < 1"
    assert (
        repr(And(YES, ~NO))
        == "And(DataExists(reference='text'), Not(condition=DataExists(reference='failed')))"
    )


def test_conditions_are_equal_by_kind_and_parts() -> None:
    assert DataExists("a") == DataExists("a")
    assert DataExists("a") != IsEmpty("a")
    assert And(YES, NO) == And(YES, NO)
    assert And(YES, NO) != Or(YES, NO)
    assert And(YES) != YES
    assert len({And(YES), And(YES), Or(YES), Not(YES), IsEqualTo("a", 1)}) == 4


# -- for the engine -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "truth"),
    [
        (None, True),
        (YES, True),
        (NO, False),
        ("text == 'hello'", True),
        ("answer.score > 1", False),
        ("shared.on and facts.f and memories.m and item.i", True),
        (DataExists("shared.on") & IsEqualTo("facts.f", 1) & DataExists("memories.m"), True),
        (IsEqualTo("item.i", 1), True),
    ],
)
def test_when_holds_as_expression_and_as_object(when: Any, truth: bool) -> None:
    own: dict[str, Any] = {"shared": {"on": True}, "facts": {"f": 1}, "memories": {"m": 1}, "item": {"i": 1}}
    assert holds(when, VALUES, step="x", **own) is truth


def test_an_item_is_there_only_when_it_is_given() -> None:
    assert holds(DataExists("item"), {}, step="x") is False
    assert holds(DataExists("shared.on"), {}, step="x") is False
    assert holds(~DataExists("item"), {}, step="x", item=None) is True


# -- storing ------------------------------------------------------------------------------------

VALUE = (
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()) | st.just(Decimal("1.5"))
)
REFERENCE = st.sampled_from(["load", "load.text", "load.rows[0]['a b']"])
CONDITION = st.recursive(
    st.builds(DataExists, REFERENCE)
    | st.builds(IsEmpty, REFERENCE)
    | st.one_of(
        *(st.builds(kind, REFERENCE, VALUE) for kind in (IsEqualTo, IsGreaterThan, IsLessThan, Contains))
    ),
    lambda inner: (
        st.builds(Not, inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda some: And(*some))
        | st.lists(inner, min_size=1, max_size=3).map(lambda some: Or(*some))
    ),
    max_leaves=6,
)


@given(CONDITION)
def test_a_condition_comes_back_from_json(condition: Condition) -> None:
    assert condition_from_dict(json.loads(json.dumps(condition.to_dict()))) == condition


def test_a_model_to_compare_with_comes_back_by_its_class() -> None:
    condition = IsEqualTo("answer", Answer())
    stored = json.loads(json.dumps(condition.to_dict()))
    assert condition_from_dict(stored, {"Answer": Answer}) == condition


def test_a_value_that_cannot_be_stored_says_so() -> None:
    with pytest.raises(EncodeError, match=r"IsEqualTo\('a'\)\.value"):
        IsEqualTo("a", len).to_dict()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"type": "IsEmtpy", "reference": "a"},
            "There is no condition 'IsEmtpy'. Did you mean 'IsEmpty'? Known: ",
        ),
        ({}, "This is not a stored condition: KeyError: 'type'. Pass what Condition.to_dict() returned."),
        ("text", "This is not a stored condition: TypeError"),
        ({"type": ["And"]}, "This is not a stored condition: TypeError"),
        ({"type": "And", "conditions": []}, "And() joins no conditions"),
        ({"type": "And"}, "This is not a stored condition"),
        ({"type": "Not", "condition": None}, "This is not a stored condition"),
        ({"type": "IsEmpty", "reference": "a b"}, "is not a reference"),
        ({"type": "IsEqualTo", "reference": "a"}, "This is not a stored condition"),
    ],
)
def test_what_is_no_stored_condition_is_an_error(data: Any, words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        condition_from_dict(data)
    assert words in str(caught.value)
