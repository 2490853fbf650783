"""Pipelines as JSON and back; results and pickles are in modules of their own.

The JSON of a pipeline holds Python as source, schemas as JSON Schema and their class's name, and
tools by name. Reading it runs nothing and imports nothing: classes and tools are passed by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import (
    CorruptRecordError,
    DefinitionError,
    EncodeError,
    did_you_mean,
)
from tagent_nb.formatting import model_label
from tagent_nb.pipeline.foreign_words import STEP, advice
from tagent_nb.pipeline.pipeline import ExecutionMode, Pipeline, PipelineStep
from tagent_nb.pipeline.variables import checked_inputs
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
from tagent_nb.user_objects import class_name

if TYPE_CHECKING:
    from tagent_nb.pipeline.conditions import Condition

_HEAD = (
    "format",
    "kind",
    "name",
    "description",
    "default_mode",
    "model",
    "global_constraints",
    "shared_context",
    "final",
    "inputs",
    "instructions",
    "timeout",
)
_KNOWN = (*_HEAD, "steps", "not_stored")
_STEP = {field.name: field for field in fields(PipelineStep)}


# -- writing ------------------------------------------------------------------------------------


def pipeline_to_dict(pipeline: Pipeline, *, strict: bool = True) -> dict[str, Any]:
    """A pipeline as JSON-able data. Fields that have their default are left out.

    Args:
        pipeline: The pipeline.
        strict: Whether everything must be storable. Else what is not is described, and
            ``"not_stored"`` says by path why: good to compare definitions, not to rebuild them.

    Raises:
        EncodeError: With ``strict``: something cannot be rebuilt from data, such as a function that
            uses variables of the function around it; the message has the path to it.
    """
    write = _Writer()
    data: dict[str, Any] = {"format": FORMAT, "kind": "pipeline", "name": pipeline.name}
    if pipeline.description:
        data["description"] = pipeline.description
    if pipeline.default_mode is not ExecutionMode.SERIAL:
        data["default_mode"] = pipeline.default_mode.value
    if pipeline.model is not None:
        data["model"] = write.model("model", pipeline.model)
    if pipeline.instructions is not None:
        data["instructions"] = pipeline.instructions
    if pipeline.timeout is not None:
        data["timeout"] = pipeline.timeout
    if pipeline.global_constraints:
        data["global_constraints"] = list(pipeline.global_constraints)
    if pipeline.shared_context:
        data["shared_context"] = write.values("shared_context", pipeline.shared_context)
    if pipeline.final is not None:
        data["final"] = pipeline.final
    if pipeline.inputs:
        data["inputs"] = write.values("inputs", pipeline.inputs)
    data["steps"] = [_step_to_dict(step, write) for step in pipeline.steps]
    data = write.texts(write.without_secrets(data))
    if write.problems:
        if strict:
            path, what = next(iter(write.problems.items()))
            raise EncodeError(path, what)
        data["not_stored"] = write.problems
    return data


def _step_to_dict(step: PipelineStep, write: _Writer) -> dict[str, Any]:
    data = {}
    for name, default in _DEFAULTS:
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


def _tool_name(tool: Callable[..., Any]) -> str:
    return str(getattr(tool, "__name__", type(tool).__name__))


class _Writer:
    """Notes by path what cannot be stored, and goes on."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def values(self, path: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by name, as trees."""
        found = {}
        for name, value in values.items():
            try:
                found[name] = to_tree(value, path=f"{path}.{name}")
            except EncodeError as error:
                self.problems[error.path] = error.what
        return found

    def without_secrets(self, data: dict[str, Any]) -> dict[str, Any]:
        """The data without the values of environment variables that hold secrets."""
        hidden: dict[str, Any]
        hidden, found = hide(data)
        for path, name in found.items():
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
        except Exception:  # the object's own code; who asks the model will hear of it
            return class_name(model)

    def body(self, path: str, body: Any) -> dict[str, Any]:
        """A Python body; its source at least, where it cannot be rebuilt."""
        try:
            found: dict[str, Any] = body.to_dict()
            return found
        except EncodeError as error:
            self.problems[path] = error.what
            return {"kind": body.kind, "name": body.name, "source": body.source}

    def condition(self, path: str, condition: Condition) -> Any:
        """A condition object; in words, where it cannot be rebuilt."""
        try:
            return condition.to_dict()
        except EncodeError as error:
            self.problems[path] = f"{error.path}: {error.what}"
            return condition.describe()


_DEFAULTS = tuple(
    (name, field.default if field.default_factory is MISSING else field.default_factory())
    for name, field in _STEP.items()
)

_SPECIAL: dict[str, Callable[[_Writer, str, Any], Any]] = {
    "depends_on": lambda write, path, value: [str(one) for one in value],
    "execution_mode": lambda write, path, value: value.value,
    "output_schema": lambda write, path, value: _schema_to_dict(value),
    "body": _Writer.body,
    "when": lambda write, path, value: value if isinstance(value, str) else write.condition(path, value),
    "model": _Writer.model,
    "models": lambda write, path, value: {
        role: write.model(f"{path}.{role}", one) for role, one in value.items()
    },
    "settings": _Writer.values,
    "tools": lambda write, path, value: [_tool_name(one) for one in value],
    "checks": lambda write, path, value: [_tool_name(one) for one in value],
    "budget": lambda write, path, value: str(value),
}
"""How fields are written that are not data already."""


def step_to_dict(step: PipelineStep) -> dict[str, Any]:
    """One step as JSON-able data, as it stands in the data of its pipeline.

    Raises:
        EncodeError: Something cannot be rebuilt from data; the message has the path to it.
    """
    write = _Writer()
    data: dict[str, Any] = {"format": FORMAT, "kind": "step", **_step_to_dict(step, write)}
    data = write.texts(write.without_secrets(data))
    for path, what in write.problems.items():
        raise EncodeError(path, what)
    return data


def step_to_json(step: PipelineStep, *, indent: int | None = 2) -> str:
    """:func:`step_to_dict` as JSON text."""
    return json.dumps(step_to_dict(step), indent=indent, ensure_ascii=False, allow_nan=False)


# -- reading ------------------------------------------------------------------------------------


def pipeline_from_dict(
    data: Mapping[str, Any],
    *,
    schemas: Iterable[type] | Mapping[str, type] = (),
    tools: Iterable[Callable[..., Any]] = (),
    checks: Iterable[Callable[..., Any]] = (),
) -> Pipeline:
    """Rebuild a pipeline. Runs no code of the data.

    Args:
        data: What :func:`pipeline_to_dict` wrote.
        schemas: The model classes that its steps name.
        tools: The functions that its steps name as ``tools``; registered tools need not be passed.
        checks: The functions that its steps name as ``checks``.

    Raises:
        DefinitionError: Something cannot be rebuilt; the message says what and how to mend it.
        FormatVersionError: It was written by a newer version of tagent-nb.
    """
    _check_head(data)
    classes, functions = registry(schemas), _by_name(tools, checks)
    pipeline = Pipeline(
        data.get("name"),  # type: ignore[arg-type]  # the constructor checks it
        _text(data.get("description", ""), "description"),
        default_mode=_mode(data.get("default_mode", "serial"), "default_mode"),
        model=data.get("model"),
        final=None if data.get("final") is None else _text(data["final"], "final"),
        instructions=data.get("instructions"),
        timeout=data.get("timeout"),
    )
    pipeline.global_constraints = _texts(data.get("global_constraints", []), "global_constraints")
    pipeline.shared_context = _values(data.get("shared_context", {}), "shared_context", classes)
    pipeline.inputs = checked_inputs(
        _values(data.get("inputs", {}), "inputs", classes), "Stored pipeline: inputs"
    )
    steps = data.get("steps", [])
    if not isinstance(steps, list):
        raise DefinitionError(f"Stored pipeline: steps must be a list, not {type(steps).__name__}.")
    pipeline.steps = [_step_from_dict(step, classes, functions) for step in steps]
    return pipeline


def _by_name(
    tools: Iterable[Callable[..., Any]], checks: Iterable[Callable[..., Any]]
) -> dict[str, dict[str, Callable[..., Any]]]:
    return {
        "tool": {_tool_name(tool): tool for tool in tools},
        "check": {_tool_name(check): check for check in checks},
    }


def step_from_dict(
    data: Mapping[str, Any],
    *,
    schemas: Iterable[type] | Mapping[str, type] = (),
    tools: Iterable[Callable[..., Any]] = (),
    checks: Iterable[Callable[..., Any]] = (),
) -> PipelineStep:
    """Rebuild a step from :func:`step_to_dict`; arguments and errors as in :func:`pipeline_from_dict`."""
    if not isinstance(data, Mapping):
        raise DefinitionError(f"A stored step must be an object, not {type(data).__name__}.")
    check_format(data, "step", DefinitionError)
    fields_ = {name: value for name, value in data.items() if name not in ("format", "kind")}
    return _step_from_dict(fields_, registry(schemas), _by_name(tools, checks))


def step_from_json(
    text: str,
    *,
    schemas: Iterable[type] | Mapping[str, type] = (),
    tools: Iterable[Callable[..., Any]] = (),
    checks: Iterable[Callable[..., Any]] = (),
) -> PipelineStep:
    """:func:`step_from_dict` of JSON text."""
    return step_from_dict(_parsed(text, "step"), schemas=schemas, tools=tools, checks=checks)


def _parsed(text: str, kind: str) -> Any:
    try:
        return parse(text.encode("utf-8", "surrogatepass"))
    except CorruptRecordError as error:
        raise DefinitionError(f"This is not the JSON of a {kind}: {error}") from None


def _check_head(data: Any) -> None:
    if not isinstance(data, Mapping):
        raise DefinitionError(f"A stored pipeline must be an object, not {type(data).__name__}.")
    check_format(data, "pipeline", DefinitionError)
    _check_known(data, _KNOWN, "Stored pipeline")
    lost = data.get("not_stored")
    if isinstance(lost, Mapping) and lost:
        lines = "\n".join(f"  - {path}: {what}" for path, what in lost.items())
        raise DefinitionError(f"Pipeline {data.get('name')!r} was not stored as a whole:\n{lines}")


def _check_known(data: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for name in data:
        if name not in known:
            hint = (advice(name, STEP) if known is _STEP else "") or did_you_mean(name, known)
            raise DefinitionError(f"{what}: there is no field {name!r}.{hint}")


def _step_from_dict(
    data: Any, classes: Mapping[str, type], functions: Mapping[str, Mapping[str, Any]]
) -> PipelineStep:
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise DefinitionError(
            f"Stored pipeline: a step must be an object with a name, not {str(data)[:60]!r}."
        )
    where = f"Stored step {data['name']!r}"
    _check_known(data, _STEP, where)
    if not isinstance(data.get("goal"), str):
        raise DefinitionError(f"{where}: goal is missing. Say what the step is to achieve.")
    read: dict[str, Callable[[Any], Any]] = {
        "execution_mode": lambda value: _mode(value, f"{where}: execution_mode"),
        "output_schema": lambda value: _schema(value, where, classes),
        "body": lambda value: _body(value, where),
        "when": lambda value: value if isinstance(value, str) else _condition(value, where, classes),
        "settings": lambda value: _values(value, f"{where}: settings", classes),
        "tools": lambda value: _functions("tool", value, where, functions),
        "checks": lambda value: _functions("check", value, where, functions),
    }
    return PipelineStep(
        **{name: read[name](value) if name in read else value for name, value in data.items()}
    )


def _mode(value: Any, where: str) -> ExecutionMode:
    try:
        return ExecutionMode(value)
    except ValueError:
        raise DefinitionError(f"{where} must be serial or concurrent, not {value!r}.") from None


def _schema(data: Any, where: str, classes: Mapping[str, type]) -> type:
    name = data.get("name") if isinstance(data, Mapping) else data
    found = classes.get(name) if isinstance(name, str) else None
    if found is None:
        raise DefinitionError(
            f"{where}: its output_schema {name!r} is not among the classes that were passed."
            f"{did_you_mean(str(name), classes)} Pass it: schemas=[{name}]."
        )
    return found


def _body(data: Any, where: str) -> Any:
    from tagent_nb.pipeline.python_body import PythonBody

    if not isinstance(data, Mapping):
        raise DefinitionError(f"{where}: body must be an object, not {type(data).__name__}.")
    return PythonBody.from_dict(data)


def _condition(data: Any, where: str, classes: Mapping[str, type]) -> Any:
    from tagent_nb.pipeline.conditions import condition_from_dict

    try:
        return condition_from_dict(data, classes)
    except CorruptRecordError as error:
        raise DefinitionError(f"{where}: when: {error}") from None


def _functions(kind: str, value: Any, where: str, functions: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The functions that a step names as its tools or checks."""
    known = functions[kind]
    names = _texts(value, f"{where}: {kind}s")
    for name in names:
        if name not in known:
            raise DefinitionError(
                f"{where}: its {kind} {name!r} is not among the functions that were passed."
                f"{did_you_mean(name, known)} Pass it: {kind}s=[{name}]."
            )
    return [known[name] for name in names]


def _values(data: Any, where: str, classes: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise DefinitionError(f"{where} must be an object, not {type(data).__name__}.")
    try:
        return {name: from_tree(value, classes) for name, value in data.items()}
    except CorruptRecordError as error:
        raise DefinitionError(f"{where}: {error}") from None


def _texts(data: Any, where: str) -> list[str]:
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise DefinitionError(f"{where} must be a list of texts, not {str(data)[:60]!r}.")
    return list(data)


def _text(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise DefinitionError(f"{where} must be text, not {type(data).__name__}.")
    return data


# -- JSON text ------------------------------------------------------------------------------------


def pipeline_to_json(pipeline: Pipeline, *, indent: int | None = 2) -> str:
    """:func:`pipeline_to_dict` as JSON text."""
    return json.dumps(pipeline_to_dict(pipeline), indent=indent, ensure_ascii=False, allow_nan=False)


def pipeline_from_json(
    text: str,
    *,
    schemas: Iterable[type] | Mapping[str, type] = (),
    tools: Iterable[Callable[..., Any]] = (),
    checks: Iterable[Callable[..., Any]] = (),
) -> Pipeline:
    """:func:`pipeline_from_dict` of JSON text.

    Raises:
        DefinitionError: It is not the JSON of a pipeline.
        FormatVersionError: It was written by a newer version of tagent-nb.
    """
    return pipeline_from_dict(_parsed(text, "pipeline"), schemas=schemas, tools=tools, checks=checks)
