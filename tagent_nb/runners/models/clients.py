"""Models as runners ask them: one client for all steps of a loop, and the step's settings."""

from __future__ import annotations

import asyncio
import functools
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import environment_version
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.models import local
from tagent_nb.runners.models.resolve import is_local, models_behind, resolve_model, speaks_openai, stand_in
from tagent_nb.runners.models.transport import http_client
from tagent_nb.templating import instance_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_ai.models import Model
    from pydantic_ai.settings import ModelSettings


STREAM = "stream"
"""The setting that says whether the text of an answer is asked for in pieces. It never reaches a provider."""


class Models:
    """The models that the steps of a loop ask, each with one client. Runners may share one of these."""

    def __init__(self) -> None:
        self._models: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, asyncio.Future[Model[Any]]]] = (
            WeakKeyDictionary()
        )

    async def get(self, wanted: Any, *, offline: bool = False) -> Model[Any]:
        """The model of this name, or the model object. Made in a thread: importing takes long.

        Args:
            wanted: A name or a pydantic-ai model.
            offline: It will not be asked: neither a key nor the local model's server is needed.

        Raises:
            ModelError: The model cannot be used.
        """
        if instance_of(wanted, "pydantic_ai.models", "Model"):
            return cast("Model[Any]", wanted)
        if not isinstance(wanted, str):
            return await asyncio.to_thread(resolve_model, wanted)
        address = "offline" if offline else ""
        if is_local(wanted) and not offline:
            address = await asyncio.to_thread(local.address)
        # A key that is set later must be read; its value stays where it is.
        key = (type(wanted), wanted, address, environment_version())
        models = self._models.setdefault(asyncio.get_running_loop(), {})
        if key not in models:
            models[key] = asyncio.ensure_future(_made(wanted, offline))
            models[key].add_done_callback(functools.partial(_forget_failed, models, key))
        made = models[key]
        return made.result() if made.done() else await asyncio.shield(made)

    def __len__(self) -> int:
        """How many clients the current loop has."""
        return len(self._models.get(asyncio.get_running_loop(), ()))


async def _made(wanted: str, offline: bool) -> Model[Any]:
    if offline:
        return await asyncio.to_thread(stand_in, wanted)
    client = await http_client() if speaks_openai(wanted) else None
    return await asyncio.to_thread(resolve_model, wanted, client)


def _forget_failed(
    models: dict[Any, asyncio.Future[Model[Any]]], key: Any, made: asyncio.Future[Any]
) -> None:
    """The next step that wants the model tries again."""
    if made.cancelled() or made.exception() is not None:
        models.pop(key, None)


def can_stream(model: Model[Any]) -> bool:
    """Whether answers come in pieces. A function model may know whole ones only, also behind a fallback."""
    return all(getattr(candidate, "stream_function", True) is not None for candidate in models_behind(model))


def streams(step: PipelineStep, context: StepContext, model: Model[Any]) -> bool:
    """Whether the text of a step's answer is asked for in pieces: where it is watched, and not forbidden.

    The setting ``stream`` of the step, or else of the model, turns it off.
    """
    if step.output_schema is not None or context.item is not None or not context.watched:
        return False
    settings: Mapping[str, Any] = {**(model.settings or {}), **step.settings}
    return settings.get(STREAM, True) is not False and can_stream(model)


def model_settings(step: PipelineStep, model: Model[Any]) -> ModelSettings:
    """The step's settings, and no retries by the provider's client: attempts are the engine's affair.

    Raises:
        DefinitionError: There is no such setting.
    """
    problems = settings_problems(step)
    if problems:
        raise DefinitionError(" ".join(problems))
    settings = {name: value for name, value in step.settings.items() if name != STREAM}
    if "max_retries" not in model.unsupported_settings:
        settings.setdefault("max_retries", 0)
    return cast("ModelSettings", settings)


def settings_problems(step: PipelineStep) -> list[str]:
    """One sentence for each of the step's settings that no model knows, or whose value is of a wrong type."""
    if not step.settings:
        return []
    import pydantic_ai.models
    from pydantic_ai.settings import ModelSettings

    fields = ModelSettings.__annotations__
    names = sorted([*fields, STREAM])
    prefixes = {module.name.partition("_")[0] for module in pkgutil.iter_modules(pydantic_ai.models.__path__)}
    problems = []
    for name, value in step.settings.items():
        if name == STREAM:
            if not isinstance(value, bool):
                problems.append(
                    f"Step {step.name!r}: setting {name}={value!r} will not do: it must be true or false."
                )
        elif name in fields:
            wrong = _wrong_value(name, value)
            if wrong:
                problems.append(f"Step {step.name!r}: setting {name}={value!r} will not do: {wrong}.")
        elif name.partition("_")[0] not in prefixes:
            problems.append(
                f"Step {step.name!r}: there is no model setting {name!r}.{did_you_mean(name, names)} "
                f"Known: {', '.join(names)}, and those of a provider, such as openai_... ."
            )
    return problems


def _wrong_value(name: str, value: Any) -> str:
    """What is wrong with the value of a setting that pydantic-ai declares; empty if nothing is."""
    from pydantic import ValidationError

    if name == "max_tokens" and isinstance(value, int) and value < 1:
        return "it must be 1 or more"
    try:
        # Strict, since a provider gets the value as it is; but a tuple is sent as the list that it means.
        _type_of_setting(name).validate_python(
            list(value) if isinstance(value, tuple) else value, strict=True
        )
    except ValidationError as error:
        messages = dict.fromkeys(problem["msg"] for problem in error.errors(include_url=False))
        return "; ".join(f"{message[0].lower()}{message[1:]}" for message in messages)
    return ""


@functools.cache
def _type_of_setting(name: str) -> TypeAdapter[Any]:
    from typing import get_type_hints

    from pydantic import ConfigDict, TypeAdapter
    from pydantic_ai.settings import ModelSettings

    # A timeout may be an object of the HTTP client.
    return TypeAdapter(get_type_hints(ModelSettings)[name], config=ConfigDict(arbitrary_types_allowed=True))
