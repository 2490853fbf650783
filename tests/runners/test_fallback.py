"""Several models in a row as the model of a step: the next one is asked where one fails."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import ModelProfile
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import Limit, Pipeline, PipelineExecutor, Price, StepResult, StepStatus
from tagent_nb.events import TokenUsage
from tagent_nb.runners import model_name, price
from tagent_nb.runners.models.resolve import cost_of
from tests.fake_openai import Act, error
from tests.wire import ONE, Play, Sentiment, executor, run

pytestmark = [pytest.mark.models, pytest.mark.timeout(60)]

TEXT = Act(text="I loved it very much")
RIGHT = Act(tool="final_result", arguments={"label": "positive"})
OOPS = error(500, "Oops")


def search(word: str) -> str:
    """Search reviews."""
    return f"I loved the {word}"


def both(**options: Any) -> StepResult:
    """A step whose models are two of the server's; the second is asked where the first fails."""
    return run(model=FallbackModel("openai-chat:gpt-4o", "openai-chat:gpt-4o-mini"), **options)


PLAN = Act(
    tool="final_result",
    arguments={"tasks": [{"id": "a", "description": "Judge", "tool": "llm", "arguments": {}}]},
)


@pytest.mark.parametrize(
    ("acts", "options", "answers"),
    [
        ([OOPS, TEXT], {"schema": None}, 1),
        ([OOPS, RIGHT], {}, 1),
        ([Act(tool="search", arguments={"word": "tea"}), OOPS, RIGHT], {"tools": [search]}, 2),
        ([PLAN, OOPS, RIGHT], {"agent": "plan", "tools": [search]}, 2),
    ],
    ids=["text", "schema", "tools", "plan"],
)
def test_the_next_model_answers_where_one_fails(
    play: Play, acts: list[Act], options: dict[str, Any], answers: int
) -> None:
    """In the same attempt, and at the price of the one that answered."""
    fake = play(*acts)
    step = both(**options)
    assert (step.error, step.attempts, len(fake.requests)) == ("", 1, len(acts))
    assert step.output.value == (TEXT.text if "schema" in options else Sentiment(label="positive"))
    assert fake.requests[-1]["model"] == "gpt-4o-mini"
    dear, cheap = price("openai:gpt-4o", ONE), price("openai:gpt-4o-mini", ONE)
    assert dear is not None
    assert cheap is not None
    assert step.cost == pytest.approx((answers - 1) * dear + cheap)
    assert step.metadata["model"] == "fallback:openai:gpt-4o,openai:gpt-4o-mini"


def test_where_all_fail_the_error_says_what_each_said(play: Play) -> None:
    """Another attempt follows if it may help one of them, after the wait that it asks for."""
    play(error(429, "Slow down", Retry_After="0"), OOPS, OOPS)
    step = both(max_retries=1)
    assert (step.status, step.error_type, step.attempts) == (StepStatus.FAILED, "RetryableError", 2)
    assert step.error == (
        "Step 's': no model of the fallback answered (gpt-4o: HTTP 500: Oops; gpt-4o-mini: HTTP 500: Oops)."
    )


def test_where_no_attempt_can_help_none_follows(play: Play) -> None:
    fake = play(error(400, "Bad"))
    step = both()
    assert (step.error_type, step.attempts, len(fake.requests)) == ("StepError", 1, 2)
    assert "gpt-4o-mini: HTTP 400: Bad" in step.error


def test_what_each_of_them_can_do_decides_the_form_of_the_answer(play: Play) -> None:
    """JSON in a text where one of them knows nothing else; behind a wrapper, and a fallback of a fallback."""

    def answer(messages: list[Any], info: AgentInfo) -> ModelResponse:
        assert not info.output_tools
        return ModelResponse([TextPart('{"label": "positive"}')])

    plain = ModelProfile(supports_tools=False, supports_json_schema_output=False)
    model = WrapperModel(FallbackModel(FallbackModel(FunctionModel(answer, profile=plain)), TestModel()))
    assert run(model=model).output.value == Sentiment(label="positive")


def test_a_model_that_cannot_stream_is_waited_for(play: Play) -> None:
    def answer(messages: list[Any], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart("whole")])

    assert run(None, model=FallbackModel(FunctionModel(answer), TestModel())).output.value == "whole"


def test_limits_of_the_first_models_provider_hold(play: Play) -> None:
    play(TEXT)
    model = FallbackModel("openai-chat:gpt-4o", "openai-chat:gpt-4o-mini")
    runner = executor(None, model=model)
    limited = PipelineExecutor(runner.pipeline, limits={"openai": Limit(concurrency=1)})
    assert limited.run().success
    assert [*limited.limits.paces] == ["openai"]


# -- prices -----------------------------------------------------------------------------------


def answered(name: str, provider: str = "function") -> ModelResponse:
    used = RequestUsage(input_tokens=1_000_000, output_tokens=0)
    return ModelResponse([TextPart("x")], model_name=name, provider_name=provider, usage=used)


def test_the_one_that_answered_is_priced_also_under_a_longer_name() -> None:
    """The longest name that fits; where none does, no one knows which price holds."""

    def answer(messages: list[Any], info: AgentInfo) -> ModelResponse:
        raise AssertionError

    small, large = (FunctionModel(answer, model_name=name) for name in ("mine", "mine-large"))
    model = FallbackModel(small, large, TestModel())
    prices = {"function:mine": Price(1, 1), "function:mine-large": Price(7, 7)}
    assert cost_of(model, answered("mine"), prices) == 1
    assert cost_of(model, answered("mine-large-2026-05"), prices) == 7
    assert cost_of(model, answered("test", "test"), prices) == 0.0
    assert cost_of(model, answered("other"), prices) is None
    assert cost_of(model, answered("mine"), {}) is None
    assert model_name(model) == "fallback:function:mine,function:mine-large,test:test"


def test_what_a_fallback_spent_before_counts_at_the_dearest_price(play: Play) -> None:
    """Where it was not known: which of its models answered is not recorded."""
    fake = play(Act(text="x", usage=False))
    model = FallbackModel("openai-chat:gpt-4o", "openai-chat:gpt-4o-mini")
    pipeline = Pipeline("p", model=model).step("a", "word " * 400).step("b", "{{ a }}")
    runner = PipelineExecutor(pipeline, budget="1 request")
    first = runner.run()
    assert first.failed_steps == ["b"]
    spent = first.token_usage["a"].counted
    assert isinstance(spent, TokenUsage)
    assert runner.run(resume=True, budget=0.10).success
    assert len(fake.requests) == 2
    assert runner.ledger.shares()[0].spent > (price("openai:gpt-4o", spent) or 1)
