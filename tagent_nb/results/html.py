"""A result as static HTML: what a notebook shows, and keeps when it is saved.

Everything is escaped. Styles are inline, since a saved notebook loses style sheets; text has the
colour of its surroundings, and tones come from the theme's variables with fallbacks for both themes.
"""

from __future__ import annotations

import html

from tagent_nb.display import LOOKS
from tagent_nb.formatting import cost_text, seconds_text, tokens_text, total_tokens_text, value_text
from tagent_nb.pipeline import StepStatus
from tagent_nb.results.outcomes import outcome, skipped_items
from tagent_nb.results.result import PipelineResult, StepResult
from tagent_nb.results.summary import costs

MAX_STEPS = 200
"""Most steps in the table; a longer one says how many it leaves out."""

_MUTED = "color:var(--jp-ui-font-color2,#757575)"
_FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.45"
_LINE = "var(--jp-border-color2,rgba(128,128,128,.35))"
_GREY = "var(--jp-ui-font-color2,#757575)"
_TONES = {
    StepStatus.RUNNING: "var(--jp-brand-color1,#2979ff)",
    StepStatus.WAITING: "var(--jp-warn-color1,#b26a00)",
    StepStatus.COMPLETED: "var(--jp-success-color1,#2e8540)",
    StepStatus.CACHED: "var(--jp-info-color1,#0093a8)",
    StepStatus.FAILED: "var(--jp-error-color1,#d32f2f)",
    StepStatus.CANCELLED: "var(--jp-warn-color1,#b26a00)",
}
_TITLES = ("step", "state", "value", "time", "tokens", "cost")
_NUMBERS = frozenset({"time", "tokens", "cost"})


def result_html(result: PipelineResult) -> str:
    """A line with status, seconds, cost and tokens, and a table with one row a step."""
    from tagent_nb.results.frames import steps_of

    steps = list(steps_of(result).values())
    rows = "".join(_row(step) for step in steps[:MAX_STEPS])
    left = len(steps) - MAX_STEPS
    more = f'<div style="{_MUTED}">and {left:,} more steps: see to_frame()</div>' if left > 0 else ""
    warnings = "".join(
        f'<div style="margin-top:2px"><span aria-hidden="true">⚠</span> {_escape(warning)}</div>'
        for warning in result.warnings
    )
    return (
        f'<div class="tex2jax_ignore mathjax_ignore" '
        f'style="{_FONT};color:var(--jp-ui-font-color1,inherit);max-width:100%">'
        f'<div style="margin:2px 0 4px">{_summary(result, steps)}</div>'
        f"{_table(rows)}{more}{_final(result)}{warnings}</div>"
    )


def _final(result: PipelineResult) -> str:
    """A line with the final output, where the pipeline has one."""
    if not result.final_step:
        return ""
    step = result.steps.get(result.final_step)
    text = value_text(None if step is None else step.output) or "none: its step has no value"
    return (
        f'<div style="margin-top:4px"><span style="{_MUTED}">Final output ({_escape(result.final_step)}):'
        f"</span> {_escape(text)}</div>"
    )


def _summary(result: PipelineResult, steps: list[StepResult]) -> str:
    status, word = outcome(result)
    tokens = total_tokens_text(result.token_usage.values()) or "0"
    facts = [seconds_text(result.execution_time), costs(result), f"{tokens} tokens"]
    saved = sum(step.saved_cost or 0.0 for step in steps)
    if saved:
        facts.append(f"{cost_text(saved)} saved by the cache")
    facts += [f"budget: {share}" for share in result.budget_shares()]
    return (
        f"{_state(status, word)} <b>{_escape(result.pipeline_name)}</b> "
        f'<span style="{_MUTED}">{_escape(" · ".join(facts))}</span>'
    )


def _table(rows: str) -> str:
    if not rows:
        return ""
    head = "".join(
        f'<th style="{_cell(title)};font-weight:600;border-bottom:1px solid {_LINE}">{title}</th>'
        for title in _TITLES
    )
    # Jupyter's own style sheet fixes the layout of tables: the columns would lie on each other.
    return (
        '<div style="overflow-x:auto">'
        '<table style="table-layout:auto;border-collapse:collapse;width:100%;margin:0;color:inherit;'
        'font-size:inherit">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(step: StepResult) -> str:
    cells = (
        f"<b>{_escape(step.name)}</b>",
        _state(step.status, LOOKS[step.status].word) + _items(step),
        _value(step),
        _escape(seconds_text(step.seconds)) if step.seconds else "",
        _escape(tokens_text(step.usage.known_tokens)) if step.usage else "",
        _escape(cost_text(step.cost)) if step.usage or step.cost != 0.0 else "",
    )
    return (
        "<tr>"
        + "".join(
            f'<td style="{_cell(title)}">{cell}</td>' for title, cell in zip(_TITLES, cells, strict=True)
        )
        + "</tr>"
    )


def _cell(title: str) -> str:
    side = "right" if title in _NUMBERS else "left"
    wrap = (
        "width:100%;min-width:120px;overflow-wrap:anywhere;white-space:normal"
        if title == "value"
        else "white-space:nowrap"
    )
    return (
        f"text-align:{side};vertical-align:top;padding:2px 10px 2px 4px;"
        f"font-variant-numeric:tabular-nums;{wrap}"
    )


def _state(status: StepStatus, word: str) -> str:
    return (
        f'<span style="color:{_TONES.get(status, _GREY)};white-space:nowrap">'
        f'<span aria-hidden="true">{LOOKS[status].mark}</span> {word}</span>'
    )


def _items(step: StepResult) -> str:
    if step.items is None:
        return ""
    total = step.items_total if step.items_total is not None else len(step.items)
    done = sum(item.status.has_value for item in step.items.values())
    skipped = skipped_items(step)
    more = f", {skipped:,} skipped" if skipped else ""
    return f' <span style="{_MUTED}">{done:,} of {total:,} items{more}</span>'


def _value(step: StepResult) -> str:
    from tagent_nb.results.frames import error_line

    if step.status is StepStatus.FAILED:
        return _escape(error_line(step))
    if step.output is None:
        return f'<span style="{_MUTED}">{_escape(error_line(step))}</span>'
    return _escape(value_text(step.output, 160))


def _escape(text: str) -> str:
    """Text for HTML. What no font shows, such as marks that turn the direction of writing, is replaced."""
    return html.escape("".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text))
