"""Functions that models may call while they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tagent_nb.errors import DefinitionError, StepError, did_you_mean
from tagent_nb.pipeline import PipelineStep, is_number
from tagent_nb.user_objects import function_name

if TYPE_CHECKING:
    from tagent_nb.runners.base import StepContext

F = TypeVar("F", bound=Callable[..., Any])

OUTPUT = "final_result"
"""What pydantic-ai calls the tool by which a model gives an answer with a schema."""

LLM = "llm"
"""What does a task of a plan that no tool does: the model itself."""

_registered: dict[str, Callable[..., Any]] = {}
_options: dict[str, ToolOptions] = {}
_current: ContextVar[StepContext | None] = ContextVar("tagent_nb_tool_context", default=None)


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What is known of a tool besides its function.

    Attributes:
        timeout: Seconds that one call may take; ``None`` without a limit.
        approval_required: Whether each call waits for approval.
        effect: ``"pure"``: it changes nothing, and may be called again. ``"side_effect"``: it changes
            something. ``""``: unknown, and it is treated like one that does.
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
        timeout: Seconds that one call may take; after that the model reads so. ``None``: no limit.
        approval_required: Whether each call waits for approval.
        pure: It only looks something up: it may be called again for the same question, and needs no
            idempotency key.
        side_effect: It changes something. A tool that says neither is treated as if it did.

    Returns:
        The function itself.

    Raises:
        DefinitionError: It is no named function, its name is reserved, or an argument is not allowed.
    """
    options = checked_options(
        timeout=timeout, approval_required=approval_required, pure=pure, side_effect=side_effect
    )

    def registered(target: Any) -> Any:
        name = getattr(target, "__name__", "")
        if not callable(target) or isinstance(target, type) or not name.isidentifier():
            raise DefinitionError(
                f"A tool must be a function with a name, not {target!r}. Write @tool above a def."
            )
        register(name, target, options)
        return target

    return registered if function is None else registered(function)


def checked_options(
    *, timeout: float | None, approval_required: bool, pure: bool, side_effect: bool
) -> ToolOptions:
    """The options of a tool that is registered so.

    Raises:
        DefinitionError: An argument is not allowed.
    """
    if timeout is not None and (not is_number(timeout) or timeout <= 0):
        raise DefinitionError(f"A tool's timeout must be a number of seconds above 0, not {timeout!r}.")
    if pure and side_effect:
        raise DefinitionError("A tool is either pure or has a side effect. Keep one of pure, side_effect.")
    return ToolOptions(
        timeout, bool(approval_required), "pure" if pure else "side_effect" if side_effect else ""
    )


def refuse_reserved(name: str) -> None:
    """Refuse a name that no tool can have.

    Raises:
        DefinitionError: It is ``final_result``.
    """
    if name == OUTPUT:
        raise DefinitionError(
            f"A tool cannot be called {OUTPUT!r}: that is the tool by which models give their answer. Rename "
            "the function; for a tool of a server, use tools_from(toolset.prefixed('my'))."
        )


def register(name: str, function: Callable[..., Any], options: ToolOptions) -> None:
    """Make a function the tool of this name.

    Raises:
        DefinitionError: The name is reserved.
    """
    refuse_reserved(name)
    _registered[name] = function
    _options[name] = options


def options_of(function: Callable[..., Any]) -> ToolOptions:
    """What its registration says of a tool; the defaults for a function that is not registered."""
    name = function_name(function)
    return _options.get(name, _NO_OPTIONS) if _registered.get(name) is function else _NO_OPTIONS


_NO_OPTIONS = ToolOptions()


def registered_tools() -> dict[str, Callable[..., Any]]:
    """The registered tools by name, in the order of registration."""
    return dict(_registered)


def forget_tool(name: str) -> None:
    """Take a tool out of the registry.

    Raises:
        DefinitionError: There is none of this name.
    """
    _options.pop(name, None)
    if _registered.pop(name, None) is None:
        raise DefinitionError(
            f"There is no tool {name!r}.{did_you_mean(name, _registered)} "
            f"Registered: {', '.join(_registered) or 'none'}."
        )


def named_tools(step: PipelineStep) -> dict[str, Callable[..., Any]]:
    """The tools that a step may use, by name: its own, then the registered ones, as its
    ``tools_filter`` allows. An own tool wins over a registered one of the same name.

    Raises:
        StepError: ``tools_filter`` names a tool that does not exist, or ``approve_tools`` one that the step
            has not: what it was meant for must not run unasked.
    """
    tools, problems = _tools_and_problems(step)
    if problems:
        raise StepError(" ".join(problems))
    return tools


def tool_problems(step: PipelineStep) -> list[str]:
    """What :func:`named_tools` would refuse, one sentence for each name."""
    return _tools_and_problems(step)[1]


def _tools_and_problems(step: PipelineStep) -> tuple[dict[str, Callable[..., Any]], list[str]]:
    available = dict(_registered)
    available.update((function_name(function), function) for function in step.tools)
    chosen, problems = _chosen(step, available)
    if step.remember:
        from tagent_nb.runners.tools.remember import remember

        name = function_name(remember)
        if chosen.setdefault(name, remember) is not remember:
            problems.append(
                f"Step {step.name!r} has a tool of its own named {name!r}, and remember=True brings one. "
                "Rename the tool, or leave it out with tools_filter."
            )
    if chosen and step.rows_per_call > 1:
        problems.append(
            f"Step {step.name!r}: rows_per_call is {step.rows_per_call}, but the step may call "
            f"{', '.join(chosen)}, and a model that calls tools does so for one row. Write tools_filter=[] "
            '(--tools "") to do without them, or ask for each row by itself.'
        )
    return chosen, problems + _reserved(step, chosen) + _unasked(step, chosen, available)


def _reserved(step: PipelineStep, chosen: Mapping[str, Callable[..., Any]]) -> list[str]:
    """What is wrong with the names of the tools: they stand for something else."""
    problems = []
    if OUTPUT in chosen:
        problems.append(
            f"Step {step.name!r}: {OUTPUT!r} is the tool by which models give their answer. Rename the tool "
            "of this name."
        )
    if LLM in chosen and step.agent == "plan":
        problems.append(
            f"Step {step.name!r}: in a plan {LLM!r} stands for the model itself. Rename the tool of "
            "this name, or leave it out with tools_filter."
        )
    return problems


def _chosen(
    step: PipelineStep, available: Mapping[str, Callable[..., Any]]
) -> tuple[dict[str, Callable[..., Any]], list[str]]:
    """The tools that the step's filter lets through, and what is wrong with the filter."""
    if step.tools_filter is None:
        return dict(available), []
    chosen: dict[str, Callable[..., Any]] = {}
    problems = []
    for pattern in step.tools_filter:
        matching = {name: function for name, function in available.items() if fnmatchcase(name, pattern)}
        if not matching and not _is_glob(pattern):
            problems.append(
                f"Step {step.name!r}: tools_filter names {pattern!r}, which is no tool."
                f"{did_you_mean(pattern, available)} Tools: {', '.join(available) or 'none'}. "
                "Register it with @tool, or pass it in tools=[...]."
            )
        chosen.update(matching)
    return chosen, problems


def _unasked(
    step: PipelineStep, chosen: Mapping[str, Callable[..., Any]], available: Mapping[str, Callable[..., Any]]
) -> list[str]:
    """What is wrong with ``approve_tools``: a name that fits nothing would let the tool it means run.

    A glob that fits nothing is refused for the same reason, unless there is no tool that could run.
    """
    problems = []
    for pattern in step.approve_tools:
        if any(fnmatchcase(name, pattern) for name in chosen) or (_is_glob(pattern) and not chosen):
            continue
        left_out = pattern in available and pattern not in chosen
        problems.append(
            f"Step {step.name!r}: approve_tools names {pattern!r}, which "
            + ("its tools_filter leaves out." if left_out else "is no tool of this step.")
            + ("" if left_out else did_you_mean(pattern, chosen))
            + f" Its tools: {', '.join(chosen) or 'none'}. "
            "Correct the name, or leave it out of approve_tools."
        )
    return problems


def _is_glob(pattern: str) -> bool:
    return bool(set(pattern) & set("*?["))


def tools_for(step: PipelineStep) -> list[Callable[..., Any]]:
    """The functions of :func:`named_tools`.

    Raises:
        StepError: ``tools_filter`` or ``approve_tools`` names a tool that the step has not.
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
