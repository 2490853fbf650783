"""Secrets of the environment are found in each form in which they may turn up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.pipeline.secrets import HIDDEN, held_secret, hide, redact

ODD = "p@ss wörd/'\"\\\n+&"


@pytest.mark.parametrize(
    "form",
    [
        ODD,
        quote(ODD),
        quote(ODD, safe=""),
        quote_plus(ODD),
        json.dumps(ODD),
        json.dumps(ODD, ensure_ascii=False),
    ],
    ids=["plain", "path", "url", "form", "json", "json-utf8"],
)
def test_a_secret_is_hidden_in_urls_and_in_json(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A library's error message may have it in any of these."""
    monkeypatch.setenv("DB_PASSWORD", ODD)
    text = f"postgres://me:{form}@host"
    assert held_secret(text) == "DB_PASSWORD"
    assert redact(text) in (f"postgres://me:{HIDDEN}@host", f'postgres://me:"{HIDDEN}"@host')
    assert hide({"url": [text]})[1] == {"url[0]": "DB_PASSWORD"}


def test_a_secret_is_hidden_in_the_repr_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks show values so; a key of several lines, too."""
    monkeypatch.setenv("SIGNING_KEY", "-----BEGIN-----\nabc\n-----END-----")
    assert redact(repr({"key": "-----BEGIN-----\nabc\n-----END-----"})) == f"{{'key': '{HIDDEN}'}}"


def test_what_is_short_or_has_another_name_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PASSWORD of "test" would hide the word everywhere."""
    monkeypatch.setenv("MY_PASSWORD", "test")
    monkeypatch.setenv("MY_KEYBOARD", "qwertyuiop")
    monkeypatch.setenv("OTHER_KEY", "0123456789abc")
    assert redact("0123456789abc") == HIDDEN
    assert hide({"n": 7}) == ({"n": 7}, {})
    assert redact("test qwertyuiop") == "test qwertyuiop"
    assert held_secret("test qwertyuiop") is None


@pytest.mark.parametrize("later", ["gone", "another"])
def test_a_secret_that_a_step_takes_out_of_the_environment_stays_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, later: str
) -> None:
    """It is in what the step prints and raises, and must not get into the record."""
    monkeypatch.setenv("SVC_TOKEN", "canary-abcdefgh-1")
    pipeline = Pipeline("takes")

    @pipeline.task(max_retries=0)
    def take() -> None:
        token = os.environ.pop("SVC_TOKEN")
        if later == "another":
            os.environ["SVC_TOKEN"] = "canary-ijklmnop-2"
        print("using", token)
        raise PermissionError(f"refused {token}")

    result = PipelineExecutor(pipeline, storage=tmp_path / "runs").run()
    assert result.error_details["take"].endswith(f"PermissionError: refused {HIDDEN}")
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"refused" in stored
    assert b"canary-abcdefgh-1" not in stored
