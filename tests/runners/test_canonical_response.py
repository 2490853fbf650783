"""Answers as records keep them: what comes back is what was said, without secrets."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import BinaryContent, FilePart, ModelResponse, TextPart, ToolReturn
from pydantic_ai.usage import RequestUsage

from tagent_nb.errors import CorruptRecordError, OfflineMissError
from tagent_nb.runners.middleware.canonical_response import (
    error_to_plain,
    response_from_plain,
    response_to_plain,
    tidy_answer,
    value_from_plain,
    value_to_plain,
)


class Product(BaseModel):
    name: str


VALUES = [
    None,
    [1, 2.5, "three", {"x": True}],
    datetime(2026, 1, 2, tzinfo=UTC),
    {"price": Decimal("1.10"), "tags": {"a"}},
    BinaryContent(b"%PDF", media_type="application/pdf", identifier="one"),
    ["look", BinaryContent(b"%PDF", media_type="application/pdf", identifier="one")],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_a_tool_gave_comes_back_as_it_was(value: Any) -> None:
    assert value_from_plain(value_to_plain(value)) == value


def test_a_model_comes_back_as_itself_where_its_class_is_known() -> None:
    kept = value_to_plain(Product(name="tea"))
    assert value_from_plain(kept, {"Product": Product}) == Product(name="tea")
    assert value_from_plain(kept) == {"name": "tea"}


def test_content_beside_a_tools_value_comes_back() -> None:
    returned: ToolReturn[Any] = ToolReturn(
        "done", content=["see", BinaryContent(b"%PDF", media_type="application/pdf", identifier="one")]
    )
    restored = value_from_plain(value_to_plain(returned))
    assert isinstance(restored, ToolReturn)
    assert (restored.return_value, restored.content) == (returned.return_value, returned.content)


def test_what_no_record_can_hold_comes_back_as_a_model_sees_it() -> None:
    class Own:
        def __repr__(self) -> str:
            return "own"

    assert value_from_plain(value_to_plain(Own())) == "own"


@pytest.mark.parametrize("kind", [ToolFailed, ModelRetry])
@pytest.mark.parametrize("passing", [False, True])
def test_a_failed_call_fails_again(kind: type[ToolFailed] | type[ModelRetry], passing: bool) -> None:
    """And says again whether another try may help."""
    error = kind("away")
    error.__cause__ = ConnectionError() if passing else ValueError()
    with pytest.raises(kind, match="away") as caught:
        value_from_plain(error_to_plain(error))
    assert isinstance(caught.value.__cause__, TimeoutError) is passing


def test_an_answer_of_a_model_comes_back_with_its_usage() -> None:
    response = ModelResponse(
        parts=[TextPart("yes")],
        usage=RequestUsage(input_tokens=3, cost=Decimal("0.5")),
        provider_url="http://x",
    )
    restored = response_from_plain(response_to_plain(response))
    assert (restored.text, restored.usage, restored.provider_url) == ("yes", response.usage, None)


def test_a_file_in_an_answer_stays_as_it_is_and_where_it_is() -> None:
    picture = FilePart(BinaryContent(b"\x89PNG", media_type="image/png"))
    response = ModelResponse([TextPart("before \ud83d"), picture, TextPart("after")])
    tidy_answer(response)
    assert response.parts == [TextPart("before \ufffd"), picture, TextPart("after")]


def test_secrets_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "sk-canary-0123456789")
    response = ModelResponse(parts=[TextPart("it is sk-canary-0123456789")])
    for kept in (
        response_to_plain(response),
        value_to_plain({"sk-canary-0123456789": ["sk-canary-0123456789"]}),
        value_to_plain(ToolReturn("sk-canary-0123456789")),
        error_to_plain(ToolFailed("sk-canary-0123456789")),
    ):
        assert "***" in str(kept)
        assert "canary" not in str(kept)


@pytest.mark.parametrize("kept", [{}, {"returned": 1}, {"content": {"kind": "binary"}, "part_kind": 1}])
def test_a_damaged_record_of_a_tool_is_reported(kept: dict[str, Any]) -> None:
    if "content" in kept:
        assert value_from_plain(kept) == {"kind": "binary"}
        return
    with pytest.raises(CorruptRecordError, match="recorded answer of a tool"):
        value_from_plain(kept)


def test_a_record_of_something_else_is_no_answer_of_a_model() -> None:
    with pytest.raises(OfflineMissError, match="changed by hand"):
        response_from_plain({"kind": "request", "parts": []})
