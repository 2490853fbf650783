"""The request that units share, against an agent of pydantic-ai for each unit: both look the same."""

from __future__ import annotations

import asyncio
import json
from copy import copy
from dataclasses import asdict
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponsePart,
    NativeToolCallPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
)
from pydantic_ai.models import infer_model
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.events import Event
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import AgentRunner, StepContext, step_context, tool
from tagent_nb.runners.agent import request as request_module
from tagent_nb.runners.agent import runner as runner_module
from tagent_nb.runners.base import CallMiddleware, ModelCall
from tagent_nb.runners.middleware.canonical_request import SharedParts, model_request
from tagent_nb.runners.models.output import output_of
from tagent_nb.runners.tools.registry import forget_tool
from tests.fake_openai import KEY, Act, fake_openai


class Label(BaseModel):
    """What a text says."""

    label: Literal["positive", "negative"]
    score: float = 0.5

    @field_validator("score")
    @classmethod
    def _in_range(cls, value: float) -> float:
        if value > 1:
            raise ValueError("must be at most 1")
        return value


TEXTS = [
    '{"label": "positive"}',
    '{"label": "negative", "score": 0.25}',
    '{"label": "meh"}',
    '{"label": "positive", "score": 2}',
    '```json\n{"label": "positive"}\n```',
    ' {"label": "positive"}',
    'Here it is: {"label": "negative"}',
    "{}",
    "null",
    "",
    "I loved it.",
]
ARGUMENTS: list[Any] = [*TEXTS, {"label": "positive"}, {"label": "meh"}, {}, None]

parts = st.one_of(
    st.sampled_from(TEXTS).map(TextPart),
    st.sampled_from(["", "Let me see."]).map(ThinkingPart),
    st.builds(
        ToolCallPart, st.sampled_from(["final_result", "final_result", "unknown"]), st.sampled_from(ARGUMENTS)
    ),
)
Answer = list[ModelResponsePart] | str
answers = st.one_of(
    st.builds(lambda arguments: [ToolCallPart("final_result", arguments)], st.sampled_from(ARGUMENTS)),
    st.builds(lambda text: [TextPart(text)], st.sampled_from(TEXTS)),
    st.lists(parts, max_size=3),
    st.sampled_from(["retry", "broken"]),
)
steps = st.fixed_dictionaries(
    {
        "output_schema": st.sampled_from([None, Label]),
        "output_mode": st.sampled_from([None, "tool", "native", "prompted"]),
        "output_retries": st.integers(0, 2),
        "checks": st.sampled_from([(), ("positive",)]),
        "settings": st.sampled_from([{}, {"temperature": 0.5, "max_tokens": 100}]),
    }
)


class Keys(CallMiddleware):
    """Keeps the key of each call."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.shared = SharedParts()

    async def model_call(self, call: ModelCall, proceed: Any) -> ModelResponse:
        self.keys.append(model_request(call, "m").key)
        assert model_request(call, "m", self.shared).key == self.keys[-1]
        return await proceed(call)  # type: ignore[no-any-return]


def model_of(script: list[Answer], seen: list[Any]) -> FunctionModel:
    """A model that gives these answers, the last one again and again, and keeps what it is asked."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        questions = [
            [message.kind, getattr(message, "instructions", None)]
            + [
                [part.part_kind, getattr(part, "content", None), getattr(part, "args", None)]
                for part in message.parts
            ]
            for message in messages
        ]
        seen.append([questions, dict(info.model_settings or {}), asdict(info.model_request_parameters)])
        found = script[min(len(seen), len(script)) - 1]
        if found == "retry":
            raise ModelRetry("Once more.")
        if isinstance(found, str):
            raise ValueError("The model is broken.")
        return ModelResponse(parts=[copy(part) for part in found])

    return FunctionModel(answer)


def outcome(script: list[Answer], options: dict[str, Any]) -> dict[str, Any]:
    """All that one unit shows of itself to the model, to middleware, and to its run."""
    seen: list[Any] = []
    events: list[Event] = []
    judged: list[Any] = []
    keys = Keys()

    def positive(value: Any) -> bool:
        judged.append(value)
        return "positive" in str(value)

    step = PipelineStep("s", "Say what it is.", **{**options, "checks": [positive] * len(options["checks"])})
    context = StepContext(
        "run", "demo", "s", model=model_of(script, seen), emit=events.append, middleware=[keys]
    )
    value: Any = None
    try:
        value = asyncio.run(AgentRunner().run(step, context))
    except Exception as error:  # whatever it is, it is compared
        value = [type(error), str(error), type(error.__cause__)]
    return {
        "value": value,
        "seen": seen,
        "keys": keys.keys,
        "events": [(event.kind, event.detail) for event in events],  # type: ignore[attr-defined]
        "judged": judged,
        "usage": context.usage,
        "cost": context.cost,
        "metadata": context.metadata,
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(answers, min_size=1, max_size=3), steps)
def test_a_shared_request_is_as_good_as_an_agent(script: list[Answer], options: dict[str, Any]) -> None:
    """The same messages, keys of calls, values, errors, reports and amounts."""
    by_template = outcome(script, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module._Shared, "template", _no_template)
        by_agent = outcome(script, options)
    assert by_template == by_agent


async def _no_template(shared: Any) -> None:
    """An agent for each unit."""


@pytest.fixture
def agent_runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that agents of pydantic-ai got."""
    tasks: list[Any] = []
    run = Agent.run

    async def counted(self: Agent[Any, Any], task: Any, **options: Any) -> Any:
        tasks.append(task)
        return await run(self, task, **options)

    monkeypatch.setattr(Agent, "run", counted)
    return tasks


def mapped(model: Any, **options: Any) -> Pipeline:
    pipeline = Pipeline("p", model=model, inputs={"texts": ["a", "b", "c", "d"]})
    goal = "Say what it is: {{ item }}"
    return pipeline.put(PipelineStep("s", goal, map_over="texts", output_schema=Label, **options))


TASKS = [f"Say what it is: <data>{text}</data>" for text in "abcd"]
RIGHT: Answer = [ToolCallPart("final_result", '{"label": "positive"}')]
WRONG: Answer = [ToolCallPart("final_result", '{"label": "meh"}')]


def test_one_agent_works_out_the_request_of_all_items(agent_runs: list[Any]) -> None:
    seen: list[Any] = []
    result = PipelineExecutor(mapped(model_of([RIGHT], seen))).run()
    assert result["s"] == [Label(label="positive")] * 4
    assert agent_runs == [request_module.TASK]
    assert sorted(event[0][-1][1] for event, _, _ in seen) == TASKS
    assert len({str(parameters) for _, _, parameters in seen}) == 1


LABELLED = {"label": "positive"}


@pytest.mark.models
@pytest.mark.parametrize("model", ["openai-chat:gpt-4o", "openai-responses:gpt-5", "openai-chat:o3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_schema": Label},
        {"output_schema": Label, "output_mode": "tool", "settings": {"temperature": 1, "max_tokens": 50}},
        {"output_schema": Label, "output_mode": "native", "settings": {"seed": 7, "thinking": "low"}},
        {"output_schema": Label, "output_mode": "prompted", "settings": {"extra_body": {"top_k": 3}}},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of settings that a model does not know
def test_what_is_sent_is_what_an_agent_of_pydantic_ai_sends(
    model: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte but for the order of fields, from the first unit to the last."""
    by_tool = options.get("output_mode", "tool") == "tool" and "output_schema" in options
    act = Act(tool="final_result", arguments=LABELLED) if by_tool else Act(text=json.dumps(LABELLED))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(act) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        pipeline = Pipeline("p", model=model, inputs={"texts": list("abcd")})
        pipeline.put(PipelineStep("s", "Say what it is: {{ item }}", map_over="texts", **options))
        assert PipelineExecutor(pipeline, cache=None).run().success
        ours, server.requests[:] = list(server.requests), []
        own = infer_model(model)
        output, hint = output_of(own, options.get("output_schema"), options.get("output_mode"))
        system = "\n\n".join([runner_module.instructions(StepContext("r", "p", "s")), *hint])
        agent = Agent(own, output_type=output, instructions=system, model_settings=options.get("settings"))
        for task in TASKS:
            agent.run_sync(task)
        theirs = server.requests
    assert sorted(map(in_order, ours)) == sorted(map(in_order, theirs))
    assert len(ours) == 4


def in_order(request: Any) -> str:
    return json.dumps(request, sort_keys=True)


class Counting(OpenAIChatModel):
    """A class of a user, who looks at each request."""

    prepared = 0

    def prepare_request(self, model_settings: Any, model_request_parameters: Any) -> Any:
        Counting.prepared += 1
        return super().prepare_request(model_settings, model_request_parameters)


@pytest.mark.models
def test_a_model_of_the_users_own_class_prepares_each_request() -> None:
    with fake_openai(Act(tool="final_result", arguments=LABELLED)) as server:
        model = Counting("gpt-4o", provider=OpenAIProvider(base_url=server.url, api_key=KEY))
        assert PipelineExecutor(mapped(model)).run().success
    assert Counting.prepared >= len(TASKS)


def test_an_agent_goes_on_after_a_wrong_answer(agent_runs: list[Any]) -> None:
    seen: list[Any] = []
    assert PipelineExecutor(mapped(model_of([WRONG, RIGHT], seen))).run().success
    assert agent_runs == [request_module.TASK, TASKS[0]]
    assert len(seen) == 5


def test_one_agent_serves_all_items_of_a_step_with_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tools know whose they are, and so do checks."""
    made: list[Any] = []
    init = Agent.__init__

    def counted(self: Any, *args: Any, **options: Any) -> None:
        made.append(options["name"])
        init(self, *args, **options)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("whose")])
        return ModelResponse(parts=[TextPart(str(messages[-1].parts[0].content))])  # type: ignore[union-attr]

    async def whose() -> str:
        return str(step_context().item)

    def its_own(value: str, context: StepContext) -> bool:
        return value == context.item

    monkeypatch.setattr(Agent, "__init__", counted)
    pipeline = Pipeline("p", model=FunctionModel(answer), inputs={"texts": list("abcd")})
    pipeline.put(PipelineStep("s", "{{ item }}", map_over="texts", tools=[whose], checks=[its_own]))
    result = PipelineExecutor(pipeline).run()
    assert result["s"] == ["0", "1", "2", "3"]
    assert made == ["s"]


async def test_a_tool_that_is_another_now_gets_another_agent() -> None:
    runner, step = AgentRunner(), PipelineStep("s", "Look.", tools_filter=["look"])
    context = StepContext("r", "p", "s", model=TestModel())
    try:
        for word in ("before", "after"):

            @tool
            def look(word: str = word) -> str:
                return word

            assert await runner.run(step, context) == f'{{"look":"{word}"}}'
    finally:
        forget_tool("look")


def test_an_agent_reads_an_answer_with_other_parts(agent_runs: list[Any]) -> None:
    model = model_of([[NativeToolCallPart("web_search"), TextPart("Hello")]], [])
    pipeline = Pipeline("p", model=model).put(PipelineStep("s", "Say hello."))
    assert PipelineExecutor(pipeline).run()["s"] == "Hello"
    assert agent_runs == [request_module.TASK, "Say hello."]


def test_another_run_works_it_out_anew(agent_runs: list[Any]) -> None:
    executor = PipelineExecutor(mapped(model_of([RIGHT], [])))
    assert executor.run().success
    assert executor.run(force=True).success
    assert agent_runs == [request_module.TASK] * 2


def test_who_traces_agents_sees_each_of_them(agent_runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "_instrument_default", True)
    assert PipelineExecutor(mapped(model_of([RIGHT], []))).run().success
    assert sorted(agent_runs) == TASKS


def test_a_timeout_that_agents_keep_is_kept(agent_runs: list[Any]) -> None:
    """In the settings of the step, or of its model."""
    in_step = mapped(model_of([RIGHT], []), settings={"request_timeout": 5.0})
    assert PipelineExecutor(in_step).run().success
    model = TestModel(custom_output_args={"label": "negative"}, settings=ModelSettings(request_timeout=5.0))
    assert PipelineExecutor(mapped(model)).run().success
    assert len(agent_runs) == 8
    assert request_module.TASK not in agent_runs


class Talkative(TestModel):
    """Sends more than it is asked to."""

    def prepare_messages(self, messages: Any, model_request_parameters: Any) -> Any:
        (request,) = messages
        greeting = type(request)(parts=[type(request.parts[0])("Hello.")])
        answer = ModelResponse(parts=[TextPart("Hello!")])
        return [greeting, answer, request]


class Polite(TestModel):
    """Says please."""

    def prepare_messages(self, messages: Any, model_request_parameters: Any) -> Any:
        (request,) = messages
        request.parts[0].content += " Please."
        return [request]


@pytest.mark.parametrize("kind", [Talkative, Polite])
def test_a_model_that_rewrites_what_is_sent_gets_agents(agent_runs: list[Any], kind: type[TestModel]) -> None:
    assert PipelineExecutor(mapped(kind(custom_output_args={"label": "negative"}))).run().success
    assert len(agent_runs) == 5


class Refusing(TestModel):
    """Cannot be asked."""

    def prepare_messages(self, messages: Any, model_request_parameters: Any) -> Any:
        raise ValueError("not this one")


def test_what_keeps_an_agent_from_asking_fails_each_unit(agent_runs: list[Any]) -> None:
    result = PipelineExecutor(mapped(Refusing(), max_retries=0), retry_delay=0.0).run()
    assert "not this one" in result.steps["s"].error
    assert len(agent_runs) == 5


async def test_a_cancelled_unit_does_not_take_the_request_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first unit is stopped while the request is worked out; the second has waited for it."""
    go = asyncio.Event()
    run = Agent.run

    async def slow(self: Agent[Any, Any], task: Any, **options: Any) -> Any:
        await go.wait()
        return await run(self, task, **options)

    monkeypatch.setattr(Agent, "run", slow)
    runner, step = AgentRunner(), PipelineStep("s", "Say hello.")
    model = model_of([[TextPart("Hello")]], [])
    first, second = (
        asyncio.create_task(runner.run(step, StepContext("r", "p", "s", model=model))) for _ in "ab"
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    go.set()
    assert await second == "Hello"
