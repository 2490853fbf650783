"""Limits: how fast a provider is asked, and what happens when it complains. Time is a number here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.exceptions import ModelHTTPError, ModelRateLimitError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import ExecutionMode, Limit, Pipeline, PipelineExecutor, events
from tagent_nb.errors import DefinitionError
from tagent_nb.pipeline import StepStatus
from tagent_nb.runners import CallMiddleware, RateLimiter
from tagent_nb.runners.base import ModelCall
from tagent_nb.runners.middleware.notify import Changes
from tagent_nb.runners.middleware.rate_limit import MAX_TOTAL_WAIT, WINDOW, Pace, jittered
from tagent_nb.runners.models.retry_after import usable_wait
from tests.fake_openai import KEY, Act, error, fake_openai

EPOCH = 1_800_000_000.0
"""Seconds since 1970 when the clock below stands at 0."""


class Word(BaseModel):
    word: str


class Clock:
    """Time that passes only while someone sleeps. The gate lets one sleep at a time for each provider."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        for _ in range(20):  # let all others come as far as they can
            await asyncio.sleep(0)
        self.slept.append(seconds)
        self.now += seconds

    def gate(self, **limits: Limit) -> RateLimiter:
        return RateLimiter(
            limits, clock=self, sleep=self.sleep, now=lambda: self.now + EPOCH, jitter=lambda ceiling: ceiling
        )


class Provider:
    """A model that notes when it is asked and how many ask at once, and refuses as it is instructed."""

    def __init__(self, clock: Clock, *refusals: float | None, at_once: int = 10_000) -> None:
        self.clock = clock
        self.refusals = list(refusals)
        self.at_once = at_once
        self.asked: list[float] = []
        self.under_way = self.most = self.answered = 0

    @property
    def model(self) -> FunctionModel:
        return FunctionModel(self.answer, model_name="m")

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked.append(self.clock.now)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.under_way > self.at_once:
                raise ModelRateLimitError("m", "too many at once", retry_after=2)
            for _ in range(3):
                await asyncio.sleep(0)
            if self.refusals:
                raise ModelRateLimitError("m", "slow down", retry_after=self.refusals.pop(0))
            self.answered += 1
            return ModelResponse(
                parts=[TextPart("so be it")], usage=RequestUsage(input_tokens=60, output_tokens=40)
            )
        finally:
            self.under_way -= 1


def steps(model: Any, number: int, **options: Any) -> Pipeline:
    pipeline = Pipeline("fast", model=model, default_mode=ExecutionMode.CONCURRENT)
    for number_of_step in range(number):
        pipeline.step(f"s{number_of_step}", f"Say {number_of_step}.", max_retries=0, **options)
    return pipeline


def waits(result: Any) -> list[tuple[str, float | None]]:
    return [(event.reason, event.seconds) for event in result.events if isinstance(event, events.StepWaiting)]


# -- how limits are written ---------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "8"])
def test_a_limit_is_a_whole_number_from_1_on(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^Limit: requests_per_minute must be a whole number from 1"):
        Limit(requests_per_minute=wrong)


@pytest.mark.parametrize("wrong", [{1: Limit()}, [Limit()], {"openai": 8}])
def test_limits_go_by_provider(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"limits.* as in \{'openai': Limit\("):
        PipelineExecutor(Pipeline("p"), limits=wrong)


# -- the user's limits --------------------------------------------------------------------------


async def test_no_more_requests_at_once_than_allowed() -> None:
    clock = Clock()
    provider = Provider(clock)
    gate = clock.gate(function=Limit(concurrency=3))
    result = await PipelineExecutor(steps(provider.model, 12), limits=gate, max_concurrency=12).execute()
    assert result.success, result.error_details
    assert provider.most == 3
    assert clock.slept == []
    assert waits(result)[0] == ("one of 3 places at function", None)


async def test_no_more_requests_a_minute_than_allowed() -> None:
    clock = Clock()
    provider = Provider(clock)
    gate = clock.gate(function=Limit(requests_per_minute=5))
    result = await PipelineExecutor(steps(provider.model, 23), limits=gate, max_concurrency=23).execute()
    assert result.success
    assert len(provider.asked) == 23
    for earlier, later in zip(provider.asked, provider.asked[5:], strict=False):
        assert later - earlier >= WINDOW
    assert clock.now == 1000 + 4 * WINDOW
    assert ("5 requests a minute at function", WINDOW) in waits(result)


async def test_no_more_tokens_a_minute_than_allowed() -> None:
    """What an answer really took counts in place of what was expected: 100 tokens each."""
    clock = Clock()
    provider = Provider(clock)
    gate = clock.gate(function=Limit(tokens_per_minute=250))
    pipeline = steps(provider.model, 8, settings={"max_tokens": 40})
    result = await PipelineExecutor(pipeline, limits=gate, max_concurrency=1).execute()
    assert result.success
    assert [provider.asked.count(moment) for moment in sorted(set(provider.asked))] == [2, 2, 2, 2]
    assert {reason for reason, _ in waits(result)} == {"250 tokens a minute at function"}


async def test_a_request_too_large_for_any_minute_is_made_alone() -> None:
    clock = Clock()
    provider = Provider(clock)
    gate = clock.gate(function=Limit(tokens_per_minute=10))
    result = await PipelineExecutor(steps(provider.model, 3), limits=gate).execute()
    assert result.success
    assert provider.asked == [1000, 1060, 1120]


async def test_requests_pass_in_the_order_in_which_they_came() -> None:
    clock = Clock()
    order: list[str] = []

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        order.append(str(messages[0].parts[0].content))  # type: ignore[union-attr]
        await asyncio.sleep(0)
        return ModelResponse(parts=[TextPart("x")])

    gate = clock.gate(function=Limit(concurrency=1))
    await PipelineExecutor(steps(FunctionModel(answer), 6), limits=gate).execute()
    assert order == [f"Say {number}." for number in range(6)]


async def test_a_limit_may_be_named_as_the_model_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or as its provider is called: ``openai-chat:`` and ``openai:`` models are OpenAI's."""
    gate = RateLimiter({"my-gateway": Limit(concurrency=1)})
    assert set(gate.paces) == {"my-gateway"}
    clock = Clock()
    provider = Provider(clock)
    gate = clock.gate(**{"test": Limit(requests_per_minute=1)})
    result = await PipelineExecutor(steps("test", 2), limits=gate).execute()
    assert result.success
    assert clock.now == 1060
    result = await PipelineExecutor(steps(provider.model, 2), limits=gate).execute()
    assert clock.now == 1060, "another provider is another matter"


async def test_a_stopped_run_leaves_no_place_taken_and_no_one_in_the_queue() -> None:
    clock = Clock()
    hang = asyncio.Event()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        await hang.wait()
        raise AssertionError("no one lets it go on")

    gate = clock.gate(function=Limit(concurrency=2))
    executor = PipelineExecutor(steps(FunctionModel(answer), 8), limits=gate)
    stopped: list[events.Event] = []
    executor.subscribe(
        lambda event: (
            (stopped.append(event), executor.cancel())[0] if isinstance(event, events.StepWaiting) else None
        )
    )
    assert (await executor.execute()).cancelled
    pace = gate.paces["function"]
    assert (pace.under_way, len(pace.queue)) == (0, 0)
    provider = Provider(clock)
    again = PipelineExecutor(steps(provider.model, 8), limits=gate)
    assert (await again.execute()).success
    assert provider.most == 2


# -- a provider that complains ------------------------------------------------------------------


async def test_a_429_waits_as_long_as_it_says_and_is_no_failed_attempt() -> None:
    clock = Clock()
    provider = Provider(clock, 7)
    result = await PipelineExecutor(steps(provider.model, 1), limits=clock.gate()).execute()
    assert result.success
    assert clock.slept == [7]
    assert provider.asked == [1000, 1007]
    assert result.steps["s0"].attempts == 1
    assert waits(result) == [("function, which asks for fewer requests", 7)]
    assert result.token_usage["s0"].requests == 1


async def test_a_429_without_a_time_waits_longer_each_time() -> None:
    clock = Clock()
    provider = Provider(clock, *[None] * 8)
    result = await PipelineExecutor(steps(provider.model, 1), limits=clock.gate()).execute()
    assert result.success
    assert clock.slept == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_429_halves_the_places_and_answers_bring_them_back() -> None:
    clock = Clock()
    provider = Provider(clock, at_once=4)
    gate = clock.gate(function=Limit(concurrency=16))
    result = await PipelineExecutor(steps(provider.model, 60), limits=gate, max_concurrency=60).execute()
    assert result.success, result.error_details
    assert provider.answered == 60
    assert 1 <= len(provider.asked) - 60 <= 20, "all wait when one is refused"
    places = gate.paces["function"].places
    assert places is not None
    assert places <= 8


def test_places_are_halved_once_for_one_burst_and_creep_up() -> None:
    pace = Pace("p")
    burst = [pace.enter(0.0, 1) for _ in range(9)]
    assert pace.places is None
    for request in burst[:3]:
        pace.refused(request, 5.0)
        pace.leave()
    assert (pace.places, pace.closed_until) == (4, 5.0)
    for request in burst[3:]:
        pace.answered(request, 10)
        pace.leave()
    assert pace.places == 5, "one more after as many answers as there are places"
    later = pace.enter(6.0, 1)
    pace.refused(later, 4.0)
    pace.leave()
    assert (pace.places, pace.closed_until) == (1, 5.0)
    pace.set(Limit(concurrency=2))
    for _ in range(9):
        pace.answered(pace.enter(7.0, 1), 10)
        pace.leave()
    assert pace.places == 2, "never more than the user allows"


async def test_a_provider_that_complains_too_long_fails_the_step_and_says_what_to_do() -> None:
    clock = Clock()
    provider = Provider(clock, *[120.0] * 9)
    pipeline = steps(provider.model, 1)
    pipeline.put(pipeline.get_step("s0").with_(max_retries=3))
    result = await PipelineExecutor(pipeline, limits=clock.gate()).execute()
    assert sum(clock.slept) <= MAX_TOTAL_WAIT
    assert clock.slept == [120, 120]
    message = result.error_details["s0"]
    assert (
        "asks for fewer requests, now for 120 s more, and a request waits at most 300 s (slow down)"
        in message
    )
    assert "Resume the run later" in message
    assert result.steps["s0"].attempts == 1


async def test_waiting_for_a_provider_is_no_part_of_a_timeout() -> None:
    clock = Clock()
    provider = Provider(clock, 5)
    limits: list[asyncio.Timeout] = []
    stood_still: list[bool] = []

    class Looking(CallMiddleware):
        async def model_call(
            self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
        ) -> ModelResponse:
            assert call.context.limit is not None
            limits.append(call.context.limit)
            return await proceed(call)

    async def sleep(seconds: float) -> None:
        stood_still.append(limits[0].when() is None)
        await clock.sleep(seconds)

    pipeline = steps(provider.model, 1, timeout=100)
    seen: list[StepStatus] = []
    gate = RateLimiter(clock=clock, sleep=sleep)
    executor = PipelineExecutor(pipeline, limits=gate, middleware=[Looking()])
    executor.subscribe(
        lambda event: (
            seen.append(executor.memory.steps["s0"].status)
            if executor.memory is not None and isinstance(event, events.StepWaiting)
            else None
        )
    )
    result = await executor.execute()
    assert result.success, result.error_details
    assert stood_still == [True]
    assert seen == [StepStatus.WAITING]


async def test_who_stops_waiting_for_a_change_is_not_notified_of_it() -> None:
    changes = Changes()
    first, other = (asyncio.ensure_future(changes.wait()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    changes.tell()
    await other
    assert first.cancelled()
    first, other = (asyncio.ensure_future(changes.wait()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    changes.tell()
    await other
    assert first.cancelled()


async def test_executors_may_share_a_gate() -> None:
    clock = Clock()
    gate = clock.gate(function=Limit(requests_per_minute=4))
    provider = Provider(clock)
    executors = [PipelineExecutor(steps(provider.model, 4), limits=gate) for _ in range(2)]
    results = await asyncio.gather(*[executor.execute() for executor in executors])
    assert all(result.success for result in results)
    assert [provider.asked.count(moment) for moment in (1000, 1060)] == [4, 4]


# -- the wire -----------------------------------------------------------------------------------


@pytest.mark.models
async def test_a_429_on_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    acts = [error(429, "Slow down", Retry_After="3"), error(429, "Slow down"), Act("hello")]
    with fake_openai(*acts) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        pipeline = steps("openai-chat:gpt-4o", 1)
        result = await PipelineExecutor(pipeline, limits=clock.gate()).execute()
        assert result["s0"] == "hello"
        assert clock.slept == [3, 2]
        assert len(fake.requests) == 3
        assert result.token_usage["s0"].requests == 1


def at(seconds: float) -> str:
    """A date of HTTP, so many seconds after the clock's begin."""
    return format_datetime(datetime.fromtimestamp(EPOCH + 1000 + seconds, UTC), usegmt=True)


def refusal(headers: dict[str, str], retry_after: float | None = None) -> ModelHTTPError:
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return ModelHTTPError.for_category(
        ModelRateLimitError, status_code=429, model_name="m", headers=shown, retry_after=retry_after
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Retry_After": "-5"},
        {"Retry_After": "0.001"},
        {"Retry_After": ""},
        {"Retry_After": "nan"},
        {"Retry_After": "inf"},
        {"Retry_After": at(0)},
        {"retry_after_ms": "0", "Retry_After": "0"},
        {"retry_after_ms": "-100", "Retry_After": "x"},
        {"x_ratelimit_reset_requests": "1ms"},
        {"x_ratelimit_reset_tokens": "6m0s", "x_ratelimit_remaining_tokens": "1000"},
        {"x_ratelimit_reset_requests": "soon", "x_ratelimit_remaining_requests": "0"},
        {"x_ratelimit_reset_requests": ""},
    ],
    ids=str,
)
def test_headers_that_say_nothing_that_could_be_followed(headers: dict[str, str]) -> None:
    assert usable_wait(refusal(headers), lambda: EPOCH + 1000) is None


def test_a_wait_that_a_client_read_elsewhere_counts_where_no_header_has_one() -> None:
    assert usable_wait(refusal({}, retry_after=14.0)) == 14.0
    assert usable_wait(refusal({"x_ratelimit_reset_requests": "3s"}, retry_after=14.0)) == 14.0
    assert usable_wait(ModelRateLimitError("m", "slow down", retry_after=2)) == 2
    assert usable_wait(ModelRateLimitError("m", "slow down", retry_after=0)) is None


@pytest.mark.models
@pytest.mark.parametrize(
    "headers",
    [{}, {"Retry_After": "0"}, {"Retry_After": "soon"}, {"Retry_After": at(-3600)}, {"retry_after_ms": "1"}],
    ids=str,
)
async def test_a_429_without_a_usable_wait_waits_longer_each_time(
    headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown, it is no failed attempt, and after so long it is given up: never a hot loop."""
    clock = Clock()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(429, "Slow down", **headers)) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        schema = None if "Retry_After" in headers else Word  # one is streamed, the other is not
        pipeline = steps("openai-chat:gpt-4o", 1, output_schema=schema)
        result = await PipelineExecutor(pipeline, limits=clock.gate()).execute()
        assert len(fake.requests) == 14
    assert clock.slept == [1, 2, 4, 8, 16] + [30] * 8
    assert sum(clock.slept) <= MAX_TOTAL_WAIT
    assert waits(result) == [("openai, which asks for fewer requests", seconds) for seconds in clock.slept]
    assert "openai asks for fewer requests, now for 30 s more" in result.error_details["s0"]
    assert result.token_usage["s0"].requests == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "2.5"}, 2.5),
        ({"Retry_After": " 7 "}, 7.0),
        ({"Retry_After": "1"}, 1.0),
        ({"Retry_After": "1, 2"}, 2.0),
        ({"Retry_After": "1.5s"}, 1.5),
        ({"Retry_After": f"{EPOCH + 1000 + 12:.0f}"}, 12.0),
        ({"Retry_After": at(90)}, 90.0),
        ({"Retry_After": at(90).replace("GMT", "+0000")}, 90.0),
        ({"retry_after_ms": "2500"}, 2.5),
        ({"retry_after_ms": "1500.5", "Retry_After": "2"}, 1.5005),
        ({"retry_after_ms": "1", "Retry_After": "4"}, 4.0),
        ({"retry_after_ms": "soon", "Retry_After": "0", "x_ratelimit_reset": "3"}, 3.0),
        ({"x_ratelimit_reset_requests": "1m30s"}, 30.0),
        ({"x_ratelimit_reset_requests": "2.5s", "x_ratelimit_remaining_requests": "0"}, 2.5),
        ({"x_ratelimit_reset_requests": "9s", "x_ratelimit_remaining_requests": "5",
          "x_ratelimit_reset_tokens": "1s500ms", "x_ratelimit_remaining_tokens": "0"}, 1.5),
        ({"x_ratelimit_reset": f"{EPOCH + 1000 + 12:.0f}"}, 12.0),
        ({"x_ratelimit_reset": f"{(EPOCH + 1000 + 12) * 1000:.0f}"}, 12.0),
        ({"anthropic_ratelimit_requests_reset": "2027-01-15T08:16:45Z"}, 5.0),
    ],
    ids=str,
)  # fmt: skip
def test_waits_as_headers_write_them(headers: dict[str, str], seconds: float) -> None:
    assert usable_wait(refusal(headers), lambda: EPOCH + 1000) == pytest.approx(seconds)


@pytest.mark.models
@pytest.mark.parametrize(
    ("header", "seconds"), [("2.5", 2.5), (at(90), 90.0), ("7", 7.0)], ids=["fraction", "date", "whole"]
)
async def test_a_429_waits_as_long_as_it_says_each_time(
    header: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(429, "Slow down", Retry_After=header), Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        result = await PipelineExecutor(steps("openai-chat:gpt-4o", 1), limits=clock.gate()).execute()
        assert len(fake.requests) == 2
    assert result["s0"] == "hello"
    assert clock.slept == [pytest.approx(seconds)]


@pytest.mark.models
async def test_a_short_wait_is_kept_once_and_then_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    short = error(429, "Slow down", retry_after_ms="250")
    with fake_openai(short, short, short, Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        result = await PipelineExecutor(steps("openai-chat:gpt-4o", 1), limits=clock.gate()).execute()
    assert result["s0"] == "hello"
    assert clock.slept == [0.25, 2, 4]


@pytest.mark.models
@pytest.mark.parametrize("header", ["301", "1e9", at(4000)])
async def test_a_429_that_asks_for_very_long_is_given_up_at_once(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(429, "Slow down", Retry_After=header), Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        result = await PipelineExecutor(steps("openai-chat:gpt-4o", 1), limits=clock.gate()).execute()
        assert len(fake.requests) == 1
    assert clock.slept == []
    assert "a request waits at most 300 s (HTTP 429: Slow down)" in result.error_details["s0"]


@pytest.mark.models
async def test_who_waits_for_a_provider_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(429, "Slow down", Retry_After="0"), Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        executor = PipelineExecutor(steps("openai-chat:gpt-4o", 1))
        executor.subscribe(
            lambda event: executor.cancel() if isinstance(event, events.StepWaiting) else None  # type: ignore[func-returns-value]
        )
        assert (await executor.execute()).cancelled
        assert len(fake.requests) == 1


def test_waits_without_a_word_of_the_provider_differ_between_processes() -> None:
    waits = {jittered(8.0) for _ in range(50)}
    assert len(waits) > 1
    assert all(4.0 <= wait <= 8.0 for wait in waits)


@pytest.mark.models
@pytest.mark.parametrize(
    ("status", "header", "delay"),
    [(503, "0", None), (529, at(-1e9), None), (500, "?", None), (503, "0.2", 0.2)],
)
async def test_an_overloaded_server_without_a_usable_wait_gets_growing_pauses(
    status: int, header: str, delay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(status, "Overloaded", Retry_After=header), Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        monkeypatch.setattr("random.uniform", lambda low, high: high)
        pipeline = Pipeline("p", model="openai-chat:gpt-4o").step("s", "Say hello.")
        result = await PipelineExecutor(pipeline, retry_delay=0.01).execute()
    assert result["s"] == "hello"
    retried = [event for event in result.events if isinstance(event, events.StepRetried)]
    assert [event.delay for event in retried] == [0.01 if delay is None else delay]


@pytest.mark.models
@pytest.mark.parametrize("name", ["openai", "openai-chat"])
async def test_limits_on_the_wire(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        gate = clock.gate(**{name: Limit(requests_per_minute=2)})
        result = await PipelineExecutor(steps("openai-chat:gpt-4o", 4), limits=gate).execute()
        assert result.success
        assert clock.now == 1060


@pytest.mark.models
async def test_an_overloaded_server_that_asks_for_hours_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_openai(error(503, "Overloaded", Retry_After="3600"), Act("hello")) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        pipeline = Pipeline("p", model="openai-chat:gpt-4o").step("s", "Say hello.")
        result = await PipelineExecutor(pipeline).execute()
    assert "It asks to wait 3600 s: resume the run then." in result.error_details["s"]
