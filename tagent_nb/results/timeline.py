"""When each step of a run worked, and what held the run up: a Gantt chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tagent_nb.display import FONT, STATUS_STYLES, TONES, Bundle, escape
from tagent_nb.errors import DefinitionError
from tagent_nb.formatting import cost_text, count, seconds_text, short_text
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.records import RunRecord, steps_of

if TYPE_CHECKING:
    import pandas as pd

MOST_BARS = 200
"""Steps that the picture shows; of more, those that took longest."""

SLACK = 0.02
"""Seconds at most between the end of a step and the start of one that waited for nothing else."""

_LABELS, _CHART, _NOTES, _ROW, _TOP = 190, 420, 170, 22, 26
"""Widths of the three columns of the picture, height of a row and of the axis, in pixels."""


@dataclass(frozen=True, slots=True)
class Bar:
    """When a step worked.

    Attributes:
        start: Seconds after the run's first step began.
        end: Seconds until it ended.
        cost: USD; ``None`` where a price is unknown.
        critical: Whether it is on the critical path.
    """

    step: str
    status: StepStatus
    start: float
    end: float
    cost: float | None
    critical: bool


@dataclass(frozen=True, repr=False)
class Timeline:
    """When each step of a run worked.

    Attributes:
        name: Name of the pipeline.
        bars: One for each step that began, in the order of their starts.
    """

    name: str
    bars: list[Bar]

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return max((bar.end for bar in self.bars), default=0.0)

    @property
    def critical_path(self) -> list[str]:
        """The steps that held the run up, first to last: each began when the one before had ended."""
        return [bar.step for bar in self.bars if bar.critical]

    def to_frame(self) -> pd.DataFrame:
        """One row a step: ``status``, ``start`` and ``end`` (seconds), ``cost`` (USD), ``critical``."""
        import pandas as pd

        columns = {
            "status": pd.Series([bar.status.value for bar in self.bars], dtype="str"),
            "start": pd.Series([bar.start for bar in self.bars], dtype="float64"),
            "end": pd.Series([bar.end for bar in self.bars], dtype="float64"),
            "cost": pd.Series([bar.cost for bar in self.bars], dtype="float64"),
            "critical": pd.Series([bar.critical for bar in self.bars], dtype="bool"),
        }
        index = pd.Index([bar.step for bar in self.bars], name="step", dtype="str")
        return pd.DataFrame(columns).set_axis(index, axis="index")

    def save(self, path: str | Path) -> None:
        """Write the picture to a file whose name ends with .svg.

        Raises:
            DefinitionError: It ends with something else.
            OSError: It cannot be written.
        """
        if Path(path).suffix.lower() != ".svg":
            raise DefinitionError(f"{str(path)!r}: a timeline is saved as .svg. Let the file's name end so.")
        Path(path).write_text(self.to_svg() + "\n", encoding="utf-8", newline="\n")

    def __repr__(self) -> str:
        lines = [self._head()]
        lines += [
            f"{'*' if bar.critical else ' '} {bar.step}  {seconds_text(bar.start)} to "
            f"{seconds_text(bar.end)}  {STATUS_STYLES[bar.status].word}  {cost_text(bar.cost)}"
            for bar in self._shown()
        ]
        return "\n".join([*lines, *self._left_out()])

    def _repr_html_(self) -> str:
        notes = "".join(
            f'<div style="{FONT}">{escape(text)}</div>' for text in (self._head(), *self._left_out())
        )
        picture = f'<div style="overflow-x:auto">{self.to_svg()}</div>'
        return Bundle(f"{notes}{picture}", repr(self)).page

    def to_svg(self) -> str:
        """The picture: a row a step, its bar in the colour of its state, outlined on the critical path.

        Colours are those of the page's theme in Jupyter, and read on white and on black elsewhere.
        """
        bars = self._shown()
        width, height = _LABELS + _CHART + _NOTES, _TOP + _ROW * len(bars) + 4
        scale = _CHART / (self.seconds or 1.0)
        parts = [
            f'<line x1="{_LABELS}" y1="{_TOP - 6}" x2="{_LABELS + _CHART}" y2="{_TOP - 6}" '
            f'style="stroke:{TONES[StepStatus.PENDING]}"/>'
        ]
        for quarter in range(5):
            anchor = ("start", "middle", "middle", "middle", "end")[quarter]
            text = seconds_text(self.seconds * quarter / 4)
            parts.append(_text(_LABELS + _CHART * quarter / 4, _TOP - 10, text, anchor))
        for row, bar in enumerate(bars):
            tone, top = TONES[bar.status], _TOP + _ROW * row
            long = max(2.0, (bar.end - bar.start) * scale)
            took = seconds_text(bar.end - bar.start)
            tip = f"{bar.step}: {STATUS_STYLES[bar.status].word}, {took}, {cost_text(bar.cost)}"
            outline = (
                "stroke:var(--jp-ui-font-color0,#888);stroke-width:1.5" if bar.critical else "stroke:none"
            )
            paid = f", {cost_text(bar.cost)}" if bar.cost != 0.0 else ""
            weight = "bold" if bar.critical else "normal"
            parts += [
                f"<g><title>{escape(tip)}</title>",
                _text(_LABELS - 8, top + 14, short_text(bar.step, 26), "end", weight),
                f'<rect x="{_LABELS + bar.start * scale:.1f}" y="{top + 3}" width="{long:.1f}" '
                f'height="{_ROW - 8}" rx="2" style="fill:{tone};fill-opacity:.75;{outline}"/>',
                _text(
                    _LABELS + _CHART + 8, top + 14, f"{STATUS_STYLES[bar.status].mark} {took}{paid}", "start"
                ),
                "</g>",
            ]
        label = escape(self._head())
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
        )

    def _shown(self) -> list[Bar]:
        if len(self.bars) <= MOST_BARS:
            return self.bars
        longest = sorted(self.bars, key=lambda bar: bar.start - bar.end)[:MOST_BARS]
        return sorted(longest, key=lambda bar: bar.start)

    def _left_out(self) -> list[str]:
        left = len(self.bars) - MOST_BARS
        return [f"{count(left, 'shorter step')} left out: see to_frame()"] if left > 0 else []

    def _head(self) -> str:
        path = " → ".join(short_text(step, 40) for step in self.critical_path[:8])
        more = f" and {len(self.critical_path) - 8} more" if len(self.critical_path) > 8 else ""
        return f"{self.name}: {seconds_text(self.seconds)}, held up by {path or 'nothing'}{more}"


def timeline(result: RunRecord) -> Timeline:
    """See :meth:`PipelineResult.timeline`."""
    began = {
        name: (step, step.started_at, step.ended_at)
        for name, step in steps_of(result).items()
        if step.started_at is not None and step.ended_at is not None
    }
    zero = min((start for _, start, _ in began.values()), default=0.0)
    spans = {name: (start - zero, max(start, end) - zero) for name, (_, start, end) in began.items()}
    critical = _critical(spans, result.dependencies)
    bars = [
        Bar(name, step.status, *spans[name], step.cost, name in critical)
        for name, (step, _, _) in began.items()
    ]
    return Timeline(result.pipeline_name, sorted(bars, key=lambda bar: (bar.start, bar.end)))


def _critical(spans: Mapping[str, tuple[float, float]], waits: Mapping[str, Sequence[str]]) -> set[str]:
    """The steps that held a run up: the last to end, what it waited for that ended last, and so on.

    Where all that it waited for had ended long before, what held it up is the step that made room: the one
    that ended last before it began.
    """
    path: set[str] = set()
    step = max(spans, key=lambda name: spans[name][::-1], default=None)
    while step is not None:
        path.add(step)
        start = spans[step][0]
        above = [name for name in waits.get(step, ()) if name in spans and name not in path]
        if not any(spans[name][1] >= start - SLACK for name in above):
            above = [name for name, span in spans.items() if name not in path and span[1] <= start]
        step = max(above, key=lambda name: spans[name][1], default=None)
    return path


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    style = f"{FONT};font-size:12px;font-weight:{weight};fill:var(--jp-ui-font-color1,#888)"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'
