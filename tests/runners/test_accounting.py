"""What a request is expected to take, before anybody has answered it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import (
    BinaryContent,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition

from tagent_nb import Price, StepContext
from tagent_nb.runners.base import ModelCall
from tagent_nb.runners.models.accounting import (
    TOKENS_A_FILE,
    TOKENS_A_PART,
    estimate,
    input_tokens,
    most_output,
)


def call(
    *parts: Any,
    model: Any = "openai:mine",
    prices: dict[str, Price] | None = None,
    settings: Any = None,
    instructions: str | None = None,
    parameters: ModelRequestParameters | None = None,
    before: tuple[ModelMessage, ...] = (),
) -> ModelCall:
    context = StepContext("run", "p", "s", model=model, prices=prices or {})
    messages: list[ModelMessage] = [*before, ModelRequest(parts=list(parts), instructions=instructions)]
    return ModelCall(context, TestModel(), messages, settings, parameters or ModelRequestParameters())


def asks(text: Any) -> UserPromptPart:
    return UserPromptPart(text)


def test_four_bytes_are_a_token() -> None:
    assert input_tokens(call(asks("a" * 400))) == 100 + TOKENS_A_PART
    assert input_tokens(call(asks("文" * 400))) == 300 + TOKENS_A_PART
    assert input_tokens(call(asks("a"))) == 1 + TOKENS_A_PART


def test_a_file_counts_the_same_whatever_its_size() -> None:
    image = BinaryContent(b"0" * 1_000_000, media_type="image/png")
    link = ImageUrl("https://example.invalid/a.png")
    assert input_tokens(call(asks(["look", image, link]))) == 1 + TOKENS_A_PART + 2 * TOKENS_A_FILE


def test_the_whole_conversation_is_sent_again_but_instructions_once() -> None:
    before = (
        ModelRequest(parts=[asks("a" * 40)], instructions="i" * 400),
        ModelResponse(parts=[TextPart("b" * 40), ToolCallPart("look", {"word": "cat"})]),
    )
    tool = ToolReturnPart("look", {"found": [1, 2, 3]}, tool_call_id="1")
    alone = input_tokens(call(tool, instructions="i" * 400))
    assert input_tokens(call(tool, instructions="i" * 400, before=before)) == alone + 2 * (10 + 4) + 4 + 4
    assert alone > 100


def test_tools_and_schemas_are_sent_too() -> None:
    schema = {"type": "object", "properties": {"word": {"type": "string"}}}
    tool = ToolDefinition(name="look", description="Look it up. " * 20, parameters_json_schema=schema)
    plain = input_tokens(call(asks("hello")))
    with_tool = input_tokens(call(asks("hello"), parameters=ModelRequestParameters(function_tools=[tool])))
    assert with_tool > plain + 60
    shape = OutputObjectDefinition(json_schema=schema)
    shaped = input_tokens(call(asks("hello"), parameters=ModelRequestParameters(output_object=shape)))
    assert plain < shaped < with_tool


def test_what_json_cannot_carry_is_as_long_as_its_text() -> None:
    assert input_tokens(call(ToolReturnPart("look", object(), tool_call_id="1"))) > TOKENS_A_PART


def test_max_tokens_bound_an_answer_else_the_longest_one_does() -> None:
    assert most_output(call(asks("x"), settings={"max_tokens": 7}), 100) == 7
    assert most_output(call(asks("x"), settings={"temperature": 0.0}), 100) == 100
    assert most_output(call(asks("x")), None) is None


MINE = {"openai:mine": Price(1_000_000, 10_000_000)}
"""A dollar for a token that is sent, ten for one that is written."""


def test_an_estimate_by_measure() -> None:
    assert estimate(call(asks("x"), prices=MINE), 5, 3) == {
        "usd": (5.0, 35.0),
        "tokens": (5, 8),
        "requests": (1, 1),
    }
    assert estimate(call(asks("x"), prices=MINE), 5, None) == {
        "usd": (5.0, None),
        "tokens": (5, None),
        "requests": (1, 1),
    }


def test_a_rule_that_said_too_little_is_made_up_for_in_what_is_reserved() -> None:
    """Not in what a question takes at least: the one before may have been an exception."""
    assert estimate(call(asks("x"), prices=MINE), 5, 3, factor=2.1) == {
        "usd": (5.0, 11.0 + 30.0),
        "tokens": (5, 14),
        "requests": (1, 1),
    }


@pytest.mark.parametrize(
    ("model", "prices", "usd"),
    [
        ("test", {}, (0.0, 0.0)),
        ("openai:mine", {"openai:mine": Price(1_000_000, 0)}, (5.0, 5.0)),
        ("openai:mine", {}, (0.0, None)),
    ],
)
def test_a_free_answer_of_unknown_length_is_known_to_cost_nothing(
    model: str, prices: dict[str, Price], usd: tuple[float, float | None]
) -> None:
    assert estimate(call(asks("x"), model=model, prices=prices), 5, None)["usd"] == usd


def test_behind_a_fallback_the_dearest_model_counts() -> None:
    def never(*_: Any) -> ModelResponse:
        raise AssertionError("no one is asked")

    models = [FunctionModel(never, model_name=name) for name in ("cheap", "dear")]
    prices = {"function:cheap": Price(1e6, 1e6), "function:dear": Price(2e6, 3e6)}
    cost = estimate(call(asks("x"), model=FallbackModel(*models), prices=prices), 5, 2)
    assert cost["usd"] == (5.0, 10.0 + 6.0)
    del prices["function:dear"]
    assert estimate(call(asks("x"), model=FallbackModel(*models), prices=prices), 5, 2)["usd"] == (0.0, None)
