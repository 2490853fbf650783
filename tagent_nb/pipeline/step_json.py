"""Steps as JSON and back.

The JSON of a step holds Python as source, schemas as JSON Schema and their class's name, and
tools by name. Reading it runs nothing and imports nothing: classes and tools are passed by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    EncodeError,
    did_you_mean,
)
from tagent_nb.foreign_words import STEP, advice
from tagent_nb.formatting import model_label
from tagent_nb.pipeline.enums import ExecutionMode
from tagent_nb.pipeline.python_body import PythonBody
from tagent_nb.redaction import hide
from tagent_nb.serde import (
    FORMAT,
    check_format,
    clean,
    from_tree,
    json_schema,
    parse,
    registry,
    schema_hash,
    to_tree,
)
from tagent_nb.user_objects import class_name, function_name

if TYPE_CHECKING:
    from tagent_nb.pipeline.conditions import Condition

# -- writing ------------------------------------------------------------------------------------


def step_data(step: Any, write: Writer) -> dict[str, Any]:
    """The fields of a :class:`PipelineStep` that do not have their default."""
    data = {}
    for name, default in _defaults(step.__class__):
        value = getattr(step, name)
        if value is default or (name == "models" and not value):
            continue
        if name not in ("when", "model", "models") and value == default:
            continue  # conditions make a condition of ==, and the class of a model may do anything
        if name in _SPECIAL:
            value = _SPECIAL[name](write, f"steps.{step.name}.{name}", value)
        data[name] = list(value) if isinstance(value, list) else value
    return data


def _schema_to_dict(schema: type) -> dict[str, Any]:
    return {"name": schema.__name__, "hash": schema_hash(schema), "json_schema": json_schema(schema)}


class Writer:
    """Notes by path what cannot be stored, and goes on."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def values(self, path: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name, as trees."""
        trees = {}
        for name, value in values.items():
            try:
                trees[name] = to_tree(value, path=f"{path}.{name}")
            except EncodeError as error:
                self.problems[error.path] = error.what
        return trees

    def without_secrets(self, data: dict[str, Any]) -> dict[str, Any]:
        """The data without the values of environment variables that hold secrets."""
        hidden: dict[str, Any]
        hidden, variables = hide(data)
        for path, name in variables.items():
            self.problems[path] = (
                f"it holds the value of the environment variable {name}, which is not written down. "
                f"Read it where it is used: os.environ[{name!r}]"
            )
        return hidden

    def texts(self, data: dict[str, Any]) -> dict[str, Any]:
        """The data, in which goals and the like may have text that cannot be written."""
        try:
            to_tree(data, path="pipeline")
        except EncodeError as error:
            self.problems[error.path] = error.what
            cleaned: dict[str, Any] = json.loads(clean(json.dumps(data, ensure_ascii=False)))
            return cleaned
        return data

    def model(self, path: str, model: Any) -> str:
        """A model's name. Objects have credentials and connections, which are no data."""
        if not issubclass(type(model), str):
            self.problems[path] = (
                f"a model object ({class_name(model)}) cannot be stored. "
                "Name the model by a string such as 'openai:gpt-5-mini'"
            )
        try:
            return str.__str__(model_label(model))
        except Exception:  # the object's own code; a call of the model raises it again
            return class_name(model)

    def body(self, path: str, body: Any) -> dict[str, Any]:
        """A Python body; its source at least, where it cannot be rebuilt."""
        try:
            data: dict[str, Any] = body.to_dict()
            return data
        except EncodeError as error:
            self.problems[path] = error.what
            return {"kind": body.kind, "name": body.name, "source": body.source}

    def error_class(self, path: str, kind: type[Exception]) -> str:
        """The name of a class of errors, with its module where that is not the notebook."""
        name = kind.__qualname__
        if "<locals>" in name:
            self.problems[path] = f"{kind.__name__} is defined inside of a function. Define it in a module"
            return kind.__name__
        return name if kind.__module__ == "__main__" else f"{kind.__module__}.{name}"

    def condition(self, path: str, condition: Condition) -> Any:
        """A condition object; in words, where it cannot be rebuilt."""
        try:
            return condition.to_dict()
        except EncodeError as error:
            self.problems[path] = f"{error.path}: {error.what}"
            return condition.describe()


@cache
def _defaults(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    """Fields of a step by name, each with its default."""
    return tuple(
        (field.name, field.default if field.default_factory is MISSING else field.default_factory())
        for field in fields(kind)
    )


_SPECIAL: dict[str, Callable[[Writer, str, Any], Any]] = {
    "depends_on": lambda write, path, value: [str(dependency) for dependency in value],
    "execution_mode": lambda write, path, value: value.value,
    "output_schema": lambda write, path, value: _schema_to_dict(value),
    "body": Writer.body,
    "when": lambda write, path, value: value if isinstance(value, str) else write.condition(path, value),
    "model": Writer.model,
    "models": lambda write, path, value: {
        role: write.model(f"{path}.{role}", model) for role, model in value.items()
    },
    "settings": Writer.values,
    "tools": lambda write, path, value: [function_name(function) for function in value],
    "checks": lambda write, path, value: [function_name(function) for function in value],
    "budget": lambda write, path, value: str(value),
    "retry_on": lambda write, path, value: [
        kind if isinstance(kind, str) else write.error_class(path, kind) for kind in value
    ],
}
"""How fields are written that are not data already."""


def step_to_dict(step: Any) -> dict[str, Any]:
    """One step as JSON-able data, as it stands in the data of its pipeline.

    Raises:
        EncodeError: Something cannot be rebuilt from data; the message has the path to it.
    """
    write = Writer()
    data: dict[str, Any] = {"format": FORMAT, "kind": "step", **step_data(step, write)}
    data = write.texts(write.without_secrets(data))
    for path, what in write.problems.items():
        raise EncodeError(path, what)
    return data


def json_text(data: dict[str, Any], indent: int | None) -> str:
    """The data of a step or a pipeline as text."""
    return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)


# -- reading ------------------------------------------------------------------------------------


class Reader:
    """Reads stored definitions, which name classes and functions. Runs no code of the data.

    Args:
        schemas: The model classes that steps name.
        tools: The functions that steps name as ``tools``; registered tools need not be passed.
        checks: The functions that steps name as ``checks``.
    """

    def __init__(
        self,
        schemas: Iterable[type] | Mapping[str, type] = (),
        tools: Iterable[Callable[..., Any]] = (),
        checks: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self._classes = registry(schemas)
        self._functions = {
            "tool": {function_name(tool): tool for tool in tools},
            "check": {function_name(check): check for check in checks},
        }

    def step(self, data: Any, fields: Collection[str]) -> dict[str, Any]:
        """The fields of a step from its data; ``fields`` are the names that there are.

        Raises:
            DefinitionError: Something cannot be rebuilt; the message says what and how to mend it.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise DefinitionError(
                f"Stored pipeline: a step must be an object with a name, not {str(data)[:60]!r}."
            )
        where = f"Stored step {data['name']!r}"
        check_fields(data, fields, where, STEP)
        if not isinstance(data.get("goal"), str):
            raise DefinitionError(f"{where}: goal is missing. Say what the step is to achieve.")
        read: dict[str, Callable[[Any], Any]] = {
            "execution_mode": lambda value: mode_of(value, f"{where}: execution_mode"),
            "output_schema": lambda value: self._schema(value, where),
            "body": lambda value: _body(value, where),
            "when": lambda value: value if isinstance(value, str) else self._condition(value, where),
            "settings": lambda value: self.values(value, f"{where}: settings"),
            "tools": lambda value: self._named("tool", value, where),
            "checks": lambda value: self._named("check", value, where),
        }
        return {name: read[name](value) if name in read else value for name, value in data.items()}

    def _schema(self, data: Any, where: str) -> type:
        name = data.get("name") if isinstance(data, Mapping) else data
        schema = self._classes.get(name) if isinstance(name, str) else None
        if schema is None:
            raise DefinitionError(
                f"{where}: its output_schema {name!r} is not among the classes that were passed."
                f"{did_you_mean(str(name), self._classes)} Pass it: schemas=[{name}]."
            )
        return schema

    def _condition(self, data: Any, where: str) -> Condition:
        from tagent_nb.pipeline.conditions import condition_from_dict

        try:
            return condition_from_dict(data, self._classes)
        except CorruptRecordError as error:
            raise DefinitionError(f"{where}: when: {error}") from None

    def _named(self, kind: str, value: Any, where: str) -> list[Any]:
        """The functions that a step names as its tools or checks."""
        functions = self._functions[kind]
        names = texts_of(value, f"{where}: {kind}s")
        for name in names:
            if name not in functions:
                raise DefinitionError(
                    f"{where}: its {kind} {name!r} is not among the functions that were passed."
                    f"{did_you_mean(name, functions)} Pass it: {kind}s=[{name}]."
                )
        return [functions[name] for name in names]

    def values(self, data: Any, where: str) -> dict[str, Any]:
        """Stored values by name."""
        if not isinstance(data, Mapping):
            raise DefinitionError(f"{where} must be an object, not {type(data).__name__}.")
        try:
            return {name: from_tree(value, self._classes) for name, value in data.items()}
        except CorruptRecordError as error:
            raise DefinitionError(f"{where}: {error}") from None


def stored_step(data: Any) -> dict[str, Any]:
    """The data of a step, without its format, from what :func:`step_to_dict` wrote.

    Raises:
        DefinitionError: It is not the data of a step.
        FormatVersionError: It was written by a newer version of tagent-nb.
    """
    if not isinstance(data, Mapping):
        raise DefinitionError(f"A stored step must be an object, not {type(data).__name__}.")
    check_format(data, "step", DefinitionError)
    return {name: value for name, value in data.items() if name not in ("format", "kind")}


def parsed(text: str, kind: str) -> Any:
    """JSON text as data; ``kind`` says of what, for messages.

    Raises:
        DefinitionError: It is not JSON.
    """
    try:
        return parse(text.encode("utf-8", "surrogatepass"))
    except CorruptRecordError as error:
        raise DefinitionError(f"This is not the JSON of a {kind}: {error}") from None


def check_fields(
    data: Mapping[str, Any], fields: Collection[str], what: str, foreign: Mapping[str, str] | None = None
) -> None:
    """Refuse names that are no fields; ``foreign`` has advice on those of other tools."""
    for name in data:
        if name not in fields:
            hint = (advice(name, foreign) if foreign else "") or did_you_mean(name, fields)
            raise DefinitionError(f"{what}: there is no field {name!r}.{hint}")


def mode_of(value: Any, where: str) -> ExecutionMode:
    """A stored execution mode."""
    try:
        return ExecutionMode(value)
    except ValueError:
        raise DefinitionError(f"{where} must be serial or concurrent, not {value!r}.") from None


def _body(data: Any, where: str) -> PythonBody:
    if not isinstance(data, Mapping):
        raise DefinitionError(f"{where}: body must be an object, not {type(data).__name__}.")
    return PythonBody.from_dict(data)


def texts_of(data: Any, where: str) -> list[str]:
    """A stored list of texts."""
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise DefinitionError(f"{where} must be a list of texts, not {str(data)[:60]!r}.")
    return list(data)


def text_of(data: Any, where: str) -> str:
    """A stored text."""
    if not isinstance(data, str):
        raise DefinitionError(f"{where} must be text, not {type(data).__name__}.")
    return data
