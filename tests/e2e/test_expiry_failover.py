"""Time to live on real nodes whose clocks are minutes apart: exact over a killed leader, and over
the death of all.

libfaketime gives each node another time of day; what it measures with goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import grpc.aio
import pytest
from google.protobuf.message import Message

from kvorum.cli import processes
from kvorum.cli.cluster_file import ProcessIdentity
from kvorum.cli.local_cluster import LocalCluster
from kvorumpb.v1 import kv_pb2
from kvorumpb.v1.command_pb2 import Operation, PutOperation, Transaction
from tests.chaos.faults import find_fake_time
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.wire_client import WireClient

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

OFFSETS = {"n1": "-7m", "n2": "+0", "n3": "+11m"}
TTL_SECONDS = 10.0
LATE_SECONDS = 3.0
"""A takeover may lose what has passed since the last heartbeat, on a busy machine. The clocks
are apart by a hundred times as much."""


@pytest.fixture
def skewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are started live at times of their own."""
    library = find_fake_time()
    if library is None:
        pytest.skip("libfaketime is not installed: nodes cannot be given clocks of their own")
    start = processes.start

    def start_skewed(command: Sequence[str], log_file: Path) -> ProcessIdentity:
        name = command[command.index("node") + 1]
        clock = (
            f"LD_PRELOAD={library}",
            f"FAKETIME={OFFSETS[name]}",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )
        return start(("env", *clock, *command), log_file)

    monkeypatch.setattr(processes, "start", start_skewed)


class Clients:
    """Asks whichever node answers."""

    def __init__(self, clients: Sequence[WireClient]) -> None:
        self._clients = clients

    async def ask(self, request: Message) -> object:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                for client in self._clients:
                    try:
                        return await client.kv(request, seconds=2)
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.01)

    async def put_for(self, key: bytes, ttl_ms: int) -> int:
        """Write it, and return the log time of that."""
        operation = Operation(put=PutOperation(key=key, value=b"value", ttl_ms=ttl_ms))
        request = kv_pb2.TxnRequest(transaction=Transaction(operations=[operation]))
        response = await self.ask(request)
        assert isinstance(response, kv_pb2.TxnResponse)
        assert response.result.succeeded
        return response.result.log_time_ms

    async def has(self, key: bytes) -> bool:
        response = await self.ask(kv_pb2.GetRequest(key=key))
        assert isinstance(response, kv_pb2.GetResponse)
        return response.HasField("record")


@asynccontextmanager
async def clients_of(cluster: LocalCluster) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        clients = []
        for node in cluster.nodes:
            client = WireClient(node.address)
            stack.push_async_callback(client.close)
            clients.append(client)
        yield Clients(clients)


@pytest.mark.usefixtures("skewed")
async def test_what_is_left_of_a_ttl_is_the_same_after_the_leader_was_killed(
    empty_cluster: LocalCluster,
) -> None:
    await empty_cluster.up(nodes=3, base_port=0)
    async with clients_of(empty_cluster) as clients:
        before = monotonic()
        await clients.put_for(b"k", round(TTL_SECONDS * 1000))
        after = monotonic()
        for _ in range(2):
            assert await clients.has(b"k") or monotonic() >= before + TTL_SECONDS
            leader = await empty_cluster.leader()
            empty_cluster.kill(leader)
            await empty_cluster.restart(leader)
        while True:
            asked = monotonic()
            there = await clients.has(b"k")
            answered = monotonic()
            if there:
                assert asked <= after + TTL_SECONDS + LATE_SECONDS, "it has outlived its time"
            else:
                assert answered >= before + TTL_SECONDS, "it has gone before its time"
                break


@pytest.mark.usefixtures("skewed")
async def test_time_goes_on_while_all_are_down(empty_cluster: LocalCluster) -> None:
    await empty_cluster.up(nodes=3, base_port=0)
    async with clients_of(empty_cluster) as clients:
        log_time_ms = await clients.put_for(b"k", 3_600_000)
        began = monotonic()
        for _ in range(2):
            await asyncio.sleep(1)  # what a crash must not take back
            empty_cluster.kill_all()
            await empty_cluster.up()
            passed_ms = await clients.put_for(b"other", 1000) - log_time_ms
            assert abs(passed_ms / 1000 - (monotonic() - began)) < LATE_SECONDS


@pytest.mark.usefixtures("skewed")
async def test_clocks_that_are_set_while_all_are_down_do_not_move_time(
    empty_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is up, and knows how long they were down."""
    await empty_cluster.up(nodes=3, base_port=0)
    async with clients_of(empty_cluster) as clients:
        log_time_ms = await clients.put_for(b"k", 3_600_000)
        began = monotonic()
        await empty_cluster.down()  # a node that was killed at once may not have stored its clock
        for offset in ("+26h", "-26h"):
            empty_cluster.kill_all()
            for name in OFFSETS:
                monkeypatch.setitem(OFFSETS, name, offset)
            await empty_cluster.up()
            passed_ms = await clients.put_for(b"other", 1000) - log_time_ms
            assert abs(passed_ms / 1000 - (monotonic() - began)) < LATE_SECONDS
            assert await clients.has(b"k")
