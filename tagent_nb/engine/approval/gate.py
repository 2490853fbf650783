"""Holding what must not go on without a person: results of steps, and calls of tools."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NoReturn

from tagent_nb.engine.approval.requests import checked_value, given_of, request_of, unit_of
from tagent_nb.engine.background import in_thread
from tagent_nb.engine.memory.pending_approvals import Held
from tagent_nb.errors import RejectedError, StepError
from tagent_nb.events import (
    NO_USAGE,
    ApprovalGiven,
    ApprovalRequested,
    Event,
    FactLearned,
    MemorySaved,
    StepCached,
    StepFinished,
    StepGoesOn,
    StepWaiting,
)
from tagent_nb.pipeline import ApprovalRequest, Approver, Unit
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
    from tagent_nb.engine.run_loop import Run
    from tagent_nb.engine.unit.work import Work
    from tagent_nb.runners import StepContext

VALUE = "approval of its value"
"""What a step waits for whose result is held."""

BRIEF = 200
"""Characters of an argument that a report shows at most."""


class StepHeld(BaseException):
    """A unit ends without an end: it waits for a decision, and nobody is there to give one.

    No :class:`Exception`, so that whoever catches those of tools and models lets it pass.
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
    """What one run holds.

    Args:
        run: The run.
        approver: Who decides; ``None``: nobody, and the run ends without what is held.

    Attributes:
        left: Steps and items that are left waiting when the run ends.
        kept: Those of them whose work is done, and counted: only a word is missing.
    """

    def __init__(self, run: Run, approver: Approver | None) -> None:
        self._run = run
        self._approver = approver
        self._answers: dict[Unit, asyncio.Future[ApprovalGiven]] = {}
        self._pauses: dict[tuple[str, str | None], _Pause] = {}
        self.left: set[tuple[str, str | None]] = set()
        self.kept: set[tuple[str, str | None]] = set()

    # -- results ----------------------------------------------------------------------------

    def recorded(self, work: Work) -> list[Event] | None:
        """The events of a unit whose value was held before, if it is still what the step would give."""
        unit = (*work.unit, "")
        held = self._run.memory.held.get(unit)
        if held is None:
            return None
        output = held.request.output
        if held.request.key != work.key or not output.storable or unreadable(output) is not None:
            self._run.memory.held.drop(unit)
            return None
        return self._candidate(work, held.request)

    def refusals(self, work: Work) -> list[Refusal]:
        """What the user has said of this unit's earlier values."""
        return [Refusal(value.value, why) for value, why in self._run.memory.held.refused(*work.unit)]

    async def hold(self, work: Work, events: list[Event], context: StepContext) -> list[Event]:
        """The events of a unit when somebody has approved its value, which may be another one then.

        Args:
            work: The unit.
            events: What it teaches, and last its :class:`StepFinished` or :class:`StepCached`.
            context: Of the attempt; what it used is counted with the request.

        Raises:
            RejectedError: Somebody refused the value.
            StepHeld: There is nobody to ask.
        """
        final = events[-1]
        assert isinstance(final, StepFinished | StepCached)
        unit = (*work.unit, "")
        held = self._run.memory.held.get(unit)
        if held is None or held.request.output.digest != final.output.digest or held.request.key != work.key:
            request = _request(events, final)
            # Neither a restart nor a crash may cost what is known now.
            await self._run.conclude(request)
            context.usage, context.cost = NO_USAGE, 0.0
            held = self._run.memory.held.get(unit)
            assert held is not None
            if isinstance(final, StepFinished):
                events = [*events[:-1], replace(final, usage=NO_USAGE, cost=0.0)]
        request = held.request
        work.took = (request.usage, request.cost) if isinstance(final, StepFinished) else None
        given = await self._decided(work, held, VALUE)
        if given.verdict in ("rejected", "retry"):
            await self._run.conclude(given)
            raise RejectedError(
                f"Step {work.step.name!r}: the user rejected its value: {given.reason}",
                retry=given.verdict == "retry",
            )
        work.place.end()
        return [given, *events[:-1], _approved(events[-1], given)]

    def _candidate(self, work: Work, request: ApprovalRequested) -> list[Event]:
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

    def leave(self, step: str, items: int) -> None:
        """A mapped step ends with items that nobody has decided on.

        Raises:
            StepHeld: Always: neither has the step an end.
        """
        self.kept.add((step, None))
        self._leave((step, None), f"approval of {items} item{'' if items == 1 else 's'}")

    def _leave(self, unit: tuple[str, str | None], reason: str) -> NoReturn:
        self.left.add(unit)
        self._run.emit(StepWaiting(run_id=self._run.memory.run_id, step=unit[0], item=unit[1], reason=reason))
        raise StepHeld

    # -- calls of tools ---------------------------------------------------------------------

    async def call(self, work: Work, call: ToolCall) -> Mapping[str, Any]:
        """The arguments of a call when somebody has approved it, which may be other ones then.

        Raises:
            RejectedError: Somebody refused the call.
            StepHeld: There is nobody to ask.
        """
        run, context = self._run, call.context
        arguments = StoredValue.of(call.arguments[call.single] if call.single else dict(call.arguments))
        if arguments.is_heavy:
            await in_thread(arguments.sealed)
        number = work.calls.get((call.tool, arguments.digest), 0) + 1
        work.calls[call.tool, arguments.digest] = number
        unit = (*work.unit, f"{call.tool}:{arguments.digest[:16]}:{number}")
        held = run.memory.held.get(unit)
        if held is None:
            await run.conclude(
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
            held = run.memory.held.get(unit)
            assert held is not None
        held.parameters, held.check = call.parameters, call.check
        given = await self._paused(work, held, context)
        # It is used up now: should the call be cut short, nobody has approved another one.
        await run.conclude(replace(given, used=True))
        if given.verdict in ("rejected", "retry"):
            raise RejectedError(given.reason)
        if given.output is None:
            return call.arguments
        edited: Mapping[str, Any] = checked_value(request_of(run.pipeline, held), given.output.value)
        return edited

    async def _paused(self, work: Work, held: Held, context: StepContext) -> ApprovalGiven:
        """What is said of a call; meanwhile its step has neither a slot nor a turn, and its clock stands.

        Calls that a model makes at the same time go on together, when all of them are decided.
        """
        if held.given is not None:
            return held.given
        reason = f"approval of a call of {held.request.tool}"
        if self._approver is None:
            self._leave(work.unit, reason)
        pause = self._pauses.get(work.unit)
        if pause is None:
            pause = self._pauses[work.unit] = _Pause()
            work.place.step_aside()
        pause.waiting += 1
        began = time.monotonic()
        try:
            with context.waiting(reason):
                given = await self._asked(held)
                if pause.waiting > 1:
                    pause.waiting -= 1
                    await pause.over.wait()
                else:
                    await work.place.take()
                    pause.over.set()
        finally:
            work.waited += time.monotonic() - began
            if self._pauses.get(work.unit) is pause:
                del self._pauses[work.unit]
        return given

    # -- waiting ----------------------------------------------------------------------------

    async def _decided(self, work: Work, held: Held, reason: str) -> ApprovalGiven:
        """What is said of a request, when somebody has said it."""
        run, unit = self._run, held.unit
        if held.given is not None:
            return held.given
        if self._approver is None:
            self.kept.add(work.unit)
            self._leave(work.unit, reason)
        run.emit(StepWaiting(run_id=run.memory.run_id, step=unit[0], item=unit[1], reason=reason))
        work.place.step_aside()
        began = time.monotonic()
        try:
            given = await self._asked(held)
        finally:
            work.waited += time.monotonic() - began
        run.emit(StepGoesOn(run_id=run.memory.run_id, step=unit[0], item=unit[1]))
        return given

    async def _asked(self, held: Held) -> ApprovalGiven:
        if self._approver == "wait":
            answer: asyncio.Future[ApprovalGiven] = asyncio.get_running_loop().create_future()
            self._answers[held.unit] = answer
            try:
                return await answer
            finally:
                del self._answers[held.unit]
        asked = request_of(self._run.pipeline, held)
        try:
            decision = await _answer(self._approver, asked)
        except Exception as error:  # the user's own function may raise anything
            raise StepError(
                f"Step {asked.step!r}: its approver raised {class_name(error)}: {redact(message_of(error))}"
            ) from error
        given = given_of(asked, decision, used=True)
        if isinstance(given.output, StoredValue) and given.output.is_heavy:
            await in_thread(given.output.sealed)
        return given

    def decide(self, given: ApprovalGiven) -> None:
        """Take a decision. On the run's loop only; one on what nobody holds any more does nothing."""
        held = self._run.memory.held.get(unit_of(given))
        if held is None or held.given is not None or held.request.output.digest != given.digest:
            return
        answer = self._answers.get(held.unit)
        if answer is None:
            # Nobody waits for it in this sitting: it is kept for the next one.
            self._run.emit(given)
        elif not answer.done():
            answer.set_result(replace(given, used=True))


class ApprovalGate(CallMiddleware):
    """Lets a call of a tool pass when it needs no approval, or has it.

    Args:
        approvals: Those of the run.
        work: The unit whose model calls.
    """

    def __init__(self, approvals: Approvals, work: Work) -> None:
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
        return any(fnmatchcase(call.tool, one) for one in self._work.step.approve_tools)


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
        facts={one.key: one.value for one in events if isinstance(one, FactLearned)},
        memories={one.key: one.value for one in events if isinstance(one, MemorySaved)},
    )


def _approved(final: Event, given: ApprovalGiven) -> Event:
    assert isinstance(final, StepFinished | StepCached)
    marks: dict[str, Any] = {"approval": given.verdict}
    output = final.output
    if given.output is not None:
        marks |= {"edited_by_user": True, "digest_before": output.digest, "digest": given.output.digest}
        output = given.output
    return replace(final, output=output, metadata={**final.metadata, **marks})
