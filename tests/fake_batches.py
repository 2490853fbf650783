"""A server on the loopback address with the batch endpoints of OpenAI and of Anthropic, and their live ones.

It takes files and batches, says how they stand, and gives results, unordered. What it answers, and when a
batch ends, a test decides.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.fake_openai import KEY, Act, _responded

Answer = str | dict[str, Any]
"""A text, the arguments of the tool that takes the answer, or one of :data:`OUTCOMES`."""

OUTCOMES = ("<expired>", "<errored>", "<overloaded>", "<missing>")
"""What may become of a request of a batch besides an answer; the third may pass."""


@dataclass
class FakeBatch:
    """A batch that the server has: what became of it, and how often it was looked at."""

    id: str
    requests: list[tuple[str, dict[str, Any]]]
    file: str = ""
    created_at: float = 0.0
    looks: int = 0
    ended: bool = False
    cancelled: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass
class FakeBatches:
    """The running server.

    Attributes:
        url: Its address.
        answer: Gives the answer to a question.
        looks: How often a batch is looked at before it ends; 0 ends it when it comes.
        hold: While set, none ends.
        refuse: By method and path, what the next requests there get in place of an answer: status, headers.
        drop: By method and path, how many of the next requests there are done, and get no answer.
        stall: Methods and paths at which requests are done, and get their answer when ``go`` is set.
        batches: Those that it has, oldest first.
        submitted: How often each question came in a batch.
        live: How often each question came by itself.
    """

    url: str
    answer: Callable[[str], Answer] = lambda question: f"answer to {question}"
    looks: int = 1
    hold: bool = False
    refuse: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    drop: Counter[str] = field(default_factory=Counter)
    batches: dict[str, FakeBatch] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    submitted: Counter[str] = field(default_factory=Counter)
    live: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    stall: set[str] = field(default_factory=set)
    go: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def create(self, requests: list[tuple[str, dict[str, Any]]], file: str = "") -> FakeBatch:
        """Take a batch."""
        batch = FakeBatch(f"batch_{len(self.batches) + 1}", requests, file, datetime.now(UTC).timestamp())
        self.batches[batch.id] = batch
        self.submitted.update(question(body) for _, body in requests)
        if not self.looks:
            self.look(batch)
        return batch

    def look(self, batch: FakeBatch) -> None:
        """Let a batch come on by one look."""
        batch.looks += 1
        if batch.ended or (self.hold and not batch.cancelled):
            return
        if batch.cancelled or batch.looks >= self.looks:
            batch.ended = True
            for number, (custom_id, body) in enumerate(batch.requests):
                stopped = batch.cancelled and number % 2
                batch.answers[custom_id] = "<canceled>" if stopped else self.answer(question(body))

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Return when something is so."""
        with self.changed:
            assert self.changed.wait_for(done, 30)


def question(body: dict[str, Any]) -> str:
    """The question of a request, of either provider."""
    turns = body.get("input") or body["messages"]
    users = [turn for turn in turns if turn.get("role") == "user"]
    content = users[0]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    match = re.search(r"row \w+", text)
    return text if match is None else match[0]


@contextmanager
def fake_batches(**options: Any) -> Iterator[FakeBatches]:
    """Serve both providers: OpenAI below ``/v1``, Anthropic below the address itself."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    fake = FakeBatches(f"http://127.0.0.1:{server.server_port}", **options)
    server.fake = fake  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.go.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        fake: FakeBatches = self.server.fake  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        name = f"{method} {re.sub(r'(batch|file)_[0-9]+', 'ID', path)}"
        with fake.changed:
            fake.calls[name] += 1
            if KEY not in (self.headers.get("Authorization") or self.headers.get("x-api-key") or ""):
                return self._send({"error": {"type": "authentication_error", "message": "wrong key"}}, 401)
            if fake.refuse.get(name):
                status, headers = fake.refuse[name].pop(0)
                kind = "rate_limit_error" if status == 429 else "api_error"
                refusal = {"type": "error", "error": {"type": kind, "message": "not now"}}
                return self._send(refusal, status, headers)
            answer = self._answer(fake, method, path, body)
            fake.changed.notify_all()
        if name in fake.stall:
            fake.go.wait(60)
        if fake.drop[name]:
            fake.drop[name] -= 1
            self.close_connection = True
            return None
        if answer is None:
            return self._send({"type": "error", "error": {"type": "not_found_error", "message": "none"}}, 404)
        return self._send(answer)

    def _answer(self, fake: FakeBatches, method: str, path: str, body: bytes) -> Any:
        place = path.strip("/").split("/")[1:]
        match method, place:
            case "POST", ["responses"]:
                request = json.loads(body)
                fake.live[question(request)] += 1
                return _response(fake.answer(question(request)), request)
            case "POST", ["messages"]:
                request = json.loads(body)
                fake.live[question(request)] += 1
                message = _message(fake.answer(question(request)), request)
                return _stream(message) if request.get("stream") else message
            case "POST", ["files"]:
                file = f"file_{len(fake.files) + 1}"
                fake.files[file] = _uploaded(body)
                return _file(file)
            case "GET", ["files", file, "content"]:
                return self._content(fake, file)
            case "DELETE", ["files", file]:
                fake.files.pop(file)
                return {"id": file, "object": "file", "deleted": True}
            case "POST", ["batches"]:
                file = json.loads(body)["input_file_id"]
                lines = map(json.loads, fake.files[file].splitlines())
                return _openai(fake.create([(line["custom_id"], line["body"]) for line in lines], file))
            case "POST", ["messages", "batches"]:
                requests = json.loads(body)["requests"]
                return _anthropic(
                    fake, fake.create([(request["custom_id"], request["params"]) for request in requests])
                )
            case "GET", ["batches"] | ["messages", "batches"]:
                every = reversed(fake.batches.values())
                listed = [
                    _openai(each) if place[0] == "batches" else _anthropic(fake, each) for each in every
                ]
                return {
                    "object": "list",
                    "data": listed,
                    "has_more": False,
                    "first_id": None,
                    "last_id": None,
                }
            case _, ["batches", batch_id, *more] | ["messages", "batches", batch_id, *more] if (
                batch_id in fake.batches
            ):
                batch = fake.batches[batch_id]
                if more == ["results"]:
                    return _lines(_anthropic_result(*each) for each in _unordered(batch))
                if more == ["cancel"]:
                    batch.cancelled = True
                fake.look(batch)
                return self._shown(fake, batch, place)
        return None

    def _shown(self, fake: FakeBatches, batch: FakeBatch, place: list[str]) -> dict[str, Any]:
        return _openai(batch) if place[0] == "batches" else _anthropic(fake, batch)

    def _content(self, fake: FakeBatches, file: str) -> str | None:
        kind, _, batch_id = file.partition("-")
        if kind in ("out", "err"):
            results = [_openai_result(*result) for result in _unordered(fake.batches[batch_id])]
            good = [line for line in results if line is not None and _is_good(line)]
            bad = [line for line in results if line is not None and not _is_good(line)]
            return _lines(good if kind == "out" else bad)
        return fake.files.get(file)

    def _send(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        kind = "application/x-jsonl" if isinstance(answer, str) else "application/json"
        kind = "text/event-stream" if body.startswith(b"event: ") else kind
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # who asked has gone

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _lines(objects: Any) -> str:
    return "\n".join(json.dumps(each) for each in objects if each is not None)


def _unordered(batch: FakeBatch) -> list[tuple[str, dict[str, Any], Answer]]:
    """The results of a batch, the last one first."""
    return [(custom_id, body, batch.answers[custom_id]) for custom_id, body in reversed(batch.requests)]


def _uploaded(body: bytes) -> str:
    """The file of a multipart form."""
    lines = [line for line in body.decode().split("\r\n") if line.startswith('{"custom_id"')]
    return "\n".join(lines)


def _file(file: str) -> dict[str, Any]:
    return {
        "id": file,
        "object": "file",
        "bytes": 1,
        "created_at": 1_700_000_000,
        "filename": "batch.jsonl",
        "purpose": "batch",
        "status": "processed",
    }


# -- OpenAI ------------------------------------------------------------------------------------


def _is_good(line: dict[str, Any]) -> bool:
    return line["response"] is not None and line["response"]["status_code"] == 200


def _openai(batch: FakeBatch) -> dict[str, Any]:
    expired = "<expired>" in batch.answers.values()
    ended = "cancelled" if batch.cancelled else "expired" if expired else "completed"
    failed = sum(str(answer) in ("<errored>", "<overloaded>") for answer in batch.answers.values())
    done = len(batch.requests) - failed if batch.ended else min(batch.looks, len(batch.requests))
    data: dict[str, Any] = {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/responses",
        "errors": None,
        "input_file_id": batch.file,
        "completion_window": "24h",
        "status": ended if batch.ended else "cancelling" if batch.cancelled else "in_progress",
        "created_at": int(batch.created_at),
        "request_counts": {"total": len(batch.requests), "completed": done, "failed": failed},
    }
    if batch.ended:
        data |= {"output_file_id": f"out-{batch.id}", "error_file_id": f"err-{batch.id}"}
    return data


def _openai_result(custom_id: str, body: dict[str, Any], answer: Answer) -> dict[str, Any] | None:
    line: dict[str, Any] = {"id": "r", "custom_id": custom_id, "response": None, "error": None}
    if answer in ("<expired>", "<canceled>"):
        code = "batch_expired" if answer == "<expired>" else "batch_cancelled"
        return line | {"error": {"code": code, "message": "not run"}}
    if answer == "<missing>":
        return None
    if answer in OUTCOMES:
        status = 400 if answer == "<errored>" else 503
        error = {"error": {"message": f"{answer}", "type": "x", "code": None}}
        return line | {"response": {"status_code": status, "request_id": "q", "body": error}}
    return line | {"response": {"status_code": 200, "request_id": "q", "body": _response(answer, body)}}


def _response(answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
    act = (
        Act(text=answer) if isinstance(answer, str) else Act(tool=body["tools"][0]["name"], arguments=answer)
    )
    used = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {**_responded(act, body), "usage": {**used, **details}}


# -- Anthropic -----------------------------------------------------------------------------------


def _anthropic(fake: FakeBatches, batch: FakeBatch) -> dict[str, Any]:
    kinds = Counter(_anthropic_kind(answer) for answer in batch.answers.values())
    counts = {name: kinds[name] for name in ("succeeded", "errored", "canceled", "expired")}
    at = datetime.fromtimestamp(batch.created_at, UTC).isoformat()
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if batch.ended else "canceling" if batch.cancelled else "in_progress",
        "request_counts": {**counts, "processing": 0 if batch.ended else len(batch.requests)},
        "created_at": at,
        "expires_at": at,
        "ended_at": at if batch.ended else None,
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": f"{fake.url}/v1/messages/batches/{batch.id}/results" if batch.ended else None,
    }


def _anthropic_kind(answer: Answer) -> str:
    if answer in ("<expired>", "<canceled>"):
        return str(answer).strip("<>")
    return "errored" if answer in OUTCOMES else "succeeded"


def _anthropic_result(custom_id: str, body: dict[str, Any], answer: Answer) -> dict[str, Any] | None:
    kind = _anthropic_kind(answer)
    if answer == "<missing>":
        return None
    result: dict[str, Any] = {"type": kind}
    if kind == "errored":
        word = "invalid_request_error" if answer == "<errored>" else "overloaded_error"
        error = {"type": "error", "error": {"type": word, "message": f"{answer}"}, "request_id": None}
        result |= {"error": error}
    elif kind == "succeeded":
        result |= {"message": _message(answer, body)}
    return {"custom_id": custom_id, "result": result}


def _stream(message: dict[str, Any]) -> str:
    """A message as the events of a stream."""
    (block,) = message["content"]
    if block["type"] == "text":
        start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
    else:
        start = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    end = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": start},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": end,
            "usage": {"output_tokens": message["usage"]["output_tokens"]},
        },
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def _message(answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
    if isinstance(answer, dict) and not body.get("tools"):
        answer = json.dumps(answer)  # the schema is asked for in another way
    content: dict[str, Any] = {"type": "text", "text": answer}
    if isinstance(answer, dict):
        content = {"type": "tool_use", "id": "call_1", "name": body["tools"][0]["name"], "input": answer}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [content],
        "stop_reason": "tool_use" if isinstance(answer, dict) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 10},
    }
