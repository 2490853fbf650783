"""What is the same for all units of a step in one run, worked out once."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING, Any, NamedTuple

from tagent_nb.events import NO_ENTRIES
from tagent_nb.pipeline import AGENT_KINDS, ExecutionMode, PipelineStep, error_classes
from tagent_nb.runners import PythonRunner
from tagent_nb.serde import Classes
from tagent_nb.templating import Reference

if TYPE_CHECKING:
    from tagent_nb.cache import ResultCache
    from tagent_nb.engine.context import RunContext
    from tagent_nb.events import Output
    from tagent_nb.pipeline import Pipeline
    from tagent_nb.runners import StepRunner

StepOutputs = Mapping[str, "Output | None"]
"""What a step may read, by name."""

_FEW = 8
"""Names up to which a list is searched as fast as a set."""

_ITEM = re.compile(r"\bitem\b")


class Plain(NamedTuple):
    """A body that is an async function, of a step that asks for no more than one attempt and its inputs.

    Attributes:
        function: The function.
        parameters: Its parameters that have a value, each with the name of the step or input that it is of.
        provided: Those that are something of the attempt, such as ``context``.
    """

    function: Callable[..., Coroutine[Any, Any, Any]]
    parameters: Sequence[tuple[str, str]]
    provided: frozenset[str]


class PreparedStep:
    """A step of one run, with all that is the same for its units. What takes time is done when it is read.

    Args:
        context: Of the run.
        step: The step.
        above: Names of the steps that it waits for.

    Attributes:
        serial: Whether it shares the lock of SERIAL steps.
        plain: Its body, where each attempt may go the short way.
        short: Whether the whole step does: one unit without a fingerprint, which asks for inputs only.
        inputs: The values that it reads and no step makes, by name.
        components: The part of its fingerprint that all its units share; ``None`` until it is worked out.
        trusts_records: Whether its items read nothing but what the step reads: no answers of other items.
        facts: Facts and memories that reach the items of a mapped step; ``None`` until they are looked up.
    """

    trusts_records = True
    components: Mapping[str, str] | None = None
    facts: tuple[dict[str, Any], dict[str, Any]] | None = None

    def __init__(self, context: RunContext, step: PipelineStep, above: Sequence[str]) -> None:
        self._context = context
        self.run_id = context.run_id
        self.step = step
        self.name = step.name
        self.above = above
        self.inputs: Mapping[str, Output] = (
            {name: context.inputs[name] for name in context.reads_inputs.get(step.name, ())}
            if context.inputs
            else NO_ENTRIES
        )
        self.serial = step.execution_mode is ExecutionMode.SERIAL
        self.plain = self._plain()
        self.short = (
            self.plain is not None
            and not self.plain.provided
            and step.when is None
            and step.runs_over is None
            and not context.keyed
        )

    def _plain(self) -> Plain | None:
        step = self.step
        body = step.body
        if (
            body is None
            or body.function is None
            or step.timeout is not None
            or step.approve
            or vars(step).get("checks")
            or step.retry_count
            or type(self._context.services.runners["python"]) is not PythonRunner
        ):
            return None
        code = getattr(body.function, "__code__", None)
        if code is None or not code.co_flags & CO_COROUTINE:
            return None
        parameters = []
        above = self.above if len(self.above) < _FEW else frozenset(self.above)
        for name in body.params:
            if name in above or name in self.inputs:
                parameters.append((name, name))
            elif name == "item" and step.map_over is not None:
                parameters.append((name, self.source.step))
            elif name not in body.optional:
                return None  # an attempt says what is wrong
        return Plain(body.function, parameters, body.provided)

    # -- how it is to go --------------------------------------------------------------------

    @cached_property
    def asks_network(self) -> bool:
        """Whether it waits for a model over the network."""
        if self.step.is_python:
            return False
        from tagent_nb.runners import asks_network

        return asks_network(self.model)

    @cached_property
    def at_once(self) -> int:
        """Most attempts at its units at the same time."""
        services = self._context.services
        network = services.network_concurrency
        calls = services.max_concurrency if network is None or not self.asks_network else network
        return calls * self.step.rows_per_call if self.shares_calls else calls

    @cached_property
    def shares_calls(self) -> bool:
        """Whether one call asks for several of its items. A runner of the user's may not know how."""
        return self.step.rows_per_call > 1 and getattr(self.runner, "shares_calls", False)

    @cached_property
    def forced(self) -> bool:
        """Whether neither cache nor record may answer for it."""
        return self._context.options.forces(self.name)

    @cached_property
    def passes_cache(self) -> bool:
        """Whether the cache may not answer for it."""
        return self._context.options.passes_cache(self.name)

    @cached_property
    def cache(self) -> ResultCache | None:
        """The cache, if it is asked, and filled, for the step."""
        return self._context.services.cache if self._context.options.use_cache and self.step.cache else None

    @cached_property
    def runner(self) -> StepRunner:
        """The runner for this kind of step."""
        step = self.step
        return self._context.services.runners[
            "python" if step.is_python else AGENT_KINDS[step.agent].runner_key
        ]

    @cached_property
    def runner_version(self) -> str:
        """What a fingerprint has of the runner: its version, which names the kind of agent unless that is
        ``"single"``, so that no kind answers for another."""
        step, version = self.step, self.runner.version
        if step.is_python or step.agent == "single" or version.startswith(f"{step.agent} "):
            return version
        return f"{step.agent} {version}"

    @cached_property
    def model(self) -> Any:
        """The step's own model, else the run's, else the pipeline's."""
        return model_of(self._context.pipeline, self.step, self._context.services.model)

    @cached_property
    def instructions(self) -> str | None:
        """The step's own system prompt, else the pipeline's."""
        own = self.step.instructions
        return self._context.pipeline.instructions if own is None else own

    @cached_property
    def constraints(self) -> list[str]:
        """The pipeline's constraints and the step's own. Not to be changed."""
        return [*self._context.pipeline.global_constraints, *self.step.constraints]

    @cached_property
    def classes(self) -> Classes:
        """Classes that stored values of the step may become."""
        return Classes.of(self._context.services.schemas, self.name)

    @cached_property
    def shared_inputs(self) -> dict[str, Any]:
        """Copies of values that the items of a mapped Python step share."""
        return {}

    @cached_property
    def retried_errors(self) -> tuple[type[Exception], ...]:
        """The classes of its ``retry_on``."""
        return error_classes(self.name, self.step.retry_on, self._context.services.namespace)

    # -- what it reads ----------------------------------------------------------------------

    def outputs(self, upstream: StepOutputs) -> dict[str, Output | None]:
        """What its units may read, by name.

        Args:
            upstream: The outputs of the steps that it waits for; one that is missing has none.
        """
        outputs: dict[str, Output | None] = {name: upstream.get(name) for name in self.above}
        outputs.update(self.inputs)
        return outputs

    @cached_property
    def source(self) -> Reference:
        """What it maps over, or reduces; only steps that do have it."""
        return source_of(self.step)

    @cached_property
    def references(self) -> Sequence[Reference]:
        """The parts of its inputs that a unit reads."""
        return reads(self.step, (*self.above, *self.inputs))

    @cached_property
    def read_names(self) -> frozenset[str]:
        """Names of the steps and inputs that a unit reads."""
        return frozenset(reference.step for reference in self.references)

    # -- its fingerprint --------------------------------------------------------------------

    def static_components(self, memo: dict[Any, Any]) -> dict[str, str]:
        """The part of a fingerprint that is the same for all units of the step in this run.

        Args:
            memo: What the fingerprints of the run share.

        Raises:
            LargeValue: It refers to a large value, while these are refused.
        """
        from tagent_nb.cache import definition_components

        context, step = self._context, self.step
        name, parts, tools = None, {}, []
        roles: dict[str, tuple[str, Mapping[str, Any]]] = {}
        if step.body is None:
            from tagent_nb.runners import model_name, model_parts, tools_for

            name, parts, tools = model_name(self.model), model_parts(self.model), tools_for(step)
            roles = {role: (model_name(other), model_parts(other)) for role, other in step.models.items()}
        return definition_components(
            step,
            constraints=self.constraints,
            shared=context.pipeline.shared_context,
            model=name,
            settings={setting: value for setting, value in step.settings.items() if setting != "stream"},
            tools=tools,
            runner_version=self.runner_version,
            namespace=context.services.namespace,
            inputs=(*self.above, *self.inputs),
            memo=memo,
            model_parts=parts,
            instructions=self.instructions,
            roles=roles,
        )


def model_of(pipeline: Pipeline, step: PipelineStep, default: Any) -> Any:
    """The model of a step: its own, else the run's ``default``, else the pipeline's."""
    for model in (step.model, default):
        if model is not None:
            return model
    return pipeline.model


# -- what the units of a step read ------------------------------------------------------------


def source_of(step: PipelineStep) -> Reference:
    """What a mapped step maps over, or one with ``reduce_over`` reduces."""
    return _source(step.runs_over or "")


@lru_cache(maxsize=1024)
def _source(map_over: str) -> Reference:
    return Reference.parse(map_over, "map")


def reads(step: PipelineStep, inputs: Iterable[str]) -> list[Reference]:
    """The parts of its inputs that a unit of this step reads."""
    source = source_of(step).step if step.map_over is not None else ""
    body = step.body
    if body is None:
        references = [reference for reference in step.references if reference.kind == "goal"]
        if source and _ITEM.search(step.goal):
            references.append(Reference(source, (), "goal"))
        return references
    read = {*body.params, *body.names, *body.provided}
    names = [name for name in inputs if name in read]
    if source and source not in names and "item" in read:
        names.append(source)
    return [Reference(name, (), "goal") for name in names]


def wants(step: PipelineStep, name: str) -> bool:
    """Whether facts or memories reach this step: every agent, and Python that asks for them."""
    body = step.body
    return body is None or body.wants_context or name in body.provided or name in body.params
