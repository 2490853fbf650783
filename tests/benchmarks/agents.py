"""What the engine adds to a request to a model, against the client of OpenAI itself.

The server is on loopback, in a process of its own. CPU time is that of this process only: it does not change
with what the server, or another program, does meanwhile.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tagent_nb import Pipeline, PipelineExecutor, Price, SQLiteStorageBackend, StorageBackend
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tests.benchmarks.measure import Sides, benchmark
from tests.benchmarks.raw_client import Sentiment, new_rows, own_cpu, raw_calls, server, with_server

RAW = "raw AsyncOpenAI"
MODEL = "openai-chat:bench"


def _mapped(rows: list[str]) -> Pipeline:
    pipeline = Pipeline("rows", model=MODEL, inputs={"texts": rows})
    pipeline.put(
        PipelineStep("label", "Say what it is: {{ item }}", map_over="texts", output_schema=Sentiment)
    )
    return pipeline


async def _execute(rows: list[str], at_once: int, storage: StorageBackend | None = None) -> None:
    executor = PipelineExecutor(
        _mapped(rows), storage=storage, max_concurrency=at_once, prices={MODEL: Price(0.5, 1.5)}
    )
    result = await executor.execute()
    assert result.success
    assert len(result["label"]) == len(rows)


async def _warm(rows: int, at_once: int, clock: Callable[[], float], **options: Any) -> float:
    """What the second executor of a loop takes."""
    await _execute(new_rows(at_once), at_once)
    began = clock()
    await _execute(new_rows(rows), at_once, **options)
    return clock() - began


@benchmark(
    "agent-map",
    "agent row, 300 at 50 at once, CPU",
    limit=RAW,
    promised=1.1,
    reach=0.6,
    dream=0.3,
    each=300,
)
def agent_map() -> Sides:
    url = server(0.05)
    return Sides(
        with_server(url, lambda: _warm(300, 50, own_cpu)), with_server(url, lambda: raw_calls(300, 50))
    )


@benchmark(
    "agent-map-full",
    "agent row, SQLite full, 300 at 50 at once, CPU",
    limit=RAW,
    promised=1.4,
    reach=0.7,
    dream=0.4,
    each=300,
)
def agent_map_full() -> Sides:
    url = server(0.05)

    async def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            storage = SQLiteStorageBackend(Path(folder) / "runs.db", durability="full")
            taken = await _warm(300, 50, own_cpu, storage=storage)
            await storage.close()
            return taken

    return Sides(with_server(url, ours), with_server(url, lambda: raw_calls(300, 50)))


@benchmark(
    "agent-map-128",
    "wall, 400 agent rows of 0.5 s at 128 at once",
    limit="four times 0.5 s",
    promised=4,
    reach=1.25,
    dream=1.1,
    large=True,
    clock="wall",
)
def agent_map_128() -> Sides:
    ours = with_server(server(0.5), lambda: _warm(400, 128, time.perf_counter))
    return Sides(ours, lambda: 4 * 0.5)


@benchmark(
    "agent-one",
    "one agent row, new executor, CPU",
    limit="ssl.create_default_context()",
    promised=1.2,
    reach=2.0,
    dream=1.0,
)
def agent_one() -> Sides:
    async def ours() -> float:
        began = own_cpu()
        await _execute(new_rows(1), 8)
        return own_cpu() - began

    def limit() -> float:
        began = own_cpu()
        ssl.create_default_context()
        return own_cpu() - began

    return Sides(with_server(server(0.05), ours), limit)


STEPS = 30


@benchmark(
    "agent-stream",
    "30 agent steps of 300 pieces, no observer, CPU",
    limit="the same, not streamed",
    promised=1.3,
    reach=1.1,
    dream=1.0,
    each=STEPS,
)
def agent_stream() -> Sides:
    async def steps(settings: dict[str, Any]) -> float:
        pipeline = Pipeline("texts", model=MODEL)
        for number in range(STEPS):
            pipeline.put(PipelineStep(f"s{number}", "Write something.", settings=settings))
        executor = PipelineExecutor(pipeline, prices={MODEL: Price(0.5, 1.5)})
        began = own_cpu()
        result = await executor.execute()
        assert result.success
        return own_cpu() - began

    url = server(0.0)
    return Sides(with_server(url, lambda: steps({})), with_server(url, lambda: steps({"stream": False})))


def _redacting(variables: int) -> Callable[[], float]:
    """Redact a text of 100 characters, with so many secrets in the environment."""
    secrets = {f"BENCH_{number}_API_KEY": f"sk-{number:032x}" for number in range(variables)}
    text = "The quick brown fox jumps over the lazy dog. " * 3
    calls = 2_000

    def call() -> float:
        with mock.patch.dict(os.environ, secrets, clear=True), _no_secrets_of_before():
            redact(text[:100])
            began = own_cpu()
            for _ in range(calls):
                redact(text[:100])
            return (own_cpu() - began) / calls

    return call


@contextmanager
def _no_secrets_of_before() -> Iterator[None]:
    """Secrets stay known when they leave the environment: here each side knows its own only."""
    from tagent_nb import redaction

    with (
        mock.patch.object(redaction, "_seen", {}),
        mock.patch.object(redaction, "_secrets", redaction.Secrets({})),
        mock.patch.object(redaction, "_noticed", None),
    ):
        yield


@benchmark(
    "secrets",
    "redact 100 characters, 200 secret variables",
    limit="with 20 variables",
    promised=3,
    reach=5.0,
    dream=1.5,
)
def secrets() -> Sides:
    return Sides(_redacting(200), _redacting(20))
