"""When too many items of a step fail: the fewest that must succeed, and when it stops early."""

from __future__ import annotations

import math
from collections import Counter

from tagent_nb.errors import BudgetExceededError
from tagent_nb.events import Event, StepFailed, StepFinished
from tagent_nb.formatting import count, kinds_text
from tagent_nb.pipeline import ENDED_FOR_SHARE, PipelineStep


class FailureLimit:
    """Counts how the items of a mapped step end in this session, and says when there is no point in more.

    What a record or the cache answers for says nothing about how items go now, and is not counted; neither is
    what a budget that is used up keeps from being asked.

    Args:
        step: The step.

    Attributes:
        is_reached: Whether more items have failed than ``max_failures`` allows: none is to start any more.
    """

    def __init__(self, step: PipelineStep) -> None:
        self._most = step.max_failures
        self._ran = 0
        self._failed = 0
        self._kinds: Counter[str] = Counter()
        self._first: StepFailed | None = None
        self.is_reached = False

    def note(self, final: Event) -> None:
        """Count the last event of an item."""
        if self._most is None:
            return
        if isinstance(final, StepFailed):
            if final.error_type == BudgetExceededError.__name__:
                return
            self._failed += 1
            self._kinds[final.error_type] += 1
            self._first = self._first or final
        elif not isinstance(final, StepFinished):
            return
        self._ran += 1
        if isinstance(self._most, int):
            self.is_reached = self.is_reached or self._failed > self._most
        elif self._ran >= ENDED_FOR_SHARE:
            self.is_reached = self.is_reached or self._failed > self._most * self._ran

    def message(self, left: int) -> str:
        """Why the step has stopped: kinds of failures, the first of them, and how to go on.

        Args:
            left: Items that were not begun.
        """
        first, most = self._first, self._most
        assert first is not None
        assert most is not None
        # The example comes last: what is long is cut at its end where it is shown.
        return (
            f"Stopped early: {self._failed} of {count(self._ran, 'item')} that ran failed "
            f"({kinds_text(self._kinds)}), and max_failures is {most:g}. {count(left, 'item')} "
            f"{'was' if left == 1 else 'were'} not begun. What is done is kept: mend what fails, or raise "
            "max_failures (--max-failures), then go on with resume=True (--resume). "
            f"The first is item {first.item!r}: {first.error_type}: {first.message}"
        )


def least_good(share: float, number: int) -> int:
    """How many of so many items must succeed for ``min_success`` to be reached."""
    return math.ceil(round(share * number, 6))  # 0.55 of 20 is 11, and not what floats make of it


def too_few(good: int, number: int, least: int, share: float, what: str) -> str:
    """Why a step has failed of whose items not enough succeeded.

    Args:
        good: Items that succeeded.
        number: All items that count.
        least: Items that must succeed.
        share: The step's ``min_success``.
        what: What the items are, in the plural.
    """
    if least < number:
        must = f"at least {least:,} must (min_success {share:g})"
    else:
        fewer = math.floor(100 * good / number / 5) * 5
        must = f"all must (--min-success {fewer / 100:g} lets {100 - fewer} % fail)" if fewer else "all must"
    return f"{good:,} of {number:,} {what} succeeded; {must}."
