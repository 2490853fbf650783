"""Results, plans and lists of runs as DataFrames."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb import events
from tagent_nb.errors import DefinitionError, UnknownStepError, did_you_mean
from tagent_nb.events import TokenUsage
from tagent_nb.formatting import count, short_text, value_text
from tagent_nb.redaction import redact
from tagent_nb.results.items import (
    ROW_LEVELS,
    StepRows,
    agreed,
    row_key,
    row_label,
    rows_to_map,
    to_rows,
    token,
)
from tagent_nb.results.records import (
    ItemResult,
    RunRecord,
    StepResult,
    error_line,
    no_value,
    steps_of,
)
from tagent_nb.results.rows import (
    DEEPEST,
    column_of,
    frame_of,
    is_frame,
    is_missing,
    items_of,
    keys_of,
    record_of,
)
from tagent_nb.serde import clean, index_from, index_of
from tagent_nb.templating import Reference, distinct, lookup
from tagent_nb.user_objects import safe_repr, safe_str

if TYPE_CHECKING:
    import pandas as pd

Row = TypeVar("Row")

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
    return _typed(steps, columns, pd.Index([step.name for step in steps], name="step", dtype="str"))


def _typed(
    rows: Sequence[Row], columns: Mapping[str, tuple[str, Callable[[Row], Any]]], index: pd.Index
) -> pd.DataFrame:
    """A frame of rows: by column its dtype, and what it shows of a row."""
    import pandas as pd

    return pd.DataFrame(
        {
            name: pd.Series([read(row) for row in rows], index=index, dtype=dtype)
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


def items_frame(step: StepResult) -> pd.DataFrame:
    """One row an item of a mapped step; see :meth:`RunHistory.items_frame`."""
    import pandas as pd

    items = list((step.items or {}).values())
    counts = _dtype_of_counts(item.usage for item in items)
    columns: dict[str, tuple[str, Callable[[ItemResult], Any]]] = {
        "status": ("str", lambda item: item.status.value),
        "attempts": ("int64", lambda item: item.attempts),
        "seconds": ("float64", lambda item: item.seconds),
        "input_tokens": (counts, lambda item: _reported(item.usage, "input_tokens")),
        "output_tokens": (counts, lambda item: _reported(item.usage, "output_tokens")),
        "cost": ("float64", lambda item: item.cost),
        "error": ("str", _item_error),
    }
    if any(item.batch for item in items):
        columns["batch"] = ("str", lambda item: item.batch or None)
    if any(item.rows_in_call for item in items):
        columns["requests"] = ("int64", lambda item: item.usage.requests)
        columns["rows_in_call"] = ("int64", lambda item: item.rows_in_call)
        columns["asked_alone"] = ("str", lambda item: clean(item.asked_alone) or None)
    return _typed(items, columns, pd.Index([item.key for item in items], name="item", dtype="str"))


def _item_error(item: ItemResult) -> str | None:
    if item.error_type:
        return clean(f"{item.error_type}: {item.error}")
    return clean(f"skipped: {item.reason}") if item.reason else None


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
        case events.BatchPrepared():
            return count(len(event.rows), "request")
        case events.BatchSubmitted():
            return short_text(event.handle.get("id", ""), 300)
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

NESTED = ("dict", "columns", "object")
"""What a record inside a record may become in a frame."""


def output_frame(
    result: RunRecord,
    step: str,
    *,
    source: bool = False,
    nested: str = "dict",
    explode: str | Sequence[Any] = (),
    samples: bool = True,
) -> pd.DataFrame:
    """See :meth:`PipelineResult.output_frame`.

    A list gives a row an item, a single record one row, a DataFrame is returned as it is, and
    values without fields are in the column ``value``. For a mapped step the index is that of its source
    (labels, names, levels and dtypes), and the last column, ``error`` (``step_error`` if the values
    have a field of that name, ``step_error_2`` if they have that one too), says why an item has no value
    and is missing where it has one.

    With several samples an item's row has the answer that is agreed on, then for each field the share of
    the answers that agree with it (``label_agreement``) and what each sample has (``label_0`` and so on).

    Raises:
        DefinitionError: ``nested`` is none of :data:`NESTED`, a column of ``explode`` is not there, or the
            step of ``source`` is not mapped.
        UnknownStepError: The step has neither a value nor items, or its source has no value.
    """
    if nested not in NESTED:
        raise DefinitionError(f"nested must be {', '.join(map(repr, NESTED))}, not {nested!r}.")
    steps = steps_of(result)
    record = steps.get(step)
    if record is None or (record.rows is None and record.output is None):
        raise UnknownStepError(no_value(steps, step, result.run_id or result.pipeline_name))
    if source and not is_mapped(result, record):
        raise DefinitionError(
            f"Step {step!r} is not mapped, so its value has no source to stand beside. Leave source out."
        )
    if record.rows is not None:
        if step in result.samples:
            frame = _sampled_frame(result, record, nested, each=samples)
        else:
            frame = _items_frame(record, objects=nested == "object")
        if source:
            mapped = result.sources.get(step, "")
            name = Reference.parse(mapped).step if step in result.flattened else mapped
            frame = _beside(_source_rows(result, record), frame, name)
    else:
        frame = value_frame(record.value, objects=nested == "object")
    if nested == "columns":
        frame = _unnested(frame)
    whole = isinstance(explode, str) or (isinstance(explode, tuple) and explode in frame.columns)
    names = [explode] if whole else explode
    return _exploded(frame, names, step, objects=nested == "object")


def _source_rows(result: RunRecord, step: StepResult) -> pd.DataFrame:
    """The rows that a mapped step ran over, in the order of its items."""
    mapped = result.sources.get(step.name)
    if mapped is None:
        raise UnknownStepError(
            f"What step {step.name!r} was mapped over is not recorded in this result, which is of an earlier "
            "version. Run the step again, or leave source out."
        )
    rows, keys = mapped_rows(result, step.name)
    places = {key: place for place, key in enumerate(keys)}
    if step.name in result.flattened:
        frame = _with_parents(result, Reference.parse(mapped, "map"), rows)
    else:
        frame = value_frame(rows)
    return frame.iloc[[places[key] for key in item_keys(result, step)]]


def mapped_rows(result: RunRecord, step: str) -> tuple[Any, list[str]]:
    """What a mapped step ran over: a value that has these rows, or the elements, and the key of each.

    Raises:
        UnknownStepError: Its source has no value in this result.
    """
    source = Reference.parse(result.sources[step], "map")
    if step not in result.flattened:
        value = source_value(result, source)
        return value, keys_of(value)
    rows = _elements(result, source).rows
    return [element for _, _, element in rows], [key for key, _, _ in rows]


def _elements(result: RunRecord, source: Reference) -> StepRows:
    above = steps_of(result).get(source.step)
    notes = {} if above is None else above.metadata
    return rows_to_map(source_value(result, Reference(source.step)), source, flatten=True, notes=notes)


def _with_parents(result: RunRecord, source: Reference, elements: Sequence[Any]) -> pd.DataFrame:
    """Elements, each beside the row whose list it is in, and what that row came from in its turn."""
    above = steps_of(result).get(source.step)
    value, path, _ = to_rows(source_value(result, Reference(source.step)), source)
    if above is not None and above.items is not None and path == source.path:
        parents = output_frame(result, above.name, source=is_mapped(result, above), samples=False)
        parents = parents.iloc[:, :-1]  # what has a list has no error
    else:
        parents = value_frame(value)
    parents = parents.iloc[list(_elements(result, source).places)]
    own = frame_of(elements)
    if path and list(own.columns) == ["value"]:
        own.columns = index_from([".".join(path)])
    listed = path[0] if path else "value"
    if len(path) < 2:  # it stands for its list
        parents = parents.loc[:, [str(label) != listed for label in parents.columns]]
    return _beside(parents, own, source.step)


def is_mapped(result: RunRecord, step: StepResult) -> bool:
    """Whether a step ran over the items of something else, one by one."""
    if step.rows is None:
        return False
    return step.name not in result.samples or step.name in result.sources


def item_keys(result: RunRecord, step: StepResult) -> list[str]:
    """The key of each row that a step has in its :func:`output_frame`."""
    if step.rows is None:
        return keys_of(step.value)
    if step.name not in result.samples:
        return list(step.rows)
    return list(dict.fromkeys(row_key(key) for key in step.rows)) if is_mapped(result, step) else ["0"]


def source_value(result: RunRecord, reference: Reference) -> Any:
    """The value of a step or an input that a mapped step ran over, or the part of it that it names.

    Raises:
        UnknownStepError: It has no value in this result.
    """
    if reference.step in result.step_outputs:
        value = result.step_outputs[reference.step]
    elif reference.step in result.inputs:
        value = result.inputs[reference.step]
    else:
        run = result.run_id or result.pipeline_name
        raise UnknownStepError(no_value(steps_of(result), reference.step, run))
    return lookup(value, reference.path, name=reference.step)


def _beside(source: pd.DataFrame, answers: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns of a source, and then those of the answers to its rows.

    A column of the source whose name the answers have, too, is called as goals refer to it: ``load.text``.
    """
    import pandas as pd

    clashing = [label for label in source.columns if label in answers.columns]
    taken = [str(label) for label in (*source.columns, *answers.columns)]
    dotted = iter(distinct((f"{name}.{label}" for label in clashing), taken))
    labels = [next(dotted) if label in answers.columns else label for label in source.columns]
    source = source.set_axis(pd.Index(labels, name=source.columns.name, tupleize_cols=False), axis="columns")
    return pd.concat([source.set_axis(answers.index), answers], axis="columns")


def _unnested(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of records as a column a field, with dotted names, down to fields that are no records."""
    import pandas as pd

    columns: list[tuple[Any, Any]] = []
    for place, label in enumerate(frame.columns):
        _add_fields(columns, label, frame.iloc[:, place], frame.index)
    wide = pd.concat([column for _, column in columns], axis="columns") if columns else frame.iloc[:, :0]
    labels = [label for label, _ in columns]
    if len({str(label) for label in labels}) < len(labels) and frame.columns.is_unique:
        labels = distinct(map(str, labels))  # a field a.b beside a column of that name
    wide.columns = index_from(labels) if columns else frame.columns[:0]
    return wide


def _add_fields(columns: list[tuple[Any, Any]], label: Any, column: Any, index: Any, depth: int = 0) -> None:
    cells = column.tolist() if str(column.dtype) == "object" else []
    records = [cell for cell in cells if isinstance(cell, dict)]
    blank = all(isinstance(cell, dict) or is_missing(cell) for cell in cells)
    fields = dict.fromkeys(name for record in records for name in record)
    if not fields or not blank or depth > DEEPEST:
        columns.append((label, column))
        return
    for name in fields:
        values = [cell.get(name) if isinstance(cell, dict) else None for cell in cells]
        _add_fields(columns, f"{_dotted(label)}.{name}", column_of(values, index), index, depth + 1)


def _dotted(label: Any) -> str:
    """A column's label as one text; those of several levels with dots."""
    return ".".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _exploded(frame: pd.DataFrame, names: Sequence[Any], step: str, *, objects: bool) -> pd.DataFrame:
    """A row for each item of the lists in these columns; the index repeats the row's label."""
    if not names:
        return frame
    labels = [_dotted(label) for label in frame.columns]
    columns: dict[int, list[list[Any]]] = {}
    for label in names:
        name = _dotted(label)
        places = [place for place, other in enumerate(frame.columns) if name in (_dotted(other), str(other))]
        if len(places) != 1:
            problem = (
                f"has {len(places)} columns {name!r}" if places else f"has no column {name!r} to explode"
            )
            raise DefinitionError(
                f"Step {step!r} {problem}.{did_you_mean(name, labels)} Columns: {', '.join(labels)}."
            )
        columns[places[0]] = [_items_of_cell(cell, name, step) for cell in frame.iloc[:, places[0]].tolist()]
    sizes = [{len(items) for items in row} for row in zip(*columns.values(), strict=True)]
    uneven = next((place for place, lengths in enumerate(sizes) if len(lengths) > 1), None)
    if uneven is not None:
        raise DefinitionError(
            f"Step {step!r}: the lists in {', '.join(map(_dotted, names))} are not equally long in row "
            f"{frame.index[uneven]!r}. Explode one of them at a time."
        )
    repeated = [place for place, lengths in enumerate(sizes) for _ in range(max(lengths))]
    longer = frame.iloc[repeated].copy()
    for place, lists in columns.items():
        cells = [item for items in lists for item in items]
        longer.isetitem(place, column_of(cells, longer.index, objects=objects).array)
    return longer


def _items_of_cell(cell: Any, name: str, step: str) -> list[Any]:
    """What a cell becomes a row each of: an empty list, and a cell without a value, are one blank row."""
    if is_missing(cell):
        return [None]
    if record_of(cell) is not None:
        raise DefinitionError(
            f"Step {step!r}: column {name!r} holds records, not lists. nested='columns' makes columns of "
            "their fields."
        )
    items = items_of(cell)
    return [cell] if items is None else list(items) or [None]


def value_frame(value: Any, *, objects: bool = False) -> pd.DataFrame:
    """Any value as rows and columns; see :func:`output_frame`.

    Args:
        value: The value.
        objects: Whether records inside records stay the objects that they are.
    """
    import pandas as pd

    if is_frame(value):
        frame: pd.DataFrame = value
        return frame
    if isinstance(value, pd.Series):
        return value.to_frame("value" if value.name is None else value.name)
    if getattr(value, "ndim", 1) == 2:
        return pd.DataFrame(value)
    if record_of(value) is not None:
        return frame_of([value], objects=objects)
    items = items_of(value)
    if value is None:
        return _nothing()
    return frame_of(items if items is not None else [value], objects=objects)


def _nothing() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"value": pd.Series([None], dtype=object)})


def samples_frame(result: RunRecord, step: str, *, nested: str = "dict") -> pd.DataFrame:
    """See :meth:`PipelineResult.samples_frame`."""
    if nested not in NESTED:
        raise DefinitionError(f"nested must be {', '.join(map(repr, NESTED))}, not {nested!r}.")
    steps = steps_of(result)
    record = steps.get(step)
    if record is None or record.items is None:
        if step in steps and step not in result.samples:
            raise DefinitionError(f"Step {step!r} has no samples. Give it some: samples=5 (--samples 5).")
        raise UnknownStepError(no_value(steps, step, result.run_id or result.pipeline_name))
    if step not in result.samples:
        raise DefinitionError(f"Step {step!r} has no samples. Give it some: samples=5 (--samples 5).")
    frame = _items_frame(record, objects=nested == "object")
    return _unnested(frame) if nested == "columns" else frame


def _sampled_frame(result: RunRecord, step: StepResult, nested: str, *, each: bool) -> pd.DataFrame:
    """One row an item of a step with samples, or one for a step that is not mapped."""
    rows: dict[str, dict[int, ItemResult]] = {}
    for key, item in (step.items or {}).items():
        rows.setdefault(row_key(key), {})[int(key.rpartition("#")[2])] = item
    values = [
        {number: item.output.value for number, item in sorted(row.items()) if item.output is not None}
        for row in rows.values()
    ]
    answers = [[*row.values()] for row in values]
    index = _index_of_rows(rows, step.metadata.get(ROW_LEVELS)) if is_mapped(result, step) else None

    def frame(cells: Sequence[Any]) -> pd.DataFrame:
        made = frame_of(cells, index, objects=nested == "object")
        return _unnested(made) if nested == "columns" else made

    chosen = frame([row[agreed(row)] if row else None for row in answers])
    if each:
        samples = [frame([row.get(number) for row in values]) for number in range(result.samples[step.name])]
        chosen = _with_samples(chosen, samples, [row.keys() for row in values])
    return _with_errors(chosen, [_row_error([*row.values()]) for row in rows.values()])


def _index_of_rows(rows: Mapping[str, Mapping[int, ItemResult]], levels: Any) -> pd.Index:
    labels = []
    for key, row in rows.items():
        label = next(iter(row.values())).index
        # While a run goes on, the labels are the keys.
        labels.append(row_label(label) if isinstance(label, tuple) else key)
    return index_of(labels, levels if isinstance(levels, list) else None)


def _with_samples(
    frame: pd.DataFrame, samples: Sequence[pd.DataFrame], answered: Sequence[Collection[int]]
) -> pd.DataFrame:
    """A frame of what is agreed on, with how much of the answers agree with each cell, and these themselves.

    Args:
        frame: One row an item.
        samples: What each sample answered, in the same rows.
        answered: By row, the samples that have an answer.
    """
    import pandas as pd

    blank = [None] * len(frame)
    columns, labels = [], list(frame.columns)
    more: list[str] = []
    for place, label in enumerate(labels):
        cells = [sample[label].tolist() if label in sample else blank for sample in samples]
        shares = []
        for row, cell in enumerate(frame.iloc[:, place].tolist()):
            same = [token(cells[number][row]) == token(cell) for number in answered[row]]
            shares.append(sum(same) / len(same) if same else None)
        columns.append(pd.Series(shares, frame.index, dtype="float64"))
        columns += [column_of(column, frame.index) for column in cells]
        more += [f"{label}_agreement", *(f"{label}_{number}" for number in range(len(samples)))]
    wide = pd.concat([frame, *columns], axis="columns")
    wide.columns = index_from([*labels, *distinct(more, map(str, labels))])
    return wide


def _row_error(samples: Sequence[ItemResult]) -> str | None:
    """Why an item has no value: what its first sample says of itself."""
    if any(item.output is not None for item in samples):
        return None
    return next((error for error in map(_item_error, samples) if error is not None), None)


def _items_frame(step: StepResult, *, objects: bool = False) -> pd.DataFrame:
    items = list((step.items or {}).values())
    levels = step.metadata.get("item_levels")
    # One that could not be stored is a text that says so.
    index = index_of([item.index for item in items], levels if isinstance(levels, list) else None)
    values = [None if item.output is None else item.output.value for item in items]
    return _with_errors(frame_of(values, index, objects=objects), [_item_error(item) for item in items])


def _with_errors(frame: pd.DataFrame, errors: list[Any]) -> pd.DataFrame:
    """A frame with a last column that says why rows have no value."""
    import pandas as pd

    names = [label for label in frame.columns if isinstance(label, str)]
    # The values' own columns stay, whatever they are called.
    name = "error" if "error" not in names else distinct(["step_error"], names)[0]
    frame[name] = pd.Series(errors, frame.index, dtype="str")
    return frame


# -- plans and lists of runs ---------------------------------------------------------------------


def plan_frame(steps: Iterable[Any]) -> pd.DataFrame:
    """One row a step, indexed by its name; see :meth:`tagent_nb.Plan.to_frame`.

    Columns: ``action``, ``why``, ``items``, ``items_done``, ``seconds``, ``tokens``, ``cost`` (USD) as the
    last time, ``seconds_low`` and ``seconds_high``, and of the quote ``calls``, ``saved_calls`` and
    ``saved_tokens`` (of input) of rows that share calls, and ``later_calls`` (those that combine answers),
    ``input_tokens``, ``output_tokens``, ``cost``, ``live_cost`` and ``batch_cost``, each with ``_low`` and
    ``_high``.
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
    for name in ("calls", "saved_calls", "saved_tokens"):
        counts = [None if row.quote is None else getattr(row.quote, name) for row in rows]
        columns[name] = pd.Series(counts, index, dtype="Int64")
    for place, end in enumerate(("low", "high")):
        cells = [None if row.seconds_range is None else row.seconds_range[place] for row in rows]
        columns[f"seconds_{end}"] = pd.Series(cells, index, dtype="float64")
    for name, dtype in {
        "later_calls": "Int64",
        "input_tokens": "Int64",
        "output_tokens": "Int64",
        "cost": "float64",
        "live_cost": "float64",
        "batch_cost": "float64",
    }.items():
        ranges = [None if row.quote is None else getattr(row.quote, name) for row in rows]
        for place, end in enumerate(("low", "high")):
            cells = [None if ends is None else ends[place] for ends in ranges]
            columns[f"{name}_{end}"] = pd.Series(cells, index, dtype=dtype)
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


# -- text ----------------------------------------------------------------------------------------


def table_text(frame: pd.DataFrame, max_rows: int = 20) -> str:
    """A frame as plain text: at most ``max_rows`` rows, and how many more there are."""
    shown = frame.head(max_rows).map(lambda cell: short_text(cell, 60) if isinstance(cell, str) else cell)
    left = len(frame) - len(shown)
    return shown.to_string() + (f"\n... {left:,} more rows" if left else "")
