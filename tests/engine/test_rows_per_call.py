"""Rows that share calls of a model: each ends with its own value or error, whatever the model does."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai.exceptions import ModelAuthenticationError, ModelHTTPError, ModelRequestRejectedError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from tagent_nb import (
    ApprovalRequest,
    Approved,
    DefinitionError,
    FileStorageBackend,
    Limit,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    PipelineValidationError,
    Price,
    Rejected,
    ResultCache,
    StepContext,
    tool,
)
from tagent_nb.events import Event, TokenUsage
from tagent_nb.results import ItemResult, RunHistory
from tagent_nb.runners import CallMiddleware, RowGroups
from tagent_nb.runners.agent.shared_call import row_ids, rows_prompt
from tagent_nb.runners.row_groups import Seat, cost_parts, usage_parts
from tagent_nb.runners.tools import registry as tools_module
from tests.fake_openai import KEY, Act, FakeOpenAI, error, fake_openai

BLOCK = re.compile(r"<row (\w+)>\n(.*?)\n</row \1>", re.DOTALL)
DATA = re.compile(r"<data>(.*?)</data>", re.DOTALL)


class Length(BaseModel):
    text: str
    length: int


def measured(text: str) -> dict[str, Any]:
    return {"text": text, "length": len(text)}


Spoil = Callable[[list[dict[str, Any]]], Any]


class Server:
    """A model that measures texts, one or several in a call.

    Args:
        spoil: What becomes of the right entries of a shared call, by its number. It may return a text, which
            is then the answer, or raise.
        alone: What becomes of the right value of a row that is asked for by itself, by its text.
        usage: What each answer takes.
    """

    def __init__(
        self,
        spoil: Callable[[int, list[dict[str, Any]]], Any] | None = None,
        alone: Callable[[str], Any] = measured,
        usage: RequestUsage | None = None,
    ) -> None:
        self.lock = threading.Lock()  # with one, it is no part of a fingerprint
        self.spoil = spoil
        self.alone = alone
        self.usage = usage
        self.prompts: list[str] = []
        self.shared: list[list[str]] = []
        self.singles: list[str] = []
        self.settings: list[Any] = []
        self.most = self.under_way = 0
        self.gate: asyncio.Event | None = None
        self.executor: Any = None
        self.checked = 0

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompt = str(messages[0].parts[-1].content)  # type: ignore[union-attr]
        self.prompts.append(prompt)
        self.settings.append(info.model_settings)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            return self._response(self._said(prompt), info)
        finally:
            self.under_way -= 1

    def _said(self, prompt: str) -> Any:
        blocks = BLOCK.findall(prompt)
        if not blocks:
            text = DATA.findall(prompt)[-1]
            self.singles.append(text)
            return self.alone(text)
        texts = [DATA.findall(block)[-1] for _, block in blocks]
        self.shared.append(texts)
        entries = [
            {"row": row, "value": measured(text)} for (row, _), text in zip(blocks, texts, strict=True)
        ]
        number = len(self.shared) - 1
        rows = entries if self.spoil is None else self.spoil(number, entries)
        return rows if isinstance(rows, str) else {"rows": rows}

    def _response(self, said: Any, info: AgentInfo) -> ModelResponse:
        usage = {} if self.usage is None else {"usage": self.usage}
        if isinstance(said, str):
            return ModelResponse([TextPart(said)], **usage)
        if not info.output_tools:
            return ModelResponse([TextPart(json.dumps(said))], **usage)
        return ModelResponse([ToolCallPart(info.output_tools[0].name, said)], **usage)

    async def stop_at_the_third(self, value: Length) -> None:
        """A check that stops the run and waits for that."""
        self.checked += 1
        if self.checked == 3:
            self.executor.cancel()
            await asyncio.Event().wait()

    def model(self) -> FunctionModel:
        return FunctionModel(self.answer, model_name="measures")


def pipeline_of(server: Server, texts: Sequence[str], **options: Any) -> Pipeline:
    pipeline = Pipeline("texts", model=server.model())
    rows = list(texts)

    @pipeline.task
    def load() -> list[str]:
        return rows

    options = {"output_schema": Length, "rows_per_call": 4, "max_retries": 0, "output_retries": 0} | options
    pipeline.step("measure", "How long is this text: {{ load }}", map_over="load", **options)
    return pipeline


def texts_of(number: int) -> list[str]:
    return ["x" * (n + 1) + f" {n}" for n in range(number)]


def run(pipeline: Pipeline, **options: Any) -> tuple[PipelineResult, list[ItemResult]]:
    result = PipelineExecutor(pipeline, retry_delay=0.0, **options).run()
    return result, items_of(result)


def items_of(result: PipelineResult) -> list[ItemResult]:
    return list((result.steps["measure"].items or {}).values())


def right(texts: Sequence[str]) -> list[Length]:
    return [Length(**measured(text)) for text in texts]


def assert_own_values(texts: Sequence[str], items: Sequence[ItemResult]) -> None:
    """No row has the value of another."""
    for text, item in zip(texts, items, strict=True):
        if item.status.has_value:
            assert item.output is not None
            assert item.output.value == Length(**measured(text))


# -- what is asked, and how often ---------------------------------------------------------------


def test_rows_are_asked_for_in_as_few_calls_as_hold_them() -> None:
    server, texts = Server(), texts_of(10)
    result, items = run(pipeline_of(server, texts))
    assert result.step_outputs["measure"] == right(texts)
    assert [len(rows) for rows in server.shared] == [4, 4, 2]
    assert server.singles == []
    assert [item.rows_in_call for item in items] == [4] * 8 + [2] * 2
    frame = RunHistory([result], []).items_frame("measure")
    assert frame.rows_in_call.tolist() == [4] * 8 + [2] * 2
    assert frame.requests.sum() == 3
    assert frame.asked_alone.isna().all()


def test_the_task_is_said_once_and_each_row_stands_between_marks_of_its_own() -> None:
    server = Server()
    texts = texts_of(12)
    run(pipeline_of(server, texts, rows_per_call=12))
    (prompt,) = server.prompts
    assert prompt.count("How long is this text") == 1
    ids, blocks = zip(*BLOCK.findall(prompt), strict=True)
    assert list(blocks) == [f"<data>{text}</data>" for text in texts]
    assert len(set(ids)) == len(texts)


def test_a_single_row_shares_its_call_with_none() -> None:
    server = Server()
    result, items = run(pipeline_of(server, ["one"]))
    assert result.step_outputs["measure"] == right(["one"])
    assert (len(server.prompts), items[0].rows_in_call) == (1, 1)


def test_no_rows_ask_nothing() -> None:
    server = Server()
    result, _ = run(pipeline_of(server, []))
    assert (result.step_outputs["measure"], server.prompts) == ([], [])


def test_a_text_is_answered_without_a_schema() -> None:
    def shout(number: int, entries: list[dict[str, Any]]) -> Any:
        return [{"row": entry["row"], "value": entry["value"]["text"].upper()} for entry in entries]

    server = Server(shout, alone=str.upper)
    result, _ = run(pipeline_of(server, ["one", "two", "three"], output_schema=None))
    assert result.step_outputs["measure"] == ["ONE", "TWO", "THREE"]
    assert len(server.prompts) == 1


@pytest.mark.parametrize("mode", ["tool", "prompted"])
def test_each_output_mode_asks_for_a_list(mode: str) -> None:
    server, texts = Server(), texts_of(4)
    result, _ = run(pipeline_of(server, texts, output_mode=mode))
    assert result.step_outputs["measure"] == right(texts)
    assert len(server.prompts) == 1


def test_a_bare_list_in_a_text_is_taken_for_the_rows() -> None:
    server = Server(lambda number, entries: json.dumps(entries))
    result, _ = run(pipeline_of(server, ["one", "two"], output_mode="prompted"))
    assert result.step_outputs["measure"] == right(["one", "two"])
    assert len(server.prompts) == 1


# -- whatever a model does ------------------------------------------------------------------------

UNKNOWN = {"row": "zzzzz", "value": measured("another")}

SPOILS: Mapping[str, Spoil] = {
    "right": lambda entries: entries,
    "other order": lambda entries: entries[::-1],
    "first is missing": lambda entries: entries[1:],
    "all are missing": lambda entries: [],
    "first is there twice": lambda entries: [entries[0], *entries],
    "an ID is invented": lambda entries: [*entries, UNKNOWN],
    "all IDs are counted": lambda entries: [
        {**entry, "row": str(number)} for number, entry in enumerate(entries, 1)
    ],
    "first is invalid": lambda entries: [{**entries[0], "value": {"length": "?"}}, *entries[1:]],
    "first has no value": lambda entries: [{"row": entries[0]["row"]}, *entries[1:]],
    "no objects": lambda entries: [7, "x", None, *entries],
    "no list": lambda entries: {entry["row"]: entry["value"] for entry in entries},
    "a text": lambda entries: "They are all rather short.",
    "nothing": lambda entries: "",
}


def _raise(error: Exception) -> Any:
    raise error


ERRORS: Mapping[str, Callable[[], Exception]] = {
    "rejected": lambda: ModelHTTPError.for_category(
        ModelRequestRejectedError, status_code=400, model_name="measures", body={"error": "no"}
    ),
    "overloaded": lambda: ModelHTTPError(503, "measures", {"error": "later"}),
    "broken": lambda: ValueError("broken"),
}
ALONE: Mapping[str, Callable[[str], Any]] = {
    "right": measured,
    "invalid": lambda text: {"text": text},
    "rejected": lambda text: _raise(ERRORS["rejected"]()),
}


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 13),
    size=st.integers(2, 6),
    behaviours=st.lists(st.sampled_from([*SPOILS, *ERRORS]), min_size=1, max_size=4),
    alone=st.lists(st.sampled_from([*ALONE]), min_size=1, max_size=5),
    at_once=st.integers(1, 3),
)
def test_every_row_ends_with_its_own_value_or_its_own_error(
    rows: int, size: int, behaviours: list[str], alone: list[str], at_once: int
) -> None:
    texts = texts_of(rows)

    def spoil(number: int, entries: list[dict[str, Any]]) -> Any:
        behaviour = behaviours[number % len(behaviours)]
        if behaviour in ERRORS:
            raise ERRORS[behaviour]()
        return SPOILS[behaviour](entries)

    def by_itself(text: str) -> Any:
        return ALONE[alone[texts.index(text) % len(alone)]](text)

    server = Server(spoil, by_itself)
    result, items = run(
        pipeline_of(server, texts, rows_per_call=size, min_success=0.0), max_concurrency=at_once
    )
    assert result.success
    assert_own_values(texts, items)
    # Each row is asked for by itself at most once.
    assert len(server.singles) == len(set(server.singles))
    if "rejected" not in behaviours:
        # Each row is in one shared call, and one that is not full is enough for those that are left over.
        assert sorted(text for call in server.shared for text in call) == sorted(texts)
        assert [len(call) for call in server.shared].count(size) >= rows // size
        assert len(server.shared) == -(-rows // size)
    for text, item in zip(texts, items, strict=True):
        # A call that was rejected is made again for each half; the last one counts.
        number = max((n for n, call in enumerate(server.shared) if text in call), default=None)
        behaviour = "rejected" if number is None else behaviours[number % len(behaviours)]
        was_alone = text in server.singles
        assert bool(item.asked_alone) == was_alone
        if behaviour in ("overloaded", "broken"):
            assert not item.status.has_value
            assert not was_alone
        elif not was_alone:
            assert item.status.has_value
        else:
            assert item.status.has_value == (alone[texts.index(text) % len(alone)] == "right")
    assert sum((item.usage for item in items), TokenUsage()) == result.steps["measure"].usage


def test_one_refused_row_fails_alone() -> None:
    """A provider that rejects a request for what one row says rejects that row only, in the end."""

    def reject(number: int, entries: list[dict[str, Any]]) -> Any:
        if any(entry["value"]["text"] == "bad" for entry in entries):
            raise ERRORS["rejected"]()
        return entries

    def by_itself(text: str) -> Any:
        return _raise(ERRORS["rejected"]()) if text == "bad" else measured(text)

    texts = ["one", "bad", "three", "four", "five"]
    server = Server(reject, by_itself)
    _, items = run(pipeline_of(server, texts, min_success=0.0))
    assert [item.status.has_value for item in items] == [True, False, True, True, True]
    assert "rejected the request" in items[1].error
    assert "HTTP 400" in items[0].asked_alone
    assert sorted(server.shared, key=len) == [["five"], ["one", "bad"], ["three", "four"], texts[:4]]
    assert server.singles == ["one", "bad"]


def limited(most: int) -> Server:
    """A model whose provider rejects calls for more rows."""
    return Server(lambda number, entries: entries if len(entries) <= most else _raise(ERRORS["rejected"]()))


def test_too_many_rows_for_a_model_are_asked_for_in_halves_and_then_no_more_at_once() -> None:
    server, texts = limited(3), texts_of(22)
    result, items = run(pipeline_of(server, texts, rows_per_call=10), max_concurrency=1)
    assert result.step_outputs["measure"] == right(texts)
    assert server.singles == []
    # 10, 5 and 5 are too many; what then works is all that is asked for later.
    assert [len(call) for call in server.shared] == [10, 5, 3, 2, 5, 3, 2, *[3, 3, 3, 1], 2]
    assert {item.rows_in_call for item in items} == {1, 2, 3}
    (warning,) = result.warnings
    assert warning.startswith(
        "Step 'measure': the model rejected a call for 5 rows, and took calls for 3, so no later one is for "
        "more. Set a smaller rows_per_call"
    )
    assert "HTTP 400" in warning


def test_a_model_that_rejects_all_calls_for_several_rows_is_asked_for_each_by_itself() -> None:
    server, texts = limited(0), texts_of(12)
    result, items = run(pipeline_of(server, texts), max_concurrency=1)
    assert result.step_outputs["measure"] == right(texts)
    assert [len(call) for call in server.shared] == [4, 2, 2]
    assert server.singles == texts
    (warning,) = result.warnings
    assert "rejected a call for 4 rows, and all smaller ones" in warning
    assert "rejected all calls for several rows" in items[-1].asked_alone


def test_a_run_says_once_that_calls_are_for_fewer_rows() -> None:
    def spoil(number: int, entries: list[dict[str, Any]]) -> Any:
        return entries if len(entries) <= (4 if number < 3 else 2) else _raise(ERRORS["rejected"]())

    server, texts = Server(spoil), texts_of(16)
    result, _ = run(pipeline_of(server, texts, rows_per_call=8), max_concurrency=1)
    assert sorted(len(call) for call in server.shared) == [2, 2, 2, 2, 4, 4, 4, 4, 8]
    assert len(result.warnings) == 1


def test_one_row_too_many_of_three_is_asked_for_by_itself() -> None:
    server, texts = limited(2), texts_of(3)
    result, _ = run(pipeline_of(server, texts))
    assert result.step_outputs["measure"] == right(texts)
    assert (server.singles, [len(call) for call in server.shared]) == (texts[2:], [3, 2])


def test_a_half_that_fails_in_another_way_leaves_the_other_its_answers() -> None:
    def spoil(number: int, entries: list[dict[str, Any]]) -> Any:
        return _raise(ERRORS[("rejected", "broken")[number]]()) if number < 2 else entries

    _, items = run(pipeline_of(Server(spoil), texts_of(4), min_success=0.0))
    assert [item.status.has_value for item in items] == [False, False, True, True]
    assert "broken" in items[0].error


def test_a_cut_answer_is_asked_for_row_by_row() -> None:
    class Cut(Server):
        def _response(self, said: Any, info: AgentInfo) -> ModelResponse:
            response = super()._response(said, info)
            if "rows" in said:
                response.finish_reason = "length"
                response.parts = [TextPart('{"rows": [{"row": "')]
            return response

    server, texts = Cut(), texts_of(3)
    result, items = run(pipeline_of(server, texts))
    assert result.step_outputs["measure"] == right(texts)
    assert server.singles == texts
    assert all("cut off" in item.asked_alone for item in items)


def test_a_row_that_a_check_refuses_is_asked_for_by_itself() -> None:
    def short(value: Length) -> None:
        if value.length > 4:
            raise ValueError("it is long")

    server = Server(alone=lambda text: {"text": text, "length": 1})
    result, items = run(pipeline_of(server, ["one", "twenty", "two"], checks=[short]))
    assert result.step_outputs["measure"] == [
        Length(text="one", length=3),
        Length(text="twenty", length=1),
        Length(text="two", length=3),
    ]
    assert server.singles == ["twenty"]
    assert "it is long" in items[1].asked_alone


def test_what_is_invalid_says_why_in_the_frame_and_comes_back_with_the_stored_run() -> None:
    server = Server(lambda number, entries: SPOILS["first is invalid"](entries))
    result, _ = run(pipeline_of(server, texts_of(4)))
    back = PipelineResult.from_json(result.to_json(), schemas=[Length])
    first, second, *_ = items_of(back)
    assert "not valid" in first.asked_alone
    assert (second.asked_alone, second.rows_in_call) == ("", 4)


# -- what it takes ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 50), st.floats(0.0, 100.0), st.integers(1, 40))
def test_parts_add_up_to_the_whole(tokens: int, cached: int, cost: float, parts: int) -> None:
    usage = TokenUsage(input_tokens=tokens, output_tokens=tokens // 3, cached_tokens=cached, requests=1)
    counts = usage_parts(usage, parts)
    assert sum(counts, TokenUsage()) == usage
    assert max(part.input_tokens for part in counts) - min(part.input_tokens for part in counts) <= 1
    shares = cost_parts(cost, parts)
    assert sum(share or 0.0 for share in shares) == pytest.approx(cost, abs=1e-12, rel=1e-12)
    assert cost_parts(None, parts) == [None] * parts


def test_tokens_requests_and_usd_of_a_call_are_divided_over_its_rows() -> None:
    server = Server(usage=RequestUsage(input_tokens=1003, output_tokens=401))
    prices = {"function:measures": Price(1.0, 2.0)}
    result, items = run(pipeline_of(server, texts_of(10)), prices=prices)
    assert [item.usage.input_tokens for item in items[:4]] == [251, 251, 251, 250]
    assert [item.usage.requests for item in items] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert sum((item.usage for item in items), TokenUsage()) == result.steps["measure"].usage
    assert result.steps["measure"].usage == TokenUsage(3 * 1003, 3 * 401, requests=3)
    assert result.total_cost == pytest.approx(3 * (1003 + 802) / 1e6)
    assert sum(item.cost or 0.0 for item in items) == pytest.approx(result.total_cost)


def test_tokens_that_are_not_reported_are_assumed_for_each_row() -> None:
    server = Server(usage=RequestUsage(unmeasured_requests=1))
    result, items = run(pipeline_of(server, texts_of(4)), prices={"function:measures": Price(1.0, 2.0)})
    assert result.steps["measure"].usage.unmeasured
    assert all(item.usage.unmeasured and item.cost is None for item in items)
    assert result.unpriced_steps == ["measure"]


def test_max_tokens_are_those_of_one_row() -> None:
    server = Server(lambda number, entries: entries[1:])
    run(pipeline_of(server, texts_of(4), settings={"max_tokens": 100}))
    shared, single = server.settings
    assert shared["max_tokens"] >= 4 * 100
    assert single["max_tokens"] == 100


def test_an_answer_that_ends_for_an_unknown_reason_is_not_cached(tmp_path: Path) -> None:
    class Odd(Server):
        def _response(self, said: Any, info: AgentInfo) -> ModelResponse:
            response = super()._response(said, info)
            response.provider_details = {"finish_reason": "tired"}
            return response

    server = Odd()
    pipeline = pipeline_of(server, texts_of(4))
    result, _ = run(pipeline, cache=ResultCache(tmp_path))
    assert any("'tired'" in warning for warning in result.warnings)
    run(pipeline, cache=ResultCache(tmp_path))
    assert len(server.prompts) == 2


# -- cache, journal and runs that are carried on ----------------------------------------------------


def test_rows_are_cached_one_by_one(tmp_path: Path) -> None:
    server, texts, cache = Server(), texts_of(12), ResultCache(tmp_path)
    run(pipeline_of(server, texts), cache=cache)
    changed = [*texts]
    changed[2], changed[6], changed[11] = "new", "other", "last"
    result, items = run(pipeline_of(server, changed), cache=cache)
    assert result.step_outputs["measure"] == right(changed)
    assert server.shared[3:] == [["new", "other", "last"]]
    assert [item.rows_in_call for item in items] == [4, 4, 3, 4, 4, 4, 3, 4, 4, 4, 4, 3]


def test_another_number_of_rows_asks_again_and_says_so(tmp_path: Path) -> None:
    server, texts, cache = Server(), texts_of(4), ResultCache(tmp_path)
    run(pipeline_of(server, texts), cache=cache)
    run(pipeline_of(server, texts, rows_per_call=2), cache=cache)
    assert [len(call) for call in server.shared] == [4, 2, 2]


async def test_a_plan_says_that_the_number_of_rows_has_changed(tmp_path: Path) -> None:
    server, texts = Server(), texts_of(4)
    storage, cache = FileStorageBackend(tmp_path / "runs"), ResultCache(tmp_path / "cache")
    for rows, says in ((4, "first run"), (2, "rows_per_call changed from 4 to 2"), (1, "rows_per_call")):
        pipeline = pipeline_of(server, texts, rows_per_call=rows)
        executor = PipelineExecutor(pipeline, storage=storage, cache=cache)
        assert says in (await executor.plan())["measure"].why
        await executor.execute()


@pytest.mark.parametrize("at_once", [1, 8])
def test_equal_rows_are_asked_for_once(tmp_path: Path, at_once: int) -> None:
    """A row that waits for an equal one brings no other: the call must not wait for it."""
    server, texts = Server(), ["one"] * 7 + ["two"] + ["one"] * 3
    result, _ = run(pipeline_of(server, texts), cache=ResultCache(tmp_path), max_concurrency=at_once)
    assert result.step_outputs["measure"] == right(texts)
    assert sorted(text for call in server.shared for text in call) == ["one", "two"]


def test_equal_rows_have_ids_of_their_own_where_nothing_is_cached() -> None:
    server = Server()
    result, _ = run(pipeline_of(server, ["one"] * 4))
    assert result.step_outputs["measure"] == right(["one"] * 4)
    assert [len(call) for call in server.shared] == [4]


def test_a_failed_call_is_made_again_for_the_same_rows() -> None:
    """Whatever each of them waits before its next attempt: there are no more calls than before."""

    def fail_first(number: int, entries: list[dict[str, Any]]) -> Any:
        return entries if number else _raise(ERRORS["overloaded"]())

    server, texts = Server(fail_first), texts_of(4)
    pipeline = pipeline_of(server, texts, max_retries=1)
    result = PipelineExecutor(pipeline, retry_delay=0.05).run()
    assert result.step_outputs["measure"] == right(texts)
    assert [sorted(call) for call in server.shared] == [sorted(texts)] * 2
    assert [item.attempts for item in items_of(result)] == [2] * 4


async def test_a_stopped_run_pays_for_what_it_has_not_recorded(tmp_path: Path) -> None:
    server, texts = Server(), texts_of(10)
    executor: PipelineExecutor

    def stop(number: int, entries: list[dict[str, Any]]) -> Any:
        if number == 1:
            executor.cancel()
        return entries

    server.spoil = stop
    pipeline = pipeline_of(server, texts)
    executor = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path), max_concurrency=1)
    stopped = await executor.execute()
    assert stopped.cancelled
    server.spoil = None
    carried_on = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path), max_concurrency=1)
    result = await carried_on.execute(resume=True)
    assert result.step_outputs["measure"] == right(texts)
    assert [len(call) for call in server.shared] == [4, 4, 4, 2]


async def test_what_the_journal_has_of_a_row_answers_for_it_in_any_company(tmp_path: Path) -> None:
    """The call is recorded for each of its rows before anything acts on it."""
    server, texts = Server(usage=RequestUsage(input_tokens=100, output_tokens=40)), texts_of(6)
    prices = {"function:measures": Price(1.0, 2.0)}
    pipeline = pipeline_of(server, texts, checks=[server.stop_at_the_third])
    storage = FileStorageBackend(tmp_path)
    server.executor = PipelineExecutor(pipeline, storage=storage, max_concurrency=1, prices=prices)
    await server.executor.execute()
    assert [len(call) for call in server.shared] == [4]
    carried_on = PipelineExecutor(
        pipeline, storage=FileStorageBackend(tmp_path), max_concurrency=1, prices=prices
    )
    result = await carried_on.execute(resume=True)
    assert result.step_outputs["measure"] == right(texts)
    assert server.shared[1:] == [texts[4:]]
    assert result.steps["measure"].usage == TokenUsage(200, 80, requests=2)
    assert result.total_cost == pytest.approx(2 * 180 / 1e6)


async def test_an_offline_run_is_answered_by_the_journal(tmp_path: Path) -> None:
    server = Server(
        lambda number, entries: SPOILS["first is missing"](entries),
        usage=RequestUsage(input_tokens=100, output_tokens=40),
    )
    texts = texts_of(6)
    executor = PipelineExecutor(pipeline_of(server, texts), storage=FileStorageBackend(tmp_path))
    online = await executor.execute()
    asked = len(server.prompts)
    again = PipelineExecutor(pipeline_of(server, texts[::-1]), storage=FileStorageBackend(tmp_path))
    result = await again.execute(offline=True)
    assert result.step_outputs["measure"] == right(texts[::-1])
    assert len(server.prompts) == asked
    assert result.steps["measure"].usage == online.steps["measure"].usage
    assert sorted(item.rows_in_call for item in items_of(result)) == [2, 2, 4, 4, 4, 4]


# -- concurrency, stops, and who else is in the way -----------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_call_takes_one_slot(at_once: int) -> None:
    server, texts = Server(lambda number, entries: entries[1:]), texts_of(40)
    result, _ = run(pipeline_of(server, texts), max_concurrency=at_once)
    assert result.step_outputs["measure"] == right(texts)
    assert server.most == at_once
    assert [len(call) for call in server.shared] == [4] * 10


async def test_what_is_left_over_does_not_wait_for_calls_under_way() -> None:
    server, texts = Server(), texts_of(6)
    server.gate = asyncio.Event()
    running = asyncio.ensure_future(PipelineExecutor(pipeline_of(server, texts)).execute())
    while server.under_way < 2:
        await asyncio.sleep(0)
    server.gate.set()
    assert (await running).step_outputs["measure"] == right(texts)


async def test_a_paused_run_makes_no_call() -> None:
    server, texts = Server(), texts_of(12)
    executor: PipelineExecutor

    def pause(number: int, entries: list[dict[str, Any]]) -> Any:
        if number == 0:
            executor.pause()
        return entries

    server.spoil = pause
    executor = PipelineExecutor(pipeline_of(server, texts), max_concurrency=1)
    running = asyncio.ensure_future(executor.execute())
    while not server.shared:
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(server.shared) == 1
    executor.resume()
    assert (await running).step_outputs["measure"] == right(texts)


async def test_a_stopped_run_stops_its_call_and_what_waits() -> None:
    server, texts = Server(), texts_of(6)
    server.gate = asyncio.Event()
    executor = PipelineExecutor(pipeline_of(server, texts), max_concurrency=1)
    running = asyncio.ensure_future(executor.execute())
    while not server.under_way:
        await asyncio.sleep(0)
    executor.cancel()
    assert (await running).cancelled
    assert server.under_way == 0


def test_a_call_that_no_row_waits_for_any_more_is_stopped() -> None:
    server, texts = Server(), texts_of(4)
    server.gate = asyncio.Event()
    result, items = run(pipeline_of(server, texts, timeout=0.05, min_success=0.0))
    assert {item.error_type for item in items} == {"StepTimeoutError"}
    assert server.under_way == 0
    assert result.steps["measure"].usage == TokenUsage()


def test_time_that_a_row_waits_for_its_call_is_not_of_its_timeout() -> None:
    """Nor time in which its provider asks for fewer requests."""
    server, texts = Server(), texts_of(8)
    events: list[Event] = []
    result, _ = run(
        pipeline_of(server, texts, timeout=30.0),
        limits={"function": Limit(concurrency=1)},
        observers=[events.append],
    )
    assert result.step_outputs["measure"] == right(texts)
    waiting = [event for event in events if type(event).__name__ == "StepWaiting"]
    unblocked = [event for event in events if type(event).__name__ == "StepUnblocked"]
    assert len(waiting) == len(unblocked) == 4


def test_budgets_count_a_call_once() -> None:
    server, texts = Server(usage=RequestUsage(input_tokens=100, output_tokens=40)), texts_of(8)
    result, items = run(pipeline_of(server, texts), budget="1 request", max_concurrency=1)
    assert not result.success
    assert [item.status.has_value for item in items] == [True] * 4 + [False] * 4
    assert {item.error_type for item in items[4:]} == {"BudgetExceededError"}


def test_rows_of_two_steps_that_do_the_same_are_asked_for_once(tmp_path: Path) -> None:
    server, texts = Server(), texts_of(6)
    pipeline = pipeline_of(server, texts)
    pipeline.put(pipeline.get_step("measure").with_(name="twin"))
    result = PipelineExecutor(pipeline, cache=ResultCache(tmp_path)).run()
    assert result.step_outputs["measure"] == result.step_outputs["twin"] == right(texts)
    assert sorted(text for call in server.shared for text in call) == sorted(texts)


def test_values_that_wait_for_approval_share_calls() -> None:
    refused: list[str] = []

    async def approver(request: ApprovalRequest) -> Approved | Rejected:
        if request.item == "1" and not refused:
            refused.append("1")
            return Rejected("measure again", retry=True)
        return Approved()

    server, texts = Server(), texts_of(6)
    result, _ = run(
        pipeline_of(server, texts, approve=True, max_retries=1), approver=approver, max_concurrency=1
    )
    assert result.step_outputs["measure"] == right(texts)
    assert sorted(len(call) for call in server.shared) in ([1, 2, 4], [3, 4])
    assert any("measure again" in prompt for prompt in server.prompts)


def test_middleware_sees_the_calls_and_not_the_rows() -> None:
    class Counts(CallMiddleware):
        calls = 0

        async def model_call(self, call: Any, proceed: Any) -> Any:
            self.calls += 1
            return await proceed(call)

    counts = Counts()
    run(pipeline_of(Server(), texts_of(8)), middleware=[counts])
    assert counts.calls == 2


def test_a_runner_that_does_not_share_calls_has_rows_one_by_one() -> None:
    class Own:
        version = "1"
        most = under_way = 0

        async def run(self, step: PipelineStep, context: Any) -> Any:
            assert context.rows is None
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await asyncio.sleep(0)
            self.under_way -= 1
            return measured(context.inputs["load"])

    own, texts = Own(), texts_of(9)
    result, _ = run(pipeline_of(Server(), texts), runners={"agent": own}, max_concurrency=2)
    assert result.step_outputs["measure"] == right(texts)
    assert own.most == 2


def test_a_model_that_reads_less_is_asked_for_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(model: Any, prompt: str) -> str:
        return "too long" if prompt.count("<row ") > 2 else ""

    monkeypatch.setattr("tagent_nb.runners.agent.shared_call.too_long", too_long)
    server, texts = Server(), texts_of(9)
    result, _ = run(pipeline_of(server, texts))
    assert result.step_outputs["measure"] == right(texts)
    assert [len(call) for call in server.shared] == [2, 2, 2, 2, 1]


def test_what_breaks_a_call_breaks_each_of_its_rows_and_nothing_waits_for_ever() -> None:
    server = Server(lambda number, entries: _raise(asyncio.CancelledError()))  # type: ignore[arg-type]
    result, items = run(pipeline_of(server, texts_of(2), min_success=0.0))
    assert {item.error_type for item in items} == {"CancelledError"}
    assert result.success


class Caller:
    """Answers each row with its task, or raises, when it may."""

    def __init__(self, groups: RowGroups, error: Exception | None = None) -> None:
        self.groups = groups
        self.error = error
        self.calls: list[list[str]] = []
        self.may_answer = asyncio.Event()

    def parts(self, seats: Sequence[Seat]) -> Sequence[Sequence[Seat]]:
        return [seats]

    async def ask(self, seats: Sequence[Seat]) -> list[ModelResponse]:
        self.calls.append([seat.task for seat in seats])
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [ModelResponse([TextPart(seat.task)]) for seat in seats]

    async def row(self, name: str) -> str | None:
        seat = Seat(StepContext("r", "p", "s", item=name), [name], self)
        with self.groups.asking():
            return (await self.groups.answer(seat)).text

    def start(self, name: str) -> asyncio.Future[str | None]:
        return asyncio.ensure_future(self.row(name))


async def test_a_row_that_is_stopped_while_its_call_gathers_is_in_no_call() -> None:
    caller = Caller(RowGroups(3, lambda: 3, lambda: False))
    caller.may_answer.set()
    first, second = caller.start("a"), caller.start("b")
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(second, caller.start("c"), caller.start("d")) == ["b", "c", "d"]
    assert caller.calls == [["b", "c", "d"]]
    assert first.cancelled()


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_a_row_that_is_stopped_leaves_its_call_to_the_others(error: Exception | None) -> None:
    caller = Caller(RowGroups(2, lambda: 2, lambda: False), error)
    first, second = caller.start("a"), caller.start("b")
    while not caller.calls:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    caller.may_answer.set()
    ended = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert ended[1] == ("b" if error is None else error)


def test_a_key_that_is_refused_is_not_tried_for_each_row() -> None:
    refused = ModelHTTPError.for_category(
        ModelAuthenticationError, status_code=401, model_name="measures", body={"error": "no"}
    )
    server = Server(lambda number, entries: _raise(refused))
    _, items = run(pipeline_of(server, texts_of(4), min_success=0.0))
    assert all("refused the key" in item.error for item in items)
    assert len(server.prompts) == 1


def test_middleware_may_answer_for_rows() -> None:
    class Answers(CallMiddleware):
        of_rows = True

        async def model_call(self, call: Any, proceed: Any) -> Any:
            if call.parameters.output_tools:
                return await proceed(call)  # of a row that is asked for by itself
            text = DATA.findall(call.messages[0].parts[0].content)[0]
            return ModelResponse([TextPart(json.dumps([measured(text)]) if text != "odd" else "odd")])

    server = Server()
    result, items = run(pipeline_of(server, ["one", "odd", "two"]), middleware=[Answers()])
    assert result.step_outputs["measure"] == right(["one", "odd", "two"])
    assert [item.asked_alone for item in items] == ["", "the answer left it out", ""]


# -- what is said -----------------------------------------------------------------------------------


def test_tasks_that_are_built_alike_are_said_once() -> None:
    rows = [["Is ", f"<data>{n}{'x' * 30}</data>", " more than ", str(n), "?" * 80] for n in range(6)]
    prompt = rows_prompt(rows)
    assert "Is [[ROW 1]] more than [[ROW 2]]?" in prompt.text
    blocks = BLOCK.findall(prompt.text)
    assert [row for row, _ in blocks] == list(prompt.ids)
    assert blocks[3][1] == f"[[ROW 1]] {rows[3][1]}\n[[ROW 2]] 3"


@pytest.mark.parametrize(
    "rows",
    [
        [["one"], ["two", "three"]],
        [["same"], ["same"]],
        [["[[ROW]] is ", "one"], ["[[ROW]] is ", "two"]],
    ],
    ids=["built otherwise", "equal", "with marks of their own"],
)
def test_other_tasks_stand_whole_in_their_rows(rows: list[list[str]]) -> None:
    prompt = rows_prompt(rows)
    assert [text for _, text in BLOCK.findall(prompt.text)] == ["".join(pieces) for pieces in rows]


def test_ids_differ_and_are_the_same_each_time() -> None:
    tasks = [f"task {n % 700}" for n in range(1000)]
    ids = row_ids(tasks)
    assert len(set(ids)) == 1000
    assert ids == row_ids(tasks)
    assert all(row.isalpha() for row in ids)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rows_per_call": 0}, "whole number from 1 to 1,000"),
        ({"rows_per_call": True}, "whole number"),
        ({"rows_per_call": 1001}, "1,000"),
        ({"rows_per_call": 2, "map_over": None}, "Add map_over"),
        ({"rows_per_call": 2, "agent": "plan"}, "agent='plan'"),
        ({"rows_per_call": 2, "samples": 2}, "would not be independent"),
        ({"rows_per_call": 2, "batch": True}, "batch and rows_per_call exclude each other"),
        ({"rows_per_call": 2, "tools": [len]}, "calls tools"),
        ({"rows_per_call": 2, "tools_filter": ["a*"]}, "calls tools"),
        ({"rows_per_call": 2, "remember": True}, "calls tools"),
    ],
)
def test_what_cannot_share_calls_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(says)):
        PipelineStep(**{"name": "a", "goal": "{{ load }}", "map_over": "load", **options})


def test_a_python_step_shares_no_calls() -> None:
    with pytest.raises(DefinitionError, match="asks no model"):
        PipelineStep.from_cell("a", "1", python=True, map_over="load", rows_per_call=2)


def test_registered_tools_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools_module, "_registered", {})

    @tool
    def look_up(word: str) -> str:
        """Look a word up."""
        return word

    server = Server()
    with pytest.raises(PipelineValidationError, match="tools_filter=\\[\\]"):
        PipelineExecutor(pipeline_of(server, ["one"])).run()
    assert server.prompts == []
    result, _ = run(pipeline_of(server, ["one"], tools_filter=[]))
    assert result.success


# -- what a plan says -------------------------------------------------------------------------------


LONG = "Judge by length only, as you would by a ruler, and never by what a text says or means or hides. "


def long_goal(server: Server, texts: Sequence[str], **options: Any) -> Pipeline:
    pipeline = pipeline_of(server, texts, **options)
    goal = LONG + "How long is this text: {{ load }}"
    return pipeline.put(pipeline.get_step("measure").with_(goal=goal)) or pipeline


async def test_a_plan_counts_the_calls_that_then_are_made_and_what_they_save(tmp_path: Path) -> None:
    server, texts = Server(), texts_of(10)
    storage, cache = FileStorageBackend(tmp_path / "runs"), ResultCache(tmp_path / "cache")
    executor = PipelineExecutor(long_goal(server, texts), storage=storage, cache=cache)
    await executor.execute(until="load")
    plan = await executor.plan()
    quote = plan["measure"].quote
    assert quote is not None
    assert (quote.units, quote.calls, quote.saved_calls) == (10, 3, 7)
    assert quote.saved_tokens is not None
    assert quote.saved_tokens > 7 * len(LONG) // 8
    assert f"save 7 and {quote.saved_tokens} input tokens" in plan.total
    frame = plan.to_frame()
    assert (frame.loc["measure", "calls"], frame.loc["measure", "saved_calls"]) == (3, 7)
    alone = PipelineExecutor(long_goal(server, texts, rows_per_call=1), storage=storage, cache=cache)
    single = (await alone.plan())["measure"].quote
    assert single is not None
    assert (single.calls, single.saved_calls, single.saved_tokens) == (10, 0, 0)
    assert single.input_tokens[1] > quote.input_tokens[1]
    await executor.execute()
    assert len(server.prompts) == 3
    assert quote.input_tokens[0] <= sum(len(prompt) // 4 for prompt in server.prompts) + 3 * 150
    assert quote.input_tokens[1] >= sum(len(prompt) // 4 for prompt in server.prompts)


async def test_a_plan_goes_by_earlier_answers_of_rows_that_shared_calls(tmp_path: Path) -> None:
    """Of rows that were asked for by themselves after that, as many are expected again."""
    server = Server(
        lambda number, entries: entries[1:], usage=RequestUsage(input_tokens=1000, output_tokens=400)
    )
    storage, cache = FileStorageBackend(tmp_path / "runs"), ResultCache(tmp_path / "cache")
    executor = PipelineExecutor(long_goal(server, texts_of(8)), storage=storage, cache=cache)
    await executor.execute()
    assert len(server.prompts) == 2 + 2
    texts = [text * 2 for text in texts_of(40)]
    more = PipelineExecutor(long_goal(server, texts), storage=storage, cache=cache)
    dark = (await more.plan())["measure"].quote
    assert dark is not None  # how many rows there are is not known yet, and there were eight
    assert (dark.calls, dark.saved_calls, dark.saved_tokens) == (4, 6, None)
    await more.execute(until="load")
    quote = (await more.plan())["measure"].quote
    assert quote is not None
    assert quote.calls == 10 + 10
    result = await more.execute()
    used = result.steps["measure"].usage
    assert used.requests == 20
    assert quote.output_tokens[0] <= used.output_tokens <= quote.output_tokens[1]


async def test_a_plan_has_as_many_calls_as_the_model_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def too_long(model: Any, prompt: str) -> str:
        return "too long" if prompt.count("<row ") > 2 else ""

    monkeypatch.setattr("tagent_nb.runners.agent.shared_call.too_long", too_long)
    executor = PipelineExecutor(pipeline_of(Server(), texts_of(9)), cache=ResultCache(tmp_path))
    await executor.execute(until="load")
    quote = (await executor.plan())["measure"].quote
    assert quote is not None
    assert quote.calls == 5


def test_what_a_models_own_code_raises_all_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(model: Any, prompt: str) -> str:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("tagent_nb.runners.agent.shared_call.too_long", too_long)
    result, items = run(pipeline_of(Server(), texts_of(4), min_success=0.0))
    assert {item.error_type for item in items} == {"ZeroDivisionError"}
    assert result.success


# -- over the wire -------------------------------------------------------------------------------


def over_the_wire(texts: Sequence[str], **options: Any) -> Pipeline:
    pipeline = pipeline_of(Server(), texts, **options)
    return pipeline.put(pipeline.get_step("measure").with_(model="openai-chat:gpt-5-mini")) or pipeline


def ids_of(texts: Sequence[str]) -> list[str]:
    return row_ids([f"How long is this text: <data>{text}</data>" for text in texts])


def entries_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"row": row, "value": measured(text)} for row, text in zip(ids_of(texts), texts, strict=True)]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeOpenAI]]:
    with ExitStack() as servers:

        def start(*acts: Act) -> FakeOpenAI:
            server = servers.enter_context(fake_openai(*acts))
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            return server

        yield start


@pytest.mark.models
def test_a_provider_gets_one_request_and_one_schema_for_all_rows(serve: Callable[..., FakeOpenAI]) -> None:
    texts = texts_of(4)
    server = serve(Act(tool="final_result", arguments={"rows": entries_of(texts)[::-1]}))
    result, items = run(over_the_wire(texts), prices={"openai-chat:gpt-5-mini": Price(1.0, 2.0)})
    assert result.step_outputs["measure"] == right(texts)
    (request,) = server.requests
    (called,) = request["tools"]
    schema = called["function"]["parameters"]
    assert set(schema["$defs"]) == {"Length", "Row"}
    assert schema["$defs"]["Row"]["properties"]["value"] == {"$ref": "#/$defs/Length"}
    assert sum((item.usage for item in items), TokenUsage()).requests == 1
    assert sum(item.cost or 0.0 for item in items) == pytest.approx(result.total_cost)


@pytest.mark.models
def test_rows_of_a_request_that_a_provider_rejects_are_asked_for_alone(
    serve: Callable[..., FakeOpenAI],
) -> None:
    texts = ["one", "bad"]
    server = serve(
        error(400, "the prompt has what our policy forbids"),
        Act(tool="final_result", arguments=measured("one")),
        error(400, "the prompt has what our policy forbids"),
    )
    _, items = run(over_the_wire(texts, min_success=0.0), max_concurrency=1)
    assert [item.status.has_value for item in items] == [True, False]
    assert "policy" in items[1].error
    assert "policy" in items[0].asked_alone
    assert len(server.requests) == 3
