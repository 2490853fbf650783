"""Two results side by side, row by row and field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, EncodeError
from tagent_nb.formatting import cost_text, count, one_line, seconds_text, short_text
from tagent_nb.results.frames import is_mapped, item_keys, output_frame
from tagent_nb.results.records import RunRecord, StepResult, steps_of
from tagent_nb.results.rows import class_labels, column_of, is_missing
from tagent_nb.serde import digest
from tagent_nb.templating import Reference, distinct
from tagent_nb.user_objects import safe_repr

if TYPE_CHECKING:
    import pandas as pd

MOST_SHOWN = 10
"""Rows of differences that are shown."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """What differs between two results.

    Attributes:
        names: What the two are called.
        steps: One row a step that both have: ``rows`` compared, how many ``differ``, ``agreement`` (share of
            equal rows), ``changed`` (what of its definition and inputs differs, such as ``goal, model``), and
            ``cost_...`` (USD) and ``seconds_...`` of each.
        rows: One row for each field that differs: ``step``, ``item`` (its key; missing for a step that is not
            mapped), ``field``, and the two values in columns of the names.
        only: Steps that one of them has and the other has not, by name.
    """

    names: tuple[str, str]
    steps: pd.DataFrame
    rows: pd.DataFrame
    only: dict[str, list[str]]
    _fields: dict[str, dict[str, tuple[list[Any], list[Any]]]]

    def confusion(self, field: str) -> pd.DataFrame:
        """How often each value of the first is each value of the second.

        Args:
            field: Step and field, such as ``"classify.label"``.

        Raises:
            DefinitionError: The two have no such field in common.
        """
        import pandas as pd

        step, name = parts_of(field)
        fields = self._fields.get(step, {})
        if name not in fields:
            have = ", ".join(f"{step}.{other}" for other in fields) or ", ".join(self._fields) or "none"
            raise DefinitionError(f"The two results have no field {field!r} in common. They have: {have}.")
        columns = [
            pd.Series(labels, dtype="str", name=side)
            for side, labels in zip(self.names, class_labels(*fields[name]), strict=True)
        ]
        return pd.crosstab(columns[0], columns[1])

    def __repr__(self) -> str:
        lines = [f"{self.names[0]} and {self.names[1]}: {self.total}"]
        if len(self.steps):
            lines.append(self.steps.to_string())
        if len(self.rows):
            lines.append(self.rows.head(MOST_SHOWN).to_string(index=False))
        left = len(self.rows) - MOST_SHOWN
        lines += [f"and {left:,} more: see .rows"] if left > 0 else []
        return "\n".join(lines)

    @property
    def total(self) -> str:
        """The comparison in a sentence: how much differs, and what each took."""
        rows, differ = (int(self.steps[name].sum()) for name in ("rows", "differ"))
        head = f"{differ:,} of {count(rows, 'row')} differ" if differ else f"all {count(rows, 'row')} agree"
        took = []
        for name in self.names:
            seconds = seconds_text(self.steps[f"seconds_{name}"].sum())
            took.append(f"{name} {_costs(self.steps[f'cost_{name}'])}, {seconds}")
        lone = [f"only {name} has {', '.join(steps)}" for name, steps in self.only.items() if steps]
        return "; ".join([head, *lone, *took])

    def _repr_html_(self) -> str:
        from tagent_nb.display import FONT, Bundle, escape, table

        def line(text: str) -> str:
            return f'<div style="{FONT}">{escape(text)}</div>'

        head = ["step", "rows", "differ", "agreement", "changed"]
        head += [f"{name}, {what}" for what in ("cost", "seconds") for name in self.names]
        cells = [
            [
                step,
                f"{rows:,}",
                f"{differ:,}",
                "" if is_missing(agreement) else f"{agreement:.1%}",
                changed,
                *(cost_text(None if is_missing(cost) else cost) for cost in took[:2]),
                *map(seconds_text, took[2:]),
            ]
            for step, rows, differ, agreement, changed, *took in self.steps.itertuples()
        ]
        parts = [line(f"{self.names[0]} and {self.names[1]}: {self.total}")]
        if cells:
            escaped = [[escape(cell) for cell in row] for row in cells]
            parts.append(table(head, escaped, right=(1, 2, 3, 5, 6, 7, 8), wide=4))
        if len(self.rows):
            shown = self.rows.head(MOST_SHOWN).itertuples(index=False)
            parts.append(
                table(
                    [str(label) for label in self.rows],
                    [[escape(_short(cell)) for cell in row] for row in shown],
                )
            )
        left = len(self.rows) - MOST_SHOWN
        parts += [line(f"and {left:,} more: see .rows")] if left > 0 else []
        return Bundle("".join(parts), repr(self)).page


def compare(first: RunRecord, second: RunRecord, names: Sequence[str] = ()) -> Comparison:
    """See :meth:`PipelineResult.compare`."""
    import pandas as pd

    if not hasattr(second, "step_outputs"):
        raise DefinitionError(f"A result is compared with another result, not with {short_text(second)}.")
    called = _names(first, second, names)
    steps, others = steps_of(first), steps_of(second)
    summary: list[list[Any]] = []
    different: list[tuple[str, str | None, str, Any, Any]] = []
    fields_of: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {}
    for name in (name for name in steps if name in others):
        sides = (steps[name], others[name])
        frames = [_fields(result, step) for result, step in zip((first, second), sides, strict=True)]
        if all(frame is None for frame in frames):
            continue
        keys, fields = _side_by_side(frames)
        fields_of[name] = fields
        places = set()
        for field, (cells, other_cells) in fields.items():
            for place, (cell, other) in enumerate(zip(cells, other_cells, strict=True)):
                if not _equal(cell, other):
                    places.add(place)
                    item = keys[place] if is_mapped(first, sides[0]) or len(keys) > 1 else None
                    different.append((name, item, field, cell, other))
        agreement = 1 - len(places) / len(keys) if keys else float("nan")
        took = [getattr(step, what) for what in ("cost", "seconds") for step in sides]
        changed = _changed(*(step.components for step in sides))
        if not all(step.components for step in sides):
            changed = _changed(*(result.definitions.get(name, {}) for result in (first, second)))
        summary.append([name, len(keys), len(places), agreement, changed, *took])
    columns = ["step", "rows", "differ", "agreement", "changed"]
    amounts = [f"{what}_{side}" for what in ("cost", "seconds") for side in called]
    frame = pd.DataFrame(summary, columns=[*columns, *amounts]).astype(
        {"step": "str", "rows": "int64", "differ": "int64", "agreement": "float64", "changed": "str"}
        | dict.fromkeys(amounts, "float64")
    )
    rows = pd.DataFrame(
        {
            **{
                name: pd.Series([row[place] for row in different], dtype="str")
                for place, name in enumerate(("step", "item", "field"))
            },
            **{side: column_of(row[place] for row in different) for place, side in enumerate(called, 3)},
        }
    )
    only = {
        called[0]: [name for name in steps if name not in others],
        called[1]: [name for name in others if name not in steps],
    }
    return Comparison(called, frame.set_index("step"), rows, only, fields_of)


def _names(first: RunRecord, second: RunRecord, names: Sequence[str]) -> tuple[str, str]:
    """What the two are called: as said, or by their pipelines, or by their runs where these are the same."""
    if names and len(names) != 2:
        raise DefinitionError(f"names must be two names, one for each result, not {names!r}.")
    if not names:
        same = first.pipeline_name == second.pipeline_name
        names = [result.run_id if same else result.pipeline_name for result in (first, second)]
    labels = distinct([str(name) or "result" for name in names], ("step", "item", "field"))
    return labels[0], labels[1]


def _fields(result: RunRecord, step: StepResult) -> pd.DataFrame | None:
    """The value of a step, flat, by the keys of its items; ``None`` where it has none."""
    import pandas as pd

    if step.items is None and step.output is None:
        return None
    frame = output_frame(result, step.name, nested="columns", samples=False)
    keys = item_keys(result, step)
    frame = frame.set_axis(pd.Index(distinct(map(str, frame.columns)), dtype="str"), axis="columns")
    return frame.set_axis(pd.Index(keys, dtype="str"), axis="index")


def _side_by_side(
    frames: Sequence[pd.DataFrame | None],
) -> tuple[list[str], dict[str, tuple[list[Any], list[Any]]]]:
    """The keys of two frames, and the cells of both by field; ``None`` where one has no such row or field."""
    sides: list[dict[str, dict[str, Any]]] = [
        {}
        if frame is None
        else {name: dict(zip(frame.index, frame[name].tolist(), strict=True)) for name in map(str, frame)}
        for frame in frames
    ]
    keys = list(dict.fromkeys(key for frame in frames if frame is not None for key in frame.index))
    fields = dict.fromkeys(name for side in sides for name in side)
    return keys, {
        name: (
            [sides[0].get(name, {}).get(key) for key in keys],
            [sides[1].get(name, {}).get(key) for key in keys],
        )
        for name in fields
    }


def _equal(cell: Any, other: Any) -> bool:
    if is_missing(cell) or is_missing(other):
        return is_missing(cell) and is_missing(other)
    try:
        if cell == other:
            return True
        if isinstance(cell, str | bool | int | float):
            return False
    except Exception:  # arrays do not say, and the user's own class may not
        pass
    try:
        return digest(cell) == digest(other)  # as NaN inside of a list, which is like no other
    except EncodeError:
        return safe_repr(cell) == safe_repr(other)


def _changed(parts: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The names of what differs; empty where nothing is known of one side."""
    differ = [name for name in {**parts, **other} if parts.get(name) != other.get(name)]
    return ", ".join(differ) if parts and other else ""


def _costs(column: Any) -> str:
    return "unknown price" if column.isna().all() and len(column) else cost_text(column.sum())


def _short(cell: Any) -> str:
    if isinstance(cell, float):
        return "" if cell != cell else f"{cell:.4g}"
    return "" if cell is None else one_line(str(cell), 200)


def parts_of(field: str) -> tuple[str, str]:
    """Step and column of a field such as ``"classify.label"``; of a step alone, the column of its values.

    Raises:
        TemplateError: It is not written so.
    """
    reference = Reference.parse(field)
    return reference.step, ".".join(reference.path) or "value"
