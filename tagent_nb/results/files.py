"""Frames as files: CSV, Parquet, Excel and Arrow, whatever is in their cells."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError
from tagent_nb.formatting import short_text
from tagent_nb.results.rows import column_of, is_missing, plain, record_of, rows_in
from tagent_nb.serde import clean, index_from, plain_attributes
from tagent_nb.templating import distinct

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS, MOST_COLUMNS, MOST_CHARACTERS = 1_048_576, 16_384, 32_767
"""Rows of an Excel sheet, its head included, columns, and characters of a cell."""

FIRST_YEAR = 1900
"""The year with which Excel's dates begin."""

_EXACT = 10**15
"""From here on Excel, which keeps 15 digits, changes numbers."""

_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def write_frame(frame: pd.DataFrame, path: str | Path, kind: str = "") -> None:
    """Write a frame as a file of the kind that its name ends with: .csv, .parquet, .xlsx, .arrow or .feather.

    Cells that such a file cannot hold, such as lists, are written as JSON, and columns and labels of types
    that it does not know as text. Names become text; of two that are equal then, the second is numbered. Of
    the frame's ``attrs``, Parquet and Arrow files get those that JSON has words for. In Excel a text is a
    text, also one that begins like a formula, times are without their zone, numbers of more digits than Excel
    keeps are texts, and what a sheet cannot hold is refused.

    Args:
        frame: The frame.
        path: The file, which is replaced.
        kind: An ending, such as ``".csv"``, in place of that of the file's name.

    Raises:
        DefinitionError: There is no such kind of file, an Excel sheet cannot hold the frame, or openpyxl is
            missing, which writes Excel files. Nothing is written.
        OSError: The file cannot be written.
    """
    ending = kind or Path(path).suffix.lower()
    write = _WRITERS.get(ending)
    if write is None:
        raise DefinitionError(
            f"{str(path)!r} does not say what kind of file it is to be. Let its name end with "
            f"{', '.join(sorted(_WRITERS))}."
        )
    write(_flat(frame), path)


def _write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    # A text with a carriage return must be quoted, and Python's csv quotes those with a line feed only.
    texts = [frame.columns.tolist(), *(level.tolist() for level in _levels(frame.index))]
    texts += [frame.iloc[:, place].tolist() for place in range(frame.shape[1])]
    returns = any("\r" in text for column in texts for text in column if isinstance(text, str))
    quoting: Any = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    frame.to_csv(path, index=_has_labels(frame), lineterminator="\n", quoting=quoting)


def _write_parquet(frame: pd.DataFrame, path: str | Path) -> None:
    try:
        frame.to_parquet(path)
    except _NOT_IN_PARQUET:
        _as_texts(frame).to_parquet(path)


def _write_arrow(frame: pd.DataFrame, path: str | Path) -> None:
    """An Arrow file (IPC, also called Feather 2)."""
    import pyarrow
    from pyarrow import feather

    try:
        table = pyarrow.Table.from_pandas(frame)
    except _NOT_IN_PARQUET:
        table = pyarrow.Table.from_pandas(_as_texts(frame))
    feather.write_feather(table, str(path))


def _write_excel(frame: pd.DataFrame, path: str | Path) -> None:
    import pandas as pd

    if importlib.util.find_spec("openpyxl") is None:
        raise DefinitionError(
            f"{str(path)!r}: Excel files are written by the package openpyxl, which is not installed. "
            "Install it (pip install openpyxl), or write .csv or .parquet."
        )
    if len(frame) >= MOST_ROWS:
        raise DefinitionError(
            f"{str(path)!r}: an Excel sheet has {MOST_ROWS:,} rows at most, its head included, and this "
            f"frame has {len(frame):,}. Write .csv or .parquet."
        )
    indexed = frame.reset_index(allow_duplicates=True) if _has_labels(frame) else frame
    if indexed.shape[1] > MOST_COLUMNS:
        raise DefinitionError(
            f"{str(path)!r}: an Excel sheet has {MOST_COLUMNS:,} columns at most, and this frame has "
            f"{indexed.shape[1]:,}. Write .csv or .parquet."
        )
    head = [_NOT_IN_XML.sub("", str(label)) for label in indexed.columns]
    columns = [[_in_excel(cell) for cell in indexed.iloc[:, place].tolist()] for place in range(len(head))]
    for label, cells in zip(head, columns, strict=True):
        lengths = [len(cell) if isinstance(cell, str) else 0 for cell in (label, *cells)]
        if max(lengths) > MOST_CHARACTERS:
            place = lengths.index(max(lengths))
            where = f"in row {place - 1}" if place else "in its name"
            raise DefinitionError(
                f"{str(path)!r}: a cell of an Excel sheet holds {MOST_CHARACTERS:,} characters at most, and "
                f"column {short_text(label, 40)!r} has {max(lengths):,} {where}. Write .csv or .parquet."
            )
    sheet = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    whole = io.BytesIO()  # a sheet that cannot be written must not replace one that is there
    with pd.ExcelWriter(whole, engine="openpyxl") as writer:
        sheet.to_excel(writer, index=False, header=head, freeze_panes=(1, 0))
        for row in writer.sheets["Sheet1"].iter_rows():
            for cell in row:
                if cell.data_type in ("f", "e"):
                    cell.data_type = "s"  # a text that looks like a formula, or an error, is none
    Path(path).write_bytes(whole.getvalue())


def _in_excel(cell: Any) -> Any:
    """A cell as a sheet has it, without characters that its XML cannot have."""
    if is_missing(cell):
        return None
    if isinstance(cell, datetime):
        # Excel has no dates before its own first one.
        return cell.replace(tzinfo=None) if cell.year >= FIRST_YEAR else str(cell)
    if isinstance(cell, bool):
        return cell
    if isinstance(cell, int):
        return cell if abs(cell) < _EXACT else str(cell)
    if isinstance(cell, float):
        return cell if isfinite(cell) else str(cell)
    text = _cell_text(cell)
    return None if text is None else _NOT_IN_XML.sub("", text)


def _has_labels(frame: pd.DataFrame) -> bool:
    """Whether the index says more than the number of the row."""
    import pandas as pd

    return frame.index.name is not None or not frame.index.equals(pd.RangeIndex(len(frame)))


_WRITERS: dict[str, Callable[[pd.DataFrame, str | Path], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".xlsx": _write_excel,
    ".arrow": _write_arrow,
    ".feather": _write_arrow,
}

_NOT_IN_PARQUET = (ValueError, TypeError, NotImplementedError)
"""What Arrow raises for a type that it does not know; its own errors are among these."""


def _as_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose columns, and levels of the index, are texts where Parquet does not know their type."""
    import pandas as pd

    def in_parquet(column: Any) -> Any:
        alone = pd.DataFrame({"0": column.array})
        try:
            alone.to_parquet(io.BytesIO())
        except _NOT_IN_PARQUET:
            return column_of(_cell_text(cell) for cell in column.tolist()).array
        return column.array

    made = frame.copy(deep=False)
    for place in range(frame.shape[1]):
        made.isetitem(place, in_parquet(frame.iloc[:, place]))
    made.index = _index_of([in_parquet(level) for level in _levels(frame.index)], frame.index.names)
    return made


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose cells, labels and names are all of types that files know."""
    flat = frame.copy(deep=False)
    flat.attrs = plain_attributes(frame.attrs)
    names = distinct(clean(str(label)) for label in frame.columns)
    flat.columns = index_from(names) if names else frame.columns
    for place, dtype in enumerate(frame.dtypes):
        if str(dtype) == "object":
            flat.isetitem(place, _flat_cells(frame.iloc[:, place]))
    index = frame.index
    labels = [None if name is None else clean(str(name)) for name in index.names]
    texts = iter(distinct((label for label in labels if label is not None), names))
    if any(str(level.dtype) == "object" for level in _levels(index)):
        parts = [_flat_cells(level) if str(level.dtype) == "object" else level for level in _levels(index)]
        index = _index_of(parts, index.names)
    flat.index = index.set_names([None if label is None else next(texts) for label in labels])
    return flat


def _flat_cells(column: Any) -> Any:
    """The array of a column of objects, or of such a level; texts if they are not of one simple type."""
    cells = column.tolist()
    kinds = {type(cell) for cell in cells if cell is not None}
    if len(kinds) <= 1 and kinds <= _IN_FILES:
        return column.array
    return column_of(_cell_text(cell) for cell in cells).array


def _levels(index: pd.Index) -> list[Any]:
    return [index.get_level_values(place) for place in range(index.nlevels)]


def _index_of(levels: list[Any], names: Any) -> pd.Index:
    import pandas as pd

    if len(levels) > 1:
        return pd.MultiIndex.from_arrays(levels, names=list(names))
    made: pd.Index = pd.Index(levels[0], name=names[0])
    return made


_IN_FILES = frozenset({bytes, float, bool})


def _cell_text(cell: Any) -> str | None:
    if is_missing(cell):
        return None
    if isinstance(cell, str):
        return clean(cell)
    items = None if isinstance(cell, bytes) else rows_in(cell)
    if items is not None or record_of(cell) is not None or isinstance(cell, bool | int | float):
        try:
            whole = plain(cell) if items is None else [plain(item) for item in items]
            return clean(json.dumps(_finite(whole), ensure_ascii=False, default=_in_json))
        except (TypeError, ValueError, RecursionError):
            # A key that is no text, or an object that holds itself: as Python shows it.
            return clean(str(cell))
    return clean(str(cell))


def _finite(value: Any) -> Any:
    """Plain data without numbers that JSON does not have, such as NaN."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return {key: _finite(item) for key, item in value.items()} if isinstance(value, dict) else value


def _in_json(value: Any) -> Any:
    items = rows_in(value)
    return str(value) if items is None else _finite(plain(list(items)))
