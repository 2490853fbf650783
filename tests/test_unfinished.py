"""Answers that are not whole are no answers."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.profiles.openai import OpenAIModelProfile

from tagent_nb import ResultCache, StepStatus
from tagent_nb.steps.unfinished import ended_early
from tests.fake_openai import USAGE, Act
from tests.wire import ONE, Play, cost, executor, run

pytestmark = [pytest.mark.models, pytest.mark.timeout(60)]

TEXT = Act(text="I loved it very much")
CUT = Act(text="I loved", finish="")
"""A stream that ends after its first words, as if it were whole."""

APIS = pytest.mark.parametrize("model", ["openai-chat:gpt-4o", "openai:gpt-4o"])


# -- streams that end early -------------------------------------------------------------------


@APIS
def test_a_stream_that_ended_early_is_no_answer(play: Play, tmp_path: Path, model: str) -> None:
    """It is asked again, and neither the step nor the cache takes the first words for the answer."""
    fake = play(CUT, TEXT)
    with closing(ResultCache(tmp_path)) as cache:
        one = executor(None, cache=cache, model=model)
        step = one.run().steps["s"]
        again = one.run().steps["s"]
    assert (step.error, step.attempts, len(fake.requests)) == ("", 2, 2)
    assert step.output.value == TEXT.text
    assert (step.usage, step.cost) == (ONE, cost(1))
    assert (again.output.value, again.status) == (TEXT.text, StepStatus.CACHED)


@APIS
def test_a_stream_that_always_ends_early_fails_the_step(play: Play, model: str) -> None:
    play(CUT)
    step = run(None, max_retries=1, model=model)
    assert (step.status, step.error_type, step.attempts) == (StepStatus.FAILED, "RetryableError", 2)
    assert "ended early" in step.error
    assert step.output is None


def test_a_server_that_never_says_why_an_answer_ends_can_be_trusted(play: Play) -> None:
    """By a model whose profile says that no reason is to be expected; of several, by all of theirs."""
    play(CUT)
    profile = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=False)
    trusted = OpenAIChatModel("gpt-4o", profile=profile)
    assert run(None, model=trusted).output.value == "I loved"
    mixed = FallbackModel(trusted, "openai-chat:gpt-4o")
    assert run(None, model=mixed, max_retries=0).status is StepStatus.FAILED


def test_what_an_answer_took_that_ended_early_is_not_forgotten(play: Play) -> None:
    """Where the server tells it along with the words, it counts."""
    choice = {"index": 0, "delta": {"content": "I lov"}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    body = f"data: {json.dumps({**chunk, 'choices': [choice], 'usage': USAGE})}\n\n"
    play(Act(body=body, headers={"Content-Type": "text/event-stream"}))
    step = run(None, max_retries=0)
    assert (step.status, step.usage, step.cost) == (StepStatus.FAILED, ONE, cost(1))


def test_other_providers_say_why_an_answer_ends_too() -> None:
    """One with an address that gives no reason has not ended its answer; test models have none."""
    text, stream = [TextPart("I lov")], TestModel()
    model, at = TestModel(), "https://models.example"

    def early(response: ModelResponse) -> bool:
        return ended_early(model, response, cast("StreamedResponse", stream))

    assert early(ModelResponse(text, provider_url=at))
    assert not early(ModelResponse(text))
    assert not early(ModelResponse(text, provider_url=at, finish_reason="stop"))
    assert not early(ModelResponse(text, provider_url=at, provider_details={"finish_reason": "odd"}))
    assert not early(ModelResponse(text, provider_url=at, state="suspended"))
    assert not ended_early(model, ModelResponse(text, provider_url=at))
