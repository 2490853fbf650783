"""What is taken and refused before anything runs: inputs, options, models, budgets."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from tagent_nb.engine.background import in_thread
from tagent_nb.engine.context import RunOptions
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.unit.prepared import model_of
from tagent_nb.errors import (
    DefinitionError,
    ModelError,
    PipelineValidationError,
    TagentError,
    TemplateError,
    did_you_mean,
)
from tagent_nb.events import Output, TokenUsage
from tagent_nb.pipeline import (
    Budget,
    Pipeline,
    Price,
    checked_inputs,
    error_classes,
    input_value,
    inputs_by_step,
    is_number,
    listed,
    missing_names,
)
from tagent_nb.runners import Ledger, StepRunner
from tagent_nb.serde import StoredValue, own_copy
from tagent_nb.user_objects import ends_program

if TYPE_CHECKING:
    from tagent_nb.runners import CallMiddleware, RateLimiter


def run_options(
    pipeline: Pipeline,
    *,
    resume: bool | str,
    force: bool | Iterable[str],
    until: str | None,
    offline: bool | None,
    use_cache: bool | None,
    on_change: str,
    budget: Budget | float | str | None,
    retry_failed: bool | str | Iterable[str] = False,
    wait: bool = True,
) -> RunOptions:
    """The options of a run; see :meth:`PipelineExecutor.execute`.

    Raises:
        DefinitionError: One has a value that means nothing.
        UnknownStepError: ``force`` or ``retry_failed`` names no step.
    """
    if on_change not in ("refuse", "rerun"):
        raise DefinitionError(f"on_change must be 'refuse' or 'rerun', not {on_change!r}.")
    if not isinstance(resume, bool | str):
        raise DefinitionError(f"resume must name one run, or be True for the newest, not {resume!r}.")
    if not isinstance(wait, bool):
        raise DefinitionError(f"wait must be True or False, not {wait!r}.")
    if not isinstance(until, str | None):
        raise DefinitionError(f"until must name one step, not {until!r}.")
    forced, retried = _steps_named(pipeline, force), _steps_named(pipeline, retry_failed)
    if retried:
        resume = resume or True
    open_switches = {"offline": offline, "use_cache": use_cache} if resume is not False else {}
    return RunOptions(
        resume,
        forced,
        until,
        bool(offline),
        use_cache is not False,
        on_change,
        budget_asked_for(budget),
        retry_failed=retried,
        wait=wait,
        inherits=frozenset(name for name, value in open_switches.items() if value is None),
    )


def _steps_named(pipeline: Pipeline, steps: bool | str | Iterable[str]) -> bool | frozenset[str]:
    if steps is True:
        return True
    names = [steps] if isinstance(steps, str) else list(steps or ())
    return frozenset(pipeline.get_step(name).name for name in names)


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
    problems: list[str] = []
    if asking:
        from tagent_nb.runners import tool_problems

        problems += [problem for step in asking for problem in tool_problems(step)]
    if settings and any(step.settings for step in asking):
        from tagent_nb.runners import settings_problems

        problems += [problem for step in asking for problem in settings_problems(step)]
    return problems


def error_problems(pipeline: Pipeline, namespace: Mapping[str, Any]) -> list[str]:
    """What is wrong with the classes of errors that steps name; a later cell may have defined one."""
    problems = []
    for step in pipeline.steps:
        if step.retry_on:
            try:
                error_classes(step.name, step.retry_on, namespace)
            except DefinitionError as error:
                problems.append(str(error))
    return problems


def refuse_models(pipeline: Pipeline, default: Any) -> None:
    """Raise if the model of some agent step cannot be used; ``default`` is the run's own.

    Raises:
        ModelError: It names the step or the model, and the remedy.
    """
    from tagent_nb.runners import check_model

    seen: list[Any] = []
    for step in pipeline.steps:
        if step.is_python:
            continue
        main_model = model_of(pipeline, step, default)
        if main_model is None:
            raise ModelError(
                f"Step {step.name!r} has no model. Give the pipeline one: Pipeline(..., model='local'), "
                "%tagent_pipeline NAME --model local, or PipelineExecutor(..., model=...)."
            )
        for model in (main_model, *step.models.values()):
            try:
                if any(model is other or (isinstance(model, str) and model == other) for other in seen):
                    continue
                check_model(model)
            except TagentError:
                raise
            except BaseException as error:  # the model's own code: it fails the step that asks it only
                if ends_program(error):
                    raise
                continue
            seen.append(model)


def checked_poll(seconds: Any) -> tuple[float, float]:
    """Seconds between two looks at a batch, at first and at most.

    Raises:
        DefinitionError: They are not two numbers above 0, the second no less than the first.
    """
    pair = tuple(seconds) if isinstance(seconds, tuple | list) else ()
    if len(pair) != 2 or not all(map(is_number, pair)) or not 0 < pair[0] <= pair[1]:
        raise DefinitionError(
            f"batch_poll must be two numbers of seconds above 0, the first and the most, as in (30, 600), "
            f"not {seconds!r}."
        )
    return pair


def refuse_batches(pipeline: Pipeline, default: Any) -> None:
    """Raise if a step is to send batches that cannot; ``default`` is the run's own model.

    Raises:
        PipelineValidationError: It names each step, and the remedy.
    """
    problems = []
    for step in pipeline.steps:
        if step.batch:
            from tagent_nb.runners import batch_problem, named_tools

            tools = named_tools(step)
            problem = batch_problem(model_of(pipeline, step, default))
            if "timeout" in step.settings:
                problems.append(
                    f"Step {step.name!r}: the setting timeout is for a request by itself, and a batch has "
                    "none. Leave it out, or leave batch (--batch) out."
                )
            if tools:
                problems.append(
                    f"Step {step.name!r}: batch cannot be used with tools ({', '.join(tools)}), since a "
                    'batch answers once. Let it have none (tools_filter=[], --tools ""), or leave batch '
                    "(--batch) out."
                )
            elif problem:
                problems.append(
                    f"Step {step.name!r}: {problem} Leave batch (--batch) out, or give the step a model that "
                    "has, such as one of 'openai:...' or 'anthropic:...'."
                )
    refuse_problems(pipeline, problems)


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
    models = [model_of(pipeline, step, default) for step in pipeline.steps if not step.is_python] + [
        model for step in pipeline.steps for model in step.models.values()
    ]
    limited = list(limits)
    if not models or not (prices or limited):
        return []
    from tagent_nb.runners import misspelt_limits, misspelt_prices

    try:
        return [*misspelt_prices(prices, models), *misspelt_limits(limited, models)]
    except BaseException as error:  # as in refuse_models: the step that asks the model says so
        if ends_program(error):
            raise
        return []


def missing_warnings(pipeline: Pipeline, namespace: Mapping[str, Any]) -> list[str]:
    """A sentence for each step whose Python uses names that nothing defines.

    It is no error: the code may never come to them, or they may be defined in time.
    """
    names_in_sight = [step.name for step in pipeline.steps] + list(map(str, namespace))
    return [
        f"Step {step!r} uses {listed(names)}, which nothing defines: it fails where it comes to that."
        f"{''.join(did_you_mean(name, names_in_sight) for name in names)} Define it in the notebook, or pass "
        "PipelineExecutor(..., namespace={...})."
        for step, names in missing_names(pipeline, namespace).items()
    ]


def budget_asked_for(value: Any) -> Budget | Literal[False] | None:
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
    """Raise if a step under a budget in USD has a model whose price is unknown.

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
        limits = [limit for limit in (budget, own) if limit is not None and limit.usd is not None]
        if not limits:
            continue
        from tagent_nb.runners import unpriced

        try:
            models = (model_of(pipeline, step, default), *step.models.values())
            names = [name for model in models for name in unpriced(model, prices)]
        except BaseException as error:  # the model's own code: the step that asks it fails
            if ends_program(error):
                raise
            continue
        if names:
            raise DefinitionError(
                f"Step {step.name!r} cannot run under a budget of {limits[0]}: the price of model "
                f"{names[0]!r} is unknown. Give it one: prices={{{names[0]!r}: Price(input_per_million=..., "
                f'output_per_million=...)}} or %tagent_pipeline --price "{names[0]} input=... output=..."; '
                'or set a budget of "5000 tokens" or "20 requests".'
            )


def paid_middleware(
    pipeline: Pipeline, ledger: Ledger, limits: RateLimiter | None
) -> tuple[CallMiddleware, ...]:
    """What a call passes that is paid: the budget, and behind it the limits, where there are any."""
    middleware: tuple[CallMiddleware, ...] = () if limits is None else (limits,)
    if not ledger or all(step.is_python for step in pipeline.steps):
        return middleware
    from tagent_nb.runners import BudgetMiddleware

    return (BudgetMiddleware(ledger), *middleware)


def ledger_of(
    pipeline: Pipeline,
    default: Any,
    budget: Budget | None,
    prices: Mapping[str, Price],
    memory: PipelineMemory,
) -> Ledger:
    """The accounts of a run, with what its earlier sessions have spent."""
    steps = {step.name: Budget.of(step.budget) for step in pipeline.steps if step.budget is not None}
    return Ledger(budget, steps, _before(pipeline, default, prices, memory))


def _before(
    pipeline: Pipeline, default: Any, prices: Mapping[str, Price], memory: PipelineMemory
) -> dict[str, tuple[TokenUsage, float | None]]:
    spent: dict[str, tuple[TokenUsage, float | None]] = {}
    for name, (usage, cost) in memory.spent().items():
        if cost is None and name in pipeline:
            from tagent_nb.runners import models_behind, price

            # Its price may be known by now; tokens that were not reported count as assumed. Which of the
            # models behind a fallback answered is not recorded: the dearest counts.
            step = pipeline.get_step(name)
            models = (model_of(pipeline, step, default), *step.models.values())
            behind = [candidate for model in models for candidate in models_behind(model)]
            costs = [price(candidate, usage.counted, prices) for candidate in behind]
            cost = None if None in costs else max(candidate_cost or 0.0 for candidate_cost in costs)
        spent[name] = (usage, cost)
    return spent


def asks_models(pipeline: Pipeline, runners: Mapping[str, StepRunner], *, offline: bool) -> bool:
    """Whether steps ask models that are known here; a runner of the user has its own."""
    if offline or all(step.is_python for step in pipeline.steps):
        return False
    from tagent_nb.runners import AgentRunner

    return isinstance(runners["agent"], AgentRunner)


class TakenInputs(dict[str, Output]):
    """Copies of a pipeline's inputs by name, all of one moment. What happens to the originals later does not
    reach them."""


def looking_in(pipeline: Pipeline, values: Mapping[str, Any], namespace: Mapping[str, Any]) -> Pipeline:
    """A snapshot of a pipeline that finds inputs where a run does: what it was given, its own, variables.

    Args:
        pipeline: The pipeline.
        values: Values for this run alone.
        namespace: Variables, such as the notebook's; those that the pipeline knows of come after them.
    """
    snapshot = pipeline.snapshot()
    snapshot.inputs.update(values)
    if namespace and pipeline.variables is not None and pipeline.variables is not namespace:
        snapshot.variables = ChainMap(dict(namespace), dict(pipeline.variables))
    elif namespace:
        snapshot.variables = namespace
    return snapshot


def take(pipeline: Pipeline, values: Mapping[str, Any] | None, namespace: Mapping[str, Any]) -> TakenInputs:
    """Copy the inputs that steps read, as they are now.

    Raises:
        DefinitionError: ``values`` has a name that no step reads as an input.
    """
    if isinstance(values, TakenInputs):
        return values
    own = checked_inputs(values or {}, "inputs")
    snapshot = looking_in(pipeline, own, namespace)
    names = taken_names(snapshot)
    for name in own.keys() - names:
        if name in pipeline:
            raise DefinitionError(
                f"inputs: {name!r} is a step of pipeline {pipeline.name!r}, and its value is what the step "
                f"makes. Rename one of them, or let the step read a file: feed(pipeline, '{name}=FILE')."
            )
        raise DefinitionError(
            f"inputs: no step of pipeline {pipeline.name!r} reads {name!r}.{did_you_mean(name, names)} "
            f"Steps read as inputs: {', '.join(names) or 'nothing'}."
        )
    return TakenInputs((name, _copied(input_value(snapshot, name))) for name in names)


def taken_names(pipeline: Pipeline) -> list[str]:
    """The inputs that steps of a pipeline read, each once."""
    return list(dict.fromkeys(name for names in inputs_by_step(pipeline).values() for name in names))


def _copied(value: Any) -> StoredValue:
    return StoredValue.of(own_copy(value))


def expected_names(pipeline: Pipeline) -> list[str]:
    """Names that steps read and that are neither steps nor inputs: a run that is carried on may have them."""
    names: dict[str, None] = {}
    for step in pipeline.steps:
        try:
            needed = pipeline.dependencies(step)
        except TemplateError:  # validate() says so
            continue
        names.update(
            dict.fromkeys(dependency.name for dependency in needed if dependency.name not in pipeline)
        )
    return list(names)


async def settle(
    pipeline: Pipeline, taken: TakenInputs, memory: PipelineMemory
) -> tuple[dict[str, Output], list[str]]:
    """The inputs of a run, and the names of those that have changed since it began.

    Args:
        pipeline: The snapshot that runs. What neither the caller nor the run has is no input of it any more.
        taken: Inputs as they are now.
        memory: What the run has recorded of them.

    Raises:
        PipelineValidationError: A step reads what is neither a step nor an input, or an input that cannot be
            stored.
    """
    readers = _readers(pipeline)
    settled: dict[str, Output] = {}
    problems, changed = [], []
    for name, steps in readers.items():
        recorded, now = memory.inputs.get(name), taken.get(name)
        if now is None:
            if recorded is not None:
                settled[name] = recorded
            continue
        problem = await _problem(now)
        if problem is not None:
            problems.append(_refusal(name, steps, now, problem))
        elif recorded is not None and recorded.digest == now.digest:
            settled[name] = recorded
        else:
            settled[name] = now
            if recorded is not None:
                changed.append(name)
    pipeline.inputs = dict.fromkeys(settled)
    if len(settled) + len(problems) < len(readers):
        pipeline.forget_dependencies()
        refuse_problems(pipeline, problems)
    pipeline.variables = None
    if problems:
        raise PipelineValidationError(pipeline.name, problems)
    return settled, changed


def _readers(pipeline: Pipeline) -> dict[str, list[str]]:
    """The steps that read each input."""
    readers: dict[str, list[str]] = {}
    for step, names in inputs_by_step(pipeline).items():
        for name in names:
            readers.setdefault(name, []).append(step)
    return readers


async def _problem(value: Output) -> str | None:
    """Why an input cannot be stored; ``None`` if it can."""
    if isinstance(value, StoredValue) and value.is_heavy:
        await in_thread(value.sealed)
    return value.problem


def _refusal(name: str, steps: Iterable[str], value: Output, problem: str) -> str:
    first, *others = steps
    more = f" (and {len(others)} more)" if others else ""
    kind = type(value.value)
    return (
        f"Step {first!r}{more} reads {name!r} as an input, a value of type {kind.__module__}."
        f"{kind.__qualname__}, which cannot be stored with the run: {name}{problem.removeprefix('output')}. "
        "Put what the step needs of it into a variable that holds data, such as a list, a dict or a "
        "DataFrame, or make it in a Python step."
    )
