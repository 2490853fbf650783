"""Attempts at one unit of work: slots, timeouts, retries, and what failed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.approval.gate import ApprovalGate
from tagent_nb.engine.background import apart, in_thread
from tagent_nb.engine.concurrency import Place
from tagent_nb.engine.step_reads import source_of
from tagent_nb.engine.unit.work import Work, instructions_of, read_names, runner_of, step_model, why_it_runs
from tagent_nb.errors import (
    DefinitionError,
    RejectedError,
    RetryableError,
    StepError,
    StepTimeoutError,
    TagentError,
)
from tagent_nb.events import (
    Event,
    FactLearned,
    InputTaken,
    MemorySaved,
    Output,
    StepFailed,
    StepFinished,
    StepRetried,
    StepStarted,
    TokenUsage,
)
from tagent_nb.pipeline import ExecutionMode, PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.runners import UNKNOWN_REASON, StepContext, StepRunner, user_traceback
from tagent_nb.serde import StoredValue, is_bulky, own_copy
from tagent_nb.user_objects import class_name, message_of

if TYPE_CHECKING:
    from tagent_nb.engine.run_loop import Run

LONGEST_DELAY = 30.0
"""Most seconds between two attempts, unless the other side asks for more."""

HOPELESS = (NameError, SyntaxError, ImportError, AttributeError, TypeError, NotImplementedError)
"""Mistakes in the user's code, which another attempt would only repeat."""


async def attempts(run: Run, work: Work, candidate: list[Event] | None = None) -> list[Event]:
    """Run a unit until it gives a value or must be given up.

    A step's value is held where the step says so, and so is ``candidate``: events that end with a value
    that is known already.
    """
    step = work.step
    serial = step.execution_mode is ExecutionMode.SERIAL
    work.place = Place(step.name, serial, run.slots, run.turns, work.on_aside)
    if step.approve:
        candidate = candidate or run.approvals.recorded(work)
    attempt = step.retry_count + 1
    last = max(attempt, step.max_retries + 1)
    if run.keyed:
        work.why = await why_it_runs(run, work)
    began = time.monotonic()
    while True:
        if run.held:
            await run.may_start()
        learned: list[Event] = []
        work.calls.clear()
        # What it uses counts even when it is stopped: whoever stops it finds it here.
        await _decode_large(run, work)
        inputs = await _inputs(run, work)
        shared = await _shared(run, step)
        context = run.live[work.unit] = _context(run, work, attempt, learned, inputs, shared)
        try:
            events, candidate = candidate, None
            if events is None:
                value = await _attempt(run, work, context)
                seconds = time.monotonic() - began - work.waited
                if is_bulky(value):
                    value = await in_thread(encoded, run, value)
                events = [*learned, _finished(run, work, value, attempt, seconds, context)]
                look_for_secrets(run, work, events)
            return await run.approvals.hold(work, events, context) if step.approve else events
        except Exception as error:  # the user's code and the model's side may raise anything
            if run.broken:
                raise
            if attempt >= last or not _may_succeed(error):
                seconds = time.monotonic() - began - work.waited
                work.place.end()
                return [failed(run, work, error, attempt, seconds, context)]
            await _wait_for_next(run, work, error, attempt, context)
        attempt += 1


async def _asked(runner: StepRunner, step: PipelineStep, context: StepContext) -> Any:
    work = runner.run(step, context)
    return await (work if step.is_python else apart(work))


async def _attempt(run: Run, work: Work, context: StepContext) -> Any:
    step = work.step
    await work.place.take()
    try:
        run.emit(
            StepStarted(
                run_id=context.run_id, step=step.name, item=work.item, attempt=context.attempt, why=work.why
            )
        )
        runner = runner_of(run, step)
        if step.timeout is None:
            return step.validate_output(await _asked(runner, step, context))
        try:
            async with asyncio.timeout(step.timeout) as limit:
                context.limit = limit
                value = await _asked(runner, step, context)
        except TimeoutError:
            if not limit.expired():
                raise
            raise StepTimeoutError(
                f"Step {step.name!r} took longer than its timeout of {step.timeout:g} s. "
                "Raise timeout, or let the step do less."
            ) from None
        return step.validate_output(value)
    finally:
        work.place.give()


def _context(
    run: Run,
    work: Work,
    attempt: int,
    learned: list[Event],
    inputs: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> StepContext:
    loop = asyncio.get_running_loop()

    def emit(event: Event) -> None:
        # A fact counts when its attempt has succeeded; a failed attempt teaches nothing.
        if isinstance(event, FactLearned | MemorySaved):
            learned.append(event)
        elif _on_loop(loop):
            run.emit(event)
        else:
            loop.call_soon_threadsafe(run.emit, event)

    def count(name: str, usage: TokenUsage, cost: float | None) -> None:
        if _on_loop(loop):
            ledger.spend(name, usage, cost)
        else:
            loop.call_soon_threadsafe(ledger.spend, name, usage, cost)

    step, ledger = work.step, run.equipment.ledger
    return StepContext(
        run_id=run.memory.run_id,
        pipeline=run.pipeline.name,
        step=step.name,
        item=work.item,
        attempt=attempt,
        inputs=inputs,
        shared=shared,
        constraints=[*run.pipeline.global_constraints, *step.constraints],
        instructions=instructions_of(run, step),
        facts=work.facts,
        memories=work.memories,
        namespace=run.equipment.namespace,
        model=step_model(run, step),
        idempotency_key=f"{run.memory.run_id}:{step.name}:{work.item or ''}:{work.key[:16]}",
        emit=emit,
        middleware=() if step.is_python else (*run.middleware, ApprovalGate(run.approvals, work)),
        offline=run.options.offline,
        prices=run.equipment.prices,
        refusals=run.approvals.refusals(work) if run.memory.held else (),
        learned=learned,
        on_spend=count,
        watched=any(getattr(observer, "reads_text", True) for observer in run.equipment.observers),
        quirks=run.equipment.quirks,
    )


async def _shared(run: Run, step: PipelineStep) -> Mapping[str, Any]:
    shared = run.pipeline.shared_context
    return {name: await _copy_of(value) for name, value in shared.items()} if step.is_python else shared


async def _copy_of(value: Any) -> Any:
    return await in_thread(own_copy, value) if is_bulky(value) else own_copy(value)


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def encoded(run: Run, value: Any) -> StoredValue:
    """A value with all that its record asks of it, worked out in a thread."""
    output = StoredValue.of(value)
    if run.equipment.storage.keeps(output) and run.keyed:
        _ = output.digest
    return output


async def _inputs(run: Run, work: Work) -> Mapping[str, Any]:
    """Only what the step reads: a value that nobody reads is never decoded.

    A Python body may change what it gets: each attempt has objects of its own. Items of a mapped step
    share their step's, but for the item itself.
    """
    body = work.step.body
    if not work.outputs or (body is not None and body.takes_nothing):
        return {}
    names = read_names(run, work.step, work.outputs)
    values = {
        name: None if output is None else output.value
        for name, output in work.outputs.items()
        if name in names
    }
    if body is None:
        return values
    if work.item is None:
        return {name: await _copy_of(value) for name, value in values.items()}
    common = run.common.setdefault(work.step.name, {})
    source = source_of(work.step).step
    for name in values.keys() - common.keys() - {source}:
        copy = await _copy_of(values[name])
        # Another item may have made one meanwhile: all share the same.
        common.setdefault(name, copy)
    return {name: common[name] if name in common else await _copy_of(value) for name, value in values.items()}


async def _decode_large(run: Run, work: Work) -> None:
    """Decode in a thread what the unit reads, where that takes long: all else goes on meanwhile."""
    for name, output in work.outputs.items():
        large = isinstance(output, StoredValue) and output.is_large
        if large and name in read_names(run, work.step, work.outputs):
            await in_thread(getattr, output, "value")


def _may_succeed(error: Exception) -> bool:
    kind = type(error)  # not isinstance: the class of the user's own error may say another one
    if issubclass(kind, RejectedError):
        return bool(getattr(error, "retry", False))
    if issubclass(kind, RetryableError | StepTimeoutError):
        return True
    return not issubclass(kind, (TagentError, *HOPELESS))


async def _wait_for_next(run: Run, work: Work, error: Exception, attempt: int, context: StepContext) -> None:
    asked = getattr(error, "retry_after", None) if issubclass(type(error), RetryableError) else None
    if issubclass(type(error), RejectedError):
        asked = 0.0  # somebody waits for it
    ceiling = min(LONGEST_DELAY, run.equipment.retry_delay * 2 ** (attempt - 1))
    # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    delay = asked if asked is not None else random.uniform(0.0, ceiling)
    # Recorded at once: after a crash, what a failed attempt was told must not answer for the next one.
    await run.conclude(
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


SEARCHED = 1_000_000
"""Most bytes of an encoded value that are searched for secrets: searching more would be felt."""


def look_for_secrets(run: Run, work: Work, events: list[Event]) -> None:
    """Warn of values of the user's that hold a secret of the environment, and are about to be stored.

    Raises:
        StepError: There is one, and the executor's ``secret_values`` is ``"fail"``.
    """
    equipment = run.equipment
    kept = equipment.storage.durable or equipment.cache is not None
    if not (run.secrets.needles and kept) or equipment.secret_values == "ignore":
        return
    for event in events:
        if isinstance(event, StepFinished):
            output, what = event.output, "its value"
        else:
            assert isinstance(event, FactLearned | MemorySaved)
            output, what = StoredValue.of(event.value), f"what it learned as {event.key!r}"
        name = _secret_in(run, output)
        if name is None:
            continue
        held = f"holds the value of the environment variable {name}, as it is or encoded"
        message = f"Step {work.step.name!r}: {what} {held}"
        if equipment.secret_values == "fail":
            raise StepError(f"{message}. Nothing of it was stored. Leave it out of what the step returns.")
        run.warn(
            f"{message}, and is stored with it. Leave it out of what the step returns, or let the step fail: "
            'PipelineExecutor(..., secret_values="fail").',
            work.step.name,
        )


def secret_of_input(run: Run, event: InputTaken) -> str:
    """What to warn of when a value that no step makes holds a secret and is about to be stored; else empty.

    Raises:
        DefinitionError: It holds a secret, and the executor's ``secret_values`` is ``"fail"``.
    """
    equipment = run.equipment
    if not run.secrets.needles or equipment.secret_values == "ignore" or not equipment.storage.durable:
        return ""
    name = _secret_in(run, event.output)
    if name is None:
        return ""
    message = f"Input {event.name!r} holds the value of the environment variable {name}, as it is or encoded"
    if equipment.secret_values == "fail":
        raise DefinitionError(f"{message}. Nothing was stored or run. Leave it out of the variable.")
    return f"{message}, and is stored with the run. Leave it out of the variable."


def _secret_in(run: Run, output: Output) -> str | None:
    """The variable whose value is in an output that can be stored."""
    stored = output if isinstance(output, StoredValue) else StoredValue.of(output.value)
    if not stored.storable:
        return None
    blob = stored.blob
    if len(blob) > SEARCHED or not run.secrets.are_in_bytes(blob):
        return None
    return next(name for _, name in run.secrets.found(blob.decode()))


def _finished(
    run: Run, work: Work, value: Any, attempt: int, seconds: float, context: StepContext
) -> StepFinished:
    output = value if isinstance(value, StoredValue) else StoredValue.of(value)
    reason = context.metadata.get(UNKNOWN_REASON)
    if reason is not None:
        run.warn(
            f"Step {work.step.name!r}: {context.metadata.get('model')!r} ended its answer with the reason "
            f"{reason!r}, whose meaning is not known. The answer is taken for whole and is not cached.",
            work.step.name,
        )
    if not run.equipment.storage.keeps(output):
        run.warn(
            f"Step {work.step.name!r}: its value cannot be stored and is computed again after a restart "
            f"({output.problem}).",
            work.step.name,
        )
    if run.equipment.storage.durable:
        run.look_at_classes(work.step.name, output)
    return StepFinished(
        run_id=context.run_id,
        step=work.step.name,
        item=work.item,
        output=output,
        key=work.key,
        components={} if work.item is not None else work.components,
        attempt=attempt,
        seconds=seconds,
        usage=context.usage,
        cost=context.cost,
        metadata=context.metadata,
    )


def failed(
    run: Run,
    work: Work,
    error: Exception,
    attempt: int,
    seconds: float = 0.0,
    context: StepContext | None = None,
) -> StepFailed:
    return StepFailed(
        run_id=run.memory.run_id,
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
