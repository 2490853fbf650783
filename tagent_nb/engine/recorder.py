"""The one place that writes: makes the events of a run durable, then applies and publishes them.

And what looks at values before they are stored: for secrets, and for losses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tagent_nb.engine.background import run_shielded
from tagent_nb.engine.memory.store import save
from tagent_nb.errors import DefinitionError, EncodeError, StepError, StorageError
from tagent_nb.events import (
    PASSING,
    Event,
    FactLearned,
    InputTaken,
    MemorySaved,
    Output,
    StepFailed,
    StepFinished,
    StepRetried,
    Warned,
)
from tagent_nb.pipeline import NO_CHANGE, Change
from tagent_nb.redaction import note_secrets, redact
from tagent_nb.serde import LARGE, Classes, StoredValue
from tagent_nb.user_objects import ends_program, safe_repr

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.memory.state_machine import PipelineStateMachine
    from tagent_nb.runners import StepContext


AHEAD = 64
"""Items of mapped steps that may have ended without being recorded yet: what a crash makes run again."""

AHEAD_SECONDS = 0.02
"""Seconds after which they are written, however few they are."""


class _Entry(NamedTuple):
    """Events that wait to be written together, and what tells their sender; ``None`` without a waiter."""

    events: Sequence[Event]
    done: asyncio.Future[Change] | None


class Recorder:
    """Takes the events of one run, and keeps its memory and its scheduler up to date. Made on the run's loop.

    One write is under way at a time. What is to be recorded meanwhile goes out together in the next one,
    in the order in which it came.

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
        # To record in memory takes no time that could be saved.
        self._may_be_ahead = context.services.storage.durable
        self._waiting: deque[_Entry] = deque()
        self._is_writing = False
        self._writer: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly
        self._timer: asyncio.TimerHandle | None = None
        # Entries of items without a waiter, and why some could not be recorded.
        self._ahead = 0
        self._failure: BaseException | None = None
        self._append_now: Callable[[Event], bool] | None = None
        self.machine = machine
        self.memory = machine.pipeline_memory
        self.attempts: dict[tuple[str, str | None], StepContext] = {}
        self.on_failure: Callable[[StorageError], None] | None = None

    async def record(self, *events: Event) -> Change:
        """Make events durable, and only then apply and publish them. Returns what the last one means.

        Raises:
            StorageError: They could not be recorded; they were not applied either.
        """
        for event in events:
            if type(event) is MemorySaved:
                # Stopped between the two, what is recorded would be stored for no other run.
                return await run_shielded(self._record_and_store(events))
        return await self._record(events)

    async def record_item(self, events: Sequence[Event]) -> None:
        """:meth:`record` the end of a mapped step's item, but return before it is durable.

        At most :data:`AHEAD` items are ahead of what is recorded: :meth:`settled` waits for them, and what
        depends on an item must come after that. An item that has learned something is waited for.

        Raises:
            StorageError: These or earlier events could not be recorded.
        """
        if not self._may_be_ahead or len(events) > 1 or self._ahead >= AHEAD:
            if self.record_at_once(events) is None:
                await self.record(*events)
            return
        if self._failure is not None:
            raise self._failure
        self._ahead += 1
        self._waiting.append(_Entry(events, None))
        if self._is_writing:
            return
        if self._ahead >= AHEAD // 2:
            self._write_waiting()
        elif self._timer is None:
            self._timer = self._loop.call_later(AHEAD_SECONDS, self._write_waiting)

    async def settled(self) -> None:
        """Wait until all that was to be recorded is, also what :meth:`record_item` did not wait for.

        Raises:
            StorageError: Some of that could not be.
        """
        if self._waiting or self._is_writing:
            await self._in_line(())
        if self._failure is not None:
            raise self._failure

    def record_at_once(self, events: Sequence[Event]) -> Change | None:
        """:meth:`record` one event, where the storage of the run does so without waiting; else ``None``."""
        return self._applied(events) if self._appends_at_once(events) else None

    def _appends_at_once(self, events: Sequence[Event]) -> bool:
        """Store one event, if that can be done without waiting; whether it is stored."""
        if self._append_now is None:
            # Only a run that has begun has a place in its storage.
            self._append_now = (
                self._context.services.storage.appender(
                    self.memory.pipeline_id, self._context.run_id, self._context.token
                )
                or _never
            )
        if len(events) > 1 or self._unwritten or self._waiting or self._is_writing:
            return False
        return self._append_now(events[0])

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

    async def _record_and_store(self, events: Sequence[Event]) -> Change:
        change = await self._record(events)
        await self.save_memories({event.key: event.value for event in events if type(event) is MemorySaved})
        return change

    async def _record(self, events: Sequence[Event]) -> Change:
        if self._is_writing or self._waiting:
            return await self._in_line(events)
        # Nothing is in the way: to write here takes less time than to wake a task.
        self._is_writing = True
        try:
            await self._append(events)
            return self._applied(events)
        finally:
            self._is_writing = False
            if self._waiting:
                self._write_waiting()

    async def _in_line(self, events: Sequence[Event]) -> Change:
        """Have events written behind all that waits, also if who waits here is stopped."""
        done: asyncio.Future[Change] = self._loop.create_future()
        self._waiting.append(_Entry(events, done))
        if not self._is_writing:
            self._write_waiting()
        return await done

    def _write_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_writing = True
        self._writer = self._loop.create_task(self._write_all(), name="tagent-nb recorder")

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._write(self._next_entries())
        finally:
            self._is_writing = False

    def _next_entries(self) -> list[_Entry]:
        """What goes out in one write: not too much to be held in memory twice."""
        entries: list[_Entry] = []
        size = 0
        while self._waiting and size <= LARGE:
            entry = self._waiting.popleft()
            entries.append(entry)
            size += sum(_size(event) for event in entry.events)
        return entries

    async def _write(self, entries: Sequence[_Entry]) -> None:
        try:
            events = [event for entry in entries for event in entry.events]
            if events:
                await self._append(events)
        except EncodeError as error:
            if len(entries) == 1:
                self._refuse(entries[0], error)
                return
            # Nothing of it is recorded, and one of them is to blame.
            for entry in entries:
                await self._write([entry])
        except BaseException as error:  # all who wait must get it
            for entry in entries:
                self._refuse(entry, error)
        else:
            for entry in entries:
                self._accept(entry)

    def _accept(self, entry: _Entry) -> None:
        try:
            change = self._applied(entry.events)
        except BaseException as error:  # an observer may end the program, and who waits must get it
            self._refuse(entry, error)
            return
        if entry.done is None:
            self._ahead -= 1
        elif not entry.done.done():
            entry.done.set_result(change)

    def _refuse(self, entry: _Entry, error: BaseException) -> None:
        if entry.done is None:
            self._ahead -= 1
            self._failure = self._failure or error
        elif not entry.done.done():
            entry.done.set_exception(error)

    async def _append(self, events: Sequence[Event]) -> None:
        unwritten, self._unwritten = self._unwritten, []
        try:
            await self._store([*unwritten, *events] if unwritten else events)
        except EncodeError:
            if unwritten and events:
                # These are the run's own, and not to blame for what a step gave.
                await self._store(unwritten)
            raise

    async def _store(self, events: Sequence[Event]) -> None:
        context = self._context
        try:
            await context.services.storage.append(
                self.memory.pipeline_id, context.run_id, events, token=context.token
            )
        except StorageError as error:
            # What cannot be recorded must not be acted upon, nor be taken for a failure of the step.
            if self.on_failure is not None:
                self.on_failure(error)
            raise

    def _applied(self, events: Sequence[Event]) -> Change:
        change: Change | None = None
        for event in events:
            change = self._apply(event)
        return NO_CHANGE if change is None else change

    def _apply(self, event: Event) -> Change | None:
        change = self.machine.apply(event)
        if self.attempts and isinstance(event, _COUNTED):
            self.attempts.pop((event.step, event.item), None)
        observers = self._context.services.observers
        if not observers:
            return change
        for observer in tuple(observers):
            try:
                observer(event)
            except BaseException as error:
                if ends_program(error):
                    raise
                # A view that breaks must not cost the user the run: it is reported and left out.
                observers.remove(observer)
                self.warn(
                    f"Observer {safe_repr(observer)} failed and is no longer called: {safe_repr(error)}"
                )
        return change


def _never(event: Event) -> bool:
    """For storage that has to be waited for."""
    return False


_COUNTED = (StepRetried, StepFinished, StepFailed)
"""Events that count what an attempt has spent."""


def _size(event: Event) -> int:
    """Bytes of an event's value, as far as they are encoded already."""
    output = getattr(event, "output", None)
    return output.size if isinstance(output, StoredValue) else 0


SEARCHED = 1_000_000
"""Most bytes of an encoded value that are searched for secrets: searching more would be felt."""


class ValueChecks:
    """Looks at the values of one run before they are stored.

    Args:
        context: Of the run.
        recorder: Takes the warnings.

    Attributes:
        searching: Whether values of steps are searched for secrets at all.
    """

    def __init__(self, context: RunContext, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder
        # Noted once: a step may take one out of the environment, but seldom puts one in.
        self._secrets = note_secrets()
        services = context.services
        stored = services.storage.durable or services.cache is not None
        self.searching = bool(self._secrets.needles) and stored and services.secret_values != "ignore"
        self._classes: dict[str, set[type]] = {}
        self._left_out: set[tuple[str, str]] = set()

    def look_for_secrets(self, step: str, events: Sequence[Event]) -> None:
        """Warn of values of a step that hold a secret of the environment, and are about to be stored.

        Raises:
            StepError: There is one, and the executor's ``secret_values`` is ``"fail"``.
        """
        if not self.searching:
            return
        for event in events:
            if isinstance(event, StepFinished):
                output, what = event.output, "its value"
            else:
                assert isinstance(event, FactLearned | MemorySaved)
                output, what = StoredValue.of(event.value), f"what it learned as {event.key!r}"
            name = self._secret_in(output)
            if name is None:
                continue
            holds = f"holds the value of the environment variable {name}, as it is or encoded"
            message = f"Step {step!r}: {what} {holds}"
            if self._context.services.secret_values == "fail":
                raise StepError(
                    f"{message}. Nothing of it was stored. Leave it out of what the step returns."
                )
            self._recorder.warn(
                f"{message}, and is stored with it. Leave it out of what the step returns, or let the step "
                'fail: PipelineExecutor(..., secret_values="fail").',
                step,
            )

    def secret_of_input(self, event: InputTaken) -> str:
        """What to warn of when an input holds a secret and is about to be stored; else empty.

        Raises:
            DefinitionError: It holds a secret, and the executor's ``secret_values`` is ``"fail"``.
        """
        services = self._context.services
        if not self._secrets.needles or services.secret_values == "ignore" or not services.storage.durable:
            return ""
        name = self._secret_in(event.output)
        if name is None:
            return ""
        message = (
            f"Input {event.name!r} holds the value of the environment variable {name}, as it is or encoded"
        )
        if services.secret_values == "fail":
            raise DefinitionError(f"{message}. Nothing was stored or run. Leave it out of the variable.")
        return f"{message}, and is stored with the run. Leave it out of the variable."

    def warn_of_losses(self, step: str, output: Output) -> None:
        """Warn once of classes that another process will not find when it reads a step's value."""
        left_out = {(step, what) for what in getattr(output, "left_out", ())} - self._left_out
        if left_out:
            self._left_out |= left_out
            self._recorder.warn(
                f"Step {step!r}: its value will come back without some attributes, which cannot be stored: "
                f"{'; '.join(sorted(what for _, what in left_out))}. Keep what a later step needs in fields.",
                step,
            )
        seen = self._classes.setdefault(step, set())
        new = getattr(output, "classes", seen) - seen
        if not new:
            return
        seen |= new
        schemas = Classes.of(self._context.services.schemas, step)
        losses = sorted(loss for loss in map(schemas.loss_of, new) if loss)
        if losses:
            self._recorder.warn(
                f"Step {step!r}: its value will not come back as it is when a later session reads it: "
                f"{'; '.join(losses)}. Define such a class in a cell of its own or in a module, and name it "
                "in the step's code or as its output schema.",
                step,
            )

    def _secret_in(self, output: Output) -> str | None:
        """The variable whose value is in an output that can be stored."""
        stored = output if isinstance(output, StoredValue) else StoredValue.of(output.value)
        if not stored.storable:
            return None
        blob = stored.blob
        if len(blob) > SEARCHED or not self._secrets.are_in_bytes(blob):
            return None
        return next(name for _, name in self._secrets.forms_in(blob.decode()))
