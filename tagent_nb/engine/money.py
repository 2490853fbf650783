"""What a run may spend: its budgets, what is refused beforehand, and what it has spent already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tagent_nb.engine.memory import PipelineMemory
from tagent_nb.errors import DefinitionError
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline.budget import Budget
from tagent_nb.pipeline.foreign import ends_program
from tagent_nb.pipeline.models import Pipeline, PipelineStep
from tagent_nb.pipeline.prices import Price
from tagent_nb.steps.ledger import Ledger

if TYPE_CHECKING:
    from tagent_nb.engine.equipment import RunOptions
    from tagent_nb.steps.calls import CallGate
    from tagent_nb.steps.limits import LimitsGate


def asked_budget(value: Any) -> Budget | Literal[False] | None:
    """The budget that a run was asked to keep; ``False`` for none, ``None`` without a say.

    Raises:
        DefinitionError: It cannot be read.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lower() == "none":
        return False
    return Budget.of(value)


def budget_of(options: RunOptions, default: Budget | None, memory: PipelineMemory) -> Budget | None:
    """The budget of a run: what it was asked to keep, else the executor's, else what it had before."""
    if options.budget is not None:
        return options.budget or None
    if default is not None or not memory.budget:
        return default
    return Budget.of(memory.budget)


def refuse_unpriced(
    pipeline: Pipeline, default: Any, budget: Budget | None, prices: Mapping[str, Price]
) -> None:
    """Raise if a step under a budget in USD has a model whose price nobody knows.

    Args:
        pipeline: What is to run.
        default: The run's own model.
        budget: The run's.
        prices: The user's own.

    Raises:
        DefinitionError: It names the step, the model and the remedy.
    """
    for step in pipeline.steps:
        if step.is_python:
            continue
        own = None if step.budget is None else Budget.of(step.budget)
        limits = [one for one in (budget, own) if one is not None and one.usd is not None]
        if not limits:
            continue
        from tagent_nb.steps.providers import unpriced

        try:
            asked = (_model(pipeline, step, default), *step.models.values())
            names = [name for model in asked for name in unpriced(model, prices)]
        except BaseException as error:  # the model's own code: the step that asks it fails
            if ends_program(error):
                raise
            continue
        if names:
            raise DefinitionError(
                f"Step {step.name!r} cannot run under a budget of {limits[0]}: nobody knows the price of "
                f"model {names[0]!r}. Give it one: prices={{{names[0]!r}: Price(input_per_million=..., "
                f'output_per_million=...)}} or %tagent_pipeline --price "{names[0]} input=... output=..."; '
                'or set a budget of "5000 tokens" or "20 requests".'
            )


def paid_gates(pipeline: Pipeline, ledger: Ledger, limits: LimitsGate | None) -> tuple[CallGate, ...]:
    """What a call passes that is paid: the budget, and behind it the limits, where there are any."""
    gates: tuple[CallGate, ...] = () if limits is None else (limits,)
    if not ledger or all(step.is_python for step in pipeline.steps):
        return gates
    from tagent_nb.steps.budget import BudgetGate

    return (BudgetGate(ledger), *gates)


def ledger_of(
    pipeline: Pipeline,
    default: Any,
    budget: Budget | None,
    prices: Mapping[str, Price],
    memory: PipelineMemory,
) -> Ledger:
    """The accounts of a run, with what its earlier sittings have spent."""
    steps = {step.name: Budget.of(step.budget) for step in pipeline.steps if step.budget is not None}
    return Ledger(budget, steps, _before(pipeline, default, prices, memory))


def _before(
    pipeline: Pipeline, default: Any, prices: Mapping[str, Price], memory: PipelineMemory
) -> dict[str, tuple[TokenUsage, float | None]]:
    found: dict[str, tuple[TokenUsage, float | None]] = {}
    for name, (usage, cost) in memory.spent().items():
        if cost is None and name in pipeline:
            from tagent_nb.steps.providers import models_behind, price

            # Its price may have been told since; tokens that nobody told count as assumed. Which of the
            # models behind a fallback answered is not recorded: the dearest counts.
            step = pipeline.get_step(name)
            asked = (_model(pipeline, step, default), *step.models.values())
            behind = [one for model in asked for one in models_behind(model)]
            costs = [price(one, usage.counted, prices) for one in behind]
            cost = None if None in costs else max(one or 0.0 for one in costs)
        found[name] = (usage, cost)
    return found


def _model(pipeline: Pipeline, step: PipelineStep, default: Any) -> Any:
    return next((one for one in (step.model, default, pipeline.model) if one is not None), None)
