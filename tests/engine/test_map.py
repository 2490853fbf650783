"""Mapped steps: the same path for every item, paid for once."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel, computed_field

from tagent_nb import (
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    ResultCache,
    StepContext,
    events,
)
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.serde import StoredValue


class Calls:
    """What ran. With a lock it is no part of a fingerprint, as a value or a list would be."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.items: list[Any] = []
        self.stop_at: Any = None
        self.executor: Any = None

    def append(self, item: Any) -> None:
        self.items.append(item)


class Length(BaseModel):
    length: int


def words(*rows: Any) -> Pipeline:
    pipeline = Pipeline("words").share(rows=list(rows))

    @pipeline.task
    def load(context: StepContext) -> list[Any]:
        return list(context.shared["rows"])

    return pipeline


def measured(pipeline: Pipeline, calls: Calls, **options: Any) -> Pipeline:
    @pipeline.task(map_over="load", **options)
    def measure(item: str) -> dict[str, int]:
        calls.append(item)
        if item == "bad":
            raise ValueError(f"{item} item")
        return {"length": len(item)}

    return pipeline


HALF = "\ud800"
"""Half a surrogate pair, which no UTF-8 can hold."""


class Review(BaseModel):
    text: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def first(self) -> str:
        return self.text[0]


def by_year_and_month() -> pd.DataFrame:
    rows = pd.DataFrame({"day": pd.to_datetime(["2024-01-03", "2024-02-03", "2025-01-01"]), "n": [1, 2, 3]})
    return rows.groupby([rows.day.dt.year, rows.day.dt.month])[["n"]].sum()


class TestMapping:
    async def test_a_step_runs_once_per_item_in_order(self) -> None:
        calls = Calls()
        result = await PipelineExecutor(measured(words("a", "bb", "ccc"), calls)).execute()
        assert result["measure"] == [{"length": 1}, {"length": 2}, {"length": 3}]
        assert sorted(calls.items) == ["a", "bb", "ccc"]
        assert result.steps["measure"].items_total == 3

    async def test_rows_of_a_frame_keep_their_index(self) -> None:
        pipeline = Pipeline("frame")

        @pipeline.task
        def load() -> pd.DataFrame:
            return pd.DataFrame({"text": ["good", "bad", "fine"]}, index=pd.Index([10, 20, 30], name="id"))

        @pipeline.task(map_over="load", output_schema=Length)
        def measure(load: Any) -> dict[str, int]:
            return {"length": len(load["text"])}

        result = await PipelineExecutor(pipeline).execute()
        frame = result.output_frame("measure")
        assert list(frame.index) == [10, 20, 30]
        assert list(frame["length"]) == [4, 3, 4]
        assert result["measure"] == [Length(length=4), Length(length=3), Length(length=4)]

    @pytest.mark.parametrize(
        "index",
        [
            pd.MultiIndex.from_tuples([("x", 1), ("x", 2), ("y", 1)], names=["group", "number"]),
            pd.CategoricalIndex(["low", "mid", "high"], ["low", "mid", "high"], ordered=True, name="size"),
            pd.date_range("2024-01-31", periods=3, freq=pd.DateOffset(months=1), name="month"),
            pd.MultiIndex.from_tuples([(2024, 1), (2024, 2), (2025, 1)], names=["day", "day"]),
        ],
        ids=["levels", "categories", "months", "levels of one name"],
    )
    async def test_the_mapped_frame_joins_its_source_also_after_a_restart(
        self, index: pd.Index, tmp_path: Path
    ) -> None:
        pipeline = Pipeline("joined")
        rows = pd.DataFrame({"text": ["good", "bad", "fine"]}, index=index)
        pipeline.put(PipelineStep.from_cell("load", "rows", python=True))
        pipeline.put(
            PipelineStep.from_cell(
                "measure", "{'length': len(item['text'])}", python=True, map_over="load", min_success=0.5
            )
        )
        executor = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path), namespace={"rows": rows})
        live = await executor.execute()
        for result in (live, await executor.load_result(), type(live).from_json(live.to_json())):
            frame = result.output_frame("measure")
            pd.testing.assert_index_equal(frame.index, index, exact=True)
            assert rows.join(frame)["length"].tolist() == [4, 3, 4]

    async def test_labels_that_cannot_be_stored_are_keys_after_a_restart(self, tmp_path: Path) -> None:
        pipeline = Pipeline("complex")
        rows = pd.DataFrame({"text": ["good"]}, index=[1j])
        pipeline.put(PipelineStep.from_cell("load", "rows", python=True))
        pipeline.put(PipelineStep.from_cell("each", "len(item['text'])", python=True, map_over="load"))
        executor = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path), namespace={"rows": rows})
        await executor.execute()
        items = (await executor.load_result()).steps["each"].items
        assert items is not None
        assert [(item.key, item.index) for item in items.values()] == [("1j", "1j")]

    @pytest.mark.parametrize(
        ("frame", "fields"),
        [
            (by_year_and_month(), ["day", "day_2", "n"]),
            (pd.DataFrame({"n": [1, 2]}, index=pd.Index(["x", "x"], name=0)), ["0", "n"]),
            (pd.DataFrame({"n": [1, 2]}, index=pd.Index(["x", "y"], name="")), ["index", "n"]),
            (pd.DataFrame({"index": [1, 2]}, index=["x", "y"]), ["index_2", "index"]),
            (pd.DataFrame({"n": [1, 2]}, index=pd.Index([HALF, "x"], dtype=object)), ["index", "n"]),
            (pd.DataFrame({"n": [1]}, index=pd.Index(["x"], name=HALF)), [HALF, "n"]),
            (pd.DataFrame([[1]], columns=pd.Index([HALF], dtype=object)), [HALF]),
            (
                pd.DataFrame([[1, 2]], index=["x"], columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
                ["index", "('a', 1)", "('a', 2)"],
            ),
            (
                pd.DataFrame({"n": [1]}, index=pd.Index([("a", 1)], tupleize_cols=False)),
                ["index", "n"],
            ),
            (pd.DataFrame({"n": [1, 2, 3]}, index=[1.5, float("nan"), float("nan")]), ["index", "n"]),
            (pd.DataFrame([[1, 2]], columns=pd.Index([None, float("nan")], dtype=object)), ["None", "nan"]),
        ],
    )
    async def test_whatever_the_labels_rows_and_fields_have_distinct_names(
        self, frame: pd.DataFrame, fields: list[str], tmp_path: Path
    ) -> None:
        pipeline = Pipeline("labels")
        pipeline.put(PipelineStep.from_cell("load", "frame.copy()", python=True))
        pipeline.put(PipelineStep.from_cell("each", "[*item]", python=True, map_over="load"))
        pipeline.put(PipelineStep.from_cell("other", "1 + 1", python=True))
        executor = PipelineExecutor(
            pipeline,
            storage=FileStorageBackend(tmp_path / "runs"),
            cache=ResultCache(tmp_path / "cache"),
            namespace={"frame": frame},
        )
        for options in ({}, {}, {"resume": True}):
            result = await executor.execute(**options)
            assert result.success
            assert result["each"] == [fields] * len(frame)
            assert len(set(result.steps["each"].items)) == len(frame)
            assert len(result.output_frame("each")) == len(frame)
            assert len(list(await executor.plan(**options))) == 3

    @pytest.mark.parametrize(
        "frame",
        [pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame([[1, 2]], columns=[1, "1"])],
        ids=["equal", "equal as text"],
    )
    async def test_columns_of_one_name_fail_the_map_and_nothing_else(self, frame: pd.DataFrame) -> None:
        pipeline = Pipeline("twice")
        pipeline.put(PipelineStep.from_cell("load", "frame", python=True))
        pipeline.put(PipelineStep.from_cell("each", "1", python=True, map_over="load"))
        pipeline.put(PipelineStep.from_cell("other", "load.shape", python=True))
        executor = PipelineExecutor(pipeline, namespace={"frame": frame})
        result = await executor.execute()
        assert result.failed_steps == ["each"]
        assert "two columns named" in result.error_details["each"]
        assert result["other"] == (1, 2)
        assert (await executor.execute(resume=True)).failed_steps == ["each"]

    async def test_an_item_whose_field_cannot_be_read_fails_alone(self, tmp_path: Path) -> None:
        """Its author's code may raise anything, be it that the item is recognised by that field."""
        pipeline = Pipeline("properties", model="test")
        pipeline.put(PipelineStep.from_cell("load", "[Review(text=t) for t in ('a', '', 'b')]", python=True))
        pipeline.step("ask", "Is {{ load.first }} good?", map_over="load", min_success=0.5)
        pipeline.step("all", "Is {{ load[1].first }} good?")
        pipeline.put(PipelineStep.from_cell("maybe", "1", python=True, when="load[1].first == 'x'"))
        pipeline.put(PipelineStep.from_cell("other", "1 + 1", python=True))
        executor = PipelineExecutor(
            pipeline,
            cache=ResultCache(tmp_path),
            namespace={"Review": Review},
        )
        for options in ({}, {"resume": True}):
            result = await executor.execute(**options)
            assert result.failed_steps == ["all", "maybe"]
            assert [item.status.value for item in result.steps["ask"].items.values()].count("failed") == 1
            assert result.steps["ask"].items["1"].error_type == "IndexError"
            assert "What it reads, returns or refers to cannot be handled" in result.steps["all"].error
            assert result["other"] == 2
        plan = {step.step: step.action for step in await executor.plan()}
        assert plan["all"] == plan["maybe"] == "fail"

    async def test_a_field_of_a_value_can_be_mapped_over(self) -> None:
        pipeline = Pipeline("field")
        pipeline.put(PipelineStep.from_cell("load", "{'rows': [1, 2]}", python=True))
        pipeline.put(PipelineStep.from_cell("twice", "item * 2", python=True, map_over="load.rows"))
        assert (await PipelineExecutor(pipeline).execute())["twice"] == [2, 4]

    async def test_no_items_is_an_empty_list(self) -> None:
        result = await PipelineExecutor(measured(words(), Calls())).execute()
        assert result["measure"] == []
        assert result.success

    async def test_what_is_no_list_fails_with_its_name(self) -> None:
        pipeline = Pipeline("number")
        pipeline.put(PipelineStep.from_cell("load", "42", python=True))
        result = await PipelineExecutor(measured(pipeline, Calls())).execute()
        assert "cannot map over 'load'" in result.error_details["measure"]

    async def test_a_missing_field_fails_with_what_is_there(self) -> None:
        pipeline = Pipeline("missing")
        pipeline.put(PipelineStep.from_cell("load", "{'rows': [1]}", python=True))
        pipeline.put(PipelineStep.from_cell("each", "item", python=True, map_over="load.row"))
        result = await PipelineExecutor(pipeline).execute()
        assert "Did you mean 'rows'" in result.error_details["each"]

    async def test_failed_items_fail_the_step_and_are_a_column(self) -> None:
        pipeline = measured(words("a", "bad", "ccc"), Calls(), max_retries=0)
        result = await PipelineExecutor(pipeline).execute()
        assert result.failed_steps == ["measure"]
        assert result.error_details["measure"] == (
            "StepError: 2 of 3 items succeeded; all must (--min-success 0.65 lets 35 % fail). The first "
            "failure is item '1': ValueError: bad item"
        )
        frame = result.output_frame("measure")
        assert frame["error"].notna().tolist() == [False, True, False]

    @pytest.mark.parametrize(
        ("bad", "rows", "share", "text"),
        [
            (1, 40, 1.0, "39 of 40 items succeeded; all must (--min-success 0.95 lets 5 % fail). "),
            (4, 40, 0.95, "36 of 40 items succeeded; at least 38 must (min_success 0.95). "),
            (10, 20, 0.55, "10 of 20 items succeeded; at least 11 must (min_success 0.55). "),
            (9, 20, 0.55, ""),
            (2, 2, 1.0, "0 of 2 items succeeded; all must. "),
            (2000, 2000, 0.001, "0 of 2,000 items succeeded; at least 2 must (min_success 0.001). "),
        ],
    )
    async def test_the_error_says_how_many_succeeded_and_how_many_must(
        self, bad: int, rows: int, share: float, text: str
    ) -> None:
        pipeline = words(*["bad"] * bad, *["good"] * (rows - bad))
        pipeline = measured(pipeline, Calls(), max_retries=0, min_success=share)
        result = await PipelineExecutor(pipeline).execute()
        error = f"StepError: {text}The first failure is item '0': ValueError: bad item"
        assert result.error_details == ({"measure": error} if text else {})

    async def test_min_success_lets_some_items_fail(self) -> None:
        pipeline = measured(words("a", "bad", "ccc"), Calls(), max_retries=0, min_success=0.6)
        result = await PipelineExecutor(pipeline).execute()
        assert result.success
        assert result["measure"] == [{"length": 1}, None, {"length": 3}]

    async def test_each_item_is_tried_again_by_itself(self) -> None:
        tries: dict[str, int] = {}
        pipeline = words("a", "b")

        @pipeline.task(map_over="load", max_retries=2)
        def flaky(item: str, context: StepContext) -> int:
            tries[item] = context.attempt
            if item == "b" and context.attempt < 3:
                raise OSError("not yet")
            return context.attempt

        result = await PipelineExecutor(pipeline, retry_delay=0.0).execute()
        assert tries == {"a": 1, "b": 3}
        assert result["flaky"] == [1, 3]

    async def test_items_stay_under_max_concurrency(self) -> None:
        running, most = 0, 0
        pipeline = words(*range(12))

        @pipeline.task(map_over="load")
        async def each(item: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return item

        result = await PipelineExecutor(pipeline, max_concurrency=3).execute()
        assert result["each"] == list(range(12))
        assert most == 3

    async def test_cancelling_in_the_middle_keeps_what_is_done(self) -> None:
        reached = asyncio.Event()
        pipeline = words("a", "stop", "c")

        @pipeline.task(map_over="load")
        async def each(item: str) -> str:
            if item == "stop":
                reached.set()
                await asyncio.Event().wait()
            return item

        executor = PipelineExecutor(pipeline, max_concurrency=1)
        task = asyncio.ensure_future(executor.execute())
        await reached.wait()
        executor.cancel()
        result = await task
        assert result.cancelled
        assert result.steps["each"].status.value == "cancelled"
        items = result.steps["each"].items
        assert items is not None
        assert [item.status.value for item in items.values()] == ["completed", "cancelled"]


class TestPayingOnce:
    async def test_only_new_items_are_computed(self, tmp_path: Any) -> None:
        cache = ResultCache(tmp_path)
        calls = Calls()
        await PipelineExecutor(measured(words("a", "bb"), calls), cache=cache).execute()
        calls.items.clear()
        result = await PipelineExecutor(measured(words("new", "a", "bb"), calls), cache=cache).execute()
        assert calls.items == ["new"]
        assert result["measure"] == [{"length": 3}, {"length": 1}, {"length": 2}]
        assert result.steps["measure"].status.value == "completed"

    async def test_a_map_that_is_all_cached_is_cached(self, tmp_path: Any) -> None:
        cache = ResultCache(tmp_path)
        calls = Calls()
        pipeline = measured(words("a", "bb"), calls)
        await PipelineExecutor(pipeline, cache=cache).execute()
        result = await PipelineExecutor(pipeline, cache=cache).execute()
        assert len(calls.items) == 2
        assert result.steps["measure"].status.value == "cached"

    async def test_equal_items_make_one_call(self, tmp_path: Any) -> None:
        calls = Calls()
        pipeline = words("same", "same", "same")

        @pipeline.task(map_over="load")
        async def each(item: str) -> str:
            calls.append(item)
            await asyncio.sleep(0)
            return item.upper()

        result = await PipelineExecutor(pipeline, cache=ResultCache(tmp_path)).execute()
        assert calls.items == ["same"]
        assert result["each"] == ["SAME", "SAME", "SAME"]

    @pytest.mark.parametrize("with_cache", [True, False])
    async def test_a_resumed_map_runs_only_what_is_missing(self, tmp_path: Any, with_cache: bool) -> None:
        """Items that were recorded before the stop are not run again, with or without a cache."""
        calls = Calls()
        calls.stop_at = 6
        pipeline = words(*range(10))
        executor = PipelineExecutor(
            pipeline,
            storage=FileStorageBackend(tmp_path / "runs"),
            cache=ResultCache(tmp_path / "cache") if with_cache else None,
            max_concurrency=1,
        )

        calls.executor = executor

        @pipeline.task(map_over="load")
        async def each(item: int) -> int:
            if item == calls.stop_at:
                calls.executor.cancel()
                await asyncio.Event().wait()
            calls.append(item)
            return item * 10

        first = await executor.execute()
        assert first.cancelled
        assert calls.items == list(range(6))
        calls.stop_at = None
        second = await executor.execute(resume=True)
        assert calls.items == list(range(10))
        assert second["each"] == [item * 10 for item in range(10)]
        assert second.run_id == first.run_id
        started = [event for event in second.events if isinstance(event, events.RunResumed)]
        assert len(started) == 1


async def test_a_map_over_a_source_without_a_value_has_no_items() -> None:
    """A weak source that failed is passed on as None: there is nothing to map over."""
    pipeline = Pipeline("weak")
    pipeline.put(PipelineStep.from_cell("source", "1 / 0", python=True, max_retries=0))
    pipeline.put(
        PipelineStep.from_cell("each", "item", python=True, map_over="source", depends_on=["source:weak"])
    )
    result = await PipelineExecutor(pipeline).execute()
    assert result.failed_steps == ["source"]
    assert result["each"] == []
    assert result.steps["each"].items == {}
    assert result.warnings == [
        "Step 'each' ran over no items: step 'source', over which it maps, has no value "
        "(it failed (ZeroDivisionError: division by zero))."
    ]


@pytest.mark.parametrize(
    ("source", "over", "message"),
    [
        ("None", "load", "cannot map over step 'load': its value is None. Let 'load' return a list"),
        ("{'rows': None}", "load.rows", "cannot map over step 'load': load.rows of its value is None. Let"),
    ],
)
async def test_a_map_over_none_fails_and_names_both_steps(source: str, over: str, message: str) -> None:
    """None is what a function without return gives: no items would hide the mistake."""
    pipeline = Pipeline("nothing")
    pipeline.put(PipelineStep.from_cell("load", source, python=True))
    pipeline.put(PipelineStep.from_cell("each", "item", python=True, map_over=over))
    result = await PipelineExecutor(pipeline).execute()
    assert result.failed_steps == ["each"]
    assert f"Step 'each' {message}" in result.error_details["each"]
    assert result.step_outputs.keys() == {"load"}


async def test_a_paused_map_starts_no_further_item() -> None:
    pipeline = Pipeline("pausing")
    done: list[int] = []
    paused = asyncio.Event()

    def note(item: int) -> None:
        done.append(item)
        if item == 1:
            executor.pause()

    pipeline.put(PipelineStep.from_cell("source", "[1, 2, 3]", python=True))
    pipeline.put(
        PipelineStep.from_cell("each", "note(item)\nawait turn()\nitem", python=True, map_over="source")
    )

    async def turn() -> None:
        """Let the loop turn once: what was asked for before is done then."""
        await asyncio.sleep(0)

    names = {"note": note, "turn": turn}
    executor = PipelineExecutor(pipeline, namespace=names, max_concurrency=1)
    executor.subscribe(lambda event: paused.set() if isinstance(event, events.RunPaused) else None)
    running = asyncio.ensure_future(executor.execute())
    await paused.wait()
    for _ in range(20):  # as many turns of the loop as another item could need
        await asyncio.sleep(0)
    assert done == [1]
    executor.resume()
    assert (await running)["each"] == [1, 2, 3]


async def test_an_agent_mapped_over_a_step_reads_the_item_by_its_name(tmp_path: Path) -> None:
    """Its fingerprint is of the item alone: another item in the source does not run it again."""
    prompts: list[Any] = []

    class Echo:
        version = "1"

        async def run(self, step: PipelineStep, context: StepContext) -> str:
            prompts.append(context.inputs["source"])
            return f"said {context.inputs['source']}"

    cache = ResultCache(tmp_path)
    for source, expected in (("[1, 2]", [1, 2]), ("[2, 3]", [1, 2, 3])):
        pipeline = Pipeline("agents")
        pipeline.put(PipelineStep.from_cell("source", source, python=True))
        pipeline.step("say", "Say {{ item }}.", map_over="source")
        await PipelineExecutor(pipeline, cache=cache, runners={"agent": Echo()}).execute()
        assert prompts == expected
    cache.close()


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("min_success", [0.5, 1.0])
async def test_an_item_that_cancels_its_own_task_fails_alone(
    min_success: float, slow: bool, waits: bool
) -> None:
    """Also where it has a timeout, and where the cancellation would reach the worker only later."""
    pipeline = Pipeline("p")
    pipeline.task(lambda: [1, 2, 3], name="load")

    async def each(load: int) -> int:
        if load == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if waits:
                await asyncio.sleep(0)
        return load

    pipeline.task(each, map_over="load", min_success=min_success, timeout=60 if slow else None)
    result = await PipelineExecutor(pipeline, max_concurrency=1).execute()
    items = result.steps["each"].items or {}
    assert {key: item.status.value for key, item in items.items()} == {
        "0": "completed",
        "1": "failed",
        "2": "completed",
    }
    assert items["1"].error.startswith("Step 'each' cancelled itself")
    assert result.success == (min_success < 1)
    assert (result.steps["each"].value or [1, None, 3]) == [1, None, 3]


@pytest.mark.parametrize("slow", [True, False])
async def test_context_variables_that_an_item_sets_reach_no_other(slow: bool) -> None:
    """One worker runs all of them, and a step below in the same task."""
    pipeline = Pipeline("p")

    async def load() -> list[int]:
        place.set("load")
        return [3, 50, 3]

    async def each(load: int) -> tuple[str | None, str]:
        before = place.get()
        await asyncio.sleep(0)
        place.set("each")
        if load == 50:
            decimal.getcontext().prec = 3
        return before, str(decimal.Decimal(1) / decimal.Decimal(7))

    async def last(each: list[Any]) -> str | None:
        return place.get()

    timeout = 60 if slow else None
    pipeline.task(load, timeout=timeout)
    pipeline.task(each, map_over="load", timeout=timeout)
    pipeline.task(last, timeout=timeout)
    executor = PipelineExecutor(pipeline, max_concurrency=1)
    run = contextvars.Context().run(asyncio.ensure_future, executor.execute())
    result = await run
    seventh = str(decimal.Context(prec=28).divide(decimal.Decimal(1), decimal.Decimal(7)))
    assert [list(pair) for pair in result["each"]] == [[None, seventh], [None, "0.143"], [None, seventh]]
    assert result["last"] is None


place: contextvars.ContextVar[str | None] = contextvars.ContextVar("place", default=None)


@pytest.mark.parametrize("index", [None, ["c", "b", "a"]])
async def test_items_of_a_map_that_was_stopped_are_loaded_in_the_order_of_the_source(
    tmp_path: Path, index: list[str] | None
) -> None:
    """They are recorded as they end."""
    executor: PipelineExecutor
    ends = [asyncio.Event() for _ in range(3)]
    pipeline = Pipeline("p")
    frame = pd.DataFrame({"x": [0, 1, 2]}, index=index)
    pipeline.task(lambda: {"rows": frame if index else [0, 1, 2]}, name="load")

    async def each(item: Any) -> int:
        place = item["x"] if index else item
        if place < 2:
            await ends[place + 1].wait()
        if place == 0:
            executor.cancel()
            await asyncio.sleep(60)
        ends[place].set()
        return int(place)

    pipeline.task(each, map_over="load.rows")
    executor = PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path))
    live = await executor.execute()
    stored = await PipelineExecutor(pipeline, storage=FileStorageBackend(tmp_path)).load_result()
    keys = index or ["0", "1", "2"]
    assert list(live.steps["each"].items or {}) == keys
    items = stored.steps["each"].items or {}
    assert [key for key in items if items[key].status.has_value] == keys[1:]
    assert [item.index for item in items.values() if item.status.has_value] == (index or [0, 1, 2])[1:]


@pytest.mark.parametrize("turns", range(6))
async def test_a_run_that_is_stopped_while_an_item_cancels_itself_is_stopped(turns: int) -> None:
    """Whichever comes first."""
    executor: PipelineExecutor
    pipeline = Pipeline("p")
    pipeline.task(lambda: [1, 2, 3], name="load")

    async def each(load: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        executor.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        return load

    pipeline.task(each, map_over="load", min_success=0.0)
    executor = PipelineExecutor(pipeline, max_concurrency=1)
    result = await executor.execute()
    assert result.cancelled
    assert "2" not in (result.steps["each"].items or {})


async def test_items_whose_source_is_lost_stay_as_they_ended() -> None:
    memory = PipelineMemory("p", "r")
    maps = [{"name": name, "map_over": "load"} for name in ("each", "later")]
    definition = {"steps": [{"name": "load"}, *maps]}
    memory.apply(events.RunStarted(run_id="r", pipeline="p", steps=("load", "each"), definition=definition))
    for item in ("1", "0"):
        memory.apply(events.StepFinished(run_id="r", step="each", item=item, output=StoredValue.of(item)))
    assert list(memory.to_result().steps["each"].items or {}) == ["1", "0"]
    memory.apply(events.StepFinished(run_id="r", step="load", output=StoredValue.of(["a", "b", "c"])))
    assert list(memory.to_result().steps["each"].items or {}) == ["0", "1"]


@pytest.mark.parametrize("options", [{}, {"max_failures": 0}], ids=["all rows", "stopped early"])
async def test_a_weak_dependent_of_a_failed_map_gets_the_good_rows(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """As where the step is let succeed: a row that has no value is None in its place."""
    pipeline = measured(words("a", "bad", "ccc"), Calls(), max_retries=0, **options)
    pipeline.put(
        PipelineStep.from_cell(
            "joined", "[row and row['length'] for row in measure]", python=True, depends_on=["measure:weak"]
        )
    )
    pipeline.put(
        PipelineStep.from_cell(
            "each", "item and -item['length']", python=True, map_over="measure", depends_on=["measure:weak"]
        )
    )
    result = await PipelineExecutor(pipeline, max_concurrency=1, storage=tmp_path).execute()
    assert result.failed_steps == ["measure"]
    last = 3 if not options else None
    assert result["joined"] == [1, None, last]
    assert result["each"] == [-1, None, last and -last]
    with pytest.raises(KeyError):
        result["measure"]
    again = await PipelineExecutor(pipeline, max_concurrency=1, storage=tmp_path).execute(resume=True)
    assert again["joined"] == [1, None, 3]  # a row that was not begun comes before those that have failed


async def test_a_weak_dependent_of_a_map_without_a_good_row_gets_none() -> None:
    pipeline = measured(words("bad", "bad"), Calls(), max_retries=0)
    pipeline.put(PipelineStep.from_cell("joined", "[measure]", python=True, depends_on=["measure:weak"]))
    assert (await PipelineExecutor(pipeline).execute())["joined"] == [None]
