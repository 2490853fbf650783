"""Values of all kinds that a step may return, drawn by hypothesis, and their classes."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, date
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, RootModel, field_validator

T = TypeVar("T")


class Outer:
    class Colour(Enum):
        RED = "red"
        BLUE = (0, 0, 255)
        ODD = float("nan")


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mode(StrEnum):
    FAST = auto()
    SLOW = auto()


class Rights(Flag):
    READ = auto()
    WRITE = auto()
    BOTH = READ | WRITE


class Bits(IntFlag):
    A = 1
    B = 2
    C = 4


@dataclass
class Plain:
    n: float
    colour: Outer.Colour = Outer.Colour.RED
    more: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n += 1


@dataclass(frozen=True, slots=True)
class Frozen:
    level: Level
    mode: Mode = Mode.FAST


@dataclass(slots=True)
class Slots(Generic[T]):
    own: T


@dataclass
class Child(Plain):
    frozen: Frozen | None = None


class Pair(NamedTuple):
    left: Any
    right: Level = Level.LOW


class Line(BaseModel):
    price: float = Field(alias="itemPrice")
    rights: Rights = Rights.READ

    @field_validator("price")
    @classmethod
    def halved(cls, value: float) -> float:
        return value / 2


class Tags(RootModel[list[Annotated[str, AfterValidator(lambda text: text + "!")]]]):
    pass


class Circle(BaseModel):
    kind: Literal["circle"] = "circle"
    radius: float


class Square(BaseModel):
    kind: Literal["square"] = "square"
    side: int
    on: date | None = None


class Invoice(BaseModel):
    model_config = ConfigDict(extra="allow")
    lines: list[Line]
    tags: Tags = Tags([])
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle(radius=1)
    by_mode: dict[Mode, Line] = {}
    plain: Plain | None = None
    pair: Pair | None = None
    next: Invoice | None = None
    url: HttpUrl | None = None
    _calls: int = 0

    def model_post_init(self, context: Any) -> None:
        self._calls += 1
        self.lines.append(Line(itemPrice=1))


class Res(BaseModel, Generic[T]):
    item: T
    n: int = 0


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    level: Level
    n: int | float | None = None


texts = st.text(st.characters(codec="utf-8"), max_size=6)
numbers = st.floats(allow_nan=False, width=32)
colours = st.sampled_from([Outer.Colour.RED, Outer.Colour.BLUE])
enums = st.one_of(
    colours,
    st.just(Outer.Colour.ODD),
    st.sampled_from([*Level, *Mode, *Rights, *Bits, Bits.A | Bits.C, Rights(0)]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    numbers,
    texts,
    st.binary(max_size=4),
    st.dates(),
    st.datetimes(timezones=st.sampled_from([None, UTC])),
    st.timedeltas(),
    st.times(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
    st.just(Path("a/b")),
    st.builds(range, st.integers(-5, 5), st.integers(-5, 5)),
)

frozen = st.builds(Frozen, st.sampled_from(Level), st.sampled_from(Mode))
keys = st.one_of(texts, st.integers(), st.booleans(), colours, st.sampled_from([*Level, *Mode]), frozen)
lines = st.builds(
    lambda price, rights: Line(itemPrice=price, rights=rights), numbers, st.sampled_from(Rights)
)
shapes = st.one_of(st.builds(Circle, radius=numbers), st.builds(Square, side=st.integers(), on=st.dates()))


def _invoices(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    optional: dict[str, st.SearchStrategy[Any]] = {
        "tags": st.lists(texts, max_size=2).map(Tags),
        "shape": shapes,
        "by_mode": st.dictionaries(st.sampled_from(Mode), lines, max_size=2),
        "plain": st.builds(Plain, numbers, colours, st.lists(parts, max_size=2)),
        "pair": st.builds(Pair, parts, st.sampled_from(Level)),
        "url": st.just(HttpUrl("https://example.org/a")),
        "extra_one": parts,
    }
    invoice = st.fixed_dictionaries({"lines": st.lists(lines, max_size=2)}, optional=optional)
    built = invoice.map(lambda fields: Invoice(**fields))
    return st.builds(lambda outer, inner: outer.model_copy(update={"next": inner}), built, st.none() | built)


def _models(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        _invoices(parts),
        st.builds(Strict, level=st.sampled_from(Level), n=st.none() | st.integers() | numbers),
        st.builds(lambda item: Res[Line](item=item), lines),
        st.builds(lambda item: Res[int](item=item), st.integers()),
        st.builds(lambda item: Res[dict[str, list[Frozen]]](item={"a": [item]}), frozen),
        st.builds(lambda item: Res[Res[Tags]](item=Res[Tags](item=Tags([item]))), texts),
        st.builds(lambda item: Res(item=item), parts),
        st.builds(RootModel[list[int]], st.lists(st.integers(), max_size=3)),
        st.builds(RootModel[dict[str, Line | None]], st.dictionaries(texts, st.none() | lines, max_size=2)),
        st.builds(RootModel[Level], st.sampled_from(Level)),
    )


def _containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(parts, max_size=3)
    dicts = st.dictionaries(keys, parts, max_size=3)
    return st.one_of(
        few,
        few.map(tuple),
        few.map(deque),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(lambda held: defaultdict(list, held)),
        dicts.map(lambda held: held.keys()),
        dicts.map(lambda held: held.values()),
        dicts.map(lambda held: held.items()),
        st.lists(keys, max_size=4).map(Counter),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
        st.just({"$t": "model"}),
    )


def _objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(Plain, numbers, colours, st.lists(parts, max_size=2)),
        st.builds(Child, numbers, colours, st.lists(parts, max_size=2), st.none() | frozen),
        st.builds(Slots, parts),
        st.builds(Pair, parts, st.sampled_from(Level)),
    )


_INDEXES: list[Any] = [
    pd.RangeIndex(3, name="n"),
    pd.Index(["a", "b", "a"], name=0),
    pd.date_range("2024-01-31", periods=3, freq="ME", name=""),
    pd.date_range("2024-03-30", periods=3, freq="D", tz="Europe/Paris"),
    pd.date_range("2024-01-01", periods=3, freq="2h"),
    pd.period_range("2024-01", periods=3, freq="M"),
    pd.timedelta_range("1D", periods=3),
    pd.CategoricalIndex(["x", "y", "x"], ordered=True, categories=["y", "x"]),
    pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["k", None]),
    pd.IntervalIndex.from_breaks([0, 1, 2, 3]),
]
_COLUMNS: list[Any] = [
    [1, 2, 3],
    [0.1, None, 3.0],
    ["x", None, "z"],
    pd.array([1, None, 3], dtype="Int64"),
    pd.Categorical(["u", "v", "u"]),
    pd.to_datetime(["2024-01-01", None, "2024-01-03"]),
    [Level.LOW, Frozen(Level.HIGH), [1, "a"]],
    np.array([True, False, True]),
]


def _frame(index: Any, columns: list[Any]) -> pd.DataFrame:
    frame = pd.DataFrame(index=index)
    for place, column in enumerate(columns):
        frame[f"c{place}"] = column
    return frame


frames = st.one_of(
    st.builds(_frame, st.sampled_from(_INDEXES), st.lists(st.sampled_from(_COLUMNS), max_size=3)),
    st.sampled_from(_INDEXES),
    st.builds(
        lambda index, column: pd.Series(column, index=index, name="s"),
        st.sampled_from(_INDEXES),
        st.sampled_from(_COLUMNS[:3]),
    ),
    st.builds(lambda frame: list(frame.itertuples()), st.builds(_frame, st.just(None), st.just([[1, 2]]))),
)

values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, enums, frozen, lines, shapes, frames),
    lambda parts: st.one_of(_containers(parts), _objects(parts), _models(parts)),
    max_leaves=8,
)


def draw(number: int) -> list[Any]:
    """That many values."""
    drawn: list[Any] = []

    @settings(
        max_examples=number, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(values)
    def collect(value: Any) -> None:
        drawn.append(value)

    collect()
    return drawn
