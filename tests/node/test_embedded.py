"""A store inside a process: in memory and in a directory, through crashes and full disks."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage

import pytest

import kvorum
from kvorum.backends.embedded import EmbeddedBackend
from kvorum.errors import (
    DataDirectoryInUse,
    DataDirectoryMismatch,
    QuotaExceeded,
    StorageError,
)
from kvorum_node import space
from kvorum_node.embedded import EmbeddedNode
from kvorum_node.node import Node, Timing
from kvorum_node.raft.types import NodeId
from kvorum_node.storage.data_directory import Identity, Storage

PROGRAM = Path(__file__).with_name("embedded_program.py")


@contextmanager
def running(*arguments: str | Path | int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def killed_after(acknowledged: int, *arguments: str | Path | int) -> set[int]:
    """What the program printed until it was killed, which is after so many lines at least."""
    with running(*arguments) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(acknowledged)]
        os.kill(process.pid, signal.SIGKILL)
        printed += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return {int(line) for line in printed if line.endswith("\n")}


async def test_a_store_in_memory_begins_empty_and_serves_at_once() -> None:
    for _ in range(2):
        async with kvorum.open("memory:") as kv:
            assert (await kv.list()).entries == ()
            assert await kv.put("k", 1) == 1


async def test_a_directory_keeps_what_was_written(tmp_path: Path) -> None:
    for opening in range(1, 4):
        async with kvorum.open(tmp_path / "data") as kv:
            assert await kv.add("opened") == opening
            await kv.put(f"written in {opening}", {"number": opening})
            entries = [entry async for entry in kv.scan()]
        assert [entry.key for entry in entries] == [
            "opened",
            *(f"written in {number}" for number in range(1, opening + 1)),
        ]


async def test_writes_are_refused_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kvorum.open(tmp_path) as kv:
        await kv.put("before", 1)
        free = space.MIN_FREE_BYTES - 1
        usage = disk_usage(tmp_path)
        monkeypatch.setattr(space, "disk_usage", lambda _: usage._replace(free=free))
        error = None
        while error is None:
            try:
                await kv.put("k", 1)
            except QuotaExceeded as refused:
                error = refused
        assert f"{free:,} bytes left" in str(error)
        assert error.metadata["limit"] == "min_free_bytes"
        assert await kv.get("before") is not None
        assert await kv.delete("before")
        monkeypatch.undo()
        while True:
            with suppress(QuotaExceeded):
                await kv.put("after", 1)
                break


async def test_a_store_in_memory_looks_at_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_: object) -> None:
        raise AssertionError("a look at a disk")

    monkeypatch.setattr(space, "disk_usage", look)
    async with kvorum.open("memory:") as kv:
        assert await kv.put("k", 1) == 1


async def test_a_clean_close_leaves_nothing_to_replay(tmp_path: Path) -> None:
    async with kvorum.open(tmp_path) as kv:
        for number in range(10):
            await kv.put(str(number), number)
    storage = Storage.open(tmp_path, None)
    node = Node(storage, {NodeId(1): ""}, timing=Timing(), log_max_bytes=1 << 20)
    try:
        assert node.group.machine.applied == node.group.log.last_index()
    finally:
        await node.stop()


async def test_every_write_that_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    for _ in range(3):
        first = max(acknowledged, default=-1) + 1000  # never a number that is in doubt
        acknowledged |= killed_after(200, "write", tmp_path, first)
        async with kvorum.open(tmp_path) as kv:
            found = {entry.value["number"]: entry async for entry in kv.scan()}
        assert acknowledged <= found.keys()
        assert all(entry.key == f"{number:09}" for number, entry in found.items())
        assert all(len(entry.value["padding"]) == 1000 for entry in found.values())


async def test_another_process_has_it_open(tmp_path: Path) -> None:
    with running("hold", tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(DataDirectoryInUse, match=f"pid {process.pid}"):
            await kvorum.open(tmp_path)
        process.communicate("\n", timeout=30)
    assert process.returncode == 0
    async with kvorum.open(tmp_path) as kv:
        await kv.put("k", 1)


async def test_the_same_process_has_it_open(tmp_path: Path) -> None:
    async with kvorum.open(tmp_path) as first:
        with pytest.raises(DataDirectoryInUse, match=f"pid {os.getpid()}"):
            await kvorum.open(tmp_path)
        await first.put("k", 1)  # and it goes on


async def test_the_directory_of_a_clusters_node_is_refused_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    identity = Identity("of a cluster", NodeId(2))
    addresses = {NodeId(number): f"h{number}:7100" for number in (1, 2, 3)}

    def open_as_node() -> Node:
        storage = Storage.open(tmp_path, identity)
        return Node(storage, addresses, timing=Timing(), log_max_bytes=1 << 20)

    await open_as_node().stop()
    with pytest.raises(DataDirectoryMismatch, match="n1=h1:7100, n2=h2:7100, n3=h3:7100"):
        await kvorum.open(tmp_path)
    await open_as_node().stop()


async def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StorageError, match="is a file"):
        await kvorum.open(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_disk_is_told_to_every_caller_and_the_store_can_be_closed(tmp_path: Path) -> None:
    with running("full", tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    written = int(lines[0].removeprefix("written "))
    assert written > 10
    assert lines[1].startswith("OutcomeUnknown")
    assert "File too large" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["ShuttingDown", "ShuttingDown", "closed"]
    assert all("File too large" in line for line in lines[2:4])
    # With room again, it opens, and everything that was acknowledged is there.
    with kvorum.open_sync(tmp_path) as kv:
        keys = {entry.key for entry in kv.scan()}
        assert {f"{number:09}" for number in range(written)} <= keys
        kv.put("later", 1)


async def test_a_lost_state_is_refused_rather_than_begun_anew(tmp_path: Path) -> None:
    """The log has been cut, so what the state held cannot come back from it."""
    one, other = tmp_path / "one", tmp_path / "other"
    node = await EmbeddedNode.open(one)
    log = node._node.group.log
    async with kvorum.KV(EmbeddedBackend(node), target="one", timeout=10.0, type="bytes") as kv:
        while log.first_index() == 1:
            await kv.put("k", bytes(500_000))
    async with kvorum.open(other) as kv:
        await kv.put("k", 1)
    (one / "state").rename(tmp_path / "gone")
    (other / "state").rename(one / "state")
    with pytest.raises(StorageError, match="the state was lost"):
        await kvorum.open(one)
