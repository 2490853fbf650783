"""``--price`` and ``--limit`` of %tagent_pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError

from tagent_nb import Limit, Price
from tagent_nb.errors import DefinitionError
from tagent_nb.notebook.magics.step_options import read_limit, read_price, read_settings
from tagent_nb.notebook.session import Session


def test_a_price_is_a_model_and_dollars_for_a_million_tokens() -> None:
    assert read_price("openai:mine input=0.5 output=1.5") == ("openai:mine", Price(0.5, 1.5))
    assert read_price(" m  output=2 input=1 cached_input=.1 ") == ("m", Price(1, 2, 0.1))


def test_a_limit_is_a_provider_and_numbers() -> None:
    assert read_limit("openai concurrency=8") == ("openai", Limit(concurrency=8))
    assert read_limit("openai requests=500 tokens=90000") == (
        "openai",
        Limit(requests_per_minute=500, tokens_per_minute=90_000),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read. Write: --price"),
        ("openai:mine", 'Write: --price "openai:my-model input=0.5 output=1.5"'),
        ("input=1 output=2", "cannot be read"),
        ("m inptu=1 output=2", "there is no 'inptu'. Did you mean 'input'? Known: input=, output="),
        ("m input=one output=2", "'one' is no number"),
        ("m input=1", "output=... is missing, in USD for a million tokens"),
    ],
)
def test_a_price_that_cannot_be_read_says_how_to_write_it(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_price(text)
    assert message in str(caught.value)


def test_numbers_are_checked_where_they_belong() -> None:
    with pytest.raises(DefinitionError, match="input_per_million must be USD from 0 on"):
        read_price("m input=-1 output=2")
    with pytest.raises(DefinitionError, match="concurrency must be a whole number from 1 on"):
        read_limit("openai concurrency=0")
    with pytest.raises(UsageError, match="'1.5' is no number"):
        read_limit("openai concurrency=1.5")


def test_prices_and_limits_hold_for_all_pipelines_of_a_session(tmp_path: Path) -> None:
    session = Session({}, tmp_path)
    session.use("a")
    session.set_prices({"openai:mine": Price(1, 2)})
    session.set_limits({"openai": Limit(concurrency=3)})
    executor = session.executor()
    session.use("b")
    session.set_prices({"openai:other": Price(3, 4)})
    other = session.executor()
    assert executor.prices == {"openai:mine": Price(1, 2)}
    assert other.prices == {"openai:mine": Price(1, 2), "openai:other": Price(3, 4)}
    assert executor.limits is other.limits is session.limits
    assert session.limits.paces["openai"].places == 3


def test_settings_are_names_and_values_of_python_or_texts() -> None:
    texts = ["max_tokens=200", "temperature = 0.5", "tool_choice=auto", "stop_sequences=['a=b']"]
    assert read_settings(texts) == {
        "max_tokens": 200,
        "temperature": 0.5,
        "tool_choice": "auto",
        "stop_sequences": ["a=b"],
    }


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["200"], "Write: --setting max_tokens=200"),
        (["max_tokens="], "'max_tokens=' cannot be read"),
        (["max tokens=3"], "cannot be read"),
        (["seed=1", "seed=2"], "seed is given twice"),
    ],
)
def test_settings_that_cannot_be_read_say_how_to_write_them(texts: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_settings(texts)


@pytest.mark.parametrize(
    ("text", "value"),
    [("false", False), ("true", True), ("False", False), ("TRUE", True), ("'true'", "true")],
)
def test_truth_values_of_settings_are_written_as_in_python_or_json(text: str, value: Any) -> None:
    assert read_settings([f"stream={text}"]) == {"stream": value}
