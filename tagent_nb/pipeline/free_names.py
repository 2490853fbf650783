"""Which names a piece of Python reads from outside itself."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def free_names(statements: Sequence[ast.stmt]) -> frozenset[str]:
    """Names that the statements read before they bind them, in the order of evaluation.

    A name that is bound in one branch only counts as bound from there on: ``if x: y = 1`` followed
    by ``y`` reads no outer ``y``. Names of built-ins are part of the answer.
    """
    scope = _Scope()
    scope.visit_all(statements)
    return frozenset(scope.early | (scope.inner - scope.bound))


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
    """

    def __init__(self) -> None:
        self.early: set[str] = set()
        self.read: set[str] = set()
        self.bound: set[str] = set()
        self.inner: set[str] = set()
        self.outer: set[str] = set()  # declared global or nonlocal

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
        inside = _Scope()
        inside.visit_all(node.body)
        for name in inside.early:
            self.use(name)
        # Methods do not see the names of their class.
        self.inner |= inside.inner
        self.bind(node.name)

    def _function(self, args: ast.arguments, body: Sequence[ast.AST]) -> None:
        parameters = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        self.visit_all([*args.defaults, *args.kw_defaults])
        self.visit_all(one.annotation for one in parameters if one is not None)
        inside = _Scope()
        inside.bound.update(one.arg for one in parameters if one is not None)
        inside.visit_all(body)
        own = inside.bound - inside.outer
        self.inner |= ((inside.read | inside.inner) - own) | inside.outer

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first = node.generators[0]
        self.visit(first.iter)
        inside = _Scope()
        inside.visit(first.target)
        inside.visit_all(first.ifs)
        for generator in node.generators[1:]:
            inside.visit_all([generator.iter, generator.target, *generator.ifs])
        inside.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        # ``(x := ...)`` binds in the scope around a comprehension.
        targets = {one.target.id for one in ast.walk(node) if isinstance(one, ast.NamedExpr)}
        for name in inside.early - targets:
            self.use(name)
        self.inner |= inside.inner - (inside.bound - targets)
        self.bound |= targets

    visit_ListComp = _comprehension  # noqa: N815
    visit_SetComp = _comprehension  # noqa: N815
    visit_DictComp = _comprehension  # noqa: N815
    visit_GeneratorExp = _comprehension  # noqa: N815
