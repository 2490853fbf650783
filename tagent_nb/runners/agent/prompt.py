"""What an agent step says to its model."""

from __future__ import annotations

from typing import Any

from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.tools.remember import remembered_text
from tagent_nb.templating import DATA_RULE, delimit, render

ROLE = "You carry out one step of a pipeline. Do what the task says and give the result only."


def instructions(context: StepContext) -> str:
    """The system instruction: the user's own or else the role, the rule about data, and the constraints."""
    parts = [ROLE if context.instructions is None else context.instructions, DATA_RULE]
    if context.constraints:
        parts.append("\n".join(["Constraints:", *(f"- {constraint}" for constraint in context.constraints)]))
    return str(whole_text("\n\n".join(parts)))


def prompt(step: PipelineStep, context: StepContext) -> str:
    """The task: what is known, each as delimited data, then the goal with its values filled in.

    Raises:
        TemplateError: The goal reads something that is not there.
    """
    parts = [f"Shared by all steps: {delimit(dict(context.shared))}"] if context.shared else []
    remembered = {"Facts learned so far": context.facts, "Memories of earlier runs": context.memories}
    parts += [remembered_text(title, values) for title, values in remembered.items() if values]
    parts += [
        f"An earlier answer was refused: {delimit(refusal.value)}\nWhat the user said of it: {refusal.reason}"
        for refusal in context.refusals
    ]
    item: dict[str, Any] = {}
    source = (step.map_over or "").partition(".")[0]
    if source in context.inputs:
        item["item"] = context.inputs[source]
    goal = render(
        step.goal,
        context.inputs,
        step=step.name,
        shared=context.shared,
        facts=context.facts,
        memories=context.memories,
        **item,
    )
    return str(whole_text("\n\n".join([*parts, goal])))
