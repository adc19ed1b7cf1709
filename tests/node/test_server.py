"""One server over its real port: unary calls, health, reflection, errors, its end."""

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

import kvorum
from kvorum import limits
from kvorum.cli.processes import free_ports
from kvorum.errors import DataDirectoryInUse, DataDirectoryMismatch
from kvorum_node import logs, server
from kvorum_node.server import AddressInUse, serve
from kvorum_node.survivor import force_new_cluster
from kvorumpb.v1 import cluster_pb2, kv_pb2, raft_pb2
from kvorumpb.v1.command_pb2 import Operation, PutOperation, Transaction
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.served import config_at, failure, put_call, serving, told, until_serving
from tests.support.wire_client import NOT_SERVING, SERVING, WireClient, details

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def client(tmp_path: Path) -> AsyncIterator[WireClient]:
    async with serving(config_at(tmp_path / "n1", free_ports(1)[0])) as (client, _):
        yield client


# Unary calls.


async def test_unary_calls(client: WireClient) -> None:
    put = await client.kv(kv_pb2.PutRequest(key=b"a", value=b"1"))
    assert put.revision == 1
    transaction = Transaction(operations=[Operation(put=PutOperation(key=b"b", value=b"2"))])
    txn = await client.kv(kv_pb2.TxnRequest(transaction=transaction))
    assert txn.result.succeeded
    got = await client.kv(kv_pb2.GetRequest(key=b"a"))
    assert (got.record.key, got.record.value, got.revision) == (b"a", b"1", 2)
    listed = await client.kv(kv_pb2.ListRequest())
    assert [record.key for record in listed.records] == [b"a", b"b"]
    deleted = await client.kv(kv_pb2.DeleteRequest(key=b"a"))
    assert deleted.deleted
    assert not (await client.kv(kv_pb2.GetRequest(key=b"a"))).HasField("record")


async def test_a_unary_write_with_an_origin_is_applied_once(client: WireClient) -> None:
    origin = kv_pb2.Origin(client_id=7, sequence=1)
    put = kv_pb2.PutRequest(key=b"once", value=b"1", origin=origin)
    error = await failure(client.kv(put))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(error)[0].reason == "CLIENT_FORGOTTEN"
    await client.kv(kv_pb2.RegisterClientRequest(client_id=7))
    first = await client.kv(put)
    assert await client.kv(put) == first
    origin.sequence, origin.acknowledged = 2, 1
    await client.kv(kv_pb2.PutRequest(key=b"once", origin=origin))
    error = await failure(client.kv(put))
    assert details(error)[0].reason == "RESULT_FORGOTTEN"


async def test_compaction_and_what_the_status_says_of_it(client: WireClient) -> None:
    for value in (b"1", b"2", b"3"):
        await client.kv(kv_pb2.PutRequest(key=b"a", value=value))
    compacted = await client.cluster(cluster_pb2.CompactRequest(revision=2))
    assert compacted.oldest_revision == 2
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    assert (status.oldest_revision, status.revision) == (2, 3)
    assert abs(status.log_time_ms - time.time() * 1000) < 60_000
    assert (status.quota_bytes, len(status.alarms)) == (0, 0)
    for revision, reason in ((0, "INVALID_ARGUMENT"), (4, "FUTURE_REVISION")):
        error = await failure(client.cluster(cluster_pb2.CompactRequest(revision=revision)))
        assert details(error)[0].reason == reason


async def test_an_error_brings_its_reason_and_metadata(client: WireClient) -> None:
    key = b"k" * (limits.MAX_KEY_BYTES + 1)
    error = await failure(client.kv(kv_pb2.PutRequest(key=key)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, retry = details(error)
    assert (info.domain, info.reason) == ("kvorum", "LIMIT_EXCEEDED")
    assert dict(info.metadata) == {
        "limit": "MAX_KEY_BYTES",
        "maximum": str(limits.MAX_KEY_BYTES),
        "actual": str(limits.MAX_KEY_BYTES + 1),
    }
    assert retry is None


async def test_a_retryable_error_says_how_long_to_wait(tmp_path: Path) -> None:
    """One of three members alone: it has no leader, and says so."""
    ports = free_ports(3)
    members = {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports, 1)}
    async with serving(config_at(tmp_path / "n1", ports[0], cluster=members)) as (client, _):
        for call in (
            client.kv(kv_pb2.PutRequest(key=b"k")),
            client.kv(kv_pb2.GetRequest(key=b"k")),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            info, retry = details(error)
            assert info.reason == "NO_LEADER"
            assert retry is not None
            assert retry.retry_delay.ToMilliseconds() > 0
        status = await client.cluster(cluster_pb2.GetStatusRequest())
        assert status.leader == ""
        assert [member.name for member in status.members] == ["n1", "n2", "n3"]
        refused = await failure(client.cluster(cluster_pb2.TransferLeadershipRequest()))
        assert details(refused)[0].reason == "NO_LEADER"


async def test_a_single_node_cannot_hand_over(client: WireClient) -> None:
    for target, message in (("", "only voter"), ("n2", "not another voter"), ("x", "no node name")):
        request = cluster_pb2.TransferLeadershipRequest(target=target)
        error = await failure(client.cluster(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert message in (error.details() or "")


async def test_status_and_content_hash(client: WireClient) -> None:
    empty = await client.cluster(cluster_pb2.GetContentHashRequest())
    await client.kv(kv_pb2.PutRequest(key=b"a", value=b"1"))
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    assert (status.name, status.leader, status.role) == ("n1", "n1", cluster_pb2.LEADER)
    assert status.term == 1
    assert status.revision == 1
    assert status.last_index == status.commit_index == status.applied_index == 2
    [member] = status.members
    assert (member.name, member.address) == ("n1", client.address)
    assert member.match_index == 2
    assert member.active
    content = await client.cluster(cluster_pb2.GetContentHashRequest())
    assert (content.revision, content.record_count, len(content.hash)) == (1, 1, 32)
    assert content.hash != empty.hash
    assert content.applied_index == 2
    for request in (
        cluster_pb2.GetStatusRequest(namespace="other"),
        cluster_pb2.GetContentHashRequest(namespace="other"),
        cluster_pb2.VerifyRequest(namespace="other"),
        cluster_pb2.GetVerificationRequest(namespace="other"),
    ):
        error = await failure(client.cluster(request))
        assert details(error)[0].reason == "NAMESPACE_NOT_FOUND"


async def test_a_single_node_verifies_itself(client: WireClient) -> None:
    await client.kv(kv_pb2.PutRequest(key=b"a", value=b"1"))
    found = await client.cluster(cluster_pb2.VerifyRequest())
    assert (found.index, found.revision, found.record_count) == (3, 1, 1)
    [member] = found.members
    assert (member.name, member.verdict) == ("n1", cluster_pb2.VerifyResponse.MemberHash.SAME)
    content = await client.cluster(cluster_pb2.GetContentHashRequest())
    assert (content.applied_index, content.hash) == (3, found.hash)
    answer = await client.cluster(cluster_pb2.GetVerificationRequest(index=3))
    assert (answer.done, answer.hash) == (True, found.hash)


# Health, reflection, peers.


async def test_health_knows_every_service(client: WireClient) -> None:
    for service in ("", "kvorumpb.v1.KV", "kvorumpb.v1.Cluster", "kvorumpb.v1.Raft"):
        await until_serving(client, service)
    error = await failure(client.health("nothing"))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(client: WireClient) -> None:
    stream = client.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )(iter([ServerReflectionRequest(list_services="")]))
    async for response in stream:
        assert {service.name for service in response.list_services_response.service} == {
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "kvorumpb.v1.Cluster",
            "kvorumpb.v1.KV",
            "kvorumpb.v1.Raft",
            "kvorumpb.v1.Watch",
        }


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"cluster_id": "another"}, "n1 is of the cluster"),
        ({"recipient": 2}, "this is n1, the caller wants n2"),
        ({"directory_id": ""}, "n1 does not name its data directory"),
        (None, "n1 is of the cluster"),
    ],
)
async def test_a_peer_that_does_not_belong_here_is_refused(
    client: WireClient, wrong: dict[str, Any] | None, expected: str
) -> None:
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    hello = {"cluster_id": status.cluster_id, "sender": 1, "recipient": 1, "directory_id": "d"}
    error = await introduce(client, None if wrong is None else hello | wrong)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert expected in (error.details() or "")
    after = await client.cluster(cluster_pb2.GetStatusRequest())
    assert after.term == status.term  # it was not listened to


async def test_a_peer_that_was_removed_is_told_so(tmp_path: Path) -> None:
    one, three = (f"127.0.0.1:{port}" for port in free_ports(2))
    config = config_at(tmp_path / "n1", int(one[10:]), cluster={"n1": one, "n3": three})
    async with serving(config) as (client, _):
        status = await client.cluster(cluster_pb2.GetStatusRequest())
        hello = {"cluster_id": status.cluster_id, "sender": 2, "recipient": 1, "directory_id": "d"}
        error = await introduce(client, hello)
        assert details(error)[0].reason == "REMOVED_FROM_CLUSTER"
        assert "n2 was removed from the cluster" in (error.details() or "")


async def introduce(client: WireClient, hello: dict[str, Any] | None) -> grpc.aio.AioRpcError:
    """What a peer hears that says this, and then wants to be followed."""
    heartbeat = raft_pb2.RaftMessage(
        group=1, sender=1, recipient=1, term=99, heartbeat=raft_pb2.Heartbeat()
    )
    message = raft_pb2.PeerMessage(messages=[heartbeat])
    if hello is not None:
        message.hello.CopyFrom(raft_pb2.PeerHello(**hello))
    stream = client.channel.stream_unary(
        "/kvorumpb.v1.Raft/Stream",
        request_serializer=raft_pb2.PeerMessage.SerializeToString,
        response_deserializer=raft_pb2.PeerStreamClosed.FromString,
    )
    return await failure(stream(iter([message]), timeout=10))


# Members.


async def test_members_are_added_and_removed_over_the_wire(client: WireClient) -> None:
    added = await client.cluster(cluster_pb2.AddMemberRequest(address="127.0.0.1:1", learner=True))
    assert added.name == "n2"
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    first, second = status.members
    assert (first.kind, first.joining) == (cluster_pb2.Member.VOTER, False)
    assert (second.name, second.kind, second.joining) == ("n2", cluster_pb2.Member.LEARNER, False)
    joining = await client.cluster(cluster_pb2.AddMemberRequest(address="127.0.0.1:2", name="n7"))
    assert joining.name == "n7"
    await client.cluster(cluster_pb2.RemoveMemberRequest(name="n2"))
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    assert [(member.name, member.joining) for member in status.members] == [
        ("n1", False),
        ("n7", True),
    ]
    last = await client.cluster(cluster_pb2.AddMemberRequest(address="127.0.0.1:3"))
    assert last.name == "n8"


@pytest.mark.parametrize(
    ("request_", "reason", "message"),
    [
        (
            cluster_pb2.AddMemberRequest(address="nonsense"),
            "INVALID_ARGUMENT",
            "'nonsense' is no address",
        ),
        (
            cluster_pb2.AddMemberRequest(address="h:1", name="bob"),
            "INVALID_ARGUMENT",
            "'bob' is no node name",
        ),
        (
            cluster_pb2.AddMemberRequest(address="h:1", name="n1"),
            "MEMBERSHIP_CHANGE_REFUSED",
            "n1 is a member already",
        ),
        (
            cluster_pb2.AddMemberRequest(address="h:1", namespace="other"),
            "NAMESPACE_NOT_FOUND",
            "other",
        ),
        (
            cluster_pb2.PromoteMemberRequest(name="n9"),
            "MEMBERSHIP_CHANGE_REFUSED",
            "n9 is no member",
        ),
        (
            cluster_pb2.AddMemberRequest(address="0.0.0.0:1"),
            "INVALID_ARGUMENT",
            "'0.0.0.0:1' is an address to listen on, at which nobody else can reach the node",
        ),
        (cluster_pb2.PromoteMemberRequest(name=""), "INVALID_ARGUMENT", "'' is no node name"),
        (
            cluster_pb2.RemoveMemberRequest(name="n9"),
            "MEMBERSHIP_CHANGE_REFUSED",
            "n9 is no member",
        ),
        (
            cluster_pb2.RemoveMemberRequest(name="n1"),
            "MEMBERSHIP_CHANGE_REFUSED",
            "no voter would be left",
        ),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    client: WireClient, request_: Any, reason: str, message: str
) -> None:
    error = await failure(client.cluster(request_))
    assert details(error)[0].reason == reason
    assert message in (error.details() or "")
    status = await client.cluster(cluster_pb2.GetStatusRequest())
    assert [member.name for member in status.members] == ["n1"]


@pytest.mark.parametrize("force", [False, True])
async def test_a_learner_that_was_never_started_is_not_promoted(
    client: WireClient, force: bool
) -> None:
    """It would be needed for every decision, and could not be started any more."""
    await client.cluster(cluster_pb2.AddMemberRequest(address="127.0.0.1:1", learner=True))
    promote = cluster_pb2.PromoteMemberRequest(name="n2", force=force)
    error = await failure(client.cluster(promote))
    info, _ = details(error)
    assert info.reason == "MEMBERSHIP_CHANGE_REFUSED"
    assert info.metadata["endangers_quorum"] == "false"
    assert "n2 has not taken anything of the log yet: start it first" in (error.details() or "")


# Beginning and end.


async def test_sigterm_says_so_to_health_finishes_and_leaves_everything_on_the_disk(
    tmp_path: Path,
) -> None:
    config = config_at(tmp_path / "n1", free_ports(1)[0])
    async with serving(config) as (client, task):
        watch = client.watch_health("kvorumpb.v1.KV")
        await told(watch, SERVING)
        session = client.session()
        await session.write(kv_pb2.SessionRequest(calls=[put_call(n) for n in range(500)]))
        acknowledged: list[int] = []
        while not acknowledged:
            response = await session.read()
            acknowledged += [reply.id for reply in response.replies]
        await eventually(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        await told(watch, NOT_SERVING)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await task
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    async with serving(config) as (client, _):
        for number in acknowledged:
            got = await client.kv(kv_pb2.GetRequest(key=b"%d" % number))
            assert got.HasField("record")


async def test_a_full_collection_passes_over_what_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(server, "_run_loop", lambda _: frozen.append(gc.get_freeze_count()))
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    try:
        assert server.run(config_at(tmp_path / "n1", free_ports(1)[0])) == 0
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000


async def test_a_taken_port_is_said_and_the_data_directory_is_released(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = config_at(tmp_path / "n1", taken.getsockname()[1])
        with pytest.raises(AddressInUse, match=f"cannot listen on {config.listen}"):
            await serve(config)
    async with serving(config) as (client, _):
        await client.kv(kv_pb2.PutRequest(key=b"k"))


async def test_the_data_directory_knows_the_cluster_from_the_first_start_on(
    tmp_path: Path,
) -> None:
    config = config_at(tmp_path / "n1", free_ports(1)[0])
    async with serving(config) as (client, _):
        await client.kv(kv_pb2.PutRequest(key=b"k"))
        first = await client.cluster(cluster_pb2.GetStatusRequest())
    for join in ([], ["127.0.0.1:1"]):
        again = config_at(config.data_dir, int(config.listen[10:]), cluster={}, join=join)
        async with serving(again) as (client, _):
            status = await client.cluster(cluster_pb2.GetStatusRequest())
            assert (status.cluster_id, status.members[0].address) == (
                first.cluster_id,
                config.listen,
            )
            assert (await client.kv(kv_pb2.GetRequest(key=b"k"))).HasField("record")


@pytest.mark.parametrize("told", ["advertise", "nothing"])
async def test_settings_with_another_address_than_the_members_know_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: str
) -> None:
    config = config_at(tmp_path / "n1", free_ports(1)[0])
    async with serving(config):
        pass
    settings: dict[str, Any] = {"advertise": "elsewhere:1"} if told == "advertise" else {}
    again = config_at(config.data_dir, int(config.listen[10:]), cluster={}, **settings)
    with caplog.at_level("WARNING"):
        async with serving(again):
            pass
    warnings = [line for line in caplog.messages if "look for it at" in line]
    assert bool(warnings) == (told == "advertise")
    assert all(
        f"elsewhere:1 by its settings, but the others look for it at {config.listen}" in line
        for line in warnings
    )


async def test_an_embedded_store_becomes_a_cluster_once_it_has_an_address(tmp_path: Path) -> None:
    async with kvorum.open(tmp_path / "n1") as kv:
        await kv.put("k", "v")
    config = config_at(tmp_path / "n1", free_ports(1)[0], cluster={})
    with pytest.raises(DataDirectoryMismatch, match=r"`kvorum recover --data-dir .*/n1 --force"):
        await serve(config)
    force_new_cluster(config.data_dir, address=config.listen)
    async with serving(config) as (client, _):
        got = await client.kv(kv_pb2.GetRequest(key=b"k"))
        assert got.record.value == b'"v"'


async def test_two_servers_do_not_share_a_data_directory(tmp_path: Path) -> None:
    one, two = (config_at(tmp_path / "n1", port) for port in free_ports(2))
    async with serving(one):
        with pytest.raises(DataDirectoryInUse, match=f"pid {os.getpid()}"):
            await serve(two)
