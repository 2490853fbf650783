"""The codec keeps values as they are, refuses what it cannot keep, and trusts no bytes."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import pickle
import re
import sys
import threading
import typing
from array import array
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    PrivateAttr,
    RootModel,
    SecretBytes,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema
from typing_extensions import TypeAliasType

from tagent_nb.errors import CorruptRecordError, EncodeError
from tagent_nb.serde import StoredValue, digest, from_tree, parse, to_tree
from tagent_nb.serde import encoder as encoding
from tagent_nb.serde import value as codec
from tagent_nb.serde.value import decode, encode

T = TypeVar("T")


class Plain:
    """A class of the user's own that is no dataclass."""


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


class Row(NamedTuple):
    text: str
    score: int


class Label(BaseModel):
    name: str
    colour: Colour = Colour.RED
    parts: list[Point] = []


class NoSchema:
    """A type whose schema needs more than the annotation of one field."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        if handler.field_name is None:
            raise RuntimeError("only inside of a model")
        return core_schema.is_instance_schema(cls)


class Review(BaseModel):
    label: Label
    when: datetime | None = None
    tags: set[str] = set()


SCHEMAS: dict[str, type] = {
    schema.__name__: schema for schema in (Colour, Level, Word, Point, Row, Label, Review)
}


def again(value: Any, schemas: Mapping[str, type] | None = SCHEMAS) -> Any:
    """A value after it was stored and read."""
    return decode(encode(value), schemas)


def same(value: Any, other: Any) -> bool:
    """Equal, of the same types, in the same order, and NaN like NaN."""
    if type(value) is not type(other):
        return False
    if isinstance(value, float):
        return math.isnan(value) == math.isnan(other) and (math.isnan(value) or value == other)
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(same(a, b) for a, b in zip(value, other, strict=True))
    if isinstance(value, dict):
        return same(list(value.items()), list(other.items()))
    return bool(value == other)


# -- what is kept -------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    0,
    -1,
    10**4299,
    1.5,
    -0.0,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "grüße 🌍 \x00 \u2028 </script>",
    [],
    {},
    [1, [2.5, ["x", None]]],
    [1, 2.5, math.nan],
    {"b": 1, "a": {"$": 2}},
    {"$t": "tuple", "v": [1]},
    {"x": {"$t": 1}},
    {1: "a", "1": "b"},
    {None: 1, True: 2, 2.5: 3, (1, "a"): 4},
    (),
    (1, (2, [3])),
    {1, 2, 3},
    {"a", 1, None, (1, 2)},
    frozenset({1, 2}),
    {frozenset({1}), frozenset()},
    datetime(2024, 2, 29, 12, 30, 15, 123456),
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, seconds=7))),
    date(1, 1, 1),
    time(23, 59, 59, 999999),
    time(12, tzinfo=UTC),
    timedelta(days=-3, seconds=5, microseconds=7),
    Decimal("1.10"),
    Decimal("Infinity"),
    Decimal("-1E+400"),
    b"",
    b"\x00\xff",
    UUID(int=7),
    Path("a/b c.txt"),
    PurePosixPath("/x"),
    PureWindowsPath("C:/x"),
    range(1, 10, 3),
    Colour.BLUE,
    Level.LOW,
    Word.YES,
    Point(1, 2.0),
    Row("a", 1),
    Label(name="x"),
    Review(label=Label(name="x", parts=[Point(1)]), when=datetime(2024, 1, 1, tzinfo=UTC), tags={"b", "a"}),
    {"deep": [{"er": (Label(name="x"), {Colour.RED: [Point(0)]})}]},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    assert same(again(value), value)
    assert same(from_tree(to_tree(value), SCHEMAS), value)


def test_a_zone_comes_back_by_name_with_its_rules() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    twice = datetime(2024, 10, 27, 2, 30, tzinfo=berlin, fold=1)
    back = again([twice, twice.replace(fold=0), time(9, tzinfo=berlin)])
    assert [value.tzinfo for value in back] == [berlin] * 3
    assert [value.fold for value in back] == [1, 0, 0]
    assert back[0].utcoffset() == timedelta(hours=1)


def test_a_zone_this_machine_does_not_know_keeps_the_instant() -> None:
    stored = encode(datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))).replace(
        b"Europe/Berlin", b"Mars/Olympus"
    )
    assert decode(stored) == datetime(2024, 6, 30, 22, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["../../etc/passwd", "/etc/passwd", "", 7])
def test_a_zone_is_looked_up_never_opened(zone: Any) -> None:
    """Names that are paths fall back to the offset beside them."""
    node = {"$t": "datetime", "v": "2024-01-01T00:00:00+01:00", "zone": zone}
    assert from_tree(node).utcoffset() == timedelta(hours=1)


def test_subclasses_of_plain_types_come_back_as_these() -> None:
    class Text(str):
        def __str__(self) -> str:
            return "never called"

    class Count(int):
        pass

    class Share(float):
        pass

    class Names(list[str]):
        pass

    class Pair(tuple[int, int]):
        pass

    values = [Text("a"), Count(3), Share(0.5), Names(["x"]), Pair((1, 2))]
    assert same(again(values), ["a", 3, 0.5, ["x"], (1, 2)])
    made = defaultdict(lambda: [0], x=[1])  # a function cannot be stored
    assert same(again([MappingProxyType({"k": 2}), made]), [{"k": 2}, {"x": [1]}])


@pytest.mark.parametrize(
    "value",
    [
        Counter("aab"),
        Counter({1: 2, (1, 2): -3}),
        OrderedDict(b=1, a=[2]),
        defaultdict(list, x=[1]),
        defaultdict(None, {1: 2}),
        deque([1, (2,)], maxlen=3),
        deque(["x"]),
        bytearray(b"x"),
    ],
    ids=repr,
)
def test_containers_of_collections_come_back_as_they_were(value: Any) -> None:
    """A step that counts with a Counter can do so as well when its value comes from the cache."""
    back = again([value])[0]
    assert same(back, value)
    assert getattr(back, "maxlen", 0) == getattr(value, "maxlen", 0)
    assert getattr(back, "default_factory", 0) is getattr(value, "default_factory", 0)
    plain = {defaultdict: dict, bytearray: bytes, deque: list}.get(type(value), dict)(value)
    assert digest(value) != digest(plain)


@pytest.mark.parametrize("made", [dict, OrderedDict])
@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_views_of_dicts_come_back_as_they_were(made: Any, view: str) -> None:
    value = getattr(made({"b": [1], 1: (2,), Colour.RED: Point(1), "a": {}}), view)()
    back = again(value)
    assert type(back) is type(value)
    assert list(back) == list(value)
    assert digest(value) == digest(back) == StoredValue.of(value).digest
    assert digest([*made({"a": 1, "b": 2}).keys()]) != digest(made({"a": 1, "b": 2}).keys())


def test_views_whose_keys_lost_their_class_come_back_as_lists() -> None:
    points = {Point(1): "a", Point(2): "b"}
    assert again(points.keys(), None) == [{"x": 1, "y": 0.0}, {"x": 2, "y": 0.0}]
    assert again({Colour.RED: 1, "red": 2}.keys(), None) == ["red", "red"]
    with pytest.raises(CorruptRecordError, match="A stored view cannot be read"):
        from_tree({"$t": "view", "of": "dict", "shows": "more", "v": []})


def test_only_an_ordered_dict_is_known_by_its_order() -> None:
    assert digest(Counter("ab")) == digest(Counter("ba"))
    assert digest(defaultdict(int, a=1, b=2)) == digest(defaultdict(int, b=2, a=1))
    assert digest(OrderedDict(a=1, b=2)) != digest(OrderedDict(b=2, a=1))


def test_a_mapping_whose_keys_lost_their_class_comes_back_as_pairs() -> None:
    counted = Counter([Point(1, 2)])
    assert again(counted, {"Point": Point}) == counted
    assert again(counted, None) == [({"x": 1, "y": 2}, 1)]


def test_dicts_keep_their_order() -> None:
    """People see it: in templates, tables and files."""
    assert list(again({"b": 1, "a": 2})) == ["b", "a"]
    assert list(again({2: "x", 1: "y"})) == [2, 1]


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([*Colour, *Level])
)
KEYS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.just("$t")
)
ANY = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.lists(inner).map(tuple)
        | st.sets(st.integers() | st.text(max_size=2).filter(str.isascii))
    ),
    max_leaves=15,
)


@given(ANY)
@settings(max_examples=300)
def test_any_value_survives_and_its_digest_with_it(value: Any) -> None:
    """What comes back is the same, is stored as the same bytes, and has the same digest."""
    blob = encode(value)
    back = decode(blob, SCHEMAS)
    assert same(back, value)
    assert encode(back) == blob
    assert digest(back) == digest(value) == StoredValue.of(value).digest
    assert same(from_tree(to_tree(value), SCHEMAS), value)


# -- digests ------------------------------------------------------------------------------------


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert digest({"b": [1], "a": 2}) == digest({"a": 2, "b": [1]})
    assert digest({1: "x", 2: "y"}) == digest({2: "y", 1: "x"})
    assert digest({"x", "y", "z"}) == digest({"z", "y", "x"})
    assert digest({1: {3, 2}, "$t": 0}) == digest({"$t": 0, 1: {2, 3}})


def test_other_values_have_other_digests() -> None:
    values = [1, 1.0, True, "1", [1], (1,), {1}, frozenset({1}), {"1": 1}, {1: 1}, None, b"1", Decimal(1)]
    assert len({digest(value) for value in values}) == len(values)


def test_the_schema_of_a_model_is_no_part_of_its_digest() -> None:
    """A reworded description must not run again what reads the value."""

    def model(text: str) -> Any:
        class Answer(BaseModel):
            label: str = Field(default="x", description=text)

        return Answer

    first, other = model("one")(label="y"), model("other")(label="y")
    assert encode(first) != encode(other)
    assert digest(first) == digest(other) == StoredValue.of(first).digest
    assert digest(model("one")()) == digest(model("one")(label="x"))


def test_the_digest_is_the_same_however_it_was_asked_for() -> None:
    for value in ("text", [1, 2], {"b": 1, "a": 2}, {1: 2}, Label(name="x"), {3, 1, 2}):
        after_blob = StoredValue.of(value)
        assert after_blob.blob
        assert after_blob.digest == StoredValue.of(value).digest == digest(value)


# -- classes ------------------------------------------------------------------------------------


def test_without_their_classes_values_come_back_as_plain_data() -> None:
    value = {"m": Label(name="x"), "d": Point(1, 2.0), "e": Colour.RED, "l": [Level.LOW]}
    assert again(value, None) == {
        "m": {"name": "x", "colour": "red", "parts": []},
        "d": {"x": 1, "y": 2.0},
        "e": "red",
        "l": [1],
    }


def test_a_named_tuple_keeps_its_fields_even_without_its_class() -> None:
    back = again(Row("a", 1), None)
    assert back == Row("a", 1)
    assert (back.text, back.score) == ("a", 1)
    assert type(again(Row("a", 1), {"Row": int})) is not Row
    with pytest.raises(CorruptRecordError, match="namedtuple"):
        from_tree({"$t": "namedtuple", "name": "Row", "v": [["import os", 1]]})


def test_rows_of_a_frame_are_named_tuples() -> None:
    rows = list(pd.DataFrame({"a": [1, 2], "class": ["x", "y"], "b c": [1.5, None]}).itertuples())
    back = again(rows, None)
    assert [type(value)._fields for value in back] == [("Index", "a", "_2", "_3")] * 2
    assert back[0] == rows[0]
    assert back[1].a == 2
    with pytest.raises(CorruptRecordError, match="no names of fields"):
        from_tree({"$t": "namedtuple", "name": "Row", "v": [["def", 1]]})


# -- several classes of one name ----------------------------------------------------------------


def defined(name: str, source: str) -> dict[str, Any]:
    """The names of a module of the user's, which is not loaded any more."""
    begin = "from dataclasses import dataclass\nfrom enum import *\nfrom typing import *\n"
    begin += "from typing_extensions import TypedDict\n"
    sys.modules[name] = module = ModuleType(name)
    try:
        exec(compile(begin + source, name, "exec", dont_inherit=True), vars(module))
    finally:
        del sys.modules[name]
    return vars(module)


MODEL = "from pydantic import BaseModel\nclass A(BaseModel):\n    "


@pytest.mark.parametrize(
    ("chosen", "other", "make"),
    [
        (MODEL + "n: float", MODEL + "n: int", "A(n=3)"),
        (MODEL + "n: int", MODEL + "n: float", "A(n=3)"),
        (MODEL + "n: int", "@dataclass\nclass A:\n    n: int", "A(n=3)"),
        ("@dataclass\nclass A:\n    n: float", "@dataclass\nclass A:\n    n: int", "A(3.0)"),
        ("class A(Enum):\n    X = 1", "class A(Enum):\n    Y = 1", "A.X"),
        ("class A(Flag):\n    X = 1\n    Y = 2", "class A(IntFlag):\n    X = 1\n    Y = 2", "A.X | A.Y"),
        ("class A(NamedTuple):\n    x: int", "class A(NamedTuple):\n    x: str", "A(1)"),
        ("class B:\n    class A(Enum):\n        X = 1", "class A(Enum):\n    X = 1", "B.A.X"),
    ],
)
def test_of_two_classes_of_one_name_the_one_that_was_stored_is_used(
    chosen: str, other: str, make: str
) -> None:
    first, second = defined("first", chosen), defined("second", other)
    value = eval(make, first)
    for classes in (
        {"a": first["A" if "A" in first else "B"], "A": second["A"]},
        {**second, "B": first.get("B", first.get("A"))},
    ):
        back = again(value, {name: kind for name, kind in classes.items() if isinstance(kind, type)})
        assert type(back) is type(value)
        assert same(back, value)


def test_a_class_of_the_same_name_that_does_not_fit_gives_plain_data() -> None:
    for first, other, make, plain in (
        (MODEL + "n: float", MODEL + "n: int", "A(n=3)", {"n": 3.0}),
        (MODEL + "n: set[int]", MODEL + "n: list[int]", "A(n=[3])", {"n": {3}}),
        (MODEL + "n: dict[str, float]", MODEL + "n: dict[str, int]", "A(n={'a': 1})", {"n": {"a": 1.0}}),
        (MODEL + "n: tuple[int, ...]", MODEL + "n: tuple[int, str]", "A(n=(1, 2))", {"n": (1, 2)}),
        (MODEL + "n: Any", MODEL + "n: Literal[1, 'a']", "A(n=True)", {"n": True}),
        (MODEL + "n: Any", MODEL + "n: None", "A(n=0)", {"n": 0}),
        (MODEL + "n: Any", MODEL + "n: NewType('N', int)", "A(n='1')", {"n": "1"}),
        (MODEL + "n: Any", MODEL + "n: Annotated[int, 1] | str", "A(n=1.0)", {"n": 1.0}),
        (MODEL + "n: Any", MODEL + "n: TypedDict('N', {'a': int})", "A(n=[])", {"n": []}),
        ("@dataclass\nclass A:\n    n: float", "@dataclass\nclass A:\n    n: int", "A(3.0)", {"n": 3.0}),
        ("class A(Enum):\n    X = 1", "class A(Enum):\n    X = 1.0", "A.X", 1),
        ("class A(Enum):\n    X = True", "class A(IntEnum):\n    X = 1", "A.X", True),
        ("class A(Flag):\n    X = 4", "class A(Flag):\n    X = 1", "A.X", 4),
    ):
        value = eval(make, defined("first", first))
        assert same(again(value, {"A": defined("second", other)["A"]}), plain), (first, other)


def test_a_class_that_was_changed_is_used_where_it_holds_the_value_as_it_is() -> None:
    for first, other, make in (
        (MODEL + "n: float", MODEL + "n: float | None", "A(n=3)"),
        (
            MODEL + "n: int",
            "from pydantic import HttpUrl\n" + MODEL + "n: Annotated[int, 'x'] | HttpUrl",
            "A(n=3)",
        ),
        (MODEL + "n: list[int]", MODEL + "n: Sequence[int | str]", "A(n=[3])"),
        (MODEL + "n: dict[str, int]", MODEL + "n: Mapping[str, Any]", "A(n={'a': 1})"),
        (MODEL + "n: Any", MODEL + "n: tuple[int, str] | list", "A(n=(1, 'a'))"),
        (MODEL + "n: Any", MODEL + "n: TypedDict('N', {'a': int})", "A(n={'a': 1})"),
        (MODEL + "n: str", "from pydantic import EmailStr\n" + MODEL + "n: Callable | str", "A(n='a')"),
        ("@dataclass\nclass A:\n    n: float", "@dataclass\nclass A:\n    n: 'float | None'", "A(3.0)"),
        ("@dataclass\nclass A:\n    n: float", "@dataclass\nclass A:\n    n: 'Missing'", "A(3.0)"),
        ("class A(Enum):\n    X = 'a'", "class A(StrEnum):\n    Y = 'a'", "A.X"),
    ):
        kind = defined("second", other)["A"]
        back = again(eval(make, defined("first", first)), {"A": kind})
        assert type(back) is kind, (first, other)


def test_values_of_earlier_versions_find_their_class_by_name() -> None:
    """Their nodes have neither the place nor the shape of a class."""
    values = [Label(name="x", colour=Colour.BLUE, parts=[Point(1)]), Row("a", 1), {Level.LOW: Colour.RED}]

    def as_before(tree: Any) -> Any:
        if isinstance(tree, list):
            return [as_before(part) for part in tree]
        if not isinstance(tree, dict):
            return tree
        return {key: as_before(part) for key, part in tree.items() if key not in ("class", "args", "shape")}

    tree = as_before(to_tree(values))
    assert "schema" in repr(tree)
    assert same(from_tree(tree, SCHEMAS), values)
    assert from_tree(tree, {"Label": changed_label(name=int, colour=str, parts=list)})[0]["name"] == "x"
    assert from_tree(tree)[1]._fields == Row._fields
    no_memo = {"$t": "enum", "name": "Strange", "v": [1]}
    strange = defined("m", "class Strange(Enum):\n    X = [1]")["Strange"]
    assert from_tree(no_memo, {"Strange": strange}) is strange.X
    assert from_tree({**no_memo, "v": [2]}, {"Strange": strange}) == [2]


def test_members_of_enums_are_found_by_value_alone() -> None:
    class Odd(Enum):
        NOT_A_NUMBER = math.nan
        LISTED = ["a"]  # noqa: RUF012 - the value of a member
        TEXT = type("Text", (str,), {})("x")

        @classmethod
        def _missing_(cls, value: object) -> Any:
            raise AssertionError("asked the user's code")

    for member in Odd:
        assert again(member, {"Odd": Odd}) is member
    assert from_tree({"$t": "enum", "name": "Odd", "v": "y"}, {"Odd": Odd}) == "y"


def test_arguments_of_generic_models_that_have_no_name() -> None:
    class Of(BaseModel, Generic[T]):
        own: T

    named: Any = TypeAliasType("named", Callable[[T], T], type_params=(T,))
    for kind in (
        Of[Annotated[int, AfterValidator(abs)]],
        Of[Callable[[int], int]],
        Of[Literal[Colour.RED]],
        Of[named[int]],
    ):
        value = kind.model_construct(own=1)
        assert type(again(value, {"Other": kind})) is kind
        assert again(value, {"Of": Of}) == {"own": 1}
    assert again(Of[int](own=1), None) == {"own": 1}
    tree = {"$t": "model", "name": "Of[int]", "class": "m:Of", "v": {"own": 1}}
    for args in ([1], [{"class": "builtins:dict", "args": ["builtins:int"]}], ["nowhere:Gone"]):
        assert from_tree({**tree, "args": args}, {"Of": Of}) == {"own": 1}


def test_a_class_that_is_generic_no_longer_leaves_its_values_plain() -> None:
    class Of(BaseModel):
        own: int

    now = to_tree(Of(own=1))
    then = {**now, "name": "Of[int]", "args": ["builtins:int"]}
    assert from_tree(then, {"Of": Of}) == {"own": 1}
    assert from_tree(now, {"Of": Of}) == Of(own=1)


def test_an_outer_class_rebuilds_what_is_inside_it() -> None:
    """A nested class needs no place of its own in the registry."""
    review = Review(label=Label(name="x", colour=Colour.BLUE, parts=[Point(1)]))
    assert again(review, {"Review": Review}) == review


def test_fields_that_were_never_set_stay_unset() -> None:
    back = again(Label(name="x"))
    assert back.model_dump(exclude_unset=True) == {"name": "x"}


def test_extra_fields_aliases_and_root_models() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        given: int = Field(alias="givenName")

    class Words(RootModel[list[str]]):
        pass

    classes: dict[str, type] = {"Open": Open, "Words": Words}
    opened = Open.model_validate({"givenName": 1, "more": [2]})
    assert again(opened, classes) == opened
    assert again(opened, None) == {"given": 1, "more": [2]}
    assert again(Words(["a"]), classes) == Words(["a"])
    assert again(Words(["a"]), None) == ["a"]


def test_types_of_a_models_own_are_stored_as_the_model_says() -> None:
    class Page(BaseModel):
        url: HttpUrl
        seen: deque[int] = deque()

    page = Page(url=HttpUrl("https://example.org/"), seen=deque([1, 2]))
    assert again(page, {"Page": Page}) == page
    assert again(page, None) == {"url": "https://example.org/", "seen": deque([1, 2])}


def test_root_models_of_types_of_their_own_are_stored_as_the_model_says() -> None:
    class Address(RootModel[HttpUrl]):
        pass

    class Addresses(RootModel[list[HttpUrl]]):
        pass

    url = "https://example.org/"
    for value, plain in ((Address(HttpUrl(url)), url), (Addresses([HttpUrl(url)]), [url])):
        assert same(again(value, {"Address": Address, "Addresses": Addresses}), value)
        assert again(value, None) == plain


class Money:
    """Stored only by what the models that hold it write of it."""

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.amount == self.amount

    def __hash__(self) -> int:
        return hash(self.amount)


def read_money(cls: Any, value: Any) -> Any:
    return value if isinstance(value, Money) else Money(value)


def write_money(self: Any, value: Money) -> int:  # pydantic takes it for a method by this name
    return value.amount


class OfAnyType(BaseModel):
    price: Any

    read = field_validator("price")(read_money)
    write = field_serializer("price")(write_money)


class OfRoot(RootModel[Any]):
    read = field_validator("root")(read_money)
    write = field_serializer("root")(write_money)


class KnowsItsField(Money):
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        assert handler.field_name == "price", "only in a model, which tells its field's name"
        write = core_schema.plain_serializer_function_ser_schema(lambda value: value.amount)
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value), serialization=write
        )


class OfItsField(BaseModel):
    price: KnowsItsField


@pytest.mark.parametrize("value", [OfAnyType(price=3), OfRoot(3), OfItsField(price=3)])
def test_what_only_the_models_own_validators_can_read_is_read_by_them(value: BaseModel) -> None:
    """Its field's annotation does not say how, or not by itself."""
    kind = type(value)
    back = again(value, {kind.__name__: kind})
    assert type(back) is kind
    assert back == value


def test_what_a_model_was_given_without_validation_comes_back_as_it_was() -> None:
    """Reading it makes it no other type, although its annotation would."""

    class Inner(BaseModel):
        x: int = 0

    class Outer(BaseModel):
        numbers: Sequence[float]
        inner: Sequence[Inner]

    value = Outer.model_construct(numbers=[3, True, 0.5], inner=[{"x": 1}, Inner(x=1)])
    back = again(value, {"Outer": Outer, "Inner": Inner})
    assert type(back) is Outer
    assert same(back.numbers, value.numbers)
    assert same(back.inner, value.inner)


def test_a_type_that_the_model_cannot_write_either_is_refused() -> None:
    class Held(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: object

    with pytest.raises(EncodeError, match=r"^output\.thing: an object of class builtins\.object cannot"):
        encode(Held(thing=object()))


def test_a_schema_that_json_schema_cannot_express_is_no_obstacle() -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        path: Path = Path("a")
        call: Callable[[int], int] | None = None
        plain: Plain | None = None
        odd: Any = object()

    odd = Odd(path=Path("b"), odd=1)
    assert again(odd, {"Odd": Odd}) == odd


def changed_label(**fields: Any) -> type:
    return type("Label", (BaseModel,), {"__annotations__": dict(fields)})


def test_a_class_that_no_longer_fits_gives_plain_data() -> None:
    """Values of an old run are shown as they were, never bent into another meaning."""
    blob = encode(Label(name="x"))
    plain = {"name": "x", "colour": "red", "parts": []}
    assert decode(blob, {"Label": changed_label(other=str)}) == plain
    assert decode(blob, {"Label": changed_label(name=int, colour=str, parts=list)}) == plain
    assert decode(blob, {"Label": Point}) == plain
    assert decode(blob, {"Label": "not a class"}) == plain  # type: ignore[dict-item]


def test_a_class_with_the_very_same_fields_is_used() -> None:
    back = decode(encode(Label(name="x")), {"Label": changed_label(name=str, colour=str, parts=list)})
    assert isinstance(back, BaseModel)


def test_a_root_model_without_a_name_is_a_class_by_its_arguments() -> None:
    for value in (
        RootModel[list[int]]([1]),
        RootModel[list[int] | None](None),
        RootModel[dict[str, tuple[float, ...]]]({"a": (1.0, 2.0)}),
        RootModel[Literal["a", 1]]("a"),
        RootModel[typing.List[Decimal]]([Decimal(1)]),  # noqa: UP006 - another class than list[Decimal]
        RootModel[RootModel[int]](RootModel[int](1)),
        RootModel[typing.Optional[Any]](1.0),  # noqa: UP045
    ):
        for schemas in (None, {type(value).__name__: RootModel[list[float]]}):
            back = again(value, schemas)
            assert type(back) is type(value)
            assert same(back, value)


def test_a_root_model_whose_class_changed_converts_nothing() -> None:
    class Words(RootModel[list[int]]):
        pass

    changed = type("Words", (RootModel[list[float]],), {"__module__": "elsewhere"})
    assert same(again(Words([1]), {"Words": changed}), [1])
    wider = type("Words", (RootModel[list[int | str]],), {"__module__": "elsewhere"})
    assert same(again(Words([1]), {"Words": wider}), wider([1]))


def test_no_validator_runs_a_second_time() -> None:
    """What it returned is what was recorded: percents are not turned into fractions twice."""

    class Score(BaseModel):
        percent: float
        words: str = ""
        seen: int = 0
        parts: list[int] = []

        @field_validator("percent")
        @classmethod
        def to_fraction(cls, value: float) -> float:
            return value / 100

        @field_validator("words", mode="before")
        @classmethod
        def joined(cls, value: list[str]) -> str:
            return value.pop() + "!"

        @field_validator("parts")
        @classmethod
        def once_more(cls, value: list[int]) -> list[int]:
            return [*value, 0]

        @model_validator(mode="after")
        def count(self) -> Score:
            self.seen += 1
            return self

    score = Score(percent=85.0, words=["x"], parts=[1])  # type: ignore[arg-type]
    assert (score.percent, score.words, score.seen, score.parts) == (0.85, "x!", 1, [1, 0])
    back = again(again(score, {"Score": Score}), {"Score": Score})
    assert same(back, score)
    assert back.model_fields_set == score.model_fields_set


def test_a_validator_that_refuses_what_it_returned_is_not_asked() -> None:
    class Fussy(BaseModel):
        n: int

        @model_validator(mode="before")
        @classmethod
        def only_text(cls, value: Any) -> Any:
            if not isinstance(value, str):
                raise RuntimeError("only text")
            return {"n": int(value)}

    fussy = Fussy.model_validate("3")
    assert again(fussy, {"Fussy": Fussy}) == fussy
    # A class that is another one now is asked.
    changed = type("Fussy", (Fussy,), {"__annotations__": {"n": float}})
    assert again(fussy, {"Fussy": changed}) == {"n": 3}


def test_a_model_that_fits_its_class_no_longer_is_kept_as_it_was() -> None:
    odd = Label.model_construct(name=3, parts="none")  # type: ignore[arg-type]
    back = again(odd, {"Label": Label})
    assert type(back) is Label
    assert (back.name, back.colour, back.parts) == (3, Colour.RED, "none")


def test_nested_classes_are_found_by_the_annotations_of_the_model() -> None:
    """A script passes the class of the answer, and not those of its parts."""

    class Kept(BaseModel):
        model_config = ConfigDict(use_enum_values=True)
        colour: Colour
        words: Words

    class Words(RootModel[list[str]]):
        pass

    class Holder(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        label: Label
        all: dict[str, list[Label]]
        colour: Colour
        kept: Kept
        frame: pd.DataFrame
        odd: NoSchema | None = None

    Kept.model_rebuild(_types_namespace={"Words": Words})
    label = Label(name="x", parts=[Point(1, 2)])
    holder = Holder(
        label=label,
        all={"a": [label]},
        colour=Colour.RED,
        kept=Kept(colour=Colour.RED, words=Words(["a"])),
        frame=pd.DataFrame({"x": [1]}),
    )
    back = again(holder, {"Holder": Holder})
    assert (back.label, back.all, back.colour, back.kept) == (label, {"a": [label]}, Colour.RED, holder.kept)
    assert type(back.kept.colour) is str
    pd.testing.assert_frame_equal(back.frame, holder.frame)


def test_fields_of_any_annotation_come_back_as_they_were() -> None:
    class Of(BaseModel, Generic[T]):
        kind: Literal["a", 1]
        pair: tuple[int, ...]
        short: Annotated[str, AfterValidator(lambda text: text + "!")]
        label: Label | None
        points: dict[str, list[Point]]
        level: Level
        any: Any
        own: T
        call: Annotated[int, ["unhashable"]] = 0

    of = Of[int](
        kind=1,
        pair=(1, 2),
        short="x",
        label=Label(name="x"),
        points={"a": [Point(1, 2)]},
        level=Level.LOW,
        any=Point(3, 4),
        own=5,
    )
    for schemas in (SCHEMAS, {"Point": Point}):
        back = again(of, {**schemas, type(of).__name__: type(of)})
        assert same(back, of)
        assert back.short == "x!"


class Counted(BaseModel):
    n: int
    _calls: int = 0
    _rate: float = 1.5
    _more: list[Any] = PrivateAttr(default_factory=list)
    _client: Any = None
    _since: int

    def model_post_init(self, context: Any) -> None:
        self._calls += 1


@dataclass
class Text:
    raw: str

    def __post_init__(self) -> None:
        self.words = self.raw.split()

    @cached_property
    def size(self) -> int:
        return len(self.words)


@dataclass
class Linked:
    name: str
    parts: list[Any] = field(default_factory=list)


BESIDE = {"Counted": Counted, "Text": Text, "Linked": Linked, "Point": Point}


def beside(value: Any) -> dict[str, Any]:
    return dict(value.__pydantic_private__ if isinstance(value, BaseModel) else vars(value))


def test_private_attributes_come_back() -> None:
    counted = Counted(n=1)
    counted._calls = 9
    counted._more = [Point(1, 2)]
    back = again(counted, BESIDE)
    assert back == counted
    assert beside(back) == {"_calls": 9, "_rate": 1.5, "_more": [Point(1, 2)], "_client": None}
    assert not hasattr(back, "_since")
    assert digest(back) == digest(counted)
    assert digest(Counted(n=1)) != digest(counted)


def test_private_attributes_that_are_not_stored_have_their_defaults() -> None:
    """So it is in values that an earlier version stored."""
    blob = encode(Counted(n=1))
    tree = json.loads(blob)
    assert tree.pop("beside") == {"_calls": 1, "_more": []}
    back = decode(json.dumps(tree).encode(), BESIDE)
    assert beside(back) == {"_calls": 0, "_rate": 1.5, "_more": [], "_client": None}


def test_what_a_dataclass_has_beside_its_fields_comes_back() -> None:
    """``__post_init__`` does not run again; what it had set is there, and cached properties are computed."""
    text = Text("a b c")
    assert text.size == 3
    text.later = {"k": Point(1, 2)}  # type: ignore[attr-defined]
    back = again(text, BESIDE)
    assert vars(back) == {"raw": "a b c", "words": ["a", "b", "c"], "later": {"k": Point(1, 2)}}
    assert back.size == 3
    assert digest(back) == digest(text)
    other = Text("a b c")
    assert digest(other) != digest(text)
    assert again(text, {}) == {"raw": "a b c"}


def test_a_generic_dataclass_and_its_arguments() -> None:
    @dataclass
    class Pair(Generic[T]):
        left: T

    back = again(Pair[int](1), {"Pair": Pair})
    assert back == Pair(1)
    assert vars(back) == {"left": 1}


def test_a_field_that_is_not_set_is_not_set_again() -> None:
    @dataclass
    class Late:
        a: int
        b: int = field(init=False)

    back = again(Late(1), {"Late": Late})
    assert type(back) is Late
    assert vars(back) == {"a": 1}

    @dataclass
    class Other:
        a: int
        b: str = field(init=False)

    Other.__name__ = "Late"
    assert again(Late(1), {"Late": Other}) == {"a": 1}


class RaisingDict(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")

    __iter__ = keys = values = items


@pytest.mark.parametrize(
    ("attribute", "why"),
    [
        (threading.Lock(), "_thread.lock cannot be stored"),
        (len, "a function cannot be stored"),
        ("half \ud800", "half a surrogate pair"),
        ({"a": ["half \ud800"]}, "half a surrogate pair"),
        (SecretStr("x"), "a secret cannot be stored"),
        (re.compile("a"), "re.Pattern cannot be stored"),
        (MappingProxyType(RaisingDict(a=1)), "RuntimeError: no items"),
    ],
)
def test_an_attribute_that_cannot_be_stored_leaves_the_object_whole(attribute: Any, why: str) -> None:
    counted, text = Counted(n=1), Text("a b")
    counted._client = text.client = attribute  # type: ignore[attr-defined]
    stored = StoredValue.of([counted, text])
    back, back_text = decode(stored.blob, BESIDE)
    assert back == Counted(n=1)
    assert back_text == text
    assert vars(back_text) == {"raw": "a b", "words": ["a", "b"]}
    left_out = sorted(stored.left_out)
    assert [line.partition(": ")[0].rpartition(".")[2] for line in left_out] == ["_client", "client"]
    assert all(why in line for line in left_out), left_out
    assert digest([back, back_text]) == stored.digest


def test_children_that_know_their_parents_leave_that_out() -> None:
    """And the time does not grow with the ways through the tree."""
    parent = Linked("parent", [Linked(f"child {n}", [Counted(n=n)]) for n in range(40)])
    for child in parent.parts:
        child.parent = parent
        child.parts[0]._client = child
    stored = StoredValue.of(parent)
    back = decode(stored.blob, BESIDE)
    assert back == Linked("parent", [Linked(f"child {n}", [Counted(n=n)]) for n in range(40)])
    assert {line.partition(": ")[2] for line in stored.left_out} == {
        "an object that holds itself cannot be stored"
    }
    assert len(stored.left_out) == 2


class Unfinished(BaseModel):
    n: int
    more: "Nowhere | None" = None  # type: ignore[name-defined]  # noqa: F821, UP037


@dataclass
class UnfinishedData:
    n: int
    more: "Nowhere | None" = None  # type: ignore[name-defined]  # noqa: F821, UP037


def test_a_class_that_names_a_type_which_is_not_there_takes_what_it_holds() -> None:
    """Its values are stored and read; of another class of its name, the value stays plain."""
    for value in (Unfinished.model_construct(n=1), [Unfinished.model_construct(n=1)], UnfinishedData(1)):
        assert again(value, {"Unfinished": Unfinished, "UnfinishedData": UnfinishedData}) == value

    class Other(BaseModel):
        n: int

    Other.__name__ = "Unfinished"
    assert again(Other(n=1), {"Unfinished": Unfinished}) == {"n": 1}
    assert type(again(Other(n=1), {"Unfinished": Unfinished, "Other": Other})) is Other


def test_what_only_the_model_can_write_only_the_model_can_read() -> None:
    class Own:
        def __init__(self, text: str) -> None:
            self.text = text

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and other.text == self.text

    class Has(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        own: Own
        n: float

        @field_validator("own", mode="before")
        @classmethod
        def read(cls, value: Any) -> Own:
            return Own(value) if isinstance(value, str) else value

        @field_serializer("own")
        def write(self, value: Own) -> str:
            return value.text

        @field_validator("n")
        @classmethod
        def half(cls, value: float) -> float:
            return value / 2

    has = Has(own=Own("x"), n=4)
    assert again(has, {"Has": Has}) == has

    class Deaf(Has):
        @field_validator("own", mode="before")
        @classmethod
        def read(cls, value: Any) -> Own:
            if isinstance(value, str):
                raise ValueError("no texts")
            return value

    back = again(Deaf(own=Own("x"), n=4), {"Deaf": Deaf})
    assert (back.own, back.n) == ("x", 2.0)


def test_a_stored_model_with_more_fields_than_its_class_gives_plain_data() -> None:
    tree = to_tree(Label(name="x"))
    tree["v"]["more"] = 1
    plain = {"name": "x", "colour": Colour.RED, "parts": [], "more": 1}
    assert from_tree(tree, {"Label": Label}) == plain


def test_a_dataclass_is_rebuilt_without_running_its_init() -> None:
    @dataclass
    class Counted:
        n: int
        twice: int = field(init=False, default=0)

        def __post_init__(self) -> None:
            self.n += 1

    value = Counted(1)
    value.twice = 4
    assert again(value, {"Counted": Counted}) == value
    assert again(value, {"Counted": Point}) == {"n": 2, "twice": 4}


def test_a_dataclass_or_enum_that_changed_gives_plain_data() -> None:
    class Other(Enum):
        GREEN = "green"

    assert again(Colour.RED, {"Colour": Other}) == "red"
    assert again(Colour.RED, {"Colour": int}) == "red"
    assert again({Colour.RED: 1}, None) == {"red": 1}


def test_classes_that_cannot_be_rebuilt_give_plain_data() -> None:
    class Fussy(Enum):
        A = 1

        @classmethod
        def _missing_(cls, value: object) -> Any:
            raise RuntimeError("only A")

    @dataclass
    class FailureError(Exception):
        code: int

    class Locked:
        code = property(lambda self: 1)

    locked = dataclass(type("FailureError", (Locked,), {"__annotations__": {"code": int}}), init=False)
    assert from_tree({"$t": "enum", "name": "Fussy", "v": 2}, {"Fussy": Fussy}) == 2
    assert again(FailureError(3), {"FailureError": FailureError}) == {"code": 3}
    assert again(FailureError(3), {"FailureError": locked}) == {"code": 3}


def test_keys_and_members_that_lost_their_classes_stay_readable() -> None:
    """As dicts they could not be keys, and enums may turn into equal values: then pairs remain."""
    points = {Point(1): "a", Point(2): "b"}
    assert again(points, None) == [({"x": 1, "y": 0.0}, "a"), ({"x": 2, "y": 0.0}, "b")]
    assert again({Colour.RED: 1, "red": 2}, None) == [("red", 1), ("red", 2)]
    assert again({Point(1)}, None) == [{"x": 1, "y": 0.0}]
    assert again(frozenset({Colour.RED, "red"}), None) == ["red", "red"]


# -- what is refused ----------------------------------------------------------------------------


def a_function() -> None:
    """Cannot be stored."""


async def a_coroutine() -> None:
    """Cannot be stored."""


async def an_async_generator() -> Any:
    yield 1


def refused(value: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    with pytest.raises(EncodeError) as by_digest:
        digest(value)
    with pytest.raises(EncodeError) as by_tree:
        to_tree(value)
    assert str(by_digest.value) == str(by_tree.value) == str(caught.value)
    stored = StoredValue.of(value)
    assert not stored.storable
    assert stored.problem == str(caught.value)
    return str(caught.value)


REFUSED = [
    (a_function, "output: a function cannot be stored"),
    (lambda: 1, "output: a function cannot be stored"),
    (len, "output: a function cannot be stored"),
    ("x".upper, "output: a function cannot be stored"),
    (functools.partial(print, 1), "output: a function cannot be stored"),
    ((number for number in [1]), "output: a generator cannot be stored. Return a list of what it yields"),
    (an_async_generator(), "output: a generator cannot be stored. Return a list of what it yields"),
    (Plain, "output: a class cannot be stored"),
    (math, "output: a module cannot be stored"),
    (
        Plain(),
        "output: an object of class test_value.Plain cannot be stored. "
        "Return plain data, a dataclass, a pydantic model or a DataFrame",
    ),
    (
        ChainMap({}),
        "output: an object of class collections.ChainMap cannot be stored. "
        "Return plain data, a dataclass, a pydantic model or a DataFrame",
    ),
    (1j, "output: an object of class builtins.complex cannot be stored. "
         "Return plain data, a dataclass, a pydantic model or a DataFrame"),
    (SecretStr("hush"), "output: a secret cannot be stored. "
                        "Read it where it is used, and leave it out of the value"),
    ({"k": SecretBytes(b"hush")}, "output.k: a secret cannot be stored. "
                                  "Read it where it is used, and leave it out of the value"),
    ({10**4000: len}, "output[" + "1" + "0" * 39 + "]: a function cannot be stored"),
    ({10**5000: 1}, "output[int]: an integer of more than 4,300 digits cannot be stored"),
    (10**4300, "output: an integer of more than 4,300 digits cannot be stored"),
    ([1, -(10**4300)], "output[1]: an integer of more than 4,300 digits cannot be stored"),
    ({"items": [0, 1, 2, {"fn": a_function}]}, "output.items[3].fn: a function cannot be stored"),
    ({"a b": {1: [a_function]}}, "output['a b'][1][0]: a function cannot be stored"),
    ({a_function: 1}, "output[" + repr(a_function)[:40] + "]: a function cannot be stored"),
    ((1, {a_function}), "output[1][0]: a function cannot be stored"),
    (Point(a_function), "output.x: a function cannot be stored"),  # type: ignore[arg-type]
    (Row("a", len), "output.score: a function cannot be stored"),  # type: ignore[arg-type]
    (Label.model_construct(name=a_function), "output.name: a function cannot be stored"),
    ({"k": map(str, [1])}, "output.k: a map object, whose items can be taken once only, cannot be stored. "
                           "Return list(...) of it"),
    (zip([1], [2], strict=True), "output: a zip object, whose items can be taken once only, cannot be "
                                 "stored. Return list(...) of it"),
    (reversed([1]), "output: a list_reverseiterator object, whose items can be taken once only, cannot be "
                    "stored. Return list(...) of it"),
    (ChainMap({}).keys(), "output: an object of class KeysView cannot be stored. Return list(...) of it"),
    (array("i", [1]), "output: an object of class array cannot be stored. Return list(...) of it"),
    (memoryview(b"x"), "output: an object of class memoryview cannot be stored. Return bytes(...) of it"),
    ({1: a_function}.values(), "output[0]: a function cannot be stored"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"), REFUSED, ids=[re.sub("0x[0-9a-f]+", "address", message) for _, message in REFUSED]
)
def test_what_cannot_be_stored_says_what_and_where(value: Any, message: str) -> None:
    assert refused(value) == message


def test_an_open_file_and_a_coroutine_are_refused() -> None:
    assert "an open file cannot be stored. Return its content or its path" in refused({"f": io.StringIO()})
    waiting = a_coroutine()
    assert "a coroutine cannot be stored. Await it in the step" in refused([waiting])
    waiting.close()


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        ["ok", "\udfff"],
        {"k": "\ud83d"},
        {"\ud800": 1},
        {"\ud800": {"$t": 1}},
        [1, "\ud800"],
        ("\ud800",),
        {"p": Path("\udc80")},
    ],
)
def test_half_a_surrogate_pair_is_refused_with_its_path_and_remedy(value: Any) -> None:
    message = refused(value)
    assert message.startswith("output")
    assert "half a surrogate pair" in message
    assert "text.encode('utf-8', 'replace').decode()" in message


def test_a_time_zone_with_a_broken_name_is_refused() -> None:
    class Zone(tzinfo):
        key = "\ud800"

        def utcoffset(self, when: datetime | None) -> timedelta:
            return timedelta(0)

    with pytest.raises(EncodeError, match="surrogates not allowed"):
        encode(datetime(2024, 1, 1, tzinfo=Zone()))


def test_the_path_starts_with_the_name_that_the_caller_gives() -> None:
    with pytest.raises(EncodeError, match=r"^metadata\.x: a function") as caught:
        encode({"x": len}, path="metadata")
    assert caught.value.path == "metadata.x"
    with pytest.raises(EncodeError, match=r"^facts\.x: a function"):
        to_tree({"x": len}, path="facts")


def test_an_object_that_holds_itself_is_refused_where_it_first_does() -> None:
    inner: dict[str, Any] = {}
    inner["again"] = [inner]
    assert refused({"a": [1, inner]}) == "output.a[1].again[0]: an object that holds itself cannot be stored"
    line: list[Any] = []
    line.append(line)
    assert refused(line) == "output[0]: an object that holds itself cannot be stored"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_depth_is_bounded() -> None:
    assert again(nested(200)) == nested(200)
    message = refused(nested(201))
    assert message.endswith("more than 200 containers inside each other cannot be stored")
    assert len(message) < 200
    assert "more than 200 containers" in refused(nested(10_000))
    many: Any = 1
    for _ in range(200):
        many = {0: many}
    assert again(many) == many
    assert from_tree(to_tree(many)) == many


def test_values_that_unfold_to_billions_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_PARTS", 10_000)
    value: Any = [1]
    for _ in range(150):
        value = [value, value]
    assert "parts cannot be stored. Return a DataFrame, or write them to a file" in refused(value)


def test_size_is_bounded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_BYTES", 100)
    with pytest.raises(
        EncodeError, match=r"output: it takes 102 bytes; at most 100 can be stored\. Write it to a"
    ):
        encode("x" * 100)
    with pytest.raises(CorruptRecordError, match="102 bytes; more than 100 are never written"):
        decode(b'"' + b"x" * 100 + b'"')


def test_a_deep_stack_is_an_error_not_a_crash() -> None:
    """Called from the bottom of the stack, the walk itself may be one level too many."""

    def dive(action: Any) -> Any:
        try:
            return dive(action)
        except RecursionError:
            return action()

    value = nested(190)
    blob, tree = encode(value), to_tree(value)
    for action in (lambda: encode(value), lambda: digest(value), lambda: to_tree(value)):
        with pytest.raises(EncodeError, match="nested too deeply to be stored from here"):
            dive(action)
    with pytest.raises(CorruptRecordError):
        dive(lambda: decode(blob))
    with pytest.raises(CorruptRecordError, match="nested too deeply"):
        dive(lambda: from_tree(tree))


# -- bytes that no one wrote --------------------------------------------------------------------

DAMAGED = [
    b"",
    b" ",
    b"\xef\xbb\xbf1",
    b"1 2",
    b"{} {}",
    b'{"a": 1, "a": 2}',
    b'{"a": {"b": 1, "b": 2}}',
    b"NaN",
    b"[Infinity]",
    b"-Infinity",
    b"9" * 5000,
    b"-" + b"9" * 5000,
    b"[" * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b"\xff\xfe1\x00",
    b'"\xff"',
    b'"\\ud800"',
    b'"x\\\\\\uDFFF"',
    b"{'a': 1}",
    b"[1,]",
    b'"\n"',
    b"\x80\x04K\x01.",  # a pickle
    b'{"$t": "unheard of", "v": 1}',
    b'{"$t": null}',
    b'{"$t": []}',
    b'{"$t": "tuple"}',
    b'{"$t": "tuple", "v": {"a": 1}}',
    b'{"$t": "dict", "v": [1]}',
    b'{"$t": "dict", "v": [[1, 2, 3]]}',
    b'{"$t": "set", "v": 1}',
    b'{"$t": "float", "v": "1.5"}',
    b'{"$t": "datetime", "v": "yesterday"}',
    b'{"$t": "datetime", "v": 1}',
    b'{"$t": "time", "v": "25:00"}',
    b'{"$t": "timedelta", "v": [1e30, 0, 0]}',
    b'{"$t": "timedelta", "v": 1}',
    b'{"$t": "decimal", "v": "one"}',
    b'{"$t": "bytes", "v": "***"}',
    b'{"$t": "uuid", "v": "x"}',
    b'{"$t": "path", "v": 1}',
    b'{"$t": "range", "v": [1, 2, 0]}',
    b'{"$t": "enum", "v": 1}',
    b'{"$t": "enum", "name": 1, "v": 1}',
    b'{"$t": "model", "name": "Label", "v": [1]}',
    b'{"$t": "data", "name": "Point", "v": 1}',
    b'{"$t": "namedtuple", "name": "a b", "v": [["x", 1]]}',
    b'{"$t": "namedtuple", "name": "Row", "v": [["x"]]}',
    b'{"$t": "dict", "v": {"ab": 1}}',
    b'{"$t": "counter", "v": "ab"}',
    b'{"$t": "deque", "v": "ab", "most": null}',
    b'{"$t": "deque", "v": [], "most": -1}',
    b'{"$t": "defaultdict", "v": [], "makes": "eval"}',
    b'{"$t": "bytearray", "v": "***"}',
]


@pytest.mark.parametrize("blob", DAMAGED, ids=lambda blob: repr(blob[:40]))
def test_bytes_that_the_codec_did_not_write_are_refused(blob: bytes) -> None:
    with pytest.raises(CorruptRecordError):
        decode(blob, SCHEMAS)


@pytest.mark.parametrize(
    "text", ["\\ud800 as text", 'a "quoted" [[[[ bracket', "\\", '\\"', "[" * 5000, "1" * 5000]
)
def test_texts_that_look_like_damage_are_no_damage(text: str) -> None:
    assert again(text) == text
    assert again([text] * 400) == [text] * 400


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_random_bytes_give_a_value_or_the_right_error(blob: bytes) -> None:
    with contextlib.suppress(CorruptRecordError):
        decode(blob, SCHEMAS)


@given(ANY, st.data())
def test_a_flipped_byte_gives_a_value_or_the_right_error(value: Any, data: st.DataObject) -> None:
    blob = bytearray(encode(value))
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CorruptRecordError):
        decode(bytes(blob), SCHEMAS)


@pytest.fixture
def no_limit_on_digits() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("no_limit_on_digits")
def test_digits_are_bounded_even_where_python_does_not_bound_them() -> None:
    assert decode(b"-" + b"9" * 4300) == -(10**4300) + 1
    with pytest.raises(CorruptRecordError, match="more than 4,300 digits"):
        decode(b"9" * 4302)
    assert "more than 4,300 digits" in refused(10**5000)


def test_parse_is_strict_json_without_tags() -> None:
    assert parse(b'{"$t": "unheard of"}') == {"$t": "unheard of"}
    with pytest.raises(CorruptRecordError, match="the same key twice"):
        parse(b'{"a": 1, "a": 1}')


# -- stored values ------------------------------------------------------------------------------


def test_of_encodes_nothing_until_it_is_asked() -> None:
    value = [1]
    stored = StoredValue.of(value)
    value.append(2)
    assert stored.blob == b"[1,2]"
    assert stored.value is value
    assert stored.storable
    assert stored.problem is None
    assert "[1, 2]" in repr(stored)


def test_from_blob_decodes_nothing_until_it_is_asked() -> None:
    stored = StoredValue.from_blob(b"not json", "d" * 64)
    assert stored.digest == "d" * 64
    assert stored.blob == b"not json"
    assert stored.storable
    assert repr(stored) == "<StoredValue 8 bytes>"
    with pytest.raises(CorruptRecordError):
        _ = stored.value


def test_from_blob_decodes_once_with_its_schemas() -> None:
    stored = StoredValue.from_blob(encode(Point(1)), "d", SCHEMAS)
    assert stored.value == Point(1)
    assert stored.value is stored.value


def test_a_value_that_cannot_be_stored_is_still_there() -> None:
    stored = StoredValue.of({"fn": len})
    assert stored.digest.startswith("unstorable-")
    assert stored.digest == stored.digest
    assert stored.digest != StoredValue.of({"fn": len}).digest
    assert stored.value == {"fn": len}
    assert stored.problem == "output.fn: a function cannot be stored"
    with pytest.raises(EncodeError, match=r"^output\.fn: a function cannot be stored$"):
        _ = stored.blob


def test_what_is_left_of_an_unstorable_value_is_none_and_why() -> None:
    stored = StoredValue.unstorable("output.fn: a function cannot be stored", "unstorable-1")
    assert stored.value is None
    assert not stored.storable
    assert stored.problem == "output.fn: a function cannot be stored"
    assert stored.digest == "unstorable-1"
    assert StoredValue.unstorable("x").digest != StoredValue.unstorable("x").digest
    with pytest.raises(EncodeError, match=r"output\.fn"):
        _ = stored.blob


def test_stored_values_can_be_pickled() -> None:
    for stored in (StoredValue.of([1]), StoredValue.from_blob(b"[1]", "d")):
        assert pickle.loads(pickle.dumps(stored)).value == [1]
    lost = pickle.loads(pickle.dumps(StoredValue.unstorable("output: gone", "unstorable-1")))
    assert (lost.value, lost.problem, lost.digest) == (None, "output: gone", "unstorable-1")
    assert pickle.loads(pickle.dumps(StoredValue.of(len))).value is len


Made = namedtuple("Made", "a b")


def test_named_tuples_of_collections_as_well() -> None:
    assert again(Made(1, [2]), None) == (1, [2])
    assert again(Made(1, [2]), {"Made": Made}) == Made(1, [2])


def test_notes_say_in_their_place_what_is_not_stored() -> None:
    notes = codec.notes_to_tree({"ok": (1,), "fn": len, "broken": "\ud800", "\ud800": 1})
    assert from_tree(notes) == {
        "ok": (1,),
        "fn": "(not stored: a function cannot be stored)",
        "broken": "?",
        "?": 1,
    }


def test_a_long_integer_beside_a_float_is_stored() -> None:
    """No float holds it, so no one may ask whether it is finite."""
    values = [1.5, 10**400, {"a": 0.5, "b": -(10**400), "c": "x"}]
    assert decode(encode(values)) == values
    with pytest.raises(EncodeError, match="digits"):
        encode({"a": 0.5, "b": 10**5000})
