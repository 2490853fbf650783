"""What a piece of Python depends on besides its own text: functions, classes, values, packages.

Functions are compared by the code that is loaded, never by their file: a module that was edited
after its import still runs its old code, and its answers must not be filed under the new text.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Flag
from importlib import import_module
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from tagent_nb.cache.fingerprint.bytecode import Reads, code_digest, code_reads, quotes, rebound_names
from tagent_nb.cache.fingerprint.classes import annotation_text, hidden_parts, type_of, type_text, types_of
from tagent_nb.cache.fingerprint.modules import (
    files_of,
    is_user_class,
    is_user_module,
    package_of,
    package_version,
)
from tagent_nb.cache.fingerprint.values import (
    BY_TYPE,
    MAX_ENTRIES,
    Memo,
    bound_to,
    described,
    digest_of,
    fields_beside,
    is_constant,
    is_native,
    named,
    parts_of,
    value_digest,
    value_text,
)
from tagent_nb.pipeline import quoted_attributes, quoted_names
from tagent_nb.serde import fields_of_class, in_order, parts_of_type

__all__ = ["DependencySearch", "Memo", "class_digest", "value_text"]

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
"""Types of values that are nothing but values."""

ABSENT = "absent"
"""Stands for a name that is not defined when the step is looked at."""


# -- the search -----------------------------------------------------------------------------


class DependencySearch:
    """Collects, by name, digests of all that a body of Python refers to.

    Args:
        home: Namespace whose names are reported bare; those of other modules get their module's.
        memo: Digests of values that several searches share.
        documented: Whether docstrings and descriptions of models count, which a model or a program may read.
    """

    def __init__(self, home: Mapping[str, Any], memo: Memo, *, documented: bool = True) -> None:
        self.components: dict[str, str] = {}
        self._fixed: dict[str, str] = {}
        self._rebound: set[str] = set()
        # Names behind ``@`` in texts, with where to look them up, and whether anything asks pandas for such.
        self._quoted: list[tuple[frozenset[str], Mapping[str, Any]]] = []
        self._queries = False
        self._home = home
        self._memo = memo
        self._documented = documented
        self._seen: dict[int, Any] = {}
        # Attributes of functions, which may hold the function again.
        self._looked: set[tuple[int, str]] = set()
        self._todo: deque[tuple[str, Any, frozenset[str]]] = deque()

    def follow_function(self, function: Any) -> None:
        """Search what a step's function refers to; its innermost code is the step's own text."""
        if isinstance(function, MethodType):
            self._todo.append(("self", function.__self__, frozenset()))
            function = function.__func__
        while isinstance(function, FunctionType):
            self._seen[id(function)] = function
            inner = getattr(function, "__wrapped__", None)
            home = function.__globals__.get("__name__")
            if not is_user_module(home):
                self._package(home)
            else:
                if inner is not None:
                    self._note(f"function:{function.__code__.co_qualname}", code_digest(function.__code__))
                self._function_reads("", function)
            function = inner
        self._work_off()

    @property
    def fixed(self) -> dict[str, str]:
        """Of all that was found, what code does not change by running: methods, and constants that no code
        that was found gives another value, such as the text that a function of a model answers with.
        """
        return {
            name: text
            for name, text in self._fixed.items()
            if name.rpartition(".")[2].partition("[")[0] not in self._rebound
        }

    def follow_value(self, label: str, value: Any) -> None:
        """Search a value that is reported as ``label``, and all it refers to."""
        self._todo.append((label, value, frozenset()))
        self._work_off()

    def follow_reads(self, reads: Reads, namespace: Mapping[str, Any], skip: Iterable[str] = ()) -> None:
        """Search what code with these ``reads`` sees in ``namespace``; ``skip`` names its inputs."""
        names, quoted = (some - frozenset(skip) for some in (reads.names, reads.quoted))
        self._names(Reads(names, reads.attributes, reads.imports, quoted), namespace)
        self._work_off()

    def follow_signature(self, label: str, function: Any) -> dict[str, str]:
        """Search the types of a function's parameters, which a model that calls it is shown.

        Returns:
            Their texts by name.
        """
        names = getattr(inspect.unwrap(function), "__globals__", {}), self._home
        annotations = {}
        for name, raw in getattr(function, "__annotations__", {}).items():
            meant = type_of(raw, *names)
            annotations[name] = raw if isinstance(raw, str) else annotation_text(raw, meant)
            text = type_text(meant)
            if isinstance(raw, str) and ("Literal[" in text or "Annotated[" in text):
                annotations[f"{name} means"] = text
            self._annotation(f"{label}.{name}", meant)
        self._work_off()
        return annotations

    def _work_off(self) -> None:
        # A queue, not recursion: helpers may call each other in chains of any length.
        while self._todo or (self._queries and self._quoted):
            if self._todo:
                label, value, attributes = self._todo.popleft()
                self._look_at(label, value, attributes)
            else:
                names, namespace = self._quoted.pop()
                attributes = names - namespace.keys()
                self._names(Reads(names & namespace.keys(), attributes), namespace)

    def _names(self, reads: Reads, namespace: Mapping[str, Any]) -> None:
        self._queries = self._queries or reads.queries
        quoted = {name for name in reads.quoted if name in namespace}
        if reads.queries:
            texts = [namespace[name] for name in reads.names if isinstance(namespace.get(name), str)]
            more = {name for text in texts for name in quoted_names(text) if name in namespace}
            attributes = reads.attributes.union(*map(quoted_attributes, texts))
            reads, quoted = Reads(reads.names, attributes, reads.imports), quoted | more
        for name in sorted(reads.names | quoted):
            label = name if namespace is self._home else f"{namespace.get('__name__', '?')}.{name}"
            if name in namespace:
                self._todo.append((label, namespace[name], reads.attributes))
            elif not hasattr(builtins, name):
                self._note(f"global:{label}", ABSENT)
        for name in sorted(reads.imports):
            self._imported(name, reads.attributes)

    def _imported(self, name: str, attributes: frozenset[str]) -> None:
        if not is_user_module(name):
            self._package(name)
            return
        module = _loaded(name)
        if module is not None:
            self._todo.append((name, module, attributes))
        else:
            self._note(f"module:{name}", _file_digest(name))

    def _note(self, name: str, text: str) -> None:
        before = self.components.get(name, text)
        self.components[name] = text if before == text else digest_of(before, text)

    def _package(self, module: object) -> None:
        top = package_of(module)
        if top:
            self.components.setdefault(f"package:{top}", package_version(top))

    def _refer(self, label: str, kind: type) -> None:
        """A class that is not reached by a name that could come to mean another."""
        if is_user_class(kind):
            self._todo.append((label, kind, frozenset()))
        else:
            self._package(kind.__module__)

    # -- kinds of things --------------------------------------------------------------------

    def _look_at(self, label: str, value: Any, attributes: frozenset[str]) -> None:
        if type(value) in _PLAIN:
            self._value(label, value, attributes)
        elif isinstance(value, ModuleType):
            self._module(label, value, attributes)
        elif isinstance(value, FunctionType):
            self._function(label, value, attributes)
        elif isinstance(value, MethodType):
            self._todo += [(label, value.__func__, attributes), (f"{label}.self", value.__self__, attributes)]
        elif isinstance(value, type):
            self._class(label, value)
        elif isinstance(value, functools.partial):
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
            self._todo += [(f"{label}.{name}", part, attributes) for name, part in parts.items()]
        elif isinstance(inspect.getattr_static(value, "__wrapped__", None), FunctionType):
            self._todo.append((label, value.__wrapped__, attributes))
            # A decorator that is a class of the user's: what it remembers meanwhile does not count.
            if is_user_class(type(value)):
                self._todo.append((type(value).__name__, type(value), frozenset()))
        elif is_native(value):
            self._native(label, value, attributes)
        else:
            self._value(label, value, attributes)

    def _module(self, label: str, module: ModuleType, attributes: frozenset[str]) -> None:
        if not is_user_module(module.__name__):
            # One name may come to mean another module, of Python or of the same package.
            if module.__name__ not in (label, package_of(module.__name__)):
                self._note(f"global:{label}", named(module))
            return self._package(module.__name__)
        if not self._is_new(module):
            return None
        inside = vars(module)
        for name in sorted(attributes & inside.keys()):
            label = name if inside is self._home else f"{module.__name__}.{name}"
            self._todo.append((label, inside[name], attributes))
        return None

    def _native(self, label: str, function: Any, attributes: frozenset[str]) -> None:
        own = bound_to(function)
        if own is None:
            self._package(getattr(function, "__module__", None))
            self._note(f"global:{label}", named(function))
        else:
            self._note(f"global:{label}", f"named {function.__qualname__}")
            self._todo.append((f"{label}.self", own, attributes))

    def _function(self, label: str, function: FunctionType, attributes: frozenset[str]) -> None:
        own = vars(function)
        for name in sorted(attributes & own.keys()):
            if (id(function), name) not in self._looked:
                self._looked.add((id(function), name))
                self._todo.append((f"{label}.{name}", own[name], attributes))
        home = function.__globals__.get("__name__")
        if not is_user_module(home):
            self._package(home)
            self._note(f"global:{label}", named(function))
            # A decorator of a package still holds the user's function; singledispatch, several.
            inner = getattr(function, "__wrapped__", None)
            values = {label: inner} if inner is not None else {}
            for kind, value in dict(getattr(function, "registry", {})).items():
                values[f"{label}[{getattr(kind, '__name__', kind)}]"] = value
            self._todo += [(name, value, frozenset()) for name, value in values.items()]
        elif self._is_new(function):
            self._note(f"function:{label}", code_digest(function.__code__))
            self._function_reads(label, function)

    def _function_reads(self, label: str, function: FunctionType) -> None:
        before = f"{label}." if label else ""
        code = function.__code__  # once: Python reports each reading of it to audit hooks
        reads = code_reads(code)
        self._rebound |= rebound_names(code)
        quoted = quotes(code)
        if quoted:
            self._quoted.append((quoted, function.__globals__))
        self._names(reads, function.__globals__)
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            try:
                self._todo.append((f"{before}{name}", cell.cell_contents, reads.attributes))
            except ValueError:  # the variable is not set yet
                self._note(f"global:{before}{name}", ABSENT)
        defaults = {**(function.__kwdefaults__ or {})}
        named = code.co_varnames[: code.co_argcount]
        values = function.__defaults__ or ()
        defaults.update(zip(named[len(named) - len(values) :], values, strict=True))
        for name, value in defaults.items():
            self._todo.append((f"{before}{name}", value, reads.attributes))

    def _class(self, label: str, kind: type) -> None:
        if not is_user_class(kind):
            self._note(f"global:{label}", named(kind))
            return self._package(kind.__module__)
        if not self._is_new(kind):
            return None
        parts: dict[str, str] = {"name": kind.__name__, "schema": _json_schema(kind, self._documented)}
        if len(kind.__bases__) > 1:  # which of them is asked first for a method
            parts["bases"] = ",".join(base.__name__ for base in kind.__bases__)
        for base in (*kind.__bases__, type(kind)):
            parts[f"base {base.__name__}"] = ""
            self._refer(base.__name__, base)
        for name, raw, meant in types_of(kind, self._home):
            parts[f"annotation {name}"] = annotation_text(raw, meant, self._documented)
            self._annotation(f"{label}.{name}", meant)
        for name, field in fields_of_class(kind).items():  # those of a generic class have other types in each
            self._annotation(f"{label}.{name}", getattr(field, "annotation", None))
        for name, value in vars(kind).items():
            if name == "_value2member_map_" and issubclass(kind, Flag):
                continue  # it gets combinations of the members as they are used
            functions = list(_functions_of(value))
            for function in functions:
                self._is_new(function)
                self._function_reads(f"{label}.{name}", function)
            if functions:
                parts[name] = ",".join(code_digest(function.__code__) for function in functions)
                self._fixed[f"{label}.{name}"] = parts[name]
            elif not (name.startswith("__") and name.endswith("__")):
                self._quote(value)
                if is_user_class(type(value)):
                    self._todo.append((type(value).__name__, type(value), frozenset()))
                parts[name], code = value_digest(value, self._memo)
                self._todo += [(called, referred, frozenset()) for called, referred in code]
                if parts[name].startswith(BY_TYPE) and parts_of(value) is not None:
                    self._todo.append((f"{label}.{name}", value, frozenset()))
        for name, value in hidden_parts(kind):
            parts[f"({name})"], code = described(value)
            self._todo += [(called, referred, frozenset()) for called, referred in code]
        self._note(f"class:{label}", digest_of(*(f"{name}={parts[name]}" for name in sorted(parts))))
        return None

    def _annotation(self, label: str, annotation: Any) -> None:
        """Classes and validators that a field's type names."""
        for part in parts_of_type(annotation):
            function = getattr(part, "func", None)
            if isinstance(part, type):
                self._refer(part.__name__, part)
            elif isinstance(function, FunctionType):
                self._todo.append((f"{label}.{function.__name__}", function, frozenset()))
            else:
                self._todo += [(called, referred, frozenset()) for called, referred in described(part)[1]]

    def _value(self, label: str, value: Any, attributes: frozenset[str]) -> None:
        if is_user_class(type(value)):
            self._todo.append((type(value).__name__, type(value), attributes))
        text, code = value_digest(value, self._memo)
        if is_constant(value):
            self._fixed[label] = text
        self._quote(value)
        self._todo += [(name, part, frozenset()) for name, part in code]
        parts = parts_of(value) if text.startswith(BY_TYPE) else None
        if parts is None:
            parts = fields_beside(value)
            self._note(f"global:{label}", text)
        elif self._is_new(value):
            self._note(f"global:{label}", f"{text} of {len(value)}")
        else:
            return
        self._todo += [(f"{label}{place}", part, attributes) for place, part in parts]

    def _quote(self, value: Any) -> None:
        """Note the names behind ``@`` in a text, and in those of a small table."""
        texts = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else [value]
        )
        for text in texts if len(texts) <= MAX_ENTRIES else ():
            if isinstance(text, str) and "@" in text:
                self._quoted.append((frozenset(quoted_names(text)) | quoted_attributes(text), self._home))

    # -- digests ----------------------------------------------------------------------------

    def _is_new(self, thing: Any) -> bool:
        if id(thing) in self._seen:
            return False
        self._seen[id(thing)] = thing
        return True


def class_digest(kind: type, memo: Memo) -> str:
    """SHA-256 of a class and of all the user's code that it refers to."""
    memoized = memo.get(("class", id(kind)))
    if memoized is not None:
        return str(memoized[1])
    home = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    search = DependencySearch(home, memo)
    search.follow_value(kind.__name__, kind)
    components = {**search.components, "schema": _json_schema(kind, True)}
    text = digest_of(*(f"{name}={components[name]}" for name in sorted(components)))
    memo["class", id(kind)] = (kind, text, ())
    return text


def _json_schema(kind: type, documented: bool) -> str:
    make = getattr(kind, "model_json_schema", None)
    if make is None:
        return ""
    import json

    from pydantic.errors import PydanticUserError

    try:
        schema = in_order(make(), kind)
    except PydanticUserError:
        return ""  # a field of a type that JSON Schema has no word for; annotations still count
    return json.dumps(schema if documented else _undocumented(schema), sort_keys=True, default=repr)


def _undocumented(schema: Any) -> Any:
    """A JSON Schema without the texts in it that are for readers."""
    if isinstance(schema, list):
        return [_undocumented(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    undocumented = {}
    for key, part in schema.items():
        if key in ("properties", "$defs") and isinstance(part, dict):
            undocumented[key] = {name: _undocumented(inner) for name, inner in part.items()}
        elif key in ("default", "const", "enum"):
            undocumented[key] = part
        elif key not in ("description", "title", "examples"):
            undocumented[key] = _undocumented(part)
    return undocumented


def _functions_of(value: Any) -> Iterator[FunctionType]:
    """The user's functions behind what a class has as a method, property or validator."""
    candidates: tuple[Any, ...] = (value,)
    if isinstance(value, property):
        candidates = (value.fget, value.fset, value.fdel)
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        candidates = (value.func,)
    elif isinstance(value, staticmethod | classmethod):
        candidates = (value.__func__,)
    for candidate in candidates:
        if isinstance(candidate, FunctionType):
            functions = {id(each): each for each in (candidate, inspect.unwrap(candidate))}
            yield from (
                each for each in functions.values() if is_user_module(each.__globals__.get("__name__"))
            )


def _loaded(name: str) -> ModuleType | None:
    """A module of the user that a step imports, imported now if it is not loaded; ``None`` if it cannot be.

    A step that runs would import it anyway. Left unloaded it could be compared by its files only: the step
    would have another fingerprint before and after its first run in a kernel.
    """
    module = sys.modules.get(name)
    if module is not None:
        return module
    try:
        return import_module(name)
    except (
        Exception,
        SystemExit,
    ):  # the module is the user's code; the step that imports it says what is wrong
        return None


def _file_digest(module: str) -> str:
    """SHA-256 of the files of a module that cannot be imported."""
    # The top only: looking for a submodule would load its parents.
    places = map(Path, files_of(module.partition(".")[0]))
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))
    if not files:
        return ABSENT
    return digest_of(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
