"""A network for machines without namespaces: nodes reach one another through this process.

Each node is known by a port of this process, which passes every connection on to the node.
Who connects is found out by its pid (Linux tells which process has a socket). What is blocked
is held back and not closed, as TCP would go on sending it; what is lost comes LOST_SECONDS
later, as TCP would send it again.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kvorum.cli.processes import free_ports
from tests.chaos.network import Place, Qualities, Quality

CHUNK_BYTES: Final = 64 * 1024
LOST_SECONDS: Final = 0.2
"""The least time after which TCP sends again."""
MAX_HELD_CHUNKS: Final = 256
PERFECT: Final = Quality()
CLIENT: Final = "a client"


class Proxies:
    """The network; entered while it is used."""

    def __init__(self, names: Iterable[str], pid_of: Callable[[str], int | None]) -> None:
        """`pid_of` tells the pid of a node, None while it is not running."""
        names = list(names)
        ports = free_ports(2 * len(names))
        self.kind = "proxies"
        self.lacks_delay = ""
        self.places: Mapping[str, Place] = {
            name: Place(name, f"127.0.0.1:{ports.pop()}", f"127.0.0.1:{ports.pop()}")
            for name in names
        }
        self._pid_of = pid_of
        self._qualities: Qualities = {}
        self._changed = asyncio.Event()
        self._servers = AsyncExitStack()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for place in self.places.values():
            await self._listen(place)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._servers.aclose()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def set(self, qualities: Qualities) -> None:
        self._qualities = dict(qualities)
        self._changed.set()
        self._changed = asyncio.Event()

    def quality(self, sender: str, recipient: str) -> Quality:
        return self._qualities.get((sender, recipient), PERFECT)

    async def passable(self, sender: str, recipient: str) -> None:
        """Return once the direction is not blocked."""
        while self.quality(sender, recipient).blocked:
            await self._changed.wait()

    async def _listen(self, place: Place) -> None:
        async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = asyncio.current_task()
            assert connection is not None
            self._connections.add(connection)
            try:
                await self._pass_on(place, reader, writer)
            except asyncio.CancelledError:
                return  # the network is taken down
            finally:
                self._connections.discard(connection)
                writer.close()

        port = int(place.address.rpartition(":")[2])
        server = await asyncio.start_server(on_connect, "127.0.0.1", port)
        self._servers.callback(server.close)

    async def _pass_on(
        self, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        local, remote = writer.get_extra_info("sockname")[1], writer.get_extra_info("peername")[1]
        sender = self._owner(remote, local)
        port = int(place.listen.rpartition(":")[2])
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return  # nobody listens there
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pump(sender, place.name, reader, back))
                directions.create_task(self._pump(place.name, sender, there, writer))
        except* OSError:
            pass  # either end is gone
        finally:
            back.close()

    async def _pump(
        self,
        sender: str,
        recipient: str,
        source: asyncio.StreamReader,
        destination: asyncio.StreamWriter,
    ) -> None:
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_HELD_CHUNKS)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._take(sender, recipient, source, held))
            ends.create_task(self._deliver(sender, recipient, held, destination))

    async def _take(
        self,
        sender: str,
        recipient: str,
        source: asyncio.StreamReader,
        held: "asyncio.Queue[tuple[float, bytes]]",
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            chunk = await source.read(CHUNK_BYTES)
            quality = self.quality(sender, recipient)
            lost = LOST_SECONDS if random.random() < quality.loss else 0.0
            await held.put((loop.time() + quality.delay_ms / 1000 + lost, chunk))
            if not chunk:
                return

    async def _deliver(
        self,
        sender: str,
        recipient: str,
        held: "asyncio.Queue[tuple[float, bytes]]",
        destination: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await held.get()
            await asyncio.sleep(due - loop.time())
            await self.passable(sender, recipient)
            if not chunk:
                destination.close()
                return
            destination.write(chunk)
            await destination.drain()

    def _owner(self, port: int, peer_port: int) -> str:
        """The node whose connection it is; CLIENT if it is no node's."""
        inode = socket_inode(port, peer_port)
        for name in self.places:
            pid = self._pid_of(name)
            if pid is not None and inode is not None and has_socket(pid, inode):
                return name
        return CLIENT


def socket_inode(port: int, peer_port: int) -> str | None:
    """The inode of the socket that has these ports of 127.0.0.1, from its own side; None if
    there is none."""
    wanted = [f"{port:04X}", f"{peer_port:04X}"]
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if [field.rpartition(":")[2] for field in fields[1:3]] == wanted:
                    return fields[9]
    return None


def has_socket(pid: int, inode: str) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if str(entry.readlink()) == f"socket:[{inode}]":
                    return True
    return False
