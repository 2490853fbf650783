"""What a class is made of counts, whatever JSON Schema shows of it, and is the same in every process."""

# ruff: noqa: E501  # sources of classes

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tagent_nb.cache.fingerprint.dependencies import class_digest
from tagent_nb.serde import meaning_of
from tests.cache.test_fingerprint import agent, changed

HEAD = """
import enum, functools
import re
from fractions import Fraction
from typing import *
from pydantic import *
import dataclasses
from typing_extensions import TypedDict
"""
FUTURE = "from __future__ import annotations\n"

EDITS = [
    (
        "default_factory body",
        "def mk(): return ['a']\nclass R(BaseModel):\n    tags: list[str] = Field(default_factory=mk)",
        "['a']",
        "['b']",
        True,
    ),
    (
        "default_factory lambda",
        "class R(BaseModel):\n    tags: list[str] = Field(default_factory=lambda: ['a'])",
        "['a']",
        "['b']",
        True,
    ),
    (
        "default_factory refers global",
        "n = 1\nclass R(BaseModel):\n    tags: list[int] = Field(default_factory=lambda: [n])",
        "n = 1",
        "n = 2",
        True,
    ),
    (
        "factory other",
        "class R(BaseModel):\n    tags: list[str] = Field(default_factory=list)",
        "=list",
        "=tuple",
        True,
    ),
    ("private default", "class R(BaseModel):\n    x: int\n    _n: int = 1", "= 1", "= 2", True),
    (
        "private factory",
        "class R(BaseModel):\n    x: int\n    _n: int = PrivateAttr(default_factory=lambda: 1)",
        "lambda: 1",
        "lambda: 2",
        True,
    ),
    (
        "validator moved",
        "class R(BaseModel):\n    x: int\n    y: int\n    @field_validator('x')\n    def v(cls, a): return a+1",
        "'x'",
        "'y'",
        True,
    ),
    (
        "validator mode",
        "class R(BaseModel):\n    x: int\n    y: int\n    @field_validator('x')\n    def v(cls, a): return a",
        "'x'",
        "'x', mode='before'",
        True,
    ),
    ("exclude", "class R(BaseModel):\n    x: int = Field(exclude=False)", "False", "True", True),
    ("ser alias", "class R(BaseModel):\n    x: int = Field(serialization_alias='a')", "'a'", "'b'", True),
    (
        "val alias path",
        "class R(BaseModel):\n    x: int = Field(validation_alias=AliasChoices('a','c'))",
        "'c'",
        "'d'",
        True,
    ),
    ("alias", "class R(BaseModel):\n    x: int = Field(alias='a')", "'a'", "'b'", True),
    ("repr", "class R(BaseModel):\n    x: int = Field(repr=True)", "True", "False", True),
    ("frozen", "class R(BaseModel):\n    x: int = Field(frozen=False)", "False", "True", True),
    ("strict", "class R(BaseModel):\n    x: int = Field(strict=False)", "False", "True", True),
    ("ge", "class R(BaseModel):\n    x: int = Field(ge=1)", "=1", "=2", True),
    (
        "timedelta ge",
        "import datetime as d\nclass R(BaseModel):\n    x: d.timedelta = Field(ge=d.timedelta(1))",
        "a(1)",
        "a(2)",
        True,
    ),
    (
        "config",
        "class R(BaseModel):\n    model_config = ConfigDict(str_strip_whitespace=True)\n    x: str",
        "True",
        "False",
        True,
    ),
    ("config class arg", "class R(BaseModel, frozen=True):\n    x: str", "True", "False", True),
    (
        "alias generator",
        "def g(x): return x+'a'\nclass R(BaseModel):\n    model_config = ConfigDict(alias_generator=g)\n    x: str",
        "+'a'",
        "+'b'",
        True,
    ),
    (
        "discriminator",
        "class A(BaseModel):\n    k: Literal['a']\n    j: Literal['a']\nclass B(BaseModel):\n    k: Literal['b']\n    j: Literal['b']\nclass R(BaseModel):\n    x: A | B = Field(discriminator='k')",
        "r='k'",
        "r='j'",
        True,
    ),
    (
        "callable discriminator",
        "class A(BaseModel):\n    k: int\nclass B(BaseModel):\n    k: int\ndef d(v): return 'a'\nclass R(BaseModel):\n    x: Annotated[Union[Annotated[A, Tag('a')], Annotated[B, Tag('b')]], Discriminator(d)]",
        "return 'a'",
        "return 'b'",
        True,
    ),
    (
        "callable discriminator of a field",
        "class A(BaseModel):\n    k: int\nclass B(BaseModel):\n    k: int\ndef d(v): return 'a'\nclass R(BaseModel):\n    x: Union[Annotated[A, Tag('a')], Annotated[B, Tag('b')]] = Field(discriminator=Discriminator(d))",
        "return 'a'",
        "return 'b'",
        True,
    ),
    (
        "note whose text hides what it holds",
        "class M:\n    def __init__(self, n): self.n = n\n    def __repr__(self): return 'M'\n@dataclasses.dataclass\nclass R:\n    x: Annotated[int, M(1)]",
        "M(1)",
        "M(2)",
        True,
    ),
    (
        "default of a base",
        "@dataclasses.dataclass\nclass Base:\n    y: int = 1\n@dataclasses.dataclass\nclass R(Base):\n    x: int = 0",
        "= 1",
        "= 2",
        True,
    ),
    (
        "default of a base with slots",
        "@dataclasses.dataclass(slots=True)\nclass Base:\n    y: int = dataclasses.field(default=1, init=False)\n@dataclasses.dataclass(slots=True)\nclass R(Base):\n    x: int = 0",
        "=1,",
        "=2,",
        True,
    ),
    (
        "type that means itself",
        "Tree = NewType('Tree', int)\nTree.__supertype__ = Dict[str, Union[Tree, int]]  # as of a type statement\n@dataclasses.dataclass\nclass R:\n    x: Tree",
        "Tree, int]",
        "Tree, str]",
        True,
    ),
    (
        "model_serializer",
        "class R(BaseModel):\n    x: int\n    @model_serializer\n    def s(self): return {'x': 1}",
        "'x': 1",
        "'x': 2",
        True,
    ),
    (
        "field_serializer",
        "class R(BaseModel):\n    x: int\n    @field_serializer('x')\n    def s(self, v): return 1",
        "return 1",
        "return 2",
        True,
    ),
    (
        "field_serializer when",
        "class R(BaseModel):\n    x: int\n    @field_serializer('x')\n    def s(self, v): return 1",
        "'x')",
        "'x', when_used='json')",
        True,
    ),
    (
        "init",
        "class R(BaseModel):\n    x: int\n    def __init__(self, **k): super().__init__(x=1)",
        "x=1",
        "x=2",
        True,
    ),
    (
        "post_init",
        "class R(BaseModel):\n    x: int\n    def model_post_init(self, c): self.x=1",
        "x=1",
        "x=2",
        True,
    ),
    ("str", "class R(BaseModel):\n    x: int\n    def __str__(self): return 'a'", "'a'", "'b'", True),
    (
        "computed",
        "class R(BaseModel):\n    x: int\n    @computed_field\n    @property\n    def c(self) -> int: return 1",
        "return 1",
        "return 2",
        True,
    ),
    (
        "computed cached",
        "class R(BaseModel):\n    x: int\n    @computed_field\n    @functools.cached_property\n    def c(self) -> int: return 1",
        "return 1",
        "return 2",
        True,
    ),
    (
        "base method",
        "class Base(BaseModel):\n    def f(self): return 1\nclass R(Base):\n    x: int",
        "return 1",
        "return 2",
        True,
    ),
    (
        "mixin",
        "class Mix:\n    def f(self): return 1\nclass R(BaseModel, Mix):\n    x: int",
        "return 1",
        "return 2",
        True,
    ),
    (
        "nested class",
        "class R(BaseModel):\n    x: int\n    class In:\n        def f(self): return 1",
        "return 1",
        "return 2",
        True,
    ),
    (
        "fwd nested model",
        "class R(BaseModel):\n    x: 'list[In]'\nclass In(BaseModel):\n    y: int\n    def f(self): return 1\nR.model_rebuild(_types_namespace=globals())",
        "return 1",
        "return 2",
        True,
    ),
    (
        "nested model default",
        "class In(BaseModel):\n    y: int\n    def f(self): return 1\nclass R(BaseModel):\n    x: list[In]",
        "return 1",
        "return 2",
        True,
    ),
    (
        "nested dataclass dc",
        "@dataclasses.dataclass\nclass In:\n    y: int\n    def f(self): return 1\n@dataclasses.dataclass\nclass R:\n    x: 'list[In]'",
        "return 1",
        "return 2",
        True,
    ),
    (
        "dc factory",
        "@dataclasses.dataclass\nclass R:\n    x: list = dataclasses.field(default_factory=lambda: [1])",
        "[1]",
        "[2]",
        True,
    ),
    (
        "dc compare",
        "@dataclasses.dataclass\nclass R:\n    x: int = dataclasses.field(compare=True)",
        "True",
        "False",
        True,
    ),
    (
        "dc repr",
        "@dataclasses.dataclass\nclass R:\n    x: int = dataclasses.field(repr=True)",
        "True",
        "False",
        True,
    ),
    (
        "dc kw_only",
        "@dataclasses.dataclass\nclass R:\n    x: int = dataclasses.field(kw_only=True)",
        "True",
        "False",
        True,
    ),
    (
        "dc metadata",
        "@dataclasses.dataclass\nclass R:\n    x: int = dataclasses.field(metadata={'a': 1})",
        "1",
        "2",
        True,
    ),
    ("dc frozen", "@dataclasses.dataclass(frozen=True)\nclass R:\n    x: int", "True", "False", True),
    ("dc order", "@dataclasses.dataclass(order=True)\nclass R:\n    x: int", "True", "False", True),
    ("dc slots default", "@dataclasses.dataclass(slots=True)\nclass R:\n    x: int = 1", "= 1", "= 2", True),
    ("typeddict", "class T(TypedDict):\n    a: int\nclass R(BaseModel):\n    x: T", "a: int", "a: str", True),
    ("typeddict total", "class R(TypedDict, total=True):\n    a: int", "True", "False", True),
    ("typeddict notreq", "class R(TypedDict):\n    a: Required[int]", "Required", "NotRequired", True),
    ("newtype", "U = NewType('U', int)\n@dataclasses.dataclass\nclass R:\n    x: U", "int)", "str)", True),
    ("literal alias", "T = Literal['a','b']\n@dataclasses.dataclass\nclass R:\n    x: T", "'b'", "'c'", True),
    (
        "annotated meta obj",
        "class M:\n    def __init__(self, n): self.n = n\nclass R(BaseModel):\n    x: Annotated[int, M(1)]",
        "M(1)",
        "M(2)",
        True,
    ),
    (
        "annotated meta cls",
        "class M:\n    def __get_pydantic_core_schema__(self, s, h): return h(s)\n    def f(self): return 1\nclass R(BaseModel):\n    x: Annotated[int, M()]",
        "return 1",
        "return 2",
        True,
    ),
    (
        "typing alias type",
        "from typing_extensions import TypeAliasType\nT = TypeAliasType('T', Literal['a','b'])\n@dataclasses.dataclass\nclass R:\n    x: T",
        "'b'",
        "'c'",
        True,
    ),
    (
        "enum method",
        "class R(enum.Enum):\n    A = 1\n    def f(self): return 1",
        "return 1",
        "return 2",
        True,
    ),
    ("enum member", "class R(enum.Enum):\n    A = 1", "A = 1", "A = 2", True),
    ("enum order", "class R(enum.Enum):\n    A = 1\n    B = 2", "A = 1\n    B = 2", "B = 2\n    A = 1", True),
    ("enum alias", "class R(enum.Enum):\n    A = 1\n    B = 2", "B = 2", "B = 1", True),
    (
        "default model inst",
        "class In(BaseModel):\n    y: int = Field(exclude=True)\nclass R(BaseModel):\n    x: In = In(y=1)",
        "y=1",
        "y=2",
        True,
    ),
    (
        "default enum",
        "class C(enum.Enum):\n    A = 1\n    B = 2\nclass R(BaseModel):\n    x: C = C.A",
        "= C.A",
        "= C.B",
        True,
    ),
    (
        "default func",
        "def f(): return 1\nclass R(BaseModel):\n    x: Callable = f",
        "return 1",
        "return 2",
        True,
    ),
    ("default set", "class R(BaseModel):\n    x: set[str] = {'a','b','c'}", "'c'", "'d'", True),
    (
        "default nonjson",
        "class Z:\n    def __init__(s, n): s.n=n\nclass R(BaseModel):\n    model_config = ConfigDict(arbitrary_types_allowed=True)\n    x: Z = Z(1)",
        "Z(1)",
        "Z(2)",
        True,
    ),
    (
        "reused validator",
        "def norm(v): return 1\nclass R(BaseModel):\n    x: int\n    _v = field_validator('x')(norm)",
        "return 1",
        "return 2",
        True,
    ),
    (
        "after validator",
        "def norm(v): return 1\nclass R(BaseModel):\n    x: Annotated[int, AfterValidator(norm)]",
        "return 1",
        "return 2",
        True,
    ),
    (
        "after lambda",
        "class R(BaseModel):\n    x: Annotated[int, AfterValidator(lambda v: 1)]",
        "v: 1",
        "v: 2",
        True,
    ),
    (
        "after partial",
        "def norm(v, k): return v\nclass R(BaseModel):\n    x: Annotated[int, AfterValidator(functools.partial(norm, k=1))]",
        "k=1",
        "k=2",
        True,
    ),
    (
        "before to after",
        "def norm(v): return v\nclass R(BaseModel):\n    x: Annotated[int, AfterValidator(norm)]",
        "[int, After",
        "[int, Before",
        True,
    ),
    (
        "validate_default",
        "class R(BaseModel):\n    x: int = Field(1, validate_default=False)",
        "False",
        "True",
        True,
    ),
    (
        "callable json extra",
        "class R(BaseModel):\n    x: int = Field(json_schema_extra=lambda s: s.update(a=1))",
        "a=1",
        "a=2",
        True,
    ),
    (
        "generic param",
        "T=TypeVar('T')\nclass In(BaseModel):\n    y: int\n    def f(self): return 1\nclass G(BaseModel, Generic[T]):\n    x: T\nR = G[In]",
        "return 1",
        "return 2",
        True,
    ),
    (
        "rootmodel",
        "class In(BaseModel):\n    y: int\n    def f(self): return 1\nclass R(RootModel[list[In]]): pass",
        "return 1",
        "return 2",
        True,
    ),
    (
        "validator order",
        "class R(BaseModel):\n    x: int\n    @field_validator('x')\n    def a(cls, v): return v+1\n    @field_validator('x')\n    def b(cls, v): return v*2",
        "def a(cls, v): return v+1\n    @field_validator('x')\n    def b(cls, v): return v*2",
        "def b(cls, v): return v*2\n    @field_validator('x')\n    def a(cls, v): return v+1",
        True,
    ),
    (
        "pyd dataclass",
        "from pydantic.dataclasses import dataclass as pd\n@pd\nclass R:\n    x: int = Field(ge=1)",
        "ge=1",
        "ge=2",
        True,
    ),
    (
        "pyd dataclass factory",
        "from pydantic.dataclasses import dataclass as pd\n@pd\nclass R:\n    x: list = Field(default_factory=lambda: [1])",
        "[1]",
        "[2]",
        True,
    ),
    (
        "namedtuple",
        "class R(NamedTuple):\n    a: int = 1\n    def f(self): return 1",
        "return 1",
        "return 2",
        True,
    ),
    ("namedtuple default", "class R(NamedTuple):\n    a: int = 1", "= 1", "= 2", True),
    ("namedtuple fields", "R = __import__('collections').namedtuple('R', 'a b')", "a b", "a c", True),
    (
        "descriptor",
        "class D:\n    def __get__(self, o, t): return 1\nclass R:\n    a = D()",
        "return 1",
        "return 2",
        True,
    ),
    ("slots", "class R:\n    __slots__ = ('a',)", "'a',", "'a','b'", True),
    (
        "property setter",
        "class R:\n    @property\n    def a(self): return 1\n    @a.setter\n    def a(self, v): self._v = v",
        "= v",
        "= -v",
        True,
    ),
    ("method default", "class R:\n    def f(self, n=1): return n", "n=1", "n=2", True),
    ("static", "class R:\n    @staticmethod\n    def f(): return 1", "return 1", "return 2", True),
    (
        "lru method",
        "class R:\n    @functools.lru_cache\n    def f(self): return 1",
        "return 1",
        "return 2",
        True,
    ),
    (
        "cached fn decorator",
        "def deco(f):\n    @functools.wraps(f)\n    def w(*a): return f(*a)+1\n    return w\nclass R:\n    @deco\n    def f(self): return 1",
        "+1",
        "+2",
        True,
    ),
    (
        "singledispatchmethod",
        "class R:\n    @functools.singledispatchmethod\n    def f(self, x): return 1",
        "return 1",
        "return 2",
        True,
    ),
    (
        "subclass hook init",
        "class Base:\n    def __init_subclass__(cls, **k): cls.z = k.get('z')\nclass R(Base, z=1): pass",
        "z=1",
        "z=2",
        True,
    ),
    ("match args", "class R:\n    __match_args__ = ('a',)", "'a'", "'b'", True),
    ("hash none", "class R:\n    __hash__ = None", "None", "object.__hash__", True),
    (
        "comment",
        "class R(BaseModel):\n    x: int\n    def f(self): return 1",
        "return 1",
        "return 1  # c",
        False,
    ),
    (
        "doc method",
        "class R(BaseModel):\n    x: int\n    def f(self):\n        'doc'\n        return 1",
        "'doc'",
        "'other'",
        False,
    ),
    (
        "alias with another",
        "class R(BaseModel):\n    x: int = Field(alias='a', validation_alias='b')",
        "alias='a'",
        "alias='c'",
        True,
    ),
    (
        "exclude_if",
        "class R(BaseModel):\n    x: int = Field(exclude_if=lambda v: v == 1)",
        "== 1",
        "== 2",
        True,
    ),
    (
        "order of a list beside a set",
        "class R(BaseModel):\n    s: set[str] = {'a', 'b'}\n    x: list[str] = ['a', 'b']",
        "['a', 'b']",
        "['b', 'a']",
        True,
    ),
    (
        "example in a set",
        "class R(BaseModel):\n    x: str = Field(examples=[{'a', 'b'}])",
        "'b'}]",
        "'c'}]",
        True,
    ),
    (
        "recursive alias",
        "from typing_extensions import TypeAliasType\nJ = TypeAliasType('J', 'Union[list[J], int]')\n@dataclasses.dataclass\nclass R:\n    x: J",
        "int]",
        "str]",
        True,
    ),
    (
        "bound",
        "class In:\n    def f(self): return 1\nT = TypeVar('T', bound=In)\n@dataclasses.dataclass\nclass R(Generic[T]):\n    x: T",
        "return 1",
        "return 2",
        True,
    ),
    (
        "alias in a Callable",
        "T = NewType('T', int)\n@dataclasses.dataclass\nclass R:\n    x: Callable[[T], int]",
        "int)",
        "str)",
        True,
    ),
    (
        "text that names nothing",
        "@dataclasses.dataclass\nclass R:\n    x: 'Nothing[int]'",
        "Nothing[int]",
        "Nothing[str]",
        True,
    ),
    (
        "text inside of a type",
        "@dataclasses.dataclass\nclass R:\n    x: list['Nothing']",
        "Nothing",
        "Other",
        True,
    ),
    ("iter of another", "class R:\n    __iter__ = list.__iter__", "list.", "tuple.", True),
    (
        "hash beside eq",
        "class R:\n    def __eq__(self, other): return True\n    __hash__ = None",
        "return True",
        "return False",
        True,
    ),
    ("docstring of a plain class", "class R:\n    'doc'\n    x = 1", "'doc'", "'other'", False),
    (
        "repr of a default",
        "class R(BaseModel):\n    model_config = ConfigDict(arbitrary_types_allowed=True)\n    x: Any = Field(default=Fraction(1, 2))",
        "(1, 2)",
        "(1, 3)",
        True,
    ),
    (
        "model default",
        "class In(BaseModel):\n    y: int = Field(exclude=True)\nclass R(BaseModel):\n    x: In = In(y=1)\n    s: set[int] = {1, 2}",
        "y=1",
        "y=2",
        True,
    ),
    (
        "field local to a function",
        "def make():\n    class In(BaseModel):\n        def f(self): return 1\n    class R(BaseModel):\n        x: 'In'\n        y: Annotated['In', Strict()]\n    return R\nR = make()",
        "return 1",
        "return 2",
        True,
    ),
    (
        "one that cannot be made yet",
        "class R(BaseModel):\n    x: 'list[Nothing]' = None",
        "Nothing",
        "Other",
        True,
    ),
]


def digest(monkeypatch: pytest.MonkeyPatch, source: str) -> str:
    """The digest of class R of a user's module."""
    module = types.ModuleType("module_of_classes")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "<module>", "exec", dont_inherit=True), vars(module))
    return class_digest(vars(module)["R"], {})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("start", [HEAD, FUTURE + HEAD], ids=["now", "future"])
@pytest.mark.parametrize(
    ("source", "before", "after", "counts"), [edit[1:] for edit in EDITS], ids=[e[0] for e in EDITS]
)
def test_an_edit_of_a_class_counts_if_it_changes_what_the_class_does(
    start: str, source: str, before: str, after: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert before in source
    old = digest(monkeypatch, start + source)
    assert digest(monkeypatch, start + source) == old
    assert (digest(monkeypatch, start + source.replace(before, after)) != old) is counts


if sys.version_info >= (3, 12):

    def test_what_a_type_statement_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
        source = HEAD + "type Topic = Literal['a', {}]\n@dataclasses.dataclass\nclass R:\n    x: Topic"
        assert digest(monkeypatch, source.format("'b'")) != digest(monkeypatch, source.format("'c'"))
        broken = HEAD + "type Topic = Nothing\n@dataclasses.dataclass\nclass R:\n    x: Topic"
        assert digest(monkeypatch, broken) == digest(monkeypatch, broken)


KEPT = {
    "label: Literal['a', 'b']\n    score: float = Field(description='s', gt=0)": "9967008fdf88a3f700e2782a9fcf3e5a7f30e98bd787e1d53f60a7f286807918",
    "x: list[str] = []\n    y: dict[str, int] = {'a': 1}\n    z: Optional[str] = None": "b128eecf20966746be43305281d03c610fdc15f6dc14ef051240e97c7ab8e029",
    "x: Annotated[str, Field(description='d', min_length=1)]\n    y: list[str] = Field(default_factory=list)": "1473fb7fdf64cc4159c06a70e38106425e1fad63fd3c3132ffe83de3ed1ee25a",
}


@pytest.mark.parametrize(("fields", "before"), KEPT.items())
def test_schemas_without_anything_hidden_have_the_digests_they_had(
    fields: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update must not make users pay again for answers that nothing new is known about."""
    assert digest(monkeypatch, f"{HEAD}class R(BaseModel):\n    {fields}") == before


SETS = """
class Topic(enum.Enum):
    A='a'; B='b'; C='c'; D='d'
class TopicS(str, enum.Enum):
    A='a'; B='b'; C='c'; D='d'
class Fz(BaseModel, frozen=True):
    n: str
class Obj:
    def __repr__(self): return object.__repr__(self)
@dataclasses.dataclass(frozen=True)
class Dc:
    s: frozenset = frozenset('abcdef')
class R0(BaseModel):
    topics: set[Topic] = {Topic.A, Topic.B, Topic.C}
class R1(BaseModel):
    topics: dict[str, set] = {'x': {'a','b','c','d'}}
class R2(BaseModel):
    topics: frozenset[TopicS] = frozenset(TopicS)
class R3(BaseModel):
    a: str = Field(examples=[{'q','w','e','r'}])
class R4(BaseModel):
    a: str = Field(json_schema_extra={'k': {'q','w','e','r'}})
class R5(BaseModel):
    a: set[frozenset[str]] = Field(default={frozenset('abcd'), frozenset('xyzw')})
class R6(BaseModel):
    a: set[Fz] = {Fz(n=c) for c in 'abcdef'}
class R7(BaseModel):
    inner: R0 = R0()
class R8(BaseModel):
    inner: list[R3]
class R9(BaseModel):
    a: Annotated[str, Field(examples=[{'q','w','e','r'}])]
class R10(BaseModel):
    a: Annotated[str, {'q','w','e','r'}]
class R11(BaseModel):
    a: Dc = Dc()
class R12(BaseModel):
    model_config = ConfigDict(json_schema_extra={'examples': [{'q','w','e','r'}]})
    a: str
class R13(BaseModel):
    def f(self, x): return x in {'a','b','c','d'}
    _p: set = {'q','w','e','r'}
class R14(BaseModel):
    a: set[str] = Field(default_factory=lambda: {'q','w','e','r'})
class R15(BaseModel):
    a: tuple[set[str], ...] = ({'q','w','e','r'}, {'z','x'})
class R16(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    a: Annotated[str, Obj()] = 'x'
    b: Obj = Obj()
class R17(BaseModel):
    a: Dc | None = None
    b: dict[str, Dc] = {'k': Dc()}
class R18(TypedDict):
    a: Annotated[str, Field(examples=[{'q','w','e','r'}])]
class R19(BaseModel):
    t: R18
    l: set[Union[int, str]] = {1, 'a', 'b', 2.5}
class R20(BaseModel):
    b: set[bytes] = {b'a', b'b', b'c'}
    c: set[tuple] = {('a', 1), ('b', 2)}
class R21(BaseModel):
    a: set[str] = {'x','y','z'}
    b: list[str] = ['z','x','y']
@dataclasses.dataclass
class R22:
    a: Annotated[set, {'q','w','e','r'}] = dataclasses.field(default_factory=lambda: {'a','b'}, metadata={'m': {'q','w','e'}})
class R23(BaseModel):
    a: str = Field(deprecated=False, pattern='a', json_schema_extra=lambda s: s)
    b: re.Pattern = re.compile('a')
"""

PROCESS = """
import types, sys, warnings
from tagent_nb.cache.fingerprint.components import unit_key
from tagent_nb.cache.fingerprint.dependencies import class_digest
from tagent_nb.serde.schemas import meaning_of
from tests.cache.test_fingerprint import agent, changed
from tagent_nb.serde.schemas import json_schema, schema_hash
from tests.cache.test_classes import EDITS, HEAD, SETS
from tests.cache.test_fingerprint import agent, components
from tagent_nb.pipeline.python_body import PythonBody
from tagent_nb.pipeline import PipelineStep

warnings.simplefilter("ignore")
for source in [SETS, *(edit[1] for edit in EDITS)]:
    module = sys.modules["module_of_classes"] = types.ModuleType("module_of_classes")
    exec(compile(HEAD + source, "<module>", "exec", dont_inherit=True), vars(module))
    for name, kind in sorted(vars(module).items()):
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            print(source[:40].replace(chr(10), " "), name, class_digest(kind, {}), end=" ")
            if hasattr(kind, "model_json_schema"):
                try:
                    print(schema_hash(kind), json_schema(kind), end="")
                except Exception as error:
                    print(type(error).__name__, end="")
            print()

def tool(x: "Annotated[str, {'q', 'w', 'e', 'r'}]", y: "R1") -> None: ...
tool.__globals__.update(vars(module))
print(unit_key(agent(tools=[tool])))
body = PythonBody.from_function(eval("lambda: 'a' in {'q', 'w', 'e', 'r'}"))
print(unit_key(components(PipelineStep("step", "step", body=body))))
"""


def test_digests_of_classes_are_the_same_in_every_process() -> None:
    root = str(Path(__file__).parents[2])
    processes: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
        )
        for seed in ("1", "2", "3", "4")
    ]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(outputs[0]) > 100
    assert [lines for lines in zip(*outputs, strict=True) if len(set(lines)) > 1] == []


class Broken:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("no copies")


def test_what_raises_when_it_is_looked_at_counts_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NOTE", Broken())
    source = f"{HEAD}from {__name__} import NOTE\n@dataclasses.dataclass\nclass R:\n    x: int = dataclasses.field(metadata={{'a': NOTE}})"
    assert digest(monkeypatch, source) == digest(monkeypatch, source)
    monkeypatch.setitem(globals(), "NOTE", 1)
    assert digest(monkeypatch, source) != digest(monkeypatch, source.replace("NOTE}", "'b'}"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_set_that_is_no_json_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    start = (
        HEAD
        + "class Z: pass\nclass R(BaseModel):\n    model_config = ConfigDict(arbitrary_types_allowed=True)\n"
    )
    assert digest(monkeypatch, start + "    x: Any = {Z()}") != digest(
        monkeypatch, start + "    x: Any = {1}"
    )


def test_a_name_for_a_type_that_cannot_be_looked_up_is_no_trouble() -> None:
    late = type("TypeAliasType", (), {"__value__": property(lambda self: 1 / 0), "__name__": "Late"})
    assert meaning_of(late()) == []


def test_the_types_of_a_tools_parameters_count() -> None:
    def components(source: str) -> dict[str, str]:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(FUTURE + HEAD + source, "<cell>", "exec", dont_inherit=True), space)
        return agent(tools=[space["look"]])

    def edited(source: str, before: str, after: str) -> set[str]:
        assert components(source) == components(source)
        return changed(components(source), components(source.replace(before, after)))

    model = "class Query(BaseModel):\n    text: str = 'a'\ndef look(query: list[Query]): pass"
    assert edited(model, "'a'", "'b'") == {"class:Query"}
    topic = "Topic = Literal['a', 'b']\ndef look(query: Topic): pass"
    assert edited(topic, "'b'", "'c'") == {"tool:look"}
    assert edited("def look(query: int): pass", "int", "str") == {"tool:look"}
    assert edited("class Other: pass\ndef look(query: int): pass", "class Other: pass", "") == set()


@pytest.mark.parametrize(
    "code",
    [
        "class R(enum.Flag):\n    A = 1\n    B = 2\ndef use(): R.A | R.B, ~R.A, R(0)",
        "class R(enum.IntFlag):\n    A = 1\n    B = 2\ndef use(): R.A | 8, R(64)",
        "class R(enum.IntFlag, boundary=enum.KEEP):\n    A = 1\ndef use(): R(-9), R(6)",
        "class F(enum.Flag):\n    A = 1\n    B = 2\nclass R(BaseModel):\n    x: F = F.A\ndef use(): R(x=3)",
        "class R:\n    @functools.lru_cache\n    def f(self): return 1\n    @functools.singledispatchmethod\n"
        "    def g(self, x): return x\ndef use(): R().f(), R().g(1), R().g('a')",
        "import abc\nclass R(abc.ABC): pass\ndef use(): isinstance(1, R), R.register(int)",
        "class R(BaseModel, Generic[T]):\n    x: T\ndef use(): R[int](x=1), R[int].model_json_schema()",
    ],
    ids=["flag", "int flag", "kept bits", "flag in a model", "caches", "abstract", "generic"],
)
def test_a_class_is_the_same_after_it_was_used(code: str) -> None:
    """Combinations of flags, for one, which the class keeps, are no edit of it."""
    module = types.ModuleType("users_module")
    sys.modules["users_module"] = module
    try:
        exec(compile(f"{HEAD}T = TypeVar('T')\n{code}", "<cell>", "exec"), vars(module))
        before = class_digest(vars(module)["R"], {})
        vars(module)["use"]()
        assert class_digest(vars(module)["R"], {}) == before
    finally:
        del sys.modules["users_module"]
