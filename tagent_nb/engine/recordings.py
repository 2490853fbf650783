"""Recordings: calls of agent steps in a file, to be replayed elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.memory.load import read_memory
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.errors import (
    BudgetExceededError,
    CorruptRecordError,
    DefinitionError,
    FormatVersionError,
    NotStoredError,
)
from tagent_nb.events import (
    ApprovalRequested,
    CallRecorded,
    Event,
    RunResumed,
    StepCached,
    StepFailed,
    StepFinished,
    StepRetried,
)

if TYPE_CHECKING:
    from tagent_nb.pipeline import Pipeline
    from tagent_nb.runners import WorkKey
    from tagent_nb.storage import StorageBackend


FORMAT = "tagent-nb recording"
VERSION = 1

default: list[CallRecorded] | None = None
"""What executors replay that are given no recording; see :func:`tagent_nb.testing.replay`."""


def calls_on(recording: str | Path | None) -> list[CallRecorded] | None:
    """The calls of a recording; without one those that a test replays, or ``None``.

    Raises as :func:`read_recording`.
    """
    return default if recording is None else read_recording(recording)


def write_recording(path: str | Path, pipeline_name: str, calls: Iterable[CallRecorded]) -> int:
    """Write a recording, without secrets of the environment. Returns the number of calls.

    Raises:
        StorageError: It could not be written.
    """
    from tagent_nb.runners import plain
    from tagent_nb.serde import event_to_dict
    from tagent_nb.storage import trouble

    kept = [plain(event_to_dict(call)) for call in calls]
    document = {"format": FORMAT, "version": VERSION, "pipeline": plain(pipeline_name), "calls": kept}
    file = Path(path)
    try:
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    except OSError as error:
        raise trouble(error, "write", file) from error
    return len(kept)


def read_recording(path: str | Path) -> list[CallRecorded]:
    """The calls of a recording, in order.

    Raises:
        DefinitionError: There is no such file.
        CorruptRecordError: It is no recording, or it is damaged.
        FormatVersionError: A newer tagent-nb wrote it.
    """
    file = Path(path)
    try:
        document = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise DefinitionError(
            f"The recording {file} cannot be read: {error.strerror}. Make one with "
            "%tagent_export --recording FILE or executor.export_recording(FILE)."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise _damaged(file, f"it does not say that it is a {FORMAT!r}")
    version = document.get("version")
    if type(version) is not int or version > VERSION:
        raise FormatVersionError(
            f"The recording {file} has version {version}, and this tagent-nb reads up to {VERSION}. "
            "Install a newer tagent-nb, or record again."
        )
    calls = document.get("calls")
    if not isinstance(calls, list):
        raise _damaged(file, "it has no calls")
    return [_read_call(file, index, call) for index, call in enumerate(calls)]


def _read_call(file: Path, index: int, data: Any) -> CallRecorded:
    from tagent_nb.serde import event_from_dict

    try:
        event = event_from_dict(data)
    except CorruptRecordError as error:
        raise _damaged(file, f"call {index}: {error}") from None
    if not isinstance(event, CallRecorded):
        raise _damaged(file, f"call {index} is no call")
    return event


def _damaged(file: Path, why: str) -> CorruptRecordError:
    return CorruptRecordError(f"{file} is no recording that can be replayed: {why}. Record again.")


NEWEST = 20
"""Runs with calls that an offline run gets answers from."""


def interrupted_calls(memory: PipelineMemory) -> dict[WorkKey, list[CallRecorded]]:
    """The calls of each unit's attempt that a kill, Stop or a budget ended before its time, by unit."""
    calls: dict[WorkKey, list[CallRecorded]] = {}
    for event in memory.events:
        match event:
            case CallRecorded():
                calls.setdefault((event.step, event.item), []).append(event)
            case StepFailed(error_type=BudgetExceededError.__name__):
                pass  # nothing was wrong with its answers, and they are paid
            case StepRetried() | StepFailed() | StepFinished() | StepCached():
                calls.pop((event.step, event.item), None)
            case RunResumed(forced=forced) if forced:
                # Calls of a step before it was forced answer for nothing any more.
                calls = {unit: made for unit, made in calls.items() if unit[0] not in forced}
            case ApprovalRequested(call=""):
                # Its attempt is over: what it gave is suspended, and need not be computed again.
                calls.pop((event.step, event.item), None)
    return calls


async def calls_of_runs(storage: StorageBackend, pipeline_id: str) -> list[CallRecorded]:
    """The calls of the newest stored runs of a pipeline that made any, those of the newest run first."""
    recorded: list[CallRecorded] = []
    left, seen, limit = NEWEST, 0, NEWEST
    while len(infos := await storage.runs(pipeline_id, limit=limit)) > seen:
        for info in reversed(infos[: len(infos) - seen]):
            if left and info.problem is None:
                calls = _calls(await storage.read_run(pipeline_id, info.run_id))
                recorded.extend(calls)
                left -= bool(calls)
        if not left or len(infos) < limit:
            break
        # So many have made none: look at as many again.
        seen, limit = len(infos), 2 * limit
    return recorded


async def calls_behind(
    storage: StorageBackend, pipeline: Pipeline, run_id: str | None = None
) -> list[CallRecorded]:
    """The calls that the values of a run come from. For a value out of the cache they are those of the
    unit that computed it, in this run or an earlier one.

    Raises:
        NotStoredError: There is no such run, or the calls behind a cached value are not stored any more.
    """
    memory = await read_memory(storage, pipeline.name, run_id)
    recorded = _calls(memory.events)
    agents = {step.name for step in pipeline.steps if not step.is_python}
    maps = {(step.name, None) for step in pipeline.steps if step.has_items}
    missing: dict[str, tuple[str, str | None]] = {}
    for event in memory.events:
        # A step with items as a whole makes no calls; its items do.
        if isinstance(event, StepCached) and (event.step, event.item) not in maps and event.step in agents:
            missing[event.key] = (event.step, event.item)
    for info in reversed(await storage.runs(pipeline.id)):
        if not missing:
            break
        events = await storage.read_run(pipeline.id, info.run_id)
        computed = {
            (event.step, event.item): event.key
            for event in events
            if isinstance(event, StepFinished) and event.key in missing
        }
        for call in _calls(events):
            key = computed.get((call.step, call.item))
            if key is not None and info.run_id != memory.run_id:
                # Its own unit may be called otherwise by now: a first sample was the only answer before.
                step, item = missing[key]
                recorded.append(replace(call, step=step, item=item))
        for key in computed.values():
            missing.pop(key, None)
    if not recorded and not missing:
        raise NotStoredError(
            f"Run {memory.run_id} of pipeline {pipeline.name!r} has recorded no calls: no step asked a "
            "model, or a recording answered."
        )
    if missing:
        gone = sorted({step for step, _ in missing.values()})
        raise NotStoredError(
            f"The calls behind {', '.join(gone)} are not stored any more: the cache has answered for them. "
            f"Run once with force={gone!r} (%tagent_run --force {','.join(gone)}), then export again."
        )
    return recorded


def _calls(events: Iterable[Event]) -> list[CallRecorded]:
    return [event for event in events if isinstance(event, CallRecorded)]
