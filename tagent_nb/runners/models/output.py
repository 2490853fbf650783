"""In which form a model is asked for an answer that has a schema. Imports pydantic-ai: load it late."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic_ai import ModelRetry, NativeOutput, TextOutput, ToolOutput
from pydantic_ai.models import Model

from tagent_nb.errors import StepError
from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import to_schema
from tagent_nb.runners.models.resolve import profiles_behind, supports
from tagent_nb.serde import json_schema


def output_of(
    model: Model[Any], form: type[BaseModel] | None, mode: str | None = None
) -> tuple[Any, list[str]]:
    """How to ask this model for a form, and what to tell it besides.

    Without a ``mode``: a tool call or a JSON schema where the model knows one of them, and all models behind
    a fallback do; else JSON in a text.

    Args:
        model: Who is asked.
        form: The schema of the answer; ``None`` for text.
        mode: ``"tool"``, ``"native"`` or ``"prompted"``, where the step says so.

    Raises:
        StepError: The model does not know the mode.
    """
    if form is None:
        return str, []
    tools = supports(model, "supports_tools", True)
    native = supports(model, "supports_json_schema_output", False)
    if (mode == "tool" and not tools) or (mode == "native" and not native):
        what = "call tools" if mode == "tool" else "answer by a JSON schema"
        raise StepError(
            f"output_mode is {mode!r}, but model {model.model_name!r} cannot {what}, as far as its profile "
            "says. Write output_mode='prompted', or leave it out."
        )
    if mode == "native":
        return NativeOutput(form), []
    if mode == "tool":
        return ToolOutput(form), []
    if mode is None and tools and not supports_prompted(model):
        return form, []
    if mode is None and native and not supports_prompted(model):
        return NativeOutput(form), []

    def read(text: str) -> Any:
        try:
            return read_leniently(form, text)
        except ValueError as error:
            raise ModelRetry(f"Answer with JSON only. {error}") from error

    schema = json.dumps(json_schema(form), ensure_ascii=False)
    return TextOutput(read), [f"Answer with JSON only, of this JSON schema: {schema}"]


def supports_prompted(model: Model[Any]) -> bool:
    """Whether the profile of a model that may answer says that JSON is to be asked for in words."""
    return any(
        profile.get("default_structured_output_mode") == "prompted" for profile in profiles_behind(model)
    )


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
