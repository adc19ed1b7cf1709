"""Nodes of a local cluster cut off from the others, in the kernel's packet filter.

All nodes are processes at 127.0.0.1, so an address tells no two of them apart. What does
is who has opened a connection:

    new connections    each node runs in a control group of its own, which every socket
                       that it opens from then on belongs to: nftables sees it there
    older ones         are known by their two ports, as they are when the cut is made

Packets between the two sides are dropped, in both directions, and nothing tells their
sender. Clients are on no side: they reach every node, and no other traffic is touched.

Rules of this file: everything carries the id of the cluster's directory in its name, and is
found again by that alone, in the kernel; so a cut can be healed whatever became of who made it.
Needs Linux, root, `nft`, and a mounted cgroup2; what is missing is said in a line.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from kvorum.cli.cluster_file import LocalClusterError
from kvorum.cli.local_node import HOST, LocalNode
from kvorum.cli.processes import SIGNAL_POLL_SECONDS, ProcessState, state

MOUNTS: Final = Path("/proc/self/mounts")
NFT_ROOT: Final = Path("/sys/fs/cgroup")
"""What nft takes the paths of control groups to begin at, wherever cgroup2 is mounted."""

LEAVE_SECONDS: Final = 2.0

CUT_OFF: Final = "cut"
OTHERS: Final = "rest"

PROBE: Final = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))"
"""A datagram that is dropped where it leaves is an error of its sender."""

_ENTER: Final = 'echo $$ > "$1" && shift && exec "$@"'
"""For sh: run a command in a control group, whose cgroup.procs comes first."""


class CannotPartition(LocalClusterError):
    """Nodes cannot be cut off here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class _Seat:
    """The control group of one node during a partition."""

    name: str
    side: str
    path: Path


class Partition:
    """What separates the nodes of the cluster in a directory, if anything does."""

    def __init__(self, directory: Path) -> None:
        name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]
        self._id: Final = f"kvorum-{name}"
        """Of the table of rules; the control groups' names begin with it."""

    def cut_off(self) -> list[str]:
        """The names of the nodes that are cut off from the others."""
        return sorted(seat.name for seat in self._seats() if seat.side == CUT_OFF)

    def refuse_unless_possible(self) -> Path:
        """See a packet dropped for its control group: not every kernel and container does that.

        Returns:
            Where cgroup2 is mounted.

        Raises:
            CannotPartition: it was not.
        """
        mount = _refuse_unless_equipped()
        path = _group_of(mount, os.getpid()) / f"{self._id}-probe"
        try:
            path.mkdir()
        except OSError as error:
            raise CannotPartition(f"{path}: {error.strerror}") from error
        try:
            _nft(_table(self._id, [f"{_socket_in(mount, path)} meta l4proto udp drop"], []))
            command = ["sh", "-c", _ENTER, "sh", str(path / "cgroup.procs")]
            ran = subprocess.run(  # noqa: S603 - no shell parses anything of it
                [*command, sys.executable, "-ISc", PROBE],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            self.heal()
        if "PermissionError" not in ran.stderr:
            raise CannotPartition("the packet filter of this system does not see control groups")
        return mount

    def cut(self, cut_off: Sequence[LocalNode], others: Sequence[LocalNode]) -> None:
        """Let nothing pass between the two sides, in place of what was cut before.

        Raises:
            CannotPartition: and nothing is cut.
        """
        self.heal()
        mount = self.refuse_unless_possible()
        try:
            for side, nodes in ((CUT_OFF, cut_off), (OTHERS, others)):
                for node in nodes:
                    self._seat(mount, node, side)
            _nft(self._ruleset(mount, cut_off, others))
        except BaseException:
            self.heal()
            raise

    def heal(self) -> bool:
        """Let everything pass again; returns whether anything was cut. Safe to repeat."""
        seats = self._seats()
        if not seats:
            return False  # groups are made before the rules, and removed after them
        _require_root("end a partition")
        self._delete_table()
        for seat in seats:
            _leave(seat.path)
        return True

    def enter(self, name: str, command: Sequence[str]) -> list[str]:
        """The command, as a node is started with it: one that is cut off stays so.

        Raises:
            CannotPartition: only root may start it then.
        """
        path = next((seat.path for seat in self._seats() if seat.name == name), None)
        if path is None:
            return list(command)
        _require_root("start a node that is cut off")
        return ["sh", "-c", _ENTER, "sh", str(path / "cgroup.procs"), *command]

    def _seats(self) -> list[_Seat]:
        mount = _mount()
        return [] if mount is None else list(self._find(mount))

    def _find(self, mount: Path) -> Iterator[_Seat]:
        for folder, children, _ in os.walk(mount):
            for child in children:
                if child.startswith(f"{self._id}-"):
                    side, _, name = child.removeprefix(f"{self._id}-").partition("-")
                    yield _Seat(name, side, Path(folder, child))

    def _seat(self, mount: Path, node: LocalNode, side: str) -> None:
        """Move the node's process into a control group of its own, below the one it is in.

        So its limits stay what they were. A node that is dead gets one for its next start.
        """
        process = node.process
        is_dead = process is None or state(process) is ProcessState.DEAD
        parent = _group_of(mount, os.getpid() if process is None or is_dead else process.pid)
        path = parent / f"{self._id}-{side}-{node.name}"
        try:
            path.mkdir()
            if process is not None and not is_dead:
                (path / "cgroup.procs").write_text(str(process.pid))
        except OSError as error:
            raise CannotPartition(f"{path}: {error.strerror}") from error

    def _ruleset(
        self, mount: Path, cut_off: Sequence[LocalNode], others: Sequence[LocalNode]
    ) -> str:
        """For nft, which takes it whole or not at all."""
        ports = {CUT_OFF: _ports(cut_off), OTHERS: _ports(others)}
        outputs, inputs = [], []
        for seat in self._find(mount):
            beyond = _set(map(str, ports[OTHERS if seat.side == CUT_OFF else CUT_OFF]))
            outputs.append(f"{_socket_in(mount, seat.path)} tcp dport {beyond} drop")
            inputs.append(f"{_socket_in(mount, seat.path)} tcp sport {beyond} drop")
        # Looked for now that nodes open sockets in their groups alone: so none is missed.
        older = [*_connections(cut_off, ports[OTHERS]), *_connections(others, ports[CUT_OFF])]
        if older:
            both = [*older, *((there, here) for here, there in older)]
            pairs = _set(f"{source} . {destination}" for source, destination in both)
            outputs.append(f"tcp sport . tcp dport {pairs} drop")
        return _table(self._id, outputs, inputs)

    def _delete_table(self) -> None:
        _nft(f"table inet {self._id}\ndelete table inet {self._id}\n")


def _refuse_unless_equipped() -> Path:
    """Return where cgroup2 is mounted."""
    if sys.platform != "linux":
        raise CannotPartition(
            "nodes can be cut off on Linux only; `kvorum cluster pause` freezes one"
        )
    _require_root("cut nodes off")
    if shutil.which("nft") is None:
        raise CannotPartition("to cut nodes off takes `nft`: install nftables")
    mount = _mount()
    if mount is None:
        raise CannotPartition("to cut nodes off takes control groups, and no cgroup2 is mounted")
    return mount


def _require_root(to_do: str) -> None:
    if os.geteuid() != 0:
        raise CannotPartition(f"only root may {to_do}: run it with sudo")


def _mount() -> Path | None:
    try:
        mounts = [line.split() for line in MOUNTS.read_text("utf-8").splitlines()]
    except OSError:
        return None
    return next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)


def _group_of(mount: Path, pid: int) -> Path:
    """The control group that the process is in."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8").splitlines()
    except OSError as error:
        raise CannotPartition(f"process {pid}: {error.strerror}") from error
    [path] = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return mount / path


def _leave(path: Path) -> None:
    """Move what is in a control group to where it came from, and remove the group."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while True:
        try:
            for pid in (path / "cgroup.procs").read_text("utf-8").split():
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    (path.parent / "cgroup.procs").write_text(pid)
            path.rmdir()
        except OSError as error:
            # One that is just ending is in no list any more, and in the group for a moment.
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise CannotPartition(f"{path}: {error.strerror}") from error
            time.sleep(SIGNAL_POLL_SECONDS)
        else:
            return


def _ports(nodes: Sequence[LocalNode]) -> list[int]:
    return [node.port for node in nodes]


def _connections(nodes: Sequence[LocalNode], ports: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The connections that the nodes have opened to these ports, as (own port, that port)."""
    for node in nodes:
        if node.process is None or state(node.process) is ProcessState.DEAD:
            continue
        for connection in psutil.Process(node.process.pid).net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN and connection.raddr.port in ports:
                yield connection.laddr.port, connection.raddr.port


def _socket_in(mount: Path, path: Path) -> str:
    level = len(path.relative_to(mount).parts)
    return f'socket cgroupv2 level {level} "{os.path.relpath(path, NFT_ROOT)}"'


def _set(elements: Iterable[str]) -> str:
    return f"{{ {', '.join(elements)} }}"


def _table(name: str, outputs: Sequence[str], inputs: Sequence[str]) -> str:
    def chain(hook: str, rules: Sequence[str]) -> list[str]:
        here = [f"ip daddr {HOST} {rule}" for rule in rules]
        head = f"type filter hook {hook} priority filter; policy accept;"
        return [f"chain {hook} {{", head, *here, "}"]

    lines = [f"table inet {name}", f"delete table inet {name}", f"table inet {name} {{"]
    return "\n".join([*lines, *chain("output", outputs), *chain("input", inputs), "}", ""])


def _nft(ruleset: str) -> None:
    ran = subprocess.run(
        ["nft", "-f", "-"],  # noqa: S607 - where the system has it
        input=ruleset,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines()
        raise CannotPartition(f"nft refuses: {said[0] if said else ran.returncode}")
