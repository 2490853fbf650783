"""A system prompt of one's own, and the form in which an answer is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import NativeOutput, ToolOutput
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, PipelineStep, ResultCache, run_agent
from tagent_nb.cache import explain
from tagent_nb.errors import StepError
from tagent_nb.runners.agent.runner import ROLE
from tagent_nb.runners.models.output import output_of
from tests.notebook.test_magics import Notebook, book, refused
from tests.runners.test_output_modes import Word, model

assert book  # a fixture: pytest finds it by its name


class Recorder:
    """A model that notes the system prompts it gets."""

    def __init__(self) -> None:
        self.instructions: list[str] = []
        self.model = FunctionModel(self._answer)

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.instructions.append(info.instructions or "")
        return ModelResponse(parts=[TextPart("fine")])


def test_a_step_has_its_own_instructions_and_else_the_pipelines() -> None:
    """They stand in place of the usual role; the rule about data and the constraints follow them."""
    recorder = Recorder()
    pipeline = Pipeline("p", model=recorder.model, instructions="You are a pirate.").constraint("Be brief.")
    pipeline.step("a", "Hello {{ '{' }}").step("b", "{{ a }}", instructions="You are {{ a }} nun.")
    assert pipeline.run().success
    first, second = recorder.instructions
    assert first.startswith("You are a pirate.\n\n")
    assert second.startswith("You are {{ a }} nun.\n\n")
    for text in (first, second):
        assert ROLE not in text
        assert "Be brief." in text
        assert "data" in text


def test_instructions_hold_in_every_phase_of_a_plan() -> None:
    recorder = Recorder()
    run_agent("Hello", model=recorder.model, agent="plan", instructions="You are a pirate.", output_retries=0)
    assert len(recorder.instructions) > 1
    assert all(text.startswith("You are a pirate.") for text in recorder.instructions)


def test_changed_instructions_run_the_step_again_and_say_so(tmp_path: Path) -> None:
    """The step's, and the pipeline's for steps that have none of their own."""
    cache = ResultCache(tmp_path / "cache")
    pipeline = Pipeline("p", model="test").step("a", "Hello")

    def why(**options: Any) -> str:
        executor = PipelineExecutor(pipeline, cache=cache, storage=tmp_path / "runs")
        result = executor.run(**options)
        return result.steps["a"].reason

    why()
    pipeline.instructions = "You are a pirate."
    assert why() == "instructions changed"
    pipeline.put(pipeline.get_step("a").with_(instructions="You are a nun."))
    assert why() == "instructions changed"
    pipeline.put(pipeline.get_step("a").with_(output_mode="prompted"))
    assert why() == "output_mode is new"
    pipeline.instructions = "Not read."
    assert why() == ""


def test_an_explanation_shows_what_was_said_before() -> None:
    before, after = (
        {"goal": "x", "instructions": "You are a pirate."},
        {"goal": "x", "instructions": "A nun."},
    )
    old, new = {"instructions": "1"}, {"instructions": "2"}
    assert explain(old, new, before, after) == ["instructions changed:\n- You are a pirate.\n+ A nun."]
    assert explain(old, new, before, before) == ["instructions of the pipeline changed"]
    assert explain({"output_mode": "tool"}, {"output_mode": "native"}, before, before) == [
        "output_mode changed from tool to native"
    ]


@pytest.mark.parametrize("text", ["", "  ", 3])
def test_blank_instructions_are_refused(text: Any) -> None:
    with pytest.raises(DefinitionError, match="Step 'a': instructions must be text that says something"):
        PipelineStep("a", "Go.", instructions=text)
    with pytest.raises(DefinitionError, match="Pipeline 'p': instructions must be text"):
        Pipeline("p", instructions=text)


def test_what_asks_no_model_takes_neither() -> None:
    for options in ({"instructions": "You are a nun."}, {"output_mode": "native"}):
        with pytest.raises(DefinitionError, match="a Python step asks no model"):
            PipelineStep.from_cell("a", "1", python=True, **options)


def test_pipelines_with_instructions_are_stored_compared_and_copied() -> None:
    pipeline = Pipeline("p", instructions="You are a nun.").step("a", "Hello", output_mode="native")
    assert Pipeline.from_json(pipeline.to_json()) == pipeline == pipeline.snapshot()
    assert Pipeline("p").step("a", "Hello", output_mode="native") != pipeline


def test_cells_take_instructions_and_modes(book: Notebook) -> None:
    recorder = Recorder()
    book.shell.user_ns.update(mine=recorder.model, Word=Word)
    book("tagent_pipeline p --model mine --instructions 'You are a pirate.'")
    book("tagent_step a", "Hello")
    book("tagent_step b --instructions 'You are a nun.' --output-mode prompted", "{{ a }}")
    assert "You are a nun." in book.shown[-1]
    book("tagent_run")
    assert [text.partition("\n")[0] for text in recorder.instructions] == [
        "You are a pirate.",
        "You are a nun.",
    ]
    book("tagent_pipeline p --instructions none")
    assert book.session.pipeline.instructions is None
    book("tagent_ask --model mine --instructions 'You are a cat.'", "Hello")
    assert recorder.instructions[-1].startswith("You are a cat.")
    assert "invalid choice: 'nativ'" in refused(book, "tagent_step b --output-mode nativ", "Hello")


# -- the form of an answer --------------------------------------------------------------------


def test_a_step_can_choose_the_form() -> None:
    capable = model(supports_json_schema_output=True)[0]
    assert isinstance(output_of(capable, Word, "native")[0], NativeOutput)
    assert isinstance(output_of(capable, Word, "tool")[0], ToolOutput)
    output, hint = output_of(capable, Word, "prompted")
    assert "Answer with JSON only" in hint[0]
    assert output_of(capable, None, "prompted") == (str, [])
    assert output is not None


def test_a_form_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(StepError, match="cannot answer by a JSON schema, as far as its profile says"):
        output_of(model()[0], Word, "native")
    with pytest.raises(StepError, match="cannot call tools"):
        output_of(model(supports_tools=False)[0], Word, "tool")


@pytest.mark.parametrize("profile", [{}, {"supports_tools": False, "supports_json_schema_output": True}])
def test_a_profile_that_asks_for_json_in_words_gets_it(profile: dict[str, Any]) -> None:
    """Without a say of the step, what the profile says is done."""
    answering, prompts = model('{"word": "tea"}', default_structured_output_mode="prompted", **profile)
    assert run_agent("Go", output_schema=Word, model=answering).output == Word(word="tea")
    assert "Answer with JSON only, of this JSON schema" in prompts[0]


def test_json_by_prompt_from_a_model_with_tools() -> None:
    answering, prompts = model('Here: {"word": "tea"}')
    answer = run_agent("Go", output_schema=Word, model=answering, output_mode="prompted")
    assert isinstance(answer.output, BaseModel)
    assert "Answer with JSON only" in prompts[0]


def test_a_misspelt_form_gets_a_near_one() -> None:
    with pytest.raises(DefinitionError, match="output_mode must be 'tool', 'native', 'prompted' or None"):
        PipelineStep("a", "Go.", output_mode="promptd")
