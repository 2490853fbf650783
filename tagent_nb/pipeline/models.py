"""What is to be done: steps and pipelines, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb.errors import DefinitionError, OutputValidationError, UnknownStepError, did_you_mean
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline.kinds import Dependency, DependencyType, ExecutionMode, StepStatus
from tagent_nb.pipeline.names import pipeline_name, step_name, storage_id

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.pipeline.body import PythonBody
    from tagent_nb.pipeline.budget import Budget
    from tagent_nb.pipeline.conditions import Condition
    from tagent_nb.pipeline.template import Reference

__all__ = [
    "Dependency",
    "DependencyType",
    "ExecutionMode",
    "Pipeline",
    "PipelineStep",
    "StepStatus",
    "TokenUsage",
]

MAX_GOAL = 262_144
"""Longest goal, in characters. Longer text belongs into a step that the goal refers to."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class PipelineStep:
    """One step of a pipeline. Immutable; to change one, ``pipeline.put`` a new one of its name.

    Attributes:
        name: Identifier of at most 64 characters, unique in its pipeline.
        goal: What the step is to achieve: a template, ``{{ load.text }}`` refers to other steps.
        constraints: Rules that the answer must keep.
        depends_on: Names of steps, each with an optional type: ``"load"``, ``"extra:weak"``.
            Steps that the goal, the condition or the Python body refer to need not be repeated.
        execution_mode: See :class:`ExecutionMode`.
        timeout: Seconds that one attempt may take, or ``None``.
        retry_count: Attempts spent before this run. Never changed by a run.
        max_retries: Attempts after the first.
        tools_filter: Names or globs of the tools this step may use; ``None`` allows all of them.
        output_schema: Pydantic model of the answer; text without one.
        body: The Python of a Python step; ``None`` for an agent step.
        when: Condition under which the step runs: an expression or a condition object.
        map_over: Name of a step (or ``"step.field"``) whose items this step runs over, one by one.
        min_success: Share (0 to 1) of items that must succeed, 1.0 without a say.
        agent: ``"single"``: one conversation with the model. ``"plan"``: the model plans tasks, which
            are carried out and judged; see :class:`~tagent_nb.steps.planner.PlanRunner`.
        max_replans: New plans after the first that a step with ``agent="plan"`` may make.
        model: Model for this step (``"openai:..."``, ``"local"``); else the pipeline's.
        settings: Model settings such as ``{"temperature": 0.0, "max_tokens": 200}``.
        tools: Functions this step may call besides the registered ones.
        output_retries: Times an answer that is invalid, or that a check refuses, goes back to the model.
        checks: Functions ``check(value)`` or ``check(value, context)``, sync or async, that raise
            ``ValueError`` or ``AssertionError`` (or return ``False``) to refuse a value. An agent is
            then asked for another answer; a Python step fails.
        approve: Whether the step's value waits until somebody has approved it.
        approve_tools: Names or globs of tools whose calls wait for approval, besides the tools that say
            so themselves.
        remember: Whether the model gets a tool to remember facts for later steps, and memories for later
            runs.
        cache: Whether the cache may answer for this step.
        budget: Most that all attempts and items of this step may spend in a run: USD, a text such as
            ``"5000 tokens"``, or a :class:`Budget`.

    Raises:
        DefinitionError: A field is not allowed; the message names step, field and remedy.
    """

    name: str
    goal: str
    constraints: list[str] = field(default_factory=list)
    depends_on: list[str | Dependency] = field(default_factory=list)
    execution_mode: ExecutionMode = ExecutionMode.SERIAL
    timeout: float | None = None
    retry_count: int = 0
    max_retries: int = 3
    tools_filter: list[str] | None = None
    output_schema: type[BaseModel] | None = None
    body: PythonBody | None = None
    when: str | Condition | None = None
    map_over: str | None = None
    min_success: float = 1.0
    agent: str = "single"
    max_replans: int = 2
    model: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    tools: list[Callable[..., Any]] = field(default_factory=list)
    output_retries: int = 2
    checks: list[Callable[..., Any]] = field(default_factory=list)
    cache: bool = True
    approve: bool = False
    approve_tools: list[str] = field(default_factory=list)
    remember: bool = False
    budget: Budget | float | str | None = None

    def __post_init__(self) -> None:
        from tagent_nb.pipeline.validation import check_step, checked_budget

        object.__setattr__(self, "name", step_name(self.name))
        check_step(self)
        # Copies: what the caller does to its lists afterwards must not reach a definition.
        for name in ("constraints", "tools", "checks", "approve_tools"):
            object.__setattr__(self, name, list(getattr(self, name)))
        object.__setattr__(self, "settings", dict(self.settings))
        object.__setattr__(self, "depends_on", [_plain(Dependency.parse(one)) for one in self.depends_on])
        if self.budget is not None:
            object.__setattr__(self, "budget", checked_budget(self.name, self.budget))
        if self.tools_filter is not None:
            object.__setattr__(self, "tools_filter", list(self.tools_filter))

    @classmethod
    def from_cell(cls, name: str, cell: str, *, python: bool = False, **options: Any) -> PipelineStep:
        """Make a step from the text of a cell: a goal, or with ``python`` a Python body.

        Raises:
            DefinitionError: The cell is blank, is not valid Python, or an option is not allowed.
        """
        unknown = set(options) - {one.name for one in fields(cls)}
        if unknown:
            raise DefinitionError(unknown_option(step_name(name), sorted(unknown)[0]))
        text = cell.strip("\n")
        if not text.strip():
            raise DefinitionError(
                f"Step {name!r}: the cell is empty. Write its goal or its Python below the first line."
            )
        if not python:
            return cls(name=name, goal=text.strip(), **options)
        from tagent_nb.pipeline.body import PythonBody

        body = PythonBody.from_cell(step_name(name), text)
        return cls(name=name, goal=body.summary, body=body, **options)

    @property
    def is_python(self) -> bool:
        """Whether this is a Python step, else an agent step."""
        return self.body is not None

    @cached_property
    def dependencies(self) -> tuple[Dependency, ...]:
        """The dependencies written in ``depends_on``, parsed."""
        return tuple(Dependency.parse(one) for one in self.depends_on)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """Parts of other steps that goal, condition and ``map_over`` refer to.

        Raises:
            TemplateError: The goal or the condition cannot be read.
        """
        from tagent_nb.pipeline.template import references_of

        return references_of(self)

    def validate_output(self, result: Any) -> Any:
        """Return ``result`` as an instance of ``output_schema``, or as it is without a schema.

        Raises:
            OutputValidationError: It does not match; the message lists every field that is wrong.
        """
        if self.output_schema is None or isinstance(result, self.output_schema):
            return result
        from tagent_nb.pipeline.validation import to_schema

        try:
            return to_schema(self.output_schema, result)
        except ValueError as error:
            raise OutputValidationError(
                f"Step {self.name!r} output does not match schema {self.output_schema.__name__}: {error}"
            ) from None

    def with_(self, **changes: Any) -> PipelineStep:
        """A copy of this step with some fields changed."""
        return replace(self, **changes)


def _plain(dependency: Dependency) -> str | Dependency:
    """A strong dependency is kept as its bare name, as the specification writes it."""
    return dependency.name if dependency.type is DependencyType.STRONG else dependency


def unknown_option(step: str, option: str) -> str:
    """The message for a keyword that a step does not have."""
    known = [one.name for one in fields(PipelineStep)]
    hint = did_you_mean(option, known)
    return f"Step {step!r}: there is no option {option!r}.{hint} Known: {', '.join(known[2:])}."


class Pipeline:
    """Steps, and what they share. Every change can be chained and tells the subscribers.

    Args:
        name: Free text; kernels that use the same name share stored runs and memories.
        description: What the pipeline is for.
        default_mode: Execution mode of steps that do not say.
        model: Model of agent steps that do not say: a pydantic-ai model string, ``"local"``,
            ``"test"``, or a pydantic-ai model object.

    Attributes:
        steps: The steps in definition order.
        global_constraints: Constraints of every step.
        shared_context: Values that every step sees, by name.
    """

    def __init__(
        self,
        name: str,
        description: str = "",
        *,
        default_mode: ExecutionMode = ExecutionMode.SERIAL,
        model: Any = None,
    ) -> None:
        self.name = pipeline_name(name)
        self.description = description
        self.default_mode = default_mode
        self.model = model
        self.steps: list[PipelineStep] = []
        self.global_constraints: list[str] = []
        self.shared_context: dict[str, Any] = {}
        self._positions: dict[str, int] = {}
        # Dependencies by step, in a snapshot only: there they cannot change any more.
        self._known: dict[str, list[Dependency]] | None = None
        self._subscribers: list[Callable[[], None]] = []

    @property
    def id(self) -> str:
        """The id under which runs of this pipeline are stored."""
        return storage_id(self.name)

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {len(self.steps)} steps>"

    def __len__(self) -> int:
        return len(self.steps)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._position(name) is not None

    # -- building ---------------------------------------------------------------------------

    def step(self, name: str, goal: str, **kwargs: Any) -> Pipeline:
        """Add a step. Keywords are the fields of :class:`PipelineStep`.

        Raises:
            DefinitionError: A field is unknown or not allowed.
        """
        self._append(self._make(name=name, goal=goal, **kwargs))
        return self

    def task(self, function: F | None = None, /, **kwargs: Any) -> Any:
        """Make a Python step of a sync or async function; its parameters name the steps it reads.

        Use it bare (``@pipeline.task``) or with step fields (``@pipeline.task(timeout=5)``).
        A parameter with a default reads a step that may be absent; one named ``context`` gets the
        :class:`StepContext`. Returns the function itself.
        """

        def add(target: F) -> F:
            from tagent_nb.pipeline.body import PythonBody

            body = PythonBody.from_function(target)
            options = dict(kwargs)
            name = options.pop("name", target.__name__)
            self.put(self._make(name=name, goal=options.pop("goal", body.summary), body=body, **options))
            return target

        return add if function is None else add(function)

    def check(self, step: str) -> Callable[[F], F]:
        """Let a function check the values of a step: write ``@pipeline.check("classify")`` above a def.

        It is added to ``checks`` of the step, where it replaces one of its name; see
        :class:`PipelineStep`. Defining the step anew leaves it out.

        Raises:
            UnknownStepError: There is no such step.
            DefinitionError: The function takes neither ``(value)`` nor ``(value, context)``.
        """
        found = self.get_step(step)

        def add(function: F) -> F:
            name = getattr(function, "__name__", "")
            others = [one for one in found.checks if getattr(one, "__name__", "") != name]
            self.put(found.with_(checks=[*others, function]))
            return function

        return add

    def put(self, step: PipelineStep) -> Pipeline:
        """Add a step, or replace the one of the same name in its place.

        Raises:
            DefinitionError: A goal or condition reads a field that its upstream's schema lacks.
        """
        from tagent_nb.pipeline.validation import check_fields

        check_fields(self, step)
        place = self._position(step.name)
        if place is None:
            self._append(step)
        else:
            self.steps[place] = step
            self._changed()
        return self

    def remove(self, name: str) -> Pipeline:
        """Take a step out.

        Raises:
            UnknownStepError: There is no such step.
        """
        self.steps.remove(self.get_step(name))
        self._positions.clear()
        self._changed()
        return self

    def constraint(self, *constraints: str) -> Pipeline:
        """Add constraints that every step gets."""
        self.global_constraints.extend(constraints)
        self._changed()
        return self

    def share(self, **values: Any) -> Pipeline:
        """Set values that every step sees as ``shared``."""
        self.shared_context.update(values)
        self._changed()
        return self

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after every change; returns a function that ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    # -- reading ----------------------------------------------------------------------------

    def get_step(self, name: str) -> PipelineStep:
        """The step of this name.

        Raises:
            UnknownStepError: There is none; the message suggests a near name.
        """
        place = self._position(name)
        if place is None:
            known = [step.name for step in self.steps]
            raise UnknownStepError(
                f"Pipeline {self.name!r} has no step {name!r}.{did_you_mean(name, known)} "
                f"Steps: {', '.join(known) or 'none'}."
            )
        return self.steps[place]

    def dependencies(self, step: PipelineStep | str) -> list[Dependency]:
        """All dependencies of a step that are in the pipeline or must be, each name once.

        Explicit ones come first; then those that the goal, the condition, ``map_over`` and the
        Python body imply. An explicit type wins over an implied one.
        """
        from tagent_nb.pipeline.validation import dependencies_of

        found = self.get_step(step) if isinstance(step, str) else step
        if self._known is None:
            return dependencies_of(self, found)
        known = self._known.get(found.name)
        if known is None:
            known = self._known[found.name] = dependencies_of(self, found)
        return known

    def validate(self) -> list[str]:
        """All problems of the definition, one sentence each with the remedy; empty if it can run."""
        from tagent_nb.pipeline.validation import problems

        return problems(self)

    def snapshot(self, only: Container[str] | None = None) -> Pipeline:
        """A copy to run: later changes of this pipeline do not reach it, and it is not to be changed.

        Args:
            only: Names of the steps to keep; all of them without.
        """
        copy = Pipeline(self.name, self.description, default_mode=self.default_mode, model=self.model)
        copy.steps = [step for step in self.steps if only is None or step.name in only]
        copy._known = {}
        copy.global_constraints = list(self.global_constraints)
        copy.shared_context = dict(self.shared_context)
        return copy

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The definition as plain data, schemas as JSON Schema and Python as source."""
        from tagent_nb.pipeline.serialization import pipeline_to_dict

        return pipeline_to_dict(self)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        schemas: Iterable[type[BaseModel]] = (),
        tools: Iterable[Callable[..., Any]] = (),
        checks: Iterable[Callable[..., Any]] = (),
    ) -> Pipeline:
        """Rebuild a pipeline. ``schemas``, ``tools`` and ``checks`` are the classes and functions that its
        steps name.

        Raises:
            DefinitionError: Something cannot be rebuilt; the message says what and how to mend it.
        """
        from tagent_nb.pipeline.serialization import pipeline_from_dict

        return pipeline_from_dict(data, schemas=schemas, tools=tools, checks=checks)

    def to_json(self, *, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON text."""
        from tagent_nb.pipeline.serialization import pipeline_to_json

        return pipeline_to_json(self, indent=indent)

    @classmethod
    def from_json(
        cls,
        text: str,
        *,
        schemas: Iterable[type[BaseModel]] = (),
        tools: Iterable[Callable[..., Any]] = (),
        checks: Iterable[Callable[..., Any]] = (),
    ) -> Pipeline:
        """Rebuild a pipeline from :meth:`to_json`. Runs no code of the text."""
        from tagent_nb.pipeline.serialization import pipeline_from_json

        return pipeline_from_json(text, schemas=schemas, tools=tools, checks=checks)

    def to_pickle(self) -> bytes:
        """The pipeline as a pickle, functions and classes by reference. See :meth:`from_pickle`."""
        from tagent_nb.pipeline.serialization import to_pickle

        return to_pickle(self)

    @classmethod
    def from_pickle(cls, blob: bytes) -> Pipeline:
        """Rebuild from :meth:`to_pickle`. A pickle can run code: load only what you wrote yourself."""
        from tagent_nb.pipeline.serialization import from_pickle

        return from_pickle(blob, cls)

    def __getstate__(self) -> dict[str, Any]:
        # Subscribers are views of this process, and no part of the definition.
        return {**self.__dict__, "_subscribers": []}

    # -- inside -----------------------------------------------------------------------------

    def _make(self, **kwargs: Any) -> PipelineStep:
        known = {one.name for one in fields(PipelineStep)}
        for option in kwargs:
            if option not in known:
                raise DefinitionError(unknown_option(str(kwargs["name"]), option))
        kwargs.setdefault("execution_mode", self.default_mode)
        return PipelineStep(**kwargs)

    def _append(self, step: PipelineStep) -> None:
        self._positions.setdefault(step.name, len(self.steps))
        self.steps.append(step)
        self._changed()

    def _position(self, name: str) -> int | None:
        place = self._positions.get(name)
        if place is not None and place < len(self.steps) and self.steps[place].name == name:
            return place
        # ``steps`` is a public list: somebody may have changed it without us.
        self._positions = {}
        for index, step in enumerate(self.steps):
            self._positions.setdefault(step.name, index)
        return self._positions.get(name)

    def _changed(self) -> None:
        for callback in list(self._subscribers):
            callback()


def is_number(value: object) -> bool:
    """Whether this is a finite int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
