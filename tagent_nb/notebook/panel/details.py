"""All about one step, as HTML: what was asked of it, what it read, what it gave, and what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from tagent_nb.display import AS_IT_IS, FONT, LINE, MONO, MUTED, TONES, escape, state_mark, step_facts
from tagent_nb.engine import source_of, source_rows
from tagent_nb.errors import TagentError
from tagent_nb.events import Output
from tagent_nb.formatting import cost_text, count, seconds_text, tokens_text, value_text
from tagent_nb.pipeline import Pipeline, PipelineStep, StepStatus, rows_step
from tagent_nb.redaction import redact
from tagent_nb.results import ItemResult, StepResult, about_words, error_text
from tagent_nb.templating import render

__all__ = ["details_html"]

MAX_CHARACTERS = 4000
"""Characters of one value, or of a prompt."""
ROWS_SHOWN = 5
"""Rows that a prompt is shown with, of those that its step reduces."""
MAX_ITEMS = 5
"""Items of a mapped step, those that failed first."""


def details_html(
    pipeline: Pipeline,
    name: str,
    steps: Mapping[str, StepResult],
    text: str = "",
    facts: Mapping[str, object] | None = None,
    memories: Mapping[str, object] | None = None,
    inputs: Mapping[str, Output] | None = None,
) -> str:
    """The details of a step, everything escaped; empty for a step that is not defined.

    Args:
        pipeline: The definition as it is now.
        name: The step.
        steps: States by name.
        text: What it printed or streamed.
        facts: Facts of the run, which the goal may read.
        memories: Memories that the goal may read.
        inputs: Values of the run that no step makes, by name.
    """
    if name not in pipeline:
        return ""
    step, state = pipeline.get_step(name), steps.get(name) or StepResult(name)
    read = _read(pipeline, step, steps, inputs or {})
    available = {source: output for source, output in read.items() if source in steps or output is not None}
    lines = [
        f"{source}: {'(nothing yet)' if output is None else value_text(output, 300)}"
        for source, output in read.items()
    ]
    blocks = [
        *_prompt(pipeline, step, steps, available, dict(facts or {}), dict(memories or {})),
        *([("inputs", "\n".join(lines))] if lines else []),
        *_outputs(state),
        *([("printed", text[-MAX_CHARACTERS:])] if text else []),
        *_error(state),
    ]
    body = "".join(_block(label, content) for label, content in blocks)
    about = " · ".join(f"{label} {fact}" for label, fact in step_facts(pipeline, step))
    return (
        f'<div class="{AS_IT_IS}" style="{FONT};color:var(--jp-ui-font-color1,inherit);'
        f'border:1px solid {LINE};border-radius:4px;padding:6px 10px;margin:4px 0">'
        f"<div><b>{escape(name)}</b> {state_mark(state.status)} "
        f'<span style="{MUTED}">{escape(_effort(state))}</span></div>'
        f'<div style="{MUTED};overflow-wrap:anywhere">{escape(about)}</div>{body}</div>'
    )


def _effort(state: StepResult) -> str:
    words = [seconds_text(state.seconds)] if state.seconds else []
    words += [count(state.attempts, "attempt")] if state.attempts else []
    if state.usage.known_tokens != 0:
        words += [f"{tokens_text(state.usage.known_tokens)} tokens", cost_text(state.cost)]
    about = about_words(state, None)
    return " · ".join([*words, *([about] if about else [])])


def _block(label: str, content: str) -> str:
    content = redact(content)
    tone = f"color:{TONES[StepStatus.FAILED]}" if label == "error" else ""
    more = len(content) - MAX_CHARACTERS
    text = content if more <= 0 else f"{content[:MAX_CHARACTERS]}\n… {more:,} characters more"
    return (
        f'<div style="{MUTED};margin-top:4px">{escape(label)}</div>'
        f'<pre style="{MONO};white-space:pre-wrap;overflow-wrap:anywhere;margin:0;max-height:14em;'
        f'overflow:auto;background:none;{tone}">{escape(text)}</pre>'
    )


def _prompt(
    pipeline: Pipeline,
    step: PipelineStep,
    steps: Mapping[str, StepResult],
    read: Mapping[str, Output | None],
    facts: dict[str, object],
    memories: dict[str, object],
) -> Iterator[tuple[str, str]]:
    """The code, or the goal with what it reads filled in."""
    if step.body is not None:
        yield "code", step.body.source or "(its source is not known)"
        return
    try:
        values = {name: None if output is None else output.value for name, output in read.items()}
        whose = ""
        if step.map_over is not None:
            source = source_of(step)
            above = steps.get(source.step) or StepResult(source.step)
            rows = source_rows(step, read.get(source.step), source, above.metadata).rows
            if not rows:
                yield "goal", step.goal
                return
            _, label, values[source.step] = rows[0]
            whose = f" of item {label}"
            extra = {"item": values[source.step]}
        else:
            extra = {}
        goal = step.goal
        if step.reduce_over is not None:
            goal, source = rows_step(step).goal, source_of(step)
            rows = source_rows(step, read.get(source.step), source).rows
            values[source.step] = [row for _, _, row in rows[:ROWS_SHOWN]]
            whose = f" of the first {ROWS_SHOWN} of {len(rows):,} rows" if len(rows) > ROWS_SHOWN else ""
        prompt = render(
            goal,
            values,
            step=step.name,
            shared=pipeline.shared_context,
            facts=facts,
            memories=memories,
            **extra,
        )
    except TagentError:
        # What it reads is not there yet.
        yield "goal", step.goal
        return
    yield f"prompt{whose}", prompt


def _read(
    pipeline: Pipeline, step: PipelineStep, steps: Mapping[str, StepResult], inputs: Mapping[str, Output]
) -> dict[str, Output | None]:
    """What the step reads, by name; ``None`` where nothing is there yet."""
    above = [dependency.name for dependency in pipeline.dependencies(step)]
    outputs = {name: steps[name].output if name in steps else None for name in above}
    return outputs | {name: inputs.get(name) for name in pipeline.inputs_of(step)}


def _outputs(state: StepResult) -> Iterator[tuple[str, str]]:
    if state.output is not None:
        yield "output", _shown(state.output)
    items = list((state.items or {}).values())
    items.sort(key=lambda item: item.status is not StepStatus.FAILED)
    if items:
        lines = [_item(item) for item in items[:MAX_ITEMS]]
        if len(items) > MAX_ITEMS:
            lines.append(f"… {len(items) - MAX_ITEMS:,} more: result.output_frame({state.name!r})")
        yield (
            f"items, {len(items):,} so far" if state.output is None else f"items, {len(items):,}",
            "\n".join(lines),
        )


def _item(item: ItemResult) -> str:
    detail = f"{item.error_type}: {item.error}" if item.error else item.reason or value_text(item.output, 200)
    return f"{item.index}: {item.status.value}{f' · {detail}' if detail else ''}"


def _shown(output: Output) -> str:
    """A value on as many lines as it has."""
    try:
        value = output.value
    except TagentError:
        return value_text(output, MAX_CHARACTERS)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        table: str = value.to_string(max_rows=10, max_cols=8, max_colwidth=60)
        return f"{value_text(output)}\n{table}"
    return value if isinstance(value, str) else value_text(output, MAX_CHARACTERS)


def _error(state: StepResult) -> Iterator[tuple[str, str]]:
    if state.error:
        yield (
            "error",
            error_text(state) if not state.traceback else f"{error_text(state)}\n\n{state.traceback}",
        )
