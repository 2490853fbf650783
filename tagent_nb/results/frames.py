"""Results, plans and lists of runs as DataFrames."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagent_nb import events
from tagent_nb.errors import UnknownStepError
from tagent_nb.events import TokenUsage
from tagent_nb.formatting import short_text, value_text
from tagent_nb.redaction import redact
from tagent_nb.results.records import RunRecord, StepResult, error_line, no_value, steps_of
from tagent_nb.results.rows import column_of, frame_of, is_frame, items_of, plain, record_of
from tagent_nb.serde import clean, index_from, index_of, plain_attributes
from tagent_nb.templating import distinct
from tagent_nb.user_objects import safe_repr, safe_str

if TYPE_CHECKING:
    import pandas as pd

_COUNTS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "requests", "tool_calls")


# -- one row a step -----------------------------------------------------------------------------


def steps_frame(result: RunRecord) -> pd.DataFrame:
    """See :meth:`PipelineResult.to_frame`."""
    import pandas as pd

    steps = list(steps_of(result).values())
    counts = _dtype_of_counts(step.usage for step in steps)
    columns: dict[str, tuple[str, Callable[[StepResult], Any]]] = {
        "status": ("str", lambda step: step.status.value),
        "value": ("str", lambda step: value_text(step.output)),
        "attempts": ("int64", lambda step: step.attempts),
        "seconds": ("float64", lambda step: step.seconds),
        "input_tokens": (counts, lambda step: _reported(step.usage, "input_tokens")),
        "output_tokens": (counts, lambda step: _reported(step.usage, "output_tokens")),
        "cost": ("float64", lambda step: step.cost),
        "saved_cost": ("float64", lambda step: step.saved_cost),
        "error": ("str", error_line),
    }
    if result.final_step:
        columns["final"] = ("bool", lambda step: step.name == result.final_step)
    index = pd.Index([step.name for step in steps], name="step", dtype="str")
    return pd.DataFrame(
        {
            name: pd.Series([read(step) for step in steps], index=index, dtype=dtype)
            for name, (dtype, read) in columns.items()
        },
        index=index,
    )


def _reported(usage: TokenUsage, name: str) -> int | None:
    """A count; ``None`` where a provider did not report all tokens."""
    count: int = getattr(usage, name)
    return None if usage.unmeasured and name.endswith("_tokens") else count


def _dtype_of_counts(usages: Iterable[TokenUsage]) -> str:
    return "Int64" if any(usage.unmeasured for usage in usages) else "int64"


def usage_frame(result: RunRecord) -> pd.DataFrame:
    """See :meth:`PipelineResult.usage_frame`. Unknown counts and prices are missing, and not in the total."""
    import pandas as pd

    steps = steps_of(result)
    index = pd.Index([*steps], name="step", dtype="str")
    frame = pd.DataFrame(
        {name: [_reported(step.usage, name) for step in steps.values()] for name in _COUNTS},
        index,
        dtype=_dtype_of_counts(step.usage for step in steps.values()),
    )
    frame.insert(2, "total_tokens", frame["input_tokens"] + frame["output_tokens"])
    for name in ("cost", "saved_cost"):
        frame[name] = pd.Series([getattr(step, name) for step in steps.values()], index, dtype="float64")
    # One row more by hand: concatenating would turn counts into floats.
    least = min(1, len(frame))  # where all prices are unknown, so is their total
    sums = {name: [frame[name].sum(min_count=least)] for name in frame}
    total = pd.DataFrame(sums, pd.Index(["total"], name="step"))
    return pd.concat([frame, total.astype(frame.dtypes)])


def events_frame(result: RunRecord) -> pd.DataFrame:
    """See :meth:`PipelineResult.events_frame`."""
    import pandas as pd

    happened = result.events
    at = pd.Series([round(event.at * 1e6) for event in happened], dtype="int64")
    return pd.DataFrame(
        {
            "at": pd.to_datetime(at, unit="us", utc=True).astype("datetime64[us, UTC]"),
            "event": pd.Series([type(event).__name__ for event in happened], dtype="str"),
            "step": pd.Series([getattr(event, "step", None) for event in happened], dtype="str"),
            "item": pd.Series([getattr(event, "item", None) for event in happened], dtype="str"),
            "attempt": pd.Series([getattr(event, "attempt", None) for event in happened], dtype="Int64"),
            "detail": pd.Series([_detail(event) for event in happened], dtype="str"),
        }
    )


def _json(detail: Any) -> str:
    try:
        return json.dumps(detail, default=safe_str)
    except (TypeError, ValueError):  # keys of other kinds than JSON has, or a container inside itself
        return safe_repr(detail)


def _detail(event: events.Event) -> str:
    match event:
        case events.StepFinished() | events.StepCached():
            return value_text(event.output)
        case events.InputTaken():
            return f"{short_text(event.name, 40)} = {value_text(event.output)}"
        case events.ApprovalRequested():
            return short_text(f"{event.tool} {value_text(event.output)}".strip(), 300)
        case events.ApprovalGiven():
            return short_text(f"{event.verdict} {event.reason}".strip(), 300)
        case events.StepFailed() | events.StepRetried():
            return short_text(f"{event.error_type}: {event.message}", 300)
        case events.StepSkipped() | events.StepWaiting():
            return short_text(event.reason, 300)
        case events.StepStarted():
            return short_text(event.why, 300)
        case events.StepProgress():
            return short_text(f"{event.kind} {_json(dict(event.detail))}", 300)
        case events.CallRecorded():
            return short_text(f"{event.kind} {_json(event.answer)}", 300)
        case events.FactLearned() | events.MemorySaved():
            return f"{short_text(event.key, 40)} = {short_text(redact(short_text(event.value, 320)))}"
        case events.Warned():
            return short_text(event.message, 300)
        case events.RunFinished():
            ended = "timed out" if event.timed_out else "cancelled" if event.cancelled else ""
            return ended or ("success" if event.success else "failed")
    return ""


# -- one step's value -----------------------------------------------------------------------------


def output_frame(result: RunRecord, step: str) -> pd.DataFrame:
    """See :meth:`PipelineResult.output_frame`.

    A list gives a row an item, a single record one row, a DataFrame is returned as it is, and
    values without fields are in the column ``value``. For a mapped step the index is that of its source
    (labels, names, levels and dtypes), and the last column, ``error`` (``step_error`` if the values
    have a field of that name, ``step_error_2`` if they have that one too), says why an item has no value
    and is missing where it has one.

    Raises:
        UnknownStepError: The step has neither a value nor items.
    """
    steps = steps_of(result)
    record = steps.get(step)
    if record is not None and record.items is not None:
        return _items_frame(record)
    if record is None or record.output is None:
        raise UnknownStepError(no_value(steps, step, result.run_id or result.pipeline_name))
    return value_frame(record.output.value)


def value_frame(value: Any) -> pd.DataFrame:
    """Any value as rows and columns; see :func:`output_frame`."""
    import pandas as pd

    if is_frame(value):
        frame: pd.DataFrame = value
        return frame
    if isinstance(value, pd.Series):
        return value.to_frame("value" if value.name is None else value.name)
    if getattr(value, "ndim", 1) == 2:
        return pd.DataFrame(value)
    if record_of(value) is not None:
        return frame_of([value])
    items = items_of(value)
    return frame_of(items if items is not None else [value]) if value is not None else _nothing()


def _nothing() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"value": pd.Series([None], dtype=object)})


def _items_frame(step: StepResult) -> pd.DataFrame:
    import pandas as pd

    items = list((step.items or {}).values())
    levels = step.metadata.get("item_levels")
    # One that could not be stored is a text that says so.
    index = index_of([item.index for item in items], levels if isinstance(levels, list) else None)
    values = [None if item.output is None else item.output.value for item in items]
    frame = frame_of(values, index)
    errors = [
        f"{item.error_type}: {item.error}"
        if item.error_type
        else f"skipped: {item.reason}"
        if item.reason
        else None
        for item in items
    ]
    names = [label for label in frame.columns if isinstance(label, str)]
    # The values' own columns stay, whatever they are called.
    name = "error" if "error" not in names else distinct(["step_error"], names)[0]
    frame[name] = pd.Series(errors, index, dtype="str")
    return frame


# -- plans and lists of runs ---------------------------------------------------------------------


def plan_frame(steps: Iterable[Any]) -> pd.DataFrame:
    """One row a step, indexed by its name; see :meth:`tagent_nb.Plan.to_frame`.

    Columns: ``action``, ``why``, ``items``, ``items_done``, ``seconds``, ``tokens``, ``cost`` (USD).
    """
    import pandas as pd

    rows = list(steps)
    dtypes = {
        "action": "str",
        "why": "str",
        "items": "Int64",
        "items_done": "Int64",
        "seconds": "float64",
        "tokens": "Int64",
        "cost": "float64",
    }
    index = pd.Index([row.step for row in rows], name="step", dtype="str")
    columns = {
        name: pd.Series([getattr(row, name) for row in rows], index, dtype=dtype)
        for name, dtype in dtypes.items()
    }
    return pd.DataFrame(columns, index)


def runs_frame(runs: Iterable[Any]) -> pd.DataFrame:
    """One row a recorded run, in the order given, indexed by its id.

    Columns: ``started`` (UTC), ``status``, ``host``, ``steps``, ``done``, ``cached``, ``failed``, ``cost``
    (USD; missing when no price of the run is known), ``unpriced`` (whether some price is unknown),
    ``seconds`` (from the first start to the last end, pauses between sessions included; missing while it
    runs) and ``size`` (bytes).

    Args:
        runs: :class:`tagent_nb.RunInfo` objects.
    """
    import pandas as pd

    rows = list(runs)
    index = pd.Index([row.run_id for row in rows], name="run", dtype="str")
    micros = pd.Series([round(row.started_at * 1e6) or None for row in rows], index, dtype="Int64")
    columns = {
        "started": pd.to_datetime(micros, unit="us", utc=True).astype("datetime64[us, UTC]"),
        "status": pd.Series([row.status for row in rows], index, dtype="str"),
        "host": pd.Series([row.host for row in rows], index, dtype="str"),
        "steps": pd.Series([row.steps for row in rows], index, dtype="int64"),
        "done": pd.Series([row.steps_done for row in rows], index, dtype="int64"),
        "cached": pd.Series([row.steps_cached for row in rows], index, dtype="int64"),
        "failed": pd.Series([row.steps_failed for row in rows], index, dtype="int64"),
        "cost": pd.Series([_cost(row) for row in rows], index, dtype="float64"),
        "unpriced": pd.Series([row.unpriced for row in rows], index, dtype="bool"),
        "seconds": pd.Series([_seconds(row) for row in rows], index, dtype="float64"),
        "size": pd.Series([row.size for row in rows], index, dtype="int64"),
    }
    return pd.DataFrame(columns, index)


def _cost(run: Any) -> float | None:
    return None if run.unpriced and not run.cost else run.cost


def _seconds(run: Any) -> float | None:
    return None if run.ended_at is None else max(0.0, run.ended_at - run.started_at)


# -- files ----------------------------------------------------------------------------------------


def write_frame(result: RunRecord, path: str | Path, step: str | None, kind: str) -> None:
    """Write :func:`steps_frame`, or a step's :func:`output_frame`, as ``"csv"`` or ``"parquet"``.

    Cells that such a file cannot hold, such as lists, are written as JSON, and columns and labels of types
    that it does not know as text. Names become text; of two that are equal then, the second is numbered. Of
    the frame's ``attrs``, Parquet files get those that JSON has words for.

    Raises:
        UnknownStepError: The step has no value.
        OSError: The file cannot be written.
    """
    import pandas as pd

    frame = steps_frame(result) if step is None else output_frame(result, step)
    frame = _flat(frame)
    if kind == "csv":
        says_something = not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None
        frame.to_csv(path, index=says_something, lineterminator="\n")
        return
    try:
        frame.to_parquet(path)
    except _NOT_IN_PARQUET:
        _as_texts(frame).to_parquet(path)


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
    if cell is None or (isinstance(cell, float) and cell != cell):
        return None
    if isinstance(cell, str):
        return clean(cell)
    record = record_of(cell) is not None
    if record or isinstance(cell, list | tuple | set | frozenset | bool | int | float):
        try:
            return clean(json.dumps(_finite(plain(cell)), ensure_ascii=False, default=_in_json))
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
    items = items_of(value)
    return str(value) if items is None else _finite(plain(list(items)))


def table_text(frame: pd.DataFrame, max_rows: int = 20) -> str:
    """A frame as plain text: at most ``max_rows`` rows, and how many more there are."""
    shown = frame.head(max_rows).map(lambda cell: short_text(cell, 60) if isinstance(cell, str) else cell)
    left = len(frame) - len(shown)
    return shown.to_string() + (f"\n... {left:,} more rows" if left else "")
