"""How many attempts are under way at once: more where they only wait for a model over the network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel

from tagent_nb import ExecutionMode, Pipeline, PipelineExecutor
from tagent_nb.runners import asks_network


class Counting(TestModel):
    """Counts the requests that are under way at once."""

    most = now = 0

    async def request(self, *arguments: Any) -> ModelResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(20):
            await asyncio.sleep(0)
        self.now -= 1
        return await super().request(*arguments)


class Remote(Counting):
    """As if it had a server."""

    @property
    def base_url(self) -> str:
        return "http://models.test/v1"


class Odd(TestModel):
    @property
    def base_url(self) -> str:
        raise ValueError("not now")


def mapped(model: Any) -> Pipeline:
    pipeline = Pipeline("p", model=model, inputs={"rows": list(range(60))})
    pipeline.step("s", "Say {{ item }}.", map_over="rows")
    return pipeline


@pytest.mark.parametrize(
    ("model", "most", "options"),
    [
        (Remote(), 32, {}),
        (Counting(), 8, {}),
        (Remote(), 3, {"max_concurrency": 3}),
        (Remote(), 50, {"max_concurrency": 50}),
    ],
)
def test_requests_under_way_at_once(model: Counting, most: int, options: dict[str, Any]) -> None:
    assert PipelineExecutor(mapped(model), **options).run().success
    assert model.most == most


def test_as_many_steps_as_items_are_under_way_at_once() -> None:
    model = Remote()
    pipeline = Pipeline("steps", model=model, default_mode=ExecutionMode.CONCURRENT)
    for number in range(40):
        pipeline.step(f"say{number}", f"Say {number}.")
    assert PipelineExecutor(pipeline).run().success
    assert model.most == 32


def test_short_steps_that_lead_to_requests_let_as_many_be_under_way() -> None:
    """Who runs a short step goes on with the request behind it, and others run the short steps meanwhile."""
    model = Remote()
    pipeline = Pipeline("pairs", model=model, default_mode=ExecutionMode.CONCURRENT)

    async def load() -> int:
        return 1

    for number in range(40):
        pipeline.task(name=f"load{number}")(load)
        pipeline.step(f"say{number}", f"Say {{{{ load{number} }}}}.")
    assert PipelineExecutor(pipeline).run().success
    assert model.most == 32


def test_other_steps_keep_their_own_places() -> None:
    """Requests over the network take no place from Python steps, which get no more than they had."""
    model, now, most = Remote(), 0, 0
    pipeline = mapped(model)

    @pipeline.task(map_over="rows")
    async def count(item: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(20):
            await asyncio.sleep(0)
        now -= 1
        return item

    for step in pipeline.steps:
        pipeline.put(step.with_(execution_mode=ExecutionMode.CONCURRENT))
    assert PipelineExecutor(pipeline).run().success
    assert (model.most, most) == (32, 8)


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (Remote(), {}, "At most 32 requests at once over the network, and 8 others."),
        ("test", {}, ""),
        (Remote(), {"max_concurrency": 5}, "At most 5 attempts at once."),
    ],
)
def test_the_plan_says_how_many(model: Any, options: dict[str, Any], text: str) -> None:
    plan = asyncio.run(PipelineExecutor(mapped(model), **options).plan())
    assert ("At most" in repr(plan)) == bool(text)
    assert text in repr(plan)
    assert text.lower().strip(".") == plan.at_once


@pytest.mark.parametrize(
    ("model", "asks"),
    [
        ("openai:gpt-5", True),
        ("ollama:qwen3", True),
        ("test", False),
        ("local", False),
        (None, False),
        (TestModel(), False),
        (Remote(), True),
        (FallbackModel(TestModel(), Remote()), True),
        (Odd(), False),
    ],
)
def test_models_that_are_asked_over_the_network(model: Any, asks: bool) -> None:
    assert asks_network(model) is asks
