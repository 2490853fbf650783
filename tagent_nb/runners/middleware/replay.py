"""Answers from the record: what a model or a tool has said before is not asked again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import OfflineMissError
from tagent_nb.events import CallRecorded, FactLearned, MemorySaved, TokenUsage
from tagent_nb.runners.base import CallMiddleware, ModelCall, StepContext, ToolCall
from tagent_nb.runners.middleware.canonical_request import (
    CanonicalRequest,
    SharedParts,
    model_request,
    plain,
    tool_request,
)
from tagent_nb.runners.models.accounting import take_back
from tagent_nb.runners.models.resolve import model_name, usage_of
from tagent_nb.serde import Classes, from_tree, to_tree

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

WorkKey = tuple[str, str | None]

MODEL, TOOL, CODE = "model", "tool", "code"
ONE_CALL = TokenUsage(tool_calls=1)


class Cassette:
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

    def play(self, unit: WorkKey, key: str) -> CallRecorded | None:
        """The next answer to this call; ``None`` if it was never made."""
        calls = self._by_unit.get((*unit, key)) or self._by_key.get(key)
        if not calls:
            return None
        return calls.pop(0) if len(calls) > 1 else calls[0]

    def take(self, unit: WorkKey, key: str) -> CallRecorded | None:
        """The next answer to this call of this unit, given once; ``None`` if there is no more."""
        calls = self._by_unit.get((*unit, key))
        if not calls:
            return None
        self.begun = True
        return calls.pop(0)

    def nearest(self, unit: WorkKey, kind: str, request: CanonicalRequest) -> CallRecorded | None:
        """The recorded call that differs least, of the same step if there is one."""

        def likeness(call: CallRecorded) -> tuple[int, bool, bool]:
            parts = call.request.get("components", {})
            alike = sum(parts.get(name) == digest for name, digest in request.components.items())
            return alike, call.step == unit[0], call.item == unit[1]

        calls = [call for call in self._calls if call.kind == kind]
        return max([call for call in calls if call.step == unit[0]] or calls, key=likeness, default=None)


@dataclass
class ReplayMiddleware(CallMiddleware):
    """Records each answer before anything acts on it, and answers by itself what is recorded.

    A failed tool is recorded as well: what a model reads of it is part of the conversation.

    Args:
        record: Keeps a record; returns when it is kept.
        interrupted: Attempts that were interrupted, by unit. The next attempt at the unit gets the
            answers, which were counted when it was interrupted; whatever it asks beyond them, or in other
            words, is asked anew.
        cassette: Answers everything; what is not on it is an error. ``None``: models are asked.
        schemas: Classes by name that recorded values of tools become.
        code: The digest of a tool's code. What a tool answered before its code changed, it is asked again.
    """

    record: Callable[[CallRecorded], Awaitable[object]]
    interrupted: dict[WorkKey, list[CallRecorded]] = field(default_factory=dict)
    cassette: Cassette | None = None
    schemas: Mapping[str, type] = field(default_factory=dict)
    code: Callable[[Callable[..., Any]], str] | None = None
    _going_on: dict[WorkKey, tuple[StepContext, Cassette]] = field(default_factory=dict)
    _shared: dict[str, SharedParts] = field(default_factory=dict)

    of_rows = True

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Answer from the record, or ask and record."""
        from tagent_nb.runners.middleware.canonical_response import response_from_plain, response_to_plain

        shared = self._shared.setdefault(call.context.step, SharedParts())
        request = model_request(call, model_name(call.context.model), shared)
        recorded, counted = self._recorded(call.context, MODEL, request)
        if recorded is not None:
            response = response_from_plain(recorded.answer)
            if counted:
                take_back(call.context, response)
            return response
        response = await proceed(call)
        cost = response.usage.cost
        await self._keep(
            call.context,
            MODEL,
            request,
            response_to_plain(response),
            usage_of(response),
            None if cost is None else float(cost),
        )
        return response

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        """Answer from the record, or call and record."""
        from pydantic_ai.exceptions import ModelRetry, ToolFailed

        from tagent_nb.runners.middleware.canonical_response import (
            error_to_plain,
            value_from_plain,
            value_to_plain,
        )

        request = tool_request(call)
        code = "" if self.code is None or call.function is None else self.code(call.function)
        recorded, counted = self._recorded(call.context, TOOL, request, code)
        if recorded is not None:
            if counted:
                call.context.spend(-ONE_CALL, 0.0)
            schemas = Classes.of(self.schemas, call.context.step)
            _learn_again(call.context, recorded.answer, schemas)
            return value_from_plain(recorded.answer, schemas)
        before_call = len(call.context.learned)
        try:
            value = await proceed(call)
        except (ToolFailed, ModelRetry) as error:
            answer = {**error_to_plain(error), **_learned(call.context, before_call)}
            await self._keep(call.context, TOOL, request, answer, ONE_CALL, 0.0, code)
            raise
        answer = {**value_to_plain(value), **_learned(call.context, before_call)}
        await self._keep(call.context, TOOL, request, answer, ONE_CALL, 0.0, code)
        return value

    def _recorded(
        self, context: StepContext, kind: str, request: CanonicalRequest, code: str = ""
    ) -> tuple[CallRecorded | None, bool]:
        """The record of this call, and whether what it took is counted already."""
        unit = (context.step, context.item)
        if self.cassette is not None:
            record = self.cassette.play(unit, request.key)
            if record is None:
                nearest = self.cassette.nearest(unit, kind, request)
                raise OfflineMissError(_missing(context, kind, request, nearest))
            return record, False
        before = self.interrupted.pop(unit, None)
        if before is not None:
            # For this attempt only: should it fail, the next one asks for another answer.
            self._going_on[unit] = (context, Cassette(before))
        going_on = self._going_on.get(unit)
        if going_on is None or going_on[0] is not context:
            return None, False
        record = going_on[1].take(unit, request.key)
        if record is None and kind == MODEL and not going_on[1].begun:
            # It begins with another question: its tools are not those of the conversation before either.
            del self._going_on[unit]
        if record is not None and record.request.get(CODE, code) != code:
            record = None
        return record, True

    async def _keep(
        self,
        context: StepContext,
        kind: str,
        request: CanonicalRequest,
        answer: Any,
        usage: TokenUsage,
        cost: float | None,
        code: str = "",
    ) -> None:
        await self.record(
            CallRecorded(
                run_id=context.run_id,
                step=context.step,
                item=context.item,
                attempt=context.attempt,
                kind=kind,
                key=request.key,
                request=request.described | ({CODE: code} if code else {}),
                answer=answer,
                usage=usage,
                cost=cost,
            )
        )


def _learned(context: StepContext, before: int) -> dict[str, Any]:
    """The facts and memories that came with a call of a tool, as a part of its answer."""
    learned = [
        [type(event) is MemorySaved, plain(event.key), plain(to_tree(event.value))]
        for event in context.learned[before:]
        if isinstance(event, FactLearned | MemorySaved)
    ]
    return {"learned": learned} if learned else {}


def _learn_again(context: StepContext, answer: Mapping[str, Any], schemas: Mapping[str, type]) -> None:
    """Learn what was learned when the call was made."""
    for is_memory, key, tree in answer.get("learned", ()):
        (context.save_memory if is_memory else context.learn)(key, from_tree(tree, schemas))


def _missing(context: StepContext, kind: str, request: CanonicalRequest, nearest: CallRecorded | None) -> str:
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
