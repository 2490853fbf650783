"""Which runner runs which kind of step."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import tagent_nb.runners
from tagent_nb import (
    DefinitionError,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    ResultCache,
    StepContext,
    StepStatus,
)
from tagent_nb.display import step_facts
from tagent_nb.engine.session import Runners
from tagent_nb.pipeline import AGENT_KINDS, AgentKind, agents, chosen_kind
from tagent_nb.runners import AgentRunner, Models, PlanRunner, PythonRunner


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
        "heavy = 'runners.agent.runner runners.models.resolve engine.dry_run'\n"
        "heavy += ' cache.fingerprint results.frames'\n"
        "print([name for name in heavy.split() if f'tagent_nb.{name}' in sys.modules])\n"
        "from importlib.util import find_spec\n"
        "assert all(find_spec(f'tagent_nb.{name}') for name in heavy.split())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_kind_of_agent_is_registered_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation, the executor, the card and the options know it from there."""
    kind = AgentKind("echo", "EchoRunner", "echo", "It repeats its goal.", card=lambda step: "to repeat")
    monkeypatch.setitem(AGENT_KINDS, "echo", kind)
    monkeypatch.setattr(tagent_nb.runners, "EchoRunner", Echo, raising=False)
    pipeline = Pipeline("p", model="test").step("say", "Hello.", agent="echo")
    assert (await PipelineExecutor(pipeline).execute())["say"] == "Hello."
    assert ("plans", "to repeat") in step_facts(pipeline, pipeline.steps[0])
    with pytest.raises(DefinitionError, match="or 'echo', not 'ech'. Did you mean 'echo'"):
        pipeline.step("other", "Hello.", agent="ech")


async def test_two_kinds_never_answer_for_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kind counts for the cache even where its runner has the version of another."""
    monkeypatch.setitem(AGENT_KINDS, "echo", AgentKind("echo", "EchoRunner", "echo", "It repeats its goal."))
    monkeypatch.setattr(tagent_nb.runners, "EchoRunner", Echo, raising=False)
    monkeypatch.setattr(Echo, "version", AgentRunner.version)
    cache = ResultCache(tmp_path / "cache")
    single = Pipeline("p", model="test").step("say", "Hello.")
    value = (await PipelineExecutor(single, cache=cache).execute())["say"]
    echo = Pipeline("p", model="test").step("say", "Hello.", agent="echo")
    assert value != "Hello."
    assert (await PipelineExecutor(echo, cache=cache).execute())["say"] == "Hello."
    assert (await PipelineExecutor(single, cache=cache).execute()).steps["say"].status is StepStatus.CACHED


def test_a_step_has_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two options are refused, not one of them ignored."""
    kinds = [AgentKind(name, "", name, "") for name in ("plan", "echo")]
    monkeypatch.setattr(agents, "OPTIONAL_KINDS", kinds)
    with pytest.raises(DefinitionError, match="--plan and --echo are 2 kinds of agent, and a step has one"):
        chosen_kind(Namespace(plan=True, echo=True))
    assert chosen_kind(Namespace(plan=False, echo=True)) == "echo"


class Echo:
    """A runner that asks no model."""

    version = "echo 1"

    def __init__(self, models: Models) -> None:
        self.models = models

    async def run(self, step: PipelineStep, context: StepContext) -> str:
        return step.goal
