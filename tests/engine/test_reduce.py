"""Many rows to one answer: in parts that the model can read, each paid once."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, computed_field
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from tagent_nb import (
    ApprovalRequest,
    Approved,
    DefinitionError,
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    PipelineValidationError,
    Price,
    ResultCache,
    ResumeConflictError,
)
from tagent_nb.engine.unit.reduce import DEFAULT_WINDOW, MOST_TOKENS
from tagent_nb.runners import least_window, too_long


class Tally(BaseModel):
    rows: int
    poor: int = 0


class Clerk:
    """A model that counts: rows, and what answers to parts of them say. It reads no more than its window."""

    def __init__(self, words: int = 100, window: int = DEFAULT_WINDOW, fails: str = "") -> None:
        self.tasks: list[str] = []
        self.words, self.window, self.fails = words, window, fails
        self.model = FunctionModel(self.answer, model_name="clerk")

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        (request,) = messages
        (part,) = request.parts
        task = str(part.content)
        size = len(task) + len(getattr(request, "instructions", None) or "")
        # A tokenizer that counts many tokens, and the longest answer in free text.
        answer = 0 if info.output_tools else 1000
        assert size / 4 * MOST_TOKENS + answer <= self.window, f"a prompt of {size:,} characters"
        self.tasks.append(task)
        if self.fails and self.fails in task:
            raise ValueError("no such row")
        rows = len(re.findall(r"row \d", task)) + sum(map(int, re.findall(r"rows\W+(\d+)", task)))
        poor = task.count("(poor)") + sum(map(int, re.findall(r"poor\W+(\d+)", task)))
        text = f"rows {rows}, poor {poor}. " + "word " * self.words
        usage = RequestUsage(input_tokens=size // 4, output_tokens=len(text) // 4)
        if info.output_tools:
            (tool,) = info.output_tools
            answered: Any = ToolCallPart(tool.name, {"rows": rows, "poor": poor})
            return ModelResponse(parts=[answered], usage=usage)
        return ModelResponse(parts=[TextPart(text)], usage=usage)


def report(clerk: Clerk, rows: Any, goal: str = "Count the rows.", **options: Any) -> Pipeline:
    pipeline = Pipeline("reduced", model=clerk.model, inputs={"load": rows})
    return pipeline.step("report", goal, reduce_over="load", max_retries=0, **options)


def texts(count: int, seed: int = 1) -> list[str]:
    draws = random.Random(seed)
    return [f"row {place} {'x' * draws.randrange(20, 120)}" for place in range(count)]


def executor(pipeline: Pipeline, folder: Path, **options: Any) -> PipelineExecutor:
    storage = FileStorageBackend(folder / "runs")
    return PipelineExecutor(pipeline, storage=storage, cache=ResultCache(folder / "cache"), **options)


def levels(result: PipelineResult) -> list[int]:
    made: list[int] = result.steps["report"].metadata["levels"]
    return made


# -- one answer -----------------------------------------------------------------------------------


async def test_5000_answers_are_reduced_in_a_window_of_8000_tokens_and_an_edit_of_10_pays_its_way_up(
    tmp_path: Path,
) -> None:
    """The answers are those of a mapped step. Each prompt fits; all rows count once; the rest is cached."""
    clerk = Clerk()
    rows = texts(5000)

    def flow(rows: list[str]) -> Pipeline:
        pipeline = Pipeline("reduced", model=clerk.model, inputs={"load": rows})
        pipeline.task(lambda item: {"text": item}, name="note", map_over="load")
        return pipeline.step("report", "Count the rows.", reduce_over="note")

    result = await executor(flow(rows), tmp_path).execute()
    assert result["report"].startswith("rows 5000,")
    first = levels(result)
    assert len(clerk.tasks) == sum(first)
    assert first[0] > 30
    assert first[-1] == 1

    draws = random.Random(5)
    places = draws.sample(range(5000), 10)
    edited = [f"{row}, edited" if place in places else row for place, row in enumerate(rows)]
    clerk.tasks.clear()
    again = await executor(flow(edited), tmp_path).execute()
    assert again["report"].startswith("rows 5000,")
    touched = [task for task in clerk.tasks if "edited" in task]
    combined = [task for task in clerk.tasks if "(the rows)" in task or "read in parts" in task]
    assert len(touched) <= 10
    # The chunks with these rows, a neighbour of one whose end was such a row, and what is above them.
    assert len(clerk.tasks) - len(touched) - len(combined) <= 2
    assert len(combined) <= sum(first[1:])
    clerk.tasks.clear()
    third = await executor(flow(edited), tmp_path).execute()
    assert clerk.tasks == []
    assert third.steps["report"].status.value == "cached"


async def test_rows_that_fit_into_one_call_are_one_call() -> None:
    clerk = Clerk()
    result = await PipelineExecutor(report(clerk, texts(3))).execute()
    assert (len(clerk.tasks), levels(result)) == (1, [1])
    assert result["report"].startswith("rows 3,")
    assert clerk.tasks[0].startswith('Count the rows.\n\n<data>["row 0 ')
    assert list(result.steps["report"].items or {}) == ["0.0"]


async def test_answers_with_a_schema_are_combined_as_data() -> None:
    clerk = Clerk()
    result = await PipelineExecutor(report(clerk, texts(1000), output_schema=Tally)).execute()
    assert result["report"] == Tally(rows=1000)
    assert levels(result)[1:] == [1]
    assert '<data>[{"rows": ' in clerk.tasks[-1]


async def test_long_answers_take_more_levels() -> None:
    clerk = Clerk(words=900)
    result = await PipelineExecutor(report(clerk, texts(2000))).execute()
    assert result["report"].startswith("rows 2000,")
    assert len(levels(result)) > 3
    assert levels(result) == sorted(levels(result), reverse=True)


async def test_an_answer_that_is_alone_in_its_part_goes_up_as_it_is() -> None:
    """Two answers fit into a call, and their number is odd: no call is made for the last one alone."""
    clerk = Clerk()
    result = await PipelineExecutor(report(clerk, texts(52), reduce_tokens=300)).execute()
    assert result["report"].startswith("rows 52,")
    made = levels(result)
    assert made[0] % 2
    assert made[1] == made[0] // 2
    assert sum(made[1:]) == made[0] - 1


async def test_the_goal_says_where_rows_stand_and_combine_how_answers_become_one() -> None:
    clerk = Clerk()
    goal = "Of {% for row in load %}{{ row.text }};{% endfor %} count the rows."
    rows = pd.DataFrame({"text": texts(800), "rest": ["unread" * 50] * 800})
    pipeline = report(clerk, rows, goal, combine="Add up: {{ load }}")
    result = await PipelineExecutor(pipeline).execute()
    assert result["report"].startswith("rows 800,")
    assert all(task.startswith("Of <data>row ") for task in clerk.tasks[:-1])
    assert clerk.tasks[-1].startswith('Add up: <data>["rows ')
    assert "unread" not in "".join(clerk.tasks)


async def test_rows_in_a_field_of_a_value_are_called_as_they_are_written_or_by_their_step() -> None:
    clerk = Clerk()
    for goal in ("Count: {{ load.rows }}", "Count: {{ load }}"):
        pipeline = Pipeline("field", model=clerk.model, inputs={"load": {"rows": texts(3)}})
        pipeline.step("report", goal, reduce_over="load.rows")
        result = await PipelineExecutor(pipeline).execute()
        assert result["report"].startswith("rows 3,")
    assert clerk.tasks[0] == clerk.tasks[1]


async def test_a_field_of_the_rows_is_the_list_of_what_they_have_there() -> None:
    clerk = Clerk()
    rows = pd.DataFrame({"text": texts(3), "rest": 1})
    pipeline = report(clerk, rows, "Count {{ load.text }}.", combine="Add up.")
    pipeline.inputs["other"] = {"rows": rows}
    pipeline.step("again", "Count {{other.rows.text}}.", reduce_over="other.rows", combine="Add up.")
    result = await PipelineExecutor(pipeline).execute()
    assert result["report"].startswith("rows 3,")
    assert clerk.tasks[0].startswith('Count <data>["row 0 ')
    assert clerk.tasks[1] == clerk.tasks[0]


# -- one answer a group ---------------------------------------------------------------------------


def reviews(count: int) -> pd.DataFrame:
    kinds = ["tea", "cup", "pot"]
    rows = [f"{text}{' (poor)' if place % 4 == 0 else ''}" for place, text in enumerate(texts(count))]
    return pd.DataFrame({"text": rows, "kind": [kinds[place % 3] for place in range(count)]})


async def test_groups_have_an_answer_each_in_a_frame_with_the_groups_as_index(tmp_path: Path) -> None:
    """In the order in which they first appear. A row that changes its group pays for two groups only."""
    clerk = Clerk()
    rows = reviews(600)
    options: dict[str, Any] = {"output_schema": Tally, "group_by": "kind"}
    result = await executor(report(clerk, rows, **options), tmp_path).execute()
    frame = result["report"]
    assert frame.index.tolist() == ["tea", "cup", "pot"]
    assert frame.index.name == "kind"
    assert frame.rows.tolist() == [200, 200, 200]
    assert frame.poor.sum() == 150
    pd.testing.assert_frame_equal(result.output_frame("report"), frame)
    keys = list(result.steps["report"].items or {})
    assert keys[0] == "tea/0.0"
    assert {"cup/1.0", "pot/1.0"} <= set(keys)

    clerk.tasks.clear()
    rows.loc[0, "kind"] = "pot"
    again = await executor(report(clerk, rows, **options), tmp_path).execute()
    assert again["report"].rows.to_dict() == {"cup": 200, "pot": 201, "tea": 199}
    assert len(clerk.tasks) <= 6


@pytest.mark.parametrize("group_by", ["label", "judge.label", "load.kind"])
async def test_groups_are_a_field_of_the_answers_or_a_column_of_what_they_are_about(group_by: str) -> None:
    clerk = Clerk()
    pipeline = Pipeline("groups", model=clerk.model, inputs={"load": reviews(90)})
    pipeline.task(lambda item: {"text": item["text"], "label": item["kind"]}, name="judge", map_over="load")
    pipeline.step("report", "Count the rows.", reduce_over="judge", group_by=group_by)
    frame = (await PipelineExecutor(pipeline).execute())["report"]
    assert frame.index.name == group_by.rpartition(".")[2]
    assert frame["value"].str.startswith("rows 30, poor").tolist() == [True] * 3


async def test_a_group_is_a_column_of_any_name() -> None:
    frame = pd.DataFrame(reviews(30)).rename(columns={"kind": "kind of thing, 1"})
    pipeline = Pipeline("groups", model=Clerk().model, inputs={"load": frame})
    pipeline.step("report", "Count the rows.", reduce_over="load", group_by="kind of thing, 1")
    assert (await PipelineExecutor(pipeline).execute())["report"].index.name == "kind of thing, 1"


async def test_groups_may_be_a_field_of_the_items_of_a_list() -> None:
    clerk = Clerk()
    inputs = {"load": texts(3), "about": [{"kind": 1}, None, {"kind": 2}]}
    pipeline = Pipeline("groups", model=clerk.model, inputs=inputs)
    pipeline.step("report", "Count the rows.", reduce_over="load", group_by="about.kind")
    result = await PipelineExecutor(pipeline).execute()
    assert result["report"].index.tolist() == [1, 2]
    assert (
        "1 of 3 rows of 'load' have no 'about.kind', are in no group, and are left out" in result.warnings[0]
    )


async def test_equal_groups_are_paid_once(tmp_path: Path) -> None:
    clerk = Clerk()
    rows = pd.DataFrame({"text": ["row 1"] * 2, "kind": [1, 2]})
    pipeline = report(clerk, rows, "Count {% for row in load %}{{ row.text }}{% endfor %}", combine="Add up",
                      group_by="kind")  # fmt: skip
    await executor(pipeline, tmp_path).execute()
    assert len(clerk.tasks) == 2  # their rows differ in a column that the goal does not print
    same = report(clerk, [{"text": "row 1"}] * 2, group_by="about.kind")
    same.inputs["about"] = rows
    plan = (await executor(same, tmp_path).plan())["report"]
    assert plan.quote is not None
    assert (plan.items, plan.quote.calls) == (2, 1)
    await executor(same, tmp_path).execute()
    assert len(clerk.tasks) == 3


@pytest.mark.parametrize(
    ("rows", "group_by", "message"),
    [
        (
            pd.DataFrame({"kind": [1]}),
            "kid",
            "cannot group by 'kid': 'row 0.kid' is not there. Did you mean 'kind'",
        ),
        ([{"kind": [1]}], "kind", "in row 0 it is a list, which names no group"),
        ([1, 2], "about.kind", "it has 1 cells, and 'load' has 2 rows"),
        ([1, 2], "about.kind[0]", "it has a str, and 'load' has 2 rows"),
    ],
)
async def test_a_group_that_is_none_fails_before_anything_is_asked(
    rows: Any, group_by: str, message: str
) -> None:
    clerk = Clerk()
    pipeline = report(clerk, rows, group_by=group_by)
    pipeline.inputs["about"] = pd.DataFrame({"kind": ["a"]})
    result = await PipelineExecutor(pipeline).execute()
    assert message in result.error_details["report"]
    assert clerk.tasks == []


# -- rows that are not there ----------------------------------------------------------------------


async def test_rows_that_failed_or_were_skipped_are_left_out_with_a_warning() -> None:
    clerk = Clerk()
    pipeline = Pipeline("gaps", model=clerk.model, inputs={"load": [1, 0, 2, 3, 4]})
    pipeline.task(lambda item: f"row {12 // item}", name="each", map_over="load", max_retries=0,
                  min_success=0.5, when="item < 4")  # fmt: skip
    pipeline.step("report", "Count the rows.", reduce_over="each")
    result = await PipelineExecutor(pipeline).execute()
    assert result["report"].startswith("rows 3,")
    assert any("2 of 5 rows of 'each' have no value" in warning for warning in result.warnings)


@pytest.mark.parametrize("rows", [[], [None]])
async def test_without_rows_nothing_is_asked_and_the_step_is_skipped(rows: list[Any]) -> None:
    clerk = Clerk()
    run = PipelineExecutor(report(clerk, rows))
    assert (await run.plan())["report"].action == "skip"
    result = await run.execute()
    assert (result.success, clerk.tasks) == (True, [])
    assert (result.steps["report"].status.value, result.steps["report"].reason) == (
        "skipped",
        "load has no rows",
    )


async def test_without_rows_there_are_no_groups() -> None:
    result = await PipelineExecutor(report(Clerk(), pd.DataFrame({"kind": []}), group_by="kind")).execute()
    assert (len(result["report"]), result["report"].index.name) == (0, "kind")


async def test_a_weak_source_that_failed_has_no_rows() -> None:
    pipeline = Pipeline("weak", model=Clerk().model)
    pipeline.task(lambda: 1 // 0, name="load", max_retries=0)
    pipeline.step("report", "Count.", reduce_over="load", depends_on=["load:weak"])
    result = await PipelineExecutor(pipeline).execute()
    assert result.steps["report"].reason == "load has no rows"


@pytest.mark.parametrize("value", [3, None])
async def test_what_has_no_rows_cannot_be_reduced(value: Any) -> None:
    pipeline = Pipeline("none", model=Clerk().model)
    pipeline.task(lambda: value, name="load")
    pipeline.step("report", "Count.", reduce_over="load")
    result = await PipelineExecutor(pipeline).execute()
    assert "Step 'report' cannot reduce" in result.error_details["report"]


# -- what does not fit ----------------------------------------------------------------------------


async def fails(pipeline: Pipeline, message: str) -> PipelineResult:
    run = PipelineExecutor(pipeline)
    result = await run.execute()
    assert message in result.error_details["report"]
    return result


async def test_a_row_that_does_not_fit_is_named_before_anything_is_asked() -> None:
    clerk = Clerk()
    pipeline = report(clerk, [*texts(2000), "long " * 8000])
    await fails(pipeline, "row 2000 has about 10,0")
    assert clerk.tasks == []
    planned = (await PipelineExecutor(pipeline).plan())["report"]
    assert planned.action == "fail"
    assert "Shorten it in a Python step" in planned.why


async def test_a_prompt_that_leaves_no_room_for_rows_says_so() -> None:
    pipeline = report(Clerk(), texts(3), "Count: {{ rules }}")
    pipeline.inputs["rules"] = "rule " * 5000
    await fails(
        pipeline, "there is no room for rows in a call (the model reads 8,000 tokens at once, about 6,"
    )


async def test_answers_of_which_no_two_fit_are_one_clear_error() -> None:
    result = await fails(
        report(Clerk(words=2000), texts(1000)), "its answers to parts of the rows are so long"
    )
    assert "Let the goal or max_tokens" in result.error_details["report"]
    assert levels(result) == [len(result.steps["report"].items or {})]
    assert len(result.output_frame("report")) == levels(result)[0]


async def test_reduce_tokens_says_how_much_one_call_reads() -> None:
    clerk = Clerk(words=0)
    result = await PipelineExecutor(report(clerk, texts(200), reduce_tokens=500)).execute()
    assert result["report"].startswith("rows 200,")
    assert max(map(len, clerk.tasks)) < 500 * 4 + 1000
    await fails(report(clerk, ["x" * 3000], reduce_tokens=500), "(reduce_tokens is 500)")


async def test_of_models_behind_a_fallback_the_smallest_window_counts() -> None:
    assert least_window("openai:gpt-4o") == 128_000
    both = FallbackModel(
        FunctionModel(Clerk().answer), OpenAIChatModel("gpt-4", provider=OpenAIProvider(api_key="k"))
    )
    assert least_window(both) == 8_192
    assert least_window("test") is None


@pytest.mark.parametrize(
    ("model", "parts"),
    [("openai:gpt-4", 40), ("openai:gpt-4o", 2), ("openai:gpt-4.1", 2), ("openai:own", 40)],
)
async def test_parts_are_as_large_as_the_model_reads_at_once(
    model: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is not known, as 8,000 tokens allow; and never larger than what a goal can print."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    pipeline = Pipeline("windows", model=model, inputs={"load": texts(5000)})
    pipeline.step("report", "Count the rows.", reduce_over="load")
    items = (await PipelineExecutor(pipeline).plan())["report"].items
    assert items is not None
    assert parts / 2 < items < parts * 2


async def test_parts_that_are_too_long_for_a_known_window_show_in_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    rows = ["word " * 500 for _ in range(100)]
    pipeline = Pipeline("windows", model="openai:gpt-4", inputs={"load": rows})
    pipeline.step("report", "Count the rows.", reduce_over="load", reduce_tokens=50_000)
    plan = (await PipelineExecutor(pipeline).plan())["report"]
    assert re.search(r"; \d parts? will fail: part '0.0', of \d+ rows, 0 to \d+: its prompt has", plan.why)


async def test_a_goal_that_reads_rows_by_number_can_be_asked_too() -> None:
    clerk = Clerk()
    goal = "First {{ load[0] }}, last {{ load[-1] }}."
    result = await PipelineExecutor(report(clerk, texts(3), goal, combine="Join")).execute()
    assert result["report"].startswith("rows 2,")


# -- failures -------------------------------------------------------------------------------------


async def test_a_part_that_fails_fails_the_step_and_names_its_rows(tmp_path: Path) -> None:
    """The other parts are kept: when it is mended, only that and what is above is paid."""
    clerk = Clerk(fails="row 700 ")
    result = await executor(report(clerk, texts(1000)), tmp_path).execute()
    message = result.error_details["report"]
    assert re.match(r"StepError: \d of \d parts of the rows succeeded; all must \(--min-success 0\.", message)
    assert "The first failure is part '0." in message
    assert re.search(r"of \d+ rows, \d+ to \d+: ", message)
    paid = len(clerk.tasks)
    clerk.tasks.clear()
    clerk.fails = ""
    again = await executor(report(clerk, texts(1000)), tmp_path).execute()
    assert again["report"].startswith("rows 1000,")
    assert len(clerk.tasks) == 2 < paid


async def test_min_success_lets_parts_of_the_rows_fail() -> None:
    clerk = Clerk(fails="row 700 ")
    result = await PipelineExecutor(report(clerk, texts(1000), min_success=0.5)).execute()
    left_out = next(warning for warning in result.warnings if "left out" in warning)
    rows = int(re.search(r"the (\d+) rows in them", left_out)[1])  # type: ignore[index]
    assert result["report"].startswith(f"rows {1000 - rows},")
    alone = report(Clerk(fails="row 1 "), texts(3), min_success=0)
    failed = await PipelineExecutor(alone).execute()
    message = "0 of 1 parts of the rows succeeded; all must. The first failure is part '0.0', of 3 rows"
    assert message in failed.error_details["report"]


@pytest.mark.parametrize("stored", [True, False])
async def test_failed_parts_are_tried_again_alone_with_what_is_above(stored: bool, tmp_path: Path) -> None:
    """Also in memory, where there are no fingerprints: what an old combination answered is no answer now."""
    clerk = Clerk(fails="row 700 ")
    pipeline = report(clerk, texts(1000), min_success=0.5)
    run = executor(pipeline, tmp_path) if stored else PipelineExecutor(pipeline)
    first = await run.execute()
    assert not first["report"].startswith("rows 1000,")
    clerk.tasks.clear()
    clerk.fails = ""
    assert (await run.plan(retry_failed=True))["report"].why == "1 failed item is tried again"
    result = await run.execute(retry_failed=True)
    assert result["report"].startswith("rows 1000,")
    assert len(clerk.tasks) == 2


async def test_a_group_none_of_whose_parts_succeeded_is_a_blank_row() -> None:
    rows = pd.DataFrame({"text": ["row 1", "bad"], "kind": ["a", "b"]})
    pipeline = report(Clerk(fails="bad"), rows, group_by="kind", min_success=0.5, output_schema=Tally)
    frame = (await PipelineExecutor(pipeline).execute())["report"]
    assert frame.rows.isna().to_dict() == {"a": False, "b": True}


async def test_a_row_of_a_failed_map_is_called_as_its_item() -> None:
    clerk = Clerk(fails="row 2 ")
    frame = pd.DataFrame({"text": ["row 2 a"]}, index=["second"])
    pipeline = Pipeline("named", model=clerk.model, inputs={"load": frame})
    pipeline.task(lambda item: item["text"], name="each", map_over="load")
    pipeline.step("report", "Count.", reduce_over="each", max_retries=0)
    await fails(pipeline, "part '0.0', of row second")


async def test_a_combination_that_fails_fails_the_step() -> None:
    clerk = Clerk(fails="read in parts")
    await fails(
        report(clerk, texts(1000), min_success=0), "could not be combined. The first is part '1.0', of "
    )


async def test_a_budget_stops_it_and_what_is_done_is_kept(tmp_path: Path) -> None:
    clerk = Clerk()
    result = await executor(report(clerk, texts(1000), budget="3 requests"), tmp_path).execute()
    assert result.steps["report"].error_type == "BudgetExceededError"
    assert "3 of " in result.error_details["report"]
    again = await executor(report(clerk, texts(1000), budget="50 requests"), tmp_path).execute(resume=True)
    assert again["report"].startswith("rows 1000,")
    assert len(clerk.tasks) == sum(levels(again))


# -- carried on, replayed, approved ----------------------------------------------------------------


def child(url: str, effects: Path, block: int) -> subprocess.Popen[str]:
    script = Path(__file__).parents[1] / "reduce_child.py"
    command = [sys.executable, str(script), url, str(effects), str(block)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("block", [2, 6, 10**6])
def test_after_a_kill_only_what_was_not_recorded_is_paid(block: int, tmp_path: Path) -> None:
    """SIGKILL among parts of rows, and at the combination. The calls of both processes are all there are."""
    url, effects = f"sqlite:///{tmp_path / 'runs.db'}", tmp_path / "effects"
    whole, _ = child(f"sqlite:///{tmp_path / 'whole.db'}", tmp_path / "once", 0).communicate(timeout=120)
    calls = (tmp_path / "once").read_text().splitlines()
    assert whole.startswith("done rows 600,")
    block = min(block, len(calls))
    killed = child(url, effects, block)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "blocked\n"
    killed.kill()
    killed.wait()
    killed.stdout.close()
    again, _ = child(url, effects, 0).communicate(timeout=120)
    assert again == whole
    made = effects.read_text().splitlines()
    assert sorted(set(made)) == sorted(calls)
    assert len(made) == len(calls) + 1  # the one that was under way


class Stopping(BaseModel):
    """A row that stops the run when it is shown."""

    place: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        STOP[0]()
        return f"row {self.place}"


STOP: list[Callable[[], object]] = []


async def test_a_run_that_is_stopped_while_rows_are_read_is_cancelled_and_has_not_failed() -> None:
    clerk = Clerk()
    run = PipelineExecutor(report(clerk, [Stopping(place=place) for place in range(600)]))
    STOP[:] = [run.cancel]
    result = await run.execute()
    assert result.cancelled
    assert result.failed_steps == []
    STOP[:] = [lambda: None]
    again = await run.execute(resume=True)
    assert again["report"].startswith("rows 600,")


@pytest.mark.parametrize("turn", range(0, 120, 12))
async def test_a_run_that_is_stopped_at_any_turn_goes_on_where_it_was(turn: int, tmp_path: Path) -> None:
    clerk = Clerk()
    run = executor(report(clerk, texts(300), reduce_tokens=1000), tmp_path)
    running = asyncio.ensure_future(run.execute())
    for _ in range(turn):
        await asyncio.sleep(0)
    run.cancel()
    await running
    result = await run.execute(resume=True)
    assert result["report"].startswith("rows 300,")
    assert len(clerk.tasks) <= sum(levels(result)) + 32  # those that were under way


async def test_a_recording_replays_it_offline(tmp_path: Path) -> None:
    clerk = Clerk()
    run = executor(report(clerk, texts(600)), tmp_path)
    result = await run.execute()
    await run.export_recording(tmp_path / "calls.json")
    clerk.tasks.clear()
    offline = PipelineExecutor(report(clerk, texts(600)), recording=tmp_path / "calls.json")
    again = await offline.execute(offline=True)
    assert (again["report"], clerk.tasks) == (result["report"], [])


async def test_offline_the_cache_answers_or_the_plan_says_that_it_may_not(tmp_path: Path) -> None:
    run = executor(report(Clerk(), texts(600)), tmp_path)
    assert (await run.plan(offline=True))["report"].action == "may run"
    await run.execute()
    assert (await run.plan(offline=True))["report"].action == "cached"


async def test_only_the_answer_of_the_step_waits_for_approval() -> None:
    waiting: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> Approved:
        waiting.append(request)
        return Approved()

    result = await PipelineExecutor(report(Clerk(), texts(600), approve=True), approver=approver).execute()
    assert result["report"].startswith("rows 600,")
    assert [request.item for request in waiting] == ["1.0"]


async def test_it_goes_on_after_the_approval_of_a_later_process(tmp_path: Path) -> None:
    clerk = Clerk()
    run = executor(report(clerk, texts(600), approve=True), tmp_path)
    first = await run.execute()
    assert first.waiting_steps == ["report"]
    paid = len(clerk.tasks)
    later = executor(report(clerk, texts(600), approve=True), tmp_path)
    await asyncio.to_thread(later.approve, "report", item="1.0")
    result = await later.execute(resume=True)
    assert result["report"].startswith("rows 600,")
    assert len(clerk.tasks) == paid


# -- the plan -------------------------------------------------------------------------------------


async def test_the_plan_counts_parts_of_rows_exactly_and_what_combines_them_from_and_to(
    tmp_path: Path,
) -> None:
    clerk = Clerk(words=200)
    run = executor(report(clerk, texts(3000)), tmp_path, prices={"function:clerk": Price(1.0, 10.0)})
    planned = await run.plan()
    quote = planned["report"].quote
    assert quote is not None
    assert quote.cost is not None
    result = await run.execute()
    made = levels(result)
    assert quote.calls == made[0]
    assert quote.later_calls[0] <= sum(made[1:]) <= quote.later_calls[1]
    assert planned.calls <= sum(made) <= planned.most_calls
    assert f"About {planned.calls} to {planned.most_calls} calls of models" in planned.total
    usage = result.token_usage["report"]
    assert quote.input_tokens[0] <= usage.counted.input_tokens <= quote.input_tokens[1]
    frame = planned.to_frame()
    assert frame.loc["report", "later_calls_high"] == quote.later_calls[1]
    assert frame.loc["report", "items"] == made[0]

    clerk.tasks.clear()
    edited = executor(report(clerk, ["row 0, edited", *texts(3000)[1:]]), tmp_path)
    plan = (await edited.plan())["report"]
    assert plan.why == "input load changed"
    assert plan.quote is not None
    await edited.execute()
    below = [task for task in clerk.tasks if "read in parts" not in task]
    assert plan.quote.calls == len(below)
    assert plan.items is not None
    assert plan.items_done == plan.items - len(below)
    done = (await edited.plan())["report"]
    assert (done.action, done.items, done.items_done) == ("cached", sum(made), sum(made))


short_rows = st.lists(st.integers(0, 120).map(lambda size: f"row 1 {'x' * size}"), min_size=1, max_size=60)


@settings(max_examples=20, deadline=None)
@given(short_rows, st.lists(st.tuples(st.integers(0, 59), st.integers(0, 2)), max_size=4))
def test_whatever_is_edited_each_row_counts_once_and_calls_are_as_planned(
    rows: list[str], changes: list[tuple[int, int]]
) -> None:
    edited = list(rows)
    for place, kind in changes:
        at = place % (len(edited) + 1)
        edited[at : at + (kind != 0)] = [] if kind == 2 else [f"row 2 {place}"]
    clerk = Clerk(words=20)

    async def check(folder: Path) -> None:
        for now in (rows, edited):
            run = executor(report(clerk, now, reduce_tokens=300), folder)
            plan = await run.plan()
            clerk.tasks.clear()
            result = await run.execute()
            assert plan.calls <= len(clerk.tasks) <= plan.most_calls
            if now:
                assert result["report"].startswith(f"rows {len(now)},")
            await run.storage.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


async def test_one_call_that_does_it_all_has_nothing_after_it(tmp_path: Path) -> None:
    plan = await executor(report(Clerk(), texts(3)), tmp_path).plan()
    assert plan["report"].quote is not None
    assert plan["report"].quote.later_calls == (0, 0)


async def test_a_step_whose_rows_are_not_there_yet_is_planned_as_one_that_reads_them(tmp_path: Path) -> None:
    clerk = Clerk()
    pipeline = Pipeline("dark", model=clerk.model)
    pipeline.task(lambda: texts(600), name="load")
    pipeline.step("report", "Count the rows.", reduce_over="load")
    run = executor(pipeline, tmp_path)
    plan = (await run.plan())["report"]
    assert (plan.action, plan.quote) == ("run", None)
    await run.execute()
    forced = (await run.plan(force=["load"]))["report"]
    assert forced.action == "may run"
    assert forced.quote is not None
    assert forced.quote.calls == len(clerk.tasks)


async def test_before_its_rows_are_there_a_plan_knows_that_the_definition_is_the_same(tmp_path: Path) -> None:
    clerk = Clerk()
    options: dict[str, Any] = {"combine": "Add up.", "reduce_tokens": 2000}

    def flow(**changes: Any) -> PipelineExecutor:
        pipeline = Pipeline("same", model=clerk.model)
        pipeline.task(lambda: texts(300), name="load")
        pipeline.step("report", "Count the rows.", reduce_over="load", **{**options, **changes})
        return executor(pipeline, tmp_path)

    await flow().execute()
    assert (await flow().plan(force=["load"]))["report"].why == "input load may change, because load runs"
    changed = (await flow(combine="Join.").plan(force=["load"]))["report"]
    assert (changed.action, changed.why.partition(";")[0]) == ("run", "combine changed")


async def test_a_changed_definition_says_what_it_is_in_plan_and_resume(tmp_path: Path) -> None:
    clerk = Clerk()
    await executor(report(clerk, texts(600)), tmp_path).execute()
    plan = await executor(report(clerk, texts(600), reduce_tokens=2000), tmp_path).plan()
    assert "reduce tokens is new" in plan["report"].why
    paid = len(clerk.tasks)
    result = await executor(report(clerk, texts(600), combine="Add up."), tmp_path).execute()
    assert len(clerk.tasks) == paid + sum(levels(result)[1:])  # the parts of the rows are asked the same
    with pytest.raises(ResumeConflictError, match="combine is gone"):
        await executor(report(clerk, texts(600)), tmp_path).execute(resume=True)


# -- definitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce_over": 3}, "reduce_over must be a step's name"),
        ({"group_by": "kind"}, "group_by belongs to reduce_over (--reduce-over)"),
        ({"combine": "Join"}, "leave --combine (combine=) out"),
        ({"reduce_tokens": 100}, "reduce_tokens belongs to reduce_over"),
        (
            {"reduce_over": "load", "reduce_tokens": 0},
            "reduce_tokens must be a whole number of tokens from 1 on",
        ),
        ({"reduce_over": "load", "group_by": " "}, "group_by must be text that says something"),
        ({"reduce_over": "load", "map_over": "load"}, "reduce_over and map_over exclude each other"),
        ({"reduce_over": "load", "agent": "plan"}, "reduce_over is for steps that answer at once"),
        ({"reduce_over": "load", "max_failures": 3}, "max_failures is about the items of a mapped step"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_written(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(message)):
        Pipeline("p").step("report", "Count.", **options)


def test_python_reads_all_rows_as_they_are() -> None:
    with pytest.raises(DefinitionError, match="reduce_over is for agent steps"):
        PipelineStep.from_cell("count", "len(load)", python=True, reduce_over="load")


@pytest.mark.parametrize(
    ("goal", "options", "message"),
    [
        (
            "Count.",
            {"reduce_over": "loda"},
            "depends on unknown step 'loda' in its reduce_over. Did you mean 'load'",
        ),
        ("Count.", {"group_by": "lod.kind"}, "depends on unknown step 'lod' in its group_by"),
        ("Count.", {"reduce_over": "load."}, "Step 'report', reduce_over: 'load.' is not a reference"),
        ("Count {{ judge[0] }}.", {"reduce_over": "judge"}, "Say how these become one answer: combine=..."),
        ("Count.", {"reduce_over": "judge", "group_by": "rowz"}, "group_by: Tally has no field 'rowz'"),
        (
            "Count {{ judge.rowz }}.",
            {"reduce_over": "judge"},
            "goal {{ judge.rowz }}: Tally has no field 'rowz'",
        ),
        (
            "Count.",
            {"combine": "Add {{ judge.rowz }}", "reduce_over": "judge", "output_schema": Tally},
            "combine {{ judge.rowz }}: Tally has no field 'rowz'",
        ),
        ("Count.", {"combine": "{{ x"}, "Step 'report', combine line 1"),
    ],
)
def test_what_cannot_run_is_said_before_it_does(goal: str, options: dict[str, Any], message: str) -> None:
    pipeline = Pipeline("p", model="test")
    pipeline.task(lambda: [1], name="load")
    pipeline.step("judge", "Judge {{ load }}.", map_over="load", output_schema=Tally)
    pipeline.step("report", goal, **{"reduce_over": "load", **options})
    (problem, *_) = [problem for problem in pipeline.validate() if message in problem]
    assert "no field '0'" not in "".join(pipeline.validate())
    assert problem.startswith("Step 'report'")


def test_what_reads_an_answer_a_group_reads_a_frame() -> None:
    pipeline = Pipeline("p", model="test", inputs={"load": [1]})
    pipeline.step("report", "Count.", reduce_over="load", group_by="kind", output_schema=Tally)
    pipeline.step("letter", "Write: {{ report.kind }}")
    assert pipeline.validate() == []


def test_a_goal_and_what_combines_its_answers_read_other_steps() -> None:
    pipeline = Pipeline("p", model="test")
    for name in ("load", "rules", "style"):
        pipeline.task(lambda: 1, name=name)
    pipeline.step(
        "report", "By {{ rules }}", reduce_over="load", combine="As {{ style }}", group_by="load.kind"
    )
    names = [dependency.name for dependency in pipeline.dependencies("report")]
    assert names == ["rules", "style", "load"]


def test_a_prompt_too_long_for_its_model_names_the_remedy() -> None:
    assert "--reduce-over" in too_long("openai:gpt-4", "word " * 40_000)


def test_a_field_inside_of_a_field_to_group_by_is_named_as_it_is_written() -> None:
    pipeline = Pipeline("groups", model="test").share(x=1)
    pipeline.task(lambda: [{"b": {"c": 1}}], name="load")
    pipeline.step("total", "Sum {{ load }}", reduce_over="load", group_by="b.c")
    with pytest.raises(
        PipelineValidationError, match=r"unknown step 'b' in its group_by.* written load\.b\.c\."
    ):
        PipelineExecutor(pipeline).run()


def test_a_field_of_rows_to_reduce_is_refused_before_the_run_and_read_by_the_goal() -> None:
    def flow(over: str, goal: str) -> Pipeline:
        pipeline = Pipeline("fields", model="test")
        pipeline.task(lambda: [1, 2, 3], name="load")
        pipeline.task(lambda load: {"k": [load]}, name="up", map_over="load")
        pipeline.step("total", goal, reduce_over=over, combine="Add {{ up }}")
        return pipeline

    with pytest.raises(PipelineValidationError, match=r"Write reduce_over='up'.*\{\{ up\.k \}\} in the goal"):
        PipelineExecutor(flow("up.k", "Sum {{ up }}")).run()
    assert PipelineExecutor(flow("up", "Sum {{ up.k }}")).run().success
    assert PipelineExecutor(flow("up.1.k", "Sum {{ up }}")).run().success
