"""Why a step ran or did not, in words: its last two fingerprints, compared by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagent_nb.cache import explain, uncompared
from tagent_nb.engine import PipelineMemory, inputs_of, read_memory, submit
from tagent_nb.errors import CorruptRecordError, FormatVersionError, NotStoredError
from tagent_nb.events import StepCached, StepFinished
from tagent_nb.formatting import cost_text, one_line
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import StepStatus, shape_text
from tagent_nb.results import StepResult, ending, failed_items

MAX_RUNS = 20
"""Earlier runs to look through for one in which the step has a fingerprint."""


def explain_step(session: Session, name: str) -> str:
    """What happened to a step in the last run, and what is different from the time before.

    Raises:
        UnknownStepError: The pipeline has no such step.
        StorageError: Recorded runs cannot be read.
    """
    step = session.pipeline.get_step(name)
    last = _last(session)
    if last is None or step.name not in last.steps:
        return f"{step.name} has not run yet."
    state = last.steps[step.name]
    lines = [f"{step.name}: {_what_happened(state)}"]
    if state.components:
        before = _before(session, last, step.name)
        ended = ending(before[0].steps[step.name]) if before else ""
        if ended:
            lines.append(f"In run {before[0].run_id} {ended}.")
        if before and before[-1].steps[step.name].components:
            lines += _differences(last, before[-1], step.name)
        elif not ended:
            lines.append("There is no earlier run to compare with.")
        blind = "Changes inside of {} are not noticed: only its type counts."
        lines += map(blind.format, uncompared(state.components))
    taken = [name for name in inputs_of(state.components) if name in last.inputs]
    if taken:
        inputs = ", ".join(f"input:{name} ({shape_text(last.inputs[name].value)})" for name in taken)
        lines.append(f"It read {inputs}, as taken when the run began.")
    if step.body is not None:
        hidden = "Names behind @ in the text of {} are not noticed: the text is not written in the step."
        lines += map(hidden.format, step.body.unseen_queries(session.namespace))
    if step.name in session.workspace.redefined:
        lines.append("It has been defined anew since; the next run compares the new definition.")
    return "\n".join(lines)


def _what_happened(state: StepResult) -> str:
    if state.status is StepStatus.CACHED:
        saved = f", which saved {cost_text(state.saved_cost)}" if state.saved_cost else ""
        return f"not run: the answer was in the cache{saved}"
    why = f" ({one_line(state.reason, 300)})" if state.reason else ""
    words = {
        StepStatus.COMPLETED: f"ran{why}",
        StepStatus.FAILED: f"ran and failed: {state.error_type}: {one_line(state.error, 300)}",
        StepStatus.SKIPPED: f"skipped: {state.reason}",
        StepStatus.CANCELLED: "stopped before it ended; it runs again with --resume",
        StepStatus.PENDING: "has not run in the last run",
    }
    return words.get(state.status, f"{state.status.value}{why}")


def _differences(last: PipelineMemory, before: PipelineMemory, name: str) -> list[str]:
    differences = explain(
        _with_files(before, name),
        _with_files(last, name),
        _definition(before, name),
        _definition(last, name),
    )
    if not differences:
        bad = failed_items(before.steps[name])
        where = f", in which {bad}" if bad else ""
        return [f"Nothing that it depends on differs from run {before.run_id}{where}."]
    return [f"Different from run {before.run_id}:", *(f"- {sentence}" for sentence in differences)]


def _with_files(memory: PipelineMemory, name: str) -> dict[str, str]:
    """The fingerprint of a step, and the content of each file that it read."""
    components = dict(memory.steps[name].components)
    for event in memory.events:
        if isinstance(event, StepFinished | StepCached) and event.step == name:
            for file, state in event.metadata.get("files", {}).items():
                components[f"file:{file}"] = state.split(" ", 1)[0]
    return components


def _definition(memory: PipelineMemory, name: str) -> Mapping[str, Any] | None:
    steps: list[Mapping[str, Any]] = list(memory.definition.get("steps", ()))
    return next((step for step in steps if step.get("name") == name), None)


def _last(session: Session) -> PipelineMemory | None:
    executor = session.workspace.executor
    if executor is not None and executor.memory is not None:
        return executor.memory
    try:
        return submit(read_memory(session.workspace.storage, session.pipeline.name)).result()
    except NotStoredError:
        return None


def _before(session: Session, last: PipelineMemory, name: str) -> list[PipelineMemory]:
    """The earlier runs that know the step, the newest first, to the first in which it ended with a value."""
    space = session.workspace

    async def search() -> list[PipelineMemory]:
        runs = [run.run_id for run in await space.storage.runs(space.pipeline.id, limit=MAX_RUNS + 1)]
        if last.run_id not in runs:
            runs = [run.run_id for run in await space.storage.runs(space.pipeline.id)]
        earlier = runs[: runs.index(last.run_id)] if last.run_id in runs else runs
        memories = []
        for run_id in reversed(earlier[-MAX_RUNS:]):
            try:
                memory = await read_memory(space.storage, space.pipeline.name, run_id)
            except (CorruptRecordError, FormatVersionError, NotStoredError):
                # Unreadable, or deleted just now: an older one does as well.
                continue
            if name not in memory.steps:
                continue
            memories.append(memory)
            if memory.steps[name].components:
                break
        return memories

    return submit(search()).result()
