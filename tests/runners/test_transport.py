"""Connections of models with OpenAI's protocol: by aiohttp behind OpenAI's own client, or by httpx."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
import openai
import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tagent_nb import Pipeline, PipelineExecutor
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners import Models
from tagent_nb.runners.models import transport
from tests.fake_openai import KEY, Act, FakeOpenAI, fake_openai

MODEL = "openai-chat:gpt-4o"
pytestmark = [pytest.mark.models, pytest.mark.timeout(60)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    with fake_openai(Act(text="hello")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def executor(model: Any = MODEL, **options: Any) -> PipelineExecutor:
    pipeline = Pipeline("p", model=model).put(PipelineStep("s", "Say hello.", max_retries=0, **options))
    return PipelineExecutor(pipeline, retry_delay=0.0)


class _Handler(BaseHTTPRequestHandler):
    """Answers whatever is asked, as a server or as a proxy, and keeps what it was."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), asked))  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        body = json.dumps({**head, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        """Pass on what is encrypted, as a proxy does, until one of both has gone."""
        self.server.asked.append((self.path, dict(self.headers), None))  # type: ignore[attr-defined]
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as beyond:
            self.send_response(200)
            self.end_headers()
            others = {self.connection: beyond, beyond: self.connection}
            while True:
                for end in select.select(list(others), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    others[end].sendall(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Any]]]:
    """The port of a server, and what it is asked: path, headers and body."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.asked = []  # type: ignore[attr-defined]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port, server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def client_of(model: Any) -> Any:
    """The HTTP client behind a model."""
    return model.client._client


# -- one client for a loop ----------------------------------------------------------------------


async def both_of(models: Models, *names: str) -> list[Any]:
    return [client_of(await models.get(name)) for name in names]


def test_models_of_a_loop_share_a_client_that_ends_with_it(fake: FakeOpenAI) -> None:
    """Those of several executors, too."""

    async def ask() -> list[Any]:
        assert (await executor().execute()).success
        assert (await executor().execute()).success
        return [*await both_of(Models(), MODEL, "openai:gpt-5"), *await both_of(Models(), MODEL)]

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] is not second[0]
    assert isinstance(first[0], openai.DefaultAioHttpClient)
    assert first[0].is_closed
    assert len(fake.requests) == 4


def test_models_of_one_moment_share_it(fake: FakeOpenAI) -> None:
    async def ask() -> set[Any]:
        clients = await asyncio.gather(*(both_of(Models(), MODEL) for _ in range(4)))
        return {client for (client,) in clients}

    assert len(asyncio.run(ask())) == 1


def test_other_certificates_take_another_client(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def ask() -> None:
        (first,) = await both_of(Models(), MODEL)
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        (second,) = await both_of(Models(), MODEL)
        assert first is not second

    asyncio.run(ask())


PROGRAM = """
import asyncio, sys, threading
from tagent_nb import Pipeline, PipelineExecutor

def run():
    pipeline = Pipeline("p", model="openai-chat:gpt-4o")
    pipeline.step("s", "Say hello.")
    return PipelineExecutor(pipeline).execute()

loop = asyncio.new_event_loop()
assert loop.run_until_complete(run()).success
other = asyncio.new_event_loop()
threading.Thread(target=other.run_forever, daemon=True).start()
assert asyncio.run_coroutine_threadsafe(run(), other).result().success
left = asyncio.new_event_loop()
assert left.run_until_complete(run()).success
left.close()
del left
print("done")
"""


def test_a_program_ends_without_a_word_about_its_connections(fake: FakeOpenAI) -> None:
    """Its loops are still there, running or not, as in a kernel; one was closed without its generators."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0)
    assert done.stderr == ""


def test_loops_that_never_end_leave_nothing_open(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they run or not, or were closed without their generators."""
    monkeypatch.setattr(transport, "_open", WeakKeyDictionary())
    stopped, running, closed = (asyncio.new_event_loop() for _ in range(3))
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    clients = [
        stopped.run_until_complete(transport.http_client()),
        asyncio.run_coroutine_threadsafe(transport.http_client(), running).result(30),
        closed.run_until_complete(transport.http_client()),
    ]
    closed.close()
    transport._close_all()
    assert [client.is_closed for client in clients if client is not None] == [True] * 3
    running.call_soon_threadsafe(running.stop)
    thread.join(30)
    running.close()
    stopped.close()


def test_a_loop_that_was_closed_without_its_generators_is_forgotten(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_open", WeakKeyDictionary())
    closed = asyncio.new_event_loop()
    client = closed.run_until_complete(transport.http_client())
    closed.close()

    async def ask() -> list[Any]:
        await transport.http_client()
        return list(transport._open)

    assert closed not in asyncio.run(ask())
    assert client is not None
    assert client.is_closed


def test_a_forked_child_leaves_the_connections_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_process", -1)
    monkeypatch.setattr(transport, "_open", None)
    transport._close_all()


# -- where httpx does it ------------------------------------------------------------------------


def test_without_aiohttp_httpx_connects(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise RuntimeError("To use the aiohttp client you must have installed ...")

    monkeypatch.setattr(transport, "_client_class", missing)

    async def ask() -> Any:
        (client,) = await both_of(Models(), MODEL)
        assert not isinstance(client, openai.DefaultAioHttpClient)
        return await executor().execute()

    assert asyncio.run(ask())["s"] == "hello"


def test_behind_a_socks_proxy_httpx_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    assert asyncio.run(transport.http_client()) is None


def test_a_client_of_the_users_own_is_asked() -> None:
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        return httpx2.Response(200, json={**head, "choices": [choice]})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    provider = OpenAIProvider(base_url="http://own.test/v1", api_key="sk-own", http_client=client)
    assert executor(OpenAIChatModel("m", provider=provider)).run()["s"] == "hello"
    assert str(asked[0].url) == "http://own.test/v1/chat/completions"


# -- proxies, certificates, Azure -----------------------------------------------------------------


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (port, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://user:word@127.0.0.1:{port}")
        monkeypatch.setenv("OPENAI_BASE_URL", "http://models.test/v1")
        assert executor().run()["s"] == "hello"
    path, headers, _ = asked[0]
    assert path == "http://models.test/v1/chat/completions"
    assert headers["Proxy-Authorization"].startswith("Basic ")


def test_what_needs_no_proxy_is_asked_itself(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert executor().run()["s"] == "hello"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that signs itself, with its key."""
    file = tmp_path / "server.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
def secure(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a server with this certificate is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as (port, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://127.0.0.1:{port}/v1")
        yield asked


@pytest.mark.requires("openssl")
def test_certificates_of_the_environment_are_trusted(
    secure: list[Any], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no others."""
    refused = executor().run().steps["s"]
    assert (refused.error_type, secure) == ("RetryableError", [])
    assert "cannot be reached" in refused.error
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    assert executor().run()["s"] == "hello"


@pytest.mark.requires("openssl")
def test_a_folder_of_certificates_is_trusted(
    secure: list[Any], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that OpenSSL gives them."""
    folder = certificate.parent / "trusted"
    folder.mkdir()
    command = ["openssl", "x509", "-hash", "-noout", "-in", f"{certificate}.crt"]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (folder / f"{name}.0").write_text(Path(f"{certificate}.crt").read_text())
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    assert executor().run()["s"] == "hello"
    assert len(secure) == 1


@pytest.mark.requires("openssl")
def test_a_proxy_passes_on_what_is_encrypted(
    secure: list[Any], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees whom, and not what, is asked."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with serving() as (port, connected):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@127.0.0.1:{port}")
        assert executor().run()["s"] == "hello"
    ((_, headers, _),) = secure
    ((address, seen, _),) = connected
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == f"Bearer {KEY}"
    assert f"https://{address}/v1" == os.environ["OPENAI_BASE_URL"]
    assert seen["Proxy-Authorization"].startswith("Basic ")
    assert KEY not in str(seen)


def test_azure_is_asked_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (port, asked):
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key-1234567890")
        monkeypatch.setenv("OPENAI_API_VERSION", "2026-01-01")
        result = executor("azure:gpt-4o").run()
        assert result["s"] == "hello"
    path, headers, body = asked[0]
    assert path == "/openai/deployments/gpt-4o/chat/completions?api-version=2026-01-01"
    assert {name.lower(): value for name, value in headers.items()}["api-key"] == "azure-key-1234567890"
    assert body["messages"][-1]["content"] == "Say hello."


# -- what is sent and what goes wrong -------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}}
CHAT: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {
        "messages": [{"role": "system", "content": "Be good."}, {"role": "user", "content": "Hello"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "tool_choice": "required",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        "temperature": 0.5,
        "seed": None,
        "extra_body": {"top_k": 3},
        "extra_headers": {"X-Own": "yes"},
        "timeout": 7.0,
    },
    {"messages": [{"role": "user", "content": "Hello"}], "tools": openai.omit, "stream": True},
]
RESPONSES: list[dict[str, Any]] = [
    {"input": [{"role": "user", "content": "Hello"}], "instructions": "Be good."},
    {
        "input": "Hello",
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": False}],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        "extra_body": {"top_k": 3},
    },
    {"input": [{"role": "user", "content": "Hello"}], "stream": True, "tools": openai.omit},
]


@pytest.mark.parametrize(
    ("resource", "options"),
    [
        *((lambda client: client.chat.completions, options) for options in CHAT),
        *((lambda client: client.responses, options) for options in RESPONSES),
    ],
)
async def test_what_is_sent_as_given_is_what_the_client_would_send(
    resource: Callable[[Any], Any], options: dict[str, Any]
) -> None:
    asked: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        kept = {name: value for name, value in request.headers.items() if name != "content-length"}
        asked.append((request.url, json.loads(request.content), kept, request.extensions["timeout"]))
        return httpx2.Response(200, json={})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    for lean in (False, True):
        client = openai.AsyncOpenAI(api_key="sk", http_client=http, max_retries=0)
        if lean:
            transport.send_as_given(client)
        await resource(client).create(model="m", **options)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("cause", [None, TimeoutError()])
async def test_a_timeout_is_still_one(cause: BaseException | None) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectTimeout("too slow") from cause

    async with transport._client_class()(transport=httpx2.MockTransport(answer)) as client:
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get("http://models.test")


async def test_a_lost_connection_is_none() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectTimeout("") from ConnectionResetError()

    async with transport._client_class()(transport=httpx2.MockTransport(answer)) as client:
        with pytest.raises(httpx2.RemoteProtocolError, match="ConnectionResetError"):
            await client.get("http://models.test")


def test_functions_need_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_client_class", None)
    model = FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart("hello")]))
    assert executor(model).run()["s"] == "hello"


@pytest.mark.parametrize("name", sorted(transport.PROVIDERS))
def test_each_provider_that_is_named_takes_a_client(name: str) -> None:
    """Else its models could not be made."""
    from pydantic_ai.providers import infer_provider_class

    assert "http_client" in inspect.signature(infer_provider_class(name).__init__).parameters
