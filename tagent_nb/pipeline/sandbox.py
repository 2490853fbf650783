"""The sandbox that goals and ``when`` expressions are read and rendered in.

Imports jinja2, so this module is imported only for a goal that has ``{{``, ``{%`` or ``{#``.
A source is accepted by an allowlist of what a goal may contain; references are read from its syntax
tree; every printed value that is not the author's own text goes through :func:`delimit`.
"""

from __future__ import annotations

import traceback
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tagent_nb.errors import TagentError, did_you_mean
from tagent_nb.pipeline.delimiting import delimit, json_text, own_text
from tagent_nb.pipeline.goal_syntax import REMOVED_FILTERS, Chain, OfItems, Problem, Reader
from tagent_nb.pipeline.names import RESERVED
from tagent_nb.pipeline.shapes import PLAIN
from tagent_nb.pipeline.views import MISSING, View, missing, view

__all__ = ["Compiled", "Problem", "chains_of", "compiled"]

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
            found = otherwise(obj, key)
            # What exists and is not given is unsafe, which the sandbox says itself.
            if isinstance(found, Undefined) and isinstance(obj, PLAIN) and not hasattr(obj, str(key)):
                return self.undefined(hint=missing(obj, key), obj=obj, name=str(key))
            return found
        found = obj.read(key)
        if found is not MISSING:
            return found
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
    return tree, reader.found


@lru_cache(maxsize=4096)
def chains_of(source: str, expression: bool = False) -> tuple[Chain, ...]:
    """What a source reads of other steps, in order.

    Raises:
        Problem: The source cannot be read, or has something that is not allowed.
    """
    found = _parse(_normal(source), expression)[1]
    return tuple(chain for chain in found if chain[0] not in RESERVED)


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
            one
            if isinstance(one, nodes.TemplateData)
            else nodes.Filter(one, _OWN if _is_own(one) else _DATA, [], [], None, None, lineno=one.lineno)
            for one in output.nodes
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
        context = self.template.new_context(self._visible(values))
        try:
            return "".join(self.template.root_render_func(context))
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
    steps = [known for known in values if known not in RESERVED]
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
    tree, found = _parse(_normal(source), expression)
    if mapped is not None:
        tree = OfItems(mapped).visit(tree)
        reader = Reader(_environment().filters, _environment().tests)
        reader.read(tree.body[0].node, set())
        found = reader.found
    names: dict[str, int] = {}
    for (name, _), line in found.items():
        names.setdefault(name, line)
    _mark_outputs(tree)
    try:
        return Compiled(_environment().from_string(tree), names)
    except (SyntaxError, RecursionError, TemplateSyntaxError) as error:
        # Python allows about 20 blocks in each other, and jinja2 writes a loop as one.
        raise Problem(1, f"too complex ({error}). Compute the value in a Python step.") from None
