"""One question without a pipeline: from Python, from a cell and from the command line."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    AgentResult,
    BudgetExceededError,
    DefinitionError,
    ModelError,
    PipelineResult,
    RunFailedError,
    open_storage,
    run_agent,
)
from tagent_nb.cli import main
from tagent_nb.naming import storage_id
from tagent_nb.templating import literal, render
from tests.notebook.test_magics import Notebook, book, refused

assert book  # a fixture: pytest finds it by its name


class Price(BaseModel):
    symbol: str
    price: float


def get_stock_price(symbol: str) -> dict[str, Any]:
    """The latest price of a stock."""
    return {"symbol": symbol, "price": 950.0}


def _tool_then_answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Calls the tool, then says what it gave."""
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        return ModelResponse(parts=[TextPart(f"It costs {last.content}.")])
    return ModelResponse(parts=[ToolCallPart("get_stock_price", {"symbol": "NVDA"})])


# -- Python -----------------------------------------------------------------------------------


def test_an_agent_uses_a_tool_and_answers() -> None:
    """Output, tokens and cost are at hand, and what it did is in the events."""
    answer = run_agent(
        "What does NVDA cost?", tools=[get_stock_price], model=FunctionModel(_tool_then_answer)
    )
    assert "950" in answer.output
    assert answer.usage.tool_calls == 1
    assert answer.cost is None
    assert answer.cost_text == "price unknown"
    assert answer.result.success
    assert repr(answer).startswith("<AgentResult It costs")


def test_an_answer_has_its_schema() -> None:
    answer = run_agent("NVDA?", output_schema=Price, model="test")
    assert isinstance(answer.output, Price)
    assert answer.cost == 0.0
    assert answer.cost_text == "0.0000 USD"


async def test_it_works_inside_a_running_loop() -> None:
    assert asyncio.get_running_loop().is_running()
    assert run_agent("Hello", model=TestModel(custom_output_text="hi")).output == "hi"


@settings(deadline=None)
@given(st.text(alphabet="{}%#'\" a\n-", max_size=30))
def test_a_goal_is_sent_as_it_is(goal: str) -> None:
    """Text that comes from data holds braces: they must neither fail nor be evaluated."""
    assert render(literal(goal), {}, step="answer") == goal


def test_no_answer_raises_with_the_result() -> None:
    def broken(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise ValueError("the model is out")

    with pytest.raises(RunFailedError, match=r"failed\.\n  answer: ValueError: the model is out") as caught:
        run_agent("Hello", model=FunctionModel(broken), max_retries=0)
    assert isinstance(caught.value.result, PipelineResult)
    assert caught.value.result.failed_steps == ["answer"]


def test_the_rules_of_steps_hold() -> None:
    """A budget stops it, checks refuse, approvals are asked for, and a model is needed."""
    with pytest.raises(RunFailedError, match=BudgetExceededError.__name__):
        run_agent("x" * 400, model="test", budget="5 tokens")
    with pytest.raises(RunFailedError, match="too short"):
        run_agent("Hello", model="test", checks=[_refuse], max_retries=0)
    with pytest.raises(RunFailedError, match="answer: waits for an approval"):
        run_agent("Hello", model="test", approve=True)
    with pytest.raises(ModelError, match="has no model"):
        run_agent("Hello")


def _refuse(value: str) -> None:
    raise ValueError("too short")


def test_options_of_other_tools_name_ours() -> None:
    with pytest.raises(DefinitionError, match="Write output_schema="):
        run_agent("Hello", model="test", output_format=Price)
    with pytest.raises(AttributeError, match="no attribute 'final_output'. Write .output."):
        run_agent("Hello", model="test").final_output  # type: ignore[attr-defined]  # noqa: B018


def test_what_is_recorded_can_answer_again(tmp_path: Path) -> None:
    """With a storage, an offline question is answered from the recorded calls of an earlier one."""
    first = run_agent("Hello", model=TestModel(custom_output_text="hi"), storage=tmp_path)
    again: AgentResult[str] = run_agent(
        "Hello", model=TestModel(custom_output_text="other"), storage=tmp_path, offline=True
    )
    assert (first.output, again.output) == ("hi", "hi")
    runs = asyncio.run(open_storage(tmp_path).runs(storage_id("ask")))
    assert len(runs) == 2


# -- %%tagent_ask -----------------------------------------------------------------------------


def test_a_cell_asks_and_keeps_the_answer(book: Notebook) -> None:
    """The same question is not paid twice, and --no-cache asks again."""
    counted: list[int] = []

    def count(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        counted.append(1)
        return ModelResponse(parts=[TextPart(f"<b>answer {len(counted)}</b>")])

    book.shell.user_ns["mine"] = FunctionModel(count)
    assert book("tagent_ask --model mine", "Hello?") is None
    assert book.shell.user_ns["answer"] == "<b>answer 1</b>"
    assert book.shown[-1].startswith("<b>answer 1</b>\n\nanswer: ")
    assert "&lt;b&gt;answer 1" in book.published.outputs[-1]["data"]["text/html"]
    book("tagent_ask again --model mine", "Hello?")
    assert book.shell.user_ns["again"] == "<b>answer 1</b>"
    assert book.shown[-1].endswith("again: from the cache")
    book("tagent_ask again --model mine --no-cache", "Hello?")
    assert book.shell.user_ns["again"] == "<b>answer 2</b>"
    assert not book.session.workspaces


def test_a_cell_has_schemas_tools_settings_and_the_pipelines_model(book: Notebook) -> None:
    book.shell.user_ns.update(Price=Price, get_stock_price=get_stock_price)
    book("tagent_pipeline p --model test")
    book("tagent_ask --output-schema Price --constraint 'be brief' --setting max_tokens=50", "NVDA?")
    assert isinstance(book.shell.user_ns["answer"], Price)
    book.shell.user_ns["mine"] = FunctionModel(_tool_then_answer)
    book("tagent_ask --tools get_stock_price --model mine --timeout 60", "NVDA?")
    assert "950" in book.shell.user_ns["answer"]


def test_a_long_answer_is_shown_cut(book: Notebook) -> None:
    book.shell.user_ns["mine"] = TestModel(custom_output_text="x" * 30_000)
    book("tagent_ask --model mine", "Hello?")
    assert "… (30,000 characters)" in book.shown[-1]
    assert len(book.shell.user_ns["answer"]) == 30_000


def test_a_cell_says_what_is_wrong(book: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the cell is empty" in refused(book, "tagent_ask --model test", " \n")
    assert "'class' is no name" in refused(book, "tagent_ask class --model test", "Hello")
    assert "%%tagent_ask: there is no option --modle. Did you mean" in refused(
        book, "tagent_ask --modle test", "Hello"
    )
    book("tagent_ask --help", "Hello")
    assert "Ask one question" in capsys.readouterr().out


def test_an_interrupted_question_says_so(book: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tagent_nb.notebook.magics.ask.answered", interrupted)
    assert "the question was stopped" in refused(book, "tagent_ask --model test", "Hello")


# -- the command line -------------------------------------------------------------------------

TOOLS = """
from pydantic import BaseModel

class Price(BaseModel):
    symbol: str

def get_stock_price(symbol: str) -> float:
    return 950.0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(TOOLS)
    return tmp_path


def test_the_command_prints_the_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer alone is on standard output, so that it can be piped; the rest is on standard error."""
    assert main(["ask", "Hello {{ there }}", "--model", "test"]) == 0
    output, errors = capsys.readouterr()
    assert output == "success (no tool calls)\n"
    assert "tokens, 0.0000 USD; run " in errors
    assert main(["ask", "Hello {{ there }}", "--model", "test", "--offline"]) == 0
    assert "from the cache" in capsys.readouterr().err


def test_the_command_takes_schemas_and_tools(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "NVDA?", "--model", "test", "--schemas", "own.py"]
    assert main([*words, "--output-schema", "Price", "--tools", "get_stock_price"]) == 0
    assert "symbol" in json.loads(capsys.readouterr().out)
    assert main([*words, "--output-schema", "Prise"]) == 1
    assert "there is no 'Prise'. Did you mean 'Price'? It is not in own.py." in capsys.readouterr().err
    assert main(["ask", "NVDA?", "--model", "test", "--tools", "f"]) == 1
    assert "Name the file that defines it: --schemas FILE.py" in capsys.readouterr().err


def test_the_command_reads_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    assert main(["ask", "-", "--model", "test"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["ask", "-", "--model", "test"]) == 1
    assert "The question is empty" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"))
    assert main(["ask", "-", "--model", "test"]) == 1
    assert "cannot be read as text" in capsys.readouterr().err


def test_the_command_shows_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["ASK_TEST_API_KEY"] = "success (no tool calls)"
    try:
        assert main(["ask", "Hello", "--model", "test"]) == 0
    finally:
        del os.environ["ASK_TEST_API_KEY"]
    output, errors = capsys.readouterr()
    assert "success" not in output
    assert "Warning: " in errors


def test_the_command_fails_with_a_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "x" * 400, "--model", "test", "--budget", "5 tokens"]) == 1
    assert "BudgetExceededError" in capsys.readouterr().err
