"""Functions that models may call while they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tagent_nb.errors import DefinitionError, StepError, did_you_mean
from tagent_nb.pipeline.step import PipelineStep, is_number

if TYPE_CHECKING:
    from tagent_nb.steps.base import StepContext

F = TypeVar("F", bound=Callable[..., Any])

_registered: dict[str, Callable[..., Any]] = {}
_marks: dict[str, Marks] = {}
_current: ContextVar[StepContext | None] = ContextVar("tagent_nb_tool_context", default=None)


@dataclass(frozen=True, slots=True)
class Marks:
    """What is known of a tool besides its function.

    Attributes:
        timeout: Seconds that one call may take; ``None`` without a limit.
        approval_required: Whether each call waits until somebody has approved it.
        effect: ``"pure"``: it changes nothing, and may be called again. ``"side_effect"``: it changes
            something. ``""``: nobody says, and it is treated like one that does.
    """

    timeout: float | None = None
    approval_required: bool = False
    effect: str = ""


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *,
    timeout: float | None = None,
    approval_required: bool = False,
    pure: bool = False,
    side_effect: bool = False,
) -> Callable[[F], F]: ...


def tool(
    function: Any = None,
    /,
    *,
    timeout: float | None = None,
    approval_required: bool = False,
    pure: bool = False,
    side_effect: bool = False,
) -> Any:
    """Register a function as a tool that agent steps may call.

    Use it bare (``@tool``) or with arguments (``@tool(timeout=10)``). The function may be sync or
    async; a sync one runs in a thread. Its name, type hints and docstring tell the model what it is
    for and what it takes, but for a parameter that is annotated :class:`StepContext`, or named
    ``context`` without an annotation: that one gets the context of the step. Registering the same name
    again replaces the function, so that a cell can be run again.

    Args:
        function: The function, when used bare.
        timeout: Seconds that one call may take; after that the model is told so. ``None``: no limit.
        approval_required: Whether each call waits until somebody has approved it.
        pure: It only looks something up: it may be called again for the same question, and needs no
            idempotency key.
        side_effect: It changes something. A tool that says neither is treated as if it did.

    Returns:
        The function itself.

    Raises:
        DefinitionError: It is no named function, or an argument is not allowed.
    """
    said = marks(timeout=timeout, approval_required=approval_required, pure=pure, side_effect=side_effect)

    def registered(target: Any) -> Any:
        name = getattr(target, "__name__", "")
        if not callable(target) or isinstance(target, type) or not name.isidentifier():
            raise DefinitionError(
                f"A tool must be a function with a name, not {target!r}. Write @tool above a def."
            )
        register(name, target, said)
        return target

    return registered if function is None else registered(function)


def marks(*, timeout: float | None, approval_required: bool, pure: bool, side_effect: bool) -> Marks:
    """The marks of a tool that is registered so.

    Raises:
        DefinitionError: An argument is not allowed.
    """
    if timeout is not None and (not is_number(timeout) or timeout <= 0):
        raise DefinitionError(f"A tool's timeout must be a number of seconds above 0, not {timeout!r}.")
    if pure and side_effect:
        raise DefinitionError("A tool is either pure or has a side effect. Keep one of pure, side_effect.")
    return Marks(timeout, bool(approval_required), "pure" if pure else "side_effect" if side_effect else "")


def register(name: str, function: Callable[..., Any], said: Marks) -> None:
    """Make a function the tool of this name."""
    _registered[name] = function
    _marks[name] = said


def marks_of(function: Callable[..., Any]) -> Marks:
    """What its registration says of a tool; the defaults for a function that is not registered."""
    name = tool_name(function)
    return _marks.get(name, _UNMARKED) if _registered.get(name) is function else _UNMARKED


_UNMARKED = Marks()


def registered_tools() -> dict[str, Callable[..., Any]]:
    """The registered tools by name, in the order of registration."""
    return dict(_registered)


def forget_tool(name: str) -> None:
    """Take a tool out of the registry.

    Raises:
        DefinitionError: There is none of this name.
    """
    _marks.pop(name, None)
    if _registered.pop(name, None) is None:
        raise DefinitionError(
            f"There is no tool {name!r}.{did_you_mean(name, _registered)} "
            f"Registered: {', '.join(_registered) or 'none'}."
        )


def tool_name(function: Callable[..., Any]) -> str:
    """What models call this function."""
    return str(getattr(function, "__name__", type(function).__name__))


def named_tools(step: PipelineStep) -> dict[str, Callable[..., Any]]:
    """The tools that a step may use, by name: its own, then the registered ones, as its
    ``tools_filter`` allows. An own tool wins over a registered one of the same name.

    Raises:
        StepError: ``tools_filter`` names a tool that does not exist.
    """
    known = dict(_registered)
    known.update((tool_name(function), function) for function in step.tools)
    if step.remember:
        return _remembering(step, _chosen(step, known))
    return _chosen(step, known)


def _remembering(step: PipelineStep, chosen: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    from tagent_nb.steps.remembering import remember

    name = tool_name(remember)
    if chosen.setdefault(name, remember) is not remember:
        raise StepError(
            f"Step {step.name!r} has a tool of its own named {name!r}, and remember=True brings one. "
            "Rename the tool, or leave it out with tools_filter."
        )
    return chosen


def _chosen(step: PipelineStep, known: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The tools that the step's filter lets through."""
    if step.tools_filter is None:
        return known
    chosen: dict[str, Callable[..., Any]] = {}
    for pattern in step.tools_filter:
        found = {name: one for name, one in known.items() if fnmatchcase(name, pattern)}
        if not found and not set(pattern) & set("*?["):
            raise StepError(
                f"Step {step.name!r}: tools_filter names {pattern!r}, which is no tool."
                f"{did_you_mean(pattern, known)} Tools: {', '.join(known) or 'none'}. "
                "Register it with @tool, or pass it in tools=[...]."
            )
        chosen.update(found)
    return chosen


def tools_for(step: PipelineStep) -> list[Callable[..., Any]]:
    """The functions of :func:`named_tools`.

    Raises:
        StepError: ``tools_filter`` names a tool that does not exist.
    """
    return list(named_tools(step).values())


@contextmanager
def tools_of(context: StepContext) -> Iterator[None]:
    """Let :func:`step_context` answer with ``context`` inside the block."""
    before = _current.get()
    _current.set(context)
    try:
        yield
    finally:
        _current.set(before)


def step_context() -> StepContext:
    """The context of the step whose model calls the tool that asks: ``facts``, ``learn`` ...

    Its ``idempotency_key`` is the call's own: the same whenever the same call is made for the same work.

    Raises:
        StepError: No tool is being called.
    """
    context = _current.get()
    if context is None:
        raise StepError("step_context() works inside a tool only, while a step's model calls it.")
    return context
