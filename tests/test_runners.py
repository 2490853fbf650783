"""Which runner runs which kind of step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tagent_nb.engine.runners import Runners
from tagent_nb.steps.agent import AgentRunner
from tagent_nb.steps.python import PythonRunner


def test_the_two_kinds_have_a_runner_each_which_stays_the_same() -> None:
    runners = Runners()
    assert isinstance(runners["python"], PythonRunner)
    assert isinstance(runners["agent"], AgentRunner)
    assert runners["agent"] is runners["agent"]


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
