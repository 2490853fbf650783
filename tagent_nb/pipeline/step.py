"""One step of a pipeline, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, OutputValidationError, did_you_mean
from tagent_nb.foreign_words import STEP, advice, own_keywords
from tagent_nb.naming import step_name
from tagent_nb.pipeline.enums import Dependency, ExecutionMode
from tagent_nb.pipeline.step_checks import check_fields_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.pipeline.budget import Budget
    from tagent_nb.pipeline.conditions import Condition
    from tagent_nb.pipeline.python_body import PythonBody
    from tagent_nb.pipeline.step_json import Reader
    from tagent_nb.templating import Reference


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
