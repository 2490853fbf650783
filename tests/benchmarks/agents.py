"""What the engine adds to a request to a model, against the client of OpenAI itself.

The server is on loopback, in a process of its own. CPU time is that of this process only: it does not change
with what the server, or another program, does meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from pydantic import BaseModel

from tagent_nb import Pipeline, PipelineExecutor, Price, SQLiteStorageBackend, StorageBackend
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tests.benchmarks.fresh import program
from tests.benchmarks.measure import Sides, benchmark

RAW = "raw AsyncOpenAI"
MODEL = "openai-chat:bench"
VARIABLES = 60
"""Variables of the environment: each is one more to look at for secrets."""

_numbers = count()


class Sentiment(BaseModel):
    """One of three labels."""

    label: Literal["positive", "neutral", "negative"]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@cache
def _server(seconds: float) -> str:
    """The base URL of a server that answers after so many seconds. It ends with this process."""
    command = [sys.executable, program("openai_server"), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return f"http://127.0.0.1:{int(process.stdout.readline())}/v1"


@contextmanager
def _environment(url: str) -> Iterator[None]:
    own = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-bench-1234567890"}
    padding = {f"BENCH_{number}": f"value {number}" for number in range(VARIABLES)}
    keys = [*os.environ, *own]
    more = dict(list(padding.items())[: max(0, VARIABLES - len(keys))])
    with mock.patch.dict(os.environ, {**own, **more}):
        yield


def _rows(number: int) -> list[str]:
    return [f"Row {next(_numbers)}: I loved it very much." for _ in range(number)]


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


_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "final_result",
        "description": "One of three labels.",
        "parameters": Sentiment.model_json_schema(),
    },
}


async def _call(client: Any, text: str) -> None:
    """The same request by hand, and its answer validated."""
    response = await client.chat.completions.create(
        model="bench",
        messages=[
            {"role": "system", "content": "You carry out one step of a pipeline."},
            {"role": "user", "content": f"Say what it is: {text}"},
        ],
        tools=[_TOOL],
        tool_choice="required",
    )
    Sentiment.model_validate_json(response.choices[0].message.tool_calls[0].function.arguments)


async def _gathered(client: Any, rows: list[str], at_once: int) -> None:
    places = asyncio.Semaphore(at_once)

    async def ask(text: str) -> None:
        async with places:
            await _call(client, text)

    await asyncio.gather(*map(ask, rows))


async def _raw(rows: int, at_once: int) -> float:
    """CPU of so many calls by a client that is warm."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(max_retries=0) as client:
        await _gathered(client, _rows(at_once), at_once)
        began = _cpu()
        await _gathered(client, _rows(rows), at_once)
        return _cpu() - began


async def _warm(rows: int, at_once: int, clock: Callable[[], float], **options: Any) -> float:
    """What the second executor of a loop takes."""
    await _execute(_rows(at_once), at_once)
    began = clock()
    await _execute(_rows(rows), at_once, **options)
    return clock() - began


def _with_server(url: str, side: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], float]:
    def call() -> float:
        with _environment(url):
            return asyncio.run(side())

    return call


@benchmark(
    "agent-map",
    "agent row, 300 at 50 at once, CPU",
    limit=RAW,
    promised=5,
    reach=0.6,
    dream=0.3,
    each=300,
)
def agent_map() -> Sides:
    url = _server(0.05)
    return Sides(_with_server(url, lambda: _warm(300, 50, _cpu)), _with_server(url, lambda: _raw(300, 50)))


@benchmark(
    "agent-map-full",
    "agent row, SQLite full, 300 at 50 at once, CPU",
    limit=RAW,
    promised=6,
    reach=0.7,
    dream=0.4,
    each=300,
)
def agent_map_full() -> Sides:
    url = _server(0.05)

    async def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            storage = SQLiteStorageBackend(Path(folder) / "runs.db", durability="full")
            taken = await _warm(300, 50, _cpu, storage=storage)
            await storage.close()
            return taken

    return Sides(_with_server(url, ours), _with_server(url, lambda: _raw(300, 50)))


@benchmark(
    "agent-map-128",
    "wall, 400 agent rows of 0.5 s at 128 at once",
    limit="four times 0.5 s",
    promised=4,
    reach=1.25,
    dream=1.1,
    large=True,
)
def agent_map_128() -> Sides:
    ours = _with_server(_server(0.5), lambda: _warm(400, 128, time.perf_counter))
    return Sides(ours, lambda: 4 * 0.5)


@benchmark(
    "agent-one",
    "one agent row, new executor, CPU",
    limit="ssl.create_default_context()",
    promised=3.5,
    reach=2.0,
    dream=1.0,
)
def agent_one() -> Sides:
    async def ours() -> float:
        began = _cpu()
        await _execute(_rows(1), 8)
        return _cpu() - began

    def limit() -> float:
        began = _cpu()
        ssl.create_default_context()
        return _cpu() - began

    return Sides(_with_server(_server(0.05), ours), limit)


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
        began = _cpu()
        result = await executor.execute()
        assert result.success
        return _cpu() - began

    url = _server(0.0)
    return Sides(_with_server(url, lambda: steps({})), _with_server(url, lambda: steps({"stream": False})))


def _redacting(variables: int) -> Callable[[], float]:
    """Redact a text of 100 characters, with so many secrets in the environment."""
    secrets = {f"BENCH_{number}_API_KEY": f"sk-{number:032x}" for number in range(variables)}
    text = "The quick brown fox jumps over the lazy dog. " * 3
    calls = 2_000

    def call() -> float:
        with mock.patch.dict(os.environ, secrets, clear=True), _no_secrets_of_before():
            redact(text[:100])
            began = _cpu()
            for _ in range(calls):
                redact(text[:100])
            return (_cpu() - began) / calls

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
    promised=12,
    reach=5.0,
    dream=1.5,
)
def secrets() -> Sides:
    return Sides(_redacting(200), _redacting(20))
