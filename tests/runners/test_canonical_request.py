"""What is hashed and kept of a call has no secrets of the environment, however they are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, SystemPromptPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.test import TestModel

from tagent_nb.redaction import redact
from tagent_nb.runners import StepContext, plain
from tagent_nb.runners.base import ModelCall
from tagent_nb.runners.middleware import canonical_request
from tagent_nb.runners.middleware.canonical_request import SharedParts, model_request

secrets = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=8, max_size=20)


def walked(value: Any) -> Any:
    """Each text by itself."""
    if isinstance(value, dict):
        return {redact(name): walked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [walked(item) for item in value]
    return redact(value) if isinstance(value, str) else value


@given(secrets, st.text(max_size=5), st.text(max_size=5))
@example('say "hello" \\ now', "", "")
@example("Grüße an 😀 alle", "<", ">")
@example("line\nbreak\t!", "", "")
def test_a_secret_is_found_wherever_it_stands(secret: str, before: str, after: str) -> None:
    text = f"{before}{secret}{after}"
    data = {"a": [1, None, {"b": text}], text: True, "c": "nothing here"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANONICAL_API_KEY", secret)
        kept = plain(data)
        assert kept == walked(data)
    assert secret not in str(kept["a"][2]["b"])


parts = st.one_of(
    st.builds(UserPromptPart, st.one_of(st.text(), st.lists(st.text(), max_size=2))),
    st.builds(SystemPromptPart, st.text()),
)


@given(st.lists(st.lists(parts, min_size=1, max_size=2).map(ModelRequest), min_size=1, max_size=2))
def test_a_question_of_one_text_is_hashed_as_any_other(messages: list[ModelRequest]) -> None:
    """It is not serialised for that, which must not be seen in its key."""
    request = model_request(asking(messages), "m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonical_request, "_plain_parts", serialised)
        assert model_request(asking(messages), "m") == request


def serialised(message: ModelRequest) -> Any:
    return ModelMessagesTypeAdapter.dump_python([message], mode="json")[0]["parts"]


def asking(messages: list[ModelRequest], **settings: Any) -> ModelCall:
    return ModelCall(
        StepContext("r", "p", "s"),
        TestModel(),
        [*messages],
        settings or None,
        ModelRequestParameters(),  # type: ignore[arg-type]
    )


def test_what_requests_share_is_worked_out_again_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where it is equal: it may be written otherwise."""
    shared, hello = (
        SharedParts(),
        [ModelRequest([UserPromptPart("Hello")], instructions="Be good to secret-1.")],
    )
    for settings in ({"temperature": 1}, {"temperature": 1.0}, {"temperature": True}, {"seed": 1}):
        call = asking(hello, **settings)
        assert model_request(call, "m", shared) == model_request(call, "m")
        assert model_request(call, "n", shared) == model_request(call, "n")
    before = model_request(asking(hello), "m", shared)
    monkeypatch.setenv("CANONICAL_API_KEY", "secret-1")
    assert model_request(asking(hello), "m", shared).key != before.key
