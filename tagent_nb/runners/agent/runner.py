"""Agent steps, first form: one conversation with a model that ends in a value."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tagent_nb.errors import StepError
from tagent_nb.events import ASKED_ALONE
from tagent_nb.formatting import whole_text
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.runners.base import SharedRows, StepContext
from tagent_nb.runners.execution.capture import Lines, captured
from tagent_nb.runners.models.clients import Models, model_settings, streams
from tagent_nb.runners.models.errors import explained
from tagent_nb.runners.models.resolve import model_name, supports, too_long
from tagent_nb.runners.row_groups import Seat
from tagent_nb.runners.tools.adapter import toolset
from tagent_nb.runners.tools.registry import named_tools, tools_of
from tagent_nb.runners.tools.remember import remembered_text
from tagent_nb.runners.validators import Checks
from tagent_nb.templating import DATA_RULE, delimit, render_pieces

if TYPE_CHECKING:
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model

    from tagent_nb.runners.agent.request import RequestTemplate
    from tagent_nb.runners.agent.shared_call import SharedCalls
    from tagent_nb.runners.models.gateway import ModelGateway


SHOWN = 500
"""Characters at most of why a row is asked for by itself."""

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
    return str(whole_text("".join(prompt_pieces(step, context))))


def prompt_pieces(step: PipelineStep, context: StepContext) -> list[str]:
    """The task in pieces: what is known is one, each value that the goal prints, and the text between two.

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
    pieces = render_pieces(
        step.goal,
        context.inputs,
        step=step.name,
        shared=context.shared,
        facts=context.facts,
        memories=context.memories,
        **item,
    )
    return ["".join(f"{part}\n\n" for part in parts), *pieces]


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
    shares_calls = True

    def __init__(self, models: Models | None = None) -> None:
        self.models = Models() if models is None else models
        self._shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]] = WeakKeyDictionary()

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        """Return the model's answer.

        Raises:
            ModelError: The model cannot be used.
            OutputValidationError: No answer matched the schema and passed the checks; the message shows
                the last one.
            RetryableError: The model's side failed in a way that may pass, such as a rate limit.
            StepError: The model's side refused the request, the step uses what the model cannot do, or its
                prompt is longer than what the model reads.
            TemplateError: The goal reads something that is not there.
        """
        pieces = prompt_pieces(step, context)
        task = str(whole_text("".join(pieces)))
        problem = too_long(context.model, task)
        if problem:
            raise StepError(f"Step {step.name!r}: {problem}.")
        model = await self.models.get(context.model, offline=context.offline)
        tools = _usable_tools(step, context, model)
        shared = self._shared_by_units(step, context, model)
        unit = _Unit(step, context, model, shared, task, tools)
        context.metadata["model"] = model_name(context.model)
        with tools_of(context), captured(Lines(context.write)):
            try:
                if context.rows is not None:
                    return await unit.by_rows(context.rows, [str(whole_text(piece)) for piece in pieces])
                return await unit.by_itself()
            except asyncio.CancelledError:
                context.stop.set()
                raise
            except Exception as error:
                better = explained(step, context, error, unit.messages, unit.checks.refused)
                if better is error:
                    raise
                raise better from error

    def _shared_by_units(self, step: PipelineStep, context: StepContext, model: Model[Any]) -> _Shared:
        """What is the same for all units of a step in one run, worked out for the first of them."""
        of_loop = self._shared.setdefault(asyncio.get_running_loop(), {})
        shared, system = of_loop.get(step.name), instructions(context)
        if shared is None or not shared.serves(step, context, model, system):
            shared = of_loop[step.name] = _Shared(step, context, model, system)
        return shared


class _Shared:
    """What the units of a step share in one run.

    Attributes:
        settings: Those of the step.
        model: What units ask, as :func:`~tagent_nb.runners.models.openai_protocol.tolerant` makes it.
    """

    def __init__(self, step: PipelineStep, context: StepContext, model: Model[Any], system: str) -> None:
        from tagent_nb.runners.models.openai_protocol import tolerant
        from tagent_nb.runners.models.output import output_of

        self._of = (step, context.run_id, context.quirks, model, system)
        self._template: asyncio.Future[RequestTemplate | None] | None = None
        self._agent: Agent[Any, Any] | None = None
        self._tools: Mapping[str, Any] = {}
        self._output, hint = output_of(model, step.output_schema, step.output_mode)
        self._instructions = "\n\n".join([system, *hint])
        self.settings = model_settings(step, model)
        self.model = tolerant(model, context.quirks.unstreamed)
        self._calls: SharedCalls | None = None

    def serves(self, step: PipelineStep, context: StepContext, model: Model[Any], system: str) -> bool:
        """Whether it is of this step in this session of this run."""
        of_step, of_run, of_quirks, of_model, of_system = self._of
        return (
            of_step is step
            and of_quirks is context.quirks
            and of_model is model
            and (of_run, of_system) == (context.run_id, system)
        )

    def agent(self, tools: Mapping[str, Any]) -> Agent[Any, Any]:
        """An agent for the step, which gets its model when it runs; a new one where a tool is another now."""
        if self._agent is None or self._tools != tools:
            from pydantic_ai import Agent

            step = self._of[0]
            self._tools = tools
            self._agent = Agent(
                None,
                output_type=self._output,
                instructions=self._instructions,
                name=step.name,
                deps_type=StepContext,
                retries={"output": step.output_retries, "tools": max(1, step.output_retries)},
                tools=toolset(tools),
            )
            if step.checks:
                self._agent.output_validator(_validated)
        return self._agent

    @property
    def calls(self) -> SharedCalls:
        """What asks for several rows at once."""
        if self._calls is None:
            from tagent_nb.runners.agent.shared_call import SharedCalls

            step, _, _, _, system = self._of
            self._calls = SharedCalls(step, self.model, system, self.settings)
        return self._calls

    async def template(self) -> RequestTemplate | None:
        """The request that units fill in; ``None`` where only an agent can make it."""
        if self._template is None:
            from tagent_nb.runners.agent.request import request_template

            step, _, _, model, _ = self._of
            made = request_template(self.agent({}), model, self.settings, self._output, step.output_schema)
            self._template = asyncio.ensure_future(made)
        return await asyncio.shield(self._template)


class _Unit:
    """One attempt at one unit.

    Attributes:
        messages: The conversation so far.
        checks: The checks of the step.
    """

    def __init__(
        self,
        step: PipelineStep,
        context: StepContext,
        model: Model[Any],
        shared: _Shared,
        task: str,
        tools: Mapping[str, Any],
    ) -> None:
        self._step = step
        self._context = context
        self._model = model
        self._shared = shared
        self._task = task
        self._tools = tools
        self._refusal = ""
        self.messages: Sequence[ModelMessage] = ()
        self.checks = Checks(step, context)

    def _gateway(self, outcome: ModelResponse | Exception | None = None) -> ModelGateway:
        from tagent_nb.runners.models.gateway import ModelGateway

        context = self._context
        streamed = streams(self._step, context, self._model)
        return ModelGateway(
            self._shared.model,
            context,
            context.write if streamed else None,
            structured=self._step.output_schema is not None,
            outcome=outcome,
        )

    async def by_rows(self, groups: SharedRows, pieces: Sequence[str]) -> Any:
        """Ask together with other rows; a row whose part of the answer will not do is asked for by itself.

        Args:
            groups: Brings the rows together.
            pieces: The task in pieces.
        """
        context, calls = self._context, self._shared.calls
        with groups.asking():
            values, reason = await calls.values(groups, Seat(context, pieces, calls), self._model)
            if len(values) == 1:
                try:
                    value = calls.value(values[0])
                except ValueError as error:
                    reason = f"its value is not valid: {error}"
                else:
                    reason = await self.checks.judge(value) if self._step.checks else ""
                    if not reason:
                        return value
            reason = redact(reason)[:SHOWN]
            context.metadata[ASKED_ALONE] = reason
            context.progress(ASKED_ALONE, message=reason)
            return await self.by_itself()

    async def by_itself(self) -> Any:
        """Ask for this unit only."""
        template = None if self._tools else await self._shared.template()
        return await (self.by_agent() if template is None else self.by_template(template))

    async def by_template(self, template: RequestTemplate) -> Any:
        """Ask once; an answer that is not plainly right, or that a check refuses, goes to an agent."""
        from tagent_nb.runners.agent.request import FOR_THE_AGENT, UnusualAnswer

        gateway = self._gateway()
        messages = template.messages(gateway, self._task)
        settings: Any = None if template.settings is None else {**template.settings}
        try:
            response = await gateway.request(messages, settings, template.parameters)
        except FOR_THE_AGENT as error:
            return await self.by_agent(error)
        try:
            value = template.value(response)
        except UnusualAnswer:
            return await self.by_agent(response)
        if self._step.checks:
            self._refusal = await self.checks.judge(value)
        return await self.by_agent(response) if self._refusal else value

    async def by_agent(self, outcome: ModelResponse | Exception | None = None) -> Any:
        """Let an agent go on until it has an answer.

        Args:
            outcome: What the first request has come to already. A check that has refused that answer is not
                asked again.
        """
        from pydantic_ai import capture_run_messages

        agent = self._shared.agent(self._tools)
        _unit.set(self)
        with capture_run_messages() as self.messages:
            gateway = self._gateway(outcome)
            result = await agent.run(
                self._task, model=gateway, deps=self._context, model_settings=self._shared.settings
            )
        return result.output

    async def validated(self, value: Any) -> Any:
        """What the checks say of a value; of the first one they may have said it already."""
        from pydantic_ai.exceptions import ModelRetry

        refusal, self._refusal = self._refusal, ""
        if refusal:
            raise ModelRetry(refusal)
        return await self.checks.validate(value)


_unit: ContextVar[_Unit] = ContextVar("tagent_nb_unit")
"""Whose answer an agent has got."""


async def _validated(value: Any) -> Any:
    return await _unit.get().validated(value)


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
