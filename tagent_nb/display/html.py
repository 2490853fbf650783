"""HTML of the notebook's static views: step cards, tables of steps and of runs.

Everything shown is escaped. Styles are inline, since a saved notebook loses style sheets, and take
the theme's colours from Jupyter's CSS variables, each with a fallback that reads in both themes.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagent_nb.display.theme import KIND_LOOKS, LOOKS
from tagent_nb.errors import TagentError
from tagent_nb.formatting import model_label
from tagent_nb.pipeline import ExecutionMode, Pipeline, PipelineStep, StepStatus, input_text, step_hints
from tagent_nb.serde import is_bare

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


def clip(text: str, limit: int) -> str:
    """The text on one line, cut to ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


@dataclass(frozen=True, repr=False)
class Bundle:
    """HTML with a plain text twin, for ``display()``."""

    html: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        html = f'<div class="{AS_IT_IS}">{self.html}</div>' if self.html else ""
        return {"text/html": html, "text/plain": self.text}


# -- one step -----------------------------------------------------------------------------


def step_facts(pipeline: Pipeline, step: PipelineStep) -> list[tuple[str, str]]:
    """What a card says about a step: (label, text) pairs, only what is worth saying."""
    facts = [
        ("reads", _reads(pipeline, step)),
        ("inputs", ", ".join(input_text(pipeline, name) for name in pipeline.inputs_of(step))),
        ("each of", step.map_over or ""),
        ("schema", _schema(step)),
        ("model", _model(pipeline, step)),
        ("settings", _settings(step)),
        ("told", step.instructions or ""),
        ("plans", _plans(step)),
        ("when", _when(step)),
        ("tools", _tools(step)),
        ("checks", ", ".join(getattr(one, "__name__", str(one)) for one in step.checks)),
        ("rules", "; ".join(step.constraints)),
        ("limits", _limits(step)),
    ]
    return [(label, clip(text, 160)) for label, text in facts if text]


def _tools(step: PipelineStep) -> str:
    """What its model may call; nothing is said of a step that may call all registered tools."""
    if step.tools_filter is not None:
        # The filter says it all: it holds back the step's own tools as well.
        return ", ".join(step.tools_filter) or "none"
    own = ", ".join(getattr(one, "__name__", str(one)) for one in step.tools)
    return f"{own}, and all registered ones" if own else ""


def _settings(step: PipelineStep) -> str:
    """What its model is asked with; of the headers and the like, which may hold a key, the name only."""
    plain = (bool, int, float, str)
    return ", ".join(
        f"{name}={one}" if isinstance(one, plain) else name for name, one in step.settings.items()
    )


def _reads(pipeline: Pipeline, step: PipelineStep) -> str:
    """The steps it depends on, with the parts that its goal names, and the type where it matters."""
    parts: dict[str, list[str]] = {}
    for reference in step.references:
        if reference.path and reference.text not in parts.setdefault(reference.step, []):
            parts[reference.step].append(reference.text)
    told = []
    for dependency in pipeline.dependencies(step):
        text = ", ".join(parts.get(dependency.name) or [dependency.name])
        kind = dependency.type.value
        notes = [
            *([] if kind == "strong" else [kind]),
            *([] if dependency.name in pipeline else ["not defined yet"]),
        ]
        told.append(text + (f" ({', '.join(notes)})" if notes else ""))
    return ", ".join(told)


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


def _plans(step: PipelineStep) -> str:
    if step.agent != "plan":
        return ""
    return "its tasks" + (f", at most {step.max_replans} times anew" if step.max_replans else ", once")


def _when(step: PipelineStep) -> str:
    if step.when is None:
        return ""
    return step.when if isinstance(step.when, str) else step.when.describe()


def _limits(step: PipelineStep) -> str:
    words = []
    if step.timeout is not None:
        words.append(f"{step.timeout:g} s each attempt")
    if step.max_retries != 3:
        words.append("no retry" if step.max_retries == 0 else f"{step.max_retries} retries")
    if step.min_success < 1:
        words.append(f"{step.min_success:.0%} of items must succeed")
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
    goal = "" if step.is_python and step.goal.startswith("Python step ") else clip(step.goal, 120)
    card = (
        f'<div style="{FONT};color:var(--jp-ui-font-color1,inherit);max-width:720px;padding:5px 12px 6px;'
        f"border:1px solid {LINE};border-left:4px solid {KIND_TONES[kind]};border-radius:4px;"
        f'margin:2px 0">'
        f'<div><span style="color:{KIND_TONES[kind]}" aria-hidden="true">{KIND_LOOKS[kind].mark}</span> '
        f'<b>{escape(step.name)}</b> <span style="{MUTED}">{kind} step</span></div>'
        f'<div style="{MUTED};overflow-wrap:anywhere">{escape(goal)}</div>{rows}{warned}'
        f"{_changed(changed)}</div>"
    )
    told = "; ".join(f"{label} {text}" for label, text in facts)
    lines = [] if changed is None else ["changed:", *changed] if changed else ["unchanged"]
    head = f"{step.name}: {kind} step" + (f"; {told}" if told else "")
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


# -- many steps ---------------------------------------------------------------------------


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = (), wide: int | None = None
) -> str:
    """An HTML table.

    Args:
        head: Titles of the columns, as text.
        rows: Cells, as HTML.
        right: Columns of numbers.
        wide: The column that takes the room that is left; words of it may be broken anywhere.
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


def state_mark(status: StepStatus) -> str:
    """The mark and the word of a state, coloured."""
    look = LOOKS[status]
    return (
        f'<span style="color:{TONES[status]};white-space:nowrap">'
        f'<span aria-hidden="true">{look.mark}</span> {look.word}</span>'
    )


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
                f'<span style="color:{KIND_TONES[kind]}">{KIND_LOOKS[kind].mark} {kind}</span>',
                escape(facts)
                + (
                    f'<div style="color:{TONES[StepStatus.WAITING]}">{escape(warning)}</div>'
                    if warning
                    else ""
                ),
                state_mark(status),
            ]
        )
        lines.append(
            f"{LOOKS[status].mark} {step.name}: {kind}; {facts or 'reads nothing'}; {LOOKS[status].word}"
            + (f"; {warning}" if warning else "")
        )
    title = f"{pipeline.name}: {count(len(pipeline.steps), 'step')}" + (f"; last run: {run}" if run else "")
    head = (
        f'<div style="{FONT}"><b>{escape(title)}</b> '
        f'<span style="{MUTED}">{escape(pipeline.description)}</span></div>'
    )
    body = table(["step", "kind", "", "state"], rows, wide=2) if rows else ""
    return Bundle(head + body, "\n".join([title, *lines]))


def count(number: int, word: str) -> str:
    """``"1 step"``, ``"2 steps"``."""
    return f"{number} {word}{'' if number == 1 else 's'}"
