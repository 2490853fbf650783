"""Classes of stored values: what a node keeps of a class, and how that class is looked up when it is read.

A node names its class by place (module and qualified name) and shape (a digest of its fields). A reader
offers classes in an order of preference, those of the step that made the value first. The class whose place
and shape are those of the node wins; one of the same name that does not fit leaves the value plain. Nothing
is imported because a stored value names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import types
import typing
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from enum import Flag
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Any, Literal, Union, get_args, get_origin
from weakref import WeakKeyDictionary, WeakValueDictionary

from tagent_nb.serde.annotations import (
    annotation_text,
    field_annotations,
    fits,
    is_class,
    reach_of,
    shape_hash,
    tag_of,
)
from tagent_nb.serde.nodes import TAG
from tagent_nb.serde.schemas import schema_hash

__all__ = ["MARKS", "Classes", "Match", "Referred", "marks_of", "member_of", "remember"]

MARKS = ("class", "args", "shape", "schema")
"""What a node has of its class besides its name: optional, and no part of a value's identity."""

EXACT, SHAPE, PLACE, NAME = 4, 3, 2, 1
"""How well a class fits a node: by place and shape, by its shape, by its place, or by its name only."""

_PLAIN_MODULES = frozenset({"builtins", "datetime", "decimal", "uuid", "pathlib", "collections"})
"""Modules whose classes may be arguments of a generic class wherever it is read."""
_ROOT_MODEL = "pydantic.root_model:RootModel"
"""The generic class that no step has to name: ``RootModel[list[int]]`` is a class by itself."""
_SPECIAL = {"builtins:None": type(None), "builtins:...": Ellipsis, "typing:Any": Any}

_OWN, _REGISTERED, _OTHERS, _AROUND = _LEVELS = range(4)

_marks: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()
_live: WeakValueDictionary[tuple[str, str, str], type] = WeakValueDictionary()


# -- what a node keeps ----------------------------------------------------------------------------


def marks_of(kind: type) -> dict[str, Any]:
    """What a node keeps of a class besides its name: where it is defined (``class``), arguments of a
    generic model (``args``), and digests of its fields (``shape``, and ``schema``, which counts docstrings).
    """
    marks = _marks.get(kind)
    if marks is None:
        marks = _new_marks(kind)
        if getattr(kind, "__pydantic_complete__", True):  # else it may get its types later
            _marks[kind] = marks
    return marks


def _new_marks(kind: Any) -> dict[str, Any]:
    tag = tag_of(kind)
    if tag == "model":
        origin, args = _parametrised(kind)
        marks: dict[str, Any] = {"class": _place(origin)}
        if args:
            marks["args"] = [_reference(arg) for arg in args]
        try:
            marks["schema"] = schema_hash(kind)
        except Exception:  # a class that names a type which is not there, or a schema of the user's own code
            marks["schema"] = ""
        return marks | {"shape": shape_hash(kind)}
    marks = {"class": _place(kind)}
    if tag == "data":
        lines = [f"{field.name}: {annotation_text(field.type)}" for field in dataclasses.fields(kind)]
        marks["shape"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return marks


def _place(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _parametrised(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A generic model and its arguments; the class itself and none for any other."""
    generic = kind.__pydantic_generic_metadata__
    return (generic["origin"], generic["args"]) if generic["origin"] is not None else (kind, ())


def _reference(argument: Any) -> Any:
    """An argument of a generic class as plain data; ``None`` where it has no name, such as a validator."""
    for text, special in _SPECIAL.items():
        if argument is special or (argument is None and text == "builtins:None"):
            return text
    origin, args = get_origin(argument), get_args(argument)
    if origin is Literal:
        plain = all(type(arg) in (str, int, bool, type(None)) for arg in args)
        return {"literal": list(args)} if plain else None
    if tag_of(argument) == "model":
        origin, args = _parametrised(argument)
    if origin is None:
        return _place(argument) if is_class(argument) else None
    # list[int] and typing.List[int] make two classes.
    alias = getattr(argument, "_name", None) if type(argument).__module__ == "typing" else None
    if origin is Union:
        place = "typing:Union"
    elif isinstance(alias, str) and alias in vars(typing):
        place = f"typing:{alias}"
    elif isinstance(origin, type):
        place = _place(origin)
    else:
        return None
    parts = [_reference(arg) for arg in args]
    return None if None in parts else {"class": place, "args": parts} if parts else place


def remember(kind: type) -> None:
    """Note a class of which a value was stored: while it lives, it is found where no name leads to it."""
    marks = marks_of(kind)
    _live[tag_of(kind), marks["class"], str(marks.get("shape"))] = kind


# -- how well a class fits ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A class for a node, and how well it fits."""

    kind: Any
    rank: int

    def takes(self, fields: Mapping[str, Any]) -> bool:
        """Whether these fields are, as they are, what the class holds."""
        if self.rank >= SHAPE:
            return True
        annotations = field_annotations(self.kind)
        return annotations.keys() == fields.keys() and all(
            fits(annotations[name], value) for name, value in fields.items()
        )


def _rank(node: Mapping[str, Any], kind: Any) -> int:
    tag = node[TAG]
    if tag_of(kind) != tag:
        return 0
    marks = marks_of(kind)
    if tag == "namedtuple":
        if kind._fields != _names(node):
            return 0
        shaped = True
    elif tag == "enum":
        if member_of(kind, node["v"]) is None:
            return 0
        shaped = True
    elif tag == "data":
        names, stored = {field.name for field in dataclasses.fields(kind)}, set(node["v"])
        shaped = node.get("shape") in (None, marks["shape"])
        # Of the same shape, a field that is missing was not set.
        if names != stored and not (shaped and "shape" in node and stored < names):
            return 0
    else:
        mark = "shape" if "shape" in node else "schema"
        shaped = node.get(mark) == marks[mark]
    placed = node.get("class") == marks["class"] and node.get("args") == marks.get("args")
    return (EXACT if placed else SHAPE) if shaped else PLACE if placed else NAME


def _names(node: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name, _ in node["v"])


def member_of(kind: Any, value: Any) -> Any:
    """The member of an enum with a recorded value, or ``None``. None of the enum's own code is asked, but
    for combined flags."""
    for member in kind:
        if _is_same(member.value, value):
            return member
    if issubclass(kind, Flag) and type(value) is int:
        try:
            return kind(value)
        except Exception:  # a ValueError, or whatever the user's own _missing_ raises
            return None
    return None


def _is_same(value: Any, recorded: Any) -> bool:
    if type(value) is type(recorded):
        return bool(value == recorded or (value != value and recorded != recorded))
    # A text of a class of its own, for one, is recorded as plain text.
    return isinstance(value, type(recorded)) and not isinstance(value, bool) and bool(value == recorded)


# -- looking up -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Referred:
    """What a step, or a namespace, refers to.

    Attributes:
        classes: Classes and annotations, those that count most first.
        packages: Names of top-level modules that may have classes of its values, where these are loaded.
        imports: Names of modules that the code of a step imports when it runs.
        submodules: Names that it may import from these, and that may be modules themselves.
    """

    classes: tuple[Any, ...] = ()
    packages: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    submodules: frozenset[str] = frozenset()


class Classes(Mapping[str, type]):
    """Classes that stored values may become: a mapping of names, and a search by place and shape.

    Args:
        registered: Classes by name.
        steps: What each step refers to. Called when it is needed.
        around: What the namespace refers to. Called when it is needed.
        live: Whether classes of which this process stored values may answer, where nothing else does.
    """

    def __init__(
        self,
        registered: Mapping[str, type],
        steps: Mapping[str, Callable[[], Referred]] | None = None,
        around: Callable[[], Referred] = Referred,
        *,
        live: bool = False,
    ) -> None:
        self._registered = registered
        self._steps = {} if steps is None else steps
        self._around = around
        self._uses_live = live
        self._step: str | None = None
        self._of_steps: dict[str, Classes] = {}
        self._levels: dict[int, dict[str, list[type]]] = {}
        self._referred: dict[int, Referred] = {}
        self._matches: dict[Any, Match | None] = {}

    def __getitem__(self, name: str) -> type:
        return self._registered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registered)

    def __len__(self) -> int:
        return len(self._registered)

    @staticmethod
    def of(schemas: Mapping[str, type] | None, step: object = None) -> Classes:
        """Classes for the values of a step, from what a caller passes."""
        if isinstance(schemas, Classes):
            return schemas.for_step(step)
        return Classes(schemas) if schemas else _NONE

    def for_step(self, step: object) -> Classes:
        """The same, asked for values of this step: its own classes come first."""
        if not isinstance(step, str) or step not in self._steps or step == self._step:
            return self
        classes = self._of_steps.get(step)
        if classes is None:
            classes = Classes(self._registered, self._steps, self._around, live=self._uses_live)
            classes._step, classes._of_steps = step, self._of_steps
            self._of_steps[step] = classes
        return classes

    def find(self, node: Mapping[str, Any], *, live: bool = True) -> Match | None:
        """The class for a node of a model, a dataclass, an enum or a named tuple.

        Args:
            node: As the encoder writes it; parts of it may be values already.
            live: ``False``: as another process finds it, which has stored nothing yet.

        Raises:
            TypeError: The node is malformed.
        """
        name = node["name"]
        if not isinstance(name, str):
            raise TypeError("its class has no name")
        args = node.get("args")
        try:
            key = (
                node[TAG],
                name,
                node.get("class"),
                node.get("shape"),
                node.get("schema"),
                args if args is None else repr(args),
                _content(node),
                live,
            )
            if key not in self._matches:
                self._matches[key] = self._search(node, name, live)
            return self._matches[key]
        except TypeError:  # the value of an enum's member may be a list
            return self._search(node, name, live)

    def loss_of(self, kind: type) -> str:
        """What becomes of values of a class when another process reads them; empty if nothing is lost."""
        node = _blank_node(kind)
        match = self.find(node, live=False)
        if match is not None and (match.rank == EXACT or match.kind is kind):
            return ""
        if match is not None and match.rank >= SHAPE:
            after = f"objects of the class {_place(match.kind).replace(':', '.')}, which has the same fields"
        else:
            after = _PLAIN[node[TAG]] if node[TAG] != "namedtuple" or _has_more(kind) else ""
        return after and f"objects of the class {_place(kind).replace(':', '.')} become {after}"

    def _search(self, node: Mapping[str, Any], name: str, live: bool) -> Match | None:
        best: Match | None = None
        for kind in self._candidates(node, name, live):
            rank = _rank(node, kind)
            if rank == EXACT:
                return Match(kind, rank)
            if rank and (best is None or rank > best.rank):
                best = Match(kind, rank)
        return best

    def _candidates(self, node: Mapping[str, Any], name: str, live: bool) -> Iterator[Any]:
        for level in _LEVELS:
            yield from self._level(level).get(name, ())
        place = node.get("class")
        if not isinstance(place, str):
            return  # written by a version that kept names only
        args = node.get("args")
        yield self._at(place) if args is None else self._made({"class": place, "args": args})
        if live and self._uses_live:
            yield _live.get((node[TAG], place, str(node.get("shape"))))

    def _level(self, level: int) -> dict[str, list[type]]:
        """Classes by name: those of the step, those that are registered, of the other steps, all around."""
        names = self._levels.get(level)
        if names is None:
            names = {}
            if level == _REGISTERED:
                registered = dict(self._registered)
                names = {name: [kind] for name, kind in registered.items()}
                reached = reach_of(registered.values())
            else:
                reached = reach_of(self._refers(level).classes)
            for kind in reached:
                names.setdefault(kind.__name__, []).append(kind)
            self._levels[level] = names
        return names

    def _refers(self, level: int) -> Referred:
        referred = self._referred.get(level)
        if referred is None:
            if level == _AROUND:
                referred = self._around()
            else:
                steps = [name for name in self._steps if (name == self._step) == (level == _OWN)]
                parts = [self._steps[name]() for name in steps]
                referred = Referred(
                    tuple(kind for part in parts for kind in part.classes),
                    frozenset().union(*(part.packages for part in parts)),
                    frozenset().union(*(part.imports for part in parts)),
                    frozenset().union(*(part.submodules for part in parts)),
                )
            self._referred[level] = referred
        return referred

    # -- by place -------------------------------------------------------------------------------

    def _at(self, place: str) -> Any:
        """The class that is defined in this place, if something that was passed leads there."""
        module, _, path = place.partition(":")
        name = path.rpartition(".")[2]
        for level in _LEVELS:
            for kind in self._level(level).get(name, ()):
                if tag_of(kind) and marks_of(kind)["class"] == place:
                    return kind
        if module in _PLAIN_MODULES or place == _ROOT_MODEL:
            return _defined(module, path)
        top = module.partition(".")[0]
        levels = (_OWN, _OTHERS, _AROUND)
        if module not in sys.modules:
            for level in levels:
                while module not in sys.modules and _import_for(module, self._refers(level)):
                    del self._referred[level]  # what was loaded may import more when it runs
            return _defined(module, path)  # nothing, if the step's own imports did not bring it
        if any(top in self._refers(level).packages for level in levels):
            return _defined(module, path)
        return None

    def _made(self, reference: Any) -> Any:
        """What an argument of a generic class stands for; ``None`` if something of it is not there."""
        if isinstance(reference, str):
            module, _, path = reference.partition(":")
            if module == "typing" or reference == "types:UnionType":
                return _SPECIAL.get(reference) or getattr(sys.modules[module], path, None)
            return _SPECIAL[reference] if reference in _SPECIAL else self._at(reference)
        if not isinstance(reference, dict):
            return None
        if "literal" in reference:
            return Literal[tuple(reference["literal"])]
        origin = self._made(reference["class"])
        args = tuple(self._made(arg) for arg in reference["args"])
        if origin is None or None in args:
            return None
        try:
            if origin is types.UnionType:
                return reduce(or_, args)
            return origin[args]
        except Exception:  # a generic class may refuse its arguments in its own way
            return None


_NONE = Classes({})


_PLAIN = {"model": "dicts", "data": "dicts", "enum": "plain values", "namedtuple": "plain named tuples"}
"""What values are without their class, by tag."""


def _blank_node(kind: Any) -> dict[str, Any]:
    """A node of a class, with as much of a value as it takes to find the class."""
    tag = tag_of(kind)
    node = {TAG: tag, "name": kind.__name__, **marks_of(kind), "v": {}}
    if tag == "enum":
        member = next(iter(kind.__members__.values()))
        node["v"] = member.value
    elif tag == "namedtuple":
        node["v"] = [(name, None) for name in kind._fields]
    elif tag == "data":
        node["v"] = {field.name: None for field in dataclasses.fields(kind)}
    return node


def _has_more(kind: Any) -> bool:
    """Whether a class of named tuples has something besides its fields, such as methods."""
    plain = {*vars(namedtuple("Plain", ())), *kind._fields}
    return any(name not in plain and not name.startswith("__") for name in vars(kind))


def _content(node: Mapping[str, Any]) -> Any:
    """What of a node's value tells whether a class fits it."""
    tag, value = node[TAG], node["v"]
    if tag == "enum":
        return type(value), value
    return _names(node) if tag == "namedtuple" else tuple(value) if tag == "data" else None


def _defined(module: str, path: str) -> Any:
    """The class of a loaded module, without any of its code: under its own name, or under another."""
    names: Any = getattr(sys.modules.get(module), "__dict__", {})
    thing: Any = None
    for name in path.split("."):
        thing = names.get(name)
        names = vars(thing) if is_class(thing) else {}
    place = f"{module}:{path}"
    if is_class(thing) and _place(thing) == place:
        return thing
    namesakes = list(getattr(sys.modules.get(module), "__dict__", {}).values())
    return next((kind for kind in namesakes if tag_of(kind) and _place(kind) == place), None)


def _import_for(module: str, referred: Referred) -> bool:
    """Make one import that a step's own code makes when it runs, to bring this module: first those of its
    package. Returns whether there was one."""
    top = module.partition(".")[0]
    names = sorted(referred.imports, key=lambda name: (name.partition(".")[0] != top, name))
    for name in (*names, *({module} & referred.submodules)):
        if name not in sys.modules:
            try:
                import_module(name)
            except Exception:  # the user's module may raise anything; the step itself will say so
                continue
            return True
    return False
