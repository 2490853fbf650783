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

from tagent_nb import serde
from tagent_nb.cache.entry import SourceDigests
from tagent_nb.cache.fingerprint.bytecode import text_reads
from tagent_nb.cache.fingerprint.dependencies import DependencySearch, Memo, class_digest, value_text
from tagent_nb.cache.fingerprint.explain import explain
from tagent_nb.cache.fingerprint.values import users_classes, value_digest
from tagent_nb.errors import EncodeError, TemplateError
from tagent_nb.events import Output
from tagent_nb.pipeline import BYTECODE, PipelineStep, PythonBody, schema_of
from tagent_nb.templating import Reference, lookup, shown_text

__all__ = [
    "ItemKeys",
    "definition_components",
    "explain",
    "input_components",
    "text_digest",
    "tool_code",
    "unit_key",
]

FORMAT = b"tagent-nb fingerprint 1\n"
"""Raised when equal components mean something else than before."""

SOURCES = ("sources", None)
"""Where a memo has the :class:`SourceDigests` of the cache, if there is one."""

NO_VALUE, MISSING = "none", "missing"
_NO_CLASSES: frozenset[type] = frozenset()


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
    instructions: str | None = None,
    roles: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
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
            that many steps read is then looked at once. At :data:`SOURCES`, what the cache knows of sources.
        roles: By role of a planning step, name and parts of the model that it has of its own.
        instructions: System prompt of an agent step, its own or the pipeline's.
        model_parts: What a model object brings besides its name: values, lists of functions, a class.

    Returns:
        Component name to digest: ``goal``, ``instructions``, ``constraints``, ``model``, ``model_PART``,
        ``settings``, ``output_mode``, ``rows_per_call``, ``output_schema``, ``tool:NAME``, ``check:NAME``,
        ``code``, ``function:NAME``, ``class:NAME``, ``global:NAME``, ``package:NAME``, ``module:NAME``,
        ``shared:NAME``, ``runner``.
    """
    memo = {} if memo is None else memo
    components = {"runner": runner_version}
    body = step.body
    if step.output_schema is not None:
        components["output_schema"] = class_digest(step.output_schema, memo)
    components.update(_checks(step.checks, namespace, memo))
    if body is None:
        components["goal"] = text_digest(step.goal)
        if instructions is not None:
            components["instructions"] = text_digest(instructions)
        if step.output_mode is not None:
            components["output_mode"] = step.output_mode
        if step.rows_per_call > 1:
            components["rows_per_call"] = str(step.rows_per_call)
        components["model"] = text_digest(str(model))
        for name, part in (model_parts or {}).items():
            components[name] = _model_part(part, namespace, memo)
        for role, (called, of_role) in (roles or {}).items():
            components[f"models:{role}"] = text_digest(called)
            for name, part in of_role.items():
                components[f"models:{role} {name}"] = _model_part(part, namespace, memo)
        if settings:
            components["settings"] = value_text(dict(settings), {})
        components.update(_tools(tools, namespace, memo))
    else:
        components["code"] = _code(body, memo.get(SOURCES))
        components.update(_surroundings(body, namespace, inputs, memo))
    if constraints and (body is None or body.wants_context):
        components["constraints"] = text_digest(*constraints)
    if body is None or {"shared", "context"} & body.provided:
        for name, value in shared.items():
            text, code = value_digest(value, memo)
            components[f"shared:{name}"] = text
            classes = frozenset(kind for _, kind in code if isinstance(kind, type))
            if classes:
                more = class_components(f"shared.{name}", value, classes, step, namespace, memo)
                add_components(components, more)
    return components


def _code(body: PythonBody, digests: SourceDigests | None) -> str:
    """Digest of what a body does by its text; a function's is looked up before its text is parsed."""
    if digests is None or body.kind != "function":
        return text_digest(body.normalised())
    digest = digests.get(body.source)
    if digest is None:
        text = body.normalised()
        digest = text_digest(text)
        if not text.startswith(BYTECODE):  # of a lambda, whose text may hold several
            digests.note(body.source, digest)
    return digest


def _model_part(part: Any, namespace: Mapping[str, Any], memo: Memo) -> str:
    if isinstance(part, type):
        return class_digest(part, memo)
    if isinstance(part, list):
        return text_digest(*(_model_code(function, namespace, memo) for function in part))
    return value_text(part, memo)


def _model_code(function: Callable[..., Any], namespace: Mapping[str, Any], memo: Memo) -> str:
    """Digest of a function that answers for a model: its code, and what is fixed of all that it uses.

    What it may change, such as a list of its calls, is no other answer.
    """
    search = DependencySearch(getattr(function, "__globals__", namespace), memo)
    search.follow_value("model", function)
    return text_digest(tool_code(function, namespace, memo), *map(repr, sorted(search.fixed.items())))


def _surroundings(
    body: PythonBody, namespace: Mapping[str, Any], inputs: Collection[str], memo: Memo
) -> dict[str, str]:
    """All that a Python body refers to in its globals."""
    if body.function is not None:
        search = DependencySearch(getattr(inspect.unwrap(body.function), "__globals__", namespace), memo)
        search.follow_function(body.function)
    else:
        reads = text_reads(body.names, body.normalised(), body.quoted)
        if not (reads.names or reads.imports or reads.quoted):
            return {}
        search = DependencySearch(namespace, memo)
        search.follow_reads(reads, namespace, skip=inputs)
    return search.components


def _tools(tools: Sequence[Callable[..., Any]], namespace: Mapping[str, Any], memo: Memo) -> dict[str, str]:
    """Tools by name, with what they refer to. The model reads a tool's docstring: it counts."""
    components: dict[str, str] = {}
    for tool in tools:
        name = getattr(tool, "__name__", type(tool).__name__)
        declared = schema_of(tool)
        if declared is not None:  # its code is elsewhere, behind a server
            schema = json.dumps(declared.parameters, sort_keys=True, default=str)
            components[f"tool:{name}"] = text_digest(declared.description, schema)
            continue
        search = DependencySearch(getattr(tool, "__globals__", namespace), memo)
        search.follow_value(name, tool)
        annotations = search.follow_signature(name, tool)
        own = search.components.pop(f"function:{name}", "")
        components[f"tool:{name}"] = text_digest(
            own, tool.__doc__ or "", json.dumps(annotations, sort_keys=True)
        )
        components.update(search.components)
    return components


def tool_code(tool: Callable[..., Any], namespace: Mapping[str, Any], memo: Memo | None = None) -> str:
    """Digest of a tool's own code and of the functions that it calls; not of values, which it may change.

    Args:
        tool: The function.
        namespace: Globals of a tool that has none of its own.
        memo: As in :func:`definition_components`.
    """
    memo = {} if memo is None else memo
    memoized = memo.get(("tool", id(tool)))
    if memoized is None:
        parts = _tools([tool], namespace, memo)
        code = {name: digest for name, digest in parts.items() if name.startswith(("tool:", "function:"))}
        memoized = memo["tool", id(tool)] = (tool, unit_key(code), ())
    return memoized[1]


def _checks(checks: Sequence[Callable[..., Any]], namespace: Mapping[str, Any], memo: Memo) -> dict[str, str]:
    """Checks by name, with what they refer to. Those of one name, such as lambdas, count in their order."""
    components: dict[str, str] = {}
    for check in checks:
        name = getattr(check, "__name__", type(check).__name__)
        search = DependencySearch(getattr(check, "__globals__", namespace), memo)
        search.follow_value(name, check)
        own = search.components.pop(f"function:{name}", "")
        components[f"check:{name}"] = text_digest(components.get(f"check:{name}", ""), own)
        components.update(search.components)
    return components


def input_components(
    references: Sequence[Reference],
    outputs: Mapping[str, Output | None],
    *,
    step: PipelineStep | None = None,
    namespace: Mapping[str, Any] | None = None,
    memo: Memo | None = None,
) -> dict[str, str]:
    """Digests of the parts of other steps' values that a unit reads, by ``input:load.text``.

    A whole value is not decoded: its digest is known. A step without a value counts as ``"none"``,
    a part that the value lacks as ``"missing"``. A part that cannot be stored gets a digest of its
    own each time, so that nothing is taken for equal that was never compared.

    Classes of values count with all they do for Python steps (``class:NAME`` and what it refers to), and for
    goals by what these can print (``shown:load``).

    Args:
        references: The parts.
        outputs: Values by the name of their step.
        step: The step that reads them; without it, classes do not count.
        namespace: Globals that the Python of a cell sees.
        memo: As in :func:`definition_components`.
    """
    components: dict[str, str] = {}
    memo = {} if memo is None else memo
    for reference in references:
        name = f"input:{reference.text}"
        if name in components:
            continue
        output = outputs.get(reference.step)
        if output is None:
            components[name] = NO_VALUE
            continue
        if reference.path:
            components[name], part, classes = _part(output.value, reference.path)
        else:
            components[name], part = output.digest, None
            classes = _NO_CLASSES if step is None else output.classes
        if classes and step is not None:
            value = part if reference.path else output.value
            more = class_components(reference.text, value, classes, step, namespace or {}, memo)
            add_components(components, more)
    return components


def class_components(
    name: str,
    value: Any,
    classes: frozenset[type],
    step: PipelineStep,
    namespace: Mapping[str, Any],
    memo: Memo,
) -> Mapping[str, str]:
    """What the classes in a value that a step reads do for it, beyond the fields that are in its digest.

    Args:
        name: What the value is called, such as ``load``.
        value: The value.
        classes: Classes of its models, dataclasses, enums and named tuples.
        step: The step that reads it.
        namespace: Globals that the Python of a cell sees.
        memo: As in :func:`definition_components`.
    """
    if step.body is None:
        if not any(getattr(kind, "model_computed_fields", None) for kind in classes):
            return {}
        try:
            return {f"shown:{name}": text_digest(shown_text(value))}
        except Exception:  # computed fields are the user's code; and some values are too long
            pass
    home = getattr(getattr(step.body, "function", None), "__globals__", namespace)
    memoized = memo.get(("classes", (id(home), classes)))
    if memoized is None:
        search = DependencySearch(home, memo, documented=False)
        for called, kind in users_classes(classes):
            search.follow_value(called, kind)
        memoized = memo["classes", (id(home), classes)] = search.components
    components: Mapping[str, str] = memoized
    return components


def add_components(components: dict[str, str], more: Mapping[str, str]) -> None:
    """Add components to others; two of one name both count."""
    for name, text in more.items():
        before = components.get(name, text)
        components[name] = text if before == text else text_digest(before, text)


def _part(value: Any, path: tuple[str, ...]) -> tuple[str, Any, frozenset[type]]:
    """Digest of a part of a value, the part, and the classes in it."""
    try:
        part = lookup(value, path)
        digest, classes = serde.examine(part)
        return digest, part, classes
    except TemplateError:
        return MISSING, None, _NO_CLASSES
    except EncodeError:
        return f"unstorable-{uuid.uuid4().hex}", None, _NO_CLASSES


def unit_key(components: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the named components, in whatever order they come."""
    # ASCII text of the pairs: no two different sets of components share it, and it is quick.
    text = ascii(sorted(components.items()))
    return hashlib.sha256(FORMAT + text.encode()).hexdigest()


class ItemKeys:
    """The :func:`unit_key` of each item of a mapped step, by what all items share and what is of the item.

    Args:
        shared: The components that the items share.
        references: The parts of an item that its unit reads.
    """

    def __init__(self, shared: Mapping[str, str], references: Sequence[Reference]) -> None:
        paths = {f"input:{reference.text}": reference.path for reference in references}
        # Where each part of the item belongs into the text that is hashed, and what stands behind it.
        self._parts: list[tuple[tuple[str, ...], bytes]] = []
        pieces: list[str] = ["["]
        for number, name in enumerate(sorted({*shared, *paths})):
            pieces[-1] += f"{', ' if number else ''}({name!a}, "
            if name in paths:
                pieces.append(")")
            else:
                pieces[-1] += f"{shared[name]!a})"
        pieces[-1] += "]"
        self._start = hashlib.sha256(FORMAT + pieces[0].encode())
        in_order = (paths[name] for name in sorted(paths))
        self._parts = list(zip(in_order, (piece.encode() for piece in pieces[1:]), strict=True))

    def of(self, item: Output) -> str | None:
        """The key of an item; ``None`` where more of it counts than digests, such as classes."""
        hasher = self._start.copy()
        for path, after in self._parts:
            if path:
                digest, _, classes = _part(item.value, path)
            else:
                digest, classes = item.digest, item.classes
            if classes:
                return None
            hasher.update(ascii(digest).encode() + after)
        return hasher.hexdigest()


def text_digest(*texts: str) -> str:
    """SHA-256 (hex) of texts, in their order."""
    return hashlib.sha256(ascii(texts).encode()).hexdigest()
