"""How fast a mapped step goes, as what shows it live counts it."""

from __future__ import annotations

import pytest

from tagent_nb.pipeline import StepStatus
from tagent_nb.results import ItemResult, MapProgress, StepResult
from tagent_nb.results import pace as module
from tagent_nb.results.pace import WINDOW, Pace


class Map:
    """A mapped step of which items end as a test says."""

    def __init__(self, done: int = 0) -> None:
        self.step = StepResult("m", StepStatus.RUNNING, items={}, items_total=1000)
        self.end(done)

    def end(self, number: int) -> None:
        items = self.step.items
        assert items is not None
        for key in range(len(items), len(items) + number):
            items[str(key)] = ItemResult(str(key), key, StepStatus.COMPLETED)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes no time."""
    monkeypatch.setattr(module, "REST", 0.0)


def look(pace: Pace, mapped: Map, now: float) -> MapProgress:
    return pace.of({"m": mapped.step, "plain": StepResult("plain")}, now)["m"]


def test_the_rate_is_that_of_items_that_ended_meanwhile() -> None:
    """Those of an earlier session are no speed."""
    pace, mapped = Pace(), Map(done=600)
    assert look(pace, mapped, 0.0).rate is None
    mapped.end(5)
    assert look(pace, mapped, 0.5).rate is None  # too soon to say
    mapped.end(15)
    assert look(pace, mapped, 2.0).rate == 10.0
    assert look(pace, mapped, 2.0).left == pytest.approx(38.0)


def test_the_rate_looks_back_a_while_only() -> None:
    pace, mapped = Pace(), Map()
    look(pace, mapped, 0.0)
    mapped.end(500)
    assert look(pace, mapped, 1.0).rate == 500.0
    for second in range(2, 40):
        mapped.end(2)
        rate = look(pace, mapped, float(second)).rate
    assert rate == pytest.approx(2.0)
    assert look(pace, mapped, 39.0 + WINDOW).rate == 0.0


def test_a_step_that_has_ended_has_no_rate_and_is_counted_once() -> None:
    pace, mapped = Pace(), Map()
    look(pace, mapped, 0.0)
    mapped.end(10)
    mapped.step.status = StepStatus.COMPLETED
    ended = look(pace, mapped, 5.0)
    assert (ended.done, ended.rate) == (10, None)
    assert look(pace, mapped, 6.0) is ended
    mapped.step.status = StepStatus.RUNNING  # it is carried on
    mapped.end(1)
    assert look(pace, mapped, 7.0).done == 11


def test_counting_many_items_takes_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What took long to count is counted again only after a multiple of that time."""
    monkeypatch.setattr(module, "REST", 25.0)
    clock = iter([0.0, 0.1, 0.0, 0.1])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    pace, mapped = Pace(), Map()
    first = look(pace, mapped, 10.0)
    mapped.end(10)
    assert look(pace, mapped, 12.4) is first
    assert look(pace, mapped, 12.6).done == 10
