"""Tools: registering them, choosing them, and what their answers become."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage

from tagent_nb.errors import DefinitionError, StepError
from tagent_nb.events import Event, StepProgress
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import (
    StepContext,
    named_tools,
    options_of,
    registered_tools,
    step_context,
    tool,
    tool_problems,
    tools_for,
)
from tagent_nb.runners.tools import registry as tools_module
from tagent_nb.runners.tools.adapter import MAX_TEXT_CHARS, presentable, toolset
from tagent_nb.runners.tools.registry import forget_tool, tools_of
from tagent_nb.user_objects import function_name


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_module, "_registered", {})
    monkeypatch.setattr(tools_module, "_options", {})


def search(q: str) -> str:
    return q


def fetch(url: str) -> str:
    return url


def step(**options: Any) -> PipelineStep:
    return PipelineStep(name="s", goal="g", **options)


# -- registering ------------------------------------------------------------------------------


def test_a_tool_is_registered_bare_or_with_arguments() -> None:
    assert tool(search) is search
    assert tool(timeout=2.5)(fetch) is fetch
    assert registered_tools() == {"search": search, "fetch": fetch}
    assert (options_of(search).timeout, options_of(fetch).timeout) == (None, 2.5)


def test_the_same_name_again_replaces_the_function() -> None:
    """As when a cell is run again."""
    tool(timeout=1)(search)

    def again(q: str) -> str:
        return q + q

    again.__name__ = "search"
    tool(again)
    assert registered_tools() == {"search": again}
    assert options_of(again).timeout is None
    assert options_of(search).timeout is None


def test_a_tool_can_be_forgotten() -> None:
    tool(search)
    with pytest.raises(DefinitionError, match="There is no tool 'serch'. Did you mean 'search'"):
        forget_tool("serch")
    forget_tool("search")
    assert registered_tools() == {}


@pytest.mark.parametrize("bad", [3, "search", int, lambda q: q, partial(search, "a")])
def test_only_named_functions_are_tools(bad: Any) -> None:
    with pytest.raises(DefinitionError, match="must be a function with a name"):
        tool(bad)


@pytest.mark.parametrize("bad", [0, -1, True, float("nan"), "5"])
def test_a_timeout_is_a_number_of_seconds(bad: Any) -> None:
    with pytest.raises(DefinitionError, match="must be a number of seconds above 0"):
        tool(timeout=bad)


# -- choosing ---------------------------------------------------------------------------------


def test_without_a_filter_a_step_has_its_own_and_all_registered_tools() -> None:
    tool(search)
    assert named_tools(step(tools=[fetch])) == {"search": search, "fetch": fetch}
    assert tools_for(step()) == [search]


def test_an_own_tool_wins_over_a_registered_one() -> None:
    def other(q: str) -> str:
        return q

    other.__name__ = "search"
    tool(search)
    assert named_tools(step(tools=[other])) == {"search": other}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [(["search"], ["search"]), (["s*"], ["search"]), (["x*"], []), (["*"], ["fetch", "search"]), ([], [])],
)
def test_a_filter_takes_names_and_globs(patterns: list[str], names: list[str]) -> None:
    tool(search)
    assert sorted(named_tools(step(tools=[fetch], tools_filter=patterns))) == names


def test_a_filter_that_names_no_tool_is_a_mistake() -> None:
    tool(search)
    with pytest.raises(StepError, match="names 'serch', which is no tool. Did you mean 'search'"):
        named_tools(step(tools_filter=["serch"]))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"approve_tools": ["serch"]}, "'serch', which is no tool of this step. Did you mean 'search'"),
        ({"approve_tools": ["Search"]}, "'Search', which is no tool of this step. Did you mean 'search'"),
        ({"approve_tools": ["sae*"]}, "'sae.', which is no tool of this step. Its tools: search."),
        ({"approve_tools": ["search"], "tools_filter": []}, "'search', which its tools_filter leaves out"),
        ({"approve_tools": ["remember"]}, "'remember', which is no tool of this step"),
    ],
)
def test_a_name_to_approve_that_fits_no_tool_is_refused(options: dict[str, Any], problem: str) -> None:
    """What it was meant for would run unasked."""
    tool(search)
    with pytest.raises(StepError, match=f"approve_tools names {problem}"):
        named_tools(step(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"approve_tools": ["search"]},
        {"approve_tools": ["s*", "fetch"], "tools": [fetch]},
        {"approve_tools": ["remember"], "remember": True},
        {"approve_tools": ["pay_*"], "tools_filter": []},
    ],
)
def test_a_name_to_approve_may_be_any_tool_of_the_step(options: dict[str, Any]) -> None:
    """A glob may fit nothing where no tool can be called."""
    tool(search)
    assert tool_problems(step(**options)) == []


def test_all_wrong_names_of_a_step_are_reported_at_once() -> None:
    tool(search)
    problems = tool_problems(step(tools_filter=["serch", "fetsch"], approve_tools=["search"]))
    assert [problem.partition(", which")[0] for problem in problems] == [
        "Step 's': tools_filter names 'serch'",
        "Step 's': tools_filter names 'fetsch'",
        "Step 's': approve_tools names 'search'",
    ]


def test_no_tool_takes_the_name_of_the_answer() -> None:
    """pydantic-ai's own tool for answers with a schema would collide with it, after other steps were paid."""

    def final_result(x: str) -> str:
        """Give the result."""
        return x

    with pytest.raises(DefinitionError, match="A tool cannot be called 'final_result'.*Rename the function"):
        tool(final_result)
    with pytest.raises(DefinitionError, match="cannot be called 'final_result'"):
        tool(pure=True)(final_result)
    assert "final_result" not in registered_tools()
    (problem,) = tool_problems(PipelineStep("s", "Go.", tools=[final_result]))
    assert problem.startswith(
        "Step 's': 'final_result' is the tool by which models give their answer. Rename"
    )
    assert tool_problems(PipelineStep("s", "Go.", tools=[final_result], tools_filter=[])) == []


def test_objects_that_can_be_called_go_by_their_class() -> None:
    assert function_name(partial(search, "a")) == "partial"


# -- inside a tool ----------------------------------------------------------------------------


def test_a_tool_knows_the_step_that_calls_it() -> None:
    context = StepContext("run", "demo", "s", idempotency_key="run:s:1")
    with tools_of(context):
        assert step_context().idempotency_key == "run:s:1"
    with pytest.raises(StepError, match="works inside a tool only"):
        step_context()


async def test_what_a_tool_says_to_the_model_itself_is_left_alone() -> None:
    seen: list[Event] = []

    def ask_again(q: str) -> str:
        raise ModelRetry("use another word")

    context = StepContext("run", "demo", "s", emit=seen.append)
    made = toolset({"ask_again": ask_again})
    with pytest.raises(ModelRetry):
        await made[0].function(called_by(context), "x")  # type: ignore[call-arg,arg-type,misc]
    assert [event.kind for event in seen if isinstance(event, StepProgress)] == ["tool_call"]


async def test_an_awaitable_that_a_sync_tool_returns_is_awaited() -> None:
    async def inner(q: str) -> str:
        return q

    def outer(q: str) -> Any:
        return inner(q)

    (made,) = toolset({"outer": outer})
    call = called_by(StepContext("run", "demo", "s"))
    assert await made.function(call, "x") == "x"  # type: ignore[call-arg,arg-type,misc]


def called_by(context: StepContext) -> RunContext[StepContext]:
    return RunContext(deps=context, model=TestModel(), usage=RunUsage())


async def test_a_tool_may_take_what_pydantic_ai_gives_tools() -> None:
    def who(run: RunContext[StepContext], q: str) -> str:
        return f"{run.deps.step}: {q}"

    (made,) = toolset({"who": who})
    assert list(made.function_schema.json_schema["properties"]) == ["q"]
    call = called_by(StepContext("run", "demo", "s"))
    assert await made.function_schema.call({"q": "x"}, call) == "s: x"


# -- answers ----------------------------------------------------------------------------------


class Page(BaseModel):
    title: str


class Silent:
    def __repr__(self) -> str:
        raise ValueError("no")


def numbers() -> Iterator[int]:
    yield from range(3)


@pytest.mark.parametrize("value", ["text", 3, None, {"a": [1]}, Page(title="x"), [Page(title="x")], {1, 2}])
def test_what_a_request_can_carry_stays_as_it_is(value: Any) -> None:
    assert presentable(value) is value


def test_what_it_cannot_carry_becomes_text() -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    assert presentable(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})) == "a,b\n1,x\n2,y\n"
    assert presentable(numbers()) == [0, 1, 2]
    assert presentable(len) == "<built-in function len>"
    assert presentable(cyclic) == "[[...]]"
    assert presentable(Silent()) == "<Silent that cannot be shown: Silent.__repr__ raised ValueError: no>"
    assert (
        len(presentable(object.__new__(type("A", (), {"__repr__": lambda self: "x" * 99_999}))))
        == MAX_TEXT_CHARS
    )
