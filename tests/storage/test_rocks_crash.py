"""What RocksEngine keeps when its process is killed, and what it says when the disk has lied.

Every directory here was written by a real process that died by SIGKILL.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvorum.errors import StorageError
from kvorum_node.raft.types import Index, NodeId, Term
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.rocks import RocksEngine, Role
from tests.storage.writer import GROUP, record

WRITER = Path(__file__).with_name("writer.py")
WRITES, SYNCED = 200, 150

Damage = Callable[[bytes], bytes]


def run_writer(*arguments: object) -> None:
    process = subprocess.run(
        [sys.executable, str(WRITER), *map(str, arguments)], timeout=60, check=False
    )
    assert process.returncode == -signal.SIGKILL


def kill_writer_after(seconds: float, *arguments: object) -> int:
    """Run the writer, kill it some time after its first sync, return the last number it printed."""
    command = [sys.executable, str(WRITER), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)  # the moment of the kill is what varies, nothing is waited for
        process.kill()
        lines = [first, *process.stdout.read().split("\n")[:-1]]  # the last may be cut off
    return int(lines[-1])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with 150 synced writes and 50 that were not."""
    path = tmp_path_factory.mktemp("killed") / "log"
    run_writer("log", path, WRITES, SYNCED)
    return path


@pytest.fixture(scope="module")
def killed_synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with 200 synced writes and no other."""
    path = tmp_path_factory.mktemp("killed-synced") / "log"
    run_writer("log", path, WRITES, WRITES)
    return path


def wal_of(path: Path) -> Path:
    return max(path.glob("*.log"), key=lambda file: file.stat().st_size)


def damaged_copy(original: Path, copy: Path, damage: Damage) -> Path:
    shutil.copytree(original, copy)
    wal = wal_of(copy)
    wal.write_bytes(damage(wal.read_bytes()))
    return copy


def recovered(path: Path) -> int:
    """How many writes the log still has, which must be the first ones, unaltered."""
    engine = RocksEngine.open(path, Role.LOG, create=False)
    try:
        found = list(engine.scan(Family.LOG, b"", None))
    finally:
        engine.close()
    assert found == [(b"%08d" % n, record(n)) for n in range(1, len(found) + 1)]
    return len(found)


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    position = at % len(content)
    return content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]


def zeroed(content: bytes, start: int, end: int) -> bytes:
    return content[:start] + bytes(end - start) + content[end:]


def in_write(content: bytes, number: int) -> int:
    """An offset in the middle of a write: they are all of one size."""
    return int(len(content) * (number - 0.5) / WRITES)


def test_writes_survive_sigkill_synced_or_not(killed: Path, tmp_path: Path) -> None:
    assert recovered(damaged_copy(killed, tmp_path / "log", lambda wal: wal)) == WRITES


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        pytest.param(lambda wal: wal[:-1], WRITES - 1, id="the last write is cut short"),
        pytest.param(lambda wal: wal[: in_write(wal, 160)], 159, id="40 writes are cut off"),
        pytest.param(lambda wal: wal + bytes(5000), WRITES, id="zeros follow"),
        pytest.param(lambda wal: wal + b"rubbish" * 9, WRITES, id="rubbish follows"),
        pytest.param(
            lambda wal: zeroed(wal, in_write(wal, 160), in_write(wal, 164)),
            159,
            id="zeros stand in the place of writes",
        ),
        pytest.param(lambda wal: flipped(wal, in_write(wal, 170)), 169, id="a bit is flipped"),
    ],
)
def test_damage_behind_what_was_synced_is_dropped(
    killed: Path, tmp_path: Path, damage: Damage, left: int
) -> None:
    path = damaged_copy(killed, tmp_path / "log", damage)
    assert recovered(path) == left
    assert recovered(path) == left


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda wal: wal[: in_write(wal, 140)], id="the tail is cut off"),
        pytest.param(lambda wal: b"", id="it is empty"),
        pytest.param(lambda wal: flipped(wal, 3), id="a bit is flipped at the start"),
        pytest.param(lambda wal: flipped(wal, in_write(wal, 75)), id="a bit is flipped midway"),
        pytest.param(
            lambda wal: flipped(wal, in_write(wal, SYNCED)), id="a bit is flipped at the end"
        ),
        pytest.param(lambda wal: zeroed(wal, 9000, 9512), id="a sector is zero"),
    ],
)
def test_damage_to_what_was_synced_is_refused(killed: Path, tmp_path: Path, damage: Damage) -> None:
    path = damaged_copy(killed, tmp_path / "log", damage)
    for _ in range(2):  # the refused open must not have made the damage look whole
        with pytest.raises(StorageError, match=r"has lost writes.*replace this node"):
            recovered(path)


def test_no_flipped_bit_in_a_synced_log_is_believed(killed_synced: Path, tmp_path: Path) -> None:
    """Wherever it is, in the length of the last write too: all is there, or it is refused."""
    rng = random.Random(1)
    size = wal_of(killed_synced).stat().st_size
    length_of_a_write = size // WRITES
    # Lengths are in the first bytes of a record: look closely at the last one, and around it.
    offsets = [size - length_of_a_write + i for i in range(-12, 24)]
    offsets += [rng.randrange(size) for _ in range(30)]
    refused = 0
    for number, offset in enumerate(offsets):
        bit = rng.randrange(8)

        def damage(wal: bytes, offset: int = offset, bit: int = bit) -> bytes:
            return flipped(wal, offset, bit)

        path = damaged_copy(killed_synced, tmp_path / str(number), damage)
        try:
            assert recovered(path) == WRITES
        except StorageError:
            refused += 1
    assert refused >= len(offsets) - 3


def test_a_log_without_its_write_ahead_log_is_refused(killed: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    shutil.copytree(killed, path)
    wal_of(path).unlink()
    with pytest.raises(StorageError):
        recovered(path)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 12, b"\xff" * 12, b"longer than a mark"])
def test_a_log_without_its_mark_is_refused(
    killed: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "log"
    shutil.copytree(killed, path)
    mark = path / "SYNCED"
    mark.unlink()
    if content is not None:
        mark.write_bytes(content)
    with pytest.raises(StorageError, match=r"SYNCED.*replace this node"):
        recovered(path)


def test_a_damaged_file_is_refused_when_it_is_read(killed: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    shutil.copytree(killed, path)
    assert recovered(path) == WRITES  # this puts what the WAL had into a file
    (file,) = path.glob("*.sst")
    file.write_bytes(flipped(file.read_bytes(), 2000))
    with pytest.raises(StorageError, match=r"(?i)corruption|checksum"):
        recovered(path)


def test_state_loses_a_suffix_and_never_half_a_batch(tmp_path: Path) -> None:
    """Killed while it writes and flushes in parallel, again and again in the same directory."""
    rng = random.Random(2)
    applied = 0
    for _ in range(4):
        synced = kill_writer_after(rng.uniform(0, 0.5), "state", tmp_path / "state", applied + 1)
        engine = RocksEngine.open(tmp_path / "state", Role.STATE, create=False)
        stored = engine.get(Family.META, b"applied")
        keys = [key for key, _ in engine.scan(Family.DATA, b"", None)]
        engine.close()
        assert stored is not None
        applied = int(stored)
        assert applied >= synced
        assert keys == [b"%08d" % number for number in range(1, applied + 1)]


def test_a_raft_log_keeps_what_it_promised(tmp_path: Path) -> None:
    rng = random.Random(3)
    last = 0
    for _ in range(4):
        promised = kill_writer_after(rng.uniform(0, 0.4), "raft", tmp_path / "log", last + 1)
        engine = RocksEngine.open(tmp_path / "log", Role.LOG, create=False)
        log = RaftLogStore(engine, GROUP)
        last = log.last_index()
        assert last >= promised
        assert log.hard_state().term == log.term(Index(last)) == Term(last - 4)
        assert log.hard_state().vote == NodeId(1)
        kept = log.entries(log.first_index(), Index(last + 1), 1 << 30)
        assert [entry.index for entry in kept] == list(range(log.first_index(), last + 1))
        assert all(entry.data == record(entry.index) for entry in kept)
        engine.close()


@pytest.mark.parametrize("role", list(Role))
def test_a_full_disk_stops_the_engine_for_good(tmp_path: Path, role: Role) -> None:
    """RLIMIT_FSIZE stands in for a full disk; it is lifted again after the first error."""
    output = subprocess.run(
        [sys.executable, str(WRITER), "full", role.value, tmp_path / "engine"],
        timeout=60,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    first, second, third = output.splitlines()
    assert "File too large" in first
    assert second.startswith("refused after an earlier failure")
    assert third.startswith("refused after an earlier failure")


def test_without_fsync_a_sync_waits_for_nothing(tmp_path: Path) -> None:
    engine = RocksEngine.open(tmp_path / "log", Role.LOG, fsync=False)
    before = (tmp_path / "log" / "SYNCED").read_bytes()
    batch = Batch()
    batch.put(Family.LOG, b"a", b"1")
    engine.write(batch)
    engine.sync()
    assert (tmp_path / "log" / "SYNCED").read_bytes() == before
    engine.close()
    reopened = RocksEngine.open(tmp_path / "log", Role.LOG)
    assert reopened.get(Family.LOG, b"a") == b"1"
    reopened.close()
