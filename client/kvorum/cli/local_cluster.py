"""A cluster of node processes on this machine: for a first look, for tests, for the demo.

    cluster = LocalCluster(Path(".kvorum"))
    await cluster.up(nodes=3)               # returns once a write has succeeded
    kv = await kvorum.open(cluster.target)
    cluster.kill(await cluster.leader())    # SIGKILL
    await cluster.down(wipe=True)

Its directory is all there is to it:

    DIR/cluster.json    the nodes and their processes
    DIR/lock            held by the command that starts or stops nodes
    DIR/n1/, ...        data directories
    DIR/n1.log, ...     what the nodes print, from their first start on

Rules of this file: nodes run detached, in sessions of their own, and are found
again through cluster.json alone; a start that fails ends every process that it
started. Nothing here prints or parses arguments.
"""

import asyncio
import contextlib
import fcntl
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import kvorum
from kvorum.admin import ClusterAdmin
from kvorum.cli import processes
from kvorum.cli.cluster_file import (
    DEFAULT_DIRECTORY,
    ClusterFile,
    LocalClusterError,
    NoClusterHere,
    NodeRecord,
)
from kvorum.cli.local_node import (
    ANSWER_SECONDS,
    HOST,
    IDENTITY_FILE,
    DataLost,
    LocalNode,
    NodeFailed,
    NodeRemoved,
    NodeReport,
    PortTaken,
    UnknownNode,
    ask,
    choose_admin_addresses,
    choose_port,
    choose_ports,
    describe_trouble,
    leader_of,
    refuse_lost,
    refuse_taken_ports,
)
from kvorum.cli.partition import Partition
from kvorum.cli.processes import ProcessState
from kvorum.errors import KvorumError
from kvorumpb.v1 import cluster_pb2

__all__ = [
    "PROBE_KEY",
    "DataLost",
    "LocalCluster",
    "LocalNode",
    "NodeFailed",
    "NodeRemoved",
    "NodeReport",
    "PortTaken",
    "UnknownNode",
    "tail",
]

START_SECONDS: Final = 30.0
"""How long nodes may take until they answer and a write has succeeded."""
STOP_SECONDS: Final = 25.0
"""How long a node may take to hand over, drain and flush before it is killed: longer than the bound
that it keeps itself (termination.py)."""
SIGNAL_SECONDS: Final = 5.0
LOG_LINES: Final = 15

PROBE_KEY: Final = "kvorum/local-cluster/probe"
"""Deleted to see whether writes succeed: it goes the way of every write, and, since the key
never exists, leaves nothing behind."""


class LocalCluster:
    """The cluster in a directory, running or not. Constructing it touches nothing.

    Every method but `up` raises NoClusterHere if there is none, and UnknownNode
    for a name that it does not have.
    """

    def __init__(self, directory: Path = DEFAULT_DIRECTORY) -> None:
        self.directory = directory
        self._partition = Partition(directory)

    # What there is.

    @property
    def nodes(self) -> tuple[LocalNode, ...]:
        return tuple(self._locate(record) for record in self._file().nodes)

    @property
    def target(self) -> str:
        """What `kvorum.open` takes."""
        return self._file().target

    def node(self, name: str) -> LocalNode:
        nodes = {node.name: node for node in self.nodes}
        if name not in nodes:
            raise UnknownNode(f"there is no node {name}; the nodes are {', '.join(nodes)}")
        return nodes[name]

    def state(self, name: str) -> ProcessState:
        return processes.state(self.node(name).process)

    async def status(self) -> list[NodeReport]:
        """What each node is doing, in the order of their names."""
        async with self._admin() as admin:
            return await self._ask_all(admin)

    async def leader(self) -> str:
        """The name of the node that leads.

        Raises:
            LocalClusterError: no running node leads at the moment.
        """
        leader = leader_of(await self.status())
        if leader is None:
            raise LocalClusterError("no node leads at the moment")
        return leader

    @property
    def cut_off(self) -> list[str]:
        """The names of the nodes that are cut off from the others."""
        return self._partition.cut_off()

    def log_tail(self, name: str, lines: int = LOG_LINES) -> list[str]:
        """The last lines that the node printed."""
        return tail(self.node(name).log_file, lines)

    # Starting.

    async def up(
        self,
        *,
        nodes: int | None = None,
        base_port: int | None = None,
        flags: Sequence[str] = (),
    ) -> list[str]:
        """Start every node that is not running, and wait until a write has succeeded.

        A new cluster gets `nodes` nodes (3) on the ports from `base_port` (7101) on, or on any
        free ones if that is 0, and `flags` as further arguments of `kvorum node`. An existing
        one is started as it is: running and paused nodes are left alone.

        Returns:
            The names of the nodes that were started.

        Raises:
            LocalClusterError: the cluster exists with other nodes or ports than asked for, or
                no write succeeded in time.
            PortTaken: and nothing was started.
            NodeFailed: a node ended at once; the message has its last log lines.
            NodeRemoved, DataLost: for the nodes that it names; the others run.
        """
        with self._exclusively(create=True):
            try:
                known = self.nodes
            except NoClusterHere:
                return await self._create(choose_ports(nodes, base_port), tuple(flags))
            self._refuse_change(known, nodes, base_port)
            dead = [node for node in known if processes.state(node.process) is ProcessState.DEAD]
            refuse_taken_ports(dead)
            lost = self._without_data(dead)
            whole = [node.name for node in dead if node.name not in lost]
            await self._start(whole, write=not lost)  # without the others there may be no majority
            refuse_lost(lost)
            return [node.name for node in dead]

    async def add(self, report: Callable[[cluster_pb2.Member, int], None]) -> str:
        """Add a node, and return its name once it is a voter.

        Interrupted while it catches up, it goes on, and becomes a voter by itself.

        Args:
            report: as that of ClusterAdmin.wait_until_voter.

        Raises:
            MembershipChangeRefused: and nothing was started.
            NodeFailed: the node is a member, and ended: to be restarted, or removed.
        """
        with self._exclusively():
            known = self.nodes
            port = choose_port(known)
            address = f"{HOST}:{port}"
            async with self._admin() as admin:
                name = await admin.add_member(address)
                members = ",".join(node.address for node in known)
                [probes] = choose_admin_addresses([port], known)
                record = NodeRecord(name, address, probes, introduction=("--join", members))
                self._change(lambda file: replace(file, nodes=(*file.nodes, record)))
                started = {name: _size(self.node(name).log_file)}
                try:
                    await self._start([name], write=False)
                except NodeFailed as error:
                    raise NodeFailed(
                        f"{error}\n{name} is a member all the same: try again with `kvorum cluster"
                        f" restart {name}`, or give it up with `kvorum cluster remove {name}`"
                    ) from error

                def look(member: cluster_pb2.Member, lag: int) -> None:
                    self._raise_if_ended(started)
                    report(member, lag)

                await admin.wait_until_voter(name, look)
        return name

    async def remove(self, name: str, *, force: bool = False, keep_data: bool = False) -> bool:
        """Remove a member, wait until its process has ended, and forget the node.

        Safe to repeat: what is no member any more is only tidied up.

        Args:
            force: even if the others may be left without a majority.
            keep_data: leave its data directory and its log file.

        Returns:
            Whether the process ended by itself, or was dead already; else it was stopped.

        Raises:
            MembershipChangeRefused: and everything is as it was.
            UnknownNode: it is neither here nor a member.
        """
        with self._exclusively():
            if all(node.name != name for node in self.nodes):
                await self._remove_stranger(name, force=force)
                return True
            node = self.node(name)
            async with self._admin() as admin:
                view = await admin.status(await admin.find_leader())
                if any(member.name == name for member in view.members):
                    await admin.remove_member(name, force=force)
            # One that is paused cannot hear of it.
            await processes.wait_until(
                lambda: processes.state(node.process) is not ProcessState.RUNNING, STOP_SECONDS
            )
            obeyed = processes.state(node.process) is ProcessState.DEAD
            if not obeyed:
                await self._stop([node])
            self._change(
                lambda file: replace(
                    file, nodes=tuple(record for record in file.nodes if record.name != name)
                )
            )
            if not keep_data:
                _delete_files(node)
        return obeyed

    async def restart(self, name: str) -> None:
        """Stop the node with SIGTERM if it is alive, start it, and wait until it answers.

        Raises:
            NodeFailed, NodeRemoved, DataLost: as `up`.
        """
        with self._exclusively():
            node = self.node(name)
            refuse_lost(self._without_data([node]))
            await self._stop([node])
            refuse_taken_ports([node])
            await self._start([name], write=False)

    # Ending, pausing.

    def kill(self, name: str) -> None:
        """End the node with SIGKILL, as a crash would, and return once it is dead."""
        self._signal(name, signal.SIGKILL)
        self._await_state([self.node(name)], ProcessState.DEAD)

    def kill_all(self) -> None:
        """End every node with SIGKILL: what a test or a demo does last, come what may."""
        self._kill_now(self.nodes)

    def pause(self, name: str) -> None:
        """Stop the node's time (SIGSTOP): to the others it looks as if cut off."""
        self._signal(name, signal.SIGSTOP)
        self._await_state([self.node(name)], ProcessState.PAUSED)

    def resume(self, name: str) -> None:
        """Let a paused node go on (SIGCONT)."""
        self._signal(name, signal.SIGCONT)

    def partition(self, names: Sequence[str]) -> list[str]:
        """Cut the nodes off from the others, in place of what was cut off; clients reach all.

        Returns:
            The names of the others. What is added later is on no side, and reaches both.

        Raises:
            CannotPartition: this system, or this user, cannot; nothing is cut off.
        """
        with self._exclusively():
            cut_off = [self.node(name) for name in dict.fromkeys(names)]
            others = [node for node in self.nodes if node not in cut_off]
            if not (cut_off and others):
                raise LocalClusterError("a partition has two sides: name some nodes, but not all")
            self._partition.cut(cut_off, others)
        return [node.name for node in others]

    def heal(self) -> list[str]:
        """End the partition; returns the names of the nodes that were cut off."""
        with self._exclusively():
            cut_off = self.cut_off
            self._partition.heal()
        return cut_off

    async def down(self, *, wipe: bool = False) -> list[str]:
        """End a partition, stop every node with SIGTERM, and with SIGKILL if it is not in time.

        Args:
            wipe: remove the data, the logs and the cluster itself, too.

        Returns:
            The names of the nodes that had to be killed.
        """
        with self._exclusively():
            nodes = self.nodes
            self._partition.heal()  # first, so that a leader finds somebody to hand over to
            killed = await self._stop(nodes)
            if wipe:
                self._wipe(nodes)
        return killed

    # The steps.

    async def _create(self, ports: Sequence[int], flags: tuple[str, ...]) -> list[str]:
        addresses = {f"n{number}": f"{HOST}:{port}" for number, port in enumerate(ports, 1)}
        members = ",".join(f"{name}={address}" for name, address in addresses.items())
        records = tuple(
            NodeRecord(name, address, probes, introduction=("--cluster", members))
            for (name, address), probes in zip(
                addresses.items(), choose_admin_addresses(ports), strict=True
            )
        )
        nodes = [self._locate(record) for record in records]
        refuse_taken_ports(nodes)
        new = [node for node in nodes if not node.data_dir.exists()]
        ClusterFile(records, flags).write(self.directory)
        try:
            await self._start([node.name for node in nodes])
        except BaseException:
            # Whatever it was, Ctrl-C included: a cluster that never worked must not
            # stand in the way of the next attempt. The logs stay, to be read.
            for node in new:
                shutil.rmtree(node.data_dir, ignore_errors=True)
            ClusterFile.remove(self.directory)
            raise
        return [node.name for node in nodes]

    async def _start(self, names: Sequence[str], *, write: bool = True) -> None:
        nodes = [self.node(name) for name in names]
        logged = {node.name: _size(node.log_file) for node in nodes}
        try:
            for name in names:
                self._spawn(name)
            await self._wait_until_usable(logged, write=write)
        except NodeRemoved:
            raise  # nothing is wrong with the others
        except BaseException:
            self._kill_now([self.node(name) for name in names])
            raise
        for name in names:
            self._change_record(name, lambda record: replace(record, introduction=()))

    def _spawn(self, name: str) -> None:
        file = self._file()
        record = next(record for record in file.nodes if record.name == name)
        node = self._locate(record)
        probes = node.admin
        if not processes.is_port_free(HOST, node.admin_port):  # somebody else has it now
            [probes] = choose_admin_addresses([node.port], self.nodes)
        command = [
            # -P: a file of the current directory must not pass for a module.
            *(sys.executable, "-P", "-m", "kvorum.cli", "node", name),
            *("--data-dir", str(node.data_dir.absolute())),
            *("--listen", node.address),
            *("--admin-listen", probes),
            *record.introduction,
            *file.flags,
        ]
        identity = processes.start(self._partition.enter(name, command), node.log_file)
        self._change_record(name, lambda record: replace(record, admin=probes, process=identity))

    async def _wait_until_usable(self, started: Mapping[str, int], *, write: bool) -> None:
        """Wait until the started nodes answer and, if `write`, a write has succeeded.

        `started` says where in its log file the start of each node begins.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_SECONDS
        async with self._admin() as admin:
            while True:
                self._raise_if_ended(started)
                reports = await self._ask_all(admin)
                answered = {report.node.name for report in reports if report.status is not None}
                if answered.issuperset(started) and (
                    not write or (leader_of(reports) and await self._write_succeeds())
                ):
                    return
                if loop.time() >= deadline:
                    raise NodeFailed(describe_trouble(reports, seconds=START_SECONDS))
                await asyncio.sleep(processes.POLL_SECONDS)

    async def _write_succeeds(self) -> bool:
        try:
            async with kvorum.open(self.target, timeout=ANSWER_SECONDS) as kv:
                await kv.delete(PROBE_KEY)
        except KvorumError:
            return False
        return True

    def _raise_if_ended(self, started: Mapping[str, int]) -> None:
        for node in map(self.node, started):
            if processes.state(node.process) is ProcessState.DEAD:
                lines = tail(node.log_file, LOG_LINES, skip_bytes=started[node.name])
                if any(f"{node.name} was removed from the cluster" in line for line in lines):
                    raise NodeRemoved(
                        f"{node.name} was removed from the cluster, and does not come back: forget"
                        f" it with `kvorum cluster remove {node.name}`"
                    )
                last_words = "\n".join(f"  {line}" for line in lines)
                raise NodeFailed(
                    f"{node.name} ended while it was starting; {node.log_file} ends with\n"
                    f"{last_words}"
                )

    async def _remove_stranger(self, name: str, *, force: bool) -> None:
        """Remove a member that does not run here, or was never started."""
        async with self._admin() as admin:
            view = (await admin.survey()).best
            if view is None or all(member.name != name for member in view.members):
                self.node(name)  # raises, with the names that there are
            await admin.remove_member(name, force=force)

    def _without_data(self, nodes: Sequence[LocalNode]) -> list[str]:
        """Those that have run before, and whose data directories are gone."""
        new = {record.name for record in self._file().nodes if record.introduction}
        return [
            node.name
            for node in nodes
            if node.name not in new and not (node.data_dir / IDENTITY_FILE).exists()
        ]

    async def _ask_all(self, admin: ClusterAdmin) -> list[NodeReport]:
        return list(await asyncio.gather(*(ask(admin, node) for node in self.nodes)))

    async def _stop(self, nodes: Sequence[LocalNode]) -> list[str]:
        """Stop the nodes; returns the names of those that had to be killed."""
        for node in nodes:
            processes.send(node.process, signal.SIGTERM)
            processes.send(node.process, signal.SIGCONT)  # a paused one could not obey

        def living() -> list[LocalNode]:
            return [n for n in nodes if processes.state(n.process) is not ProcessState.DEAD]

        await processes.wait_until(lambda: not living(), STOP_SECONDS)
        stubborn = living()
        self._kill_now(stubborn)
        return [node.name for node in stubborn]

    def _kill_now(self, nodes: Sequence[LocalNode]) -> None:
        for node in nodes:
            processes.send(node.process, signal.SIGKILL)
        self._await_state(nodes, ProcessState.DEAD)

    def _await_state(self, nodes: Sequence[LocalNode], state: ProcessState) -> None:
        for node in nodes:
            if not processes.wait_for_state(node.process, state, SIGNAL_SECONDS):
                raise LocalClusterError(f"{node.name} is not {state.value} after a signal to be so")

    def _signal(self, name: str, number: signal.Signals) -> None:
        if not processes.send(self.node(name).process, number):
            raise LocalClusterError(f"{name} is not running; `kvorum cluster restart {name}`")

    def _wipe(self, nodes: Sequence[LocalNode]) -> None:
        """Remove what is the cluster's, and the directory if nothing else is in it."""
        for node in nodes:
            _delete_files(node)
        ClusterFile.remove(self.directory)
        self._lock_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _admin(self) -> ClusterAdmin:
        return ClusterAdmin([node.address for node in self.nodes])

    def _file(self) -> ClusterFile:
        return ClusterFile.read(self.directory)

    def _change(self, change: Callable[[ClusterFile], ClusterFile]) -> None:
        change(self._file()).write(self.directory)

    def _change_record(self, name: str, change: Callable[[NodeRecord], NodeRecord]) -> None:
        self._change(
            lambda file: replace(
                file,
                nodes=tuple(
                    change(record) if record.name == name else record for record in file.nodes
                ),
            )
        )

    def _locate(self, record: NodeRecord) -> LocalNode:
        return LocalNode(
            name=record.name,
            address=record.address,
            admin=record.admin,
            data_dir=self.directory / record.name,
            log_file=self.directory / f"{record.name}.log",
            process=record.process,
        )

    def _refuse_change(
        self, known: Sequence[LocalNode], nodes: int | None, base_port: int | None
    ) -> None:
        if nodes not in (None, len(known)):
            difference = f"has {len(known)} nodes, not {nodes}"
        elif base_port not in (None, 0, known[0].port):
            difference = f"listens from port {known[0].port} on, not {base_port}"
        else:
            return
        raise LocalClusterError(
            f"the cluster in {self.directory} {difference}; remove it with"
            " `kvorum cluster down --wipe`, or start another one with --dir"
        )

    @property
    def _lock_path(self) -> Path:
        return self.directory / "lock"

    @contextlib.contextmanager
    def _exclusively(self, *, create: bool = False) -> Iterator[None]:
        """Hold the lock: two commands that start nodes at once would lose track of some."""
        if create:
            self.directory.mkdir(parents=True, exist_ok=True)
        else:
            self._file()  # where there is no cluster, nothing is left behind, not even a lock
        with self._lock_path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalClusterError(
                    f"another command is starting or stopping nodes of {self.directory};"
                    " try again when it has finished"
                ) from None
            yield


def tail(path: Path, lines: int, *, skip_bytes: int = 0) -> list[str]:
    """The last lines of a file, of what follows the skipped bytes; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(skip_bytes)
            last = deque(file, maxlen=lines)
    except FileNotFoundError:
        return []
    return [line.decode("utf-8", "replace").rstrip("\r\n") for line in last]


def _delete_files(node: LocalNode) -> None:
    shutil.rmtree(node.data_dir, ignore_errors=True)
    node.log_file.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
