"""What is refused before anything runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    ModelError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    PipelineValidationError,
    UnknownStepError,
)
from tagent_nb.engine import part_of, refuse_problems
from tagent_nb.engine.preflight import agent_problems, refuse_models


def diamond() -> Pipeline:
    pipeline = Pipeline("diamond")
    pipeline.step("top", "a").step("left", "{{ top }}").step("right", "{{ top }}")
    return pipeline.step("end", "{{ left }} {{ right }}").step("other", "b")


def test_a_part_has_the_step_and_all_it_depends_on() -> None:
    assert [step.name for step in part_of(diamond(), "end").steps] == ["top", "left", "right", "end"]
    assert [step.name for step in part_of(diamond(), "left").steps] == ["top", "left"]
    assert len(part_of(diamond(), None)) == 5


def test_a_part_is_a_copy() -> None:
    pipeline = diamond()
    part = part_of(pipeline, None)
    pipeline.remove("end")
    assert "end" in part


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(UnknownStepError, match="Did you mean 'end'"):
        part_of(diamond(), "ende")


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(PipelineValidationError) as caught:
        refuse_problems(diamond().step("top", "again").step("last", "{{ nowhere }}"))
    assert len(caught.value.errors) == 2
    refuse_problems(diamond())


def test_tools_and_settings_are_among_the_problems_reported_at_once() -> None:
    pipeline = diamond()
    pipeline.step("look", "Look.", tools_filter=["no_tool"], settings={"temprature": 0})
    pipeline.step("buy", "Buy.", approve_tools=["no_tool"])
    pipeline.put(PipelineStep.from_cell("cell", "1", python=True))
    with pytest.raises(PipelineValidationError) as caught:
        refuse_problems(pipeline, agent_problems(pipeline, settings=True))
    look, buy, setting = caught.value.errors
    assert "'look': tools_filter names 'no_tool'" in look
    assert "'buy': approve_tools names 'no_tool'" in buy
    assert "'look': there is no model setting 'temprature'. Did you mean 'temperature'" in setting
    assert agent_problems(pipeline, settings=False) == [look, buy]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_tokens", "many", "valid integer"),
        ("max_tokens", "200", "valid integer"),
        ("max_tokens", True, "valid integer"),
        ("max_tokens", 0, "it must be 1 or more"),
        ("max_tokens", None, "valid integer"),
        ("temperature", "hot", "valid number"),
        ("top_p", [1], "valid number"),
        ("timeout", "soon", "valid"),
        ("tool_choice", "requird", "'none', 'required' or 'auto'"),
        ("stop_sequences", "END", "valid list"),
        ("max_tokens", 200, ""),
        ("temperature", 1, ""),
        ("timeout", 3, ""),
        ("stop_sequences", ("END",), ""),
        ("tool_choice", "auto", ""),
        ("extra_headers", {"x": "y"}, ""),
        ("openai_user", 3, ""),
    ],
)
async def test_a_setting_of_a_wrong_type_is_reported_before_anything_is_paid(
    name: str, value: Any, says: str
) -> None:
    pipeline = Pipeline("p", model="test").step("first", "Ask.")
    pipeline.step("second", "{{ first }}", settings={name: value})
    problems = agent_problems(pipeline, settings=True)
    if not says:
        assert problems == []
        return
    (problem,) = problems
    assert problem.startswith(f"Step 'second': setting {name}={value!r} will not do: ")
    assert says in problem
    executor = PipelineExecutor(pipeline)
    with pytest.raises(PipelineValidationError, match="will not do"):
        await executor.execute()
    assert executor.memory is None


async def test_nothing_is_asked_before_the_names_of_all_steps_are_right() -> None:
    requests = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        requests.append(messages)
        return ModelResponse(parts=[TextPart("paid")])

    pipeline = Pipeline("shop", model=FunctionModel(answer)).step("first", "Ask.")
    pipeline.step("second", "{{ first }}", settings={"temprature": 0}, tools_filter=["no_tool"])
    executor = PipelineExecutor(pipeline)
    for work in (executor.execute, executor.plan, partial(executor.execute, offline=True)):
        with pytest.raises(PipelineValidationError) as caught:
            await work()
        assert len(caught.value.errors) == 2
    assert requests == []
    pipeline.put(PipelineStep("second", "{{ first }}", settings={"temperature": 0}))
    assert (await executor.execute())["second"] == "paid"


def test_a_step_without_a_model_is_refused() -> None:
    with pytest.raises(ModelError, match="Step 'top' has no model"):
        refuse_models(diamond(), None)


def test_a_models_own_problem_is_reported() -> None:
    pipeline = diamond()
    with pytest.raises(ModelError, match="openia"):
        refuse_models(pipeline, "openia:gpt")
    refuse_models(pipeline, TestModel())
    refuse_models(pipeline, "test")
