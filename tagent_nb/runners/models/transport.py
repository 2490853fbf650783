"""The connections of models with OpenAI's protocol: by aiohttp where it is installed.

OpenAI's own client brings both transports. That of httpx looks at each of its connections for each request,
which takes longer than all else where many are made at once.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient

PROVIDERS = frozenset(
    (
        *("openai", "openai-chat", "openai-responses", "azure", "azure-responses", "alibaba", "cerebras"),
        *("crusoe", "deepseek", "fireworks", "heroku", "litellm", "meta", "moonshotai", "nebius", "ollama"),
        *("openrouter", "ovhcloud", "sambanova", "snowflake", "together", "vercel", "vllm", "zai"),
    )
)
"""Providers of pydantic-ai that take an HTTP client for OpenAI's."""

CLOSE_TIMEOUT = 2.0
"""Seconds that connections get to close when the program ends."""

_Clients = dict[tuple[Any, ...], "AsyncClient"]
_open: WeakKeyDictionary[asyncio.AbstractEventLoop, _Clients] = WeakKeyDictionary()
_ends: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncIterator[None]] = WeakKeyDictionary()
_process = os.getpid()


async def http_client() -> AsyncClient | None:
    """The client of the running loop, which closes it when it ends; ``None`` where httpx has to do it.

    That is without aiohttp, and behind a SOCKS proxy, which aiohttp does not know.
    """
    proxies = getproxies()
    if any(address.startswith("socks") for address in proxies.values()):
        return None
    state = (*_certificates(), *sorted(proxies.items()))
    loop = asyncio.get_running_loop()
    # Other threads have loops of their own, which come and go: a copy of the references is made at once.
    for other in (reference() for reference in _open.keyrefs()):
        if other is not None and other.is_closed():
            _ends.pop(other, None)
            with contextlib.suppress(Exception):  # what another loop has left is no fault of this run
                await _close(other)
    clients = _open.setdefault(loop, {})
    if state not in clients:
        try:
            client = await asyncio.to_thread(_client)
        except (ImportError, RuntimeError):  # the second is what the stand-in of OpenAI's client raises
            return None
        clients.setdefault(state, client)
    if loop not in _ends:
        _ends[loop] = end = _until_the_loop_ends(loop)
        await anext(end)
    return clients[state]


async def _until_the_loop_ends(loop: asyncio.AbstractEventLoop) -> AsyncIterator[None]:
    """Close the clients of a loop when it closes what is left of its generators: it tells no other way."""
    try:
        yield
    finally:
        await _close(loop)


async def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Close the clients of a loop: on it, or on any one if it was closed without its generators."""
    for client in _open.pop(loop, {}).values():
        await client.aclose()


@atexit.register
def _close_all() -> None:
    """Close the clients of loops that are never ended, such as that of a kernel."""
    if os.getpid() != _process:
        return  # a forked child, whose connections are its parent's
    for loop in list(_open):
        with contextlib.suppress(Exception):  # there is nothing left to tell it to
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(_close(loop), loop).result(CLOSE_TIMEOUT)
            elif loop.is_closed():
                asyncio.run(_close(loop))
            else:
                loop.run_until_complete(_close(loop))


def _certificates() -> tuple[str | None, str | None]:
    """What the environment says of the certificates that are trusted."""
    return os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")


@functools.cache
def _ssl_context(certificates: tuple[str | None, str | None]) -> SSLContext:
    """The context of all clients: reading the certificates takes longer than all else of a small run."""
    import httpx2

    return httpx2.create_ssl_context()


def _client() -> AsyncClient:
    import httpx2
    from pydantic_ai.models import create_async_httpx2_client

    # It is never asked: its timeouts, headers and hooks are those of all clients of pydantic-ai.
    usual = create_async_httpx2_client(transport=httpx2.AsyncBaseTransport())
    return _client_class()(
        verify=_ssl_context(_certificates()),
        timeout=usual.timeout,
        headers=usual.headers,
        event_hooks=usual.event_hooks,
        follow_redirects=usual.follow_redirects,
    )


@functools.cache
def _client_class() -> type[AsyncClient]:
    import httpx2
    from openai import DefaultAioHttpClient

    parsed = functools.lru_cache(httpx2.URL)

    class AioHttpClient(DefaultAioHttpClient):
        """Says of a lost connection that it is lost: the transport calls each of them a timeout.

        The address of each request is parsed once only.
        """

        def build_request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Request:
            return super().build_request(method, parsed(url), **options)

        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            try:
                return await super().send(request, **options)
            except httpx2.ConnectTimeout as error:
                cause = error.__cause__
                if cause is None or isinstance(cause, TimeoutError):
                    raise
                message = str(cause) or type(cause).__name__
                raise httpx2.RemoteProtocolError(message, request=request) from cause

    return AioHttpClient


_OF_THE_CLIENT = ("timeout", "extra_headers", "extra_query")
"""Options that OpenAI's client acts on itself."""


def send_as_given(client: Any) -> None:
    """Let OpenAI's client send conversations, schemas and settings as they are, to addresses that it knows.

    It would look through them for what is no JSON, which pydantic-ai never gives; that takes a third of the
    time of a request. What is in ``extra_body`` it takes as it is. Its address is always the same.
    """
    from openai import AsyncAzureOpenAI

    # Azure's address has the model in it.
    own = (*_OF_THE_CLIENT, "model") if isinstance(client, AsyncAzureOpenAI) else _OF_THE_CLIENT
    client._prepare_url = functools.lru_cache(client._prepare_url)
    chat, responses = client.chat.completions, client.responses
    chat.create = functools.partial(_create, chat.create, own, ("model", "messages"))
    responses.create = functools.partial(_create, responses.create, own, ())


async def _create(
    create: Callable[..., Awaitable[Any]], own: Sequence[str], needed: Sequence[str], **options: Any
) -> Any:
    from openai import NotGiven, Omit, omit

    kept = {name: options.pop(name) for name in own if name in options}
    if options.get("stream"):
        kept["stream"] = options.pop("stream")
    more = options.pop("extra_body", None) or {}
    absent = (NotGiven, Omit)
    body = {name: value for name, value in options.items() if type(value) not in absent}
    # The client refuses to ask without what it needs.
    return await create(**dict.fromkeys(needed, omit) | kept, extra_body={**body, **more})
