"""What is allowed in a definition and probably not meant: each is one sentence with the remedy."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection, Container, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import TemplateError
from tagent_nb.pipeline.free_variables import own_nodes
from tagent_nb.pipeline.graph import is_variable
from tagent_nb.pipeline.outside import outside_hints

if TYPE_CHECKING:
    from tagent_nb.pipeline.pipeline import Pipeline
    from tagent_nb.pipeline.step import PipelineStep

_TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_BRACES = re.compile(r"\{\s*(([^\W\d]\w*)(?:\.\w+|\[[^\[\]{}]*\])*)\s*(?:![rsa])?(?::[^\s{}]+)?\}")
"""A name in single braces, with fields and a format, as in an f-string."""
_BARE_KEY = re.compile(r"\[\s*(?!-?\d+\s*\])([^\[\]'\"]+?)\s*\]")
"""A key as formats have it, ``item[text]``; in a template that would be the value of a name ``text``."""
_ITEM = re.compile(r"\bitem\b")


def step_hints(pipeline: Pipeline, step: PipelineStep) -> list[str]:
    """What the cell of a step should say below its card.

    Args:
        pipeline: Where the step is.
        step: The step; its goal can be read.
    """
    shadowed = _shadowed(pipeline, step)
    if step.body is not None:
        hint = _value_hint(step.body.source) if step.body.kind == "cell" else ""
        outside = []
        if step.cache and step.fresh_for is None:
            outside = outside_hints(step.body, pipeline.variables or {})
        return [*([hint] if hint else []), *outside, *shadowed]
    hints = [hint for hint in (_unread(step), _alike(pipeline, step)) if hint]
    names = {other.name for other in pipeline.steps}
    return [*hints, *_brace_hints(step, names), *shadowed]


def map_warnings(pipeline: Pipeline) -> list[str]:
    """A sentence for each step that pays for equal answers: to one goal for all items, or as samples."""
    names = {step.name for step in pipeline.steps}
    hints = []
    for step in pipeline.steps:
        unread, alike = _unread(step), _alike(pipeline, step)
        if unread:
            hints.append(" ".join([f"Step {step.name!r}: {unread}", *_brace_hints(step, names)]))
        if alike:
            hints.append(f"Step {step.name!r}: {alike}")
    return hints


def _shadowed(pipeline: Pipeline, step: PipelineStep) -> list[str]:
    """Inputs and variables that are not read, since a step has their name: this step, or one it reads."""
    names = [step.name, *(dependency.name for dependency in pipeline.dependencies(step))]
    hints = []
    for name in dict.fromkeys(names):
        variable = pipeline.variables is not None and is_variable(name, pipeline.variables)
        if name in pipeline and (variable or name in pipeline.inputs):
            hints.append(
                f"{name} is the step of that name, not the {'variable' if variable else 'input'}: rename one "
                "of them to read that."
            )
    return hints


# -- goals -------------------------------------------------------------------------------------


def _unread(step: PipelineStep) -> str:
    """What is to be said of a mapped agent step whose goal reads nothing of its items."""
    if step.map_over is None or step.is_python:
        return ""
    source = next(reference.step for reference in step.references if reference.kind == "map")
    if any(reference.step == source and reference.kind == "goal" for reference in step.references):
        return ""
    if any(_ITEM.search(part) for part in _TEMPLATE.findall(step.goal) if not part.startswith("{#")):
        return ""
    return (
        f"its goal reads nothing of the items of {step.map_over!r}: the model is asked the same for each of "
        f"them. Write {{{{ {source} }}}} or {{{{ item }}}}, or a field of it, where the item belongs; or "
        "leave --map-over (map_over=) out."
    )


def _alike(pipeline: Pipeline, step: PipelineStep) -> str:
    """What is to be said of a step whose samples are one answer, since its model is set to give the same."""
    if step.samples == 1:
        return ""
    settings = {**_own_settings(step.model if step.model is not None else pipeline.model), **step.settings}
    if settings.get("seed") is not None:
        what, remedy = f"seed {settings['seed']}", "Leave the seed out"
    elif settings.get("temperature") == 0:
        what, remedy = "temperature 0", "Write --setting temperature=0.8 (settings={'temperature': 0.8})"
    else:
        return ""
    return f"its {step.samples} samples will be alike, since the model answers with {what}. {remedy}."


def _own_settings(model: Any) -> Mapping[str, Any]:
    """The settings that a model has besides those of a step."""
    if isinstance(model, str):
        # The local one takes the likeliest word unless a setting says otherwise.
        return {"temperature": 0.0} if model == "local" else {}
    try:
        settings = getattr(model, "settings", None)
    except Exception:  # the object's own code; a call of the model raises it again
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _brace_hints(step: PipelineStep, names: Collection[str]) -> list[str]:
    """Names of steps in single braces: the model is sent the braces."""
    if "{" not in step.goal:
        return []
    readable = {*names, "item"} if step.map_over is not None else names
    references: dict[str, str] = {}
    for match in _BRACES.finditer(_TEMPLATE.sub("", step.goal)):
        if match[2] in readable:
            references[match[0]] = _BARE_KEY.sub(r"['\1']", match[1])
    return [
        f"{written} is sent to the model as it stands; for the value write {{{{ {reference} }}}}."
        for written, reference in references.items()
    ]


# -- Python ------------------------------------------------------------------------------------

_BLOCKS: dict[type[ast.stmt], str] = {
    ast.With: "a 'with' block",
    ast.AsyncWith: "a 'with' block",
    ast.For: "a 'for' loop",
    ast.AsyncFor: "a 'for' loop",
    ast.While: "a 'while' loop",
    ast.If: "an 'if' block",
    ast.Try: "a 'try' block",
    ast.TryStar: "a 'try' block",
    ast.Match: "a 'match' block",
}
_OTHERS: dict[type[ast.stmt], str] = {
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.Delete: "'del'",
    ast.Assert: "'assert'",
    ast.Pass: "'pass'",
}
_SHOWING = ("print", "display")


def _value_hint(source: str) -> str:
    """What is to be said of a cell whose last line has no value; empty if it has one, or returns."""
    tree = ast.parse(source)
    if any(isinstance(node, ast.Return) for node in own_nodes(tree.body)):
        return ""
    last = tree.body[-1]
    name = ""
    match last:
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            what, name = "an assignment", _assigned(last)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            what, name = f"the definition of {name!r}", f"{name}(...)"
        case ast.Expr(value=ast.Call(func=ast.Name(id=shown))) if shown in _SHOWING:
            what = f"{shown}(...), which shows a value and gives None"
        case _ if type(last) in _BLOCKS:
            what, name = f"{_BLOCKS[type(last)]}, which has no value", _assigned_in(last)
        case _ if type(last) in _OTHERS:
            what = f"{_OTHERS[type(last)]}, which has no value"
        case _:
            return ""
    return f"its value is None, since it ends in {what}. End with the value on a line of its own" + (
        f": {name}" if name else "."
    )


def _assigned(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> str:
    """What an assignment changes, as it is written: of ``df["a"] = 1`` that is ``df``."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    while isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
        target = target.value
    return ast.unparse(target).strip("()")


def _assigned_in(block: ast.stmt) -> str:
    """What the last assignment of a block changes; empty without one."""
    kinds = (ast.Assign, ast.AnnAssign, ast.AugAssign)
    changed = [node for node in own_nodes([block]) if isinstance(node, kinds)]
    return _assigned(max(changed, key=lambda node: node.lineno)) if changed else ""


# -- names that the Python of a pipeline takes from around it: helpers, modules and values of a notebook ----

_BUILT_IN = frozenset(dir(builtins)) | {"__name__"}
_CATCH = frozenset({"NameError", "Exception", "BaseException"})


def outside_names(pipeline: Pipeline) -> dict[str, list[str]]:
    """By step, what its Python reads that neither the step, the pipeline nor Python itself defines.

    The JSON of a pipeline does not hold these.
    """
    readable = _readable(pipeline)
    by_step = {step.name: _outside(step, readable) for step in pipeline.steps}
    return {name: names for name, names in by_step.items() if names}


def missing_names(pipeline: Pipeline, namespace: Container[str]) -> dict[str, list[str]]:
    """By step, what is not in the names that its Python will see: it fails where it comes to them.

    Functions that were not read from data see their own module, and code that catches NameError knows
    what it does: these are passed over.
    """
    written = [step for step in pipeline.steps if step.body is not None and step.body.function is None]
    if not written:
        return {}
    readable = _readable(pipeline)
    by_step = {}
    for step in written:
        body = step.body
        assert body is not None
        names = [name for name in _outside(step, readable) if name not in namespace]
        if names and not _catches(body.source):
            by_step[step.name] = names
    return by_step


def listed(names: list[str]) -> str:
    """``'a', 'b' and 'c'``."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _readable(pipeline: Pipeline) -> set[str]:
    """What a cell reads of its pipeline by name: steps, and inputs, also those that are yet to be given."""
    names = {*(step.name for step in pipeline.steps), *pipeline.inputs}
    for step in pipeline.steps:
        with suppress(TemplateError):  # validate() says so
            names.update(dependency.name for dependency in pipeline.dependencies(step))
    return names


def _outside(step: PipelineStep, readable: set[str]) -> list[str]:
    body = step.body
    if body is None:
        return []
    own = {"item"} if step.map_over is not None else set()
    # A function gets these by its parameters only; what a cell calls by the name of a step is that step.
    return sorted(body.names - body.quoted - _BUILT_IN - own - (readable if body.kind == "cell" else set()))


def _catches(source: str) -> bool:
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    caught = [name for handler in handlers for name in ast.walk(handler.type or ast.Name("BaseException"))]
    return any(isinstance(name, ast.Name) and name.id in _CATCH for name in caught)
