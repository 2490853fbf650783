"""Answers from the record: what a model or a tool has said before is not asked again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import OfflineMissError
from tagent_nb.events import CallRecorded, TokenUsage
from tagent_nb.steps.base import StepContext
from tagent_nb.steps.calls import CallGate, ModelCall, ToolCall
from tagent_nb.steps.providers import cost_of, model_name, usage_of
from tagent_nb.steps.requests import Request, model_request, plain, tool_request

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

Unit = tuple[str, str | None]

MODEL, TOOL = "model", "tool"


class Tape:
    """Recorded calls, played in the order in which they were made.

    A call is looked for among those of its own step and item first, then among all others. One that was
    made once may be asked again: the last answer to it stays.

    Args:
        calls: In order.

    Attributes:
        begun: Whether :meth:`take` has given one away.
    """

    def __init__(self, calls: Iterable[CallRecorded]) -> None:
        self._calls = list(calls)
        self.begun = False
        self._by_unit: dict[tuple[str, str | None, str], list[CallRecorded]] = {}
        self._by_key: dict[str, list[CallRecorded]] = {}
        for call in self._calls:
            self._by_unit.setdefault((call.step, call.item, call.key), []).append(call)
            self._by_key.setdefault(call.key, []).append(call)

    def play(self, unit: Unit, key: str) -> CallRecorded | None:
        """The next answer to this call; ``None`` if it was never made."""
        calls = self._by_unit.get((*unit, key)) or self._by_key.get(key)
        if not calls:
            return None
        return calls.pop(0) if len(calls) > 1 else calls[0]

    def take(self, unit: Unit, key: str) -> CallRecorded | None:
        """The next answer to this call of this unit, given once; ``None`` if there is no more."""
        calls = self._by_unit.get((*unit, key))
        if not calls:
            return None
        self.begun = True
        return calls.pop(0)

    def nearest(self, unit: Unit, kind: str, request: Request) -> CallRecorded | None:
        """The recorded call that differs least, of the same step if there is one."""

        def likeness(call: CallRecorded) -> tuple[int, bool, bool]:
            parts = call.request.get("components", {})
            alike = sum(parts.get(name) == digest for name, digest in request.components.items())
            return alike, call.step == unit[0], call.item == unit[1]

        calls = [call for call in self._calls if call.kind == kind]
        return max([call for call in calls if call.step == unit[0]] or calls, key=likeness, default=None)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What an attempt had asked when it was interrupted.

    Attributes:
        calls: In order.
        counted: Whether what they took is in the result already: whoever stopped it has counted.
    """

    calls: list[CallRecorded]
    counted: bool


@dataclass
class ReplayGate(CallGate):
    """Records each answer before anybody acts on it, and answers by itself what is recorded.

    A failed tool is recorded as well: what a model was told about it is part of the conversation.

    Args:
        record: Keeps a record; returns when it is kept.
        interrupted: Attempts that were interrupted, by unit. The next attempt at the unit gets the
            answers; whatever it asks beyond them, or in other words, is asked anew.
        tape: Answers everything; what is not on it is an error. ``None``: models are asked.
    """

    record: Callable[[CallRecorded], Awaitable[object]]
    interrupted: dict[Unit, Interrupted] = field(default_factory=dict)
    tape: Tape | None = None
    _going_on: dict[Unit, tuple[StepContext, Tape, bool]] = field(default_factory=dict)

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Answer from the record, or ask and record."""
        request = model_request(call, model_name(call.context.model))
        recorded, counted = self._recorded(call.context, MODEL, request)
        if recorded is not None:
            response = _response(recorded.answer)
            if counted:
                context = call.context
                _take_back(context, usage_of(response), cost_of(context.model, response, context.prices))
            return response
        response = await proceed(call)
        await self._keep(call.context, MODEL, request, _dumped(response))
        return response

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        """Answer from the record, or call and record."""
        from pydantic_ai.exceptions import ModelRetry, ToolFailed

        request = tool_request(call)
        recorded, counted = self._recorded(call.context, TOOL, request)
        if recorded is not None:
            if counted:
                _take_back(call.context, TokenUsage(tool_calls=1), 0.0)
            return _value(recorded.answer)
        try:
            value = await proceed(call)
        except ToolFailed as error:
            await self._keep(call.context, TOOL, request, {"failed": plain(str(error))})
            raise
        except ModelRetry as error:
            await self._keep(call.context, TOOL, request, {"retry": plain(error.message)})
            raise
        await self._keep(call.context, TOOL, request, {"value": plain(value)})
        return value

    def _recorded(
        self, context: StepContext, kind: str, request: Request
    ) -> tuple[CallRecorded | None, bool]:
        """The record of this call, and whether what it took is counted already."""
        unit = (context.step, context.item)
        if self.tape is not None:
            found = self.tape.play(unit, request.key)
            if found is None:
                nearest = self.tape.nearest(unit, kind, request)
                raise OfflineMissError(_missing(context, kind, request, nearest))
            return found, False
        before = self.interrupted.pop(unit, None)
        if before is not None:
            # For this attempt only: should it fail, the next one asks for another answer.
            self._going_on[unit] = (context, Tape(before.calls), before.counted)
        going_on = self._going_on.get(unit)
        if going_on is None or going_on[0] is not context:
            return None, False
        found = going_on[1].take(unit, request.key)
        if found is None and kind == MODEL and not going_on[1].begun:
            # It begins with another question: its tools are not those of the conversation before either.
            del self._going_on[unit]
        return found, going_on[2]

    async def _keep(self, context: StepContext, kind: str, request: Request, answer: Any) -> None:
        await self.record(
            CallRecorded(
                run_id=context.run_id,
                step=context.step,
                item=context.item,
                attempt=context.attempt,
                kind=kind,
                key=request.key,
                request=request.described,
                answer=answer,
            )
        )


def _take_back(context: StepContext, usage: TokenUsage, cost: float | None) -> None:
    """Undo the account of an answer that has been counted before."""
    context.spend(TokenUsage(*(-count for count in usage.to_dict().values())), -(cost or 0.0))


def _missing(context: StepContext, kind: str, request: Request, nearest: CallRecorded | None) -> str:
    what = f"Step {context.step!r}" + ("" if context.item is None else f", item {context.item}")
    begin = f"{what}: this call of a {kind}"
    remedy = "Run it once without offline, which records it."
    if nearest is None:
        return f"{begin} is not recorded; the run is offline. Neither is one like it. {remedy}"
    before = nearest.request.get("components", {})
    differs = [name for name, digest in request.components.items() if before.get(name) != digest]
    lines = unified_diff(
        str(nearest.request.get("says", "")).splitlines(),
        request.says.splitlines(),
        "recorded",
        "asked now",
        lineterm="",
        n=1,
    )
    shown = "\n".join(list(lines)[:20])
    where = "" if nearest.step == context.step else f" (of step {nearest.step!r})"
    return (
        f"{begin} is not recorded; the run is offline. The nearest recorded call{where} "
        f"differs in {', '.join(differs)}." + (f"\n{shown}\n" if shown else " ") + remedy
    )


def _dumped(response: ModelResponse) -> Any:
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    (dumped,) = ModelMessagesTypeAdapter.dump_python([response], mode="json")
    # What only the provider understands may hold anything, and is of no use without it.
    return plain({name: value for name, value in dumped.items() if name not in _PRIVATE})


_PRIVATE = ("provider_details", "provider_response_id", "provider_url", "run_id", "conversation_id")


def _response(answer: Any) -> ModelResponse:
    from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse

    (message,) = ModelMessagesTypeAdapter.validate_python([answer])
    if not isinstance(message, ModelResponse):
        raise OfflineMissError("A recorded answer of a model is none: the record was changed by hand.")
    return message


def _value(answer: Any) -> Any:
    from pydantic_ai.exceptions import ModelRetry, ToolFailed

    if "failed" in answer:
        raise ToolFailed(answer["failed"])
    if "retry" in answer:
        raise ModelRetry(answer["retry"])
    return answer["value"]
