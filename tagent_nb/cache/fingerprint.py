"""Why a step runs again: its fingerprint, in named components.

A unit's key is the SHA-256 of its components. Those of its definition are the same for all items
of a step in a run; those of its inputs are digests of exactly the parts that it reads. Components
hold digests, versions and names of types, never a value.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tagent_nb.cache.bytecode import text_reads
from tagent_nb.cache.explain import explain
from tagent_nb.cache.sources import Memo, Surroundings, class_digest, value_text
from tagent_nb.errors import EncodeError, TemplateError
from tagent_nb.events import Output
from tagent_nb.pipeline import codec
from tagent_nb.pipeline.body import PythonBody
from tagent_nb.pipeline.models import PipelineStep
from tagent_nb.pipeline.template import Reference, lookup
from tagent_nb.pipeline.tool_schemas import schema_of

__all__ = ["definition_components", "explain", "input_components", "tool_code", "unit_key"]

FORMAT = b"tagent-nb fingerprint 1\n"
"""Raised when equal components mean something else than before."""

NO_VALUE, MISSING = "none", "missing"


def definition_components(
    step: PipelineStep,
    *,
    constraints: Sequence[str],
    shared: Mapping[str, Any],
    model: str | None,
    settings: Mapping[str, Any],
    tools: Sequence[Callable[..., Any]],
    runner_version: str,
    namespace: Mapping[str, Any],
    inputs: Collection[str] = (),
    memo: Memo | None = None,
    model_parts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The components of a step that do not depend on what it reads.

    Args:
        step: The step.
        constraints: All constraints it must keep, the pipeline's and its own.
        shared: The pipeline's ``shared_context``. It counts for agent steps, and for Python steps
            that read ``shared`` or ``context``.
        model: Name of the model of an agent step.
        settings: Model settings of an agent step.
        tools: Functions that an agent step may call.
        runner_version: Version of the runner.
        namespace: Globals that the Python of a cell sees, such as the notebook's.
        inputs: Names that a cell reads as steps, not as globals.
        memo: Digests of globals and schemas, to be shared by the steps of one run: a large frame
            that many steps read is then looked at once.
        model_parts: What a model object brings besides its name: values, lists of functions, a class.

    Returns:
        Component name to digest: ``goal``, ``constraints``, ``model``, ``model_PART``, ``settings``,
        ``output_schema``, ``tool:NAME``, ``check:NAME``, ``code``, ``function:NAME``, ``class:NAME``,
        ``global:NAME``, ``package:NAME``, ``module:NAME``, ``shared:NAME``, ``runner``.
    """
    memo = {} if memo is None else memo
    found = {"runner": runner_version}
    body = step.body
    if step.output_schema is not None:
        found["output_schema"] = class_digest(step.output_schema, memo)
    found.update(_checks(step.checks, namespace, memo))
    if body is None:
        found["goal"] = _text_digest(step.goal)
        found["model"] = _text_digest(str(model))
        for name, part in (model_parts or {}).items():
            found[name] = _model_part(part, namespace, memo)
        if settings:
            found["settings"] = value_text(dict(settings), {})
        found.update(_tools(tools, namespace, memo))
    else:
        found["code"] = _text_digest(body.normalised())
        found.update(_surroundings(body, namespace, inputs, memo))
    if constraints and (body is None or body.wants_context):
        found["constraints"] = _text_digest(*constraints)
    if body is None or {"shared", "context"} & body.provided:
        found.update({f"shared:{name}": value_text(value, memo) for name, value in shared.items()})
    return found


def _model_part(part: Any, namespace: Mapping[str, Any], memo: Memo) -> str:
    if isinstance(part, type):
        return class_digest(part, memo)
    if isinstance(part, list):
        return _text_digest(*(tool_code(function, namespace, memo) for function in part))
    return value_text(part, memo)


def _surroundings(
    body: PythonBody, namespace: Mapping[str, Any], inputs: Collection[str], memo: Memo
) -> dict[str, str]:
    """All that a Python body refers to in its globals."""
    if body.function is not None:
        search = Surroundings(getattr(inspect.unwrap(body.function), "__globals__", namespace), memo)
        search.follow_function(body.function)
    else:
        reads = text_reads(body.names, body.normalised())
        if not reads.names and not reads.imports:
            return {}
        search = Surroundings(namespace, memo)
        search.follow_reads(reads, namespace, skip=inputs)
    return search.found


def _tools(tools: Sequence[Callable[..., Any]], namespace: Mapping[str, Any], memo: Memo) -> dict[str, str]:
    """Tools by name, with what they refer to. The model reads a tool's docstring: it counts."""
    found: dict[str, str] = {}
    for tool in tools:
        name = getattr(tool, "__name__", type(tool).__name__)
        known = schema_of(tool)
        if known is not None:  # its code is elsewhere, behind a server
            schema = json.dumps(known.parameters, sort_keys=True, default=str)
            found[f"tool:{name}"] = _text_digest(known.description, schema)
            continue
        search = Surroundings(getattr(tool, "__globals__", namespace), memo)
        search.follow_value(name, tool)
        annotations = search.follow_signature(name, tool)
        own = search.found.pop(f"function:{name}", "")
        found[f"tool:{name}"] = _text_digest(own, tool.__doc__ or "", json.dumps(annotations, sort_keys=True))
        found.update(search.found)
    return found


def tool_code(tool: Callable[..., Any], namespace: Mapping[str, Any], memo: Memo | None = None) -> str:
    """Digest of a tool's own code and of the functions that it calls; not of values, which it may change.

    Args:
        tool: The function.
        namespace: Globals of a tool that has none of its own.
        memo: As in :func:`definition_components`.
    """
    memo = {} if memo is None else memo
    known = memo.get(("tool", id(tool)))
    if known is None:
        parts = _tools([tool], namespace, memo)
        code = {name: digest for name, digest in parts.items() if name.startswith(("tool:", "function:"))}
        known = memo["tool", id(tool)] = (tool, unit_key(code), ())
    return known[1]


def _checks(checks: Sequence[Callable[..., Any]], namespace: Mapping[str, Any], memo: Memo) -> dict[str, str]:
    """Checks by name, with what they refer to. Those of one name, such as lambdas, count in their order."""
    found: dict[str, str] = {}
    for check in checks:
        name = getattr(check, "__name__", type(check).__name__)
        search = Surroundings(getattr(check, "__globals__", namespace), memo)
        search.follow_value(name, check)
        own = search.found.pop(f"function:{name}", "")
        found[f"check:{name}"] = _text_digest(found.get(f"check:{name}", ""), own)
        found.update(search.found)
    return found


def input_components(references: Sequence[Reference], outputs: Mapping[str, Output | None]) -> dict[str, str]:
    """Digests of the parts of other steps' values that a unit reads, by ``input:load.text``.

    A whole value is not decoded: its digest is known. A step without a value counts as ``"none"``,
    a part that the value lacks as ``"missing"``. A part that cannot be stored gets a digest of its
    own each time, so that nothing is taken for equal that was never compared.
    """
    found: dict[str, str] = {}
    for reference in references:
        name = f"input:{reference.text}"
        if name in found:
            continue
        output = outputs.get(reference.step)
        if output is None:
            found[name] = NO_VALUE
        elif not reference.path:
            found[name] = output.digest
        else:
            found[name] = _part_digest(output.value, reference.path)
    return found


def _part_digest(value: Any, path: tuple[str, ...]) -> str:
    try:
        return codec.digest(lookup(value, path))
    except TemplateError:
        return MISSING
    except EncodeError:
        return f"unstorable-{uuid.uuid4().hex}"


def unit_key(components: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the named components, in whatever order they come."""
    # ASCII text of the pairs: no two different sets of components share it, and it is quick.
    text = ascii(sorted(components.items()))
    return hashlib.sha256(FORMAT + text.encode()).hexdigest()


def _text_digest(*texts: str) -> str:
    return hashlib.sha256(ascii(texts).encode()).hexdigest()
