"""A fixture that lets your own tests replay a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tagent_nb.engine import read_recording


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | Path], None]:
    """``replay("answers.json")`` lets all executors that are made after it in this test answer agent steps
    from that recording, offline. Values, tokens and costs are those that were recorded, and a call that
    was not recorded fails its step.

    Import it into ``conftest.py``: ``from tagent_nb.testing import replay``.
    """

    def play(path: str | Path) -> None:
        monkeypatch.setattr("tagent_nb.engine.recordings.default", read_recording(path))

    return play
