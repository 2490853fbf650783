"""Which names a piece of Python reads from outside itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


QUERIES = frozenset({"query", "eval"})
"""Methods and functions of pandas that look up names behind ``@`` in the text that they are passed."""

_QUOTED = re.compile(r"@\s*([^\W\d]\w*)((?:\s*\.\s*\w+)*)")


def quoted_names(text: str) -> list[str]:
    """Names behind ``@`` in a text for :data:`QUERIES`: ``limit`` of ``"stars >= @limit"``."""
    return [name for name, _ in _QUOTED.findall(text)] if "@" in text else []


def quoted_attributes(text: str) -> set[str]:
    """Attributes of such names: ``limit`` of ``"stars >= @settings.limit"``."""
    return {part for _, path in _QUOTED.findall(text) for part in re.findall(r"\w+", path)}


def evaluated_names(text: str) -> frozenset[str]:
    """Names that ``eval`` and ``pandas.eval`` look up for a text; none if it is no Python."""
    try:
        return free_names(ast.parse(text.strip()).body, quoted=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()


def free_names(statements: Sequence[ast.stmt], *, quoted: bool = True) -> frozenset[str]:
    """Names that the statements read before they bind them, in the order of evaluation.

    A name that is bound in one branch only counts as bound from there on: ``if x: y = 1`` followed
    by ``y`` reads no outer ``y``. Names of built-ins are part of the answer.

    Args:
        statements: The code.
        quoted: Whether names count that only stand in texts, behind ``@``, where pandas is asked to query
            or to evaluate something.
    """
    scope = _Scope(
        quoted and any(_is_query(node) for statement in statements for node in ast.walk(statement))
    )
    scope.visit_all(statements)
    return frozenset(scope.early | (scope.inner - scope.bound))


def _is_query(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in QUERIES
    return (isinstance(node, ast.Name) and node.id in QUERIES) or (
        isinstance(node, ast.alias) and node.name in QUERIES
    )


def unseen_queries(statements: Sequence[ast.stmt], texts: Iterable[str] = ()) -> list[str]:
    """What code passes to ``query`` and ``eval`` that is no text of its own: names in it cannot be seen.

    Args:
        statements: The code.
        texts: Names of texts outside of the code that are known.
    """
    nodes = [node for statement in statements for node in ast.walk(statement)]
    literal = set(texts)
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_text(node.value, literal):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            literal.update(target.id for target in targets if isinstance(target, ast.Name))
    queries: dict[str, None] = {}
    for node in nodes:
        if not isinstance(node, ast.Call) or not _is_query(node.func):
            continue
        named = [keyword.value for keyword in node.keywords if keyword.arg == "expr"]
        for passed in [*node.args[:1], *named][:1]:
            if not _is_text(passed, literal):
                queries[f"{ast.unparse(node.func)}({ast.unparse(passed)})"] = None
    return list(queries)


def _is_text(node: ast.AST | None, literal: set[str]) -> bool:
    """Whether all names behind ``@`` in what an expression makes are written in it."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id in literal
    if isinstance(node, ast.JoinedStr):
        before: Any = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and str(before).rstrip().endswith("@"):
                return False
            before = part.value if isinstance(part, ast.Constant) else ""
        return True
    if isinstance(node, ast.BinOp):
        return _is_text(node.left, literal) and _is_text(node.right, literal)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body, literal) and _is_text(node.orelse, literal)
    return False


def own_nodes(statements: Iterable[ast.stmt]) -> Iterable[ast.AST]:
    """The nodes of the statements, without those inside nested functions and lambdas."""
    stack: list[ast.AST] = list(statements)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _FUNCTIONS):
            stack.extend(ast.iter_child_nodes(node))


class _Scope(ast.NodeVisitor):
    """Collects what one scope reads and binds.

    ``early``: read before bound. ``bound``: bound anywhere. ``inner``: free in nested functions,
    which run later and so see what is bound by then.

    Args:
        queries: Whether names count that stand in texts behind ``@``.
    """

    def __init__(self, queries: bool = False) -> None:
        self.queries = queries
        self.early: set[str] = set()
        self.read: set[str] = set()
        self.bound: set[str] = set()
        self.inner: set[str] = set()
        self.outer: set[str] = set()  # declared global or nonlocal

    def visit(self, node: ast.AST) -> None:
        kind = type(node)
        method = _METHODS.get(kind)
        if method is None:
            method = _METHODS[kind] = getattr(_Scope, f"visit_{kind.__name__}", _Scope.generic_visit)
        method(self, node)

    def generic_visit(self, node: ast.AST) -> None:
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                self.visit_all(part for part in value if isinstance(part, ast.AST))
            elif isinstance(value, ast.AST) and value._fields:  # nothing is in what has no fields: Load()
                self.visit(value)

    def visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def use(self, name: str) -> None:
        self.read.add(name)
        if name not in self.bound:
            self.early.add(name)

    def bind(self, name: str | None) -> None:
        if name is not None:
            self.bound.add(name)

    # -- names ------------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bind(node.id)
        else:
            self.use(node.id)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring is no query
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = node.func
        # What is asked of a frame reads its columns; what is asked of pandas or Python itself, variables.
        bare = isinstance(function, ast.Name) or (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id in ("pd", "pandas")
        )
        if self.queries and bare and _is_query(function):
            for part in (
                inner for argument in [*node.args[:1], *node.keywords] for inner in ast.walk(argument)
            ):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    for name in evaluated_names(part.value):
                        self.use(name)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self.queries and isinstance(node.value, str):
            for name in quoted_names(node.value):
                self.use(name)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        self.outer.update(node.names)

    visit_Nonlocal = visit_Global  # noqa: N815

    def visit_alias(self, node: ast.alias) -> None:
        self.bind(node.asname or node.name.partition(".")[0])

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.visit_all([node.type])
        self.bind(node.name)
        self.visit_all(node.body)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.generic_visit(node)
        self.bind(node.name)

    visit_MatchStar = visit_MatchAs  # noqa: N815

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        self.bind(node.rest)

    # -- values are read before their targets are bound ---------------------------------------

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit_all([node.value, *node.targets])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit_all([node.annotation, node.value])
        if node.value is not None or not isinstance(node.target, ast.Name):
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.use(node.target.id)
        self.visit_all([node.value, node.target])

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit_all([node.value, node.target])

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit_all([node.iter, node.target, *node.body, *node.orelse])

    visit_AsyncFor = visit_For  # noqa: N815

    # -- nested scopes ------------------------------------------------------------------------

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_all([*node.decorator_list, node.returns])
        self._function(node.args, node.body)
        self.bind(node.name)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node.args, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all([*node.decorator_list, *node.bases, *node.keywords])
        inside = _Scope(self.queries)
        inside.visit_all(node.body)
        for name in inside.early:
            self.use(name)
        # Methods do not see the names of their class.
        self.inner |= inside.inner
        self.bind(node.name)

    def _function(self, args: ast.arguments, body: Sequence[ast.AST]) -> None:
        parameters = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        self.visit_all([*args.defaults, *args.kw_defaults])
        self.visit_all(parameter.annotation for parameter in parameters if parameter is not None)
        inside = _Scope(self.queries)
        inside.bound.update(parameter.arg for parameter in parameters if parameter is not None)
        inside.visit_all(body)
        own = inside.bound - inside.outer
        self.inner |= ((inside.read | inside.inner) - own) | inside.outer

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first = node.generators[0]
        self.visit(first.iter)
        inside = _Scope(self.queries)
        inside.visit(first.target)
        inside.visit_all(first.ifs)
        for generator in node.generators[1:]:
            inside.visit_all([generator.iter, generator.target, *generator.ifs])
        inside.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        # ``(x := ...)`` binds in the scope around a comprehension.
        targets = {part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)}
        for name in inside.early - targets:
            self.use(name)
        self.inner |= inside.inner - (inside.bound - targets)
        self.bound |= targets

    visit_ListComp = _comprehension  # noqa: N815
    visit_SetComp = _comprehension  # noqa: N815
    visit_DictComp = _comprehension  # noqa: N815
    visit_GeneratorExp = _comprehension  # noqa: N815


_METHODS: dict[type[ast.AST], Callable[[_Scope, Any], None]] = {}
"""By kind of node: looked up once, since this is done for every node of every step."""
