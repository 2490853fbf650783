"""DataFrames, Series, indexes and arrays come back with index and dtypes intact, and never as pickle."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dateutil.relativedelta import MO
from dateutil.tz import tzfile, tzlocal
from dtypes import UNIT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pandas.tseries.holiday import USFederalHolidayCalendar

from tagent_nb.errors import CorruptRecordError, EncodeError
from tagent_nb.results import rows_of
from tagent_nb.serde import StoredValue, digest
from tagent_nb.serde.arrow import text_dtype
from tagent_nb.serde.encoder import Encoder
from tagent_nb.serde.value import decode, encode

equal_frames = pd.testing.assert_frame_equal
equal_series = pd.testing.assert_series_equal
equal_indexes = pd.testing.assert_index_equal


def again(value: Any) -> Any:
    """A value after it was stored and read; stored once more it gives the same bytes."""
    blob = encode(value)
    back = decode(blob)
    assert encode(back) == blob
    assert digest(back) == digest(value) == StoredValue.of(value).digest
    return back


DAYS = pd.to_datetime(["2024-01-01", "2024-02-01"])
TYPED = pd.DataFrame(
    {
        "int64": [1, 2],
        "uint8": np.array([1, 2], "u1"),
        "float": [1.5, np.nan],
        "inf": [np.inf, -np.inf],
        "float32": np.array([1, np.nan], "f4"),
        "float16": np.array([1, 2], "f2"),
        "bool": [True, False],
        "str": ["x", None],
        "string": pd.array(["x", None], dtype="string"),
        "string[python]": pd.array(["x", None], dtype="string[python]"),
        "str[python]": pd.array(["x", None], dtype=text_dtype("python", "nan")),
        "Int64": pd.array([1, None], dtype="Int64"),
        "Float64": pd.array([1.5, None], dtype="Float64"),
        "boolean": pd.array([True, None], dtype="boolean"),
        "category": pd.Categorical(["u", "v"], categories=["v", "u", "w"], ordered=True),
        "category of int": pd.Categorical([7, 8]),
        "datetime": DAYS,
        "datetime[s]": DAYS.astype("datetime64[s]"),
        "datetime[ns]": DAYS.astype("datetime64[ns]"),
        "zone": DAYS.tz_localize("Europe/Berlin"),
        "utc": DAYS.tz_localize("UTC"),
        "timedelta": pd.to_timedelta([1, None], unit="s"),
        "period": pd.period_range("2024-01", periods=2, freq="M"),
        "interval": pd.interval_range(0, 2, closed="left"),
        "int64[pyarrow]": pd.array([1, None], dtype="int64[pyarrow]"),
        "lists[pyarrow]": pd.Series([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
        "categories[pyarrow]": pd.Series(
            ["x", "y"], dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))
        ),
        "cut": pd.cut(pd.Series([1, 2]), [0, 1, 5]),
        "category of objects": pd.Categorical([1, "a"]),
        "category of times": pd.Categorical(DAYS.tz_localize("UTC"), ordered=True),
        "no category": pd.Categorical([None, None]),
    }
)

OBJECTS = pd.DataFrame(
    {
        "mixed": [1, "a", None],
        "lists": [[1], (2,), {3}],
        "dicts": [{"x": 1}, {"x": 1, "y": None}, {}],
        "dates": [date(2024, 1, 1), None, datetime(2024, 1, 1)],
        "decimals": [Decimal("1.10"), Decimal("2"), float("nan")],
        "missing": [None, pd.NA, pd.NaT],
        "bytes": [b"a", b"", None],
    },
    dtype=object,
)

FRAMES = {
    "typed": TYPED,
    "objects": OBJECTS,
    "both": pd.concat([TYPED, OBJECTS.iloc[:2]], axis=1)[["lists", "str", "mixed", "zone"]],
    "empty": pd.DataFrame(),
    "no columns": pd.DataFrame(index=[3, 1]),
    "no rows": TYPED.iloc[:0],
    "no rows of objects": OBJECTS.iloc[:0],
    "slice": TYPED.iloc[1:],
    "stacked": pd.concat([TYPED, TYPED]),
    "columns of the same name": pd.DataFrame([[1, "a"], [2, "b"]], columns=["x", "x"]),
    "columns of all kinds": pd.DataFrame([[1, 2, 3, 4]], columns=[1, "1", ("a", 2), None]),
    "numbered columns": pd.DataFrame(np.eye(2)),
    "named columns": pd.DataFrame({"a": [1]}, columns=pd.Index(["a"], name="cols")),
    "columns of dates": pd.DataFrame([[1, 2]], columns=DAYS),
    "columns of two levels": pd.DataFrame(np.eye(2), columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "text index": pd.DataFrame({"a": [1, 2]}, index=["x", "y"]),
    "object index": pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", 1], dtype=object)),
    "named index": pd.DataFrame({"a": [1]}, index=pd.Index([1.5], name=("x", 1))),
    "range index": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(5, 1, -2, name="n")),
    "days": pd.DataFrame({"a": [1, 2]}, index=pd.date_range("2024", periods=2, tz="Europe/Paris", name="d")),
    "hours": pd.DataFrame({"a": [1, 2]}, index=pd.timedelta_range("0h", periods=2, freq="h")),
    "months": pd.DataFrame({"a": [1, 2]}, index=pd.period_range("2024", periods=2, freq="M")),
    "categories": pd.DataFrame({"a": [1, 2]}, index=pd.CategoricalIndex(["x", "y"])),
    "intervals": pd.DataFrame({"a": [1, 2]}, index=pd.interval_range(0, 2)),
    "two levels": pd.DataFrame(
        {"a": range(4)}, index=pd.MultiIndex.from_product([["x", "y"], DAYS], names=["k", None])
    ),
    "one level of many": pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_arrays([["x"]], names=["k"])),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_comes_back_as_it_was(frame: pd.DataFrame) -> None:
    equal_frames(again(frame), frame, check_freq=True)


OFFSETS = [
    pd.DateOffset(months=1),
    pd.DateOffset(days=1, hours=2, normalize=True),
    pd.DateOffset(weekday=MO(2)),
    pd.offsets.BusinessHour(),
    pd.offsets.BusinessHour(start=["09:30", "13:00"], end=["12:00", "16:30"]),
    pd.offsets.CustomBusinessHour(holidays=["2024-01-02"]),
    pd.offsets.CustomBusinessDay(holidays=["2024-01-02"]),
    pd.offsets.CustomBusinessDay(weekmask="Mon Wed Fri"),
    pd.offsets.CustomBusinessDay(calendar=USFederalHolidayCalendar()),
    pd.offsets.CustomBusinessMonthEnd(calendar=np.busdaycalendar(holidays=["2024-01-31"])),
    pd.offsets.Easter(),
    pd.offsets.FY5253(startingMonth=1, weekday=3, variation="last"),
    pd.offsets.FY5253Quarter(),
    pd.offsets.Week(),
    pd.offsets.Week(2, weekday=2),
    pd.offsets.WeekOfMonth(week=1, weekday=2),
    pd.offsets.SemiMonthEnd(day_of_month=10),
    pd.offsets.QuarterBegin(startingMonth=2),
    pd.offsets.MonthEnd(2),
    pd.offsets.Day(-1),
    pd.offsets.Minute(5),
    pd.offsets.Nano(7),
]


def refused_by_pandas_2(index: Any) -> bool:
    """Whether pandas does not take the frequency that an index has: pandas 2, of some with a single label."""
    try:
        type(index)(pd.Series(index), freq=index.freq)
    except ValueError:
        assert UNIT == "ns"
        assert len(index) == 1
        return True
    return False


@pytest.mark.parametrize("offset", OFFSETS, ids=[repr(offset) for offset in OFFSETS])
def test_an_index_has_its_frequency_again(offset: Any) -> None:
    """Frequencies that their name does not tell, too; as a value, an offset comes back as well."""
    days = pd.date_range("2024-01-04 10:00", periods=4, freq=offset)
    for index in (days, days[1:], days[:1], days[:0], days.tz_localize("Europe/Paris")):
        if refused_by_pandas_2(index):
            with pytest.raises(EncodeError, match=r"Leave it out: frame.index.freq = None"):
                encode(pd.DataFrame({"a": range(len(index))}, index=index))
            continue
        back = again(pd.DataFrame({"a": range(len(index))}, index=index)).index
        equal_indexes(back, index)
        assert back.freq == index.freq
        assert repr(back.freq) == repr(index.freq)
    assert [days[0] + again(offset)] == [days[0] + offset]
    assert type(again(offset)) is type(offset)
    levels = pd.MultiIndex.from_product([days, ["x", "y"]])
    assert again(pd.Series(range(len(levels)), index=levels)).index.levels[0].freq == levels.levels[0].freq
    if not refused_by_pandas_2(days[:1]):
        kept = again(pd.Series(pd.Categorical.from_codes([0, 0], days[:1])))
        assert kept.cat.categories.freq == offset


def test_an_index_of_levels_comes_back_with_its_levels() -> None:
    """With their order and their types, also for columns, and without those that no row has any more."""
    index = pd.MultiIndex.from_arrays(
        [pd.Categorical(["b", "a", None], categories=["b", "a"]), ["x", None, "x"]], names=["n", "n"]
    )
    index = index.set_levels(["x"], level=1, verify_integrity=False)
    frame = pd.DataFrame(np.eye(3), index=index, columns=index.set_names([None, 0]))
    back = again(frame)
    equal_frames(back, frame)
    assert back.index.names == ["n", "n"]
    assert back.columns.names == [None, 0]
    assert [*back.index.levels[0]] == ["b", "a"]
    assert [[*codes] for codes in back.index.codes] == [[0, 1, -1], [0, -1, 0]]
    assert [*again(frame.iloc[:1]).index.levels[1]] == ["x"]
    assert again(frame.iloc[:0]).index.nlevels == 2


@pytest.mark.parametrize(
    "offset",
    [
        {"class": "no_such_offset", "n": 1, "with": {}},
        {"class": "Day", "n": 1, "with": {"holidays": 7}},
        {"class": "__doc__", "n": 1, "with": {}},
        {"n": 1},
    ],
)
def test_an_offset_that_is_damaged_is_said_to_be(offset: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecordError, match="A stored offset cannot be read"):
        decode(json.dumps({"$t": "offset", **offset}).encode())


ARRAYS = {
    "texts": pd.Series(["a", "b", "a"]).unique(),
    "values": pd.Series(["a", None]).values,
    "strings": pd.array(["a", None], dtype="string[python]"),
    "cut": pd.cut([1, 5, 9], 3),
    "ordered": pd.Categorical(["a", None], ["b", "a"], ordered=True),
    "intervals": pd.arrays.IntervalArray.from_breaks([0, 1, 2]),
    "periods": pd.period_range("2024", periods=2, freq="M").array,
    "integers": pd.array([1, None], dtype="Int64"),
    "floats": pd.array([1.5, None], dtype="Float64"),
    "booleans": pd.array([True, None], dtype="boolean"),
    "days": pd.date_range("2024", periods=2, freq="MS").array,
    "zone": pd.date_range("2024", periods=2, tz="Europe/Paris").array,
    "durations": pd.to_timedelta([1, 2], unit="s").array,
    "numbers": pd.Series([1, 2]).array,
    "objects": pd.Series([[1], {"a": 2}]).array,
    "arrow": pd.array([1, None], dtype="int64[pyarrow]"),
    "empty": pd.array([], dtype="Int64"),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_of_pandas_comes_back_as_it_was(array: Any) -> None:
    back = again({"array": [array]})["array"][0]
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    if isinstance(array, np.ndarray):  # texts with pandas 2
        assert back.tolist() == array.tolist()
    else:
        pd.testing.assert_extension_array_equal(back, array)
    if len(back):
        back[0] = back[len(back) - 1]  # it is the step's own


@pytest.mark.parametrize("name", TYPED.columns)
def test_a_series_comes_back_as_it_was(name: str) -> None:
    equal_series(again(TYPED[name]), TYPED[name])
    equal_series(again(TYPED[name].rename(("a", 1)).iloc[1:]), TYPED[name].rename(("a", 1)).iloc[1:])


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([], dtype=object),
        pd.Series([[1], None], name=3),
        pd.Series({"x": 1}),
        pd.Series([1], index=DAYS[:1], name=pd.Timestamp("2024-01-01")),
    ],
)
def test_other_series_too(series: pd.Series) -> None:
    equal_series(again(series), series)


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([3, 1]),
        pd.RangeIndex(3),
        pd.Index(["a"], name="n"),
        pd.Index(["a", None]),
        pd.Index([True, False]),
        DAYS,
        pd.MultiIndex.from_tuples([("a", 1)]),
        pd.Index([], dtype=object),
    ],
)
def test_an_index_comes_back_as_it_was(index: pd.Index) -> None:
    equal_indexes(again(index), index, exact=True)


def test_attributes_of_a_frame_are_kept() -> None:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["source"] = ("x", 1)
    assert again(frame).attrs == {"source": ("x", 1)}


def test_what_comes_back_can_be_changed() -> None:
    frame = again(pd.DataFrame({"a": [1.0, 2.0]}))
    frame.loc[0, "a"] = 5.0
    assert frame["a"].tolist() == [5.0, 2.0]
    array = again(np.array([1, 2]))
    array[0] = 5
    assert array.tolist() == [5, 2]


def test_frames_inside_other_values() -> None:
    back = again({"frames": [(TYPED, np.eye(2))]})
    equal_frames(back["frames"][0][0], TYPED)
    assert back["frames"][0][1].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_equal_frames_have_equal_digests() -> None:
    assert digest(TYPED) == digest(TYPED.copy())
    assert digest(TYPED) == digest(pd.concat([TYPED.iloc[:1], TYPED.iloc[1:]]))
    changed = TYPED.copy()
    changed.loc[0, "int64"] = 9
    others = [
        TYPED,
        changed,
        TYPED.rename(columns={"int64": "x"}),
        TYPED[TYPED.columns[::-1]],
        TYPED.iloc[::-1],
    ]
    assert len({digest(other) for other in others}) == len(others)


COLUMN_TYPES = [
    (st.integers(-(2**63), 2**63 - 1), "int64"),
    (st.floats(), "float64"),
    (st.none() | st.integers(-128, 127), "Int8"),
    (st.none() | st.booleans(), "boolean"),
    (st.none() | st.text(st.characters(exclude_categories=["Cs"])), "str"),
    (st.none() | st.text(st.characters(exclude_categories=["Cs"])), "string"),
    (st.none() | st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), "datetime64[us]"),
    (st.none() | st.timedeltas(timedelta(-9999), timedelta(9999)), "timedelta64[us]"),
    (st.none() | st.sampled_from("xyz"), "category"),
    (st.none() | st.integers() | st.text(max_size=3).filter(str.isascii) | st.lists(st.integers()), "object"),
]
COLUMN = st.sampled_from(COLUMN_TYPES).flatmap(
    lambda pair: st.lists(pair[0], min_size=4, max_size=4).map(lambda cells: pd.Series(cells, dtype=pair[1]))
)


@given(st.lists(COLUMN, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_any_frame_survives(columns: list[pd.Series], data: st.DataObject) -> None:
    frame = pd.DataFrame(dict(enumerate(columns)), index=range(4))
    frame.columns = data.draw(
        st.lists(st.text("ab", max_size=2), min_size=len(columns), max_size=len(columns))
    )
    index = data.draw(COLUMN)
    frame.index = pd.Index(index, dtype=index.dtype)
    rows = data.draw(st.lists(st.integers(0, 3), max_size=6))
    frame = frame.iloc[rows]
    equal_frames(decode(encode(frame)), frame, check_exact=True)


# -- arrays -------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4)[:, ::2],
    np.array(1.5),
    np.array([1, np.nan, np.inf]),
    np.array([1, np.nan], "f2"),
    np.array([[True], [False]]),
    np.array([1, 2], ">i4"),
    np.array([1.5], ">f8"),
    np.array(["a", "bcd", "ü"]),
    np.array([b"x", b"yz"]),
    np.array([1 + 2j]),
    np.array(["2024-01-01", "NaT"], "M8[D]"),
    np.array([3, 4], "m8[ms]"),
    np.array([], "f4"),
    np.zeros((2, 0, 3)),
    np.array([""]),
    np.array([], "U0"),
    np.array([None, [1], "x", {"a": (1,)}], dtype=object),
    np.array([[1, "a"]], dtype=object),
    np.array(None, dtype=object),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype} {array.shape}")
def test_an_array_comes_back_as_it_was(array: np.ndarray) -> None:
    back = again(array)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape


@given(
    hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(),
            hnp.floating_dtypes(sizes=(16, 32, 64)),
            hnp.boolean_dtypes(),
            hnp.unicode_string_dtypes(max_len=4),
            hnp.byte_string_dtypes(max_len=4),
            hnp.complex_number_dtypes(sizes=(64, 128)),
        ),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_array_survives(array: np.ndarray) -> None:
    back = decode(encode(array))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


# -- scalars ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        np.int8(-3),
        np.uint64(2**64 - 1),
        np.float64(1.5),
        np.float64("inf"),
        np.float32(1 / 3),
        np.float16(0.1),
        np.float32("nan"),
        np.bool_(True),
        np.str_("x"),
        np.bytes_(b"x"),
    ],
    ids=repr,
)
def test_scalars_of_numpy_come_back_as_they_were(value: np.generic) -> None:
    """They count otherwise than Python's numbers: 1 / np.int64(0) is infinite, and 1 / 0 an error."""
    back = again({"x": [value]})["x"][0]
    assert type(back) is type(value)
    assert back == value or back != back
    assert digest(back) == digest(value) != digest(value.item())


def test_a_short_float_comes_back_as_the_number_that_a_goal_shows() -> None:
    """Else the prompts of a resumed run would differ from those of the first session."""
    assert json.loads(encode(np.float32(0.1)))["v"] == 0.1


@pytest.mark.parametrize(
    "node",
    [
        {"dtype": "<i8", "v": "1"},
        {"dtype": "|i1", "v": 300},
        {"dtype": "<f16", "v": 1},
        {"dtype": "|b1", "v": 1},
        {"dtype": "U", "v": 1},
        {"dtype": "O", "v": 1},
    ],
    ids=repr,
)
def test_a_scalar_that_does_not_fit_its_dtype_is_damaged(node: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecordError, match="A stored numpy cannot be read"):
        decode(json.dumps({"$t": "numpy", **node}).encode())


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2024-01-01 00:00:00.123456789"),
        pd.Timestamp("2024-07-01", tz="Europe/Berlin"),
        pd.Timestamp("2024-07-01", tz="UTC"),
        pd.Timestamp("2024-07-01T00:00:00-03:30"),
        pd.Timestamp("2024-10-27 00:30", tz="UTC").tz_convert("Europe/Berlin"),
        pd.Timestamp(1700000000, unit="s"),
        pd.Timedelta("1ns"),
        pd.Timedelta(days=-1),
        pd.NaT,
        pd.NA,
        pd.Period("2024Q1"),
        pd.Interval(0, 1, closed="both"),
        np.datetime64("2024-01-01"),
        np.datetime64("NaT", "ns"),
        np.timedelta64(3, "s"),
    ],
    ids=repr,
)
def test_times_and_other_scalars_come_back_as_they_were(value: Any) -> None:
    back = again([value])[0]
    assert repr(back) == repr(value)
    assert type(back) is type(value)
    assert again({value: 1}) == {value: 1} or str(value) in ("NaT", "<NA>")


ZONES = [
    UTC,
    ZoneInfo("UTC"),
    ZoneInfo("Etc/UTC"),
    ZoneInfo("Europe/Berlin"),
    timezone(timedelta(0)),
    timezone(timedelta(hours=5, minutes=30)),
    timezone(timedelta(hours=-3)),
]


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_rows_with_times_are_the_same_items_when_their_frame_comes_back(zone: tzinfo) -> None:
    """A step that maps over a stored frame pays for no row again: UTC by name is another zone than UTC."""
    days = pd.DatetimeIndex(DAYS).tz_localize("UTC").tz_convert(zone)
    column = pd.Series(days)
    column[1] = pd.NaT
    values = [
        pd.DataFrame({"n": range(len(days)), "at": column, "group": pd.Categorical(days)}),
        pd.DataFrame({"n": range(len(days))}, index=pd.DatetimeIndex(days, name="at")),
        pd.Series(days, index=pd.MultiIndex.from_arrays([days, range(len(days))])),
        pd.Series([*column, "text"], dtype=object),
    ]
    for value in values:
        back = again(value)
        items, before = rows_of(back), rows_of(value)
        assert [repr(item) for _, _, item in items] == [repr(item) for _, _, item in before]
        assert [digest(item) for _, _, item in items] == [digest(item) for _, _, item in before]
        assert [key for key, _, _ in items] == [key for key, _, _ in before]
        assert digest(back) == digest(value)
    assert again(days).tz == zone
    assert type(again(days).tz) is type(zone)


@pytest.mark.parametrize("name", ["Europe/Berlin", "UTC", "Etc/UTC", None])
def test_zones_of_pytz_come_back_as_zones_of_the_same_name(name: str | None) -> None:
    """pandas 2 makes them for a name, and Arrow for pandas 2."""
    pytz = pytest.importorskip("pytz")
    zone = pytz.FixedOffset(330) if name is None else pytz.timezone(name)
    days = DAYS.tz_localize("UTC").tz_convert(zone)
    back = again(pd.Series(days))
    assert back.tolist() == days.tolist()
    assert str(back.dtype) == str(pd.Series(days).dtype)
    if name != "UTC":
        assert back.dt.tz is zone


def test_zones_of_pytz_are_read_as_zones_of_python_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytz = pytest.importorskip("pytz")
    blob = encode(pd.Series(DAYS.tz_localize("UTC").tz_convert(pytz.timezone("Europe/Berlin"))))
    monkeypatch.setitem(sys.modules, "pytz", None)
    assert decode(blob).dt.tz == ZoneInfo("Europe/Berlin")


def test_texts_of_a_newer_pandas_are_read_with_what_an_older_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfPandas22:
        def __init__(self, storage: str) -> None:
            self.storage = storage

    monkeypatch.setattr(pd, "StringDtype", OfPandas22)
    assert text_dtype("python", "nan") is object
    assert text_dtype("pyarrow", "nan").storage == "pyarrow_numpy"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [date(2024, 1, 1), ("x", 1), {"a": {1}}, b"x", float("nan")])
def test_attributes_of_any_kind_are_stored_without_a_word(value: Any) -> None:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs.update({"odd": value, "plain": "x", 5: 6})
    back = again(frame)
    assert repr(back.attrs) == repr(frame.attrs)
    assert digest(back) == digest(frame)


# -- what is refused ----------------------------------------------------------------------------


class Own(pd.DataFrame):
    """A user's subclass, with who knows what inside."""


class Monthly(pd.offsets.MonthBegin):
    """A user's own offset."""

    @property
    def freqstr(self) -> str:
        return "my own"


BERLIN = DAYS.tz_localize("dateutil/Europe/Berlin")

REFUSED = [
    (pd.DataFrame({"a": [1, 2], "fn": [1, len]}), "output.fn[1]: a function cannot be stored"),
    (pd.DataFrame({"a": [1], "b c": [[{"x": len}]]}), "output['b c'][0][0].x: a function cannot be stored"),
    (pd.Series([1, len]), "output[1]: a function cannot be stored"),
    (pd.Series([1], name=len), "output: a function cannot be stored"),
    (pd.DataFrame({"a": [1]}, index=[len]), "output.index[0]: a function cannot be stored"),
    (pd.Index([len]), "output.index[0]: a function cannot be stored"),
    (np.array([1, len], dtype=object), "output[1]: a function cannot be stored"),
    (
        pd.DataFrame({"a": [1], "s": pd.arrays.SparseArray([1])}),
        "output.s: a column of dtype Sparse[int64, 0] cannot be stored. Convert it with .astype('int64')",
    ),
    (
        pd.DataFrame({"a": [1], "c": [1j]}),
        "output.c: a column of dtype complex128 cannot be stored. Return .to_numpy(), or its .real and .imag",
    ),
    (
        pd.DataFrame({"a": [1], "i": pd.arrays.IntervalArray.from_breaks(DAYS.tz_localize("UTC"))}),
        f"output.i: a column of dtype interval[datetime64[{UNIT}, UTC], right] cannot be stored.",
    ),
    (
        pd.DataFrame({"a": [1], "z": DAYS[:1].tz_localize(timezone(timedelta(seconds=5)))}),
        f"output.z: a column of dtype datetime64[{UNIT}, UTC+00:00:05] cannot be stored.",
    ),
    (
        pd.DataFrame({"a": [1], "z": DAYS[:1].tz_localize("dateutil/Europe/Berlin")}),
        f"output.z: a column of dtype datetime64[{UNIT}, tzfile(",
    ),
    (np.zeros(1, "i4,f4"), "an array of dtype [('f0', '<i4'), ('f1', '<f4')] cannot be stored."),
    (np.zeros(1, "g"), "cannot be stored. Convert it with .astype(...)"),
    (np.longdouble(1), "an object of class numpy.longdouble cannot be stored"),
    (np.complex128(1), "an object of class numpy.complex128 cannot be stored"),
    (np.zeros(1, "i4,f4")[0], "an object of class numpy.void cannot be stored"),
    (np.sin, "an object of class numpy.ufunc cannot be stored"),
    (np.ma.array([1]), "a MaskedArray of NumPy cannot be stored. Return array.filled(...)"),
    (np.zeros(1, "i4,f4"), "cannot be stored. Return pandas.DataFrame(array)"),
    (np.asmatrix([1]), "a matrix of NumPy cannot be stored. Return numpy.asarray(matrix)"),
    (
        pd.arrays.SparseArray([0.5]),
        "output: a column of dtype Sparse[float64, nan] cannot be stored. Convert it",
    ),
    (pd.Series(BERLIN), "cannot be stored. Convert it with .dt.tz_convert('Europe/Berlin')"),
    (
        pd.DataFrame({"a": [1, 2]}, index=BERLIN),
        "cannot be stored. Convert it with .tz_convert('Europe/Berlin')",
    ),
    (BERLIN.array, "cannot be stored. Convert it with .tz_convert('Europe/Berlin')"),
    (pd.DataFrame({"z": BERLIN}), f"output.z: a column of dtype datetime64[{UNIT}, tzfile("),
    (pd.Series(DAYS.tz_localize(tzlocal())), "Convert it with .dt.tz_convert('UTC')"),
    (
        pd.Timestamp("2024", tz=tzfile(repr(BERLIN.tz).split("'")[1])),
        "cannot be stored. Convert it with .tz_convert('Europe/Berlin')",
    ),
    (pd.Series([1], index=pd.DatetimeIndex(["2024-01-01"], freq=Monthly())), "frequency <Monthly>"),
    (Monthly(), "an object of class test_arrow.Monthly cannot be stored"),
    (
        # Not the days that the frequency would make of the first: pandas itself would refuse it.
        pd.Series(range(4), index=pd.date_range("2024-01-31", periods=8, freq=pd.DateOffset(months=1))[::2]),
        "output: an index with the frequency <2 * DateOffsets: months=1> cannot be stored. "
        "Leave it out: frame.index.freq = None",
    ),
    (Own({"a": [1]}), "an object of class test_arrow.Own cannot be stored"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_what_cannot_be_stored_says_what_and_where(value: Any, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert message in str(caught.value)


def test_text_that_cannot_be_written_names_its_column() -> None:
    for dtype in (object, pd.StringDtype("python")):
        frame = pd.DataFrame({"a": [1], "t": pd.Series(["\ud800"], dtype=dtype)})
        with pytest.raises(EncodeError, match=r"^output\.t"):
            encode(frame)


def test_a_frame_too_many_levels_down_is_refused() -> None:
    for inner in (pd.DataFrame({"a": [1]}), pd.Series([1]), pd.Index([1]), np.array([1])):
        value: Any = inner
        for _ in range(200):
            value = [value]
        with pytest.raises(EncodeError, match="more than 200 containers"):
            encode(value)


def test_arrays_are_stored_without_loading_pandas() -> None:
    """A pipeline that only knows NumPy does not pay for pandas."""
    code = (
        "import sys, numpy as np\n"
        "from tagent_nb.serde.value import decode, encode\n"
        "assert decode(encode([np.int64(1), np.array([1.5])]))[0] == 1\n"
        "try: encode(np.sin)\n"
        "except TypeError: pass\n"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- streams that no one wrote --------------------------------------------------------------------


def stream(table: pa.Table, compression: str | None = None) -> str:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue().to_pybytes()).decode()


def series_of(text: str, rows: int = 2) -> bytes:
    index = {"range": [0, rows, 1], "names": [None]}
    return json.dumps({"$t": "series", "index": index, "name": None, "vectors": {"v": text}}).encode()


def test_a_plain_stream_of_someone_else_is_read() -> None:
    assert decode(series_of(stream(pa.table({"0": [1, 2]})))).tolist() == [1, 2]


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("column", [pa.array([0] * 100_000), pa.array(["x"] * 100_000).dictionary_encode()])
def test_a_compressed_stream_is_refused_unread(compression: str, column: pa.Array) -> None:
    """A few bytes could become gigabytes."""
    with pytest.raises(CorruptRecordError, match="a compressed stream"):
        decode(series_of(stream(pa.table({"0": column}), compression), len(column)))


def test_more_rows_than_bytes_are_refused() -> None:
    with pytest.raises(CorruptRecordError, match="more rows than its bytes can hold"):
        decode(series_of(stream(pa.table({"0": pa.nulls(10_000_000)})), 10_000_000))


def test_columns_and_rows_must_be_all_there() -> None:
    for table in ({"1": [1, 2]}, {"0": [1, 2], "1": [1, 2]}, {"0": [1]}):
        with pytest.raises(CorruptRecordError):
            decode(series_of(stream(pa.table(table))))
    with pytest.raises(CorruptRecordError, match="its data is missing"):
        decode(b'{"$t": "ndarray", "dtype": "<i8", "shape": [2]}')


def test_an_array_of_objects_is_never_made_of_bytes() -> None:
    for dtype in ("O", "V8", "i4,O"):
        node = {"$t": "ndarray", "dtype": dtype, "shape": [1], "v": stream(pa.table({"0": [1]}))}
        with pytest.raises(CorruptRecordError):
            decode(json.dumps(node).encode())
    with pytest.raises(CorruptRecordError, match="dtype"):
        decode(b'{"$t": "numpy", "dtype": "O", "v": 1}')


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_in_a_stream_is_a_value_or_the_right_error(data: st.DataObject) -> None:
    """Neither a crash of the process nor an error of pandas or Arrow."""
    frame = pd.DataFrame({"a": [1, 2], "s": ["x", "yz"], "c": pd.Categorical(["u", "v"])})
    node = json.loads(encode(frame))
    raw = bytearray(base64.b64decode(node["vectors"]["v"]))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    node["vectors"]["v"] = base64.b64encode(raw).decode()
    with contextlib.suppress(CorruptRecordError):
        decode(json.dumps(node).encode())


@pytest.mark.parametrize(
    "tag", ["frame", "series", "index", "ndarray", "timestamp", "pandas_timedelta", "pandas_scalar"]
)
def test_malformed_nodes_are_refused(tag: str) -> None:
    for rest in ({}, {"v": 1}, {"v": "AAAA", "vectors": [], "index": {}, "columns": {}, "unit": "parsec"}):
        with pytest.raises(CorruptRecordError, match=f"A stored {tag} cannot be read"):
            decode(json.dumps({"$t": tag, **rest}).encode())


def test_an_index_of_levels_of_the_last_format_is_read() -> None:
    """It was stored label by label; digests still are."""
    index = pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["k", None])
    older = Encoder(identity=True).tree(index)
    assert "levels" not in older["v"]
    equal_indexes(decode(json.dumps(older).encode()), index)


# -- polars and Arrow ---------------------------------------------------------------------------


class Frame:
    """What of a polars DataFrame is used."""

    def __init__(self, table: pa.Table, dtypes: Sequence[object] = ()) -> None:
        self.table = table
        self.dtypes = dtypes

    def __len__(self) -> int:
        return self.table.num_rows

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def rechunk(self) -> Any:
        return type(self)(self.table.combine_chunks(), self.dtypes)

    def to_dicts(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def __getitem__(self, name: str) -> Any:
        return Series(self.table.select([name]))


class Series(Frame):
    """What of a polars Series is used."""

    name = ""

    def alias(self, name: str) -> Any:
        self.name = name
        return self

    def rechunk(self) -> Any:
        return self

    def to_frame(self, name: str) -> Frame:
        return Frame(self.table.rename_columns([name]))

    def to_list(self) -> list[Any]:
        return [next(iter(row.values())) for row in self.to_dicts()]


@pytest.fixture
def polars(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for polars, which the tests do without."""
    module = ModuleType("polars")
    names = {"DataFrame": Frame, "Series": Series, "LazyFrame": Frame, "Expr": Frame}
    for name, kind in names.items():
        setattr(module, name, type(name, (kind,), {"__module__": "polars.inside"}))
    module.from_arrow = lambda table: module.DataFrame(table)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polars", module)
    return module


TABLE = pa.table({"a": [1, None, 3], "b": ["x", "y", "z"], "c": [[1], [], None]})


def test_frames_of_polars_come_back_by_arrow(polars: Any) -> None:
    chunked = pa.concat_tables([TABLE[:1], TABLE[1:]])
    back = decode(encode({"frame": polars.DataFrame(chunked)}))["frame"]
    assert type(back) is polars.DataFrame
    assert back.table == TABLE
    assert digest(polars.DataFrame(chunked)) == digest(polars.DataFrame(TABLE)) == digest(back)
    series = polars.Series(TABLE.select(["b"])).alias("name")
    column = decode(encode(series))
    assert (column.to_list(), column.name) == (["x", "y", "z"], "name")
    assert digest(series) != digest(polars.Series(TABLE.select(["b"])))
    assert decode(encode(TABLE)) == TABLE


def test_rows_of_polars_frames_and_items_of_series_are_mapped_over(polars: Any) -> None:
    assert rows_of(polars.DataFrame(TABLE))[1] == ("1", 1, {"a": None, "b": "y", "c": []})
    assert rows_of(polars.Series(TABLE.select(["a"]))) == [("0", 0, 1), ("1", 1, None), ("2", 2, 3)]
    with pytest.raises(TypeError, match="of type Expr, which has no items"):
        rows_of(polars.Expr(TABLE))


def test_what_of_polars_cannot_be_stored_says_what_to_return(polars: Any) -> None:
    with pytest.raises(EncodeError, match=r"output\.f: a LazyFrame, .* Return frame\.collect\(\)"):
        encode({"f": polars.LazyFrame(TABLE)})
    with pytest.raises(
        EncodeError, match=r"polars DataFrame that Arrow cannot express \(it has a column of Py"
    ):
        encode(polars.DataFrame(TABLE, ["Int64", "List(Object)"]))
    with pytest.raises(EncodeError, match=r"an object of class polars\.inside\.Expr cannot be stored"):
        encode(polars.Expr(TABLE))


def test_a_frame_of_polars_is_not_read_without_it(polars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = encode(polars.DataFrame(TABLE))
    with pytest.raises(CorruptRecordError, match="A stored polars.DataFrame cannot be read: "):
        decode(blob.replace(b'"v":"', b'"v":"AAAA'))
    with pytest.raises(CorruptRecordError, match="'os.system' is no kind of table"):
        decode(blob.replace(b"polars.DataFrame", b"os.system"))
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(CorruptRecordError, match="without polars. Install it: pip install polars"):
        decode(blob)
