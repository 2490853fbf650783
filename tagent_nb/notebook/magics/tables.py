"""Tables of what a session has: pipelines, plans, cached answers, pending approvals, memories."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tagent_nb.cache import CacheStats
from tagent_nb.display import FONT, MUTED, STATUS_STYLES, Bundle, escape, table
from tagent_nb.engine import Plan, calls_text, quote_text, span_text
from tagent_nb.formatting import (
    cost_text,
    count,
    model_label,
    one_line,
    seconds_text,
    short_text,
    tokens_text,
)
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.workspace import Workspace
from tagent_nb.pipeline import ApprovalRequest, StepStatus
from tagent_nb.results import done_words, phase_of


def _bundle(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], wide: int
) -> Bundle:
    """The rows as an HTML table and as lines of text."""
    cells = [[escape(cell) for cell in row] for row in rows]
    body = table(head, cells, right=numbers, wide=wide) if rows else ""
    lines = ["  ".join(cell for cell in row if cell) for row in rows]
    head = f'<div style="{FONT};{MUTED};white-space:pre-line">{escape(title)}</div>'
    return Bundle(f"{head}{body}", "\n".join([title, *lines]))


def pipelines_table(session: Session) -> Bundle:
    """The pipelines of this notebook; the current one is marked."""
    rows = []
    current = session.workspace.pipeline.name if session.workspaces else None
    for name, space in session.workspaces.items():
        model = space.pipeline.model
        ended = "has run" if space.result is not None else ""
        state = "paused" if space.paused else "running" if space.running else ended
        rows.append(
            [
                "▸" if name == current else "",
                name,
                count(len(space.pipeline), "step"),
                "" if model is None else model_label(model),
                state,
                space.pipeline.description,
            ]
        )
    title = f"{count(len(rows), 'pipeline')}; %tagent_pipeline NAME makes one current, or a new one"
    return _bundle(title, ["", "pipeline", "steps", "model", "state", ""], rows, [2], 5)


def last_run(space: Workspace) -> str:
    """How the last run of this kernel stands, in words; empty before the first."""
    result = space.result
    if result is None:
        return ""
    phase = "paused" if space.paused else "running" if space.running else phase_of(result)
    return f"{phase}, {done_words(result.steps.values())}"


_PLANNED = {
    "run": StepStatus.RUNNING,
    "may run": StepStatus.WAITING,
    "cached": StepStatus.CACHED,
    "recorded": StepStatus.COMPLETED,
    "skip": StepStatus.SKIPPED,
    "fail": StepStatus.FAILED,
}


def plan_table(plan: Plan) -> Bundle:
    """What a run would do with each step, and what it is expected to take; ``?`` where nothing is known."""
    rows = []
    for forecast in plan:
        runs = forecast in plan.running
        took = "?" if forecast.seconds is None else seconds_text(forecast.seconds)
        if forecast.seconds_range is not None:
            took = span_text(forecast.seconds_range)
        used = "?" if forecast.tokens is None else tokens_text(forecast.tokens) if forecast.tokens else ""
        paid = cost_text(forecast.cost) if used and used != "?" else used
        quote = forecast.quote
        if quote is not None:
            used = f"{tokens_text(quote.input_tokens[1] + quote.output_tokens[1])} at most"
            paid = quote_text(quote)
        mark = STATUS_STYLES[_PLANNED[forecast.action]].mark
        rows.append(
            [
                forecast.step,
                f"{mark} {forecast.state}",
                forecast.why,
                *((took, "" if quote is None else calls_text(quote), used, paid) if runs else ("",) * 4),
            ]
        )
    rows += [
        [step, "✗ changed", "; ".join(reasons), "", "", "", ""] for step, reasons in plan.conflicts.items()
    ]
    reads = f" It {plan.reads}." if plan.inputs else ""
    at_once = f" {plan.at_once[:1].upper()}{plan.at_once[1:]}." if plan.at_once else ""
    refused = " It would be refused; --on-change rerun lets it go as planned here." if plan.conflicts else ""
    warned = "".join(f"\nWarning: {warning}" for warning in plan.warnings)
    return _bundle(
        f"{plan.pipeline}: {plan.total}{reads}{at_once}{refused}{warned}",
        ["step", "would", "why", "time", "calls", "tokens", "cost"],
        rows,
        [3, 4, 5, 6],
        2,
    )


def cache_table(stats: CacheStats) -> Bundle:
    """What the cache holds, by step."""
    rows = [
        [
            step_stats.step,
            step_stats.pipeline,
            str(step_stats.entries),
            _size(step_stats.size),
            f"{seconds_text(max(0.0, time.time() - step_stats.last_used))} ago",
        ]
        for step_stats in stats.steps
    ]
    title = (
        f"{count(stats.entries, 'answer')}, {_size(stats.size)} of {_size(stats.size_limit)} "
        f"in {stats.directory}; {count(stats.hits, 'hit')} and {stats.misses} misses in this kernel"
    )
    return _bundle(title, ["step", "pipeline", "answers", "size", "last used"], rows, [2, 3, 4], 1)


def _size(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    if size < 1024**2:
        return f"{size / 1024:.0f} kB"
    return f"{size / 1024**2:.1f} MB" if size < 1024**3 else f"{size / 1024**3:.1f} GB"


def approvals_table(requests: Sequence[ApprovalRequest]) -> Bundle:
    """What waits for approval."""
    if not requests:
        return _line("Nothing waits for approval.")
    rows = [
        (request.step, request.item or "", request.tool, short_text(repr(request.value), 300))
        for request in requests
    ]
    return _plain_table(["step", "item", "tool", "value"], rows)


def memories_table(memories: Mapping[str, Any]) -> Bundle:
    """What is remembered of a pipeline from run to run."""
    if not memories:
        return _line("Nothing is remembered of this pipeline.")
    rows = [(key, short_text(repr(memory), 300)) for key, memory in memories.items()]
    return _plain_table(["memory", "value"], rows)


def _line(text: str) -> Bundle:
    return Bundle(f"<div>{escape(text)}</div>", text)


def _plain_table(head: list[str], rows: Sequence[tuple[str, ...]]) -> Bundle:
    html = table(head, [[escape(one_line(cell, 300)) for cell in row] for row in rows], wide=len(head) - 1)
    return Bundle(html, "\n".join(["  ".join(head), *("  ".join(row) for row in rows)]))
