"""The one place that writes: makes the events of a run durable, then applies and publishes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.background import run_shielded
from tagent_nb.engine.memory.store import save
from tagent_nb.errors import StorageError
from tagent_nb.events import (
    PASSING,
    Event,
    MemorySaved,
    StepFailed,
    StepFinished,
    StepRetried,
    Warned,
)
from tagent_nb.pipeline import Change
from tagent_nb.redaction import redact
from tagent_nb.user_objects import safe_repr

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.memory.state_machine import PipelineStateMachine
    from tagent_nb.runners import StepContext


class Recorder:
    """Takes the events of one run, and keeps its memory and its scheduler up to date. Made on the run's loop.

    Args:
        context: Of the run.
        machine: Memory and scheduler of the run.

    Attributes:
        memory: What is known of the run; changed here only.
        machine: The state machine that events move.
        attempts: Attempts under way by (step, item), until an event counts what they have spent.
        on_failure: Called when events could not be recorded, before the error is raised.
    """

    def __init__(self, context: RunContext, machine: PipelineStateMachine) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._unwritten: list[Event] = []
        self.machine = machine
        self.memory = machine.pipeline_memory
        self.attempts: dict[tuple[str, str | None], StepContext] = {}
        self.on_failure: Callable[[StorageError], None] | None = None

    async def record(self, *events: Event) -> Change:
        """Make events durable, and only then apply and publish them. Returns what the last one means.

        Raises:
            StorageError: They could not be recorded; they were not applied either.
        """
        saved = {event.key: event.value for event in events if type(event) is MemorySaved}
        if not saved:
            return await self._record(events)
        # Stopped between the two, what is recorded would be stored for no other run.
        return await run_shielded(self._record_and_store(events, saved))

    def publish(self, event: Event) -> Change | None:
        """Apply an event and call the observers; storage gets it with the next record."""
        if not isinstance(event, PASSING):
            self._unwritten.append(event)
        return self._apply(event)

    def warn(self, message: str, step: str | None = None) -> None:
        """Tell the user something that does not stop the run, once."""
        message = redact(message)
        if message not in self.memory.warnings:
            self.publish(Warned(run_id=self._context.run_id, message=message, step=step))

    def warn_from_anywhere(self, message: str, step: str | None = None) -> None:
        """:meth:`warn` from any thread."""
        self._loop.call_soon_threadsafe(self.warn, message, step)

    def call_from_anywhere(self, action: Callable[[], None]) -> None:
        """Let the run's loop call something, from any thread.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._loop.call_soon_threadsafe(action)

    async def save_memories(self, saved: Mapping[str, Any]) -> None:
        """Store memories for other runs of the pipeline.

        Raises:
            StorageError: They could not be stored.
        """
        services = self._context.services
        await save(services.storage, self.memory.pipeline_id, services.schemas, saved)

    async def _record_and_store(self, events: Sequence[Event], saved: Mapping[str, Any]) -> Change:
        change = await self._record(events)
        await self.save_memories(saved)
        return change

    async def _record(self, events: Sequence[Event]) -> Change:
        batch = events
        if self._unwritten:
            batch = [*self._unwritten, *events]
            self._unwritten = []
        context = self._context
        try:
            await context.services.storage.append(
                self.memory.pipeline_id, context.run_id, batch, token=context.token
            )
        except StorageError as error:
            # What cannot be recorded must not be acted upon, nor be taken for a failure of the step.
            if self.on_failure is not None:
                self.on_failure(error)
            raise
        change: Change | None = None
        for event in events:
            change = self._apply(event)
        return change if change is not None else Change()

    def _apply(self, event: Event) -> Change | None:
        change = self.machine.apply(event)
        if isinstance(event, _COUNTED):
            self.attempts.pop((event.step, event.item), None)
        observers = self._context.services.observers
        if not observers:
            return change
        for observer in tuple(observers):
            try:
                observer(event)
            except Exception as error:
                # A view that breaks must not cost the user the run: it is reported and left out.
                observers.remove(observer)
                self.warn(
                    f"Observer {safe_repr(observer)} failed and is no longer called: {safe_repr(error)}"
                )
        return change


_COUNTED = (StepRetried, StepFinished, StepFailed)
"""Events that count what an attempt has spent."""
