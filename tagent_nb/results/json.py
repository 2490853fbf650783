"""Results as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from tagent_nb.errors import CorruptRecordError, EncodeError
from tagent_nb.events import Output, TokenUsage
from tagent_nb.formatting import is_lost
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.records import ItemResult, OutputMap, RunRecord, StepResult
from tagent_nb.serde import (
    FORMAT,
    StoredValue,
    check_format,
    clean,
    from_tree,
    notes_to_tree,
    registry,
    to_tree,
)

Schemas = Mapping[str, type]

_SCALARS = ("pipeline_name", "success", "execution_time", "total_cost", "run_id", "cancelled")
_LATER = ("budget", "final_step", "timed_out")
"""Texts that results of an earlier version lack."""
_PLAIN = ("cost_per_step", "failed_steps", "error_details", "unpriced_steps", "warnings")
_VALUES = ("learned_facts", "saved_memories", "inputs")
_STEP = ("attempts", "seconds", "cost", "saved_cost", "error_type", "error", "traceback", "reason", "key")
_TIMES = ("started_at", "ended_at", "items_total")
_ITEM = ("key", "error_type", "error", "attempts", "seconds", "cost")
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError)


# -- writing ------------------------------------------------------------------------------------


def result_to_dict(result: RunRecord) -> dict[str, Any]:
    """A result as JSON-able data, without its events. Do not change it: plain parts may be the
    result's own.

    Raises:
        EncodeError: A value cannot be stored; the message has the path to it.
    """
    return {
        "format": FORMAT,
        "kind": "result",
        **{name: to_tree(getattr(result, name), path=name) for name in (*_SCALARS, *_PLAIN, *_LATER)},
        **{name: _values(getattr(result, name), name) for name in _VALUES},
        "token_usage": {name: usage.to_dict() for name, usage in result.token_usage.items()},
        "step_outputs": _outputs(result),
        "step_metadata": {name: notes_to_tree(notes) for name, notes in result.step_metadata.items()},
        "final_output": to_tree(result.final_output, path="final_output"),
        "steps": [_step_to_dict(step) for step in result.steps.values()],
        "dependencies": {step: list(map(clean, names)) for step, names in result.dependencies.items()},
        "sources": {step: clean(source) for step, source in result.sources.items()},
        "samples": dict(result.samples),
        "flattened": list(result.flattened),
        "definitions": {step: dict(fields) for step, fields in result.definitions.items()},
    }


def _values(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {name: to_tree(value, path=f"{path}.{name}") for name, value in values.items()}


def _outputs(result: RunRecord) -> dict[str, Any]:
    for step in result.steps.values():
        if step.output is not None:
            _check_kept(step.output, step.name)
    return _values(result.step_outputs, "step_outputs")


def _check_kept(output: Output, path: str) -> None:
    """A value that was lost when its run was stored is ``None`` now: that must not pass for a value."""
    if is_lost(output):
        raise EncodeError(path, f"it was not stored with its run ({output.problem})")


def _step_to_dict(step: StepResult) -> dict[str, Any]:
    data = {
        "name": step.name,
        "status": step.status.value,
        **{name: _plain(getattr(step, name), f"steps.{step.name}.{name}") for name in (*_STEP, *_TIMES)},
        "usage": step.usage.to_dict(),
        "components": dict(step.components),
        "metadata": notes_to_tree(step.metadata),
    }
    if step.items is not None:
        data["items"] = [_item_to_dict(item, f"{step.name}[{item.key}]") for item in step.items.values()]
    return data


def _item_to_dict(item: ItemResult, path: str) -> dict[str, Any]:
    data = {
        **{name: _plain(getattr(item, name), f"{path}.{name}") for name in _ITEM},
        "index": to_tree(item.index, path=f"{path}.index"),
        "status": item.status.value,
        "usage": item.usage.to_dict(),
    }
    for name in ("reason", "asked_alone"):
        if getattr(item, name):
            data[name] = clean(getattr(item, name))
    if item.rows_in_call:
        data["rows_in_call"] = item.rows_in_call
    if item.output is not None:
        _check_kept(item.output, path)
        data["output"] = to_tree(item.output.value, path=path)
    return data


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not isfinite(value):
        raise EncodeError(path, f"{value} cannot be stored")
    return value


def result_to_json(result: RunRecord, path: str | Path | None = None, *, indent: int | None = 2) -> str:
    """:func:`result_to_dict` as JSON text, also written to ``path`` (UTF-8) if one is given.

    Raises:
        EncodeError: A value cannot be stored.
        OSError: The file cannot be written.
    """
    text = json.dumps(result_to_dict(result), indent=indent, ensure_ascii=False, allow_nan=False)
    if path is not None:
        Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")
    return text


# -- reading ------------------------------------------------------------------------------------


def result_fields(data: Any, schemas: Iterable[type] | Schemas = ()) -> dict[str, Any]:
    """The fields of a result from the data of :func:`result_to_dict`.

    Raises:
        CorruptRecordError: It is not the data of a result.
        FormatVersionError: It was written by a newer version of tagent-nb.
    """
    if not isinstance(data, Mapping):
        raise CorruptRecordError(f"A stored result must be an object, not {type(data).__name__}.")
    check_format(data, "result", CorruptRecordError)
    try:
        return _fields(data, registry(schemas))
    except CorruptRecordError:
        raise
    except _MALFORMED as error:
        raise CorruptRecordError(
            f"This stored result cannot be read: {type(error).__name__}: {error}"
        ) from None


def _fields(data: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    outputs = {name: StoredValue.of(from_tree(tree, schemas)) for name, tree in data["step_outputs"].items()}
    return {
        **{name: data[name] for name in _SCALARS},
        **{name: data[name] for name in _LATER if name in data},
        **{name: from_tree(data[name]) for name in _PLAIN},
        **{name: _from_trees(data[name], schemas) for name in _VALUES if name != "inputs"},
        "inputs": _from_trees(data.get("inputs", {}), schemas),  # an earlier version wrote none
        "sources": dict(data.get("sources", {})),
        "samples": dict(data.get("samples", {})),
        "flattened": list(data.get("flattened", ())),
        "definitions": dict(data.get("definitions", {})),
        "dependencies": dict(data.get("dependencies", {})),
        "token_usage": {name: TokenUsage(**counts) for name, counts in data["token_usage"].items()},
        "step_metadata": {name: _from_trees(notes, schemas) for name, notes in data["step_metadata"].items()},
        "final_output": from_tree(data["final_output"], schemas),
        "step_outputs": OutputMap(outputs),
        "steps": {step["name"]: _step(step, outputs, schemas) for step in data["steps"]},
    }


def _from_trees(trees: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    return {name: from_tree(tree, schemas) for name, tree in trees.items()}


def _step(data: Mapping[str, Any], outputs: Mapping[str, Output], schemas: Schemas) -> StepResult:
    items = data.get("items")
    return StepResult(
        name=data["name"],
        status=StepStatus(data["status"]),
        output=outputs.get(data["name"]),
        **{name: data[name] for name in (*_STEP, *_TIMES)},
        usage=TokenUsage(**data["usage"]),
        components=dict(data["components"]),
        metadata=_from_trees(data["metadata"], schemas),
        items=None if items is None else {item["key"]: _item(item, schemas) for item in items},
    )


def _item(data: Mapping[str, Any], schemas: Schemas) -> ItemResult:
    output = StoredValue.of(from_tree(data["output"], schemas)) if "output" in data else None
    return ItemResult(
        index=from_tree(data["index"], schemas),
        status=StepStatus(data["status"]),
        output=output,
        usage=TokenUsage(**data["usage"]),
        reason=str(data.get("reason", "")),
        rows_in_call=int(data.get("rows_in_call", 0)),
        asked_alone=str(data.get("asked_alone", "")),
        **{name: data[name] for name in _ITEM},
    )
