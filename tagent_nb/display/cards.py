"""Definitions as static HTML, each with a twin in plain text: the card of a step, the table of all steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tagent_nb.display.html import (
    FONT,
    KIND_TONES,
    LINE,
    MONO,
    MUTED,
    TONES,
    Bundle,
    escape,
    state_mark,
    table,
)
from tagent_nb.display.theme import KIND_STYLES, STATUS_STYLES
from tagent_nb.errors import TagentError
from tagent_nb.formatting import count, failures_text, model_label, one_line, seconds_text
from tagent_nb.pipeline import (
    AGENT_KINDS,
    THEN_LIVE,
    ExecutionMode,
    Pipeline,
    PipelineStep,
    StepStatus,
    input_text,
    step_hints,
)
from tagent_nb.serde import is_bare

# -- one step -----------------------------------------------------------------------------


def step_facts(pipeline: Pipeline, step: PipelineStep) -> list[tuple[str, str]]:
    """What a card says about a step: (label, text) pairs, only what is worth saying."""
    facts = [
        ("reads", _reads(pipeline, step)),
        ("inputs", ", ".join(input_text(pipeline, name) for name in pipeline.inputs_of(step))),
        ("each of", f"{step.map_over or ''}{', flattened' if step.flatten else ''}"),
        ("all of", _reduced(step)),
        ("samples", f"{step.samples}, of which the agreed one is its value" if step.samples > 1 else ""),
        ("schema", _schema(step)),
        ("model", _model(pipeline, step)),
        ("settings", _settings(step)),
        ("prompt", step.instructions or ""),
        ("plans", AGENT_KINDS[step.agent].card(step)),
        ("when", _when(step)),
        ("tools", _tools(step)),
        ("checks", ", ".join(getattr(check, "__name__", str(check)) for check in step.checks)),
        ("rules", "; ".join(step.constraints)),
        (
            "sent",
            ("in batches, then live" if step.batch == THEN_LIVE else "in batches") if step.batch else "",
        ),
        ("limits", _limits(step)),
    ]
    return [(label, one_line(text, 160)) for label, text in facts if text]


def _tools(step: PipelineStep) -> str:
    """What its model may call; nothing is said of a step that may call all registered tools."""
    if step.tools_filter is not None:
        # The filter says it all: it holds back the step's own tools as well.
        return ", ".join(step.tools_filter) or "none"
    own = ", ".join(getattr(tool, "__name__", str(tool)) for tool in step.tools)
    return f"{own}, and all registered ones" if own else ""


def _settings(step: PipelineStep) -> str:
    """What its model is asked with; of the headers and the like, which may hold a key, the name only."""
    plain = (bool, int, float, str)
    return ", ".join(
        f"{name}={setting}" if isinstance(setting, plain) else name for name, setting in step.settings.items()
    )


def _reads(pipeline: Pipeline, step: PipelineStep) -> str:
    """The steps it depends on, with the parts that its goal names, and the type where it matters."""
    parts: dict[str, list[str]] = {}
    for reference in step.references:
        if reference.path and reference.text not in parts.setdefault(reference.step, []):
            parts[reference.step].append(reference.text)
    read = []
    for dependency in pipeline.dependencies(step):
        text = ", ".join(parts.get(dependency.name) or [dependency.name])
        kind = dependency.type.value
        notes = [
            *([] if kind == "strong" else [kind]),
            *([] if dependency.name in pipeline else ["not defined yet"]),
        ]
        read.append(text + (f" ({', '.join(notes)})" if notes else ""))
    return ", ".join(read)


def _schema(step: PipelineStep) -> str:
    if step.output_schema is None:
        return ""
    if is_bare(step.output_schema):
        return step.output_schema.__name__
    fields = list(step.output_schema.model_fields)
    mode = "" if step.output_mode is None else f", {step.output_mode}"
    return f"{step.output_schema.__name__} ({', '.join(fields[:6])}{', …' if len(fields) > 6 else ''}){mode}"


def _model(pipeline: Pipeline, step: PipelineStep) -> str:
    if step.is_python:
        return ""
    model = step.model if step.model is not None else pipeline.model
    if model is None:
        return f"none yet: %tagent_pipeline {pipeline.name} --model NAME"
    return model_label(model)


def _when(step: PipelineStep) -> str:
    if step.when is None:
        return ""
    return step.when if isinstance(step.when, str) else step.when.describe()


def _reduced(step: PipelineStep) -> str:
    """The rows of which one answer is made, and how."""
    if step.reduce_over is None:
        return ""
    words = [step.reduce_over] + ([f"by {step.group_by}"] if step.group_by else [])
    words += [f"at most {step.reduce_tokens:,} tokens of it at once"] if step.reduce_tokens else []
    words += [f"combined by: {step.combine}"] if step.combine else []
    return ", ".join(words)


def _limits(step: PipelineStep) -> str:
    words = []
    if step.timeout is not None:
        words.append(f"{step.timeout:g} s each attempt")
    if step.max_retries != 3 or step.retry_on:
        words.append({0: "no retry", 1: "1 retry"}.get(step.max_retries, f"{step.max_retries} retries"))
    if step.retry_on:
        kinds = (kind if isinstance(kind, str) else kind.__name__ for kind in step.retry_on)
        words.append(f"also after {', '.join(kinds)}")
    if step.rows_per_call > 1:
        words.append(f"{step.rows_per_call} rows in one call")
    if step.min_success < 1:
        what = "items" if step.reduce_over is None else "parts"
        words.append(f"{step.min_success:.0%} of {what} must succeed")
    if step.max_failures is not None:
        words.append(f"stops early beyond {failures_text(step.max_failures)}")
    if step.execution_mode is ExecutionMode.CONCURRENT:
        words.append("concurrent")
    if step.approve:
        words.append("waits for approval")
    if step.approve_tools:
        words.append(f"asks before it calls {', '.join(step.approve_tools)}")
    if step.final:
        words.append("final output")
    if step.remember:
        words.append("may remember")
    if step.budget is not None:
        words.append(f"at most {step.budget}")
    if step.fresh_for is not None:
        words.append(f"asked again after {seconds_text(step.fresh_for)}")
    if not step.cache:
        words.append("never cached")
    return ", ".join(words)


def step_card(pipeline: Pipeline, step: PipelineStep, changed: Sequence[str] | None = None) -> Bundle:
    """A compact card of one step, shown below the cell that defines it.

    Args:
        pipeline: Where the step is.
        step: The step.
        changed: What is different from its earlier definition; ``None`` if this is the first.
    """
    kind = "python" if step.is_python else "agent"
    facts = step_facts(pipeline, step)
    rows = "".join(
        f'<div style="display:flex;gap:8px"><span style="flex:0 0 54px;{MUTED}">{escape(label)}</span>'
        f'<span style="min-width:0;overflow-wrap:anywhere">{escape(text)}</span></div>'
        for label, text in facts
    )
    hints = step_hints(pipeline, step)
    warned = "".join(
        f'<div style="color:{TONES[StepStatus.WAITING]};overflow-wrap:anywhere">hint: {escape(hint)}</div>'
        for hint in hints
    )
    goal = "" if step.is_python and step.goal.startswith("Python step ") else one_line(step.goal, 120)
    card = (
        f'<div style="{FONT};color:var(--jp-ui-font-color1,inherit);max-width:720px;padding:5px 12px 6px;'
        f"border:1px solid {LINE};border-left:4px solid {KIND_TONES[kind]};border-radius:4px;"
        f'margin:2px 0">'
        f'<div><span style="color:{KIND_TONES[kind]}" aria-hidden="true">{KIND_STYLES[kind].mark}</span> '
        f'<b>{escape(step.name)}</b> <span style="{MUTED}">{kind} step</span></div>'
        f'<div style="{MUTED};overflow-wrap:anywhere">{escape(goal)}</div>{rows}{warned}'
        f"{_changed(changed)}</div>"
    )
    about = "; ".join(f"{label} {text}" for label, text in facts)
    lines = [] if changed is None else ["changed:", *changed] if changed else ["unchanged"]
    head = f"{step.name}: {kind} step" + (f"; {about}" if about else "")
    return Bundle(card, "\n".join([head, *(f"hint: {hint}" for hint in hints), *lines]))


def _changed(changed: Sequence[str] | None) -> str:
    """The lines of a diff, coloured; their first letter says the same without colours."""
    if changed is None:
        return ""
    if not changed:
        return f'<div style="{MUTED}">unchanged</div>'
    tones = {"+ ": TONES[StepStatus.COMPLETED], "- ": TONES[StepStatus.FAILED]}
    lines = "".join(
        f'<div style="{f"color:{tones[line[:2]]}" if line[:2] in tones else MUTED}">{escape(line)}</div>'
        for line in changed
    )
    return (
        f'<div style="margin-top:3px;{MUTED}">changed</div>'
        f'<div style="{MONO};white-space:pre-wrap;overflow-wrap:anywhere">{lines}</div>'
    )


# -- all steps --------------------------------------------------------------------------


def definition_table(
    pipeline: Pipeline,
    states: Mapping[str, StepStatus] | None = None,
    gone: Mapping[str, str] | None = None,
    run: str = "",
) -> Bundle:
    """All steps of a pipeline as a table: what they are and, after a run, where they stand.

    Args:
        pipeline: The pipeline.
        states: Of its last run, by step.
        gone: Steps whose cell is gone, and how.
        run: How that run stands, in words.
    """
    rows, lines = [], []
    for step in pipeline.steps:
        kind = "python" if step.is_python else "agent"
        try:
            facts = "; ".join(f"{label} {text}" for label, text in step_facts(pipeline, step))
        except TagentError as error:
            facts = str(error)
        warning = ""
        if gone and step.name in gone:
            warning = f"⚠ {gone[step.name]}; %tagent_pipeline --remove {step.name} takes the step out"
        status = StepStatus.PENDING if states is None else states.get(step.name, StepStatus.PENDING)
        rows.append(
            [
                f"<b>{escape(step.name)}</b>",
                f'<span style="color:{KIND_TONES[kind]}">{KIND_STYLES[kind].mark} {kind}</span>',
                escape(facts)
                + (
                    f'<div style="color:{TONES[StepStatus.WAITING]}">{escape(warning)}</div>'
                    if warning
                    else ""
                ),
                state_mark(status),
            ]
        )
        style = STATUS_STYLES[status]
        lines.append(
            f"{style.mark} {step.name}: {kind}; {facts or 'reads nothing'}; {style.word}"
            + (f"; {warning}" if warning else "")
        )
    title = f"{pipeline.name}: {count(len(pipeline.steps), 'step')}" + (f"; last run: {run}" if run else "")
    head = (
        f'<div style="{FONT}"><b>{escape(title)}</b> '
        f'<span style="{MUTED}">{escape(pipeline.description)}</span></div>'
    )
    body = table(["step", "kind", "", "state"], rows, wide=2) if rows else ""
    return Bundle(head + body, "\n".join([title, *lines]))
