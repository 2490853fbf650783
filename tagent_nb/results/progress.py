"""How far a mapped step is: items by how they ended, how fast it goes, what it costs, and what fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tagent_nb.formatting import cost_text, kinds_text, one_line, seconds_text
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.records import ItemResult, StepResult

MAX_KINDS, MAX_SHOWN = 5, 5
"""Kinds of failures that are shown, and failed items of each: the last ones."""

BAR = (StepStatus.COMPLETED, StepStatus.CACHED, StepStatus.FAILED, StepStatus.SKIPPED)
"""How an item may have ended, in the order of the pieces of a bar."""


@dataclass(frozen=True)
class FailureKind:
    """Items that failed with the same type of error.

    Attributes:
        name: The type.
        count: How many they are.
        last: The last ones, as label and message.
    """

    name: str
    count: int
    last: tuple[tuple[Any, str], ...]

    @property
    def label(self) -> str:
        """``14 x ValidationError``."""
        return kinds_text({self.name: self.count})

    @property
    def text(self) -> str:
        """A line for each of the last ones, and how many there are besides."""
        lines = [f"item {label}: {one_line(message, 300)}" for label, message in self.last]
        more = self.count - len(self.last)
        return "\n".join([*lines, *([f"and {more:,} more"] if more else [])])


@dataclass(frozen=True)
class MapProgress:
    """How far a mapped step is.

    Attributes:
        total: Items that there are.
        ended: How many of them have ended, in the order of :data:`BAR`. One that was stopped has not.
        failures: What failed, by kind, the most frequent first.
        rate: Items that end in a second, lately; ``None`` where that is not known.
        cost_at_end: USD of the step if what is left costs what the items did that were paid so far; ``None``
            where that is not known, and at the end.
    """

    total: int
    ended: tuple[int, int, int, int] = (0, 0, 0, 0)
    failures: tuple[FailureKind, ...] = ()
    rate: float | None = None
    cost_at_end: float | None = None

    @property
    def done(self) -> int:
        """Items that have ended."""
        return sum(self.ended)

    @property
    def failed(self) -> int:
        """Items that have failed."""
        return self.ended[2]

    @property
    def left(self) -> float | None:
        """Seconds until all items have ended, if it goes on like this."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def kinds(self) -> str:
        """The failures in a few words."""
        return kinds_text({kind.name: kind.count for kind in self.failures})

    def words(self, status: StepStatus) -> list[str]:
        """What is to be said of it beside its bar.

        Args:
            status: Of the step: how fast it goes is said while it is at work.
        """
        _, cached, failed, skipped = self.ended
        counts = [
            f"{self.done:,}/{self.total:,} items",
            *([f"{cached:,} cached"] if cached and status is not StepStatus.CACHED else []),
            *([f"{failed:,} failed"] if failed else []),
            *([f"{skipped:,} skipped"] if skipped else []),
        ]
        words = [", ".join(counts)]
        if status not in (StepStatus.RUNNING, StepStatus.WAITING):
            return words
        if self.rate and self.left:
            words += [_rate_text(self.rate), f"about {seconds_text(self.left)} left"]
        if self.cost_at_end is not None:
            words.append(f"about {cost_text(self.cost_at_end)} at the end")
        return words


def map_progress(steps: Mapping[str, StepResult]) -> dict[str, MapProgress]:
    """How far the mapped steps are, by name."""
    return {name: progress_of(step) for name, step in steps.items() if step.items_total is not None}


def progress_of(step: StepResult) -> MapProgress:
    """How far a mapped step is. Its run may go on in another thread meanwhile."""
    items = list((step.items or {}).values())
    statuses = [item.status for item in items]
    # By identity: the hash of an enum is Python, and there may be many items, ten times a second.
    counts = Counter(map(id, statuses))
    ended = tuple(counts[id(status)] for status in BAR)
    failed = [item for item in items if item.status is StepStatus.FAILED] if ended[2] else []
    total = step.items_total or 0
    return MapProgress(
        total,
        ended,  # type: ignore[arg-type]
        _failures(step.name, failed),
        cost_at_end=_cost_at_end(step, ended[0] + ended[2], total - sum(ended)),
    )


def _failures(step: str, failed: list[ItemResult]) -> tuple[FailureKind, ...]:
    prefix = f"Step {step!r}: "  # its row says that already
    by_kind: dict[str, list[ItemResult]] = {}
    for item in failed:
        by_kind.setdefault(item.error_type, []).append(item)
    ranked = sorted(by_kind.items(), key=lambda kind: -len(kind[1]))
    return tuple(
        FailureKind(
            name,
            len(items),
            tuple((item.index, item.error.removeprefix(prefix)) for item in items[-MAX_SHOWN:]),
        )
        for name, items in ranked[:MAX_KINDS]
    )


def _cost_at_end(step: StepResult, paid: int, left: int) -> float | None:
    if not step.cost or not paid or left <= 0:
        return None
    return step.cost + step.cost / paid * left


def _rate_text(rate: float) -> str:
    if rate < 1:
        return f"{60 * rate:.1f} items/min"
    return f"{rate:,.1f} items/s" if rate < 10 else f"{rate:,.0f} items/s"
