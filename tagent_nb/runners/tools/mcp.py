"""Toolsets of pydantic-ai, such as MCP servers, as tools like all others.

Everything about toolsets happens on one event loop, in a thread of its own: runs have loops that come and
go, and a connection belongs to the loop and the task that opened it. It stays open for :data:`IDLE` seconds
after its last call, so that the calls of a run, and the items of a mapped step, share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from tagent_nb.errors import DefinitionError
from tagent_nb.pipeline import ToolSchema, describe
from tagent_nb.runners.tools.registry import ToolOptions, checked_options, refuse_reserved, register

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

T = TypeVar("T")

IDLE = 60.0
"""Seconds without a call after which a connection is closed."""


def tools_from(
    toolset: AbstractToolset[Any],
    /,
    *,
    timeout: float | None = None,
    approval_required: bool = False,
    pure: bool = False,
    side_effect: bool = False,
) -> list[Callable[..., Any]]:
    """Register the tools of a toolset of pydantic-ai, such as those of an MCP server.

    From then on they are tools like those of :func:`tool`: named in ``tools_filter``, recorded, replayed,
    approved, and reported. The toolset is asked now what it has, and a tool that it gets later is unknown
    until this is called again. Their names, descriptions and schemas are part of the fingerprints of the
    steps that may call them; what the server does inside is not.

    Args:
        toolset: For an MCP server ``pydantic_ai.mcp.MCPToolset(...)``; ``.filtered(...)`` and
            ``.prefixed(...)`` choose and rename.
        timeout: Seconds that one call may take. ``None``: no limit.
        approval_required: Whether each call waits for approval.
        pure: Its tools only look something up.
        side_effect: They change something. Tools of which neither is said are treated as if they did.

    Returns:
        The tools, as async functions that take keywords, in the toolset's order.

    Raises:
        DefinitionError: It is no toolset, it cannot be reached, a tool has a reserved name, or an argument is
            not allowed.
    """
    from pydantic_ai.toolsets import AbstractToolset

    if not isinstance(toolset, AbstractToolset):
        raise DefinitionError(
            f"tools_from takes a toolset of pydantic-ai, not {type(toolset).__name__}. For an MCP server: "
            "from pydantic_ai.mcp import MCPToolset (pip install 'tagent-nb[mcp]')."
        )
    options = checked_options(
        timeout=timeout, approval_required=approval_required, pure=pure, side_effect=side_effect
    )
    connection = Connection(toolset)
    try:
        tools = _submitted(connection.tools()).result()
    except Exception as error:
        raise DefinitionError(
            f"The tools of {toolset.label} cannot be listed: {type(error).__name__}: {error}. "
            "Check that its server runs, and what starts it."
        ) from error
    for name in tools:
        refuse_reserved(name)
    return [_registered(connection, name, definition, options) for name, definition in tools.items()]


def _registered(
    connection: Connection, name: str, tool: ToolsetTool[Any], options: ToolOptions
) -> Callable[..., Any]:
    async def call(**arguments: Any) -> Any:
        return await asyncio.wrap_future(_submitted(connection.call(name, arguments)))

    definition = tool.tool_def
    call.__name__ = call.__qualname__ = name
    call.__doc__ = definition.description
    describe(call, ToolSchema(definition.description or "", definition.parameters_json_schema))
    register(name, call, options)
    return call


class ToolsetCallError(Exception):
    """A tool of a toolset gave no result; the message is the toolset's own.

    Attributes:
        broken: Whether it may be the connection's fault.
    """

    def __init__(self, message: str, *, broken: bool = False) -> None:
        super().__init__(message)
        self.broken = broken


class Connection:
    """A toolset that is opened when it is called, and closed when it is idle or fails.

    One task opens and closes it, as connections want. All this runs on the loop of toolsets.
    """

    def __init__(self, toolset: AbstractToolset[Any]) -> None:
        self._toolset = toolset
        self._owner: asyncio.Task[None] | None = None  # keeps it open
        self._before: asyncio.Task[None] | None = None  # kept it open, and may be closing it still
        self._ready: asyncio.Future[None]
        self._calls = 0
        self._used = asyncio.Event()

    async def tools(self) -> dict[str, ToolsetTool[Any]]:
        """The tools that the toolset has now, by name."""
        return await self._within(lambda: self._toolset.get_tools(_context()))

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What a tool gives.

        Raises:
            ToolsetCallError: It gives nothing, or is no longer there.
        """
        return await self._within(lambda: self._called(name, dict(arguments)))

    async def _called(self, name: str, arguments: dict[str, Any]) -> Any:
        from pydantic_ai.exceptions import ModelRetry, ToolFailed

        context = _context()
        tools = await self._toolset.get_tools(context)
        if name not in tools:
            raise ToolsetCallError(f"{self._toolset.label} has no tool {name!r} any more")
        try:
            return await self._toolset.call_tool(name, arguments, context, tools[name])
        except (ModelRetry, ToolFailed) as error:
            # What a tool says itself has no cause. A protocol's error has one: the server may be gone.
            raise ToolsetCallError(str(error), broken=error.__cause__ is not None) from error

    async def _within(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something while the toolset is open."""
        if self._owner is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._owner = asyncio.create_task(self._keep(self._ready, self._before))
        owner = self._owner
        self._calls += 1
        try:
            await asyncio.shield(self._ready)
            return await work()
        except Exception as error:
            if not isinstance(error, ToolsetCallError) or error.broken:
                # Whatever is wrong with this connection: the next call opens another one.
                owner.cancel()
                self._leave(owner)
            raise
        finally:
            self._calls -= 1
            self._used.set()

    async def _keep(self, ready: asyncio.Future[None], before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            async with self._toolset:
                ready.set_result(None)
                await self._idle()
        except Exception as error:
            # Once it was open, only closing can fail, after the server has gone: nothing is lost then.
            if not ready.done():
                ready.set_exception(error)

    async def _idle(self) -> None:
        """Wait until there was no call for a while."""
        while True:
            self._used.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE):
                    await self._used.wait()
                    continue
            if not self._calls:
                self._leave(self._owner)
                return

    def _leave(self, owner: asyncio.Task[None] | None) -> None:
        if self._owner is owner:
            self._before, self._owner = owner, None


def _context() -> RunContext[Any]:
    """What a toolset learns of the caller. It asks no model by it."""
    from pydantic_ai import RunContext
    from pydantic_ai.models.test import TestModel
    from pydantic_ai.usage import RunUsage

    return RunContext(deps=None, model=TestModel(), usage=RunUsage())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="tagent-nb toolsets", daemon=True).start()
    return loop


def _submitted(work: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(work, _loop())
