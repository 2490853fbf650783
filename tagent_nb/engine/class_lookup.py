"""What steps and a notebook refer to: the classes that their stored values may become."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from inspect import getattr_static
from types import FunctionType, MethodType, ModuleType
from typing import Any, get_args

from tagent_nb.cache import Reads, code_reads, is_user_module, text_reads
from tagent_nb.errors import TagentError
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import tools_for
from tagent_nb.serde import Referred


def of_step(step: PipelineStep, namespace: Mapping[str, Any]) -> Referred:
    """What a step's schema, code, checks and tools refer to."""
    search = _Search()
    search.follow(step.output_schema)
    body = step.body
    if body is not None and body.function is not None:
        search.follow(body.function)
    elif body is not None:
        reads = text_reads(body.names, body.normalised())
        for thing in search.imported(reads):
            search.follow(thing, reads.attributes)
        for name in sorted(reads.names & namespace.keys()):
            search.follow(namespace[name], reads.attributes)
    for function in (*step.checks, *_tools(step)):
        search.follow(function)
    return search.referred()


def _tools(step: PipelineStep) -> list[Callable[..., Any]]:
    if step.is_python:
        return []
    try:
        return tools_for(step)
    except TagentError:  # a tool that is not there: the step says so when it runs
        return list(step.tools)


def of_namespace(registered: Iterable[type], namespace: Mapping[str, Any]) -> Referred:
    """The modules that registered classes and a notebook's names come from."""
    search = _Search()
    for kind in registered:
        search.follow(kind)
    search.modules.add("__main__")
    search.modules |= {_home(value) for value in list(namespace.values())}
    return search.referred()


def _home(value: Any) -> str:
    """The name of the module that a value, or its class, comes from."""
    kind = type(value)  # never __class__: an object may answer anything, or raise
    try:
        if issubclass(kind, ModuleType):
            return str(value.__name__)
        owner = value if issubclass(kind, type | FunctionType) else kind
        return str(owner.__module__)
    except Exception:  # metaclasses are the user's code
        return ""


class _Search:
    """Collects what code refers to. Runs none of it, and loads nothing."""

    def __init__(self) -> None:
        self.classes: list[Any] = []
        self.modules: set[str] = set()
        self.imports: set[str] = set()
        self.submodules: set[str] = set()
        self._seen: dict[int, Any] = {}

    def follow(self, thing: Any, attributes: frozenset[str] = frozenset()) -> None:
        """Note a thing and what it refers to.

        Args:
            thing: A class, an annotation, a function, a module, or an object.
            attributes: Names of attributes that the code reads which refers to it.
        """
        todo = [(thing, attributes)]
        while todo:
            thing, attributes = todo.pop()
            if id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                try:
                    todo.extend(reversed(self._parts(thing, attributes)))
                except Exception:  # metaclasses are the user's code
                    continue

    def imported(self, reads: Reads) -> list[ModuleType]:
        """Note the imports that code makes itself. Returns those of the modules that are loaded."""
        self.imports |= reads.imports
        # ``from package import module``: what it takes from there is among the attributes.
        self.submodules |= {f"{name}.{part}" for name in reads.imports for part in reads.attributes}
        return [sys.modules[name] for name in sorted(reads.imports) if name in sys.modules]

    def _parts(self, thing: Any, attributes: frozenset[str]) -> list[tuple[Any, frozenset[str]]]:
        self.modules.add(_home(thing))
        if isinstance(thing, ModuleType):
            inside = vars(thing)
            return [(inside[name], attributes) for name in sorted(attributes & inside.keys())]
        if isinstance(thing, MethodType):
            return [(thing.__func__, attributes), (thing.__self__, attributes)]
        if isinstance(thing, functools.partial):
            return [(part, attributes) for part in (thing.func, *thing.args, *thing.keywords.values())]
        if isinstance(thing, FunctionType):
            return self._of_function(thing)
        wrapped = getattr_static(thing, "__wrapped__", None)
        if isinstance(wrapped, FunctionType):
            return [(wrapped, attributes)]
        self.classes.append(thing if isinstance(thing, type) or get_args(thing) else type(thing))
        return []

    def _of_function(self, function: FunctionType) -> list[tuple[Any, frozenset[str]]]:
        inner = getattr(function, "__wrapped__", None)
        refers = [] if inner is None else [(inner, frozenset[str]())]
        if not is_user_module(_home(function)):
            return refers
        reads = code_reads(function.__code__)
        parts: list[Any] = [*self.imported(reads)]
        parts += [value for value in function.__annotations__.values() if not isinstance(value, str)]
        parts += [function.__globals__[name] for name in sorted(reads.names & function.__globals__.keys())]
        for cell in function.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # the variable is not set yet
                continue
        parts += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return [*((part, reads.attributes) for part in parts), *refers]

    def referred(self) -> Referred:
        """All that was noted, with the modules that the user's own modules refer to."""
        todo = list(self.modules | self.imports)
        names = set(todo)
        while todo:
            name = todo.pop()
            module = sys.modules.get(name)
            if module is None or not is_user_module(name):
                continue
            homes = {_home(value) for value in list(vars(module).values())} - names
            names |= homes
            todo.extend(homes)
        packages = frozenset(name.partition(".")[0] for name in names) - {""}
        return Referred(tuple(self.classes), packages, frozenset(self.imports), frozenset(self.submodules))
