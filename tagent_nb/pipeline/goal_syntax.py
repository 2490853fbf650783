"""What a goal may contain, and what it reads: a walk over its jinja2 syntax tree."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import takewhile

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from tagent_nb.errors import did_you_mean

__all__ = ["REMOVED_FILTERS", "Chain", "OfItems", "Problem", "Reader"]

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
        self.found: dict[Chain, int] = {}
        self._filters = filters
        self._tests = tests

    def read(self, node: nodes.Node, local: set[str]) -> None:
        """Read a node where ``local`` names are set by the goal itself; adds those it sets."""
        if not isinstance(node, _ALLOWED):
            # A few blocks know their line by what is in them only.
            lines = [one.lineno for one in (node, *node.iter_child_nodes()) if one.lineno]
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
        self._found(node, (), local)

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
            self._found(base, tuple(takewhile(lambda key: key is not None, reversed(keys))), local)  # type: ignore[arg-type]
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

    def _found(self, node: nodes.Name, path: tuple[str, ...], local: set[str]) -> None:
        if node.name.startswith("__"):
            raise Problem(node.lineno, f"{node.name!r} starts with two underscores. Name a step.")
        if node.name not in local:
            self.found.setdefault((node.name, path), node.lineno)

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
        known = self._filters if kind == "filter" else self._tests
        if node.name not in known:
            why = f"The {kind} {node.name!r} is not for goals." if node.name in REMOVED_FILTERS else (
                f"There is no {kind} {node.name!r}.{did_you_mean(node.name, known)}"
            )  # fmt: skip
            raise Problem(node.lineno, f"{why} Use another, or compute the value in a Python step.")
        self._all(node.iter_child_nodes(), local)

    _test = _filter

    # -- names that a goal sets

    def _set(self, target: nodes.Node) -> set[str]:
        names = {target.name} if isinstance(target, nodes.Name) else set()
        for one in target.find_all(nodes.Name):
            names.add(one.name)
        for name in names:
            if name in _KEPT or name.startswith("__"):
                raise Problem(target.lineno, f"The name {name!r} is taken. Choose another, such as 'row'.")
        return names

    def _assign(self, node: nodes.Assign, local: set[str]) -> None:
        self.read(node.node, local)
        if isinstance(node.target, nodes.NSRef):
            self._found(nodes.Name(node.target.name, "load", lineno=node.lineno), (), local)
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
        self._all((node.test, *(one.test for one in node.elif_)), local)
        branches = []
        for body in (node.body, *(one.body for one in node.elif_), node.else_):
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
                    setattr(node, field, [self.visit(one) for one in values])
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
