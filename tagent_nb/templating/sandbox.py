"""The sandbox that goals and ``when`` expressions are read and rendered in.

Imports jinja2, so this module is imported only for a goal that has ``{{``, ``{%`` or ``{#``.
A source is accepted by an allowlist of what a goal may contain; references are read from its syntax
tree; every printed value that is not the author's own text goes through :func:`delimit`.
"""

from __future__ import annotations

import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from tagent_nb.errors import TagentError, did_you_mean
from tagent_nb.naming import RESERVED
from tagent_nb.templating.coerce import PLAIN
from tagent_nb.templating.views import MISSING, View, delimit, json_text, missing, own_text, view

__all__ = [
    "REMOVED_FILTERS",
    "Chain",
    "Compiled",
    "OfItems",
    "Problem",
    "Reader",
    "chains_of",
    "compiled",
]


_RAW = "To write braces as text, put them between {% raw %} and {% endraw %}."
_RESULT = "__result"
_DATA, _OWN = "-data", "-own"
"""Filters that no goal can name, since a name has no dash."""


# -- the environment ------------------------------------------------------------------------


class _Goals(ImmutableSandboxedEnvironment):
    """Reads fields of views only; other objects as jinja2's sandbox allows."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self._read(obj, attribute, super().getattr)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return self._read(obj, argument, super().getitem)

    def _read(self, obj: Any, key: Any, otherwise: Callable[[Any, Any], Any]) -> Any:
        if not isinstance(obj, View):
            part = otherwise(obj, key)
            # What exists and is not given is unsafe, which the sandbox says itself.
            if isinstance(part, Undefined) and isinstance(obj, PLAIN) and not hasattr(obj, str(key)):
                return self.undefined(hint=missing(obj, key), obj=obj, name=str(key))
            return part
        part = obj.read(key)
        if part is not MISSING:
            return part
        if key in obj.methods:
            return getattr(obj, key)
        return self.undefined(hint=obj.missing(key), obj=obj, name=str(key))


@lru_cache(maxsize=1)
def _environment() -> _Goals:
    environment = _Goals(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals = {"len": len, "range": environment.globals["range"], "namespace": Namespace}
    for name in REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters.update({"tojson": json_text, "data": delimit, _DATA: delimit, _OWN: own_text})
    return environment


# -- reading --------------------------------------------------------------------------------


def _parse(source: str, expression: bool) -> tuple[nodes.Template, dict[Chain, int]]:
    environment = _environment()
    if expression and source.lstrip().startswith(("{{", "{%")):
        raise Problem(1, "an expression has no braces. Write load.count > 0, not {{ load.count > 0 }}.")
    try:
        if expression:
            parser = Parser(environment, source, state="variable")
            value = parser.parse_expression()
            if not parser.stream.eos:
                raise Problem(1, f"{source!r} goes on after its end. Join parts with 'and' or 'or'.")
            target = nodes.Name(_RESULT, "store", lineno=1)
            tree = nodes.Template([nodes.Assign(target, value, lineno=1)], lineno=1)
            tree.set_environment(environment)
        else:
            value, tree = None, environment.parse(source)
        reader = Reader(environment.filters, environment.tests)
        reader.read(tree if value is None else value, set())
    except TemplateSyntaxError as error:
        remedy = "Write an expression such as load.count > 0." if expression else _RAW
        raise Problem(error.lineno, f"{(error.message or 'not readable').rstrip('.')}. {remedy}") from None
    except RecursionError:
        raise Problem(1, "nested too deeply. Compute the value in a Python step.") from None
    return tree, reader.chains


@lru_cache(maxsize=4096)
def chains_of(source: str, expression: bool = False) -> tuple[Chain, ...]:
    """What a source reads of other steps, in order.

    Raises:
        Problem: The source cannot be read, or has something that is not allowed.
    """
    chains = _parse(_normal(source), expression)[1]
    return tuple(chain for chain in chains if chain[0] not in RESERVED)


def _normal(source: str) -> str:
    # Step names are in NFC; a name typed with combining marks means the same.
    return unicodedata.normalize("NFC", source)


# -- rendering ------------------------------------------------------------------------------


def _is_own(node: nodes.Node) -> bool:
    """Whether all text that an expression prints was written by the goal's author."""
    if isinstance(node, nodes.CondExpr):
        return _is_own(node.expr1) and (node.expr2 is None or _is_own(node.expr2))
    if isinstance(node, nodes.Name):
        return node.name == "shared"
    return all(_is_own(child) for child in node.iter_child_nodes())


def _mark_outputs(tree: nodes.Template) -> None:
    for output in tree.find_all(nodes.Output):
        output.nodes = [
            part
            if isinstance(part, nodes.TemplateData)
            else nodes.Filter(part, _OWN if _is_own(part) else _DATA, [], [], None, None, lineno=part.lineno)
            for part in output.nodes
        ]
    tree.set_environment(_environment())


@dataclass(frozen=True)
class Compiled:
    """A source that can be rendered or evaluated any number of times.

    Attributes:
        names: Names that it reads, with the line of the first use.
    """

    template: Template
    names: Mapping[str, int]

    def render(self, values: Mapping[str, Any]) -> str:
        """The text of a goal.

        Raises:
            Problem: Something is not there or cannot be printed.
        """
        return "".join(self.pieces(values))

    def pieces(self, values: Mapping[str, Any]) -> list[str]:
        """The text of a goal in pieces: each value that it prints is one, and so is the text between two.

        Raises:
            Problem: As :meth:`render`.
        """
        context = self.template.new_context(self._visible(values))
        try:
            return list(self.template.root_render_func(context))
        except Exception as error:  # filters and operators raise anything on data they do not like
            raise self._problem(error) from _cause(error)

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        """The truth of an expression.

        Raises:
            Problem: Something is not there or cannot be compared.
        """
        context = self.template.new_context(self._visible(values))
        try:
            "".join(self.template.root_render_func(context))  # an assignment, which prints nothing
            return bool(context.vars[_RESULT])
        except Exception as error:  # as above
            raise self._problem(error) from _cause(error)

    def _visible(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Views of the names that are read: a stored value that is not stays undecoded."""
        seen = {}
        for name, line in self.names.items():
            if name in values:
                try:
                    seen[name] = view(values[name], name)
                except TagentError as error:
                    raise Problem(line, str(error)) from None
            else:
                seen[name] = StrictUndefined(hint=_absent(name, values), name=name)
        return seen

    def _problem(self, error: Exception) -> Problem:
        line = 1
        for frame, number in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__jinja_template__") is self.template:
                line = self.template.get_corresponding_lineno(number)
        if isinstance(error, SecurityError):
            return Problem(line, f"{str(error).rstrip('.')}. Goals read fields of values only.")
        if isinstance(error, TemplateError | TagentError):
            return Problem(line, f"{str(error).rstrip('.')}.")
        what = f"{type(error).__name__}: {error}".rstrip(".")
        return Problem(line, f"{what}. Change the expression, or compute the value in a Python step.")


def _cause(error: Exception) -> Exception | None:
    return None if isinstance(error, TemplateError | TagentError) else error


def _absent(name: str, values: Mapping[str, Any]) -> str:
    if name == "item":
        return "'item' is not there: it is the current item of a step with map_over."
    if name == "loop":
        return "'loop' is not there: it belongs to the inside of {% for %}."
    if name == "context":
        return "'context' is not there: it is for Python steps."
    steps = [step for step in values if step not in RESERVED]
    return (
        f"{name!r} is not there.{did_you_mean(name, steps)} "
        f"Steps that this one reads: {', '.join(steps) or 'none'}."
    )


@lru_cache(maxsize=1024)
def compiled(source: str, expression: bool = False, mapped: Chain | None = None) -> Compiled:
    """Compile a source, once.

    Args:
        source: The text.
        expression: Whether it is an expression, and not a goal.
        mapped: What its step maps over, if fields of that are to be those of the current item.

    Raises:
        Problem: The source cannot be read, or has something that is not allowed.
    """
    tree, chains = _parse(_normal(source), expression)
    if mapped is not None:
        tree = OfItems(mapped).visit(tree)
        reader = Reader(_environment().filters, _environment().tests)
        reader.read(tree.body[0].node, set())
        chains = reader.chains
    names: dict[str, int] = {}
    for (name, _), line in chains.items():
        names.setdefault(name, line)
    _mark_outputs(tree)
    try:
        return Compiled(_environment().from_string(tree), names)
    except (SyntaxError, RecursionError, TemplateSyntaxError) as error:
        # Python allows about 20 blocks in each other, and jinja2 writes a loop as one.
        raise Problem(1, f"too complex ({error}). Compute the value in a Python step.") from None


Chain = tuple[str, tuple[str, ...]]
"""A name and the constant fields or indices read from it."""

_FUNCTIONS = {"len", "range", "namespace"}
REMOVED_FILTERS = ("attr", "random", "pprint", "safe", "urlize", "xmlattr")
_KEPT = ("shared", "facts", "memories", "loop")
"""Names that a goal may not give to something else."""

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.With,
    nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword,
    nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
    nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod,
)  # fmt: skip

_FILES = "goals cannot read files or other templates. Put that text into a step and refer to it by name."
_REMEDIES: dict[type[nodes.Node], str] = {
    nodes.Include: "{% include %}: " + _FILES,
    nodes.Import: "{% import %}: " + _FILES,
    nodes.FromImport: "{% from ... import %}: " + _FILES,
    nodes.Extends: "{% extends %}: " + _FILES,
    nodes.Block: "{% block %}: " + _FILES,
    nodes.Macro: "{% macro %}: goals have no macros. Use {% for %}, or build the text in a Python step.",
    nodes.CallBlock: "{% call %}: goals have no macros. Use {% for %}, or build the text in a Python step.",
    nodes.FilterBlock: "{% filter %}: apply the filter to the value instead, as in {{ load.text | upper }}.",
    nodes.AssignBlock: "{% set %} with a block: write {% set name = value %}.",
    nodes.Pow: "'**' is not for goals. Compute the number in a Python step.",
}
_OTHER = "this is not allowed in goals. Compute the value in a Python step and refer to it."


class Problem(Exception):  # noqa: N818  # becomes a TemplateError, which knows the step
    """What is wrong in a source, and on which line of it."""

    def __init__(self, line: int, text: str) -> None:
        self.line = line
        self.text = text
        super().__init__(text)


class Reader:
    """Walks a syntax tree: refuses what is not allowed, and collects what names are read.

    Attributes:
        found: What is read, with the line of the first use.
    """

    def __init__(self, filters: Collection[str], tests: Collection[str]) -> None:
        self.chains: dict[Chain, int] = {}
        self._filters = filters
        self._tests = tests

    def read(self, node: nodes.Node, local: set[str]) -> None:
        """Read a node where ``local`` names are set by the goal itself; adds those it sets."""
        if not isinstance(node, _ALLOWED):
            # A few blocks know their line by what is in them only.
            lines = [child.lineno for child in (node, *node.iter_child_nodes()) if child.lineno]
            raise Problem(lines[0], _REMEDIES.get(type(node), _OTHER))
        special = getattr(self, f"_{type(node).__name__.lower()}", None)
        if special is not None:
            special(node, local)
        else:
            self._all(node.iter_child_nodes(), local)

    def _all(self, some: Iterable[nodes.Node], local: set[str]) -> None:
        for node in some:
            self.read(node, local)

    def _name(self, node: nodes.Name, local: set[str]) -> None:
        self._read_name(node, (), local)

    def _getattr(self, node: nodes.Getattr | nodes.Getitem, local: set[str]) -> None:
        keys: list[str | None] = []
        base: nodes.Expr = node
        while isinstance(base, nodes.Getattr | nodes.Getitem):
            keys.append(self._constant(base))
            if keys[-1] is None:
                assert isinstance(base, nodes.Getitem)
                self.read(base.arg, local)
            base = base.node
        if isinstance(base, nodes.Name):
            self._read_name(base, tuple(takewhile(lambda key: key is not None, reversed(keys))), local)  # type: ignore[arg-type]
        else:
            self.read(base, local)

    _getitem = _getattr

    def _constant(self, node: nodes.Expr) -> str | None:
        """The field or index that is read, if the source names it."""
        key: object = None
        if isinstance(node, nodes.Getattr):
            key = node.attr
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            key = node.arg.value
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Neg):
            inner = node.arg.node
            key = -inner.value if isinstance(inner, nodes.Const) and isinstance(inner.value, int) else None
        if isinstance(key, str) and key.startswith("__"):
            raise Problem(
                node.lineno,
                f"{key!r} starts with two underscores, and goals read fields only. "
                "Name a field of the step's value.",
            )
        return str(key) if isinstance(key, str) or type(key) is int else None

    def _read_name(self, node: nodes.Name, path: tuple[str, ...], local: set[str]) -> None:
        if node.name.startswith("__"):
            raise Problem(node.lineno, f"{node.name!r} starts with two underscores. Name a step.")
        if node.name not in local:
            self.chains.setdefault((node.name, path), node.lineno)

    def _call(self, node: nodes.Call, local: set[str]) -> None:
        callee = node.node
        if isinstance(callee, nodes.Getattr):
            # ``load.text.split()`` reads load.text; the last name is a method, not a field.
            self._constant(callee)
            self.read(callee.node, local)
        elif not (isinstance(callee, nodes.Name) and callee.name in _FUNCTIONS - local):
            name = repr(callee.name) if isinstance(callee, nodes.Name) else "this"
            raise Problem(
                node.lineno,
                f"{name} cannot be called: goals call methods of values, len(), range() and "
                "namespace() only. Compute the value in a Python step.",
            )
        self._all(node.iter_child_nodes(exclude=("node",)), local)

    def _filter(self, node: nodes.Filter | nodes.Test, local: set[str]) -> None:
        kind = "filter" if isinstance(node, nodes.Filter) else "test"
        available = self._filters if kind == "filter" else self._tests
        if node.name not in available:
            why = f"The {kind} {node.name!r} is not for goals." if node.name in REMOVED_FILTERS else (
                f"There is no {kind} {node.name!r}.{did_you_mean(node.name, available)}"
            )  # fmt: skip
            raise Problem(node.lineno, f"{why} Use another, or compute the value in a Python step.")
        self._all(node.iter_child_nodes(), local)

    _test = _filter

    # -- names that a goal sets

    def _set(self, target: nodes.Node) -> set[str]:
        names = {target.name} if isinstance(target, nodes.Name) else set()
        for name_node in target.find_all(nodes.Name):
            names.add(name_node.name)
        for name in names:
            if name in _KEPT or name.startswith("__"):
                raise Problem(target.lineno, f"The name {name!r} is taken. Choose another, such as 'row'.")
        return names

    def _assign(self, node: nodes.Assign, local: set[str]) -> None:
        self.read(node.node, local)
        if isinstance(node.target, nodes.NSRef):
            self._read_name(nodes.Name(node.target.name, "load", lineno=node.lineno), (), local)
        else:
            local |= self._set(node.target)

    def _with(self, node: nodes.With, local: set[str]) -> None:
        self._all(node.values, local)
        inner = set(local)
        for target in node.targets:
            inner |= self._set(target)
        self._all(node.body, inner)

    def _if(self, node: nodes.If, local: set[str]) -> None:
        """A name is set after an ``if`` only when each of its branches sets it."""
        self._all((node.test, *(branch.test for branch in node.elif_)), local)
        branches = []
        for body in (node.body, *(branch.body for branch in node.elif_), node.else_):
            branches.append(set(local))
            self._all(body, branches[-1])
        local |= set.intersection(*branches)

    def _for(self, node: nodes.For, local: set[str]) -> None:
        self.read(node.iter, local)
        inner = local | self._set(node.target) | {"loop"}
        if node.test is not None:
            self.read(node.test, set(inner))
        self._all(node.body, inner)
        self._all(node.else_, set(local))


class OfItems(NodeTransformer):
    """Lets an expression beside ``map_over`` read items: a field of what is mapped over is theirs.

    ``rows.stars`` becomes ``item.stars``; ``rows``, ``rows[0]`` and methods of ``rows`` stay the whole.

    Args:
        source: What is mapped over: a name, and the fields to the list.
    """

    def __init__(self, source: Chain) -> None:
        self._name, self._path = source

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        callee = node.node
        if isinstance(callee, nodes.Getattr) and self._is_source(callee.node):
            for field, values in node.iter_fields(exclude=("node",)):
                if isinstance(values, list):
                    setattr(node, field, [self.visit(child) for child in values])
            return node
        return self.generic_visit(node)

    def visit_Getattr(self, node: nodes.Getattr | nodes.Getitem) -> nodes.Node:  # noqa: N802
        if _field(node) is not None and self._is_source(node.node):
            node.node = nodes.Name("item", "load", lineno=node.lineno)
            return node
        return self.generic_visit(node)

    visit_Getitem = visit_Getattr  # noqa: N815

    def _is_source(self, node: nodes.Node) -> bool:
        for key in reversed(self._path):
            if not isinstance(node, nodes.Getattr | nodes.Getitem) or _field(node) != key:
                return False
            node = node.node
        return isinstance(node, nodes.Name) and node.name == self._name


def _field(node: nodes.Getattr | nodes.Getitem) -> str | None:
    """The name of the field that is read; ``None`` for an index, and for a name that is computed."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    value = node.arg.value if isinstance(node.arg, nodes.Const) else None
    return value if isinstance(value, str) else None
