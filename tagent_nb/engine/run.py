"""One run: starts each step the moment its own dependencies are done, and records what happens."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.memory import PipelineMemory
from tagent_nb.engine.state import PipelineStateMachine
from tagent_nb.engine.unit import run_step
from tagent_nb.events import (
    PASSING,
    Event,
    MemorySaved,
    Observer,
    RunFinished,
    RunPaused,
    RunUnpaused,
    StepCached,
    StepFinished,
    StepSkipped,
    Warned,
)
from tagent_nb.pipeline.models import ExecutionMode, Pipeline, PipelineStep, StepStatus
from tagent_nb.pipeline.scheduler import Change

if TYPE_CHECKING:
    from tagent_nb.cache.store import ResultCache
    from tagent_nb.steps.base import StepRunner
    from tagent_nb.storage.base import StorageBackend

BREATH = 0.01
"""Seconds after which a chain of steps that never waits lets the rest of the loop run."""


@dataclass(frozen=True)
class RunOptions:
    """How one run is to go; see :meth:`PipelineExecutor.execute`."""

    resume: bool | str = False
    force: bool | frozenset[str] = frozenset()
    until: str | None = None
    offline: bool = False
    use_cache: bool = True
    on_change: str = "refuse"

    def forces(self, step: str) -> bool:
        """Whether neither cache nor record may answer for this step."""
        return self.force is True or (self.force is not False and step in self.force)


@dataclass
class Equipment:
    """What a run works with."""

    storage: StorageBackend
    cache: ResultCache | None
    runners: Mapping[str, StepRunner]
    model: Any
    namespace: Mapping[str, Any]
    schemas: Mapping[str, type]
    max_concurrency: int
    retry_delay: float
    observers: list[Observer] = field(default_factory=list)


class Run:
    """Drives one pipeline to its end on the current loop.

    Args:
        pipeline: A snapshot that nobody changes.
        machine: Memory and scheduler; steps that memory knows as done are not run.
        restored: Recorded events by (step, item), for units whose fingerprint is still the same.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        machine: PipelineStateMachine,
        equipment: Equipment,
        options: RunOptions,
        *,
        token: int | None = None,
        restored: Mapping[tuple[str, str | None], StepFinished | StepCached] | None = None,
        previous: Callable[[], Awaitable[PipelineMemory | None]] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.machine = machine
        self.memory = machine.pipeline_memory
        self.equipment = equipment
        self.options = options
        self.token = token
        self.restored = dict(restored or {})
        # A fingerprint that neither a cache nor a later process can ask for is not worked out.
        self.keyed = equipment.cache is not None or equipment.storage.durable or options.resume is not False
        self._previous = previous
        self._last_time: asyncio.Future[PipelineMemory | None] | None = None
        self.slots = asyncio.Semaphore(equipment.max_concurrency)
        self.flights: dict[str, asyncio.Future[StepFinished | None]] = {}
        self.static: dict[str, dict[str, str]] = {}
        self.memo: dict[Any, Any] = {}
        self.by_name = {step.name: step for step in pipeline.steps}
        self._order = {step.name: index for index, step in enumerate(pipeline.steps)}
        self._serial: list[tuple[int, str]] = []
        self._serial_busy = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Event()
        self._gate.set()
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] = self._loop.create_future()
        self._unwritten: list[Event] = []
        self._breath = 0.0
        self.cancelled = False

    # -- the run ----------------------------------------------------------------------------

    async def drive(self) -> None:
        """Run until nothing is left to do, the run is cancelled, or it cannot be recorded.

        Raises:
            StorageError: A result could not be recorded; nothing goes on.
            CancelledError: Somebody cancelled the task that waits here.
        """
        self._breath = self._loop.time() + BREATH
        self._offer([step.name for step in self.machine.get_ready_steps()])
        self._settle_idle()
        try:
            await self._idle
        finally:
            await self._stop_tasks()

    async def finish(self, seconds: float) -> None:
        """Record how the run ended."""
        statuses = self.machine.scheduler.step_status.values()
        # A step that its condition skipped, or one behind it, is no failure.
        success = not self.cancelled and all(
            status.has_value or status is StepStatus.SKIPPED for status in statuses
        )
        await self.conclude(
            RunFinished(run_id=self.memory.run_id, success=success, cancelled=self.cancelled, seconds=seconds)
        )

    def cancel(self) -> None:
        """Stop now. May be called on the run's loop only, any number of times."""
        self.cancelled = True
        if not self._idle.done():
            self._idle.set_result(None)

    def pause(self) -> None:
        """Start no further unit of work."""
        if self._gate.is_set():
            self._gate.clear()
            self.emit(RunPaused(run_id=self.memory.run_id))

    def unpause(self) -> None:
        """Go on after :meth:`pause`."""
        if not self._gate.is_set():
            self.emit(RunUnpaused(run_id=self.memory.run_id))
            self._gate.set()

    async def may_start(self) -> None:
        """Wait while the run is paused."""
        if not self._gate.is_set():
            await self._gate.wait()

    async def last_time(self) -> PipelineMemory | None:
        """The memory of the run before this one, read at the first question."""
        if self._previous is None:
            return None
        if self._last_time is None:
            self._last_time = asyncio.ensure_future(self._previous())
        return await self._last_time

    # -- events -----------------------------------------------------------------------------

    def emit(self, event: Event) -> Change | None:
        """Apply an event and tell the observers; storage gets it with the next record."""
        if not isinstance(event, PASSING):
            self._unwritten.append(event)
        return self._apply(event)

    async def conclude(self, *events: Event) -> Change | None:
        """Record events, and only then let anybody act on them.

        Raises:
            StorageError: They could not be recorded; they were not applied either.
        """
        batch = [*self._unwritten, *events]
        self._unwritten = []
        memory = self.memory
        storage = self.equipment.storage
        await storage.append(memory.pipeline_id, memory.run_id, batch, token=self.token)
        change: Change | None = None
        for event in events:
            change = self._apply(event)
        if any(isinstance(event, MemorySaved) for event in events):
            await storage.save_memories(memory.pipeline_id, memory.memories)
        return change

    def warn_from_anywhere(self, message: str) -> None:
        """:meth:`warn` from any thread."""
        self._loop.call_soon_threadsafe(self.warn, message)

    def warn(self, message: str, step: str | None = None) -> None:
        """Tell the user something that does not stop the run, once."""
        if message not in self.memory.warnings:
            self.emit(Warned(run_id=self.memory.run_id, message=message, step=step))

    def _apply(self, event: Event) -> Change | None:
        change = self.machine.apply(event)
        for observer in tuple(self.equipment.observers):
            try:
                observer(event)
            except Exception as error:
                # A view that breaks must not cost the user her run; it is told and left out.
                self.equipment.observers.remove(observer)
                self.warn(f"Observer {observer!r} failed and is no longer called: {error!r}")
        return change

    # -- scheduling -------------------------------------------------------------------------

    def _offer(self, names: Sequence[str]) -> None:
        for name in names:
            if self.by_name[name].execution_mode is ExecutionMode.SERIAL:
                heapq.heappush(self._serial, (self._order[name], name))
            else:
                self._spawn(name)
        following = self._next_serial()
        if following is not None:
            self._spawn(following)

    def _next_serial(self) -> str | None:
        if self._serial_busy or not self._serial:
            return None
        self._serial_busy = True
        return heapq.heappop(self._serial)[1]

    def _spawn(self, name: str) -> None:
        task = self._loop.create_task(self._worker(name), name=f"tagent-nb {name}")
        self._tasks.add(task)
        task.add_done_callback(self._worker_done)

    def _worker_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None and not self._idle.done():
                self._idle.set_exception(error)
        self._settle_idle()

    def _settle_idle(self) -> None:
        if not self._tasks and not self._idle.done():
            self._idle.set_result(None)

    async def _worker(self, name: str) -> None:
        """Run a step, and go on with one that it made ready in the same task: a hop less each."""
        following: str | None = name
        while following is not None:
            step = self.by_name[following]
            change = await run_step(self, step)
            ready = change.ready if change is not None else []
            if change is not None and change.doomed:
                ready = [*ready, *await self._skip(change.doomed)]
            following = self._follow(step, ready)
            now = self._loop.time()
            if now >= self._breath:
                await asyncio.sleep(0)
                self._breath = self._loop.time() + BREATH

    def _follow(self, step: PipelineStep, ready: Sequence[str]) -> str | None:
        if step.execution_mode is ExecutionMode.SERIAL:
            self._serial_busy = False
        concurrent: list[str] = []
        for name in ready:
            if self.by_name[name].execution_mode is ExecutionMode.SERIAL:
                heapq.heappush(self._serial, (self._order[name], name))
            else:
                concurrent.append(name)
        following = self._next_serial()
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
            if self.machine.scheduler.status_of(name).is_final:
                continue
            status = self.machine.scheduler.status_of(cause)
            change = await self.conclude(
                StepSkipped(
                    run_id=self.memory.run_id,
                    step=name,
                    reason=f"step {cause!r} {_ENDED.get(status, 'did not complete')}",
                    cause=cause,
                )
            )
            if change is not None:
                ready.extend(change.ready)
                waiting.extend(change.doomed)
        return ready

    async def _stop_tasks(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*tuple(self._tasks), return_exceptions=True)


_ENDED = {
    StepStatus.FAILED: "failed",
    StepStatus.SKIPPED: "was skipped",
    StepStatus.CANCELLED: "was cancelled",
}
