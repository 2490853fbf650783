"""Agent steps, first form: one conversation with a model that ends in a value."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import StepError
from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.execution.capture import Lines, captured
from tagent_nb.runners.models.clients import Models, model_settings, streams
from tagent_nb.runners.models.errors import explained
from tagent_nb.runners.models.resolve import model_name, supports
from tagent_nb.runners.tools.adapter import toolset
from tagent_nb.runners.tools.registry import named_tools, tools_of
from tagent_nb.runners.tools.remember import remembered_text
from tagent_nb.runners.validators import Checks
from tagent_nb.templating import DATA_RULE, delimit, render

if TYPE_CHECKING:
    from pydantic_ai import Agent
    from pydantic_ai.models import Model


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


class AgentRunner:
    """Asks a model for the value of an agent step.

    The goal with its values filled in is the task; constraints and a rule that data is no
    instruction come before it. With an ``output_schema`` the value is an instance of it: by a tool
    call, native structured output, or JSON in a text, as the model's profile says. An answer that is
    invalid, or that a check refuses, goes back to the model at most ``output_retries`` times. Without a
    schema the value is text, which is written to ``context.write`` while it comes, outside mapped steps.

    Tokens and USD are spent on the context, of failed attempts as well. The client's own retries
    are off: attempts are the engine's affair.
    """

    version = "1"
    replays = True

    def __init__(self, models: Models | None = None) -> None:
        self.models = Models() if models is None else models

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        """Return the model's answer.

        Raises:
            ModelError: The model cannot be used.
            OutputValidationError: No answer matched the schema and passed the checks; the message shows
                the last one.
            RetryableError: The model's side failed in a way that may pass, such as a rate limit.
            StepError: The model's side refused the request, or the step uses what the model cannot do.
            TemplateError: The goal reads something that is not there.
        """
        task = prompt(step, context)
        model = await self.models.get(context.model, offline=context.offline)
        checks = Checks(step, context)
        return await _answer(step, context, model, _agent(step, context, model, checks), task, checks)


def _agent(step: PipelineStep, context: StepContext, model: Model[Any], checks: Checks) -> Agent[Any, Any]:
    from pydantic_ai import Agent

    from tagent_nb.runners.models.gateway import ModelGateway
    from tagent_nb.runners.models.output import output_of

    output, hint = output_of(model, step.output_schema, step.output_mode)
    streamed = streams(step, context, model)
    agent: Agent[Any, Any] = Agent(
        ModelGateway(
            model, context, context.write if streamed else None, structured=step.output_schema is not None
        ),
        output_type=output,
        instructions="\n\n".join([instructions(context), *hint]),
        name=step.name,
        deps_type=StepContext,
        retries={"output": step.output_retries, "tools": max(1, step.output_retries)},
        tools=toolset(_usable_tools(step, context, model), context),
    )
    if step.checks:
        agent.output_validator(checks.validate)
    return agent


def _usable_tools(step: PipelineStep, context: StepContext, model: Model[Any]) -> dict[str, Any]:
    tools = named_tools(step)
    if not tools or supports(model, "supports_tools", True):
        return tools
    if step.tools or step.tools_filter or step.remember:
        raise StepError(
            f"Step {step.name!r} has tools ({', '.join(tools)}), but model {model_name(context.model)!r} "
            "cannot call any. Choose another model for this step, let it plan (agent='plan', --plan), "
            "or leave its tools out."
        )
    context.progress("tools_left_out", tools=list(tools), message="this model cannot call tools")
    return {}


async def _answer(
    step: PipelineStep,
    context: StepContext,
    model: Model[Any],
    agent: Agent[Any, Any],
    task: str,
    checks: Checks,
) -> Any:
    from pydantic_ai import capture_run_messages

    context.metadata["model"] = model_name(context.model)
    with capture_run_messages() as messages, tools_of(context), captured(Lines(context.write)):
        try:
            result = await agent.run(task, deps=context, model_settings=model_settings(step, model))
        except asyncio.CancelledError:
            context.stop.set()
            raise
        except Exception as error:
            better = explained(step, context, error, messages, checks.refused)
            if better is error:
                raise
            raise better from error
    return result.output
