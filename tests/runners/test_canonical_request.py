"""What is hashed and kept of a call has no secrets of the environment, however they are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tagent_nb.redaction import redact
from tagent_nb.runners import plain

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
