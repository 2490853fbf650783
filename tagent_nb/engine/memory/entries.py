"""What a run's memory holds of each step, and how it is put in order."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError
from tagent_nb.events import (
    ASKED_ALONE,
    ROWS_IN_CALL,
    Event,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunUnpaused,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepUnblocked,
    StepWaiting,
)
from tagent_nb.pipeline import StepStatus
from tagent_nb.results import ItemResult, StepResult, StepRows, ending
from tagent_nb.serde import schema_hash
from tagent_nb.user_objects import safe_repr

if TYPE_CHECKING:
    from tagent_nb.pipeline import Pipeline, PipelineStep


@dataclass(frozen=True, slots=True)
class StepMemoryEntry:
    """A step's recorded result.

    Attributes:
        data: The step's value.
        timestamp: When it was recorded (UTC).
        execution_id: Id of the run that recorded it.
        dependencies_used: The steps whose values it read.
        metadata: Model, tool calls and the like.
    """

    step_name: str
    pipeline_id: str
    data: Any
    timestamp: datetime
    execution_id: str
    dependencies_used: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


class StepResults(MutableMapping[str, StepMemoryEntry]):
    """The recorded results by step name. To set an entry records its ``data`` for that step.

    Args:
        read: Makes the entry of a step; a ``KeyError`` for one without a result.
        names: The steps that have a result.
        record: Records an entry.
    """

    def __init__(
        self,
        read: Callable[[str], StepMemoryEntry],
        names: Callable[[], list[str]],
        record: Callable[[str, StepMemoryEntry], None],
    ) -> None:
        self._read = read
        self._names = names
        self._record = record

    def __getitem__(self, step_name: str) -> StepMemoryEntry:
        return self._read(step_name)

    def __setitem__(self, step_name: str, entry: StepMemoryEntry) -> None:
        if not isinstance(entry, StepMemoryEntry):
            raise DefinitionError(
                f"The result of step {step_name!r} must be a StepMemoryEntry, not {type(entry).__name__}. "
                f"For a bare value call save_step_result({step_name!r}, value)."
            )
        self._record(step_name, entry)

    def __delitem__(self, step_name: str) -> None:
        raise DefinitionError(
            f"The result of step {step_name!r} is recorded and cannot be deleted. "
            "Save another value for it, or run the step again with force."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return repr(dict(self))


class ExecutionHistory(list[dict[str, Any]]):
    """What happened, in order, as a list of dicts. It is what was recorded, and refuses changes."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise DefinitionError(
            "execution_history is the record of what happened and cannot be changed by hand. "
            "save_step_result() records a result and its entry here; apply() records any event."
        )

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse


STATUS_OF_EVENT: dict[type[Event], StepStatus] = {
    StepStarted: StepStatus.RUNNING,
    StepWaiting: StepStatus.WAITING,
    StepUnblocked: StepStatus.RUNNING,
    StepRetried: StepStatus.WAITING,
    StepFinished: StepStatus.COMPLETED,
    StepCached: StepStatus.CACHED,
    StepFailed: StepStatus.FAILED,
    StepSkipped: StepStatus.SKIPPED,
    StepCancelled: StepStatus.CANCELLED,
}
"""What a unit's status is after an event."""


def history_entry(event: Event) -> dict[str, Any]:
    """An event as an entry of the execution history."""
    step = getattr(event, "step", None)
    return {
        "event": type(event).__name__,
        "step": step,
        "step_name": step,
        "status": _status_word(event),
        "item": getattr(event, "item", None),
        "timestamp": datetime.fromtimestamp(event.at, UTC),
    }


def _status_word(event: Event) -> str | None:
    """The specified word for what an event says of a step or of the run; ``None`` where it says nothing."""
    status = STATUS_OF_EVENT.get(type(event))
    if status is not None:
        return status.value
    if isinstance(event, RunStarted | RunResumed | RunUnpaused):
        return "running"
    if isinstance(event, RunPaused):
        return "paused"
    if isinstance(event, RunFinished):
        if event.cancelled:
            return "cancelled"
        return "waiting" if event.waiting else "completed" if event.success else "failed"
    return None


def new_run_id() -> str:
    """An id that sorts by time and is safe in paths and keys."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def error_text(step: StepResult) -> str:
    """Type and message of a failed step, and the user's own traceback lines if there are any."""
    head = f"{step.error_type}: {step.error}"
    return f"{head}\n{step.traceback}".rstrip()


_INPUT = re.compile(r"input:(\w+)")


def inputs_of(components: Mapping[str, str]) -> list[str]:
    """The steps that a fingerprint names as inputs, as in ``input:load.text`` and ``input:load[0]``."""
    inputs = (_INPUT.match(name) for name in components)
    return list(dict.fromkeys(match[1] for match in inputs if match is not None))


def metadata_of(step: StepResult) -> dict[str, Any]:
    """A step's metadata for people: what it took, and what its runner noted, such as ``model``.

    ``attempts``, ``seconds``, ``input_tokens``, ``output_tokens`` and ``tool_calls`` are those of this run,
    items included; ``cached`` says whether the value came from the cache.
    """
    return {
        "attempts": step.attempts,
        "seconds": step.seconds,
        "cached": step.status is StepStatus.CACHED,
        "input_tokens": step.usage.input_tokens,
        "output_tokens": step.usage.output_tokens,
        "tool_calls": step.usage.tool_calls,
        **step.metadata,
    }


def definition_digests(pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """Digests of what says what each step of a pipeline does, by step and field, those that are set only."""
    return {step.name: _digests(pipeline, step) for step in pipeline.steps}


def _digests(pipeline: Pipeline, step: PipelineStep) -> dict[str, str]:
    fields: dict[str, Any] = {name: getattr(step, name) for name in _DEFINING}
    fields["code"] = None if step.body is None else step.body.source
    fields["when"] = step.when if isinstance(step.when, str | None) else step.when.describe()
    fields["constraints"] = [*pipeline.global_constraints, *step.constraints]
    fields["checks"] = [_named(check) for check in step.checks]
    if step.body is None:
        fields["model"] = _named(pipeline.model if step.model is None else step.model)
        fields["models"] = {role: _named(model) for role, model in step.models.items()}
        fields["instructions"] = pipeline.instructions if step.instructions is None else step.instructions
        fields["tools"] = [_named(tool) for tool in step.tools]
    if step.output_schema is not None:
        fields["output_schema"] = schema_hash(step.output_schema)
    return {
        name: hashlib.sha256(safe_repr(value).encode("utf-8", "replace")).hexdigest()
        for name, value in fields.items()
        if value is not None and not (isinstance(value, list | dict) and not value)
    }


_DEFINING = (
    *("goal", "settings", "agent", "output_mode", "tools_filter", "map_over", "flatten", "samples"),
    *("rows_per_call", "reduce_over", "group_by", "combine", "reduce_tokens"),
)
"""Fields of a step that say what it does, as they are; see :func:`definition_digests` for the others."""


def _named(thing: Any) -> str:
    """A model, tool or check in words that are the same for two that do the same."""
    if thing is None or isinstance(thing, str):
        return str(thing)
    name = getattr(thing, "__qualname__", None) or getattr(thing, "model_name", "")
    return f"{type(thing).__qualname__} {name}"


def reset(step: StepResult) -> None:
    """Make a step pending again; what it has cost so far stays, and how it ended is its reason."""
    step.reason = last_time(step)
    step.status = StepStatus.PENDING
    step.output = None
    step.started_at = step.ended_at = None
    step.error_type = step.error = step.traceback = ""
    for item in (step.items or {}).values():
        if not item.status.has_value:
            item.status, item.reason = StepStatus.PENDING, ""


def note_rows(item: ItemResult, metadata: Mapping[str, Any]) -> None:
    """Note whether an item's value came from a call that it shared with others."""
    item.rows_in_call = metadata.get(ROWS_IN_CALL, 0)
    item.asked_alone = metadata.get(ASKED_ALONE, "")


def last_time(step: StepResult) -> str:
    """:func:`ending` as a reason to run it again; that of an earlier session if it has not run since."""
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
    items = step.items
    step.items = {key: items[key] for key in keys if key in items}
    for key, item in step.items.items():
        item.index = labels[key]


def order_as_source(step: StepResult, source: Callable[[], StepRows], samples: int) -> None:
    """Put items whose order is not recorded into that of what they were made from, where it has items.

    Args:
        step: It has items, and has not ended: it was stopped, or its process died.
        source: Gives what it runs over.
        samples: Of each item.
    """
    try:
        rows = source()
    except Exception:  # the user's objects may raise anything; the order of the items' ends stays
        return
    left = dict(step.items or {})
    items = {}
    for key, label in rows.units(samples):
        if key in left:
            items[key] = left.pop(key)
            items[key].index = label
    step.items = items | left


class ItemTimes:
    """Wall time of mapped steps while their own end is not recorded yet, which a killed process never does.

    It goes from the start of the first item that has ended in this session to the end of the last one.
    """

    def __init__(self) -> None:
        # Seconds of earlier sessions, first start and last end, by step.
        self._open: dict[str, tuple[float, float, float]] = {}

    def item_ended(self, step: StepResult, at: float, seconds: float) -> None:
        """Count an item that has ended ``at`` some time (seconds since the epoch)."""
        before, first, last = self._open.get(step.name) or (step.seconds, at, at)
        first, last = min(first, at - seconds), max(last, at)
        self._open[step.name] = before, first, last
        step.seconds = before + last - first

    def step_ended(self, step: StepResult, seconds: float) -> None:
        """Count what the step itself says of this session, in place of what its items add up to."""
        counted = self._open.pop(step.name, None) if self._open else None
        step.seconds = (step.seconds if counted is None else counted[0]) + seconds

    def session_ended(self) -> None:
        """Keep what is counted: another process carries on the run."""
        self._open.clear()
