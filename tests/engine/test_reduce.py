"""Many rows to one answer: in parts that the model can read, each paid once."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    FileStorageBackend,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    ResultCache,
)
from tagent_nb.engine.unit.reduce import DEFAULT_WINDOW, MOST_TOKENS


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
        if info.output_tools:
            return ModelResponse(
                parts=[ToolCallPart(info.output_tools[0].name, {"rows": rows, "poor": poor})]
            )
        return ModelResponse(parts=[TextPart(f"rows {rows}, poor {poor}. " + "word " * self.words)])


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


async def test_the_goal_says_where_rows_stand_and_combine_how_answers_become_one() -> None:
    clerk = Clerk()
    goal = "Of {% for row in load %}{{ row.text }};{% endfor %} count the rows."
    rows = pd.DataFrame({"text": texts(800), "rest": ["unread" * 50] * 800})
    pipeline = report(clerk, rows, goal, combine="Add up: {{ load }}")
    result = await PipelineExecutor(pipeline).execute()
    assert result["report"].startswith("rows 800,")
    assert clerk.tasks[0].startswith("Of <data>row 0 ")
    assert clerk.tasks[-1].startswith('Add up: <data>["rows ')
    assert "unread" not in "".join(clerk.tasks)
