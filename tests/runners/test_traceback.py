"""Tracebacks of steps: the user's own lines, without ours, the libraries' and without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tagent_nb.pipeline import PipelineStep, PythonBody
from tagent_nb.redaction import redact
from tagent_nb.runners import PythonRunner, StepContext, user_traceback


async def failure(source: str) -> BaseException:
    step = PipelineStep(name="s", goal="g", body=PythonBody.from_cell("s", source))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any error of the cell
        await PythonRunner().run(step, StepContext("run", "demo", "s"))
    return caught.value


async def test_a_cells_own_lines_are_shown() -> None:
    """Line numbers and text are those of the cell; frames of the runner are left out."""
    text = user_traceback(await failure("def inner(x):\n    return x / 0\n\ninner(1)"))
    assert 'File "<step s>", line 4' in text
    assert 'File "<step s>", line 2, in inner' in text
    assert "return x / 0" in text
    assert text.endswith("ZeroDivisionError: division by zero")
    assert "tagent_nb" not in text


async def test_frames_of_libraries_are_left_out() -> None:
    text = user_traceback(await failure("import json\njson.loads('{')"))
    assert "json.loads('{')" in text
    assert str(json.__file__) not in text
    assert "JSONDecodeError" in text


async def test_causes_and_groups_are_shortened_as_well() -> None:
    source = (
        "import json\ntry:\n    json.loads('{')\nexcept ValueError as e:\n"
        "    raise ExceptionGroup('both', [KeyError('a'), e]) from e"
    )
    text = user_traceback(await failure(source))
    assert "direct cause" in text
    assert "KeyError: 'a'" in text
    assert str(json.__file__) not in text


def test_an_error_without_frames_is_its_message() -> None:
    assert user_traceback(ValueError("no place")) == "ValueError: no place"


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-1234567890")
    monkeypatch.setenv("DB_PASSWORD", "short")
    monkeypatch.setenv("PLAIN", "something long")
    text = "sk-1234567890 short something long"
    assert redact(text) == "*** short something long"
    assert user_traceback(ValueError("bad key sk-1234567890")) == "ValueError: bad key ***"


def test_users_own_functions_are_shown() -> None:
    def helper(value: Any) -> None:
        raise LookupError(value)

    with pytest.raises(LookupError) as caught:
        helper("x")
    assert "raise LookupError(value)" in user_traceback(caught.value)
