"""A run at one moment, as HTML and as text: the live panel and its static twin show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tagent_nb.notebook.display import (
    AS_IT_IS,
    FONT,
    LINE,
    MONO,
    MUTED,
    TONES,
    clip,
    count,
    escape,
    state_mark,
    table,
)
from tagent_nb.pipeline.budget import Share
from tagent_nb.pipeline.looks import LOOKS, cost_text, seconds_text, tokens_text
from tagent_nb.pipeline.models import StepStatus
from tagent_nb.pipeline.result import PipelineResult, StepResult


@dataclass(frozen=True)
class RunView:
    """A run at one moment, for :func:`run_html` and :func:`run_text`.

    Attributes:
        title: The pipeline's name.
        steps: States in definition order.
        phase: ``"running"``, ``"paused"``, ``"completed"``, ``"failed"``, ``"cancelled"``, ``"waiting"`` or
            ``"refused"``.
        seconds: Wall time so far.
        note: A sentence below the title, such as how to go on.
        texts: The end of what each step printed or streamed.
        items: Of mapped steps: items that ended, failed, and all there are.
        now: Seconds since the epoch, for steps that run.
        warnings: What the user should know.
        budget: How far each measure of the run's budget is used up.
    """

    title: str
    steps: Mapping[str, StepResult]
    phase: str
    seconds: float
    note: str = ""
    texts: Mapping[str, str] | None = None
    items: Mapping[str, tuple[int, int, int]] | None = None
    now: float = 0.0
    warnings: Sequence[str] = ()
    budget: Sequence[Share] = ()


_PHASES = {
    "running": StepStatus.RUNNING,
    "paused": StepStatus.WAITING,
    "completed": StepStatus.COMPLETED,
    "failed": StepStatus.FAILED,
    "cancelled": StepStatus.CANCELLED,
    "waiting": StepStatus.WAITING,
}
MOST_ROWS = 60
"""Rows of a table that is drawn ten times a second; the rest is summed up in one line."""


def run_html(view: RunView, *, most: int | None = MOST_ROWS, folded: bool = False) -> str:
    """A run as HTML: one line with progress, seconds, tokens and USD, then one line for each step.

    Args:
        view: What to show.
        most: Rows at most, ``None`` for all.
        folded: Whether to add tracebacks and printed text, folded. Not while it is drawn again and
            again: that would close what the reader has opened.
    """
    shown, left_out = _choose(view, most)
    rows = [_row(view, view.steps[name], folded) for name in shown]
    if left_out:
        words = [view.steps[name].status for name in left_out]
        told = ", ".join(f"{words.count(one)} {LOOKS[one].word}" for one in dict.fromkeys(words))
        rows.append(["…", "", f'<span style="{MUTED}">and {len(left_out)} more: {told}</span>', "", "", ""])
    head = ["step", "state", "", "time", "tokens", "cost"]
    if not any(row[4] or row[5] for row in rows):
        # Python steps alone use no tokens: two empty columns would only take room.
        head, rows = head[:4], [row[:4] for row in rows]
    body = table(head, rows, right=(3, 4, 5), wide=2) if rows else ""
    warnings = "".join(
        f'<div style="{FONT};color:{TONES[StepStatus.WAITING]}">⚠ {escape(text)}</div>'
        for text in view.warnings
    )
    style = f"{FONT};color:var(--jp-ui-font-color1,inherit)"
    return f'<div class="{AS_IT_IS}" style="{style}">{_head(view)}{body}{warnings}</div>'


def _choose(view: RunView, most: int | None) -> tuple[list[str], list[str]]:
    """Which steps get a row of their own when there are too many: what failed or runs comes first."""
    names = list(view.steps)
    if most is None or len(names) <= most:
        return names, []
    order = {StepStatus.FAILED: 0, StepStatus.RUNNING: 1, StepStatus.WAITING: 1, StepStatus.CANCELLED: 2}
    ranked = sorted(
        names, key=lambda name: (order.get(view.steps[name].status, 3), -(view.steps[name].ended_at or 0))
    )
    chosen = set(ranked[:most])
    return [name for name in names if name in chosen], [name for name in names if name not in chosen]


def _totals(view: RunView) -> tuple[int, int, str]:
    steps = view.steps.values()
    tokens = sum(step.usage.total_tokens for step in steps)
    known = sum(step.cost for step in steps if step.cost is not None)
    saved = sum(step.saved_cost or 0.0 for step in steps)
    unknown = sum(1 for step in steps if step.cost is None)
    cost = cost_text(known) if known or not unknown else ""
    words = [cost] if cost else []
    if unknown:
        words.append(f"{count(unknown, 'step')} without a known price")
    if saved:
        words.append(f"{cost_text(saved)} saved by the cache")
    return sum(step.status.is_final for step in steps), tokens, " · ".join(words)


def _head(view: RunView) -> str:
    done, tokens, cost = _totals(view)
    facts = [f"{done} of {count(len(view.steps), 'step')}", seconds_text(view.seconds)]
    facts += [f"{tokens_text(tokens)} tokens", cost] if tokens else []
    status = _PHASES.get(view.phase, StepStatus.FAILED)
    share = round(100 * done / max(1, len(view.steps)), 1)
    bar = (
        f'<div role="progressbar" aria-valuenow="{share:g}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="progress" style="height:4px;border-radius:2px;background:{LINE};margin:4px 0">'
        f'<div style="height:4px;border-radius:2px;width:{share:g}%;background:{TONES[status]}"></div></div>'
    )
    note = f'<div style="{MUTED};overflow-wrap:anywhere">{escape(view.note)}</div>' if view.note else ""
    note += "".join(budget_bar(share) for share in view.budget)
    return (
        f'<div><b>{escape(view.title)}</b> <span style="color:{TONES[status]}">'
        f'<span aria-hidden="true">{LOOKS[status].mark}</span> {escape(view.phase)}</span> '
        f'<span style="{MUTED}">{escape(" · ".join(fact for fact in facts if fact))}</span></div>{bar}{note}'
    )


def budget_bar(share: Share) -> str:
    """One measure of a budget: what is spent, what calls under way may take, and the limit."""
    whole = max(share.limit, share.spent + share.reserved) or 1.0
    parts = ((share.spent, TONES[StepStatus.COMPLETED]), (share.reserved, TONES[StepStatus.WAITING]))
    pieces = "".join(
        f'<div style="height:4px;width:{100 * amount / whole:.1f}%;background:{tone}"></div>'
        for amount, tone in parts
        if amount
    )
    now = round(100 * share.spent / whole, 1)
    return (
        f'<div style="{MUTED}">budget: {escape(str(share))}</div>'
        f'<div role="progressbar" aria-valuenow="{now:g}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="budget" style="display:flex;height:4px;border-radius:2px;overflow:hidden;'
        f'background:{LINE};margin:2px 0 4px">{pieces}</div>'
    )


def _row(view: RunView, step: StepResult, folded: bool) -> list[str]:
    seconds = step.seconds
    if step.status in (StepStatus.RUNNING, StepStatus.WAITING) and step.started_at is not None and view.now:
        seconds = max(seconds, view.now - step.started_at)
    spent = bool(step.usage.total_tokens)
    return [
        f"<b>{escape(clip(step.name, 40))}</b>",
        state_mark(step.status),
        _about(view, step, folded),
        seconds_text(seconds) if seconds or step.status is StepStatus.RUNNING else "",
        tokens_text(step.usage.total_tokens) if spent else "",
        cost_text(step.cost) if spent or step.cost is None else "",
    ]


def _about(view: RunView, step: StepResult, folded: bool) -> str:
    """Items, attempts, why it ran or not, the error, and the end of its text."""
    words = []
    done, wrong, total = (view.items or {}).get(step.name, (0, 0, 0))
    if total:
        words.append(f"{done}/{total} items" + (f", {wrong} failed" if wrong else ""))
    if step.attempts > 1 and step.items is None:
        words.append(f"attempt {step.attempts}")
    if step.waits_for:
        words.append(f"waits for {clip(step.waits_for, 200)}")
    if step.reason:
        words.append(clip(step.reason, 200))
    if step.saved_cost and step.status is StepStatus.CACHED:
        words.append(f"saved {cost_text(step.saved_cost)}")
    told = f'<span style="{MUTED}">{escape(" · ".join(words))}</span>' if words else ""
    if step.error:
        told += f'<div style="color:{TONES[StepStatus.FAILED]}">{escape(_error(step))}</div>'
    if folded and step.traceback and step.status is StepStatus.FAILED:
        told += _folded("traceback", step.traceback)
    text = (view.texts or {}).get(step.name, "")
    if text and folded:
        told += _folded("text", text)
    elif text and step.status in (StepStatus.RUNNING, StepStatus.WAITING):
        told += _printed(text[-600:])
    return told


def _error(step: StepResult) -> str:
    message = clip(step.error, 400)
    return f"{step.error_type}: {message}" if step.error_type else message


def _printed(text: str) -> str:
    return (
        f'<pre style="{MONO};white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0;max-height:9em;'
        f'overflow:auto;{MUTED};background:none">{escape(text)}</pre>'
    )


def _folded(label: str, text: str) -> str:
    head = f'<summary style="cursor:pointer;{MUTED}">{escape(label)}</summary>'
    return f"<details>{head}{_printed(text)}</details>"


def run_text(view: RunView) -> str:
    """The same as :func:`run_html`, as plain text for terminals."""
    done, tokens, cost = _totals(view)
    facts = [f"{done} of {count(len(view.steps), 'step')}", seconds_text(view.seconds)]
    facts += [f"{tokens_text(tokens)} tokens", cost] if tokens else []
    lines = [f"{view.title}: {view.phase} ({', '.join(fact for fact in facts if fact)})"]
    for step in view.steps.values():
        words = [LOOKS[step.status].word, *([seconds_text(step.seconds)] if step.seconds else [])]
        words += [_error(step)] if step.error else [clip(step.reason, 200)] if step.reason else []
        lines.append(f"  {LOOKS[step.status].mark} {step.name}: {', '.join(words)}")
    lines += [f"budget: {share}" for share in view.budget]
    return "\n".join([*lines, *([view.note] if view.note else []), *view.warnings])


def items_of(steps: Mapping[str, StepResult]) -> dict[str, tuple[int, int, int]]:
    """Ended, failed and all items of the mapped steps."""
    found = {}
    for name, step in steps.items():
        if step.items_total is not None:
            items = list((step.items or {}).values())
            failed = sum(item.status is StepStatus.FAILED for item in items)
            found[name] = (sum(item.status.is_final for item in items), failed, step.items_total)
    return found


def result_view(result: PipelineResult, note: str = "", texts: Mapping[str, str] | None = None) -> RunView:
    """The view of a run that has ended."""
    failed = any(step.status is StepStatus.FAILED for step in result.steps.values())
    phase = "cancelled" if result.cancelled else "failed" if failed or not result.success else "completed"
    if phase == "failed" and result.waiting_steps and not failed:
        phase = "waiting"
    return RunView(
        result.pipeline_name,
        result.steps,
        phase,
        result.execution_time,
        note,
        texts,
        items_of(result.steps),
        warnings=result.warnings,
        budget=result.budget_shares(),
    )
