"""A crash while a snapshot becomes the state: the whole old state or the whole new one.

The model loses every suffix of unsynced writes that the engines' rule allows, of
the log and of the state independently, after each step; RocksDB is killed by
SIGKILL after each step.
"""

import signal
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from kvorum.errors import StorageError
from kvorum_node.machine import ContentHash, Machine
from kvorum_node.raft.types import HardState, Index, Term
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.memory import MemoryEngine
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.storage.recovery import reconcile
from tests.storage.receiver import (
    ENTRIES,
    GROUP,
    LAST,
    MEMBERS,
    OLD_LAST,
    OLD_MEMBERS,
    SNAPSHOT_LAST,
    STEPS,
    Receiver,
    machine_at,
    open_receiver,
)
from tests.support.snapshots import hash_of, snapshot_of, stage

ROOT = Path(__file__).parents[2]


@cache
def stream() -> bytes:
    return snapshot_of(machine_at(SNAPSHOT_LAST))


@cache
def expected(index: int) -> ContentHash:
    return hash_of(machine_at(index))


class ModelDisk(MemoryEngine):
    """Remembers its writes, so that it can come back without the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Batch] = []
        self.synced = 0

    def write(self, batch: Batch) -> None:
        super().write(batch)
        self.written.append(batch)

    def sync(self) -> None:
        self.synced = len(self.written)

    def after_crash(self, kept: int) -> "ModelDisk":
        """The disk as a crash leaves it that loses all writes but the first ones."""
        disk = ModelDisk()
        for batch in self.written[:kept]:
            disk.write(batch)
        disk.sync()
        return disk

    @property
    def possible(self) -> range:
        """How many writes a crash may keep."""
        return range(self.synced, len(self.written) + 1)


def check_whole(receiver: Receiver) -> bool:
    """Whether the reopened node has the new state; fails if it has a mixture."""
    machine, start = receiver.machine, receiver.log.first_index() - 1
    assert start in (0, SNAPSHOT_LAST), "the log decides"
    is_new = start == SNAPSHOT_LAST
    assert hash_of(machine) == expected(machine.applied)
    assert (machine.applied >= SNAPSHOT_LAST) == is_new
    assert machine.staged is None
    space = machine._space
    for family in layout.STATE_FAMILIES:
        assert list(receiver.state_engine.scan(family, *space.other.range)) == []
    assert receiver.log.configurations() == (
        ((SNAPSHOT_LAST, MEMBERS),) if is_new else ((0, OLD_MEMBERS),)
    )
    receiver.replay()
    assert hash_of(machine) == expected(LAST if is_new else OLD_LAST)
    return is_new


def crashes(*, sync_staged: bool = True) -> list[tuple[ModelDisk, ModelDisk]]:
    """Log and state after every possible crash."""
    log, state = ModelDisk(), ModelDisk()
    receiver = Receiver(log, state)
    receiver.begin()
    found = set()
    for _ in receiver.receive(stream(), sync_staged=sync_staged):
        found |= set(product(log.possible, state.possible))
    return [
        (log.after_crash(kept_log), state.after_crash(kept_state))
        for kept_log, kept_state in sorted(found)
    ]


def test_whatever_a_crash_loses_the_state_is_whole() -> None:
    outcomes = []
    for log, state in crashes():
        is_new = check_whole(Receiver(log, state))
        outcomes.append(is_new)
        again = Receiver(log, state)
        assert check_whole(again) == is_new, "the second start finds what the first one made"
        if not is_new:
            assert list(again.receive(stream()))[-1] == STEPS[-1]
            assert check_whole(Receiver(log, state))
    assert len(outcomes) > 20
    assert set(outcomes) == {False, True}


def test_the_staged_state_must_be_synced_before_the_log_begins_after_it() -> None:
    """What the order of the steps is for; and the model would see it broken."""
    lost = 0
    for log, state in crashes(sync_staged=False):
        try:
            check_whole(Receiver(log, state))
        except StorageError as error:
            lost += "the state was lost" in str(error)
    assert lost > 5


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_each_step_the_state_is_whole(tmp_path: Path, step: str) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.storage.receiver", str(tmp_path), step],
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    for start in range(2):
        receiver = open_receiver(tmp_path)
        try:
            is_new = check_whole(receiver)
            if start == 1 and not is_new:
                assert list(receiver.receive(stream()))[-1] == STEPS[-1]
                assert hash_of(receiver.machine) == expected(LAST)
        finally:
            receiver.log_engine.close()
            receiver.state_engine.close()
        # SIGKILL loses what is in RocksDB's memory, and nothing that the system was given.
        assert is_new == (STEPS.index(step) >= STEPS.index("restored"))


# What is found at a start.


def log_after(start: int, last: int) -> RaftLogStore:
    """A log that begins after `start`, and ends with `last`."""
    engine = MemoryEngine()
    log = RaftLogStore(engine, GROUP)
    batch = Batch()
    log.append(batch, ENTRIES[:last])
    log.save_hard_state(batch, HardState(Term(1)))
    log.cut(batch, Index(start))
    engine.write(batch)
    return log


@pytest.mark.parametrize(
    ("start", "last", "applied"), [(0, 0, 0), (0, 40, 0), (0, 40, 40), (10, 40, 10), (40, 40, 40)]
)
def test_a_state_that_goes_with_its_log_is_left_alone(start: int, last: int, applied: int) -> None:
    disk = ModelDisk()
    machine = Machine(disk, GROUP)
    machine.apply(ENTRIES[:applied])
    disk.sync()
    reconcile(log_after(start, last), machine)
    assert (machine.applied, len(disk.written)) == (applied, disk.synced)


def test_a_state_beyond_its_log_is_refused() -> None:
    with pytest.raises(StorageError, match=r"has applied 40, but the log ends at 39.*log was lost"):
        reconcile(log_after(0, 39), machine_at(40))


@pytest.mark.parametrize("staged", [None, 60, 120])
def test_a_state_before_its_log_is_refused(staged: int | None) -> None:
    """Also if another state is staged than the log wants; that is kept for whoever looks."""
    machine = machine_at(50)
    if staged is not None:
        stage(machine, snapshot_of(machine_at(staged)), Index(staged))
    with pytest.raises(StorageError, match=r"only applied 50, but the log begins with 101.*state"):
        reconcile(log_after(100, 120), machine)
    assert (machine.applied, machine.staged) == (50, staged)


def test_the_staged_state_that_the_log_wants_is_installed() -> None:
    machine = machine_at(50)
    stage(machine, snapshot_of(machine_at(100)), Index(100))
    reconcile(log_after(100, 120), machine)
    assert hash_of(machine) == expected(100)
    assert (machine.applied, machine.staged) == (100, None)


@pytest.mark.parametrize("staged", [100, 110])
def test_a_staged_state_that_the_log_does_not_want_is_emptied(staged: int) -> None:
    machine = machine_at(105 if staged == 100 else 60)
    before = hash_of(machine)
    stage(machine, snapshot_of(machine_at(staged)), Index(staged))
    reconcile(log_after(100 if staged == 100 else 50, 120), machine)
    assert machine.staged is None
    assert hash_of(machine) == before
