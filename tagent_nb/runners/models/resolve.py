"""Models by name: which there are, whether they can be used, what they cost, and what their objects add."""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tagent_nb.errors import MissingExtraError, MissingKeyError, ModelError, UnknownModelError, did_you_mean
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import Price
from tagent_nb.redaction import environment_version, redact
from tagent_nb.runners.models import local
from tagent_nb.runners.models.transport import PROVIDERS as OPENAI_PROVIDERS
from tagent_nb.runners.models.transport import send_as_given
from tagent_nb.user_objects import class_name, message_of, safe_repr

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model

OLLAMA_URL = "http://localhost:11434/v1"
"""Where Ollama listens unless ``OLLAMA_BASE_URL`` says otherwise."""

_VARIABLE = re.compile(r"`([A-Z][A-Z0-9_]*)`")
_EXTRA = re.compile(r"pydantic-ai-slim\[([a-z-]+)\]")
_WITHOUT_KEY = "Without a key there are model='local' (see `tagent-nb model install`) and model='test'."


def is_local(model: object) -> bool:
    """Whether this names the model that comes with tagent-nb."""
    return model in ("local", local.NAME) if isinstance(model, str) else False


def model_name(model: Any) -> str:
    """The name of a model as results and fingerprints show it; empty without one."""
    if model is None:
        return ""
    if isinstance(model, str):
        return local.NAME if is_local(model) else model
    behind = models_behind(model)
    if len(behind) > 1:
        return f"fallback:{','.join(model_name(inner) for inner in behind)}"
    system, name = getattr(model, "system", ""), getattr(model, "model_name", "")
    if system == local.SYSTEM:
        return str(name)
    return f"{system}:{name}" if name else type(model).__name__


def asks_network(model: Any) -> bool:
    """Whether a model, or one behind it, answers over the network: one of tests and the local one do not."""
    try:
        if isinstance(model, str):
            return model not in ("", "test") and not is_local(model)
        return any(
            getattr(inner, "base_url", None) is not None and getattr(inner, "system", "") != local.SYSTEM
            for inner in models_behind(model)
        )
    except BaseException:  # the model's own code: the step that asks it says so
        return False


def check_model(model: Any) -> None:
    """Check that a model can be used, without asking it anything and without the network.

    Raises:
        UnknownModelError: There is no such provider, or no model at all.
        MissingKeyError: The provider's key, or another setting of it, is not in the environment.
        MissingExtraError: The provider's package, or the local model, is not installed.
    """
    if is_local(model):
        local.check()
    elif isinstance(model, str):
        _check(model, environment_version())
    else:
        resolve_model(model)


@functools.lru_cache
def _check(model: str, version: int) -> None:
    """A model of this name can be made in this state of the environment."""
    _unconnected(model)


def _unconnected(model: str) -> Model[Any]:
    """A model that is asked nothing: reading certificates for it would take longer than all else."""
    if not speaks_openai(model):
        return resolve_model(model)
    import httpx2

    return resolve_model(model, httpx2.AsyncClient(transport=httpx2.AsyncBaseTransport()))


def speaks_openai(model: str) -> bool:
    """Whether the provider in a name takes an HTTP client for OpenAI's own client."""
    return model.partition(":")[0] in OPENAI_PROVIDERS


def resolve_model(model: Any, http_client: Any = None) -> Model[Any]:
    """The pydantic-ai model for a name such as ``"openai:gpt-5"``, ``"local"`` or ``"test"``.

    A pydantic-ai model object comes back as it is. ``"local"`` starts the local model, which takes
    about a second the first time. Keys are read from the environment now.

    Args:
        model: A name or an object.
        http_client: What a model with OpenAI's protocol connects by; ``None`` lets its provider make one.

    Raises:
        ModelError: As :func:`check_model`.
    """
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.models import Model, infer_model

    if isinstance(model, Model):
        return model
    if is_local(model):
        return local.model()
    if model is None:
        raise UnknownModelError(
            "No model is set. Give the pipeline one: Pipeline(..., model='local') or "
            "%tagent_pipeline NAME --model local."
        )
    if not isinstance(model, str):
        raise UnknownModelError(
            f"A model must be a name such as 'openai:gpt-5' or a pydantic-ai model, "
            f"not {class_name(model)} ({safe_repr(model)})."
        )
    try:
        if speaks_openai(model):
            resolved: Any = infer_model(model, functools.partial(_provider, http_client=http_client))
            resolved.client.max_retries = 0  # attempts are the engine's affair
            send_as_given(resolved.client)
            return resolved  # type: ignore[no-any-return]
        return infer_model(model)
    except UserError as error:
        raise _refused(model, str(error)) from None
    except ImportError as error:
        raise _not_installed(model, str(error)) from None
    except Exception as error:  # providers of other packages check their settings in their own ways
        raise ModelError(f"Model {model!r} cannot be used: {redact(message_of(error))}") from error


def batch_problem(model: Any) -> str:
    """Why a model takes no batches of requests, in words; empty if it does. It is asked nothing."""
    if is_local(model):
        return f"the local model ({local.NAME}) has no interface for batches."
    if isinstance(model, str):
        takes = _takes_batches(model, environment_version())
    else:
        takes = resolve_model(model).batch_max_requests is not None
    if takes:
        return ""
    name = model_name(model)
    if name.startswith("openai-chat:"):
        return (
            f"{name!r} has no interface for batches: those of OpenAI speak the Responses API, as "
            f"{name.replace('-chat', '', 1)!r} does."
        )
    return f"{name!r} has no interface for batches."


@functools.lru_cache
def _takes_batches(model: str, version: int) -> bool:
    return _unconnected(model).batch_max_requests is not None


def _provider(name: str, http_client: Any) -> Any:
    """A provider; Ollama needs neither a key nor an address when it runs on this machine."""
    from pydantic_ai.providers import infer_provider_class

    address = {"base_url": os.environ.get("OLLAMA_BASE_URL") or OLLAMA_URL} if name == "ollama" else {}
    provider: Any = infer_provider_class(name)
    return provider(**address, http_client=http_client)


def stand_in(model: Any) -> Model[Any]:
    """A model that looks like the one of this name, for runs that ask no model. It needs no key.

    Raises:
        ModelError: There is no such provider or model, or its package is not installed.
    """
    from pydantic_ai.models import infer_model

    if is_local(model):
        return local.stand_in()
    try:
        return _unconnected(model) if isinstance(model, str) else resolve_model(model)
    except MissingKeyError:
        try:
            return infer_model(model, _keyless)
        except Exception as error:  # each provider asks for its settings in its own way
            raise ModelError(f"Model {model!r} cannot be replayed without its settings: {error}") from error


def _keyless(name: str) -> Any:
    from pydantic_ai.providers import infer_provider_class

    provider: Any = infer_provider_class(name)
    return provider(api_key="offline")


def _refused(model: str, message: str) -> ModelError:
    if message.startswith("Unknown model"):
        return UnknownModelError(_unknown(model))
    variables = _VARIABLE.findall(message)
    if not variables:
        return MissingKeyError(f"Model {model!r} cannot be used: {message} {_WITHOUT_KEY}")
    name = variables[0]
    return MissingKeyError(
        f"Model {model!r} needs the environment variable {name}, which is not set. Set it before the run, "
        f"for example: import os, getpass; os.environ[{name!r}] = getpass.getpass('{name}: '). {_WITHOUT_KEY}"
    )


def _unknown(model: str) -> str:
    provider, colon, _ = model.partition(":")
    if provider.startswith("local"):
        return f"There is no model {model!r}. The local model is 'local' (its full name is {local.NAME!r})."
    if not colon:
        return f"There is no model {model!r}. Name its provider too, as in 'openai:gpt-5'."
    providers = provider_names()
    return (
        f"Model {model!r}: there is no provider {provider!r}.{did_you_mean(provider, providers)} "
        f"Known: {', '.join(providers)}."
    )


def _not_installed(model: str, message: str) -> MissingExtraError:
    extra = _EXTRA.search(message)
    remedy = f'Run: pip install "pydantic-ai-slim[{extra[1]}]"' if extra else message
    return MissingExtraError(f"Model {model!r} needs a package that is not installed. {remedy}")


def provider_names() -> list[str]:
    """Names of providers, for messages."""
    import pydantic_ai.providers

    files = (module.name for module in pkgutil.iter_modules(pydantic_ai.providers.__path__))
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


# -- prices -----------------------------------------------------------------------------------


HALF_PRICE = frozenset(
    (
        *("openai", "openai-responses", "anthropic"),
        *("google", "google-gla", "google-cloud"),
    )
)
"""Providers whose batches cost half of what the same requests cost by themselves, as they all say."""

BATCHED = "batch"
"""Where the metadata of an answer has the id of the batch that it came in."""


def price(
    model: Any, usage: TokenUsage, prices: Mapping[str, Price] | None = None, *, batch: bool = False
) -> float | None:
    """USD that these tokens cost with this model; ``None`` when its price is unknown.

    The user's own ``prices`` come first. The local model and ``"test"`` cost 0. Other prices are those
    that come with the installed ``genai-prices``; nothing is downloaded.

    Args:
        model: A name or an object.
        usage: The tokens.
        prices: The user's own.
        batch: Whether they are those of requests in a batch. It costs what the installed prices say of it,
            else half where the provider is one of :data:`HALF_PRICE`, and for others it is unknown.
    """
    own = (prices or {}).get(model_name(model))
    if own is not None:
        return _in_batch(model, own.cost(usage)) if batch else own.cost(usage)
    if not usage or _is_free(model):
        return 0.0
    alone = _listed(model, usage, {})
    if not batch or alone is None:
        return alone
    together = _listed(model, usage, {"processing": "batch"})
    # Where no price of a batch is listed, that of a request by itself comes back.
    return together if together != alone else _in_batch(model, alone)


def _in_batch(model: Any, alone: float) -> float | None:
    """USD of requests in a batch whose price is not listed; ``None`` where it is unknown."""
    if not alone:
        return alone
    return alone / 2 if model_name(model).partition(":")[0] in HALF_PRICE else None


def _listed(model: Any, usage: TokenUsage, conditions: dict[str, str]) -> float | None:
    """USD by the prices of the installed package; ``None`` if it does not know the model."""
    if not _is_listed(model_name(model)):
        return None
    from genai_prices import Usage, calc_price

    provider, _, name = model_name(model).partition(":")
    tokens = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
    )
    try:
        priced = calc_price(tokens, name, provider_id=provider or None, price_context=conditions)
        return float(priced.total_price)
    except (LookupError, ValueError):
        return None


def _is_listed(name: str, url: str | None = None) -> bool:
    """Whether the installed package knows a model of a provider, or of what is at an address."""
    from genai_prices.data_snapshot import get_snapshot

    # Newer ones may take its place. It keeps what it finds, and looks through all for what it does not.
    return _is_in(get_snapshot().timestamp, name, url)


@functools.lru_cache(maxsize=1024)
def _is_in(snapshot: datetime, name: str, url: str | None) -> bool:
    from genai_prices.data_snapshot import get_snapshot

    provider, _, model = name.partition(":")
    for place in ((None, url), (provider or None, None)) if url else ((provider or None, None),):
        with contextlib.suppress(LookupError):
            get_snapshot().find_provider_model(model, None, *place)
            return True
    return False


def context_window(model: Any) -> int | None:
    """Most tokens that a model reads at once, its answer included; ``None`` where that is unknown.

    Of several models behind a fallback, the largest. It is that of the installed ``genai-prices``.
    """
    windows = [_window(model_name(inner)) for inner in models_behind(model)]
    known_windows = [window for window in windows if window is not None]
    return max(known_windows) if len(known_windows) == len(windows) else None


def least_window(model: Any) -> int | None:
    """As :func:`context_window`, but of several models behind a fallback the smallest that is known."""
    windows = [_window(model_name(inner)) for inner in models_behind(model)]
    return min((window for window in windows if window is not None), default=None)


@functools.lru_cache(maxsize=256)
def _window(name: str) -> int | None:
    if is_local(name):
        return local.CONTEXT_TOKENS
    from genai_prices.data_snapshot import get_snapshot

    provider, _, model = name.partition(":")
    try:
        window: int | None = get_snapshot().find_provider_model(model, None, provider, None)[1].context_window
    except LookupError:
        return None
    return window


SHORT_PROMPT = 8_000
"""Characters of a prompt that fits every window."""

MOST_BYTES_A_TOKEN = 8
"""Bytes of text that no tokenizer gets into fewer tokens than one, on average over a long text."""


def too_long(model: Any, task: str) -> str:
    """In words, that a prompt is longer than its model reads, whatever the tokenizer; empty if it may fit."""
    if len(task) < SHORT_PROMPT:
        return ""
    window = context_window(model)
    least = len(task.encode("utf-8", "replace")) // MOST_BYTES_A_TOKEN
    if window is None or least <= window:
        return ""
    return (
        f"its prompt has {len(task):,} characters, at least {least:,} tokens, and "
        f"{model_name(model)!r} reads {window:,} at once. Run the step for each row (map_over, --map-over), "
        "let it read many rows in parts (reduce_over, --reduce-over), let the goal refer to less, or choose "
        "a model that reads more"
    )


def models_behind(model: Any) -> list[Any]:
    """The models that may answer: those behind a fallback, else the model itself."""
    behind = getattr(model, "models", None) or ()
    return [model_behind for each in behind for model_behind in models_behind(each)] or [model]


def profiles_behind(model: Model[Any]) -> list[Any]:
    """What the models that may answer can do, as pydantic-ai's profiles. A fallback has none of its own."""
    return [inner.profile for inner in models_behind(model)]


def supports(model: Model[Any], feature: str, default: bool) -> bool:
    """Whether all models that may answer can do something, by its name in pydantic-ai's profiles."""
    return all(profile.get(feature, default) for profile in profiles_behind(model))


def unpriced(model: Any, prices: Mapping[str, Price] | None = None) -> list[str]:
    """Names of the models that may answer and whose price is unknown."""
    used = TokenUsage(input_tokens=1, output_tokens=1)
    return [model_name(inner) for inner in models_behind(model) if price(inner, used, prices) is None]


ASSUMED_INPUT, ASSUMED_OUTPUT = "assumed_input_tokens", "assumed_output_tokens"
"""Details of an answer's usage that are noted where its provider reported none."""


SHARED_REQUESTS = "shared_requests"
"""Detail of a row's part of an answer that several rows share: how many requests count as the row's."""


def is_measured(response: ModelResponse) -> bool:
    """Whether the provider reported how many tokens an answer took."""
    used = response.usage
    if used.unmeasured_requests:
        return False
    return bool(used.input_tokens or used.output_tokens or SHARED_REQUESTS in used.details)


def usage_of(response: ModelResponse) -> TokenUsage:
    """Tokens that one answer took; where its provider reported none, those that are assumed."""
    used = response.usage
    return TokenUsage(
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        cached_tokens=used.cache_read_tokens,
        reasoning_tokens=used.output_reasoning_tokens,
        requests=used.details.get(SHARED_REQUESTS, 1),
        assumed_input_tokens=used.details.get(ASSUMED_INPUT, 0),
        assumed_output_tokens=used.details.get(ASSUMED_OUTPUT, 0),
    )


def cost_of(model: Any, response: ModelResponse, prices: Mapping[str, Price] | None = None) -> float | None:
    """USD of one answer; ``None`` when unknown, as where its provider does not report its tokens.

    Its tokens at the user's own price of the model (or of the one that answered, as behind a fallback),
    else what the provider says that it costs, else its tokens at the known price.
    """
    answered = _answering_model(model, response)
    names = (model_name(model), f"{response.provider_name}:{response.model_name}", model_name(answered))
    own = next((prices[name] for name in names if name in prices), None) if prices else None
    measured = is_measured(response)
    batch = BATCHED in (response.metadata or {})
    if own is not None and (measured or own.is_nothing):
        cost = own.cost(usage_of(response))
        return _in_batch(answered, cost) if batch else cost
    if _is_free(answered):
        return 0.0
    if response.usage.cost is not None:
        return float(response.usage.cost)
    if not measured:
        return None
    if response.model_name and batch:
        cost_there = price(f"{response.provider_name}:{response.model_name}", usage_of(response), batch=True)
        if cost_there is not None:
            return cost_there
    elif response.model_name and _is_listed(
        f"{response.provider_name or ''}:{response.model_name}", response.provider_url
    ):
        with contextlib.suppress(LookupError, ValueError):
            return float(response.cost().total_price)
    # The provider may call it by a name of its own: the one that was asked may be known.
    return None if answered is None else price(answered, usage_of(response), batch=batch)


def _answering_model(model: Any, response: ModelResponse) -> Any:
    """The one that answered of the models behind a fallback; ``None`` where the answer names none of them.

    Providers may answer under a longer name than they were asked by, such as ``gpt-4o-2024-08-06``.
    """
    behind = models_behind(model)
    if len(behind) == 1:
        return behind[0]
    answered_by = response.model_name or ""
    named = [
        candidate
        for candidate in behind
        if answered_by.startswith(candidate.model_name) and response.provider_name in (None, candidate.system)
    ]
    return max(named, key=lambda candidate: len(candidate.model_name), default=None)


def _is_free(model: Any) -> bool:
    """The local model, and the test model, which asks no server."""
    return model == "test" or getattr(model, "system", "") == "test" or model_name(model) == local.NAME


# -- what a model object brings besides its name: two of one name may answer otherwise -----------------

_CANNED = ("custom_output_text", "custom_output_args", "call_tools", "seed")
"""What pydantic-ai's TestModel answers with."""


def model_parts(model: Any) -> dict[str, Any]:
    """The parts of a model's fingerprint; nothing for a name, which says all.

    Keys are no part of it: a new key asks the same model.

    Args:
        model: A name, or an object of pydantic-ai.

    Returns:
        ``model_settings``, ``model_server`` (without user and password), ``model_answers`` and
        ``model_functions`` (those of test doubles) and ``model_class`` (of the user), as far as there are
        any. Of a fallback, ``model_settings:1 NAME`` and so on for each model behind it.
    """
    if model is None or isinstance(model, str):
        return {}
    behind = [part_model for part_model in models_behind(model) if not isinstance(part_model, str)]
    components = {}
    for place, part_model in enumerate(behind, 1):
        more = f":{place} {model_name(part_model)}" if len(behind) > 1 else ""
        components.update({f"model_{name}{more}": part for name, part in _identity(part_model).items()})
    return components


def _identity(model: Any) -> dict[str, Any]:
    settings, address = getattr(model, "settings", None), getattr(model, "base_url", None)
    functions = [getattr(model, name, None) for name in ("function", "stream_function")]
    answers = {name: getattr(model, name, None) for name in _CANNED if hasattr(model, name)}
    parts = {
        "settings": dict(settings) if settings else None,
        "server": _address(str(address)) if address else None,
        "answers": answers,
        "functions": [function for function in functions if callable(function)],
        "class": None if type(model).__module__.startswith(("pydantic_ai.", "tagent_nb.")) else type(model),
    }
    return {name: part for name, part in parts.items() if part}


def _address(address: str) -> str:
    """The address without what logs in there."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
