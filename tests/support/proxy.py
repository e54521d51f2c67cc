"""A TCP proxy with faults: what a network does to connections, on demand."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Proxy:
    """Stands before a server on this machine. Faults hit the connections there are; a silence also those to come."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.silent = False
        """Whether nothing passes in either direction; what is sent meanwhile is lost for good."""
        self.delay = 0.0
        """Seconds by which every piece is held up."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        links = list(self._links)
        for link in links:
            link.abort()
        await asyncio.gather(*(link.ended.wait() for link in links))

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> int:
        return len(self._links)

    def cut(self, after: int = 0, *, replies: bool = True) -> None:
        """End every connection there is: now, or after so many more bytes of replies (or of requests)."""
        for link in list(self._links):
            if after:
                link.left[replies] = after
            else:
                link.abort()

    def hole(self) -> None:
        """Go silent: no byte passes and no connection is told; those there are never recover."""
        self.silent = True
        for link in self._links:
            link.deaf = link.mute = True

    def drop_replies(self) -> None:
        """The connections there are carry requests on, and no answer back."""
        for link in self._links:
            link.mute = True

    def heal(self) -> None:
        """New connections work again. Those that went silent stay so."""
        self.silent, self.delay = False, 0.0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), there)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.ended.set()


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self.deaf = self.mute = proxy.silent
        """Requests, replies are swallowed."""
        self.left: dict[bool, int] = {}
        """Bytes of replies (True) or of requests that still pass before the cut."""
        self.ended = asyncio.Event()

    async def run(self) -> None:
        up = asyncio.create_task(self._pump(self._client[0], self._server[1], replies=False))
        down = asyncio.create_task(self._pump(self._server[0], self._client[1], replies=True))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if self.deaf and not up.done():  # that the server is gone is not told through a hole
                await asyncio.wait({up})
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            self.abort()

    def abort(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._proxy.delay:
                    await asyncio.sleep(self._proxy.delay)
                if self.mute if replies else self.deaf:
                    continue
                left = self.left.get(replies)
                if left is not None:
                    data = data[:left]
                    self.left[replies] = left - len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and not self.left[replies]:
                    return
        if self._client[1].transport.get_write_buffer_size():  # what was let through arrives before the cut
            await asyncio.sleep(0.01)
