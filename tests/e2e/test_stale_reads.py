"""A leader that was suspended: it wakes up in its past, and must not answer from there."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc.aio
import pytest

import kvorum
from kvorum import KV
from kvorum.admin import ClusterAdmin
from kvorum.cli import processes
from kvorum.cli.cluster_file import ProcessIdentity
from kvorum.cli.local_cluster import LocalCluster
from kvorum.cli.processes import free_ports
from kvorum.errors import KvorumError, NoLeader, NotLeader, TooStale
from kvorum.status import from_rpc_error, from_status
from kvorumpb.v1 import kv_pb2
from kvorumpb.v1.cluster_pb2 import LEADER
from tests.support.links import Link
from tests.support.wire_client import WireClient, rest_of
from tests.support.workload import until

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


async def test_a_follower_answers_stale_reads_when_the_leader_is_gone(
    three_nodes: LocalCluster, kv: KV
) -> None:
    """By itself, as long as it may be so old; and it knows how old it is."""
    await kv.put(KEY, "old")
    leader = await three_nodes.leader()
    follower, other = (node for node in three_nodes.nodes if node.name != leader)
    async with WireClient(follower.address) as client:

        async def ask(*, max_staleness_ms: int = 0) -> bytes | Exception:
            request = kv_pb2.GetRequest(
                key=KEY, consistency=kv_pb2.STALE, max_staleness_ms=max_staleness_ms
            )
            try:
                return bytes((await client.kv(request)).record.value)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error)

        async def is_fresh() -> bool:
            return await ask(max_staleness_ms=20_000) == b'"old"'

        await until(is_fresh)
        for name in (leader, other.name):
            three_nodes.pause(name)
        assert await ask() == b'"old"'

        async def is_too_stale() -> bool:
            return isinstance(await ask(max_staleness_ms=1_000), TooStale)

        await until(is_too_stale)
        assert await ask(max_staleness_ms=3_600_000) == b'"old"'
        assert await ask() == b'"old"'
        # A client library finds the way there by itself.
        entry = await kv.get(KEY.decode(), consistency="stale")
        assert entry is not None
        assert entry.value == "old"
        with pytest.raises(TooStale):
            await kv.get(KEY.decode(), consistency="stale", max_staleness=0.5, timeout=5)
        for name in (leader, other.name):
            three_nodes.resume(name)
        await until(is_fresh)


class NodesBehindLinks:
    """Three nodes that reach one another, and are known, by links only; listening behind them."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(6)
        self.names = ("n1", "n2", "n3")
        self.listen = dict(
            zip(self.names, (f"127.0.0.1:{port}" for port in ports[:3]), strict=True)
        )
        pairs = zip(ports[3:], ports[:3], strict=True)
        self.links = {name: Link(*pair) for name, pair in zip(self.names, pairs, strict=True)}
        self._directory = directory
        self._running: dict[str, ProcessIdentity] = {}

    async def __aenter__(self) -> Self:
        members = ",".join(f"{name}=127.0.0.1:{link.port}" for name, link in self.links.items())
        for name in self.names:
            await self.links[name].__aenter__()
            command = [
                *(sys.executable, "-m", "kvorum.cli", "node", name, "--cluster", members),
                *("--listen", self.listen[name], "--data-dir", str(self._directory / name)),
            ]
            self._running[name] = processes.start(command, self._directory / f"{name}.log")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in self.names:
            self.signal(name, signal.SIGKILL)
            await self.links[name].__aexit__(None, None, None)

    def signal(self, name: str, number: signal.Signals) -> None:
        processes.send(self._running[name], number)

    async def leader(self, among: Sequence[str]) -> str:
        """Who leads by its own word, once one of these does."""
        async with ClusterAdmin() as admin:
            found: list[str] = []

            async def one_leads() -> bool:
                for name in among:
                    with contextlib.suppress(KvorumError):
                        status = await admin.status(self.listen[name], timeout=0.5)
                        if status.role == LEADER:
                            found.append(name)
                return bool(found)

            await until(one_leads)
            return found[0]

    async def put(self, value: str, *, among: Sequence[str]) -> None:
        """At whichever of these leads."""

        async def is_put() -> bool:
            leader = await self.leader(among)
            async with WireClient(self.listen[leader]) as client:
                request = kv_pb2.PutRequest(key=KEY, value=value.encode())
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await client.kv(request)
                    return True
                return False

        await until(is_put)


async def test_a_leader_that_wakes_up_cut_off_answers_nothing(tmp_path: Path) -> None:
    """Nobody tells it that it leads no more: it has to ask, before it answers."""
    async with NodesBehindLinks(tmp_path) as nodes:
        for repetition in range(3):
            await nodes.put("old", among=nodes.names)
            name = await nodes.leader(nodes.names)
            others = [other for other in nodes.names if other != name]
            async with WireClient(nodes.listen[name]) as client:
                old = OldLeader(client)
                await old.open_session()
                nodes.signal(name, signal.SIGSTOP)
                await nodes.links[name].cut()
                new = f"new {repetition}"
                await nodes.put(new, among=others)
                await old.ask()
                nodes.signal(name, signal.SIGCONT)
                await asyncio.sleep(0.1)
                await old.ask()
                values, refusals = await old.answers()
                assert values == []
                assert {type(refusal) for refusal in refusals} == {NoLeader}
                nodes.links[name].heal()

                await until(lambda: reads(client, new.encode()))  # noqa: B023 - awaited


async def test_a_leader_that_wakes_up_cut_off_has_no_lease_of_its_past(tmp_path: Path) -> None:
    """Its ticks have stood still with it, and its clock has not."""
    async with NodesBehindLinks(tmp_path) as nodes:
        await nodes.put("old", among=nodes.names)
        name = await nodes.leader(nodes.names)
        others = [other for other in nodes.names if other != name]
        lease = kv_pb2.GetRequest(key=KEY, consistency=kv_pb2.LEASE)
        async with WireClient(nodes.listen[name]) as client:
            session = client.session()
            await session.read()
            assert (await client.kv(lease)).record.value == b"old"  # which gives it a lease
            nodes.signal(name, signal.SIGSTOP)
            await nodes.links[name].cut()
            await nodes.put("new", among=others)
            calls = [kv_pb2.Call(id=number, get=lease) for number in range(READS)]
            await session.write(kv_pb2.SessionRequest(calls=calls))
            await asyncio.sleep(0.1)  # on the way to its sockets
            nodes.signal(name, signal.SIGCONT)
            await session.done_writing()
            replies = [reply async for response in rest_of(session) for reply in response.replies]
        assert {type(from_status(reply.error)) for reply in replies} == {NoLeader}
        assert len(replies) == READS


async def reads(client: WireClient, expected: bytes) -> bool:
    """Whether a read succeeds; if so, it must give the value."""
    try:
        got = await client.kv(kv_pb2.GetRequest(key=KEY))
    except grpc.aio.AioRpcError:
        return False
    assert got.record.value == expected
    return True
