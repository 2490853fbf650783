"""What is refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tagent_nb.errors import ModelError, PipelineValidationError, TagentError, did_you_mean
from tagent_nb.pipeline.foreign import ends_program
from tagent_nb.pipeline.models import Pipeline
from tagent_nb.pipeline.needs import listed, missing_names
from tagent_nb.pipeline.prices import Price


def part_of(pipeline: Pipeline, until: str | None) -> Pipeline:
    """A snapshot, of ``until`` and what it depends on if that is given.

    Raises:
        UnknownStepError: ``until`` names no step.
    """
    if until is None:
        return pipeline.snapshot()
    wanted: set[str] = set()
    waiting = [pipeline.get_step(until).name]
    while waiting:
        name = waiting.pop()
        if name not in wanted and name in pipeline:
            wanted.add(name)
            waiting.extend(dependency.name for dependency in pipeline.dependencies(name))
    return pipeline.snapshot(wanted)


def refuse_problems(pipeline: Pipeline, more: Iterable[str] = ()) -> None:
    """Raise if the definition has problems, or there are ``more``.

    Raises:
        PipelineValidationError: It names all of them.
    """
    problems = [*pipeline.validate(), *more]
    if problems:
        raise PipelineValidationError(pipeline.name, problems)


def agent_problems(pipeline: Pipeline, *, settings: bool) -> list[str]:
    """What is wrong with the tools and settings of agent steps: a run pays for nothing before they are right.

    It is no part of :meth:`Pipeline.validate`, since a cell may name a tool that a later cell registers.

    Args:
        pipeline: What is to run.
        settings: Whether the steps ask models whose settings are known; a runner of the user has its own.
    """
    asking = [step for step in pipeline.steps if not step.is_python]
    found: list[str] = []
    if asking:
        from tagent_nb.steps.tools import tool_problems

        found += [one for step in asking for one in tool_problems(step)]
    if settings and any(step.settings for step in asking):
        from tagent_nb.steps.clients import settings_problems

        found += [one for step in asking for one in settings_problems(step)]
    return found


def refuse_models(pipeline: Pipeline, default: Any) -> None:
    """Raise if the model of some agent step cannot be used; ``default`` is the run's own.

    Raises:
        ModelError: It names the step or the model, and the remedy.
    """
    from tagent_nb.steps.providers import check_model

    seen: list[Any] = []
    for step in pipeline.steps:
        if step.is_python:
            continue
        main = next((one for one in (step.model, default, pipeline.model) if one is not None), None)
        if main is None:
            raise ModelError(
                f"Step {step.name!r} has no model. Give the pipeline one: Pipeline(..., model='local'), "
                "%tagent_pipeline NAME --model local, or PipelineExecutor(..., model=...)."
            )
        for model in (main, *step.models.values()):
            try:
                if any(model is one or (isinstance(model, str) and model == one) for one in seen):
                    continue
                check_model(model)
            except TagentError:
                raise
            except BaseException as error:  # the model's own code: it fails the step that asks it only
                if ends_program(error):
                    raise
                continue
            seen.append(model)


def name_warnings(
    pipeline: Pipeline, default: Any, prices: Mapping[str, Price], limits: Iterable[str]
) -> list[str]:
    """A sentence for names in prices and limits that look misspelt: what they say would count for nothing.

    It is no error: a table may hold more than one pipeline needs.

    Args:
        pipeline: What is to run.
        default: The run's own model.
        prices: The user's own, by model.
        limits: Providers that the user limits.
    """
    models = [
        next((one for one in (step.model, default, pipeline.model) if one is not None), None)
        for step in pipeline.steps
        if not step.is_python
    ] + [model for step in pipeline.steps for model in step.models.values()]
    limited = list(limits)
    if not models or not (prices or limited):
        return []
    from tagent_nb.steps.misspelt import misspelt_limits, misspelt_prices

    try:
        return [*misspelt_prices(prices, models), *misspelt_limits(limited, models)]
    except BaseException as error:  # as in refuse_models: the step that asks the model says so
        if ends_program(error):
            raise
        return []


def missing_warnings(pipeline: Pipeline, namespace: Mapping[str, Any]) -> list[str]:
    """A sentence for each step whose Python uses names that nothing defines.

    It is no error: the code may never come to them, or somebody may define them in time.
    """
    known = [step.name for step in pipeline.steps] + list(map(str, namespace))
    return [
        f"Step {step!r} uses {listed(names)}, which nothing defines: it fails where it comes to that."
        f"{''.join(did_you_mean(name, known) for name in names)} Define it in the notebook, or pass "
        "PipelineExecutor(..., namespace={...})."
        for step, names in missing_names(pipeline, namespace).items()
    ]
