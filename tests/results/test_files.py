"""Frames as files: what is read back is what the frame says, whatever is in its cells."""

from __future__ import annotations

import csv
import json
from collections import deque
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, PipelineResult
from tagent_nb.results import write_frame

ODD = pd.DataFrame(
    {
        "text": ["=1+1", "a\x07b\nc", None, "@sum"],
        "list": [[1, 2], [], None, [{"a": float("nan")}]],
        "big": [2**60, 1, -(2**60), 0],
        "at": pd.to_datetime(["2026-01-02 03:04"] * 4, utc=True),
        "mixed": [Decimal("1.10"), date(2026, 1, 2), timedelta(hours=1), True],
        "took": pd.to_timedelta([90] * 4, unit="s"),
        "done": [True, False, True, False],
        "share": [0.5, float("nan"), float("inf"), 1e300],
    },
    index=pd.Index(list("wxyz"), name="key"),
)


def row_of(value: Any) -> PipelineResult:
    """The result of a pipeline whose step ``rows`` has this value."""
    pipeline = Pipeline("files")
    pipeline.task(lambda: value, name="rows")
    return PipelineExecutor(pipeline).run()


def test_an_excel_sheet_has_texts_as_texts_and_numbers_with_all_their_digits(tmp_path: Path) -> None:
    """No cell becomes a formula, no number loses digits, no control character breaks the file."""
    import openpyxl

    path = tmp_path / "odd.xlsx"
    write_frame(ODD, path)
    sheet = openpyxl.load_workbook(path).active
    assert sheet is not None
    assert [cell.value for cell in sheet[1]] == [
        "key",
        "text",
        "list",
        "big",
        "at",
        "mixed",
        "took",
        "done",
        "share",
    ]
    rows = [[cell.value for cell in row] for row in sheet.iter_rows(min_row=2)]
    assert [row[0] for row in rows] == list("wxyz")
    assert [row[1] for row in rows] == ["=1+1", "ab\nc", None, "@sum"]
    assert "f" not in {cell.data_type for cell in sheet["B"]}
    assert [row[2] for row in rows] == ["[1, 2]", "[]", None, '[{"a": null}]']
    assert [row[3] for row in rows] == [str(2**60), 1, str(-(2**60)), 0]
    assert rows[0][4] == datetime(2026, 1, 2, 3, 4)
    assert rows[0][5] == "1.10"
    assert rows[3][5] in (True, "True", "true")
    assert rows[0][6] == "0 days 00:01:30"
    assert [row[7] for row in rows] == [True, False, True, False]
    assert [row[8] for row in rows] == [0.5, None, "inf", 1e300]
    assert sheet.freeze_panes == "A2"


def test_a_frame_that_counts_its_rows_has_no_column_of_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    write_frame(frame, tmp_path / "a.xlsx")
    assert pd.read_excel(tmp_path / "a.xlsx").equals(frame)
    write_frame(frame, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "a\n1\n2\n"


@pytest.mark.parametrize("ending", [".arrow", ".feather", ".parquet"])
def test_arrow_and_parquet_keep_types_and_labels(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"odd{ending}"
    write_frame(ODD, path)
    read = pd.read_parquet(path) if ending == ".parquet" else pd.read_feather(path)
    assert list(read.index) == list("wxyz")
    assert read["big"].tolist() == [2**60, 1, -(2**60), 0]
    assert read["at"].tolist() == [pd.Timestamp("2026-01-02 03:04", tz=UTC)] * 4
    assert read["list"].tolist()[0] == "[1, 2]"


def test_arrow_gets_texts_for_types_that_it_does_not_know(tmp_path: Path) -> None:
    frame = pd.DataFrame({"i": pd.arrays.SparseArray([1 + 2j, 3j])})
    write_frame(frame, tmp_path / "a.arrow")
    assert pd.read_feather(tmp_path / "a.arrow")["i"].tolist() == ["(1+2j)", "3j"]


def test_the_name_says_the_kind_of_file_and_another_one_is_refused(tmp_path: Path) -> None:
    write_frame(pd.DataFrame({"a": [1]}), tmp_path / "UPPER.CSV")
    assert (tmp_path / "UPPER.CSV").read_text() == "a\n1\n"
    for name in ("a.xls", "a", "a.json"):
        with pytest.raises(DefinitionError, match=r"does not say.*\.arrow, \.csv"):
            write_frame(pd.DataFrame(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["UPPER.CSV"]


def test_what_a_sheet_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many rows, too long a text, or no package that writes sheets."""
    path = tmp_path / "a.xlsx"
    with pytest.raises(DefinitionError, match="column 'text' has 32,768 in row 1"):
        write_frame(pd.DataFrame({"text": ["a", "b" * 32_768]}), path)
    monkeypatch.setattr("tagent_nb.results.files.MOST_ROWS", 3)
    with pytest.raises(DefinitionError, match="this frame has 3"):
        write_frame(pd.DataFrame({"a": [1, 2, 3]}), path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match="pip install openpyxl"):
        write_frame(pd.DataFrame({"a": [1]}), path)
    assert not path.exists()


def test_a_result_writes_its_table_or_the_frame_of_a_step(tmp_path: Path) -> None:
    result = row_of([{"a": 1, "b": {"c": 2}}])
    result.to_file(tmp_path / "steps.csv")
    assert (tmp_path / "steps.csv").read_text().startswith("step,status,value")
    result.to_file(tmp_path / "rows.csv", "rows", nested="columns")
    assert (tmp_path / "rows.csv").read_text() == "a,b.c\n1,2\n"
    with pytest.raises(DefinitionError, match="nested: of which step"):
        result.to_file(tmp_path / "steps.csv", nested="columns")


def test_arrays_frames_and_the_like_are_written_whole_as_json(tmp_path: Path) -> None:
    """However long they are, and wherever they stand."""
    vector = np.arange(2000.0)
    frame = pd.DataFrame(
        {
            "vector": [vector, [vector], {"v": vector}],
            "rows": [pd.DataFrame({"a": [1, 2]}), pd.Series([1, 2]), deque([1, 2])],
            "none": pd.Series([pd.NaT, [1], b"x"], dtype=object),
        }
    )
    write_frame(frame, tmp_path / "a.parquet")
    read = pd.read_parquet(tmp_path / "a.parquet")
    numbers = list(range(2000))
    assert [json.loads(text) for text in read["vector"]] == [numbers, [numbers], {"v": numbers}]
    assert read["rows"].tolist() == ['[{"a": 1}, {"a": 2}]', "[1, 2]", "[1, 2]"]
    assert read["none"].isna().tolist() == [True, False, False]
    assert read["none"].tolist()[1:] == ["[1]", "b'x'"]


def test_a_row_without_a_value_leaves_a_blank_and_numbers_stay_numbers_in_excel(tmp_path: Path) -> None:
    import openpyxl

    frame = pd.DataFrame(
        {
            "n": pd.array([1, None, 3], dtype="Int64"),
            "ok": pd.array([True, None, False], dtype="boolean"),
            "at": pd.to_datetime(["2026-01-02", None, "1850-01-02"]),
            "text": ["#N/A", "#DIV/0!", "=1"],
        }
    )
    write_frame(frame, tmp_path / "a.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").active
    assert sheet is not None
    rows = [[cell.value for cell in row] for row in sheet.iter_rows(min_row=2)]
    assert rows == [
        [1, True, datetime(2026, 1, 2), "#N/A"],
        [None, None, None, "#DIV/0!"],
        [3, False, "1850-01-02 00:00:00", "=1"],
    ]
    assert {cell.data_type for cell in sheet["D"]} <= {"s", "inlineStr"}


@pytest.mark.parametrize("label", ["a", "b\rc"])
def test_carriage_returns_in_csv_stay_in_their_cell(label: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({label: ["x\ry", "z"], "n": [1, 2]})
    write_frame(frame, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [[label, "n"], ["x\ry", "1"], ["z", "2"]]


def test_a_sheet_that_cannot_be_written_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    """Too many columns, too long a name; a name with characters that no sheet has loses them."""
    path = tmp_path / "a.xlsx"
    write_frame(pd.DataFrame({"a\x01b": [1]}), path)
    assert pd.read_excel(path).columns.tolist() == ["ab"]
    before = path.read_bytes()
    with pytest.raises(DefinitionError, match="16,384 columns at most, and this frame has 17,000"):
        write_frame(pd.DataFrame([range(17_000)]), path)
    with pytest.raises(DefinitionError, match="has 40,000 in its name"):
        write_frame(pd.DataFrame({"a" * 40_000: [1]}), path)
    assert path.read_bytes() == before
