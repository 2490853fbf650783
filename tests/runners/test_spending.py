"""Answers whose provider does not tell what they took: unknown in results, and counted against budgets."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import (
    ExecutionMode,
    Limit,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    Price,
    ResultCache,
)
from tagent_nb.events import Event, StepCached, StepWaiting
from tests.fake_openai import Act
from tests.wire import Play, Sentiment, executor, run

pytestmark = [pytest.mark.models, pytest.mark.timeout(60)]

TEXT = Act(text="I loved it very much", usage=False)
RIGHT = Act(tool="final_result", arguments={"label": "positive"}, usage=False)


@pytest.mark.parametrize("model", ["openai-chat:gpt-4o", "openai:gpt-4o"])
@pytest.mark.parametrize("schema", [None, Sentiment], ids=["in pieces", "as a whole"])
def test_what_no_one_reported_is_unknown(play: Play, model: str, schema: Any) -> None:
    """Neither its cost nor its tokens are 0; only the request is counted."""
    play(TEXT if schema is None else RIGHT)
    result = executor(schema, model=model).run()
    step = result.steps["s"]
    assert (step.error, step.cost, step.usage.known_tokens, step.usage.requests) == ("", None, None, 1)
    assert step.usage.total_tokens == 0
    assert step.usage.unmeasured
    assert result.unpriced_steps == ["s"]
    assert "? tokens" in result._repr_html_()
    assert PipelineResult.from_json(result.to_json()).token_usage == result.token_usage


def test_tokens_of_nothing_are_unknown_too(play: Play) -> None:
    """Some servers report zeros in place of nothing; no answer takes no token."""
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o"}
    call = {"name": "final_result", "arguments": '{"label": "positive"}'}
    message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call}]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    play(Act(body=json.dumps({**head, "choices": [choice], "usage": zeros})))
    step = run()
    assert (step.error, step.cost, step.usage.known_tokens) == ("", None, None)


def test_frames_and_views_say_that_it_is_unknown(play: Play) -> None:
    play(Act(text="a"), TEXT)
    pipeline = (
        Pipeline("p", model="openai-chat:gpt-4o").step("reported", "Say it.").step("silent", "{{ reported }}")
    )
    result = PipelineExecutor(pipeline).run()
    frame, used = result.to_frame(), result.usage_frame()
    assert frame["input_tokens"].isna().tolist() == [False, True]
    assert frame["cost"].isna().tolist() == [False, True]
    assert used.loc["silent"].isna().to_dict() == {
        **dict.fromkeys(used.columns, True),
        "requests": False,
        "tool_calls": False,
        "saved_cost": False,
    }
    assert used.loc["total", ["total_tokens", "requests"]].tolist() == [110, 2]
    assert "110 + ? tokens" in result._repr_html_()
    assert str(frame["input_tokens"].dtype) == "Int64"


def test_a_plan_does_not_expect_what_was_not_reported(play: Play) -> None:
    play(RIGHT)
    runner = PipelineExecutor(executor().pipeline, storage=MemoryStorageBackend())
    runner.run()
    (step,) = asyncio.run(runner.plan(force=True)).steps
    assert (step.tokens, step.cost) == (None, None)


def test_what_costs_nothing_costs_nothing_anyway(play: Play) -> None:
    play(RIGHT)
    runner = executor()
    free = PipelineExecutor(runner.pipeline, prices={"openai-chat:gpt-4o": Price(0, 0)}).run().steps["s"]
    dear = PipelineExecutor(runner.pipeline, prices={"openai-chat:gpt-4o": Price(0, 1)}).run().steps["s"]
    assert (free.cost, free.usage.known_tokens) == (0.0, None)
    assert dear.cost is None


def test_the_cache_remembers_that_it_is_unknown(play: Play, tmp_path: Path) -> None:
    play(RIGHT)
    with closing(ResultCache(tmp_path)) as cache:
        first = executor(cache=cache).run().steps["s"]
    with closing(ResultCache(tmp_path)) as cache:
        again = executor(cache=cache).run()
    (cached,) = [event for event in again.events if isinstance(event, StepCached)]
    assert (cached.saved_cost, cached.saved_usage) == (None, first.usage)
    assert first.usage.unmeasured


# -- budgets ----------------------------------------------------------------------------------


def twelve(**options: Any) -> Pipeline:
    """Twelve questions of about 230 tokens, whose answers take about 10."""
    pipeline = Pipeline("p", model="openai-chat:gpt-4o")
    for number in range(12):
        pipeline.step(f"s{number}", f"{number} {'word ' * 100}", output_schema=Sentiment, **options)
    return pipeline


@pytest.mark.parametrize("budget", ["2000 tokens", "0.005 USD"])
@pytest.mark.parametrize("settings", [{}, {"max_tokens": 100}], ids=["unbounded", "bounded"])
def test_a_budget_counts_what_is_assumed(
    play: Play, tmp_path: Path, budget: str, settings: dict[str, Any]
) -> None:
    """It stops the run, says that it assumes, and a resumed run remembers what was assumed before."""
    fake = play(RIGHT)
    storage = f"file://{tmp_path}"
    result = PipelineExecutor(twelve(settings=settings), budget=budget, storage=storage).run()
    count = len(fake.requests)
    assert 4 <= count <= 9
    assert len(result.failed_steps) == 12 - count
    message = result.error_details[result.failed_steps[0]]
    assert "is used up" in message
    assert "in part assumed" in message
    assert str(result.budget_shares()[0]).startswith("about" if "tokens" in budget else "at least")

    again = PipelineExecutor(twelve(settings=settings), storage=storage)
    still = again.run(resume=True)
    assert len(fake.requests) == count
    assert len(still.failed_steps) == 12 - count
    assert str(again.ledger.shares()[0]).startswith("about ")
    assert again.run(resume=True, budget="100 requests").success


def test_what_is_assumed_is_reserved_and_limited_by_the_minute(play: Play) -> None:
    """Of concurrent calls as well; and a minute's tokens count what is assumed."""
    fake = play(RIGHT)
    pipeline = twelve(settings={"max_tokens": 100})
    pipeline.default_mode = ExecutionMode.CONCURRENT
    limits = {"openai": Limit(tokens_per_minute=1_000)}
    waits: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, StepWaiting):
            waits.append(event.reason)
            handle.cancel()

    handle = PipelineExecutor(pipeline, limits=limits, observers=[watch]).start()
    handle.result()
    assert waits[0] == "1000 tokens a minute at openai"
    assert 0 < len(fake.requests) <= 4


def test_a_resumed_conversation_counts_what_was_assumed_once(play: Play, tmp_path: Path) -> None:
    """The answer of an interrupted attempt is given again from the record, and is counted already."""
    fake = play(Act(tool="final_result", arguments={"label": "meh"}, usage=False), Act(hang=True), RIGHT)
    storage = f"file://{tmp_path}"
    pipeline = executor().pipeline
    runner = PipelineExecutor(pipeline, storage=storage, budget="10000 tokens, 1 USD")
    handle = runner.start()
    fake.wait_for(2)
    handle.cancel()
    handle.result()
    before = [share.spent for share in runner.ledger.shares()]
    again = PipelineExecutor(pipeline, storage=storage)
    result = again.run(resume=True)
    assert result["s"] == Sentiment(label="positive")
    assert len(fake.requests) == 3
    step = result.steps["s"]
    assert (step.cost, step.usage.requests) == (None, 2)
    after = [share.spent for share in again.ledger.shares()]
    first, second = before[1], after[1] - before[1]
    assert 0 < first < second < 2.5 * first, "the second question holds the first one and its answer"
    assert step.usage.counted.total_tokens == after[1]
