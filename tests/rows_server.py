"""An OpenAI-compatible server on loopback that answers many rows at a time, and counts what it was asked.

Unlike :mod:`fake_openai` it runs on one loop, so that 50 answers under way cost next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ROW = re.compile(r"\[<data>([^<]+)</data>\]")
"""Which row a prompt is about."""

_TOOK = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@dataclass
class RowsServer:
    """The running server.

    Attributes:
        url: Its address.
        asked: How often it was asked about each row.
        wrong: Rows whose answer fits no schema.
        most: Requests that were under way at the same time, at the most.
        on_request: Called with the number of each request.
    """

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    wrong: Collection[str] = ()
    most: int = 0
    on_request: Callable[[int], None] = lambda number: None
    under_way: int = 0

    def take(self) -> Counter[str]:
        """What it was asked since the last call."""
        asked, self.asked = self.asked, Counter()
        return asked

    def answer(self, request: dict[str, Any]) -> bytes:
        """The body of an answer."""
        row = row_of(request)
        text = json.dumps({"subject": "?" if row in self.wrong else "other"})
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "c1", "object": "chat.completion", "created": 1_700_000_000, "model": "rows"}
        return json.dumps({**head, "choices": [choice], "usage": _TOOK}).encode()


def row_of(request: dict[str, Any]) -> str:
    """The row that a request is about."""
    match = ROW.search(str(request["messages"][-1]["content"]))
    assert match is not None
    return match[1]


@contextmanager
def rows_server(seconds: float) -> Iterator[RowsServer]:
    """Serve on a thread; each answer takes so many seconds."""
    state, ready, done = RowsServer(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(re.search(r"content-length: (\d+)", head)[1])  # type: ignore[index]
                request = json.loads(await reader.readexactly(length))
                state.asked[row_of(request)] += 1
                state.on_request(state.asked.total())
                state.under_way += 1
                state.most = max(state.most, state.under_way)
                await asyncio.sleep(seconds)
                state.under_way -= 1
                body = state.answer(request)
                kind = f"content-type: application/json\r\ncontent-length: {len(body)}"
                writer.write(f"HTTP/1.1 200 OK\r\n{kind}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # who asked has gone, or the server ends
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
        state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await done.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30)
        loop.close()
