"""In which form a model is asked for an answer that has a schema. Imports pydantic-ai: load it late."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic_ai import ModelRetry, NativeOutput, TextOutput
from pydantic_ai.models import Model

from tagent_nb.pipeline.schemas import json_schema
from tagent_nb.pipeline.texts import whole_text
from tagent_nb.pipeline.validation import to_schema
from tagent_nb.steps.providers import supports


def output_of(model: Model[Any], form: type[BaseModel] | None) -> tuple[Any, list[str]]:
    """How to ask this model for a form, and what to tell it besides.

    A tool call or a JSON schema where the model knows one of them, and all models behind a fallback do;
    else JSON in a text.
    """
    if form is None:
        return str, []
    if supports(model, "supports_tools", True):
        return form, []
    if supports(model, "supports_json_schema_output", False):
        return NativeOutput(form), []

    def read(text: str) -> Any:
        try:
            return read_leniently(form, text)
        except ValueError as error:
            raise ModelRetry(f"Answer with JSON only. {error}") from error

    schema = json.dumps(json_schema(form), ensure_ascii=False)
    return TextOutput(read), [f"Answer with JSON only, of this JSON schema: {schema}"]


def read_leniently(form: type[BaseModel], text: str) -> BaseModel:
    """The first JSON in a text as an instance of ``form``, whatever stands around it.

    Raises:
        ValueError: There is none, or it does not fit.
    """
    return to_schema(form, whole_text(first_json(text)))


def first_json(text: str) -> Any:
    """The first JSON object or list in a text, whatever stands around it.

    Raises:
        ValueError: There is none, or it is not whole.
    """
    starts = [place for mark in "{[" if (place := text.find(mark)) >= 0]
    if not starts:
        raise ValueError("There is no JSON in the answer.")
    data, _ = json.JSONDecoder().raw_decode(text[min(starts) :])
    return data
