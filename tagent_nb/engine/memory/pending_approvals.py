"""What of a run waits for an approval, as a fold over its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tagent_nb.events import ApprovalGiven, ApprovalRequested, Output, StepEvent
from tagent_nb.pipeline import Unit


@dataclass(slots=True)
class PendingApproval:
    """What waits for a decision.

    Attributes:
        request: What is to be approved.
        decision: How it was decided; ``None`` until then.
        check: Gives edited arguments of a tool as it takes them; ``None`` where no run is there to do it.
        parameters: JSON Schema of these arguments.
        number: Its number among the requests of the run, which does not depend on any clock.
    """

    request: ApprovalRequested
    decision: ApprovalGiven | None = None
    check: Callable[[Any], Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    @property
    def unit(self) -> Unit:
        """What waits, as a key."""
        return (self.request.step, self.request.item, self.request.call)


class PendingApprovals:
    """Values that wait for a decision, and reasons for which values were sent back."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str | None], dict[str, PendingApproval]] = {}
        self._requests = 0
        self._refused: dict[tuple[str, str | None], list[tuple[Output, str]]] = {}

    def __bool__(self) -> bool:
        return bool(self._pending or self._refused)

    def get(self, unit: Unit) -> PendingApproval | None:
        """What is suspended under this key, decided or not."""
        return self._pending.get(unit[:2], {}).get(unit[2])

    def undecided(self) -> list[PendingApproval]:
        """What waits for a decision, oldest first."""
        every = [pending for calls in list(self._pending.values()) for pending in list(calls.values())]
        return sorted(
            (pending for pending in every if pending.decision is None), key=lambda pending: pending.number
        )

    def refused(self, step: str, item: str | None) -> list[tuple[Output, str]]:
        """Values of a unit without an end that were sent back, with the reasons."""
        return self._refused.get((step, item), [])

    def drop(self, unit: Unit) -> None:
        """Wait for this no longer: what is to be decided now is another question."""
        self._pending.get(unit[:2], {}).pop(unit[2], None)

    # -- the fold ---------------------------------------------------------------------------

    def add(self, event: ApprovalRequested) -> None:
        """Take a request in; it replaces one under the same key."""
        self._requests += 1
        pending = PendingApproval(event, number=self._requests)
        self._pending.setdefault((event.step, event.item), {})[event.call] = pending

    def decide(self, event: ApprovalGiven) -> None:
        """Take a decision in, if it is about the value that is suspended."""
        pending = self.get((event.step, event.item, event.call))
        if pending is None or pending.request.output.digest != event.digest:
            return
        pending.decision = event
        if event.verdict == "retry" and not event.call:
            refused = self._refused.setdefault((event.step, event.item), [])
            refused.append((pending.request.output, event.reason))
        if event.used and event.call:
            # The tool is called from here on: should that be cut short, it is not approved again.
            self.drop(pending.unit)

    def release(self, event: StepEvent, *, over: bool) -> None:
        """Nothing of this unit is suspended any more; without ``over``, it tries again."""
        self._pending.pop((event.step, event.item), None)
        if over:
            self._refused.pop((event.step, event.item), None)
