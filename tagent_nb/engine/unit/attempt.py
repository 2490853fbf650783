"""Attempts at one unit of work: slots, timeouts, retries, and what failed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import ApprovalMiddleware, Approvals
from tagent_nb.engine.background import apart, in_own_context, in_thread, is_cancelled, run_shielded
from tagent_nb.engine.batches import Batches
from tagent_nb.engine.concurrency import RunSignals, SerialLock, Slot, Slots
from tagent_nb.engine.recorder import ValueChecks
from tagent_nb.engine.unit.prepared import PreparedStep, StepOutputs
from tagent_nb.engine.unit.work import Preparation, WorkItem, read_heavy
from tagent_nb.errors import RejectedError, RetryableError, StepError, StepTimeoutError, TagentError
from tagent_nb.events import (
    NO_ENTRIES,
    NO_USAGE,
    CallRecorded,
    Event,
    FactLearned,
    MemorySaved,
    StepFailed,
    StepFinished,
    StepRetried,
    TokenUsage,
    step_finished,
    step_started,
)
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.runners import (
    UNKNOWN_REASON,
    StepContext,
    calls_user_code,
    collected,
    lines_of,
    raise_as_own,
    reading,
    unread_again,
    unseen_files,
    user_traceback,
)
from tagent_nb.serde import FROZEN, StoredValue, is_bulky, own_copy
from tagent_nb.user_objects import blame, class_name, message_of

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.runners import CallMiddleware, Lines

MAX_BACKOFF = 30.0
"""Most seconds between two attempts, unless the other side asks for more."""

NON_RETRYABLE = (NameError, SyntaxError, ImportError, AttributeError, TypeError, NotImplementedError)
"""Mistakes in the user's code, which another attempt would only repeat."""

DATA_ERRORS = (ValueError, LookupError, ArithmeticError, AssertionError, RecursionError)
"""What a Python step says of the data that it reads: another attempt reads the same. A model may write
other arguments for a tool, so that they are tried again in agent steps."""

FILE_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    UnsupportedOperation,
)
"""Errors of the system that are about a path, and not about a connection."""


_SMALL = frozenset({type(None), bool, int, float})


class Attempts:
    """Makes the attempts at the units of one run.

    Args:
        context: Of the run.
        recorder: Of the run.
        preparation: What steps read.
        approvals: Suspends what needs an approval.
        batches: Sends the requests of steps that ask in batches.
        signals: Whether anything may start.
        lock: What SERIAL steps share.
        checks: Looks at values before they are stored.
    """

    def __init__(
        self,
        context: RunContext,
        recorder: Recorder,
        preparation: Preparation,
        approvals: Approvals,
        batches: Batches,
        signals: RunSignals,
        lock: SerialLock,
        checks: ValueChecks,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._preparation = preparation
        self._approvals = approvals
        self._batches = batches
        self._signals = signals
        self._lock = lock
        self._checks = checks
        self._slots = Slots(context.services.max_concurrency, signals)
        network = context.services.network_concurrency
        self._network_slots = self._slots if network is None else Slots(network, signals)
        self._row_slots: dict[str, Slots] = {}

    async def run(self, work: WorkItem, candidate: list[Event] | None = None) -> list[Event]:
        """Run a unit until it gives a value or must be given up.

        A step's value is suspended where the step says so, and so is ``candidate``: events that end with a
        value that is known already.
        """
        step = work.step
        if self._context.keyed:
            work.why = await self._preparation.why_it_runs(work)
        if work.prepared.plain is not None and candidate is None:
            events = await self.run_plain(work.prepared, work.outputs, work)
            return events if isinstance(events, list) else await events
        if not work.has_yielded:  # else it has waited for an equal unit, and another worker has its place
            work.slot = self.slot(work)
        if step.approve:
            candidate = candidate or self._approvals.recorded(work)
        return await self._run(work, candidate, step.retry_count + 1, time.monotonic())

    async def _run(
        self, work: WorkItem, candidate: list[Event] | None, attempt: int, began: float
    ) -> list[Event]:
        step = work.step
        while True:
            if self._signals.paused_or_stopping:
                await self._signals.may_start()
            learned: list[Event] = []
            work.calls.clear()
            await read_heavy(map(work.outputs.get, work.prepared.read_names))
            inputs = await self._inputs(work)
            shared = await self._shared(step)
            # What it uses counts even when it is stopped: what stops it finds it here.
            context = self._recorder.attempts[work.unit] = self._step_context(
                work, attempt, learned, inputs, shared
            )
            try:
                events, candidate = candidate, None
                if events is None:
                    value = await self._attempt(work, context)
                    seconds = time.monotonic() - began - work.waited
                    if is_bulky(value):
                        value = await in_thread(encoded, self._context, value)
                    finished = self._finished(work.prepared, work, value, attempt, seconds, context)
                    events = [*learned, finished]
                    self._checks.look_for_secrets(step.name, events)
                return await self._approvals.suspend(work, events, context) if step.approve else events
            except Exception as error:  # the user's code and the model's side may raise anything
                if self._signals.failing:
                    raise
                seconds = time.monotonic() - began - work.waited
                if not _may_be_tried_again(work.prepared, error, attempt):
                    work.slot.end()
                    return [failed(self._context.run_id, work, error, attempt, seconds, context)]
                await self._wait_for_next(work, error, attempt, context)
            attempt += 1

    # -- the short way ----------------------------------------------------------------------

    async def run_plain(
        self, prepared: PreparedStep, outputs: StepOutputs, work: WorkItem | None = None
    ) -> list[Event] | Coroutine[Any, Any, list[Event]]:
        """One attempt at a unit of a step that is ``plain``: :meth:`run` with nothing that it does not need.

        Args:
            prepared: The step.
            outputs: What the unit may read, by name.
            work: The unit; it may be left out where there are no fingerprints, and the body asks for nothing.

        Returns:
            The events of the unit; or, where its attempt has failed and another may succeed, what is left to
            do for them: to wait, and to go on.
        """
        plain, step = prepared.plain, prepared.step
        assert plain is not None
        if self._signals.paused_or_stopping:
            await self._signals.may_start()
        began = time.monotonic()
        learned: list[Event] = []
        context: StepContext | None = None
        opened = reading() if self._context.keyed else None
        if plain.provided:
            assert work is not None
            await read_heavy(map(work.outputs.get, work.prepared.read_names))
            inputs = await self._inputs(work)
            context = self._recorder.attempts[work.unit] = self._step_context(
                work, 1, learned, inputs, await self._shared(step)
            )
            arguments = {parameter: inputs[name] for parameter, name in plain.parameters}
            for name in plain.provided:
                arguments[name] = context if name == "context" else getattr(context, name)
        else:
            arguments = {}
            for parameter, name in plain.parameters:
                output = outputs[name]
                if output is None:
                    arguments[parameter] = None
                    continue
                if self._context.keyed:
                    await read_heavy((output,))
                value = output.value
                if type(value) not in FROZEN:
                    value = await self._own(prepared, work, name, value)
                arguments[parameter] = value
        if opened is not None:
            opened.expect(unseen_files(step, arguments, self._context.services.namespace))
        slots = self._slots
        try:
            if not slots.take_now():
                await slots.take()
            try:
                self._recorder.publish(
                    step_started(
                        prepared.run_id,
                        step.name,
                        None if work is None else work.item,
                        1,
                        "" if work is None else work.why,
                    )
                )
                with collected(self._lines, prepared, outputs, work, context):
                    try:
                        with opened or _UNWATCHED:
                            value = await _body(prepared, plain.function, arguments)
                    except BaseException as error:
                        raise_as_own(step, error, context)
                    finally:
                        if is_cancelled():
                            await self._refuse_own_cancel(step)
                if step.output_schema is not None:
                    value = step.validate_output(value)
            finally:
                slots.give_back()
            seconds = time.monotonic() - began
            if type(value) not in _SMALL and is_bulky(value):
                value = await in_thread(encoded, self._context, value)
            files: Mapping[str, str] = NO_ENTRIES
            if opened is not None and opened.any:
                files = await in_thread(opened.files)
            finished = self._finished(prepared, work, value, 1, seconds, context, files)
            events: list[Event] = [*learned, finished]
            if self._checks.searching:
                self._checks.look_for_secrets(step.name, events)
            return events
        except Exception as error:  # the user's code may raise anything
            if self._signals.failing:
                raise
            work = work or WorkItem(prepared, outputs, "", {})
            if not _may_be_tried_again(prepared, error, 1):
                seconds = time.monotonic() - began
                return [failed(prepared.run_id, work, error, 1, seconds, context)]
            return self._after_failure(work, error, began, context)

    async def _after_failure(
        self, work: WorkItem, error: Exception, began: float, context: StepContext | None
    ) -> list[Event]:
        """Go on with a unit whose first attempt has failed."""
        work.slot = self.slot(work)
        await self._wait_for_next(work, error, 1, context or self._step_context(work, 1, [], {}, {}))
        return await self._run(work, None, 2, began)

    async def _own(self, prepared: PreparedStep, work: WorkItem | None, name: str, value: Any) -> Any:
        """A unit's own copy of a value that it reads, or that of all items of its step."""
        if work is None or work.item is None or name == prepared.source.step:
            return await _copy_of(value)
        return await self._shared_copy(prepared, name, value)

    def _lines(
        self, prepared: PreparedStep, outputs: StepOutputs, work: WorkItem | None, context: StepContext | None
    ) -> Lines:
        """Where what a body prints goes, made when it prints."""
        if context is None:
            work = work or WorkItem(prepared, outputs, "", {})
            context = self._step_context(work, 1, [], {}, {})
        return lines_of(context)

    def slot(self, work: WorkItem) -> Slot:
        """The slot that a unit is to have."""
        prepared = work.prepared
        slots = self._slots_of(prepared)
        if prepared.shares_calls:
            # Its calls take slots of the run, not its rows: see CallSlots.
            slots = self._row_slots.setdefault(prepared.name, Slots(prepared.at_once, self._signals))
        return Slot(prepared.name, prepared.serial, slots, self._lock, work.on_yield)

    def _slots_of(self, prepared: PreparedStep) -> Slots:
        return self._network_slots if prepared.asks_network else self._slots

    # -- one attempt ------------------------------------------------------------------------

    async def _attempt(self, work: WorkItem, context: StepContext) -> Any:
        step = work.step
        await work.slot.take()
        try:
            self._recorder.publish(
                step_started(context.run_id, step.name, work.item, context.attempt, work.why)
            )
            if step.timeout is None:
                return step.validate_output(await self._value(work, context))
            try:
                async with asyncio.timeout(step.timeout) as limit:
                    context.limit = limit
                    value = await self._value(work, context)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise StepTimeoutError(
                    f"Step {step.name!r} took longer than its timeout of {step.timeout:g} s. "
                    "Raise timeout, or let the step do less."
                ) from None
            return step.validate_output(value)
        finally:
            work.slot.give_back()

    async def _value(self, work: WorkItem, context: StepContext) -> Any:
        running = work.prepared.runner.run(work.step, context)
        try:
            return await (in_own_context(running) if work.step.is_python else apart(running))
        finally:
            if is_cancelled():
                await self._refuse_own_cancel(work.step, context.limit)

    async def _refuse_own_cancel(self, step: PipelineStep, limit: asyncio.Timeout | None = None) -> None:
        """Take back that this task is cancelled, where neither the run nor a timeout has asked for it.

        A step that cancels the current task means itself, but the task goes on to other steps and items.

        Args:
            step: Whose code has just ended.
            limit: Its timeout.

        Raises:
            StepError: The step has cancelled itself.
            CancelledError: The run was stopped meanwhile.
        """
        task = asyncio.current_task()
        if self._signals.ending or task is None or (limit is not None and limit.expired()):
            return
        while task.cancelling():
            task.uncancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # a request that is not delivered yet comes here
        if self._signals.ending:
            raise asyncio.CancelledError
        raise StepError(
            f"Step {step.name!r} cancelled itself: its code called cancel() on the task that runs it. "
            "Return early, or raise an ordinary error."
        )

    def _step_context(
        self,
        work: WorkItem,
        attempt: int,
        learned: list[Event],
        inputs: Mapping[str, Any],
        shared: Mapping[str, Any],
    ) -> StepContext:
        context, step = self._context, work.step
        services, pipeline = context.services, context.pipeline
        publish, spend = self._recorder.publish, services.ledger.spend
        memory = self._recorder.memory
        middleware: tuple[CallMiddleware, ...] = ()
        if not step.is_python:
            outer, inner = self._middleware
            slots: tuple[CallMiddleware, ...] = ()
            if work.prepared.shares_calls:
                from tagent_nb.runners import CallSlots

                slots = (CallSlots(self._slots_of(work.prepared), self._signals),)
            middleware = (*outer, *slots, *inner, ApprovalMiddleware(self._approvals, work))
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:
            # A fact counts when its attempt has succeeded; nothing is learned from a failed attempt.
            if isinstance(event, FactLearned | MemorySaved):
                learned.append(event)
            elif _on_loop(loop):
                publish(event)
            else:
                loop.call_soon_threadsafe(publish, event)

        def count(name: str, usage: TokenUsage, cost: float | None) -> None:
            if _on_loop(loop):
                spend(name, usage, cost)
            else:
                loop.call_soon_threadsafe(spend, name, usage, cost)

        return StepContext(
            run_id=context.run_id,
            pipeline=pipeline.name,
            step=step.name,
            item=work.item,
            attempt=attempt,
            inputs=inputs,
            shared=shared,
            constraints=list(work.prepared.constraints),
            instructions=work.prepared.instructions,
            facts=work.facts,
            memories=work.memories,
            namespace=services.namespace,
            model=work.prepared.model,
            idempotency_key=f"{context.run_id}:{step.name}:{work.item or ''}:{work.key[:16]}",
            emit=emit,
            middleware=middleware,
            offline=context.options.offline,
            prices=services.prices,
            refusals=self._approvals.refusals(work) if memory.pending else (),
            learned=learned,
            on_spend=count,
            watched=any(getattr(observer, "reads_text", True) for observer in services.observers),
            quirks=services.quirks,
            batch=None if step.is_python else self._batches.of(work),
            rows=work.rows,
        )

    @cached_property
    def _middleware(self) -> tuple[tuple[CallMiddleware, ...], tuple[CallMiddleware, ...]]:
        """What the calls of agent steps pass, the first one outermost: before what needs a slot, and after.

        What an interrupted attempt has recorded is neither paid again nor slowed down. What answers an
        offline run counts as it did when it was recorded, so that a budget stops the run where it did then.
        """
        from tagent_nb.engine.recordings import interrupted_calls
        from tagent_nb.runners import Cassette, ReplayMiddleware

        services, options = self._context.services, self._context.options
        before = interrupted_calls(self._recorder.memory) if options.resume is not False else {}
        open_calls = {unit: calls for unit, calls in before.items() if not options.forces(unit[0])}
        cassette = None if services.recorded is None else Cassette(services.recorded)
        replay = ReplayMiddleware(self._record_call, open_calls, cassette, services.schemas, self._code_of)
        if cassette is None:
            return (*services.middleware, replay), tuple(services.paid)
        return (*services.middleware, *services.paid, replay), ()

    async def _record_call(self, call: CallRecorded) -> None:
        """Record a call, also when its step is stopped meanwhile: it was made."""
        await run_shielded(self._recorder.record(call))

    def _code_of(self, tool: Callable[..., Any]) -> str:
        from tagent_nb.cache import tool_code

        return tool_code(tool, self._context.services.namespace, self._preparation.memo)

    # -- what it reads ----------------------------------------------------------------------

    async def _inputs(self, work: WorkItem) -> Mapping[str, Any]:
        """Only what the step reads: a value that is not read is never decoded.

        A Python body may change what it gets: each attempt has objects of its own. Items of a mapped step
        share their step's, but for the item itself.
        """
        body = work.step.body
        if not work.outputs or (body is not None and body.takes_nothing):
            return {}
        names = work.prepared.read_names
        values = {
            name: None if output is None else output.value
            for name, output in work.outputs.items()
            if name in names
        }
        if body is None:
            return values
        return {name: await self._own(work.prepared, work, name, value) for name, value in values.items()}

    async def _shared_copy(self, prepared: PreparedStep, name: str, value: Any) -> Any:
        """The copy of a value that all items of a mapped step share."""
        copies = prepared.shared_inputs
        if name not in copies:
            copy = await _copy_of(value)
            # Another item may have made one meanwhile: all share the same.
            copies.setdefault(name, copy)
        return copies[name]

    async def _shared(self, step: PipelineStep) -> Mapping[str, Any]:
        shared = self._context.pipeline.shared_context
        return {name: await _copy_of(value) for name, value in shared.items()} if step.is_python else shared

    # -- how it ends ------------------------------------------------------------------------

    async def _wait_for_next(
        self, work: WorkItem, error: Exception, attempt: int, context: StepContext
    ) -> None:
        wait = getattr(error, "retry_after", None) if issubclass(type(error), RetryableError) else None
        if issubclass(type(error), RejectedError):
            wait = 0.0  # a person waits for it
        ceiling = min(MAX_BACKOFF, self._context.services.retry_delay * 2 ** (attempt - 1))
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        delay = wait if wait is not None else random.uniform(0.0, ceiling)
        # Recorded at once: after a crash, answers to a failed attempt must not answer for the next one.
        await self._recorder.record(
            StepRetried(
                run_id=context.run_id,
                step=work.step.name,
                item=work.item,
                attempt=attempt,
                error_type=class_name(error),
                message=redact(message_of(error)),
                delay=delay,
                usage=context.usage,
                cost=context.cost,
            )
        )
        await asyncio.sleep(delay)

    def _finished(
        self,
        prepared: PreparedStep,
        work: WorkItem | None,
        value: Any,
        attempt: int,
        seconds: float,
        context: StepContext | None,
        files: Mapping[str, str] = NO_ENTRIES,
    ) -> StepFinished:
        storage, name = self._context.services.storage, prepared.name
        output = value if isinstance(value, StoredValue) else StoredValue.of(value)
        if context is not None and UNKNOWN_REASON in context.metadata:
            reason = context.metadata[UNKNOWN_REASON]
            self._recorder.warn(
                f"Step {name!r}: {context.metadata.get('model')!r} ended its answer with the reason "
                f"{reason!r}, whose meaning is not known. The answer is taken for whole and is not cached.",
                name,
            )
        if not storage.keeps(output):
            self._recorder.warn(
                f"Step {name!r}: its value cannot be stored and is computed again after a restart "
                f"({output.problem}).",
                name,
            )
        if storage.durable:
            self._checks.warn_of_losses(name, output)
        notes: Mapping[str, Any] = (context.metadata if context is not None else None) or NO_ENTRIES
        if work is not None and work.outdated:
            files = {**notes.get("files", files)}
            unread = unread_again(work.outdated, files)
            if unread:
                self._recorder.warn(
                    f"Step {name!r} did not read {', '.join(unread)} again, though it has changed: its value "
                    "may be made from what the file was. Does a function that it calls remember what it "
                    "returned (functools.cache)? The step runs again the next time.",
                    name,
                )
                files |= unread
        if files:
            notes = {**notes, "files": files}
        return step_finished(
            prepared.run_id,
            name,
            None if work is None else work.item,
            output,
            "" if work is None else work.key,
            NO_ENTRIES if work is None or work.item is not None else work.components,
            attempt,
            seconds,
            NO_USAGE if context is None else context.usage,
            0.0 if context is None else context.cost,
            notes,
        )


_UNWATCHED = contextlib.nullcontext()
"""Of an attempt whose files do not count: nothing is kept by what it reads."""


@calls_user_code("its code")
async def _body(
    prepared: PreparedStep, function: Callable[..., Coroutine[Any, Any, Any]], arguments: Mapping[str, Any]
) -> Any:
    """Only this of a plain step is its user's code, and may be blamed for holding up the loop."""
    return await in_own_context(function(**arguments))


def failed(
    run_id: str,
    work: WorkItem,
    error: Exception,
    attempt: int,
    seconds: float = 0.0,
    context: StepContext | None = None,
) -> StepFailed:
    """The end of a unit whose last attempt failed."""
    return StepFailed(
        run_id=run_id,
        step=work.step.name,
        item=work.item,
        error_type=class_name(error),
        message=redact(message_of(error)),
        traceback="" if issubclass(type(error), StepError) else user_traceback(error),
        attempt=attempt,
        seconds=seconds,
        usage=context.usage if context is not None else TokenUsage(),
        cost=context.cost if context is not None else 0.0,
        metadata=context.metadata if context is not None else {},
    )


def unprepared(
    recorder: Recorder, step: PipelineStep, error: BaseException, item: str | None = None
) -> StepFailed:
    """The end of a step, or of one item, that broke before or after its attempts.

    It has an unknown tool, say, or a value whose methods raise: any error of those is this unit's own, and so
    is a value of another step whose bytes are damaged.

    Raises:
        BaseException: ``error`` itself, if it ends the program, and so the run.
    """
    is_ours = issubclass(type(error), TagentError)
    message = (
        message_of(error)
        if is_ours
        else f"What it reads, returns or refers to cannot be handled: {blame(error)}"
    )
    context = recorder.attempts.get((step.name, item))  # what its attempt has spent counts
    return StepFailed(
        run_id=recorder.memory.run_id,
        step=step.name,
        item=item,
        error_type=class_name(error),
        message=redact(message),
        traceback="" if is_ours else user_traceback(error),
        attempt=1 if context is None else context.attempt,
        usage=NO_USAGE if context is None else context.usage,
        cost=0.0 if context is None else context.cost,
    )


def encoded(context: RunContext, value: Any) -> StoredValue:
    """A value with all that its record asks of it, worked out in a thread."""
    output = StoredValue.of(value)
    if context.services.storage.keeps(output) and context.keyed:
        _ = output.digest
    return output


async def _copy_of(value: Any) -> Any:
    return await in_thread(own_copy, value) if is_bulky(value) else own_copy(value)


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _may_be_tried_again(prepared: PreparedStep, error: Exception, attempt: int) -> bool:
    """Whether a unit has attempts left after this one, and another may succeed."""
    step = prepared.step
    return attempt < max(step.retry_count + 1, step.max_retries + 1) and (
        _may_succeed(error, step.is_python) or (bool(step.retry_on) and _is_retried(prepared, error))
    )


def _may_succeed(error: Exception, is_python: bool) -> bool:
    kind = type(error)  # not isinstance: the class of the user's own error may say another one
    if issubclass(kind, RejectedError):
        return bool(getattr(error, "retry", False))
    if issubclass(kind, RetryableError | StepTimeoutError):
        return True
    if issubclass(kind, TagentError):
        return False
    if is_python:
        if issubclass(kind, ExceptionGroup):
            return all(_may_succeed(part, is_python) for part in error.exceptions)  # type: ignore[attr-defined]
        if issubclass(kind, FILE_ERRORS):
            return False
        if issubclass(kind, OSError):
            return True  # what answers over a network and is no JSON, say, is a ValueError as well
        if issubclass(kind, DATA_ERRORS):
            return False
    return not issubclass(kind, NON_RETRYABLE)


def _is_retried(prepared: PreparedStep, error: Exception) -> bool:
    """Whether the step says so itself. Our own errors have to be named by a class of ours: a value that a
    check refuses is a ValueError, but not one of the code."""
    bases = type(error).__mro__
    if issubclass(type(error), TagentError):
        bases = tuple(base for base in bases if issubclass(base, TagentError))
    return not issubclass(type(error), RejectedError) and any(
        base is kind for base in bases for kind in prepared.retried_errors
    )
