"""The disk of one Raft core under test: what is written, and what of it a crash would leave."""

from collections.abc import Sequence

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.log import Compacted, Snapshot
from kvorum_node.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    Position,
    Term,
)
from tests.support.raft_messages import position


class Disk:
    """The stored log (a `LogReader`) and hard state of one member.

    Reads see every write at once; a crash leaves what was synced, and as many of
    the writes since then as the test wants: a later one never without an earlier one.
    """

    def __init__(
        self,
        log: Sequence[Entry] = (),
        hard_state: HardState | None = None,
        start: str = "0@0",
        configuration: Configuration | None = None,
    ) -> None:
        self.snapshot = Snapshot(position(start), configuration or Configuration())
        """What the log goes on from: where it starts, and the configuration there."""
        self.log: tuple[Entry, ...] = tuple(log)
        self.hard_state = hard_state or HardState()
        self._synced = self._contents
        self._unsynced: list[_Contents] = []

    @property
    def _contents(self) -> "_Contents":
        return self.snapshot, self.log, self.hard_state

    @property
    def start(self) -> Position:
        return self.snapshot.last

    def write(
        self,
        entries: Sequence[Entry],
        hard_state: HardState | None,
        snapshot: Snapshot | None = None,
    ) -> None:
        if snapshot is not None:
            self.snapshot, self.log = snapshot, ()
        if entries:
            first = entries[0].index
            if not self.start.index < first <= self.last_index() + 1:
                raise AssertionError(f"{entries[0]} does not join a log that ends at {self.last}")
            self.log = (*self.log[: first - self.start.index - 1], *entries)
        if hard_state is not None:
            self.hard_state = hard_state
        self._unsynced.append(self._contents)

    def sync(self) -> None:
        self._synced = self._contents
        self._unsynced.clear()

    def crash(self, *, surviving: int = 0) -> None:
        """Lose the writes since the last sync, but for the first few of them."""
        states = [self._synced, *self._unsynced]
        self.snapshot, self.log, self.hard_state = states[min(surviving, len(self._unsynced))]
        self.sync()

    def cut(self, through: int) -> None:
        """Drop the entries up to and including this one, durably."""
        start = Position(Index(through), self.term(Index(through)))
        configuration = [one for index, one in self.configurations() if index <= through][-1]
        self.log = self.log[through - self.start.index :]
        self.snapshot = Snapshot(start, configuration)
        self.sync()

    @property
    def unsynced_writes(self) -> int:
        return len(self._unsynced)

    @property
    def synced_log(self) -> tuple[Entry, ...]:
        return self._synced[1]

    @property
    def synced_hard_state(self) -> HardState:
        return self._synced[2]

    def has_synced(self, entry: Entry) -> bool:
        """Whether a crash would leave the entry, or its effect in the state (it was cut)."""
        start, log, _ = self._synced
        at = entry.index - start.last.index - 1
        return at < 0 or (at < len(log) and log[at].term == entry.term)

    @property
    def last(self) -> Position:
        return self.start if not self.log else Position(self.log[-1].index, self.log[-1].term)

    def first_index(self) -> Index:
        return Index(self.start.index + 1)

    def last_index(self) -> Index:
        return Index(self.start.index + len(self.log))

    def term(self, index: Index) -> Term:
        if index < self.start.index:
            raise Compacted
        if index == self.start.index:
            return self.start.term
        return self.log[index - self.start.index - 1].term

    def entries(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        if low <= self.start.index:
            raise Compacted
        if not low < high <= self.last_index() + 1:
            raise AssertionError(f"entries [{low}, {high}) of a log that ends at {self.last}")
        found: list[Entry] = []
        for entry in self.log[low - self.start.index - 1 : high - self.start.index - 1]:
            max_bytes -= len(entry.data)
            if found and max_bytes < 0:
                break
            found.append(entry)
        return found

    def configurations(self) -> list[tuple[Index, Configuration]]:
        return [
            (self.start.index, self.snapshot.configuration),
            *(
                (entry.index, Configuration.decode(entry.data))
                for entry in self.log
                if entry.kind is EntryKind.CONFIGURATION
            ),
        ]


_Contents = tuple[Snapshot, tuple[Entry, ...], HardState]
