"""Answers against a truth that is known: accuracy, precision, recall and F1, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, UnknownStepError, did_you_mean
from tagent_nb.formatting import count
from tagent_nb.results.compare import parts_of
from tagent_nb.results.frames import item_keys, mapped_rows, output_frame, value_frame
from tagent_nb.results.records import RunRecord, steps_of
from tagent_nb.results.rows import NO_ANSWER, class_labels, keys_of
from tagent_nb.templating import Reference

if TYPE_CHECKING:
    import numpy
    import pandas as pd

RESAMPLES, SEED = 2000, 0
"""Samples that the bootstrap draws, and the seed of their random numbers: a figure is the same each time."""

LOW, HIGH = 2.5, 97.5
"""Percentiles between which 95 % of the samples lie."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How good answers are.

    Attributes:
        answer: Field of the answers, such as ``"classify.label"``.
        truth: Field of what is true.
        rows: Rows that have a truth; others are left out. A row without an answer is a wrong one.
        accuracy: Share of right answers.
        interval: Its 95 % interval, by a bootstrap over the rows.
        classes: One row a class: ``rows`` that are truly of it, ``precision``, ``recall`` and ``f1``, each
            with its 95 % interval in ``..._low`` and ``..._high``; missing where there is nothing to count.
        confusion: How often each truth got each answer.
    """

    answer: str
    truth: str
    rows: int
    accuracy: float
    interval: tuple[float, float]
    classes: pd.DataFrame
    confusion: pd.DataFrame

    @property
    def total(self) -> str:
        """The accuracy in words."""
        low, high = self.interval
        return (
            f"{self.answer} against {self.truth}: {self.accuracy:.1%} of {count(self.rows, 'row')} are right "
            f"(95 % interval {low:.1%} to {high:.1%})"
        )

    def __repr__(self) -> str:
        return f"{self.total}\n{self._shown().to_string()}"

    def _repr_html_(self) -> str:
        from tagent_nb.display import FONT, Bundle, escape, table

        shown = self._shown().reset_index()
        cells = [[escape(cell) for cell in row] for row in shown.itertuples(index=False)]
        body = table([str(label) for label in shown.columns], cells, right=range(1, shown.shape[1]), wide=0)
        head = f'<div style="{FONT}">{escape(self.total)}</div>'
        return Bundle(f"{head}{body}", repr(self)).page

    def _shown(self) -> pd.DataFrame:
        """Each figure with its interval, as text."""
        import pandas as pd

        shown = {"rows": self.classes["rows"].astype(str)}
        for name in ("precision", "recall", "f1"):
            ends = (self.classes[column] for column in (name, f"{name}_low", f"{name}_high"))
            shown[name] = pd.Series(
                [
                    "" if value != value else f"{value:.2f} ({low:.2f} to {high:.2f})"
                    for value, low, high in zip(*ends, strict=True)
                ],
                self.classes.index,
            )
        return pd.DataFrame(shown)


def evaluate(result: RunRecord, answer: str, truth: str) -> Evaluation:
    """See :meth:`PipelineResult.evaluate`."""
    import numpy as np
    import pandas as pd

    truths, answers = class_labels(*_side_by_side(result, answer, truth))
    pairs = [pair for pair in zip(truths, answers, strict=True) if pair[0] != NO_ANSWER]
    if not pairs:
        raise DefinitionError(f"{truth} has no value in any row: there is nothing to compare {answer} with.")
    labels = sorted({label for pair in pairs for label in pair} - {NO_ANSWER})
    if any(cell == NO_ANSWER for _, cell in pairs):
        labels.append(NO_ANSWER)
    size, place = len(labels), {label: number for number, label in enumerate(labels)}
    counts = np.zeros((size, size), dtype=np.int64)
    for true, cell in pairs:
        counts[place[true], place[cell]] += 1
    # Rows that are drawn again are counts that are drawn from a multinomial distribution.
    # Percentile intervals: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    drawn = np.random.default_rng(SEED).multinomial(len(pairs), counts.ravel() / len(pairs), RESAMPLES)
    exact, samples = _scores(counts[None]), _scores(drawn.reshape(-1, size, size))
    classes = pd.DataFrame({"rows": counts.sum(axis=1)}, index=pd.Index(labels, dtype="str", name="class"))
    for name in ("precision", "recall", "f1"):
        classes[name] = exact[name][0]
        for end, percentile in (("low", LOW), ("high", HIGH)):
            classes[f"{name}_{end}"] = [_percentile(column, percentile) for column in samples[name].T]
    interval = tuple(_percentile(samples["accuracy"], end) for end in (LOW, HIGH))
    return Evaluation(
        answer,
        truth,
        len(pairs),
        float(exact["accuracy"][0]),
        (interval[0], interval[1]),
        classes.drop(NO_ANSWER, errors="ignore"),
        pd.DataFrame(counts, pd.Index(labels, name=truth), pd.Index(labels, name=answer)).drop(
            NO_ANSWER, errors="ignore"
        ),
    )


def _scores(counts: numpy.ndarray[Any, Any]) -> dict[str, numpy.ndarray[Any, Any]]:
    """Scores of samples, each of which has counts of (truth, answer)."""
    import numpy as np

    right = np.diagonal(counts, axis1=1, axis2=2)
    true, answered = counts.sum(axis=2), counts.sum(axis=1)
    with np.errstate(invalid="ignore"):  # nothing of nothing is NaN, which says so
        return {
            "precision": right / answered,
            "recall": right / true,
            "f1": 2 * right / (true + answered),
            "accuracy": right.sum(axis=1) / counts.sum(axis=(1, 2)),
        }


def _percentile(samples: numpy.ndarray[Any, Any], percentile: float) -> float:
    """A percentile of the samples that have a value; NaN if none has."""
    import numpy as np

    present = samples[~np.isnan(samples)]
    return float(np.percentile(present, percentile)) if len(present) else float("nan")


def _side_by_side(result: RunRecord, answer: str, truth: str) -> tuple[list[Any], list[Any]]:
    """Truths and answers, row by row: by the keys of the rows that a mapped step ran over, else in order."""
    step, field = parts_of(answer)
    answers = _answers(result, step, field)
    source = result.sources.get(step)
    reference = Reference.parse(truth)
    if source is not None:
        mapped = Reference.parse(source, "map")
        start = len(mapped.path)
        if reference.step == mapped.step and reference.path[:start] == mapped.path:
            rows, keys = mapped_rows(result, step)
            column = _column(value_frame(rows), mapped.text, ".".join(reference.path[start:]) or "value")
            return column, [answers.get(key) for key in keys]
    truths = _answers(result, *parts_of(truth))
    if truths.keys() == answers.keys():
        return list(truths.values()), [answers[key] for key in truths]
    if len(truths) != len(answers):
        raise DefinitionError(
            f"{answer} has {count(len(answers), 'row')} and {truth} has {len(truths):,}: they cannot stand "
            "side by side. Compare a mapped step with what it maps over."
        )
    return list(truths.values()), list(answers.values())


def _answers(result: RunRecord, step: str, field: str) -> dict[str, Any]:
    """The cells of a field of a step, or of an input, by the keys of its rows."""
    state = steps_of(result).get(step)
    if state is None and step in result.inputs:
        value = result.inputs[step]
        frame, keys = value_frame(value), keys_of(value)
    else:
        frame = output_frame(result, step, nested="columns", samples=False)
        keys = [] if state is None else item_keys(result, state)
    return dict(zip(keys, _column(frame, step, field), strict=True))


def _column(frame: pd.DataFrame, name: str, field: str) -> list[Any]:
    labels = [str(label) for label in frame.columns]
    if field not in labels:
        have = ", ".join(labels) or "none"
        raise UnknownStepError(
            f"{name!r} has no field {field!r}.{did_you_mean(field, labels)} Fields: {have}."
        )
    cells: list[Any] = frame.iloc[:, labels.index(field)].tolist()
    return cells
