"""HTML of static views: colours, escaping, tables and marks.

Everything shown is escaped. Styles are inline, since a saved notebook loses style sheets, and take
the theme's colours from Jupyter's CSS variables, each with a fallback that reads in both themes.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tagent_nb.display.theme import STATUS_STYLES
from tagent_nb.pipeline import StepStatus

MUTED = "color:var(--jp-ui-font-color2,#757575)"
FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.45"
MONO = "font-family:var(--jp-code-font-family,monospace);font-size:12px"
LINE = "var(--jp-border-color2,rgba(128,128,128,.35))"
TONES = {
    StepStatus.PENDING: "var(--jp-ui-font-color2,#757575)",
    StepStatus.READY: "var(--jp-ui-font-color2,#757575)",
    StepStatus.RUNNING: "var(--jp-brand-color1,#2979ff)",
    StepStatus.WAITING: "var(--jp-warn-color1,#b26a00)",
    StepStatus.COMPLETED: "var(--jp-success-color1,#2e8540)",
    StepStatus.CACHED: "var(--jp-info-color1,#0093a8)",
    StepStatus.FAILED: "var(--jp-error-color1,#d32f2f)",
    StepStatus.SKIPPED: "var(--jp-ui-font-color2,#757575)",
    StepStatus.CANCELLED: "var(--jp-warn-color1,#b26a00)",
}
AS_IT_IS = "tex2jax_ignore mathjax_ignore"
"""Classes of what MathJax leaves alone. Jupyter typesets what stands between dollars in HTML: two prices
would be a formula, and texts of models would not look as they are."""
KIND_TONES = {"agent": "#7c6fe0", "python": "#6b7f99"}


def plain(text: str) -> str:
    """Text on what fonts can show: control characters and half surrogates become ``\ufffd``."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def escape(value: object) -> str:
    """:func:`plain` text for HTML."""
    return html.escape(plain(str(value)))


@dataclass(frozen=True, repr=False)
class Bundle:
    """HTML with a plain text twin, for ``display()``."""

    html: str
    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def page(self) -> str:
        """The HTML as a page of Jupyter gets it."""
        return f'<div class="{AS_IT_IS}">{self.html}</div>' if self.html else ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.page, "text/plain": self.text}


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = (), wide: int | None = None
) -> str:
    """An HTML table.

    Args:
        head: Titles of the columns, as text.
        rows: Cells, as HTML.
        right: Columns of numbers.
        wide: The column that takes the width that is left; words of it may be broken anywhere.
    """
    numbers = set(right)

    def cell(tag: str, index: int, content: str) -> str:
        side = "right" if index in numbers else "left"
        wrap = "width:100%;overflow-wrap:anywhere;min-width:120px" if index == wide else "white-space:nowrap"
        line = f"border-bottom:1px solid {LINE};" if tag == "th" else ""
        style = (
            f"text-align:{side};vertical-align:top;padding:2px 10px 2px 4px;font-variant-numeric:tabular-nums"
        )
        return f'<{tag} style="{style};{line}{wrap}">{content}</{tag}>'

    top = "".join(cell("th", index, escape(text)) for index, text in enumerate(head))
    body = "".join(
        f"<tr>{''.join(cell('td', index, content) for index, content in enumerate(row))}</tr>" for row in rows
    )
    # Jupyter's own style sheet fixes the layout of tables: all columns would be equally wide.
    style = f"{FONT};border-collapse:collapse;table-layout:auto;margin:4px 0;width:100%"
    return (
        f'<div style="overflow-x:auto"><table style="{style}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def state_mark(status: StepStatus, word: str = "") -> str:
    """The mark and the word of a state, coloured; ``word`` takes the place of its own."""
    style = STATUS_STYLES[status]
    return (
        f'<span style="color:{TONES[status]};white-space:nowrap">'
        f'<span aria-hidden="true">{style.mark}</span> {word or style.word}</span>'
    )
