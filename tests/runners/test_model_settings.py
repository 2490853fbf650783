"""Names in prices and limits that look misspelt are reported, once in each run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel

from tagent_nb import Limit, Pipeline, PipelineExecutor, PipelineStep, Price
from tagent_nb.runners import misspelt_limits, misspelt_prices

MINI, MINE, OTHER = "openai:gpt-4o-mini", "openai-chat:mine-8b", "openai-chat:unlike"


@pytest.mark.parametrize(
    ("names", "models", "says"),
    [
        ([MINI], [MINI], None),
        (["openai:gpt-4o"], [MINI], None),  # another model that the list knows
        ([OTHER, MINI], [MINI], None),  # a table may hold more than one pipeline needs
        (
            ["opnai:gpt-4o-mini"],
            [MINI],
            "'opnai:gpt-4o-mini', which no step asks.*Did you mean 'openai:gpt-4o",
        ),
        (["openai:gpt-4o-mni"], [MINI], "Did you mean 'openai:gpt-4o-mini'"),
        ([MINE], ["openai-chat:mine-8b-it"], "The price of 'openai-chat:mine-8b-it' is unknown. Models of"),
        ([OTHER], [MINI, "openai-chat:no one"], "The price of 'openai-chat:no one' is unknown"),
        (["test:test"], [FallbackModel(TestModel(), TestModel(model_name="b"))], None),
    ],
)
def test_a_price_that_may_be_meant_for_a_model_of_the_run_is_reported(
    names: list[str], models: Sequence[Any], says: str | None
) -> None:
    warnings = misspelt_prices({name: Price(1, 2) for name in names}, models)
    if says is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert re.search(says, warning)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["openai"], ""),
        (["openai-chat", "anthropic", "test"], ""),
        (["own"], ""),
        (["opnai"], "limits names 'opnai', which is no provider: it limits nothing. Did you mean 'openai'?"),
        (["openai:gpt-4o"], "Did you mean 'openai'? Limits are by provider"),
        (["zzz", "yyy"], "limits names 'zzz', 'yyy', which is no provider: it limits nothing. Limits are by"),
    ],
)
def test_a_limit_that_limits_no_one_is_reported(names: list[str], says: str) -> None:
    warnings = misspelt_limits(names, [MINI, "own:model"])
    assert says in "".join(warnings)
    assert len(warnings) == bool(says)


async def test_a_run_warns_once_and_goes_on() -> None:
    prices, limits = {"opnai:gpt": Price(1, 1)}, {"opnai": Limit(concurrency=1)}
    pipeline = Pipeline("p", model="test").step("a", "Say.").step("b", "Say {{ a }}.")
    run = PipelineExecutor(pipeline, prices=prices, limits=limits)
    result = await run.execute()
    assert result.success
    price, limit = result.warnings
    assert price.startswith("prices names 'opnai:gpt', which no step asks")
    assert limit.startswith("limits names 'opnai'")
    assert (await run.execute()).warnings == result.warnings
    plain = Pipeline("q")
    plain.put(PipelineStep.from_cell("a", "1", python=True))
    assert (await PipelineExecutor(plain, prices=prices, limits=limits).execute()).warnings == []
    assert (await PipelineExecutor(pipeline).execute()).warnings == []
