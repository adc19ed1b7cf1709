"""What a node does with a snapshot, step by step, so that a test can crash it between any two.

    python -m tests.storage.receiver DIRECTORY STEP     on RocksDB; dies by SIGKILL after the step

The node has entries 1 to 40, and receives the state at 200 and the entries after it.
"""

import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvorum_node.machine import Machine
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import Entry, GroupId, HardState, Index, NodeId, Position, Term
from kvorum_node.storage.engine import Batch, Engine
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile
from kvorum_node.storage.rocks import RocksEngine, Role
from tests.support.commands import random_entries
from tests.support.snapshots import snapshot_of

GROUP = GroupId(1)
OLD_LAST, FLUSHED, SNAPSHOT_LAST, LAST = 40, 30, 200, 205
CHUNKS = 24
ENTRIES = random_entries(random.Random(1), LAST)
OLD_MEMBERS = Configuration.of({NodeId(1): "a:1"})
MEMBERS = Configuration.of({NodeId(1): "a:1", NodeId(2): "b:1"})

STEPS = (
    "staging",
    "staged half",
    "finished",
    "synced staged",
    "restored",
    "synced log",
    "installed",
    "applied",
    "flushed",
)


def machine_at(index: int) -> Machine:
    machine = Machine(MemoryEngine(), GROUP)
    machine.apply(ENTRIES[:index])
    return machine


class Receiver:
    """A node's log and state, opened as a node does."""

    def __init__(self, log: Engine, state: Engine) -> None:
        self.log_engine, self.state_engine = log, state
        self.log = RaftLogStore(log, GROUP)
        self.machine = Machine(state, GROUP)
        reconcile(self.log, self.machine)

    def begin(self) -> None:
        """Come to where the snapshot finds the node: its last applied entries are not flushed."""
        batch = Batch()
        self.log.bootstrap(batch, OLD_MEMBERS)
        self._append(batch, ENTRIES[:OLD_LAST])
        self.log_engine.sync()
        self.machine.apply(ENTRIES[:FLUSHED])
        self.state_engine.sync()
        self.machine.apply(ENTRIES[FLUSHED:OLD_LAST])

    def receive(self, stream: bytes, *, sync_staged: bool = True) -> Iterator[str]:
        """Yields what has just been done: one of STEPS."""
        staging = self.machine.stage_snapshot()
        chunk_bytes = len(stream) // CHUNKS + 1
        for number, start in enumerate(range(0, len(stream), chunk_bytes)):
            staging.write(stream[start : start + chunk_bytes])
            yield "staging"
            if number == CHUNKS // 2 and sync_staged:
                self.state_engine.sync()
                staging.synced()
                yield "staged half"
        staging.finish(Index(SNAPSHOT_LAST))
        yield "finished"
        if sync_staged:
            self.state_engine.sync()
            yield "synced staged"
        batch = Batch()
        self.log.restore(batch, Position(Index(SNAPSHOT_LAST), Term(1)), MEMBERS)
        self._append(batch, ENTRIES[SNAPSHOT_LAST:])
        yield "restored"
        self.log_engine.sync()
        yield "synced log"
        self.machine.install(Index(SNAPSHOT_LAST))
        yield "installed"
        self.machine.apply(ENTRIES[SNAPSHOT_LAST:])
        yield "applied"
        self.state_engine.sync()
        yield "flushed"

    def replay(self) -> None:
        """Apply what the log has beyond the state."""
        first, end = Index(self.machine.applied + 1), Index(self.log.last_index() + 1)
        if first < end:
            self.machine.apply(self.log.entries(first, end, 1 << 40))

    def _append(self, batch: Batch, entries: Sequence[Entry]) -> None:
        self.log.append(batch, entries)
        self.log.save_hard_state(batch, HardState(Term(1), None, entries[0].index))
        self.log_engine.write(batch)


def open_receiver(directory: Path) -> Receiver:
    return Receiver(
        RocksEngine.open(directory / "log", Role.LOG),
        RocksEngine.open(directory / "state", Role.STATE),
    )


def die_after(directory: Path, last_step: str) -> None:
    receiver = open_receiver(directory)
    receiver.begin()
    for step in receiver.receive(snapshot_of(machine_at(SNAPSHOT_LAST))):
        if step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [directory, step] if step in STEPS:
            die_after(Path(directory), step)
        case _:
            sys.exit(__doc__)
