"""Kinds of agent steps. A kind is registered here and nowhere else: validation, the executor's runners, cards
and options of cells and of the command line read this table.

A new kind is one entry of :data:`AGENT_KINDS` and one runner, a class in the face of ``tagent_nb.runners``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError

if TYPE_CHECKING:
    from argparse import Namespace


def _says_nothing(step: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class AgentKind:
    """One kind of agent steps.

    Attributes:
        name: What ``agent=`` of a step says.
        runner: The class in ``tagent_nb.runners`` that gets the value of such a step; it is made with the
            :class:`~tagent_nb.runners.models.clients.Models` that all kinds share.
        runner_key: By what ``PipelineExecutor(runners=...)`` replaces that runner.
        help: What such a step does, in one sentence: the help of its option, ``--name``.
        roles: What it asks models for, each by a name that ``models=`` of a step may have.
        card: What its card says of such a :class:`~tagent_nb.PipelineStep` under the label ``"plans"``; empty
            for nothing.
    """

    name: str
    runner: str
    runner_key: str
    help: str
    roles: tuple[str, ...] = ()
    card: Callable[[Any], str] = _says_nothing

    @property
    def option(self) -> str:
        """The option of cells and of the command line that chooses it."""
        return f"--{self.name}"


def _planned(step: Any) -> str:
    return "its tasks" + (f", at most {step.max_replans} times anew" if step.max_replans else ", once")


SINGLE = AgentKind("single", "AgentRunner", "agent", "One conversation with the model.")
"""The kind of an agent step that names none."""

AGENT_KINDS = {
    kind.name: kind
    for kind in (
        SINGLE,
        AgentKind(
            "plan",
            "PlanRunner",
            "plan",
            "The model plans tasks, which are carried out and judged.",
            roles=("plan", "act", "judge", "answer"),
            card=_planned,
        ),
    )
}
"""All kinds by name."""

OPTIONAL_KINDS = [kind for kind in AGENT_KINDS.values() if kind is not SINGLE]
"""Those that an option chooses."""


def chosen_kind(args: Namespace) -> str | None:
    """The kind that the options of a cell or a command choose; ``None`` without one.

    Raises:
        DefinitionError: They choose two.
    """
    chosen = [kind for kind in OPTIONAL_KINDS if getattr(args, kind.name, False)]
    if len(chosen) > 1:
        raise DefinitionError(
            f"{' and '.join(kind.option for kind in chosen)} are {len(chosen)} kinds of agent, and a step "
            "has one. Leave all but one out."
        )
    return chosen[0].name if chosen else None
