"""A leader that was suspended: it wakes up in its past, and must not answer from there."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc.aio
import pytest

import kvorum
from kvorum import KV
from kvorum.cli.local_cluster import LocalCluster
from kvorum.errors import NoLeader, NotLeader
from kvorum.status import from_rpc_error, from_status
from kvorumpb.v1 import kv_pb2
from tests.support.wire_client import WireClient, rest_of

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

KEY = b"k"
READS = 100
AFTER_RESUME_SECONDS = 0.5


class OldLeader:
    """The suspended node, asked at its own port in every way that there is."""

    def __init__(self, client: WireClient) -> None:
        self.client = client
        self.session: Any = None
        self._unary: list[asyncio.Task[Any]] = []
        self._sent = 0

    async def open_session(self) -> None:
        self.session = self.client.session()
        await self.session.read()

    async def ask(self) -> None:
        """Ask on the open session, and by unary calls. Sent, not waited for."""
        get = kv_pb2.GetRequest(key=KEY)
        calls = [kv_pb2.Call(id=self._sent + number, get=get) for number in range(READS)]
        self._sent += READS
        await self.session.write(kv_pb2.SessionRequest(calls=calls))
        self._unary += [asyncio.create_task(self.client.kv(get)) for _ in range(5)]

    async def answers(self) -> tuple[list[bytes], list[Exception]]:
        """What was answered to all that was asked: values, and refusals."""
        await self.session.done_writing()
        values: list[bytes] = []
        refusals: list[Exception] = []
        answered = 0
        async for response in rest_of(self.session):
            for reply in response.replies:
                answered += 1
                if reply.HasField("error"):
                    refusals.append(from_status(reply.error))
                else:
                    values.append(reply.get.record.value)
        assert answered == self._sent
        for call in self._unary:
            try:
                values.append((await call).record.value)
            except grpc.aio.AioRpcError as error:
                refusals.append(from_rpc_error(error))
        return values, refusals


async def write_through_the_others(cluster: LocalCluster, old: str, value: str) -> None:
    others = ",".join(node.address for node in cluster.nodes if node.name != old)
    async with kvorum.open(f"kvorum://{others}", timeout=10) as kv:
        await kv.put(KEY, value)


async def suspended_for(seconds: float, write: Awaitable[None]) -> None:
    """Write meanwhile, and let at least so much time pass."""
    await asyncio.gather(write, asyncio.sleep(seconds))


# The second wakes up, and is suspended again, while the election is hardly over.
@pytest.mark.parametrize(("seconds", "repetitions"), [(5.0, 1), (0.0, 4)])
async def test_a_suspended_leader_never_answers_with_the_old_value(
    three_nodes: LocalCluster, kv: KV, seconds: float, repetitions: int
) -> None:
    for repetition in range(repetitions):
        await kv.put(KEY, "old")
        name = await three_nodes.leader()
        async with WireClient(three_nodes.node(name).address) as client:
            old = OldLeader(client)
            await old.open_session()
            three_nodes.pause(name)
            new = f"new {repetition}"
            await suspended_for(seconds, write_through_the_others(three_nodes, name, new))
            await old.ask()  # what it finds first when it wakes up
            await asyncio.sleep(0.1)  # on the way to its sockets
            three_nodes.resume(name)
            end = asyncio.get_running_loop().time() + AFTER_RESUME_SECONDS
            while asyncio.get_running_loop().time() < end:
                await old.ask()
                await asyncio.sleep(0.01)
            values, refusals = await old.answers()
        assert set(values) == {f'"{new}"'.encode()}  # some there are: unary calls are passed on
        assert {type(refusal) for refusal in refusals} <= {NotLeader, NoLeader}


async def test_writes_that_wait_for_a_suspended_leader_are_told_the_truth(
    three_nodes: LocalCluster, kv: KV
) -> None:
    """It takes them for its own when it wakes up: none may look written that is not."""
    await kv.put(KEY, "old")
    name = await three_nodes.leader()
    async with WireClient(three_nodes.node(name).address) as client:
        session = client.session()
        await session.read()
        three_nodes.pause(name)
        await write_through_the_others(three_nodes, name, "new")
        calls = [
            kv_pb2.Call(id=number, put=kv_pb2.PutRequest(key=b"late %d" % number, value=b"1"))
            for number in range(50)
        ]
        await session.write(kv_pb2.SessionRequest(calls=calls))
        await asyncio.sleep(0.1)
        three_nodes.resume(name)
        await session.done_writing()
        replies = [reply async for response in rest_of(session) for reply in response.replies]
    assert len(replies) == 50
    for reply in replies:
        entry = await kv.get(f"late {reply.id}")
        if reply.HasField("put"):
            assert entry is not None
        elif from_status(reply.error, write=True).retryable:
            assert entry is None
