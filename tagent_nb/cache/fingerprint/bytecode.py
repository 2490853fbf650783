"""What code does and what it refers to, read from its bytecode or from an ``ast.dump``."""

from __future__ import annotations

import dis
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from tagent_nb.pipeline import QUERIES, evaluated_names, quoted_attributes, quoted_names

_GLOBAL, _IMPORT, _EXTENDED = (dis.opmap[name] for name in ("LOAD_GLOBAL", "IMPORT_NAME", "EXTENDED_ARG"))
_BY_NAME = frozenset(
    code for code in dis.hasname if dis.opname[code] in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
)
_CONSTANTS = frozenset(dis.hasconst)
_REBIND_GLOBAL, _REBIND_OUTER = dis.opmap["STORE_GLOBAL"], dis.opmap["STORE_DEREF"]
_DOCSTRING_FLAG = 0x4000000


@dataclass(frozen=True)
class Reads:
    """What code refers to: global names, attribute names, modules it imports itself, and names that stand in
    texts behind ``@``, which count where they are defined."""

    names: frozenset[str]
    attributes: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    quoted: frozenset[str] = frozenset()

    @property
    def queries(self) -> bool:
        """Whether the code may ask pandas to look up names in texts."""
        return not QUERIES.isdisjoint(self.attributes) or not QUERIES.isdisjoint(self.names)


def _instructions(code: CodeType) -> Iterator[tuple[int, int]]:
    extended = 0
    raw = code.co_code
    for operation, argument in zip(raw[::2], raw[1::2], strict=True):
        argument |= extended
        extended = argument << 8 if operation == _EXTENDED else 0
        if operation:  # 0 is room that the interpreter keeps for itself
            yield operation, argument


@functools.lru_cache(maxsize=4096)
def code_digest(code: CodeType) -> str:
    """SHA-256 of what a code object does: positions, comments and docstrings left out."""
    return hashlib.sha256(repr(_parts(code)).encode("utf-8", "backslashreplace")).hexdigest()


def _parts(code: CodeType) -> tuple[Any, ...]:
    # Constants by value, not by place: a docstring is a constant that no instruction loads.
    steps = [
        (operation, _constant(code.co_consts[argument]) if operation in _CONSTANTS else argument)
        for operation, argument in _instructions(code)
    ]
    return (
        steps,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~_DOCSTRING_FLAG),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        code.co_exceptiontable,
    )


def _constant(value: object) -> Any:
    if isinstance(value, CodeType):
        return _parts(value)
    if isinstance(value, frozenset):
        return ("frozenset", sorted(map(repr, map(_constant, value))))
    if isinstance(value, tuple):
        return ("tuple", [_constant(item) for item in value])
    return (type(value).__name__, repr(value))


@functools.lru_cache(maxsize=4096)
def code_reads(code: CodeType) -> Reads:
    """What a code object, and the code nested in it, refers to."""
    names: set[str] = set()
    others = set(code.co_names)
    imports: set[str] = set()
    for operation, argument in _instructions(code) if others else ():
        if operation == _GLOBAL:
            names.add(code.co_names[argument >> 1])
        elif operation in _BY_NAME:
            names.add(code.co_names[argument])
        elif operation == _IMPORT:
            imports.add(code.co_names[argument])
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = code_reads(constant)
            names |= inner.names
            others |= inner.attributes
            imports |= inner.imports
    reads = Reads(frozenset(names), frozenset(others), frozenset(imports - {""}))
    if not reads.queries:
        return reads
    texts = list(_texts(code))
    quoted = {name for local, text in texts for name in quoted_names(text) if name not in local}
    if "eval" in reads.names or ("eval" in others and not {"pd", "pandas"}.isdisjoint(names)):
        quoted.update(name for local, text in texts for name in evaluated_names(text) if name not in local)
    others.update(part for _, text in texts for part in quoted_attributes(text))
    return Reads(reads.names, frozenset(others), reads.imports, frozenset(quoted))


@functools.lru_cache(maxsize=4096)
def quotes(code: CodeType) -> frozenset[str]:
    """Names and attributes behind ``@`` in the texts of a code object, but for its own local names."""
    if not any(map(_may_quote, code.co_consts)):
        return frozenset()
    names: set[str] = set()
    for local, text in _texts(code):
        if "@" in text:
            names.update(name for name in quoted_names(text) if name not in local)
            names.update(quoted_attributes(text))
    return frozenset(names)


def _may_quote(constant: object) -> bool:
    if isinstance(constant, str):
        return "@" in constant
    return isinstance(constant, CodeType | tuple | frozenset)


@functools.lru_cache(maxsize=4096)
def rebound_names(code: CodeType) -> frozenset[str]:
    """Names outside of a code object to which it, or the code nested in it, gives another value."""
    operations = code.co_code[::2]
    rebinds = _REBIND_GLOBAL in operations or _REBIND_OUTER in operations
    places = (*code.co_varnames, *(name for name in code.co_cellvars if name not in code.co_varnames))
    places = (*places, *code.co_freevars)
    names = set()
    for operation, argument in _instructions(code) if rebinds else ():
        if operation == _REBIND_GLOBAL:
            names.add(code.co_names[argument])
        elif operation == _REBIND_OUTER and places[argument] in code.co_freevars:
            names.add(places[argument])
    inner = [rebound_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(names).union(*inner)


def _texts(code: CodeType) -> Iterator[tuple[frozenset[str], str]]:
    """The texts in a code object, and in the code nested in it, with the local names around each."""
    local = frozenset((*code.co_varnames, *code.co_cellvars, *code.co_freevars))
    # A docstring is a constant that no instruction loads.
    constants = [
        code.co_consts[argument] for operation, argument in _instructions(code) if operation in _CONSTANTS
    ]
    while constants:
        constant = constants.pop()
        if isinstance(constant, str):
            yield local, constant
        elif isinstance(constant, CodeType):
            yield from _texts(constant)
        elif isinstance(constant, tuple | frozenset):
            constants += constant


_DUMPED_ATTRIBUTE = re.compile(r"\battr='(\w+)'")
_DUMPED_IMPORT = re.compile(
    r"\bImport\(names=\[((?:alias\([^)]*\)(?:, )?)+)\]|\bImportFrom\(module='([\w.]+)'"
)
_DUMPED_NAME = re.compile(r"\balias\(name='([\w.]+)'")


def text_reads(names: Iterable[str], dump: str, quoted: Iterable[str] = ()) -> Reads:
    """The same for code that exists as an ``ast.dump`` only. It may find too much, never too little.

    Args:
        names: Names that the code reads.
        dump: Its text.
        quoted: Those of the names that only stand in texts behind ``@``.
    """
    attributes = set(_DUMPED_ATTRIBUTE.findall(dump)) if "Attribute(" in dump else set()
    imports: set[str] = set()
    if "alias(" in dump:
        attributes.update(_DUMPED_NAME.findall(dump))
        for aliases, module in _DUMPED_IMPORT.findall(dump):
            imports.update([module] if module else _DUMPED_NAME.findall(aliases))
    if quoted:
        attributes |= quoted_attributes(dump)
    return Reads(
        frozenset(names) - frozenset(quoted), frozenset(attributes), frozenset(imports), frozenset(quoted)
    )
