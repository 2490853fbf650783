"""What waits for a person, and the decisions on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["ApprovalRequest", "Approved", "Approver", "Decision", "Edited", "Rejected", "Unit"]

Unit = tuple[str, str | None, str]
"""What waits: step, item (``None`` outside mapped steps), and call of a tool (empty for a result)."""


@dataclass(frozen=True, slots=True)
class Approved:
    """The value may be used as it is, or the tool be called."""


@dataclass(frozen=True, slots=True)
class Edited:
    """The value is to be another one: ``value`` in place of a result, or of the arguments of a tool."""

    value: Any


@dataclass(frozen=True, slots=True)
class Rejected:
    """The value must not be used, or the tool not be called.

    Attributes:
        reason: Why, in words. A model reads it with ``retry``, and with every tool.
        retry: Whether the step tries again, knowing the reason, if it has retries left; else it fails. A
            tool that was rejected is not called, and its model goes on.
    """

    reason: str
    retry: bool = False


Decision = Approved | Edited | Rejected


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, eq=False)
class ApprovalRequest:
    """Something that waits for a decision.

    Attributes:
        run_id: The run.
        pipeline: The pipeline's name.
        step: The step.
        item: The row's key in a mapped step, else ``None``.
        call: Which call of a tool; empty for a step's result.
        tool: The tool's name; empty for a step's result.
        value: The step's result, or the arguments of the tool by name.
        digest: SHA-256 of the value.
        goal: What the step is to achieve.
        schema: Pydantic model of the result; ``None`` without one, and for a tool.
        parameters: JSON Schema of the value; empty where it is unknown.
        at: Since when it waits (seconds since the epoch).
        check: Gives an edited value as the step takes it, or raises what is wrong with it.
    """

    run_id: str
    pipeline: str
    step: str
    item: str | None = None
    call: str = ""
    tool: str = ""
    value: Any = None
    digest: str = ""
    goal: str = ""
    schema: type[BaseModel] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    check: Callable[[Any], Any] = field(default=_as_it_is, repr=False)

    @property
    def unit(self) -> Unit:
        """What waits, as a key."""
        return (self.step, self.item, self.call)

    @property
    def title(self) -> str:
        """What waits, in words."""
        where = f"step {self.step!r}" + ("" if self.item is None else f", item {self.item}")
        return f"{where}: call of tool {self.tool!r}" if self.tool else where


Approver = Callable[[ApprovalRequest], Decision | Awaitable[Decision]] | Literal["wait"]
"""Who decides: a function, sync (called in a thread) or async; or ``"wait"``, for
:meth:`PipelineExecutor.approve` and :meth:`PipelineExecutor.reject`."""
