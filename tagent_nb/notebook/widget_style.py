"""The style sheet of the live widgets, with the looks and tones that the static views use."""

from __future__ import annotations

from pathlib import Path

from tagent_nb.graph.live import live_style
from tagent_nb.notebook.display import LINE, TONES
from tagent_nb.pipeline.models import StepStatus

__all__ = ["CSS"]

_COLOURS = {
    "ink": "var(--jp-ui-font-color1,inherit)",
    "muted": "var(--jp-ui-font-color2,#757575)",
    "paper": "var(--jp-layout-color1,Canvas)",
    "hover": "var(--jp-layout-color2,rgba(128,128,128,.12))",
    "line": LINE,
    "brand": TONES[StepStatus.RUNNING],
}


def _css() -> str:
    named = ";".join(f"--tagent-{name}:{value}" for name, value in _COLOURS.items())
    words = [
        f":is(td,.tagent-legend span,.tagent-chips button).tagent-{status.value}{{color:{tone}}}"
        for status, tone in TONES.items()
    ]
    rules = (Path(__file__).parent / "widgets.css").read_text(encoding="utf-8")
    states = live_style(".tagent-port")
    return "\n".join([f".tagent-table,.tagent-live-graph{{{named}}}", rules, *words, states])


CSS = _css()
"""Style of the table of steps and of the live graph."""
