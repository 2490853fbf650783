"""A server that speaks OpenAI's chat completions: ``python openai_server.py SECONDS``.

It prints its port, answers every request after so many seconds, and ends when its input does. Requests with a
tool are answered by a call of it, those with a format by JSON, those that stream in 300 pieces, all others
with a text.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

PIECES = 300

_ANSWER = {"label": "positive"}

_USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
_HEAD = {"id": "c1", "created": 1_700_000_000, "model": "bench"}


def _whole(request: dict[str, Any]) -> bytes:
    text = json.dumps(_ANSWER) if request.get("response_format") else "word " * PIECES
    message: dict[str, Any] = {"role": "assistant", "content": text}
    tools = request.get("tools")
    if tools:
        function = {"name": tools[0]["function"]["name"], "arguments": json.dumps(_ANSWER)}
        call = {"id": "call_1", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tools else "stop"}
    body = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(body).encode()


def _pieces() -> bytes:
    chunk = {**_HEAD, "object": "chat.completion.chunk"}
    deltas = [{"delta": {"content": "word "}, "finish_reason": None}] * PIECES
    choices = [{"index": 0, **delta} for delta in [*deltas, {"delta": {}, "finish_reason": "stop"}]]
    chunks = [{**chunk, "choices": [choice]} for choice in choices]
    chunks.append({**chunk, "choices": [], "usage": _USAGE})
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in chunks) + b"data: [DONE]\n\n"


_STREAM = _pieces()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            request = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
            await asyncio.sleep(seconds)
            stream = bool(request.get("stream"))
            body = _STREAM if stream else _whole(request)
            kind = "text/event-stream" if stream else "application/json"
            lines = ("HTTP/1.1 200 OK", f"content-type: {kind}", f"content-length: {len(body)}", "", "")
            writer.write("\r\n".join(lines).encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass  # the client has gone, or the server ends
    finally:
        writer.close()


async def _main(seconds: float) -> None:
    server = await asyncio.start_server(lambda r, w: _serve(r, w, seconds), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1])))
