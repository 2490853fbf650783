"""References between the tasks of a plan: what is read, what is wrong, and what stands in their place."""

from __future__ import annotations

from typing import Any

import pytest

from tagent_nb.errors import TemplateError
from tagent_nb.runners.planner.plan import filled_in, references, renamed, shown_in, task_id

RESULTS: dict[str, Any] = {
    "t1": {"rows": [{"name": "tea", "a b": 3}], "result": "inner"},
    "t2": 7,
    "step_3": ["x", "y"],
    "t4": "text",
}


def show(value: object) -> str:
    return f"<{value}>"


@pytest.mark.parametrize(
    ("text", "name"),
    [("t1", "t1"), (" t1 ", "t1"), ("1", "t1"), ("step-3", "step_3"), ("a b", "a_b"), ("", "")],
)
def test_ids_become_identifiers(text: str, name: str) -> None:
    assert task_id(text) == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ t1 }}", RESULTS["t1"]),
        ("${t2}", 7),
        (" {{t2}} ", 7),
        ("{{ t1.rows[0].name }}", "tea"),
        ("{{ t1['rows'][0][\"a b\"] }}", 3),
        ("${t1.rows}", RESULTS["t1"]["rows"]),
        ("{{ step-3[1] }}", "y"),
        ("{{ t2.result }}", 7),
        ("{{ t2.output }}", 7),
        ("{{ t1.result }}", "inner"),
        ("{{ t2 }} of {{ t4 }}", "<7> of <text>"),
        ("a ${t2}", "a <7>"),
        ("no reference", "no reference"),
        ("echo ${HOME} $t1 {t1} {{ }}", "echo ${HOME} $t1 {t1} {{ }}"),
        (3, 3),
        (None, None),
    ],
)
def test_a_result_takes_the_place_of_its_reference(text: Any, value: Any) -> None:
    """A text that is one reference becomes the result as it is, whatever its type."""
    assert filled_in(text, RESULTS, show) == value


def test_references_work_anywhere_inside_of_arguments() -> None:
    arguments = {"a": ["{{ t2 }}", {"b": "is {{ t4 }}"}], "{{ t2 }}": True}
    assert filled_in(arguments, RESULTS, show) == {"a": [7, {"b": "is <text>"}], "{{ t2 }}": True}


def test_in_a_text_that_is_read_every_result_is_shown() -> None:
    assert shown_in("{{ t4 }}", RESULTS, show) == "<text>"
    assert shown_in("Sum of {{ t2 }} and ${other}", RESULTS, show) == "Sum of <7> and ${other}"


def test_a_part_that_a_result_lacks_is_named() -> None:
    with pytest.raises(TemplateError, match="'t1.prices' is not there. Known: rows, result"):
        filled_in("{{ t1.prices }}", RESULTS, show)
    with pytest.raises(TemplateError):
        filled_in("{{ t2.result.more }}", RESULTS, show)


def test_what_is_referred_to_is_known_before_anything_runs() -> None:
    read = references({"a": "{{ t1.x }} {{ t1 }}", "b": ["${t2}", 3]}, ["t1", "t2"])
    assert read == (["t1", "t2"], [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ tea1 }}", "{{ tea1 }} names no task. Did you mean 't1'? Tasks: t1, t2."),
        ("{{ t1 | upper }}", "{{ t1 | upper }} cannot be read. Write {{ id }} or {{ id.field }}."),
        ("${t1 + 1}", "${t1 + 1} cannot be read. Write {{ id }} or {{ id.field }}."),
    ],
)
def test_what_cannot_be_meant_is_reported(text: str, problem: str) -> None:
    assert references(text, ["t1", "t2"]) == ([], [problem])


def test_without_tasks_there_is_nothing_to_refer_to() -> None:
    assert references("{{ it }}", []) == ([], ["{{ it }} names no task. Tasks: none."])


@pytest.mark.parametrize("text", ["${name}", "{{ a + b }}", "{{", "$5 {x}", "{{ }}"])
def test_other_braces_are_ordinary_text(text: str) -> None:
    assert references(text, ["t1"]) == ([], [])
    assert filled_in(text, RESULTS, show) == text


def test_ids_can_be_renamed() -> None:
    value = {"a": "${t1.rows[0]['a b']} {{ t2 }} ${HOME}"}
    assert renamed(value, {"t1": "t1_2", "t2": "t2"}) == {"a": "{{ t1_2.rows.0['a b'] }} {{ t2 }} ${HOME}"}
    assert filled_in("{{ t1.rows.0['a b'] }}", RESULTS, show) == 3
