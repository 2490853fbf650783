"""What the calls of a step with ``reduce_over`` are asked: for rows, and for answers to parts of these."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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
    return problems + _wrong_group(pipeline, step, source)


def _wrong_group(pipeline: Steps, step: PipelineStep, source: Reference) -> list[str]:
    from tagent_nb.templating import Reference, group_column, unknown_fields

    if step.group_by is None or source.step not in pipeline:
        return []
    column = group_column(step.group_by, source)
    above = pipeline.get_step(source.step)
    if isinstance(column, Reference) or above.output_schema is None or above.map_over is None or source.path:
        return []
    problem = unknown_fields(above.output_schema, column)
    return [f"Step {step.name!r}, group_by: {problem}"] if problem else []


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
    """The goal, in which rows that are a field of their step's value are called by its name alone."""
    if not source.path:
        return goal
    return _printed(source.text).sub(f"{{{{ {source.step} }}}}", goal)


def _reads_rows(step: PipelineStep, goal: str) -> bool:
    source = reduce_source(step).step
    read = step.with_(goal=goal, combine=None).references
    return any(reference.step == source and reference.kind == "goal" for reference in read)
