"""The middleware that every call to a model or a tool passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.errors import StepError
from tagent_nb.runners import CallMiddleware, ToolCall
from tagent_nb.runners.base import ModelCall

Ask = Callable[[ModelCall], Awaitable[ModelResponse]]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def adding() -> FunctionModel:
    """A model that calls the tool, and then says what it answered."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        last = messages[-1].parts[-1]
        if last.part_kind == "tool-return":
            return ModelResponse(parts=[TextPart(f"It is {last.content}.")])
        return ModelResponse(parts=[ToolCallPart("add", {"a": 2, "b": 3})])

    return FunctionModel(answer)


def pipeline() -> Pipeline:
    return Pipeline("gates", model=adding()).step("sum", "Add 2 and 3.", tools=[add], max_retries=0)


class Noting(CallMiddleware):
    """Notes what passes it, in and out."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        self.notes.append(f"{self.name} asks for {call.context.step}")
        answer = await proceed(call)
        self.notes.append(f"{self.name} has {answer.parts[0].part_kind}")
        return answer

    async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
        value = await proceed(call)
        self.notes.append(f"{self.name} saw {call.tool}{tuple(call.arguments.values())} = {value}")
        return value


async def test_each_call_passes_all_middleware_the_first_one_outermost() -> None:
    notes: list[str] = []
    executor = PipelineExecutor(
        pipeline(), middleware=[CallMiddleware(), Noting("a", notes), Noting("b", notes)]
    )
    result = await executor.execute()
    assert result["sum"] == "It is 5."
    assert notes == [
        *("a asks for sum", "b asks for sum", "b has tool-call", "a has tool-call"),
        *("b saw add(2, 3) = 5", "a saw add(2, 3) = 5"),
        *("a asks for sum", "b asks for sum", "b has text", "a has text"),
    ]


async def test_middleware_may_answer_by_itself() -> None:
    """Neither model nor tool is asked then; what the answer says it took is counted."""

    class Recorded(CallMiddleware):
        async def model_call(
            self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
        ) -> ModelResponse:
            return ModelResponse(parts=[TextPart("as before")])

    result = await PipelineExecutor(pipeline(), middleware=[Recorded()]).execute()
    assert result["sum"] == "as before"
    assert result.steps["sum"].usage.requests == 1
    assert result.steps["sum"].usage.tool_calls == 0


async def test_middleware_may_change_what_a_tool_gets_and_gives() -> None:
    class Doubling(CallMiddleware):
        async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
            arguments = {name: 2 * value for name, value in call.arguments.items()}
            return -await proceed(ToolCall(call.context, call.tool, arguments))

    result = await PipelineExecutor(pipeline(), middleware=[Doubling()]).execute()
    assert result["sum"] == "It is -10."


async def test_middleware_may_refuse() -> None:
    """Its error is the step's; nothing is asked."""

    class Refusing(CallMiddleware):
        async def model_call(
            self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
        ) -> ModelResponse:
            raise StepError("no more today")

    result = await PipelineExecutor(pipeline(), middleware=[Refusing()]).execute()
    assert not result.success
    assert "no more today" in result.error_details["sum"]
    assert result.steps["sum"].usage.requests == 0


async def test_every_answer_of_a_model_counts_also_one_that_a_gate_throws_away() -> None:
    """And what a gate answers after that is not counted on top."""

    class Twice(CallMiddleware):
        async def model_call(
            self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
        ) -> ModelResponse:
            await proceed(call)
            spent.append(call.context.usage.requests)
            await proceed(call)
            spent.append(call.context.usage.requests)
            return ModelResponse(parts=[TextPart("neither")])

    spent: list[int] = []
    result = await PipelineExecutor(pipeline(), middleware=[Twice()]).execute()
    assert result["sum"] == "neither"
    assert spent == [1, 2]
    assert result.steps["sum"].usage.requests == 2


async def test_the_earlier_keyword_for_middleware_still_counts() -> None:
    notes: list[str] = []
    executor = PipelineExecutor(pipeline(), middleware=[Noting("a", notes)], gates=[Noting("b", notes)])
    await executor.execute()
    assert notes[:2] == ["a asks for sum", "b asks for sum"]
