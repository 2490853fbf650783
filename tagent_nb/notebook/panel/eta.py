"""How long a run will still take, from what its steps took before."""

from __future__ import annotations

from collections.abc import Mapping

from tagent_nb.engine import Durations
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import MapProgress, StepResult

__all__ = ["seconds_left"]


def seconds_left(
    steps: Mapping[str, StepResult],
    items: Mapping[str, MapProgress],
    past: Durations,
    now: float,
) -> float | None:
    """Seconds until the end of the run, or ``None`` where that would be a guess.

    A step is expected to take what it took last time; a mapped step that has begun, what its items took
    lately, or else what they took so far; an unknown one, as much as the others on average. The sum is
    multiplied by the pace of earlier runs, in which steps may have overlapped.

    Args:
        steps: States by name.
        items: How far mapped steps are.
        past: What steps took before.
        now: Seconds since the epoch.
    """
    expected: list[float] = []
    unknown = 0
    for name, state in steps.items():
        if state.status.is_final:
            continue
        left = _left(state, items.get(name), past.seconds.get(name), now)
        if left is None:
            unknown += 1
        else:
            expected.append(left)
    if not expected and not unknown:
        return 0.0
    if len(expected) < unknown:
        return None
    return (sum(expected) + unknown * sum(expected) / len(expected)) * past.pace


def _left(state: StepResult, progress: MapProgress | None, before: float | None, now: float) -> float | None:
    """Seconds of one step."""
    begun = state.started_at is not None and state.status in (StepStatus.RUNNING, StepStatus.WAITING)
    elapsed = now - (state.started_at or now) if begun else 0.0
    if progress is not None and progress.done:
        left = progress.left
        return elapsed / progress.done * (progress.total - progress.done) if left is None else left
    return None if before is None else max(0.0, before - elapsed)
