"""Links that a test can cut: a port that passes everything on to another one, or nothing."""

import asyncio
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class Link:
    """Listens on `port`, and connects whoever comes to `target_port`, both on 127.0.0.1."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self.target_port = target_port
        self._is_cut = False
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        for listening in self._server.sockets:  # nobody is accepted any more
            asyncio.get_running_loop().remove_reader(listening.fileno())
        # Who was accepted this very moment: a server that is closed would drop it unclosed.
        await asyncio.sleep(0)
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Break every connection, and accept none."""
        self._is_cut = True
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def heal(self) -> None:
        self._is_cut = False

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            if not self._is_cut:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            return  # there is nobody there, or the link was cut
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_pump(reader, back))
                directions.create_task(_pump(there, writer))
        except* OSError:
            pass  # either end is gone
        finally:
            back.close()


async def _pump(source: asyncio.StreamReader, destination: asyncio.StreamWriter) -> None:
    while chunk := await source.read(CHUNK_BYTES):
        destination.write(chunk)
        await destination.drain()
    destination.close()
