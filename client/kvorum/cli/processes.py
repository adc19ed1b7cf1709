"""Processes of the local cluster, told apart from others that got the same pid.

Rules of this file: a process is looked up by its pid and its time of creation,
and only what both agree on is ever signalled. A process is dead once nothing of
it is left but its entry, whoever may have to reap that.
"""

import asyncio
import errno
import itertools
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

import psutil

from kvorum.cli.cluster_file import ProcessIdentity

CREATED_TOLERANCE_SECONDS: Final = 1.0
"""psutil adds the time of boot, which moves a little whenever the clock is corrected."""

POLL_SECONDS: Final = 0.02
SIGNAL_POLL_SECONDS: Final = 0.002

FREE_PORTS: Final = range(20_000, 32_768)
"""Linux, BSD and macOS take the ports of outgoing connections from above it."""

_children: Final[list[subprocess.Popen[bytes]]] = []
"""Every process that this one started: nobody else can reap them."""


class ProcessState(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


def start(command: Sequence[str], log_file: Path) -> ProcessIdentity:
    """Start a process that outlives this one, in its own session; its output is appended."""
    with log_file.open("ab") as log:
        child = subprocess.Popen(  # noqa: S603 - the command is built by the caller, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children.append(child)
    return ProcessIdentity(child.pid, psutil.Process(child.pid).create_time())


def state(identity: ProcessIdentity | None) -> ProcessState:
    """What the process is doing; DEAD if there never was one."""
    process = _find(identity)
    if process is None:
        return ProcessState.DEAD
    try:
        match process.status():
            case psutil.STATUS_STOPPED | psutil.STATUS_TRACING_STOP:
                return ProcessState.PAUSED
            case psutil.STATUS_ZOMBIE | psutil.STATUS_DEAD:
                # Threads end one after the other: until the last has, the ports are taken.
                ended = process.num_threads() <= 1
                return ProcessState.DEAD if ended else ProcessState.RUNNING
            case _:
                return ProcessState.RUNNING
    except psutil.NoSuchProcess:
        return ProcessState.DEAD


def send(identity: ProcessIdentity | None, number: signal.Signals) -> bool:
    """Send the signal; False if the process is gone.

    Raises:
        PermissionError: it is another user's.
    """
    process = _find(identity)
    if process is None:
        return False
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        raise PermissionError(
            f"process {process.pid} is of {process.username()}, who alone may stop it, or root"
        ) from None
    return True


def wait_for_state(
    identity: ProcessIdentity | None, wanted: ProcessState, within_seconds: float
) -> bool:
    """Block until a signal has had its effect, which takes milliseconds; False if it has none."""
    deadline = time.monotonic() + within_seconds
    while state(identity) is not wanted:
        if time.monotonic() >= deadline:
            return False
        time.sleep(SIGNAL_POLL_SECONDS)
    return True


async def wait_until(condition: Callable[[], bool], within_seconds: float) -> bool:
    """Poll until the condition holds; False if it does not in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    while not condition():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections that linger in TIME_WAIT take no port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def port_holder(port: int) -> str | None:
    """The process that has the port, as `name (pid 123)`; None if it cannot be told."""
    try:
        for connection in psutil.net_connections("tcp"):
            local, pid = connection.laddr, connection.pid
            if local and local.port == port and pid is not None:
                return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return None
    return None


def free_ports(count: int, *, besides: Collection[int] = ()) -> list[int]:
    """Ports of 127.0.0.1 that nobody has at the moment, and that are not among `besides`.

    None of those that the system gives to outgoing connections: while a node is down, one of
    them could take its port.
    """
    candidates = set(FREE_PORTS).difference(besides)
    shuffled = random.sample(sorted(candidates), len(candidates))
    free = (port for port in shuffled if is_port_free("127.0.0.1", port))
    return list(itertools.islice(free, count))


def _find(identity: ProcessIdentity | None) -> psutil.Process | None:
    _children[:] = [child for child in _children if child.poll() is None]
    if identity is None:
        return None
    try:
        process = psutil.Process(identity.pid)
        difference = abs(process.create_time() - identity.created)
    except psutil.NoSuchProcess:
        return None
    return process if difference <= CREATED_TOLERANCE_SECONDS else None
