"""Toolsets of pydantic-ai as tools: a real MCP server, and toolsets that fail, change and hang."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import RunContext
from pydantic_ai.mcp import MCPToolset, StdioTransport
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from tagent_nb import Pipeline, PipelineExecutor, PipelineResult, ResultCache, export_module, tools_from
from tagent_nb.errors import DefinitionError, TagentError
from tagent_nb.pipeline import StepStatus
from tagent_nb.runners import options_of, registered_tools
from tagent_nb.runners.tools import mcp as toolsets
from tagent_nb.runners.tools import registry as tools_module


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_module, "_registered", {})
    monkeypatch.setattr(tools_module, "_options", {})


def shop() -> MCPToolset[Any]:
    """A real MCP server in a process of its own, started when it is needed."""
    path = Path(__file__).parents[1] / "mcp_server.py"
    return MCPToolset(StdioTransport(sys.executable, [str(path)], env=dict(os.environ), keep_alive=False))


def calling(tool: str, /, **arguments: Any) -> FunctionModel:
    """A model that calls a tool once, and answers with what that gave."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        last = messages[-1].parts[-1]
        if last.part_kind == "user-prompt":
            return ModelResponse(parts=[ToolCallPart(tool, arguments)])
        return ModelResponse(parts=[TextPart(str(getattr(last, "content", "")))])

    return FunctionModel(answer, model_name="calling")


def ask(tool: str, /, *, cache: ResultCache | None = None, **arguments: Any) -> PipelineResult:
    """The result of a step ``s`` whose model calls a tool."""
    pipeline = Pipeline("asks", model=calling(tool, **arguments)).step("s", "Ask.", max_retries=0)
    return PipelineExecutor(pipeline, cache=cache).run()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or ") Z " not in state.read_text()


# -- a real server -----------------------------------------------------------------------------


def test_the_tools_of_an_mcp_server_are_tools_like_others() -> None:
    made = tools_from(shop(), pure=True)
    assert [tool.__name__ for tool in made] == ["which-process", "price"]
    assert registered_tools() == dict(zip(["which-process", "price"], made, strict=True))
    assert made[1].__doc__ == "The price of a product in euros."
    assert options_of(made[1]).effect == "pure"
    result = ask("price", product="tea")
    assert result["s"] == "3.5"
    assert result.steps["s"].metadata["tools_called"] == ["price"]
    assert result.token_usage["s"].tool_calls == 1


def test_calls_share_a_connection_which_a_killed_server_gets_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also calls of other runs, on other loops; it is closed when it is idle."""
    tools_from(shop())
    first = int(ask("which-process")["s"])
    assert int(ask("which-process")["s"]) == first
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_running(first))
    failed = ask("which-process")
    assert "The tool failed" in failed["s"]
    second = int(ask("which-process")["s"])
    assert second != first
    monkeypatch.setattr(toolsets, "IDLE", 0.02)
    assert int(ask("which-process")["s"]) == second
    until(lambda: not is_running(second))
    assert int(ask("which-process")["s"]) not in (first, second)


def test_what_a_server_refuses_goes_to_the_model_and_to_the_user() -> None:
    tools_from(shop())
    result = ask("price", produce="tea")
    assert "The tool failed: ToolsetCallError" in result["s"]
    assert "Field required" in result["s"]
    errors = [
        event.detail for event in result.events if getattr(event, "kind", "") == "tool_error"
    ]  # as of any tool
    assert [detail["tool"] for detail in errors] == ["price"]


def test_a_server_that_does_not_start_is_reported_when_its_tools_are_asked_for(tmp_path: Path) -> None:
    missing = StdioTransport(sys.executable, [str(tmp_path / "missing.py")])
    with pytest.raises(DefinitionError, match=r"tools of .* cannot be listed: .*Check that its server runs"):
        tools_from(MCPToolset(missing))


# -- other toolsets ----------------------------------------------------------------------------


def greet(name: str) -> str:
    """Greet someone."""
    return f"hello {name}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": 0}, "timeout must be a number of seconds above 0"),
        ({"pure": True, "side_effect": True}, "either pure or has a side effect"),
    ],
)
def test_arguments_are_those_of_tool(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        tools_from(FunctionToolset(tools=[greet]), **options)
    with pytest.raises(DefinitionError, match=r"not function\. For an MCP server"):
        tools_from(greet)  # type: ignore[arg-type]
    assert registered_tools() == {}


def test_what_a_model_is_given_of_them_counts_for_the_cache(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "cache")

    def status() -> StepStatus:
        return ask("greet", cache=cache, name="Ada").steps["s"].status

    tools_from(FunctionToolset(tools=[greet]))
    assert [status(), status()] == [StepStatus.COMPLETED, StepStatus.CACHED]
    tools_from(FunctionToolset(tools=[greet]))
    assert status() is StepStatus.CACHED

    def other(name: str) -> str:
        """Greet someone warmly."""
        return name

    other.__name__ = "greet"
    tools_from(FunctionToolset(tools=[other]))
    assert status() is StepStatus.COMPLETED
    cache.close()


class Shaky(FunctionToolset[Any]):
    """A toolset that fails as it is instructed."""

    def __init__(self) -> None:
        super().__init__(tools=[greet])
        self.opened = 0
        self.breaks: BaseException | None = None
        self.empty = False
        self.hangs = False
        self.inside = 0
        self.stuck = asyncio.Event()

    async def __aenter__(self) -> Shaky:
        self.opened += 1
        return self

    async def __aexit__(self, *args: object) -> None:
        raise ConnectionError("gone while it was closed")

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, Any]:
        return {} if self.empty else await super().get_tools(ctx)

    async def call_tool(self, name: str, tool_args: Any, ctx: Any, tool: Any) -> Any:
        if self.hangs:
            self.inside += 1
            await self.stuck.wait()
        if self.breaks is not None:
            raise self.breaks
        return await super().call_tool(name, tool_args, ctx, tool)


def test_a_broken_connection_is_left_and_the_next_call_opens_another() -> None:
    shaky = Shaky()
    tools_from(shaky)
    assert ask("greet", name="Ada")["s"] == "hello Ada"
    assert shaky.opened == 1
    shaky.breaks = ConnectionResetError("reset by peer")
    assert "ConnectionResetError: reset by peer" in ask("greet", name="Ada")["s"]
    shaky.breaks = None
    assert ask("greet", name="Ada")["s"] == "hello Ada"
    assert shaky.opened == 2
    shaky.empty = True
    assert "has no tool 'greet' any more" in ask("greet", name="Ada")["s"]
    assert shaky.opened == 2


def test_calls_that_break_together_leave_their_connection_once() -> None:
    shaky = Shaky()
    [hello] = tools_from(shaky)
    shaky.hangs, shaky.breaks = True, ConnectionResetError("reset by peer")

    async def both() -> list[Any]:
        calls = [asyncio.create_task(hello(name=name)) for name in ("Ada", "Eve")]
        await asyncio.to_thread(until, lambda: shaky.inside == 2)
        toolsets._loop().call_soon_threadsafe(shaky.stuck.set)
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(error) for error in asyncio.run(both())] == [ConnectionResetError, ConnectionResetError]
    shaky.hangs, shaky.breaks = False, None
    assert asyncio.run(hello(name="Ada")) == "hello Ada"
    assert shaky.opened == 2


def test_a_call_may_run_out_of_time_and_the_step_goes_on() -> None:
    shaky = Shaky()
    tools_from(shaky, timeout=0.05)
    shaky.hangs = True
    assert "longer than its timeout of 0.05 s" in ask("greet", name="Ada")["s"]
    shaky.hangs = False
    assert ask("greet", name="Ada")["s"] == "hello Ada"
    assert shaky.opened == 1


def test_a_long_call_keeps_its_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolsets, "IDLE", 0.01)
    shaky = Shaky()
    loop = toolsets._loop()
    [hello] = tools_from(shaky)
    until(lambda: shaky.opened == 1)
    shaky.hangs = True

    async def both() -> list[str]:
        async def let_go() -> None:
            # Several times the idle time; the call is under way meanwhile.
            for _ in range(5):
                await asyncio.sleep(0.01)
            shaky.hangs = False
            loop.call_soon_threadsafe(shaky.stuck.set)

        greeting, _ = await asyncio.gather(hello(name="Ada"), let_go())
        return [greeting, str(shaky.opened)]

    reported, opened = asyncio.run(both())
    assert reported == "hello Ada"
    assert int(opened) <= 2  # the first one, of the listing, may have been closed before


def test_they_are_not_written_into_a_module() -> None:
    [hello] = tools_from(FunctionToolset(tools=[greet]))
    pipeline = Pipeline("asks", model="test").step("s", "Ask.", tools=[hello])
    with pytest.raises(TagentError, match=r"step s, tool greet.*comes from a toolset"):
        export_module(pipeline, {})
    alone = Pipeline("asks", model="test").step("s", "Ask.", tools_filter=[])
    assert "greet" not in export_module(alone, {})


def test_a_server_whose_tool_has_a_reserved_name_registers_none() -> None:
    def look(x: str) -> str:
        """Look."""
        return x

    def final_result(x: str) -> str:
        """Give the result."""
        return x

    served: FunctionToolset[Any] = FunctionToolset(tools=[look, final_result])
    with pytest.raises(DefinitionError, match="cannot be called 'final_result'.*prefixed"):
        tools_from(served)
    assert registered_tools() == {}
    tools_from(served.prefixed("my"))
    assert list(registered_tools()) == ["my_look", "my_final_result"]
