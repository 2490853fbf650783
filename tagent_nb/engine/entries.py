"""What a run's memory holds of each step, and how it is put in order."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tagent_nb.pipeline.endings import ending
from tagent_nb.pipeline.models import StepStatus
from tagent_nb.pipeline.result import StepResult


@dataclass(frozen=True, slots=True)
class StepMemoryEntry:
    """A step's recorded result.

    Attributes:
        data: The step's value.
        timestamp: When it was recorded (UTC).
        execution_id: Id of the run that recorded it.
        dependencies_used: The steps it read, as its fingerprint names them.
        metadata: Model, tool calls and the like.
    """

    step_name: str
    pipeline_id: str
    data: Any
    timestamp: datetime
    execution_id: str
    dependencies_used: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def new_run_id() -> str:
    """An id that sorts by time and is safe in paths and keys."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def error_text(step: StepResult) -> str:
    """Type and message of a failed step, and the user's own traceback lines if there are any."""
    head = f"{step.error_type}: {step.error}"
    return f"{head}\n{step.traceback}".rstrip()


def inputs_of(components: Mapping[str, str]) -> list[str]:
    """The steps that a fingerprint names as inputs."""
    names = (
        name.removeprefix("input:").partition(".")[0] for name in components if name.startswith("input:")
    )
    return list(dict.fromkeys(names))


def reset(step: StepResult) -> None:
    """Make a step pending again; what it has cost so far stays, and how it ended is its reason."""
    step.reason = last_time(step)
    step.status = StepStatus.PENDING
    step.output = None
    step.ended_at = None
    step.error_type = step.error = step.traceback = ""
    for item in (step.items or {}).values():
        if not item.status.has_value:
            item.status = StepStatus.PENDING


def last_time(step: StepResult) -> str:
    """:func:`ending` as a reason to run it again; that of an earlier sitting if it has not run since."""
    if step.status is StepStatus.PENDING:
        return step.reason
    ended = ending(step)
    return f"the last time {ended}" if ended else ""


def order_items(step: StepResult, metadata: Mapping[str, Any]) -> None:
    """Put the items into the source's order with its labels; items that are gone go."""
    keys = metadata.get("item_keys")
    if keys is None or step.items is None:
        return
    labels = metadata["item_index"]
    # Labels that could not be stored are a text that says so; the keys are made of them.
    labels = dict(zip(keys, labels if isinstance(labels, list) else keys, strict=True))
    known = step.items
    step.items = {key: known[key] for key in keys if key in known}
    for key, item in step.items.items():
        item.index = labels[key]


class ItemTimes:
    """Wall time of mapped steps while their own end is not recorded yet, which a killed process never does.

    It goes from the start of the first item that has ended in this sitting to the end of the last one.
    """

    def __init__(self) -> None:
        # Seconds of earlier sittings, first start and last end, by step.
        self._open: dict[str, tuple[float, float, float]] = {}

    def item_ended(self, step: StepResult, at: float, seconds: float) -> None:
        """Count an item that has ended ``at`` some time (seconds since the epoch)."""
        before, first, last = self._open.get(step.name) or (step.seconds, at, at)
        first, last = min(first, at - seconds), max(last, at)
        self._open[step.name] = before, first, last
        step.seconds = before + last - first

    def step_ended(self, step: StepResult, seconds: float) -> None:
        """Count what the step itself says of this sitting, in place of what its items have said."""
        counted = self._open.pop(step.name, None) if self._open else None
        step.seconds = (step.seconds if counted is None else counted[0]) + seconds

    def sitting_ended(self) -> None:
        """Keep what is counted: another process carries on the run."""
        self._open.clear()
