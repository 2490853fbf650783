"""Agent steps, second form: the model makes a plan, the step carries it out and judges what came of it."""

from __future__ import annotations

import asyncio
from typing import Any

from tagent_nb.pipeline.models import PipelineStep
from tagent_nb.steps.base import StepContext
from tagent_nb.steps.capture import Lines, captured
from tagent_nb.steps.clients import Models
from tagent_nb.steps.prompt import prompt
from tagent_nb.steps.providers import model_name
from tagent_nb.steps.tools import tools_of


class PlanRunner:
    """Gets the value of an agent step with ``agent="plan"``.

    The model writes a plan: tasks that tools do, or that it does itself, which may use each other's
    results. The step carries them out in the order of these references, and judges what came of it: by
    failed tasks, the schema and the checks first, else by asking the model. If something is missing, a
    new plan is made, at most ``max_replans`` times, that knows what was done and what failed. A call
    that a tool has answered in an earlier plan is not made again, unless the tool is marked pure.

    The step itself calls the tools, so that models without tool calls can use them. A model that
    writes no usable plan gets the goal as one task, which is reported as progress of kind
    ``"plan_fallback"``. Phases, tasks and judgements are progress of kinds ``"phase"``, ``"task"`` and
    ``"evaluation"``; ``plan``, ``phases``, ``replans`` and ``evaluation`` end in ``result.step_metadata``.
    """

    version = "plan 1"
    replays = True

    def __init__(self, models: Models | None = None) -> None:
        self.models = Models() if models is None else models

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        """Return the answer that the plan led to.

        Raises:
            ModelError: The model cannot be used.
            OutputValidationError: No answer matched the schema and passed the checks; the message shows
                the last one.
            RetryableError: The model's side failed in a way that may pass, such as a rate limit.
            StepError: A task failed in the last plan, a tool ended the step, or a request was refused.
            TemplateError: The goal reads something that is not there.
        """
        goal = prompt(step, context)
        model = await self.models.get(context.model, offline=context.offline)
        from tagent_nb.steps.planning import Planning
        from tagent_nb.steps.toolbox import Toolbox

        roles = {
            role: await self.models.get(one, offline=context.offline) for role, one in step.models.items()
        }
        context.metadata["model"] = model_name(context.model)
        if roles:
            context.metadata["models"] = {role: model_name(one) for role, one in step.models.items()}
        with tools_of(context), captured(Lines(context.write)):
            toolbox = await Toolbox.of(step, context, model)
            try:
                return await Planning(step, context, model, goal, toolbox, roles).value()
            except asyncio.CancelledError:
                context.stop.set()
                raise
