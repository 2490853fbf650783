"""Answers that are no records: ``--output-schema bool`` and other types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    DefinitionError,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    ResultCache,
    StepStatus,
    TemplateError,
)
from tagent_nb.display import step_card
from tagent_nb.export import export_module
from tagent_nb.notebook.session import Session


class Review(BaseModel):
    text: str
    stars: int


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session({"Review": Review, "models": type("models", (), {"Review": Review})}, tmp_path)
    made.use("reviews")
    return made


def answered(schema: type[BaseModel], answer: Any, **options: Any) -> PipelineResult:
    """A run of one step whose model gives an answer."""

    def give(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, {"answer": answer})])

    flow = Pipeline("flow", model=FunctionModel(give))
    flow.put(PipelineStep("ask", "Say.", output_schema=schema, output_retries=0, max_retries=0, **options))
    return PipelineExecutor(flow).run()


GREAT = {"text": "Great", "stars": 5}
ANSWERS: dict[str, tuple[Any, Any]] = {
    "bool": (False, False),
    "int": (3, 3),
    "list[Review]": ([GREAT], [Review(**GREAT)]),
    "list[models.Review]": ([GREAT], [Review(**GREAT)]),
    'Literal["yes", "no"]': ("no", "no"),
    "Literal[yes,no]": ("yes", "yes"),
    "Literal[1, -1]": (-1, -1),
    "dict[str, Review]": ({"a": GREAT}, {"a": Review(**GREAT)}),
    "Review | None": (None, None),
    "Optional[Review]": (GREAT, Review(**GREAT)),
    "tuple[int, ...]": ([1, 2], (1, 2)),
}


@pytest.mark.parametrize("text", ANSWERS)
def test_the_value_is_of_the_type_itself(session: Session, text: str) -> None:
    written, value = ANSWERS[text]
    schema = session.schema(text)
    result = answered(schema, written)
    assert result["ask"] == value
    assert type(result["ask"]) is type(value)
    assert session.schema(text) is schema


@pytest.mark.parametrize(
    "text", ["1+1", "foo(", "open('x')", "list[", "dict[int]", "Literal[len(x)]", "set[list[int]] + 1"]
)
def test_what_is_no_type_is_refused(session: Session, text: str) -> None:
    with pytest.raises(
        DefinitionError, match="is no type that an answer can have. Write a pydantic model, bool"
    ):
        session.schema(text)


def test_a_model_in_it_that_is_not_there_is_named(session: Session) -> None:
    with pytest.raises(DefinitionError, match="There is no schema 'Reveiw'. Did you mean 'Review'"):
        session.schema("list[Reveiw]")


def test_an_answer_of_another_type_fails_and_checks_see_the_value(session: Session) -> None:
    assert answered(session.schema("bool"), "perhaps").failed_steps == ["ask"]
    seen: list[Any] = []
    assert answered(
        session.schema("list[Review]"), [GREAT], checks=[lambda value: seen.extend(value)]
    ).success
    assert seen == [Review(**GREAT)]


def test_python_steps_conditions_and_fields_know_the_type(session: Session) -> None:
    step = PipelineStep.from_cell("ok", "[1, '2']", python=True, output_schema=session.schema("list[int]"))
    flow = Pipeline("flow").put(step)
    flow.put(PipelineStep.from_cell("some", "1", python=True, when="len(ok) == 2"))
    result = PipelineExecutor(flow).run()
    assert (result["ok"], result["some"]) == ([1, 2], 1)
    assert "schema list[int]" in step_card(flow, step).text
    flow.put(PipelineStep("one", "Go.", output_schema=session.schema("Review")))
    flow.put(PipelineStep("maybe", "Go.", output_schema=session.schema("Review | None")))
    with pytest.raises(TemplateError, match="Review has no field 'txet'"):
        flow.put(PipelineStep("read", "{{ maybe.txet }}"))
    with pytest.raises(
        DefinitionError, match=r"list\[int\] is no class that can be written; name a pydantic model"
    ):
        export_module(Pipeline("p").put(step))


def test_a_type_written_again_is_the_same_schema_for_the_cache(session: Session, tmp_path: Path) -> None:
    def run(schema: type[BaseModel]) -> StepStatus:
        flow = Pipeline("flow", model="test").put(PipelineStep("ask", "Say.", output_schema=schema))
        return PipelineExecutor(flow, cache=ResultCache(tmp_path / "cache")).run().steps["ask"].status

    assert run(session.schema("list[Review]")) is StepStatus.COMPLETED
    other = Session(session.namespace, tmp_path)
    assert run(other.schema("list[Review]")) is StepStatus.CACHED
    assert run(other.schema("list[int]")) is StepStatus.COMPLETED
