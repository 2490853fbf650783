"""Conditions as objects: when a step runs.

They read the values of other steps as the steps returned them::

    IsGreaterThan("classify.score", 0.5) & ~IsEmpty("load.rows")

A reference is a step's name with fields: ``"load"``, ``"load.text"``, ``"load.rows[0]"``. A step
that gave no value (a weak or optional one) reads as ``None``, and so do its fields; a field that a
value lacks is an error, so that a typing mistake does not quietly skip a step.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tagent_nb.errors import DefinitionError, TemplateError, did_you_mean
from tagent_nb.naming import RESERVED
from tagent_nb.templating import MISSING, Record, Reference, Rows, Table, evaluate, lookup, reads_items, view

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "And",
    "Condition",
    "Contains",
    "DataExists",
    "IsEmpty",
    "IsEqualTo",
    "IsGreaterThan",
    "IsLessThan",
    "Not",
    "Or",
    "condition_from_dict",
    "holds",
    "of_items",
]


class Condition(ABC):
    """Base of all conditions. Combine them with ``&``, ``|`` and ``~``."""

    @abstractmethod
    def evaluate(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition holds for these values by step name.

        Raises:
            TemplateError: A field is not there, or values cannot be compared.
        """

    @abstractmethod
    def references(self) -> tuple[Reference, ...]:
        """What the condition reads of steps, each once."""

    @abstractmethod
    def describe(self) -> str:
        """The condition in words, such as ``load.count > 3``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The condition as JSON-able data. See :func:`condition_from_dict`.

        Raises:
            EncodeError: The value it compares with cannot be stored.
        """

    def __and__(self, other: Condition) -> Condition:
        return And(self, other)

    def __or__(self, other: Condition) -> Condition:
        return Or(self, other)

    def __invert__(self) -> Condition:
        return Not(self)

    def __bool__(self) -> bool:
        # ``a and b`` would silently be ``b`` alone.
        raise DefinitionError(
            f"The condition {self.describe()!r} is neither true nor false before a run. "
            "Combine conditions with & | ~, not with and, or, not."
        )


# -- about one value ------------------------------------------------------------------------


@dataclass(frozen=True)
class _About(Condition):
    """A condition on one part of one step's value."""

    reference: str

    def __post_init__(self) -> None:
        # Read once more when it is needed: a typing mistake must show where it was made.
        self._read()

    def _read(self) -> Reference:
        return Reference.parse(self.reference)

    def _value(self, values: Mapping[str, Any], default: Any = MISSING) -> Any:
        reference = self._read()
        value = values.get(reference.step)
        for position, key in enumerate(reference.path):
            if value is None:
                return None
            before = Reference(reference.step, reference.path[:position]).text
            value = lookup(value, (key,), name=before, default=default)
        return value

    def references(self) -> tuple[Reference, ...]:
        reference = self._read()
        return () if reference.step in RESERVED else (reference,)

    def to_dict(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "reference": self.reference}


class DataExists(_About):
    """The part is there and is not ``None``. Empty and false values exist."""

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return self._value(values, default=None) is not None

    def describe(self) -> str:
        return f"{self.reference} exists"


class IsEmpty(_About):
    """The part is ``None``, empty text, or a list, dict or DataFrame without entries."""

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        seen = view(self._value(values), self.reference)
        return seen is None or (isinstance(seen, str | bytes | Record | Rows) and len(seen) == 0)

    def describe(self) -> str:
        return f"{self.reference} is empty"


@dataclass(frozen=True)
class _Compared(_About):
    """A condition that compares one part with a value."""

    value: Any
    symbol: ClassVar[str]

    def _compare(self, values: Mapping[str, Any], compare: Callable[[Any, Any], Any]) -> bool:
        value = view(self._value(values), self.reference)
        wanted = view(self.value, "the value to compare with")
        try:
            return bool(compare(value, wanted))
        except Exception as error:  # values compare as their classes like, and raise what they like
            raise TemplateError(
                f"{self.describe()!r} cannot be decided: {self.reference!r} is of type "
                f"{type(value).__name__} ({error}). Compare another field, or convert it in its step."
            ) from error

    def describe(self) -> str:
        return f"{self.reference} {self.symbol} {self.value!r}"

    def to_dict(self) -> dict[str, Any]:
        from tagent_nb.serde import to_tree

        path = f"{type(self).__name__}({self.reference!r}).value"
        return {**super().to_dict(), "value": to_tree(self.value, path=path)}


class IsEqualTo(_Compared):
    """The part equals a value. An enum equals its value, a model the dict of its fields."""

    symbol = "=="

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return self._compare(values, operator.eq)


class IsGreaterThan(_Compared):
    """The part is greater than a value. ``None`` is not."""

    symbol = ">"

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return self._compare(values, lambda a, b: a is not None and a > b)


class IsLessThan(_Compared):
    """The part is less than a value. ``None`` is not."""

    symbol = "<"

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return self._compare(values, lambda a, b: a is not None and a < b)


class Contains(_Compared):
    """Text contains text, a list an item, a record a field, a DataFrame a column. ``None`` nothing."""

    symbol = "contains"

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return self._compare(values, _contains)


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(value, Table):
        return wanted in value.names()
    return value is not None and wanted in value


# -- about conditions -----------------------------------------------------------------------


class _Joined(Condition):
    """Several conditions as one."""

    word: ClassVar[str]

    def __init__(self, *conditions: Condition) -> None:
        for condition in conditions:
            _check(type(self).__name__, condition)
        if not conditions:
            raise DefinitionError(
                f"{type(self).__name__}() joins no conditions. Pass at least one, "
                f"such as {type(self).__name__}(DataExists('load'), IsEmpty('load.errors'))."
            )
        self.conditions = conditions

    def references(self) -> tuple[Reference, ...]:
        return tuple(dict.fromkeys(reference for part in self.conditions for reference in part.references()))

    def describe(self) -> str:
        return f"({f' {self.word} '.join(condition.describe() for condition in self.conditions)})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": type(self).__name__,
            "conditions": [condition.to_dict() for condition in self.conditions],
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Joined) and (type(self), self.conditions) == (type(other), other.conditions)

    def __hash__(self) -> int:
        return hash((type(self), self.conditions))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.conditions))})"


class And(_Joined):
    """All hold. Later ones are looked at only while the earlier ones hold."""

    word = "and"

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return all(condition.evaluate(values) for condition in self.conditions)


class Or(_Joined):
    """At least one holds. Later ones are looked at only while none did."""

    word = "or"

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return any(condition.evaluate(values) for condition in self.conditions)


@dataclass(frozen=True)
class Not(Condition):
    """The condition does not hold."""

    condition: Condition

    def __post_init__(self) -> None:
        _check("Not", self.condition)

    def evaluate(self, values: Mapping[str, Any]) -> bool:
        return not self.condition.evaluate(values)

    def references(self) -> tuple[Reference, ...]:
        return self.condition.references()

    def describe(self) -> str:
        return f"not ({self.condition.describe()})"

    def to_dict(self) -> dict[str, Any]:
        return {"type": "Not", "condition": self.condition.to_dict()}


def _check(owner: str, condition: object) -> None:
    if not isinstance(condition, Condition):
        raise DefinitionError(
            f"{owner} joins conditions, not {type(condition).__name__} ({condition!r}). "
            "Write a condition such as DataExists('load')."
        )


# -- for the engine -------------------------------------------------------------------------


def holds(
    when: str | Condition | None,
    values: Mapping[str, Any],
    *,
    step: str,
    shared: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    memories: Mapping[str, Any] | None = None,
    item: Any = MISSING,
    mapped: Reference | None = None,
) -> bool:
    """Whether a step's ``when`` lets it run; without one it does.

    Conditions may also refer to ``shared``, ``facts``, ``memories`` and ``item``. With ``mapped``, what the
    step maps over, an expression reads fields of that from ``item``; see
    :attr:`PipelineStep.item_condition`.

    Raises:
        TemplateError: It cannot be decided; the message names the step.
    """
    if when is None:
        return True
    if isinstance(when, str):
        names = {"shared": shared, "facts": facts, "memories": memories}
        return evaluate(when, values, step=step, item=item, mapped=mapped, **names)
    own = {"shared": shared or {}, "facts": facts or {}, "memories": memories or {}}
    if item is not MISSING:
        own["item"] = item
    try:
        return when.evaluate(ChainMap(own, values))  # type: ignore[arg-type]  # nothing is written to it
    except TemplateError as error:
        raise TemplateError(f"Step {step!r}, when: {error}") from error.__cause__


def of_items(when: str | Condition, mapped: Reference, step: str) -> str | Condition | None:
    """See :attr:`PipelineStep.item_condition`.

    Args:
        when: The condition of a mapped step.
        mapped: What the step maps over.
        step: Its name, for messages.
    """
    if isinstance(when, str):
        return when if reads_items(when, mapped, step=step) else None
    condition = _of_items(when, mapped)
    return condition if _reads_items(condition) else None


def _of_items(condition: Condition, mapped: Reference) -> Condition:
    """The condition with fields of what is mapped over read from the item."""
    if isinstance(condition, _Joined):
        return type(condition)(*(_of_items(part, mapped) for part in condition.conditions))
    if isinstance(condition, Not):
        return Not(_of_items(condition.condition, mapped))
    if not isinstance(condition, _About):
        return condition
    reference, depth = condition._read(), len(mapped.path)
    path = reference.path[depth:]
    whole = (reference.step, reference.path[:depth]) != (mapped.step, mapped.path)
    if whole or not path or path[0].lstrip("-").isdecimal():
        return condition
    return replace(condition, reference=Reference("item", path).text)


def _reads_items(condition: Condition) -> bool:
    if isinstance(condition, _Joined):
        return any(map(_reads_items, condition.conditions))
    if isinstance(condition, Not):
        return _reads_items(condition.condition)
    return isinstance(condition, _About) and condition._read().step == "item"


_ABOUT: dict[str, type[_About]] = {"DataExists": DataExists, "IsEmpty": IsEmpty}
_COMPARED: dict[str, type[_Compared]] = {
    kind.__name__: kind for kind in (IsEqualTo, IsGreaterThan, IsLessThan, Contains)
}
_JOINED: dict[str, type[_Joined]] = {"And": And, "Or": Or}


def condition_from_dict(
    data: Mapping[str, Any], schemas: Mapping[str, type[BaseModel]] | None = None
) -> Condition:
    """Rebuild a condition from :meth:`Condition.to_dict`.

    Args:
        data: The condition as plain data.
        schemas: Model classes by name, for values that are models.

    Raises:
        DefinitionError: The data is not that of a condition.
        CorruptRecordError: The value that it compares with is damaged.
    """
    try:
        return _rebuild(data, schemas)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DefinitionError(
            f"This is not a stored condition: {type(error).__name__}: {error}. "
            "Pass what Condition.to_dict() returned."
        ) from None


def _rebuild(data: Mapping[str, Any], schemas: Mapping[str, type[BaseModel]] | None) -> Condition:
    kind = data["type"]
    if kind in _JOINED:
        return _JOINED[kind](*(_rebuild(part, schemas) for part in data["conditions"]))
    if kind == "Not":
        return Not(_rebuild(data["condition"], schemas))
    if kind in _ABOUT:
        return _ABOUT[kind](data["reference"])
    if kind in _COMPARED:
        from tagent_nb.serde import from_tree

        return _COMPARED[kind](data["reference"], from_tree(data["value"], schemas))
    kinds = [*_ABOUT, *_COMPARED, *_JOINED, "Not"]
    raise DefinitionError(
        f"There is no condition {kind!r}.{did_you_mean(kind, kinds)} Known: {', '.join(kinds)}."
    )
