"""The admin port over real HTTP: beside a node that starts, serves, ends, or is stuck."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvorum.cli.processes import free_ports
from kvorum_node import admin_port, joining, probes, server
from kvorum_node.admin_port import MAX_CONNECTIONS, MAX_HEADER_BYTES, AdminPort
from kvorum_node.config import NodeConfig
from kvorum_node.node import Node
from kvorum_node.probes import Probes
from kvorum_node.server import AddressInUse, serve
from kvorum_node.storage.data_directory import Storage
from kvorumpb.v1 import kv_pb2
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.plain_http import ask, ask_now, connect, exchange, until
from tests.support.scripted_disk import ScriptedDisk
from tests.support.served import config_at, serving, told, until_serving
from tests.support.wire_client import NOT_SERVING, SERVING, WireClient


def with_admin_port(directory: Path, **changes: Any) -> NodeConfig:
    port, admin = free_ports(2)
    return config_at(directory, port, admin_listen=f"127.0.0.1:{admin}", **changes)


@asynccontextmanager
async def started(config: NodeConfig) -> AsyncIterator["asyncio.Task[None]"]:
    """A server that need not come as far as to serve."""
    task = asyncio.create_task(serve(config))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def port() -> AsyncIterator[str]:
    """An admin port whose node is starting."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    opened = AdminPort(address, Probes("n1"))
    yield address
    await asyncio.to_thread(opened.close)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> ScriptedDisk:
    """The disk of the log of whatever node is opened."""
    scripted = ScriptedDisk()
    open_storage = Storage.open

    def opened(*arguments: Any, **settings: Any) -> Storage:
        storage = open_storage(*arguments, **settings)
        scripted.engine = storage.log
        return replace(storage, log=scripted)

    monkeypatch.setattr(Storage, "open", opened)
    return scripted


# A node's life.


async def test_a_node_that_serves_is_alive_ready_and_measured(tmp_path: Path) -> None:
    config = with_admin_port(tmp_path / "n1")
    async with serving(config):
        assert (await until(config.admin_listen, "/readyz", 200)).body == "ok\n"
        assert (await ask(config.admin_listen, "/livez")).body == "ok\n"
        metrics = await ask(config.admin_listen, "/metrics")
        assert metrics.status == 200
        assert "# TYPE kvorum_" in metrics.body
        assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    with pytest.raises(OSError, match="refused"):
        await ask(config.admin_listen, "/livez")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets data directories be opened, for which every start waits."""
    go = threading.Event()
    open_storage = Storage.open

    def opened(*arguments: Any, **settings: Any) -> Storage:
        assert go.wait(30)
        return open_storage(*arguments, **settings)

    monkeypatch.setattr(Storage, "open", opened)
    return go.set


async def test_it_answers_while_the_data_directory_is_opened(
    tmp_path: Path, held: Callable[[], None]
) -> None:
    config = with_admin_port(tmp_path / "n1")
    async with started(config):
        starting = await until(config.admin_listen, "/readyz", 503, "it opens")
        assert starting.lines == [f"n1 is starting: it opens {tmp_path / 'n1'}"]
        assert (await ask(config.admin_listen, "/livez")).status == 200
        metrics = await ask(config.admin_listen, "/metrics")
        assert metrics.status == 200
        assert "process_start_time_seconds" in metrics.body
        assert "kvorum_" not in metrics.body  # by which an alert knows that it has no node
        held()
        await until(config.admin_listen, "/readyz", 200)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_all_addresses_are_those_of_both_families(tmp_path: Path) -> None:
    """As pods have them, or as gRPC understands `[::]`."""
    [port] = free_ports(1)
    async with serving(config_at(tmp_path / "n1", free_ports(1)[0], admin_listen=f"[::]:{port}")):
        assert (await ask(f"127.0.0.1:{port}", "/livez")).status == 200
        assert (await ask(f"[::1]:{port}", "/livez")).status == 200


async def test_sigterm_while_the_data_directory_is_opened_ends_the_process_at_once(
    tmp_path: Path, held: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(server, "end_now", statuses.append)
    config = with_admin_port(tmp_path / "n1")
    async with started(config) as task:
        await until(config.admin_listen, "/readyz", 503, "it opens")
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await task
    assert statuses == [0]
    held()  # and what is opened all the same is closed again
    await eventually(lambda: "kvorum-opening" not in {one.name for one in threading.enumerate()})
    async with serving(config):
        pass


async def test_sigterm_while_it_waits_for_its_cluster_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, cancelled = asyncio.Event(), asyncio.Event()

    async def asks_for_ever(_: NodeConfig) -> str:
        asking.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    monkeypatch.setattr(joining, "_ask", asks_for_ever)
    config = with_admin_port(tmp_path / "n1", cluster={}, join=["127.0.0.1:1"])
    async with started(config) as task:
        await asyncio.wait_for(asking.wait(), 10)
        await until(config.admin_listen, "/readyz", 503, "n1 is starting: ")
        assert (await ask(config.admin_listen, "/livez")).status == 200
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await task
    assert cancelled.is_set()
    assert not (tmp_path / "n1").exists()


async def test_it_is_not_ready_from_sigterm_on_and_answers_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, go = asyncio.Event(), asyncio.Event()

    async def leave(_: Node) -> None:
        leaving.set()
        await go.wait()

    monkeypatch.setattr(server, "_leave", leave)
    config = with_admin_port(tmp_path / "n1")
    async with serving(config) as (client, task):
        await until(config.admin_listen, "/readyz", 200)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(leaving.wait(), 10)
        draining = await ask(config.admin_listen, "/readyz")
        assert (draining.status, draining.body) == (503, "n1 is shutting down\n")
        assert (await ask(config.admin_listen, "/livez")).status == 200
        for service in ("", "kvorumpb.v1.KV", "kvorumpb.v1.Raft"):
            assert await client.health(service) == NOT_SERVING
        go.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await task
    with pytest.raises(OSError, match="refused"):
        await ask(config.admin_listen, "/livez")


async def test_a_taken_admin_port_is_said_before_anything_is_touched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = config_at(tmp_path / "n1", free_ports(1)[0], admin_listen=address)
        with pytest.raises(AddressInUse, match=f"cannot listen on {address}: the port is taken"):
            await serve(config)
    assert not (tmp_path / "n1").exists()
    unknown = config.model_copy(update={"admin_listen": "no-such-host.invalid:7180"})
    with pytest.raises(AddressInUse, match="no-such-host"):
        await serve(unknown)


# Stuck.


async def test_a_blocked_event_loop_is_told_by_other_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "SILENT_SECONDS", 1.5)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    probed = Probes("n1", stuck_seconds=2.0)
    port = AdminPort(address, probed)
    looking = asyncio.create_task(probed.run())
    heard: list[int] = []
    condemned = threading.Event()

    def watch() -> None:
        while len(heard) < 100_000 and 503 not in heard:
            heard.append(ask_now(address, "/livez").status)
        unready = ask_now(address, "/readyz")
        assert unready.lines[0] == "n1 is starting"
        assert unready.lines[1].startswith("the event loop has not come on for ")
        assert ask_now(address, "/metrics").status == 503
        condemned.set()

    watching = asyncio.create_task(asyncio.to_thread(watch))
    await asyncio.sleep(0)
    condemned.wait(60)  # blocks the event loop
    await watching
    assert set(heard) == {200, 503}
    await until(address, "/livez", 200)
    looking.cancel()
    await asyncio.to_thread(port.close)


async def test_a_disk_that_hangs_is_told_over_http(
    tmp_path: Path, disk: ScriptedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(
        server, "Probes", lambda name, **settings: Probes(name, **settings, stuck_seconds=0.5)
    )
    config = with_admin_port(tmp_path / "n1")
    async with serving(config) as (client, _):
        await until(config.admin_listen, "/readyz", 200)
        disk.hold()
        writing = asyncio.create_task(client.kv(kv_pb2.PutRequest(key=b"k"), seconds=60))
        stuck = await until(config.admin_listen, "/livez", 503)
        assert "its disk hangs" in stuck.body
        disk.release()
        await writing
        await until(config.admin_listen, "/livez", 200)


async def test_a_process_that_cannot_end_is_ended(
    tmp_path: Path,
    disk: ScriptedDisk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("kvorum_node.termination.DRAIN_SECONDS", 0.3)
    monkeypatch.setattr("kvorum_node.termination.end_now", lambda status: ended.set())
    config = with_admin_port(tmp_path / "n1")
    async with serving(config) as (client, task):
        await until(config.admin_listen, "/readyz", 200)
        disk.hold()
        writing = asyncio.create_task(client.kv(kv_pb2.PutRequest(key=b"k"), seconds=60))
        await eventually(lambda: disk.syncs_begun > disk.syncs_done)
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(ended.is_set)
        disk.release()
        await asyncio.gather(writing, return_exceptions=True)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await task
    assert "n1 has not ended within" in caplog.text


# HTTP.


async def test_only_get_and_head_of_the_pages_are_answered(port: str) -> None:
    assert (await ask(port, "/livez")).body == "ok\n"
    head = await ask(port, "/livez", "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, "", "3")
    assert head.headers["Cache-Control"] == "no-store"
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"):
        refused = await ask(port, "/livez", method)
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    for path in ("/", "/livez/", "/metrics/../livez", "/LIVEZ", "/x?/livez"):
        assert (await ask(port, path)).status == 404
    assert (await ask(port, "/livez?verbose=1")).status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n", b"413"),
        (b"GET /livez HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"GET /livez HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
    ],
)
async def test_nonsense_is_refused_and_the_next_one_served(
    port: str, request_: bytes, status: bytes
) -> None:
    answer = await asyncio.to_thread(exchange, port, request_)
    assert status in answer.partition(b"\r\n")[0]
    assert (await ask(port, "/livez")).status == 200


async def test_two_hundred_connections_that_say_nothing_keep_no_probe_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_admin_port(tmp_path / "n1")
    async with serving(config) as (client, _):
        await until(config.admin_listen, "/readyz", 200)
        peers = await asyncio.to_thread(lambda: [connect(config.admin_listen) for _ in range(200)])
        try:
            for path in ("/livez", "/readyz", "/metrics"):
                assert (await ask(config.admin_listen, path)).status == 200
            await client.kv(kv_pb2.PutRequest(key=b"k"))
            await until_serving(client, "kvorumpb.v1.KV")
        finally:
            for peer in peers:
                peer.close()


async def test_more_connections_than_there_may_be_wait_for_those_to_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_port, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(admin_port, "CONNECTION_SECONDS", 1.0)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    opened = AdminPort(address, Probes("n1"))
    peers = [connect(address) for _ in range(20)]
    try:
        assert (await ask(address, "/livez")).status == 200
    finally:
        for peer in peers:
            peer.close()
        await asyncio.to_thread(opened.close)
    assert MAX_CONNECTIONS >= 256


async def test_a_client_that_sends_a_byte_now_and_then_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin_port, "CONNECTION_SECONDS", 1.0)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    opened = AdminPort(address, Probes("n1"))

    def drip() -> int:
        sent = 0
        with connect(address) as peer:
            try:
                while sent < 600:  # a minute
                    peer.sendall(b"G")
                    sent += 1
                    peer.settimeout(0.1)
                    try:
                        if not peer.recv(1000):
                            return sent
                    except TimeoutError:
                        pass
            except OSError:
                return sent
        return sent

    assert await asyncio.to_thread(drip) < 600
    await asyncio.to_thread(opened.close)


async def test_metrics_that_wait_leave_threads_for_the_probes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = Probes("n1")
    release = threading.Event()
    waiting: list[int] = []

    def metrics() -> bytes:
        waiting.append(1)
        release.wait(30)
        return b"metrics"

    monkeypatch.setattr(probed, "metrics", metrics)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    opened = AdminPort(address, probed)
    asking = [asyncio.create_task(ask(address, "/metrics")) for _ in range(2)]
    await eventually(lambda: len(waiting) == 2)
    third = await ask(address, "/metrics")
    assert (third.status, third.body) == (503, "2 others wait for the metrics already\n")
    assert (await ask(address, "/livez")).status == 200
    release.set()
    assert [one.body for one in await asyncio.gather(*asking)] == ["metrics", "metrics"]
    await asyncio.to_thread(opened.close)


async def test_what_clients_do_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probed = Probes("n1")
    release = threading.Event()

    def why_not_alive() -> list[str]:
        release.wait(30)
        return []

    monkeypatch.setattr(probed, "why_not_alive", why_not_alive)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    opened = AdminPort(address, probed)
    with caplog.at_level(logging.DEBUG):
        await asyncio.to_thread(exchange, address, b"GET\r\n\r\n")
        peers = [connect(address) for _ in range(10)]  # more than there are threads
        for peer in peers:
            peer.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        for peer in peers[:5]:
            peer.close()
        release.set()
        assert (await ask(address, "/livez")).status == 200
        for peer in peers[5:]:
            peer.close()
    await asyncio.to_thread(opened.close)
    assert [one for one in caplog.records if one.name.startswith("waitress")] == []


# gRPC's health service says the same.


async def test_health_follows_readiness_and_tells_all_who_watch(tmp_path: Path) -> None:
    one, two, three = (f"127.0.0.1:{port}" for port in free_ports(3))
    members = {"n1": one, "n2": two, "n3": three}
    configs = [
        config_at(tmp_path / name, int(address[10:]), name=name, cluster=members)
        for name, address in members.items()
    ]
    async with serving(configs[0]) as (client, _), WireClient(configs[0].listen) as leaver:
        watches = [client.watch_health("kvorumpb.v1.KV") for _ in range(2)]
        for watch in (*watches, client.watch_health("")):
            assert (await watch.read()).status == NOT_SERVING
        for service in ("kvorumpb.v1.Cluster", "kvorumpb.v1.Raft"):
            assert await client.health(service) == SERVING
        gone = leaver.watch_health("kvorumpb.v1.KV")
        await gone.read()
        gone.cancel()
        async with serving(configs[1]):
            for watch in watches:
                await told(watch, SERVING)
        for watch in watches:
            await told(watch, NOT_SERVING)
        assert await client.health("kvorumpb.v1.Watch") == NOT_SERVING


async def test_a_service_that_there_is_not_is_unknown(tmp_path: Path) -> None:
    async with serving(config_at(tmp_path / "n1", free_ports(1)[0])) as (client, _):
        assert (await client.watch_health("nothing").read()).status == 3


# Peers on a port of their own.


async def test_with_a_peer_port_peers_and_clients_are_served_apart(tmp_path: Path) -> None:
    port, peer_port = free_ports(2)
    config = config_at(tmp_path / "n1", port, peer_port=peer_port)
    async with serving(config) as (client, _), WireClient(f"127.0.0.1:{peer_port}") as peer:
        assert await services(client, peer) == ("FAILED_PRECONDITION", "UNIMPLEMENTED")
        assert await refusal(client.health("kvorumpb.v1.Raft")) == "NOT_FOUND"
        await client.kv(kv_pb2.PutRequest(key=b"k"))
        assert await refusal(peer.kv(kv_pb2.PutRequest(key=b"k"))) == "UNIMPLEMENTED"


async def test_a_taken_peer_port_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        peer_port = taken.getsockname()[1]
        config = config_at(tmp_path / "n1", free_ports(1)[0], peer_port=peer_port)
        with pytest.raises(AddressInUse, match=f"cannot listen on 127.0.0.1:{peer_port}"):
            await serve(config)


async def services(client: WireClient, peer: WireClient) -> tuple[str, str]:
    """How the Raft service answers who does not introduce himself: where it is, where it is not."""
    return await introduction(peer), await introduction(client)


async def introduction(client: WireClient) -> str:
    stream = client.channel.stream_unary(
        "/kvorumpb.v1.Raft/Stream", request_serializer=bytes, response_deserializer=bytes
    )
    return await refusal(stream(iter([b""]), timeout=10))


async def refusal(call: Any) -> str:
    with pytest.raises(Exception, match="AioRpcError") as caught:
        await call
    return str(caught.value.code().name)  # type: ignore[attr-defined]  # of an AioRpcError
