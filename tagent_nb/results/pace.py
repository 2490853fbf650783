"""How far mapped steps are, counted as often as is worth it, and how fast their items have ended lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from tagent_nb.pipeline import StepStatus
from tagent_nb.results.progress import MapProgress, progress_of
from tagent_nb.results.records import StepResult

WINDOW = 15.0
"""Seconds that a rate looks back."""
SHORTEST = 1.0
"""Seconds before which no rate is given."""
REST = 25.0
"""Times as long as a step's items took to count nothing of it is counted again: at most 4 % of the time."""
_BUSY = (StepStatus.RUNNING, StepStatus.WAITING)


class Pace:
    """The mapped steps of one run, as what shows them live counts them."""

    def __init__(self) -> None:
        # By step: what was counted, of which state, when, and how long that took.
        self._counted: dict[str, tuple[MapProgress, object, float, float]] = {}
        # By step: moments, and how many items had ended.
        self._ended: dict[str, deque[tuple[float, int]]] = {}

    def of(self, steps: Mapping[str, StepResult], now: float) -> dict[str, MapProgress]:
        """How far the mapped steps are.

        Args:
            steps: States by name.
            now: Seconds of a monotonic clock.
        """
        return {name: self._of(step, now) for name, step in steps.items() if step.items_total is not None}

    def _of(self, step: StepResult, now: float) -> MapProgress:
        state = (step.status, step.ended_at, id(step.items), step.items_total)
        if step.name in self._counted:
            progress, before, at, took = self._counted[step.name]
            if before == state and (step.status not in _BUSY or now < at + REST * took):
                return progress
        began = time.perf_counter()
        progress = progress_of(step)
        took = time.perf_counter() - began
        progress = replace(progress, rate=self._rate(step, progress.done, now))
        self._counted[step.name] = progress, state, now, took
        return progress

    def _rate(self, step: StepResult, done: int, now: float) -> float | None:
        """Items that ended in a second of the last :data:`WINDOW`. What was done before is no speed."""
        if step.status not in _BUSY:
            self._ended.pop(step.name, None)
            return None
        seen = self._ended.setdefault(step.name, deque())
        seen.append((now, done))
        while len(seen) > 2 and seen[1][0] <= now - WINDOW:
            seen.popleft()
        first, before = seen[0]
        return (done - before) / (now - first) if now - first >= SHORTEST else None
