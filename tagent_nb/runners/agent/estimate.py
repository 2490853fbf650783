"""How much an agent step sends and is answered, before it is paid: no model is asked, and none is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.agent.runner import instructions
from tagent_nb.runners.agent.shared_call import ROW_TOKENS, ROWS_RULE
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.models.accounting import BYTES_A_TOKEN, tokens_of
from tagent_nb.runners.tools.registry import named_tools

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestParameters

A_TEXT = 40
"""Tokens that a text in an answer with a schema may well take, where no answer has been seen."""

LEAST_ROW_TOKENS = 8
"""Tokens that an answer takes at least besides its value where several rows share a call."""

ROWS_SCHEMA_TOKENS = 60
"""Tokens of the schema of a list of rows besides that of a value."""

A_WHOLE_TEXT = (5, 1000)
"""Tokens of an answer in free text, at least and at most, where none has been seen and nothing limits it."""


_DEEPEST = 5
"""Levels of a schema that are looked at; one that refers to itself has no end."""


def frame_tokens(step: PipelineStep, context: StepContext) -> int:
    """About how many input tokens a unit sends besides its task: the same for all units of a step.

    By the rule of thumb that stands in for usage that a provider did not report: four bytes a token.
    """
    parts: list[Any] = [instructions(context)]
    if step.output_schema is not None:
        parts.append(step.output_schema.model_json_schema())
    parts += [f"{name} {function.__doc__ or ''}" for name, function in named_tools(step).items()]
    return sum(map(tokens_of, parts))


def shared_frame_tokens(step: PipelineStep, context: StepContext) -> int:
    """:func:`frame_tokens` of a call that several rows share."""
    return frame_tokens(step, context) + tokens_of(ROWS_RULE) + ROWS_SCHEMA_TOKENS


def answer_range(step: PipelineStep, *, shared: bool = False) -> tuple[int, int]:
    """Output tokens of one answer, at least and at most, where no answer of the step has been seen.

    ``max_tokens`` of the step's settings is the most; else its schema says how much there is to write.

    Args:
        step: The step.
        shared: Whether the answer is one of several in a call.
    """
    if shared:
        least, longest = answer_range(step)
        return least + LEAST_ROW_TOKENS, longest + ROW_TOKENS
    most = step.settings.get("max_tokens")
    low, high = A_WHOLE_TEXT
    if step.output_schema is not None:
        low, high = _schema_tokens(step.output_schema.model_json_schema())
    if isinstance(most, int):
        return min(low, most), most
    return low, high


def longest_answer(parameters: ModelRequestParameters) -> int:
    """Output tokens of one answer at most, by the form that a request asks for."""
    schemas = [tool.parameters_json_schema for tool in parameters.output_tools]
    if parameters.output_object is not None:
        schemas.append(parameters.output_object.json_schema)
    return max((_schema_tokens(schema)[1] for schema in schemas), default=A_WHOLE_TEXT[1])


def _schema_tokens(schema: Mapping[str, Any], depth: int = 0) -> tuple[int, int]:
    """Tokens of a value of a JSON schema; lists and dicts of up to ten items."""
    definitions = schema.get("$defs", {})
    schema = definitions.get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    if depth > _DEEPEST:
        return 1, A_TEXT

    def inside(part: Any) -> tuple[int, int]:
        return _schema_tokens({**part, "$defs": definitions}, depth + 1)

    if "properties" in schema:
        sizes = [inside(part) for part in schema["properties"].values()]
        names = sum(len(name) for name in schema["properties"]) // BYTES_A_TOKEN
        frame = names + 3 * len(sizes) + 2
        return frame + sum(low for low, _ in sizes), 2 * frame + sum(high for _, high in sizes)
    if schema.get("type") in ("array", "object"):
        items = schema.get("items", schema.get("additionalProperties", {}))
        return 1, 10 * inside(items if isinstance(items, dict) else {})[1]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        sizes = [inside(part) for part in choices]
        return min(low for low, _ in sizes), max(high for _, high in sizes)
    if "enum" in schema or "const" in schema:
        texts = [str(value) for value in schema.get("enum", [schema.get("const")])]
        return 1, 2 + max(map(len, texts)) // 2
    return (1, 4) if schema.get("type") in ("boolean", "integer", "number", "null") else (1, A_TEXT)
