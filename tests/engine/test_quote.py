"""What a run is likely to cost, read before it is paid: the prompts of now, the answers of before."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import (
    DefinitionError,
    FileStorageBackend,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    Price,
    ResultCache,
)
from tagent_nb.runners import answer_range

PRICES = {"function:priced": Price(1.0, 10.0)}
"""USD a million tokens."""


class Label(BaseModel):
    label: Literal["good", "bad"]


class Clerk:
    """A model that counts its calls, and takes as many tokens as it is instructed."""

    def __init__(
        self, into: Callable[[int], int] = lambda size: size // 4, out: Callable[[], int] = lambda: 12
    ):
        self.calls = 0
        self.into, self.out = into, out
        self.model = FunctionModel(self.answer, model_name="priced")

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.calls += 1
        size = sum(len(str(getattr(part, "content", ""))) for message in messages for part in message.parts)
        size += len(messages[0].instructions or "") if messages[0].kind == "request" else 0
        part: Any = TextPart("words")
        if info.output_tools:
            part = ToolCallPart(info.output_tools[0].name, {"label": "good"})
        usage = RequestUsage(input_tokens=self.into(size), output_tokens=self.out())
        return ModelResponse(parts=[part], usage=usage)


def labels(clerk: Clerk, rows: list[str], goal: str = "Judge {{ load }}", **options: Any) -> Pipeline:
    pipeline = Pipeline("labels", model=clerk.model)
    pipeline.task(lambda: rows, name="load")
    pipeline.step("judge", goal, map_over="load", output_schema=Label, **options)
    return pipeline


def executor(pipeline: Pipeline, tmp_path: Path, **options: Any) -> PipelineExecutor:
    cache = ResultCache(tmp_path / "cache")
    storage = FileStorageBackend(tmp_path / "runs")
    return PipelineExecutor(pipeline, storage=storage, cache=cache, prices=PRICES, **options)


async def test_before_the_first_run_the_prompts_say_what_it_costs_at_most(tmp_path: Path) -> None:
    """Once the rows are known. Nothing is asked, and what then happens lies between the two ends."""
    clerk = Clerk()
    rows = [f"row {place} " * 20 for place in range(30)]
    made = executor(labels(clerk, rows), tmp_path)
    assert (await made.plan())["judge"].quote is None  # its rows are not known yet
    await made.execute(until="load")
    plan = await made.plan()
    quote = plan["judge"].quote
    assert quote is not None
    assert (quote.units, quote.calls, plan.calls, clerk.calls) == (30, 30, 30, 0)
    assert quote.cost is not None
    assert plan.cost_range == quote.cost
    assert "About 30 calls of models, $" in plan.total
    result = await made.execute()
    usage = result.token_usage["judge"]
    assert quote.input_tokens[0] <= usage.input_tokens <= quote.input_tokens[1]
    assert quote.output_tokens[0] <= usage.output_tokens <= quote.output_tokens[1]
    assert quote.cost[0] <= result.total_cost <= quote.cost[1]


async def test_only_rows_that_nothing_answers_are_counted(tmp_path: Path) -> None:
    """Neither those of the cache, nor those that a condition skips, nor any offline."""
    clerk = Clerk()
    await executor(labels(clerk, ["a", "b", "c"]), tmp_path).execute()
    more = executor(labels(clerk, ["a", "b", "c", "d", "e", "skip"], when="item != 'skip'"), tmp_path)
    await more.execute(until="load")
    plan = await more.plan()
    assert plan["judge"].quote is not None
    assert plan["judge"].quote.calls == 2
    assert (await more.plan(offline=True))["judge"].quote is None
    await more.execute()
    done = await more.plan()
    assert (done.calls, done.cost_range) == (0, (0.0, 0.0))


async def test_answers_of_earlier_runs_narrow_the_quote(tmp_path: Path) -> None:
    """Also where the prompt has changed since, and for a step whose rows are not known yet."""
    clerk = Clerk(
        into=lambda size: size, out=lambda: 50
    )  # four times as many tokens as the rule of thumb says
    rows = [f"row {place}" for place in range(20)]
    await executor(labels(clerk, rows), tmp_path).execute()
    edited = executor(labels(clerk, rows, "Judge again {{ load }}"), tmp_path)
    quote = (await edited.plan())["judge"].quote
    assert quote is not None
    assert quote.cost is not None
    result = await edited.execute()
    assert quote.cost[0] <= result.total_cost <= quote.cost[1] < 2 * result.total_cost
    assert quote.output_tokens[0] > 0
    other = executor(labels(clerk, [*rows, "one more"], "Judge again {{ load }}"), tmp_path)
    dark = (await other.plan())["judge"]
    assert dark.action == "may run"
    assert dark.quote is not None
    assert dark.quote.units == 20
    assert (await other.plan()).cost_range == (0.0, dark.quote.cost[1])  # type: ignore[index]


async def test_usd_intervals_hold_for_nine_of_ten_runs(tmp_path: Path) -> None:
    """Models that answer now longer, now shorter, and count tokens in their own way."""
    draws = random.Random(1)
    held = 0
    for place in range(30):
        share, spread = draws.uniform(0.7, 1.4), draws.uniform(5, 60)
        clerk = Clerk(
            into=lambda size, share=share: round(size / 4 * share),  # type: ignore[misc]
            out=lambda spread=spread: max(1, round(draws.lognormvariate(2.5, 0.4) + spread)),  # type: ignore[misc]
        )
        folder = tmp_path / str(place)
        size = draws.choice([1, 3, 10, 40])
        texts = [f"row {row} " * draws.randint(1, 30) for row in range(size)]
        await executor(labels(clerk, texts), folder).execute()
        fresh = executor(labels(clerk, [f"other {text}" for text in texts]), folder)
        await fresh.execute(until="load")
        costs = (await fresh.plan()).cost_range
        assert costs is not None
        result = await fresh.execute()
        held += costs[0] <= result.total_cost <= costs[1]
    assert held >= 27


async def test_unknown_prices_and_planners_are_not_guessed() -> None:
    """A price that is not known makes the total unknown; how often a planner asks, no one knows before."""
    clerk = Clerk()
    pipeline = Pipeline("p", model=clerk.model)
    pipeline.step("report", "Report")
    pipeline.step("plan", "Plan", agent="plan")
    plan = await PipelineExecutor(pipeline, storage=MemoryStorageBackend()).plan()
    quote = plan["report"].quote
    assert quote is not None
    assert quote.cost is None
    assert plan["plan"].quote is None
    assert plan.cost_range is None
    assert plan.total.endswith("About 1 call of models, besides those of plan, which nothing tells yet.")
    frame = plan.to_frame()
    assert frame.loc["report", "calls"] == 1
    assert frame["cost_high"].isna().all()
    assert frame["input_tokens_low"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("budget", "warns"),
    [(1000.0, False), ("0.00001", True), ("10 tokens", True), ("0 requests", True), ("5 requests", False)],
)
async def test_a_budget_that_may_stop_the_run_is_reported(budget: Any, warns: bool) -> None:
    pipeline = Pipeline("p", model=Clerk().model)
    pipeline.step("report", "Report")
    made = PipelineExecutor(pipeline, storage=MemoryStorageBackend(), prices=PRICES)
    plan = await made.plan(budget=budget)
    assert ("may stop it" in plan.total) is warns
    assert (await made.plan()).over_budget == ""
    if not warns:
        assert (await PipelineExecutor(pipeline, prices=PRICES, budget=budget).plan()).over_budget == ""


async def test_a_prompt_that_cannot_be_written_is_the_units_own_affair() -> None:
    """It fails when it runs; the plan of the others stands."""
    clerk = Clerk()
    pipeline = Pipeline("p", model=clerk.model, inputs={"rows": [{"a": 1}, {"b": 1}]})
    pipeline.step("judge", "Judge {{ rows.a }}", map_over="rows", min_success=0.0, max_retries=0)
    made = PipelineExecutor(pipeline, storage=MemoryStorageBackend(), prices=PRICES)
    plan = await made.plan()
    assert plan["judge"].quote is not None
    assert plan["judge"].quote.units == 1
    result = await made.execute()
    assert result.success
    assert clerk.calls == 1


async def test_a_model_that_costs_nothing_has_one_price(tmp_path: Path) -> None:
    pipeline = Pipeline("p", model="test")
    pipeline.step("report", "Report")
    plan = await PipelineExecutor(pipeline).plan()
    assert plan.cost_range == (0.0, 0.0)
    assert "About 1 call of models, $0." in plan.total


async def test_how_often_a_step_with_tools_asks_is_known_by_its_earlier_runs_only(tmp_path: Path) -> None:
    """One request would be the least of it."""

    def size(word: str) -> int:
        """How long a word is."""
        return len(word)

    clerk = Clerk()
    pipeline = Pipeline("tools", model=clerk.model)
    pipeline.step("report", "Report", tools=[size])
    made = executor(pipeline, tmp_path)
    assert (await made.plan())["report"].quote is None
    await made.execute()
    quote = (await made.plan(force=True))["report"].quote
    assert quote is not None
    assert quote.calls == 1


class First(BaseModel):
    kind: Literal["first"]
    texts: list[str]


class Second(BaseModel):
    kind: Literal["second"]


class Either(BaseModel):
    part: First | Second = Field(discriminator="kind")
    more: dict[str, str]


class Deep(BaseModel):
    inner: Deep | None = None
    names: list[str]
    kind: Literal["a", "long name of a kind"]
    count: int
    anything: Any


@pytest.mark.parametrize(
    ("schema", "settings", "least", "most"),
    [
        (None, {}, 5, 1000),
        (None, {"max_tokens": 3}, 3, 3),
        (Label, {}, 5, 20),
        (Either, {}, 8, 2000),
        (Deep, {}, 20, 20_000),
        (Deep, {"max_tokens": 100}, 10, 100),
    ],
)
def test_the_size_of_an_answer_follows_its_schema(
    schema: Any, settings: dict[str, Any], least: int, most: int
) -> None:
    low, high = answer_range(PipelineStep("a", "b", output_schema=schema, settings=settings))
    assert least <= low <= high <= most
    assert high > 500 or schema is not Either  # two texts of up to ten parts


async def test_runs_without_the_step_and_answers_beyond_enough_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step goes by its newest answers, however many runs there are besides."""
    clerk = Clerk(out=lambda: 100)
    await executor(labels(clerk, ["a", "b", "c"]), tmp_path).execute()
    monkeypatch.setattr("tagent_nb.engine.dry_run.history.MOST_ANSWERS", 2)
    clerk.out = lambda: 10
    await executor(labels(clerk, ["d", "e", "f"]), tmp_path).execute()
    other = Pipeline("labels")
    other.task(lambda: 1, name="load")
    await executor(other, tmp_path).execute()
    fresh = executor(labels(clerk, ["g"], "Judge once more {{ load }}"), tmp_path)
    await fresh.execute(until="load")
    quote = (await fresh.plan())["judge"].quote
    assert quote is not None
    assert quote.output_tokens[1] < 50


async def test_a_prompt_that_no_window_holds_is_named_and_refused_before_it_is_paid() -> None:
    """Of a step alone and of single rows; a model whose window is unknown is asked."""
    long = "word " * 200_000
    pipeline = Pipeline("p", model="local", inputs={"rows": ["short", long]})
    pipeline.step("report", "Report on {{ rows }}", max_retries=0)
    pipeline.step("judge", "Judge {{ rows }}", map_over="rows", min_success=0.0, max_retries=0)
    executor = PipelineExecutor(pipeline, storage=MemoryStorageBackend())
    plan = await executor.plan()
    assert plan["report"].action == "fail"
    assert "'local/smollm2-135m' reads 8,192 at once. Run the step for each row" in plan["report"].why
    assert "1 item will fail: item 1: its prompt has" in plan["judge"].why
    assert plan["judge"].quote is not None
    assert plan["judge"].quote.units == 1
    result = await executor.execute(until="report")
    assert "reads 8,192 at once" in result.error_details["report"]
    clerk = Clerk()
    unknown = Pipeline("p", model=clerk.model, inputs={"rows": [long]})
    unknown.step("report", "Report on {{ rows }}")
    assert (await PipelineExecutor(unknown).execute()).success


def test_windows_are_those_of_the_models_behind_a_name() -> None:
    from pydantic_ai.models.fallback import FallbackModel
    from pydantic_ai.models.test import TestModel

    from tagent_nb.runners.models.resolve import context_window

    assert context_window("openai:gpt-5-mini") == 400_000
    assert context_window("local") == 8192
    assert context_window("openai:no-such-model") is None
    assert context_window("noone:model") is None
    assert context_window(FallbackModel(TestModel(), TestModel())) is None


async def test_a_plan_refuses_a_budget_where_the_run_would() -> None:
    pipeline = Pipeline("p", model=Clerk().model)
    pipeline.step("report", "Report")
    executor = PipelineExecutor(pipeline, storage=MemoryStorageBackend())
    with pytest.raises(DefinitionError, match="price"):
        await executor.plan(budget=1.0)


async def test_calls_that_nothing_counts_yet_are_named(tmp_path: Path) -> None:
    """A step that certainly asks counts at least once against a budget."""
    clerk = Clerk()
    pipeline = labels(clerk, ["a"])
    pipeline.step("report", "Report")
    plan = await executor(pipeline, tmp_path).plan(budget="1 request")
    assert "About 1 call of models, besides those of judge, which nothing tells yet" in plan.total
    assert "may stop it" in plan.total


async def test_calls_of_a_step_that_may_run_count_at_the_upper_end_only(tmp_path: Path) -> None:
    clerk = Clerk()

    def flow(text: str) -> Pipeline:
        pipeline = Pipeline("flow", model=clerk.model)
        pipeline.step("first", f"Say {text}")
        pipeline.step("then", "Repeat {{ first }}")
        return pipeline

    def executor(text: str) -> PipelineExecutor:
        return PipelineExecutor(flow(text), storage=tmp_path / "runs", cache=ResultCache(tmp_path / "cache"))

    await executor("a").execute()
    plan = await executor("b").plan()
    assert {step.step: step.action for step in plan.steps} == {"first": "run", "then": "may run"}
    assert (plan.calls, plan.most_calls) == (1, 2)
    assert "About 1 to 2 calls of models" in plan.total
