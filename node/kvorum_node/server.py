"""The server process: one node behind one gRPC port, from its first line to its last.

    start      find out which cluster this is, at the first start from the settings, then
               from the data directory; open that, bind the port, take part
    SIGTERM    say so to the health service, hand leadership over, let the calls under
               way finish, flush, close; a second signal skips the courtesies
    failure    a disk that cannot be trusted ends the process with a message, status 1

One process serves one node on one event loop: a fork after start is not supported.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable
from importlib import import_module

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvorum import limits
from kvorum.errors import DataDirectoryMismatch, KvorumError
from kvorum_node import logs
from kvorum_node.config import NodeConfig
from kvorum_node.joining import first_identity
from kvorum_node.node import Node, Timing
from kvorum_node.raft.leader import Leader
from kvorum_node.services import cluster, kv, peers, watch
from kvorum_node.space import Bounds
from kvorum_node.storage.data_directory import Identity, Storage, stored_identity
from kvorumpb.v1 import (  # noqa: F401 - reflection describes them
    cluster_pb2,
    kv_pb2,
    raft_pb2,
    watch_pb2,
)

GRACE_SECONDS = 2.0
"""How long calls under way may take to finish at a shutdown."""

_SERVICES = (kv.SERVICE, watch.SERVICE, cluster.SERVICE, peers.SERVICE)

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a rival
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),  # as in kvorum/channels.py
    ("grpc.http2.lookahead_bytes", 4 * limits.MIB),
    ("grpc.keepalive_permit_without_calls", 1),
    # Those who ping an idle stream more often are disconnected, with "too many pings" in their
    # logs. The default of 5 minutes would hit our own clients, who ping every 10 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
]

logger = logging.getLogger("kvorum.node")


def run(config: NodeConfig) -> int:
    """Serve until a signal or a failure; returns the process's exit status."""
    logs.configure(level=config.log_level, json=config.log_format == "json")
    try:
        _run_loop(config)
    except KvorumError as error:
        logger.critical("%s stops: %s", config.name, error)
        return 1
    return 0


def _run_loop(config: NodeConfig) -> None:
    """Run `serve` on uvloop where there is one: the loop is on the way of every message."""
    try:
        uvloop = import_module("uvloop")
    except ModuleNotFoundError:
        asyncio.run(serve(config))
    else:
        uvloop.run(serve(config))


async def serve(config: NodeConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StorageError: the data directory cannot be used, or the disk failed.
        DataDirectoryMismatch: it is of another node, or was embedded in a program.
        StateCorrupt: the majority holds something else than this node, now or before.
        AddressInUse: the port is taken.
        CannotJoin: the data directory is new, and no cluster takes the node.
        RemovedFromCluster: the cluster has removed the node.
    """
    found = stored_identity(config.data_dir)
    if found is None:
        identity = await first_identity(config)
    else:
        identity = Identity(found.cluster_id, config.node_id)
    storage = Storage.open(config.data_dir, identity, fsync=config.fsync)
    try:
        node = Node(
            storage,
            config.addresses or None,
            timing=Timing(config.tick_ms / 1000, config.election_timeout_ms / 1000),
            log_max_bytes=config.log_max_bytes,
            log_max_entries=config.log_max_entries,
            verify_interval_seconds=config.verify_interval_seconds,
            history_seconds=config.history_seconds,
            bounds=Bounds(config.quota_bytes, config.min_free_bytes),
        )
        _refuse_embedded(node, config)
        _warn_of_another_address(node, config)
    except BaseException:
        storage.close()
        raise
    server = grpc.aio.server(options=SERVER_OPTIONS)
    kv_service = kv.KvService(node)
    healthy = health.aio.HealthServicer()
    server.add_generic_rpc_handlers(
        (
            kv_service.handler(),
            watch.WatchService(node).handler(),
            cluster.ClusterService(node).handler(),
            peers.RaftService(node).handler(),
        )
    )
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection(
        (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        _bind(server, config)
        await server.start()
        node.start()
        for service in ("", *_SERVICES):
            await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
        logger.info(
            "%s serves at %s, data in %s, cluster %s",
            node,
            config.listen,
            config.data_dir,
            node.cluster_id,
        )
        if not config.fsync:
            logger.warning("%s runs without fsync: a crash may lose acknowledged writes", node)
        await _until_told_to_stop(node, healthy)
    finally:
        node.watches.close(f"{node} is shutting down")
        await server.stop(0.5)
        await kv_service.close()
        await node.stop()
    logger.info("%s has stopped", node)


def _refuse_embedded(node: Node, config: NodeConfig) -> None:
    """Nobody could find a leader that has no address."""
    if node.group.raft.configuration.addresses.get(node.id) == "":
        command = f"kvorum recover --data-dir {config.data_dir} --force-new-cluster"
        address = config.address or "HOST:PORT"
        raise DataDirectoryMismatch(
            f"{config.data_dir} is a store that was embedded in a program. To serve it as a"
            f" cluster, run `{command} --advertise {address}` first: that loses nothing"
        )


def _warn_of_another_address(node: Node, config: NodeConfig) -> None:
    """The address of a member does not change, whatever its settings say later."""
    known = node.group.raft.configuration.addresses.get(node.id)
    if known is not None and config.address not in (known, ""):
        logger.warning(
            "%s is to be reached at %s by its settings, but the others look for it at %s, with"
            " which it was made a member: if it is not there, replace it by a new member",
            node,
            config.address,
            known,
        )


def _bind(server: grpc.aio.Server, config: NodeConfig) -> None:
    try:
        server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise AddressInUse(
            f"cannot listen on {config.listen}: the port is taken, or the address is not this"
            " machine's"
        ) from error


class AddressInUse(KvorumError):
    """The address to listen on cannot be bound."""

    reason = "ADDRESS_IN_USE"


async def _until_told_to_stop(node: Node, healthy: health.aio.HealthServicer) -> None:
    loop = asyncio.get_running_loop()
    told, again = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (again if told.is_set() else told).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await _first(node.wait_failed(), told.wait())
        await healthy.enter_graceful_shutdown()
        logger.info("%s was told to stop", node)
        await _first(_leave(node), again.wait(), node.wait_failed())
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _leave(node: Node) -> None:
    """Hand leadership over, and let the calls under way finish."""
    if isinstance(node.group.raft.role, Leader) and node.group.raft.configuration.voters - {
        node.id
    }:
        try:
            leader = await node.transfer_leadership(None)
            logger.info("%s has handed leadership to n%d", node, leader)
        except KvorumError as error:
            logger.warning("%s could not hand leadership over: %s", node, error)
    node.dispatcher.drain()
    node.watches.close(f"{node} is shutting down")
    under_way = node.group.under_way()
    if under_way:
        _, unanswered = await asyncio.wait(under_way, timeout=GRACE_SECONDS)
        if unanswered:
            logger.warning("%s leaves %d batches of calls unanswered", node, len(unanswered))


async def _first(*awaitables: Awaitable[object]) -> None:
    """Wait for one of them, cancel the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
