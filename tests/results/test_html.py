"""The HTML of a result: complete, readable in both themes, and nothing in it can become code."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tagent_nb.display import STATUS_STYLES
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import ItemResult, PipelineResult, StepResult, result_html
from tagent_nb.results.html import MAX_STEPS
from tagent_nb.serde import StoredValue


class Reader(HTMLParser):
    """Elements, attributes and text of a page; checks that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def result_of(*steps: StepResult, **fields: Any) -> PipelineResult:
    fields = {"pipeline_name": "reviews", "success": True, "execution_time": 12.0} | fields
    usage = {step.name: step.usage for step in steps}
    return PipelineResult(**fields, token_usage=usage, steps={step.name: step for step in steps})


def test_the_line_on_top_tells_status_time_cost_and_tokens() -> None:
    ask = StepResult("ask", StepStatus.COMPLETED, StoredValue.of("x"), usage=TokenUsage(1000, 500), cost=0.02)
    ask.saved_cost = 0.5
    text = Reader(result_html(result_of(ask, total_cost=0.02))).text
    assert text.startswith("✓ success reviews 12 s · $0.0200 · 1.5k tokens · $0.50 saved by the cache")


@pytest.mark.parametrize(
    ("fields", "beginning"),
    [
        ({"success": False, "failed_steps": ["a"]}, "✗ failed reviews"),
        ({"success": False, "cancelled": True, "failed_steps": ["a"]}, "■ cancelled reviews"),
        ({"success": False}, "○ not finished reviews"),
    ],
)
def test_a_run_that_did_not_succeed_says_how(fields: dict[str, Any], beginning: str) -> None:
    assert Reader(result_html(result_of(**fields))).text.startswith(beginning)


def test_an_unknown_price_is_never_shown_as_nothing() -> None:
    free = StepResult("free", StepStatus.COMPLETED, StoredValue.of(1), usage=TokenUsage(1), cost=None)
    text = Reader(result_html(result_of(free, unpriced_steps=["free"]))).text
    assert " · 1 step of unknown price" in text
    assert "$0" not in text
    priced = result_html(result_of(unpriced_steps=["a"], total_cost=0.5))
    assert "$0.50 + 1 step of unknown price" in priced
    assert "$?" in text
    assert "2 steps of unknown price" in result_html(result_of(unpriced_steps=["a", "b"]))


@pytest.mark.parametrize("status", StepStatus, ids=lambda status: status.value)
def test_every_state_has_a_mark_and_a_word_not_only_a_colour(status: StepStatus) -> None:
    text = Reader(result_html(result_of(StepResult("a", status)))).text
    assert f"{STATUS_STYLES[status].mark} {STATUS_STYLES[status].word}" in text


def test_a_row_tells_value_error_or_reason() -> None:
    rows = (
        StepResult("a", StepStatus.COMPLETED, StoredValue.of([1, 2]), seconds=0.5),
        StepResult("b", StepStatus.FAILED, error_type="KeyError", error="no"),
        StepResult("c", StepStatus.SKIPPED, reason="b failed"),
        StepResult("d", StepStatus.COMPLETED, StoredValue.unstorable("output.fn: a function")),
        StepResult("e", StepStatus.COMPLETED, StoredValue.from_blob(b"damaged", "d")),
    )
    text = Reader(result_html(result_of(*rows))).text
    for part in (
        "[1, 2] 0.5 s",
        "KeyError: no",
        "b failed",
        "(not stored: output.fn: a function)",
        "(cannot be read: A stored value cannot be read",
    ):
        assert part in text


def test_a_mapped_step_tells_how_many_items_are_done() -> None:
    done, failed = ItemResult("0", 0, StepStatus.CACHED), ItemResult("1", 1, StepStatus.FAILED)
    step = StepResult("m", StepStatus.RUNNING, items={"0": done, "1": failed}, items_total=1000)
    assert "1 of 1,000 items" in result_html(result_of(step))
    assert "1 of 2 items" in result_html(result_of(StepResult("m", items={"0": done, "1": failed})))


def test_many_steps_are_cut_with_a_note() -> None:
    steps = [StepResult(f"s{number}") for number in range(MAX_STEPS + 1234)]
    page = Reader(result_html(result_of(*steps)))
    assert page.tags.count("tr") == MAX_STEPS + 1
    assert "and 1,234 more steps: see to_frame()" in page.text


def test_warnings_are_shown_and_an_empty_result_has_no_table() -> None:
    page = Reader(result_html(result_of(warnings=["careful & slow"])))
    assert "⚠ careful & slow" in page.text
    assert "table" not in page.tags


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</td></tr></table><h1>",
    "<!-- <b>",
    "<b>unclosed",
    "&lt;script&gt;",
    "javascript:alert(1)",
    "\x1b[31m\x00\x07",
    "\u202egnp.exe",
    "\ud800",
    "{{ 7 * 7 }}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text_wherever_it_comes_from(text: str) -> None:
    class Hostile:
        def __repr__(self) -> str:
            return text

    steps = (
        StepResult(text, StepStatus.COMPLETED, StoredValue.of(text)),
        StepResult("b" + text, StepStatus.FAILED, error_type=text, error=text),
        StepResult("c", StepStatus.SKIPPED, reason=text),
        StepResult("d", StepStatus.COMPLETED, StoredValue.of({text: Hostile()})),
        StepResult("e", StepStatus.COMPLETED, StoredValue.unstorable(f"{text}: {text}")),
    )
    html = result_html(result_of(*steps, pipeline_name=text, warnings=[text]))
    page = Reader(html)
    assert set(page.tags) <= {"div", "span", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes <= {"style", "aria-hidden", "class"}
    assert html.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", html)


def test_a_repr_that_fails_does_not_take_the_page_with_it() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    text = Reader(
        result_html(result_of(StepResult("a", StepStatus.COMPLETED, StoredValue.of(Broken()))))
    ).text
    assert "Broken (its repr fails: RuntimeError)" in text


def test_colours_come_from_the_theme_with_fallbacks() -> None:
    """A fixed colour of text or ground would be unreadable in one of the themes."""
    html = result_html(
        result_of(*(StepResult(status.value, status) for status in StepStatus), warnings=["w"])
    )
    for name, colour in re.findall(r"[; \"](color|background(?:-color)?):([^;\"]+)", html):
        assert name == "color"
        assert colour == "inherit" or re.fullmatch(r"var\(--jp-[a-z0-9-]+,(#[0-9a-f]{6}|inherit)\)", colour)


def test_the_notebook_shows_this() -> None:
    result = result_of(StepResult("a"))
    assert result._repr_html_() == result_html(result)


def test_a_budget_is_reported_on_top() -> None:
    text = Reader(result_html(result_of(StepResult("a"), total_cost=0.05, budget="0.1 USD"))).text
    assert "budget: $0.0500 of $0.10 spent" in text
