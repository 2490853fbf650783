"""Servers with OpenAI's protocol as they are: other finish reasons, no streams, errors with HTTP 200.

Each case goes from the pipeline over HTTP to a server on loopback, and ends with the right value, the tokens
of what was answered, and no more requests than it takes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import ModelRetry
from pydantic_ai.exceptions import ModelAPIError, ModelConnectionError, ModelHTTPError
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

from tagent_nb import (
    Edited,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    StepResult,
    StepStatus,
)
from tagent_nb.cache import ResultCache
from tagent_nb.errors import DefinitionError
from tagent_nb.events import Event, StepRetried, StepStreamed, StepWaiting
from tagent_nb.formatting import whole_text
from tagent_nb.runners import RateLimiter
from tagent_nb.runners.models.finish import Ending, ending_of
from tagent_nb.runners.models.openai_protocol import tolerant
from tagent_nb.runners.models.refusals import refusal, refuses_streaming
from tests import wire
from tests.fake_openai import KEY, USAGE, Act, FakeOpenAI, completion, error, piece, pieces
from tests.wire import MODEL, ONE, Play, Sentiment, cost, times, watch

pytestmark = [pytest.mark.models, pytest.mark.timeout(60)]

HELLO = Act(text="hello")
HALF = "\ud83d"
"""The first half of a surrogate pair."""


def executor(schema: Any = Sentiment, observers: Any = (), **options: Any) -> PipelineExecutor:
    return wire.executor(schema, observers, **options)


def run(schema: Any = Sentiment, observers: Any = (), **options: Any) -> StepResult:
    return executor(schema, observers, **options).run().steps["s"]


def watched(schema: Any = None, **options: Any) -> StepResult:
    return run(schema, observers=[watch], **options)


def values(result: PipelineResult) -> dict[str, Any]:
    return {name: result[name] for name in result.steps}


def streamed(fake: FakeOpenAI) -> list[bool]:
    return [bool(request.get("stream")) for request in fake.requests]


# -- why an answer ended ------------------------------------------------------------------------

WHOLE = "stop STOP end_turn END_TURN endTurn eos eos_token stop_sequence tool_calls tool_use completed"
LENGTH = "length LENGTH max_tokens MAX_TOKENS model_length max_output_tokens FINISH_REASON_MAX_TOKENS"
FILTERED = "content_filter SAFETY refusal PROHIBITED_CONTENT guardrail_intervened image_safety"
INTERRUPTED = """error ABORT abort cancelled canceled network_error service_unavailable timeout time_limit
    insufficient_system_resource server_shutdown internal_failure worker_restarted"""


@pytest.mark.parametrize(
    ("words", "ending"),
    [
        (WHOLE, Ending.WHOLE),
        ("function_call complete FinishReason.STOP finish_reason_stop REASON_STOP eosFound", Ending.WHOLE),
        (LENGTH, Ending.LENGTH),
        ("max-length tokenLimit contextLengthReached REASON_MAX_LEN output_truncated", Ending.LENGTH),
        (FILTERED, Ending.FILTERED),
        (INTERRUPTED, Ending.INTERRUPTED),
        ("banana whatever other reason ...", Ending.UNKNOWN),
    ],
)
def test_what_finish_reasons_mean(words: str, ending: Ending) -> None:
    assert {word: ending_of(word) for word in words.split()} == dict.fromkeys(words.split(), ending)
    assert ending_of(ending) is (Ending.UNKNOWN if ending is Ending.UNKNOWN else ending)


@pytest.mark.parametrize(("word", "is_watched"), [("STOP", True), ("eos_token", False), ("end_turn", True)])
def test_an_answer_that_ended_by_itself_is_whole(
    play: Play, word: str, is_watched: bool, tmp_path: Path
) -> None:
    fake = play(Act(text="hello", finish=word))
    for _ in range(2):
        cached = run(None, observers=[watch] if is_watched else (), cache=ResultCache(tmp_path))
    assert (cached.status, cached.output.value) == (StepStatus.CACHED, "hello")
    assert streamed(fake) == [is_watched]


@pytest.mark.parametrize(
    ("word", "is_watched"),
    [("abort", True), ("insufficient_system_resource", False), ("ERROR", True), ("network_error", False)],
)
def test_an_interrupted_answer_is_another_attempt(play: Play, word: str, is_watched: bool) -> None:
    """It is paid, since it may have been, and it is neither a value nor cached."""
    play(Act(text="hel", finish=word), HELLO)
    result = executor(None, observers=[watch] if is_watched else ()).run()
    step = result.steps["s"]
    assert (step.output.value, step.attempts) == ("hello", 2)
    assert (step.usage, step.cost) == (times(2), cost(2))
    (retried,) = [event for event in result.events if isinstance(event, StepRetried)]
    assert retried.message == (
        "Step 's': the answer of 'openai-chat:gpt-4o' was interrupted: its server ended it with the reason "
        f"{word!r}."
    )


@pytest.mark.parametrize(
    ("word", "is_watched"), [("MAX_TOKENS", True), ("model_length", False), ("max_output_tokens", True)]
)
def test_an_answer_cut_at_its_length_is_reported_as_such(play: Play, word: str, is_watched: bool) -> None:
    fake = play(Act(text="hel", finish=word))
    step = run(None, observers=[watch] if is_watched else ())
    assert "cut off at the model's own limit of output tokens" in step.error
    assert len(fake.requests) == 1


@pytest.mark.parametrize("word", ["SAFETY", "refusal", "content_filter"])
def test_a_filtered_answer_is_reported_as_such(play: Play, word: str) -> None:
    fake = play(Act(text="I", finish=word))
    assert "the content filter of 'openai-chat:gpt-4o' stopped the answer" in watched().error
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("word", "schema"), [("banana", None), ("ENDED_BY_MOON", Sentiment), ("reason_7", None)]
)
def test_an_unknown_reason_is_whole_with_a_warning_and_not_cached(
    play: Play, word: str, schema: Any, tmp_path: Path
) -> None:
    act = Act(text="hello", finish=word)
    if schema is not None:
        act = Act(tool="final_result", arguments={"label": "positive"}, finish=word)
    fake = play(act)
    for number in (1, 2):
        result = executor(schema, observers=[watch], cache=ResultCache(tmp_path)).run()
        assert result.steps["s"].status is StepStatus.COMPLETED
        assert result.steps["s"].metadata["unknown_finish_reason"] == word
        assert result.warnings == [
            f"Step 's': 'openai-chat:gpt-4o' ended its answer with the reason {word!r}, whose meaning is not "
            "known. The answer is taken for whole and is not cached."
        ]
        assert len(fake.requests) == number


@pytest.mark.parametrize("word", ["", "null", None])
def test_a_whole_answer_without_a_reason_is_whole(play: Play, word: Any) -> None:
    """It is JSON to its end, and was paid."""
    fake = play(completion(choice_finish_reason=word))
    result = executor(None).run()
    assert (result["s"], len(fake.requests), result.warnings) == ("hello", 1, [])


@pytest.mark.parametrize(
    "act",
    [
        pieces("hel", "lo"),
        pieces("hel", piece("lo", finish="")),
        pieces("hel", "lo", {"choices": [], "usage": USAGE}),
        pieces("hel", piece("lo", finish="null")),
    ],
    ids=["none", "empty", "usage", "null"],
)
def test_a_stream_without_a_reason_is_asked_once_more_and_not_streamed(play: Play, act: Act) -> None:
    """No one can say whether it was whole. What comes at once is; so it is for all later steps of the run."""
    fake = play(act, completion(choice_finish_reason=None))
    pipeline = Pipeline("p", model=MODEL).step("s", "Say hello.").step("t", "Say {{ s }} again.")
    result = PipelineExecutor(pipeline, retry_delay=0.0, observers=[watch]).run()
    assert values(result) == {"s": "hello", "t": "hello"}
    assert streamed(fake) == [True, False, False]


# -- streaming ----------------------------------------------------------------------------------


def two(**options: Any) -> Pipeline:
    return (
        Pipeline("p", model=MODEL)
        .step("s", "Say hello.", **options)
        .step("t", "Say {{ s }} again.", **options)
    )


@pytest.mark.parametrize(
    "refused",
    [
        error(400, "Your organization must be verified to stream this model.", "unsupported_value"),
        error(422, "Streaming is not supported for this model"),
        error(501, "streaming is not implemented"),
        error(400, "This endpoint does not support SSE"),
        error(404, "Server-sent events are not available"),
        error(400, "Unknown parameter: 'stream_options'."),
        Act(body='{"error": {"message": "stream=true is not supported", "code": 400}}'),
        pieces({"error": {"message": "streaming is disabled here"}}),
    ],
    ids=lambda act: f"{act.status} {act.body}"[:50],
)
def test_a_server_that_refuses_to_stream_is_asked_without(play: Play, refused: Act) -> None:
    """In the same attempt, once in a run, and only the answers are paid."""
    fake = play(refused, HELLO)
    shown: list[str] = []
    result = PipelineExecutor(
        two(),
        retry_delay=0.0,
        observers=[lambda event: shown.append(event.text) if isinstance(event, StepStreamed) else None],
    ).run()
    assert values(result) == {"s": "hello", "t": "hello"}
    assert streamed(fake) == [True, False, False]
    assert [step.attempts for step in result.steps.values()] == [1, 1]
    assert [step.usage for step in result.steps.values()] == [ONE, ONE]
    assert shown == ["hello", "hello"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (error(400, "Bad upstream schema"), "rejected the request (HTTP 400: Bad upstream schema)"),
        (error(401, "No key to stream"), "refused the key"),
        (error(400, "max_tokens is too large"), "max_tokens is too large"),
    ],
)
def test_other_refusals_of_a_streamed_request_stay_what_they_are(play: Play, act: Act, message: str) -> None:
    fake = play(act, HELLO)
    assert message in watched().error
    assert streamed(fake) == [True]


@pytest.mark.parametrize(
    ("refused", "is_one"),
    [
        (ModelHTTPError(400, "m", {"message": "cannot stream"}), True),
        (ModelHTTPError(503, "m", {"message": "stream was reset"}), False),
        (ModelHTTPError(429, "m", {"message": "too many streams"}), False),
        (ModelHTTPError(500, "m", {"message": "streaming unsupported"}), True),
        (ModelAPIError("m", "streaming not supported"), True),
        (ModelConnectionError("m", "the stream is not available"), False),
        (ModelHTTPError(502, "m", {"message": "upstream not available"}), False),
    ],
)
def test_which_errors_are_about_streaming(refused: ModelAPIError, is_one: bool) -> None:
    assert refuses_streaming(refused) is is_one


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "text/event-stream"])
def test_a_whole_answer_in_place_of_a_stream_is_taken(play: Play, kind: str) -> None:
    """It is asked for and paid once; later requests of the run are not streamed."""
    whole = completion()
    whole.headers["Content-Type"] = kind
    fake = play(whole)
    shown: list[str] = []
    result = PipelineExecutor(
        two(),
        retry_delay=0.0,
        observers=[lambda event: shown.append(event.text) if isinstance(event, StepStreamed) else None],
    ).run()
    assert values(result) == {"s": "hello", "t": "hello"}
    assert shown == ["hello", "hello"]
    # Nothing of it can be read where it says that it is a stream.
    assert streamed(fake) == ([True, False] if kind != "text/event-stream" else [True, False, False])
    assert [step.usage for step in result.steps.values()] == [ONE, ONE]


def test_a_whole_answer_of_the_responses_api_in_place_of_a_stream_is_taken(play: Play) -> None:
    from tests.fake_openai import _response

    fake = play(Act(body=_response(Act(text="hello"), {"model": "gpt-4o"})))
    pipeline = two()
    pipeline.model = "openai:gpt-4o"
    result = PipelineExecutor(pipeline, retry_delay=0.0, observers=[watch]).run()
    assert values(result) == {"s": "hello", "t": "hello"}
    assert streamed(fake) == [True, False]
    assert result.steps["s"].usage == ONE


def test_a_connection_that_closes_in_a_whole_answer_is_another_attempt(play: Play) -> None:
    fake = play(Act(body=completion().body, drop="midway"), HELLO)
    step = watched()
    assert (step.output.value, step.attempts) == ("hello", 2)
    assert streamed(fake) == [True, True]


@pytest.mark.parametrize("kind", ["fallback", "wrapper"])
def test_models_behind_others_are_asked_without_streaming_too(play: Play, kind: str) -> None:
    fake = play(error(400, "This model cannot stream."), HELLO)
    inner = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(base_url=fake.url, api_key=KEY))
    pipeline = two()
    pipeline.model = FallbackModel(inner, inner) if kind == "fallback" else InstrumentedModel(inner)
    result = PipelineExecutor(pipeline, retry_delay=0.0, observers=[watch]).run()
    assert values(result) == {"s": "hello", "t": "hello"}
    assert streamed(fake) == [True, False, False]


def test_the_setting_stream_turns_it_off_and_changes_no_key(play: Play, tmp_path: Path) -> None:
    fake = play(HELLO)
    step = run(None, observers=[watch], settings={"stream": False}, cache=ResultCache(tmp_path))
    assert step.output.value == "hello"
    assert streamed(fake) == [False]
    for settings in ({}, {"stream": True}, {"stream": False}):
        again = run(None, observers=[watch], settings=settings, cache=ResultCache(tmp_path))
        assert again.status is StepStatus.CACHED, settings
    run(None, observers=[watch], settings={"stream": True, "temperature": 0.5}, cache=ResultCache(tmp_path))
    assert streamed(fake) == [False, True]
    assert fake.requests[1]["temperature"] == 0.5


def test_a_model_may_say_that_it_is_not_streamed(play: Play) -> None:
    fake = play(HELLO)
    settings: Any = {"stream": False}
    inner = OpenAIChatModel(
        "gpt-4o", provider=OpenAIProvider(base_url=fake.url, api_key=KEY), settings=settings
    )
    pipeline = two()
    pipeline.model = inner
    PipelineExecutor(pipeline, observers=[watch]).run()
    assert streamed(fake) == [False, False]


@pytest.mark.parametrize("wrong", ["no", 0, None])
def test_the_setting_stream_is_true_or_false(play: Play, wrong: Any) -> None:
    play(HELLO)
    with pytest.raises(DefinitionError, match=r"setting stream=.* will not do: it must be true or false"):
        executor(None, settings={"stream": wrong}).run()
    with pytest.raises(DefinitionError, match=r"no model setting 'streem'. Did you mean 'stream'"):
        executor(None, settings={"streem": True}).run()


def test_nothing_is_streamed_where_no_one_reads_it(play: Play) -> None:
    class Counting:
        reads_text = False
        events = 0

        def __call__(self, event: Event) -> None:
            self.events += 1

    fake = play(HELLO)
    counting = Counting()
    assert run(None).output.value == "hello"
    assert run(None, observers=[counting]).output.value == "hello"
    assert counting.events > 0
    assert streamed(fake) == [False, False]


# -- what an answer took ------------------------------------------------------------------------


def took(prompt: Any, answer: Any, **more: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": 0, **more}}


LAST = {"usage": USAGE}
OTHER = {"output_tokens": 10} | {name: USAGE[name] for name in USAGE if name.endswith("details")}
ODD_COUNTS: list[tuple[Any, Any]] = [(None, None), (-1, 10), ("x", []), (0, 0)]


@pytest.mark.parametrize(
    "chunks",
    [
        ["a", "b", piece("c", **LAST), piece(finish="stop")],
        [piece("a", **LAST), piece("b", **LAST), piece("c", **LAST), piece(finish="stop", **LAST)],
        [*[piece(letter, **took(100, n)) for n, letter in enumerate("abc", 1)], piece(finish="stop", **LAST)],
        [piece("a", **took(100, 1)), "bc", piece(finish="stop"), {"choices": [], **LAST}],
        [piece("a", usage=None), piece("bc", **LAST), piece(finish="stop", usage=None)],
        [piece("abc", **LAST), piece(finish="stop", usage={})],
        [piece("abc", **LAST), piece(finish="stop", **took(0, 0)), {"choices": [], "usage": None}],
        [piece("abc", **LAST), piece(finish="stop", **took(None, -3))],
        ["abc", piece(finish="stop"), {"choices": [], "usage": {**USAGE, "prompt_tokens": "100"}}],
        [piece("abc", **LAST), piece(finish="stop"), {"choices": [], "usage": [100, 10]}],
        ["abc", piece(finish="stop"), {"choices": [], "usage": {**OTHER, "input_tokens": 100}}],
        [piece("abc", **LAST), piece(finish="stop", **took(10**30, 10**30))],
    ],
    ids=[
        *("in one", "same in each", "growing", "two", "null", "empty last", "zero last", "odd last", "text"),
        *("list last", "names of others", "too many last"),
    ],
)
def test_the_last_count_of_a_streamed_answer_counts(play: Play, chunks: list[Any]) -> None:
    play(pieces(*chunks))
    step = watched()
    assert step.output.value == "abc"
    assert (step.usage, step.cost) == (ONE, cost(1))


def test_a_budget_is_not_used_up_by_counts_that_come_again_and_again(play: Play) -> None:
    many = [piece("x", **LAST) for _ in range(33)]
    play(pieces(*many, piece(finish="stop", **LAST)))
    result = PipelineExecutor(two(), observers=[watch], budget="5000 tokens").run()
    assert result.success, result.error_details
    assert result.total_cost == cost(2)


@pytest.mark.parametrize(
    "usage",
    [
        {},
        None,
        ...,
        "lots",
        took(None, None)["usage"],
        took(-1, 10)["usage"],
        took("x", [])["usage"],
        took(0, 0)["usage"],
        took(10**30, 10**13)["usage"],
    ],
    ids=str,
)
def test_an_answer_without_a_count_that_could_be_read_is_taken(play: Play, usage: Any) -> None:
    """Its tokens are assumed; it is asked for once."""
    fake = play(completion(usage=usage))
    step = run(None)
    assert (step.output.value, step.usage.unmeasured, step.cost) == ("hello", True, None)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (took("100", "10")["usage"], (100, 10)),
        (took(100.0, 10)["usage"], (100, 10)),
        (took(100, None)["usage"], (100, 0)),
        ({"input_tokens": 100, "output_tokens": 10}, (100, 10)),
        ({"promptTokens": "100", "completionTokens": 10}, (100, 10)),
        ({"promptTokenCount": 100, "candidatesTokenCount": 10, "prompt_tokens": 0}, (100, 10)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": None}, "total_tokens": None}, (100, 10)),
        ({**USAGE, "completion_tokens_details": "none"}, (100, 10)),
    ],
    ids=str,
)
def test_counts_that_can_be_read_count(play: Play, usage: Any, tokens: tuple[int, int]) -> None:
    play(completion(usage=usage))
    step = run(None)
    assert (step.usage.input_tokens, step.usage.output_tokens) == tokens


# -- odd answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        completion(id=None),
        completion(id=...),
        completion(model=None),
        completion(created="now", id=None),
        completion(object=..., id=""),
        completion(choice_index=..., choice_logprobs=None),
        completion(message_role=None),
        completion(message_content=[{"type": "text", "text": "hello"}]),
        completion(service_tier=5, id=None),
        Act(body=completion().body, headers={"Content-Type": "text/plain"}),
    ],
    ids=range(10),
)
def test_a_whole_answer_of_another_form_is_taken(play: Play, act: Act) -> None:
    fake = play(act)
    step = run(None)
    assert (step.error, step.output and step.output.value) == ("", "hello")
    assert (step.usage, len(fake.requests)) == (ONE, 1)


@pytest.mark.parametrize(("content", "text"), [(5, "5"), ({"a": 1}, '{"a": 1}'), (True, "true")])
def test_a_content_that_is_no_text_is_taken_as_json(play: Play, content: Any, text: str) -> None:
    play(completion(message_content=content))
    assert run(None).output.value == text


@pytest.mark.parametrize(
    "act",
    [
        completion(choices=[]),
        completion(choices=None),
        completion(message_content=None),
        completion(message_content=""),
        completion(choice_message=None),
        completion(choices=[None]),
        pieces(piece(finish="stop"), {"choices": [], **LAST}),
    ],
    ids=["no choices", "null choices", "null", "empty", "no message", "null choice", "stream"],
)
def test_an_answer_with_nothing_in_it_is_paid_at_most_twice(play: Play, act: Act) -> None:
    fake = play(act)
    step = run(None, observers=[watch] if act.headers else ())
    assert (step.status, step.error_type) == (StepStatus.FAILED, "OutputValidationError")
    assert step.error == (
        "Step 's': 'openai-chat:gpt-4o' answered twice in a row with nothing: no text and no call of a tool. "
        "Try another model, or look at what its server does."
    )
    assert len(fake.requests) == 2
    assert (step.usage, step.cost) == (times(2), cost(2))


def test_an_answer_after_one_with_nothing_in_it_is_the_value(play: Play) -> None:
    """The feedback is a message of the user: templates of many models refuse a later one of the system."""
    fake = play(completion(message_content=None), HELLO, completion(message_content=None), HELLO)
    result = PipelineExecutor(two(), retry_delay=0.0).run()
    assert values(result) == {"s": "hello", "t": "hello"}
    assert len(fake.requests) == 4


TWICE: list[str] = []


def note(word: str) -> str:
    """Note a word."""
    TWICE.append(word)
    return f"noted {word}"


FUNCTION = {"name": "note", "arguments": '{ "word":"x" }'}


def call(id: Any, word: Any, **more: Any) -> dict[str, Any]:
    arguments = word if not isinstance(word, str) else json.dumps({"word": word})
    return {"id": id, "type": "function", "function": {"name": "note", "arguments": arguments}, **more}


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([call("a", "x"), call("a", "y")], ["x", "y"]),
        ([call("a", "x"), call("a", "x")], ["x"]),
        ([call("a", "x"), call("a", "y"), call("a", "z")], ["x", "y", "z"]),
        ([call("", "x"), call("", "y")], ["x", "y"]),
        ([call(None, "x"), call(None, "y")], ["x", "y"]),
        ([call("a", {"word": "x"}, type=None)], ["x"]),
        ([call("a", "x"), {**call("a", ""), "function": FUNCTION}], ["x"]),
        ([call(1, "x"), call(2, "y")], ["x", "y"]),
    ],
    ids=[
        *("two", "the same twice", "three", "empty", "null", "arguments no text"),
        *("written otherwise", "numbers"),
    ],
)
def test_calls_with_one_id_are_distinguished(play: Play, calls: list[Any], words: list[str]) -> None:
    """Each is made once, each gets its own answer, and nothing is asked again."""
    TWICE.clear()
    fake = play(completion(message_content=None, message_tool_calls=calls), HELLO)
    step = run(None, tools=[note])
    assert (step.error, step.output and step.output.value) == ("", "hello")
    assert sorted(TWICE) == words
    assert (len(fake.requests), step.attempts) == (2, 1)
    sent = [message for message in fake.requests[1]["messages"] if message["role"] == "tool"]
    assert len({message["tool_call_id"] for message in sent}) == len(words)
    assert {message["content"] for message in sent} == {f"noted {word}" for word in words}


def test_calls_with_one_id_whose_arguments_are_no_json_are_distinguished(play: Play) -> None:
    TWICE.clear()
    broken = {**call("a", ""), "function": {"name": "note", "arguments": '{"word": '}}
    fake = play(completion(message_content=None, message_tool_calls=[call("a", "x"), broken, broken]), HELLO)
    assert (run(None, tools=[note]).output.value, TWICE, len(fake.requests)) == ("hello", ["x"], 2)
    sent = [message["content"] for message in fake.requests[1]["messages"] if message["role"] == "tool"]
    assert ("noted x" in sent, len(sent), "Invalid JSON" in str(sent)) == (True, 2, True)


@pytest.mark.parametrize("function", [{"name": None, "arguments": "{}"}, {"name": ""}, None, "note"])
def test_a_call_without_a_name_is_paid_once_and_answered(play: Play, function: Any) -> None:
    TWICE.clear()
    nameless = {"id": "a", "type": "function", "function": function}
    fake = play(completion(message_content=None, message_tool_calls=[nameless]), HELLO)
    step = run(None, tools=[note])
    assert (step.output and step.output.value, step.attempts, TWICE) == ("hello", 1, [])
    assert "Unknown tool name" in str(fake.requests[1]["messages"][-1]["content"])
    assert step.usage == times(2)


@pytest.mark.parametrize("arguments", ["null", " null ", "", "{}", None])
def test_a_call_of_a_tool_without_parameters(play: Play, arguments: Any) -> None:
    def now() -> str:
        """Say the time."""
        return "noon"

    named = {"id": "a", "type": "function", "function": {"name": "now", "arguments": arguments}}
    fake = play(completion(message_content=None, message_tool_calls=[named]), HELLO)
    assert run(None, tools=[now]).output.value == "hello"
    assert fake.requests[1]["messages"][-1]["content"] == "noon"


@pytest.mark.parametrize(
    ("word", "stops"),
    [(["stop"], True), ({"type": "stop"}, True), (7, False), ([], True), ({"a": ["eos"]}, True)],
)
@pytest.mark.parametrize("is_watched", [True, False])
def test_a_finish_reason_that_is_no_text(play: Play, word: Any, stops: bool, is_watched: bool) -> None:
    act = completion(choice_finish_reason=word)
    if is_watched:
        act = pieces("hello", piece(finish=word), {"choices": [], **LAST})
    fake = play(act, completion())
    result = executor(None, observers=[watch] if is_watched else ()).run()
    assert (result["s"], bool(result.warnings)) == ("hello", not stops)
    assert len(fake.requests) == (2 if is_watched and word == [] else 1)


@pytest.mark.parametrize(
    "last",
    [
        {"index": 0, "delta": None, "finish_reason": "stop"},
        {"index": 0, "finish_reason": "stop"},
        {"index": 0, "message": None, "finish_reason": "stop"},
    ],
)
def test_a_last_piece_without_a_delta_is_no_reason_to_pay_twice(play: Play, last: Any) -> None:
    fake = play(pieces("hello", {"choices": [last]}, {"choices": [], **LAST}))
    assert watched().output.value == "hello"
    assert len(fake.requests) == 1


def test_a_message_in_place_of_a_delta_is_taken(play: Play) -> None:
    message = {"role": "assistant", "content": "hello"}
    fake = play(pieces({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **LAST}))
    assert watched().output.value == "hello"
    assert len(fake.requests) == 1


def test_streamed_calls_with_one_id_are_distinguished(play: Play) -> None:
    TWICE.clear()
    calls = [call("a", "x", index=0), call("a", "y", index=1)]
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]}
    fake = play(pieces(chunk, piece(finish="tool_calls"), {"choices": [], **LAST}), HELLO)
    step = watched(tools=[note])
    assert (step.error, sorted(TWICE), len(fake.requests)) == ("", ["x", "y"], 2)


@pytest.mark.parametrize("is_watched", [True, False])
def test_what_is_no_answer_at_all_is_reported_in_one_sentence(play: Play, is_watched: bool) -> None:
    play(Act(body='{"hello": "world"}'))
    step = run(None, observers=[watch] if is_watched else (), max_retries=0)
    assert step.error_type == "RetryableError"
    assert "'openai-chat:gpt-4o' sent an answer that cannot be read" in step.error


# -- feedback -----------------------------------------------------------------------------------


def roles(fake: FakeOpenAI) -> list[list[str]]:
    return [[message["role"] for message in request["messages"]] for request in fake.requests]


PLAIN = ModelProfile(supports_tools=False, supports_json_schema_output=False)
NATIVE = ModelProfile(supports_tools=False, supports_json_schema_output=True)


@pytest.mark.parametrize(
    ("profile", "wrong"),
    [
        (PLAIN, completion(message_content="")),
        (PLAIN, Act(text='{"label": "meh"}')),
        (NATIVE, completion(message_content="")),
        (NATIVE, Act(text="no JSON")),
        (None, completion(message_content="")),
        (None, Act(text="no JSON")),
    ],
    ids=["prompted, empty", "prompted", "native, empty", "native", "tool, empty", "tool"],
)
def test_feedback_is_no_later_system_message(play: Play, profile: Any, wrong: Act) -> None:
    right = Act(text='{"label": "positive"}')
    if profile is None:
        right = Act(tool="final_result", arguments={"label": "positive"})
    fake = play(wrong, right)
    model = OpenAIChatModel(
        "gpt-4o", provider=OpenAIProvider(base_url=fake.url, api_key=KEY), profile=profile
    )
    pipeline = Pipeline("p", model=model).put(PipelineStep(name="s", goal="Say.", output_schema=Sentiment))
    result = PipelineExecutor(pipeline, retry_delay=0.0, observers=[watch]).run()
    assert result["s"] == Sentiment(label="positive")
    assert [names.count("system") for names in roles(fake)] == [1, 1]
    assert all(names[0] == "system" for names in roles(fake))
    assert roles(fake)[1][-1] == "user"


@pytest.mark.parametrize("wrong", [HELLO, completion(message_content="")], ids=["refused", "empty"])
@pytest.mark.parametrize("kind", ["one", "fallback"])
def test_feedback_on_a_text_is_no_later_system_message(play: Play, wrong: Act, kind: str) -> None:
    fake = play(wrong, Act(text="hello world"))
    model: Any = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(base_url=fake.url, api_key=KEY))
    pipeline = Pipeline("p", model=model if kind == "one" else FallbackModel(model, model))
    pipeline.step("s", "Say.", checks=[lambda text: "world" in text])
    result = PipelineExecutor(pipeline, retry_delay=0.0).run()
    assert result["s"] == "hello world"
    assert roles(fake)[1][:2] == ["system", "user"]
    assert roles(fake)[1][-1] == "user"
    assert roles(fake)[1].count("system") == 1


async def test_what_a_system_would_say_later_comes_behind_the_answers_of_tools(play: Play) -> None:
    """These stand right behind their calls, and what the user says besides is in the same message."""
    fake = play(HELLO)
    provider = OpenAIProvider(base_url=fake.url, api_key=KEY)
    history: list[Any] = [
        ModelRequest([SystemPromptPart("Be brief."), UserPromptPart("Look.")]),
        ModelResponse([ToolCallPart("look", {}, tool_call_id="c1")]),
        ModelRequest(
            [SystemPromptPart("Go on."), ToolReturnPart("look", "seen", "c1"), UserPromptPart("Now.")]
        ),
    ]
    model = tolerant(OpenAIChatModel("gpt-4o", provider=provider), set())
    await model.request(history, None, ModelRequestParameters())
    assert roles(fake) == [["system", "user", "assistant", "tool", "user"]]
    assert fake.requests[0]["messages"][-1]["content"] == "Go on.\n\nNow."


def test_feedback_on_a_plan_is_no_later_system_message(play: Play) -> None:
    task = {"id": "a", "description": "Say hello", "tool": "llm", "arguments": {}}
    plan = Act(tool="final_result", arguments={"tasks": [task]})
    fake = play(completion(message_content=""), plan, completion(message_content=""), HELLO, *[HELLO] * 3)
    result = PipelineExecutor(
        Pipeline("p", model=MODEL).step("s", "Say.", agent="plan", max_replans=0), retry_delay=0.0
    ).run()
    assert result["s"] == "hello"
    assert {names.count("system") for names in roles(fake)} == {1}


# -- errors with HTTP 200 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "Pay up", "code": 402}}, "has no quota left (HTTP 402: Pay up)"),
        ({"error": {"message": "Pay up", "code": "402"}}, "has no quota left (HTTP 402: Pay up)"),
        (
            {"error": {"message": "Pay up", "type": "insufficient_quota"}},
            "has no quota left (HTTP 402: Pay up)",
        ),
        ({"error": {"message": "Who?", "code": "invalid_api_key"}}, "refused the key (HTTP 401: Who?)"),
        ({"error": "Gone", "code": 404}, "the provider has no model 'openai-chat:gpt-4o' (HTTP 404: Gone)"),
        ({"error": {"message": "Bad", "status": 400}, "choices": []}, "rejected the request (HTTP 400: Bad)"),
        (
            {"error": {"error": {"message": "Pay up", "code": 402}}},
            "has no quota left (HTTP 402: Pay up)",
        ),
        ({"detail": {"error": {"message": "Pay up", "code": 402}}}, "has no quota left (HTTP 402: Pay up)"),
        ({"error": '{"message": "Pay up", "code": 402}'}, "has no quota left (HTTP 402: Pay up)"),
        ({"error": {"message": "Pay up", "code": 402.0}}, "has no quota left (HTTP 402: Pay up)"),
        ({"error": {"message": "Pay {up", "status": "402 No money"}}, "quota left (HTTP 402: Pay {up)"),
        ({"error": "[sic", "code": 404}, "(HTTP 404: [sic)"),
        ({"error": {"message": {"en": "Gone"}, "code": 404}}, '(HTTP 404: {"en": "Gone"})'),
        (
            {
                "error": {"message": "Pay up", "code": 402},
                "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}}],
            },
            "has no quota left (HTTP 402: Pay up)",
        ),
        (
            {"choices": [{"index": 0, "finish_reason": "error", "error": {"message": "Pay", "code": 402}}]},
            "has no quota left (HTTP 402: Pay)",
        ),
        ({"error": True, "message": "Who?", "code": 401}, "refused the key (HTTP 401: Who?)"),
        ({"code": "InvalidApiKey", "message": "Who?", "error": None}, "refused the key (HTTP 401: Who?)"),
        (
            {"object": "error", "message": "Too long", "code": 400},
            "rejected the request (HTTP 400: Too long)",
        ),
        ({"detail": "No such model", "status_code": 404}, "(HTTP 404: No such model)"),
        ({"detail": [{"msg": "bad field"}], "status": 422}, "rejected the request (HTTP 422: bad field)"),
    ],
    ids=str,
)
def test_an_error_with_http_200_is_the_error_that_it_says(play: Play, body: Any, message: str) -> None:
    fake = play(Act(body=json.dumps(body)))
    step = watched(Sentiment if "error" in body else None)  # without and with a stream
    assert message in step.error
    assert (step.attempts, len(fake.requests)) == (1, 1)
    assert step.usage.requests == 0


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "It broke"}}, "json"),
        ({"error": {"message": "It broke"}}, "first piece"),
        ({"error": "It broke"}, "json"),
        ({"error": "It broke"}, "piece"),
        ({"error": {"message": "It broke", "status": 500}}, "piece"),
        ({"error": {"message": "It broke", "code": "server_error"}}, "json"),
        ({"errors": [{"message": "It broke"}]}, "json"),
        ({"detail": "It broke"}, "json"),
        ({"detail": "It broke"}, "piece"),
        ({"success": False, "msg": "It broke"}, "first piece"),
        ({"error_code": 17, "error_msg": "It broke"}, "json"),
        ({"base_resp": {"status_code": 1008, "status_msg": "It broke"}}, "json"),
        ({"fault": {"faultstring": "It broke"}}, "first piece"),
        ({"error": [{"message": "It broke"}], "choices": [{"index": 0, "delta": {}}]}, "piece"),
    ],
    ids=str,
)
def test_an_error_that_may_pass_is_another_attempt_and_shows_the_sentence(
    play: Play, body: Any, kind: str
) -> None:
    act = Act(body=json.dumps(body))
    if kind != "json":
        act = pieces(*(["hel"] if kind == "piece" else []), body)
    fake = play(act, HELLO)
    result = executor(None, observers=[watch]).run()
    assert (result["s"], len(fake.requests)) == ("hello", 2)
    (retried,) = [event for event in result.events if isinstance(event, StepRetried)]
    assert "It broke" in retried.message
    assert result.steps["s"].usage == ONE


@pytest.mark.parametrize("is_watched", [True, False])
def test_an_array_with_an_error(play: Play, is_watched: bool) -> None:
    fake = play(Act(body=json.dumps([{"error": {"message": "Pay up", "code": 402}}])))
    step = run(None, observers=[watch] if is_watched else ())
    assert "has no quota left (HTTP 402: Pay up)" in step.error
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("code", "kind"), [(429, "json"), ("429", "piece"), ("rate_limit_exceeded", "whole"), (429, "piece")]
)
def test_a_rate_limit_with_http_200_waits(play: Play, code: Any, kind: str) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    moments = iter(range(1000))
    gate = RateLimiter(sleep=sleep, clock=lambda: next(moments) / 10, jitter=lambda ceiling: ceiling)
    body = {"error": {"message": "Slow down", "code": code}}
    fake = play(pieces("hel", body) if kind == "piece" else Act(body=json.dumps(body)), HELLO)
    pipeline = Pipeline("p", model=MODEL).step("s", "Say hello.")
    result = PipelineExecutor(pipeline, limits=gate, observers=[] if kind == "whole" else [watch]).run()
    assert (result["s"], len(fake.requests), result.steps["s"].attempts) == ("hello", 2, 1)
    assert [event.reason for event in result.events if isinstance(event, StepWaiting)] == [
        "openai, which asks for fewer requests"
    ]
    assert slept


def test_a_wait_in_the_headers_of_a_rate_limit_with_http_200_counts(play: Play) -> None:
    body = json.dumps({"error": {"message": "Slow down", "code": 429}})
    play(Act(body=body, headers={"retry-after-ms": "150"}), HELLO)
    result = executor(None, observers=[watch]).run()
    assert [event.seconds for event in result.events if isinstance(event, StepWaiting)] == [
        pytest.approx(0.15, abs=0.05)
    ]


@pytest.mark.parametrize(
    "body", [{"error": {"message": "Pay up", "code": 402}}, {"detail": "x", "code": 402}]
)
def test_an_error_of_the_responses_api_with_http_200(play: Play, body: Any) -> None:
    for observers in ([], [watch]):
        play(Act(body=json.dumps(body)))
        pipeline = Pipeline("p", model="openai:gpt-4o").step("s", "Say hello.")
        result = PipelineExecutor(pipeline, observers=observers).run()
        assert "has no quota left (HTTP 402:" in result.error_details["s"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"error": None},
        {"message": "hello"},
        {"choices": [{"message": {"content": "x"}}], "error": {"message": "no"}},
        {"output": [1], "error": "no"},
        {"message": "hello", "code": 200},
        {"message": "hello", "code": "Success"},
        {"base_resp": {"status_code": 0, "status_msg": "hello"}},
        {"choices": [{"text": "x"}], "error": {"message": "no"}},
        {"choices": [{"delta": {"content": "x"}, "error": {"message": "no"}}]},
        {"error": [[]]},
        {"error": False, "object": "chat.completion"},
    ],
    ids=str,
)
def test_what_is_no_refusal(body: Any) -> None:
    assert refusal("m", body) is None


def test_a_refusal_without_a_sentence_shows_what_there_is() -> None:
    error = refusal("m", {"error": {"code": 418, "metadata": {"raw": "teapot"}}})
    assert isinstance(error, ModelHTTPError)
    assert (error.status_code, "teapot" in str(error.body)) == (418, True)


# -- halves of surrogate pairs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a" + HALF, "a\ufffd"),
        (HALF + "a", "\ufffda"),
        ("\ude00" + HALF, "\ufffd\ufffd"),
        (HALF + "\ude00", "\U0001f600"),
        ([{"k" + HALF: (HALF,)}], [{"k\ufffd": ("\ufffd",)}]),
        (5, 5),
    ],
)
def test_halves_become_letters_or_the_sign_for_what_is_unknown(text: Any, whole: Any) -> None:
    assert whole_text(text) == whole


def test_a_goal_a_constraint_and_shared_context_with_half_a_pair(play: Play, tmp_path: Path) -> None:
    fake = play(HELLO)
    pipeline = Pipeline("p", model=MODEL).step(
        "s", f"Say {HALF} {{{{ shared.t }}}}", constraints=[f"be {HALF}"]
    )
    pipeline.shared_context["t"] = f"t{HALF}"
    pipeline.global_constraints.append(f"do {HALF}")
    result = PipelineExecutor(pipeline, storage=f"sqlite:///{tmp_path}/runs.db").run()
    assert (result["s"], result.steps["s"].attempts, result.warnings) == ("hello", 1, [])
    system, user = fake.texts()
    assert "- do \ufffd\n- be \ufffd" in system
    assert '{"t": "t\ufffd"}' in user
    assert user.endswith("Say \ufffd t\ufffd")


SHAPES: dict[str, Any] = {
    "text": completion(message_content=f"a{HALF}"),
    "streamed": pieces(f"a{HALF}", piece(finish="stop", **LAST)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_paid_text_with_half_a_pair_is_kept(play: Play, shape: str, tmp_path: Path) -> None:
    fake = play(SHAPES[shape])
    result = PipelineExecutor(
        two(), storage=f"sqlite:///{tmp_path}/runs.db", observers=[watch] if shape == "streamed" else ()
    ).run()
    assert values(result) == {"s": "a\ufffd", "t": "a\ufffd"}
    assert (len(fake.requests), result.warnings) == (2, [])
    assert result.steps["s"].usage == ONE


def test_a_pair_in_two_pieces_of_a_stream_is_a_letter(play: Play) -> None:
    play(pieces(f"a{HALF}", "\ude00b", piece(finish="stop", **LAST)))
    assert watched().output.value == "a\U0001f600b"


class Word(BaseModel):
    word: str


ESCAPED, RAW = (json.dumps({"word": f"a{HALF}"}, ensure_ascii=ascii) for ascii in (True, False))


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        ("tool", ESCAPED),
        ("tool", RAW),
        ("native", ESCAPED),
        ("native", '{"word": "a\\uD83D"}'),
        ("prompted", f"Here: {ESCAPED}"),
        ("prompted", RAW),
    ],
    ids=range(6),
)
def test_a_paid_value_with_half_a_pair_is_kept(play: Play, arguments: str, form: str) -> None:
    act = Act(tool="final_result", arguments=arguments) if form == "tool" else Act(text=arguments)
    fake = play(act)
    profile: Any = {"tool": None, "native": NATIVE, "prompted": PLAIN}[form]
    model = OpenAIChatModel(
        "gpt-4o", provider=OpenAIProvider(base_url=fake.url, api_key=KEY), profile=profile
    )
    pipeline = Pipeline("p", model=model).put(PipelineStep(name="s", goal="Say.", output_schema=Word))
    result = PipelineExecutor(pipeline, retry_delay=0.0).run()
    assert (result["s"], len(fake.requests)) == (Word(word="a\ufffd"), 1)


def test_a_whole_pair_and_a_backslash_in_json_stay(play: Play) -> None:
    arguments = '{"word": "\\ud83d\\ude00 \\\\ud83d \\u00e9"}'
    play(Act(tool="final_result", arguments=arguments))
    assert run(Word).output.value == Word(word="\U0001f600 \\ud83d é")


def _raise(error: Exception) -> Any:
    raise error


class Own:
    def __repr__(self) -> str:
        return f"own {HALF}"


GIVEN: dict[str, tuple[Any, str]] = {
    "text": (lambda: f"x{HALF}", "x\ufffd"),
    "dict": (lambda: {f"k{HALF}": [HALF]}, '{"k\ufffd":["\ufffd"]}'),
    "model": (lambda: Word.model_construct(word=HALF), "\ufffd"),
    "object": (lambda: Own(), "own \ufffd"),
    "tool return": (lambda: ToolReturn(f"v{HALF}", content=f"c{HALF}"), "v\ufffd"),
    "error": (lambda: _raise(ValueError(f"bad {HALF}")), "bad \ufffd"),
    "retry": (lambda: _raise(ModelRetry(f"again {HALF}")), "again \ufffd"),
}


@pytest.mark.parametrize("first", GIVEN)
def test_a_tool_with_half_a_pair_runs_once(play: Play, first: str, tmp_path: Path) -> None:
    """Its arguments have half a pair too."""
    give, shown = GIVEN[first]
    words: list[str] = []

    def look(word: str) -> Any:
        """Look a word up."""
        words.append(word)
        return give()

    fake = play(Act(tool="look", arguments='{"word": "w\\ud83d"}'), HELLO)
    pipeline = Pipeline("p", model=MODEL).step("s", "Look.", tools=[look])
    result = PipelineExecutor(pipeline, retry_delay=0.0, storage=f"sqlite:///{tmp_path}/runs.db").run()
    assert (result["s"], result.steps["s"].attempts, len(fake.requests)) == ("hello", 1, 2)
    assert words == ["w\ufffd"]
    returns = [
        str(message["content"]) for message in fake.requests[1]["messages"] if message["role"] == "tool"
    ]
    assert shown in returns[0]


@pytest.mark.parametrize("word", [f"e{HALF}", HALF, f"{HALF}\ude00"])
def test_an_edit_of_a_call_with_half_a_pair(play: Play, word: str, tmp_path: Path) -> None:
    TWICE.clear()
    play(Act(tool="note", arguments={"word": "w"}), HELLO)
    pipeline = Pipeline("p", model=MODEL).step("s", "Note.", tools=[note], approve_tools=["note"])
    result = PipelineExecutor(
        pipeline, approver=lambda request: Edited({"word": word}), storage=f"sqlite:///{tmp_path}/runs.db"
    ).run()
    assert (result["s"], result.steps["s"].attempts) == ("hello", 1)
    assert [whole_text(word)] == TWICE


def test_a_tolerant_model_may_be_asked_in_another_session() -> None:
    """Which has its own notes of what its servers do."""
    provider = OpenAIProvider(base_url="http://127.0.0.1:1", api_key="none")
    model = tolerant(OpenAIChatModel("gpt-4o", provider=provider), {"first"})
    assert tolerant(model, model.unstreamed) is model  # type: ignore[attr-defined]
    again: Any = tolerant(model, {"second"})
    assert (type(again), again.unstreamed) == (type(model), {"second"})
    assert model.unstreamed == {"first"}  # type: ignore[attr-defined]
