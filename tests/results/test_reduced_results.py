"""Frames, comparisons and evaluations of one answer of many rows: of the answer, not of its parts."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, PipelineResult
from tagent_nb.results import RunHistory


class Verdict(BaseModel):
    mood: str


def judge(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    mood = "bad" if "broke" in str(messages[0].parts[0].content) else "good"
    return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, {"mood": mood})])


def verdicts(texts: list[str], **options: Any) -> PipelineResult:
    rows = pd.DataFrame({"text": texts, "kind": ["cup", "pot", "cup", "pot"][: len(texts)]})
    truth = pd.DataFrame({"mood": ["good", "bad"]}, index=["cup", "pot"])
    pipeline = Pipeline("verdicts", model=FunctionModel(judge), inputs={"load": rows, "truth": truth})
    pipeline.step("judge", "How is it?", reduce_over="load", output_schema=Verdict, **options)
    pipeline.step("letter", "Write about {{ truth }}.", when="False")
    return PipelineExecutor(pipeline).run()


TEXTS = ["fine", "broke", "nice", "shines"]


def test_the_frame_of_an_answer_is_one_row_and_that_of_groups_a_row_each() -> None:
    single = verdicts(TEXTS).output_frame("judge")
    assert single.to_dict("list") == {"mood": ["bad"]}
    groups = verdicts(TEXTS, group_by="kind").output_frame("judge")
    assert groups.mood.to_dict() == {"cup": "good", "pot": "bad"}


def test_an_answer_of_many_rows_has_no_row_to_stand_beside() -> None:
    with pytest.raises(DefinitionError, match="Step 'judge' is not mapped"):
        verdicts(TEXTS).output_frame("judge", source=True)


def test_what_led_to_an_answer_is_among_the_items() -> None:
    result = verdicts(TEXTS, group_by="kind")
    items = RunHistory([result]).items_frame("judge")
    assert items.index.get_level_values("item").tolist() == ["cup/0.0", "pot/0.0"]


def test_two_answers_are_compared_as_such_and_groups_by_their_label() -> None:
    first, second = verdicts(TEXTS), verdicts(["fine", "fair", "nice", "shines"])
    rows = first.compare(second, ["a", "b"]).rows
    assert rows[["field", "a", "b"]].to_numpy().tolist() == [["mood", "bad", "good"]]
    assert rows["item"].isna().all()
    grouped = [verdicts(texts, group_by="kind") for texts in (TEXTS, ["broke", *TEXTS[1:]])]
    assert grouped[0].compare(grouped[1], ["a", "b"]).rows["item"].tolist() == ["cup"]


def test_answers_of_groups_are_evaluated_by_their_label() -> None:
    result = verdicts(TEXTS, group_by="kind")
    assert result.evaluate("judge.mood", "truth.mood").accuracy == 1.0
