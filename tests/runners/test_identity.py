"""Two model objects of one name are two models, where they would answer otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tagent_nb import Pipeline, PipelineExecutor, ResultCache, StepStatus
from tagent_nb.runners import model_parts


def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    warmth = (info.model_settings or {}).get("temperature")
    return ModelResponse(parts=[TextPart(f"at {warmth}")])


def other(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse(parts=[TextPart("other")])


async def streamed(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    yield "streamed"


class Own(WrapperModel):
    """A model of the user's: no one knows what its code does to answers."""


def server(address: str, key: str = "k", **settings: Any) -> OpenAIChatModel:
    provider = OpenAIProvider(base_url=address, api_key=key)
    return OpenAIChatModel("llama", provider=provider, settings=ModelSettings(**settings))  # type: ignore[typeddict-item]


def answer(model: Any, folder: Path) -> tuple[Any, StepStatus]:
    pipeline = Pipeline("models", model=model)
    pipeline.step("ask", "How warm is it?")
    with closing(ResultCache(folder)) as cache:
        result = PipelineExecutor(pipeline, cache=cache, retry_delay=0.0).run()
    assert result.success, result.error_details
    return result["ask"], result.steps["ask"].status


@pytest.mark.parametrize(
    ("first", "second", "answers"),
    [
        (
            FunctionModel(reply, model_name="m", settings={"temperature": 0.0}),
            FunctionModel(reply, model_name="m", settings={"temperature": 1.0}),
            ("at 0.0", "at 1.0"),
        ),
        (FunctionModel(reply, model_name="m"), FunctionModel(other, model_name="m"), ("at None", "other")),
        (TestModel(custom_output_text="a"), TestModel(custom_output_text="b"), ("a", "b")),
        (TestModel(custom_output_text="a"), Own(TestModel(custom_output_text="a")), ("a", "a")),
        (
            FallbackModel(TestModel(custom_output_text="a"), TestModel()),
            FallbackModel(TestModel(custom_output_text="b"), TestModel()),
            ("a", "b"),
        ),
    ],
    ids=["settings", "function", "answers", "class", "fallback"],
)
def test_another_model_object_is_asked_itself(
    first: Any, second: Any, answers: tuple[str, str], tmp_path: Path
) -> None:
    """And not answered for by the cache, though its name is the same."""
    assert answer(first, tmp_path) == (answers[0], StepStatus.COMPLETED)
    assert answer(second, tmp_path) == (answers[1], StepStatus.COMPLETED)
    assert answer(first, tmp_path) == (answers[0], StepStatus.CACHED)
    assert answer(second, tmp_path) == (answers[1], StepStatus.CACHED)


def test_explain_names_what_of_the_model_changed(tmp_path: Path) -> None:
    pipeline = Pipeline("reported", model=FunctionModel(reply, model_name="m", settings={"temperature": 0.0}))
    pipeline.step("ask", "How warm is it?")
    with closing(ResultCache(tmp_path)) as cache:
        executor = PipelineExecutor(pipeline, cache=cache)
        executor.run()
        pipeline.model = FunctionModel(reply, model_name="m", settings={"temperature": 1.0})
        assert executor.run().steps["ask"].reason == "model settings changed"


def test_a_server_counts_by_its_address_and_not_by_its_keys() -> None:
    parts = model_parts(server("http://me:hush@one:8000/v1/", key="a", temperature=0.5))
    assert parts == {"model_server": "http://one:8000/v1", "model_settings": {"temperature": 0.5}}
    assert parts == model_parts(server("http://one:8000/v1", key="b", temperature=0.5))
    assert parts != model_parts(server("http://two:8000/v1", key="a", temperature=0.5))


def test_a_name_says_all_there_is_to_say() -> None:
    assert model_parts(None) == model_parts("openai:gpt-5") == model_parts("local") == {}


def test_of_a_fallback_each_model_counts() -> None:
    behind = FallbackModel(server("http://one/v1", temperature=0.0), "test")
    assert model_parts(behind) == {
        "model_server:1 openai:llama": "http://one/v1",
        "model_settings:1 openai:llama": {"temperature": 0.0},
        "model_answers:2 test:test": model_parts(TestModel())["model_answers"],
    }


def test_a_streaming_function_counts_as_well() -> None:
    both = FunctionModel(reply, stream_function=streamed)
    assert model_parts(both)["model_functions"] == [reply, streamed]


_CHILD = """
import json, sys
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.messages import ModelResponse, TextPart
from tagent_nb import Pipeline, PipelineExecutor, ResultCache

def said(messages, info):
    return ModelResponse(parts=[TextPart("x")])

provider = OpenAIProvider(base_url="http://one/v1", api_key=sys.argv[1])
real = OpenAIChatModel("llama", provider=provider, settings={"temperature": 0.5, "max_tokens": 9})
pipeline = Pipeline("p", model=FallbackModel(FunctionModel(said), real))
pipeline.step("ask", "How?")
result = PipelineExecutor(pipeline, cache=ResultCache(sys.argv[2])).run()
print(json.dumps(dict(result.steps["ask"].components)))
"""


def test_a_new_process_with_a_new_key_asks_the_same_model(tmp_path: Path) -> None:
    program = tmp_path / "child.py"
    program.write_text(_CHILD)

    def components(key: str, seed: str) -> Any:
        done = subprocess.run(
            [sys.executable, str(program), key, str(tmp_path / key)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)

    first = components("one", "1")
    assert {"model_settings:2 openai:llama", "model_server:2 openai:llama"} <= first.keys()
    assert components("two", "2") == first
