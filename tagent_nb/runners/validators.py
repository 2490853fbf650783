"""What the checks of a step say of a value."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from tagent_nb.errors import OutputValidationError, StepError
from tagent_nb.pipeline import PipelineStep, takes_context
from tagent_nb.redaction import redact
from tagent_nb.runners.base import StepContext, calls_user_code
from tagent_nb.runners.execution.capture import Lines, captured
from tagent_nb.runners.execution.thread import in_thread
from tagent_nb.serde import bare
from tagent_nb.user_objects import class_name, function_name, message_of

SHOWN = 500
"""Characters of what a check says that a report shows at most."""


class Checks:
    """The checks of a step, in one attempt.

    Attributes:
        context: That of the attempt.
        refused: What was said of the last value; empty if nothing was refused, or nothing judged.
    """

    def __init__(self, step: PipelineStep, context: StepContext) -> None:
        self.refused = ""
        self._step = step
        self.context = context

    async def judge(self, value: Any) -> str:
        """What the first check says that refuses ``value``; empty if none does.

        A refusal is reported as progress of kind ``"check_failed"``.

        Raises:
            StepError: A check raised it, or something that is no verdict.
        """
        self.refused = ""
        for check in self._step.checks:
            objection = await self._objection(check, bare(value))
            if objection is not None:
                name = function_name(check)
                self.context.progress("check_failed", check=name, message=objection[:SHOWN])
                self.refused = f"Check {name!r} refused it: {objection}"
                break
        return self.refused

    async def validate(self, value: Any) -> Any:
        """``value``, as an output validator of pydantic-ai gives it.

        Raises:
            ModelRetry: A check refuses it; the model reads why.
            StepError: As :meth:`judge`.
        """
        from pydantic_ai.exceptions import ModelRetry

        objection = await self.judge(value)
        if objection:
            raise ModelRetry(objection)
        return value

    async def _objection(self, check: Callable[..., Any], value: Any) -> str | None:
        call = partial(check, value, self.context) if takes_context(check) else partial(check, value)
        try:
            verdict = await self._verdict(function_name(check), call)
        except StepError:
            raise
        except (ValueError, AssertionError) as error:
            return redact(message_of(error)) or _line(error)
        except BaseException as error:  # a check must not end the run, not even by sys.exit()
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if _is_retry(error):
                return redact(message_of(error))
            raise StepError(
                f"Step {self._step.name!r}: check {function_name(check)!r} raised {class_name(error)}: "
                f"{redact(message_of(error))} (in: {_line(error)}). To refuse a value, raise ValueError."
            ) from error
        return "it returned False" if verdict is False else None

    @calls_user_code("a check of it")
    async def _verdict(self, name: str, call: partial[Any]) -> Any:
        lines = Lines(self.context.write)
        if inspect.iscoroutinefunction(call.func):
            verdict = call()
        else:
            verdict = await in_thread(name, call, self.context, lines, stop=threading.Event())
        if not inspect.isawaitable(verdict):
            return verdict
        with captured(lines):
            return await verdict


async def checked(step: PipelineStep, context: StepContext, value: Any) -> Any:
    """``value`` as the step's schema has it, if no check of the step refuses it.

    Raises:
        OutputValidationError: It does not match the schema, or a check refuses it.
        StepError: A check raised something that is no verdict.
    """
    value = step.validate_output(value)
    objection = await Checks(step, context).judge(value)
    if objection:
        raise OutputValidationError(f"Step {step.name!r}: its value will not do. {objection}")
    return value


def _is_retry(error: BaseException) -> bool:
    """Whether this is pydantic-ai's own word for another try. It is not imported for that."""
    kind = type(error)
    return kind.__name__ == "ModelRetry" and kind.__module__.startswith("pydantic_ai.")


def _line(error: BaseException) -> str:
    """The line of code that raised, which says what an ``assert`` without a message wants."""
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].line if frames else None) or type(error).__name__
