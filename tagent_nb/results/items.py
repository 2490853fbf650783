"""What a step with items runs over: the rows of a value, elements of the lists in them, samples of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tagent_nb.errors import EncodeError
from tagent_nb.results.rows import (
    is_frame,
    is_missing,
    items_of,
    label_keys,
    no_items,
    record_of,
    rows_in,
    rows_of,
)
from tagent_nb.serde import digest, levels_of
from tagent_nb.templating import Reference, distinct, lookup
from tagent_nb.user_objects import safe_repr

Row = tuple[str, Any, Any]
"""Key, label in the source's index, and the item itself."""

Level = Mapping[str, Any]
"""What :func:`tagent_nb.serde.levels_of` says of a level of an index."""

POSITION, SAMPLE = "position", "sample"
"""Names of the levels that elements and samples add to an index."""

ROW_LEVELS = "row_levels"
"""Where the notes of a mapped step with samples have the levels of its items."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """What a step runs over, sample by sample of it where there are several.

    Attributes:
        rows: The items.
        levels: Levels of the index that their labels are of; ``None`` where the source has no index.
        places: Of elements, the place of the source's row that each is in the list of.
        unlisted: Keys of the source's rows that have no list.
    """

    rows: Sequence[Row]
    levels: Sequence[Level] | None = None
    places: Sequence[int] = ()
    unlisted: Sequence[str] = field(default_factory=list)

    def units(self, samples: int) -> Iterator[tuple[str, Any]]:
        """Key and label of each unit: of each sample of each item."""
        several, whole = is_multi(self.levels), self is ONE_ROW
        for key, label, _ in self.rows:
            if samples == 1:
                yield key, label
            else:
                for sample in range(samples):
                    yield sample_key(key, sample), sample if whole else _below(label, sample, several)

    def notes(self, samples: int) -> dict[str, Any]:
        """Order and labels of the units, which a stored run needs to show them as they were."""
        units = list(self.units(samples))
        notes: dict[str, Any] = {
            "item_keys": [key for key, _ in units],
            "item_index": [label for _, label in units],
        }
        levels = self.levels
        if samples > 1:
            notes["samples"] = samples
            if self is ONE_ROW:
                levels = [{"name": SAMPLE, "dtype": "int64"}]
            else:
                notes[ROW_LEVELS] = levels
                levels = _deeper(levels, SAMPLE)
        return notes if levels is None else notes | {"item_levels": levels}


# -- samples --------------------------------------------------------------------------------------


ONE_ROW = StepRows([("", None, None)])
"""What a step runs over that is not mapped, and has samples."""


def sample_key(row: str, sample: int) -> str:
    """The key of a sample of an item; of a step that is not mapped, whose item has no key, its number."""
    return f"{row}#{sample}" if row else str(sample)


def row_key(key: str) -> str:
    """The key of the item that a sample is of."""
    return key.rpartition("#")[0]


def agreed(answers: Sequence[Any]) -> int:
    """The place of the answer that stands for all of them, of which there is at least one.

    Field by field, the one first on which they agree most, those stay that give what most of them give, and
    of equally many what came first. Answers without fields are one field.
    """
    records = [record_of(answer) for answer in answers]
    names = dict.fromkeys(name for record in records for name in record or ())
    if names and all(record is not None for record in records):
        columns = [[token(record.get(name)) for record in records if record is not None] for name in names]
    else:
        columns = [[token(answer) for answer in answers]]
    left = list(range(len(answers)))
    for tokens in sorted(columns, key=lambda tokens: max(Counter(tokens).values()), reverse=True):
        winner, _ = Counter(tokens[place] for place in left).most_common(1)[0]
        left = [place for place in left if tokens[place] == winner]
    return left[0]


def token(cell: Any) -> Hashable:
    """What cells have in common that are the same answer."""
    if is_missing(cell):
        return None
    if isinstance(cell, str | bool | int | float):
        return cell
    try:
        return "digest", digest(cell)
    except EncodeError:
        return "shown", safe_repr(cell)


# -- rows, and elements of lists in them ------------------------------------------------------------


def rows_to_map(value: Any, source: Reference, *, flatten: bool, notes: Mapping[str, Any]) -> StepRows:
    """The items that a mapped step runs over.

    Args:
        value: The whole value of its source.
        source: The part of it that the step names: of each row, where it maps over elements.
        flatten: Whether it maps over the elements of lists in the rows.
        notes: Of the source, if that is a step with items of its own: see :meth:`StepRows.notes`.

    Raises:
        TypeError: The value has no items, or a row has no list; the message says what to do.
        TemplateError: The value, or a row, lacks the part.
    """
    if not flatten:
        value = lookup(value, source.path, name=source.step)
        return StepRows(rows_of(value), levels_of(value))
    within, path, name = to_rows(value, source)
    rows: Sequence[Row] = rows_of(within)
    levels: Sequence[Level] | None = levels_of(within)
    if within is value and _has_items(notes):
        rows, levels = _named_by(rows, notes)
    several = is_multi(levels)
    labels: list[Any] = []
    texts: list[str] = []
    elements: list[Any] = []
    places: list[int] = []
    unlisted: list[str] = []
    for place, (key, label, row) in enumerate(rows):
        listed = None if row is None else lookup(row, path, name=f"{name}[{key!r}]")
        if is_missing(listed):
            unlisted.append(key)
            continue
        here = rows_in(listed)
        if here is None:
            raise TypeError(f"of its item {key!r}, {no_items(listed)}")
        elements.extend(here)
        places.extend([place] * len(here))
        texts.extend(f"{key}/{position}" for position in range(len(here)))
        labels.extend(_below(label, position, several) for position in range(len(here)))
    keys = label_keys(texts)
    return StepRows(
        list(zip(keys, labels, elements, strict=True)), _deeper(levels, POSITION), places, unlisted
    )


def to_rows(value: Any, source: Reference) -> tuple[Any, tuple[str, ...], str]:
    """The value that has the rows, the way from each row to its list, and what the value is called."""
    path, name = source.path, source.step
    while path and (not _has_rows(value) or path[0].removeprefix("-").isdecimal()):
        value, name, path = lookup(value, path[:1], name=name), Reference(name, path[:1]).text, path[1:]
    return value, path, name


def _has_rows(value: Any) -> bool:
    return is_frame(value) or items_of(value) is not None


def _has_items(notes: Mapping[str, Any]) -> bool:
    """Whether a step has these notes whose value has a row an item: not one that reduces rows, nor one that
    is not mapped and has samples."""
    samples = notes.get("samples", 1)
    return "item_keys" in notes and "levels" not in notes and (samples == 1 or ROW_LEVELS in notes)


def _named_by(rows: Sequence[Row], notes: Mapping[str, Any]) -> tuple[Sequence[Row], Sequence[Level] | None]:
    """Rows of the value of a step with items, by the keys and labels that these have."""
    keys, labels, levels = notes["item_keys"], notes["item_index"], notes.get("item_levels")
    samples = notes.get("samples", 1)
    if samples > 1:
        keys = [row_key(key) for key in keys[::samples]]
    if not isinstance(labels, list):  # they could not be stored: a text says so
        labels, levels = keys, None
    elif samples > 1:
        labels = [row_label(label) for label in labels[::samples]]
        levels = notes[ROW_LEVELS]
    return [(key, label, row) for key, label, (_, _, row) in zip(keys, labels, rows, strict=True)], levels


def row_label(label: tuple[Any, ...]) -> Any:
    """The label of the item that a sample is of."""
    return label[0] if len(label) == 2 else label[:-1]


def is_multi(levels: Sequence[Level] | None) -> bool:
    """Whether labels of these levels are tuples, with a part a level."""
    return bool(levels) and "multi" in levels[0]  # type: ignore[index]


def _below(label: Any, place: int, several: bool) -> tuple[Any, ...]:
    return (*label, place) if several and isinstance(label, tuple) else (label, place)


def _deeper(levels: Sequence[Level] | None, name: str) -> list[dict[str, Any]]:
    """The levels of an index with one more, which counts; what is left of the others of a row each is their
    names and types."""
    above = [
        {part: fact for part, fact in level.items() if part not in ("range", "freq")} | {"multi": True}
        for level in levels or [{"name": None, "dtype": "int64"}]
    ]
    names = [str(level["name"]) for level in above]
    return [*above, {"name": distinct([name], names)[0], "dtype": "int64", "multi": True}]
