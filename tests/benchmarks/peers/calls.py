"""The workload of the agent rows, and its limit as a side."""

from __future__ import annotations

from tests.benchmarks.measure import Side
from tests.benchmarks.raw_client import raw_calls, server, with_server

ROWS = 300
AT_ONCE = 50
SYSTEM = "You carry out one step of a pipeline."


def raw_side() -> Side:
    """300 calls of the raw client of OpenAI, 50 at once; the server takes 50 ms."""
    return with_server(server(0.05), lambda: raw_calls(ROWS, AT_ONCE))
