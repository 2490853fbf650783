"""Prices of own models: what tokens cost by them, and who is asked when."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import Pipeline, PipelineExecutor, Price
from tagent_nb.errors import DefinitionError
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import checked_prices
from tagent_nb.runners import model_name, price
from tagent_nb.runners.models.resolve import cost_of
from tests.fake_openai import KEY, Act, fake_openai

MINE = Price(input_per_million=2.0, output_per_million=10.0, cached_input_per_million=0.5)


def response(**fields: Any) -> ModelResponse:
    usage = RequestUsage(input_tokens=1_000_000, cache_read_tokens=400_000, output_tokens=100_000)
    return ModelResponse(parts=[TextPart("x")], usage=usage, **fields)


def test_a_price_counts_cached_input_by_itself() -> None:
    used = TokenUsage(input_tokens=1_000_000, output_tokens=100_000, cached_tokens=400_000)
    assert MINE.cost(used) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.1 * 10)
    assert Price(2.0, 10.0).cost(used) == pytest.approx(2 + 1)
    assert Price(0, 0).cost(used) == 0


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "2", True, None])
def test_a_price_is_a_number_from_0_on(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^Price: output_per_million must be USD from 0 on"):
        Price(1.0, wrong)


@pytest.mark.parametrize("wrong", [{1: MINE}, ["openai:x"], {"openai:x": (2, 3)}])
def test_a_price_table_maps_names_to_prices(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^prices.*Price\(input_per_million"):
        PipelineExecutor(Pipeline("p"), prices=wrong)


def test_a_price_table_is_copied() -> None:
    table = {"openai:x": MINE}
    copied = checked_prices(table)
    table.clear()
    assert copied == {"openai:x": MINE}
    assert checked_prices(None) == {}


def test_own_prices_come_before_all_others() -> None:
    """Also before what the provider says: who has a contract knows better."""
    table = {"openai:gpt-4o": MINE, "local/smollm2-135m": Price(1.0, 1.0)}
    assert price("openai:gpt-4o", TokenUsage(input_tokens=1_000_000), table) == 2.0
    assert price("local", TokenUsage(input_tokens=1_000_000), table) == 1.0
    answer = response()
    answer.usage.cost = Decimal("99")
    assert cost_of("openai:gpt-4o", answer, table) == pytest.approx(2.4)
    assert cost_of("openai:gpt-4o", answer) == 99


def test_the_model_that_answered_is_looked_up_too() -> None:
    """As behind a fallback, whose own name has no price."""
    answered = response(model_name="mine", provider_name="openai")
    assert cost_of("fallback:mine,other", answered, {"openai:mine": MINE}) == pytest.approx(2.4)


def test_a_provider_s_own_name_for_a_model_does_not_hide_its_price() -> None:
    answered = response(model_name="an-internal-name", provider_name="openai")
    assert cost_of("openai:gpt-4o", answered) == price(
        "openai:gpt-4o", TokenUsage(1_000_000, 100_000, 400_000)
    )
    assert cost_of("openai:no-one-knows", answered) is None


@pytest.mark.models
async def test_a_run_costs_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says 100 input tokens, 20 of them cached, and 10 output tokens an answer."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        pipeline = Pipeline("mine", model="openai-chat:my-model").step("s", "Say hello.")
        unpriced = await PipelineExecutor(pipeline).execute()
        assert unpriced.cost_per_step == {"s": None}
        prices = {model_name("openai-chat:my-model"): MINE}
        result = await PipelineExecutor(pipeline, prices=prices).execute()
    assert result.cost_per_step["s"] == pytest.approx((80 * 2 + 20 * 0.5 + 10 * 10) / 1e6)
    assert result.token_usage["s"] == TokenUsage(100, 10, 20, 3, requests=1)


async def test_own_prices_of_a_function_model() -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return response()

    model = FunctionModel(answer, model_name="mine")
    pipeline = Pipeline("mine", model=model).step("s", "Say hello.")
    result = await PipelineExecutor(pipeline, prices={"function:mine": MINE}).execute()
    assert result.total_cost == pytest.approx(2.4)
