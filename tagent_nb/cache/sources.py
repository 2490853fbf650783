"""What a piece of Python depends on besides its own text: functions, classes, values, packages.

Functions are compared by the code that is loaded, never by their file: a module that was edited
after its import still runs its old code, and its answers must not be filed under the new text.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import inspect
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, get_args

from tagent_nb.cache.bytecode import Reads, code_digest, code_reads
from tagent_nb.pipeline import codec

ABSENT = "absent"
"""Stands for a name that is not defined when the step is looked at."""

_OWN = __name__.partition(".")[0]
_HEAP_TYPE = 1 << 9
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MOST_ITEMS = 1000

Memo = dict[tuple[str, int], tuple[Any, str]]
"""Digests by kind and ``id`` of the thing, with the thing so that the id stays its own."""


# -- where code comes from ------------------------------------------------------------------


def is_user_module(name: str | None) -> bool:
    """Whether a module is the user's own: neither installed, nor of Python, nor of this package.

    It need not be loaded, and is not loaded here.
    """
    if name is None or name == "__main__":
        return True
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == _OWN:
        return False
    module = sys.modules.get(name) or sys.modules.get(top)
    places = _files_of(top) if module is None else _places(module)
    return not any(map(_is_installed, places))


@functools.lru_cache(maxsize=4096)
def _is_installed(place: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)


def _places(module: ModuleType) -> list[str]:
    file = getattr(module, "__file__", None)
    return [str(one) for one in ([file] if file else getattr(module, "__path__", ()))]


def _files_of(top: str) -> list[str]:
    """Files and folders of a module that is not loaded."""
    try:
        spec = find_spec(top)
    except ValueError:  # somebody put a module without a spec in its place
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return list(places)


def is_user_class(kind: type) -> bool:
    """Whether a class is the user's own."""
    if kind.__module__ == "builtins":
        # What exec defines in a namespace without __name__ says it is built in.
        return bool(kind.__flags__ & _HEAP_TYPE)
    return is_user_module(kind.__module__)


@functools.lru_cache(maxsize=1024)
def package_version(top: str) -> str:
    """The version of the installed package that brings the module ``top``; ``"unknown"`` without one.

    Asked of the installation, not of the module: a step that imports a package itself must have
    the same fingerprint before and after that import.
    """
    from importlib import metadata

    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(top, ())
        return ", ".join(sorted({metadata.version(one) for one in owners})) or "unknown"


# -- the search -----------------------------------------------------------------------------


class Surroundings:
    """Collects, by name, digests of all that a body of Python refers to.

    Args:
        home: Namespace whose names are reported bare; those of other modules get their module's.
        memo: Digests of values that several searches share.
    """

    def __init__(self, home: Mapping[str, Any], memo: Memo) -> None:
        self.found: dict[str, str] = {}
        self._home = home
        self._memo = memo
        self._seen: dict[int, Any] = {}
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

    def follow_value(self, label: str, value: Any) -> None:
        """Search a value that is reported as ``label``, and all it refers to."""
        self._todo.append((label, value, frozenset()))
        self._work_off()

    def follow_reads(self, reads: Reads, namespace: Mapping[str, Any], skip: Iterable[str] = ()) -> None:
        """Search what code with these ``reads`` sees in ``namespace``; ``skip`` names its inputs."""
        self._names(Reads(reads.names - frozenset(skip), reads.attributes, reads.imports), namespace)
        self._work_off()

    def _work_off(self) -> None:
        # A queue, not recursion: helpers may call each other in chains of any length.
        while self._todo:
            label, value, attributes = self._todo.popleft()
            self._look_at(label, value, attributes)

    def _names(self, reads: Reads, namespace: Mapping[str, Any]) -> None:
        for name in sorted(reads.names):
            label = name if namespace is self._home else f"{namespace.get('__name__', '?')}.{name}"
            if name in namespace:
                self._todo.append((label, namespace[name], reads.attributes))
            elif not hasattr(builtins, name):
                self._note(f"global:{label}", ABSENT)
        for name in sorted(reads.imports):
            self._imported(name, reads.attributes)

    def _imported(self, name: str, attributes: frozenset[str]) -> None:
        module = sys.modules.get(name)
        if not is_user_module(name):
            self._package(name)
        elif module is not None:
            self._todo.append((name, module, attributes))
        else:
            self._note(f"module:{name}", _file_digest(name))

    def _note(self, name: str, text: str) -> None:
        before = self.found.get(name, text)
        self.found[name] = text if before == text else _digest_of(before, text)

    def _package(self, module: str | None) -> None:
        top = (module or "").partition(".")[0]
        if top and top not in sys.stdlib_module_names and top != _OWN:
            self.found.setdefault(f"package:{top}", package_version(top))

    # -- kinds of things --------------------------------------------------------------------

    def _look_at(self, label: str, value: Any, attributes: frozenset[str]) -> None:
        if isinstance(value, ModuleType):
            self._module(value, attributes)
        elif isinstance(value, FunctionType):
            self._function(label, value)
        elif isinstance(value, MethodType):
            self._todo += [(label, value.__func__, attributes), (f"{label}.self", value.__self__, attributes)]
        elif isinstance(value, type):
            self._class(label, value)
        elif isinstance(value, functools.partial):
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
            self._todo += [(f"{label}.{name}", part, attributes) for name, part in parts.items()]
        elif isinstance(value, BuiltinFunctionType):
            self._package(value.__module__)
        elif isinstance(inspect.getattr_static(value, "__wrapped__", None), FunctionType):
            self._todo.append((label, value.__wrapped__, attributes))
        else:
            self._value(label, value, attributes)

    def _module(self, module: ModuleType, attributes: frozenset[str]) -> None:
        if not is_user_module(module.__name__):
            return self._package(module.__name__)
        if not self._is_new(module):
            return None
        inside = vars(module)
        for name in sorted(attributes & inside.keys()):
            label = name if inside is self._home else f"{module.__name__}.{name}"
            self._todo.append((label, inside[name], attributes))
        return None

    def _function(self, label: str, function: FunctionType) -> None:
        home = function.__globals__.get("__name__")
        if not is_user_module(home):
            self._package(home)
            # A decorator of a package still holds the user's function.
            inner = getattr(function, "__wrapped__", None)
            if inner is not None:
                self._todo.append((label, inner, frozenset()))
        elif self._is_new(function):
            self._note(f"function:{label}", code_digest(function.__code__))
            self._function_reads(label, function)

    def _function_reads(self, label: str, function: FunctionType) -> None:
        before = f"{label}." if label else ""
        reads = code_reads(function.__code__)
        self._names(reads, function.__globals__)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            try:
                self._todo.append((f"{before}{name}", cell.cell_contents, reads.attributes))
            except ValueError:  # the variable is not set yet
                self._note(f"global:{before}{name}", ABSENT)
        defaults = {**(function.__kwdefaults__ or {})}
        named = function.__code__.co_varnames[: function.__code__.co_argcount]
        given = function.__defaults__ or ()
        defaults.update(zip(named[len(named) - len(given) :], given, strict=True))
        for name, value in defaults.items():
            self._todo.append((f"{before}{name}", value, reads.attributes))

    def _class(self, label: str, kind: type) -> None:
        if not is_user_class(kind):
            return self._package(kind.__module__)
        if not self._is_new(kind):
            return None
        parts: dict[str, str] = {"name": kind.__name__, "schema": _json_schema(kind)}
        for base in kind.__bases__:
            parts[f"base {base.__name__}"] = ""
            self._todo.append((base.__name__, base, frozenset()))
        for name, annotation in inspect.get_annotations(kind).items():
            parts[f"annotation {name}"] = _ADDRESS.sub("", repr(annotation))
            self._annotation(f"{label}.{name}", annotation)
        for name, value in vars(kind).items():
            functions = list(_functions_of(value))
            for function in functions:
                self._is_new(function)
                self._function_reads(f"{label}.{name}", function)
            if functions:
                parts[name] = ",".join(code_digest(function.__code__) for function in functions)
            elif not (name.startswith("__") and name.endswith("__")):
                parts[name] = self._digest(value)
        self._note(f"class:{label}", _digest_of(*(f"{name}={parts[name]}" for name in sorted(parts))))
        return None

    def _annotation(self, label: str, annotation: Any) -> None:
        """Classes and validators that a field's type names."""
        if isinstance(annotation, type):
            self._todo.append((annotation.__name__, annotation, frozenset()))
        function = getattr(annotation, "func", None)
        if isinstance(function, FunctionType):
            self._todo.append((f"{label}.{function.__name__}", function, frozenset()))
        for inner in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
            self._annotation(label, inner)

    def _value(self, label: str, value: Any, attributes: frozenset[str]) -> None:
        if is_user_class(type(value)):
            self._todo.append((type(value).__name__, type(value), attributes))
        text = self._digest(value)
        if text.startswith("type ") and isinstance(value, dict | list | tuple) and len(value) <= _MOST_ITEMS:
            # A table of functions, for example: what is in it counts one by one.
            if self._is_new(value):
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                self._todo += [(f"{label}[{_short(key)}]", one, attributes) for key, one in pairs]
                self._note(f"global:{label}", f"{text} of {len(value)}")
            return
        self._note(f"global:{label}", text)

    # -- digests ----------------------------------------------------------------------------

    def _is_new(self, thing: Any) -> bool:
        if id(thing) in self._seen:
            return False
        self._seen[id(thing)] = thing
        return True

    def _digest(self, value: Any) -> str:
        return value_text(value, self._memo)


def value_text(value: Any, memo: Memo) -> str:
    """The digest of a value; for one that cannot be stored, ``"type "`` and its type's name."""
    known = memo.get(("value", id(value)))
    if known is not None:
        return known[1]
    try:
        text: str = codec.digest(value)
    except Exception:  # it cannot be stored, or its own code runs and raises whatever it likes
        text = _digest_of_fields(value)
    memo["value", id(value)] = (value, text)
    return text


def _digest_of_fields(value: Any) -> str:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not is_user_class(kind) or not hasattr(value, "__dict__"):
        return f"type {name}"
    try:
        return _digest_of(name, codec.digest(vars(value)))
    except Exception:  # as above
        return f"type {name}"


def class_digest(kind: type, memo: Memo) -> str:
    """SHA-256 of a class and of all the user's code that it refers to."""
    known = memo.get(("class", id(kind)))
    if known is not None:
        return known[1]
    home = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
    search = Surroundings(home, memo)
    search.follow_value(kind.__name__, kind)
    found = {**search.found, "schema": _json_schema(kind)}
    text = _digest_of(*(f"{name}={found[name]}" for name in sorted(found)))
    memo["class", id(kind)] = (kind, text)
    return text


def _json_schema(kind: type) -> str:
    make = getattr(kind, "model_json_schema", None)
    if make is None:
        return ""
    import json

    from pydantic.errors import PydanticUserError

    try:
        return json.dumps(make(), sort_keys=True, default=repr)
    except PydanticUserError:
        return ""  # a field of a type that JSON Schema has no word for; annotations still count


def _functions_of(value: Any) -> Iterator[FunctionType]:
    """The user's functions behind what a class has as a method, property or validator."""
    candidates: tuple[Any, ...] = (value,)
    if isinstance(value, property):
        candidates = (value.fget, value.fset, value.fdel)
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        candidates = (value.func,)
    elif isinstance(value, staticmethod | classmethod):
        candidates = (value.__func__,)
    for one in candidates:
        if isinstance(one, FunctionType):
            found = {id(each): each for each in (one, inspect.unwrap(one))}
            yield from (each for each in found.values() if is_user_module(each.__globals__.get("__name__")))


def _file_digest(module: str) -> str:
    """SHA-256 of the files of a module that is not loaded yet; loading it is the step's business."""
    # The top only: looking for a submodule would load its parents.
    places = map(Path, _files_of(module.partition(".")[0]))
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))
    if not files:
        return ABSENT
    return _digest_of(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))


def _digest_of(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "backslashreplace")).hexdigest()


def _short(key: object) -> str:
    return repr(key)[:40] if isinstance(key, str | int | float | bool) else type(key).__name__
