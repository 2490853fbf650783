"""What the live widgets share: a style sheet with the tones of the static views, scripts, and their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagent_nb.display import LINE, TONES
from tagent_nb.graph import live_style
from tagent_nb.pipeline import StepStatus

__all__ = ["CSS", "close_tree", "script", "tip"]

_COLOURS = {
    "ink": "var(--jp-ui-font-color1,inherit)",
    "muted": "var(--jp-ui-font-color2,#757575)",
    "paper": "var(--jp-layout-color1,Canvas)",
    "hover": "var(--jp-layout-color2,rgba(128,128,128,.12))",
    "line": LINE,
    "brand": TONES[StepStatus.RUNNING],
}


def script(name: str) -> str:
    """The text of a widget's script, or of its style sheet.

    Text and no path: anywidget watches the file of a path for changes, and what watches keeps each widget
    of the class, and all that the widget refers to, for as long as the kernel lives.
    """
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def tip(kind: Any, text: str) -> dict[str, str]:
    """The argument of a kind of widget that shows a text over it: ipywidgets 7 calls it otherwise for most.

    Args:
        kind: A class of ipywidgets.
        text: What is shown.
    """
    return {"tooltip" if "tooltip" in kind.class_trait_names() else "description_tooltip": text}


def close_tree(widget: Any) -> None:
    """Close a widget with all that it is made of: children, layout and style are widgets, too.

    ipywidgets closes only the one it is asked to; the others would stay for as long as the kernel lives.
    """
    for child in getattr(widget, "children", ()):
        close_tree(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()


def _css() -> str:
    named = ";".join(f"--tagent-{name}:{value}" for name, value in _COLOURS.items())
    coloured = ":is(td,.tagent-bar div,.tagent-legend span,.tagent-chips button)"
    words = [f"{coloured}.tagent-{status.value}{{color:{tone}}}" for status, tone in TONES.items()]
    rules = script("widgets.css")
    states = live_style(".tagent-port")
    return "\n".join([f".tagent-table,.tagent-live-graph{{{named}}}", rules, *words, states])


CSS = _css()
"""Style of the table of steps and of the live graph."""
