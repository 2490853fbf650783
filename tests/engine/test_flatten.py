"""Maps over the elements of lists, which keep the rows that they are in the lists of."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    DefinitionError,
    FileStorageBackend,
    MemoryStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    ResultCache,
    ResumeConflictError,
)
from tagent_nb.serde import bare_schema


class Seen:
    """What ran; with a lock it is no part of a fingerprint."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.items: list[Any] = []
        self.stop_at = ""
        self.executor: Any = None


class Claims(BaseModel):
    claims: list[str] | None = None


REVIEWS = pd.DataFrame(
    {"text": ["warm, light", "loud", ""], "stars": [5, 1, 3]}, index=pd.Index([7, 9, 11], name="id")
)


def flat(rows: Any, seen: Seen | None = None, over: str = "extract", **options: Any) -> Pipeline:
    """A list for each row, and a step over the elements of all of them."""
    pipeline = Pipeline("flat")
    pipeline.task(lambda: rows, name="load")

    @pipeline.task(map_over="load")
    def extract(load: Any) -> Any:
        return [part.strip() for part in load["text"].split(",") if part]

    @pipeline.task(map_over=over, flatten=True, **options)
    async def judge(item: str) -> dict[str, Any]:
        if seen is not None:
            if item == seen.stop_at:
                seen.executor.cancel()
                await asyncio.Event().wait()
            seen.items.append(item)
        if item == "bad":
            raise NameError("unreadable")
        return {"length": len(item)}

    return pipeline


def run(pipeline: Pipeline, folder: Path | None = None, **options: Any) -> PipelineResult:
    return executor(pipeline, folder).run(**options)


def executor(pipeline: Pipeline, folder: Path | None = None, **options: Any) -> PipelineExecutor:
    storage = MemoryStorageBackend() if folder is None else FileStorageBackend(folder / "runs")
    cache = None if folder is None else ResultCache(folder / "cache")
    return PipelineExecutor(pipeline, storage=storage, cache=cache, **options)


def test_the_elements_of_all_lists_are_items_and_keep_their_rows() -> None:
    """In keys, in the index, and beside the answers with all that the row came from."""
    result = run(flat(REVIEWS))
    assert result["judge"] == [{"length": 4}, {"length": 5}, {"length": 4}]
    assert list(result.steps["judge"].items or ()) == ["7/0", "7/1", "9/0"]
    frame = result.output_frame("judge")
    assert frame.index.equals(pd.MultiIndex.from_tuples([(7, 0), (7, 1), (9, 0)], names=["id", "position"]))
    beside = result.output_frame("judge", source=True)
    assert beside.drop(columns="error").to_dict("list") == {
        "text": ["warm, light", "warm, light", "loud"],
        "stars": [5, 5, 1],
        "value": ["warm", "light", "loud"],
        "length": [4, 5, 4],
    }
    assert frame.join(REVIEWS)["stars"].tolist() == [5, 5, 1]


def test_a_part_of_each_row_may_be_the_list() -> None:
    """Of a model, of a row of a frame, and deeper; the column of the list becomes that of its elements."""
    pipeline = Pipeline("parts", inputs={"load": REVIEWS.assign(tags=[["a", "b"], [], None])})
    pipeline.task(lambda item: item * 2, name="double", map_over="load.tags", flatten=True)
    frame = run(pipeline).output_frame("double", source=True)
    assert frame.drop(columns="error").to_dict("list") == {
        "text": ["warm, light"] * 2,
        "stars": [5, 5],
        "tags": ["a", "b"],
        "value": ["aa", "bb"],
    }
    pipeline = Pipeline("models", inputs={"load": ["x,y", "z"]})
    pipeline.task(
        lambda load: Claims(claims=load.split(",")), name="extract", map_over="load", output_schema=Claims
    )
    pipeline.task(lambda item: item, name="same", map_over="extract.claims", flatten=True)
    result = run(pipeline)
    assert result["same"] == ["x", "y", "z"]
    assert list(result.output_frame("same", source=True).columns) == [
        "extract.value",
        "claims",
        "value",
        "error",
    ]
    deep = Pipeline("deep", inputs={"load": [{"a": {"b": [1, 2]}, "c": 3}]})
    deep.task(lambda item: item + 1, name="more", map_over="load.a.b", flatten=True)
    assert run(deep).output_frame("more", source=True).drop(columns="error").to_dict("list") == {
        "a": [{"b": [1, 2]}] * 2,
        "c": [3, 3],
        "a.b": [1, 2],
        "value": [2, 3],
    }


def test_a_part_of_the_value_may_have_the_rows() -> None:
    pipeline = Pipeline("inside", inputs={"load": {"groups": [["a"], ["b", "c"]], "more": [[["d"]]]}})
    pipeline.task(lambda item: item, name="same", map_over="load.groups", flatten=True)
    pipeline.task(lambda item: item, name="first", map_over="load.more[0]", flatten=True)
    result = run(pipeline)
    assert (result["same"], result["first"]) == (["a", "b", "c"], ["d"])
    assert result.output_frame("same", source=True)["load.value"].tolist() == ["a", "b", "c"]


def test_elements_that_are_records_are_columns() -> None:
    pipeline = Pipeline("records", inputs={"load": [[{"n": 1, "m": 2}], [{"n": 3, "m": 4}]]})
    pipeline.task(lambda item: item["n"] * 10, name="ten", map_over="load", flatten=True)
    frame = run(pipeline).output_frame("ten", source=True)
    assert frame.drop(columns="error").to_dict("list") == {"n": [1, 3], "m": [2, 4], "value": [10, 30]}


def test_frames_in_rows_are_lists_of_their_rows() -> None:
    pipeline = Pipeline("frames")
    pipeline.task(lambda: [pd.DataFrame({"n": [1, 2]}), pd.DataFrame({"n": [3]})], name="load")
    pipeline.task(lambda item: item["n"], name="number", map_over="load", flatten=True)
    assert run(pipeline)["number"] == [1, 2, 3]


def test_maps_over_maps_over_elements_have_a_level_each() -> None:
    nested = Pipeline(
        "nested",
        inputs={"load": pd.DataFrame({"parts": [[["a", "b"], ["c"]], [[], ["d"]]]}, index=["x", "y"])},
    )
    nested.task(lambda item: item, name="groups", map_over="load.parts", flatten=True)
    nested.task(lambda item: item.upper(), name="letters", map_over="groups", flatten=True)
    result = run(nested)
    frame = result.output_frame("letters", source=True)
    assert frame.index.tolist() == [("x", 0, 0), ("x", 0, 1), ("x", 1, 0), ("y", 1, 0)]
    assert frame.index.names == [None, "position", "position_2"]
    assert list(result.steps["letters"].items or ()) == ["x/0/0", "x/0/1", "x/1/0", "y/1/0"]
    assert frame["groups.value"].tolist() == ["a", "b", "c", "d"]
    assert frame["value"].tolist() == ["A", "B", "C", "D"]


def test_rows_without_a_list_have_no_items_and_a_warning_says_so() -> None:
    """A row that failed or is None; an empty list is an answer, and needs none."""
    rows = [["a"], None, [], ["b"]]
    pipeline = Pipeline("gaps", inputs={"load": rows})
    pipeline.task(lambda item: item, name="same", map_over="load", flatten=True)
    result = run(pipeline)
    assert result["same"] == ["a", "b"]
    assert list(result.steps["same"].items or ()) == ["0/0", "3/0"]
    assert result.warnings == [
        "Step 'same' ran over no elements of 1 item of 'load' that have no list, such as '1'."
    ]
    weak = Pipeline("weak")
    weak.task(lambda: 1 / 0, name="load", max_retries=0)
    weak.task(lambda item: item, name="same", map_over="load", flatten=True, depends_on=["load:weak"])
    result = run(weak)
    assert result["same"] == []
    assert "ran over no items" in result.warnings[0]


@pytest.mark.parametrize(
    ("rows", "over", "problem"),
    [
        ([["a"], "bc"], "load", "cannot map over 'load': of its item '1', it is of type str"),
        ([["a"], {"k": 1}], "load", "of its item '1', it is a single record with the fields k"),
        ([{"k": ["a"]}, {}], "load.k", "load['1'].k\" is not there"),
        (5, "load", "cannot map over 'load': it is of type int"),
        (None, "load", "its value is None"),
        ({"k": None}, "load.k", "cannot map over 'load.k'"),
    ],
)
def test_what_is_no_list_is_refused_with_the_name_of_its_item(rows: Any, over: str, problem: str) -> None:
    pipeline = Pipeline("wrong")
    pipeline.task(lambda: rows, name="load")
    pipeline.task(lambda item: item, name="same", map_over=over, flatten=True)
    result = run(pipeline)
    assert result.failed_steps == ["same"]
    assert problem in result.steps["same"].error


def test_flatten_without_a_map_is_refused() -> None:
    with pytest.raises(DefinitionError, match="flatten is for mapped steps. Add map_over"):
        PipelineStep("judge", "Judge", flatten=True)
    with pytest.raises(DefinitionError, match="flatten must be True or False"):
        PipelineStep("judge", "Judge", flatten="extract", map_over="extract")  # type: ignore[arg-type]


async def test_an_edit_of_a_row_pays_for_its_new_elements_only(tmp_path: Path) -> None:
    """And the plan says so; a row that goes does not change the keys of the others."""
    seen = Seen()
    await executor(flat(REVIEWS, seen), tmp_path).execute()
    assert seen.items == ["warm", "light", "loud"]
    edited = REVIEWS.drop(index=7)
    edited.loc[11, "text"] = "new, loud"
    made = executor(flat(edited, seen), tmp_path)
    await made.execute(until="extract")
    plan = (await made.plan())["judge"]
    assert (plan.items, plan.items_done) == (3, 2)
    result = await made.execute()
    assert seen.items == ["warm", "light", "loud", "new"]
    assert list(result.steps["judge"].items or ()) == ["9/0", "11/0", "11/1"]
    assert (await made.plan())["judge"].action == "cached"


async def test_a_run_that_was_stopped_goes_on_and_shows_the_elements_in_their_order(tmp_path: Path) -> None:
    seen = Seen()
    seen.stop_at = "loud"
    pipeline = flat(REVIEWS, seen)
    seen.executor = executor(pipeline, tmp_path, max_concurrency=1)
    stopped = await seen.executor.execute()
    assert stopped.cancelled
    assert seen.items == ["warm", "light"]
    seen.stop_at = ""
    stored = await executor(pipeline, tmp_path).load_result()
    assert stored.output_frame("judge").index.tolist()[:2] == [(7, 0), (7, 1)]
    again = await executor(pipeline, tmp_path).execute(resume=True)
    assert again.success
    assert len(seen.items) == 3
    kept = await executor(pipeline, tmp_path).plan(resume=again.run_id)
    assert [plan.action for plan in kept] == ["recorded"] * 3
    back = PipelineResult.from_json(again.to_json())
    assert back.output_frame("judge", source=True).equals(again.output_frame("judge", source=True))


async def test_whether_lists_are_flattened_is_part_of_a_finished_step(tmp_path: Path) -> None:
    pipeline = flat(REVIEWS)
    pipeline.task(lambda judge: 1 / 0, name="broken", max_retries=0)
    await executor(pipeline, tmp_path).execute()
    pipeline.put(pipeline.get_step("judge").with_(flatten=False))
    with pytest.raises(ResumeConflictError, match="flatten is gone"):
        await executor(pipeline, tmp_path).execute(resume=True)


def test_elements_of_a_step_with_labels_of_several_levels() -> None:
    rows = pd.DataFrame(
        {"text": ["a, b", "c"]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["k", "n"])
    )
    frame = run(flat(rows)).output_frame("judge")
    assert frame.index.tolist() == [("x", 1, 0), ("x", 1, 1), ("y", 2, 0)]
    assert frame.index.names == ["k", "n", "position"]


def listing(*lists: list[str]) -> FunctionModel:
    """A model that answers with one list after the other."""
    answers = iter(lists)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"claims": next(answers)})])

    return FunctionModel(answer)


async def test_elements_of_what_samples_agree_on_have_the_rows_of_their_step(tmp_path: Path) -> None:
    """Of a mapped step with samples those of its source; one that is not mapped has the rows of its value."""
    pipeline = Pipeline("votes", inputs={"load": REVIEWS[:2]})
    model = listing(["a"], ["b", "c"], ["b", "c"], ["d"], ["d"], ["e"])
    pipeline.step(
        "extract", "Claims of {{ load }}", map_over="load", output_schema=Claims, samples=3, model=model
    )
    pipeline.task(lambda item: item.upper(), name="upper", map_over="extract.claims", flatten=True)
    model = listing(["x"], ["y", "z"], ["y", "z"])
    pipeline.step("guess", "Guess", output_schema=Claims, samples=3, model=model)
    pipeline.task(lambda guess: [guess.claims, ["w"]], name="more")
    pipeline.task(lambda item: item, name="same", map_over="more", flatten=True)
    made = executor(pipeline, tmp_path, max_concurrency=1)
    result = await made.execute()
    frame = result.output_frame("upper", source=True)
    assert frame.index.tolist() == [(7, 0), (7, 1), (9, 0)]
    assert frame[["stars", "claims", "value"]].values.tolist() == [
        [5, "b", "B"],
        [5, "c", "C"],
        [1, "d", "D"],
    ]
    assert result["same"] == ["y", "z", "w"]
    assert {plan.action for plan in await made.plan()} == {"cached"}
    stored = await executor(Pipeline("votes"), tmp_path).load_result()
    assert stored.output_frame("upper", source=True).equals(frame)


def test_a_value_of_samples_that_has_lists_is_mapped_over_by_its_own_rows() -> None:
    class Groups(BaseModel):
        groups: list[list[str]]

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"groups": [["a"], ["b"]]})])

    pipeline = Pipeline("groups", model=FunctionModel(answer))
    pipeline.step("guess", "Guess", output_schema=Groups, samples=2)
    pipeline.task(lambda item: item, name="same", map_over="guess.groups", flatten=True)
    bare = pipeline_of_bare_lists()
    assert list(run(pipeline).steps["same"].items or ()) == ["0/0", "1/0"]
    assert list(run(bare).steps["same"].items or ()) == ["0/0", "1/0"]


def pipeline_of_bare_lists() -> Pipeline:
    """One whose step with samples has a value that is a list of lists itself."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        (field,) = info.output_tools[0].parameters_json_schema["properties"]
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {field: [["a"], ["b"]]})])

    pipeline = Pipeline("bare", model=FunctionModel(answer))
    pipeline.step(
        "guess",
        "Guess",
        output_schema=bare_schema("list[list[str]]", dict[str, type[BaseModel]]().__getitem__),
        samples=2,
    )
    pipeline.task(lambda item: item, name="same", map_over="guess", flatten=True)
    return pipeline


def test_two_flattened_runs_are_compared_by_row_and_place() -> None:
    edited = REVIEWS.copy()
    edited.loc[9, "text"] = "quiet"
    comparison = run(flat(REVIEWS)).compare(run(flat(edited)))
    assert comparison.rows.query("step == 'judge'")["item"].tolist() == ["9/0"]


def test_answers_to_elements_are_judged_by_a_truth_in_them() -> None:
    rows = [[{"text": "good", "label": 4}, {"text": "no", "label": 3}], [{"text": "x", "label": 1}]]
    pipeline = Pipeline("truth", inputs={"load": rows})
    pipeline.task(lambda item: len(item["text"]), name="size", map_over="load", flatten=True)
    evaluation = run(pipeline).evaluate("size", "load.label")
    assert (evaluation.rows, evaluation.accuracy) == (3, pytest.approx(2 / 3))


def test_a_condition_may_read_the_elements() -> None:
    result = run(flat(REVIEWS, when="item == 'loud'"))
    assert result["judge"] == [None, None, {"length": 4}]


def test_a_failed_element_says_why_in_its_row() -> None:
    rows = pd.DataFrame({"text": ["fine, bad"]}, index=["a"])
    frame = run(flat(rows, min_success=0.5, max_retries=0)).output_frame("judge", source=True)
    assert frame["error"].tolist()[1] == "NameError: unreadable"
    assert frame.index.tolist() == [("a", 0), ("a", 1)]
