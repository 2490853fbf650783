"""How far a mapped step is, in numbers and in words, and as HTML and text."""

from __future__ import annotations

from typing import Any

import pytest
from html_safety import HOSTILE, Reader, assert_safe

from tagent_nb.pipeline import StepStatus
from tagent_nb.results import ItemResult, MapProgress, RunView, StepResult, map_progress, run_html, run_text

DONE, CACHED, FAILED = StepStatus.COMPLETED, StepStatus.CACHED, StepStatus.FAILED
SKIPPED, RUNNING = StepStatus.SKIPPED, StepStatus.RUNNING


def mapped(*statuses: StepStatus, status: StepStatus = RUNNING, total: int = 10, **fields: Any) -> StepResult:
    items = {str(number): ItemResult(str(number), number, each) for number, each in enumerate(statuses)}
    return StepResult("m", status, items=items, items_total=total, **fields)


def progress(step: StepResult) -> MapProgress:
    return map_progress({"m": step})["m"]


def test_items_are_counted_by_how_they_ended() -> None:
    """One that was stopped has not ended; a step that is not mapped has no items."""
    step = mapped(DONE, FAILED, RUNNING, StepStatus.CANCELLED, CACHED, SKIPPED, DONE)
    counted = map_progress({"m": step, "e": StepResult("e", items_total=5), "p": StepResult("p")})
    assert counted.keys() == {"m", "e"}
    assert (counted["m"].ended, counted["m"].done, counted["m"].failed) == ((2, 1, 1, 1), 5, 1)
    assert counted["e"] == MapProgress(5)


def test_failures_are_ranked_by_kind_with_the_last_items_of_each() -> None:
    step = mapped(*[FAILED] * 9)
    for number, item in enumerate((step.items or {}).values()):
        item.error_type, item.error = (
            ("Late", "Step 'm': it\ntook long") if number == 3 else ("Bad", f"no {number}")
        )
    first, second = progress(step).failures
    assert (first.label, second.label) == ("8 x Bad", "1 x Late")
    assert first.text.splitlines() == [*(f"item {n}: no {n}" for n in range(4, 9)), "and 3 more"]
    assert second.text == "item 3: it took long"
    assert progress(step).kinds == "8 x Bad, 1 x Late"


def test_what_a_step_will_cost_is_what_its_paid_items_cost() -> None:
    """Where no item was paid or is left, or a price is unknown, nothing is said."""
    assert progress(mapped(DONE, FAILED, CACHED, cost=0.2)).cost_at_end == pytest.approx(0.2 + 0.1 * 7)
    for step in (
        mapped(CACHED, CACHED, cost=0.2),
        mapped(DONE, DONE, total=2, cost=0.2),
        mapped(DONE, cost=None),
        mapped(DONE, cost=0.0),
    ):
        assert progress(step).cost_at_end is None


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (40.0, "40 items/s · about 25 s left"),
        (4.25, "4.2 items/s · about 3 min 55 s left"),
        (0.05, "3.0 items/min · about 5 h 33 min left"),
    ],
)
def test_a_step_at_work_says_how_fast_it_goes(rate: float, words: str) -> None:
    shown = MapProgress(1200, (100, 50, 40, 10), rate=rate, cost_at_end=1.5).words(RUNNING)
    assert (
        " · ".join(shown)
        == f"200/1,200 items, 50 cached, 40 failed, 10 skipped · {words} · about $1.50 at the end"
    )


def test_what_is_not_known_or_over_is_not_said() -> None:
    assert MapProgress(20, (5, 0, 0, 0)).words(RUNNING) == ["5/20 items"]
    assert MapProgress(20, (5, 0, 0, 0), rate=0.0).words(RUNNING) == ["5/20 items"]
    assert MapProgress(20, (20, 0, 0, 0), rate=3.0, cost_at_end=1.0).words(DONE) == ["20/20 items"]
    assert MapProgress(20, (0, 20, 0, 0)).words(CACHED) == ["20/20 items"]


def view(step: StepResult) -> RunView:
    steps = {"m": step, "other": StepResult("other")}
    return RunView("reviews", steps, "running", 1.0, items=map_progress(steps))


def test_the_table_has_a_bar_and_failures_one_click_away() -> None:
    step = mapped(DONE, DONE, CACHED, FAILED, SKIPPED)
    failed = (step.items or {})["3"]
    failed.error_type, failed.error, failed.index = HOSTILE, HOSTILE, HOSTILE
    html = run_html(view(step))
    assert_safe(html)
    assert 'aria-valuenow="5"' in html
    assert [f"width:{share}%" in html for share in ("20.00", "10.00")] == [True, True]
    assert html.count("<details>") == 1
    assert "5/10 items, 1 cached, 1 failed, 1 skipped" in Reader(html).text
    # Half of one of two steps is behind the run.
    assert 'aria-valuenow="25" aria-valuemin="0" aria-valuemax="100" aria-label="progress"' in html


def test_a_step_without_items_has_no_bar() -> None:
    assert 'aria-label="items"' not in run_html(view(mapped(total=0)))


def test_the_text_names_the_kinds() -> None:
    step = mapped(DONE, FAILED, FAILED, SKIPPED, status=DONE)
    for item in (step.items or {}).values():
        item.error_type = "ValueError" if item.status is FAILED else ""
    text = run_text(view(step))
    assert "2 of 10 items failed (2 x ValueError), 1 of 10 items skipped" in text
