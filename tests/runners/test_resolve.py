"""Models by name: which can be used, what they are called, and what they cost. No network anywhere."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from tagent_nb.errors import MissingExtraError, MissingKeyError, ModelError, UnknownModelError
from tagent_nb.events import TokenUsage
from tagent_nb.runners import check_model, model_name, price
from tagent_nb.runners.models import resolve as providers
from tagent_nb.runners.models.resolve import cost_of, is_local, resolve_model

USED = TokenUsage(input_tokens=1000, output_tokens=1000)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_BASE_URL", "OLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def function_model() -> FunctionModel:
    return FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart("x")]))


# -- which can be used ------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test", "ollama:qwen3", TestModel(), function_model()])
def test_models_that_need_nothing_can_be_used(model: Any) -> None:
    check_model(model)
    assert isinstance(resolve_model(model), Model)


def test_a_key_makes_a_provider_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567890")
    check_model("openai:gpt-5.6-luna")


def test_a_missing_key_is_named_with_the_remedy() -> None:
    with pytest.raises(MissingKeyError) as caught:
        check_model("openai:gpt-5.6-luna")
    message = str(caught.value)
    assert "'openai:gpt-5.6-luna' needs the environment variable OPENAI_API_KEY" in message
    assert "getpass" in message
    assert "model='local'" in message


def test_a_missing_package_is_named_with_the_command() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "pydantic-ai-slim\[groq\]"'):
        check_model("groq:llama-3.3-70b-versatile")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "No model is set"),
        (3, "not int .3."),
        ("gpt-5", "There is no model 'gpt-5'. Name its provider too"),
        ("", "There is no model ''"),
        ("opnai:gpt-5", "there is no provider 'opnai'. Did you mean 'openai'"),
        ("local/llama", "The local model is 'local'"),
        ("local:x", "The local model is 'local'"),
    ],
)
def test_unknown_models_are_distinguished_from_known_ones(model: Any, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        check_model(model)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (UserError("Log in first."), MissingKeyError, "cannot be used: Log in first. Without a key"),
        (ImportError("needs a compiler"), MissingExtraError, "not installed. needs a compiler"),
        (OSError("bad region"), ModelError, "cannot be used: bad region"),
    ],
)
def test_whatever_a_provider_says_becomes_one_error(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
) -> None:
    def refuse(*_: Any) -> Any:
        raise raised

    monkeypatch.setattr("pydantic_ai.models.infer_model", refuse)
    with pytest.raises(expected, match=message):
        check_model("cloud:model")


def test_ollama_is_asked_on_this_machine_unless_another_address_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = resolve_model("ollama:qwen3")
    assert isinstance(model, OpenAIChatModel)
    assert str(model.client.base_url) == "http://localhost:11434/v1/"
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://example.invalid/v1")
    model = resolve_model("ollama:qwen3")
    assert isinstance(model, OpenAIChatModel)
    assert str(model.client.base_url) == "http://example.invalid/v1/"


def test_the_local_model_is_checked_without_starting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(providers.local, "check", lambda: checked.append("checked"))
    check_model("local")
    check_model("local/smollm2-135m")
    assert checked == ["checked"] * 2


# -- names ------------------------------------------------------------------------------------


def test_names() -> None:
    assert model_name(None) == ""
    assert model_name("local") == model_name("local/smollm2-135m") == "local/smollm2-135m"
    assert model_name("openai:gpt-5.6-luna") == "openai:gpt-5.6-luna"
    assert model_name(TestModel()) == "test:test"
    assert model_name(object()) == "object"
    assert is_local("local")
    assert not is_local(TestModel())


# -- prices -----------------------------------------------------------------------------------


def test_known_prices_count_and_unknown_ones_are_none() -> None:
    usd = price("openai:gpt-4o", USED)
    assert usd is not None
    assert usd > 0
    cached = price("openai:gpt-4o", TokenUsage(1000, 1000, cached_tokens=900))
    assert cached is not None
    assert cached < usd
    assert price("openai:no-such-model", USED) is None
    assert price("ollama:qwen3", USED) is None
    assert price(function_model(), USED) is None


def test_a_model_without_a_price_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same prices: newer ones may know it."""
    looked: list[str] = []
    find = DataSnapshot.find_provider_model

    def counted(self: DataSnapshot, model: str, *where: Any) -> Any:
        looked.append(model)
        return find(self, model, *where)

    monkeypatch.setattr(DataSnapshot, "find_provider_model", counted)
    response = ModelResponse(
        parts=[TextPart("x")],
        usage=RequestUsage(input_tokens=1),
        model_name="one-more",
        provider_name="openai",
        provider_url="https://api.openai.com/v1",
    )
    for _ in range(3):
        assert cost_of("openai:one-more", response) is None
    assert len(looked) == 3  # by the address, by the provider, and as it was asked for
    newer = replace(get_snapshot(), timestamp=datetime(2030, 1, 1))
    set_custom_snapshot(newer)
    try:
        assert cost_of("openai:one-more", response) is None
    finally:
        set_custom_snapshot(None)
    assert len(looked) == 6


@pytest.mark.parametrize("model", ["local", "local/smollm2-135m", "test", TestModel()])
def test_what_runs_here_is_free(model: Any) -> None:
    assert price(model, USED) == 0.0
    assert cost_of(model, ModelResponse(parts=[TextPart("x")])) == 0.0


def test_nothing_used_costs_nothing() -> None:
    assert price("openai:no-such-model", TokenUsage()) == 0.0


def test_an_answer_costs_what_the_provider_says_or_its_tokens() -> None:
    """Without either the cost is unknown, which is not 0."""
    response = ModelResponse(parts=[TextPart("x")], usage=RequestUsage(input_tokens=1, cost=Decimal("0.25")))
    priced = ModelResponse(
        parts=[TextPart("x")],
        usage=RequestUsage(input_tokens=1000),
        model_name="gpt-4o",
        provider_name="openai",
    )
    unpriced = ModelResponse(
        parts=[TextPart("x")], usage=RequestUsage(input_tokens=1), model_name="no-one-knows"
    )
    nameless = ModelResponse(parts=[TextPart("x")], usage=RequestUsage(input_tokens=1))
    assert cost_of("openai:x", response) == 0.25
    assert cost_of("openai:gpt-4o", priced) == price("openai:gpt-4o", TokenUsage(input_tokens=1000))
    assert cost_of("openai:x", unpriced) is None
    assert cost_of("openai:x", nameless) is None


# -- imports ----------------------------------------------------------------------------------


def test_importing_the_runners_does_not_load_pydantic_ai() -> None:
    code = (
        "import sys, tagent_nb.runners.agent.runner, tagent_nb.runners.tools.registry\n"
        "import tagent_nb.runners.models.local\n"
        "print([one for one in ('pydantic_ai', 'openai', 'genai_prices', 'xllamacpp') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_counts_that_cannot_be_have_no_price() -> None:
    """More tokens from a provider's cache than there were at all."""
    assert price("openai:gpt-4o", TokenUsage(input_tokens=1, cached_tokens=5)) is None
