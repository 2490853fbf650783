"""What a step changes in place reaches nobody else: no other step, no later attempt, not the pipeline."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel

from tagent_nb import Pipeline, PipelineExecutor, StepContext
from tagent_nb.pipeline.copying import own_copy


class Note(BaseModel):
    tags: list[str]


@dataclass
class Point:
    where: list[int] = field(default_factory=list)


def run(pipeline: Pipeline) -> Any:
    result = PipelineExecutor(pipeline, retry_delay=0.0).run()
    assert result.success, result.error_details
    return result


def test_a_column_that_a_step_adds_is_not_seen_by_others() -> None:
    pipeline = Pipeline("frames")

    @pipeline.task
    def load() -> pd.DataFrame:
        return pd.DataFrame({"text": [" Good "]})

    @pipeline.task
    def clean(load: pd.DataFrame) -> pd.DataFrame:
        load["text"] = load["text"].str.strip()
        return load

    @pipeline.task(depends_on=["clean"])
    def raw(load: pd.DataFrame) -> str:
        return str(load["text"][0])

    result = run(pipeline)
    assert result["raw"] == " Good "
    assert result["load"]["text"][0] == " Good "
    assert result["clean"]["text"][0] == "Good"


def test_another_attempt_begins_with_what_the_first_began_with() -> None:
    pipeline = Pipeline("retries")

    @pipeline.task
    def load() -> list[int]:
        return [1, 2, 3]

    @pipeline.task(max_retries=1)
    def take(load: list[int], context: StepContext) -> int:
        first = load.pop(0)
        if context.attempt == 1:
            raise OSError("once")
        return first

    assert run(pipeline)["take"] == 1


def test_items_of_a_mapped_step_change_their_own_row_only() -> None:
    pipeline = Pipeline("items")

    @pipeline.task
    def load() -> list[dict[str, list[int]]]:
        return [{"n": [1]}, {"n": [2]}]

    @pipeline.task
    def extra() -> list[str]:
        return ["x"]

    @pipeline.task(map_over="load")
    def each(load: dict[str, list[int]], extra: list[str]) -> int:
        load["n"].append(9)
        extra.append("y")
        return len(load["n"])

    result = run(pipeline)
    assert result["each"] == [2, 2]
    assert result["load"] == [{"n": [1]}, {"n": [2]}]
    assert result["extra"] == ["x"]


def test_shared_values_of_the_pipeline_stay_as_they_were() -> None:
    pipeline = Pipeline("shared").share(cfg={"n": 0})

    @pipeline.task
    def count(shared: Any) -> int:
        shared["cfg"]["n"] += 1
        return int(shared["cfg"]["n"])

    assert run(pipeline)["count"] == run(pipeline)["count"] == 1
    assert pipeline.shared_context == {"cfg": {"n": 0}}


@pytest.mark.parametrize(
    "value",
    [
        [[1]],
        {"a": [1]},
        ([1],),
        Note(tags=["a"]),
        Point([1]),
        pd.Series([1]),
        Counter("aab"),
        bytearray(b"a"),
        deque([[1]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_is_copied_with_its_type(value: Any) -> None:
    made = own_copy(value)
    assert made is not value
    assert type(made) is type(value)
    assert repr(made) == repr(value)


@pytest.mark.parametrize("value", [threading.Lock(), [threading.Lock()], "text", 7, None, Point])
def test_what_is_no_data_or_cannot_be_copied_is_the_same_object(value: Any) -> None:
    assert own_copy(value) is value
