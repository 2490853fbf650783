"""A model for each role of a planning step: who is asked what, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import (
    BudgetExceededError,
    DefinitionError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    Price,
    ResultCache,
    UnknownModelError,
    export_module,
)
from tests.notebook.test_magics import Notebook, book, refused

assert book  # a fixture: pytest finds it by its name

PLAN = {
    "tasks": [
        {"id": "a", "description": "Think.", "tool": "llm"},
        {"id": "b", "description": "Say {{ a }}.", "tool": "llm"},
    ]
}


class Cast:
    """Models by role that note what they were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def model(self, name: str) -> FunctionModel:
        def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            instructions = info.instructions or ""
            phase = (
                "plan"
                if "Make a plan" in instructions
                else "judge"
                if "Judge whether" in instructions
                else "act"
            )
            self.asked.append((name, phase))
            text = {"plan": json.dumps(PLAN), "judge": '{"achieved": true}'}.get(phase, f"by {name}")
            return ModelResponse(parts=[TextPart(text)])

        return FunctionModel(answer, model_name=name, profile={"supports_tools": False})


def planning(cast: Cast, **models: str) -> Pipeline:
    roles = {role: cast.model(name) for role, name in models.items()}
    pipeline = Pipeline("p", model=cast.model("main"))
    return pipeline.step("s", "Say something.", agent="plan", models=roles)


def test_each_role_asks_its_own_model() -> None:
    """Roles that name none ask the step's model; the metadata names all of them."""
    cast = Cast()
    result = planning(cast, plan="big", judge="strict").run()
    assert result["s"] == "by main"
    assert cast.asked == [("big", "plan"), ("main", "act"), ("main", "act"), ("strict", "judge")]
    assert result.step_metadata["s"]["model"] == "function:main"
    assert result.step_metadata["s"]["models"] == {"plan": "function:big", "judge": "function:strict"}


def test_each_model_is_paid_at_its_own_price() -> None:
    cast = Cast()
    prices = {"function:big": Price(1_000_000, 0), "function:main": Price(0, 0)}
    result = PipelineExecutor(planning(cast, plan="big", judge="main"), prices=prices).run()
    alone = PipelineExecutor(planning(cast), prices=prices).run()
    assert result.total_cost > 0
    assert alone.total_cost == 0


def test_a_budget_in_usd_needs_the_price_of_every_role() -> None:
    with pytest.raises(DefinitionError, match="the price of model 'function:big' is unknown"):
        PipelineExecutor(
            planning(Cast(), plan="big"), prices={"function:main": Price(0, 0)}, budget=0.1
        ).run()


def test_a_model_that_cannot_be_used_is_refused_before_anything_is_paid() -> None:
    cast = Cast()
    pipeline = planning(cast)
    pipeline.put(pipeline.get_step("s").with_(models={"judge": "opnai:gpt"}))
    with pytest.raises(UnknownModelError, match="opnai"):
        pipeline.run()
    assert cast.asked == []


def test_another_model_for_a_role_runs_the_step_again(tmp_path: Path) -> None:
    cast = Cast()
    cache = ResultCache(tmp_path)

    def run(**models: str) -> str:
        return PipelineExecutor(planning(cast, **models), cache=cache).run().steps["s"].status.value

    assert [run(plan="big"), run(plan="big"), run(plan="small")] == ["completed", "cached", "completed"]


def _refuse(value: str) -> None:
    raise ValueError("never")


def test_what_earlier_sessions_spent_counts_at_the_dearest_price(tmp_path: Path) -> None:
    """A resumed run does not know which role took the tokens."""
    cast = Cast()
    first = planning(cast, plan="big")
    first.step("t", "{{ s }}", checks=[_refuse], max_retries=0, output_retries=0)
    PipelineExecutor(first, storage=tmp_path).run()
    prices = {"function:big": Price(1_000_000, 1_000_000), "function:main": Price(0, 0)}
    result = PipelineExecutor(first, storage=tmp_path, prices=prices, budget=0.01).run(resume=True)
    assert BudgetExceededError.__name__ in str(result.error_details)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"planner": "test"}, "models has a role 'planner'. Write 'plan'. Roles: plan, act, judge, answer."),
        ({"jugde": "test"}, "Did you mean 'judge'"),
        ({"plan": None}, "names no model for the role 'plan'"),
        ([], "models must be a dict"),
    ],
)
def test_roles_are_checked(models: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        PipelineStep("s", "Go.", agent="plan", models=models)


def test_roles_belong_to_planning_steps() -> None:
    with pytest.raises(DefinitionError, match="Add agent='plan'"):
        PipelineStep("s", "Go.", models={"plan": "test"})


def test_roles_are_stored_and_exported() -> None:
    pipeline = Pipeline("p").step("s", "Go.", agent="plan", models={"plan": "openai:x", "act": "test"})
    assert Pipeline.from_json(pipeline.to_json()) == pipeline
    assert "models={'act': 'test', 'plan': 'openai:x'}" in export_module(pipeline, {}).replace(
        "{'plan': 'openai:x', 'act': 'test'}", "{'act': 'test', 'plan': 'openai:x'}"
    )
    with pytest.raises(DefinitionError, match="a model object cannot be written; name it by a string"):
        export_module(planning(Cast(), plan="big"), {})


def test_cells_name_models_for_roles(book: Notebook) -> None:
    cast = Cast()
    book.shell.user_ns.update(main=cast.model("main"), strict=cast.model("strict"))
    book("tagent_pipeline p --model main")
    book("tagent_step s --plan --model-for judge=strict", "Say something.")
    assert book("tagent_run")["s"] == "by main"
    assert cast.asked[-1] == ("strict", "judge")
    assert "cannot be read" in refused(book, "tagent_step s --plan --model-for strict", "Go.")
    assert "given twice" in refused(book, "tagent_step s --plan --model-for plan=a --model-for plan=b", "Go.")
