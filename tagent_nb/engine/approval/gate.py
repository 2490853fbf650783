"""Suspends what must not go on without an approval, results of steps and calls of tools; and the requests of
these, and what is decided on them."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NoReturn

from tagent_nb.engine.background import in_thread
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.pending_approvals import PendingApproval
from tagent_nb.errors import DefinitionError, OutputValidationError, RejectedError, StepError, did_you_mean
from tagent_nb.events import (
    NO_USAGE,
    ApprovalGiven,
    ApprovalRequested,
    Event,
    FactLearned,
    MemorySaved,
    StepCached,
    StepFinished,
    StepUnblocked,
    StepWaiting,
)
from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import ApprovalRequest, Approved, Approver, Decision, Edited, Pipeline, Rejected, Unit
from tagent_nb.redaction import redact
from tagent_nb.runners import (
    CallMiddleware,
    Refusal,
    ToolCall,
    call_refused,
    edited_call,
    edited_failure,
    options_of,
    plain,
)
from tagent_nb.serde import StoredValue, unreadable
from tagent_nb.user_objects import class_name, message_of

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder
    from tagent_nb.engine.unit.work import WorkItem
    from tagent_nb.runners import StepContext

VALUE = "approval of its value"
"""What a step waits for whose result is suspended."""

BRIEF = 200
"""Characters of an argument that a report shows at most."""


class StepSuspended(BaseException):
    """A unit ends without an end: it waits for a decision, and the run has no approver to ask.

    No :class:`Exception`, so that code that catches those of tools and models lets it pass.
    """


class _Pause:
    """The time in which calls of one attempt wait.

    Attributes:
        waiting: How many of them are not decided yet.
        over: Set when the attempt goes on.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.over = asyncio.Event()


class Approvals:
    """What one run suspends.

    Args:
        context: Of the run. Without an approver it ends without what is suspended.
        recorder: Of the run.

    Attributes:
        suspended: Steps and items that are left waiting when the run ends.
        only_undecided: Those of them whose work is done, and counted: only a decision is missing.
    """

    def __init__(self, context: RunContext, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder
        self._approver: Approver | None = context.services.approver
        self._answers: dict[Unit, asyncio.Future[ApprovalGiven]] = {}
        self._pauses: dict[tuple[str, str | None], _Pause] = {}
        self.suspended: set[tuple[str, str | None]] = set()
        self.only_undecided: set[tuple[str, str | None]] = set()

    # -- results ----------------------------------------------------------------------------

    def recorded(self, work: WorkItem) -> list[Event] | None:
        """The events of a unit whose value was suspended before, if it is still what the step would give."""
        unit = (*work.unit, "")
        pending = self._recorder.memory.pending.get(unit)
        if pending is None:
            return None
        output = pending.request.output
        if pending.request.key != work.key or not output.storable or unreadable(output) is not None:
            self._recorder.memory.pending.drop(unit)
            return None
        return self._candidate(work, pending.request)

    def refusals(self, work: WorkItem) -> list[Refusal]:
        """This unit's earlier values that the user has refused, and why."""
        refused = self._recorder.memory.pending.refused(*work.unit)
        return [Refusal(value.value, why) for value, why in refused]

    async def suspend(self, work: WorkItem, events: list[Event], context: StepContext) -> list[Event]:
        """The events of a unit when its value is approved, which may be another one then.

        Args:
            work: The unit.
            events: What it learned, and last its :class:`StepFinished` or :class:`StepCached`.
            context: Of the attempt; what it used is counted with the request.

        Raises:
            RejectedError: The value was refused.
            StepSuspended: There is no approver to ask.
        """
        final = events[-1]
        assert isinstance(final, StepFinished | StepCached)
        unit = (*work.unit, "")
        pending = self._recorder.memory.pending.get(unit)
        if (
            pending is None
            or pending.request.output.digest != final.output.digest
            or pending.request.key != work.key
        ):
            request = _request(events, final)
            # Neither a restart nor a crash may cost what is known now.
            await self._recorder.record(request)
            context.usage, context.cost = NO_USAGE, 0.0
            pending = self._recorder.memory.pending.get(unit)
            assert pending is not None
            if isinstance(final, StepFinished):
                events = [*events[:-1], replace(final, usage=NO_USAGE, cost=0.0)]
        request = pending.request
        work.counted = (request.usage, request.cost) if isinstance(final, StepFinished) else None
        decision = await self._decided(work, pending, VALUE)
        if decision.verdict in ("rejected", "retry"):
            await self._recorder.record(decision)
            raise RejectedError(
                f"Step {work.step.name!r}: the user rejected its value: {decision.reason}",
                retry=decision.verdict == "retry",
            )
        work.slot.end()
        return [decision, *events[:-1], _approved(events[-1], decision)]

    def _candidate(self, work: WorkItem, request: ApprovalRequested) -> list[Event]:
        """A recorded request as the events of the attempt that led to it."""
        common: dict[str, Any] = {"run_id": request.run_id, "step": request.step, "item": request.item}
        final = StepFinished(
            **common,
            output=request.output,
            key=request.key,
            components={} if work.item is not None else work.components,
            attempt=request.attempt,
            seconds=request.seconds,
            metadata=request.metadata,
        )
        facts = [FactLearned(**common, key=key, value=value) for key, value in request.facts.items()]
        saved = [MemorySaved(**common, key=key, value=value) for key, value in request.memories.items()]
        return [*facts, *saved, final]

    def leave(self, step: str, items: int, batch: str = "") -> None:
        """A mapped step ends with items that are not decided on, or whose ``batch`` is not answered.

        Raises:
            StepSuspended: Always: neither has the step an end.
        """
        self.only_undecided.add((step, None))
        self._leave((step, None), batch or f"approval of {items} item{'' if items == 1 else 's'}")

    def _leave(self, unit: tuple[str, str | None], reason: str) -> NoReturn:
        self.suspended.add(unit)
        self._recorder.publish(
            StepWaiting(run_id=self._context.run_id, step=unit[0], item=unit[1], reason=reason)
        )
        raise StepSuspended

    # -- calls of tools ---------------------------------------------------------------------

    async def call(self, work: WorkItem, call: ToolCall) -> Mapping[str, Any]:
        """The arguments of a call when it is approved, which may be other ones then.

        Raises:
            RejectedError: The call was refused.
            StepSuspended: There is no approver to ask.
        """
        recorder, context = self._recorder, call.context
        arguments = StoredValue.of(call.arguments[call.single] if call.single else dict(call.arguments))
        if arguments.is_heavy:
            await in_thread(arguments.sealed)
        number = work.calls.get((call.tool, arguments.digest), 0) + 1
        work.calls[call.tool, arguments.digest] = number
        unit = (*work.unit, f"{call.tool}:{arguments.digest[:16]}:{number}")
        pending = recorder.memory.pending.get(unit)
        if pending is None:
            await recorder.record(
                ApprovalRequested(
                    run_id=context.run_id,
                    step=unit[0],
                    item=unit[1],
                    call=unit[2],
                    tool=call.tool,
                    output=arguments,
                    key=work.key,
                    attempt=context.attempt,
                )
            )
            pending = recorder.memory.pending.get(unit)
            assert pending is not None
        pending.parameters, pending.check = call.parameters, call.check
        decision = await self._paused(work, pending, context)
        # It is used up now: should the call be cut short, no other one is approved.
        await recorder.record(replace(decision, used=True))
        if decision.verdict in ("rejected", "retry"):
            raise RejectedError(decision.reason)
        if decision.output is None:
            return call.arguments
        request = request_of(self._context.pipeline, pending)
        edited: Mapping[str, Any] = checked_value(request, decision.output.value)
        return edited

    async def _paused(self, work: WorkItem, pending: PendingApproval, context: StepContext) -> ApprovalGiven:
        """The decision on a call; meanwhile its step has neither a slot nor the lock, and its clock stands.

        Calls that a model makes at the same time go on together, when all of them are decided.
        """
        if pending.decision is not None:
            return pending.decision
        reason = f"approval of a call of {pending.request.tool}"
        if self._approver is None:
            self._leave(work.unit, reason)
        pause = self._pauses.get(work.unit)
        if pause is None:
            pause = self._pauses[work.unit] = _Pause()
            work.slot.yield_slot()
        pause.waiting += 1
        began = time.monotonic()
        try:
            with context.waiting(reason):
                decision = await self._decision(pending)
                if pause.waiting > 1:
                    pause.waiting -= 1
                    await pause.over.wait()
                else:
                    await work.slot.take()
                    pause.over.set()
        finally:
            work.waited += time.monotonic() - began
            if self._pauses.get(work.unit) is pause:
                del self._pauses[work.unit]
        return decision

    # -- waiting ----------------------------------------------------------------------------

    async def _decided(self, work: WorkItem, pending: PendingApproval, reason: str) -> ApprovalGiven:
        """The decision on a result, when it is taken."""
        run_id, unit = self._context.run_id, pending.unit
        if pending.decision is not None:
            return pending.decision
        if self._approver is None:
            self.only_undecided.add(work.unit)
            self._leave(work.unit, reason)
        self._recorder.publish(StepWaiting(run_id=run_id, step=unit[0], item=unit[1], reason=reason))
        work.slot.yield_slot()
        began = time.monotonic()
        try:
            decision = await self._decision(pending)
        finally:
            work.waited += time.monotonic() - began
        self._recorder.publish(StepUnblocked(run_id=run_id, step=unit[0], item=unit[1]))
        return decision

    async def _decision(self, pending: PendingApproval) -> ApprovalGiven:
        if self._approver == "wait":
            answer: asyncio.Future[ApprovalGiven] = asyncio.get_running_loop().create_future()
            self._answers[pending.unit] = answer
            try:
                return await answer
            finally:
                del self._answers[pending.unit]
        request = request_of(self._context.pipeline, pending)
        try:
            answer_of_user = await _answer(self._approver, request)
        except Exception as error:  # the user's own function may raise anything
            raise StepError(
                f"Step {request.step!r}: its approver raised {class_name(error)}: {redact(message_of(error))}"
            ) from error
        decision = decision_event(request, answer_of_user, used=True)
        if isinstance(decision.output, StoredValue) and decision.output.is_heavy:
            await in_thread(decision.output.sealed)
        return decision

    def decide(self, decision: ApprovalGiven) -> None:
        """Take a decision. On the run's loop only; one on what is not suspended any more does nothing."""
        pending = self._recorder.memory.pending.get(unit_of(decision))
        if (
            pending is None
            or pending.decision is not None
            or pending.request.output.digest != decision.digest
        ):
            return
        answer = self._answers.get(pending.unit)
        if answer is None:
            # No unit waits for it in this session: it is recorded for the next one.
            self._recorder.publish(decision)
        elif not answer.done():
            answer.set_result(replace(decision, used=True))


class ApprovalMiddleware(CallMiddleware):
    """Lets a call of a tool pass when it needs no approval, or has it.

    Args:
        approvals: Those of the run.
        work: The unit whose model calls.
    """

    def __init__(self, approvals: Approvals, work: WorkItem) -> None:
        self._approvals = approvals
        self._work = work

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        """Call the tool, or tell the model why not."""
        if not self._needs(call):
            return await proceed(call)
        try:
            arguments = await self._approvals.call(self._work, call)
        except RejectedError as error:
            reason = str(error)
            call.context.progress("tool_rejected", tool=call.tool, message=reason)
            raise call_refused(f"The user does not allow this call: {reason}") from error
        if arguments is call.arguments:
            return await proceed(call)
        # The model must not take what comes back for the answer to its own question.
        used = plain(arguments[call.single] if call.single else arguments)
        shown = {name: repr(value)[:BRIEF] for name, value in used.items()}
        call.context.progress("tool_edited", tool=call.tool, arguments=shown)
        try:
            value = await proceed(replace(call, arguments=arguments))
        except Exception as error:  # only what the model reads becomes another error
            raise edited_failure(call, error, used) from error.__cause__
        return edited_call(call, value, used)

    def _needs(self, call: ToolCall) -> bool:
        if call.function is not None and options_of(call.function).approval_required:
            return True
        return any(fnmatchcase(call.tool, pattern) for pattern in self._work.step.approve_tools)


async def _answer(approver: Any, request: ApprovalRequest) -> Any:
    if inspect.iscoroutinefunction(approver):
        return await approver(request)
    # It may ask at a terminal, and that must not stop the loop.
    answer = await asyncio.to_thread(approver, request)
    return await answer if inspect.isawaitable(answer) else answer


def _request(events: Sequence[Event], final: StepFinished | StepCached) -> ApprovalRequested:
    return ApprovalRequested(
        run_id=final.run_id,
        step=final.step,
        item=final.item,
        output=final.output,
        key=final.key,
        attempt=final.attempt if isinstance(final, StepFinished) else 1,
        seconds=final.seconds if isinstance(final, StepFinished) else 0.0,
        usage=final.usage if isinstance(final, StepFinished) else NO_USAGE,
        cost=final.cost if isinstance(final, StepFinished) else 0.0,
        metadata=final.metadata,
        facts={event.key: event.value for event in events if isinstance(event, FactLearned)},
        memories={event.key: event.value for event in events if isinstance(event, MemorySaved)},
    )


def _approved(final: Event, decision: ApprovalGiven) -> Event:
    assert isinstance(final, StepFinished | StepCached)
    marks: dict[str, Any] = {"approval": decision.verdict}
    output = final.output
    if decision.output is not None:
        marks |= {"edited_by_user": True, "digest_before": output.digest, "digest": decision.output.digest}
        output = decision.output
    return replace(final, output=output, metadata={**final.metadata, **marks})


def unit_of(event: ApprovalRequested | ApprovalGiven) -> Unit:
    """What an event is about."""
    return (event.step, event.item, event.call)


def open_requests(memory: PipelineMemory, pipeline: Pipeline) -> list[ApprovalRequest]:
    """What waits for a decision in a run, oldest first.

    Args:
        memory: Of the run.
        pipeline: Its definition, for goals and schemas.
    """
    return [request_of(pipeline, pending) for pending in memory.pending.undecided()]


def request_of(pipeline: Pipeline, pending: PendingApproval) -> ApprovalRequest:
    """A request as people see it."""
    event = pending.request
    step = pipeline.get_step(event.step) if event.step in pipeline else None
    more: dict[str, Any] = {}
    if pending.check is not None:
        more["check"] = pending.check
    elif not event.tool and step is not None:
        more["check"] = step.validate_output
    schema = None if step is None or event.tool else step.output_schema
    parameters: Mapping[str, Any] = pending.parameters
    if schema is not None:
        parameters = schema.model_json_schema()
    return ApprovalRequest(
        run_id=event.run_id,
        pipeline=pipeline.name,
        step=event.step,
        item=event.item,
        call=event.call,
        tool=event.tool,
        value=event.output.value,
        digest=event.output.digest,
        goal="" if step is None else step.goal,
        schema=schema,
        parameters=parameters,
        at=event.at,
        **more,
    )


def decision_event(request: ApprovalRequest, decision: Decision, *, used: bool = False) -> ApprovalGiven:
    """A decision as an event.

    Raises:
        OutputValidationError: An edited value does not match the schema.
        StepError: It is no decision, or an edited value cannot be stored.
    """
    step, item, call = request.unit
    verdict, reason, output = "approved", "", None
    if isinstance(decision, Rejected):
        verdict, reason = "retry" if decision.retry else "rejected", whole_text(str(decision.reason))
    elif isinstance(decision, Edited):
        output = StoredValue.of(checked_value(request, decision.value))
        verdict = "edited"
    elif not isinstance(decision, Approved):
        raise StepError(
            f"The approver of {request.title} gave {decision!r}. It must return Approved(), "
            "Edited(value) or Rejected(reason)."
        )
    return ApprovalGiven(
        run_id=request.run_id,
        step=step,
        item=item,
        call=call,
        verdict=verdict,
        digest=request.digest,
        reason=reason,
        output=output,
        used=used,
    )


def checked_value(request: ApprovalRequest, value: Any) -> Any:
    """An edited value as the step, or the tool, wants it.

    Raises:
        OutputValidationError: It does not match.
    """
    try:
        return request.check(whole_text(value))
    except OutputValidationError:
        raise
    except ValueError as error:
        raise OutputValidationError(f"The edited value of {request.title} will not do: {error}") from None


def checked_approver(approver: Any) -> Approver | None:
    """``approver``, if it is one.

    Raises:
        DefinitionError: It is neither a function nor ``"wait"``.
    """
    if approver is None or approver == "wait" or callable(approver):
        return approver  # type: ignore[no-any-return]
    raise DefinitionError(
        f"approver must be a function that takes an ApprovalRequest, 'wait', or None, not {approver!r}."
    )


def chosen(
    waiting: Sequence[ApprovalRequest], step: str, item: str | None, tool: str | None
) -> ApprovalRequest:
    """The request that is meant.

    Raises:
        DefinitionError: None is, or several are; the message lists what waits.
    """
    matches = [
        request
        for request in waiting
        if request.step == step
        and (item is None or request.item == str(item))
        and (tool is None or request.tool == tool)
    ]
    if not matches:
        titles = "; ".join(request.title for request in waiting[:5]) or "nothing"
        hint = did_you_mean(step, [request.step for request in waiting if request.step != step])
        raise DefinitionError(f"Nothing of step {step!r} waits for approval.{hint} Waiting: {titles}.")
    if len({(request.item, request.tool) for request in matches}) > 1:
        titles = "; ".join(request.title for request in matches[:5])
        raise DefinitionError(
            f"{len(matches)} values of step {step!r} wait. Say which: item=..., tool=... ({titles})."
        )
    return matches[0]
