"""The limit of the agent rows, for peers too: the raw client of OpenAI, and a server on loopback."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any, Literal
from unittest import mock

from pydantic import BaseModel

from tests.benchmarks.fresh import program

VARIABLES = 60
"""Variables of the environment: each is one more to look at for secrets."""

_numbers = count()


class Sentiment(BaseModel):
    """One of three labels."""

    label: Literal["positive", "neutral", "negative"]


def own_cpu() -> float:
    """CPU seconds of this process, all of its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@cache
def server(seconds: float) -> str:
    """The base URL of a server that answers after so many seconds. It ends with this process."""
    command = [sys.executable, program("openai_server"), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return f"http://127.0.0.1:{int(process.stdout.readline())}/v1"


@contextmanager
def environment(url: str) -> Iterator[None]:
    """The server's URL, a key, and other variables up to ``VARIABLES``."""
    own = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-bench-1234567890"}
    padding = {f"BENCH_{number}": f"value {number}" for number in range(VARIABLES)}
    keys = [*os.environ, *own]
    more = dict(list(padding.items())[: max(0, VARIABLES - len(keys))])
    with mock.patch.dict(os.environ, {**own, **more}):
        yield


def new_rows(number: int) -> list[str]:
    """Texts that no call has had before."""
    return [f"Row {next(_numbers)}: I loved it very much." for _ in range(number)]


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "final_result",
        "description": "One of three labels.",
        "parameters": Sentiment.model_json_schema(),
    },
}


async def ask_raw(client: Any, text: str) -> None:
    """The same request by hand, and its answer validated."""
    response = await client.chat.completions.create(
        model="bench",
        messages=[
            {"role": "system", "content": "You carry out one step of a pipeline."},
            {"role": "user", "content": f"Say what it is: {text}"},
        ],
        tools=[TOOL],
        tool_choice="required",
    )
    Sentiment.model_validate_json(response.choices[0].message.tool_calls[0].function.arguments)


async def gathered(client: Any, rows: list[str], at_once: int) -> None:
    """All rows, so many at once."""
    places = asyncio.Semaphore(at_once)

    async def ask(text: str) -> None:
        async with places:
            await ask_raw(client, text)

    await asyncio.gather(*map(ask, rows))


async def raw_calls(rows: int, at_once: int) -> float:
    """CPU of so many calls by a client that is warm."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(max_retries=0) as client:
        await gathered(client, new_rows(at_once), at_once)
        began = own_cpu()
        await gathered(client, new_rows(rows), at_once)
        return own_cpu() - began


def with_server(url: str, side: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], float]:
    """A side that runs on a loop of its own, in the environment of that server."""

    def call() -> float:
        with environment(url):
            return asyncio.run(side())

    return call
