"""One question of a planning step to its model: the form of the answer, another try, and what went wrong.

Each question stands for itself and says all that the answer needs, so that the same question can be
answered from a record. Imports pydantic-ai: load it late.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, capture_run_messages
from pydantic_ai.exceptions import OutputTokenLimitExceeded, UnexpectedModelBehavior
from pydantic_ai.models import Model

from tagent_nb.errors import RetryableError
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.models.clients import model_settings, streams
from tagent_nb.runners.models.errors import explained, last_answer
from tagent_nb.runners.models.gateway import ModelGateway
from tagent_nb.runners.models.output import output_of
from tagent_nb.runners.validators import Checks

RETRIES = 2
"""Times one question or one tool's call is tried again after a failure that may pass."""

DELAY = 0.5
"""Seconds; the ceiling of the first wait before that, doubled each time."""


class UnusableError(Exception):
    """The model answered, and nothing that could be used.

    Attributes:
        error: What to raise where the step cannot do without.
        answer: The last answer.
    """

    def __init__(self, error: Exception, answer: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.answer = answer


class Asker:
    """Asks the models of one attempt, one question after the other; what it takes is spent on the context.

    Args:
        step: The step.
        context: Of the attempt. While a role is asked that has a model of its own, ``context.model`` is that.
        model: The step's model.
        roles: Models by role, in place of it.
    """

    def __init__(
        self,
        step: PipelineStep,
        context: StepContext,
        model: Model[Any],
        roles: Mapping[str, Model[Any]],
    ) -> None:
        self.step = step
        self.context = context
        self.model = model
        self.roles = roles

    async def about(
        self,
        task: str,
        system: str,
        form: type[BaseModel],
        validate: Callable[[Any], Awaitable[Any]] | None = None,
        *,
        role: str,
    ) -> Any:
        """Ask for something that the planner itself needs, such as a plan.

        Raises:
            UnusableError: No answer had the form.
            RetryableError: The model's side failed in a way that may pass, several times.
            StepError: It refused the request.
        """
        step = self.step.with_(output_schema=form, checks=[])
        return await self._patiently(lambda: self._ask(step, task, system, validate, None, role))

    async def for_value(self, task: str, system: str, checks: Checks, role: str) -> Any:
        """Ask for the value of the step: it has the step's schema, and its checks let it pass.

        Text is written to the context while it comes, outside mapped steps.

        Raises: As :meth:`about`.
        """
        step = self.step
        return await self._patiently(lambda: self._ask(step, task, system, None, checks, role))

    async def for_text(self, task: str, system: str) -> Any:
        """Ask for a text on the way to the value.

        Raises: As :meth:`about`.
        """
        step = self.step.with_(output_schema=None, checks=[])
        return await self._patiently(lambda: self._ask(step, task, system, None, None, "act"))

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        for number in range(RETRIES):
            try:
                return await ask()
            except RetryableError as error:
                await pause(self.context, number, str(error), error.retry_after)
        return await ask()

    async def _ask(
        self,
        step: PipelineStep,
        task: str,
        system: str,
        validate: Callable[[Any], Awaitable[Any]] | None,
        checks: Checks | None,
        role: str,
    ) -> Any:
        with self._as(role) as model:
            return await self._answer(step, task, system, validate, checks, model)

    @contextmanager
    def _as(self, role: str) -> Iterator[Model[Any]]:
        """Ask the model of a role: prices, limits and records go by ``context.model``."""
        before = self.context.model
        self.context.model = self.step.models.get(role, before)
        try:
            yield self.roles.get(role, self.model)
        finally:
            self.context.model = before

    async def _answer(
        self,
        step: PipelineStep,
        task: str,
        system: str,
        validate: Callable[[Any], Awaitable[Any]] | None,
        checks: Checks | None,
        model: Model[Any],
    ) -> Any:
        context, form = self.context, step.output_schema
        streamed = checks is not None and streams(step, context, model)
        output, hint = output_of(model, form, step.output_mode)
        agent: Agent[Any, Any] = Agent(
            ModelGateway(model, context, context.write if streamed else None, structured=form is not None),
            output_type=output,
            instructions="\n\n".join([system, *hint]),
            name=step.name,
            deps_type=StepContext,
            retries={"output": step.output_retries, "tools": 1},
        )
        if validate is not None:
            agent.output_validator(validate)
        if checks is not None and step.checks:
            agent.output_validator(checks.validate)
        with capture_run_messages() as messages:
            try:
                result = await agent.run(task, deps=context, model_settings=model_settings(self.step, model))
            except Exception as error:
                better = explained(step, context, error, messages, "" if checks is None else checks.refused)
                if _is_unusable(error):
                    raise UnusableError(better, last_answer(messages)) from error
                if better is error:
                    raise
                raise better from error
        return result.output


async def pause(context: StepContext, number: int, reason: str, seconds: float | None = None) -> None:
    """Wait before another try; ``number`` counts them from 0."""
    delay = random.uniform(0.0, DELAY * 2**number) if seconds is None else seconds
    with context.waiting(reason, delay):
        await asyncio.sleep(delay)


def _is_unusable(error: Exception) -> bool:
    """Whether the model answered, and not as it was asked to; else its side has failed."""
    return isinstance(error, OutputTokenLimitExceeded) or (
        isinstance(error, UnexpectedModelBehavior) and "maximum output retries" in error.message
    )
