"""Pipelines as JSON and back; steps, results and pickles are in modules of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, EncodeError
from tagent_nb.pipeline.enums import ExecutionMode
from tagent_nb.pipeline.step_json import Reader, Writer, check_fields, mode_of, step_data, text_of, texts_of
from tagent_nb.serde import FORMAT, check_format

if TYPE_CHECKING:
    from tagent_nb.pipeline.graph import Definition

_HEAD = (
    "format",
    "kind",
    "name",
    "description",
    "default_mode",
    "model",
    "global_constraints",
    "shared_context",
    "final",
    "inputs",
    "instructions",
    "timeout",
)
_FIELDS = (*_HEAD, "steps", "not_stored")


def pipeline_to_dict(pipeline: Definition, *, strict: bool = True) -> dict[str, Any]:
    """A pipeline as JSON-able data. Fields that have their default are left out.

    Args:
        pipeline: The pipeline.
        strict: Whether everything must be storable. Else what is not is described, and
            ``"not_stored"`` says by path why: good to compare definitions, not to rebuild them.

    Raises:
        EncodeError: With ``strict``: something cannot be rebuilt from data, such as a function that
            uses variables of the function around it; the message has the path to it.
    """
    write = Writer()
    data: dict[str, Any] = {"format": FORMAT, "kind": "pipeline", "name": pipeline.name}
    if pipeline.description:
        data["description"] = pipeline.description
    if pipeline.default_mode is not ExecutionMode.SERIAL:
        data["default_mode"] = pipeline.default_mode.value
    if pipeline.model is not None:
        data["model"] = write.model("model", pipeline.model)
    if pipeline.instructions is not None:
        data["instructions"] = pipeline.instructions
    if pipeline.timeout is not None:
        data["timeout"] = pipeline.timeout
    if pipeline.global_constraints:
        data["global_constraints"] = list(pipeline.global_constraints)
    if pipeline.shared_context:
        data["shared_context"] = write.values("shared_context", pipeline.shared_context)
    if pipeline.final is not None:
        data["final"] = pipeline.final
    if pipeline.inputs:
        data["inputs"] = write.values("inputs", pipeline.inputs)
    data["steps"] = [step_data(step, write) for step in pipeline.steps]
    data = write.texts(write.without_secrets(data))
    if write.problems:
        if strict:
            path, what = next(iter(write.problems.items()))
            raise EncodeError(path, what)
        data["not_stored"] = write.problems
    return data


def pipeline_fields(data: Any, reader: Reader) -> dict[str, Any]:
    """The fields of a pipeline from what :func:`pipeline_to_dict` wrote; its steps still as data.

    Raises:
        DefinitionError: Something cannot be rebuilt; the message says what and how to mend it.
        FormatVersionError: It was written by a newer version of tagent-nb.
    """
    _check_head(data)
    steps = data.get("steps", [])
    if not isinstance(steps, list):
        raise DefinitionError(f"Stored pipeline: steps must be a list, not {type(steps).__name__}.")
    return {
        "name": data.get("name"),
        "description": text_of(data.get("description", ""), "description"),
        "default_mode": mode_of(data.get("default_mode", "serial"), "default_mode"),
        "model": data.get("model"),
        "final": None if data.get("final") is None else text_of(data["final"], "final"),
        "instructions": data.get("instructions"),
        "timeout": data.get("timeout"),
        "global_constraints": texts_of(data.get("global_constraints", []), "global_constraints"),
        "shared_context": reader.values(data.get("shared_context", {}), "shared_context"),
        "inputs": reader.values(data.get("inputs", {}), "inputs"),
        "steps": steps,
    }


def _check_head(data: Any) -> None:
    if not isinstance(data, Mapping):
        raise DefinitionError(f"A stored pipeline must be an object, not {type(data).__name__}.")
    check_format(data, "pipeline", DefinitionError)
    check_fields(data, _FIELDS, "Stored pipeline")
    lost = data.get("not_stored")
    if isinstance(lost, Mapping) and lost:
        lines = "\n".join(f"  - {path}: {what}" for path, what in lost.items())
        raise DefinitionError(f"Pipeline {data.get('name')!r} was not stored as a whole:\n{lines}")
