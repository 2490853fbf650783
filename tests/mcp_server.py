"""An MCP server for tests, over standard input and output: ``python tests/mcp_server.py``."""

from __future__ import annotations

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("shop", log_level="CRITICAL")


@server.tool(name="which-process")
def which_process() -> int:
    """The process that answers."""
    return os.getpid()


@server.tool()
def price(product: str) -> float:
    """The price of a product in euros."""
    return {"tea": 3.5}[product]


if __name__ == "__main__":
    server.run()
