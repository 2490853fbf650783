"""What the calls of a step with ``reduce_over`` are asked: for rows, and for answers to parts of these."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.pipeline.step import PipelineStep
    from tagent_nb.templating import Reference

THE_ROWS = "(the rows)"
"""What a goal has in place of its rows where answers to it are combined."""

COMBINE = """The rows were read in parts, and the task above was done for each part by itself. Below are the \
answers, in the order of the rows. Make one answer to the task out of them, as if it had been done for all \
rows at once: add up what counts rows, join what says the same, and leave out nothing that matters."""
"""What is asked for by a step that does not say how answers to parts of its rows become one."""


class Steps(Protocol):
    """The steps of a pipeline by name."""

    def __contains__(self, name: object) -> bool: ...

    def get_step(self, name: str) -> PipelineStep: ...


def rows_step(step: PipelineStep, *, final: bool = False) -> PipelineStep:
    """The step as it is asked for the answer to a part of its rows, or to all where they fit into one call.

    The rows stand where the goal has ``{{ source }}``, else below it.

    Args:
        step: The step, with ``reduce_over``.
        final: Whether the answer is one of the step, and no part of one: only such ones wait for approval.
    """
    goal = _as_printed(step.goal, reduce_source(step))
    return _asked(step, goal if _reads_rows(step, goal) else _below(step, goal), final)


def answers_step(step: PipelineStep, *, final: bool = False) -> PipelineStep:
    """The step as it is asked to make one answer of answers to parts; arguments as for :func:`rows_step`."""
    if step.combine is not None:
        goal = _as_printed(step.combine, reduce_source(step))
        return _asked(step, goal if _reads_rows(step, goal) else _below(step, goal), final)
    task = _printed(reduce_source(step).step).sub(THE_ROWS, _as_printed(step.goal, reduce_source(step)))
    return _asked(step, _below(step, f"{task}\n\n{COMBINE}"), final)


def measured_goal(step: PipelineStep) -> str:
    """What of the goal of :func:`rows_step` or :func:`answers_step` is as long as its rows make it."""
    printed = _printed(reduce_source(step).step).findall(step.goal)
    return "".join(printed) if _prints_rows_only(step, step.goal) else step.goal


def _prints_rows_only(step: PipelineStep, goal: str) -> bool:
    """Whether a goal prints its rows and does nothing else with them."""
    return not _reads_rows(step, _printed(reduce_source(step).step).sub("", goal))


def reduction_problems(pipeline: Steps, step: PipelineStep) -> list[str]:
    """What is wrong with how a step reduces rows, each with its remedy; its templates can be read."""
    problems = []
    source = reduce_source(step)
    if step.combine is None and not _prints_rows_only(step, _as_printed(step.goal, source)):
        problems.append(
            f"Step {step.name!r}: its goal reads parts of the rows of {step.reduce_over!r}, which answers to "
            "parts of them do not have. Say how these become one answer: combine=... (--combine), where "
            f"{{{{ {source.step} }}}} are the answers. Or let the goal print {{{{ {source.step} }}}} as it "
            "is."
        )
    return problems + _wrong_fields(pipeline, step, source)


def _wrong_fields(pipeline: Steps, step: PipelineStep, source: Reference) -> list[str]:
    """Fields that are read of rows, or by ``combine`` of answers, whose schema is known and has no such."""
    from tagent_nb.templating import group_column, unknown_fields

    above = pipeline.get_step(source.step) if source.step in pipeline else None
    rows = None if above is None or above.map_over is None or source.path else above.output_schema
    column = None if step.group_by is None else group_column(step.group_by, source)
    read: list[tuple[type[BaseModel] | None, str, tuple[str, ...]]] = []
    if isinstance(column, tuple):
        read.append((rows, "group_by", column))
    goals = [(rows, "goal", step.goal)]
    goals += [(step.output_schema, "combine", step.combine)] if step.combine else []
    for schema, field, goal in goals:
        for reference in step.with_(goal=goal, combine=None).references:
            if reference.step == source.step and reference.kind == "goal":
                by_number = bool(reference.path) and reference.path[0].removeprefix("-").isdecimal()
                place = f"{field} {{{{ {reference.text} }}}}"
                read.append((schema, place, reference.path[by_number:]))
    problems = {
        what: unknown_fields(schema, path) for schema, what, path in read if schema is not None and path
    }
    if above is not None and above.map_over is not None and source.path:
        field = source.path[0]
        if not field.removeprefix("-").isdecimal():
            problems["reduce_over"] = (
                f"the value of {source.step!r} is a list of rows, which has no field {field!r}. Write "
                f"reduce_over={source.step!r} (--reduce-over {source.step}), and {{{{ {source.text} }}}} in "
                "the goal reads that field of each row."
            )
    return [f"Step {step.name!r}, {what}: {problem}" for what, problem in problems.items() if problem]


def reduce_source(step: PipelineStep) -> Reference:
    """What a step with ``reduce_over`` reads the rows of."""
    from tagent_nb.templating import Reference

    return Reference.parse(step.reduce_over or "", "reduce")


def _asked(step: PipelineStep, goal: str, final: bool) -> PipelineStep:
    return step.with_(goal=goal, combine=None, group_by=None, approve=step.approve and final)


def _below(step: PipelineStep, goal: str) -> str:
    return f"{goal}\n\n{{{{ {reduce_source(step).step} }}}}"


def _printed(source: str) -> re.Pattern[str]:
    return re.compile(r"\{\{[-+]?\s*" + re.escape(source) + r"\s*[-+]?\}\}")


def _as_printed(goal: str, source: Reference) -> str:
    """The goal, in which rows go by the name of their step alone, also those that are a field of its value.

    A field of the rows that is printed, ``{{ load.text }}``, is the list of what they have there.
    """
    field = re.compile(r"\{\{[-+]?\s*" + re.escape(source.text) + r"\.([^\W\d]\w*)\s*[-+]?\}\}")
    goal = field.sub(rf"{{{{ {source.step} | map(attribute='\1') }}}}", goal)
    return _printed(source.text).sub(f"{{{{ {source.step} }}}}", goal) if source.path else goal


def _reads_rows(step: PipelineStep, goal: str) -> bool:
    source = reduce_source(step).step
    read = step.with_(goal=goal, combine=None).references
    return any(reference.step == source and reference.kind == "goal" for reference in read)
