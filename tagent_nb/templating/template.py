"""Goals as templates: what they read of other steps, and the text they become.

Nothing here loads jinja2 unless a goal has ``{{``, ``{%`` or ``{#`` in it, or a condition is an
expression.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Protocol, Union, get_args, get_origin

from tagent_nb.errors import TemplateError, did_you_mean
from tagent_nb.serde import inner_type, is_bare
from tagent_nb.templating.views import DATA_RULE, MISSING, View, join_path, missing, view

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.templating.sandbox import Problem

__all__ = [
    "DATA_RULE",
    "MISSING",
    "Reference",
    "evaluate",
    "is_template",
    "lookup",
    "reads_items",
    "references_of",
    "render",
    "render_pieces",
    "unknown_fields",
    "view",
]

Kind = Literal["goal", "when", "map", "reduce", "group"]

_MARKS = ("{{", "{%", "{#")
_NAME = r"([^\s.\[\]'\"]+)"
_PART = re.compile(rf"\.{_NAME}|\[(-?\d+)\]|\[('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\]")


@dataclass(frozen=True, slots=True)
class Reference:
    """A part of another step's value that a step reads.

    Attributes:
        step: The other step's name.
        path: Fields and indices from the value to the part; empty for the whole value.
        kind: Where it is written: in a goal, the condition, ``map_over``, ``reduce_over`` or ``group_by``.
    """

    step: str
    path: tuple[str, ...] = ()
    kind: Kind = "goal"

    @property
    def text(self) -> str:
        """As it is written: ``load``, ``load.text``, ``load.rows[0]['a b']``."""
        text = self.step
        for key in self.path:
            text = join_path(text, key)
        return text

    @classmethod
    def parse(cls, text: str, kind: Kind = "when") -> Reference:
        """Read :attr:`text` back.

        Raises:
            TemplateError: It is not a name followed by fields and indices.
        """
        rest = text.strip() if isinstance(text, str) else ""
        head = re.match(_NAME, rest)
        if head is None or not head[0].isidentifier():
            raise TemplateError(f"{text!r} is not a reference. Write a step's name and a field: 'load.text'.")
        path: list[str] = []
        at = head.end()
        while at < len(rest):
            part = _PART.match(rest, at)
            if part is None or not (part[2] or part[3] or part[1].isidentifier() or part[1].isdecimal()):
                raise TemplateError(
                    f"{text!r} is not a reference: {rest[at:]!r} cannot be read. "
                    "Write fields as in 'load.text', 'load.rows[0]' or \"load['a b']\"."
                )
            path.append(ast.literal_eval(part[3]) if part[3] else part[1] or part[2])
            at = part.end()
        return cls(unicodedata.normalize("NFC", head[0]), tuple(path), kind)


def is_template(goal: str) -> bool:
    """Whether a goal has anything but text."""
    return any(mark in goal for mark in _MARKS)


class Conditioned(Protocol):
    """A condition as an object, which says itself what it reads."""

    def references(self) -> Iterable[Reference]: ...


class Templated(Protocol):
    """A step, as far as its templates go."""

    @property
    def name(self) -> str: ...
    @property
    def goal(self) -> str: ...
    @property
    def body(self) -> object: ...
    @property
    def when(self) -> str | Conditioned | None: ...
    @property
    def map_over(self) -> str | None: ...
    @property
    def reduce_over(self) -> str | None: ...
    @property
    def group_by(self) -> str | None: ...
    @property
    def combine(self) -> str | None: ...


def references_of(step: Templated) -> tuple[Reference, ...]:
    """What a step's goals, condition, ``map_over`` and the like read of other steps, in that order.

    The goal of a Python step is its description, and reads nothing.

    Raises:
        TemplateError: One of them cannot be read; the message names step, line and remedy.
    """
    references: list[Reference] = []
    if step.body is None and is_template(step.goal):
        references.extend(_chains(step.goal, step.name, "goal"))
    if step.combine is not None and is_template(step.combine):
        references.extend(_chains(step.combine, step.name, "goal", "combine"))
    if isinstance(step.when, str):
        references.extend(_chains(step.when, step.name, "when"))
    elif step.when is not None:
        references.extend(step.when.references())
    kinds: dict[Kind, str | None] = {"map": step.map_over, "reduce": step.reduce_over}
    for kind, text in kinds.items():
        if text is not None:
            try:
                references.append(Reference.parse(text, kind))
            except TemplateError as error:
                raise TemplateError(f"Step {step.name!r}, {kind}_over: {error}") from None
    if step.group_by is not None and references[-1].kind == "reduce":
        column = group_column(step.group_by, references[-1])
        references += [column] if isinstance(column, Reference) else []
    return tuple(dict.fromkeys(references))


def group_column(group_by: str, source: Reference) -> Reference | tuple[str, ...]:
    """What ``group_by`` names beside ``reduce_over``: the path of a field of the rows, or a column elsewhere.

    ``"label"`` is a field; so is ``"classify.label"`` where ``source`` is ``classify``; ``"load.product"`` is
    a column of ``load``.
    """
    try:
        reference = Reference.parse(group_by, "group")
    except TemplateError:
        return (group_by,)  # a column may have any name
    if not reference.path:
        return (group_by,)
    if reference.step != source.step:
        return reference
    inside = reference.path[: len(source.path)] == source.path
    return reference.path[len(source.path) :] if inside else reference.path


def _chains(source: str, step: str, kind: Kind, place: str = "") -> Iterator[Reference]:
    from tagent_nb.templating.sandbox import Problem, chains_of

    try:
        for name, path in chains_of(source, kind == "when"):
            yield Reference(name, path, kind)
    except Problem as problem:
        _fail(step, kind, problem, place)


def _fail(step: str, kind: Kind, problem: Problem, place: str = "") -> NoReturn:
    place = f"{place or kind} line {problem.line}" if kind == "goal" else kind
    raise TemplateError(f"Step {step!r}, {place}: {problem.text}") from problem.__cause__


def render(
    goal: str,
    values: Mapping[str, Any],
    *,
    step: str,
    shared: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    memories: Mapping[str, Any] | None = None,
    item: Any = MISSING,
) -> str:
    """The text of a goal.

    Values of steps, facts and memories become data: numbers, dates, ``True`` and ``None`` stand
    bare, everything else between ``<data>`` and ``</data>``. ``shared`` is the author's own text.

    Args:
        goal: The template.
        values: Values by step name; only those that the goal reads are looked at.
        step: Name of the step, for messages.
        shared: The pipeline's shared values.
        facts: Facts learned in this run.
        memories: Saved memories of the pipeline.
        item: The current item of a mapped step.

    Raises:
        TemplateError: Something is not there, is not allowed or cannot be printed.
    """
    return "".join(
        render_pieces(goal, values, step=step, shared=shared, facts=facts, memories=memories, item=item)
    )


def render_pieces(
    goal: str,
    values: Mapping[str, Any],
    *,
    step: str,
    shared: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    memories: Mapping[str, Any] | None = None,
    item: Any = MISSING,
) -> list[str]:
    """The text of a goal in pieces: each value that it prints is one, and so is the text between two.

    Arguments and errors as of :func:`render`.
    """
    if not is_template(goal):
        return [goal]
    from tagent_nb.templating.sandbox import Problem, compiled

    try:
        return compiled(goal).pieces(_names(values, shared, facts, memories, item))
    except Problem as problem:
        _fail(step, "goal", problem)


def evaluate(
    expression: str,
    values: Mapping[str, Any],
    *,
    step: str,
    shared: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    memories: Mapping[str, Any] | None = None,
    item: Any = MISSING,
    mapped: Reference | None = None,
) -> bool:
    """Whether a ``when`` expression such as ``load.count > 0`` holds. Arguments as in :func:`render`.

    With ``mapped``, what the step maps over, fields of that are those of ``item``.

    Raises:
        TemplateError: It cannot be read, or something is not there or cannot be compared.
    """
    from tagent_nb.templating.sandbox import Problem, compiled

    try:
        chain = None if mapped is None else (mapped.step, mapped.path)
        return compiled(expression, True, chain).evaluate(_names(values, shared, facts, memories, item))
    except Problem as problem:
        _fail(step, "when", problem)


def _names(
    values: Mapping[str, Any],
    shared: Mapping[str, Any] | None,
    facts: Mapping[str, Any] | None,
    memories: Mapping[str, Any] | None,
    item: Any,
) -> Mapping[str, Any]:
    own: dict[str, Any] = {"shared": shared or {}, "facts": facts or {}, "memories": memories or {}}
    if item is not MISSING:
        own["item"] = item
    return ChainMap(own, values)  # type: ignore[arg-type]  # nothing is written to it


def reads_items(expression: str, mapped: Reference, *, step: str) -> bool:
    """Whether an expression reads ``item``, or fields of the items of what its step maps over.

    Raises:
        TemplateError: It cannot be read.
    """
    from tagent_nb.templating.sandbox import Problem, compiled

    try:
        return "item" in compiled(expression, True, (mapped.step, mapped.path)).names
    except Problem as problem:
        _fail(step, "when", problem)


def lookup(value: Any, path: tuple[str, ...], *, name: str = "value", default: Any = MISSING) -> Any:
    """The part of a value that a :class:`Reference` reads, as the step returned it.

    A column of a DataFrame is a list, a row is a dict.

    Args:
        value: The whole value.
        path: The reference's path.
        name: What the value is called in messages, such as the step's name.
        default: Returned when the part is not there, instead of an error.

    Raises:
        TemplateError: The part is not there; the message says what is.
    """
    for key in path:
        holder = view(value, name)
        part = holder.part(key) if isinstance(holder, View) else _attribute(holder, key)
        if part is MISSING:
            if default is not MISSING:
                return default
            raise TemplateError(missing(holder, key, name))
        value, name = part, join_path(name, key)
    return value


def _attribute(scalar: Any, key: str) -> Any:
    """What a goal may read of a plain value, such as the ``year`` of a date."""
    value = MISSING if key.startswith("_") else getattr(scalar, key, MISSING)
    return MISSING if callable(value) else value


def literal(text: str) -> str:
    """A goal that says this text, whatever braces it holds."""
    return _TAG.sub(lambda tag: "{{ '" + tag[0] + "' }}", text)


_TAG = re.compile(r"\{[{%#]")


def unknown_fields(schema: type[BaseModel], path: tuple[str, ...]) -> str | None:
    """Why no value of ``schema`` can have a part at ``path``, or ``None`` when it may have one.

    Follows nested models and ``Optional``. Lists, dicts, unions and the like end the check.
    """
    annotation: Any = schema
    for key in path:
        annotation = _inner(annotation)
        if annotation in (str, int, float, bool):
            return f"{key!r} is not there: the value before it is {_WORDS[annotation]}. Leave out {key!r}."
        fields = _schema_fields(annotation)
        if fields is None:
            return None
        if key not in fields:
            if annotation.model_config.get("extra") == "allow":
                return None
            names = ", ".join(fields) or "none"
            return f"{annotation.__name__} has no field {key!r}.{did_you_mean(key, fields)} Fields: {names}."
        annotation = fields[key]
    return None


_WORDS = {str: "text", int: "a number", float: "a number", bool: "True or False"}


def _inner(annotation: Any) -> Any:
    """The one type that matters in ``Annotated`` and ``Optional``, and of a root model."""
    while True:
        options = [option for option in get_args(annotation) if option is not NoneType]
        if get_origin(annotation) is Annotated or (
            get_origin(annotation) in (Union, UnionType) and len(options) == 1
        ):
            annotation = options[0]
        elif is_bare(annotation):
            annotation = inner_type(annotation)
        elif isinstance(annotation, type) and getattr(annotation, "__pydantic_root_model__", False):
            annotation = annotation.model_fields["root"].annotation  # type: ignore[attr-defined]
        else:
            return annotation


def _schema_fields(annotation: Any) -> dict[str, Any] | None:
    """Types by field name of a model class; ``None`` for anything else."""
    from pydantic import BaseModel

    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    fields: dict[str, Any] = {name: field.annotation for name, field in annotation.model_fields.items()}
    for name, computed in annotation.model_computed_fields.items():
        fields[name] = computed.return_type
    return fields
