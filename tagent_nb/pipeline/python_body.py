"""The Python of a Python step: a function, or the text of a cell."""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import takewhile
from types import CodeType, FunctionType
from typing import Any, Literal

from tagent_nb.errors import DefinitionError, EncodeError
from tagent_nb.naming import RESERVED
from tagent_nb.pipeline.free_variables import QUERIES, free_names, own_nodes, unseen_queries

_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_NEW = frozenset({"type_params"})
"""Fields that newer versions of Python have added: empty, they must not change the text."""


def dump(node: Any) -> str:
    """As :func:`ast.dump` of Python 3.11 writes it, without docstrings, and in half of its time.

    The only statement of a cell stays, text or not: it may be the cell's value.
    """
    kind: Any = type(node)
    if kind is list:
        return f"[{', '.join([dump(part) for part in node])}]"
    plan = _fields(kind)
    if plan is None:
        return repr(node)
    attributes = node.__dict__
    parts = []
    for name, optional, special in plan:
        value = attributes.get(name)
        if value is None and optional:
            continue
        if special:
            if name in _NEW and not value:
                continue
            value = _without_docstring(kind, value)
        text = _bare(type(value))  # type: ignore[arg-type]
        parts.append(f"{name}={text or dump(value)}")
    return f"{kind.__name__}({', '.join(parts)})"


@cache
def _fields(kind: type) -> tuple[tuple[str, bool, bool], ...] | None:
    """Name of each field of a kind of node, whether it may be left out, and whether to look closer."""
    if not issubclass(kind, ast.AST):
        return None
    return tuple(
        (name, getattr(kind, name, ...) is None, name in _NEW or (name == "body" and kind in _DOCUMENTED))
        for name in kind._fields
    )


@cache
def _bare(kind: type) -> str:
    """The text of a kind of node that has no fields, such as ``Load()``; empty for all else."""
    return f"{kind.__name__}()" if issubclass(kind, ast.AST) and not kind._fields else ""


def _without_docstring(kind: type, body: list[Any]) -> list[Any]:
    first = body[0] if body else None
    if type(first) is not ast.Expr or (kind is ast.Module and len(body) < 2):
        return body
    value = first.value
    return body[1:] if type(value) is ast.Constant and isinstance(value.value, str) else body


BYTECODE = "bytecode:"
"""How :meth:`PythonBody.normalised` begins for a function whose text is no definition."""

CELL_FUNCTION = "__step__"
"""Name of the function that a cell becomes."""

PROVIDED = RESERVED - {"loop", "item"}
"""Names that a body may ask for besides steps: ``context``, ``shared``, ``facts``, ``memories``."""

_Definition = ast.FunctionDef | ast.AsyncFunctionDef
_NONE: frozenset[str] = frozenset()
_BLANKS = re.compile(r"^[ \t]+$", re.MULTILINE)
_NOT_PYTHON = re.compile(r"^\s*[%!?]|^[^#'\"]*=\s*[%!]|\?\s*$")


@dataclass(frozen=True)
class PythonBody:
    """What a Python step runs. Made by :meth:`from_function` or :meth:`from_cell`.

    Attributes:
        source: Its text; empty for a function whose source Python does not know.
        kind: ``"function"`` or ``"cell"``.
        name: The function's name, or the step's for a cell.
        params: Parameters that name the steps a function reads, in order, or ``item``; empty for a cell.
        optional: Those of ``params`` that have a default.
        names: Global names the body reads. A cell reads a step by its name.
        quoted: Those of ``names`` that only stand in texts, as in ``frame.query("stars >= @limit")``. They
            may be something else, such as a part of an address.
        provided: Those of :data:`PROVIDED` that the body reads.
        function: The function itself; ``None`` for a cell, and for a function that was rebuilt
            from its source. Neither compared nor stored.
    """

    source: str
    kind: Literal["function", "cell"]
    name: str
    params: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    quoted: frozenset[str] = frozenset()
    provided: frozenset[str] = frozenset()
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    @property
    def wants_context(self) -> bool:
        """Whether the body reads ``context``, the :class:`StepContext` of the attempt."""
        return "context" in self.provided

    @cached_property
    def takes_nothing(self) -> bool:
        """Whether this is a function without parameters: no value of any step reaches it."""
        return self.kind == "function" and not self.params and not self.provided

    @cached_property
    def is_async(self) -> bool:
        """Whether the body is awaited: an async function, or a cell that awaits something."""
        if self.function is not None:
            return inspect.iscoroutinefunction(self.function)
        tree = _parse(self.name, self.source)
        if self.kind == "cell":
            return any(_awaits(node) for node in own_nodes(tree.body))
        return isinstance(_definition_named(self.name, self.source), ast.AsyncFunctionDef)

    # -- making -----------------------------------------------------------------------------

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> PythonBody:
        """The body that calls ``function`` with the values of the steps its parameters name.

        Raises:
            DefinitionError: It is no plain sync or async function, or has parameters without a
                name of their own (``*args``, ``**kwargs``, positional-only).
        """
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            raise DefinitionError(
                f"A Python step must be a function, not {type(function).__name__} ({function!r}). "
                "Wrap it: def step(load): return ..."
            )
        name = function.__name__
        code = function.__code__
        if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
            raise DefinitionError(_no_yield(f"function {name!r}", code.co_firstlineno))
        params, optional = _parameters_of(function)
        source, node = _read(function)
        # The bytecode of a lambda names attributes as well: too many names do no harm.
        names, quoted = (frozenset(code.co_names), _NONE) if node is None else _names(node, source)
        body = cls(
            source=source,
            kind="function",
            name=name,
            params=tuple(param for param in params if param not in PROVIDED),
            optional=frozenset(optional) - PROVIDED,
            names=names,
            quoted=quoted,
            provided=PROVIDED.intersection(params),
            function=function,
        )
        if node is not None:
            body.__dict__["summary"] = _summary(name, node)  # it is parsed now, and will not be later
        return body

    @classmethod
    def from_cell(cls, name: str, source: str) -> PythonBody:
        """The body that runs a cell: its last expression, or what it returns, is the value.

        Raises:
            DefinitionError: It is not plain Python, holds no code, or uses what a step cannot.
        """
        tree = _parse(name, source)
        _check_cell(name, source, tree)
        names = free_names(tree.body)
        quoted = names - free_names(tree.body, quoted=False) - PROVIDED
        body = cls(source, "cell", name, names=names - PROVIDED, quoted=quoted, provided=names & PROVIDED)
        body.compile(())
        return body

    # -- running ----------------------------------------------------------------------------

    @property
    def filename(self) -> str:
        """What tracebacks call a body that was compiled here."""
        return f"<step {self.name}>"

    def compile(self, inputs: Sequence[str]) -> CodeType:
        """Code that defines the function to call: :data:`CELL_FUNCTION` with ``inputs`` as its
        parameters for a cell, else the function by its own name.

        Raises:
            DefinitionError: The text is not valid Python.
        """
        tree = _parse(self.name, self.source)
        if self.kind == "cell":
            tree = _as_function(tree, inputs)
        try:
            return compile(tree, self.filename, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise _not_valid(self.name, self.source, error) from None

    # -- reading ----------------------------------------------------------------------------

    @cached_property
    def summary(self) -> str:
        """The first line of the docstring or of the leading comment, else ``Python step NAME``."""
        if self.kind == "function":
            return _summary(self.name, _definition(self.source))
        text = ast.get_docstring(_parse(self.name, self.source)) or _first_comment(self.source)
        return _first_line(text) or f"Python step {self.name}"

    def unseen_queries(self, namespace: Mapping[str, Any]) -> list[str]:
        """Calls of ``query`` and ``eval`` with what is neither a text of the body's own nor one of the
        namespace, such as ``frame.query(words)``: names behind ``@`` in it cannot be seen."""
        texts = [name for name, value in namespace.items() if isinstance(value, str)]
        return unseen_queries(_parse(self.name, self.source).body, texts) if self.source else []

    def normalised(self) -> str:
        """The code without positions, comments and docstrings: equal for bodies that do the same
        by their text. For a function without source, its bytecode."""
        return self._normalised

    @cached_property
    def _normalised(self) -> str:
        node = _definition(self.source) if self.kind == "function" else None
        if self.kind == "function" and node is None:
            return BYTECODE + repr(_code_parts(inspect.unwrap(self._callable()).__code__))
        # A function has been read already; what is around it, if anything, is a cell's.
        return dump(_parse(self.name, self.source) if node is None else ast.Module([node], []))

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, str]:
        """The body as plain data: its kind, name and source.

        Raises:
            EncodeError: The function cannot be rebuilt from its source; the message says why.
        """
        if self.function is not None:
            problem = _cannot_rebuild(self.function, self.source)
            if problem:
                raise EncodeError(f"steps.{self.name}.body", problem)
        return {"kind": self.kind, "name": self.name, "source": self.source}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PythonBody:
        """Rebuild a body from :meth:`to_dict`. Runs nothing of its source.

        Raises:
            DefinitionError: The data is not what :meth:`to_dict` writes.
        """
        kind, name, source = data.get("kind"), data.get("name"), data.get("source")
        if not isinstance(name, str) or not isinstance(source, str) or kind not in ("function", "cell"):
            raise DefinitionError(
                f"Python body {str(data)[:80]!r} cannot be read: it needs 'kind' (function or cell), "
                "'name' and 'source', all text."
            )
        if kind == "cell":
            return cls.from_cell(name, source)
        node = _definition_named(name, source)
        params, optional = _parameters(name, _signature_of(node))
        names, quoted = _names(node, source)
        return cls(
            source=source,
            kind="function",
            name=name,
            params=tuple(param for param in params if param not in PROVIDED),
            optional=frozenset(optional) - PROVIDED,
            names=names,
            quoted=quoted,
            provided=frozenset(params) & PROVIDED,
        )

    def _callable(self) -> Callable[..., Any]:
        # Without source there is always the function: from_dict demands source.
        assert self.function is not None
        return self.function


# -- functions --------------------------------------------------------------------------------


def _parameters(name: str, parameters: Iterable[inspect.Parameter]) -> tuple[list[str], list[str]]:
    names, optional = [], []
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DefinitionError(
                f"Function {name!r}: the parameter {parameter} does not name a step. Use plain parameters, "
                "each named like the step it reads."
            )
        names.append(parameter.name)
        if parameter.default is not parameter.empty:
            optional.append(parameter.name)
    return names, optional


def _signature_of(node: _Definition) -> list[inspect.Parameter]:
    """The parameters of a function that exists as text only; defaults are ``...``."""
    args, kinds = node.args, inspect.Parameter
    parameters = [kinds(arg.arg, kinds.POSITIONAL_ONLY) for arg in args.posonlyargs]
    parameters += [kinds(arg.arg, kinds.POSITIONAL_OR_KEYWORD) for arg in args.args]
    first_default = len(parameters) - len(args.defaults)
    parameters[first_default:] = [parameter.replace(default=...) for parameter in parameters[first_default:]]
    if args.vararg:
        parameters.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parameters.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else ...))
    if args.kwarg:
        parameters.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    return parameters


def _parameters_of(function: Callable[..., Any]) -> tuple[Sequence[str], Sequence[str]]:
    """Names of a function's parameters, and of those that have a default."""
    code = function.__code__
    strange = code.co_posonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    if strange or not isinstance(function, FunctionType) or function.__dict__:
        return _parameters(function.__name__, inspect.signature(function).parameters.values())
    # A plain function says it by itself.
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    first_default = code.co_argcount - len(function.__defaults__ or ())
    return names, [*names[first_default : code.co_argcount], *(function.__kwdefaults__ or ())]


def _names(node: _Definition, source: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names that a function reads from outside itself, and those of them that only stand in texts."""
    if source.isascii() and not any(word in source for word in QUERIES):
        return free_names([node], quoted=False), _NONE
    names = free_names([node])
    return names, names - free_names([node], quoted=False)


def source_of(function: Callable[..., Any]) -> str:
    """The function's text without the decorators that the caller's ``@pipeline.task`` brings."""
    return _read(function)[0]


def _read(function: Callable[..., Any]) -> tuple[str, _Definition | None]:
    """The text of :func:`source_of`, and the definition that it is: ``None`` for a lambda."""
    text, node, line = _found_in_file(function) or _cut_out(function)
    if node is None:
        return text, None  # a lambda, shown and never rebuilt; or there is no text
    decorators = node.decorator_list
    inner = decorators
    for index, decorator in enumerate(decorators):
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Attribute) and target.attr == "task":
            inner = decorators[index + 1 :]
    if inner is not decorators:
        node = copy.copy(node)
        node.decorator_list = inner
    start = min([node.lineno, *(decorator.lineno for decorator in inner)])
    return (text if start == line else text.split("\n", start - line)[-1]), node


def _cut_out(function: Callable[..., Any]) -> tuple[str, _Definition | None, int]:
    """A function's text as Python itself finds it, what it defines, and the number of its first line."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return "", None, 1  # the last two: its file is another by now
    return text, _definition(text), 1


_FILES: dict[str, tuple[list[str], dict[int, _Definition]]] = {}
"""Lines of the files that were read last, and the functions at their margin by their first line."""
_MOST_FILES = 4


def _found_in_file(function: Callable[..., Any]) -> tuple[str, _Definition, int] | None:
    """As :func:`_cut_out`, with one parse for all functions of a file; ``None`` where that may differ."""
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    lines, definitions = _definitions(code.co_filename, getattr(inner, "__globals__", {}))
    first = code.co_firstlineno
    node = definitions.get(first)
    if node is None or node.name != code.co_name or not lines[first - 1].startswith(("def", "async", "@")):
        return None
    assert node.end_lineno is not None
    last, body = node.end_lineno, node.body[0]
    if not lines[body.lineno - 1][: body.col_offset].strip():
        # Comments behind the last statement, as deep as the first, belong to the function.
        for number in range(last, len(lines)):
            after = lines[number].lstrip()
            if after and not after.startswith("#"):
                break
            if after and len(lines[number]) - len(after) >= body.col_offset:
                last = number + 1
    text = "".join(lines[first - 1 : last])
    # A line of blanks alone would be emptied, in texts of several lines too.
    return None if _BLANKS.search(text) else (text, node, first)


def _definitions(filename: str, namespace: dict[str, Any]) -> tuple[list[str], dict[int, _Definition]]:
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, namespace)
    file = _FILES.get(filename)
    if file is not None and file[0] is lines:  # of a file that was changed, there are new lines
        return file
    try:
        statements = ast.parse("".join(lines)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        statements = []
    functions = [node for node in statements if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    file = lines, {min(part.lineno for part in [node, *node.decorator_list]): node for node in functions}
    while len(_FILES) >= _MOST_FILES:
        _FILES.pop(next(iter(_FILES), ""), None)  # another thread may do the same
    _FILES[filename] = file
    return file


def _summary(name: str, node: _Definition | None) -> str:
    """The first line of a function's docstring, else a name for it."""
    first = None if node is None else node.body[0]
    value = first.value if isinstance(first, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
    return _first_line(text.expandtabs()) or f"Python step {name}"


def _first_line(text: str) -> str:
    """The first line that is not blank; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _definition(source: str) -> _Definition | None:
    """The function definition that ``source`` is, or ``None`` for a lambda and its surroundings."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    first = tree.body[0] if len(tree.body) == 1 else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _definition_named(name: str, source: str) -> _Definition:
    node = _definition(source)
    if node is None or node.name != name:
        raise DefinitionError(
            f"Python body {name!r} cannot be read: its source must be one definition, 'def {name}(...):'."
        )
    for inner in own_nodes(node.body):
        if isinstance(inner, ast.Yield | ast.YieldFrom):
            raise DefinitionError(_no_yield(f"function {name!r}", inner.lineno))
    return node


def _cannot_rebuild(function: Callable[..., Any], source: str) -> str:
    """Why a function's source does not make the same function again; empty if it does."""
    inner = inspect.unwrap(function)
    name = function.__name__
    if name == "<lambda>":
        return "a lambda cannot be stored. Write it as a function with def."
    if inspect.ismethod(function):
        return f"method {name!r} is bound to an object and cannot be stored. Write it as a plain function."
    if not source:
        return f"the source of function {name!r} is not known. Define it in a file or a notebook cell."
    captured = getattr(inner, "__code__").co_freevars  # noqa: B009 - mypy knows no __code__ on Callable
    if captured:
        return (
            f"function {name!r} uses {', '.join(map(repr, captured))} of the function around it, which "
            "cannot be stored. Pass it as shared context or by a step, or make it global."
        )
    return ""


def _code_parts(code: CodeType) -> tuple[Any, ...]:
    """What a code object does, without where it stands."""
    constants = [
        _code_parts(constant) if isinstance(constant, CodeType) else _constant(constant)
        for constant in code.co_consts
    ]
    return code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars


def _constant(value: Any) -> str:
    # A set of texts has another order in every process.
    return f"frozenset({sorted(map(_constant, value))})" if isinstance(value, frozenset) else repr(value)


# -- cells ------------------------------------------------------------------------------------


def _parse(name: str, source: str) -> ast.Module:
    try:
        return ast.parse(source, f"<step {name}>")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _not_valid(name, source, error) from None


def _not_valid(name: str, source: str, error: Exception) -> DefinitionError:
    line = getattr(error, "lineno", None) or 0
    lines = source.splitlines()
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    where = f"Step {name!r}, line {line}" if line else f"Step {name!r}"
    if _NOT_PYTHON.search(text):
        return DefinitionError(
            f"{where}: {text!r} is a magic, shell or help line, which only the notebook itself understands. "
            "Take it out of the step, or run it in a cell of its own."
        )
    what = getattr(error, "msg", None) or str(error) or type(error).__name__
    if "import *" in what:
        what += ". Import the names that you need"
    return DefinitionError(f"{where}: this is not valid Python: {what}." + (f"\n    {text}" if text else ""))


def _check_cell(name: str, source: str, tree: ast.Module) -> None:
    if not tree.body:
        raise DefinitionError(
            f"Step {name!r}: the cell has only comments. Write an expression, or return a value."
        )
    lines = source.splitlines()
    for node in own_nodes(tree.body):
        if isinstance(node, ast.Yield | ast.YieldFrom):
            raise DefinitionError(_no_yield(f"Step {name!r}", node.lineno))
        if isinstance(node, ast.Global):
            raise DefinitionError(
                f"Step {name!r}, line {node.lineno}: {lines[node.lineno - 1].strip()!r} would change the "
                "notebook from inside a step. Return the value instead."
            )


def _no_yield(where: str, line: int) -> str:
    return f"{where}, line {line}: a step has one value and cannot yield. Build a list and return it."


def _as_function(tree: ast.Module, inputs: Sequence[str]) -> ast.Module:
    """The cell as one function whose parameters are ``inputs`` and whose last expression returns."""
    future = [
        statement
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    ]
    body = [statement for statement in tree.body if statement not in future] or [
        ast.Pass(lineno=1, col_offset=0)
    ]
    last = body[-1]
    if isinstance(last, ast.Expr):
        body[-1] = ast.copy_location(ast.Return(last.value), last)
    is_async = any(_awaits(node) for node in own_nodes(body))
    shell = ast.parse(f"{'async ' if is_async else ''}def {CELL_FUNCTION}({', '.join(inputs)}): pass")
    definition = shell.body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.body = body
    return ast.Module([*future, definition], [])


def _awaits(node: ast.AST) -> bool:
    return isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) or (
        isinstance(node, ast.comprehension) and bool(node.is_async)
    )


def _first_comment(source: str) -> str:
    """The comment that the text begins with, without its mark; empty if it begins with code."""
    lines = (line.strip() for line in source.splitlines())
    comments = takewhile(lambda line: not line or line.startswith("#"), lines)
    texts = (comment.lstrip("#").strip() for comment in comments)
    return next((text for text in texts if text and not text.startswith("%%")), "")
