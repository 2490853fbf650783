"""What is to be done: steps and pipelines, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb.errors import DefinitionError, TagentError, UnknownStepError, did_you_mean
from tagent_nb.foreign_words import METHODS, PIPELINE, foreign_attribute, own_keywords
from tagent_nb.naming import pipeline_name, step_name, storage_id
from tagent_nb.pipeline.enums import Dependency, ExecutionMode
from tagent_nb.pipeline.graph import (
    check_fields,
    checked_inputs,
    dependencies_of,
    inputs_of,
    is_variable,
    problems,
)
from tagent_nb.pipeline.step import PipelineStep, check_options, step_of
from tagent_nb.pipeline.step_checks import checked_instructions, checked_timeout

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.results import PipelineResult

F = TypeVar("F", bound=Callable[..., Any])


def _changing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of lists after which places are looked for anew."""

    @wraps(method)
    def change(steps: StepList, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(steps, *args, **kwargs)
        finally:
            # Afterwards: what it calls, such as a key to sort by, may have asked for places half-way.
            steps._places = None

    return change


class StepList(list["PipelineStep"]):
    """Steps in definition order, and by name. It may be changed as any list."""

    _places: dict[str, int] | None = None

    @property
    def places(self) -> dict[str, int]:
        """Place of each step by name; of several of one name, the first."""
        places = self._places
        if places is None:
            places = {}
            for place, step in enumerate(self):
                places.setdefault(step.name, place)
            self._places = places
        return places

    def add(self, step: PipelineStep) -> None:
        """Append a step, whether there is one of its name or not."""
        self.places.setdefault(step.name, len(self))
        list.append(self, step)

    def put(self, step: PipelineStep) -> None:
        """Append a step, or put it into the place of the first of its name."""
        count = len(self)
        place = self.places.setdefault(step.name, count)
        if place == count:
            list.append(self, step)
        else:
            list.__setitem__(self, place, step)

    append = _changing(list.append)
    clear = _changing(list.clear)
    extend = _changing(list.extend)
    insert = _changing(list.insert)
    pop = _changing(list.pop)
    remove = _changing(list.remove)
    reverse = _changing(list.reverse)
    sort = _changing(list.sort)
    __delitem__ = _changing(list.__delitem__)
    __iadd__ = _changing(list.__iadd__)
    __imul__ = _changing(list.__imul__)
    __setitem__ = _changing(list.__setitem__)


class Pipeline:
    """Steps, and what they share. Every change can be chained and notifies the subscribers.

    Args:
        name: Free text; kernels that use the same name share stored runs and memories.
        description: What the pipeline is for.
        default_mode: Execution mode of steps that set none.
        model: Model of agent steps that name none: a pydantic-ai model string, ``"local"``,
            ``"test"``, or a pydantic-ai model object.
        instructions: System prompt of agent steps that have none of their own; plain text, no template.
        timeout: Most seconds that one session of a run takes, waits included; ``None`` is no limit.
        final: Name of the step whose value is the final output, or a function that makes it: a Python
            step is made of it, whose parameters name the steps it reads.
        inputs: Values that steps read by name as they read steps, such as ``{"df": df}``. A step of the
            same name comes first.

    Attributes:
        global_constraints: Constraints of every step.
        shared_context: Values that every step sees, by name.
        inputs: Values of inputs by name; each run takes them as they are when it begins.
        variables: Where else a name is looked up that is no step and not among ``inputs``: a session sets it
            to the notebook's namespace. ``None``: nowhere.
        final: Name of the step whose value is the final output, if the pipeline says so; see
            :attr:`final_step`.
    """

    @own_keywords(PIPELINE)
    def __init__(
        self,
        name: str,
        description: str = "",
        *,
        default_mode: ExecutionMode = ExecutionMode.SERIAL,
        model: Any = None,
        final: str | Callable[..., Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        instructions: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self.name = pipeline_name(name)
        self.description = description
        self.default_mode = default_mode
        self.model = model
        self.instructions = instructions
        self.timeout = timeout
        self._steps = StepList()
        self.global_constraints: list[str] = []
        self.shared_context: dict[str, Any] = {}
        self.inputs: dict[str, Any] = checked_inputs(inputs or {}, "Pipeline(inputs=)")
        self.variables: Mapping[str, Any] | None = None
        # Dependencies by step, in a snapshot only: there they cannot change any more.
        self._known: dict[str, list[Dependency]] | None = None
        self._subscribers: list[Callable[[], None]] = []
        self.final = None if final is None or callable(final) else step_name(final)
        if callable(final):
            self.task(final, final=True)

    @property
    def steps(self) -> list[PipelineStep]:
        """The steps in definition order; the list may be changed, or replaced by another."""
        return self._steps

    @steps.setter
    def steps(self, steps: Iterable[PipelineStep]) -> None:
        self._steps = StepList(steps)

    @property
    def final_step(self) -> str | None:
        """Name of the step whose value is the final output: one that says ``final``, else :attr:`final`."""
        return next((step.name for step in self.steps if step.final), self.final)

    @property
    def instructions(self) -> str | None:
        """System prompt of agent steps that have none of their own.

        Setting it raises :class:`DefinitionError` for what is no text, or blank.
        """
        return self.__dict__.get("_instructions")

    @instructions.setter
    def instructions(self, text: str | None) -> None:
        self._instructions = checked_instructions(f"Pipeline {self.name!r}", text)

    @property
    def timeout(self) -> float | None:
        """Most seconds that one session of a run takes; see :meth:`PipelineExecutor.execute`.

        Setting it raises :class:`DefinitionError` for what is no number above 0.
        """
        return self.__dict__.get("_timeout")

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._timeout = checked_timeout(f"Pipeline {self.name!r}", seconds)

    @property
    def id(self) -> str:
        """The id under which runs of this pipeline are stored."""
        return storage_id(self.name)

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {len(self.steps)} steps>"

    def __len__(self) -> int:
        return len(self.steps)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same: subscribers and ``variables`` do not count, values by their content."""
        if not isinstance(other, Pipeline):
            return NotImplemented
        return (
            (self.name, self.description, self.default_mode, self.final)
            == (other.name, other.description, other.default_mode, other.final)
            and self.model == other.model
            and (self.instructions, self.timeout) == (other.instructions, other.timeout)
            and self.steps == other.steps
            and self.global_constraints == other.global_constraints
            and _same_values(self.shared_context, other.shared_context)
            and _same_values(self.inputs, other.inputs)
        )

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._steps.places

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
            from tagent_nb.pipeline.python_body import PythonBody

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
        checked = self.get_step(step)

        def add(function: F) -> F:
            name = getattr(function, "__name__", "")
            others = [check for check in checked.checks if getattr(check, "__name__", "") != name]
            self.put(checked.with_(checks=[*others, function]))
            return function

        return add

    def put(self, step: PipelineStep) -> Pipeline:
        """Add a step, or replace the one of the same name in its place.

        Raises:
            DefinitionError: A goal or condition reads a field that its upstream's schema lacks.
        """
        if not step.is_plain:
            check_fields(self, step)
        self._steps.put(step)
        self._changed()
        return self

    def renew(self, steps: Mapping[str, PipelineStep]) -> None:
        """Put other versions of steps into their places. What is wrong with them is found before a run.

        Args:
            steps: By name; each of them must be in the pipeline.
        """
        for name, step in steps.items():
            self.get_step(name)  # raises where there is none
            self._steps.put(step)
        if steps:
            self._changed()

    def remove(self, name: str) -> Pipeline:
        """Take a step out.

        Raises:
            UnknownStepError: There is no such step.
        """
        self.get_step(name)  # raises where there is none
        del self._steps[self._steps.places[name]]
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

    def give(self, **values: Any) -> Pipeline:
        """Set values of :attr:`inputs`, which steps read by name.

        Raises:
            DefinitionError: A name is none that a step could read.
        """
        self.inputs.update(checked_inputs(values, "give()"))
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
        place = self._steps.places.get(name)
        if place is None:
            names = [step.name for step in self.steps]
            raise UnknownStepError(
                f"Pipeline {self.name!r} has no step {name!r}.{did_you_mean(name, names)} "
                f"Steps: {', '.join(names) or 'none'}."
            )
        return self._steps[place]

    def dependencies(self, step: PipelineStep | str) -> list[Dependency]:
        """All dependencies of a step that are in the pipeline or must be, each name once; no inputs.

        Explicit ones come first; then those that the goal, the condition, ``map_over`` and the
        Python body imply. An explicit type wins over an implied one.
        """
        reader = self.get_step(step) if isinstance(step, str) else step
        if self._known is None:
            return dependencies_of(self, reader)
        dependencies = self._known.get(reader.name)
        if dependencies is None:
            dependencies = self._known[reader.name] = dependencies_of(self, reader)
        return dependencies

    def is_input(self, name: str) -> bool:
        """Whether what steps call by this name is an input: no step, but in :attr:`inputs` or a variable."""
        if name in self:
            return False
        if name in self.inputs:
            return True
        if self.variables is None:
            return False
        return is_variable(name, self.variables)

    def inputs_of(self, step: PipelineStep | str) -> list[str]:
        """Names of the inputs that a step reads, each once."""
        return inputs_of(self, self.get_step(step) if isinstance(step, str) else step)

    def validate(self) -> list[str]:
        """All problems of the definition, one sentence each with the remedy; empty if it can run."""
        return problems(self)

    def snapshot(self, only: Container[str] | None = None) -> Pipeline:
        """A copy to run: later changes of this pipeline do not reach it, and it is not to be changed.

        Args:
            only: Names of the steps to keep; all of them without.
        """
        copy = Pipeline(self.name, self.description, default_mode=self.default_mode, model=self.model)
        copy.steps = [step for step in self.steps if only is None or step.name in only]
        copy._known = {}
        copy.instructions, copy.timeout = self.instructions, self.timeout
        if self.final is not None and (only is None or self.final in only):
            copy.final = self.final
        copy.global_constraints = list(self.global_constraints)
        copy.shared_context = dict(self.shared_context)
        copy.inputs = dict(self.inputs)
        copy.variables = self.variables
        return copy

    def fork(self, name: str, changes: Mapping[str, Any] | None = None) -> Pipeline:
        """A pipeline of another name with the same steps but for some changes, to be compared with this one.

        What has not changed has the same fingerprint, so a cache answers for it: nothing of it is paid again.
        Later changes of this pipeline do not reach the other.

        Args:
            name: The new pipeline's.
            changes: New values by step and field, as in ``{"classify.model": "openai:gpt-5"}`` or
                ``{"classify.settings.temperature": 0.0}``.

        Raises:
            DefinitionError: A change names no field that may be changed, or its value is not allowed.
            UnknownStepError: There is no such step.
        """
        other = self.snapshot()
        other.name, other._known = pipeline_name(name), None
        for place, value in (changes or {}).items():
            step, _, field = place.partition(".")
            field, _, key = field.partition(".")
            other.put(_with_change(other.get_step(step), place, field, key, value))
        return other

    def forget_dependencies(self) -> None:
        """Work out dependencies anew: in a snapshot they are kept, and :attr:`inputs` has changed."""
        self._known = None if self._known is None else {}

    # -- running and looking ----------------------------------------------------------------

    def run(self, **options: Any) -> PipelineResult:
        """Run the pipeline and wait for its result; works in scripts, notebooks and running loops.

        Args:
            **options: Keywords of :class:`PipelineExecutor` (``storage``, ``cache``, ``model``, ``budget``)
                and of its :meth:`~PipelineExecutor.run` (``inputs``, ``resume``, ``force``, ``until``,
                ``offline``).

        Raises:
            DefinitionError: There is no such option.
            TagentError: As :meth:`PipelineExecutor.execute` raises.
        """
        run: Callable[..., PipelineResult] = _package("engine").run_pipeline
        return run(self, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """What a notebook shows: the graph, where it can be drawn."""
        try:
            return {"image/svg+xml": _package("graph").to_svg(self), "text/plain": repr(self)}
        except TagentError:  # no Graphviz, or a goal that cannot be read: a run, or %tagent_graph, says so
            return {"text/plain": repr(self)}

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The definition as plain data, schemas as JSON Schema and Python as source."""
        from tagent_nb.pipeline.json import pipeline_to_dict

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
        from tagent_nb.pipeline.json import pipeline_fields
        from tagent_nb.pipeline.step_json import Reader

        reader = Reader(schemas, tools, checks)
        stored = pipeline_fields(data, reader)
        steps, constraints = stored.pop("steps"), stored.pop("global_constraints")
        shared = stored.pop("shared_context")
        stored["inputs"] = checked_inputs(stored["inputs"], "Stored pipeline: inputs")
        pipeline = cls(**stored)
        pipeline.global_constraints, pipeline.shared_context = constraints, shared
        pipeline.steps = [step_of(step, reader) for step in steps]
        return pipeline

    def to_json(self, *, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON text."""
        from tagent_nb.pipeline.step_json import json_text

        return json_text(self.to_dict(), indent)

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
        from tagent_nb.pipeline.step_json import parsed

        return cls.from_dict(parsed(text, "pipeline"), schemas=schemas, tools=tools, checks=checks)

    def to_yaml(self) -> str:
        """The content of :meth:`to_json` as YAML, which people read and write; needs the extra ``yaml``."""
        from tagent_nb.pipeline.yaml_text import pipeline_to_yaml

        return pipeline_to_yaml(self)

    @classmethod
    def from_yaml(
        cls,
        text: str,
        *,
        schemas: Iterable[type[BaseModel]] = (),
        tools: Iterable[Callable[..., Any]] = (),
        checks: Iterable[Callable[..., Any]] = (),
    ) -> Pipeline:
        """Rebuild a pipeline from :meth:`to_yaml`, or from YAML written by hand. Runs no code of the text.

        Raises:
            DefinitionError: It cannot be read; the message has the line and the remedy.
            MissingExtraError: PyYAML is not installed.
        """
        from tagent_nb.pipeline.yaml_text import pipeline_from_yaml

        # Read more than once: the head, then each step by itself.
        passed: dict[str, Any] = {"schemas": list(schemas), "tools": list(tools), "checks": list(checks)}
        return pipeline_from_yaml(text, lambda data: cls.from_dict(data, **passed))

    def to_pickle(self) -> bytes:
        """The pipeline as a pickle, functions and classes by reference. See :meth:`from_pickle`."""
        from tagent_nb.serde import to_pickle

        return to_pickle(self)

    @classmethod
    def from_pickle(cls, blob: bytes) -> Pipeline:
        """Rebuild from :meth:`to_pickle`. A pickle can run code: load only what you wrote yourself."""
        from tagent_nb.serde import from_pickle

        return from_pickle(blob, cls)

    def __getstate__(self) -> dict[str, Any]:
        # Subscribers and variables are of this process, and no part of the definition.
        state = {**self.__dict__, "steps": list(self._steps), "_subscribers": [], "variables": None}
        del state["_steps"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of an earlier version have no inputs.
        state = {"inputs": {}, "variables": None, **state}
        self._steps = StepList(state.pop("steps"))
        self.__dict__.update(state)

    # -- inside -----------------------------------------------------------------------------

    if not TYPE_CHECKING:  # pragma: no branch: checkers would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            raise foreign_attribute(self, name, METHODS)

    def _make(self, **kwargs: Any) -> PipelineStep:
        check_options(str(kwargs["name"]), kwargs)
        if self.default_mode is not ExecutionMode.SERIAL:
            kwargs.setdefault("execution_mode", self.default_mode)
        return PipelineStep(**kwargs)

    def _append(self, step: PipelineStep) -> None:
        self._steps.add(step)
        self._changed()

    def _changed(self) -> None:
        if self._subscribers:
            for callback in list(self._subscribers):
                callback()


def _package(name: str) -> Any:
    """A package above this one, by name: definitions import nothing of what runs or draws them."""
    from importlib import import_module

    return import_module(f"tagent_nb.{name}")


def _same_values(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether values are the same by name, frames and arrays by their content."""
    if left.keys() != right.keys():
        return False
    from tagent_nb.serde import StoredValue

    return all(
        left[name] is right[name] or StoredValue.of(left[name]).digest == StoredValue.of(right[name]).digest
        for name in left
    )


_FIXED_FIELDS = ("name", "body", "retry_count")
"""What makes a step another one, or is no part of its definition."""

_OF_AGENTS = (
    "goal",
    "model",
    "models",
    "settings",
    "instructions",
    "agent",
    "max_replans",
    "output_mode",
    "output_retries",
    "rows_per_call",
    "tools",
    "tools_filter",
    "approve_tools",
    "remember",
)
"""Fields that a Python step has no use for."""


def _with_change(step: PipelineStep, place: str, field: str, key: str, value: Any) -> PipelineStep:
    """A step with another value of a field, or of one key of a field that is a dict."""
    allowed = [name for name in step.__dataclass_fields__ if name not in _FIXED_FIELDS]
    if field not in allowed:
        raise DefinitionError(
            f"{place!r} names no field of a step that can be changed.{did_you_mean(field, allowed)} Write "
            f"STEP.FIELD, such as {step.name}.goal. Fields: {', '.join(allowed)}."
        )
    if step.is_python and field in _OF_AGENTS:
        raise DefinitionError(
            f"{place!r}: step {step.name!r} is Python, which has no {field}. Put another step."
        )
    if not key:
        return step.with_(**{field: value})
    before = getattr(step, field)
    if not isinstance(before, dict):
        raise DefinitionError(f"{place!r}: {field!r} has no parts. Write {step.name}.{field}.")
    return step.with_(**{field: _with_part(before, key.split("."), value)})


def _with_part(parts: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of a dict with another value in it, or in a dict inside."""
    first, *rest = keys
    inside = parts.get(first)
    return {
        **parts,
        first: _with_part(inside if isinstance(inside, Mapping) else {}, rest, value) if rest else value,
    }
