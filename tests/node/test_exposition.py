"""The metrics of real nodes, read as Prometheus reads them, and the page that explains each."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvorum.cli.processes import free_ports
from kvorum_node.exposition import render
from kvorum_node.raft.types import NodeId
from kvorum_node.space import Bounds, Space
from kvorumpb.v1 import cluster_pb2, kv_pb2, watch_pb2
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.metrics import Reading, exposed_names
from tests.support.node_group import LOG_MAX_BYTES, Member, NodeGroup
from tests.support.served import config_at, failure, put_call, serving
from tests.support.wire_client import WireClient

# grpc.aio keeps one poller for the process: it does not outlive an event loop in good order.
pytestmark = pytest.mark.asyncio(loop_scope="session")

REVISIONS = 8
"""Of `use`: seven puts, and the end of one of them."""

PAGE = Path(__file__).parents[2] / "docs/operations/monitoring.md"


def reading(member: Member) -> Reading:
    return Reading(render(member.node))


def explained() -> dict[str, str]:
    """The metrics in the tables of the page, and their kinds."""
    return dict(re.findall(r"^\| `([a-z_]+)` \| (\w+) \|", PAGE.read_text(), re.M))


async def test_the_page_explains_each_metric_and_no_other() -> None:
    async with NodeGroup(1) as group:
        text = render((await group.leader()).node).decode()
    told = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(text)
    }
    assert explained() == told


async def test_the_queries_of_the_page_find_what_they_ask_for() -> None:
    async with NodeGroup(1) as group:
        names = exposed_names(render((await group.leader()).node).decode())
    queried = set(re.findall(r"\b(?:kvorum|process)_\w+", PAGE.read_text()))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert queried <= names | families
    assert "kvorum_disk_wal_fsync_duration_seconds_bucket" in queried


async def test_each_metric_says_what_it_is_once() -> None:
    async with NodeGroup(1) as group:
        text = render((await group.leader()).node).decode()
    helped = re.findall(r"^# HELP (\S+) (.*)$", text, re.M)
    typed = re.findall(r"^# TYPE (\S+) (counter|gauge|histogram)$", text, re.M)
    assert [name for name, _ in helped] == [name for name, _ in typed]
    assert len({name for name, _ in helped}) == len(helped)
    assert all(name.startswith(("kvorum_", "process_")) for name, _ in helped)
    wrong = [meaning for _, meaning in helped if not re.fullmatch(r"[A-Z0-9].*\.", meaning)]
    assert wrong == []


async def test_nothing_is_left_in_the_registry_of_the_process() -> None:
    before = prometheus_client.generate_latest()
    async with NodeGroup(1) as group:
        leader = await group.leader()
        await eventually(lambda: reading(leader)["kvorum_raft_applied_index"] == 1)
        await leader.put(b"k")
        assert reading(leader)["kvorum_raft_applied_index"] == 2
    assert b"kvorum" not in before
    assert b"kvorum" not in prometheus_client.generate_latest()


async def use(client: WireClient) -> list[Any]:
    """Eight writes and a read that succeed, one of each that does not, and a watch of all.

    Returns the streams, which are open as long as somebody has them.
    """
    session = client.session()
    calls = [*(put_call(number) for number in range(5)), kv_pb2.Call(id=9)]
    await session.write(kv_pb2.SessionRequest(calls=calls))
    answered = 0
    while answered < len(calls):
        answered += len((await session.read()).replies)
    await client.kv(kv_pb2.PutRequest(key=b"k", value=b"v"))
    await client.kv(kv_pb2.GetRequest(key=b"k"))
    await failure(client.kv(kv_pb2.GetRequest(key=b"k", revision=99)))
    await client.kv(kv_pb2.RegisterClientRequest(client_id=7))
    await client.kv(kv_pb2.PutRequest(key=b"brief", value=b"v", ttl_ms=1))
    watching = client.watch()
    begin = watch_pb2.BeginWatch(watch_id=1, prefix=b"", after_revision=0)
    await watching.write(watch_pb2.WatchRequest(begin=begin))
    told = 0
    while told < REVISIONS:
        told += sum(one.HasField("changes") for one in (await watching.read()).updates)
    return [session, watching]


async def test_a_server_tells_what_its_clients_did(tmp_path: Path) -> None:
    """Over the admin port, as Prometheus gets it."""
    port, admin = free_ports(2)
    config = config_at(tmp_path / "n1", port, admin_listen=f"127.0.0.1:{admin}")

    def read() -> Reading:
        with urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=DEADLINE_SECONDS) as answer:
            return Reading(answer.read())

    async with serving(config) as (client, _):
        before = await asyncio.to_thread(read)
        streams = await use(client)
        after = await asyncio.to_thread(read)
        assert len(streams) == 2
        status = await client.cluster(cluster_pb2.GetStatusRequest())

    def calls(kind: str, code: str) -> float:
        return after.of("kvorum_server_calls_total", kind=kind, code=code)

    assert before["kvorum_server_calls_total"] == 0
    assert (calls("write", "OK"), calls("write", "INVALID_ARGUMENT")) == (8, 1)
    assert (calls("read", "OK"), calls("read", "OUT_OF_RANGE")) == (1, 1)
    seconds = "kvorum_server_call_duration_seconds"
    assert after.of(f"{seconds}_count", kind="write") == 8
    assert after.of(f"{seconds}_bucket", kind="write", le="+Inf") == 8
    assert after.of(f"{seconds}_bucket", kind="write", le="13.1072") == 8
    assert after.of(f"{seconds}_count", kind="read") == 2
    handled = {
        (method, code): after.of(
            "kvorum_grpc_server_handled_total",
            grpc_service="kvorumpb.v1.KV",
            grpc_method=method,
            grpc_code=code,
        )
        for method, code in (("Put", "OK"), ("Get", "OK"), ("Get", "OUT_OF_RANGE"))
    }
    assert handled == {("Put", "OK"): 2, ("Get", "OK"): 1, ("Get", "OUT_OF_RANGE"): 1}
    started = after.of("kvorum_grpc_server_started_total", grpc_method="Session")
    assert started - after.of("kvorum_grpc_server_handled_total", grpc_method="Session") == 1
    assert after.of("kvorum_grpc_server_handling_seconds_count", grpc_method="Put") == 2

    syncs = "kvorum_disk_wal_fsync_duration_seconds"
    assert after[f"{syncs}_count"] > before[f"{syncs}_count"]
    assert after[f"{syncs}_sum"] > before[f"{syncs}_sum"]
    applied = "kvorum_disk_backend_commit_duration_seconds_count"
    assert after[applied] > before[applied]
    assert after["kvorum_server_proposal_commands_sum"] >= 8
    assert after["kvorum_server_records_expired_total"] == 1
    assert after["kvorum_server_clients"] == 1
    assert after["kvorum_debugging_mvcc_current_revision"] == REVISIONS
    assert after["kvorum_debugging_mvcc_watcher_total"] == 1
    assert after["kvorum_debugging_mvcc_watch_stream_total"] == 1
    assert after["kvorum_server_watches_caught_up_total"] == 1
    assert after["kvorum_server_watch_revisions_told_total"] == REVISIONS
    assert after["kvorum_debugging_state_rows_estimate"] > 8
    assert after["kvorum_disk_free_bytes"] > 0
    assert after["process_resident_memory_bytes"] > 0
    assert after["process_open_fds"] > 0
    check_activity(status, after)


def check_activity(status: cluster_pb2.GetStatusResponse, metrics: Reading) -> None:
    """The same, as GetStatus says it."""
    activity = status.activity
    assert (activity.reads, activity.writes, activity.failures) == (2, 9, 0)
    assert activity.changes_told == REVISIONS
    assert status.watches == 1
    assert activity.write_latency.count == 8
    assert 0 < sum(activity.write_latency.counts) <= 8
    assert len(activity.sync_latency.counts) == len(activity.sync_latency.bounds_seconds)
    assert activity.sync_latency.count >= metrics["kvorum_disk_wal_fsync_duration_seconds_count"]
    assert activity.apply_latency.sum_seconds > 0
    assert activity.uptime_ms > 0


async def test_three_nodes_know_one_leader_and_each_election() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        await leader.fill(40)
        await group.same()
        readings = {number: reading(member) for number, member in group.members.items()}
        assert [one["kvorum_server_has_leader"] for one in readings.values()] == [1, 1, 1]
        assert sum(one["kvorum_server_is_leader"] for one in readings.values()) == 1
        led = readings[leader.id]
        others = {f"n{number}" for number in group.members if number != leader.id}
        assert led.labels("kvorum_raft_match_index", "peer") == others
        assert led["kvorum_network_active_peers"] == 2
        assert led["kvorum_raft_voters"] == 3
        assert led["kvorum_server_proposals_pending"] == 0
        for one in readings.values():
            committed = one["kvorum_raft_commit_index"]
            assert one["kvorum_server_proposals_committed_total"] == committed
            assert one["kvorum_server_proposals_applied_total"] == committed
        assert led["kvorum_server_proposal_commands_sum"] == 40
        before = {
            number: one["kvorum_server_leader_changes_seen_total"]
            for number, one in readings.items()
        }
        successor = await leader.node.transfer_leadership(None)
        await eventually(
            lambda: all(
                reading(member)["kvorum_server_leader_changes_seen_total"] == before[number] + 1
                for number, member in group.members.items()
            )
        )
        assert reading(group[successor])["kvorum_server_is_leader"] == 1
        assert reading(leader)["kvorum_server_is_leader"] == 0
        assert reading(leader).labels("kvorum_network_active_peers", "peer") == set()


async def test_a_leader_without_a_majority_fails_what_it_has_proposed() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        for member in group.members.values():
            if member is not leader:
                await member.stop()
        write = asyncio.ensure_future(leader.put(b"k"))
        await eventually(lambda: reading(leader)["kvorum_server_proposals_pending"] == 1)
        assert reading(leader)["kvorum_server_proposals_failed_total"] == 0
        await asyncio.wait([write])
        assert write.exception() is not None
        assert reading(leader)["kvorum_server_proposals_failed_total"] == 1
        assert reading(leader)["kvorum_server_proposals_pending"] == 0
        assert reading(leader)["kvorum_server_has_leader"] == 0


async def test_a_member_that_was_removed_is_not_spoken_of_any_more() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        others = {f"n{number}" for number in group.members if number != leader.id}
        sent = "kvorum_network_peer_sent_bytes_total"
        assert reading(leader).labels(sent, "peer") == others
        gone = next(number for number in group.members if number != leader.id)
        await leader.node.remove_member(NodeId(gone))
        assert reading(leader).labels(sent, "peer") == others - {f"n{gone}"}


async def test_snapshots_are_counted_at_both_ends() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        away = next(one for one in group.members.values() if one is not leader)
        await away.stop()
        behind = leader.node.group.log.last_index()
        number = 0
        while leader.first_index <= behind:
            await leader.fill(200, LOG_MAX_BYTES // 400, first=number)
            number += 200
        await away.start(None)
        received = "kvorum_network_snapshot_receive_success_total"
        await eventually(lambda: reading(away)[received] == 1)
        await eventually(lambda: reading(leader)["kvorum_network_snapshot_send_success_total"] == 1)
        peer = f"n{leader.id}"
        assert (
            reading(away).of("kvorum_network_peer_received_bytes_total", peer=peer) > LOG_MAX_BYTES
        )
        await group.same()
        assert (
            reading(away)["kvorum_server_proposals_applied_total"]
            == away.applied - away.node.figures.applied_before
        )


async def test_alarms_and_refusals_are_told() -> None:
    async with NodeGroup(1) as group:
        leader = await group.leader()
        watchman, calls = leader.node.watchman, leader.node.admission.calls
        assert reading(leader)["kvorum_server_alarms"] == 0
        assert "kvorum_disk_free_bytes" in exposed_names(reading(leader).text)
        watchman.bounds = Bounds(quota_bytes=10)
        watchman._heed(Space(store_bytes=11, free_bytes=5))
        told = reading(leader)
        assert told.of("kvorum_server_alarms", kind="quota") == 1
        assert told.of("kvorum_server_alarms", kind="low_space") == 0
        assert told["kvorum_server_quota_backend_bytes"] == 10
        assert told["kvorum_mvcc_db_total_size_in_bytes"] == 11
        assert told["kvorum_disk_free_bytes"] == 5
        held = calls.take(calls.maximum_bytes)
        with pytest.raises(Exception, match="as many large calls"):
            calls.reserve(1)
        told = reading(leader)
        assert told.of("kvorum_server_admission_refusals_total", budget="calls") == 1
        assert told["kvorum_server_admission_reserved_bytes"] == calls.maximum_bytes
        held.release()


async def test_nodes_measure_the_way_to_each_other() -> None:
    async with NodeGroup(3) as group:
        leader = await group.leader()
        followers = [one for one in group.members.values() if one is not leader]
        peers, first = leader.node.figures.peers, followers[0].id
        await eventually(lambda: all(peers[one.id].round_trip.count for one in followers))
        await eventually(
            lambda: all(one.node.figures.peers[leader.id].round_trip.count for one in followers)
        )
        peer = peers[first]
        assert 0 < peer.round_trip.total < DEADLINE_SECONDS * peer.round_trip.count
        sent = peer.sent_bytes
        await leader.put(b"k", bytes(10_000))
        await eventually(lambda: peer.sent_bytes > sent + 10_000)
        assert peer.received_bytes > 0
        seen = followers[0].node.figures.peers[leader.id]
        await eventually(lambda: seen.received_bytes > 10_000)
        dropped = peer.sent_failures
        await followers[0].stop()
        await eventually(lambda: peer.sent_failures > dropped)
        count = "kvorum_network_peer_round_trip_time_seconds_count"
        assert reading(leader).of(count, peer=f"n{first}") > 0
