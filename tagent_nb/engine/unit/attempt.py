"""Attempts at one unit of work: slots, timeouts, retries, and what failed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import ApprovalMiddleware, Approvals
from tagent_nb.engine.background import apart, in_thread, run_shielded
from tagent_nb.engine.concurrency import RunSignals, SerialLock, Slot
from tagent_nb.engine.unit.value_checks import ValueChecks
from tagent_nb.engine.unit.work import Preparation, WorkItem
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
    StepStarted,
    TokenUsage,
)
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.runners import UNKNOWN_REASON, StepContext, user_traceback
from tagent_nb.serde import StoredValue, is_bulky, own_copy
from tagent_nb.user_objects import blame, class_name, message_of

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.runners import CallMiddleware

MAX_BACKOFF = 30.0
"""Most seconds between two attempts, unless the other side asks for more."""

NON_RETRYABLE = (NameError, SyntaxError, ImportError, AttributeError, TypeError, NotImplementedError)
"""Mistakes in the user's code, which another attempt would only repeat."""


class Attempts:
    """Makes the attempts at the units of one run.

    Args:
        context: Of the run.
        recorder: Of the run.
        preparation: What steps read.
        approvals: Suspends what needs an approval.
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
        signals: RunSignals,
        lock: SerialLock,
        checks: ValueChecks,
    ) -> None:
        self._context = context
        self._recorder = recorder
        self._preparation = preparation
        self._approvals = approvals
        self._signals = signals
        self._lock = lock
        self._checks = checks
        self._slots = asyncio.Semaphore(context.services.max_concurrency)

    async def run(self, work: WorkItem, candidate: list[Event] | None = None) -> list[Event]:
        """Run a unit until it gives a value or must be given up.

        A step's value is suspended where the step says so, and so is ``candidate``: events that end with a
        value that is known already.
        """
        step = work.step
        work.slot = Slot(step.name, work.prepared.serial, self._slots, self._lock, work.on_yield)
        if step.approve:
            candidate = candidate or self._approvals.recorded(work)
        attempt = step.retry_count + 1
        last = max(attempt, step.max_retries + 1)
        if self._context.keyed:
            work.why = await self._preparation.why_it_runs(work)
        began = time.monotonic()
        while True:
            if self._signals.paused_or_stopping:
                await self._signals.may_start()
            learned: list[Event] = []
            work.calls.clear()
            await self._decode_large(work)
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
                    events = [*learned, self._finished(work, value, attempt, seconds, context)]
                    self._checks.look_for_secrets(step.name, events)
                return await self._approvals.suspend(work, events, context) if step.approve else events
            except Exception as error:  # the user's code and the model's side may raise anything
                if self._signals.failing:
                    raise
                if attempt >= last or not _may_succeed(error):
                    seconds = time.monotonic() - began - work.waited
                    work.slot.end()
                    return [failed(self._context.run_id, work, error, attempt, seconds, context)]
                await self._wait_for_next(work, error, attempt, context)
            attempt += 1

    # -- one attempt ------------------------------------------------------------------------

    async def _attempt(self, work: WorkItem, context: StepContext) -> Any:
        step = work.step
        await work.slot.take()
        try:
            self._recorder.publish(
                StepStarted(
                    run_id=context.run_id,
                    step=step.name,
                    item=work.item,
                    attempt=context.attempt,
                    why=work.why,
                )
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
        return await (running if work.step.is_python else apart(running))

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
            middleware = (*self._middleware, ApprovalMiddleware(self._approvals, work))
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
        )

    @cached_property
    def _middleware(self) -> tuple[CallMiddleware, ...]:
        """What the calls of agent steps pass, the first one outermost.

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
        inner = (replay, *services.paid) if cassette is None else (*services.paid, replay)
        return (*services.middleware, *inner)

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
        if work.item is None:
            return {name: await _copy_of(value) for name, value in values.items()}
        common = work.prepared.shared_inputs
        source = work.prepared.source.step
        for name in values.keys() - common.keys() - {source}:
            copy = await _copy_of(values[name])
            # Another item may have made one meanwhile: all share the same.
            common.setdefault(name, copy)
        return {
            name: common[name] if name in common else await _copy_of(value) for name, value in values.items()
        }

    async def _shared(self, step: PipelineStep) -> Mapping[str, Any]:
        shared = self._context.pipeline.shared_context
        return {name: await _copy_of(value) for name, value in shared.items()} if step.is_python else shared

    async def _decode_large(self, work: WorkItem) -> None:
        """Decode in a thread what the unit reads, where that takes long: all else goes on meanwhile."""
        for name, output in work.outputs.items():
            large = isinstance(output, StoredValue) and output.is_large
            if large and name in work.prepared.read_names:
                await in_thread(getattr, output, "value")

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
        self, work: WorkItem, value: Any, attempt: int, seconds: float, context: StepContext
    ) -> StepFinished:
        storage, name = self._context.services.storage, work.step.name
        output = value if isinstance(value, StoredValue) else StoredValue.of(value)
        reason = context.metadata.get(UNKNOWN_REASON)
        if reason is not None:
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
        return StepFinished(
            run_id=context.run_id,
            step=name,
            item=work.item,
            output=output,
            key=work.key,
            components=NO_ENTRIES if work.item is not None else work.components,
            attempt=attempt,
            seconds=seconds,
            usage=context.usage,
            cost=context.cost,
            metadata=context.metadata or NO_ENTRIES,
        )


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


def _may_succeed(error: Exception) -> bool:
    kind = type(error)  # not isinstance: the class of the user's own error may say another one
    if issubclass(kind, RejectedError):
        return bool(getattr(error, "retry", False))
    if issubclass(kind, RetryableError | StepTimeoutError):
        return True
    return not issubclass(kind, (TagentError, *NON_RETRYABLE))
