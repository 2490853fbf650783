"""Toolbox: the tools of a planning step, which calls them itself, on the same way as a model's calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import ModelRetry
from pydantic_ai.models.test import TestModel

from tagent_nb.errors import StepError
from tagent_nb.events import Event, StepProgress
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import CallMiddleware, StepContext, ToolCall, tool
from tagent_nb.runners.planner.toolbox import CallFailedError, Toolbox
from tagent_nb.runners.tools import registry as tools_module


class Point(BaseModel):
    x: int


def search(query: str, limit: int = 3) -> list[str]:
    """Search the archive."""
    return [query] * limit


async def move(point: Point) -> int:
    """Move."""
    await asyncio.sleep(0)
    return point.x


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_module, "_registered", {})


async def box(*tools: Callable[..., Any], context: StepContext | None = None) -> Toolbox:
    step = PipelineStep(name="s", goal="Go", tools=list(tools), agent="plan")
    return await Toolbox.of(step, context or StepContext("run", "demo", "s"), TestModel())


async def test_tools_are_described_by_name_docstring_and_schema() -> None:
    tools = await box(search, move)
    assert tools.names == ["search", "move"]
    name, about, schema = tools.described()[0]
    assert (name, about) == ("search", "Search the archive.")
    assert schema["required"] == ["query"]


async def test_a_call_takes_the_way_of_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes the middleware, is counted, and is reported; values become what the function's types say."""
    seen: list[Event] = []
    passed: list[str] = []

    class Middleware(CallMiddleware):
        async def tool_call(self, call: ToolCall, proceed: Callable[[ToolCall], Awaitable[Any]]) -> Any:
            passed.append(call.tool)
            return await proceed(call)

    context = StepContext("run", "demo", "s", emit=seen.append, middleware=[Middleware()])
    tools = await box(search, move, context=context)
    assert await tools.call("search", {"query": "a", "limit": "2"}) == ["a", "a"]
    assert await tools.call("move", {"point": {"x": 4}}) == 4
    assert passed == ["search", "move"]
    assert context.usage.tool_calls == 2
    assert [event.kind for event in seen if isinstance(event, StepProgress)] == ["tool_call", "tool_call"]


@pytest.mark.parametrize(
    ("arguments", "complete", "problem"),
    [
        ({"query": "a"}, True, ""),
        ({}, False, "wrong arguments for 'search': it lacks 'query'."),
        ({"qery": "a"}, True, "it lacks 'query'; it has no 'qery'. Did you mean 'query'?."),
        ({"query": "a", "limit": "{{ t1 }}"}, False, ""),
        ({"query": "a", "limit": "many"}, True, "limit: Input should be a valid integer"),
    ],
)
async def test_wrong_arguments_are_reported_before_a_call(
    arguments: dict[str, Any], complete: bool, problem: str
) -> None:
    problems = (await box(search)).problems("search", arguments, complete=complete)
    assert problem in problems if problem else problems == ""


async def test_a_tool_that_takes_anything_has_no_wrong_names() -> None:
    def anything(**values: int) -> int:
        """Take anything."""
        return sum(values.values())

    tools = await box(anything)
    assert tools.problems("anything", {"a": 1, "b": 2}, complete=True) == ""
    assert await tools.call("anything", {"a": 1, "b": 2}) == 3


async def test_a_call_without_a_result_says_why_and_whether_it_may_pass() -> None:
    def broken(query: str) -> str:
        raise ValueError("no such page")

    def away(query: str) -> str:
        raise ConnectionError("no network")

    def again(query: str) -> str:
        raise ModelRetry("say it in English")

    @tool(timeout=0.02)
    async def slow(query: str) -> str:
        await asyncio.sleep(60)
        return ""

    tools = await box(broken, away, again, search, slow)
    for name, message, passing in [
        ("broken", "ValueError: no such page", False),
        ("away", "ConnectionError: no network", True),
        ("again", "say it in English", False),
        ("slow", "it took longer than its timeout of 0.02 s", True),
    ]:
        with pytest.raises(CallFailedError, match=message) as caught:
            await tools.call(name, {"query": "a"})
        assert caught.value.passing is passing
    with pytest.raises(CallFailedError, match="wrong arguments for 'search': limit: Input should be"):
        await tools.call("search", {"query": "a", "limit": "many"})


async def test_a_step_error_of_a_tool_stays_one() -> None:
    def guard(query: str) -> str:
        raise StepError("not allowed")

    with pytest.raises(StepError, match="not allowed"):
        await (await box(guard)).call("guard", {"query": "a"})


async def test_no_tool_may_take_the_name_of_the_model() -> None:
    def llm(query: str) -> str:
        """Not me."""
        return query

    with pytest.raises(StepError, match="'llm' stands for the model itself. Rename the tool"):
        await box(llm)
