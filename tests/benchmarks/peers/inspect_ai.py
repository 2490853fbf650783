"""Inspect: 300 samples of a task with one ``generate`` each, without a scorer.

The answer is text: to validate one against a schema would be more work than this.
"""

from __future__ import annotations

import tempfile

from inspect_ai import Task, eval_async
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.solver import generate, system_message

from tests.benchmarks.measure import Sides
from tests.benchmarks.peers.calls import AT_ONCE, ROWS, SYSTEM, raw_side
from tests.benchmarks.peers.rows import peer_row
from tests.benchmarks.raw_client import new_rows, own_cpu, server, with_server


async def _evaluate(rows: list[str], folder: str) -> None:
    samples = [Sample(input=f"Say what it is: {text}") for text in rows]
    task = Task(MemoryDataset(samples), solver=[system_message(SYSTEM), generate()])
    logs = await eval_async(
        task,
        model="openai/bench",
        model_args={"responses_api": False},
        log_dir=folder,
        max_connections=AT_ONCE,
        max_samples=AT_ONCE,
    )
    assert logs[0].status == "success", logs[0].error
    assert logs[0].results is not None
    assert logs[0].results.completed_samples == len(rows)


@peer_row("Inspect, eval", "agent-map")
def evaluated() -> Sides:
    async def theirs() -> float:
        with tempfile.TemporaryDirectory() as folder:
            await _evaluate(new_rows(AT_ONCE), folder)
            began = own_cpu()
            await _evaluate(new_rows(ROWS), folder)
            return own_cpu() - began

    return Sides(with_server(server(0.05), theirs), raw_side())
