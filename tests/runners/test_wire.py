"""Agent steps over HTTP, from the pipeline to a server on loopback that plays what providers do.

Each case ends as docs/how-to/models.md says, with the tokens and the cost of what was answered.
"""

from __future__ import annotations

from typing import Any

import pytest

from tagent_nb import PipelineResult, StepStatus
from tagent_nb.events import Event, StepStreamed, TokenUsage
from tests.fake_openai import Act, FakeOpenAI, error
from tests.wire import ONE, Play, Sentiment, cost, executor, run, times

pytestmark = [pytest.mark.models, pytest.mark.timeout(60)]

RIGHT = Act(tool="final_result", arguments={"label": "positive"})
WRONG = Act(tool="final_result", arguments={"label": "meh"})
TEXT = Act(text="I loved it very much")


# -- answers ----------------------------------------------------------------------------------


def test_a_right_answer(play: Play) -> None:
    fake = play(RIGHT)
    step = run()
    assert step.output.value == Sentiment(label="positive")
    assert (step.status, step.attempts, len(fake.requests)) == (StepStatus.COMPLETED, 1, 1)
    assert (step.usage, step.cost) == (ONE, cost(1))


def test_invalid_then_valid(play: Play) -> None:
    """The model is given what was wrong, in the same attempt; both answers count."""
    fake = play(WRONG, RIGHT)
    step = run()
    assert step.output.value == Sentiment(label="positive")
    assert (step.attempts, len(fake.requests)) == (1, 2)
    assert "Input should be" in fake.texts()[-1]
    assert (step.usage, step.cost) == (times(2), cost(2))


def test_invalid_to_the_end(play: Play) -> None:
    """The step fails without another attempt, shows the last answer, and what it took is not forgotten."""
    fake = play(WRONG)
    step = run(output_retries=1)
    assert (step.status, step.error_type) == (StepStatus.FAILED, "OutputValidationError")
    assert step.error.endswith('The last answer was: {"label": "meh"}')
    assert (step.attempts, len(fake.requests)) == (1, 2)
    assert (step.usage, step.cost) == (times(2), cost(2))


def test_a_refused_answer_then_one_that_passes_the_check(play: Play) -> None:
    fake = play(Act(tool="final_result", arguments={"label": "negative"}), RIGHT)
    step = run(checks=[lambda value: value.label == "positive"])
    assert step.output.value == Sentiment(label="positive")
    assert "it returned False" in str(fake.requests[1]["messages"])
    assert (step.usage, step.cost) == (times(2), cost(2))


# -- the provider asks to wait ----------------------------------------------------------------


def test_a_rate_limit_with_retry_after(play: Play) -> None:
    """The answer comes after the wait, and only it is paid."""
    fake = play(error(429, "Slow down", retry_after_ms="100"), RIGHT)
    step = run()
    assert step.output.value == Sentiment(label="positive")
    assert len(fake.requests) == 2
    assert (step.usage, step.cost) == (ONE, cost(1))


# -- failures that may pass -------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        error(500, "Oops"),
        error(503, "Overloaded"),
        Act(body="{ malformed"),
        Act(body="{}"),
        Act(drop="before"),
        Act(drop="midway"),
    ],
    ids=["500", "503", "malformed JSON", "no answer in it", "dropped connection", "dropped midway"],
)
@pytest.mark.parametrize("schema", [Sentiment, None], ids=["schema", "text"])
def test_twice_wrong_then_right(play: Play, act: Act, schema: Any) -> None:
    """Each is another attempt; what was not answered costs nothing."""
    fake = play(act, act, TEXT if schema is None else RIGHT)
    step = run(schema)
    assert step.error == ""
    assert step.output.value == (TEXT.text if schema is None else Sentiment(label="positive"))
    assert (step.attempts, len(fake.requests)) == (3, 3)
    assert (step.usage, step.cost) == (ONE, cost(1))


def test_wrong_to_the_end(play: Play) -> None:
    fake = play(error(500, "Oops"))
    step = run(max_retries=1)
    assert (step.status, step.error_type) == (StepStatus.FAILED, "RetryableError")
    assert "HTTP 500: Oops" in step.error
    assert (step.attempts, len(fake.requests)) == (2, 2)
    assert (step.usage, step.cost) == (TokenUsage(), 0.0)


# -- failures that will not pass --------------------------------------------------------------


def test_a_wrong_key(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt, and the key is shown nowhere."""
    fake = play(RIGHT)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0987654321")
    result = executor().run()
    step = result.steps["s"]
    assert (step.status, step.error_type, step.attempts) == (StepStatus.FAILED, "StepError", 1)
    assert "refused the key" in step.error
    assert fake.requests == []
    assert (step.usage, step.cost) == (TokenUsage(), 0.0)
    assert "sk-wrong" not in f"{result.to_dict()}{result.events}"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (error(400, "Bad schema"), "rejected the request"),
        (error(404, "No such model", "model_not_found"), "the provider has no model"),
        (error(429, "Pay first", "insufficient_quota"), "has no quota left"),
    ],
)
def test_what_another_attempt_cannot_mend(play: Play, act: Act, message: str) -> None:
    fake = play(act)
    step = run()
    assert message in step.error
    assert (step.attempts, len(fake.requests)) == (1, 1)
    assert (step.usage, step.cost) == (TokenUsage(), 0.0)


# -- slow ones --------------------------------------------------------------------------------


def test_a_server_that_hangs_is_left_at_the_timeout(play: Play) -> None:
    fake = play(Act(hang=True))
    step = run(timeout=1.0, max_retries=0)
    assert (step.status, step.error_type) == (StepStatus.FAILED, "StepTimeoutError")
    assert len(fake.requests) <= 1
    assert (step.usage, step.cost) == (TokenUsage(), 0.0)


def test_a_server_that_hangs_can_be_left_by_its_user(play: Play) -> None:
    """The run is cancelled, and answered when it is resumed."""
    fake = play(Act(hang=True), RIGHT)
    runner = executor()
    handle = runner.start()
    assert fake.arrived.wait(30)
    handle.cancel()
    assert handle.result().cancelled
    result = runner.run(resume=True)
    assert result["s"] == Sentiment(label="positive")
    assert (result.steps["s"].usage, result.total_cost) == (ONE, cost(1))


def test_a_slow_stream_is_shown_while_it_comes(play: Play) -> None:
    """The rest is only sent after the first piece was seen."""
    fake = play(Act(text=TEXT.text, slow=True))
    pieces: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, StepStreamed):
            pieces.append(event.text)
            fake.go.set()

    step = run(None, observers=[watch])
    assert step.output.value == TEXT.text
    assert "".join(pieces) == TEXT.text
    assert pieces[0] == "I"
    assert (step.usage, step.cost) == (ONE, cost(1))


def test_a_stream_that_stands_still_is_left_at_the_timeout(play: Play) -> None:
    play(Act(text=TEXT.text, slow=True))
    step = run(None, timeout=1.0, max_retries=0)
    assert (step.status, step.error_type) == (StepStatus.FAILED, "StepTimeoutError")


# -- planning steps ---------------------------------------------------------------------------


def search(word: str) -> str:
    """Search reviews."""
    return f"I loved the {word}"


PLAN = Act(
    tool="final_result",
    arguments={
        "tasks": [
            {"id": "a", "description": "Find one", "tool": "search", "arguments": {"word": "tea"}},
            {"id": "b", "description": "Judge {{ a }}", "tool": "llm", "arguments": {}},
        ]
    },
)


def planned(play: Play, *acts: Act) -> tuple[PipelineResult, FakeOpenAI]:
    fake = play(*acts)
    return executor(agent="plan", tools=[search]).run(), fake


def test_a_planning_step_pays_for_all_its_calls(play: Play) -> None:
    result, fake = planned(play, PLAN, RIGHT)
    step = result.steps["s"]
    assert step.output.value == Sentiment(label="positive")
    assert "I loved the tea" in fake.texts()[-1]
    assert step.usage == times(2) + TokenUsage(tool_calls=1)
    assert (step.cost, step.attempts) == (cost(2), 1)


def test_a_planning_step_tries_again_where_it_failed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same attempt: its plan and its tools' answers are kept."""
    monkeypatch.setattr("tagent_nb.runners.planner.ask.DELAY", 0.0)
    result, fake = planned(play, error(500, "Oops"), PLAN, Act(drop="before"), error(503, "Oh"), WRONG, RIGHT)
    step = result.steps["s"]
    assert step.output.value == Sentiment(label="positive")
    assert (len(fake.requests), step.attempts) == (6, 1)
    assert step.usage == times(3) + TokenUsage(tool_calls=1)
    assert step.cost == cost(3)
