"""The nodes as processes, started by the command that users start them with.

Rule of this file: a node that has ended although nobody here ended it is remembered, with its
last lines; the run is a failure then, whatever else it shows.
"""

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvorum.admin import ClusterAdmin
from kvorum.cli import processes
from kvorum.cli.cluster_file import ProcessIdentity
from kvorum.cli.local_cluster import tail
from kvorum.cli.processes import ProcessState
from kvorum.errors import KvorumError
from kvorumpb.v1 import cluster_pb2
from tests.chaos.disks import Disks
from tests.chaos.network import Place

PATIENCE_SECONDS: Final = 60.0
"""For whatever must happen sooner or later: generous, as the machine may be busy."""
STATUS_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.05


class TooLateError(Exception):
    """Something that must happen has not happened within PATIENCE_SECONDS."""


async def until(what: str, condition: Callable[[], Awaitable[object]]) -> None:
    """Return once the condition holds; TooLateError says `what` did not happen."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await condition():  # noqa: ASYNC110 - it asks other processes
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise TooLateError(f"{what}, not within {PATIENCE_SECONDS:.0f} s") from None


@dataclass(slots=True)
class Node:
    """One node, running or not."""

    place: Place
    log_file: Path
    process: ProcessIdentity | None = None
    may_be_down: bool = True
    """True while it is not running because somebody here ended it."""
    clock_offset_seconds: int = 0
    joins: bool = False
    """True if it was added to a cluster that was there before it."""

    @property
    def state(self) -> ProcessState:
        return processes.state(self.process)


@dataclass(slots=True)
class Nodes:
    """All nodes, by name; `members` are those of the cluster."""

    directory: Path
    places: Mapping[str, Place]
    members: list[str]
    disks: Disks
    flags: Sequence[str] = ()
    fake_time_library: Path | None = None
    admin: ClusterAdmin = field(default_factory=ClusterAdmin)
    accidents: list[str] = field(default_factory=list)
    """Nodes that ended by themselves, with their last lines."""
    first_members: tuple[str, ...] = ()
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first_members = tuple(self.members)
        self.nodes = {
            name: Node(place, self.directory / f"{name}.log") for name, place in self.places.items()
        }

    def pid_of(self, name: str) -> int | None:
        process = self.nodes[name].process
        return None if process is None else process.pid

    @property
    def running(self) -> list[str]:
        return [name for name in self.members if self.nodes[name].state is ProcessState.RUNNING]

    @property
    def target(self) -> str:
        return "kvorum://" + ",".join(self.places[name].address for name in self.members)

    # Starting and ending.

    def start(self, name: str) -> None:
        node = self.nodes[name]
        node.process = processes.start(self._command(node), node.log_file)
        node.may_be_down = False

    def kill(self, name: str) -> None:
        self.look_for_accidents()
        self.nodes[name].may_be_down = True
        self._signal(name, signal.SIGKILL, ProcessState.DEAD)

    def pause(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP, ProcessState.PAUSED)

    def resume(self, name: str) -> None:
        processes.send(self.nodes[name].process, signal.SIGCONT)

    async def stop(self, name: str) -> None:
        """End it with SIGTERM, as an operator does."""
        self.look_for_accidents()
        node = self.nodes[name]
        node.may_be_down = True
        processes.send(node.process, signal.SIGTERM)

        async def has_ended() -> bool:
            return node.state is ProcessState.DEAD

        await until(f"{name} ends after SIGTERM", has_ended)

    async def restart(self, name: str) -> None:
        await self.stop(name)
        self.start(name)
        await self.answers(name)

    async def revive(self) -> None:
        """Have all members running and answering, whatever was done to them."""
        self.look_for_accidents()
        for name in self.members:
            self.resume(name)
            if self.nodes[name].state is ProcessState.DEAD:
                self.start(name)
        for name in self.members:
            await self.answers(name)

    def kill_all(self) -> None:
        for name, node in self.nodes.items():
            if node.state is not ProcessState.DEAD:
                self.kill(name)

    def look_for_accidents(self) -> None:
        for name, node in self.nodes.items():
            if not node.may_be_down and node.state is ProcessState.DEAD:
                node.may_be_down = True
                last_words = "\n".join(f"    {line}" for line in tail(node.log_file, 15))
                self.accidents.append(f"{name} ended by itself:\n{last_words}")

    # Asking.

    async def status(self, name: str) -> cluster_pb2.GetStatusResponse | None:
        """What the node says of itself; None if it does not answer."""
        with contextlib.suppress(KvorumError):
            return await self.admin.status(self.places[name].listen, timeout=STATUS_SECONDS)
        return None

    async def answers(self, name: str) -> None:
        """Return once the node answers, or has ended (which is looked for elsewhere)."""

        async def does() -> bool:
            if self.nodes[name].state is ProcessState.DEAD:
                return True
            return await self.status(name) is not None

        await until(f"{name} answers", does)

    async def leader(self) -> str:
        """Who leads; the newest leader if several say so."""
        found: list[tuple[int, str]] = []

        async def is_found() -> bool:
            names = self.running
            for name, status in zip(
                names, await asyncio.gather(*map(self.status, names)), strict=True
            ):
                if status is not None and status.role == cluster_pb2.LEADER:
                    found.append((status.term, name))
            return bool(found)

        await until("a node leads", is_found)
        return max(found)[1]

    async def followers(self) -> list[str]:
        leader = await self.leader()
        return [name for name in self.members if name != leader]

    def _command(self, node: Node) -> list[str]:
        name, place = node.place.name, node.place
        members = ",".join(
            f"{member}={self.places[member].address}" for member in self.first_members
        )
        known = ",".join(self.places[member].address for member in self.members if member != name)
        return [
            *place.prefix,
            *dies_with_us(),
            *self._clock(node),
            *(sys.executable, "-P", "-m", "kvorum.cli", "node", name),
            *("--data-dir", str(self.disks.data_dir(name)), "--listen", place.listen),
            *(
                ("--join", known, "--advertise", place.address)
                if node.joins
                else ("--cluster", members)
            ),
            *("--min-free-bytes", "0"),  # the disks are to be full, and are small
            *self.flags,
        ]

    def _clock(self, node: Node) -> Sequence[str]:
        if not node.clock_offset_seconds:
            return ()
        assert self.fake_time_library is not None
        return (
            *("env", f"LD_PRELOAD={self.fake_time_library}", "FAKETIME_DONT_FAKE_MONOTONIC=1"),
            f"FAKETIME={node.clock_offset_seconds:+d}s",
        )

    def _signal(self, name: str, number: signal.Signals, state: ProcessState) -> None:
        process = self.nodes[name].process
        processes.send(process, number)
        if not processes.wait_for_state(process, state, PATIENCE_SECONDS):
            raise TooLateError(f"{name} is {state.value} after {number.name}")


def dies_with_us() -> Sequence[str]:
    """However this process ends, no node stays behind."""
    return () if shutil.which("setpriv") is None else ("setpriv", "--pdeathsig", "KILL", "--")
