"""The loop of one run: starts each step the moment its own dependencies are done, until nothing is left.

And what notices when a step that is async blocks the loop that all runs of the kernel share.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from inspect import iscoroutinefunction
from types import FrameType
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import Approvals, StepSuspended
from tagent_nb.engine.background import run_shielded
from tagent_nb.engine.batches import Batches
from tagent_nb.engine.concurrency import RunSignals, SerialLock
from tagent_nb.events import RunFinished, RunPaused, RunUnpaused, StepCancelled, StepSkipped, TokenUsage
from tagent_nb.pipeline import NO_CHANGE, Change, ExecutionMode, PipelineStep, StepStatus
from tagent_nb.runners import USER_CODE, routed

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.engine.unit.prepared import PreparedStep
    from tagent_nb.runners import StepContext

YIELD_INTERVAL = 0.01
"""Seconds after which a chain of steps that never waits lets the rest of the loop run."""

_UNDER_WAY = (StepStatus.RUNNING, StepStatus.WAITING)


class RunLoop:
    """Drives one run to its end on the current loop: ready steps in, tasks out.

    Args:
        context: Of the run.
        recorder: Of the run; steps that its memory knows as done are not run.
        signals: Tells the units of the run whether they may go on.
        lock: What SERIAL steps share.
        approvals: Knows what is left waiting.
        batches: Has requests at providers.
        prepare: Prepares a step that is ready.
        run_step: Runs a step to its record, and returns what became ready; or what is left to do for that,
            where a short one waits before another attempt.

    Attributes:
        cancelled: Whether the run was cancelled.
        timed_out: Whether it was stopped since its timeout was over.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        signals: RunSignals,
        lock: SerialLock,
        approvals: Approvals,
        batches: Batches,
        prepare: Callable[[PipelineStep], PreparedStep],
        run_step: Callable[[PreparedStep], Awaitable[Change | Awaitable[Change]]],
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._signals = signals
        self._lock = lock
        self._approvals = approvals
        self._batches = batches
        self._prepare = prepare
        self._run_step = run_step
        self._steps = {step.name: step for step in context.pipeline.steps}
        self._tasks: set[asyncio.Task[None]] = set()
        # Short steps that are ready, how many are at work, and workers that have not begun.
        self._queue: deque[PreparedStep] = deque()
        self._workers = self._starting = 0
        self._most = context.services.max_concurrency
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] = self._loop.create_future()
        self._yield_at = 0.0
        self._began = self._loop.time()
        self.cancelled = False
        self.timed_out = False
        lock.on_freed = self._start_next
        recorder.on_failure = self._not_recorded

    # -- the run ----------------------------------------------------------------------------

    async def drive(self) -> None:
        """Run until nothing is left to do or the run is cancelled, and record how it ended.

        Raises:
            StorageError: A result could not be recorded; nothing goes on.
            CancelledError: The task that waits here was cancelled.
        """
        began = self._loop.time()
        limit = self._context.options.timeout
        timer = None if limit is None else self._loop.call_later(limit, self.time_out)
        try:
            with routed():
                await self._work()
        except asyncio.CancelledError:
            self.cancelled = True
            await run_shielded(self._finish(began))
            raise
        except BaseException:  # also what ends the program
            self._give_up()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        await run_shielded(self._finish(began))

    async def _work(self) -> None:
        self._yield_at = self._loop.time() + YIELD_INTERVAL
        watch = self._watch()
        self._offer([step.name for step in self._recorder.machine.get_ready_steps()])
        self._settle_idle()
        try:
            await self._idle
        finally:
            if self._tasks or not self._recorder.machine.scheduler.is_done:
                await self._stop_tasks()
            await self._batches.close()
            if watch is not None:
                watch.end()

    def _watch(self) -> LoopWatch | None:
        """What notices when a step blocks the loop; nothing where none can."""
        return LoopWatch(self._recorder) if any(map(may_block, self._context.pipeline.steps)) else None

    async def _finish(self, began: float) -> None:
        """Record how the run ended."""
        seconds = self._loop.time() - began
        statuses = self._recorder.machine.scheduler.step_status.values()
        # A step that its condition skipped, or one behind it, is no failure.
        success = not (self.cancelled or self.timed_out) and all(
            status.has_value or status is StepStatus.SKIPPED for status in statuses
        )
        try:
            await self._recorder.record(
                RunFinished(
                    run_id=self._context.run_id,
                    success=success,
                    cancelled=self.cancelled,
                    timed_out=self.timed_out,
                    seconds=seconds,
                    waiting=tuple(name for name, item in self._approvals.suspended if item is None),
                )
            )
        except Exception:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Nothing can be recorded any more, but the run must not be taken for a running one."""
        self._recorder.publish(RunFinished(run_id=self._context.run_id, success=False))

    # -- control, on the run's loop only -----------------------------------------------------

    def cancel(self) -> None:
        """Stop now. May be called any number of times."""
        if not self._idle.done():
            self.cancelled = True
            self._idle.set_result(None)

    def time_out(self) -> None:
        """Stop now, since the run's timeout is over: it has failed, and can be resumed."""
        if not self._idle.done():
            self.timed_out = True
            limit = self._context.options.timeout
            self._recorder.warn(
                f"The run was stopped: it took longer than its timeout of {limit:g} s. "
                "What is done is kept. Carry it on with resume=True (--resume), and a longer timeout= "
                "(--timeout) if need be."
            )
            self._idle.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Stop now, and let :meth:`drive` raise ``error``."""
        if not self._idle.done():
            self._signals.failing = True
            self._idle.set_exception(error)

    def pause(self) -> None:
        """Start no further unit of work."""
        if not self._signals.paused:
            self._signals.pause()
            self._recorder.publish(RunPaused(run_id=self._context.run_id))

    def unpause(self) -> None:
        """Go on after :meth:`pause`."""
        if self._signals.paused:
            self._recorder.publish(RunUnpaused(run_id=self._context.run_id))
            self._signals.unpause()

    def _not_recorded(self, error: BaseException) -> None:
        if self._tasks:
            self.fail(error)

    # -- scheduling -------------------------------------------------------------------------

    def _offer(self, names: Sequence[str]) -> None:
        """Let steps that are ready start, each when it may."""
        for name in names:
            step = self._steps[name]
            if step.execution_mode is ExecutionMode.SERIAL:
                self._lock.offer(name)
            else:
                self._start_concurrent(self._prepare(step))
        self._start_next()

    def _start_next(self) -> None:
        following = self._lock.next()
        if following is not None:
            self._spawn(self._prepare(self._steps[following]))

    def _start_concurrent(self, prepared: PreparedStep) -> None:
        """Start a step: in a task of its own, or a short one in a task that it shares with others."""
        if not prepared.short:
            self._spawn(prepared)
            return
        self._queue.append(prepared)
        self._call_worker()

    def _call_worker(self) -> None:
        """Start one more worker for the queue, if a step waits in it and more may be at work."""
        if self._workers < self._most and self._starting < len(self._queue):
            self._workers += 1
            self._starting += 1
            self._start(self._work_off(), "tagent-nb worker")

    def _spawn(self, prepared: PreparedStep) -> None:
        self._start(self._worker(prepared), f"tagent-nb {prepared.name}")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
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

    async def _work_off(self) -> None:
        """Run what is in the queue."""
        self._starting -= 1
        self._workers -= 1  # a worker counts while it is at a step of the queue
        if self._queue:
            await self._worker(self._queue.popleft())

    async def _worker(self, prepared: PreparedStep) -> None:
        """Run a step, and go on with one that it made ready in the same task: a hop less each."""
        while True:
            counts = prepared.short and not prepared.serial
            self._workers += counts
            try:
                change = await self._run_step(prepared)
                if not isinstance(change, Change):
                    if counts:
                        # It waits before its next attempt, and what is in the queue does not wait for that.
                        self._start(self._rest(prepared, change), f"tagent-nb {prepared.name}")
                        change = NO_CHANGE
                    else:
                        change = await change
            except StepSuspended:
                change = NO_CHANGE
            finally:
                self._workers -= counts
            ready = change.ready
            if change.upstream_failed:
                ready = [*ready, *await self._skip(change.upstream_failed)]
            following = self._following(prepared, ready)
            if following is None:
                return
            if following.serial or not following.short:
                self._call_worker()  # this one goes on with a step that may take long
            prepared = following
            now = self._loop.time()
            if now >= self._yield_at:
                await asyncio.sleep(0)
                self._yield_at = self._loop.time() + YIELD_INTERVAL

    async def _rest(self, prepared: PreparedStep, rest: Awaitable[Change]) -> None:
        """End a step whose first attempt has failed, and go on as its worker does."""
        change = await rest
        failed = await self._skip(change.upstream_failed)
        following = self._following(prepared, [*change.ready, *failed])
        if following is not None:
            await self._worker(following)

    def _following(self, prepared: PreparedStep, ready: Sequence[str]) -> PreparedStep | None:
        """Let what a step made ready start, and return what its worker is to run next."""
        if prepared.serial:
            self._lock.release(prepared.name)
        following: PreparedStep | None = None
        queue = self._queue
        # A slot is free if a worker could still start: its own step may go before those that wait.
        saturated = queue and not self._starting and self._workers + 1 >= self._most
        for name in ready:
            step = self._steps[name]
            if step.execution_mode is ExecutionMode.SERIAL:
                self._lock.offer(name)
                continue
            below = self._prepare(step)
            if following is None and not (saturated and below.short):
                following = below
            else:
                self._start_concurrent(below)
        serial = self._lock.next()
        if serial is not None:
            if following is not None:
                self._start_concurrent(following)
            return self._prepare(self._steps[serial])
        if following is None and queue:
            return queue.popleft()
        return following

    async def _skip(self, upstream_failed: Sequence[tuple[str, str]]) -> list[str]:
        """Skip steps that can never run, and those that cannot after that; return what became ready."""
        ready: list[str] = []
        waiting = list(upstream_failed)
        while waiting:
            name, cause = waiting.pop(0)
            failed = self._recorder.machine.scheduler.status_of(cause) is StepStatus.FAILED
            reason = f"step {cause!r} {'failed' if failed else 'was skipped'}"
            change = await self._recorder.record(
                StepSkipped(run_id=self._context.run_id, step=name, reason=reason, cause=cause)
            )
            ready.extend(change.ready)
            waiting.extend(change.upstream_failed)
        return ready

    async def _stop_tasks(self) -> None:
        self._signals.stop()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*tuple(self._tasks), return_exceptions=True)
        try:
            # What has ended is recorded, and only what has not is cancelled.
            await self._recorder.settled()
        finally:
            self._cancel_units()

    def _cancel_units(self) -> None:
        """Say of each unit under way that it was stopped."""
        undecided = self._approvals.only_undecided
        for name, step in self._recorder.memory.steps.items():
            for key, item in (step.items or {}).items():
                if item.status in _UNDER_WAY and (name, key) not in undecided:
                    self._cancelled(name, key, item.attempts, 0.0)
            if step.status in _UNDER_WAY and (name, None) not in undecided:
                # The clock may have been set meanwhile: no step takes longer than the run.
                seconds = max(0.0, time.time() - (step.started_at or time.time()))
                self._cancelled(name, None, step.attempts, min(seconds, self._loop.time() - self._began))

    def _cancelled(self, step: str, item: str | None, attempt: int, seconds: float) -> None:
        context = self._recorder.attempts.get((step, item))
        self._recorder.publish(
            StepCancelled(
                run_id=self._context.run_id,
                step=step,
                item=item,
                attempt=attempt,
                seconds=seconds,
                usage=context.usage if context is not None else TokenUsage(),
                cost=context.cost if context is not None else 0.0,
            )
        )


BLOCKED = 1.0
"""Seconds for which the loop may be blocked before its user is warned."""

PERIOD = 0.25
"""Seconds from one look to the next."""


def may_block(step: PipelineStep) -> bool:
    """Whether code of a user runs on the loop: async Python, async checks, async tools of an agent."""
    return step.body is None or step.body.is_async or any(map(iscoroutinefunction, step.checks or ()))


class LoopWatch:
    """Asks a run's loop for a sign of life now and then, and looks at its stack if none comes.

    One thread does so for all runs; what runs on the loop pays nothing for it. Made on the loop; :meth:`end`
    ends it.

    Args:
        recorder: Of the run that is warned, once for each of its steps that blocks the loop.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._loop_thread = threading.get_ident()
        self._reported: set[tuple[str, str]] = set()
        self._sign: threading.Event | None = None
        self._asked_at = 0.0
        _watcher.add(self)

    def end(self) -> None:
        """Watch no longer."""
        _watcher.remove(self)

    def tick(self, now: float) -> None:
        """Ask, or see whether there was a sign. ``now`` is that of a monotonic clock, in seconds.

        Raises:
            RuntimeError: The loop is closed.
        """
        if self._sign is None or self._sign.is_set():
            self._sign, self._asked_at = threading.Event(), now
            self._recorder.call_from_anywhere(self._sign.set)
        elif now - self._asked_at >= BLOCKED:
            self._look()  # again at each tick: another step may block it before there is a sign

    def _look(self) -> None:
        culprit = self.blocking_step()
        if culprit is None or culprit in self._reported:
            return
        self._reported.add(culprit)
        step, what = culprit
        self._recorder.warn_from_anywhere(
            f"Step {step!r} held up everything for more than {BLOCKED:g} s: {what} is async, but blocks. "
            "Meanwhile no other step goes on, no timeout ends it, and Stop has to wait. Write it with def "
            "instead of async def, or await what takes long: asyncio.sleep instead of time.sleep, "
            "asyncio.to_thread for other calls.",
            step,
        )

    def blocking_step(self) -> tuple[str, str] | None:
        """The step of this run whose code is on the loop's stack just now, and what of it."""
        frame: FrameType | None = sys._current_frames().get(self._loop_thread)
        while frame is not None:
            # A tool has a task of its own: its step is not below it.
            what = USER_CODE.get(frame.f_code)
            if what is not None:
                run_id, step = _unit_in(frame.f_locals)
                if run_id == self._recorder.memory.run_id:
                    return step, what
            frame = frame.f_back
        return None


def _unit_in(names: Mapping[str, Any]) -> tuple[str, str]:
    """Run and step of a function that calls code of a user, from its local names."""
    if "prepared" in names:
        return names["prepared"].run_id, names["prepared"].name
    context: StepContext = names["context"] if "context" in names else names["self"].context
    return context.run_id, context.step


class _Watcher:
    """The thread that ticks; it ends when there is nothing left to watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: set[LoopWatch] = set()
        self._thread: threading.Thread | None = None

    def add(self, watch: LoopWatch) -> None:
        with self._lock:
            self._watches.add(watch)
            # A forked child inherits the object, but the thread is dead in it.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="tagent-nb loop watch", daemon=True)
                self._thread.start()

    def remove(self, watch: LoopWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _serve(self) -> None:
        while True:
            time.sleep(PERIOD)
            with self._lock:
                watches = tuple(self._watches)
                if not watches:
                    self._thread = None
                    return
            for watch in watches:
                try:
                    watch.tick(time.monotonic())
                except RuntimeError:
                    self.remove(watch)  # its loop is closed


_watcher = _Watcher()
