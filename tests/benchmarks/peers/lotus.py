"""LOTUS: ``sem_map`` over a frame of 300 rows. The answer is text."""

from __future__ import annotations

import lotus
import pandas
from lotus.models import LM

from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.calls import AT_ONCE, ROWS, raw_side
from tests.benchmarks.peers.rows import peer_row
from tests.benchmarks.raw_client import environment, new_rows, own_cpu, server


def _mapped(rows: list[str]) -> float:
    frame = pandas.DataFrame({"text": rows})
    began = own_cpu()
    answered = frame.sem_map("Say what it is: {text}")
    taken = own_cpu() - began
    assert len(answered) == len(rows)
    assert answered["_map"].str.len().gt(0).all()
    return taken


@peer_row("LOTUS, sem_map", "agent-map")
def mapped() -> Sides:
    url = server(0.05)

    def theirs() -> float:
        with environment(url):
            lotus.settings.configure(lm=LM(model="openai/bench", api_base=url, max_batch_size=AT_ONCE))
            _mapped(new_rows(AT_ONCE))
            return _mapped(new_rows(ROWS))

    return Sides(theirs, raw_side())
