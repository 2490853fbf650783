"""Cards and tables: what they say, and that everything in them is escaped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from html_safety import HOSTILE, Reader, assert_safe
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from pydantic import BaseModel

from tagent_nb.display import (
    AS_IT_IS,
    STATUS_STYLES,
    Bundle,
    definition_table,
    escape,
    state_mark,
    step_card,
    step_facts,
    table,
)
from tagent_nb.formatting import one_line
from tagent_nb.notebook.display import place, show, update
from tagent_nb.notebook.widgets.widget_style import tip
from tagent_nb.pipeline import Pipeline, PipelineStep, StepStatus


class Answer(BaseModel):
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int


def lookup(query: str) -> str:
    """Look something up."""
    return query


def pipeline() -> Pipeline:
    made = Pipeline("reviews", "What customers say", model="local")
    made.put(PipelineStep.from_cell("load", "# Load the rows\n[1, 2]", python=True))
    made.put(PipelineStep("classify", "Classify {{ load.text }} {{ load.text }}", map_over="load"))
    return made


def facts(made: Pipeline, step: PipelineStep) -> dict[str, str]:
    return dict(step_facts(made, step))


def test_a_card_says_how_many_rows_share_a_call() -> None:
    made = Pipeline("p", model="test").step("each", "{{ load }}", map_over="load", rows_per_call=20)
    assert facts(made, made.get_step("each"))["limits"] == "20 rows in one call"


def test_a_card_names_step_kind_what_it_reads_and_the_model() -> None:
    made = pipeline()
    card = step_card(made, made.get_step("classify"))
    assert card.text == "classify: agent step; reads load.text; each of load; model local"
    text = Reader(card.html).text
    assert "Classify {{ load.text }}" in text
    assert "agent step" in text
    assert_safe(card.html)


def test_a_python_card_shows_its_first_comment_and_no_model() -> None:
    made = pipeline()
    card = step_card(made, made.get_step("load"))
    assert card.text == "load: python step"
    assert "Load the rows" in card.html
    made.put(PipelineStep.from_cell("bare", "1", python=True))
    assert "Python step" not in step_card(made, made.get_step("bare")).html


def test_a_card_tells_what_differs_from_the_defaults() -> None:
    made = pipeline().step(
        "report",
        "Report {{ classify }}",
        depends_on=["load:weak", "nowhere"],
        output_schema=Answer,
        when="load",
        model="openai:gpt",
        tools_filter=["search*"],
        tools=[lookup],
        checks=[lookup],
        agent="plan",
        constraints=["short", "kind"],
        timeout=2.5,
        max_retries=0,
        min_success=0.9,
        max_failures=0.1,
        map_over="classify",
        cache=False,
        budget="5000 tokens",
        execution_mode=_concurrent(),
    )
    assert facts(made, made.get_step("report")) == {
        "reads": "load (weak), nowhere (not defined yet), classify",
        "each of": "classify",
        "schema": "Answer (a, b, c, d, e, f, …)",
        "model": "openai:gpt",
        "plans": "its tasks, at most 2 times anew",
        "when": "load",
        "tools": "search*",
        "checks": "lookup",
        "rules": "short; kind",
        "limits": "2.5 s each attempt, no retry, 90% of items must succeed, stops early beyond 10% failed "
        "items, concurrent, at most 5000 tokens, never cached",
    }


class RefusedError(Exception):
    """An error of the user's."""


def test_a_card_tells_which_errors_are_tried_again() -> None:
    made = pipeline().step("page", "Say it", retry_on=[ValueError, RefusedError], max_retries=1)
    assert facts(made, made.get_step("page"))["limits"] == "1 retry, also after ValueError, RefusedError"


@pytest.mark.parametrize(("batch", "text"), [(True, "in batches"), ("then-live", "in batches, then live")])
def test_a_card_tells_that_requests_are_sent_in_batches(batch: Any, text: str) -> None:
    made = pipeline().step("page", "Say {{ load }}", map_over="load", batch=batch)
    card = facts(made, made.get_step("page"))
    assert (card["sent"], "limits" in card) == (text, False)


def test_a_card_tells_how_long_an_answer_is_fresh() -> None:
    made = pipeline().step("page", "Say it", fresh_for="90m")
    assert facts(made, made.get_step("page"))["limits"] == "asked again after 1 h 30 min"


@pytest.mark.parametrize(
    ("options", "tools"),
    [
        ({}, None),
        ({"tools": [lookup]}, "lookup, and all registered ones"),
        ({"tools_filter": []}, "none"),
        ({"tools_filter": ["lookup"], "tools": [lookup]}, "lookup"),
    ],
)
def test_a_card_tells_no_tools_from_all_tools(options: dict[str, Any], tools: str | None) -> None:
    made = pipeline().step("report", "Report", **options)
    assert facts(made, made.get_step("report")).get("tools") == tools


def test_a_card_tells_settings_but_not_what_may_hold_a_key() -> None:
    settings = {"max_tokens": 200, "extra_headers": {"key": "sk-canary"}, "tool_choice": "auto"}
    made = pipeline().step("report", "Report", settings=settings)
    assert (
        facts(made, made.get_step("report"))["settings"] == "max_tokens=200, extra_headers, tool_choice=auto"
    )


def test_a_card_tells_of_a_single_plan() -> None:
    made = pipeline().step("report", "Report", agent="plan", max_replans=0)
    assert facts(made, made.get_step("report"))["plans"] == "its tasks, once"


def _concurrent():  # type: ignore[no-untyped-def]
    from tagent_nb.pipeline import ExecutionMode

    return ExecutionMode.CONCURRENT


def test_a_condition_object_is_described() -> None:
    from tagent_nb.pipeline import DataExists

    made = pipeline().step("report", "go", when=DataExists("classify.label"), max_retries=5)
    card = facts(made, made.get_step("report"))
    assert "classify.label" in card["when"]
    assert card["limits"] == "5 retries"


def test_an_agent_step_without_a_model_says_how_to_get_one() -> None:
    made = Pipeline("p").step("a", "go")
    assert facts(made, made.get_step("a"))["model"] == "none yet: %tagent_pipeline p --model NAME"


def test_hostile_texts_stay_text_in_cards_and_tables() -> None:
    made = Pipeline("<b onclick=x>", HOSTILE.strip(), model=HOSTILE)
    made.step("a", HOSTILE, constraints=[HOSTILE], model=HOSTILE)
    states = {"a": StepStatus.FAILED}
    for bundle in (step_card(made, made.get_step("a")), definition_table(made, states)):
        assert_safe(bundle.html)
        assert "alert(1)" in bundle.html


def test_escaping_replaces_what_no_font_shows() -> None:
    assert escape("<a>\x07\ud800\u202e\nb\tc") == "&lt;a&gt;\ufffd\ufffd\ufffd\nb\tc"


def test_long_text_is_clipped_to_one_line() -> None:
    assert one_line("a\n  b", 10) == "a b"
    assert one_line("abcdef", 4) == "abc…"


def test_the_table_of_steps_shows_states_and_broken_definitions() -> None:
    made = pipeline()
    bundle = definition_table(made, {"load": StepStatus.CACHED})
    assert bundle.text.splitlines() == [
        "reviews: 2 steps",
        "↺ load: python; reads nothing; cached",
        "○ classify: agent; reads load.text; each of load; model local; pending",
    ]
    assert "What customers say" in bundle.html
    assert "○" in definition_table(made).text
    assert definition_table(Pipeline("p")).text == "p: 0 steps"


def test_a_step_that_cannot_be_read_is_listed_with_its_problem() -> None:
    made = Pipeline("p").step("a", "{{ unclosed")
    assert "a: agent; Step 'a', goal line 1: unexpected end of template" in definition_table(made).text


@pytest.mark.parametrize("status", StepStatus)
def test_a_state_has_mark_and_word(status: StepStatus) -> None:
    text = Reader(state_mark(status)).text
    assert STATUS_STYLES[status].mark in text
    assert STATUS_STYLES[status].word in text


def test_columns_of_numbers_are_to_the_right() -> None:
    html = table(["a", "b"], [["x", "1"]], right=[1])
    assert html.count("text-align:right") == 2
    assert html.count("text-align:left") == 2


def test_a_bundle_has_a_plain_twin_for_shells_without_html(capsys: pytest.CaptureFixture[str]) -> None:
    assert Bundle("<b>x</b>", "x")._repr_mimebundle_() == {
        "text/html": f'<div class="{AS_IT_IS}"><b>x</b></div>',
        "text/plain": "x",
    }
    show(Bundle("<b>x</b>", "shown"))
    assert "shown" in capsys.readouterr().out


def test_a_bundle_is_its_text_where_no_one_shows_html() -> None:
    bundle = Bundle("<b>bold</b>", "bold")
    assert repr(bundle) == "bold"
    assert bundle._repr_mimebundle_() == {
        "text/html": f'<div class="{AS_IT_IS}"><b>bold</b></div>',
        "text/plain": "bold",
    }


class SelfShown:
    """As the widgets of ipywidgets 7, which display themselves where they have no id to replace them by."""

    model_id = "m1"

    def __repr__(self) -> str:
        return "a widget"

    def _ipython_display_(self) -> None:
        raise AssertionError("nothing could replace it")


def test_a_widget_that_displays_itself_gets_a_place_that_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = InteractiveShell.instance()
    shown = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", shown)
    handle = place(SelfShown())
    update(handle, Bundle("", "gone"))
    first, last = shown.outputs
    assert first["transient"] == last["transient"]
    view = {"version_major": 2, "version_minor": 0, "model_id": "m1"}
    assert first["data"] == {"text/plain": "a widget", "application/vnd.jupyter.widget-view+json": view}
    assert last["data"]["text/plain"] == "gone"


@pytest.mark.parametrize("trait", ["tooltip", "description_tooltip"])
def test_what_is_shown_over_a_widget_is_called_as_its_version_calls_it(trait: str) -> None:
    kind = SimpleNamespace(class_trait_names=lambda: [trait])
    assert tip(kind, "why") == {trait: "why"}
