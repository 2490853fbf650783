"""Which runner runs which kind of step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tagent_nb.steps.base import StepRunner
from tagent_nb.steps.python import PythonRunner

if TYPE_CHECKING:
    from tagent_nb.steps.clients import Models


class Runners(dict[str, StepRunner]):
    """Runners by kind. Those of agents are made when they are first asked for: not every pipeline has any."""

    def __init__(self) -> None:
        super().__init__(python=PythonRunner())
        self._models: Models | None = None

    def __missing__(self, kind: str) -> StepRunner:
        runner: StepRunner
        if kind == "agent":
            from tagent_nb.steps.agent import AgentRunner

            runner = AgentRunner(self._shared())
        elif kind == "plan":
            from tagent_nb.steps.planner import PlanRunner

            runner = PlanRunner(self._shared())
        else:
            raise KeyError(kind)
        self[kind] = runner
        return runner

    def _shared(self) -> Models:
        """The models of both kinds of agents: one client is enough for each."""
        if self._models is None:
            from tagent_nb.steps.clients import Models

            self._models = Models()
        return self._models
