"""A real MCP server for the tests, of either line of the package `mcp`: `python mcp_server.py stdio|PORT [safe]`.

Its tools: one that counts (so that a server of one's own can be told from a shared one), one that fails, and, where it
need not be safe, one that ends the server in the middle of a call, and one that never answers.
"""

from __future__ import annotations

import os
import sys
import time

try:
    from mcp.server.fastmcp import FastMCP as MCPServer  # 1.x

    NEW = False
except ImportError:
    from mcp.server import MCPServer

    NEW = True

server = MCPServer("tests")
said: list[str] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def remember(word: str) -> str:
    """Remember a word, and say all that were remembered."""
    said.append(word)
    return " ".join(said)


@server.tool()
def fail(how: str) -> str:
    """Fail."""
    raise ValueError(f"it is {how}")


@server.tool()
def secret() -> str:
    """Say what the environment has."""
    return os.environ.get("MCP_TEST_SECRET", "nothing")


def die() -> str:
    """End the server."""
    os._exit(3)


def hang() -> str:
    """Never answer."""
    time.sleep(600)
    return ""


if __name__ == "__main__":
    if "safe" not in sys.argv:
        for tool in (die, hang):
            server.tool()(tool)
    if sys.argv[1] == "stdio":
        server.run("stdio")
    elif NEW:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.settings.host, server.settings.port = "127.0.0.1", int(sys.argv[1])
        server.run("streamable-http")
