"""Runs as HTML, and as plain text for terminals: a result, and a run at one moment.

What a notebook shows of a result, and keeps when it is saved, is :func:`result_html`; the live panel and its
static twin show a :class:`RunView`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tagent_nb.display import (
    AS_IT_IS,
    FONT,
    LINE,
    MONO,
    MUTED,
    STATUS_STYLES,
    TONES,
    escape,
    state_mark,
    table,
)
from tagent_nb.formatting import (
    cost_text,
    count,
    one_line,
    seconds_text,
    tokens_text,
    total_tokens_text,
    value_text,
)
from tagent_nb.pipeline import Share, StepStatus
from tagent_nb.results.progress import BAR, FailureKind, MapProgress, map_progress
from tagent_nb.results.records import RunRecord, StepResult, error_line, outcome, skipped_items, steps_of
from tagent_nb.results.summary import costs

MAX_STEPS = 200
"""Most steps in the table of a result; a longer one says how many it leaves out."""

INK = "color:var(--jp-ui-font-color1,inherit)"
_PHASES = {
    "not run yet": StepStatus.PENDING,
    "running": StepStatus.RUNNING,
    "paused": StepStatus.WAITING,
    "completed": StepStatus.COMPLETED,
    "failed": StepStatus.FAILED,
    "cancelled": StepStatus.CANCELLED,
    "timed out": StepStatus.FAILED,
    "waiting": StepStatus.WAITING,
}
_TITLES = ("step", "state", "value", "time", "tokens", "cost")


# -- a result ----------------------------------------------------------------------------------


def result_html(result: RunRecord) -> str:
    """A line with status, seconds, cost and tokens, and a table with one row a step."""
    steps = list(steps_of(result).values())
    rows = [_row(step) for step in steps[:MAX_STEPS]]
    body = table(_TITLES, rows, right=(3, 4, 5), wide=2) if rows else ""
    left = len(steps) - MAX_STEPS
    more = f'<div style="{MUTED}">and {left:,} more steps: see to_frame()</div>' if left > 0 else ""
    warnings = "".join(
        f'<div style="margin-top:2px"><span aria-hidden="true">⚠</span> {escape(warning)}</div>'
        for warning in result.warnings
    )
    return (
        f'<div class="{AS_IT_IS}" style="{FONT};{INK};max-width:100%">'
        f'<div style="margin:2px 0 4px">{_facts(result, steps)}</div>'
        f"{body}{more}{_final(result)}{warnings}</div>"
    )


def _final(result: RunRecord) -> str:
    """A line with the final output, where the pipeline has one."""
    if not result.final_step:
        return ""
    step = result.steps.get(result.final_step)
    text = value_text(None if step is None else step.output) or "none: its step has no value"
    return (
        f'<div style="margin-top:4px"><span style="{MUTED}">Final output ({escape(result.final_step)}):'
        f"</span> {escape(text)}</div>"
    )


def _facts(result: RunRecord, steps: list[StepResult]) -> str:
    status, word = outcome(result)
    tokens = total_tokens_text(result.token_usage.values()) or "0"
    facts = [seconds_text(result.execution_time), costs(result), f"{tokens} tokens"]
    saved = sum(step.saved_cost or 0.0 for step in steps)
    if saved:
        facts.append(f"{cost_text(saved)} saved by the cache")
    facts += [f"budget: {share}" for share in result.budget_shares()]
    return (
        f"{state_mark(status, word)} <b>{escape(result.pipeline_name)}</b> "
        f'<span style="{MUTED}">{escape(" · ".join(facts))}</span>'
    )


def _row(step: StepResult) -> list[str]:
    return [
        f"<b>{escape(step.name)}</b>",
        state_mark(step.status) + _items(step),
        _value(step),
        escape(seconds_text(step.seconds)) if step.seconds else "",
        escape(tokens_text(step.usage.known_tokens)) if step.usage else "",
        escape(cost_text(step.cost)) if step.usage or step.cost != 0.0 else "",
    ]


def _items(step: StepResult) -> str:
    if step.items is None:
        return ""
    total = step.items_total if step.items_total is not None else len(step.items)
    done = sum(item.status.has_value for item in step.items.values())
    skipped = skipped_items(step)
    more = f", {skipped:,} skipped" if skipped else ""
    return f' <span style="{MUTED}">{done:,} of {total:,} items{more}</span>'


def _value(step: StepResult) -> str:
    if step.status is StepStatus.FAILED:
        return escape(error_line(step))
    if step.output is None:
        return f'<span style="{MUTED}">{escape(error_line(step))}</span>'
    return escape(value_text(step.output, 160))


# -- a run at one moment -----------------------------------------------------------------------


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
        items: How far mapped steps are.
        left: Seconds that the run is expected to take from now on; ``None`` when that is unknown.
        warnings: What the user should know.
        budget: How far each measure of the run's budget is used up.
    """

    title: str
    steps: Mapping[str, StepResult]
    phase: str
    seconds: float
    note: str = ""
    texts: Mapping[str, str] | None = None
    items: Mapping[str, MapProgress] | None = None
    left: float | None = None
    warnings: Sequence[str] = ()
    budget: Sequence[Share] = ()


def run_html(view: RunView) -> str:
    """A run as HTML: one line with progress, seconds, tokens and USD, then one line for each step.

    Tracebacks and what steps printed are there, folded.
    """
    rows = [_run_row(view, step) for step in view.steps.values()]
    head = ["step", "state", "", "time", "tokens", "cost"]
    if not any(row[4] or row[5] for row in rows):
        # Python steps alone use no tokens: two empty columns would only take space.
        head, rows = head[:4], [row[:4] for row in rows]
    body = table(head, rows, right=(3, 4, 5), wide=2) if rows else ""
    return f'<div class="{AS_IT_IS}" style="{FONT};{INK}">{_head(view)}{body}{_warnings(view)}</div>'


def head_html(view: RunView) -> str:
    """The first line of :func:`run_html` with its bar and note, and the warnings; the rows are elsewhere."""
    return f'<div class="{AS_IT_IS}" style="{FONT};{INK}">{_head(view)}{_warnings(view)}</div>'


def _warnings(view: RunView) -> str:
    return "".join(
        f'<div style="{FONT};color:{TONES[StepStatus.WAITING]};overflow-wrap:anywhere">⚠ {escape(text)}</div>'
        for text in view.warnings
    )


def done_words(steps: Collection[StepResult]) -> str:
    """How many steps have a value, and how many ended without: ``"2 of 4 steps, 1 failed, 1 skipped"``."""
    done = sum(step.status.has_value for step in steps)
    words = [f"{done} of {count(len(steps), 'step')}"]
    for status in (StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.SKIPPED):
        number = sum(step.status is status for step in steps)
        words += [f"{number} {STATUS_STYLES[status].word}"] if number else []
    return ", ".join(words)


def _totals(view: RunView) -> tuple[str, str, str]:
    steps = view.steps.values()
    tokens = total_tokens_text(step.usage for step in steps)
    spent = sum(step.cost for step in steps if step.cost is not None)
    saved = sum(step.saved_cost or 0.0 for step in steps)
    unknown = sum(1 for step in steps if step.cost is None)
    cost = cost_text(spent) if spent or not unknown else ""
    words = [cost] if cost else []
    if unknown:
        words.append(f"{count(unknown, 'step')} without a known price")
    if saved:
        words.append(f"{cost_text(saved)} saved by the cache")
    return done_words(steps), tokens, " · ".join(words)


def _head(view: RunView) -> str:
    done, tokens, cost = _totals(view)
    facts = [done, seconds_text(view.seconds) if view.seconds else ""]
    facts += [f"{tokens} tokens", cost] if tokens else []
    facts += [] if view.left is None else [f"about {seconds_text(view.left)} left"]
    status = _PHASES.get(view.phase, StepStatus.FAILED)
    share = _share(view)
    bar = (
        f'<div role="progressbar" aria-valuenow="{share:g}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="progress" style="height:4px;border-radius:2px;background:{LINE};margin:4px 0">'
        f'<div style="height:4px;border-radius:2px;width:{share:g}%;background:{TONES[status]}"></div></div>'
    )
    note = f'<div style="{MUTED};overflow-wrap:anywhere">{escape(view.note)}</div>' if view.note else ""
    note += "".join(budget_bar(share) for share in view.budget)
    return (
        f'<div><b>{escape(view.title)}</b> <span style="color:{TONES[status]}">'
        f'<span aria-hidden="true">{STATUS_STYLES[status].mark}</span> {escape(view.phase)}</span> '
        f'<span style="{MUTED}">{escape(" · ".join(fact for fact in facts if fact))}</span></div>{bar}{note}'
    )


def _share(view: RunView) -> float:
    """Percent of the steps behind which the run is. One that is skipped is; one that failed runs again.

    Of a mapped step that is at work, it is the share of its items that have ended.
    """
    steps, behind = view.steps.values(), 0.0
    for step in steps:
        progress = (view.items or {}).get(step.name)
        if step.status.has_value or step.status is StepStatus.SKIPPED:
            behind += 1
        elif progress is not None and progress.total and not step.status.is_final:
            behind += progress.done / progress.total
    return round(100 * behind / max(1, len(steps)), 1)


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


def _run_row(view: RunView, step: StepResult) -> list[str]:
    spent = step.usage.known_tokens != 0
    return [
        f"<b>{escape(one_line(step.name, 40))}</b>",
        state_mark(step.status),
        _about(view, step),
        seconds_text(step.seconds) if step.seconds else "",
        tokens_text(step.usage.known_tokens) if spent else "",
        cost_text(step.cost) if spent or step.cost is None else "",
    ]


def _about(view: RunView, step: StepResult) -> str:
    """Items, attempts, why it ran or not, the error, and the end of its text."""
    progress = (view.items or {}).get(step.name)
    words = about_words(step, progress)
    about = f'<span style="{MUTED}">{escape(words)}</span>' if words else ""
    if progress is not None and progress.total:
        about = items_bar(progress) + about + "".join(map(_failures, progress.failures))
    if step.error or step.error_type:
        about += f'<div style="color:{TONES[StepStatus.FAILED]}">{escape(error_text(step))}</div>'
    if step.traceback and step.status is StepStatus.FAILED:
        about += _folded("traceback", step.traceback)
    text = (view.texts or {}).get(step.name, "")
    if text:
        about += _folded("text", text)
    return about


def _failures(kind: FailureKind) -> str:
    """How often a kind of failure came; its last items are one click away."""
    tone = f"cursor:pointer;color:{TONES[StepStatus.FAILED]}"
    head = f'<summary style="{tone}">{escape(kind.label)}</summary>'
    return f"<details>{head}{_printed(kind.text)}</details>"


def items_bar(progress: MapProgress) -> str:
    """Items of a mapped step by how they ended, as pieces of a bar."""
    pieces = "".join(
        f'<div style="width:{100 * number / progress.total:.2f}%;background:{TONES[status]}"></div>'
        for status, number in zip(BAR, progress.ended, strict=True)
        if number
    )
    return (
        f'<div role="progressbar" aria-valuenow="{progress.done}" aria-valuemin="0" '
        f'aria-valuemax="{progress.total}" aria-label="items" style="display:flex;height:5px;max-width:420px;'
        f'border-radius:3px;overflow:hidden;background:{LINE};margin:5px 0 3px">{pieces}</div>'
    )


def about_words(step: StepResult, progress: MapProgress | None) -> str:
    """How far it is, attempts, what it waits for, why it ran, what the cache saved."""
    words = progress.words(step.status) if progress is not None and progress.total else []
    if step.attempts > 1 and step.items is None:
        words.append(f"attempt {step.attempts}")
    if step.status is StepStatus.WAITING and step.waits_for:
        words.append(f"waits for {one_line(step.waits_for, 120)}")
    if step.reason:
        words.append(one_line(step.reason, 200))
    if step.saved_cost and step.status is StepStatus.CACHED:
        words.append(f"saved {cost_text(step.saved_cost)}")
    return " · ".join(words)


def error_text(step: StepResult) -> str:
    """Type and message of a step's error, on one line."""
    message = one_line(step.error, 400)
    return ": ".join(part for part in (step.error_type, message) if part)


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
    facts = [done, seconds_text(view.seconds)]
    facts += [f"{tokens} tokens", cost] if tokens else []
    lines = [f"{view.title}: {view.phase} ({', '.join(fact for fact in facts if fact)})"]
    for step in view.steps.values():
        words = [STATUS_STYLES[step.status].word, *([seconds_text(step.seconds)] if step.seconds else [])]
        progress = (view.items or {}).get(step.name) or MapProgress(0)
        skipped = progress.ended[-1]
        if progress.failed and not step.error:
            words.append(f"{progress.failed:,} of {progress.total:,} items failed ({progress.kinds})")
        words += [f"{skipped:,} of {progress.total:,} items skipped"] if skipped else []
        failed = step.error or step.error_type
        words += [error_text(step)] if failed else [one_line(step.reason, 200)] if step.reason else []
        lines.append(f"  {STATUS_STYLES[step.status].mark} {step.name}: {', '.join(words)}")
    lines += [f"budget: {share}" for share in view.budget]
    return "\n".join([*lines, *([view.note] if view.note else []), *view.warnings])


def phase_of(result: RunRecord) -> str:
    """How a run has ended, in a word: see :class:`RunView`."""
    failed = any(step.status is StepStatus.FAILED for step in result.steps.values())
    if result.cancelled:
        return "cancelled"
    if result.timed_out:
        return "timed out"
    if not failed and not result.success and result.waiting_steps:
        return "waiting"
    return "failed" if failed or not result.success else "completed"


def result_view(result: RunRecord, note: str = "", texts: Mapping[str, str] | None = None) -> RunView:
    """The view of a run that has ended."""
    return RunView(
        result.pipeline_name,
        result.steps,
        phase_of(result),
        result.execution_time,
        note,
        texts,
        map_progress(result.steps),
        warnings=result.warnings,
        budget=result.budget_shares(),
    )
