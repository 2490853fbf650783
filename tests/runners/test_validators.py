"""Checks: functions of the user that say whether a step's value will do."""

from __future__ import annotations

import asyncio
import functools
import linecache
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import ModelRetry
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    DefinitionError,
    OutputValidationError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    StepContext,
    StepError,
    UnknownStepError,
)
from tagent_nb.events import Event, StepProgress, StepStreamed
from tagent_nb.pipeline import takes_context
from tagent_nb.runners import AgentRunner, PythonRunner
from tagent_nb.runners.execution.traceback import show_source
from tagent_nb.runners.validators import Checks


class Score(BaseModel):
    score: int


@pytest.fixture
def seen() -> list[Event]:
    return []


@pytest.fixture
def context(seen: list[Event]) -> StepContext:
    return StepContext("run", "demo", "s", emit=seen.append)


def step(*checks: Callable[..., Any], **options: Any) -> PipelineStep:
    return PipelineStep(name="s", goal="Go", checks=list(checks), **options)


def answering(*answers: str) -> tuple[FunctionModel, list[str]]:
    """A model that gives these answers in order, and the last message of each question."""
    conversations: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        conversations.append(str(messages[-1]))
        text = answers[min(len(conversations), len(answers)) - 1]
        if info.output_tools:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, text)])
        return ModelResponse(parts=[TextPart(text)])

    return FunctionModel(answer), conversations


def positive(value: Score) -> None:
    if value.score <= 0:
        raise ValueError("the score must be above 0")


async def judged(context: StepContext, check: Callable[..., Any], value: Any = 1) -> str:
    return await Checks(step(check), context).judge(value)


# -- verdicts ---------------------------------------------------------------------------------


async def test_a_check_refuses_by_what_it_raises(context: StepContext, seen: list[Event]) -> None:
    """``ValueError``, ``AssertionError``, pydantic-ai's ``ModelRetry``, or the answer ``False``."""

    def value_error(value: int) -> None:
        raise ValueError("too small")

    def retry(value: int) -> None:
        raise ModelRetry("say it again")

    def reported(value: int) -> None:
        raise AssertionError("not so")

    assert await judged(context, value_error) == "Check 'value_error' refused it: too small"
    assert await judged(context, retry) == "Check 'retry' refused it: say it again"
    assert await judged(context, reported) == "Check 'reported' refused it: not so"
    assert await judged(context, lambda value: value > 1) == "Check '<lambda>' refused it: it returned False"
    assert [event.detail["check"] for event in seen if isinstance(event, StepProgress)] == [
        "value_error",
        "retry",
        "reported",
        "<lambda>",
    ]


async def test_an_assertion_without_a_message_is_reported_by_its_line(context: StepContext) -> None:
    space: dict[str, Any] = {}
    source = "def small(value):\n    assert value < 1\n"
    exec(compile(source, "<step small>", "exec"), space)
    show_source("<step small>", source)
    assert await judged(context, space["small"]) == "Check 'small' refused it: assert value < 1"
    del linecache.cache["<step small>"]
    assert await judged(context, space["small"]) == "Check 'small' refused it: AssertionError"


@pytest.mark.parametrize("verdict", [None, True, 0, ""])
async def test_other_answers_of_a_check_are_no_refusal(context: StepContext, verdict: Any) -> None:
    assert await judged(context, lambda value: verdict) == ""


async def test_checks_may_be_sync_async_and_take_the_context(context: StepContext, seen: list[Event]) -> None:
    """A sync one runs in a thread of its own; what both print appears with the step."""
    threads = []

    def sync(value: int, context: StepContext) -> None:
        threads.append(threading.current_thread())
        print(f"sync {value} {context.step}")

    async def asynchronous(value: int, context: StepContext) -> None:
        await asyncio.sleep(0)
        print(f"async {value} {context.step}")

    def returns_one(value: int) -> Any:
        return asynchronous(value, context)

    assert await Checks(step(sync, asynchronous, returns_one), context).judge(3) == ""
    printed = "".join(event.text for event in seen if isinstance(event, StepStreamed))
    assert printed == "sync 3 s\nasync 3 s\nasync 3 s\n"
    assert threads != [threading.main_thread()]


async def test_the_first_refusal_counts_and_a_new_value_begins_anew(context: StepContext) -> None:
    calls: list[str] = []

    def first(value: int) -> None:
        calls.append("first")
        if value <= 1:
            raise ValueError("one")

    def second(value: int) -> None:
        calls.append("second")

    checks = Checks(step(first, second), context)
    assert await checks.judge(1) == checks.refused == "Check 'first' refused it: one"
    assert calls == ["first"]
    assert await checks.judge(2) == checks.refused == ""
    assert calls == ["first", "first", "second"]


async def test_an_error_that_is_no_verdict_ends_the_step(context: StepContext) -> None:
    def broken(value: Any) -> None:
        value["nothing"]

    def leaves(value: Any) -> None:
        sys.exit(3)

    async def cancels(value: Any) -> None:
        raise asyncio.CancelledError

    def own(value: Any) -> None:
        raise StepError("never mind")

    with pytest.raises(StepError, match=r"check 'broken' raised KeyError: 'nothing' \(in: value\[") as caught:
        await judged(context, broken, {})
    assert not isinstance(caught.value, OutputValidationError)
    with pytest.raises(StepError, match="check 'leaves' raised SystemExit: 3"):
        await judged(context, leaves)
    with pytest.raises(StepError, match="check 'cancels' raised CancelledError"):
        await judged(context, cancels)
    with pytest.raises(StepError, match="^never mind$"):
        await judged(context, own)


async def test_a_check_is_stopped_with_its_step(context: StepContext) -> None:
    begun = threading.Event()

    def slow(value: Any) -> None:
        begun.set()
        while True:
            sum(range(10))

    job = asyncio.create_task(judged(context, slow))
    assert await asyncio.to_thread(begun.wait, 20)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


# -- agent steps ------------------------------------------------------------------------------


async def test_a_refused_answer_goes_back_to_the_model(context: StepContext) -> None:
    context.model, conversations = answering('{"score": 0}', '{"score": 7}')
    assert await AgentRunner().run(step(positive, output_schema=Score), context) == Score(score=7)
    assert "Check 'positive' refused it: the score must be above 0" in conversations[1]
    assert context.usage.requests == 2


async def test_refusals_to_the_end_show_the_last_answer_and_what_the_check_said(context: StepContext) -> None:
    context.model, conversations = answering('{"score": 0}', '{"score": -1}')
    with pytest.raises(OutputValidationError) as caught:
        await AgentRunner().run(step(positive, output_schema=Score, output_retries=1), context)
    assert str(caught.value) == (
        "Step 's': no answer matched Score and passed its checks in 2 tries. Check 'positive' refused it: "
        'the score must be above 0. The last answer was: {"score": -1}'
    )
    assert len(conversations) == 2


async def test_a_text_can_be_checked_too(context: StepContext) -> None:
    def short(value: str) -> None:
        raise ValueError("Too long!")

    context.model, _ = answering("many words")
    with pytest.raises(
        OutputValidationError,
        match=r"no answer matched text and passed its checks in 1 try\. Check 'short' refused it: Too long! "
        "The last answer was: many words",
    ):
        await AgentRunner().run(step(short, output_retries=0), context)


async def test_an_answer_that_no_longer_fits_is_reported_before_an_older_refusal(
    context: StepContext,
) -> None:
    context.model, _ = answering('{"score": 0}', '{"score": "x"}')
    with pytest.raises(OutputValidationError, match="Wrong: score: Input should be a valid integer"):
        await AgentRunner().run(step(positive, output_schema=Score, output_retries=1), context)


async def test_a_broken_check_ends_an_agent_step_without_another_question(context: StepContext) -> None:
    context.model, conversations = answering('{"score": 0}')
    with pytest.raises(StepError, match="raised ZeroDivisionError"):
        await AgentRunner().run(step(lambda value: 1 / value.score, output_schema=Score), context)
    assert len(conversations) == 1


# -- Python steps -----------------------------------------------------------------------------


async def test_a_failing_check_fails_a_python_step(context: StepContext) -> None:
    judged_step = PipelineStep.from_cell(
        "s", "{'score': 0}", python=True, output_schema=Score, checks=[positive]
    )
    with pytest.raises(OutputValidationError, match="'s': its value will not do. Check 'positive' refused"):
        await PythonRunner().run(judged_step, context)
    fine = PipelineStep.from_cell("s", "{'score': 2}", python=True, output_schema=Score, checks=[positive])
    assert await PythonRunner().run(fine, context) == Score(score=2)


def test_a_pipeline_shows_which_check_failed_and_does_not_try_again() -> None:
    runs = []
    pipeline = Pipeline("p")

    @pipeline.task
    def load() -> list[int]:
        runs.append(1)
        return []

    @pipeline.check("load")
    def not_empty(value: list[int]) -> None:
        if not value:
            raise ValueError("nothing was loaded")

    result = PipelineExecutor(pipeline).run()
    assert result.error_details["load"].endswith("Check 'not_empty' refused it: nothing was loaded")
    assert runs == [1]


# -- definitions ------------------------------------------------------------------------------


def test_a_check_of_the_same_name_replaces_the_older_one() -> None:
    pipeline = Pipeline("p").step("a", "Go", checks=[positive])
    for _ in range(2):

        @pipeline.check("a")
        def fine(value: Any) -> None: ...

    assert pipeline.get_step("a").checks == [positive, fine]
    with pytest.raises(UnknownStepError, match="Did you mean 'a'|no step 'b'"):
        pipeline.check("b")


def no_value() -> None: ...


def three(a: int, b: int, c: int) -> None: ...


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([3], "checks must be functions, not int"),
        (positive, "checks must be a list"),
        ([no_value], r"no_value.*takes neither \(value\) nor \(value, context\)"),
        ([three], "takes neither"),
    ],
)
def test_checks_that_cannot_be_called_are_refused(checks: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        PipelineStep(name="s", goal="g", checks=checks)


@pytest.mark.parametrize(
    ("check", "takes"),
    [
        (lambda value: None, False),
        (lambda value, limit=3: None, False),
        (lambda value, context=None: None, True),
        (lambda value, ctx: None, True),
        (lambda *values: None, False),
        (lambda value, **more: None, False),
        (functools.partial(three, 1), True),
        (functools.partial(three, 1, 2), False),
        (int, False),
        (lambda value, *, context: None, None),
    ],
)
def test_a_check_gets_the_context_if_it_asks_for_it(check: Callable[..., Any], takes: bool | None) -> None:
    assert takes_context(check) is takes
