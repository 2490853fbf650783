"""Calls of tools that wait for a person: who is asked, what the model hears, and what is done once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import ModelRetry
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturn
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    ApprovalGiven,
    ApprovalRequest,
    ApprovalRequested,
    Approved,
    Edited,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    Rejected,
    StepContext,
    StepStatus,
    StepWaiting,
    tool,
)
from tagent_nb.engine.memory.pending_approvals import PendingApprovals
from tagent_nb.errors import DefinitionError, OutputValidationError, StepError, StorageUnavailableError
from tagent_nb.events import Event, StepProgress
from tagent_nb.runners import options_of, step_context
from tagent_nb.runners.tools import registry as tools_module
from tagent_nb.runners.tools.adapter import context_parameter
from tagent_nb.serde import value as codec

PATIENCE = 30.0
DONE: list[Any] = []
ASKED: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_module, "_registered", {})
    monkeypatch.setattr(tools_module, "_options", {})
    DONE.clear()
    ASKED.clear()


class Parcel(BaseModel):
    """What is sent."""

    product: str
    count: int = 1


def order(parcel: Parcel) -> str:
    """Order something."""
    DONE.append((parcel.product, parcel.count))
    return f"ordered {parcel.count} {parcel.product}"


def ordering(*products: str) -> FunctionModel:
    """A model that orders these things at once, and then says what it heard."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        ASKED["model"] += 1
        returned = [part for part in messages[-1].parts if part.part_kind == "tool-return"]
        if returned:
            return ModelResponse(parts=[TextPart("; ".join(str(part.content) for part in returned))])
        return ModelResponse(
            parts=[
                ToolCallPart("order", {"product": name}, tool_call_id=f"call {number}")
                for number, name in enumerate(products)
            ]
        )

    return FunctionModel(answer)


def shop(*products: str, **options: Any) -> Pipeline:
    settings = {"tools": [order], "approve_tools": ["order"], "max_retries": 0} | options
    return Pipeline("shop", model=ordering(*(products or ("tea",)))).step("buy", "Buy.", **settings)


class Until:
    """Observer: lets a test wait until a step waits so many times."""

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.seen = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepWaiting):
            self.times -= 1
            if not self.times:
                self.seen.set()

    async def come(self) -> None:
        assert await asyncio.to_thread(self.seen.wait, PATIENCE)


@pytest.mark.parametrize("agent", ["single", "plan"])
async def test_a_tool_does_not_run_unasked_because_its_name_is_mistyped(agent: str) -> None:
    with pytest.raises(PipelineValidationError, match="names 'ordr'.* Did you mean 'order'"):
        await PipelineExecutor(shop(approve_tools=["ordr"], agent=agent)).execute()
    assert DONE == []


async def test_an_approved_call_is_made_and_the_step_goes_on() -> None:
    seen: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> Approved:
        assert DONE == []
        seen.append(request)
        return Approved()

    result = await PipelineExecutor(shop(), approver=approver).execute()
    assert result["buy"] == "ordered 1 tea"
    [request] = seen
    assert (request.step, request.tool, request.schema) == ("buy", "order", None)
    assert request.value == Parcel(product="tea")
    assert request.title == "step 'buy': call of tool 'order'"
    assert request.parameters["properties"].keys() == {"product", "count"}
    assert result.steps["buy"].status is StepStatus.COMPLETED


async def test_a_tool_can_ask_for_approval_itself_and_other_tools_are_called_at_once() -> None:
    @tool(approval_required=True)
    def pay(amount: int) -> str:
        """Pay."""
        DONE.append("pay")
        return "paid"

    @tool
    def look(amount: int) -> str:
        """Look."""
        DONE.append("look")
        return "seen"

    seen: list[str] = []

    def approver(request: ApprovalRequest) -> Rejected:
        seen.append(request.tool)
        return Rejected("not now")

    defined = Pipeline("bank", model="test").step("act", "Act.")
    result = await PipelineExecutor(defined, approver=approver).execute()
    assert seen == ["pay"]
    assert DONE == ["look"]
    assert "The user does not allow this call: not now" in result["act"]


async def test_a_rejected_call_is_not_made_and_the_model_hears_why() -> None:
    result = await PipelineExecutor(shop(), approver=lambda request: Rejected("too dear")).execute()
    assert result["buy"] == "The user does not allow this call: too dear"
    assert DONE == []
    progress = [event for event in result.events if isinstance(event, StepProgress)]
    assert [event.kind for event in progress] == ["tool_call", "tool_rejected"]


async def test_edited_arguments_are_the_ones_that_the_tool_gets() -> None:
    def approver(request: ApprovalRequest) -> Edited:
        return Edited({"product": "coffee", "count": "2"})

    result = await PipelineExecutor(shop(), approver=approver).execute()
    assert DONE == [("coffee", 2)]
    assert result["buy"] == "ordered 2 coffee"


async def test_large_arguments_are_encoded_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other steps go on meanwhile."""
    arguments = {"text": "x" * 1_000_001, "to": "all"}
    threads: list[int] = []
    seal = codec._seal

    def watched(value: Any, path: str) -> Any:
        if value == arguments:
            threads.append(threading.get_ident())
        return seal(value, path)

    def send(text: str, to: str) -> str:
        """Send a text."""
        DONE.append((len(text), to))
        return "sent"

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("send", arguments)])
        return ModelResponse(parts=[TextPart("done")])

    monkeypatch.setattr(codec, "_seal", watched)
    defined = Pipeline("post", model=FunctionModel(answer))
    defined.step("post", "Post.", tools=[send], approve_tools=["send"], max_retries=0)
    result = await PipelineExecutor(defined, approver=lambda _: Approved(), storage=tmp_path).execute()
    assert result["post"] == "done"
    assert DONE == [(1_000_001, "all")]
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


def edits(*changed: dict[str, Any]) -> Any:
    """An approver that puts these arguments in place, in turn, and approves what comes after them."""
    left = list(changed)
    return lambda request: Edited(left.pop(0)) if left else Approved()


def heard(messages: list[ModelMessage]) -> str:
    """All that came with the returns of tools."""
    return " | ".join(str(part.content) for part in messages[-1].parts)


async def test_the_model_hears_that_the_user_changed_its_arguments(tmp_path: Path) -> None:
    """With the tool's value, and again from the record; the events say what was really called."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        ASKED["model"] += 1
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("order", {"product": "tea"})])
        return ModelResponse(parts=[TextPart(heard(messages))])

    defined = Pipeline("shop", model=FunctionModel(answer))
    defined.step("buy", "Buy.", tools=[order], approve_tools=["order"], max_retries=0)
    run = PipelineExecutor(defined, approver=edits({"product": "coffee", "count": 2}), storage=tmp_path)
    result = await run.execute()
    note = (
        "The user changed the arguments of this call before it was made. "
        'It was: order({"product": "coffee", "count": 2})'
    )
    assert result["buy"] == f"ordered 2 coffee | {note}"
    progress = [event for event in result.events if isinstance(event, StepProgress)]
    assert [(one.kind, one.detail["arguments"]) for one in progress] == [
        ("tool_call", {"parcel": "Parcel(product='tea', count=1)"}),
        ("tool_edited", {"product": "'coffee'", "count": "2"}),
    ]
    replayed = await run.execute(offline=True, use_cache=False)
    assert replayed["buy"] == result["buy"]
    assert DONE == [("coffee", 2)]


@pytest.mark.parametrize("kind", ["failed", "retry", "returned", "pictured"])
async def test_the_model_hears_of_changed_arguments_whatever_the_tool_does(kind: str) -> None:
    """Of a call that fails, and beside what the tool says of its own."""

    def pay(euros: int) -> Any:
        """Pay."""
        DONE.append(euros)
        if kind == "failed":
            raise ConnectionError("bank away")
        if kind == "retry":
            raise ModelRetry("try less")
        more = "by card" if kind == "returned" else ["by", "card"]
        return ToolReturn("paid", content=more, metadata={"a": 1})

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("pay", {"euros": 5})])
        return ModelResponse(parts=[TextPart(heard(messages))])

    defined = Pipeline("shop", model=FunctionModel(answer))
    defined.step("buy", "Buy.", tools=[pay], approve_tools=["pay"], max_retries=0)
    result = await PipelineExecutor(defined, approver=edits({"euros": 3})).execute()
    assert DONE == [3]
    assert 'It was: pay({"euros": 3})' in result["buy"]
    assert {"failed": "bank away", "retry": "try less"}.get(kind, "card") in result["buy"]


async def test_an_error_that_ends_the_step_stays_as_it_is_with_changed_arguments() -> None:
    def pay(euros: int) -> Any:
        """Pay."""
        raise StepError(f"no {euros}")

    defined = Pipeline("shop", model=TestModel())
    defined.step("buy", "Buy.", tools=[pay], approve_tools=["pay"], max_retries=0)
    result = await PipelineExecutor(defined, approver=edits({"euros": 3})).execute()
    assert result.error_details["buy"] == "StepError: no 3"


async def test_a_plan_shows_the_arguments_that_the_user_gave() -> None:
    """To the model that judges, and in the record of the plan; the task's result is the tool's own."""
    tasks = [
        {"id": "one", "description": "order", "tool": "order", "arguments": {"product": "tea"}},
        {"id": "two", "description": "Say {{ one }}", "tool": "llm", "arguments": {}},
    ]
    seen: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(str(messages[-1].parts[-1].content))
        if len(seen) == 1:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, {"tasks": tasks})])
        if info.output_tools:
            return ModelResponse(
                parts=[ToolCallPart(info.output_tools[0].name, {"achieved": True, "reason": ""})]
            )
        return ModelResponse(parts=[TextPart("done")])

    defined = Pipeline("plan", model=FunctionModel(answer))
    defined.step("buy", "Buy tea.", agent="plan", tools=[order], approve_tools=["order"], max_replans=0)
    result = await PipelineExecutor(defined, approver=edits({"product": "coffee"})).execute()
    assert (
        'order({"product": "coffee", "count": 1}) as changed by the user]: <data>ordered 1 coffee' in seen[-1]
    )
    first, second = result.step_metadata["buy"]["plan"]
    assert (first["arguments"], first["edited_by_user"]) == ({"product": "coffee", "count": "1"}, True)
    assert "edited_by_user" not in second


async def test_edited_arguments_that_the_tool_does_not_take_decide_nothing() -> None:
    waiting = Until()
    run = PipelineExecutor(shop(), approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    with pytest.raises(OutputValidationError, match="step 'buy': call of tool 'order'.*count"):
        run.approve("buy", value={"product": "tea", "count": "many"})
    run.approve("buy", tool="order", value={"product": "tea", "count": 3})
    await handle
    assert DONE == [("tea", 3)]


async def test_a_step_that_waits_has_no_slot_no_turn_and_no_clock() -> None:
    """One slot, SERIAL steps, a timeout: another step runs meanwhile, and the time of waiting is free."""
    defined = shop(timeout=0.5)
    defined.put(PipelineStep.from_cell("other", "7", python=True))
    waiting, ended = Until(), threading.Event()

    def observe(event: Event) -> None:
        if getattr(event, "step", "") == "other" and hasattr(event, "output"):
            ended.set()

    run = PipelineExecutor(defined, approver="wait", max_concurrency=1, observers=[waiting, observe])
    handle = run.start()
    await waiting.come()
    assert await asyncio.to_thread(ended.wait, PATIENCE)
    assert run.memory is not None
    assert run.memory.steps["buy"].status is StepStatus.WAITING
    assert run.memory.steps["buy"].waits_for == "approval of a call of order"
    await asyncio.sleep(0.6)
    run.approve("buy")
    result = await handle
    assert result["buy"] == "ordered 1 tea"
    assert result.steps["buy"].seconds < 0.6


async def test_calls_made_at_the_same_time_are_asked_for_one_by_one_and_go_on_together() -> None:
    waiting = Until(2)
    run = PipelineExecutor(shop("tea", "milk"), approver="wait", observers=[waiting])
    handle = run.start()
    await waiting.come()
    first, second = run.pending_approvals()
    run.decide(second, Approved())
    run.decide(first, Rejected("enough tea"))
    assert (await handle)["buy"] == "The user does not allow this call: enough tea; ordered 1 milk"


async def test_equal_calls_are_two_requests() -> None:
    models_asked: list[str] = []

    def approver(request: ApprovalRequest) -> Approved:
        models_asked.append(request.call)
        return Approved()

    await PipelineExecutor(shop("tea", "tea"), approver=approver).execute()
    assert len(set(models_asked)) == 2
    assert len(DONE) == 2


async def test_an_approver_that_fails_ends_the_step_and_calls_nothing() -> None:
    def approver(request: ApprovalRequest) -> Approved:
        raise ZeroDivisionError("oh")

    result = await PipelineExecutor(shop("tea", "milk"), approver=approver).execute()
    assert "its approver raised ZeroDivisionError" in result.error_details["buy"]
    assert DONE == []


async def test_without_anybody_to_ask_the_run_ends_and_the_call_is_made_when_it_is_resumed(
    tmp_path: Path,
) -> None:
    first = await PipelineExecutor(shop(), storage=tmp_path).execute()
    assert first.waiting_steps == ["buy"]
    assert first.steps["buy"].status is StepStatus.WAITING
    assert first.token_usage["buy"].requests == ASKED["model"] == 1
    assert DONE == []
    decider = PipelineExecutor(shop(), storage=tmp_path)
    [request] = await asyncio.to_thread(decider.pending_approvals)
    assert request.value == Parcel(product="tea", count=1)
    await asyncio.to_thread(decider.approve, "buy", value={"product": "tea", "count": 4})
    result = await PipelineExecutor(shop(), storage=tmp_path).execute(resume=True)
    assert result["buy"] == "ordered 4 tea"
    assert ASKED["model"] == result.token_usage["buy"].requests == 2
    assert len([event for event in result.events if isinstance(event, ApprovalRequested)]) == 1


async def test_an_edit_recorded_while_no_one_could_check_it_fails_the_step(tmp_path: Path) -> None:
    await PipelineExecutor(shop(), storage=tmp_path).execute()
    decider = PipelineExecutor(shop(), storage=tmp_path)
    await asyncio.to_thread(decider.approve, "buy", value={"count": 4})
    result = await PipelineExecutor(shop(), storage=tmp_path).execute(resume=True)
    assert "The edited value of step 'buy': call of tool 'order' will not do" in result.error_details["buy"]
    assert DONE == []


async def test_a_call_that_was_cut_short_is_asked_for_again(tmp_path: Path) -> None:
    """What was approved was begun; no one has approved that it is done twice."""

    async def order(parcel: Parcel) -> str:
        """Order something."""
        DONE.append("begun")
        if len(DONE) == 1:
            first.cancel()
            await asyncio.Event().wait()
        return "ordered"

    models_asked: list[str] = []

    def approver(request: ApprovalRequest) -> Approved:
        models_asked.append(request.tool)
        return Approved()

    def run() -> PipelineExecutor:
        return PipelineExecutor(shop(tools=[order]), storage=tmp_path, approver=approver)

    first = run()
    assert (await first.execute()).cancelled
    assert (await run().execute(resume=True))["buy"] == "ordered"
    assert models_asked == ["order", "order"]


async def test_items_of_a_map_are_held_and_left_one_by_one() -> None:
    defined = Pipeline("many", model=ordering("tea"))
    defined.put(PipelineStep.from_cell("load", "[1, 2]", python=True))
    defined.step("buy", "Buy {{ item }}.", map_over="load", tools=[order], approve_tools=["or*"])
    run = PipelineExecutor(defined)
    result = await run.execute()
    assert result.waiting_steps == ["buy"]
    items = [request.item for request in run.pending_approvals()]
    assert len(items) == 2
    run = PipelineExecutor(defined, approver=lambda request: Approved(), max_concurrency=1)
    result = await run.execute()
    assert result["buy"] == ["ordered 1 tea"] * 2


async def test_a_planning_step_asks_before_its_tools_act() -> None:
    plan = {
        "tasks": [{"id": "one", "description": "order", "tool": "order", "arguments": {"product": "tea"}}]
    }

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        ASKED["model"] += 1
        if ASKED["model"] == 1 and info.output_tools:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, plan)])
        return ModelResponse(parts=[TextPart("done")])

    seen: list[str] = []

    def approver(request: ApprovalRequest) -> Approved:
        seen.append(request.tool)
        return Approved()

    defined = Pipeline("plan", model=FunctionModel(answer))
    defined.step("buy", "Buy tea.", agent="plan", tools=[order], approve_tools=["order"], max_replans=0)
    await PipelineExecutor(defined, approver=approver).execute()
    assert seen == ["order"]
    assert DONE == [("tea", 1)]


# -- contexts and keys --------------------------------------------------------------------------------


async def test_a_tool_gets_the_context_of_its_step_and_the_model_does_not_see_it() -> None:
    schemas: list[dict[str, Any]] = []

    def order(product: str, context: StepContext) -> str:
        """Order something.

        Args:
            product: What.
        """
        context.learn("ordered", product)
        assert step_context() is context
        return f"{context.step} knows {dict(context.memories)}"

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        schemas.extend(tool.parameters_json_schema for tool in info.function_tools)
        last = messages[-1].parts[-1]
        if last.part_kind == "tool-return":
            return ModelResponse(parts=[TextPart(str(last.content))])
        return ModelResponse(parts=[ToolCallPart("order", {"product": "tea"})])

    defined = Pipeline("shop", model=FunctionModel(answer)).step("buy", "Buy.", tools=[order])
    result = await PipelineExecutor(defined).execute()
    assert result["buy"] == "buy knows {}"
    assert result.learned_facts == {"ordered": "tea"}
    assert schemas[0]["properties"].keys() == {"product"}
    assert "context" not in str(schemas[0])


async def keys(*calls: tuple[str, dict[str, Any]], tools: list[Any]) -> list[str]:
    """The keys that some calls of tools see."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        made = sum(part.part_kind == "tool-call" for message in messages for part in message.parts)
        if made == len(calls):
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart(*calls[made])])

    DONE.clear()
    defined = Pipeline("keys", model=FunctionModel(answer)).step("act", "Act.", tools=tools)
    result = await PipelineExecutor(defined).execute()
    assert result.success, result.error_details
    return [key.removeprefix(f"{result.run_id}:act:") for key in DONE]


def send(text: str) -> str:
    """Send a text."""
    DONE.append(step_context().idempotency_key)
    if text == "fails" and len(DONE) == 1:
        raise ConnectionError("gone")
    return "sent"


async def test_each_call_has_a_key_of_its_own_that_is_the_same_in_the_next_attempt() -> None:
    tea, milk = ("send", {"text": "tea"}), ("send", {"text": "milk"})
    first = await keys(tea, milk, tea, tools=[send])
    assert len(set(first)) == 3
    other_order = await keys(milk, tea, tea, tools=[send])
    assert set(other_order) == set(first)


async def test_a_call_that_failed_is_tried_again_under_its_key() -> None:
    fails = ("send", {"text": "fails"})
    first, second, third = await keys(fails, fails, fails, tools=[send])
    assert first == second != third


async def test_a_pure_tool_has_the_key_of_its_step() -> None:
    tool(pure=True)(send)
    [key] = await keys(("send", {"text": "tea"}), tools=[send])
    assert "send" not in key


async def test_what_a_tool_spends_and_notes_is_the_steps() -> None:
    def note(text: str, context: StepContext) -> str:
        """Note a text."""
        context.metadata["noted"] = text
        context.cost = 0.5
        return "noted"

    defined = Pipeline("notes", model="test").step("act", "Act.", tools=[note])
    result = await PipelineExecutor(defined).execute()
    assert result.step_metadata["act"]["noted"] == "a"
    assert result.total_cost == 0.5


async def test_step_errors_of_held_tools_end_the_step() -> None:
    def order(parcel: Parcel) -> str:
        """Order something."""
        raise StepError("the shop is closed")

    run = PipelineExecutor(shop(tools=[order]), approver=lambda request: Approved())
    assert "the shop is closed" in (await run.execute()).error_details["buy"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(x: int, where: StepContext): ...", "where"),
        ("def f(x: int, where: 'tagent_nb.StepContext'): ...", "where"),
        ("def f(context, x: int): ...", "context"),
        ("def f(context: str): ...", None),
        ("def f(): ...", None),
    ],
)
def test_the_parameter_for_the_context_is_recognised_by_its_type_or_its_bare_name(
    source: str, name: str | None
) -> None:
    space: dict[str, Any] = {"StepContext": StepContext}
    exec(source, space)
    assert context_parameter(space["f"]) == name


def test_what_has_no_signature_takes_no_context() -> None:
    assert context_parameter(dict.update) is None or context_parameter(type) is None


def test_a_tool_is_pure_or_not() -> None:
    with pytest.raises(DefinitionError, match="either pure or has a side effect"):
        tool(pure=True, side_effect=True)
    assert options_of(tool(side_effect=True)(send)).effect == "side_effect"
    assert options_of(order).effect == ""


def test_a_decision_on_what_was_never_asked_changes_nothing() -> None:
    pending = PendingApprovals()
    pending.decide(ApprovalGiven(run_id="r", step="a", verdict="approved"))
    assert pending.undecided() == []
    assert not pending


@pytest.mark.parametrize("kind", [ApprovalRequested, ApprovalGiven])
async def test_a_word_on_a_call_that_cannot_be_recorded_ends_the_run(
    kind: type[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ordered, the model hears nothing of it, and no step has failed."""
    storage = MemoryStorageBackend()
    append, failed = storage.append, []

    async def full(pipeline_id: str, run_id: str, events: Any, **more: Any) -> None:
        if not failed and any(isinstance(event, kind) for event in events):
            failed.append(True)
            raise StorageUnavailableError("the disk is full")
        await append(pipeline_id, run_id, events, **more)

    monkeypatch.setattr(storage, "append", full)
    executor = PipelineExecutor(shop(), storage=storage, approver=lambda request: Approved())
    with pytest.raises(StorageUnavailableError, match="the disk is full"):
        await executor.execute()
    assert (DONE, ASKED["model"]) == ([], 1)
    assert executor.memory is not None
    assert not executor.memory.steps["buy"].error
