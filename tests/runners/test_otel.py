"""OpenTelemetry: which spans a run makes, what they hold, and what they must not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import Edited, Pipeline, PipelineExecutor, Price, ResultCache, StepContext, events
from tagent_nb.runners import ToolCall, Tracing, traced
from tagent_nb.runners.base import ModelCall
from tagent_nb.runners.middleware.otel import telemetry
from tests.fake_openai import KEY, Act, error, fake_openai

CANARY = "canary-0123456789abcdef"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, ReadableSpan]]]:
    """Set OpenTelemetry up for one test; gives the finished spans by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    provider.shutdown()


def parents(by_name: dict[str, ReadableSpan]) -> dict[str, str | None]:
    names = {span.context.span_id: name for name, span in by_name.items() if span.context is not None}
    return {
        name: None if span.parent is None else names[span.parent.span_id] for name, span in by_name.items()
    }


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def adding(text: str = "It is 5.") -> FunctionModel:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        used = RequestUsage(input_tokens=100, output_tokens=10, cache_read_tokens=20)
        if messages[-1].parts[-1].part_kind == "tool-return":
            return ModelResponse(
                parts=[TextPart(text)], usage=used, finish_reason="stop", provider_response_id="r1"
            )
        return ModelResponse(parts=[ToolCallPart("add", {"a": 2, "b": 3})], usage=used)

    return FunctionModel(answer, model_name="mine")


def pipeline() -> Pipeline:
    return Pipeline("sums", model=adding()).step(
        "sum", "Add 2 and 3.", tools=[add], settings={"temperature": 0.5, "max_tokens": 9}
    )


async def test_what_no_one_reported_is_no_attribute(spans: Any) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart("5")], usage=RequestUsage(unmeasured_requests=1))

    silent = Pipeline("sums", model=FunctionModel(answer, model_name="mine")).step("sum", "Add 2 and 3.")
    await PipelineExecutor(silent, prices=PRICES).execute()
    names = {name for span in spans().values() for name in span.attributes or ()}
    assert not {name for name in names if name.startswith("gen_ai.usage") or name == "tagent.cost_usd"}


PRICES = {"function:mine": Price(1.0, 1.0)}


async def test_a_run_is_traced_from_its_start_to_each_call(spans: Any) -> None:
    result = await PipelineExecutor(pipeline(), prices=PRICES).execute()
    by_name = spans()
    assert parents(by_name) == {
        "invoke_workflow sums": None,
        "step sum": "invoke_workflow sums",
        "attempt sum": "step sum",
        "chat mine": "attempt sum",
        "execute_tool add": "attempt sum",
    }
    run, step, attempt, chat, tool = [
        dict(by_name[name].attributes)
        for name in ("invoke_workflow sums", "step sum", "attempt sum", "chat mine", "execute_tool add")
    ]
    assert run == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "sums",
        "tagent.run_id": result.run_id,
        "tagent.resumed": False,
        "tagent.status": "completed",
    }
    assert step == {"tagent.step": "sum", "tagent.status": "completed"}
    assert attempt == {
        "tagent.step": "sum",
        "tagent.attempt": 1,
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "sum",
        "gen_ai.usage.input_tokens": 200,
        "gen_ai.usage.output_tokens": 20,
        "tagent.cost_usd": pytest.approx(220 / 1e6),
    }
    assert chat == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "function",
        "gen_ai.request.model": "mine",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.response.model": "mine",
        "gen_ai.response.id": "r1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "tagent.cost_usd": pytest.approx(110 / 1e6),
    }
    assert by_name["chat mine"].kind is trace.SpanKind.CLIENT
    assert tool["gen_ai.operation.name"] == "execute_tool"
    assert tool["gen_ai.tool.name"] == "add"
    assert tool["gen_ai.tool.type"] == "function"


async def test_content_is_left_out_unless_asked_for(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And secrets always."""
    monkeypatch.setenv("CANARY_API_KEY", CANARY)
    model = adding(f"It is 5, and the key is {CANARY}.")
    secret = Pipeline("sums", model=model).step("sum", f"Add 2 and 3, says {CANARY}.", tools=[add])
    await PipelineExecutor(secret).execute()
    plain = json.dumps([span.to_json() for span in spans().values()])
    assert "Add 2 and 3" not in plain
    assert "It is 5" not in plain
    assert CANARY not in plain
    await PipelineExecutor(secret, trace_content=True).execute()
    by_name = spans()
    full = json.dumps([span.to_json() for span in by_name.values()])
    assert CANARY not in full
    sent = json.loads(by_name["chat mine"].attributes["gen_ai.input.messages"])
    assert {message["role"] for message in sent} >= {"user", "assistant"}
    assert "Add 2 and 3, says ***" in json.dumps(sent)
    assert "the key is ***" in by_name["chat mine"].attributes["gen_ai.output.messages"]
    tool = by_name["execute_tool add"].attributes
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"a": 2, "b": 3}
    assert tool["gen_ai.tool.call.result"] == "5"


async def test_a_span_shows_the_arguments_that_the_user_put_in_place(spans: Any) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        first = len(messages) == 1
        return ModelResponse(parts=[ToolCallPart("add", {"a": 2, "b": 3}) if first else TextPart("done")])

    sums = Pipeline("sums", model=FunctionModel(answer)).step(
        "sum", "Add.", tools=[add], approve_tools=["add"]
    )
    run = PipelineExecutor(sums, trace_content=True, approver=lambda request: Edited({"a": 2, "b": 4}))
    assert (await run.execute()).success
    tool = spans()["execute_tool add"].attributes
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"a": 2, "b": 4}


async def test_failures_have_their_type_and_without_content_nothing_else(spans: Any) -> None:
    broken = Pipeline("broken")

    @broken.task(max_retries=1)
    def load() -> None:
        raise ConnectionError("of Mrs Smith")

    broken.task(lambda load: load, name="report")
    executor = PipelineExecutor(broken, retry_delay=0)
    await executor.execute()
    by_name = spans()
    assert parents(by_name) == {
        "invoke_workflow broken": None,
        "step load": "invoke_workflow broken",
        "attempt load": "step load",
        "step report": "invoke_workflow broken",
    }
    for name in ("step load", "attempt load"):
        assert by_name[name].attributes["error.type"] == "ConnectionError"
        assert by_name[name].status.status_code is trace.StatusCode.ERROR
        assert by_name[name].status.description is None
    assert by_name["attempt load"].attributes["tagent.attempt"] == 2
    assert by_name["step load"].attributes["tagent.status"] == "failed"
    assert by_name["step report"].attributes["tagent.status"] == "skipped"
    assert by_name["invoke_workflow broken"].attributes["tagent.status"] == "failed"
    assert by_name["invoke_workflow broken"].status.status_code is trace.StatusCode.ERROR
    executor.trace_content = True
    await executor.execute(resume=True)
    again = spans()
    assert again["step load"].status.description == "of Mrs Smith"
    assert again["invoke_workflow broken"].attributes["tagent.resumed"] is True


@pytest.mark.models
async def test_calls_that_fail_have_their_type(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(500, f"broken, says {KEY}"), Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        asking = Pipeline("asks", model="openai-chat:gpt-4o").step("s", "Say hello.", max_retries=0)
        await PipelineExecutor(asking, trace_content=True).execute()
    chat = spans()["chat gpt-4o"]
    assert chat.attributes["error.type"].endswith("Error")
    assert chat.attributes["gen_ai.provider.name"] == "openai"
    assert "broken, says ***" in chat.status.description
    assert KEY not in chat.to_json()


async def test_items_are_attempts_of_their_step(spans: Any) -> None:
    mapped = Pipeline("mapped")
    mapped.task(lambda: ["a", "b"], name="rows")
    mapped.task(lambda item: item, name="each", map_over="rows")
    await PipelineExecutor(mapped, trace_content=True).execute()
    by_name = spans()
    assert parents(by_name)["attempt each"] == "step each"
    assert by_name["step each"].attributes["tagent.items"] == 2
    assert by_name["attempt each"].attributes["tagent.item"] in ("0", "1")


async def test_cached_and_stopped_steps_are_reported(spans: Any, tmp_path: Any) -> None:
    cached = Pipeline("cached")
    cached.task(_one, name="one")
    executor = PipelineExecutor(cached, cache=ResultCache(tmp_path))
    await executor.execute()
    await executor.execute()
    assert spans()["step one"].attributes["tagent.status"] == "cached"

    stopped = Pipeline("stopped")
    stopping = PipelineExecutor(stopped)

    async def hang(context: StepContext) -> None:
        with context.waiting("the end"):
            stopping.cancel()
            await asyncio.Event().wait()

    stopped.task(hang, name="hang")
    await stopping.execute()
    by_name = spans()
    assert by_name["attempt hang"].attributes["tagent.status"] == "cancelled"
    assert [event.name for event in by_name["attempt hang"].events] == ["waiting"]
    assert by_name["invoke_workflow stopped"].attributes["tagent.status"] == "cancelled"
    assert by_name["invoke_workflow stopped"].status.status_code is trace.StatusCode.UNSET


def _one() -> int:
    return 1


async def test_what_calls_do_inside_belongs_to_them(spans: Any) -> None:
    """Such as the spans of an instrumented HTTP client, or of the user's own tools."""

    def look(word: str) -> str:
        """Look it up."""
        with trace.get_tracer_provider().get_tracer("user").start_as_current_span("looks it up"):
            return word

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if messages[-1].parts[-1].part_kind == "tool-return":
            return ModelResponse(parts=[TextPart("x")])
        return ModelResponse(parts=[ToolCallPart("look", {"word": "cat"})])

    looking = Pipeline("looks", model=FunctionModel(answer)).step("s", "Look.", tools=[look])
    assert (await PipelineExecutor(looking).execute()).success
    assert parents(spans())["looks it up"] == "execute_tool look"


async def test_a_tool_of_a_server_is_distinguished_from_a_function(spans: Any) -> None:
    tracer = trace.get_tracer_provider().get_tracer("test")
    tracing = Tracing("p", tracer)
    context = StepContext("run", "p", "s")

    async def proceed(call: ToolCall) -> str:
        return "x"

    await tracing.tool_call(ToolCall(context, "search", {}, id="call_1"), proceed)
    tracing(events.RunFinished(run_id="run", success=False))
    by_name = spans()
    assert by_name["execute_tool search"].attributes["gen_ai.tool.type"] == "extension"
    assert by_name["execute_tool search"].attributes["gen_ai.tool.call.id"] == "call_1"
    assert "step s" in by_name, "whatever is open when a run ends is closed"


# -- where no one listens -----------------------------------------------------------------------


async def test_without_a_provider_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    observers: list[Any] = []
    with traced(observers, "p") as tracing:
        assert tracing is None
        assert observers == []


def test_without_opentelemetry_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert telemetry("p") is None


def test_what_no_one_has_loaded_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry")
    monkeypatch.delenv("OTEL_PYTHON_TRACER_PROVIDER", raising=False)
    assert telemetry("p") is None
    assert "opentelemetry" not in sys.modules


async def test_an_answer_that_names_no_model_has_none(spans: Any) -> None:
    tracing = Tracing("p", trace.get_tracer_provider().get_tracer("test"))
    call = ModelCall(StepContext("run", "p", "s"), adding(), [], None, ModelRequestParameters())

    async def proceed(call: ModelCall) -> ModelResponse:
        return ModelResponse(parts=[TextPart("x")])

    await tracing.model_call(call, proceed)
    assert "gen_ai.response.model" not in spans()["chat mine"].attributes


def test_a_tracing_that_failed_is_not_removed_twice(spans: Any) -> None:
    observers: list[Any] = []
    with traced(observers, "p") as tracing:
        assert observers == [tracing]
        observers.clear()
    assert observers == []


def test_runs_load_opentelemetry_only_where_it_is_set_up() -> None:
    code = (
        "import os, sys\n"
        "from tagent_nb import Pipeline, PipelineExecutor\n"
        "p = Pipeline('p')\n"
        "p.task(lambda: 1, name='one')\n"
        "PipelineExecutor(p).run()\n"
        "print('opentelemetry' in sys.modules)\n"
        "os.environ['OTEL_PYTHON_TRACER_PROVIDER'] = 'sdk_tracer_provider'\n"
        "PipelineExecutor(p).run()\n"
        "print('tagent_nb.runners.middleware.tracing' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
