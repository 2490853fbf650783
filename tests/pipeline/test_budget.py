"""Budgets: how they are written, what passes, what is refused, and how a run goes on with a higher one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import Budget, ExecutionMode, Pipeline, PipelineExecutor, Price, StepContext, events
from tagent_nb.errors import BudgetExceededError, DefinitionError, StepError
from tagent_nb.pipeline import Share, StepStatus
from tagent_nb.results import PipelineResult
from tagent_nb.storage import FileStorageBackend
from tests.fake_openai import KEY, Act, fake_openai

# -- how they are written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "budget", "back"),
    [
        (0.1, Budget(usd=0.1), "0.1 USD"),
        (2, Budget(usd=2), "2 USD"),
        ("0.10", Budget(usd=0.1), "0.1 USD"),
        ("$.5", Budget(usd=0.5), "0.5 USD"),
        ("0.5$", Budget(usd=0.5), "0.5 USD"),
        ("1e-7 usd", None, ""),
        ("5_000 Tokens", Budget(tokens=5000), "5000 tokens"),
        ("20requests", Budget(requests=20), "20 requests"),
        ("0.5 USD, 1 request", Budget(usd=0.5, requests=1), "0.5 USD, 1 request"),
        (Budget(usd=0.0000001), Budget(usd=1e-7), "0.0000001 USD"),
        (Budget(usd=0.0), Budget(usd=0), "0 USD"),
        ("0", Budget(usd=0), "0 USD"),
        ("ten", None, ""),
        ("10 euros", None, ""),
        ("1 USD, 2 USD", None, ""),
        ("", None, ""),
        ("1.5 tokens", None, ""),
        (-1, None, ""),
        (float("nan"), None, ""),
        (float("inf"), None, ""),
        (True, None, ""),
        ([1], None, ""),
    ],
)
def test_a_budget_is_written_as_people_say_it(written: Any, budget: Budget | None, back: str) -> None:
    if budget is None:
        with pytest.raises(DefinitionError, match=r'"5000 tokens", "20 requests"'):
            Budget.of(written)
    else:
        assert Budget.of(written) == budget
        assert str(Budget.of(written)) == back
        assert Budget.of(back) == budget


@pytest.mark.parametrize("fields", [{}, {"tokens": 1.5}, {"requests": -1}, {"usd": "1"}, {"usd": True}])
def test_a_budget_limits_something_by_a_number(fields: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="budget"):
        Budget(**fields)


def test_a_step_names_itself_when_its_budget_cannot_be_read() -> None:
    with pytest.raises(DefinitionError, match="^Step 's': A budget of 'much' cannot be read"):
        Pipeline("p").step("s", "Think.", budget="much")
    assert Pipeline("p").step("s", "Think.", budget=0.5).get_step("s").budget == Budget(usd=0.5)


def test_shares_are_reported_in_words() -> None:
    assert str(Share("usd", 0.0963, 0.004, 0.1)) == "$0.0963 of $0.10 spent, $0.0040 reserved"
    assert str(Share("tokens", 1200, 0, 5000)) == "1,200 tokens of 5,000 tokens spent"
    assert str(Share("requests", 1, 0, 4)) == "1 request of 4 requests spent"


# -- fifty steps under a dime -------------------------------------------------------------------

ANSWER = 0.004
"""USD of an answer."""


def fifty(model: Any, **options: Any) -> Pipeline:
    pipeline = Pipeline("fifty", model=model, default_mode=ExecutionMode.CONCURRENT)
    for number in range(50):
        pipeline.step(f"s{number}", f"Say {number}.", max_retries=0, **options)
    return pipeline


def costing(usd: Callable[[int], float], calls: list[int]) -> FunctionModel:
    """A model whose n-th answer costs ``usd(n)``, at a USD for a million output tokens."""

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        calls.append(1)
        number = len(calls)
        await asyncio.sleep(0)
        used = RequestUsage(input_tokens=0, output_tokens=round(usd(number) * 1e6))
        return ModelResponse(parts=[TextPart("so be it")], usage=used)

    return FunctionModel(answer, model_name="mine")


PRICES = {"function:mine": Price(input_per_million=0, output_per_million=1)}


def done(result: PipelineResult) -> list[str]:
    return [name for name, step in result.steps.items() if step.status is StepStatus.COMPLETED]


async def stops_at_the_dime_and_goes_on(executor: PipelineExecutor, calls: Sequence[Any]) -> None:
    """Acceptance 3 of issue 4, with any model."""
    result = await executor.execute()
    assert not result.success
    assert not result.cancelled
    assert result.total_cost <= 0.10 + ANSWER
    assert len(done(result)) == 25 == len(calls)
    assert {step.error_type for step in result.steps.values()} == {"", "BudgetExceededError"}
    message = result.error_details[result.failed_steps[0]]
    assert "the run's budget is used up: $0.10 of $0.10 spent" in message
    assert "%tagent_run --resume --budget" in message
    assert [str(share) for share in result.budget_shares()] == ["$0.10 of $0.10 spent"]

    kept = done(result)
    still = await executor.execute(resume=True)
    assert done(still) == kept
    assert len(calls) == 25, "the run keeps its budget, and what it spent before counts"

    higher = await executor.execute(resume=True, budget=0.15)
    assert len(calls) == 38
    assert set(kept) < set(done(higher))
    assert higher.total_cost == pytest.approx(38 * ANSWER)

    whole = await executor.execute(resume=True, budget="none")
    assert whole.success
    assert len(calls) == 50
    assert whole.total_cost == pytest.approx(50 * ANSWER)
    assert whole.budget_shares() == []


@pytest.mark.parametrize("options", [{}, {"settings": {"max_tokens": 4000}}], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("concurrency", [1, 50])
async def test_fifty_concurrent_steps_stop_at_the_budget(
    options: dict[str, Any], concurrency: int, tmp_path: Path
) -> None:
    calls: list[int] = []
    executor = PipelineExecutor(
        fifty(costing(lambda number: ANSWER, calls), **options),
        storage=FileStorageBackend(tmp_path),
        budget=0.10,
        prices=PRICES,
        max_concurrency=concurrency,
    )
    await stops_at_the_dime_and_goes_on(executor, calls)


@pytest.mark.models
async def test_fifty_concurrent_steps_stop_at_the_budget_on_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's answers have 100 + 10 tokens; they cost 0.004 USD at this price."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    price = Price(input_per_million=20, output_per_million=200)
    with fake_openai(Act("so be it")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        executor = PipelineExecutor(
            fifty("openai-chat:mine"), budget=0.10, prices={"openai-chat:mine": price, "openai:mine": price}
        )
        await stops_at_the_dime_and_goes_on(executor, fake.requests)


async def test_a_budget_is_never_exceeded_by_more_than_one_answer() -> None:
    """For any answers within ``max_tokens``, and for others that are no longer than the first."""
    await asyncio.to_thread(_run_property)


def _run_property() -> None:
    @settings(max_examples=12, deadline=None)
    @given(
        costs=st.lists(st.integers(1, 40), min_size=50, max_size=50),
        concurrency=st.sampled_from([1, 3, 50]),
        bounded=st.booleans(),
    )
    def holds(costs: list[int], concurrency: int, bounded: bool) -> None:
        asyncio.run(check(costs, concurrency, bounded))

    async def check(costs: list[int], concurrency: int, bounded: bool) -> None:
        calls: list[int] = []
        options: dict[str, Any] = {"settings": {"max_tokens": 40_000}} if bounded else {}
        prices = [cost / 1000 for cost in (costs if bounded else sorted(costs, reverse=True))]
        model = costing(lambda number: prices[number - 1], calls)
        executor = PipelineExecutor(
            fifty(model, **options), budget=0.10, prices=PRICES, max_concurrency=concurrency
        )
        result = await executor.execute()
        spent = prices[: len(calls)]
        assert result.total_cost == pytest.approx(sum(spent))
        assert sum(spent) <= 0.10 + max(spent) + 1e-9
        assert len(calls) == 50 or sum(spent) >= 0.10 - 1e-9

    holds()


# -- what is limited ----------------------------------------------------------------------------


def counting(calls: list[int], tokens: int = 100) -> FunctionModel:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        calls.append(1)
        await asyncio.sleep(0)
        used = RequestUsage(input_tokens=tokens // 2, output_tokens=tokens // 2)
        return ModelResponse(parts=[TextPart("so be it")], usage=used)

    return FunctionModel(answer, model_name="counted")


async def test_requests_are_never_exceeded_at_all() -> None:
    calls: list[int] = []
    result = await PipelineExecutor(fifty(counting(calls)), budget="20 requests").execute()
    assert len(calls) == 20 == len(done(result))
    assert str(result.budget_shares()[0]) == "20 requests of 20 requests spent"
    assert "20 requests of 20 requests spent" in next(iter(result.error_details.values()))


async def test_tokens_are_limited_for_models_without_a_price() -> None:
    calls: list[int] = []
    result = await PipelineExecutor(fifty(counting(calls)), budget="1000 tokens").execute()
    tokens = sum(usage.total_tokens for usage in result.token_usage.values())
    assert 1000 - 100 < tokens <= 1000 + 100
    assert "tokens spent" in next(iter(result.error_details.values()))


async def test_a_question_that_does_not_fit_is_not_asked() -> None:
    calls: list[int] = []
    pipeline = Pipeline("long", model=counting(calls)).step("s", "word " * 1000)
    result = await PipelineExecutor(pipeline, budget="500 tokens").execute()
    assert not calls
    assert "0 tokens of 500 tokens spent, and the question alone takes about 1," in result.error_details["s"]


async def test_a_step_has_a_budget_of_its_own_for_all_its_items(tmp_path: Path) -> None:
    calls: list[int] = []
    pipeline = Pipeline("items", model=counting(calls))
    pipeline.task(lambda: list(range(10)), name="rows")
    pipeline.step("each", "Say {{ item }}.", map_over="rows", min_success=0.1, budget="4 requests")
    pipeline.step("other", "Say no.")
    executor = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path))
    result = await executor.execute()
    assert len(calls) == 5
    assert result["other"] == "so be it"
    step = result.steps["each"]
    assert step.status is StepStatus.FAILED, "items without a call are not bad items"
    assert step.error_type == "BudgetExceededError"
    assert step.error.startswith("4 of 10 items are done. The budget of step 'each' is used up")
    assert "Give step 'each' a higher budget" in step.error

    pipeline.put(pipeline.get_step("each").with_(budget="20 requests"))
    whole = await executor.execute(resume=True)
    assert whole.success, whole.error_details
    assert len(calls) == 11, "items that are done are not asked again"


async def test_a_stopped_map_goes_on_in_another_process_with_a_higher_budget(tmp_path: Path) -> None:
    calls: list[int] = []

    def executor(budget: str) -> PipelineExecutor:
        pipeline = Pipeline("items", model=counting(calls))
        pipeline.task(_rows, name="rows")
        pipeline.step("each", "Say {{ item }}.", map_over="rows", budget=budget)
        return PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path))

    stopped = await executor("4 requests").execute()
    assert stopped.failed_steps == ["each"]
    whole = await executor("20 requests").execute(resume=True)
    assert whole.success, whole.error_details
    assert len(calls) == 10


def _rows() -> list[int]:
    return list(range(10))


async def test_what_python_steps_spend_counts_but_they_are_not_stopped() -> None:
    calls: list[int] = []
    pipeline = Pipeline("mixed", model=counting(calls))

    def own(context: StepContext) -> str:
        context.spend(events.TokenUsage(requests=3), 0.0)
        return "done"

    pipeline.task(own, name="first")
    pipeline.step("ask", "Say {{ first }}.")
    pipeline.task(lambda first: first, name="last")
    result = await PipelineExecutor(pipeline, budget="3 requests").execute()
    assert result.failed_steps == ["ask"]
    assert result["last"] == "done"
    assert not calls


async def test_failed_attempts_count_and_failed_requests_take_nothing() -> None:
    """An answer that no schema takes costs as much as a good one."""
    calls: list[int] = []

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the line is dead")
        return ModelResponse(parts=[], usage=RequestUsage(output_tokens=10))

    pipeline = Pipeline("p", model=FunctionModel(answer, model_name="m"))
    pipeline.step("s", "Say something.", max_retries=9, output_retries=1)
    executor = PipelineExecutor(pipeline, budget="3 requests", retry_delay=0)
    result = await executor.execute()
    assert result.token_usage["s"].requests in (2, 3)
    assert "s" in result.failed_steps


async def test_calls_wait_for_the_rest_of_a_budget_and_say_so() -> None:
    calls: list[int] = []
    executor = PipelineExecutor(fifty(costing(lambda number: 0.06, calls)), budget=0.10, prices=PRICES)
    result = await executor.execute()
    waits = [event.reason for event in result.events if isinstance(event, events.StepWaiting)]
    assert set(waits) == {"the rest of the budget, which calls under way may use up"}
    assert len(calls) == 2
    assert result.total_cost == pytest.approx(0.12)


async def test_a_run_stopped_while_calls_wait_leaves_nothing_behind() -> None:
    hang = asyncio.Event()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        await hang.wait()
        raise AssertionError("it is never let through")

    executor = PipelineExecutor(fifty(FunctionModel(answer, model_name="mine")), budget=0.10, prices=PRICES)
    executor.subscribe(lambda event: executor.cancel() if isinstance(event, events.StepWaiting) else None)
    result = await executor.execute()
    assert result.cancelled
    assert [share.reserved for share in executor.ledger.shares()] == [0]


# -- prices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["run", "step"])
async def test_a_model_without_a_price_is_refused_before_any_step(where: str) -> None:
    ran: list[int] = []
    pipeline = Pipeline("p", model=counting([]))
    pipeline.task(lambda: ran.append(1), name="first")
    pipeline.step("s", "Think.", budget=0.5 if where == "step" else None)
    executor = PipelineExecutor(pipeline, budget=0.5 if where == "run" else None)
    with pytest.raises(
        DefinitionError, match=r"budget of 0.5 USD.*price of model 'function:counted'"
    ) as caught:
        await executor.execute()
    assert str(caught.value).startswith("Step 's' cannot run")
    assert "Price(input_per_million=" in str(caught.value)
    assert '"5000 tokens"' in str(caught.value)
    assert not ran
    assert executor.memory is None


async def test_python_alone_needs_no_prices() -> None:
    pipeline = Pipeline("p")
    pipeline.task(lambda: 1, name="one")
    assert (await PipelineExecutor(pipeline, budget=0.5).execute()).success


async def test_what_is_free_fits_into_any_budget() -> None:
    pipeline = Pipeline("p", model="test", default_mode=ExecutionMode.CONCURRENT)
    pipeline.step("a", "Think.").step("b", "Think.")
    result = await PipelineExecutor(pipeline, budget=0).execute()
    assert result.success, result.error_details
    assert not [event for event in result.events if isinstance(event, events.StepWaiting)]


async def test_every_model_behind_a_fallback_needs_a_price() -> None:
    model = FallbackModel(costing(lambda number: ANSWER, []), counting([]))
    executor = PipelineExecutor(fifty(model), budget=0.10, prices=PRICES)
    with pytest.raises(DefinitionError, match="price of model 'function:counted'"):
        await executor.execute()


async def test_a_price_reported_later_counts_for_what_was_spent_before() -> None:
    calls: list[int] = []
    pipeline = fifty(costing(lambda number: ANSWER, calls))
    executor = PipelineExecutor(pipeline, budget="20 requests")
    first = await executor.execute()
    assert first.cost_per_step["s0"] is None
    executor.prices.update(PRICES)
    result = await executor.execute(resume=True, budget=0.10)
    assert len(calls) == 25
    assert "$0.10 of $0.10 spent" in result.error_details[result.failed_steps[0]]


async def test_usd_that_no_one_knows_end_a_budget_in_usd() -> None:
    pipeline = Pipeline("p", model=counting([]))

    def own(context: StepContext) -> None:
        context.spend(events.TokenUsage(requests=1), None)

    pipeline.task(own, name="first")
    pipeline.step("s", "Think.", depends_on=["first"])
    prices = {"function:counted": Price(1, 1)}
    result = await PipelineExecutor(pipeline, budget=0.5, prices=prices).execute()
    assert "what step 'first' spent has no known price" in result.error_details["s"]
    assert (await PipelineExecutor(pipeline, budget="9 requests", prices=prices).execute()).success


async def test_the_budget_of_a_run_is_recorded(tmp_path: Path) -> None:
    storage = FileStorageBackend(tmp_path)
    calls: list[int] = []
    executor = PipelineExecutor(fifty(counting(calls)), storage=storage)
    await executor.execute(budget="2 requests")
    stored = await executor.load_result()
    assert stored.budget == "2 requests"
    assert str(stored.budget_shares()[0]) == "2 requests of 2 requests spent"
    assert PipelineResult.from_json(stored.to_json()).budget == "2 requests"
    kept = await executor.execute(resume=True)
    assert kept.budget == "2 requests"
    assert len(calls) == 2
    again = await executor.execute(resume=True, budget=" NONE ")
    assert again.success
    assert (await executor.load_result()).budget == ""


def test_the_error_tells_everything_to_programs() -> None:
    exceeded = BudgetExceededError("used up", step="s", measure="tokens", spent=5000, limit=4000)
    assert isinstance(exceeded, StepError)
    assert (exceeded.step, exceeded.measure, exceeded.spent, exceeded.limit) == ("s", "tokens", 5000, 4000)


async def test_sums_of_usd_show_no_noise_of_floats() -> None:
    """Three dimes are 0.3 USD, and not 0.30000000000000004."""
    calls: list[int] = []
    pipeline = Pipeline("dimes", model=costing(lambda number: 0.1, calls))
    pipeline.step("a", "One.").step("b", "{{ a }}").step("c", "{{ b }}")
    result = await PipelineExecutor(pipeline, prices=PRICES, budget=0.5).execute()
    assert result.total_cost == 0.3
    assert result.cost_per_step == {"a": 0.1, "b": 0.1, "c": 0.1}
    assert [share.spent for share in result.budget_shares()] == [0.3]
    assert "0.30000" not in f"{result!r} {result._repr_html_()} {result.to_json()}"
