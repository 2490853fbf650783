"""Pipelines of one agent step whose model is a server on loopback; the fixture ``play`` starts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep, StepResult
from tagent_nb.events import Event, TokenUsage
from tagent_nb.runners import price
from tests.fake_openai import FakeOpenAI

MODEL = "openai-chat:gpt-4o"
ONE = TokenUsage(100, 10, cached_tokens=20, reasoning_tokens=3, requests=1)
"""What each answer of the server takes."""

Play = Callable[..., FakeOpenAI]


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


def watch(event: Event) -> None:
    """An observer: text is streamed where there is one."""


def executor(
    schema: Any = Sentiment, observers: Any = (watch,), cache: Any = None, **options: Any
) -> PipelineExecutor:
    step = PipelineStep(name="s", goal="Say what it is.", output_schema=schema, **options)
    pipeline = Pipeline("p", model=MODEL).put(step)
    return PipelineExecutor(pipeline, retry_delay=0.0, observers=observers, cache=cache)


def run(schema: Any = Sentiment, **options: Any) -> StepResult:
    return executor(schema, **options).run().steps["s"]


def cost(answers: int) -> Any:
    usd = price("openai:gpt-4o", ONE)
    assert usd is not None
    assert usd > 0
    return pytest.approx(answers * usd)


def times(answers: int) -> TokenUsage:
    total = TokenUsage()
    for _ in range(answers):
        total += ONE
    return total
