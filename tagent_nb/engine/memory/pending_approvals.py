"""What a run holds for a person, as a fold over its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tagent_nb.events import ApprovalGiven, ApprovalRequested, Output, StepEvent
from tagent_nb.pipeline import Unit


@dataclass(slots=True)
class Held:
    """What waits for a decision.

    Attributes:
        request: What was asked.
        given: What was said; ``None`` until then.
        check: Gives edited arguments of a tool as it takes them; ``None`` when nobody is there to know.
        parameters: JSON Schema of these arguments.
        place: Its number among the requests of the run, which no clock has a say in.
    """

    request: ApprovalRequested
    given: ApprovalGiven | None = None
    check: Callable[[Any], Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    place: int = 0

    @property
    def unit(self) -> Unit:
        """What waits, as a key."""
        return (self.request.step, self.request.item, self.request.call)


class HeldValues:
    """Values that wait for a decision, and what was said of values that were sent back."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str | None], dict[str, Held]] = {}
        self._requests = 0
        self._refused: dict[tuple[str, str | None], list[tuple[Output, str]]] = {}

    def __bool__(self) -> bool:
        return bool(self._held or self._refused)

    def get(self, unit: Unit) -> Held | None:
        """What is held under this key, decided or not."""
        return self._held.get(unit[:2], {}).get(unit[2])

    def undecided(self) -> list[Held]:
        """What waits for a decision, oldest first."""
        every = [held for calls in list(self._held.values()) for held in list(calls.values())]
        return sorted((held for held in every if held.given is None), key=lambda held: held.place)

    def refused(self, step: str, item: str | None) -> list[tuple[Output, str]]:
        """Values of a unit without an end that were sent back, with the reasons."""
        return self._refused.get((step, item), [])

    def drop(self, unit: Unit) -> None:
        """Hold this no longer: what is asked now is another question."""
        self._held.get(unit[:2], {}).pop(unit[2], None)

    # -- the fold ---------------------------------------------------------------------------

    def asked(self, event: ApprovalRequested) -> None:
        """Take a request in; it replaces one under the same key."""
        self._requests += 1
        held = Held(event, place=self._requests)
        self._held.setdefault((event.step, event.item), {})[event.call] = held

    def answered(self, event: ApprovalGiven) -> None:
        """Take a decision in, if it is about the value that is held."""
        held = self.get((event.step, event.item, event.call))
        if held is None or held.request.output.digest != event.digest:
            return
        held.given = event
        if event.verdict == "retry" and not event.call:
            self._refused.setdefault((event.step, event.item), []).append((held.request.output, event.reason))
        if event.used and event.call:
            # The tool is called from here on: should that be cut short, nobody has approved it again.
            self.drop(held.unit)

    def let_go(self, event: StepEvent, *, over: bool) -> None:
        """Nothing of this unit is held any more; without ``over``, it tries again."""
        self._held.pop((event.step, event.item), None)
        if over:
            self._refused.pop((event.step, event.item), None)
