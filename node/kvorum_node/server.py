"""The server process: one node behind its ports, from its first line to its last.

    start      the admin port answers first; find out which cluster this is, at the first
               start from the settings, then from the data directory; open that, which may
               take a while; bind the ports, take part
    SIGTERM    until then: end at once. From then on: be ready no more, hand leadership
               over, let the calls under way finish, flush, close; a second signal skips
               the courtesies. The admin port goes last
    failure    a disk that cannot be trusted ends the process with a message, status 1; or 3,
               if it would end so again, however often it were started

What is said meanwhile is in probes.py, what bounds the end in termination.py.

One process serves one node on one event loop: a fork after start is not supported.
"""

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from importlib import import_module
from typing import Final, Generic, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection

from kvorum import limits
from kvorum.errors import (
    DataDirectoryLost,
    DataDirectoryMismatch,
    KvorumError,
    RemovedFromCluster,
    StateCorrupt,
)
from kvorum_node import logs
from kvorum_node.admin_port import AdminPort
from kvorum_node.config import NodeConfig
from kvorum_node.joining import CannotJoin, identify
from kvorum_node.node import Node, Timing
from kvorum_node.probes import Probes
from kvorum_node.raft.leader import Leader
from kvorum_node.services import cluster, health, kv, peers, watch
from kvorum_node.services.observer import Observer
from kvorum_node.space import Bounds
from kvorum_node.storage.budget import Budget
from kvorum_node.storage.data_directory import Identity, Storage
from kvorum_node.termination import (
    DRAIN_SECONDS,
    GRACE_SECONDS,
    HANDOVER_SECONDS,
    Termination,
    ToldToStop,
    end_now,
)
from kvorumpb.v1 import (  # noqa: F401 - reflection describes them
    cluster_pb2,
    kv_pb2,
    raft_pb2,
    watch_pb2,
)

NOT_TO_BE_RESTARTED: Final = 3
"""The exit status of a node that nobody but its operator can help."""

_FOR_GOOD: Final = (
    CannotJoin,
    DataDirectoryLost,
    DataDirectoryMismatch,
    RemovedFromCluster,
    StateCorrupt,
)

_ABORT_SECONDS: Final = 0.5
"""How long streams may take to end when the ports are closed."""

T = TypeVar("T")

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


def run(config: NodeConfig, warnings: Sequence[str] = ()) -> int:
    """Serve until a signal or a failure; returns the process's exit status.

    Args:
        warnings: about the configuration, to be logged.
    """
    logs.configure(level=config.log_level, json=config.log_format == "json")
    for warning in warnings:
        logger.warning("%s", warning)
    # What was imported stays. Else each full collection goes through it, and meanwhile, for
    # 30 ms and more, nobody is served.
    gc.freeze()
    try:
        _run_loop(config)
    except KvorumError as error:
        logger.critical("%s stops: %s", config.name or "the node", error)
        return NOT_TO_BE_RESTARTED if isinstance(error, _FOR_GOOD) else 1
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
        AddressInUse: a port is taken.
        CannotJoin: the data directory is new, and no cluster takes the node.
        RemovedFromCluster: the cluster has removed the node.
    """
    name = config.name or "the node"
    probes = Probes(name, election_timeout_seconds=config.election_timeout_ms / 1000)
    with Termination(name, told=probes.ending) as termination:
        port = _open_admin_port(config, probes)
        looking = asyncio.create_task(probes.run(), name="probes")
        try:
            await _serve(config, probes, termination)
        except ToldToStop:
            logger.info("%s was told to stop before it served", name)
        finally:
            looking.cancel()
            probes.close()
            if port is not None:
                await asyncio.to_thread(port.close)


async def _serve(config: NodeConfig, probes: Probes, termination: Termination) -> None:
    """As `serve`; raises ToldToStop as well, if it was before there was a node."""
    identity = await termination.unless_told(_find_identity(config, probes))
    probes.starting(f"it opens {config.data_dir}")
    opening = _InThread(lambda: _open_node(config, identity), _close_node)
    try:
        node = await termination.unless_told(opening.result())
    except ToldToStop:
        # RocksDB cannot be interrupted. Nothing was promised yet, so nothing can be lost.
        name = config.name or "the node"
        logger.info("%s was told to stop while it opened %s", name, config.data_dir)
        end_now(0)
        raise
    services = _Services(config, node, probes)
    try:
        await services.start()
        node.start()
        probes.serving(node)
        _say_that_it_serves(config, node)
        await _until_told_to_stop(node, probes, termination)
    finally:
        termination.begin_bound()
        probes.ending()
        node.end_streams()
        await services.stop()
        probes.close()
        await node.stop()
    logger.info("%s has stopped", node)


async def _find_identity(config: NodeConfig, probes: Probes) -> Identity:
    probes.starting("it finds out who it is")
    return await identify(config, report=probes.starting)


def _open_node(config: NodeConfig, identity: Identity) -> Node:
    """Open the data directory, however long that takes, and put the node together.

    RocksDB holds the GIL while it reads its own log (0.2 s for 95 MiB, and there are at most 128):
    so long a probe may wait. The rest lets others in.
    """
    storage = Storage.open(
        config.data_dir, identity, fsync=config.fsync, budget=Budget.of(config.memory_bytes)
    )
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
            peer_port=config.peer_port,
        )
        _refuse_embedded(node, config)
        _warn_of_another_address(node, config)
    except BaseException:
        storage.close()
        raise
    return node


def _close_node(node: Node) -> None:
    """One that was never started, and never will be."""
    node.driver.close()
    node.storage.close()


class _InThread(Generic[T]):
    """Work in a thread of its own, so that the loop goes on. It cannot be ended, only given up."""

    def __init__(self, work: Callable[[], T], discard: Callable[[T], None]) -> None:
        """Begin. `discard` takes a result that nobody wants any more."""
        self._work = work
        self._discard = discard
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, name="kvorum-opening", daemon=True).start()

    async def result(self) -> T:
        return await asyncio.wrap_future(self._future)

    def _run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            if self._future.set_running_or_notify_cancel():
                self._future.set_exception(error)
            return
        if self._future.set_running_or_notify_cancel():
            self._future.set_result(result)
        else:
            self._discard(result)


class _Services:
    """What the node serves over gRPC: to clients and, on a port of their own or not, to peers."""

    def __init__(self, config: NodeConfig, node: Node, probes: Probes) -> None:
        self._config = config
        self._kv = kv.KvService(node)
        self._server = _make_server(node)
        self._peers = _make_server(node) if config.peer_port else self._server
        self._server.add_generic_rpc_handlers(
            (
                self._kv.handler(),
                watch.WatchService(node).handler(),
                cluster.ClusterService(node).handler(),
            )
        )
        self._peers.add_generic_rpc_handlers((peers.RaftService(node).handler(),))
        served = [kv.SERVICE, watch.SERVICE, cluster.SERVICE]
        served += [] if config.peer_port else [peers.SERVICE]
        healthy = health.HealthService(probes, served)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, self._server)
        reflection.enable_server_reflection(
            (*served, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server
        )

    @property
    def _servers(self) -> "set[grpc.aio.Server]":
        return {self._server, self._peers}

    async def start(self) -> None:
        _bind(self._server, self._config.listen)
        if self._config.peer_port:
            host = self._config.listen.rpartition(":")[0]
            _bind(self._peers, f"{host}:{self._config.peer_port}")
        for server in self._servers:
            await server.start()

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop(_ABORT_SECONDS) for server in self._servers))
        await self._kv.close()


def _make_server(node: Node) -> grpc.aio.Server:
    return grpc.aio.server(interceptors=[Observer(node.figures)], options=SERVER_OPTIONS)


def _open_admin_port(config: NodeConfig, probes: Probes) -> AdminPort | None:
    if not config.admin_listen:
        return None
    try:
        return AdminPort(config.admin_listen, probes)
    except OSError as error:
        raise _address_in_use(config.admin_listen) from error


def _say_that_it_serves(config: NodeConfig, node: Node) -> None:
    logger.info(
        "%s serves at %s, data in %s, cluster %s",
        node,
        config.listen,
        config.data_dir,
        node.cluster_id,
    )
    if not config.fsync:
        logger.warning("%s runs without fsync: a crash may lose acknowledged writes", node)


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


def _bind(server: grpc.aio.Server, address: str) -> None:
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise _address_in_use(address) from error


class AddressInUse(KvorumError):
    """The address to listen on cannot be bound."""

    reason = "ADDRESS_IN_USE"


def _address_in_use(address: str) -> AddressInUse:
    return AddressInUse(
        f"cannot listen on {address}: the port is taken, or the address is not this machine's"
    )


async def _until_told_to_stop(node: Node, probes: Probes, termination: Termination) -> None:
    await _first(node.wait_failed(), termination.wait_told())
    termination.begin_bound()
    logger.info(
        "%s was told to stop: it hands leadership over, finishes calls and flushes, for at most"
        " %.0f s",
        node,
        DRAIN_SECONDS,
    )
    await _first(_leave(node), termination.wait_told_again(), node.wait_failed())


async def _leave(node: Node) -> None:
    """Hand leadership over, and let the calls under way finish."""
    if isinstance(node.group.raft.role, Leader) and node.group.raft.configuration.voters - {
        node.id
    }:
        try:
            async with asyncio.timeout(HANDOVER_SECONDS):
                leader = await node.transfer_leadership(None)
            logger.info("%s has handed leadership to n%d", node, leader)
        except KvorumError as error:
            logger.warning("%s could not hand leadership over: %s", node, error)
        except TimeoutError:
            logger.warning("%s could not hand leadership over in time", node)
    node.dispatcher.drain()
    node.end_streams()
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
