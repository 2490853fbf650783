"""A run at one moment: what its table and its text say."""

from __future__ import annotations

import pytest
from html_safety import HOSTILE, Reader, assert_safe

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import Share, StepStatus
from tagent_nb.results import (
    MapProgress,
    PipelineResult,
    RunView,
    StepResult,
    head_html,
    result_view,
    run_html,
    run_text,
)


def text_of(html: str) -> str:
    return " ".join(Reader(html).text.split())


def step(name: str, status: StepStatus, **fields: object) -> StepResult:
    return StepResult(name, status, **fields)  # type: ignore[arg-type]


def view(*steps: StepResult, phase: str = "running", **fields: object) -> RunView:
    return RunView("reviews", {step_result.name: step_result for step_result in steps}, phase, 31.0, **fields)  # type: ignore[arg-type]


def test_the_head_sums_up_steps_seconds_tokens_and_dollars() -> None:
    first = step("a", StepStatus.COMPLETED, usage=TokenUsage(1000, 200), cost=0.02)
    two = step("b", StepStatus.CACHED, saved_cost=0.5)
    three = step("c", StepStatus.FAILED, usage=TokenUsage(10, 0), cost=None)
    text = text_of(run_html(view(first, two, three, step("d", StepStatus.RUNNING))))
    assert (
        "2 of 4 steps, 1 failed · 31 s · 1.2k tokens · $0.0200 · 1 step without a known price · $0.50 saved"
        in text
    )


def test_an_unknown_price_alone_is_never_shown_as_zero() -> None:
    first = step("a", StepStatus.COMPLETED, usage=TokenUsage(10, 0), cost=None)
    text = text_of(run_html(view(first)))
    assert "$0" not in text
    assert "1 step without a known price" in text
    assert "$?" in text


def test_python_steps_alone_have_no_columns_for_tokens() -> None:
    assert "tokens" not in text_of(run_html(view(step("a", StepStatus.COMPLETED, seconds=1.0))))


def test_a_row_tells_items_attempts_reason_error_and_what_the_cache_saved() -> None:
    first = step("a", StepStatus.RUNNING, attempts=2, reason="goal changed", seconds=12.0)
    two = step("b", StepStatus.FAILED, error_type="ValueError", error="no\n<b>")
    three = step("c", StepStatus.CACHED, saved_cost=0.25)
    four = step("d", StepStatus.FAILED, error="plain")
    text = text_of(run_html(view(first, two, three, four, items={"a": MapProgress(10, (3, 0, 1, 0))})))
    assert "4/10 items, 1 failed · attempt 2 · goal changed 12 s" in text
    assert "ValueError: no <b>" in text
    assert "saved $0.25" in text
    assert "plain" in text


def test_items_without_failures_say_nothing_of_failures() -> None:
    text = text_of(run_html(view(step("a", StepStatus.RUNNING), items={"a": MapProgress(10, (4, 0, 0, 0))})))
    assert "4/10 items" in text
    assert "failed" not in text


def test_tracebacks_and_texts_are_there_folded() -> None:
    first = step("a", StepStatus.COMPLETED)
    two = step("b", StepStatus.FAILED, error="x", traceback="line 3 of the cell")
    twin = run_html(view(first, two, texts={"a": "x" * 700 + "end", "b": "printed by b"}))
    assert twin.count("<details>") == 3
    assert "x" * 597 + "end" in twin
    assert "printed by b" in twin
    assert "line 3 of the cell" in twin


def test_the_head_alone_says_how_the_whole_goes_and_how_long_it_still_takes() -> None:
    text = text_of(
        head_html(view(step("a", StepStatus.RUNNING), left=90.0, note="Go on.", warnings=["Careful."]))
    )
    assert "0 of 1 step · 31 s · about 1 min 30 s left" in text
    assert "Go on." in text
    assert "Careful." in text
    assert "state" not in text


def test_progress_is_readable_by_screen_readers() -> None:
    html = run_html(view(step("a", StepStatus.COMPLETED), step("b", StepStatus.RUNNING)))
    assert 'role="progressbar" aria-valuenow="50"' in html


def test_what_failed_or_was_stopped_is_not_counted_as_done() -> None:
    """A skipped step is behind the run as well: a run whose condition was false is at its end."""
    ends = (StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SKIPPED)
    html = run_html(view(*(step(end.value, end) for end in ends), phase="cancelled"))
    assert "1 of 4 steps, 1 failed, 1 cancelled, 1 skipped" in text_of(html)
    assert 'aria-valuenow="50"' in html


@pytest.mark.parametrize("phase", ["running", "paused", "completed", "failed", "cancelled", "refused"])
def test_each_phase_is_reported_by_word(phase: str) -> None:
    assert phase in text_of(run_html(view(phase=phase)))


def test_hostile_texts_stay_text() -> None:
    hostile = step(
        "a", StepStatus.FAILED, error=HOSTILE, error_type=HOSTILE, reason=HOSTILE, traceback=HOSTILE
    )
    shown = RunView(HOSTILE, {"a": hostile}, "failed", 1.0, HOSTILE, {"a": HOSTILE}, warnings=[HOSTILE])
    assert_safe(run_html(shown))
    assert_safe(head_html(shown))


def test_the_text_twin_has_one_line_a_step() -> None:
    first = step("a", StepStatus.COMPLETED, seconds=1.0, usage=TokenUsage(10, 5), cost=0.01)
    two = step("b", StepStatus.FAILED, error_type="E", error="bad")
    three = step("c", StepStatus.SKIPPED, reason="step 'b' failed")
    text = run_text(view(first, two, three, phase="failed", note="Go on.", warnings=["Careful."]))
    assert text.splitlines() == [
        "reviews: failed (1 of 3 steps, 1 failed, 1 skipped, 31 s, 15 tokens, $0.0100)",
        "  ✓ a: completed, 1.0 s",
        "  ✗ b: failed, E: bad",
        "  ⊘ c: skipped, step 'b' failed",
        "Go on.",
        "Careful.",
    ]


@pytest.mark.parametrize(
    ("success", "cancelled", "status", "phase"),
    [
        (True, False, StepStatus.COMPLETED, "completed"),
        (False, True, StepStatus.CANCELLED, "cancelled"),
        (False, False, StepStatus.FAILED, "failed"),
        (False, False, StepStatus.SKIPPED, "failed"),
        (False, False, StepStatus.WAITING, "waiting"),
    ],
)
def test_the_phase_of_a_result(success: bool, cancelled: bool, status: StepStatus, phase: str) -> None:
    result = PipelineResult(
        "reviews", success, 2.0, cancelled=cancelled, steps={"a": step("a", status)}, warnings=["w"]
    )
    shown = result_view(result, "note", {"a": "text"})
    assert (shown.phase, shown.seconds, shown.note) == (phase, 2.0, "note")
    assert list(shown.warnings) == ["w"]


def test_a_budget_shows_what_is_spent_and_reserved_of_it() -> None:
    shares = (Share("usd", 0.05, 0.025, 0.1), Share("requests", 30, 0, 20), Share("tokens", 0, 0, 0))
    html = run_html(view(step("a", StepStatus.RUNNING), budget=shares))
    assert_safe(html)
    text = text_of(html)
    assert "budget: $0.0500 of $0.10 spent, $0.0250 reserved" in text
    assert "budget: 30 requests of 20 requests spent" in text
    assert "width:50.0%" in html
    assert "width:25.0%" in html
    assert "width:100.0%" in html
    assert "budget: 0 tokens of 0 tokens spent" in run_text(view(budget=shares))


def test_a_result_s_view_has_its_budget() -> None:
    used = TokenUsage(10, 5, requests=1)
    result = PipelineResult("p", True, 1.0, 0.05, budget="0.1 USD, 20 requests", token_usage={"a": used})
    assert result_view(result).budget == [Share("usd", 0.05, 0, 0.1), Share("requests", 1, 0, 20)]


def test_a_step_that_waits_says_for_what() -> None:
    assert "waits for a turn" in text_of(run_html(view(step("a", StepStatus.WAITING, waits_for="a turn"))))


def test_an_error_without_words_and_failed_items_are_reported() -> None:
    """In text and in HTML."""
    pipeline = Pipeline("seen")

    @pipeline.task
    def load() -> list[int]:
        return [1, 2]

    @pipeline.task(map_over="load", min_success=0.5, max_retries=0)
    def half(item: int) -> int:
        return 1 // (item - 1)

    @pipeline.task(max_retries=0)
    def silent() -> None:
        raise LookupError

    view = result_view(PipelineExecutor(pipeline).run())
    assert "half: completed, " in run_text(view)
    assert "1 of 2 items failed" in run_text(view)
    assert "silent: failed" in run_text(view)
    assert run_text(view).count("LookupError") == 1
    assert "1 failed" in run_html(view)
    assert "LookupError" in run_html(view)
