"""Which runner runs which kind of step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tagent_nb.engine.session import Runners
from tagent_nb.runners import AgentRunner, PlanRunner, PythonRunner


def test_each_kind_has_a_runner_which_stays_the_same() -> None:
    runners = Runners()
    assert isinstance(runners["python"], PythonRunner)
    assert isinstance(runners["agent"], AgentRunner)
    assert isinstance(runners["plan"], PlanRunner)
    assert runners["agent"] is runners["agent"]
    assert runners["plan"] is runners["plan"]


def test_agents_of_both_kinds_share_one_client_a_model() -> None:
    runners = Runners()
    plan, agent = runners["plan"], runners["agent"]
    assert isinstance(plan, PlanRunner)
    assert isinstance(agent, AgentRunner)
    assert plan.models is agent.models


def test_other_kinds_have_none() -> None:
    with pytest.raises(KeyError, match="cluster"):
        Runners()["cluster"]


def test_an_executor_of_python_steps_loads_nothing_of_agents() -> None:
    """It starts in half of the time."""
    program = (
        "import sys; from tagent_nb import Pipeline, PipelineExecutor\n"
        "pipeline = Pipeline('p')\n"
        "@pipeline.task\n"
        "def one(): return 1\n"
        "assert PipelineExecutor(pipeline).run()['one'] == 1\n"
        "heavy = 'steps.agent steps.providers engine.plan cache.fingerprint pipeline.frames'\n"
        "print([name for name in heavy.split() if f'tagent_nb.{name}' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
