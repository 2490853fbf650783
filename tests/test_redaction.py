"""Secrets of the environment are found in each form in which they may turn up."""

from __future__ import annotations

import html
import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

from tagent_nb import DefinitionError, Pipeline, PipelineExecutor, StepContext, events
from tagent_nb.redaction import HIDDEN, Secrets, held_secret, hide, note_secrets, redact

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


KEY = "sk-Ab3+/x9_Zq~07"
ALNUM = "Q7w9E1r3T5y7U9i1"


def forms(key: str) -> dict[str, str]:
    """What programs make of a key, by what it is called."""
    raw = key.encode()
    return {
        "plain": key,
        "base64": b64encode(raw).decode(),
        "base64 without padding": b64encode(raw).decode().rstrip("="),
        "url-safe base64": urlsafe_b64encode(raw).decode(),
        "hex": raw.hex(),
        "upper hex": raw.hex().upper(),
        "basic auth": b64encode(b"me:" + raw).decode(),
        "basic auth of another user": b64encode(b"anna:" + raw + b"\n").decode(),
        "inside base64 at 1": urlsafe_b64encode(b"x" + raw + b"yy").decode(),
        "inside base64 at 2": b64encode(b"xx" + raw + b"y").decode(),
        "inside base64 at 3": b64encode(b"xxx" + raw).decode(),
        "percent-encoded": quote(key, safe=""),
        "percent-encoded in lower case": re.sub("%..", lambda match: match[0].lower(), quote(key, safe="")),
        "json": json.dumps(key),
        "json with escaped slashes": json.dumps(key).replace("/", "\\/"),
        "repr": repr(key),
        "repr of bytes": repr(raw),
        "html": html.escape(key),
    }


@pytest.mark.parametrize("key", [KEY, ALNUM, ODD, "päß-wörd-ключ", 'quote"and<tag>&'])
@pytest.mark.parametrize("form", list(forms(KEY)))
def test_a_secret_is_hidden_however_a_program_passes_it_on(
    monkeypatch: pytest.MonkeyPatch, form: str, key: str
) -> None:
    monkeypatch.setenv("SVC_API_KEY", key)
    text = f"before {forms(key)[form]} after"
    hidden = redact(text)
    assert HIDDEN in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    left = hidden.removeprefix("before ").removesuffix(" after").replace(HIDDEN, "")
    assert len(left) <= 12, "only what stood around the key, and the bits that it shares, may be left"
    assert held_secret(text) == "SVC_API_KEY"
    assert hide({"a": [text]})[1] == {"a[0]": "SVC_API_KEY"}


@given(before=st.binary(max_size=20), after=st.binary(max_size=20), key=st.binary(min_size=9, max_size=40))
def test_no_piece_of_a_secret_is_left_in_base64(before: bytes, after: bytes, key: bytes) -> None:
    """Wherever it stands in the bytes that were encoded."""
    value = key.hex()
    secrets = Secrets({value: "A_KEY"})
    for encode in (b64encode, urlsafe_b64encode):
        text = encode(before + value.encode() + after).decode()
        assert secrets.are_in(text)
        assert secrets.are_in_bytes(text.encode())


def test_a_secret_is_known_from_the_moment_that_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is not read for each text; a change of any kind is noticed all the same."""
    assert redact("late-value-1") == "late-value-1"
    monkeypatch.setenv("LATE_TOKEN", "late-value-1")
    assert redact("late-value-1") == HIDDEN
    monkeypatch.setenv("LATE_TOKEN", "late-value-2")
    assert redact("late-value-1 late-value-2") == f"{HIDDEN} {HIDDEN}"
    monkeypatch.setenv("OLD_NAME_X", "late-value-3")
    assert redact("late-value-3") == "late-value-3"
    monkeypatch.delenv("OLD_NAME_X")
    monkeypatch.setenv("NEW_NAME_KEY", "late-value-3")
    assert redact("late-value-3") == HIDDEN
    monkeypatch.setattr(os, "environ", {"OTHER_SECRET": "late-value-4\n"})
    assert redact("late-value-4.") == f"{HIDDEN}."


def test_an_unchanged_environment_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "some-value-1")
    first = note_secrets()
    assert note_secrets() is first
    monkeypatch.setenv("NO_SECRET_AT_ALL", "1")
    assert note_secrets() is first


def test_a_tool_argument_reaches_no_record_and_no_view(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model may pass on what it was shown."""
    monkeypatch.setenv("SVC_API_KEY", KEY)
    shown = list(forms(KEY).values())

    def call(messages: list[Any], info: Any) -> Any:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("look", {"where": form}) for form in shown])
        return ModelResponse(parts=[TextPart("done")])

    def look(where: str) -> str:
        """Look."""
        return "seen"

    pipeline = Pipeline("looks")
    pipeline.step("asks", "Look.", tools=[look], model=FunctionModel(call))
    result = PipelineExecutor(pipeline, storage=tmp_path / "runs").run()
    assert result.success
    views = str(result.events) + result.events_frame().to_string() + result._repr_html_()
    views += b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()).decode()
    for form in shown:
        assert form not in views


def pipeline_that_returns(value: Any) -> Pipeline:
    """A step whose value holds what is given."""
    pipeline = Pipeline("values")
    pipeline.task(name="holds")(lambda: value)
    return pipeline


@pytest.mark.parametrize("form", ["plain", "base64", "hex", "basic auth", "percent-encoded", "json"])
def test_a_value_with_a_secret_is_kept_as_it_is_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """It is the user's own: it is never changed, and neither is it passed over."""
    monkeypatch.setenv("SVC_API_KEY", KEY)
    value = {"header": forms(KEY)[form]}
    result = PipelineExecutor(pipeline_that_returns(value), storage=tmp_path).run()
    assert result.step_outputs["holds"] == value
    (warning,) = result.warnings
    assert "'holds'" in warning
    assert "SVC_API_KEY" in warning
    assert KEY not in warning
    assert forms(KEY)["hex"] not in str(result.to_frame()) + result._repr_html_()


@pytest.mark.parametrize("form", list(forms(ODD)))
def test_each_form_is_found_in_what_is_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """A store holds JSON, which escapes the escapes of a form once more."""
    monkeypatch.setenv("SVC_API_KEY", ODD)
    text = forms(ODD)[form]
    result = PipelineExecutor(pipeline_that_returns([text]), storage=tmp_path).run()
    assert result["holds"] == [text]
    (warning,) = result.warnings
    assert "SVC_API_KEY" in warning
    assert held_secret(json.dumps(text)) == held_secret(json.dumps(text, ensure_ascii=False)) == "SVC_API_KEY"


def test_a_value_with_a_secret_can_be_refused_or_let_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SVC_API_KEY", KEY)
    pipeline = pipeline_that_returns([KEY])
    refused = PipelineExecutor(pipeline, storage=tmp_path / "refused", secret_values="fail").run()
    assert "SVC_API_KEY" in refused.error_details["holds"]
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in stored
    quiet = PipelineExecutor(pipeline, storage=tmp_path / "quiet", secret_values="ignore").run()
    assert quiet.success
    assert quiet.warnings == []
    nowhere = PipelineExecutor(pipeline).run()
    assert nowhere.warnings == [], "in memory nothing is written down"
    with pytest.raises(DefinitionError, match="secret_values must be 'warn', 'fail', 'ignore', not 'hide'"):
        PipelineExecutor(pipeline, secret_values="hide")


def test_what_a_step_learns_and_what_is_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SVC_API_KEY", KEY)
    pipeline = Pipeline("learns")

    @pipeline.task
    def learns(context: StepContext) -> None:
        context.learn("token", [KEY])
        context.write(f"using {KEY}")
        context.progress("login", header=[f"Bearer {KEY}"])

    @pipeline.task
    def large() -> str:
        return KEY + "x" * 1_000_000

    @pipeline.task
    def odd() -> Any:
        return lambda: KEY

    result = PipelineExecutor(pipeline, storage=tmp_path, observers=[lambda event: None]).run()
    about_secrets = [warning for warning in result.warnings if "SVC_API_KEY" in warning]
    assert len(about_secrets) == 1
    assert "'learns': what it learned as 'token'" in about_secrets[0]
    progress = [event for event in result.events if isinstance(event, events.StepProgress)]
    assert progress[0].detail == {"header": [f"Bearer {HIDDEN}"]}
    assert KEY not in result.events_frame().to_string()
