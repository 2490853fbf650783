"""What a step changes in place reaches no one else: no other step, no later attempt, not the pipeline."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pydantic
import pytest
from pydantic import BaseModel

from tagent_nb import Pipeline, PipelineExecutor, StepContext
from tagent_nb.cache import ResultCache
from tagent_nb.serde import is_bulky, own_copy


class Note(BaseModel):
    tags: list[str]


@dataclass
class Point:
    where: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    tags: list[str]


@dataclass(slots=True)
class Slots:
    tags: list[str]


class Box(BaseModel):
    inside: Any


class Doc:
    def __init__(self, tags: list[str]) -> None:
        self.tags = tags


class Slotted:
    __slots__ = ("tags",)
    tags: list[str]


class TaggedList(list[Any]):
    tags: list[str]


class Places(pd.DataFrame):
    _metadata: ClassVar[list[str]] = ["crs"]

    @property
    def _constructor(self) -> Any:
        return Places


class Colour(Enum):
    RED = 1


class Mark:
    """Recognised by what it is."""


class Session:
    def close(self) -> None:
        """It stands for more than what it holds."""


class Client:
    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.tags = ["a"]


def run(pipeline: Pipeline) -> Any:
    result = PipelineExecutor(pipeline, retry_delay=0.0).run()
    assert result.success, result.error_details
    return result


def test_a_column_that_a_step_adds_is_not_seen_by_others() -> None:
    pipeline = Pipeline("frames")

    @pipeline.task
    def load() -> pd.DataFrame:
        return pd.DataFrame({"text": [" Good "]})

    @pipeline.task
    def clean(load: pd.DataFrame) -> pd.DataFrame:
        load["text"] = load["text"].str.strip()
        return load

    @pipeline.task(depends_on=["clean"])
    def raw(load: pd.DataFrame) -> str:
        return str(load["text"][0])

    result = run(pipeline)
    assert result["raw"] == " Good "
    assert result["load"]["text"][0] == " Good "
    assert result["clean"]["text"][0] == "Good"


def test_another_attempt_begins_with_what_the_first_began_with() -> None:
    pipeline = Pipeline("retries")

    @pipeline.task
    def load() -> list[int]:
        return [1, 2, 3]

    @pipeline.task(max_retries=1)
    def take(load: list[int], context: StepContext) -> int:
        first = load.pop(0)
        if context.attempt == 1:
            raise OSError("once")
        return first

    assert run(pipeline)["take"] == 1


def test_items_of_a_mapped_step_change_their_own_row_only() -> None:
    pipeline = Pipeline("items")

    @pipeline.task
    def load() -> list[dict[str, list[int]]]:
        return [{"n": [1]}, {"n": [2]}]

    @pipeline.task
    def extra() -> list[str]:
        return ["x"]

    @pipeline.task(map_over="load")
    def each(load: dict[str, list[int]], extra: list[str]) -> int:
        load["n"].append(9)
        extra.append("y")
        return len(load["n"])

    result = run(pipeline)
    assert result["each"] == [2, 2]
    assert result["load"] == [{"n": [1]}, {"n": [2]}]
    assert result["extra"] == ["x"]


def test_shared_values_of_the_pipeline_stay_as_they_were() -> None:
    pipeline = Pipeline("shared").share(cfg={"n": 0})

    @pipeline.task
    def count(shared: Any) -> int:
        shared["cfg"]["n"] += 1
        return int(shared["cfg"]["n"])

    assert run(pipeline)["count"] == run(pipeline)["count"] == 1
    assert pipeline.shared_context == {"cfg": {"n": 0}}


@pytest.mark.parametrize(
    "value",
    [
        [[1]],
        {"a": [1]},
        ([1],),
        Note(tags=["a"]),
        Point([1]),
        pd.Series([1]),
        Counter("aab"),
        bytearray(b"a"),
        deque([[1]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_is_copied_with_its_type(value: Any) -> None:
    made = own_copy(value)
    assert made is not value
    assert type(made) is type(value)
    assert repr(made) == repr(value)


MAKERS: list[Callable[[int], Any]] = [
    lambda n: Note(tags=[str(n)]),
    lambda n: Point([n]),
    lambda n: Frozen([str(n)]),
    lambda n: Slots([str(n)]),
    lambda n: Box(inside=Slots([str(n)])),
    lambda n: Doc([str(n)]),
    lambda n: MappingProxyType({"a": [n]}),
    lambda n: Counter({"a": n}),
    lambda n: OrderedDict({"a": [n]}),
    lambda n: defaultdict(list, {"a": [n]}),
    lambda n: UserDict({"a": [n]}),
    lambda n: UserList([[n]]),
    lambda n: ChainMap({"a": [n]}),
    lambda n: SimpleNamespace(a=[n]),
    lambda n: deque([[n]], 3),
    lambda n: TaggedList([[n]]),
    lambda n: (Note(tags=[str(n)]), {"a": Slots([str(n)])}),
    lambda n: pd.Series([Note(tags=[str(n)]), Slots([str(n)])], name=n),
    lambda n: np.array([Box(inside=[n]), Point([n])], dtype=object),
]


def parts(value: Any) -> Any:
    """What a value holds, to be compared."""
    if isinstance(value, list | tuple | deque | UserList | pd.Series | np.ndarray):
        return [type(value).__name__, *map(parts, value)]
    return repr(vars(value)) if isinstance(value, Doc) else repr(value)


@pytest.mark.parametrize("number", range(len(MAKERS)))
def test_each_of_many_objects_keeps_what_it_holds(number: int) -> None:
    """A list of models is not one model many times: what copying makes on the way has ids as well."""
    values = [MAKERS[number](n) for n in range(30)]
    assert parts(own_copy(values)) == parts(values)
    frame = pd.DataFrame({"a": pd.Series(values, dtype=object), "b": pd.Series(values[::-1], dtype=object)})
    made = own_copy(frame)
    assert parts(list(made["a"])) == parts(values)
    assert parts(list(made["b"])) == parts(values[::-1])


def test_each_of_many_objects_of_all_kinds_keeps_what_it_holds() -> None:
    values = [make(n) for n in range(10) for make in MAKERS]
    assert parts(own_copy(values)) == parts(values)


class Pairs(dict[Any, Any]):
    """Its state, items and pairs are made when it is asked for them."""

    def __reduce__(self) -> Any:
        items = ((Note(tags=[key]), [held]) for key, held in self.items())
        return dict, (), None, None, ((key.tags[0], held) for key, held in items)


class Numbers(list[Any]):
    def __reduce__(self) -> Any:
        return list, (), None, (Slots([str(item)]) for item in self)


def test_items_that_an_object_makes_when_it_is_copied_keep_what_they_hold() -> None:
    values = [Pairs({str(n): n, f"{n}!": -n}) for n in range(20)]
    assert own_copy(values) == [{str(n): [n], f"{n}!": [-n]} for n in range(20)]
    assert own_copy([Numbers([n, n + 1]) for n in range(20)]) == [
        [Slots([str(n)]), Slots([str(n + 1)])] for n in range(20)
    ]


@pytest.mark.parametrize("value", [threading.Lock(), "text", 7, None, Point, Colour.RED, Mark(), Session()])
def test_what_is_no_data_or_cannot_be_copied_is_the_same_object(value: Any) -> None:
    """A mark, which is recognised by what it is, and an object that stands for more than its values, too."""
    assert own_copy(value) is value
    assert own_copy([value])[0] is value or isinstance(value, Session)


def test_beside_what_cannot_be_copied_all_else_is() -> None:
    lock = threading.Lock()
    value = {"lock": lock, "tags": [1], "client": Client(lock)}
    made = own_copy(value)
    assert made["lock"] is lock
    assert made["client"] is value["client"]
    assert made["tags"] == [1]
    assert made["tags"] is not value["tags"]


def frame(**columns: Any) -> pd.DataFrame:
    made = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    made.attrs["notes"] = ["raw"]
    return made


def places() -> Places:
    made = Places({"n": [1]})
    made.crs = ["EPSG:4326"]  # type: ignore[attr-defined]
    return made


def slotted() -> Slotted:
    made = Slotted()
    made.tags = ["a"]
    return made


def tagged() -> TaggedList:
    made = TaggedList([["a"]])
    made.tags = ["a"]
    return made


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a list in a cell": (lambda: frame(tags=[["a"], ["b"]]), lambda value: value["tags"][0]),
    "a dict in a cell": (lambda: frame(more=[{"tags": ["a"]}]), lambda value: value["more"][0]["tags"]),
    "a model in a cell": (
        lambda: frame(notes=[Note(tags=["a"]), None]),
        lambda value: value["notes"][0].tags,
    ),
    "a Series of lists": (lambda: frame(tags=[["a"]])["tags"], lambda value: value[0]),
    "a frame in a cell": (lambda: frame(inner=[frame(t=[["a"]])]), lambda value: value["inner"][0]["t"][0]),
    "two columns of one name": (lambda: frame(a=[["a"]]).join(frame(b=[["b"]])), lambda value: value["b"][0]),
    "attrs of a frame": (lambda: frame(n=[1]), lambda value: value.attrs["notes"]),
    "an attribute of a subclass": (places, lambda value: value.crs),
    "an array of lists": (lambda: np.array([["a"], None], dtype=object)[:1], lambda value: value[0]),
    "an array of pandas": (lambda: frame(tags=[["a"]])["tags"].array, lambda value: value[0]),
    "a frame in a dict": (
        lambda: {"frames": (frame(tags=[["a"]]),)},
        lambda value: value["frames"][0]["tags"][0],
    ),
    "a frame in a model": (lambda: Box(inside=frame(t=[["a"]])), lambda value: value.inside["t"][0]),
    "a namespace": (lambda: SimpleNamespace(tags=["a"]), lambda value: value.tags),
    "a UserDict": (lambda: UserDict(tags=["a"]), lambda value: value["tags"]),
    "a UserList": (lambda: UserList([["a"]]), lambda value: value[0]),
    "a ChainMap": (lambda: ChainMap({"tags": ["a"]}, {}), lambda value: value["tags"]),
    "a view of a dict": (lambda: MappingProxyType({"tags": ["a"]}), lambda value: value["tags"]),
    "a defaultdict": (lambda: defaultdict(list, tags=["a"]), lambda value: value["tags"]),
    "an OrderedDict": (lambda: OrderedDict(tags=["a"]), lambda value: value["tags"]),
    "a deque": (lambda: deque([["a"]], maxlen=3), lambda value: value[0]),
    "a tuple": (lambda: (1, ["a"]), lambda value: value[1]),
    "a frozen dataclass": (lambda: Frozen(["a"]), lambda value: value.tags),
    "a dataclass with slots": (lambda: Slots(["a"]), lambda value: value.tags),
    "an object of a class of one's own": (lambda: Doc(["a"]), lambda value: value.tags),
    "an object with slots": (slotted, lambda value: value.tags),
    "a subclass of list": (tagged, lambda value: value.tags),
    "a subclass of list, its items": (tagged, lambda value: value[0]),
}


@pytest.mark.parametrize(("make", "part"), CHANGES.values(), ids=CHANGES.keys())
def test_what_a_copy_changes_reaches_the_value_in_no_place(
    make: Callable[[], Any], part: Callable[[Any], Any]
) -> None:
    value = make()
    before = list(part(value))
    made = own_copy(value)
    assert type(made) is type(value)
    assert part(made) == before
    part(made).append("changed")
    assert part(value) == before
    assert part(made) == [*before, "changed"]


@pytest.mark.parametrize(
    "column",
    [
        [1, 2],
        ["a", "b"],
        pd.array([1, None], dtype="Int64"),
        pd.Categorical(["a", "b"]),
        pd.to_datetime(["2024", None]),
    ],
    ids=lambda column: type(column).__name__,
)
def test_what_is_written_into_the_array_of_a_column_stays_in_the_copy(column: Any) -> None:
    value = pd.DataFrame({"a": column})
    made = own_copy({"frame": value, "array": value["a"].array})
    made["frame"]["a"].array[0] = made["frame"]["a"].array[1]
    made["array"][0] = made["array"][1]
    pd.testing.assert_frame_equal(value, pd.DataFrame({"a": column}))


def test_an_object_that_holds_itself_is_copied_as_such() -> None:
    ring: list[Any] = [1]
    ring.append((ring, {"ring": ring}))
    made = own_copy(ring)
    assert made is not ring
    assert made[1][0] is made
    assert made[1][1]["ring"] is made
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert own_copy(deep) is not None


def test_a_step_that_fails_after_a_change_begins_anew_and_its_value_is_the_right_one(tmp_path: Path) -> None:
    pipeline = Pipeline("cells")

    @pipeline.task
    def load() -> pd.DataFrame:
        return pd.DataFrame({"tags": [["a"], ["b"]], "n": [1, 2]})

    @pipeline.task(max_retries=1)
    def tag(load: pd.DataFrame, context: StepContext) -> list[list[str]]:
        load["tags"][0].append("changed")
        if context.attempt == 1:
            raise OSError("once")
        return load["tags"].tolist()

    @pipeline.task(map_over="load", max_retries=1)
    def each(item: dict[str, Any], context: StepContext) -> int:
        item["tags"].append("changed")
        if context.attempt == 1:
            raise OSError("once")
        return len(item["tags"])

    for _ in range(2):
        executor = PipelineExecutor(pipeline, retry_delay=0.0, cache=ResultCache(tmp_path))
        result = executor.run()
        assert result["load"]["tags"].tolist() == [["a"], ["b"]]
        assert result["tag"] == [["a", "changed"], ["b"]]
        assert result["each"] == [2, 2]


def test_what_is_in_two_places_is_one_object_in_the_copy_too() -> None:
    tags = SimpleNamespace(names=["a"])
    made = own_copy([tags, tags])
    assert made[0] is made[1] is not tags


def test_an_attribute_that_a_frame_lacks_is_none_as_in_copies_of_pandas() -> None:
    assert own_copy(Places({"n": [1]})).crs is None


def test_objects_of_classes_of_the_notebook_are_copied() -> None:
    value = type("Doc", (), {"__module__": "__main__"})()
    value.tags = ["a"]
    made = own_copy(value)
    assert made is not value
    assert made.tags is not value.tags


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_while_something_is_copied_is_no_matter_of_the_copy(error: type[BaseException]) -> None:
    class Slow(list[Any]):
        def __deepcopy__(self, memo: Any) -> Any:
            raise error

    with pytest.raises(error):
        own_copy([Slow()])
    with pytest.raises(error):
        own_copy(Slow())


def test_objects_of_a_library_are_shared() -> None:
    assert own_copy(logging.getLogger("x")) is logging.getLogger("x")
    value = threading.Event()
    assert own_copy(value) is value


def test_copies_of_many_objects_are_not_mixed_up() -> None:
    """What was made for one copy is gone when the next begins, and its address may be another's."""

    @dataclasses.dataclass(slots=True)
    class Slots:
        n: int
        more: list[Any]

    @dataclasses.dataclass
    class Plain:
        n: int
        more: dict[str, Any]

    class Model(pydantic.BaseModel):
        n: int
        held: Any

    value = [
        [
            Model(n=n, held=Plain(n, {"a": Slots(n, [n])})),
            MappingProxyType({"n": [n]}),
            Slots(n, [Plain(n, {})]),
        ]
        for n in range(500)
    ]
    assert own_copy(value) == value


def test_what_is_bulky_is_recognised_at_a_glance() -> None:
    """Whatever a value or its class say of themselves, and without an end where a list holds itself."""
    ring: list[Any] = []
    ring.append(ring)

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise ValueError(name)

    odd = Meta("Odd", (), {})()
    nameless = type("Nameless", (), {"__module__": 5})()
    large = np.zeros(100_001)
    assert [is_bulky(value) for value in (ring, odd, nameless, [odd], np.zeros(3), None, 7)] == [False] * 7
    assert [is_bulky(value) for value in (large, [large], {"a": (large,)}, pd.Series(large))] == [True] * 4
    assert not is_bulky([[[large]]])


def test_a_polars_frame_is_cloned() -> None:
    """Some of its methods change it in place. (A stand-in: polars need not be installed.)"""

    class DataFrame:
        def __init__(self, cells: list[int]) -> None:
            self.cells = cells

        def clone(self) -> DataFrame:
            return DataFrame(list(self.cells))

    class Expr:
        pass

    DataFrame.__module__ = "polars.dataframe.frame"
    Expr.__module__ = "polars.expr.expr"
    frame, expression = DataFrame([1]), Expr()
    copied = own_copy([frame, expression])
    copied[0].cells.append(2)
    assert (frame.cells, copied[0].cells, own_copy(frame) is frame) == ([1], [1, 2], False)
    assert copied[1] is expression
