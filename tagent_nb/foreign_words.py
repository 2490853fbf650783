"""Words of other tools, and what to write here: one table for Python, for options of cells and for commands.

TAgent's own words are all in it that have no equal here; of others (CrewAI, LangGraph, pydantic-ai, Prefect)
those that people try first. A word of ours is never in the table of its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import ParamSpec

from tagent_nb.errors import DefinitionError, did_you_mean

__all__ = ["advice", "foreign_attribute", "foreign_name", "option_advice", "own_keywords"]

P = ParamSpec("P")

STEP = {
    "condition": "Write {when}.",
    "run_if": "Write {when}.",
    "condition_mode": "{when} is looked at before the step runs. To judge its value, write {checks}.",
    "read_data": "Name the value where it is used: {{ step.field }} in the goal. It becomes a dependency.",
    "agent_config": "Write {model} and {settings}.",
    "llm": "Write {model}.",
    "system_prompt": "Write {instructions}.",
    "backstory": "Write {instructions}.",
    "role": "Write {instructions}.",
    "api_key": "Keys come from the environment (OPENAI_API_KEY), or belong to a model object: {model}.",
    "verbose": "Look at the result's events, or write observers= of PipelineExecutor or run_agent.",
    "output_format": "Write {output_schema}.",
    "output_type": "Write {output_schema}.",
    "output_pydantic": "Write {output_schema}.",
    "response_model": "Write {output_schema}.",
    "response_format": "Write {output_schema}.",
    "result_type": "Write {output_schema}.",
    "dependencies": "Write {depends_on}.",
    "upstream": "Write {depends_on}.",
    "retries": "Write {max_retries}: attempts after the first.",
    "max_attempts": "Write {max_retries}: attempts after the first.",
    "retry_exceptions": "Write {retry_on}.",
    "retry_if": "Write {retry_on}: classes of errors.",
    "fail_on_error": "Write {max_failures}: items that may fail before a mapped step stops.",
    "maxfail": "Write {max_failures}: items that may fail before a mapped step stops.",
    "guardrail": "Write {checks}.",
    "guardrails": "Write {checks}.",
    "validators": "Write {checks}.",
    "human_input": "Write {approve}.",
    "interrupt_before": "Write {approve}.",
    "memory": "Write {remember}.",
    "temperature": "It is a setting of the model. Write {settings}.",
    "max_tokens": "It is a setting of the model. Write {settings}.",
    "parallel": "Write {execution_mode}.",
    "async_execution": "Write {execution_mode}.",
    "for_each": "Write {map_over}.",
    "foreach": "Write {map_over}.",
    "explode": "Write {map_over} and {flatten}.",
    "flat_map": "Write {map_over} and {flatten}.",
    "n_samples": "Write {samples}.",
    "num_samples": "Write {samples}.",
    "epochs": "Write {samples}: answers that are asked for.",
    "reduce": "Write {reduce_over}.",
    "groupby": "Write {group_by}.",
    "max_iterations": "Limit new plans with {max_replans}, or all requests with {budget} '20 requests'.",
    "max_iter": "Limit new plans with {max_replans}, or all requests with {budget} '20 requests'.",
}
"""Fields of a step. ``{when}`` becomes ``when=`` in Python and ``--when`` in a cell."""

PIPELINE = {
    "steps": "Add them one by one: pipeline.step(name, goal), or pipeline.put(step).",
    "tasks": "Add them one by one: pipeline.step(name, goal), or pipeline.put(step).",
    "constraints": "Add them: pipeline.constraint('...').",
    "global_constraints": "Add them: pipeline.constraint('...').",
    "shared_context": "Set values with pipeline.share(name=value).",
    "llm": "Write model=.",
    "system_prompt": "Write instructions=.",
}

EXECUTOR = {
    "config": "Write model=; settings of the model are a step's: settings=.",
    "executor_config": "Its fields are keywords here: max_concurrency=, storage=, budget=.",
    "max_concurrent_steps": "Write max_concurrency=.",
    "max_workers": "Write max_concurrency=.",
    "enable_persistence": "Write storage=, such as storage='.tagent/runs'.",
    "persistence_config": "Write storage=, such as storage='.tagent/runs'.",
    "checkpointer": "Write storage=, such as storage='.tagent/runs'.",
    "pipeline_timeout": "Write timeout= of Pipeline, or of run().",
    "step_timeout": "A timeout is a step's: pipeline.step(..., timeout=60).",
    "callbacks": "Write observers=.",
    "dry_run": "executor.plan() says what a run would do; in a notebook %tagent_plan.",
    "llm": "Write model=.",
}

_OPTIONS = {
    "checks": "--check",
    "constraints": "--constraint",
    "settings": "--setting",
    "execution_mode": "--concurrent",
    "agent": "--plan",
}
"""Options of cells whose name is not that of the field."""

NAMES = {
    "PipelineBuilder": "Pipeline, which is its own builder: there is no build()",
    "PipelineExecutorConfig": "keywords of PipelineExecutor: max_concurrency=, storage=, budget=",
    "TAgentConfig": "model= of Pipeline or PipelineExecutor, and settings= of a step",
    "AgentModelConfig": "model= of Pipeline or PipelineExecutor, and settings= of a step",
    "PipelineSerializer": "Pipeline.to_json and Pipeline.from_json",
    "PipelineStepContext": "StepContext",
    "PipelineOptimizer": "nothing: steps run as soon as what they read is there",
    "run_task_based_agent": "run_agent(..., agent='plan')",
    "PipelineMonitor": "observers= of PipelineExecutor",
    "CheckpointManager": "storage= of PipelineExecutor; run(resume=True) carries on",
    "PersistenceConfig": "storage= of PipelineExecutor, a folder or a URL",
    "EqualsCondition": "IsEqualTo",
    "NotEqualsCondition": "Not(IsEqualTo(...))",
    "ContainsCondition": "Contains",
    "GreaterThanCondition": "IsGreaterThan",
    "LessThanCondition": "IsLessThan",
    "ExistsCondition": "DataExists",
    "NotExistsCondition": "Not(DataExists(...))",
    "AndCondition": "And",
    "OrCondition": "Or",
    "Crew": "Pipeline",
    "StateGraph": "Pipeline",
}
"""Names that people import, and what is here instead."""

METHODS = {
    "build": "Leave it out: the pipeline is ready. pipeline.validate() lists its problems.",
    "compile": "Leave it out: the pipeline is ready. pipeline.validate() lists its problems.",
    "parallel_steps": "Write pipeline.step(..., execution_mode=ExecutionMode.CONCURRENT) for each, or "
    "Pipeline(default_mode=ExecutionMode.CONCURRENT).",
    "conditional_step": "Write pipeline.step(..., when=...).",
    "add_step": "Write pipeline.step(name, goal), or pipeline.put(step).",
    "add_node": "Write pipeline.step(name, goal).",
    "add_edge": "Write depends_on=, or name the other step in the goal: {{ load }}.",
    "add_global_constraint": "Write pipeline.constraint('...').",
    "add_constraint": "Write pipeline.constraint('...').",
    "set_shared_data": "Write pipeline.share(name=value).",
    "set_shared_variable": "Write pipeline.share(name=value).",
    "set_shared_number": "Write pipeline.share(name=value).",
    "set_shared_flag": "Write pipeline.share(name=value).",
    "set_shared_list": "Write pipeline.share(name=value).",
    "get_step_by_name": "Write pipeline.get_step(name).",
    "get_step_dependencies": "Write pipeline.dependencies(name).",
    "kickoff": "Write pipeline.run().",
    "invoke": "Write pipeline.run().",
    "execute": "Write pipeline.run(), or await PipelineExecutor(pipeline).execute().",
}
"""Methods of other tools' pipelines."""


ROLE_WORDS = {
    "planner": "plan",
    "executor": "act",
    "execute": "act",
    "evaluator": "judge",
    "evaluate": "judge",
    "finalizer": "answer",
    "final": "answer",
    "summarizer": "answer",
}
"""Roles of other tools' planning agents."""

ANSWER = {
    "final_output": "Write .output.",
    "data": "Write .output.",
    "content": "Write .output.",
    "failure_reason": "A question without an answer raises RunFailedError, which says why.",
    "stats": "Write .usage and .cost.",
}
"""Attributes of other tools' answers."""


RESULT = {
    "output": "Write result.final_output, result['step'], or result.get_final_output_or_last_step().",
    "outputs": "Write result.step_outputs.",
    "get_execution_summary": "Write result.summary().",
    "get_success_rate": "Write result.failed_steps, or result.to_frame()['status'].",
    "steps_completed": "Write len(result): how many steps have a value.",
    "steps_failed": "Write result.failed_steps.",
    "pipeline_id": "Write result.run_id for the run, or pipeline.id.",
    "usage": "Write result.token_usage, or result.usage_frame().",
    "cost": "Write result.total_cost, or result.cost_per_step.",
}
"""Attributes of other tools' results."""


class _Fields(dict[str, str]):
    """Fills in how a field is written at a place."""

    def __init__(self, written: Callable[[str], str]) -> None:
        super().__init__()
        self._written = written

    def __missing__(self, field: str) -> str:
        return self._written(field)


def advice(word: str, table: Mapping[str, str]) -> str:
    """What to write in Python instead of a keyword of another tool; empty for an unknown word."""
    return _filled(table.get(word, ""), lambda field: f"{field}=")


def option_advice(option: str, options: Collection[str]) -> str:
    """What to write instead of an option that does not exist; empty for an unknown word.

    Args:
        option: As it was written, such as ``--read-data``.
        options: Those that exist here. A field that none of them sets is named as it is in Python.
    """

    def written(field: str) -> str:
        flag = _OPTIONS.get(field, f"--{field.replace('_', '-')}")
        return flag if flag in options else f"{field}= of the step"

    word = option.lstrip("-").replace("-", "_")
    return _filled(STEP.get(word, ""), written) or advice(word, EXECUTOR)


def _filled(text: str, written: Callable[[str], str]) -> str:
    # Braces of templates stay: only a bare name in single braces is a field.
    if not text:
        return ""
    escaped = text.replace("{{", "{{{{").replace("}}", "}}}}")
    return " " + escaped.format_map(_Fields(written))


def foreign_name(name: str) -> str:
    """The advice on a name of another tool that is imported from here; empty for any other."""
    ours = NAMES.get(name)
    return f"tagent_nb has no {name!r}. What does its work here: {ours}." if ours else ""


def foreign_attribute(owner: object, name: str, table: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that is not there; one of another tool names ours.

    Args:
        owner: Whose attribute.
        name: What was asked for.
        table: Words of other tools for it.
    """
    hint = table.get(name)
    more = f". {hint}" if hint else ""
    return AttributeError(
        f"{type(owner).__name__!r} object has no attribute {name!r}{more}", name=name, obj=owner
    )


def own_keywords(table: Mapping[str, str]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorator of an ``__init__``: an unknown keyword is refused, and what was meant is said.

    Args:
        table: Words of other tools for this class.

    The decorated function raises :class:`DefinitionError`.
    """

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        parameters = tuple(inspect.signature(function).parameters)[1:]
        keywords = frozenset(parameters)

        @wraps(function)
        def init(*args: P.args, **kwargs: P.kwargs) -> None:
            if not kwargs.keys() <= keywords:
                unknown = next(word for word in kwargs if word not in keywords)
                hint = advice(unknown, table) or did_you_mean(unknown, parameters)
                raise DefinitionError(
                    f"{type(args[0]).__name__}: there is no keyword {unknown!r}.{hint} "
                    f"Known: {', '.join(parameters)}."
                )
            function(*args, **kwargs)

        return init

    return decorate
