"""What kind of thing a value is: one answer for each kind, with nothing heavy imported for it."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel, ConfigDict, RootModel, SecretStr, computed_field

from tagent_nb.errors import TemplateError
from tagent_nb.templating import distinct, instance_of, key_text, with_index
from tagent_nb.templating.coerce import cells, fields_of, items_of, unwrap


class Label(enum.Enum):
    GOOD = "good"


class Rank(enum.IntEnum):
    FIRST = 1


class Text(str):
    def __str__(self) -> str:
        return "a lie"


class Number(int):
    pass


class Share(float):
    pass


class Names(RootModel[list[str]]):
    pass


@pytest.mark.parametrize("value", ["a", 1, 1.5, True, None, b"a", Decimal("1.50"), date(2024, 1, 2), time(3)])
def test_plain_values_stay_as_they_are(value: object) -> None:
    assert unwrap(value) is value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Label.GOOD, "good"),
        (Rank.FIRST, 1),
        (Text("a"), "a"),
        (Number(3), 3),
        (Share(0.5), 0.5),
        (Names(["a"]), ["a"]),
        (Path("a/b"), "a/b"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (1 + 2j, "(1+2j)"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.int64(4), 4),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.datetime64("2024-01-02T03:04:05.000000006"), "2024-01-02T03:04:05.000000006"),
        (pd.Timestamp("2024-01-02T03:04:05.000000006"), datetime(2024, 1, 2, 3, 4, 5)),
        (pd.Timedelta(seconds=2, nanoseconds=3), timedelta(seconds=2)),
        (pd.Period("2024-01", "M"), "2024-01"),
        (pd.Interval(0, 1), "(0, 1]"),
        (pd.NA, None),
        (pd.NaT, None),
    ],
)
def test_wrapped_values_give_the_plain_one_of_an_exact_built_in_type(value: object, plain: object) -> None:
    unwrapped = unwrap(value)
    assert unwrapped == plain
    assert type(unwrapped) is type(plain)


def test_other_objects_are_not_touched() -> None:
    thing = object()
    assert unwrap(thing) is thing


class Inner(BaseModel):
    model_config = ConfigDict(extra="allow")
    label: Label = Label.GOOD

    @computed_field
    def loud(self) -> str:
        return self.label.value.upper()

    @property
    def hidden(self) -> str:
        return "not a field"


@dataclasses.dataclass
class Point:
    x: int = 1

    @property
    def hidden(self) -> int:
        return 2


def test_a_model_has_its_fields_computed_and_extra_ones_and_nothing_else() -> None:
    fields = fields_of(Inner(note="n"), "m")  # type: ignore[call-arg]
    assert fields is not None
    assert dict(fields) == {"label": Label.GOOD, "loud": "GOOD", "note": "n"}
    assert len(fields) == 3
    for name in ("hidden", "model_dump", "__class__"):
        assert name not in fields


def test_a_dataclass_has_its_fields_and_nothing_else() -> None:
    assert dict(fields_of(Point(), "p") or {}) == {"x": 1}
    assert fields_of(Point, "p") is None


def test_keys_of_a_dict_are_text() -> None:
    plain = {"a": 1}
    assert fields_of(plain, "d") is plain
    assert fields_of({1: "a", Label.GOOD: "b"}, "d") == {"1": "a", "good": "b"}


def test_keys_that_read_the_same_are_an_error_and_nothing_is_lost_silently() -> None:
    with pytest.raises(TemplateError, match="'load' has keys that read the same as text") as caught:
        fields_of({1: "a", "1": "b"}, "load")
    assert "1, '1'" in str(caught.value)


def test_a_series_with_unique_labels_is_a_record_and_any_other_a_list() -> None:
    counts = pd.Series(["a", "b", "a"]).value_counts()
    assert fields_of(counts, "s") == {"a": 2, "b": 1}
    numbers = pd.Series([1.0, None])
    assert fields_of(numbers, "s") is None
    assert items_of(numbers) == [1.0, None]
    twice = pd.Series([1, 2], index=["a", "a"])
    assert fields_of(twice, "s") is None


class Words(Sequence[str]):
    def __getitem__(self, place: Any) -> Any:
        return ["one", "two"][place]

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ([1, 2], [1, 2]),
        ((1, 2), (1, 2)),
        ({3, 10, 2}, [2, 3, 10]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({"b", 1}, [1, "b"]),
        (deque([1]), [1]),
        (OrderedDict(b=1, a=2).keys(), ["b", "a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [("a", 1)]),
        (range(2), [0, 1]),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(5), [5]),
        (pd.Index(["a"]), ["a"]),
    ],
)
def test_everything_with_an_order_is_a_list(value: object, items: Sequence[object]) -> None:
    unrolled = items_of(value)
    assert unrolled is not None
    assert list(unrolled) == list(items)


def test_a_sequence_of_another_class_is_a_list() -> None:
    assert list(items_of(Words()) or ()) == ["one", "two"]


@pytest.mark.parametrize(
    "value", [{"a": 1}, object(), (letter for letter in "ab"), len, SecretStr("x"), pd.DataFrame()]
)
def test_other_things_are_no_list(value: object) -> None:
    assert items_of(value) is None


def test_key_text_reads_any_key() -> None:
    assert [key_text(key) for key in ("a", 1, Label.GOOD, None, (1, 2))] == [
        "a",
        "1",
        "good",
        "None",
        "(1, 2)",
    ]


def test_cells_are_python_values_and_missing_ones_are_none() -> None:
    frame = pd.DataFrame({"n": [1.5, None], "t": pd.to_datetime(["2024-01-02", None]), "s": ["a", None]})
    assert cells(frame["n"]) == [1.5, None]
    assert cells(frame["t"]) == [datetime(2024, 1, 2), None]
    assert cells(frame["s"]) == ["a", None]


def test_an_index_that_says_something_becomes_a_column() -> None:
    plain = pd.DataFrame({"n": [1, 2]})
    assert with_index(plain) is plain
    assert with_index(plain[plain.n > 1]).columns.tolist() == ["n"]
    named = plain.set_axis(pd.Index(["a", "b"], name="city"))
    assert with_index(named).columns.tolist() == ["city", "n"]
    assert with_index(plain.set_axis(["a", "b"])).columns.tolist() == ["index", "n"]
    assert with_index(plain.rename_axis("place")).columns.tolist() == ["place", "n"]
    several = plain.set_axis(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["city", None]))
    assert with_index(several).columns.tolist() == ["city", "level_1", "n"]


def test_an_index_named_as_a_column_is_left_out() -> None:
    frame = pd.DataFrame({"n": [1]}, index=pd.Index(["a"], name="n"))
    assert with_index(frame) is frame


def test_a_level_named_as_a_column_is_left_out_and_the_others_are_not() -> None:
    index = pd.MultiIndex.from_tuples([("a", 2024, 1), ("b", 2025, 2)], names=["city", "n", "city"])
    rows = with_index(pd.DataFrame({"n": [1, 2], "city_2": [3, 4]}, index=index))
    assert rows.columns.tolist() == ["city", "city_3", "n", "city_2"]
    assert rows.iloc[:, 0].tolist() == ["a", "b"]
    assert rows.iloc[:, 1].tolist() == [1, 2]
    assert rows.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["x", "b"], ["x_2", "b"]),
    ],
)
def test_names_become_distinct(names: list[str], made: list[str]) -> None:
    assert distinct(names, ["x"]) == made


def test_an_empty_frame_has_its_columns_only() -> None:
    frame = pd.DataFrame({"n": []}, index=pd.Index([], dtype=object))
    assert with_index(frame) is frame


def test_a_class_of_a_module_that_is_not_loaded_has_no_instances() -> None:
    assert not instance_of(1, "no_such_module", "Thing")
    assert not instance_of(1, "sys", "NoSuchClass")


def test_recognising_values_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from tagent_nb.templating.views import view\n"
        "str(view({'a': [1, {2}, (3,)]}))\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"pandas", "numpy", "pydantic", "jinja2", "pyarrow"})


def test_arrays_of_pandas_are_lists() -> None:
    assert items_of(pd.Series(["a", "b", "a"]).unique()) == ["a", "b"]
    assert items_of(pd.array([1, None], dtype="Int64")) == [1, None]
    assert items_of(pd.Categorical(["x", None])) == ["x", None]
