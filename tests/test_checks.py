"""What is refused before anything runs."""

from __future__ import annotations

import pytest
from pydantic_ai.models.test import TestModel

from tagent_nb import ModelError, Pipeline, PipelineValidationError, UnknownStepError
from tagent_nb.engine.checks import part_of, refuse_models, refuse_problems


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


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PipelineValidationError) as caught:
        refuse_problems(diamond().step("top", "again").step("last", "{{ nowhere }}"))
    assert len(caught.value.errors) == 2
    refuse_problems(diamond())


def test_a_step_without_a_model_is_refused() -> None:
    with pytest.raises(ModelError, match="Step 'top' has no model"):
        refuse_models(diamond(), None)


def test_a_models_own_problem_is_told() -> None:
    pipeline = diamond()
    with pytest.raises(ModelError, match="openia"):
        refuse_models(pipeline, "openia:gpt")
    refuse_models(pipeline, TestModel())
    refuse_models(pipeline, "test")
