"""The requests of steps that send them in batches: collected, sent, waited for, and found again.

A batch is recorded before it is sent, and once more when its provider has taken it, so that no process pays
for it again. See ADR 0037.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb.engine.approval.gate import Approvals, StepSuspended
from tagent_nb.engine.concurrency import RunSignals, SerialLock
from tagent_nb.engine.unit.prepared import model_of
from tagent_nb.errors import StorageError
from tagent_nb.events import BatchCancelled, BatchPrepared, BatchSubmitted, StepUnblocked, StepWaiting
from tagent_nb.formatting import count
from tagent_nb.redaction import redact
from tagent_nb.user_objects import message_of

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.memory.batch_records import BatchRecords, RecordedBatch
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.engine.unit.work import WorkItem
    from tagent_nb.runners import BatchedCall, ModelCall, StepContext

T = TypeVar("T")

MOST_TROUBLES = 10
"""Times in a row that a provider may fail to say how a batch stands before the run leaves it for later."""

HELD = "what batches that are out leave of the budget"
"""What requests wait for that are not sent, since those that the run does not wait for may take the rest."""

MOST_RUNS = 20
"""The newest runs whose open batches are looked at for requests that are about to be sent."""

AT_ONCE = 50
"""Requests for which budgets are asked before anything else may happen."""

CLOSING = 10.0
"""Seconds that a stopped run waits for a provider to say that it has taken a batch."""

GROWTH = 1.5
"""By how much each wait for a batch is longer than the one before."""


class _LeftForLater(Exception):  # noqa: N818  # what waits for the batch is suspended, not failed
    """A batch cannot be asked about now."""


@dataclass(eq=False)
class _Entry:
    """A request that waits for its answer.

    Attributes:
        work: Its unit.
        call: The request.
        number: Its number in its batch, once it is in one.
        answer: What the provider gave for it, and the batch; ``None`` for both if it is to be sent again.
    """

    work: WorkItem
    call: BatchedCall
    answer: asyncio.Future[tuple[Any, Any] | None]
    number: int = -1

    def give(self, answer: tuple[Any, Any] | None) -> None:
        """Give it its answer, unless its unit was stopped meanwhile."""
        with suppress(asyncio.InvalidStateError):
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Let it fail, unless its unit was stopped meanwhile."""
        with suppress(asyncio.InvalidStateError):
            self.answer.set_exception(error)


@dataclass(eq=False)
class _Sent:
    """A batch that was sent, or was about to be.

    Attributes:
        marker: What the ids of its requests begin with.
        size: How many requests it has.
        model: Whose it is.
        entries: Requests whose units wait for it, by number.
        batch: What the provider knows it as.
        results: What the provider gave, by id of the request, once it has ended.
        done: How many of its requests are done, where the provider says so.
        supposed: Whether it may be another one.
        cancelled: Whether the provider was asked to cancel it.
        unsure: Whether the provider may have taken it, and could not say so.
        lost: Whether the provider does not have it: its requests are sent anew.
        suspended: Why its units do not wait for it in this session; empty while they do.
    """

    marker: str
    size: int
    model: Any
    entries: dict[int, _Entry] = field(default_factory=dict)
    batch: Any = None
    results: dict[str, Any] | None = None
    done: int | None = None
    supposed: bool = False
    cancelled: bool = False
    unsure: bool = False
    lost: bool = False
    suspended: str = ""

    @property
    def text(self) -> str:
        """How it stands, in words."""
        done = "" if self.done is None else f"{self.done:,} of "
        return f"batch {self.batch.id}: {done}{count(self.size, 'request')}{' done' if done else ''}"


class UnitBatch:
    """What the context of an attempt has to send its requests in batches.

    Args:
        queue: That of its step.
        work: Its unit.
    """

    def __init__(self, queue: StepBatches, work: WorkItem) -> None:
        self._queue = queue
        self._work = work

    def takes(self, call: ModelCall) -> bool:
        """Whether a request is sent in a batch, or was: a live step takes what was sent before."""
        from tagent_nb.runners import call_key

        return bool(self._work.step.batch) or self._queue.was_sent(self._work, call_key(call))

    async def ask(self, call: ModelCall) -> Any:
        """The answer to a request, when its batch is answered. Its unit has no slot until :meth:`go_on`.

        Raises as :func:`~tagent_nb.runners.models.batches.answer_of`, and:

        Raises:
            BudgetExceededError: It may not be sent.
            StepSuspended: The run does not wait for the batch.
        """
        from tagent_nb.runners import BatchedCall, answer_of

        context, queue = call.context, self._queue
        batched = await BatchedCall.of(call)
        result, batch = await queue.answer(self._work, batched)
        context.metadata["batch"] = batch.id
        if queue.then_live:
            context.batch = None  # what goes back to the model from now on is asked at once
        return answer_of(call, result, batch)

    async def go_on(self, context: StepContext) -> None:
        """Wait for a slot, after an answer or a failure; nothing of the budgets is reserved any more.

        A unit that waits for a slot must not keep from others what they wait for with a slot.

        Args:
            context: Of its attempt, whose timeout stands still meanwhile.
        """
        if self._work.slot.yielded:
            await self._queue.returned(self._work, context)


class StepBatches:
    """The requests of one step.

    Args:
        batches: Of the run.
        step: The step's name.
        then_live: Whether a unit sends one request in a batch only.

    Attributes:
        step: The step's name.
        then_live: As above.
    """

    def __init__(self, batches: Batches, step: str, then_live: bool) -> None:
        self._batches = batches
        self.step = step
        self.then_live = then_live
        self._queued: list[_Entry] = []
        self._waiting: set[_Entry] = set()
        self._sent: dict[str, _Sent] = {}
        self._returning = 0  # units that have their answer and are about to work on
        self._sending = False
        self._waits = False

    # -- units ------------------------------------------------------------------------------

    async def answer(self, work: WorkItem, call: BatchedCall) -> tuple[Any, Any]:
        """What the provider gave for a request, and the batch."""
        while True:
            answer = await self._waited(work, call)
            if answer is not None:
                return answer

    def was_sent(self, work: WorkItem, key: str) -> bool:
        """Whether a request waits in a batch."""
        return self._batches.find(work, key) is not None

    async def _waited(self, work: WorkItem, call: BatchedCall) -> tuple[Any, Any] | None:
        began = time.monotonic()
        entry = _Entry(work, call, asyncio.get_running_loop().create_future())
        entry.answer.add_done_callback(self._count_returning)
        await self._batches.take_over(entry)
        try:
            with call.call.context.waiting("its batch"):
                self._put(entry)
                self._waiting.add(entry)
                if work.slot.yielded:
                    self._returning -= 1
                    self.send_when_idle()  # it is sent once more
                else:
                    work.slot.yield_slot()
                answer = await entry.answer
        except StepSuspended:
            work.slot.end()
            self._batches.leave(work)
            raise
        finally:
            self._waiting.discard(entry)
            work.waited += time.monotonic() - began
        return answer

    def fail(self, error: BaseException) -> None:
        """What is done beside the units has failed: they must not wait for it for ever."""
        self._queued.clear()
        self._sending = False
        for entry in self._waiting:
            entry.fail(error)

    def _count_returning(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and not isinstance(answer.exception(), StepSuspended):
            self._returning += 1

    async def returned(self, work: WorkItem, context: StepContext) -> None:
        """Give a unit that has its answer a slot."""
        began = time.monotonic()
        try:
            with context.untimed():
                await work.slot.take()
        finally:
            self._returning -= 1
            work.waited += time.monotonic() - began

    @property
    def _is_at_work(self) -> bool:
        """Whether a unit of the step may still bring a request."""
        return bool(self._returning or self._batches.at_work(self.step))

    def _put(self, entry: _Entry) -> None:
        """Let a request wait in the batch that it was sent in, or for the next one."""
        recorded = self._batches.find(entry.work, entry.call.key)
        if recorded is None:
            self._queued.append(entry)
            return
        batch, entry.number = recorded
        sent = self._sent.get(batch.prepared.marker)
        if sent is None:
            sent = self._sent[batch.prepared.marker] = self._taken_up(batch, entry)
        if sent.lost:
            self._queued.append(entry)
            return
        if entry.call.call.admission is not None:
            entry.call.call.admission.open_anyway()  # it is paid
        if sent.results is not None:
            self._answer(sent, entry)
        elif sent.suspended:
            if entry.call.call.admission is not None:
                entry.call.call.admission.keep()
            entry.fail(StepSuspended())
        else:
            sent.entries[entry.number] = entry

    def _answer(self, sent: _Sent, entry: _Entry) -> None:
        """Give a request what its batch has for it."""
        from tagent_nb.runners import request_id

        assert sent.results is not None
        result = sent.results.pop(request_id(sent.marker, entry.number), None)
        again = sent.supposed if result is None else result.status == "canceled" and sent.cancelled
        if again:
            self._batches.drop(entry)
        entry.give(None if again else (result, sent.batch))

    # -- sending ----------------------------------------------------------------------------

    def send_when_idle(self) -> None:
        """Send what waits, now that no unit of the step is at work: nothing more comes to it."""
        if self._is_at_work:
            return
        if self._queued and not self._sending:
            self._sending = True
            self._batches.start(self._send(), self.fail)
        elif not self._queued and not self._waits and self._batches.waits(self.step):
            self._show()

    async def _send(self) -> None:
        from tagent_nb.runners import parted

        await self._batches.may_send()
        self._sending = False
        queued, self._queued = self._queued, []
        entries: dict[int, _Entry] = {}
        for number, entry in enumerate(queued):
            admission = entry.call.call.admission
            try:
                if admission is not None and admission.is_held():
                    self._batches.left.setdefault(self.step, HELD)
                    entry.fail(StepSuspended())
                    continue
                if not self._is_admitted(entry):
                    # The others want about as much, and all go into the next batch.
                    self._queued = [*queued[number:], *self._queued]
                    self._batches.start(self._again_later(entry), self.fail)
                    break
            except Exception as error:  # the budget is used up: its unit says so
                entry.fail(error)
            else:
                entries[id(entry.call)] = entry
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        try:
            parts = parted([entry.call for entry in entries.values()])
        except Exception as error:  # the model is the user's, or another library's
            for entry in entries.values():
                entry.fail(error)
            return
        for calls in parts:
            self._batches.start(self._submit([entries[id(call)] for call in calls]), self.fail)

    @staticmethod
    def _is_admitted(entry: _Entry) -> bool:
        """Whether the budgets allow a request, which is reserved then."""
        admission = entry.call.call.admission
        return admission is None or admission.open()

    async def _again_later(self, entry: _Entry) -> None:
        """Try again when a call under way has ended, and the budget may have more left."""
        admission = entry.call.call.admission
        assert admission is not None
        await admission.changed()
        self.send_when_idle()

    async def _submit(self, entries: list[_Entry]) -> None:
        """Send a batch, and wait for it."""
        sent = _Sent(uuid.uuid4().hex, len(entries), entries[0].call.call.model)
        for number, entry in enumerate(entries):
            entry.number = number
            sent.entries[number] = entry
        self._sent[sent.marker] = sent
        try:
            await self._batches.record(
                BatchPrepared(
                    run_id=self._batches.run_id,
                    step=self.step,
                    marker=sent.marker,
                    rows=tuple(str(entry.work.item) for entry in entries),
                    keys=tuple(entry.call.key for entry in entries),
                )
            )
            began = time.time()
            calls = [entry.call for entry in entries]
            await self._batches.persistently(lambda: self._batches.finished(self._create(sent, calls, began)))
        except _LeftForLater as error:
            self._suspend(sent, str(error))
            return
        except Exception as error:  # what the provider says of the batch, it says of each request
            self._end(sent, error)
            return
        await self._wait_for(sent, look_first=sent.batch.status == "ended")

    async def _create(self, sent: _Sent, calls: list[BatchedCall], began: float) -> None:
        """Let the provider take a batch, unless it has: an answer that does not come says neither."""
        from tagent_nb.runners import create_batch, is_refusal

        if sent.unsure:
            await self._find(sent, calls[:1], began)
        if sent.batch is None:
            try:
                sent.batch = await create_batch(calls, sent.marker)
            except Exception as error:
                sent.unsure = not is_refusal(error)
                raise
        await self._record_submitted(sent)

    async def _record_submitted(self, sent: _Sent) -> None:
        from tagent_nb.runners import handle_of

        await self._batches.record(
            BatchSubmitted(
                run_id=self._batches.run_id,
                step=self.step,
                marker=sent.marker,
                handle=handle_of(sent.batch),
                supposed=sent.supposed,
            )
        )

    async def _find(self, sent: _Sent, calls: list[BatchedCall], since: float) -> None:
        """Look whether the provider has a batch."""
        from tagent_nb.runners import find_batch

        others = self._batches.ids()
        match = await find_batch(calls, sent.marker, sent.size, since, others)
        sent.unsure = False
        if match is not None:
            sent.batch, sent.supposed = match

    # -- taking up --------------------------------------------------------------------------

    def _taken_up(self, recorded: RecordedBatch, entry: _Entry) -> _Sent:
        """Wait for a batch that an earlier session has sent."""
        from tagent_nb.runners import batch_of

        prepared = recorded.prepared
        sent = _Sent(prepared.marker, len(prepared.rows), entry.call.call.model)
        sent.supposed, sent.cancelled = recorded.supposed, recorded.cancelled
        if recorded.handle is not None:
            try:
                sent.batch = batch_of(recorded.handle)
            except ValueError as error:  # to send its requests again would be to pay them twice
                name = recorded.handle.get("id", "?")
                self._suspend(
                    sent,
                    f"batch {name}, which this version of pydantic-ai cannot read back "
                    f"({redact(message_of(error))}). Resume the run with the version that has sent it",
                )
                return sent
        self._batches.start(self._take_up(sent, entry.call, prepared.at), self.fail)
        return sent

    async def _take_up(self, sent: _Sent, call: BatchedCall, since: float) -> None:
        try:
            if sent.batch is None:
                await self._batches.persistently(lambda: self._find(sent, [call], since))
                if sent.batch is None:
                    self._lose(sent)
                    return
                await self._record_submitted(sent)
        except _LeftForLater as error:
            self._suspend(sent, str(error))
            return
        except Exception as error:  # to give it up would be to pay for it again, if it is there
            self._suspend(sent, self._batches.unknown(error))
            return
        await self._wait_for(sent, look_first=True)

    def _lose(self, sent: _Sent) -> None:
        """No provider has the batch: its requests wait for the next one."""
        sent.lost = True
        for entry in sent.entries.values():
            self._batches.drop(entry)
            self._queued.append(entry)
        sent.entries.clear()
        self.send_when_idle()

    # -- waiting ----------------------------------------------------------------------------

    async def _wait_for(self, sent: _Sent, *, look_first: bool) -> None:
        from tagent_nb.runners import is_gone

        try:
            await self._follow(sent, look_first=look_first)
        except _LeftForLater as error:
            self._suspend(sent, str(error))
        except Exception as error:  # the provider's, or its client's
            if is_gone(sent.model, sent.batch, error, given_up=sent.cancelled):
                self._lose(sent)
            else:
                # To give it up would be to pay for it again.
                self._suspend(sent, self._batches.unknown(error))

    async def _follow(self, sent: _Sent, *, look_first: bool) -> None:
        """Wait until a batch has ended, and give out its answers."""
        batches, model = self._batches, sent.model
        interval = batches.poll[0]
        while True:
            self._show()
            if look_first:
                sent.batch = await batches.persistently(lambda: model.batch_status(sent.batch))
            if sent.batch.status == "ended":
                break
            if look_first or not batches.waiting_allowed:
                sent.done = await batches.progress(model, sent.batch)
                self._show()
            if not batches.waiting_allowed:
                raise _LeftForLater(sent.text)
            await batches.sleep(interval)
            interval, look_first = min(interval * GROWTH, batches.poll[1]), True
        results = await batches.persistently(lambda: model.batch_results(sent.batch))
        sent.results = {result.custom_id: result for result in results}
        sent.done = sent.size
        self._unblock()
        for number, entry in tuple(sent.entries.items()):
            self._answer(sent, entry)
            del sent.entries[number]  # now: what has no answer is suspended, if one cannot be given

    def _show(self) -> None:
        """Say that the step waits, and how its batches stand."""
        waiting = [sent for sent in self._sent.values() if sent.entries and sent.batch is not None]
        if waiting and not self._is_at_work:
            self._waits = True
            reason = "; ".join(sent.text for sent in waiting)
            self._batches.publish(StepWaiting(run_id=self._batches.run_id, step=self.step, reason=reason))

    def _unblock(self) -> None:
        if self._waits:
            self._waits = False
            self._batches.publish(StepUnblocked(run_id=self._batches.run_id, step=self.step))

    def _suspend(self, sent: _Sent, reason: str) -> None:
        sent.suspended = reason
        for entry in sent.entries.values():
            if entry.call.call.admission is not None:
                entry.call.call.admission.keep()  # what it takes is paid, in whatever session
        self._batches.left[self.step] = reason
        self._end(sent, StepSuspended())

    def _end(self, sent: _Sent, error: BaseException) -> None:
        entries, sent.entries = sent.entries, {}
        self._unblock()
        for entry in entries.values():
            entry.fail(error)

    def under_way(self) -> Iterable[_Sent]:
        """Batches that the provider has, or may have."""
        return self._sent.values()


class Batches:
    """The batches of one run.

    Args:
        context: Of the run.
        recorder: Of the run.
        approvals: Knows what is left waiting.
        signals: Whether anything may be sent.
        lock: Tells when no unit of a step is at work.

    Attributes:
        left: Steps that do not wait for their batches any longer in this session, and how these stand.
        poll: Seconds between two looks at a batch, at first and at most.
        cancelling: Whether batches are cancelled at their providers when the run is stopped.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        approvals: Approvals,
        signals: RunSignals,
        lock: SerialLock,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._approvals = approvals
        self._signals = signals
        self._lock = lock
        self._steps: dict[str, StepBatches] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._creations: set[asyncio.Task[None]] = set()
        self.run_id = context.run_id
        self.left: dict[str, str] = {}
        self.poll = context.services.batch_poll
        self.waiting_allowed = context.options.wait
        self.cancelling = False
        self._own_context = copy_context()
        self._open_at_first = {step for step, _ in recorder.memory.batches.units()}
        self._others: list[tuple[str, BatchRecords]] | None = None
        self._taking_over = asyncio.Lock()
        lock.on_idle = self._idle

    def of(self, work: WorkItem) -> UnitBatch | None:
        """What sends the requests of a unit; ``None`` where each is sent at once."""
        step, records = work.step, self._recorder.memory.batches
        if self._context.options.offline:
            if records.is_open(*work.unit):
                # To let it fail would be to lose what is paid.
                self.left[step.name] = f"{records.names(step.name)}, which an offline run does not ask about"
                self.leave(work)
                raise StepSuspended
            return None
        if not step.batch and (step.name not in self._open_at_first or work.prepared.shares_calls):
            return None
        then_live = step.batch is not True  # a step that is live now takes what was sent before
        if then_live and self._recorder.memory.batches.is_answered(*work.unit):
            return None
        queue = self._steps.get(step.name)
        if queue is None:
            queue = self._steps[step.name] = StepBatches(self, step.name, then_live)
        return UnitBatch(queue, work)

    async def beside(self, work: WorkItem, flight: asyncio.Future[T]) -> T:
        """Wait for an equal unit, which may itself wait for its batch: meanwhile this one is not at work."""
        began = time.monotonic()
        work.slot.yield_slot()
        try:
            done = await asyncio.shield(flight)
            await work.slot.take()
        finally:
            work.waited += time.monotonic() - began
            work.slot.give_back()
        return done

    def leave(self, work: WorkItem) -> None:
        """A unit does not wait for its batch in this session."""
        self._approvals.suspended.add(work.unit)
        self._recorder.publish(
            StepWaiting(run_id=self.run_id, step=work.step.name, item=work.item, reason="its batch")
        )

    # -- what the queues of steps need ----------------------------------------------------------

    def find(self, work: WorkItem, key: str) -> tuple[RecordedBatch, int] | None:
        """The batch that a request of this key was sent in by an earlier session, and its number there."""
        return self._recorder.memory.batches.find(*work.unit, key)

    async def take_over(self, entry: _Entry) -> None:
        """Let a request wait in an open batch of another run that has it: it is paid once."""
        work, key = entry.work, entry.call.key
        if self._others == [] or self._context.options.passes_cache(work.step.name):
            return
        async with self._taking_over:
            if self._others is None:
                self._others = await batches_of_others(self._context)
            records = self._recorder.memory.batches
            if not self._others or self.find(work, key) is not None:
                return
            for run_id, others in self._others:
                match = others.find(*work.unit, key)
                if match is None or match[0].cancelled or records.has(match[0].prepared.marker):
                    continue
                await self._record_taken(run_id, match[0])
                return

    async def _record_taken(self, run_id: str, batch: RecordedBatch) -> None:
        prepared = batch.prepared
        events: list[Any] = [replace(prepared, run_id=self.run_id, of_run=run_id)]
        if batch.handle is not None:
            events.append(
                BatchSubmitted(
                    run_id=self.run_id,
                    step=prepared.step,
                    marker=prepared.marker,
                    handle=batch.handle,
                    supposed=batch.supposed,
                )
            )
        await self.record(*events)
        name = "a batch" if batch.handle is None else f"batch {batch.handle['id']}"
        self._recorder.warn(
            f"Step {prepared.step!r}: {name} of run {run_id} has requests of this run already. They are "
            f"taken from it, and not paid again; force={[prepared.step]!r} asks anew.",
            prepared.step,
        )

    def drop(self, entry: _Entry) -> None:
        """The batch that a request was in has no answer for it: it is sent again, and reserved anew then."""
        self._recorder.memory.batches.drop(*entry.work.unit, entry.call.key)
        if entry.call.call.admission is not None:
            entry.call.call.admission.close()

    def at_work(self, step: str) -> int:
        """How many units of a step are at work."""
        return self._lock.workers(step)

    def waits(self, step: str) -> bool:
        """Whether units of a step wait for batches."""
        return any(sent.entries for sent in self._steps[step].under_way())

    def _idle(self, step: str) -> None:
        queue = self._steps.get(step)
        if queue is not None:
            queue.send_when_idle()

    def ids(self) -> set[str]:
        """What providers call the batches of this run that are recorded."""
        return self._recorder.memory.batches.ids()

    async def may_send(self) -> None:
        """Wait while the run is paused."""
        await self._signals.may_start()

    async def record(self, *events: Any) -> None:
        """Record events."""
        await self._recorder.record(*events)

    def publish(self, event: Any) -> None:
        """Publish an event that is not stored."""
        self._recorder.publish(event)

    def start(self, work: Coroutine[Any, Any, None], on_error: Callable[[BaseException], None]) -> None:
        """Do something beside the units, and say if it fails."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                on_error(error)

        # Not in the context of the unit that has asked last: what is printed there is that unit's.
        context = self._own_context.copy()
        task = asyncio.get_running_loop().create_task(work, name="tagent-nb batch", context=context)
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def finished(self, creation: Coroutine[Any, Any, None]) -> None:
        """Let a provider take a batch; that goes on for a while when the run is stopped."""
        task = asyncio.get_running_loop().create_task(creation, name="tagent-nb batch")
        self._creations.add(task)
        task.add_done_callback(self._creations.discard)
        await asyncio.shield(task)

    @staticmethod
    async def progress(model: Any, batch: Any) -> int | None:
        """How many requests of a batch are done; ``None`` where that cannot be learned."""
        from tagent_nb.runners import progress_of

        try:
            return await progress_of(model, batch)
        except Exception:  # it is only shown: whether the batch has ended is asked elsewhere
            return None

    async def sleep(self, seconds: float) -> None:
        """Wait before the next look."""
        await asyncio.sleep(seconds)

    async def persistently(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do something that asks a provider, again while its trouble may pass.

        Raises:
            _LeftForLater: It has not passed; or it is about the key, say, and not about any request.
            Exception: The provider refuses it, or has the batch no longer.
        """
        from tagent_nb.runners import passes, wait_of

        interval = self.poll[0]
        most = MOST_TROUBLES if self.waiting_allowed else 3
        trouble = 0
        while True:
            trouble += 1
            try:
                return await action()
            except Exception as error:  # the provider's, or its client's
                if not passes(error):
                    raise
                if trouble == most:
                    raise _LeftForLater(self.unknown(error)) from error
                wait = wait_of(error)
            await self.sleep(interval if wait is None else wait)
            interval = min(interval * GROWTH, self.poll[1])

    @staticmethod
    def unknown(error: Exception) -> str:
        """That a batch is left for later, since its provider does not say how it stands."""
        return (
            f"a batch that cannot be asked about now ({redact(message_of(error))}). Resume the run to ask "
            "again; cancel_batches() or 'Cancel batches' in the panel gives it up, and a resumed run sends "
            "its requests anew"
        )

    # -- the end ----------------------------------------------------------------------------

    async def close(self) -> None:
        """End what is done beside the units; a batch that is being sent is recorded first."""
        await _ended(self._tasks)
        if self._creations:
            await asyncio.wait(self._creations, timeout=CLOSING)
            # A resumed run asks the provider for a batch that is not recorded.
            await _ended(self._creations)
        if self.cancelling:
            await self._cancel_all()

    async def _cancel_all(self) -> None:
        taken_up = set()
        for queue in self._steps.values():
            for sent in queue.under_way():
                if sent.batch is not None:
                    taken_up.add(sent.marker)
                    if sent.batch.status != "ended" and not sent.cancelled:
                        await self._cancel(queue.step, sent)
        for recorded in self._recorder.memory.batches.under_way():
            if recorded.prepared.marker not in taken_up:
                await self._cancel_recorded(recorded)

    async def _cancel_recorded(self, recorded: RecordedBatch) -> None:
        """Cancel a batch of an earlier session, which this one has not asked about yet."""
        from tagent_nb.runners import Models, batch_of

        prepared, handle, pipeline = recorded.prepared, recorded.handle or {}, self._context.pipeline
        try:
            step = pipeline.get_step(prepared.step)
            model = await Models().get(model_of(pipeline, step, self._context.services.model))
            sent = _Sent(prepared.marker, len(prepared.rows), model, batch=batch_of(handle))
        except Exception as error:  # its step may be gone, and its record another version's
            self._warn_of(prepared.step, str(handle.get("id", "?")), error)
        else:
            await self._cancel(prepared.step, sent)

    def _warn_of(self, step: str, name: str, error: Exception) -> None:
        self._recorder.warn(
            f"Step {step!r}: batch {name} could not be cancelled ({redact(message_of(error))}). A resumed "
            "run takes it up."
        )

    async def _cancel(self, step: str, sent: _Sent) -> None:
        from tagent_nb.runners import cancel_batch

        if sent.supposed:
            self._recorder.warn(
                f"Step {step!r}: batch {sent.batch.id} is not cancelled, since it may be another "
                "program's. A resumed run takes it up."
            )
            return
        try:
            await cancel_batch(sent.model, sent.batch)
        except Exception as error:  # the provider's, or its client's
            self._warn_of(step, sent.batch.id, error)
            return
        await self.record(BatchCancelled(run_id=self.run_id, step=step, marker=sent.marker))


async def batches_of_others(context: RunContext) -> list[tuple[str, BatchRecords]]:
    """The open batches of other runs of the pipeline by run, the newest first.

    A run that cannot be read has none here: what is wrong with it is said where it is listed.
    """
    from tagent_nb.engine.memory.load import read_memory

    storage, name = context.services.storage, context.pipeline.name
    others = []
    for info in reversed(await storage.runs(context.pipeline.id, limit=MOST_RUNS)):
        if info.undecided and info.run_id != context.run_id:
            with suppress(StorageError):
                memory = await read_memory(storage, name, info.run_id, context.services.schemas)
                memory.batches.begin_session()
                others.append((info.run_id, memory.batches))
    return others


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for their ends."""
    left = tuple(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
