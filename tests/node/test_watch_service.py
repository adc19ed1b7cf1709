"""The Watch service over a real port: streams, what they refuse, back-pressure, and their end."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from kvorum import limits
from kvorum.cli.processes import free_ports
from kvorum_node.node import Node
from kvorum_node.raft.types import NodeId
from kvorum_node.services.watch import SERVICE, WatchService
from kvorum_node.storage.data_directory import Identity, Storage
from kvorumpb.v1 import kv_pb2
from kvorumpb.v1.command_pb2 import KeyRange
from kvorumpb.v1.kv_pb2 import Call, PutRequest
from kvorumpb.v1.watch_pb2 import BeginWatch, EndWatch, WatchRequest, WatchResponse
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.node_group import TIMING, NodeGroup
from tests.support.served import config_at, serving, until_serving
from tests.support.watch_client import Client, Heard, shown
from tests.support.wire_client import WireClient, details

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")


class Stream:
    """A stream of watches on the wire."""

    def __init__(self, client: WireClient) -> None:
        self.call = client.watch()
        self.heard: dict[int, Heard] = defaultdict(Heard)

    async def begin(self, watch_id: int = 1, /, **fields: Any) -> None:
        await self.send(WatchRequest(begin=BeginWatch(watch_id=watch_id, **fields)))

    async def send(self, request: WatchRequest) -> None:
        await self.call.write(request)

    async def read(self) -> WatchResponse | None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            response = await self.call.read()
        if not isinstance(response, WatchResponse):
            return None
        for update in response.updates:
            self.heard[update.watch_id].hear(update)
        return response

    async def to_the_end(self) -> None:
        while await self.read() is not None:
            pass

    async def until(self, revision: int, watch_id: int = 1) -> Heard:
        heard = self.heard[watch_id]
        while heard.ended is None and (heard.begun is None or heard.told < revision):
            assert await self.read() is not None
        return heard


class Serving:
    """One node alone, whose hub the test can see."""

    def __init__(self) -> None:
        self.node = Node(
            Storage.memory(Identity("test", NodeId(1))),
            {NodeId(1): ""},
            timing=TIMING,
            log_max_bytes=1 << 30,
        )
        self.server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
            ]
        )
        self.server.add_generic_rpc_handlers((WatchService(self.node).handler(),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def put(self, key: bytes, value: bytes = b"v") -> int:
        call = Call(put=PutRequest(key=key, value=value))
        [reply] = await self.node.dispatcher.execute([call])
        assert not reply.HasField("error"), reply
        return reply.put.revision


@pytest_asyncio.fixture(loop_scope="session")
async def n1() -> AsyncIterator[Serving]:
    serving = Serving()
    await serving.server.start()
    serving.node.start()
    await serving.node.wait_leader()
    await serving.put(b"first")
    yield serving
    await serving.server.stop(None)
    await serving.node.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def client(n1: Serving) -> AsyncIterator[WireClient]:
    async with WireClient(n1.address) as client:
        yield client


async def test_changes_travel(n1: Serving, client: WireClient) -> None:
    stream = Stream(client)
    await stream.begin(1, prefix=b"a")
    await stream.begin(2, after_revision=0, previous=True)
    await stream.until(1, 1)
    await n1.put(b"a1", b"one")
    await n1.put(b"b1")
    await n1.put(b"a1", b"two")
    one, two = await stream.until(4, 1), await stream.until(4, 2)
    assert [shown(each)[0][:3] for each in one.revisions] == [
        ("PUT", b"a1", b"one"),
        ("PUT", b"a1", b"two"),
    ]
    assert [each.revision for each in two.revisions] == [1, 2, 3, 4]
    assert shown(two.revisions[-1]) == [("PUT", b"a1", b"two", b"one")]
    await stream.send(WatchRequest(end=EndWatch(watch_id=1)))
    while one.ended is None:
        await stream.read()
    assert one.ended == "OK"
    stream.call.cancel()
    await eventually(lambda: n1.node.watches.count == 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key": b""}, "INVALID_ARGUMENT"),
        ({"key": b"k" * limits.MAX_KEY_BYTES}, None),
        ({"key": b"k" * (limits.MAX_KEY_BYTES + 1)}, "LIMIT_EXCEEDED"),
        ({"prefix": b""}, None),
        ({"prefix": b"k" * limits.MAX_KEY_BYTES}, None),
        ({"prefix": b"k" * (limits.MAX_KEY_BYTES + 1)}, "LIMIT_EXCEEDED"),
        ({"range": KeyRange(start=b"b", end=b"a")}, "INVALID_ARGUMENT"),
        ({"range": KeyRange(start=b"b", end=b"b")}, "INVALID_ARGUMENT"),
        ({"range": KeyRange()}, None),
        ({"range": KeyRange(start=b"k" * (limits.MAX_KEY_BYTES + 1))}, "LIMIT_EXCEEDED"),
        ({"range": KeyRange(end=b"k" * (limits.MAX_KEY_BYTES + 1))}, "LIMIT_EXCEEDED"),
        ({"after_revision": -1}, "INVALID_ARGUMENT"),
        ({"after_revision": 0}, None),
        ({"after_revision": 1_000}, "FUTURE_REVISION"),
        ({"namespace": "another"}, "NAMESPACE_NOT_FOUND"),
        ({"namespace": "default"}, None),
        ({"no_puts": True, "no_deletes": True, "no_expiries": True}, "INVALID_ARGUMENT"),
        ({"progress_interval_ms": limits.MIN_PROGRESS_INTERVAL_MS}, None),
        ({"progress_interval_ms": limits.MIN_PROGRESS_INTERVAL_MS - 1}, "INVALID_ARGUMENT"),
        ({"progress_interval_ms": -1}, "INVALID_ARGUMENT"),
        ({"progress_interval_ms": limits.MAX_PROGRESS_INTERVAL_MS}, None),
        ({"progress_interval_ms": limits.MAX_PROGRESS_INTERVAL_MS + 1}, "INVALID_ARGUMENT"),
    ],
)
async def test_a_watch_that_cannot_be_served_ends_alone(
    client: WireClient, fields: dict[str, Any], reason: str | None
) -> None:
    stream = Stream(client)
    await stream.begin(1, **fields)
    await stream.begin(2)
    await stream.until(0, 2)
    heard = await stream.until(0, 1)
    assert (heard.ended, stream.heard[2].ended) == (reason, None)
    stream.call.cancel()


async def test_what_a_newer_client_asks_for_is_refused(client: WireClient) -> None:
    """A selection or a filter that this node does not know must not become: everything."""
    stream = Stream(client)
    unknown = b"\xaa\x06\x01x"  # field 101, a string
    begin = BeginWatch.FromString(BeginWatch(watch_id=1).SerializeToString() + unknown)
    await stream.send(WatchRequest(begin=begin))
    assert (await stream.until(0)).ended == "INVALID_ARGUMENT"
    stream.call.cancel()


@pytest.mark.parametrize("wrong", ["twice", "nothing"])
async def test_a_request_without_sense_ends_the_stream(client: WireClient, wrong: str) -> None:
    stream = Stream(client)
    if wrong == "twice":
        await stream.begin(1)
        await stream.begin(1)
    else:
        await stream.send(WatchRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.to_the_end()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[0].reason == "INVALID_ARGUMENT"


async def test_a_client_that_asks_for_nothing_more_is_still_told(
    n1: Serving, client: WireClient
) -> None:
    stream = Stream(client)
    await stream.begin()
    await stream.call.done_writing()
    await stream.until(0)
    revision = await n1.put(b"a")
    assert (await stream.until(revision)).told == revision
    stream.call.cancel()


async def test_a_client_that_does_not_read_costs_one_message(
    n1: Serving, client: WireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WATCH_PENDING_REVISIONS", 128)
    slow, other = Stream(client), Stream(client)
    await slow.begin()
    await other.begin(key=b"other")
    await slow.until(0)
    await other.until(0)
    count = 4 * limits.MAX_WATCH_PENDING_REVISIONS
    for number in range(count):
        await n1.put(b"a", bytes(40_000) + b"%d" % number)
    full = [one for one in n1.node.watches._watches if one.is_full]
    assert len(full) == 1
    assert len(full[0].pending) == limits.MAX_WATCH_PENDING_REVISIONS
    revision = await n1.put(b"other")
    assert (await other.until(revision)).told == revision
    heard = await slow.until(revision)
    assert [one.revision for one in heard.revisions] == [*range(2, revision + 1)]
    slow.call.cancel()
    other.call.cancel()


async def test_streams_end_when_the_node_stops(n1: Serving, client: WireClient) -> None:
    stream = Stream(client)
    await stream.begin()
    await stream.until(0)
    n1.node.watches.close("n1 is shutting down")
    assert (await stream.until(1 << 40)).ended == "SHUTTING_DOWN"
    assert await stream.read() is None
    later = Stream(client)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await later.read()
    assert details(caught.value)[0].reason == "SHUTTING_DOWN"


async def test_the_server_serves_watches_and_ends_them_in_good_order(tmp_path: Path) -> None:
    async with serving(config_at(tmp_path / "n1", free_ports(1)[0])) as (client, task):
        await until_serving(client, SERVICE)
        stream = Stream(client)
        await stream.begin()
        await stream.until(0)
        await client.kv(kv_pb2.PutRequest(key=b"a"))
        await stream.until(1)
        task.cancel()
        assert (await stream.until(1 << 40)).ended == "SHUTTING_DOWN"
        await asyncio.wait([task])


# Nodes of a group.


async def test_a_follower_serves_watches_and_falls_silent_when_it_is_cut_off() -> None:
    """It begins none, either. When it hears the others again, nothing is missing."""
    async with NodeGroup(3) as group:
        leader = await group.leader()
        [follower, _] = [one for one in group.members.values() if one is not leader]
        hub = follower.node.watches
        await eventually(hub.vouches)
        client = Client(hub)
        await client.begin(progress_interval_ms=100)
        await leader.put(b"a")
        heard = await client.read_until(1)
        assert heard.told >= 1
        await follower.link.cut()
        await eventually(lambda: not hub.vouches())
        await leader.put(b"b")
        quiet = asyncio.create_task(client.stream.next())
        refused = Client(hub)
        await refused.begin()
        await refused.read()
        assert refused.heard[1].ended == "NO_LEADER"
        ticks = follower.node.group.raft.term, follower.node.group.ticked_at
        await eventually(lambda: follower.node.group.ticked_at > ticks[1] + 0.3)
        assert not quiet.done()
        follower.link.heal()
        response = await asyncio.wait_for(quiet, DEADLINE_SECONDS)
        assert response is not None
        for update in response.updates:
            heard.hear(update)
        await client.read_until(2)
        assert [one.revision for one in heard.revisions] == [1, 2]


async def test_a_node_whose_disk_hangs_does_not_vouch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count time, and would take its leader for alive for ever."""
    async with NodeGroup(3) as group:
        leader = await group.leader()
        assert leader.node.watches.vouches()
        hangs = asyncio.Event()

        async def hang() -> None:
            await hangs.wait()

        monkeypatch.setattr(leader.node.driver, "_turn", hang)
        await eventually(lambda: not leader.node.watches.vouches())
        assert leader.node.group.raft.leader == leader.id
        hangs.set()


async def test_a_follower_that_is_sent_a_snapshot_skips_nothing() -> None:
    async with NodeGroup(3, log_max_bytes=1 << 17) as group:
        leader = await group.leader()
        [follower, _] = [one for one in group.members.values() if one is not leader]
        await leader.put(b"a")
        await eventually(lambda: follower.node.group.machine.revision == 1)
        client = Client(follower.node.watches)
        await eventually(follower.node.watches.vouches)
        await client.begin(after_revision=0)
        await client.read_until(1)
        await follower.link.cut()
        await leader.fill(400)
        await eventually(lambda: leader.first_index > follower.applied + 1)
        before = follower.node.group.machine._space
        follower.link.heal()
        await eventually(lambda: follower.node.group.machine._space != before)
        heard = await client.read_until(401)
        assert [one.revision for one in heard.revisions] == [*range(1, 402)]
