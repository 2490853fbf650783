"""Answers from the record: after a crash, offline, and from a recording."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import ModelRetry
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    CallRecorded,
    CorruptRecordError,
    DefinitionError,
    FormatVersionError,
    Limit,
    NotStoredError,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    Price,
    RetryableError,
    StorageError,
    StorageUnavailableError,
    open_storage,
)
from tagent_nb.cache import ResultCache
from tagent_nb.engine import recordings
from tagent_nb.engine import recordings as replaying
from tagent_nb.runners import StepContext, ToolCall, step_context
from tagent_nb.runners.base import ModelCall
from tagent_nb.runners.middleware.canonical_request import model_request, tool_request
from tagent_nb.testing import replay

__all__ = ["replay"]

NAME = "function:function:answer:"


class Lab:
    """A model that looks up two numbers and adds them, and notes whom it asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.looked_up: list[str] = []
        self.stop_at: int | None = None
        self.reached = asyncio.Event()

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked += 1
        if self.asked == self.stop_at:
            self.reached.set()
            await asyncio.Event().wait()
        returns = [part for message in messages for part in message.parts if part.part_kind == "tool-return"]
        if len(returns) < 2:
            return ModelResponse(parts=[ToolCallPart("look_up", {"name": "ab"[len(returns)]})])
        return ModelResponse(parts=[TextPart(" and ".join(str(part.content) for part in returns))])

    def look_up(self, name: str) -> dict[str, Any]:
        """Look a number up."""
        self.looked_up.append(name)
        if name == "b" and len(self.looked_up) == 2:
            raise ValueError("b is away")
        return {"name": name, "number": len(self.looked_up)}

    def pipeline(self, goal: str = "Add a and b.", **options: Any) -> Pipeline:
        pipeline = Pipeline("sums", model=FunctionModel(self.answer))
        return pipeline.step("sum", goal, **{"tools": [self.look_up], "max_retries": 0, **options})


@pytest.fixture
def lab() -> Lab:
    return Lab()


def error_of(result: PipelineResult) -> str:
    return result.error_details.get("sum", "")


def calls(result: PipelineResult) -> list[CallRecorded]:
    return [event for event in result.events if isinstance(event, CallRecorded)]


# -- after an interruption ----------------------------------------------------------------------


async def test_each_call_is_recorded_before_anybody_acts_on_its_answer(lab: Lab, tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "runs")
    pipeline = lab.pipeline()
    executor = PipelineExecutor(pipeline, storage=storage)
    lab.stop_at = 3
    handle = asyncio.ensure_future(executor.execute())
    await lab.reached.wait()
    (run,) = await storage.runs(pipeline.id)
    events = await storage.read_run(pipeline.id, run.run_id)
    stored = [(event.kind, event.attempt) for event in events if isinstance(event, CallRecorded)]
    assert stored == 2 * [("model", 1), ("tool", 1)]
    executor.cancel()
    await handle


async def test_a_stopped_conversation_goes_on_after_its_last_recorded_call(lab: Lab) -> None:
    """No recorded call is made again, a failed tool neither; tokens and calls count once."""
    executor = PipelineExecutor(lab.pipeline())
    lab.stop_at = 3
    handle = asyncio.ensure_future(executor.execute())
    await lab.reached.wait()
    executor.cancel()
    stopped = await handle
    assert stopped.cancelled
    lab.stop_at = None
    result = await executor.execute(resume=True)
    assert lab.looked_up == ["a", "b"]
    assert lab.asked == 4  # two, the one that was stopped, and that again
    assert "The tool failed: ValueError: b is away" in result["sum"]
    usage = result.steps["sum"].usage
    assert (usage.requests, usage.tool_calls) == (3, 2)


async def test_a_changed_question_is_asked_anew(lab: Lab) -> None:
    executor = PipelineExecutor(lab.pipeline())
    lab.stop_at = 2
    handle = asyncio.ensure_future(executor.execute())
    await lab.reached.wait()
    executor.cancel()
    await handle
    lab.stop_at = None
    executor.pipeline.put(executor.pipeline.get_step("sum").with_(goal="Add b and a."))
    await executor.execute(resume=True, on_change="rerun")
    assert lab.looked_up == ["a", "a", "b"]


@pytest.mark.parametrize("forced", [False, True])
async def test_force_asks_anew(lab: Lab, forced: bool) -> None:
    executor = PipelineExecutor(lab.pipeline())
    lab.stop_at = 2
    handle = asyncio.ensure_future(executor.execute())
    await lab.reached.wait()
    executor.cancel()
    await handle
    lab.stop_at = None
    await executor.execute(resume=True, force=["sum"] if forced else ())
    assert lab.looked_up == (["a", "a", "b"] if forced else ["a", "b"])


@pytest.mark.parametrize("stop_at", [3, 4])
async def test_a_forced_conversation_goes_on_from_what_it_was_reported_since(lab: Lab, stop_at: int) -> None:
    """What was recorded before it was forced answers for nothing, also in a later session."""
    executor = PipelineExecutor(lab.pipeline())
    for options in ({}, {"resume": True, "force": ["sum"]}):
        lab.reached.clear()
        lab.stop_at = stop_at if options else 2
        handle = asyncio.ensure_future(executor.execute(**options))  # type: ignore[arg-type]
        await lab.reached.wait()
        executor.cancel()
        await handle
    lab.stop_at = None
    assert (await executor.execute(resume=True)).success
    assert lab.looked_up == ["a", "a", "b"]


async def test_an_attempt_that_failed_does_not_answer_for_the_next_one() -> None:
    """Only what was interrupted goes on: a bad answer would come back for ever else."""
    answers = iter(["bad", "good"])

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart(next(answers))])

    def check(value: str) -> None:
        assert value == "good"

    pipeline = Pipeline("p", model=FunctionModel(answer))
    pipeline.step("s", "Say it.", checks=[check], output_retries=0, max_retries=0)
    executor = PipelineExecutor(pipeline)
    assert not (await executor.execute()).success
    assert (await executor.execute(resume=True))["s"] == "good"


async def test_a_killed_attempt_counts_once_also_when_it_is_begun_anew(lab: Lab, tmp_path: Path) -> None:
    """Its process could not say what it had used: the recorded calls say it, in lists and totals."""
    storage = open_storage(tmp_path / "runs")
    executor = PipelineExecutor(lab.pipeline(), storage=storage, prices={NAME: Price(0, 1e6)})
    lab.stop_at = 3
    handle = asyncio.ensure_future(executor.execute())
    await lab.reached.wait()
    (run,) = await storage.runs(executor.pipeline.id)
    events = await storage.read_run(executor.pipeline.id, run.run_id)
    killed = open_storage(tmp_path / "killed")
    await killed.append(executor.pipeline.id, run.run_id, events)
    executor.cancel()
    await handle
    before = [event for event in events if isinstance(event, CallRecorded)]
    costs = [event.cost for event in before]
    assert None not in costs
    (listed,) = await killed.runs(executor.pipeline.id)
    assert listed.cost == sum(cost or 0.0 for cost in costs) > 0
    lab.stop_at = None
    lab.looked_up.clear()
    again = PipelineExecutor(lab.pipeline(), storage=killed, prices=executor.prices)
    result = await again.execute(resume=True, force=["sum"])
    fresh = [call for call in calls(result) if call not in before]
    usage = result.steps["sum"].usage
    assert (usage.requests, usage.tool_calls) == (5, 4)
    assert result.total_cost == pytest.approx(sum(call.cost or 0.0 for call in [*before, *fresh]))
    assert again.ledger.shares() == []
    (listed,) = await killed.runs(executor.pipeline.id)
    assert listed.cost == pytest.approx(result.total_cost)


async def test_what_a_recorded_tool_learned_is_known_again(tmp_path: Path) -> None:
    """The tool is not called again; its facts and memories come with its answer."""
    reached, count = asyncio.Event(), 0

    def note(word: str) -> str:
        """Note a word."""
        step_context().learn("word", word)
        step_context().save_memory("last", [word])
        return "noted"

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal count
        count += 1
        if count == 1:
            return ModelResponse(parts=[ToolCallPart("note", {"word": "tea"})])
        if count == 2:
            reached.set()
            await asyncio.Event().wait()
        return ModelResponse(parts=[TextPart("done")])

    pipeline = Pipeline("p", model=FunctionModel(answer)).step("s", "Note tea.", tools=[note], max_retries=0)
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
    handle = asyncio.ensure_future(executor.execute())
    await reached.wait()
    executor.cancel()
    await handle
    result = await executor.execute(resume=True)
    assert (result["s"], count) == ("done", 3)
    assert (result.learned_facts, result.saved_memories) == ({"word": "tea"}, {"last": ["tea"]})


async def test_a_failed_attempt_is_recorded_before_the_next_one(tmp_path: Path) -> None:
    """Else, after a crash, what it was given would be taken for answers to the next one."""
    storage, kinds = open_storage(tmp_path / "runs"), []

    def wobble() -> str:
        """Fail."""
        raise RetryableError("not now")

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        (run,) = await storage.runs(pipeline.id)
        kinds.extend(type(event).__name__ for event in await storage.read_run(pipeline.id, run.run_id))
        if "StepRetried" in kinds:
            return ModelResponse(parts=[TextPart("good")])
        kinds.clear()
        return ModelResponse(parts=[ToolCallPart("wobble", {})])

    pipeline = Pipeline("p", model=FunctionModel(answer)).step("s", "Say.", tools=[wobble], max_retries=1)
    assert (await PipelineExecutor(pipeline, storage=storage, retry_delay=0).execute())["s"] == "good"
    assert [kind for kind in kinds if kind != "StepProgress"] == ["RunStarted", "CallRecorded", "StepRetried"]


async def test_a_refused_value_is_asked_for_anew(tmp_path: Path) -> None:
    """The attempt that gave it has ended: its calls do not answer for the next one."""
    answers = iter(["bad", "good"])

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart(next(answers))])

    pipeline = Pipeline("p", model=FunctionModel(answer)).step("s", "Say it.", approve=True, max_retries=1)
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs", retry_delay=0)
    await executor.execute()
    executor.reject("s", "not this", retry=True)
    await executor.execute(resume=True)
    assert [approval.value for approval in executor.pending_approvals()] == ["good"]


async def test_what_cannot_be_recorded_ends_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of the step, and no one acts on the answer."""
    storage = open_storage(None)
    append = storage.append

    async def full(pipeline_id: str, run_id: str, events: Any, **kwargs: Any) -> None:
        if any(isinstance(event, CallRecorded) for event in events):
            raise StorageUnavailableError("the disk is full")
        await append(pipeline_id, run_id, events, **kwargs)

    monkeypatch.setattr(storage, "append", full)
    with pytest.raises(StorageUnavailableError, match="the disk is full"):
        await PipelineExecutor(lab.pipeline(), storage=storage).execute()
    assert (lab.asked, lab.looked_up) == (1, [])


# -- offline ------------------------------------------------------------------------------------


async def test_offline_answers_come_from_earlier_runs_to_the_token(lab: Lab) -> None:
    executor = PipelineExecutor(lab.pipeline())
    first = await executor.execute()
    count = lab.asked
    second = await executor.execute(offline=True)
    assert (lab.asked, lab.looked_up) == (count, ["a", "b"])
    assert second["sum"] == first["sum"]
    assert second.steps["sum"].usage == first.steps["sum"].usage
    assert second.total_cost == first.total_cost


async def test_an_offline_miss_names_the_difference_to_the_nearest_call(lab: Lab) -> None:
    executor = PipelineExecutor(lab.pipeline())
    await executor.execute()
    changed = executor.pipeline.get_step("sum").with_(goal="Add a and c.", constraints=["Be brief."])
    executor.pipeline.put(changed)
    message = error_of(await executor.execute(offline=True))
    assert "OfflineMissError" in message
    assert "differs in instructions, messages." in message
    assert "-Add a and b." in message
    assert "+Add a and c." in message


async def test_an_offline_run_without_any_record_says_so(lab: Lab) -> None:
    message = error_of(await PipelineExecutor(lab.pipeline()).execute(offline=True))
    assert "this call of a model is not recorded; the run is offline. Neither is one like it." in message


async def test_the_nearest_call_may_be_of_another_step(lab: Lab) -> None:
    executor = PipelineExecutor(lab.pipeline())
    await executor.execute()
    executor.pipeline.step("other", "Add a and b.", model="test", map_over=None)
    result = await executor.execute(offline=True)
    assert "(of step 'sum') differs in model" in result.error_details["other"]


async def test_a_tool_that_was_not_called_is_a_miss(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    executor = PipelineExecutor(lab.pipeline())
    await executor.execute()
    await executor.export_recording(file)
    document = json.loads(file.read_text())
    document["calls"] = [call for call in document["calls"] if call["kind"] == "model"]
    file.write_text(json.dumps(document))
    message = error_of(await PipelineExecutor(lab.pipeline(), recording=file).execute())
    assert "this call of a tool is not recorded" in message


async def test_items_of_a_map_say_which_one_is_missing() -> None:
    pipeline = Pipeline("p", model=TestModel(custom_output_text="yes"))

    @pipeline.task
    def rows() -> list[str]:
        return ["a"]

    pipeline.step("ask", "Is it {{ rows }}?", map_over="rows")
    executor = PipelineExecutor(pipeline)
    await executor.execute()
    assert (await executor.execute(offline=True))["ask"] == ["yes"]

    @pipeline.task
    def more() -> list[str]:
        return ["b"]

    pipeline.put(pipeline.get_step("ask").with_(goal="Is it {{ more }}?", map_over="more"))
    result = await executor.execute(offline=True)
    assert "Step 'ask', item 0: this call of a model is not recorded" in result.error_details["ask"]


async def test_offline_needs_neither_key_nor_local_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in looks like the model, so that requests are the same."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(
        "tagent_nb.runners.models.local.check", lambda: pytest.fail("the local model was looked for")
    )
    for model in ("openai:gpt-5-mini", "local"):
        pipeline = Pipeline("p", model=model).step("s", "Say it.", max_retries=0)
        result = await PipelineExecutor(pipeline).execute(offline=True)
        assert "is not recorded" in result.error_details["s"]


async def test_a_provider_that_needs_more_than_a_key_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)
    pipeline = Pipeline("p", model="azure:gpt-5").step("s", "Say it.", max_retries=0)
    result = await PipelineExecutor(pipeline).execute(offline=True)
    assert "cannot be replayed without its settings" in result.error_details["s"]


async def test_a_runner_that_does_not_replay_is_never_asked_offline() -> None:
    class Own:
        version = "1"

        async def run(self, step: object, context: object) -> Any:
            pytest.fail("it was asked")

    pipeline = Pipeline("p").step("s", "Say it.")
    result = await PipelineExecutor(pipeline, runners={"agent": Own()}).execute(offline=True)
    assert "its runner does not replay" in result.error_details["s"]


# -- recordings ---------------------------------------------------------------------------------


class Word(BaseModel):
    word: str


async def test_a_recording_replays_in_another_place(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "sum.json"
    executor = PipelineExecutor(lab.pipeline(), storage=tmp_path / "runs")
    first = await executor.execute()
    assert await executor.export_recording(file) == 5
    again = await PipelineExecutor(lab.pipeline(), recording=file).execute()
    assert again["sum"] == first["sum"]
    assert again.steps["sum"].usage == first.steps["sum"].usage
    assert lab.asked == 3


async def test_what_the_cache_answered_is_recorded_from_the_run_that_asked(lab: Lab, tmp_path: Path) -> None:
    storage, cache = open_storage(tmp_path / "runs"), ResultCache(tmp_path / "cache")
    executor = PipelineExecutor(lab.pipeline(), storage=storage, cache=cache)
    first = await executor.execute()
    second = await executor.execute()
    assert second.steps["sum"].status.value == "cached"
    assert await executor.export_recording(tmp_path / "r.json") == 5
    await storage.delete_run(executor.pipeline.id, first.run_id)
    with pytest.raises(NotStoredError, match=r"%tagent_run --force sum"):
        await executor.export_recording(tmp_path / "r.json")


async def test_a_budget_stops_a_replay_where_it_stopped_the_run(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "sum.json"
    first = PipelineExecutor(lab.pipeline(), budget="2 requests")
    stopped = await first.execute()
    assert stopped.failed_steps == ["sum"]
    await first.export_recording(file)
    limits = {"function": Limit(requests_per_minute=1)}
    again = PipelineExecutor(lab.pipeline(), recording=file, budget="2 requests", limits=limits)
    replayed = await again.execute()
    assert replayed.error_details == stopped.error_details
    assert replayed.token_usage == stopped.token_usage


async def test_a_run_that_asked_no_one_makes_no_recording(lab: Lab, tmp_path: Path) -> None:
    executor = PipelineExecutor(Pipeline("p", model=lab.pipeline().model))
    executor.pipeline.task(lambda: 1, name="one")
    await executor.execute()
    with pytest.raises(NotStoredError, match="no step asked a model"):
        await executor.export_recording(tmp_path / "r.json")


async def test_answers_come_from_the_newest_runs(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs without calls are passed over, and older ones are not read."""
    monkeypatch.setattr(replaying, "NEWEST", 1)
    executor = PipelineExecutor(lab.pipeline("Add."), storage=tmp_path / "runs")
    await executor.execute()
    executor.pipeline.put(executor.pipeline.get_step("sum").with_(goal="Add b and a."))
    await executor.execute()
    assert (await executor.execute(offline=True)).success
    assert (await executor.execute(offline=True)).success
    executor.pipeline.put(executor.pipeline.get_step("sum").with_(goal="Add."))
    assert "not recorded" in error_of(await executor.execute(offline=True))


async def test_items_that_shared_one_call_share_it_in_the_recording(tmp_path: Path) -> None:
    pipeline = Pipeline("p", model=TestModel(custom_output_text="yes"))

    @pipeline.task
    def rows() -> list[str]:
        return ["a", "a"]

    pipeline.step("ask", "Is it {{ rows }}?", map_over="rows")
    executor = PipelineExecutor(pipeline, cache=ResultCache(tmp_path / "cache"))
    await executor.execute()
    assert await executor.export_recording(tmp_path / "r.json") == 1
    again = await PipelineExecutor(pipeline, recording=tmp_path / "r.json").execute()
    assert again["ask"] == ["yes", "yes"]


async def test_a_recording_holds_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And replays where the secret is not known."""
    monkeypatch.setenv("MY_API_KEY", "sk-canary-0123456789")

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(
            parts=[TextPart("It is sk-canary-0123456789.")], provider_details={"x": "sk-canary-0123456789"}
        )

    pipeline = Pipeline("p", model=FunctionModel(answer))
    pipeline.step("a", "Hide sk-canary-0123456789.").step("b", "Repeat {{ a }}.")
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
    await executor.execute()
    await executor.export_recording(tmp_path / "r.json")
    assert "canary" not in (tmp_path / "r.json").read_text()
    again = await PipelineExecutor(pipeline, recording=tmp_path / "r.json").execute()
    assert again.error_details == {}
    assert again["b"] == "It is ***."


def ask_again(word: str) -> str:
    """Never content."""
    raise ModelRetry(f"not {word}")


async def test_a_tool_that_asked_for_another_try_does_so_again(tmp_path: Path) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        last = messages[-1].parts[-1]
        if "not this" in str(last.content):
            return ModelResponse(parts=[TextPart(str(last.content))])
        return ModelResponse(parts=[ToolCallPart("ask_again", '{"word": "this"}')])

    pipeline = Pipeline("p", model=FunctionModel(answer)).step("s", "Try.", tools=[ask_again])
    executor = PipelineExecutor(pipeline)
    first = await executor.execute()
    await executor.export_recording(tmp_path / "r.json")
    again = await PipelineExecutor(pipeline, recording=tmp_path / "r.json").execute()
    assert again.error_details == {}
    assert again["s"] == first["s"]
    assert "not this" in first["s"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", CorruptRecordError, "no recording that can be replayed"),
        ("[" * 200_000, CorruptRecordError, "no recording that can be replayed"),
        ("[]", CorruptRecordError, "does not say that it is"),
        ('{"format": "tagent-nb recording", "version": 2}', FormatVersionError, "reads up to 1"),
        ('{"format": "tagent-nb recording", "version": 1}', CorruptRecordError, "has no calls"),
        ('{"format": "tagent-nb recording", "version": 1, "calls": [3]}', CorruptRecordError, "call 0"),
        (
            '{"format": "tagent-nb recording", "version": 1, "calls": [{"event": "Warned", "run_id": "r", '
            '"at": 1.0, "message": "x"}]}',
            CorruptRecordError,
            "call 0 is no call",
        ),
    ],
)
def test_what_is_no_recording_is_refused(
    text: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(error, match=says):
        PipelineExecutor(Pipeline("p"), recording=file)


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DefinitionError, match=r"nowhere\.json cannot be read: No such file.*export --recording"
    ):
        PipelineExecutor(Pipeline("p"), recording=tmp_path / "nowhere.json")


async def test_a_recording_that_cannot_be_written_is_an_error(lab: Lab, tmp_path: Path) -> None:
    executor = PipelineExecutor(lab.pipeline())
    await executor.execute()
    with pytest.raises(StorageError, match="nowhere"):
        await executor.export_recording(tmp_path / "nowhere" / "r.json")


async def test_a_record_changed_by_hand_is_no_answer(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    executor = PipelineExecutor(lab.pipeline())
    await executor.execute()
    await executor.export_recording(file)
    document = json.loads(file.read_text())
    document["calls"][0]["answer"] = {"kind": "request", "parts": []}
    file.write_text(json.dumps(document))
    message = error_of(await PipelineExecutor(lab.pipeline(), recording=file).execute())
    assert "changed by hand" in message


async def test_the_fixture_replays_in_a_users_own_test(lab: Lab, tmp_path: Path, replay: Any) -> None:
    file = tmp_path / "r.json"
    executor = PipelineExecutor(lab.pipeline())
    first = await executor.execute()
    await executor.export_recording(file)
    replay(file)
    again = await PipelineExecutor(lab.pipeline()).execute()
    assert again["sum"] == first["sum"]
    assert lab.asked == 3
    assert recordings.default is not None


# -- when two requests are the same -------------------------------------------------------------


def asking(text: str, *, call_id: str = "1", settings: Any = None) -> ModelCall:
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(text)], run_id=call_id),
        ModelResponse(parts=[ToolCallPart("t", '{"b": 1, "a": 2}', tool_call_id=call_id)]),
        ModelRequest(parts=[UserPromptPart("go on")]),
    ]
    context = StepContext("run", "demo", "s")
    return ModelCall(context, TestModel(), messages, settings, ModelRequestParameters())


@given(st.text(), st.text(), st.text(min_size=1), st.text(min_size=1))
def test_the_same_conversation_is_the_same_request(a: str, b: str, one: str, other: str) -> None:
    """Times and ids do not count; words do."""
    first, second = model_request(asking(a, call_id=one), "m"), model_request(asking(b, call_id=other), "m")
    assert (first.key == second.key) == (a == b)


def test_settings_of_the_connection_do_not_count() -> None:
    plain = model_request(asking("x"), "m")
    assert model_request(asking("x", settings={"timeout": 3, "extra_headers": {"k": "v"}}), "m") == plain
    assert model_request(asking("x", settings={"temperature": 0.5}), "m").key != plain.key


def test_arguments_count_by_value_whatever_they_are() -> None:
    context = StepContext("run", "demo", "s")
    request = tool_request(ToolCall(context, "t", {"a": Word(word="x"), "b": float("nan")}))
    assert request == tool_request(ToolCall(context, "t", {"b": None, "a": {"word": "x"}}))
    assert request.says == 't({"a":{"word":"x"},"b":null})'


def test_arguments_that_are_no_json_are_compared_as_text() -> None:
    call = asking("x")
    call.messages[1] = ModelResponse(parts=[ToolCallPart("t", "{broken")])
    assert model_request(call, "m").key != model_request(asking("x"), "m").key


# -- after a budget stop ------------------------------------------------------------------------


async def test_what_was_paid_before_a_budget_stop_is_not_paid_again(lab: Lab, tmp_path: Path) -> None:
    """However often it stops, each call of the conversation is made once; tokens count once."""
    executor = PipelineExecutor(lab.pipeline(), storage=tmp_path / "runs")
    stopped = await executor.execute(budget="1 request")
    assert (stopped.steps["sum"].error_type, lab.asked, lab.looked_up) == ("BudgetExceededError", 1, ["a"])
    again = await executor.execute(resume=True)
    assert (again.steps["sum"].error_type, lab.asked) == ("BudgetExceededError", 1)
    more = PipelineExecutor(lab.pipeline(), storage=tmp_path / "runs")
    assert not (await more.execute(resume=True, budget="2 requests")).success
    assert (lab.asked, lab.looked_up) == (2, ["a", "b"])
    result = await more.execute(resume=True, budget="3 requests")
    assert result.success
    assert (lab.asked, lab.looked_up) == (3, ["a", "b"])
    usage = result.steps["sum"].usage
    assert (usage.requests, usage.tool_calls) == (3, 2)
    assert [share.spent for share in result.budget_shares()] == [3]


async def test_items_that_a_budget_stopped_go_on_after_their_last_call(tmp_path: Path) -> None:
    """A mapped step whose items call tools: no item asks again what it was given."""
    questions: list[str] = []

    def look_up(name: str) -> str:
        """Look up."""
        questions.append(f"tool {name}")
        return name.upper()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        question = str(messages[0].parts[-1].content)
        item = next(word for word in ("x", "y") if f"<data>{word}</data>" in question.replace("\n", ""))
        if len(messages) == 1:
            questions.append(f"first {item}")
            return ModelResponse(parts=[ToolCallPart("look_up", {"name": item})])
        questions.append(f"last {item}")
        return ModelResponse(parts=[TextPart(str(messages[-1].parts[0].content))])

    pipeline = Pipeline("p", model=FunctionModel(answer))
    pipeline.task(lambda: ["x", "y"], name="rows")
    pipeline.step("each", "Look up {{ item }}", map_over="rows", tools=[look_up])
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs", max_concurrency=2)
    assert not (await executor.execute(budget="2 requests")).success
    assert sorted(questions) == ["first x", "first y", "tool x", "tool y"]
    result = await executor.execute(resume=True, budget="none")
    assert result["each"] == ["X", "Y"]
    assert sorted(questions) == ["first x", "first y", "last x", "last y", "tool x", "tool y"]
    assert result.steps["each"].usage.requests == 4


async def test_a_plan_that_a_budget_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """The plan and its tool's answer are recorded: only what was refused is asked."""
    questions: list[str] = []
    plan = {
        "tasks": [
            {"id": "t1", "description": "look", "tool": "look_up", "arguments": {"name": "a"}},
            {"id": "t2", "description": "Say {{ t1 }}", "tool": "llm", "arguments": {}},
        ]
    }

    def look_up(name: str) -> str:
        """Look up."""
        questions.append("tool")
        return name.upper()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        system = str(getattr(messages[-1], "instructions", ""))
        questions.append("plan" if "Make a plan" in system else "model")
        text = json.dumps(plan) if "Make a plan" in system else "A it is"
        if "Judge whether" in system:
            text = json.dumps({"achieved": True, "reason": ""})
        if info.output_tools:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, text)])
        return ModelResponse(parts=[TextPart(text)])

    pipeline = Pipeline("p", model=FunctionModel(answer))
    pipeline.step("s", "Look a up.", tools=[look_up], agent="plan", max_retries=0)
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
    stopped = await executor.execute(budget="1 request")
    assert stopped.steps["s"].error_type == "BudgetExceededError"
    assert questions == ["plan", "tool"]
    result = await executor.execute(resume=True, budget="none")
    assert result["s"] == "A it is"
    assert questions[:2] == ["plan", "tool"]
    assert "plan" not in questions[2:]
    assert "tool" not in questions[2:]
    assert result.steps["s"].usage.requests == len(questions) - 1


async def test_a_tool_whose_code_changed_is_called_again(lab: Lab, tmp_path: Path) -> None:
    """What the old code said is no answer of the new one, and neither is what the model made of it."""
    storage = tmp_path / "runs"
    await PipelineExecutor(lab.pipeline(), storage=storage).execute(budget="1 request")

    def look_up(name: str) -> str:
        """Look a number up."""
        return f"{name} of the new code"

    changed = Pipeline("sums", model=FunctionModel(lab.answer))
    changed.step("sum", "Add a and b.", tools=[look_up], max_retries=0)
    result = await PipelineExecutor(changed, storage=storage).execute(resume=True, budget="none")
    assert result["sum"] == "a of the new code and b of the new code"
    assert lab.asked == 3  # its first question is the same, and paid


async def test_after_a_budget_stop_and_another_failure_all_is_asked_anew(tmp_path: Path) -> None:
    """A wrong answer must not come back for ever, whatever stopped the attempt before."""
    count = 0

    def note(word: str) -> str:
        """Note a word."""
        return "noted"

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal count
        count += 1
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("note", {"word": "tea"})])
        return ModelResponse(parts=[TextPart("bad" if count == 2 else "good")])

    def check(value: str) -> None:
        assert value == "good"

    pipeline = Pipeline("p", model=FunctionModel(answer))
    pipeline.step("s", "Say.", tools=[note], checks=[check], output_retries=0, max_retries=0)
    executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
    assert not (await executor.execute(budget="1 request")).success
    wrong = await executor.execute(resume=True, budget="none")
    assert wrong.steps["s"].error_type == "OutputValidationError"
    assert count == 2
    assert (await executor.execute(resume=True))["s"] == "good"
    assert count == 4


# -- kill -9 ------------------------------------------------------------------------------------


def child(url: Path, effects: Path, agent: str, block: int) -> subprocess.Popen[str]:
    script = Path(__file__).parents[1] / "replay_child.py"
    command = [sys.executable, str(script), str(url), str(effects), agent, str(block)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("agent", ["single", "plan"])
def test_after_a_kill_no_recorded_call_is_made_again(agent: str, tmp_path: Path) -> None:
    """SIGKILL at each call of the step in turn; what was under way is the only call that is repeated."""
    whole = child(tmp_path / "whole", tmp_path / "once", agent, 0)
    output, _ = whole.communicate(timeout=120)
    assert output.startswith("done A and B"), output
    calls = (tmp_path / "once").read_text().splitlines()
    assert len(calls) >= 5
    for block in range(2, len(calls) + 1):
        effects, store = tmp_path / f"effects{block}", tmp_path / f"runs{block}"
        killed = child(store, effects, agent, block)
        assert killed.stdout is not None
        assert killed.stdout.readline() == "blocked\n"
        killed.kill()
        killed.wait()
        killed.stdout.close()
        again, _ = child(store, effects, agent, 0).communicate(timeout=120)
        assert again == output
        repeated = [*calls[:block], calls[block - 1], *calls[block:]]
        assert effects.read_text().splitlines() == repeated
