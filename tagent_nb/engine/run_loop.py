"""One run: starts each step the moment its own dependencies are done, and records what happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import Approvals, StepHeld
from tagent_nb.engine.background import unbroken
from tagent_nb.engine.concurrency import Turns
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.state_machine import PipelineStateMachine
from tagent_nb.engine.memory.store import save
from tagent_nb.engine.unit.execute import run_step
from tagent_nb.errors import StorageError
from tagent_nb.events import (
    PASSING,
    CallRecorded,
    Event,
    MemorySaved,
    Output,
    RunFinished,
    RunPaused,
    RunUnpaused,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepRetried,
    StepSkipped,
    TokenUsage,
    Warned,
)
from tagent_nb.pipeline import Change, ExecutionMode, Pipeline, PipelineStep, StepStatus, inputs_by_step
from tagent_nb.redaction import note_secrets, redact
from tagent_nb.serde import Classes
from tagent_nb.user_objects import safe_repr

if TYPE_CHECKING:
    from tagent_nb.engine.context import Equipment, RunOptions
    from tagent_nb.engine.loop_watch import LoopWatch
    from tagent_nb.runners import CallMiddleware, StepContext

BREATH = 0.01
"""Seconds after which a chain of steps that never waits lets the rest of the loop run."""


class Run:
    """Drives one pipeline to its end on the current loop.

    Args:
        pipeline: A snapshot that nobody changes.
        machine: Memory and scheduler; steps that memory knows as done are not run.
        inputs: Values that no step makes, by name.
        token: That of the run's lease; ``None`` for a run that records nothing.
        restored: Recorded events by (step, item), for units whose fingerprint is still the same.
        previous: Reads the memory of the run before this one, if there is one.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        machine: PipelineStateMachine,
        equipment: Equipment,
        options: RunOptions,
        *,
        inputs: Mapping[str, Output],
        token: int | None,
        restored: dict[tuple[str, str | None], StepFinished | StepCached],
        previous: Callable[[], Awaitable[PipelineMemory | None]],
    ) -> None:
        self.pipeline = pipeline
        self.machine = machine
        self.memory = machine.pipeline_memory
        self.equipment = equipment
        self.options = options
        self.inputs = inputs
        # The inputs that each step reads, of those that read any.
        self.reads_inputs = inputs_by_step(pipeline) if inputs else {}
        self.token = token
        self.restored = restored
        # A fingerprint that neither a cache nor a later process can ask for is not worked out.
        # (A held value is told by it, too: whoever resumes the run in this process asks for it.)
        self.keyed = (
            equipment.cache is not None
            or equipment.storage.durable
            or options.resume is not False
            or any(step.approve for step in pipeline.steps)
        )
        self._previous = previous
        # Noted once: a step may take one out of the environment, but seldom puts one in.
        self.secrets = note_secrets()
        self._last_time: asyncio.Future[PipelineMemory | None] | None = None
        self.slots = asyncio.Semaphore(equipment.max_concurrency)
        self.live: dict[tuple[str, str | None], StepContext] = {}
        self.flights: dict[str, asyncio.Future[StepFinished | str | None]] = {}
        self.static: dict[str, dict[str, str]] = {}
        self.taught: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.memo: dict[Any, Any] = {}
        self.read: dict[str, frozenset[str]] = {}
        self._classes: dict[str, set[type]] = {}
        self._left_out: set[tuple[str, str]] = set()
        # What the items of a mapped Python step share, by step.
        self.common: dict[str, dict[str, Any]] = {}
        self.by_name = {step.name: step for step in pipeline.steps}
        order = {step.name: index for index, step in enumerate(pipeline.steps)}
        self.turns = Turns(order, self._start_next)
        self.approvals = Approvals(self, equipment.approver)
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Event()
        self._gate.set()
        # Whether may_start() has something to say: asked often, and nearly always it has not.
        self.held = False
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] = self._loop.create_future()
        self._unwritten: list[Event] = []
        self._breath = 0.0
        self._began = self._loop.time()
        self._stopping = False
        self.cancelled = False
        self.timed_out = False
        # Whether it ends with an error of its own: what a step raises then is no failure of the step.
        self.broken = False

    @cached_property
    def middleware(self) -> tuple[CallMiddleware, ...]:
        """What the calls of agent steps pass, the first one outermost.

        What an interrupted attempt has recorded is neither paid again nor slowed down. What answers an
        offline run counts as it did when it was recorded, so that a budget stops the run where it did then.
        """
        from tagent_nb.engine.recordings import interrupted_calls
        from tagent_nb.runners import Cassette, ReplayMiddleware

        recorded = self.equipment.recorded
        before = interrupted_calls(self.memory) if self.options.resume is not False else {}
        open_calls = {unit: calls for unit, calls in before.items() if not self.options.forces(unit[0])}
        cassette = None if recorded is None else Cassette(recorded)
        replay = ReplayMiddleware(
            self._keep_call, open_calls, cassette, self.equipment.schemas, self._code_of
        )
        inner = (replay, *self.equipment.paid) if cassette is None else (*self.equipment.paid, replay)
        return (*self.equipment.middleware, *inner)

    def schemas_of(self, step: str) -> Classes:
        """Classes that stored values of a step may become."""
        return Classes.of(self.equipment.schemas, step)

    def look_at_classes(self, step: str, output: Output) -> None:
        """Warn once of classes that another process will not find when it reads a step's value."""
        left_out = {(step, what) for what in getattr(output, "left_out", ())} - self._left_out
        if left_out:
            self._left_out |= left_out
            self.warn(
                f"Step {step!r}: its value will come back without some attributes, which cannot be stored: "
                f"{'; '.join(sorted(what for _, what in left_out))}. Keep what a later step needs in fields.",
                step,
            )
        seen = self._classes.setdefault(step, set())
        new = getattr(output, "classes", seen) - seen
        if not new:
            return
        seen |= new
        schemas = self.schemas_of(step)
        losses = sorted(loss for loss in map(schemas.loss_of, new) if loss)
        if losses:
            self.warn(
                f"Step {step!r}: its value will not come back as it is when a later session reads it: "
                f"{'; '.join(losses)}. Define such a class in a cell of its own or in a module, and name it "
                "in the step's code or as its output schema.",
                step,
            )

    def _code_of(self, tool: Callable[..., Any]) -> str:
        from tagent_nb.cache import tool_code

        return tool_code(tool, self.equipment.namespace, self.memo)

    async def _keep_call(self, call: CallRecorded) -> None:
        """Record a call, also when its step is stopped meanwhile: it was made."""
        await unbroken(self.conclude(call))

    # -- the run ----------------------------------------------------------------------------

    async def drive(self) -> None:
        """Run until nothing is left to do or the run is cancelled, and record how it ended.

        Raises:
            StorageError: A result could not be recorded; nothing goes on.
            CancelledError: Somebody cancelled the task that waits here.
        """
        began = self._loop.time()
        limit = self.options.timeout
        timer = None if limit is None else self._loop.call_later(limit, self.time_out)
        try:
            await self._work()
        except asyncio.CancelledError:
            self.cancelled = True
            await unbroken(self._finish(began))
            raise
        except BaseException:  # also what ends the program
            self._give_up()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        await unbroken(self._finish(began))

    async def _work(self) -> None:
        self._breath = self._loop.time() + BREATH
        watch = self._watch()
        self._offer([step.name for step in self.machine.get_ready_steps()])
        self._settle_idle()
        try:
            await self._idle
        finally:
            if self._tasks or not self.machine.scheduler.is_done:
                await self._stop_tasks()
            if watch is not None:
                watch.end()

    def _watch(self) -> LoopWatch | None:
        """What notices when a step holds the loop; nothing where none can."""
        from tagent_nb.engine.loop_watch import LoopWatch, may_block

        return LoopWatch(self) if any(map(may_block, self.pipeline.steps)) else None

    async def _finish(self, began: float) -> None:
        """Record how the run ended."""
        seconds = self._loop.time() - began
        statuses = self.machine.scheduler.step_status.values()
        # A step that its condition skipped, or one behind it, is no failure.
        success = not (self.cancelled or self.timed_out) and all(
            status.has_value or status is StepStatus.SKIPPED for status in statuses
        )
        try:
            await self.conclude(
                RunFinished(
                    run_id=self.memory.run_id,
                    success=success,
                    cancelled=self.cancelled,
                    timed_out=self.timed_out,
                    seconds=seconds,
                    waiting=tuple(name for name, item in self.approvals.left if item is None),
                )
            )
        except Exception:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Nothing can be recorded any more, but nobody is to take the run for a running one."""
        self.emit(RunFinished(run_id=self.memory.run_id, success=False))

    def cancel(self) -> None:
        """Stop now. May be called on the run's loop only, any number of times."""
        if not self._idle.done():
            self.cancelled = True
            self._idle.set_result(None)

    def time_out(self) -> None:
        """Stop now, since the run's timeout is over: it has failed, and can be resumed."""
        if not self._idle.done():
            self.timed_out = True
            self.warn(
                f"The run was stopped: it took longer than its timeout of {self.options.timeout:g} s. "
                "What is done is kept. Carry it on with resume=True (--resume), and a longer timeout= "
                "(--timeout) if need be."
            )
            self._idle.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop now, and let :meth:`drive` raise ``error``. On the run's loop only."""
        if not self._idle.done():
            self.broken = True
            self._idle.set_exception(error)

    def pause(self) -> None:
        """Start no further unit of work."""
        if self._gate.is_set():
            self._gate.clear()
            self.held = True
            self.emit(RunPaused(run_id=self.memory.run_id))

    def unpause(self) -> None:
        """Go on after :meth:`pause`."""
        if not self._gate.is_set():
            self.emit(RunUnpaused(run_id=self.memory.run_id))
            self._gate.set()
            self.held = self._stopping

    async def may_start(self) -> None:
        """Wait while the run is paused.

        Raises:
            CancelledError: The run ends: a step that took no notice starts nothing further.
        """
        if not self._gate.is_set():
            await self._gate.wait()
        if self._stopping:
            raise asyncio.CancelledError

    async def last_time(self) -> PipelineMemory | None:
        """The memory of the run before this one, read at the first question."""
        if self._last_time is None:
            self._last_time = asyncio.ensure_future(self._read_previous())
        return await self._last_time

    async def _read_previous(self) -> PipelineMemory | None:
        try:
            return await self._previous()
        except StorageError as error:
            # It only tells why a step runs; that must not keep the step from running.
            self.warn(f"Steps cannot tell why they run, since the run before cannot be read: {error}")
            return None

    # -- events -----------------------------------------------------------------------------

    def emit(self, event: Event) -> Change | None:
        """Apply an event and tell the observers; storage gets it with the next record."""
        if not isinstance(event, PASSING):
            self._unwritten.append(event)
        return self._apply(event)

    async def conclude(self, *events: Event) -> Change:
        """Record events, and only then let anybody act on them. Returns what the last one means.

        Raises:
            StorageError: They could not be recorded; they were not applied either.
        """
        saved = {event.key: event.value for event in events if type(event) is MemorySaved}
        if not saved:
            return await self._record(events)
        # Stopped between the two, what is recorded would be stored for no other run.
        return await unbroken(self._record_and_store(events, saved))

    async def _record_and_store(self, events: Sequence[Event], saved: Mapping[str, Any]) -> Change:
        change = await self._record(events)
        await save(self, saved)
        return change

    async def _record(self, events: Sequence[Event]) -> Change:
        batch = events
        if self._unwritten:
            batch = [*self._unwritten, *events]
            self._unwritten = []
        memory = self.memory
        storage = self.equipment.storage
        try:
            await storage.append(memory.pipeline_id, memory.run_id, batch, token=self.token)
        except StorageError as error:
            # What cannot be recorded must not be acted upon, nor be taken for a failure of the step.
            if self._tasks:
                self.fail(error)
            raise
        change: Change | None = None
        for event in events:
            change = self._apply(event)
        return change if change is not None else Change()

    def from_anywhere(self, action: Callable[[], None]) -> None:
        """Let the run's loop do something, from any thread.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._loop.call_soon_threadsafe(action)

    def warn_from_anywhere(self, message: str, step: str | None = None) -> None:
        """:meth:`warn` from any thread."""
        self._loop.call_soon_threadsafe(self.warn, message, step)

    def warn(self, message: str, step: str | None = None) -> None:
        """Tell the user something that does not stop the run, once."""
        message = redact(message)
        if message not in self.memory.warnings:
            self.emit(Warned(run_id=self.memory.run_id, message=message, step=step))

    def _apply(self, event: Event) -> Change | None:
        change = self.machine.apply(event)
        if isinstance(event, _COUNTED):
            self.live.pop((event.step, event.item), None)
        if not self.equipment.observers:
            return change
        for observer in tuple(self.equipment.observers):
            try:
                observer(event)
            except Exception as error:
                # A view that breaks must not cost the user her run; it is told and left out.
                self.equipment.observers.remove(observer)
                self.warn(
                    f"Observer {safe_repr(observer)} failed and is no longer called: {safe_repr(error)}"
                )
        return change

    # -- scheduling -------------------------------------------------------------------------

    def _offer(self, names: Sequence[str]) -> None:
        for name in names:
            if self.by_name[name].execution_mode is ExecutionMode.SERIAL:
                self.turns.offer(name)
            else:
                self._spawn(name)
        self._start_next()

    def _start_next(self) -> None:
        following = self.turns.next()
        if following is not None:
            self._spawn(following)

    def _spawn(self, name: str) -> None:
        task = self._loop.create_task(self._worker(name), name=f"tagent-nb {name}")
        self._tasks.add(task)
        task.add_done_callback(self._worker_done)

    def _worker_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self.fail(error)
        self._settle_idle()

    def _settle_idle(self) -> None:
        if not self._tasks and not self._idle.done():
            self._idle.set_result(None)

    async def _worker(self, name: str) -> None:
        """Run a step, and go on with one that it made ready in the same task: a hop less each."""
        following: str | None = name
        while following is not None:
            step = self.by_name[following]
            try:
                change = await run_step(self, step)
            except StepHeld:
                change = _NO_CHANGE
            ready = change.ready
            if change.doomed:
                ready = [*ready, *await self._skip(change.doomed)]
            following = self._follow(step, ready)
            now = self._loop.time()
            if now >= self._breath:
                await asyncio.sleep(0)
                self._breath = self._loop.time() + BREATH

    def _follow(self, step: PipelineStep, ready: Sequence[str]) -> str | None:
        if step.execution_mode is ExecutionMode.SERIAL:
            self.turns.release(step.name)
        concurrent: list[str] = []
        for name in ready:
            if self.by_name[name].execution_mode is ExecutionMode.SERIAL:
                self.turns.offer(name)
            else:
                concurrent.append(name)
        following = self.turns.next()
        if following is None and concurrent:
            following = concurrent.pop(0)
        for name in concurrent:
            self._spawn(name)
        return following

    async def _skip(self, doomed: Sequence[tuple[str, str]]) -> list[str]:
        """Skip steps that can never run, and what that dooms in turn; return what became ready."""
        ready: list[str] = []
        waiting = list(doomed)
        while waiting:
            name, cause = waiting.pop(0)
            failed = self.machine.scheduler.status_of(cause) is StepStatus.FAILED
            reason = f"step {cause!r} {'failed' if failed else 'was skipped'}"
            change = await self.conclude(
                StepSkipped(run_id=self.memory.run_id, step=name, reason=reason, cause=cause)
            )
            ready.extend(change.ready)
            waiting.extend(change.doomed)
        return ready

    async def _stop_tasks(self) -> None:
        self._stopping = self.held = True
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*tuple(self._tasks), return_exceptions=True)
        for name, step in self.memory.steps.items():
            for key, item in (step.items or {}).items():
                if item.status in _UNDER_WAY and (name, key) not in self.approvals.kept:
                    self._cancelled(name, key, item.attempts, 0.0)
            if step.status in _UNDER_WAY and (name, None) not in self.approvals.kept:
                # The clock may have been set meanwhile: no step takes longer than the run.
                seconds = max(0.0, time.time() - (step.started_at or time.time()))
                self._cancelled(name, None, step.attempts, min(seconds, self._loop.time() - self._began))

    def _cancelled(self, step: str, item: str | None, attempt: int, seconds: float) -> None:
        context = self.live.get((step, item))
        self.emit(
            StepCancelled(
                run_id=self.memory.run_id,
                step=step,
                item=item,
                attempt=attempt,
                seconds=seconds,
                usage=context.usage if context is not None else TokenUsage(),
                cost=context.cost if context is not None else 0.0,
            )
        )


_UNDER_WAY = (StepStatus.RUNNING, StepStatus.WAITING)
_COUNTED = (StepRetried, StepFinished, StepFailed)
_NO_CHANGE = Change()
