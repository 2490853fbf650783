"""How a step overlaps with others, what it needs of them, and where it stands in a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tagent_nb.errors import DefinitionError
from tagent_nb.naming import step_name


class ExecutionMode(Enum):
    """Whether a step may overlap with others.

    ``SERIAL`` steps never overlap with another SERIAL step and start in definition order when
    several are ready. ``CONCURRENT`` steps overlap with anything.
    """

    SERIAL = "serial"
    CONCURRENT = "concurrent"


class DependencyType(Enum):
    """What a step needs of another.

    ``STRONG``: it must complete, else this step is skipped. ``WEAK``: it must end; a failure or a
    skip is passed on as ``None``. ``OPTIONAL``: as WEAK, and it may be absent from the pipeline.
    """

    STRONG = "strong"
    WEAK = "weak"
    OPTIONAL = "optional"


class StepStatus(Enum):
    """Where a step stands in a run. ``WAITING`` is between attempts or for an approval."""

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    CACHED = "cached"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def has_value(self) -> bool:
        """Whether a step in this status has a value that others may read."""
        return self is StepStatus.COMPLETED or self is StepStatus.CACHED

    @property
    def is_final(self) -> bool:
        """Whether the step will not change any more in this run."""
        return self in _FINAL


_FINAL = frozenset(
    {StepStatus.COMPLETED, StepStatus.CACHED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED}
)


@dataclass(frozen=True, slots=True)
class Dependency:
    """One step that another waits for, and how much it needs it."""

    name: str
    type: DependencyType = DependencyType.STRONG

    @classmethod
    def parse(cls, text: str | Dependency) -> Dependency:
        """Read ``"load"`` or ``"load:weak"``.

        Raises:
            DefinitionError: The part after the colon is not strong, weak or optional.
        """
        if isinstance(text, Dependency):
            return text
        if not isinstance(text, str):
            raise DefinitionError(
                f"A dependency must be a step's name, not {type(text).__name__} ({text!r})."
            )
        name, colon, kind = text.partition(":")
        if not colon:
            return cls(step_name(name.strip()))
        try:
            return cls(step_name(name.strip()), DependencyType(kind.strip().lower() or "strong"))
        except ValueError as error:
            if isinstance(error, DefinitionError):
                raise
            raise DefinitionError(
                f"Dependency {text!r}: {kind!r} is not a type of dependency. Write strong, weak or optional."
            ) from None

    def __str__(self) -> str:
        return self.name if self.type is DependencyType.STRONG else f"{self.name}:{self.type.value}"
