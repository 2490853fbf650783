"""What a definition probably does not mean, reported before it costs anything."""

from __future__ import annotations

import pytest

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep
from tagent_nb.display import step_card
from tagent_nb.notebook.magics.tables import plan_table
from tagent_nb.pipeline import map_warnings, step_hints


def python_hints(code: str) -> list[str]:
    pipeline = Pipeline("p").put(PipelineStep.from_cell("load", code, python=True))
    return step_hints(pipeline, pipeline.get_step("load"))


def mapped(goal: str, map_over: str | None = "load") -> Pipeline:
    pipeline = Pipeline("p", model="test")
    pipeline.put(PipelineStep.from_cell("load", "[1, 2, 3]", python=True))
    pipeline.put(PipelineStep.from_cell("other", "5", python=True))
    return pipeline.put(PipelineStep("ask", goal, map_over=map_over))


@pytest.mark.parametrize(
    ("code", "ends_in", "write"),
    [
        ("x = 1", "an assignment", "x"),
        ("x: int = 1  # so", "an assignment", "x"),
        ("x = 0\nx += 1", "an assignment", "x"),
        ("a = b = 1", "an assignment", "a"),
        ("a, b = 1, 2", "an assignment", "a, b"),
        ("df = {}\ndf['a'].b = 1", "an assignment", "df"),
        ("with open('f') as file:\n    rows = file.read()", "a 'with' block, which has no value", "rows"),
        ("async with lock:\n    rows = 1", "a 'with' block, which has no value", "rows"),
        ("rows = []\nfor x in range(3):\n    rows.append(x)", "a 'for' loop, which has no value", ""),
        ("if load:\n    x = 1\nelse:\n    y = 2", "an 'if' block, which has no value", "y"),
        ("try:\n    5\nfinally:\n    6", "a 'try' block, which has no value", ""),
        ("while False:\n    x -= 1", "a 'while' loop, which has no value", "x"),
        ("match 1:\n    case 1:\n        2", "a 'match' block, which has no value", ""),
        ("x = 1\nprint(x)", "print(...), which shows a value and gives None", ""),
        ("x = 1\ndisplay(x)", "display(...), which shows a value and gives None", ""),
        ("def f():\n    return 1", "the definition of 'f'", "f(...)"),
        ("class A:\n    x = 1", "the definition of 'A'", "A(...)"),
        ("x = 1\ndel x", "'del', which has no value", ""),
        ("assert 1", "'assert', which has no value", ""),
        ("import os", "an import, which has no value", ""),
    ],
)
def test_a_cell_whose_last_line_has_no_value_says_what_to_write(code: str, ends_in: str, write: str) -> None:
    ending = f": {write}" if write else "."
    hint = f"its value is None, since it ends in {ends_in}. End with the value on a line of its own{ending}"
    assert python_hints(code) == [hint]
    pipeline = Pipeline("p").put(PipelineStep.from_cell("load", code, python=True))
    card = step_card(pipeline, pipeline.get_step("load"))
    assert f"hint: {hint}" in card.text
    assert "hint: its value is None" in card.html


@pytest.mark.parametrize(
    "code",
    [
        "5",
        "x = 1\nx",
        "None",
        "(x := 5)",
        "x = 1\nprint(x)\nx",
        "if load:\n    return 1\nx = 2",
        "x = 1\nreturn",
        "with open('f') as file:\n    return file.read()",
        "raise ValueError('not yet')",
        "text.print(5)",
        "await go()",
    ],
)
def test_a_cell_with_a_value_gets_no_hint(code: str) -> None:
    assert python_hints(code) == []


def test_functions_get_no_hint() -> None:
    pipeline = Pipeline("p")

    @pipeline.task
    def load() -> None:
        x = 1  # noqa: F841

    assert step_hints(pipeline, pipeline.get_step("load")) == []


@pytest.mark.parametrize(
    ("goal", "written", "instead"),
    [
        ("Is it good? {load.text}", "{load.text}", "{{ load.text }}"),
        ("Is it good? {item}", "{item}", "{{ item }}"),
        ("Is it good? {load['text']}", "{load['text']}", "{{ load['text'] }}"),
        ("Is it good? {load[text]}", "{load[text]}", "{{ load['text'] }}"),
        ("Is it good? {item[full text].x}", "{item[full text].x}", "{{ item['full text'].x }}"),
        ("Is it good? {item[0][1a]}", "{item[0][1a]}", "{{ item[0]['1a'] }}"),
        ("Is it good? { load.rows[0].text }", "{ load.rows[0].text }", "{{ load.rows[0].text }}"),
        ("Is {load!r:>10} good?", "{load!r:>10}", "{{ load }}"),
        ("${load}", "{load}", "{{ load }}"),
        ("{other} or {other}", "{other}", "{{ other }}"),
    ],
)
def test_single_braces_around_a_step_are_reported_with_the_remedy(
    goal: str, written: str, instead: str
) -> None:
    hint = f"{written} is sent to the model as it stands; for the value write {instead}."
    pipeline = mapped(goal)
    unread, *hints = step_hints(pipeline, pipeline.get_step("ask"))
    assert unread.startswith("its goal reads nothing of the items of 'load'")
    assert hints == [hint]
    assert map_warnings(pipeline) == [f"Step 'ask': {unread} {hint}"]
    if "{item" not in goal:
        plain = mapped(goal, None)
        assert step_hints(plain, plain.get_step("ask")) == [hint]
        assert map_warnings(plain) == []


@pytest.mark.parametrize(
    "goal",
    [
        "Is it good? {{ load }}",
        "Is it good? {{ load.text }}",
        "Is it good? {{ item }}",
        "Is it good? {% for part in item.parts %}{{ part }}{% endfor %}",
        "Is it good? {%- if load.text %}x{% endif %}",
        "{{ item['a'] }} as JSON: {\"label\": 1} {text} {0} {}",
        "{{ {load: 1} | length }} {# {load} #}",
    ],
)
def test_goals_that_read_the_item_get_no_hint(goal: str) -> None:
    pipeline = mapped(goal)
    assert step_hints(pipeline, pipeline.get_step("ask")) == []
    assert map_warnings(pipeline) == []


@pytest.mark.parametrize(
    "goal", ["Is this item good?", "Say {{ other }}.", "{{ shared.tone }} {# {{ item }} #}", "hi"]
)
async def test_equal_prompts_for_all_items_are_reported_before_they_are_paid(goal: str) -> None:
    pipeline = mapped(goal).share(tone="kind")
    executor = PipelineExecutor(pipeline)
    (warning,) = map_warnings(pipeline)
    assert warning.startswith(
        "Step 'ask': its goal reads nothing of the items of 'load': the model is asked the same"
    )
    assert "Write {{ load }} or {{ item }}" in warning
    plan = await executor.plan()
    assert list(plan.warnings) == [warning]
    assert f"Warning: {warning}" in repr(plan)
    assert f"Warning: {warning}" in plan_table(plan).text
    seen: list[str] = []
    executor.subscribe(lambda event: seen.append(type(event).__name__))
    assert (await executor.execute()).warnings == [warning]
    assert seen.index("Warned") < seen.index("StepStarted")


def test_a_mapped_python_step_needs_not_read_its_item() -> None:
    pipeline = mapped("{{ load }}").put(PipelineStep.from_cell("count", "1", python=True, map_over="load"))
    assert map_warnings(pipeline) == []
