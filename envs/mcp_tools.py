"""The tools of an MCP server, as a `Toolbox`: over its standard input and output, or over streamable HTTP.

    class Notes(ToolEnv):
        def toolbox(self) -> Toolbox:
            return McpTools(["python", "notes_server.py"])       # or McpTools("http://127.0.0.1:8000/mcp")

What always holds: each episode has a connection (and, of a command, a server) of its own, made when the tools are asked
for and closed with the episode; what the server says is wrong with a call is told to the policy, whereas a server that
cannot be reached, dies, breaks the protocol or does not answer in time is a failure of the episode.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from quintain.envs.tools import Toolbox, ToolError, unknown_tool
from quintain.failure import FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.messages import FunctionSpec, ToolSpec

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, Tool


LEAVE_S: Final = 3.0
"""How long a server may take over a farewell."""


class McpTools(Toolbox):
    """The tools of `server`: a command line, or an address. `env` is added to the few variables a command gets.

    `headers` go with every request to an address. `start_s` and `call_s` bound what is waited for the server's list of
    tools, and for an answer. Raises QuintainError where the package `mcp` is missing.
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        start_s: float = 30.0,
        call_s: float = 30.0,
    ) -> None:
        try:
            from mcp import Client  # noqa: F401
        except ImportError:
            raise QuintainError("tools of MCP servers need mcp 2: pip install 'quintain[mcp]'") from None
        self._server, self._env, self._headers = server, dict(env or {}), dict(headers or {})
        self._start_s, self._call_s = start_s, call_s
        self._name = server if isinstance(server, str) else " ".join(PurePath(word).name for word in server)
        self._serving: asyncio.Task[None] | None = None
        self._connected: asyncio.Future[Client] | None = None
        self._leave = asyncio.Event()
        self._tools: dict[str, Tool] = {}

    async def specs(self) -> Sequence[ToolSpec]:
        """The tools on offer. Raises FailureError where the server does not list any in time."""
        try:
            async with asyncio.timeout(self._start_s):
                client = await self._client()
                cursor, more = None, True
                while more:
                    page = await client.list_tools(cursor=cursor)
                    self._tools |= {tool.name: tool for tool in page.tools}
                    cursor = page.next_cursor
                    more = cursor is not None
        except TimeoutError:
            raise self._failed(FailureKind.TIMEOUT, f"it lists no tools within {self._start_s:g} s") from None
        except FailureError:
            raise
        except Exception as error:  # the boundary: the package raises whatever its transports do
            raise self._broken(error) from error
        return [
            ToolSpec(FunctionSpec(tool.name, tool.description or "", tool.input_schema))
            for tool in self._tools.values()
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What the tool `name` says. Raises ToolError (unknown_tool, invalid_arguments, raised), and FailureError."""
        if name not in self._tools:
            raise unknown_tool(name, self._tools)
        from mcp.shared.exceptions import MCPError
        from mcp_types import INVALID_PARAMS

        try:
            async with asyncio.timeout(self._call_s):
                result = await (await self._client()).call_tool(name, dict(arguments))
        except TimeoutError:
            raise self._failed(FailureKind.TIMEOUT, f"{name} does not answer within {self._call_s:g} s") from None
        except MCPError as error:
            if error.code != INVALID_PARAMS:
                raise self._broken(error) from error
            raise ToolError("invalid_arguments", one_line(f"{name}: {error.message}")) from None
        except FailureError:
            raise
        except Exception as error:  # the boundary, likewise
            raise self._broken(error) from error
        said = _text(result)
        if result.is_error:
            raise ToolError("raised", said)
        return said

    async def close(self) -> None:
        """End the connection, and the server of a command."""
        if self._serving is None or self._connected is None:
            return
        self._leave.set()
        if self._connected.done():
            await asyncio.wait([self._serving], timeout=LEAVE_S)
        self._serving.cancel()  # what it does about a process in the way is bounded, and not to be cancelled
        await asyncio.wait([self._serving])

    async def _client(self) -> Client:
        """The client, which belongs to a task of its own: it must be left where it was entered."""
        if self._connected is None:
            self._connected = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._connected))
        return await asyncio.shield(self._connected)

    async def _serve(self, connected: asyncio.Future[Client]) -> None:
        try:
            async with self._made() as client:
                connected.set_result(client)
                await self._leave.wait()
        except BaseException as error:
            if not connected.done():
                connected.set_exception(self._broken(error))
                connected.exception()  # it may be that nobody waits for it any longer
            elif not isinstance(error, Exception):
                raise

    def _made(self) -> Client:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        if not isinstance(self._server, str):
            command, *args = self._server
            server = StdioServerParameters(command=command, args=args, env=self._env)
            log = sys.__stderr__ or sys.stderr  # a notebook's own is no file that a process could write into
            return Client(stdio_client(server, errlog=log))
        if not self._headers:
            return Client(self._server)
        from mcp.client.streamable_http import streamable_http_client
        from mcp.shared._httpx_utils import create_mcp_http_client

        return Client(streamable_http_client(self._server, http_client=create_mcp_http_client(self._headers)))

    def _broken(self, error: BaseException) -> FailureError:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return self._failed(FailureKind.CRASHED, f"{type(error).__name__}: {error}".rstrip(": "))

    def _failed(self, kind: FailureKind, what: str) -> FailureError:
        return FailureError.of(kind, Stage.STEP, f"the MCP server {self._name}: {what}")


def _text(result: CallToolResult) -> str:
    """What a result says, in words: texts as they are, and of everything else what it is."""
    parts = []
    for block in result.content:
        resource = getattr(block, "resource", None)
        text = getattr(block, "text", None) or getattr(resource, "text", None)
        parts.append(text if text is not None else f"({block.type}: not shown)")
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)
