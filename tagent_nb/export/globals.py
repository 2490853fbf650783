"""The globals that a pipeline's Python needs, written as Python: imports, definitions and values."""

from __future__ import annotations
import __future__

import ast
import builtins
import datetime
import inspect
import linecache
import pathlib
import pprint
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from tagent_nb.pipeline import free_names, source_of
from tagent_nb.redaction import held_secret

PACKAGE: Any = sys.modules[__name__.partition(".")[0]]
"""tagent_nb itself: a module that is written has the names that it offers to everybody."""

LONGEST_VALUE = 20_000
"""Characters of a value that is written into a module. Larger ones belong into a file that a step reads."""

_EXACT = (str, bytes, bool, int, type(None))
_FUTURE = __future__.annotations.compiler_flag
_KNOWN: Mapping[str, ModuleType] = {"datetime": datetime, "re": re, "typing": typing}
_Named = type | FunctionType | BuiltinFunctionType


class Surroundings:
    """Collects what names stand for, each before what needs it.

    Attributes:
        imports: Import statements.
        definitions: Functions, classes and values, in an order in which they can be executed.
        problems: What cannot be written, by name.
        future: Whether annotations must stay text, as they were where the code came from.
    """

    def __init__(self) -> None:
        self.imports: dict[str, None] = {}
        self.definitions: list[str] = []
        self.problems: dict[str, str] = {}
        self.future = False
        self._known: dict[str, Any] = {}

    def reserve(self, name: str, value: Any) -> None:
        """Say that ``name`` is defined elsewhere in the module."""
        self._known[name] = value

    def names(self, names: Iterable[str], namespace: Mapping[str, Any]) -> None:
        """Add what code that reads ``names`` finds in ``namespace``; what is not there is left out."""
        for name in sorted(names):
            if name in namespace:
                self.name(name, namespace[name])
            elif name == "display":
                # A notebook has it built in; a script has not.
                self.imports["from IPython.display import display"] = None
            elif name == "get_ipython":
                self.problems[name] = "only a notebook has it; leave it out of steps"

    def code(self, source: str, namespace: Mapping[str, Any]) -> None:
        """Add what a piece of source reads."""
        tree = ast.parse(source)
        self.names(free_names(tree.body) | _quoted(tree), namespace)

    def name(self, name: str, value: Any) -> None:
        """Add one name."""
        if name in self._known:
            if self._known[name] is not value and self._known[name] != value:
                self.problems[name] = "two different things have this name; rename one of them"
            return
        self._known[name] = value
        if isinstance(value, ModuleType):
            plain = name == value.__name__
            self.imports[f"import {value.__name__}" + ("" if plain else f" as {name}")] = None
        elif isinstance(inspect.unwrap(value) if callable(value) else value, _Named):
            self._named(name, value)
        else:
            self._value(name, value)

    def value(self, path: str, value: Any) -> str:
        """An expression that makes ``value``; what it needs is imported.

        What cannot be written is noted as a problem of ``path``.
        """
        text = _literal(value) or self._constructed(value)
        secret = held_secret(text or "")
        if secret is not None:
            self.problems[path] = (
                f"it holds the value of the environment variable {secret}, which must not stand in a file; "
                f"read it where it is used: os.environ[{secret!r}]"
            )
        if text is None:
            self.problems[path] = (
                f"{_what(value)} cannot be written as Python; make it in a Python step, "
                "or read it from a file"
            )
            return "None"
        if len(text) > LONGEST_VALUE:
            self.problems[path] = f"{len(text):,} characters are too many for a module; read it from a file"
        return text

    # -- kinds of values --------------------------------------------------------------------

    def _value(self, name: str, value: Any) -> None:
        before = len(self.problems)
        text = self.value(name, value)
        if len(self.problems) == before:
            self.definitions.append(f"{name} = {text}")

    def _constructed(self, value: Any) -> str | None:
        """What the ``repr`` of some types of the standard library says, if that makes an equal value."""
        if isinstance(value, pathlib.PurePath):
            self.imports["import pathlib"] = None
            kind = type(value).__name__.removeprefix("Posix").removeprefix("Windows")
            return f"pathlib.{kind}({str(value)!r})"
        home = type(value).__module__.partition(".")[0]
        module = home if home in _KNOWN else ""
        if not module:
            return None
        text = repr(value)
        try:
            equal = eval(text, {"__builtins__": vars(builtins), **_KNOWN}) == value
        except Exception:  # a repr that is no expression, or that names the user's own classes
            return None
        if not equal:
            return None
        self.imports[f"import {module}"] = None
        return text

    def _named(self, name: str, value: Any) -> None:
        """A function or a class: imported where that works, else by its source."""
        home = home_of(value)
        if home is not None:
            alias = "" if value.__qualname__ == name else f" as {name}"
            self.imports[f"from {home} import {value.__qualname__}{alias}"] = None
            return
        try:
            source = class_source(value) if isinstance(value, type) else function_source(value)
        except LookupError as error:
            self.problems[name] = str(error)
            return
        inner = inspect.unwrap(value)
        spaces = vars(sys.modules.get(value.__module__, ModuleType("")))
        self.future = self.future or _is_future(inner)
        self.code(source, getattr(inner, "__globals__", spaces))
        self.definitions.append(source)
        if value.__name__ not in (name, "<lambda>"):
            self.definitions.append(f"{name} = {value.__name__}")


def home_of(value: Any) -> str | None:
    """The module that ``value`` can be imported from by its own name; ``None`` if it must be written out."""
    name, module = value.__qualname__, value.__module__
    if name in PACKAGE.__all__ and getattr(PACKAGE, name) is value:
        return str(PACKAGE.__name__)
    if module in (None, "__main__"):
        return None
    # Where its package offers it, that is the name people know: pydantic, not pydantic.main.
    places = (module.partition(".")[0], module)
    return next((place for place in places if getattr(sys.modules.get(place), name, None) is value), None)


def _is_future(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return bool(value.__code__.co_flags & _FUTURE)
    annotations = inspect.get_annotations(value)
    return bool(annotations) and all(isinstance(text, str) for text in annotations.values())


def _quoted(tree: ast.Module) -> frozenset[str]:
    """Names inside annotations that are written as text, such as ``"Review"``."""
    words: set[str] = set()
    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
        for part in ast.walk(annotation) if annotation is not None else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                words |= set(re.findall(r"[^\W\d]\w*", part.value))
    return frozenset(words)


def _literal(value: Any) -> str | None:
    """Python's own notation of a value; ``None`` if it has none, or it would come back as another type."""
    if not _is_plain(value):
        return None
    text = repr(value) if isinstance(value, _EXACT) else pprint.pformat(value, width=96, sort_dicts=False)
    try:
        return text if ast.literal_eval(text) == value else None
    except (ValueError, SyntaxError, RecursionError):  # a container inside itself, or one too deep
        return None


def _is_plain(value: Any) -> bool:
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if type(part) in _EXACT or (type(part) is float and part - part == 0):
            continue
        if type(part) not in (list, tuple, dict, set):
            return False
        if id(part) not in seen:
            seen.add(id(part))
            waiting.extend([*part, *part.values()] if type(part) is dict else part)
    return True


def _what(value: Any) -> str:
    kind = type(value)
    return f"a value of type {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


# -- sources ------------------------------------------------------------------------------------


def function_source(function: Callable[..., Any]) -> str:
    """The definition of a function, without the decorators that make it a step.

    Raises:
        LookupError: It has none, or cannot be moved; the message says why.
    """
    inner = inspect.unwrap(function)
    captured = inner.__code__.co_freevars if isinstance(inner, FunctionType) else ()
    if captured:
        raise LookupError(f"it uses {', '.join(map(repr, captured))} of the function around it")
    source = source_of(function).strip("\n")
    statement = _only_statement(source)
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return source
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Lambda):
        return source
    raise LookupError("its source is not known; define it with def in a cell or a file")


def class_source(kind: type) -> str:
    """The definition of a class, also of one that a notebook's cell defined.

    Raises:
        LookupError: It is not known.
    """
    # Before Python 3.13 inspect knows classes of files only; cells are in linecache, the newest last.
    pieces = [*_from_inspect(kind), *_from_cells(kind)]
    for source in pieces:
        statement = _only_statement(source)
        if isinstance(statement, ast.ClassDef) and _is_of(kind, statement):
            return source
    raise LookupError("its source is not known; define the class in a cell or a file")


def _from_inspect(kind: type) -> Sequence[str]:
    try:
        return [textwrap.dedent(inspect.getsource(kind)).strip("\n")]
    except (OSError, TypeError):
        return []


def _from_cells(kind: type) -> Iterable[str]:
    for filename, entry in reversed(list(linecache.cache.items())):
        # Files are inspect's business; an entry of one item is a file that has not been read yet.
        if len(entry) == 1 or pathlib.Path(filename).is_file():
            continue
        lines = list(entry[2])
        try:
            tree = ast.parse("".join(lines))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield textwrap.dedent("".join(lines[start - 1 : node.end_lineno])).strip("\n")


def _only_statement(source: str) -> ast.stmt | None:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return None
    return body[0] if len(body) == 1 else None


def _is_of(kind: type, node: ast.ClassDef) -> bool:
    """Whether this text can be the class: it annotates the same fields and defines the same functions."""
    targets = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
    fields = {target.id for target in targets if isinstance(target, ast.Name)}
    functions = [part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
    return (
        node.name == kind.__name__
        and fields == set(inspect.get_annotations(kind))
        and all(hasattr(kind, name) for name in functions)
    )
