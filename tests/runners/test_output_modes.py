"""Forms: a tool call, a JSON schema, or JSON in a text, as a model knows them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import NativeOutput
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from tagent_nb.errors import OutputValidationError
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import AgentRunner, StepContext
from tagent_nb.runners.models.output import output_of, read_leniently


class Word(BaseModel):
    word: str


def model(*texts: str, **profile: Any) -> tuple[FunctionModel, list[str]]:
    """A model that knows what its profile says, and what it was given."""
    prompts: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompts.append(f"{info.instructions}\n{messages[-1].parts}")
        return ModelResponse(parts=[TextPart(texts[min(len(prompts), len(texts)) - 1])])

    return FunctionModel(answer, profile=profile), prompts


def test_the_form_is_what_the_model_knows() -> None:
    assert output_of(model()[0], None) == (str, [])
    assert output_of(model()[0], Word) == (Word, [])
    native, hint = output_of(model(supports_tools=False, supports_json_schema_output=True)[0], Word)
    assert isinstance(native, NativeOutput)
    assert hint == []


async def test_a_model_that_knows_neither_is_asked_for_json_in_a_text() -> None:
    """It gets the schema, is reported what was wrong, and may write other words around the JSON."""
    chosen, prompts = model("go", '{"wrod": "x"}', 'Here:\n{"word": "tea"}\nGood luck', supports_tools=False)
    step = PipelineStep(name="s", goal="Go", output_schema=Word)
    value = await AgentRunner().run(step, StepContext("run", "demo", "s", model=chosen))
    assert value == Word(word="tea")
    assert "Answer with JSON only, of this JSON schema: {" in prompts[0]
    assert "There is no JSON in the answer." in prompts[1]
    assert "word: Field required" in prompts[2]


async def test_no_json_to_the_end_fails_with_the_last_answer() -> None:
    chosen, _ = model("I say tea", supports_tools=False)
    step = PipelineStep(name="s", goal="Go", output_schema=Word, output_retries=0)
    with pytest.raises(OutputValidationError, match="It was not JSON. The last answer was: I say tea"):
        await AgentRunner().run(step, StepContext("run", "demo", "s", model=chosen))


@pytest.mark.parametrize(
    "text",
    ['{"word": "go"}', 'Sure:\n```json\n{"word": "go"}\n```\nGood luck {x}', '{"word": "go"} and so on'],
)
def test_json_is_found_among_other_words(text: str) -> None:
    assert read_leniently(Word, text) == Word(word="go")


@pytest.mark.parametrize("text", ["no word at all", '{"word": "go"', '["go"]', "{}"])
def test_what_is_no_json_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        read_leniently(Word, text)
