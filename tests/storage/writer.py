"""A process that writes, says what it has synced, and dies by SIGKILL. Run by the crash tests.

    writer.py log PATH WRITES SYNCED     WRITES writes of 1 KiB, synced after SYNCED of them; dies
    writer.py state PATH FIRST           writes and syncs in parallel until it is killed
    writer.py raft PATH FIRST            appends entries and syncs until it is killed
    writer.py full ROLE PATH             meets a full disk; prints what became of it

What is synced is printed, a number a line.
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path

from kvorum.errors import StorageError
from kvorum_node.raft.types import Entry, EntryKind, GroupId, HardState, Index, NodeId, Term
from kvorum_node.storage.engine import Batch, Family
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.rocks import RocksEngine, Role

GROUP = GroupId(1)


def record(number: int) -> bytes:
    return b"%08d" % number * 128


def write_log(path: Path, writes: int, synced: int) -> None:
    engine = RocksEngine.open(path, Role.LOG)
    for number in range(1, writes + 1):
        batch = Batch()
        batch.put(Family.LOG, b"%08d" % number, record(number))
        engine.write(batch)
        if number == synced:
            engine.sync()
    os.kill(os.getpid(), signal.SIGKILL)


def write_state(path: Path, first: int) -> None:
    engine = RocksEngine.open(path, Role.STATE)
    written = first - 1

    def sync_for_ever() -> None:
        while True:
            promised = written
            engine.sync()
            print(promised, flush=True)

    threading.Thread(target=sync_for_ever, daemon=True).start()
    while True:
        batch = Batch()
        batch.put(Family.DATA, b"%08d" % (written + 1), record(written + 1) * 8)
        batch.put(Family.META, b"applied", b"%08d" % (written + 1))
        engine.write(batch)
        written += 1


def write_raft(path: Path, first: int) -> None:
    engine = RocksEngine.open(path, Role.LOG)
    log = RaftLogStore(engine, GROUP)
    index = first
    while True:
        batch = Batch()
        entries = [
            Entry(Index(index + i), Term(index), EntryKind.COMMANDS, record(index + i))
            for i in range(5)
        ]
        log.append(batch, entries)
        log.save_hard_state(batch, HardState(Term(index), NodeId(1), Index(index - 1)))
        if index % 50 == 1 and index > 100:
            log.cut(batch, Index(index - 100))
        engine.write(batch)
        engine.sync()
        index += 5
        print(index - 1, flush=True)


def fill_the_disk(role: Role, path: Path) -> None:
    engine = RocksEngine.open(path, role)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, limits[1]))
    outcomes = []
    for attempt in range(2):
        try:
            for number in range(1000):
                batch = Batch()
                batch.put(Family.LOG, b"%08d" % number, os.urandom(1024))
                engine.write(batch)
            engine.sync()
            outcomes.append("no error")
        except StorageError as error:
            outcomes.append(str(error))
        if attempt == 0:  # the disk has room again, and the engine still refuses
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    try:
        engine.sync()
        outcomes.append("no error")
    except StorageError as error:
        outcomes.append(str(error))
    engine.close()
    RocksEngine.open(path, role, create=False).close()
    print("\n".join(outcomes))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["log", path, writes, synced]:
            write_log(Path(path), int(writes), int(synced))
        case ["state", path, first]:
            write_state(Path(path), int(first))
        case ["raft", path, first]:
            write_raft(Path(path), int(first))
        case ["full", role, path]:
            fill_the_disk(Role(role), Path(path))
        case _:
            sys.exit(__doc__)
