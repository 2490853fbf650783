"""Approval of results: what is held, who decides, what comes of it, and that nothing is asked twice."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    ApprovalGiven,
    ApprovalRequest,
    ApprovalRequested,
    Approved,
    Edited,
    ExecutionMode,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    Rejected,
    ResultCache,
    StepContext,
    StepFinished,
    StepStatus,
    StepWaiting,
)
from tagent_nb.engine import submit
from tagent_nb.errors import DefinitionError, OutputValidationError, StorageUnavailableError
from tagent_nb.events import Event, StepFailed, StepRetried, TokenUsage
from tagent_nb.serde import value as codec

PATIENCE = 30.0
RAN: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    RAN.clear()


class Mood(BaseModel):
    """How a text sounds."""

    label: str
    score: float


class Runner:
    """A runner for Python steps that counts, and gives what a test says."""

    version = "1"

    def __init__(self, values: dict[str, Any], used: TokenUsage | None = None) -> None:
        self.values = values
        self.used = used

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        RAN[step.name] += 1
        if self.used is not None:
            context.spend(self.used, 0.25)
        value = self.values[step.name]
        return value(context) if callable(value) else value


def pipeline(*steps: str, approve: str = "draft", **options: Any) -> Pipeline:
    """``draft``, then ``send``, which reads it; and ``other``."""
    found = Pipeline("approval", default_mode=ExecutionMode.CONCURRENT)
    for name, body in (("draft", "1"), ("send", "draft"), ("other", "1")):
        if name in (steps or ("draft", "send", "other")):
            more = options if name == approve else {}
            found.put(PipelineStep.from_cell(name, body, python=True, approve=name == approve, **more))
    return found


def executor(defined: Pipeline, values: dict[str, Any] | None = None, **options: Any) -> PipelineExecutor:
    given = {"draft": "Dear all", "send": lambda context: f"sent: {context.inputs['draft']}", "other": 7}
    used = options.pop("used", None)
    runner = Runner(given | (values or {}), used)
    return PipelineExecutor(defined, runners={"python": runner}, retry_delay=0.0, **options)


class Until:
    """Observer: lets a test wait for an event."""

    def __init__(self, condition: Callable[[Event], bool]) -> None:
        self.condition = condition
        self.seen = threading.Event()

    def __call__(self, event: Event) -> None:
        if self.condition(event):
            self.seen.set()

    async def come(self) -> None:
        assert await asyncio.to_thread(self.seen.wait, PATIENCE)


def waits(step: str) -> Until:
    return Until(lambda event: isinstance(event, StepWaiting) and event.step == step)


# -- no one to ask --------------------------------------------------------------------------------


async def test_a_run_without_anybody_to_ask_ends_with_the_step_waiting_and_the_rest_done() -> None:
    run = executor(pipeline())
    result = await run.execute()
    assert {name: step.status for name, step in result.steps.items()} == {
        "draft": StepStatus.WAITING,
        "send": StepStatus.PENDING,
        "other": StepStatus.COMPLETED,
    }
    assert not result.success
    assert not result.cancelled
    assert result.failed_steps == []
    assert result.waiting_steps == ["draft"]
    assert "waiting for approval of draft" in repr(result)
    assert "waiting for approval" in result._repr_html_()
    assert [info.status for info in await run.history()] == ["waiting"]


async def test_another_process_decides_and_the_resumed_run_computes_nothing_again(tmp_path: Path) -> None:
    first = await executor(pipeline(), storage=tmp_path).execute()
    later = executor(pipeline(), storage=tmp_path)
    [request] = await asyncio.to_thread(later.pending_approvals)
    assert (request.step, request.value, request.run_id) == ("draft", "Dear all", first.run_id)
    await asyncio.to_thread(later.approve, "draft")
    last = executor(pipeline(), storage=tmp_path)
    result = await last.execute(resume=True)
    assert result.success
    assert result["send"] == "sent: Dear all"
    assert RAN == {"draft": 1, "send": 1, "other": 1}
    assert last.pending_approvals() == []
    assert result.step_metadata["draft"]["approval"] == "approved"


async def test_a_resumed_run_waits_again_for_what_no_one_has_decided(tmp_path: Path) -> None:
    await executor(pipeline(), storage=tmp_path).execute()
    result = await executor(pipeline(), storage=tmp_path).execute(resume=True)
    assert result.waiting_steps == ["draft"]
    assert RAN["draft"] == 1
    requests = [event for event in result.events if isinstance(event, ApprovalRequested)]
    assert len(requests) == 1


async def test_a_changed_step_is_computed_anew_and_asked_for_anew(tmp_path: Path) -> None:
    await executor(pipeline(), storage=tmp_path).execute()
    changed = pipeline()
    changed.put(PipelineStep.from_cell("draft", "2", python=True, approve=True))
    run = executor(changed, {"draft": "Hello"}, storage=tmp_path)
    await run.execute(resume=True)
    assert [request.value for request in run.pending_approvals()] == ["Hello"]


async def test_what_cannot_be_stored_is_held_while_the_run_lives_only(tmp_path: Path) -> None:
    value = object()
    run = executor(pipeline("draft"), {"draft": value}, storage=tmp_path)
    await run.execute()
    assert [request.value for request in run.pending_approvals()] == [value]
    again = executor(pipeline("draft"), {"draft": value}, storage=tmp_path)
    await again.execute(resume=True)
    assert RAN["draft"] == 2


async def test_in_memory_the_same_executor_goes_on_after_a_decision() -> None:
    run = executor(pipeline())
    await run.execute()
    await asyncio.to_thread(run.approve, "draft", value="Dear friends")
    assert run.pending_approvals() == []
    result = await run.execute(resume=True)
    assert result["send"] == "sent: Dear friends"
    assert RAN["draft"] == 1


async def test_a_step_rejected_while_no_one_ran_fails_when_the_run_goes_on() -> None:
    run = executor(pipeline())
    await run.execute()
    await asyncio.to_thread(run.reject, "draft", "too short")
    result = await run.execute(resume=True)
    assert "too short" in result.error_details["draft"]
    assert result.steps["send"].status is StepStatus.SKIPPED
    assert RAN["draft"] == 1


# -- a handler --------------------------------------------------------------------------------------


async def test_a_handler_approves_and_sees_what_it_is_about() -> None:
    seen: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> Approved:
        seen.append(request)
        return Approved()

    defined = pipeline("draft", output_schema=Mood)
    result = await executor(defined, {"draft": {"label": "good", "score": 1}}, approver=approver).execute()
    assert result["draft"] == Mood(label="good", score=1.0)
    [request] = seen
    assert (request.step, request.item, request.tool, request.schema) == ("draft", None, "", Mood)
    assert request.parameters["properties"].keys() == {"label", "score"}
    assert request.value == Mood(label="good", score=1.0)
    assert request.title == "step 'draft'"


async def test_an_edited_value_is_what_others_see_and_is_marked_as_the_users() -> None:
    async def approver(request: ApprovalRequest) -> Edited:
        return Edited({"label": "bad", "score": 0})

    defined = pipeline("draft", "send", output_schema=Mood)
    result = await executor(defined, {"draft": Mood(label="good", score=1)}, approver=approver).execute()
    assert result["send"] == "sent: label='bad' score=0.0"
    marks = result.step_metadata["draft"]
    assert marks["edited_by_user"] is True
    asked = next(event for event in result.events if isinstance(event, ApprovalRequested))
    approval = next(event for event in result.events if isinstance(event, ApprovalGiven))
    assert asked.output.value == Mood(label="good", score=1)
    assert approval.output is not None
    assert approval.output.value == Mood(label="bad", score=0)
    assert marks["digest_before"] == asked.output.digest == approval.digest
    assert marks["digest"] == approval.output.digest != asked.output.digest
    frame = result.events_frame()
    assert "edited" in frame[frame.event == "ApprovalGiven"].detail.iloc[0]
    assert "good" in frame[frame.event == "ApprovalRequested"].detail.iloc[0]


async def test_a_large_edited_value_is_encoded_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other steps go on meanwhile."""
    text = "x" * 1_000_001
    threads: list[int] = []
    seal = codec._seal

    def watched(value: Any, path: str) -> Any:
        if value == text:
            threads.append(threading.get_ident())
        return seal(value, path)

    monkeypatch.setattr(codec, "_seal", watched)
    run = executor(pipeline("draft", "send"), storage=tmp_path, approver=lambda request: Edited(text))
    result = await run.execute()
    assert result["send"] == f"sent: {text}"
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Edited({"label": "x"}), "does not match schema Mood"),
        (True, "must return Approved(), Edited(value) or Rejected(reason)"),
        (ZeroDivisionError("oh"), "its approver raised ZeroDivisionError: oh"),
    ],
)
async def test_a_handler_that_answers_nonsense_fails_the_step(answer: Any, says: str) -> None:
    def approver(request: ApprovalRequest) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    defined = pipeline("draft", output_schema=Mood)
    run = executor(defined, {"draft": Mood(label="good", score=1)}, approver=approver)
    result = await run.execute()
    assert says in result.error_details["draft"]
    assert RAN["draft"] == 1


async def test_a_rejection_fails_the_step_with_the_reason_and_tries_no_more() -> None:
    result = await executor(pipeline(), approver=lambda request: Rejected("too rude")).execute()
    assert "the user rejected its value: too rude" in result.error_details["draft"]
    assert result.steps["draft"].error_type == "RejectedError"
    assert RAN["draft"] == 1


async def test_a_rejection_with_retry_goes_to_the_model_with_its_reason_and_the_refused_value() -> None:
    prompts: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompts.append(str(messages[0].parts[-1].content))  # type: ignore[union-attr]
        return ModelResponse(parts=[TextPart(f"draft {len(prompts)} </data>")])

    def approver(request: ApprovalRequest) -> Approved | Rejected:
        return Approved() if "2" in request.value else Rejected("Say please.", retry=True)

    defined = Pipeline("mail", model=FunctionModel(answer)).step("draft", "Write.", approve=True)
    result = await PipelineExecutor(defined, approver=approver).execute()
    assert result["draft"] == "draft 2 </data>"
    assert "Say please." not in prompts[0]
    assert "An earlier answer was refused: <data>draft 1 &lt;/data></data>" in prompts[1]
    assert "What the user said of it: Say please." in prompts[1]
    assert result.steps["draft"].usage.requests == 2


async def test_without_retries_left_a_rejection_with_retry_fails_the_step() -> None:
    run = executor(pipeline(max_retries=1), approver=lambda request: Rejected("no", retry=True))
    result = await run.execute()
    assert "no" in result.error_details["draft"]
    assert RAN["draft"] == 2


# -- waiting ----------------------------------------------------------------------------------------


async def test_only_the_branch_that_waits_waits_and_it_holds_no_slot_and_no_turn() -> None:
    """SERIAL steps and a single slot: the other step runs to its end while one waits."""
    defined = Pipeline("serial")
    defined.put(PipelineStep.from_cell("draft", "1", python=True, approve=True))
    defined.put(PipelineStep.from_cell("other", "1", python=True))
    waiting, done = waits("draft"), Until(lambda event: type(event).__name__ == "StepFinished")
    run = executor(defined, approver="wait", max_concurrency=1, observers=[waiting, done])
    handle = run.start()
    await waiting.come()
    await done.come()
    assert run.memory is not None
    assert run.memory.steps["draft"].status is StepStatus.WAITING
    assert run.memory.steps["draft"].waits_for == "approval of its value"
    run.approve("draft")
    assert (await handle)["draft"] == "Dear all"


async def test_a_serial_step_that_tries_again_waits_for_its_turn() -> None:
    inside: list[str] = []
    overlaps: list[list[str]] = []

    class Slow(Runner):
        async def run(self, step: PipelineStep, context: StepContext) -> Any:
            inside.append(step.name)
            overlaps.append(list(inside))
            if step.name == "other":
                run.reject("draft", "again", retry=True)
                await asyncio.sleep(0)
            RAN[step.name] += 1
            inside.remove(step.name)
            return step.name

    defined = Pipeline("serial")
    defined.put(PipelineStep.from_cell("draft", "1", python=True, approve=True))
    defined.put(PipelineStep.from_cell("other", "1", python=True))
    again = Until(lambda event: isinstance(event, StepWaiting) and RAN["draft"] == 2)
    run = PipelineExecutor(
        defined, runners={"python": Slow({})}, approver="wait", retry_delay=0.0, observers=[again]
    )
    handle = run.start()
    await again.come()
    run.approve("draft")
    assert (await handle).success
    assert RAN == {"draft": 2, "other": 1}
    assert all(len(names) == 1 for names in overlaps)


async def test_an_invalid_edit_decides_nothing() -> None:
    waiting = waits("draft")
    defined = pipeline("draft", output_schema=Mood)
    mood = Mood(label="good", score=1)
    run = executor(defined, {"draft": mood}, approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    with pytest.raises(OutputValidationError, match="score"):
        run.approve("draft", value={"label": "bad", "score": "many"})
    assert [request.step for request in run.pending_approvals()] == ["draft"]
    run.approve("draft", value={"label": "bad", "score": 0})
    assert (await handle)["draft"] == Mood(label="bad", score=0)


async def test_a_decision_counts_once_and_a_late_one_is_nothing() -> None:
    waiting = waits("draft")
    run = executor(pipeline("draft"), approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    [request] = run.pending_approvals()
    run.decide(request, Edited("first"))
    run.decide(request, Edited("second"))
    result = await handle
    assert result["draft"] == "first"
    run.decide(request, Edited("third"))
    stored = await run.load_result()
    for events in (result.events, stored.events):
        assert len([event for event in events if isinstance(event, ApprovalGiven)]) == 1


async def test_of_two_decisions_at_the_same_moment_the_first_counts() -> None:
    """The step has not gone on with the first when the second comes."""
    waiting = waits("draft")
    run = executor(pipeline("draft"), approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    [request] = run.pending_approvals()

    async def decide_twice() -> None:
        # On the loop of the run: nothing else has its turn between the two.
        run.decide(request, Edited("first"))
        run.decide(request, Rejected("second"))

    await asyncio.wrap_future(submit(decide_twice()))
    result = await handle
    assert result["draft"] == "first"
    assert len([event for event in result.events if isinstance(event, ApprovalGiven)]) == 1


async def test_a_decision_on_what_has_ended_in_a_run_that_goes_on_is_nothing() -> None:
    gate = asyncio.Event()
    waiting, done = waits("draft"), Until(lambda event: isinstance(event, StepFinished))

    class Slow(Runner):
        async def run(self, step: PipelineStep, context: StepContext) -> Any:
            if step.name == "other":
                await gate.wait()
            return step.name

    run = PipelineExecutor(pipeline(), runners={"python": Slow({})}, approver="wait")
    run.subscribe(waiting)
    run.subscribe(done)
    going_on = asyncio.ensure_future(run.execute())
    await waiting.come()
    [request] = run.pending_approvals()
    run.decide(request, Approved())
    await done.come()
    run.decide(request, Rejected("too late"))
    await asyncio.sleep(0)
    gate.set()
    assert (await going_on).success


async def test_a_decision_on_a_step_that_is_left_is_kept_for_the_next_session() -> None:
    """Without an approver a run goes on with other steps; what is said meanwhile is not lost."""
    gate = asyncio.Event()
    waiting = waits("draft")

    class Slow(Runner):
        async def run(self, step: PipelineStep, context: StepContext) -> Any:
            if step.name == "other":
                await gate.wait()
            return await super().run(step, context)

    run = PipelineExecutor(pipeline("draft", "other"), runners={"python": Slow({"draft": 1, "other": 2})})
    run.subscribe(waiting)
    going_on = asyncio.ensure_future(run.execute())
    await waiting.come()
    run.approve("draft")
    await asyncio.sleep(0)
    gate.set()
    assert (await going_on).waiting_steps == ["draft"]
    assert (await run.execute(resume=True))["draft"] == 1
    assert RAN["draft"] == 1


async def test_a_cancelled_wait_is_resumed_where_it_was(tmp_path: Path) -> None:
    waiting = waits("draft")
    run = executor(pipeline("draft"), storage=tmp_path, approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    handle.cancel()
    assert (await handle).steps["draft"].status is StepStatus.CANCELLED
    again = executor(pipeline("draft"), storage=tmp_path, approver=lambda request: Approved())
    assert (await again.execute(resume=True))["draft"] == "Dear all"
    assert RAN["draft"] == 1


async def test_the_waiting_is_no_part_of_the_steps_timeout_or_time() -> None:
    waiting = waits("draft")
    run = executor(pipeline("draft", timeout=0.05), approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    await asyncio.sleep(0.1)
    run.approve("draft")
    result = await handle
    assert result.success
    assert result.steps["draft"].seconds < 0.1


# -- whose decision is meant --------------------------------------------------------------------------


async def test_a_decision_on_what_does_not_wait_says_what_does() -> None:
    run = executor(pipeline())
    await run.execute()
    with pytest.raises(DefinitionError, match="Did you mean 'draft'.* Waiting: step 'draft'"):
        run.approve("drafts")


async def test_several_items_of_a_step_need_a_name() -> None:
    run = executor(_mapped(), {"draft": [1, 2], "each": lambda context: context.inputs["draft"]})
    await run.execute()
    with pytest.raises(DefinitionError, match="2 values of step 'each' wait. Say which: item="):
        run.approve("each")


def test_before_the_first_run_nothing_waits() -> None:
    run = executor(pipeline())
    assert run.pending_approvals() == []
    with pytest.raises(DefinitionError, match="Waiting: nothing"):
        run.approve("draft")


@pytest.mark.parametrize("approver", ["later", 3])
def test_an_approver_is_a_function_or_wait(approver: Any) -> None:
    with pytest.raises(DefinitionError, match="approver must be a function"):
        PipelineExecutor(Pipeline("x"), approver=approver)


async def test_an_approver_that_is_set_later_is_checked_before_anything_runs() -> None:
    run = PipelineExecutor(pipeline("draft"))
    run.approver = "later"  # type: ignore[assignment]
    with pytest.raises(DefinitionError, match="approver must be a function"):
        await run.execute()
    assert run.memory is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("approve", "tool", "approve must be True or False"),
        ("approve_tools", "order", "approve_tools must be a list"),
        ("approve_tools", [1], "approve_tools must hold text only"),
    ],
)
def test_what_a_step_says_of_approval_is_checked(field: str, value: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        Pipeline("x").step("a", "Do.", **{field: value})


# -- mapped steps ----------------------------------------------------------------------------------


def _mapped(**options: Any) -> Pipeline:
    pipeline = Pipeline("mapped", **options)
    pipeline.put(PipelineStep.from_cell("draft", "1", python=True))
    pipeline.put(PipelineStep.from_cell("each", "draft", python=True, map_over="draft", approve=True))
    return pipeline


async def test_items_are_held_one_by_one_and_resumed_one_by_one(tmp_path: Path) -> None:
    values = {"draft": [1, 2, 3], "each": lambda context: context.inputs["draft"] * 10}
    run = executor(_mapped(), values, storage=tmp_path, max_concurrency=2)
    result = await run.execute()
    assert result.waiting_steps == ["each"]
    assert result.steps["each"].waits_for == "approval of 3 items"
    keys = [str(request.item) for request in run.pending_approvals()]
    await asyncio.to_thread(run.approve, "each", keys[0])
    await asyncio.to_thread(run.approve, "each", keys[1], value=99)
    again = executor(_mapped(), values, storage=tmp_path, max_concurrency=2)
    result = await again.execute(resume=True)
    assert result.waiting_steps == ["each"]
    assert [request.item for request in again.pending_approvals()] == keys[2:]
    await asyncio.to_thread(again.approve, "each")
    result = await executor(_mapped(), values, storage=tmp_path).execute(resume=True)
    assert result["each"] == [10, 99, 30]
    assert RAN == {"draft": 1, "each": 3}


async def test_items_that_wait_hold_up_no_other_items_and_no_other_steps() -> None:
    """With one worker, all items are computed while none is approved, and another SERIAL step ends."""
    defined = _mapped()
    defined.put(PipelineStep.from_cell("other", "1", python=True))
    values = {"draft": [1, 2, 3], "each": lambda context: context.inputs["draft"]}
    done = Until(lambda event: getattr(event, "step", "") == "other" and hasattr(event, "output"))
    run = executor(defined, values, approver="wait", max_concurrency=1, observers=[done])
    handle = run.start()
    await done.come()
    assert RAN["each"] == 3
    for request in run.pending_approvals():
        run.decide(request, Approved())
    assert (await handle)["each"] == [1, 2, 3]


async def test_an_item_that_tries_again_is_approved_in_the_end() -> None:
    def approver(request: ApprovalRequest) -> Approved | Rejected:
        return Approved() if request.value else Rejected("again", retry=True)

    values = {"draft": [1, 2], "each": lambda context: [refusal.reason for refusal in context.refusals]}
    result = await executor(_mapped(), values, approver=approver, max_concurrency=1).execute()
    assert result.success
    assert sorted(result["each"]) == [["again"], ["again"]]


async def test_equal_items_are_asked_for_once(tmp_path: Path) -> None:
    seen: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> Edited:
        seen.append(request)
        return Edited("mine")

    values = {"draft": ["a", "a", "a"], "each": "theirs"}
    cache = ResultCache(tmp_path)
    result = await executor(_mapped(), values, approver=approver, cache=cache).execute()
    assert result["each"] == ["mine"] * 3
    assert len(seen) == RAN["each"] == 1


async def test_equal_items_are_left_waiting_together_and_computed_once(tmp_path: Path) -> None:
    values = {"draft": ["a", "a", "a"], "each": "theirs"}
    run = executor(_mapped(), values, cache=ResultCache(tmp_path), max_concurrency=2)
    result = await run.execute()
    assert result.waiting_steps == ["each"]
    assert RAN["each"] == 1
    await asyncio.to_thread(run.approve, "each")
    assert (await run.execute(resume=True))["each"] == ["theirs"] * 3
    assert RAN["each"] == 1


# -- the cache, costs, and what a step teaches ---------------------------------------------------------


async def test_an_approved_answer_is_cached_and_not_asked_for_again(tmp_path: Path) -> None:
    seen: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> Edited:
        seen.append(request)
        return Edited("mine")

    def run() -> PipelineExecutor:
        used = TokenUsage(input_tokens=5, requests=1)
        return executor(pipeline("draft"), cache=ResultCache(tmp_path), approver=approver, used=used)

    first = await run().execute()
    assert first.total_cost == 0.25
    assert first.token_usage["draft"].requests == 1
    second = await run().execute()
    assert second["draft"] == "mine"
    assert second.steps["draft"].status is StepStatus.CACHED
    assert second.step_metadata["draft"]["edited_by_user"] is True
    assert second.steps["draft"].saved_cost == 0.25
    assert len(seen) == RAN["draft"] == 1
    await run().execute(force=True)
    assert len(seen) == RAN["draft"] == 2


async def test_an_answer_that_was_cached_before_anybody_asked_for_approval_is_held(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    used = TokenUsage(input_tokens=5, requests=1)
    await executor(pipeline("draft", approve="none"), cache=cache, used=used).execute()
    seen: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> Approved:
        seen.append(request)
        return Approved()

    for _ in range(2):
        result = await executor(pipeline("draft"), cache=cache, used=used, approver=approver).execute()
        assert result.steps["draft"].status is StepStatus.CACHED
        assert result.steps["draft"].saved_cost == 0.25
    assert RAN["draft"] == len(seen) == 1


async def test_what_a_held_value_took_is_counted_once_however_it_goes_on(tmp_path: Path) -> None:
    used = TokenUsage(input_tokens=5, requests=1)
    run = executor(pipeline("draft"), storage=tmp_path, used=used)
    result = await run.execute()
    assert (result.total_cost, result.token_usage["draft"].requests) == (0.25, 1)
    assert [info.cost for info in await run.history()] == [0.25]
    again = executor(pipeline("draft"), storage=tmp_path, used=used, approver=lambda request: Approved())
    result = await again.execute(resume=True)
    assert (result.total_cost, result.token_usage["draft"].requests) == (0.25, 1)
    assert [info.cost for info in await again.history()] == [0.25]


async def test_facts_and_memories_are_learned_when_the_value_is_approved(tmp_path: Path) -> None:
    def draft(context: StepContext) -> str:
        context.learn("tone", {"warm": True})
        context.save_memory("greeting", "Dear all")
        return "text"

    first = await executor(pipeline("draft"), {"draft": draft}, storage=tmp_path).execute()
    assert first.learned_facts == {}
    again = executor(
        pipeline("draft"), {"draft": draft}, storage=tmp_path, approver=lambda request: Approved()
    )
    result = await again.execute(resume=True)
    assert result.learned_facts == {"tone": {"warm": True}}
    assert result.saved_memories == {"greeting": "Dear all"}
    assert RAN["draft"] == 1


async def test_a_reason_is_known_to_the_next_attempt_also_after_the_run_was_stopped(tmp_path: Path) -> None:
    class Stopping(Runner):
        async def run(self, step: PipelineStep, context: StepContext) -> Any:
            RAN[step.name] += 1
            if RAN[step.name] == 2:
                first.cancel()
                await asyncio.Event().wait()
            return " and ".join(["text", *(refusal.reason for refusal in context.refusals)])

    def approver(request: ApprovalRequest) -> Approved | Rejected:
        return Approved() if "please" in request.value else Rejected("please", retry=True)

    def run() -> PipelineExecutor:
        runners = {"python": Stopping({})}
        return PipelineExecutor(
            pipeline("draft"), runners=runners, storage=tmp_path, approver=approver, retry_delay=0.0
        )

    first = run()
    assert (await first.execute()).cancelled
    assert (await run().execute(resume=True))["draft"] == "text and please"


class Unwritable(MemoryStorageBackend):
    """Cannot write one kind of event, once: then there is room on the disk again."""

    def __init__(self, kind: type[Event]) -> None:
        super().__init__()
        self.kind = kind
        self.failed = 0

    async def append(self, pipeline_id: str, run_id: str, events: Any, *, token: Any = None) -> None:
        if not self.failed and any(isinstance(event, self.kind) for event in events):
            self.failed += 1
            raise StorageUnavailableError("the disk is full")
        await super().append(pipeline_id, run_id, events, token=token)


def _busy(context: StepContext) -> str:
    raise ConnectionError("busy")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("kind", "approver", "draft"),
    [
        (ApprovalRequested, lambda request: Approved(), "Dear all"),
        (ApprovalGiven, lambda request: Rejected("no"), "Dear all"),
        (ApprovalGiven, lambda request: Rejected("no", retry=True), "Dear all"),
        (StepRetried, None, _busy),
    ],
    ids=["request", "rejection", "retry", "attempt"],
)
async def test_what_cannot_be_recorded_in_an_attempt_ends_the_run_and_fails_no_step(
    kind: type[Event], approver: Any, draft: Any, mapped: bool
) -> None:
    options: dict[str, Any] = {"max_retries": 2, "retry_count": 0}
    defined = pipeline("draft", "other", **options)
    if mapped:
        step = PipelineStep.from_cell("draft", "item", python=True, approve=True, map_over="rows", **options)
        defined = Pipeline("approval")
        defined.put(PipelineStep.from_cell("rows", "[1, 2]", python=True))
        defined.put(step)
    storage = Unwritable(kind)
    run = executor(defined, {"draft": draft, "rows": [1, 2]}, storage=storage, approver=approver)
    with pytest.raises(StorageUnavailableError, match="the disk is full"):
        await run.execute()
    assert storage.failed == 1
    [info] = await run.history()
    events = await storage.read_run(defined.id, info.run_id)
    assert [event for event in events if isinstance(event, StepFailed)] == []
