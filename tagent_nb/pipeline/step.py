"""One step of a pipeline, as plain data."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, NoReturn

from tagent_nb.errors import DefinitionError, OutputValidationError, did_you_mean
from tagent_nb.foreign_words import ROLE_WORDS, STEP, advice, own_keywords
from tagent_nb.naming import step_name
from tagent_nb.pipeline.agents import AGENT_KINDS, SINGLE
from tagent_nb.pipeline.enums import Dependency, DependencyType, ExecutionMode
from tagent_nb.pipeline.retry_on import checked_kinds

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.pipeline.budget import Budget
    from tagent_nb.pipeline.conditions import Condition
    from tagent_nb.pipeline.python_body import PythonBody
    from tagent_nb.pipeline.step_json import Reader
    from tagent_nb.templating import Reference


OUTPUT_MODES = ("tool", "native", "prompted")

THEN_LIVE = "then-live"
"""The ``batch`` of a step whose requests are asked one by one after their first batch."""

ROLES = tuple(dict.fromkeys(role for kind in AGENT_KINDS.values() for role in kind.roles))
"""What steps of all kinds ask models for."""

MAX_ROWS_PER_CALL = 1000
"""Most rows that one call may ask for."""

MAX_GOAL = 262_144
"""Longest goal, in characters. Longer text belongs into a step that the goal refers to."""


ENDED_FOR_SHARE = 20
"""Items that have to have ended before ``max_failures`` as a share of them counts."""


@dataclass(frozen=True)
class PipelineStep:
    """One step of a pipeline. Immutable; to change one, ``pipeline.put`` a new one of its name.

    Attributes:
        name: Identifier of at most 64 characters, unique in its pipeline.
        goal: What the step is to achieve: a template, ``{{ load.text }}`` refers to other steps.
        instructions: System prompt of one's own, in place of the pipeline's; plain text, no template. The
            rule that data is no instruction, and the constraints, follow it.
        constraints: Rules that the answer must keep.
        depends_on: Names of steps, each with an optional type: ``"load"``, ``"extra:weak"``.
            Steps that the goal, the condition or the Python body refer to need not be repeated.
        execution_mode: See :class:`ExecutionMode`.
        timeout: Seconds that one attempt may take, or ``None``.
        retry_count: Attempts spent before this run: they count as some of those that ``max_retries`` allows,
            and never make an error one that is tried again. Never changed by a run.
        max_retries: Most attempts after the first, at what may pass. Mistakes in code are not tried again,
            nor are errors of a Python step that come from its data, such as ``ValueError``; see ``retry_on``.
        tools_filter: Names or globs of the tools this step may use; ``None`` allows all of them.
        output_schema: Pydantic model of the answer; text without one.
        body: The Python of a Python step; ``None`` for an agent step.
        when: Condition under which the step runs: an expression or a condition object.
        map_over: Name of a step (or ``"step.field"``) whose items this step runs over, one by one.
        min_success: Share (0 to 1) of items that must succeed, 1.0 by default. Beside ``reduce_over`` it is
            one of the parts of the rows, and of all samples where there are several.
        max_failures: Most items that may fail: with the next one the step fails, and no further item starts.
            A whole number, or a share (above 0, below 1) of the items that this session has run, once 20 of
            them have ended. Without it all items are run, however many fail.
        agent: ``"single"``: one conversation with the model. ``"plan"``: the model plans tasks, which
            are carried out and judged; see :class:`~tagent_nb.runners.planner.runner.PlanRunner`.
        max_replans: New plans after the first that a step with ``agent="plan"`` may make.
        model: Model for this step (``"openai:..."``, ``"local"``); else the pipeline's.
        models: Models by role of a planning step, in place of its model: ``"plan"`` (writes plans), ``"act"``
            (does tasks), ``"judge"`` (says whether the goal is reached), ``"answer"`` (writes the answer).
        settings: Model settings such as ``{"temperature": 0.0, "max_tokens": 200}``.
        tools: Functions this step may call besides the registered ones.
        output_mode: How the model is asked for an ``output_schema``: ``"tool"`` (a call of a tool),
            ``"native"`` (the provider's JSON schema), ``"prompted"`` (JSON in a text, asked for in words);
            ``None`` is what the model's profile says.
        output_retries: Times an answer that is invalid, or that a check refuses, goes back to the model.
        checks: Functions ``check(value)`` or ``check(value, context)``, sync or async, that raise
            ``ValueError`` or ``AssertionError`` (or return ``False``) to refuse a value. An agent is
            then asked for another answer; a Python step fails.
        approve: Whether the step's value waits for approval.
        approve_tools: Names or globs of tools whose calls wait for approval, besides the tools that are
            marked so themselves.
        remember: Whether the model gets a tool to remember facts for later steps, and memories for later
            runs.
        cache: Whether the cache may answer for this step.
        fresh_for: Seconds for which it may, or a text such as ``"30m"``, ``"12h"``, ``"7d"``: what a step
            reads elsewhere, such as a database or a web page, may be another one by then. Without it,
            answers do not age. A run that is resumed keeps its own.
        final: Whether the step's value is the pipeline's final output; at most one step says so.
        budget: Most that all attempts and items of this step may spend in a run: USD, a text such as
            ``"5000 tokens"``, or a :class:`Budget`.
        reduce_over: Name of a step (or ``"step.field"``) of whose rows this agent step makes one answer. It
            reads them in parts that its model can read, and then makes one answer of those to the parts.
        group_by: Field of the rows, or column of another step (``"load.product"``), by whose values
            ``reduce_over`` makes an answer each: a DataFrame with these as its index.
        combine: Goal by which answers to parts become one, ``{{ step }}`` being these answers; without it the
            goal itself, and what to do with answers to parts of it.
        reduce_tokens: Most tokens of rows in one call, about four bytes each; ``None`` goes by what the
            model reads at once.
        batch: Whether the requests of a mapped agent step without tools are sent as batches, which their
            provider answers within a day, at half the price. ``"then-live"``: what a batch did not answer, or
            not in the form that is wanted, is asked again by itself, at the full price.
        rows_per_call: Most items of a mapped agent step that one call of the model asks for, 1 to 1,000.
            Each keeps its own record and cache entry; one that the answer leaves out, has twice, or gives an
            invalid value is asked for by itself.
        samples: Independent answers to each goal, 1 by default. With several, the step's value (of a mapped
            step, each item's) is the one that most of them agree on.
        flatten: Whether a mapped step runs over the elements of the lists that it maps over, as one sequence.
        retry_on: Classes of errors that are tried again besides those that may pass, or their names:
            ``[ValueError, "requests.HTTPError"]``. Names are looked up in the notebook and among Python's
            own, else imported.

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
    output_mode: str | None = None
    checks: list[Callable[..., Any]] = field(default_factory=list)
    cache: bool = True
    approve: bool = False
    approve_tools: list[str] = field(default_factory=list)
    remember: bool = False
    budget: Budget | float | str | None = None
    final: bool = False
    instructions: str | None = None
    models: dict[str, Any] = field(default_factory=dict)
    max_failures: int | float | None = None
    reduce_over: str | None = None
    group_by: str | None = None
    combine: str | None = None
    reduce_tokens: int | None = None
    batch: bool | str = False
    rows_per_call: int = 1
    fresh_for: float | None = None
    samples: int = 1
    flatten: bool = False
    retry_on: list[type[Exception] | str] = field(default_factory=list)

    @classmethod
    def from_cell(cls, name: str, cell: str, *, python: bool = False, **options: Any) -> PipelineStep:
        """Make a step from the text of a cell: a goal, or with ``python`` a Python body.

        Raises:
            DefinitionError: The cell is blank, is not valid Python, or an option is not allowed.
        """
        check_options(step_name(name), options)
        text = cell.strip("\n")
        if not text.strip():
            raise DefinitionError(
                f"Step {name!r}: the cell is empty. Write its goal or its Python below the first line."
            )
        if not python:
            return cls(name=name, goal=text.strip(), **options)
        from tagent_nb.pipeline.python_body import PythonBody

        body = PythonBody.from_cell(step_name(name), text)
        return cls(name=name, goal=body.summary, body=body, **options)

    @property
    def is_python(self) -> bool:
        """Whether this is a Python step, else an agent step."""
        return self.body is not None

    @property
    def runs_over(self) -> str | None:
        """What a step with ``map_over`` or ``reduce_over`` reads in parts; its units are items then."""
        return self.reduce_over if self.map_over is None else self.map_over

    @property
    def has_items(self) -> bool:
        """Whether its units are items: of what it runs over, or samples."""
        return self.runs_over is not None or self.samples > 1

    @property
    def is_plain(self) -> bool:
        """Whether goal, condition, ``map_over`` and the like cannot refer to anything: ``references`` is
        empty."""
        return (
            self.when is None and self.runs_over is None and (self.body is not None or "{" not in self.goal)
        )

    @property
    def bare_names(self) -> Sequence[str | Dependency] | None:
        """What the step waits for, where that is its ``depends_on`` alone, or the parameters of its function
        alone: STRONG, if they are texts and names of steps. ``None`` where a closer look is needed."""
        body = self.body
        if not self.is_plain or (body is not None and body.kind == "cell"):
            return None
        if body is None or not body.params:
            return self.depends_on
        # Reading an attribute that has its default makes a list, which each of 100,000 steps would keep.
        written = vars(self).get("depends_on")
        return None if written or body.optional or "item" in body.params else body.params

    @cached_property
    def dependencies(self) -> tuple[Dependency, ...]:
        """The dependencies written in ``depends_on``, parsed."""
        return tuple(Dependency.parse(text) for text in self.depends_on)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """Parts of other steps that goal, condition, ``map_over`` and the like refer to.

        Raises:
            TemplateError: The goal or the condition cannot be read.
        """
        from tagent_nb.templating import references_of

        return references_of(self)

    @property
    def item_condition(self) -> str | Condition | None:
        """The condition of a mapped step if it is one for each item, ``None`` if it decides on the whole.

        It is one for each item if it reads ``item``, or a field of what the step maps over: beside
        ``map_over="rows"``, ``rows.stars > 3`` is about the stars of each row. ``rows`` by itself is all.

        Raises:
            TemplateError: It cannot be read.
        """
        if self.when is None or self.map_over is None:
            return None
        from tagent_nb.pipeline.conditions import of_items
        from tagent_nb.templating import Reference

        return of_items(self.when, Reference.parse(self.map_over, "map"), self.name)

    def validate_output(self, result: Any) -> Any:
        """Return ``result`` as an instance of ``output_schema``, or as it is without a schema.

        Raises:
            OutputValidationError: It does not match; the message lists every field that is wrong.
        """
        if self.output_schema is None:
            return result
        from tagent_nb.serde import bare, wrapped

        if isinstance(result, self.output_schema):
            return bare(result)
        try:
            return bare(to_schema(self.output_schema, wrapped(self.output_schema, result)))
        except ValueError as error:
            raise OutputValidationError(
                f"Step {self.name!r} output does not match schema {self.output_schema.__name__}: {error}"
            ) from None

    # -- storing ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data, its schema as JSON Schema and its Python as source.

        Raises:
            EncodeError: Something cannot be rebuilt from data; the message has the path to it.
        """
        from tagent_nb.pipeline.step_json import step_to_dict

        return step_to_dict(self)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        schemas: Iterable[type[BaseModel]] = (),
        tools: Iterable[Callable[..., Any]] = (),
        checks: Iterable[Callable[..., Any]] = (),
    ) -> PipelineStep:
        """Rebuild a step. ``schemas``, ``tools`` and ``checks`` are the classes and functions that it names.

        Raises:
            DefinitionError: Something cannot be rebuilt; the message says what and how to mend it.
        """
        from tagent_nb.pipeline.step_json import Reader, stored_step

        return step_of(stored_step(data), Reader(schemas, tools, checks))

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
    ) -> PipelineStep:
        """Rebuild a step from :meth:`to_json`. Runs no code of the text."""
        from tagent_nb.pipeline.step_json import parsed

        return cls.from_dict(parsed(text, "step"), schemas=schemas, tools=tools, checks=checks)

    def with_(self, **changes: Any) -> PipelineStep:
        """A copy of this step with some fields changed."""
        fields = self.__dict__
        return type(self)(**{**{name: fields[name] for name in fields.keys() & _FIELDS}, **changes})


class _Fresh:
    """The default of a field that can be changed in place: made when it is first read, one for each step."""

    def __init__(self, name: str, kind: Callable[[], Any]) -> None:
        self.name, self.kind = name, kind

    def __get__(self, step: object | None, owner: type) -> Any:
        if step is None:  # as for any field that has no default in the class
            raise AttributeError(f"type object {owner.__name__!r} has no attribute {self.name!r}")
        return step.__dict__.setdefault(self.name, self.kind())


FIELDS = tuple(field.name for field in fields(PipelineStep))
"""Names of what a step has, in the order of its positional arguments."""

_FIELDS = frozenset(FIELDS)
_refuse = own_keywords(STEP)(PipelineStep.__init__)


@wraps(PipelineStep.__init__)
def _init(self: PipelineStep, *values: Any, **named: Any) -> None:
    # Only what is passed is looked at and kept: the rest is in the class.
    passed = dict(zip(FIELDS, values, strict=False)) | named if values else named
    if (
        len(passed) < len(values) + len(named)
        or not passed.keys() <= _FIELDS
        or "name" not in passed
        or "goal" not in passed
    ):
        _refuse(self, *values, **named)  # always raises: it says what is missing, there twice, or unknown
    self.__dict__["name"] = passed["name"] = step_name(passed["name"])
    check_fields_of(self, passed)


PipelineStep.__init__ = _init  # type: ignore[method-assign]
for _field in fields(PipelineStep):
    if _field.default_factory is not MISSING:
        setattr(PipelineStep, _field.name, _Fresh(_field.name, _field.default_factory))


def step_of(data: Any, reader: Reader) -> PipelineStep:
    """A step from its data, as it stands in that of a pipeline."""
    return PipelineStep(**reader.step(data, list(FIELDS)))


def check_options(step: str, options: Mapping[str, Any]) -> None:
    """Check the names of the fields that are passed for a step.

    Raises:
        DefinitionError: There is no such field; the message says what was meant.
    """
    if options.keys() <= _FIELDS:
        return
    option = sorted(options.keys() - _FIELDS)[0]
    hint = advice(option, STEP) or did_you_mean(option, FIELDS)
    raise DefinitionError(
        f"Step {step!r}: there is no option {option!r}.{hint} Known: {', '.join(FIELDS[2:])}."
    )


# -- checks of fields: each problem is one sentence that names step, field and remedy ------------------------


def check_fields_of(step: Any, given: Mapping[str, Any]) -> None:
    """Check the fields that were passed for one step, and put what it is to have into its ``__dict__``.

    Args:
        step: A :class:`PipelineStep` that has its name.
        given: What was passed, of whatever type, by field.

    Raises:
        DefinitionError: The first field that is not allowed.
    """
    values = step.__dict__
    for name, value in given.items():
        check = _CHECKS.get(name)
        values[name] = value if check is None else check(step.name, name, value)
    if not given.keys().isdisjoint(_TOGETHER):
        _check_together(step)


def _fail(step: str, field: str, problem: str) -> NoReturn:
    raise DefinitionError(f"Step {step!r}: {field} {problem}")


def _goal(step: str, field: str, goal: Any) -> str:
    if not isinstance(goal, str) or not goal.strip():
        _fail(step, field, "cannot be empty. Say what the step is to achieve.")
    if len(goal) > MAX_GOAL:
        _fail(step, field, f"has {len(goal):,} characters; at most {MAX_GOAL:,} are allowed. "
              "Put long text into a step and refer to it, as in {{ load }}.")  # fmt: skip
    return goal


# Copies of lists and dicts: what the caller does to them afterwards must not reach a definition.


def _list(step: str, field: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        _fail(step, field, f"must be a list, not {type(value).__name__}. Write [{value!r}].")
    return list(value)


def _texts(step: str, field: str, value: Any) -> list[str]:
    texts = _list(step, field, value)
    if not all(isinstance(text, str) for text in texts):
        _fail(step, field, "must hold text only.")
    return texts


def _filter(step: str, field: str, value: Any) -> list[str] | None:
    return None if value is None else _texts(step, field, value)


def _functions(step: str, field: str, value: Any) -> list[Callable[..., Any]]:
    functions = _list(step, field, value)
    for function in functions:
        if not callable(function):
            _fail(step, field, f"must be functions, not {type(function).__name__} ({function!r}).")
    return functions


def _checks(step: str, field: str, value: Any) -> list[Callable[..., Any]]:
    checks = _functions(step, field, value)
    for check in checks:
        if takes_context(check) is None:
            _fail(step, field, f"has {check!r}, which takes neither (value) nor (value, context). "
                  "Write: def check(value): ...")  # fmt: skip
    return checks


def _depends_on(step: str, field: str, value: Any) -> list[str | Dependency]:
    return [
        step_name(entry.strip()) if type(entry) is str and ":" not in entry else _stored(entry)
        for entry in _list(step, field, value)
    ]


def _stored(entry: Any) -> str | Dependency:
    """A strong dependency is kept as its bare name, as the specification writes it."""
    dependency = Dependency.parse(entry)
    return dependency.name if dependency.type is DependencyType.STRONG else dependency


def _execution_mode(step: str, field: str, value: Any) -> ExecutionMode:
    if not isinstance(value, ExecutionMode):
        _fail(step, field, f"must be ExecutionMode.SERIAL or ExecutionMode.CONCURRENT, not {value!r}.")
    return value


def _timeout(step: str, field: str, value: Any) -> float | None:
    return checked_timeout(f"Step {step!r}", value)


def _count(step: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _fail(step, field, f"must be a whole number from 0 on, not {value!r}.")
    return value


def _rows_per_call(step: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ROWS_PER_CALL:
        _fail(step, field, f"must be a whole number from 1 to {MAX_ROWS_PER_CALL:,}, not {value!r}.")
    return value


def _samples(step: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _fail(step, field, f"must be a whole number from 1 on, not {value!r}: how many answers to ask for.")
    return value


def _flatten(step: str, field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(step, field, f"must be True or False, not {value!r}. What it maps over is named by map_over.")
    return value


def _share(step: str, field: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        _fail(step, field, f"must be a share from 0 to 1, not {value!r}.")
    return value  # type: ignore[no-any-return]


def _failures(step: str, field: str, value: Any) -> float | None:
    if value is None:
        return None
    whole = isinstance(value, int) and value >= 0
    if not is_number(value) or not (whole or (isinstance(value, float) and 0 < value < 1)):
        _fail(step, field, f"must be a number of items such as 20, or a share of them such as 0.1, not "
              f"{value!r}.")  # fmt: skip
    return value  # type: ignore[no-any-return]


def _agent(step: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or value not in AGENT_KINDS:
        _fail(step, field, f"must be {' or '.join(map(repr, AGENT_KINDS))}, not {value!r}."
              f"{did_you_mean(str(value), AGENT_KINDS)}")  # fmt: skip
    return value


def _models(step: str, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(step, field, f"must be a dict such as {{'plan': 'openai:gpt-5'}}, not {value!r}.")
    for role, model in value.items():
        if role not in ROLES:
            _fail(step, field, f"has a role {role!r}.{role_hint(role)} Roles: {', '.join(ROLES)}.")
        if model is None or model == "":
            _fail(step, field, f"names no model for the role {role!r}.")
    return dict(value)


def _output_mode(step: str, field: str, value: Any) -> str | None:
    if value is not None and value not in OUTPUT_MODES:
        _fail(step, field, f"must be {', '.join(map(repr, OUTPUT_MODES))} or None, not {value!r}."
              f"{did_you_mean(str(value), OUTPUT_MODES)}")  # fmt: skip
    return value  # type: ignore[no-any-return]


def _instructions(step: str, field: str, value: Any) -> str | None:
    return checked_instructions(f"Step {step!r}", value)


def _approve(step: str, field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(step, field, f"must be True or False, not {value!r}. For tools, use approve_tools.")
    return value


def _final(step: str, field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(step, field, f"must be True or False, not {value!r}. A pipeline takes a name: final='report'.")
    return value


def _batch(step: str, field: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and value != THEN_LIVE:
        _fail(step, field, f"must be True, False or {THEN_LIVE!r}, not {value!r}.")
    return value  # type: ignore[no-any-return]


def _output_schema(step: str, field: str, value: Any) -> type[BaseModel] | None:
    if value is None:
        return None
    from pydantic import BaseModel

    if not (inspect.isclass(value) and issubclass(value, BaseModel)):
        _fail(step, field, f"must be a pydantic model class, not {value!r}. "
              "Write 'class Answer(BaseModel): ...' and pass Answer itself.")  # fmt: skip
    return value


def _when(step: str, field: str, value: Any) -> Any:
    from tagent_nb.pipeline.conditions import Condition

    if value is not None and not (isinstance(value, Condition) or (isinstance(value, str) and value.strip())):
        _fail(step, field, "must be an expression such as 'load.count > 0' or a condition "
              f"such as IsGreaterThan('load.count', 0), not {value!r}.")  # fmt: skip
    return value


def _map_over(step: str, field: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        _fail(step, field, f"must be a step's name such as 'load' or 'load.rows', not {value!r}.")
    return value


def _text(step: str, field: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        _fail(step, field, f"must be text that says something, not {value!r}.")
    return value


def _tokens(step: str, field: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        _fail(step, field, f"must be a whole number of tokens from 1 on, not {value!r}.")
    return value


def _settings(step: str, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(step, field, f"must be a dict such as {{'temperature': 0.0}}, not {value!r}.")
    return dict(value)


def _budget(step: str, field: str, value: Any) -> Budget | None:
    if value is None:
        return None
    from tagent_nb.pipeline.budget import Budget

    try:
        return Budget.of(value)
    except DefinitionError as error:
        raise DefinitionError(f"Step {step!r}: {error}") from None


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(step: str, field: str, value: Any) -> float | None:
    if value is None:
        return None
    written = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    seconds = float(written[1]) * _SECONDS[written[2]] if written else value
    if not is_number(seconds) or seconds <= 0:
        _fail(step, field, f"must be seconds above 0, or a text such as '30m', '12h' or '7d', not {value!r}.")
    return float(seconds)


_CHECKS: dict[str, Callable[[str, str, Any], Any]] = {
    "goal": _goal,
    "constraints": _texts,
    "depends_on": _depends_on,
    "execution_mode": _execution_mode,
    "timeout": _timeout,
    "retry_count": _count,
    "max_retries": _count,
    "tools_filter": _filter,
    "output_schema": _output_schema,
    "when": _when,
    "map_over": _map_over,
    "min_success": _share,
    "max_failures": _failures,
    "fresh_for": _duration,
    "retry_on": checked_kinds,
    "agent": _agent,
    "max_replans": _count,
    "settings": _settings,
    "tools": _functions,
    "output_retries": _count,
    "output_mode": _output_mode,
    "checks": _checks,
    "approve": _approve,
    "approve_tools": _texts,
    "budget": _budget,
    "final": _final,
    "instructions": _instructions,
    "models": _models,
    "reduce_over": _map_over,
    "group_by": _text,
    "combine": _text,
    "reduce_tokens": _tokens,
    "batch": _batch,
    "rows_per_call": _rows_per_call,
    "samples": _samples,
    "flatten": _flatten,
}
"""By field, what returns a value that was passed as a step is to have it, or raises."""

_OF_REDUCE = {
    "reduce_over": "--reduce-over",
    "group_by": "--group-by",
    "combine": "--combine",
    "reduce_tokens": "--reduce-tokens",
}
"""Fields of steps with ``reduce_over``, each with its option."""

_TOGETHER = frozenset(
    {
        "agent",
        "models",
        "instructions",
        "output_mode",
        "remember",
        "max_failures",
        "retry_on",
        "batch",
        "rows_per_call",
        "samples",
        "flatten",
        *_OF_REDUCE,
    }
)
"""Fields that are allowed for some kinds of steps only."""


def _check_together(step: Any) -> None:
    name, kind = step.name, AGENT_KINDS[step.agent]
    if step.batch:
        _check_batch(step)
    if not kind.roles and step.models:
        _fail(
            name,
            "models",
            "are for the roles of a planning step. Add agent='plan' (--plan), or write model=.",
        )
    if step.is_python and step.instructions is not None:
        _fail(name, "instructions", "are for agent steps; a Python step asks no model. Leave them out.")
    if step.is_python and step.output_mode is not None:
        _fail(name, "output_mode", "is for agent steps; a Python step asks no model. Leave it out.")
    if step.is_python and kind is not SINGLE:
        _fail(name, "agent", f"is {step.agent!r}, but a Python step asks no model. "
              f"Leave {kind.option} (agent=) out, or write the step as a goal.")  # fmt: skip
    if step.max_failures is not None and step.reduce_over is not None:
        _fail(name, "max_failures", "is about the items of a mapped step, and reduce_over asks for parts of "
              "rows. min_success= (--min-success) says how many must succeed. Leave it out.")  # fmt: skip
    if step.max_failures is not None and step.map_over is None:
        _fail(name, "max_failures", "is about the items of a mapped step, and this one runs once. "
              "Add map_over= (--map-over), or leave it out.")  # fmt: skip
    if step.samples > 1 and (step.is_python or step.reduce_over is not None):
        what = "a Python step asks no model" if step.is_python else "reduce_over reads many rows"
        _fail(name, "samples", f"are for agent steps that are mapped or run once; {what}. Leave them out.")
    if step.flatten and step.map_over is None:
        _fail(name, "flatten", "is for mapped steps. Add map_over (--map-over), the step whose items are "
              "lists.")  # fmt: skip
    if step.retry_on and step.max_retries == 0:
        _fail(name, "retry_on", "says what is tried again, and max_retries is 0: nothing is. Leave one of "
              "them out.")  # fmt: skip
    if not isinstance(step.remember, bool) or (step.remember and step.is_python):
        _fail(name, "remember", "must be True or False, and is for agent steps only; "
              "Python steps call context.learn and context.save_memory.")  # fmt: skip
    if any(getattr(step, field) is not None for field in _OF_REDUCE):
        _check_reduce(step)
    if step.rows_per_call > 1:
        _check_rows_per_call(step)


def _check_reduce(step: Any) -> None:
    name = step.name
    if step.reduce_over is None:
        field = next(field for field in _OF_REDUCE if getattr(step, field) is not None)
        _fail(name, field, f"belongs to reduce_over (--reduce-over). Name the step whose rows are to become "
              f"one answer, or leave {_OF_REDUCE[field]} ({field}=) out.")  # fmt: skip
    if step.is_python:
        _fail(name, "reduce_over", "is for agent steps; a Python step reads all rows as they are. Leave it "
              f"out and write {step.reduce_over} in its code.")  # fmt: skip
    if step.map_over is not None:
        _fail(name, "reduce_over", "and map_over exclude each other: one makes an answer of all rows, the "
              "other one of each. Leave one of them out, or write two steps.")  # fmt: skip
    if AGENT_KINDS[step.agent] is not SINGLE:
        _fail(name, "reduce_over", f"is for steps that answer at once, and agent is {step.agent!r}. "
              f"Leave {AGENT_KINDS[step.agent].option} (agent=) out.")  # fmt: skip


def _check_batch(step: Any) -> None:
    name = step.name
    if step.is_python:
        _fail(name, "batch", "is for agent steps; a Python step asks no model. Leave it out.")
    if step.agent != "single":
        _fail(name, "batch", f"cannot be used with agent={step.agent!r}, which asks again and again. "
              "Leave one of them out.")  # fmt: skip
    if step.map_over is None:
        _fail(name, "batch", "is for steps that run for each row. Add map_over='load' (--map-over load), "
              "or leave batch (--batch) out: one request is no batch.")  # fmt: skip
    if step.rows_per_call > 1:
        _fail(name, "batch", "and rows_per_call exclude each other: a request of a batch is about one row. "
              "Leave one of them (--batch, --rows-per-call) out.")  # fmt: skip
    if step.tools or step.tools_filter or step.approve_tools or step.remember:
        _fail(name, "batch", "cannot be used with tools: a batch answers once, and calls none. Leave tools "
              "(--tools) and remember (--remember) out, or batch (--batch).")  # fmt: skip


def _check_rows_per_call(step: Any) -> None:
    problem = ""
    if step.is_python:
        problem = "a Python step asks no model. Leave it out."
    elif step.map_over is None:
        problem = "the step has no rows. Add map_over (--map-over), or leave it out."
    elif AGENT_KINDS[step.agent] is not SINGLE:
        problem = f"a step with agent={step.agent!r} asks several times for each row. Leave one of them out."
    elif step.samples > 1:
        problem = "samples of rows in one call would not be independent. Leave one of them out."
    elif step.tools or step.tools_filter or step.approve_tools or step.remember:
        problem = (
            "a model that calls tools does so for one row. Leave its tools out (tools, tools_filter, "
            "approve_tools, remember), or ask for each row by itself."
        )
    if problem:
        _fail(step.name, "rows_per_call", f"is {step.rows_per_call}, but {problem}")


def role_hint(role: object) -> str:
    """What a role that does not exist was meant for: another tool's word, or a misspelt one."""
    ours = ROLE_WORDS.get(str(role))
    return f" Write {ours!r}." if ours else did_you_mean(str(role), ROLES)


def checked_instructions(where: str, text: Any) -> str | None:
    """A system prompt of the user's own.

    Raises:
        DefinitionError: It is no text, or blank.
    """
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise DefinitionError(f"{where}: instructions must be text that says something, not {text!r}.")
    return text


def takes_context(check: Callable[..., Any]) -> bool | None:
    """Whether a check takes ``(value, context)``, else ``(value)``; ``None`` if it takes neither.

    ``context`` is given to a parameter without a default, or of that name.
    """
    try:
        signature = inspect.signature(check)
    except ValueError:  # some built-in functions do not say; those that check take one value
        return False
    parameters = list(signature.parameters.values())
    second = parameters[1] if len(parameters) > 1 else None
    if second is not None and second.name != "context" and second.default is not second.empty:
        second = None
    for count in (1, 2) if second is None else (2, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count == 2
    return None


def to_schema(schema: type[BaseModel], result: Any) -> BaseModel:
    """Validate ``result`` against ``schema``.

    Raises:
        ValueError: It does not match; the text lists the fields and never shows their values.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(result)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            where = (
                ".".join(str(part) for part in problem["loc"]) or f"a value of type {type(result).__name__}"
            )
            lines.append(f"{where}: {problem['msg']}")
        raise ValueError("; ".join(lines)) from None


def is_number(value: object) -> bool:
    """Whether this is a finite int or float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checked_timeout(where: str, seconds: Any) -> float | None:
    """Seconds, or ``None`` for no limit.

    Raises:
        DefinitionError: It is no number above 0.
    """
    if seconds is not None and (not is_number(seconds) or seconds <= 0):
        raise DefinitionError(
            f"{where}: timeout must be a number of seconds above 0, or None, not {seconds!r}."
        )
    return seconds  # type: ignore[no-any-return]
