"""What is no plain data counts by what it is made of; what changes when it is used, by its type."""

from __future__ import annotations

import decimal
import functools
import importlib
import logging
import operator
import os
import random
import subprocess
import sys
import textwrap
import threading
import types
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, SecretStr

from tagent_nb.cache import LargeValue, refusing_large_values, remember_digest
from tagent_nb.cache.fingerprint import values
from tagent_nb.cache.fingerprint.values import Memo, value_digest, value_text

MADE = """
import array, asyncio, cmath, collections, csv, fractions, functools, ipaddress, json, logging, math, operator
import random, re, statistics, string, threading, types, typing
from dataclasses import dataclass
import numpy as np
import pandas as pd
from pydantic import BaseModel, PrivateAttr

def clean(text): return text.lower()
def score(text): return len(text)
"""

CHANGES = [
    ("re.compile('a')", "re.compile('b')"),
    ("re.compile('a')", "re.compile('a', re.I)"),
    ("re.compile('a').match", "re.compile('b').match"),
    ("re.compile('a').match", "re.compile('a').search"),
    ("operator.add", "operator.mul"),
    ("operator.itemgetter(0)", "operator.itemgetter(1)"),
    ("operator.attrgetter('a')", "operator.attrgetter('b')"),
    ("str.lower", "str.upper"),
    ("dict.fromkeys", "dict.get"),
    ("[1].append", "[2].append"),
    ("statistics.mean", "statistics.median"),
    ("math.log", "cmath.log"),
    ("json", "csv"),
    ("np.linalg", "np.fft"),
    ("np.add", "np.multiply"),
    ("np.mean", "np.median"),
    ("pd.Series", "pd.DataFrame"),
    ("collections.Counter", "collections.deque"),
    ("list[int]", "list[str]"),
    ("typing.Optional[int]", "typing.Optional[str]"),
    ("typing.TypeVar('T')", "typing.TypeVar('U')"),
    ("functools.partial(statistics.mean)", "functools.partial(statistics.median)"),
    ("functools.partial(round, ndigits=1)", "functools.partial(round, ndigits=2)"),
    ("complex(1, 2)", "complex(1, 3)"),
    ("fractions.Fraction(1, 2)", "fractions.Fraction(1, 3)"),
    ("slice(1)", "slice(2)"),
    ("collections.deque([1])", "collections.deque([2])"),
    ("collections.deque([1], 5)", "collections.deque([1], 6)"),
    ("collections.deque([clean])", "collections.deque([score])"),
    ("collections.UserDict(a=1)", "collections.UserDict(a=2)"),
    ("collections.ChainMap({}, {'a': 1})", "collections.ChainMap({}, {'a': 2})"),
    ("{clean, 1}", "{score, 1}"),
    ("frozenset([clean])", "frozenset([clean, score])"),
    ("array.array('i', [1])", "array.array('i', [2])"),
    ("ipaddress.ip_network('10.0.0.0/8')", "ipaddress.ip_network('10.0.0.0/9')"),
    ("string.Template('$a')", "string.Template('$b')"),
    ("types.SimpleNamespace(a=1)", "types.SimpleNamespace(a=2)"),
    ("types.SimpleNamespace(f=clean)", "types.SimpleNamespace(f=score)"),
    ("types.SimpleNamespace(k=K)", "types.SimpleNamespace(k=L)"),
    ("types.SimpleNamespace(f=cached)", "types.SimpleNamespace(f=clean)"),
    ("types.SimpleNamespace(f=K(1).double)", "types.SimpleNamespace(f=K(2).double)"),
    ("types.SimpleNamespace(k=K(1))", "types.SimpleNamespace(k=K(2))"),
    ("types.SimpleNamespace(t={(clean,): 1})", "types.SimpleNamespace(t={(clean,): 2})"),
    ("types.SimpleNamespace(t=(clean, 1))", "types.SimpleNamespace(t=(clean, 2))"),
    ("json.JSONEncoder(indent=1)", "json.JSONEncoder(indent=2)"),
    ("ValueError('a')", "ValueError('b')"),
    ("Refused('a')", "Refused('b')"),
    ("np.ma.array([1, 2], mask=[0, 1])", "np.ma.array([1, 2], mask=[0, 0])"),
    ("np.array([(1,)], dtype=[('a', 'i4')])", "np.array([(2,)], dtype=[('a', 'i4')])"),
    ("np.poly1d([1, 2])", "np.poly1d([1, 3])"),
    ("np.dtype([('a', 'i4')])", "np.dtype([('b', 'i4')])"),
    ("pd.Categorical(['a'])", "pd.Categorical(['b'])"),
    ("pd.arrays.SparseArray([0, 1])", "pd.arrays.SparseArray([0, 2])"),
    ("pd.offsets.Week(weekday=1)", "pd.offsets.Week(weekday=2)"),
    ("Rows([1])", "Rows([2])"),
    ("with_field(Rows([1]), x=1)", "with_field(Rows([1]), x=2)"),
    ("with_field(Table(a=1), x=1)", "with_field(Table(a=1), x=2)"),
    ("Rows([clean])", "Rows([score])"),
    ("with_field(Rows([clean]), x=1)", "with_field(Rows([clean]), x=2)"),
    ("Matrix([1])", "Matrix([2])"),
    ("Slots(1)", "Slots(2)"),
    ("with_field(Point(1), later=1)", "with_field(Point(1), later=2)"),
    ("Config()", "Config().with_private(2)"),
    ("Logging(1)", "Logging(2)"),
    ("Whole(1, clean)", "Whole(2, clean)"),
    ("Whole(1, clean)", "Whole(1, score)"),
    ("Whole(1, Whole(1, clean))", "Whole(1, Whole(2, clean))"),
]

OWN = """
class K:
    def __init__(self, n): self.n = n
    def double(self): return self.n * 2
class L:
    pass
class Rows(list):
    pass
class Table(dict):
    pass
class Matrix(np.ndarray):
    def __new__(cls, values): return np.asarray(values).view(cls)
class Refused(Exception):
    pass
class Slots:
    __slots__ = ("n", "later", "__weakref__")
    def __init__(self, n): self.n = n
@dataclass
class Point:
    x: int
class Config(BaseModel):
    _limit: int = PrivateAttr(1)
    def with_private(self, limit):
        self._limit = limit
        return self
class Logging:
    def __init__(self, n):
        self.n, self.log, self.dice = n, logging.getLogger("x"), random.Random()
class Whole:
    def __init__(self, n, part): self.n, self.part, self.word = n, part, re.compile("a")
class Locked:
    def __init__(self, n): self.n, self.lock = n, threading.Lock()
class Odd:
    def __init__(self, n): self.n = n
    def __reduce_ex__(self, protocol): raise RuntimeError("not me")
@functools.lru_cache
def cached(x): return x
def with_field(value, **fields):
    vars(value).update(fields)
    return value
"""


def space() -> dict[str, Any]:
    made: dict[str, Any] = {"__name__": "__main__"}
    exec(MADE + OWN, made)
    return made


def components(value: Any, home: dict[str, Any]) -> dict[str, str]:
    """What a step that reads a value depends on."""
    from tagent_nb.cache.fingerprint.dependencies import DependencySearch

    search = DependencySearch(home, {})
    search.follow_value("value", value)
    return search.components


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=lambda text: text[:40])
def test_what_something_is_made_of_counts(before: str, after: str) -> None:
    """An equal one, made anew, has the same fingerprint; another one has another."""
    first, again, other = (
        components(eval(made, home), home)
        for made, home in ((source, space()) for source in (before, before, after))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("made", ["clean", "lambda text: text.lower()", "functools.partial(clean)"])
def test_functions_inside_of_objects_of_others_are_followed(made: str) -> None:
    """As the function of a transformer: its code counts, not its name alone."""
    homes = [space(), space()]
    exec("def clean(text): return text.upper()", homes[1])
    first, other = (
        components(eval(f"types.SimpleNamespace(f={made.replace('lower', word)})", home), home)
        for word, home in zip(("lower", "upper"), homes, strict=True)
    )
    assert any(name.startswith("function:") for name in first)
    assert first != other


class Session:
    """Of a package: a client with a key."""

    def __init__(self, api_key: str) -> None:
        self.api_key, self.retries = api_key, 3


class Pair(Enum):
    A = (1, 2)


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (threading.Lock(), "_thread.lock"),
        (types.SimpleNamespace(lock=threading.Lock(), n=1), "types.SimpleNamespace"),
        (logging.getLogger("a"), "logging.Logger"),
        (random.Random(1), "random.Random"),
        (os.environ, "os._Environ"),
        (decimal.getcontext(), "decimal.Context"),
        (np.random.default_rng(1), "numpy.random._generator.Generator"),
        (iter([1]), "builtins.list_iterator"),
        (SecretStr("sk-canary"), "pydantic.types.SecretStr"),
        (property(), "builtins.property"),
        ([print] * 3000, "builtins.list"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_value_of_its_own_counts_by_its_type(value: Any, kind: str) -> None:
    assert value_text(value, {}) == f"type {kind}"


@pytest.mark.parametrize(
    "made",
    [
        "Locked({})",
        "Odd({})",
        "Whole({}, threading.Lock())",
        "Whole({}, asyncio.Event())",
        "Whole({}, Locked(1))",
        "Whole({}, iter([1]))",
        "collections.deque([{}, threading.Lock()])",
    ],
)
def test_what_something_remembers_that_does_things_does_not_count(made: str) -> None:
    """Else a client that counts its calls would have its step run again each time."""
    home = space()
    first, two = (value_text(eval(made.format(number), home), {}) for number in (1, 2))
    assert first == two
    assert first.startswith("type ")


def test_what_holds_a_key_counts_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """No digest of a key gets into a fingerprint, and another key is no other answer."""
    monkeypatch.setattr(values, "is_user_class", lambda kind: False)
    assert value_text(Session("sk-canary"), {}) == f"type {__name__}.Session"


def test_an_object_of_very_many_parts_counts_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends."""
    monkeypatch.setattr(values, "_MAX_OBJECTS", 3)
    deep = types.SimpleNamespace(a=types.SimpleNamespace(b=types.SimpleNamespace(c=types.SimpleNamespace())))
    assert value_text(deep, {}) == "type types.SimpleNamespace"


def test_an_object_that_holds_itself_is_no_trouble() -> None:
    def ring(n: int) -> types.SimpleNamespace:
        made = types.SimpleNamespace(n=n)
        made.itself = made
        return made

    assert value_text(ring(1), {}) == value_text(ring(1), {})
    assert value_text(ring(1), {}) != value_text(ring(2), {})


def test_members_of_an_enum_are_plain_values() -> None:
    for member in (Pair.A, Level.LOW):
        assert values.fields_beside(member) == []
        assert not value_text(member, {}).startswith("type ")


def test_a_digest_is_kept_for_the_run() -> None:
    memo: values.Memo = {}
    kept = [1]
    before = value_digest(kept, memo)
    kept.append(2)
    assert value_digest(kept, memo) == before
    assert value_digest(kept, {}) != before


def test_digests_are_the_same_in_another_process() -> None:
    """Whatever the order of sets there."""
    program = (
        MADE
        + OWN
        + textwrap.dedent(
            """
        from tagent_nb.cache.fingerprint.values import value_text
        made = collections.deque([{clean, "a", "b", "c", 1}, types.SimpleNamespace(b=1, a={"x", "y", "z"})])
        made += [operator.itemgetter("a"), re.compile("a"), functools.partial(clean), np.add, Slots(1)]
        print(value_text(made, {}))
        """
        )
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(values.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1
    assert not texts.pop().startswith("type ")


def test_modules_of_the_user_inside_of_objects_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rules.py").write_text("def rule(text): return text")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_rules")
    _, code = value_digest(types.SimpleNamespace(rules=module), {})
    assert code == (("my_rules", module),)


def test_functions_of_packages_are_named() -> None:
    assert values.named(operator.add) == "named _operator.add"
    assert values.named(functools) == "named functools"
    assert values.named(str.lower) == "named builtins.str.lower"


class Broken(BaseModel):
    """A model that raises for what it does not have."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not now")


def test_an_object_that_raises_when_it_is_asked_is_no_trouble() -> None:
    assert not values.is_native(Broken())
    assert values.fields_beside(Broken()) == []


def test_a_large_value_is_left_to_a_thread_once() -> None:
    """Refused until its digest is in the memo; one that has none there after that is worked out at once."""
    memo: Memo = {}
    plain, odd = list(range(100_001)), [threading.Lock()] * 100_001
    with refusing_large_values(()), pytest.raises(LargeValue) as refused:
        value_digest({"small": value_digest([1], memo), "large": value_digest(plain, memo)}, memo)
    assert refused.value.value is plain
    for value in (plain, odd):
        remember_digest(value, memo)
    with refusing_large_values(()):
        kept = value_digest(plain, memo)
        with pytest.raises(LargeValue):
            value_digest(odd, memo)
    with refusing_large_values({id(odd)}):
        assert value_digest(odd, memo)[0] == "type builtins.list"
    assert kept == value_digest(plain, {})
