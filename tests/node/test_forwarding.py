"""A unary call that arrives at a follower: passed on to the leader, once, and answered truly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import Message

from kvorum.cli.processes import free_ports
from kvorum.errors import KvorumError, LimitExceeded, NotLeader
from kvorum.status import to_status
from kvorum_node.config import NodeConfig
from kvorum_node.server import serve
from kvorum_node.services.kv import abort
from kvorumpb.v1 import cluster_pb2, kv_pb2, raft_pb2
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.wire_client import WireClient, details

pytestmark = pytest.mark.asyncio(loop_scope="session")

Script = Callable[[Any, Any], Awaitable[Message]]


class ScriptedLeader:
    """n2, which leads by its own word, and answers as the test says."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.script: Script | None = None
        self.asked = asyncio.Event()
        self.calls = 0
        self.metadata: dict[str, str | bytes] = {}
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._serve,
                request_deserializer=getattr(kv_pb2, f"{name}Request").FromString,
                response_serializer=getattr(kv_pb2, f"{name}Response").SerializeToString,
            )
            for name in ("Get", "Put", "RegisterClient")
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("kvorumpb.v1.KV", methods),)
        )
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """Vanish at once, whatever is under way."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def _serve(self, request: Any, context: Any) -> Message:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        self.asked.set()
        if self.script is None:
            await asyncio.Event().wait()
        assert self.script is not None
        return await self.script(request, context)


async def be_followed(client: WireClient, *, leader: int = 2) -> Any:
    """Tell n1 that n2 leads, as n2 would; returns the stream, which must stay."""
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    stream = client.channel.stream_unary(
        "/kvorumpb.v1.Raft/Stream",
        request_serializer=raft_pb2.PeerMessage.SerializeToString,
        response_deserializer=raft_pb2.PeerStreamClosed.FromString,
    )()
    hello = raft_pb2.PeerHello(
        cluster_id=status.cluster_id, sender=leader, recipient=1, directory_id=f"d{leader}"
    )
    heartbeat = raft_pb2.RaftMessage(
        group=1, sender=leader, recipient=1, term=leader + 7, heartbeat=raft_pb2.Heartbeat()
    )
    await stream.write(raft_pb2.PeerMessage(hello=hello, messages=[heartbeat]))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while status.leader != f"n{leader}":
            await asyncio.sleep(0.01)
            status = await client.cluster(cluster_pb2.GetStatusRequest())
    return stream


@asynccontextmanager
async def a_follower(tmp_path: Path) -> AsyncIterator[tuple[WireClient, ScriptedLeader]]:
    ports = free_ports(3)
    members = {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports, 1)}
    config = NodeConfig(
        name="n1",
        data_dir=tmp_path,
        listen=members["n1"],
        cluster=members,
        tick_ms=1000,
        election_timeout_ms=600_000,
    )
    leader = ScriptedLeader(ports[1])
    await leader.start()
    task = asyncio.create_task(serve(config))
    async with WireClient(config.listen) as client:
        await client.health()
        stream = await be_followed(client)
        yield client, leader
        stream.cancel()
    await leader.stop()
    task.cancel()
    await asyncio.wait([task])


@pytest_asyncio.fixture(loop_scope="session")
async def follower(tmp_path: Path) -> AsyncIterator[tuple[WireClient, ScriptedLeader]]:
    async with a_follower(tmp_path) as both:
        yield both


Follower = tuple[WireClient, ScriptedLeader]


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def fails_with(error: KvorumError) -> Script:
    async def script(request: Any, context: Any) -> Message:
        await abort(context, to_status(error))

    return script


async def test_the_leaders_answer_is_passed_back(follower: Follower) -> None:
    client, leader = follower

    async def script(request: Any, context: Any) -> Message:
        assert 0 < context.time_remaining() < 6  # what is left of the caller's time
        return kv_pb2.PutResponse(revision=len(request.value))

    leader.script = script
    answer = await client.kv(kv_pb2.PutRequest(key=b"k", value=b"value"), seconds=5)
    assert answer.revision == 5


async def test_who_makes_a_write_is_passed_on(follower: Follower) -> None:
    client, leader = follower
    requests = []

    async def script(request: Any, context: Any) -> Message:
        requests.append(request)
        if isinstance(request, kv_pb2.RegisterClientRequest):
            return kv_pb2.RegisterClientResponse()
        return kv_pb2.PutResponse()

    leader.script = script
    origin = kv_pb2.Origin(client_id=7, sequence=2, acknowledged=1)
    asked = [
        kv_pb2.RegisterClientRequest(client_id=7),
        kv_pb2.PutRequest(key=b"k", origin=origin),
    ]
    for request in asked:
        await client.kv(request)
    assert requests == asked


async def test_the_leaders_error_is_passed_back_with_its_details(follower: Follower) -> None:
    client, leader = follower
    leader.script = fails_with(LimitExceeded("too large", limit="MAX_KEY_BYTES", maximum=1))
    for request in (kv_pb2.PutRequest(key=b"k"), kv_pb2.GetRequest(key=b"k")):
        error = await failure(client.kv(request))
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "too large")
        info, _ = details(error)
        assert info.reason == "LIMIT_EXCEEDED"
        assert dict(info.metadata) == {"limit": "MAX_KEY_BYTES", "maximum": "1"}


async def test_a_call_is_passed_on_once(follower: Follower) -> None:
    """Or else two nodes that take each other for the leader would pass it on for ever."""
    client, leader = follower
    leader.script = fails_with(NotLeader("no", leader="n1", address=client.address))
    error = await failure(client.kv(kv_pb2.PutRequest(key=b"k")))
    assert details(error)[0].reason == "NOT_LEADER"
    assert leader.calls == 1
    [mark] = [key for key in leader.metadata if key.startswith("kvorum")]
    call: Any = client.channel.unary_unary(
        "/kvorumpb.v1.KV/Put", request_serializer=kv_pb2.PutRequest.SerializeToString
    )
    forwarded = await failure(call(kv_pb2.PutRequest(key=b"k"), metadata=((mark, "n2"),)))
    assert details(forwarded)[0].reason == "NOT_LEADER"
    assert leader.calls == 1


async def test_a_write_is_in_doubt_when_the_leader_vanishes(follower: Follower) -> None:
    """Not UNAVAILABLE, by which clients of all languages understand: try again."""
    client, leader = follower
    asking = asyncio.create_task(client.kv(kv_pb2.PutRequest(key=b"k")))
    await leader.asked.wait()
    await leader.stop()
    error = await failure(asking)
    assert error.code() is grpc.StatusCode.ABORTED
    assert details(error)[0].reason == "OUTCOME_UNKNOWN"


async def test_a_read_may_be_repeated_when_the_leader_vanishes(follower: Follower) -> None:
    client, leader = follower
    asking = asyncio.create_task(client.kv(kv_pb2.GetRequest(key=b"k")))
    await leader.asked.wait()
    await leader.stop()
    error = await failure(asking)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    info, retry = details(error)
    assert info.domain == "kvorum"
    assert retry is not None


async def test_a_caller_that_gives_up_ends_the_leaders_work(follower: Follower) -> None:
    client, leader = follower
    ended = asyncio.Event()

    async def script(request: Any, context: Any) -> Message:
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    leader.script = script
    asking = asyncio.create_task(client.kv(kv_pb2.PutRequest(key=b"k")))
    await leader.asked.wait()
    asking.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await ended.wait()


async def test_a_leader_that_joined_while_the_node_was_away_is_as_good_as_none(
    follower: Follower,
) -> None:
    """Until the log has told where it is."""
    client, _ = follower
    stream = await be_followed(client, leader=9)
    error = await failure(client.kv(kv_pb2.PutRequest(key=b"k")))
    assert details(error)[0].reason == "NO_LEADER"
    session = client.session()
    await session.write(kv_pb2.SessionRequest())
    leadership = (await session.read()).leadership
    assert (leadership.term, leadership.leader, leadership.address) == (16, "", "")
    session.cancel()
    stream.cancel()
