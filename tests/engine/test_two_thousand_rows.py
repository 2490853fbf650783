"""What 2,000 real rows cost, by what the server of their model was asked: when some fail, some change, or a
process is killed on the way. An answer takes 50 ms, and 50 are under way at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import rows_child
from rows_child import AT_ONCE, ROWS, executor, lines
from rows_server import RowsServer, rows_server

from tagent_nb import ResultCache
from tagent_nb.engine.recorder import AHEAD

pytestmark = pytest.mark.models


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RowsServer]:
    with rows_server(0.05) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-no-one")
        yield running


def once(rows: list[dict[str, str]]) -> Counter[str]:
    return Counter(row["place"] for row in rows)


def test_failed_rows_are_paid_again_alone_and_changed_ones_after_them(
    server: RowsServer, tmp_path: Path
) -> None:
    rows = lines()
    assert len(rows) == ROWS
    bad = rows[7::100]
    server.wrong = {row["place"] for row in bad}
    lab = executor(tmp_path, rows, cache=ResultCache(tmp_path / "cache"))
    first = lab.run()
    assert first.success
    assert server.take() == once(rows)
    assert server.most == AT_ONCE
    assert first["answered"] == ROWS - len(bad) == ROWS - 20

    server.wrong = ()
    again = lab.retry_failed("classify")
    assert server.take() == once(bad)
    assert again["answered"] == ROWS
    assert again.run_id == first.run_id

    changed = [{**row, "text": row["text"] + "!"} if row in rows[500:503] else row for row in rows]
    lab.pipeline.inputs["rows"] = changed
    assert lab.run()["answered"] == ROWS
    assert server.take() == once(rows[500:503])


def test_a_run_that_was_killed_at_row_1200_pays_for_the_rest_alone(
    server: RowsServer, tmp_path: Path
) -> None:
    """Without a cache: it is the run's record that knows what was paid."""
    rows = lines()
    child: list[subprocess.Popen[bytes]] = []

    def kill(number: int) -> None:
        if number == 1200:
            os.kill(child[0].pid, signal.SIGKILL)

    server.on_request = kill
    child.append(subprocess.Popen([sys.executable, rows_child.__file__, str(tmp_path)]))
    assert child[0].wait(120) == -signal.SIGKILL
    before = server.take()
    assert set(before.values()) == {1}
    # What was sent in the moment of the kill is a request, too.
    assert 1200 <= before.total() <= 1200 + AT_ONCE

    server.on_request = lambda number: None
    result = executor(tmp_path, rows, cache=False).run(resume=True)
    assert result["answered"] == ROWS
    after = server.take()
    assert set(after.values()) == {1}
    assert (before | after).keys() == once(rows).keys()
    # Paid twice: what was under way, and what had ended and was not recorded yet (ADR 0035).
    assert (before & after).total() <= AT_ONCE + AHEAD
    assert after.total() <= ROWS - 1200 + AT_ONCE + AHEAD
