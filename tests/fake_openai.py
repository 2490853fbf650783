"""An OpenAI-compatible server on the loopback address that plays a script, one act a request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-fake-1234567890"


@dataclass
class Act:
    """One answer of the server.

    Attributes:
        text: Text of the answer.
        tool: Name of a tool to call instead, with ``arguments``.
        status: HTTP status.
        body: What to send in place of an answer, as it is.
        headers: Further headers.
        hang: Answer only when the server is closed.
        drop: Close the connection: ``"before"`` anything is sent, or ``"midway"``.
        slow: Send the first piece of a stream, and the others when ``go`` is set.
        finish: Why the model stopped; empty for a stream that ends after its words, without a reason.
        usage: Whether the answer says what it took.
    """

    text: str = ""
    tool: str = ""
    arguments: dict[str, Any] | str = field(default_factory=dict)
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drop: str = ""
    slow: bool = False
    finish: str = "stop"
    usage: bool = True


def error(status: int, message: str, code: str = "", **headers: str) -> Act:
    """A refusal in OpenAI's form. Header names are written with underscores."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code or None}})
    return Act(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def completion(**fields: Any) -> Act:
    """A whole answer with other fields, sent as JSON also where a stream is asked for.

    Fields of the message are written with ``message_``, those of the choice with ``choice_``. One that is
    ``...`` is left out.
    """
    message = _present({"role": "assistant", "content": "hello", **_named("message_", fields)})
    choice = _present({"index": 0, "finish_reason": "stop", "message": message, **_named("choice_", fields)})
    body = {
        **_head({"model": "gpt-4o"}, "chat.completion"),
        "choices": [choice],
        "usage": USAGE,
        **{name: value for name, value in fields.items() if not name.startswith(("message_", "choice_"))},
    }
    return Act(body=json.dumps(_present(body)))


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not ...}


def _named(prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): field_value
        for name, field_value in fields.items()
        if name.startswith(prefix)
    }


def pieces(*chunks: dict[str, Any] | str, done: bool = True) -> Act:
    """A stream of these pieces; a text is a piece of the answer."""
    head = _head({"model": "gpt-4o"}, "chat.completion.chunk")
    texts = []
    for chunk in chunks:
        sent = piece(chunk) if isinstance(chunk, str) else chunk
        texts.append(json.dumps({**head, **sent} if "choices" in sent else sent))
    body = "".join(f"data: {text}\n\n" for text in texts) + ("data: [DONE]\n\n" if done else "")
    return Act(body=body, headers={"Content-Type": "text/event-stream"})


def piece(text: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """One piece of a stream."""
    delta = {} if text is None else {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


@dataclass
class FakeOpenAI:
    """The running server: its address, and the requests it got."""

    url: str
    acts: list[Act]
    requests: list[dict[str, Any]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    another: threading.Condition = field(default_factory=threading.Condition)
    closed: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, requests: int) -> None:
        """Return when so many requests have arrived."""
        with self.another:
            assert self.another.wait_for(lambda: len(self.requests) >= requests, 30)

    def texts(self, number: int = -1) -> list[str]:
        """The texts of the messages of one request, system instruction first."""
        return [str(message.get("content") or "") for message in self.requests[number]["messages"]]


@contextmanager
def fake_openai(*acts: Act) -> Iterator[FakeOpenAI]:
    """Serve ``acts`` in order; the last one is repeated. Keys other than :data:`KEY` get a 401."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    fake = FakeOpenAI(f"http://127.0.0.1:{server.server_port}/v1", list(acts))
    server.fake = fake  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.closed.set()
        fake.go.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        fake: FakeOpenAI = self.server.fake  # type: ignore[attr-defined]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] not in (f"Bearer {KEY}", "Bearer api-key-not-set"):
            self._send(
                error(401, f"Incorrect API key: {self.headers['Authorization']}", "invalid_api_key"), request
            )
            return
        act = fake.acts[min(len(fake.requests), len(fake.acts) - 1)]
        with fake.another:
            fake.requests.append(request)
            fake.another.notify_all()
        fake.arrived.set()
        if act.hang:
            fake.closed.wait(60)
            return
        if act.drop == "before":
            self.close_connection = True
            return
        self._send(act, request)

    def _body(self, act: Act, request: dict[str, Any]) -> str:
        if act.body is not None:
            return act.body
        if self.path.endswith("/responses"):
            return (_events if request.get("stream") else _response)(act, request)
        return (_stream if request.get("stream") else _whole)(act, request)

    def _send(self, act: Act, request: dict[str, Any]) -> None:
        streamed = act.body is None and request.get("stream")
        body = self._body(act, request).encode()
        self.send_response(act.status)
        headers = {
            "Content-Type": "text/event-stream" if streamed else "application/json",
            "Content-Length": str(len(body)),
            **act.headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if act.drop:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if act.slow:
            first = body.index(b"\n\n") + 2
            self.wfile.write(body[:first])
            self.wfile.flush()
            fake: FakeOpenAI = self.server.fake  # type: ignore[attr-defined]
            fake.go.wait(60)
            body = body[first:]
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # who asked has gone

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 10,
    "total_tokens": 110,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def _head(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": request["model"]}


def _message(act: Act) -> dict[str, Any]:
    if not act.tool:
        return {"role": "assistant", "content": act.text}
    arguments = act.arguments if isinstance(act.arguments, str) else json.dumps(act.arguments)
    call = {"id": "call_1", "type": "function", "function": {"name": act.tool, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _finish(act: Act) -> str:
    return "tool_calls" if act.tool and act.finish == "stop" else act.finish


def _whole(act: Act, request: dict[str, Any]) -> str:
    choice = {"index": 0, "message": _message(act), "finish_reason": _finish(act)}
    took = {"usage": USAGE} if act.usage else {}
    return json.dumps({**_head(request, "chat.completion"), "choices": [choice], **took})


def _stream(act: Act, request: dict[str, Any]) -> str:
    head = _head(request, "chat.completion.chunk")
    message = _message(act)
    if act.tool:
        message["tool_calls"][0]["index"] = 0
        deltas = [message]
    else:
        words = act.text.split(" ")
        pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        deltas = [{"role": "assistant", "content": piece} for piece in pieces]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if not act.finish:
        return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    last = {"index": 0, "delta": {}, "finish_reason": _finish(act)}
    chunks.append({**head, "choices": [last]})
    if act.usage:
        chunks.append({**head, "choices": [], "usage": USAGE})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


# -- the Responses API -------------------------------------------------------------------------

_TOOK = {
    "input_tokens": USAGE["prompt_tokens"],
    "output_tokens": USAGE["completion_tokens"],
    "total_tokens": USAGE["total_tokens"],
    "input_tokens_details": USAGE["prompt_tokens_details"],
    "output_tokens_details": USAGE["completion_tokens_details"],
}


def _response(act: Act, request: dict[str, Any]) -> str:
    return json.dumps(_responded(act, request))


def _responded(act: Act, request: dict[str, Any]) -> dict[str, Any]:
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    reason = reasons.get(act.finish)
    return {
        **_begun(request),
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": [_item(act)],
        "usage": _TOOK if act.usage else None,
    }


def _begun(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": request["model"],
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _item(act: Act) -> dict[str, Any]:
    if act.tool:
        call = _message(act)["tool_calls"][0]
        call_fields = {"id": "fc_1", "type": "function_call", "call_id": call["id"], "status": "completed"}
        return {**call_fields, **call["function"]}
    text = {"type": "output_text", "text": act.text, "annotations": []}
    return {"id": "m_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}


def _events(act: Act, request: dict[str, Any]) -> str:
    """The events of a text; without a ``finish`` the last one is missing."""
    place = {"item_id": "m_1", "output_index": 0, "content_index": 0}
    item = {**_item(act), "content": [], "status": "in_progress"}
    sequence: list[dict[str, Any]] = [
        {"type": "response.created", "response": _begun(request)},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_text.delta", **place, "delta": act.text, "logprobs": []},
    ]
    if act.finish:
        end = _responded(act, request)
        sequence.append({"type": f"response.{end['status']}", "response": end})
    events = [{**event, "sequence_number": number} for number, event in enumerate(sequence)]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
