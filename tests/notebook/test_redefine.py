"""What a card says of a step whose cell was run again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, create_model
from pydantic_ai.models.test import TestModel

from tagent_nb import IsEmpty, IsGreaterThan, PipelineStep
from tagent_nb.notebook.magics.redefine import MAX_LINES, changes
from tagent_nb.pipeline import ExecutionMode


def step(goal: str = "Sum up {{ load }}", **options: Any) -> PipelineStep:
    return PipelineStep("a", goal, **options)


def python(code: str, **options: Any) -> PipelineStep:
    return PipelineStep.from_cell("a", code, python=True, **options)


def schema(**fields: Any) -> type[BaseModel]:
    made: type[BaseModel] = create_model("Answer", **fields)
    return made


def check(value: Any) -> None:
    """A check."""


def test_the_same_cell_changes_nothing() -> None:
    assert changes(step(output_schema=schema(x=(int, 1))), step(output_schema=schema(x=(int, 1)))) == []
    assert changes(python("1 + 1"), python("1 + 1")) == []


def test_texts_are_reported_by_their_changed_lines() -> None:
    assert changes(step("Say this\nin a word"), step("Say this\nin two words")) == [
        "- in a word",
        "+ in two words",
    ]
    assert changes(python("x = 1\nx"), python("x = 2\nx")) == ["- x = 1", "+ x = 2"]


def test_a_long_diff_is_cut() -> None:
    lines = changes(step("a"), step("\n".join(str(number) for number in range(50))))
    assert len(lines) == MAX_LINES
    assert lines[-1] == "… and 44 more lines"


def test_another_kind_of_step_is_reported() -> None:
    assert changes(python("1"), step("go")) == ["was a Python step", "- 1", "+ go"]
    assert changes(step("go"), python("1"))[0] == "was an agent step"


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({}, {"timeout": 5.0}, "timeout: not set → 5.0"),
        ({"constraints": ["short"]}, {}, "constraints: short → not set"),
        ({"max_retries": 3}, {"max_retries": 0}, "max_retries: 3 → 0"),
        ({}, {"cache": False}, "cache: True → False"),
        ({}, {"execution_mode": ExecutionMode.CONCURRENT}, "execution_mode: serial → concurrent"),
        ({"model": "local"}, {"model": TestModel()}, "model: local → test"),
        ({"checks": [check]}, {}, "checks: check → not set"),
        ({"checks": [check]}, {"checks": [lambda value: None]}, "checks: check → <lambda>"),
        ({"when": IsEmpty("b")}, {"when": IsGreaterThan("b", 1)}, "when: b is empty → b > 1"),
        ({"budget": 0.1}, {"budget": "5000 tokens"}, "budget: 0.1 USD → 5000 tokens"),
        (
            {"output_schema": schema(x=(int, 1))},
            {"output_schema": schema(x=(str, ""))},
            "output_schema: Answer was defined anew",
        ),
    ],
)
def test_options_are_reported_in_a_line_each(
    before: dict[str, Any], after: dict[str, Any], line: str
) -> None:
    assert changes(step(**before), step(**after)) == [line]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (None, [], "tools_filter: all tools → no tools"),
        ([], None, "tools_filter: no tools → all tools"),
        ([], ["look"], "tools_filter: no tools → look"),
    ],
)
def test_no_tools_are_something_else_than_all_tools(before: Any, after: Any, line: str) -> None:
    assert changes(step(tools_filter=before), step(tools_filter=after)) == [line]
