"""Python steps: a body gets its inputs, runs, and can be stopped."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import CodeType
from typing import Any, NoReturn

from tagent_nb.errors import StepError
from tagent_nb.pipeline import CELL_FUNCTION, PipelineStep, PythonBody, file_arguments
from tagent_nb.runners.base import StepContext, calls_user_code
from tagent_nb.runners.execution.capture import Lines, captured, show, show_error
from tagent_nb.runners.execution.files import reading
from tagent_nb.runners.execution.thread import in_thread
from tagent_nb.runners.execution.traceback import show_source
from tagent_nb.runners.validators import checked
from tagent_nb.user_objects import blame, class_name, raising_method


class PythonRunner:
    """Runs the bodies of Python steps.

    An async body is awaited where the run lives. A sync body gets a daemon thread of its own with a
    copy of the context variables. What a body prints goes to ``context.write``.

    **Stopping.** When the task that awaits :meth:`run` is cancelled, by a timeout or by Stop,
    ``context.stop`` is set and a sync body is ended as :func:`tagent_nb.runners.execution.thread.in_thread`
    says: at its next Python instruction. A body that is inside a call that does not return to Python (a long
    query, ``time.sleep``) is left alone after ``grace`` seconds, which is reported as progress of kind
    ``"left_running"``. It ends when that call returns; its late value and prints are dropped.

    Args:
        grace: Seconds to wait for a stopped body to end.
    """

    version = "1"

    def __init__(self, *, grace: float = 1.0) -> None:
        self.grace = grace

    async def run(self, step: PipelineStep, context: StepContext) -> Any:
        """Return what the body returns, as it is; with ``checks``, as its schema has it.

        Raises:
            OutputValidationError: A check refuses the value.
            StepError: An input is missing, the body ended the program or cancelled itself, or it
                assigns a notebook variable that it also reads.
            Exception: What the body raises.
        """
        value = await self._value(step, context)
        return await checked(step, context, value) if step.checks else value

    @calls_user_code("its code")
    async def _value(self, step: PipelineStep, context: StepContext) -> Any:
        function = _bind(step, context)
        target = function.func
        lines = lines_of(context)
        opened = reading()
        opened.expect(unseen_files(step, context.inputs, context.namespace))
        try:
            with opened:
                if _is_async(target):
                    with captured(lines):
                        value = await function()
                else:
                    polite = step.body is not None and step.body.wants_context
                    value = await in_thread(
                        step.name,
                        function,
                        context,
                        lines,
                        stop=context.stop,
                        grace=self.grace,
                        polite=polite,
                    )
                    if inspect.isawaitable(value):
                        with captured(lines):
                            value = await value
        except BaseException as error:
            raise_as_own(step, error, context)
        if opened.any:
            context.metadata["files"] = await asyncio.to_thread(opened.files)
        return value


def lines_of(context: StepContext) -> Lines:
    """Where what a body prints goes: to observers, or else where all is printed."""
    return Lines(context.write) if context.watched else Lines(show, errors=show_error)


# -- inputs -----------------------------------------------------------------------------------


def _bind(step: PipelineStep, context: StepContext) -> partial[Any]:
    """The body's function with its arguments."""
    body = step.body
    if body is None:
        raise StepError(f"Step {step.name!r} has no Python body. Only Python steps are run as Python.")
    if body.takes_nothing and body.function is not None:
        return partial(body.function)
    names = _readable_names(step, context)
    if body.kind == "cell":
        arguments = {name: names[name] for name in sorted((body.names | body.provided) & names.keys())}
        return partial(_made(body, tuple(arguments), context.namespace)[CELL_FUNCTION], **arguments)
    arguments = {}
    for name in (*body.params, *sorted(body.provided)):
        if name in names:
            arguments[name] = names[name]
        elif name not in body.optional:
            raise StepError(_missing(step, name))
    function = body.function or _made(body, (), context.namespace)[body.name]
    return partial(function, **arguments)


def _is_async(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE:
        return True
    return inspect.iscoroutinefunction(function)


def _readable_names(step: PipelineStep, context: StepContext) -> dict[str, Any]:
    """What a body may read by name: the steps, what every body may ask for, and ``item`` if mapped."""
    names = {
        **context.inputs,
        "context": context,
        "shared": context.shared,
        "facts": context.facts,
        "memories": context.memories,
    }
    source = (step.map_over or "").partition(".")[0]
    if source in context.inputs:
        names["item"] = context.inputs[source]
    return names


def _missing(step: PipelineStep, name: str) -> str:
    if name == "item":
        return (
            f"Step {step.name!r} asks for 'item', but it is not mapped. Set map_over, "
            "or name the step that it reads."
        )
    return (
        f"Step {step.name!r} reads {name!r}, which has no value in this run. "
        f"Add a step {name!r}, or give the parameter a default."
    )


def _made(body: PythonBody, inputs: tuple[str, ...], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The names after the body's definition ran. A copy: what a step assigns never reaches the notebook."""
    names = {"__name__": "__main__", **namespace}
    show_source(body.filename, body.source)
    exec(_compiled(body, inputs), names)
    return names


@lru_cache(maxsize=256)
def _compiled(body: PythonBody, inputs: tuple[str, ...]) -> CodeType:
    return body.compile(inputs)


def unseen_files(
    step: PipelineStep, inputs: Mapping[str, Any], namespace: Mapping[str, Any]
) -> Sequence[str]:
    """Names of files that a body reads in a way that is not seen, as far as its text says them.

    Args:
        step: A Python step.
        inputs: What it reads by name, of steps.
        namespace: What a cell sees besides.
    """
    body = step.body
    if body is None or not body.source:
        return ()
    source = (step.map_over or "").partition(".")[0]
    item = {"item": inputs[source]} if source in inputs else {}
    return file_arguments(body, inputs, item, getattr(body.function, "__globals__", namespace))


# -- errors -----------------------------------------------------------------------------------


def raise_as_own(step: PipelineStep, error: BaseException, context: StepContext | None = None) -> NoReturn:
    """Raise what a body raised, as far as an attempt may fail with it; called where it is handled.

    Args:
        step: Whose body it is.
        error: What it raised.
        context: Of the attempt, where it has one: its ``stop`` is set when this task is stopped.

    Raises:
        StepError: It would end the program, or is no error of the body's own.
        Exception: The error itself.
        CancelledError: This task is asked to end.
    """
    kind = type(error)  # not isinstance: the class of the user's own error may say another one
    if issubclass(kind, UnboundLocalError):
        remedy = _remedy(step, error)
        if remedy is not None:
            raise StepError(remedy) from error
    if issubclass(kind, Exception):
        raise error
    if issubclass(kind, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if context is not None:
                context.stop.set()
            raise error
        raise StepError(
            f"Step {step.name!r} awaited something that was cancelled. "
            "Catch asyncio.CancelledError in the step if that is expected."
        ) from error
    # An object that the step handles may have raised it.
    method = raising_method(error)
    what = f"Step {step.name!r} raised {class_name(error)}" if not method else blame(error)
    ending = " (sys.exit or exit?). Return a value, or raise" if not method else ". Let it raise"
    raise StepError(f"{what}, which would end the program{ending} an ordinary error.") from error


def _remedy(step: PipelineStep, error: BaseException) -> str | None:
    """What to do when a cell assigns a name that it reads from outside; ``None`` for other cases."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    quoted = re.search(r"'([^']+)'", str(error))
    if trace is None or quoted is None or trace.tb_frame.f_code.co_name != CELL_FUNCTION:
        return None
    name = quoted[1]
    return (
        f"Step {step.name!r}, line {trace.tb_lineno}: {name!r} is read before it has a value. The cell "
        f"assigns {name!r}, so for Python it is a name of the step's own and not the notebook's variable. "
        f"Write the result to another name, such as 'new_{name} = ...'."
    )
