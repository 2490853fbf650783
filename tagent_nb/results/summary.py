"""A result in words: for terminals, logs and messages."""

from __future__ import annotations

from tagent_nb.display import STATUS_STYLES
from tagent_nb.formatting import cost_text, seconds_text, terminal_text, tokens_text, total_tokens_text
from tagent_nb.results.records import RunRecord, StepResult, error_line, outcome, steps_of

MOST_STEPS = 200
"""Most steps that a summary lists."""


def summary(result: RunRecord) -> str:
    """See :meth:`PipelineResult.summary`."""
    steps = list(steps_of(result).values())
    rows = [_row(step) for step in steps[:MOST_STEPS]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_head(result)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width]
        lines.append("  " + "  ".join(cells).rstrip())
    if len(steps) > MOST_STEPS:
        lines.append(f"  and {len(steps) - MOST_STEPS:,} more steps: see to_frame()")
    lines += [f"Warning: {warning}" for warning in result.warnings]
    return terminal_text("\n".join(lines))


def _head(result: RunRecord) -> str:
    _, word = outcome(result)
    tokens = total_tokens_text(result.token_usage.values()) or "0"
    facts = [seconds_text(result.execution_time), f"{tokens} tokens", costs(result)]
    facts += [f"run {result.run_id}"] if result.run_id else []
    return f"{result.pipeline_name}: {word}, {', '.join(facts)}"


def costs(result: RunRecord) -> str:
    """What a run cost, in words; steps of unknown price are counted."""
    unknown = len(result.unpriced_steps)
    parts = [cost_text(result.total_cost)] if result.total_cost or not unknown else []
    if unknown:
        parts.append(f"{unknown} step{'' if unknown == 1 else 's'} of unknown price")
    return " + ".join(parts)


def _row(step: StepResult) -> tuple[str, ...]:
    return (
        step.name,
        STATUS_STYLES[step.status].word,
        seconds_text(step.seconds) if step.seconds else "",
        f"{tokens_text(step.usage.known_tokens)} tokens" if step.usage else "",
        cost_text(step.cost) if step.usage or step.cost != 0.0 else "",
        error_line(step),
    )
