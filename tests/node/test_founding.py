"""The directory that a cluster begins with: empty, or with a snapshot; whole, or not at all."""

import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvorum import limits
from kvorum.errors import Compacted, DataDirectoryInUse, FutureRevision, StorageError
from kvorum.snapshot_file import SnapshotFileDamaged
from kvorum_node import founding
from kvorum_node.founding import SKIPPED_REVISIONS, Founded
from kvorum_node.machine import Machine
from kvorum_node.node import DEFAULT_GROUP, Node, Timing
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import GroupId, HardState, Index, NodeId, Position, Term
from kvorum_node.snapshot_check import verify
from kvorum_node.storage import data_directory, layout
from kvorum_node.storage.data_directory import Storage
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.survivor import examine
from kvorumpb.v1.command_pb2 import Command, CommandBatch, Transaction, TransactionResult
from tests.support.commands import (
    at_revision,
    get,
    indexed,
    put,
    random_entries,
    run_one,
    transaction,
)
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.snapshot_files import file_of, header_of, opened, trailer_of, written
from tests.support.snapshots import hash_of, snapshot_of

PROGRAM = Path(__file__).with_name("founding_program.py")
ADDRESS = "127.0.0.1:1"
ALONE = Configuration.of({NodeId(1): ADDRESS})

Row = tuple[Family, bytes, bytes]


def grown(entries: int = 60) -> Machine:
    machine = Machine(MemoryEngine(), DEFAULT_GROUP)
    machine.apply(random_entries(random.Random(7), entries))
    run_one(
        machine, put(b"indexed", b"v", entries=[indexed("i", b"x")]), put(b"large", b"x" * 9000)
    )
    return machine


SOURCE = grown()
FILE = file_of(SOURCE)
SMALL = Machine(MemoryEngine(), DEFAULT_GROUP)
run_one(SMALL, put(b"k", b"v"), log_time_ms=70)
SMALL_FILE = file_of(SMALL, chunk_bytes=30)


def restore(path: Path, data: bytes = FILE, node: int = 1) -> Founded:
    return founding.restore(
        path,
        opened(data),
        node=NodeId(node),
        address=ADDRESS,
        written=lambda _: None,
        checked=lambda _: None,
    )


def begin(path: Path) -> Founded:
    return founding.begin(path, node=NodeId(1), address=ADDRESS)


def rows(engine: Engine, space: layout.Space) -> list[Row]:
    return [
        (family, layout.without_prefix(key), value)
        for family in layout.STATE_FAMILIES
        for key, value in engine.scan(family, *space.range)
    ]


@contextmanager
def stored(path: Path) -> Iterator[tuple[Storage, Machine]]:
    storage = Storage.open(path, None)
    try:
        yield storage, Machine(storage.state, DEFAULT_GROUP)
    finally:
        storage.close()


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Node]:
    node = Node(Storage.open(path, None), None, timing=Timing(), log_max_bytes=1 << 20)
    node.start()
    try:
        await node.wait_leader()
        yield node
    finally:
        await node.stop()


async def run_on(node: Node, one: Transaction) -> TransactionResult:
    commands = CommandBatch(commands=[Command(transaction=one)])
    deadline = asyncio.get_running_loop().time() + 10
    [result] = await node.group.submit(commands.SerializeToString(), 1, deadline=deadline)
    return result


def assert_no_node_starts(path: Path) -> None:
    """From what is in the directory, unless there is nothing in it."""
    names = {one.name for one in path.iterdir()} if path.exists() else set[str]()
    if names - {"LOCK"}:
        with pytest.raises(StorageError, match=r"is not complete: .* delete the directory"):
            Storage.open(path, None)
        for act in (restore, begin):
            with pytest.raises(StorageError, match="is what is left of a start that was broken"):
                act(path)


# What is there when all went well.


def test_a_cluster_begins_with_nothing_and_one_member(tmp_path: Path) -> None:
    founded = begin(tmp_path / "new" / "n1")
    found = examine(tmp_path / "new" / "n1")
    assert found.identity == founded.identity
    assert found.configuration == ALONE
    assert (found.last, found.applied, found.revision) == (Position(Index(0), Term(0)), 0, 0)
    assert not found.is_embedded
    assert begin(tmp_path / "other").identity.cluster_id != founded.identity.cluster_id


async def test_it_serves_from_then_on(tmp_path: Path) -> None:
    begin(tmp_path)
    for revision in (1, 2):
        async with running(tmp_path) as node:
            assert (await run_on(node, transaction(put(b"k")))).revision == revision


def test_a_restored_directory_holds_what_the_file_does_and_one_member(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    founded = restore(path)
    found = examine(path)
    assert found.identity == founded.identity
    assert found.identity.cluster_id != "old"
    assert found.configuration == ALONE
    last = Position(SOURCE.applied, Term(1))
    assert (found.last, founded.last) == (last, last)
    assert found.hard_state == HardState(Term(1), None, SOURCE.applied)
    with stored(path) as (storage, machine):
        log = RaftLogStore(storage.log, DEFAULT_GROUP)
        assert log.first_index() == SOURCE.applied + 1
        here = rows(storage.state, machine._space)
        assert machine.staged is None
        assert rows(storage.state, machine._space.other) == []
    there = rows(SOURCE._engine, SOURCE._space)
    number = (SOURCE.revision + SKIPPED_REVISIONS).to_bytes(8, "big")
    changed = {layout.META_REVISION: number, layout.META_OLDEST_REVISION: number}
    expected = {(family, key): value for family, key, value in there}
    expected |= {(Family.META, key): value for key, value in changed.items()}
    assert {(family, key): value for family, key, value in here} == expected


def test_it_is_hashed_before_anything_of_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state at the index of the snapshot is that of the node that gave it, hash for hash."""
    hashes: list[object] = []
    skip = Machine.skip_revisions

    def skip_later(machine: Machine, count: int) -> None:
        hashes.append(hash_of(machine))
        skip(machine, count)

    monkeypatch.setattr(Machine, "skip_revisions", skip_later)
    restore(tmp_path / "n1")
    assert hashes == [hash_of(SOURCE)]


def test_the_node_is_called_as_is_wished_and_lower_names_are_used_up(tmp_path: Path) -> None:
    restore(tmp_path / "n5", node=5)
    found = examine(tmp_path / "n5")
    assert (found.node, found.configuration.last_id) == (5, 5)


async def test_what_goes_on_is_another_history(tmp_path: Path) -> None:
    """Whatever the old cluster called 5 or 700, nobody is told something else of it here."""
    restore(tmp_path)
    old = SOURCE.revision
    async with running(tmp_path) as node:
        machine = node.group.machine
        assert machine.oldest_revision == old + SKIPPED_REVISIONS
        for lost in (old - 1, old, old + 1, old + 10**9):
            with pytest.raises(Compacted):
                machine.require_readable(lost)
        with pytest.raises(FutureRevision):
            machine.require_readable(old + 2 * SKIPPED_REVISIONS)
        record = machine.get(b"indexed")
        assert record is not None
        lost = old + 1  # where the old cluster has written it again
        failed = await run_on(
            node, transaction(put(b"indexed"), checks=[at_revision(b"indexed", lost)])
        )
        assert (failed.succeeded, failed.failed_check) == (False, 0)
        held = await run_on(
            node,
            transaction(put(b"indexed", b"w"), checks=[at_revision(b"indexed", record.revision)]),
        )
        assert held.succeeded
        assert held.revision == old + SKIPPED_REVISIONS + 1
        before = machine.get(b"indexed", revision=held.revision - 1)
        assert before is not None
        assert before.value == b"v"  # its own history is kept


async def test_history_of_before_is_removed_in_the_end(tmp_path: Path) -> None:
    restore(tmp_path)
    async with running(tmp_path) as node:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not node.group.machine.is_trimmed:  # noqa: ASYNC110 - housekeeping sets no event
                await asyncio.sleep(0.01)
        kept = [family for family, _, _ in rows(node.storage.state, node.group.machine._space)]
        assert Family.HISTORY not in kept
        assert Family.KEYS not in kept
        assert Family.DATA in kept


async def test_log_time_goes_on_from_the_wall_clock_and_never_backwards(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    for name, log_time_ms, is_there in (
        ("taken yesterday", now_ms - 86_400_000, False),
        ("taken by a clock that was ahead", now_ms + 86_400_000, True),
    ):
        machine = Machine(MemoryEngine(), DEFAULT_GROUP)
        lives_ms = 3_600_000
        run_one(machine, put(b"k", ttl_ms=lives_ms), put(b"stays"), log_time_ms=log_time_ms)
        path = tmp_path / name
        restore(path, file_of(machine))
        async with running(path) as node:
            result = await run_on(node, transaction(get(b"k"), get(b"stays")))
            assert result.log_time_ms >= max(log_time_ms, now_ms)
            assert result.log_time_ms < max(log_time_ms, now_ms) + lives_ms
            found = [one.get.HasField("record") for one in result.results]
            assert found == [is_there, True]


# What is refused.


@pytest.mark.parametrize("name", ["notes.txt", "kvorum.json.new", ".hidden", "log"])
def test_a_directory_with_something_in_it_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for act in (restore, begin):
        with pytest.raises(StorageError, match=f"is not empty: it contains {name}"):
            act(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_nothing_is_written_over_a_node(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    identity = begin(path).identity
    for act in (restore, begin):
        with pytest.raises(StorageError, match=f"holds {identity}. Choose a new or an empty"):
            act(path)
    with stored(path):
        for act in (restore, begin):
            with pytest.raises(StorageError, match="holds n1 of cluster"):
                act(path)
    assert examine(path).identity == identity


def test_a_directory_that_somebody_waits_on_is_left_alone(tmp_path: Path) -> None:
    """As another restore does before it has written anything."""
    lock = data_directory._lock(tmp_path)
    try:
        for act in (restore, begin):
            with pytest.raises(DataDirectoryInUse):
                act(tmp_path)
    finally:
        os.close(lock)
    begin(tmp_path)


def test_a_fresh_volume_is_as_good_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    restore(tmp_path)
    assert examine(tmp_path).applied == SOURCE.applied


def test_a_file_and_what_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is a file"):
        restore(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be used"):
        restore(tmp_path / "file" / "below")


# Damaged files.


def refusal_of(data: bytes) -> str:
    with pytest.raises(SnapshotFileDamaged) as raised:
        verify(opened(data), lambda _: None)
    return raised.value.message


def test_a_whole_file_is_verified_as_it_is() -> None:
    seen: list[int] = []
    verify(opened(FILE), seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[-1] < len(FILE)


def test_every_altered_byte_and_every_end_is_found_offline() -> None:
    for position in range(len(SMALL_FILE)):
        altered = bytearray(SMALL_FILE)
        altered[position] ^= 0x10
        refusal_of(bytes(altered))
        refusal_of(SMALL_FILE[:position])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, len(SMALL_FILE) - 1), mask=st.integers(0, 255))
def test_a_damaged_file_leaves_nothing_that_starts(
    position: int, mask: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("restored")
    altered = bytearray(SMALL_FILE)
    altered[position] ^= mask
    data = bytes(altered) if mask else SMALL_FILE[:position]
    with pytest.raises(SnapshotFileDamaged):
        restore(path, data)
    assert {one.name for one in path.iterdir()} <= {"LOCK"}
    restore(path, SMALL_FILE)


CONTENT = snapshot_of(SMALL)


def without_first_row(content: bytes) -> bytes:
    """The content without its first row, and with a count that knows of it."""
    key, value = (int.from_bytes(content[at : at + 4], "big") for at in (2, 6))
    count = int.from_bytes(content[-8:], "big") - 1
    return content[:1] + content[10 + key + value : -8] + count.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("content", "changes", "why"),
    [
        (CONTENT[:-1], {}, "breaks off"),
        (CONTENT + b"\0", {}, "goes on after its end"),
        (b"\2" + CONTENT[1:], {}, "format 2"),
        (without_first_row(CONTENT), {}, "not those that the node has hashed"),
        (CONTENT, {"revision": 9}, "revision 9 and log time 70; the state 1, 1 and 70"),
        (CONTENT, {"log_time_ms": 9}, "log time 9; the state"),
        (CONTENT, {"index": 9}, "at 1, not at 9|index 9, revision 1"),
    ],
)
def test_a_file_that_is_whole_and_wrong_is_refused(
    tmp_path: Path, content: bytes, changes: dict[str, int], why: str
) -> None:
    header = header_of(SMALL)
    for name, value in changes.items():
        setattr(header, name, value)
    trailer = trailer_of(SMALL, content)
    data = written(header, content, trailer)
    assert re.search(why, refusal_of(data))
    with pytest.raises(SnapshotFileDamaged, match=why):
        restore(tmp_path / "n1", data)
    assert [one.name for one in (tmp_path / "n1").iterdir()] == ["LOCK"]


def test_a_record_that_is_none_is_found() -> None:
    machine = Machine(MemoryEngine(), DEFAULT_GROUP)
    run_one(machine, put(b"k", b"value"))
    content = snapshot_of(machine)
    record = machine._engine.get(Family.DATA, layout.data_key(machine._space, b"k"))
    assert record is not None
    content = content.replace(record, b"\xff" * len(record))
    assert "is damaged before byte" in refusal_of(
        written(header_of(machine), content, trailer_of(machine, content))
    )


def test_what_the_disk_alters_while_it_is_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = founding._write_state

    def write_and_alter(storage: Storage, machine: Machine, *rest: object) -> None:
        write(storage, machine, *rest)  # type: ignore[arg-type]  # as they come
        batch = Batch()
        batch.put(Family.DATA, layout.data_key(machine._space, b"stranger"), b"")
        storage.state.write(batch)

    monkeypatch.setattr(founding, "_write_state", write_and_alter)
    with pytest.raises(SnapshotFileDamaged, match="what was written to the disk is not what"):
        restore(tmp_path / "n1")
    assert [one.name for one in (tmp_path / "n1").iterdir()] == ["LOCK"]


# Broken off.


def test_killed_anywhere_it_leaves_nothing_that_starts(tmp_path: Path) -> None:
    file = tmp_path / "a.snap"
    file.write_bytes(SMALL_FILE)
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), str(file), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    last, marked = int(ran.stdout), 0
    for step in range(last):
        path = tmp_path / f"{step}"
        if (path / "kvorum.json").exists():  # it was killed when all was done
            assert examine(path).applied == SMALL.applied
            continue
        marked += (path / "kvorum.json.unfinished").exists()
        assert_no_node_starts(path)
    assert marked > 10
    assert examine(tmp_path / f"{last}").applied == SMALL.applied


def test_a_failure_in_the_middle_is_cleared_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n1"
    with monkeypatch.context() as patch:
        patch.setattr(founding, "_write_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for act in (restore, begin):
            with pytest.raises(KeyboardInterrupt):
                act(path)
            assert [one.name for one in path.iterdir()] == ["LOCK"]
    restore(path)


def test_a_node_that_waits_sees_the_identity_when_all_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kvorum node` without a name looks for it: it must not see it while anything is missing."""
    seen: list[object] = []
    write = founding._write_log

    def look(storage: Storage, batch: object) -> None:
        seen.append(data_directory.stored_identity(tmp_path))
        write(storage, batch)  # type: ignore[arg-type]  # as it comes
        seen.append(data_directory.stored_identity(tmp_path))

    monkeypatch.setattr(founding, "_write_log", look)
    founded = restore(tmp_path)
    assert seen == [None, None]
    assert data_directory.stored_identity(tmp_path) == founded.identity


def test_a_large_state_is_restored_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is synced on the way, and no chunk is kept."""
    machine = Machine(MemoryEngine(), GroupId(1))
    for number in range(40):
        run_one(machine, put(b"%d" % number, random.Random(number).randbytes(100_000)))
    data = file_of(machine, chunk_bytes=limits.MAX_SNAPSHOT_CHUNK_BYTES)
    monkeypatch.setattr(founding, "MAX_UNSYNCED_BYTES", limits.MIB)
    syncs = 0
    found = Storage.found

    @contextmanager
    def counting(path: Path, identity: data_directory.Identity) -> Iterator[Storage]:
        with found(path, identity) as storage:
            sync = storage.state.sync

            def count() -> None:
                nonlocal syncs
                syncs += 1
                sync()

            storage.state.sync = count  # type: ignore[method-assign]  # it is counted
            yield storage

    monkeypatch.setattr(Storage, "found", counting)
    restore(tmp_path, data)
    assert syncs > 4  # three come when all of it has been read
