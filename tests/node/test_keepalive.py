"""An idle connection is kept alive by pings, and nobody is disconnected for them.

Everything is meant to be fifty times as fast: a ping after 200 ms, and 100 ms between two
that a server puts up with. What passes is read on its way, frame by frame (RFC 9113, 4.1).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kvorum import channels
from kvorum.cli.processes import free_ports
from kvorum_node import server
from kvorum_node.config import NodeConfig
from tests.support.eventually import eventually
from tests.support.served import until_serving
from tests.support.wire_client import WireClient

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")

SPEED = 50
PREFACE_BYTES = 24
HEADER_BYTES = 9
PING, GOAWAY = 6, 7
ACK = 1
ENOUGH_PINGS = 5
"""gRPC's server forgives two that come too early, and ends the connection at the third."""


class Wiretap:
    """Passes connections on to a port, and counts the frames that are pings or farewells."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pings: Counter[str] = Counter()
        self.farewells: list[bytes] = []

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(
            self._pass_on("client", reader, back, PREFACE_BYTES),
            self._pass_on("server", there, writer, 0),
        )

    async def _pass_on(
        self, whose: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, skipped: int
    ) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(await reader.readexactly(skipped))
            while True:
                header = await reader.readexactly(HEADER_BYTES)
                payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
                kind, flags = header[3], header[4]
                if kind == PING and not flags & ACK:
                    self.pings[whose] += 1
                elif kind == GOAWAY:
                    self.farewells.append(payload)
                writer.write(header + payload)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[tuple[Wiretap, str]]:
    tap = Wiretap(port)
    listener = await asyncio.start_server(tap.connect, "127.0.0.1", 0)
    try:
        yield tap, f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


def hastened(options: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    hasty = ("keepalive_time_ms", "without_data_ms")
    return [(key, value // SPEED if key.endswith(hasty) else value) for key, value in options]


@asynccontextmanager
async def idle_stream(directory: Path) -> AsyncIterator[Wiretap]:
    """A stream of a client to a server on which nothing is said, and what passes nevertheless."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = NodeConfig(name="n1", data_dir=directory, listen=address, cluster={"n1": address})
    serving = asyncio.create_task(server.serve(config))
    client = WireClient(address)
    try:
        await until_serving(client)
        async with tapped(int(address.rpartition(":")[2])) as (tap, through):
            channel = channels.connect(through)
            stream: Any = channel.stream_stream("/kvorumpb.v1.KV/Session")()
            await stream.wait_for_connection()
            yield tap
            stream.cancel()
            await channel.close()
    finally:
        await client.close()
        serving.cancel()
        await asyncio.wait([serving])


async def test_an_idle_stream_is_pinged_and_nobody_minds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_OPTIONS", hastened(channels._OPTIONS))
    monkeypatch.setattr(server, "SERVER_OPTIONS", hastened(server.SERVER_OPTIONS))
    async with idle_stream(tmp_path / "n1") as tap:
        await eventually(lambda: tap.pings["client"] >= ENOUGH_PINGS or tap.farewells)
        assert tap.farewells == []
        assert tap.pings["server"] > 0


async def test_one_who_pings_too_often_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hasty client and a patient server: the wiretap sees what must not happen above."""
    monkeypatch.setattr(channels, "_OPTIONS", hastened(channels._OPTIONS))
    async with idle_stream(tmp_path / "n1") as tap:
        await eventually(lambda: tap.farewells)
        assert b"too_many_pings" in tap.farewells[0]
