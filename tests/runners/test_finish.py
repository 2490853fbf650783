"""Answers that are not whole are no answers."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.profiles.openai import OpenAIModelProfile

from tagent_nb import ResultCache, StepStatus
from tagent_nb.runners.models.finish import ended_early
from tests.fake_openai import USAGE, Act
from tests.wire import ONE, Play, Sentiment, cost, executor, run, times

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
        runner = executor(None, cache=cache, model=model)
        step = runner.run().steps["s"]
        again = runner.run().steps["s"]
    assert (step.error, step.attempts, len(fake.requests)) == ("", 2, 2)
    assert step.output.value == TEXT.text
    assert (step.usage, step.cost) == (ONE, cost(1))
    assert (again.output.value, again.status) == (TEXT.text, StepStatus.CACHED)


@APIS
def test_a_stream_that_always_ends_early_fails_the_step(play: Play, model: str) -> None:
    play(CUT)
    step = run(None, max_retries=0, model=model)
    assert (step.status, step.error_type, step.attempts) == (StepStatus.FAILED, "RetryableError", 1)
    assert "ended early" in step.error
    assert step.output is None


@APIS
def test_a_stream_that_always_ends_early_is_asked_for_once_more_as_a_whole(play: Play, model: str) -> None:
    """What comes at once is whole, also without a reason."""
    fake = play(CUT)
    step = run(None, model=model)
    assert (step.output.value, step.attempts) == ("I loved", 2)
    assert [bool(request.get("stream")) for request in fake.requests] == [True, False]


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
    assert not early(ModelResponse(text, state="suspended", provider_response_id="r1"))
    assert early(ModelResponse(text, state="suspended"))
    assert not ended_early(model, ModelResponse(text, provider_url=at))


# -- answers that are cut ---------------------------------------------------------------------


@APIS
@pytest.mark.parametrize("streams", [True, False], ids=["in pieces", "as a whole"])
def test_an_answer_that_was_cut_at_max_tokens_fails_and_is_paid(
    play: Play, tmp_path: Path, model: str, streams: bool
) -> None:
    """Once: the same limit would cut it again. The message names step, limit and remedy."""
    fake = play(Act(text="a story tha", finish="length"))
    with closing(ResultCache(tmp_path)) as cache:
        runner = executor(
            None if streams else Sentiment, cache=cache, model=model, settings={"max_tokens": 16}
        )
        step = runner.run().steps["s"]
        assert runner.run().steps["s"].status is StepStatus.FAILED
    assert (step.status, step.error_type, step.attempts) == (StepStatus.FAILED, "StepError", 1)
    assert step.error == (
        "Step 's': the answer was cut off at max_tokens=16, so its end is missing. "
        "Raise max_tokens in the step's settings (settings={'max_tokens': 4000}, "
        "%%tagent_step --setting max_tokens=4000), or ask for a shorter answer."
    )
    assert (step.usage, step.cost) == (ONE, cost(1))
    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    ("act", "whole"),
    [
        (Act(tool="final_result", arguments={"label": "positive"}), True),
        (Act(tool="final_result", arguments='{"label": "posi'), False),
        (Act(tool="final_result", arguments="[1]"), False),
        (Act(text='{"label": "posi'), False),
        (Act(text="Let me think"), False),
    ],
    ids=["call", "part of a call", "no call", "part of a text", "no JSON"],
)
def test_an_answer_with_a_schema_is_whole_if_its_json_is(play: Play, act: Act, whole: bool) -> None:
    fake = play(replace(act, finish="length"))
    step = run()
    assert step.status is (StepStatus.COMPLETED if whole else StepStatus.FAILED)
    assert len(fake.requests) == 1
    assert ("cut off at the model's own limit of output tokens" in step.error) is not whole


def test_json_in_a_text_that_was_cut_behind_it_is_whole(play: Play) -> None:
    """Of a model that knows neither tools nor schemas, and goes on talking."""
    play(Act(text='{"label": "positive"} I think that', finish="length"))
    profile = OpenAIModelProfile(supports_tools=False, supports_json_schema_output=False)
    assert run(model=OpenAIChatModel("gpt-4o", profile=profile)).output.value == Sentiment(label="positive")


def test_a_task_of_a_plan_that_was_cut_is_a_failed_one(play: Play) -> None:
    """The plan goes on without it, as without any other task that failed."""
    task = {"id": "a", "description": "Tell a story", "tool": "llm", "arguments": {}}
    plan = Act(tool="final_result", arguments={"tasks": [task]})
    right = Act(tool="final_result", arguments={"label": "positive"})
    play(plan, Act(text="Once", finish="length"), plan, right)
    step = run(agent="plan")
    assert step.output.value == Sentiment(label="positive")
    assert (step.usage, step.cost) == (times(4), cost(4))


@APIS
@pytest.mark.parametrize("text", ["", "I may not sa"])
def test_an_answer_that_was_filtered_says_so_in_one_sentence(play: Play, model: str, text: str) -> None:
    fake = play(Act(text=text, finish="content_filter"))
    step = run(None, model=model)
    assert (step.status, step.error_type, len(fake.requests)) == (StepStatus.FAILED, "StepError", 1)
    assert step.error == (
        f"Step 's': the content filter of {model!r} stopped the answer (content_filter). "
        "Change the goal or the data that it shows, or use another model."
    )
    assert (step.usage, step.cost) == (ONE, cost(1))


# -- answers in the wrong shape ---------------------------------------------------------------

EVENTS = {"Content-Type": "text/event-stream"}


@pytest.mark.parametrize(
    ("schema", "act"),
    [
        (Sentiment, Act(body='{"foo": 1}')),
        (Sentiment, Act(body="null")),
        (Sentiment, Act(body="[]")),
        (Sentiment, Act(body='{"output": [{"type": "message"}]}')),
        (None, Act(body="<html>")),
        (None, Act(body="data: 5\n\n", headers=EVENTS)),
        (None, Act(body="data: null\n\n", headers=EVENTS)),
    ],
)
@APIS
def test_an_answer_in_the_wrong_shape_is_one_clear_error(
    play: Play, schema: Any, act: Act, model: str
) -> None:
    """As malformed JSON, it is asked for again; the message says what else the server may speak."""
    right = TEXT if schema is None else Act(tool="final_result", arguments={"label": "positive"})
    fake = play(act, act, right)
    step = run(schema, model=model, max_retries=1)
    assert (step.error_type, step.attempts, len(fake.requests)) == ("RetryableError", 2, 2)
    assert step.error.startswith(f"Step 's': {model!r} sent an answer that cannot be read (")
    assert ("'openai-chat:gpt-4o' speaks chat completions" in step.error) is (model == "openai:gpt-4o")


def test_an_unknown_word_beside_a_known_reason_is_nothing_to_warn_of(tmp_path: Path) -> None:
    """The library has understood it: the answer is whole, and is cached."""

    def answer(*_: Any) -> ModelResponse:
        details = {"finish_reason": "banana"}
        return ModelResponse([TextPart("hello")], finish_reason="stop", provider_details=details)

    with closing(ResultCache(tmp_path)) as cache:
        runner = executor(None, observers=(), cache=cache, model=FunctionModel(answer))
        result, again = runner.run(), runner.run()
    assert (result["s"], result.warnings) == ("hello", [])
    assert again.steps["s"].status is StepStatus.CACHED


def test_an_error_in_a_model_of_ones_own_is_shown_as_it_is() -> None:
    def answer(messages: list[Any], info: AgentInfo) -> ModelResponse:
        raise TypeError("mine")

    assert run(model=FunctionModel(answer)).error_type == "TypeError"
