"""Both networks do what the faults ask of them, in one direction and no other."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.chaos import namespaces
from tests.chaos.namespaces import Namespaces, enter, hub, remove_leftovers
from tests.chaos.network import BLOCKED, Quality, between
from tests.chaos.proxies import CLIENT, Proxies, has_socket, socket_inode

WAIT_SECONDS = 20.0


def test_between_is_both_directions() -> None:
    assert set(between(("n1",), ("n2", "n3"))) == {
        *(("n1", "n2"), ("n2", "n1"), ("n1", "n3"), ("n3", "n1")),
    }


# Namespaces.


@pytest.fixture
def spaces() -> Iterator[Namespaces]:
    if lacking := namespaces.missing():
        pytest.skip(f"no network namespaces: {lacking}")
    with hub(3) as (prefix, _):
        yield Namespaces(prefix, 3)


RECEIVE = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
    receiver.bind(("", 7100))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(receiver.recv(100).decode(), flush=True)
"""
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for text in sys.argv[2:]:
        sender.sendto(text.encode(), (sys.argv[1], 7100))
"""


class Receiver:
    """A process in the place of a node that gets datagrams."""

    def __init__(self, spaces: Namespaces, name: str) -> None:
        self.place = spaces.places[name]
        command = [*self.place.prefix, sys.executable, "-c", RECEIVE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def next(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def send(spaces: Namespaces, sender: str, recipient: str, *texts: str) -> None:
    address = spaces.places[recipient].address.partition(":")[0]
    command = [*spaces.places[sender].prefix, sys.executable, "-c", SEND, address, *texts]
    subprocess.run(command, check=True)


async def test_packets_are_dropped_in_the_blocked_direction_alone(spaces: Namespaces) -> None:
    with (
        Receiver(spaces, "n1") as n1,
        Receiver(spaces, "n2") as n2,
        Receiver(spaces, "n3") as n3,
    ):
        await spaces.set({("n1", "n2"): BLOCKED})
        send(spaces, "n1", "n2", "is dropped")
        send(spaces, "n3", "n2", "from another")
        send(spaces, "n1", "n3", "to another")
        send(spaces, "n2", "n1", "the other way")
        assert n2.next() == "from another"
        assert n3.next() == "to another"
        assert n1.next() == "the other way"
        await spaces.set({})
        send(spaces, "n1", "n2", "is repaired")
        assert n2.next() == "is repaired"


async def test_some_packets_are_lost_and_some_arrive(spaces: Namespaces) -> None:
    with Receiver(spaces, "n2") as n2:
        await spaces.set({("n1", "n2"): Quality(loss=0.5)})
        send(spaces, "n1", "n2", *map(str, range(100)))
        await spaces.set({})
        send(spaces, "n1", "n2", "last")
        arrived = list(iter(n2.next, "last"))
    assert 5 < len(arrived) < 95


def test_the_hub_leaves_nothing_behind(spaces: Namespaces) -> None:
    assert os.environ.get(namespaces.INSIDE) is None
    mine = f"kvorum-chaos-{os.getpid()}-"
    names = [path.name for path in namespaces.RUN.glob(f"{mine}*")]
    assert sorted(names) == [f"{mine}{end}" for end in ("hub", "n1", "n2", "n3")]
    sleeper = subprocess.Popen([*spaces.places["n1"].prefix, "sleep", "600"])
    namespaces._remove(mine.rstrip("-"))
    assert sleeper.wait(WAIT_SECONDS) == -9
    assert list(namespaces.RUN.glob(f"{mine}*")) == []


def test_what_a_dead_owner_left_is_removed_and_what_a_living_one_has_is_not() -> None:
    if lacking := namespaces.missing():
        pytest.skip(f"no network namespaces: {lacking}")
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, living = (f"kvorum-chaos-{pid}-n1" for pid in (ended.pid, os.getpid()))
    for name in (dead, living):
        subprocess.run(["ip", "netns", "add", name], check=True)
    sleeper = subprocess.Popen([*enter(dead), "sleep", "600"])
    try:
        remove_leftovers()
        assert not (namespaces.RUN / dead).exists()
        assert (namespaces.RUN / living).exists()
        assert sleeper.wait(WAIT_SECONDS) == -9
    finally:
        namespaces._remove(living.removesuffix("-n1"))
        sleeper.kill()


# Proxies.

pytest_linux = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="needs to be told which process has a socket: Linux"
)

ECHO = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    print("connected", flush=True)
    for line in sys.stdin:
        connection.sendall(line.encode())
        print(connection.recv(100).decode(), end="", flush=True)
"""


class Caller:
    """A process that sends lines and prints the echo."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n".encode())
        await self.process.stdin.drain()

    async def hear(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            return (await self.process.stdout.readline()).decode().strip()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


@pytest.fixture
async def call() -> AsyncIterator[tuple[Proxies, Caller]]:
    """n1, which listens and echoes, and a process that poses as n2 and is connected to it."""
    pids: dict[str, int] = {}
    async with Proxies(["n1", "n2"], pids.get) as proxies:
        place = proxies.places["n1"]
        listen = int(place.listen.rpartition(":")[2])
        async with await asyncio.start_server(echo, "127.0.0.1", listen):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", ECHO, place.address.rpartition(":")[2]),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            pids["n2"] = process.pid
            try:
                caller = Caller(process)
                assert await caller.hear() == "connected"
                yield proxies, caller
            finally:
                process.kill()
                await process.wait()


@pytest_linux
@pytest.mark.parametrize("pair", [("n2", "n1"), ("n1", "n2")])
async def test_what_is_blocked_is_held_back_until_the_repair(
    call: tuple[Proxies, Caller], pair: tuple[str, str]
) -> None:
    proxies, caller = call
    await caller.say("before")
    assert await caller.hear() == "before"
    await proxies.set({pair: BLOCKED})
    await caller.say("held back")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await caller.hear()
    await proxies.set({})
    assert await caller.hear() == "held back"


@pytest_linux
async def test_other_pairs_are_not_harmed(call: tuple[Proxies, Caller]) -> None:
    proxies, caller = call
    await proxies.set({("n3", "n1"): BLOCKED, (CLIENT, "n1"): BLOCKED, ("n1", CLIENT): BLOCKED})
    await caller.say("passes")
    assert await caller.hear() == "passes"


@pytest_linux
async def test_a_delay_keeps_the_order(call: tuple[Proxies, Caller]) -> None:
    proxies, caller = call
    await proxies.set({("n2", "n1"): Quality(delay_ms=50), ("n1", "n2"): Quality(loss=0.5)})
    for number in range(5):
        await caller.say(str(number))
        assert await caller.hear() == str(number)


@pytest_linux
def test_a_socket_is_traced_to_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            own = connection.getsockname()[1]
            inode = socket_inode(own, port)
            assert inode is not None
            assert has_socket(os.getpid(), inode)
            assert not has_socket(os.getppid(), inode)
            assert socket_inode(port, own) != inode
    assert socket_inode(1, 2) is None


@pytest.mark.skipif(shutil.which("ip") is None, reason="there is no ip")
def test_without_what_it_takes_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert namespaces.missing() == "only root may make network namespaces"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else name)
    assert namespaces.missing() == "there is no nft"
