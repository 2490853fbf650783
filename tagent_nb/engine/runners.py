"""Which runner runs which kind of step."""

from __future__ import annotations

from tagent_nb.steps.base import StepRunner
from tagent_nb.steps.python import PythonRunner


class Runners(dict[str, StepRunner]):
    """Runners by kind. The one of agents is made when it is first asked for: not every pipeline has any."""

    def __init__(self) -> None:
        super().__init__(python=PythonRunner())

    def __missing__(self, kind: str) -> StepRunner:
        if kind != "agent":
            raise KeyError(kind)
        from tagent_nb.steps.agent import AgentRunner

        runner = self[kind] = AgentRunner()
        return runner
