"""Real node processes: how they end, whenever they are told to, and what their probes say."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvorum.cli.processes import free_ports
from tests.support import shell
from tests.support.plain_http import ask, until

SLOW_OPENING = """
import time
from kvorum_node.storage.data_directory import Storage
Storage.open = lambda *_, **__: time.sleep(600)
"""
NO_END = """
import asyncio
from kvorum_node import server, termination
termination.DRAIN_SECONDS = 0.5
server._leave = lambda _: asyncio.sleep(600)
"""
TOLD_WHILE_IMPORTED = """
import os, signal, sys

class Told:
    def find_spec(self, name, path=None, target=None):
        if name == "kvorum.cli.app":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Told())
"""


class Node:
    """The arguments of one node, whose process is started and ended by the test."""

    def __init__(self, directory: Path, name: str, ports: Sequence[int]) -> None:
        self.address, self.admin = (f"127.0.0.1:{port}" for port in ports)
        self.arguments = [
            *("node", name, "--data-dir", str(directory / name)),
            *("--listen", self.address, "--admin-listen", self.admin),
        ]
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, before: str = "") -> "subprocess.Popen[str]":
        """Start it, with some code before its first line."""
        main = f"{before}\nfrom kvorum.cli import main\nmain()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", main, *self.arguments, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    async def told(self, number: signal.Signals) -> tuple[int, str]:
        """Send the signal; the status and the log of the process."""
        assert self.process is not None
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        assert self.process is not None
        _, log = await asyncio.to_thread(self.process.communicate, timeout=shell.END_SECONDS)
        return self.process.returncode, log


@contextmanager
def nodes(directory: Path, count: int) -> Iterator[list[Node]]:
    ports = free_ports(2 * count)
    made = [Node(directory, f"n{n + 1}", ports[2 * n : 2 * n + 2]) for n in range(count)]
    try:
        yield made
    finally:
        for one in made:
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.communicate()


@pytest.fixture
async def n1(tmp_path: Path) -> AsyncIterator[Node]:
    with nodes(tmp_path, 1) as [node]:
        yield node


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_that_serves_says_how_long_it_takes_to_end(
    n1: Node, number: signal.Signals
) -> None:
    n1.start("--cluster", f"n1={n1.address}")
    await until(n1.admin, "/readyz", 200)
    status, log = await n1.told(number)
    assert status == 0
    assert "it hands leadership over, finishes calls and flushes, for at most 20 s" in log
    assert "n1 has stopped" in log


async def test_sigterm_while_it_is_loaded_ends_it_with_status_0(n1: Node) -> None:
    n1.start("--cluster", f"n1={n1.address}", before=TOLD_WHILE_IMPORTED)
    assert await n1.ended() == (0, "")


async def test_sigterm_while_it_opens_its_data_ends_it_with_status_0(n1: Node) -> None:
    n1.start("--cluster", f"n1={n1.address}", before=SLOW_OPENING)
    await until(n1.admin, "/readyz", 503, "it opens")
    status, log = await n1.told(signal.SIGTERM)
    assert status == 0
    assert "n1 was told to stop while it opened" in log
    assert "Traceback" not in log


async def test_sigterm_while_it_waits_for_its_cluster_ends_it_with_status_0(n1: Node) -> None:
    [nobody] = free_ports(1)
    n1.start("--join", f"127.0.0.1:{nobody}")
    await until(n1.admin, "/readyz", 503, "n1 is starting: ")
    assert (await ask(n1.admin, "/livez")).status == 200
    status, log = await n1.told(signal.SIGTERM)
    assert status == 0
    assert "n1 was told to stop before it served" in log
    assert "Traceback" not in log


async def test_a_process_that_cannot_end_is_ended_with_status_1(n1: Node) -> None:
    n1.start("--cluster", f"n1={n1.address}", before=NO_END)
    await until(n1.admin, "/readyz", 200)
    status, log = await n1.told(signal.SIGTERM)
    assert status == 1
    assert "and is ended: what it has acknowledged is on its disk" in log


@pytest.mark.cluster
async def test_a_node_without_a_quorum_is_alive_and_not_ready(tmp_path: Path) -> None:
    with nodes(tmp_path, 3) as members:
        cluster = ",".join(f"n{n + 1}={one.address}" for n, one in enumerate(members))
        for one in members:
            one.start("--cluster", cluster)
        for one in members:
            await until(one.admin, "/readyz", 200)
        for one in members[1:]:
            await one.told(signal.SIGKILL)
        lost = await until(members[0].admin, "/readyz", 503)
        assert lost.body == "n1 hears no leader\n"
        assert (await ask(members[0].admin, "/livez")).body == "ok\n"
        members[1].start()
        await until(members[0].admin, "/readyz", 200)
        await until(members[1].admin, "/readyz", 200)
        for one in members[:2]:
            status, _ = await one.told(signal.SIGTERM)
            assert status == 0
