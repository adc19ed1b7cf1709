"""The log as the core sees it: what is stored, and the newest entries on top that are not yet.

                      first                            last
    ... cut ... | stored entries ......... | unstable entries |
                        ^applied   ^committed

Rules: entries are unstable until the host has fsynced them (`stable`), and count
for nothing before; entries through `committed` never change; `applied` follows
`committed`, and trails it while the host is at work. A snapshot replaces all of it;
until the host has installed it, the log reads as if that had happened already. The
configuration that holds is that of the last entry that has one, committed or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import Entry, EntryKind, Index, Position, Term


class Compacted(Exception):
    """The entry has been cut from the log."""


class LogReader(Protocol):
    """The stored part of a group's log. Reads are from memory or a fast disk: they do not wait."""

    def first_index(self) -> Index:
        """The index of the first entry; one beyond the last if there is none."""

    def last_index(self) -> Index:
        """The index of the last entry; where the log was cut if there is none; 0 if empty."""

    def term(self, index: Index) -> Term:
        """The term of the entry, from first_index() - 1 to last_index().

        Raises:
            Compacted: the entry lies before that.
        """

    def entries(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        """Entries from low (included) to high (excluded): at least one, then up to max_bytes.

        Raises:
            Compacted: low lies before first_index().
        """

    def configurations(self) -> Sequence[tuple[Index, Configuration]]:
        """The configuration at the start of the log, and those of its entries, in order.

        Each with its index; the first one's is first_index() - 1 or less.
        """


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after the entry `last`, in place of the log through it (section 7)."""

    last: Position
    configuration: Configuration
    """The one that holds at `last`."""


class RaftLog:
    __slots__ = (
        "_configurations",
        "_disk",
        "_handed_out",
        "_snapshot",
        "_stored",
        "_unstable",
        "applied",
        "committed",
    )

    def __init__(self, stored: LogReader, *, committed: Index, applied: Index) -> None:
        self._disk = stored
        self._stored = stored
        self._snapshot: Snapshot | None = None  # restored, and not yet handed to the host
        self._unstable: list[Entry] = []
        self._handed_out = 0  # how many of the unstable entries the host is writing
        self._configurations = list(stored.configurations())
        self.committed = committed
        self.applied = applied
        if not applied <= committed <= stored.last_index():
            raise AssertionError(
                f"applied {applied}, committed {committed}, log ends at {stored.last_index()}"
            )
        self._forget_old_configurations()

    @property
    def first_index(self) -> Index:
        return self._stored.first_index()

    @property
    def last_index(self) -> Index:
        return self._unstable[-1].index if self._unstable else self._stored.last_index()

    @property
    def last(self) -> Position:
        index = self.last_index
        return Position(index, self.term(index))

    @property
    def stable_index(self) -> Index:
        """The last index that is fsynced here."""
        return Index(self._unstable[0].index - 1) if self._unstable else self._stored.last_index()

    @property
    def configuration(self) -> Configuration:
        """The one that holds."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> Index:
        """Where the configuration that holds stands in the log, or the start of the log."""
        return self._configurations[-1][0]

    @property
    def committed_configuration(self) -> Configuration:
        """The last one that is committed."""
        return self._configurations[0][1]

    def term(self, index: Index) -> Term:
        """The term of the entry. Raises Compacted, or AssertionError beyond the last."""
        if self._unstable and index >= self._unstable[0].index:
            if index > self._unstable[-1].index:
                raise AssertionError(f"term of {index}, log ends at {self._unstable[-1]}")
            return self._unstable[index - self._unstable[0].index].term
        return self._stored.term(index)

    def matches(self, position: Position) -> bool:
        """Whether the log has exactly this entry (section 5.3, the consistency check)."""
        if position.index > self.last_index:
            return False
        try:
            return self.term(position.index) == position.term
        except Compacted:
            return False

    def is_up_to_date(self, last: Position) -> bool:
        """Whether a log that ends there is at least as up to date as this one (section 5.4.1)."""
        mine = self.last
        return (last.term, last.index) >= (mine.term, mine.index)

    def entries(self, low: Index, max_bytes: int, *, high: Index | None = None) -> list[Entry]:
        """Entries from low on (to `high`, excluded): at least one, then up to max_bytes of data."""
        end = Index(self.last_index + 1) if high is None else high
        if low >= end:
            return []
        if not self._unstable or low < self._unstable[0].index:
            boundary = self._unstable[0].index if self._unstable else end
            found = self._stored.entries(low, min(end, boundary), max_bytes)
            if found[-1].index + 1 < min(end, boundary):
                return found
            max_bytes -= sum(len(entry.data) for entry in found)
            low = boundary
        else:
            found = []
        for entry in self._unstable[low - self._unstable[0].index :] if self._unstable else ():
            max_bytes -= len(entry.data)
            if entry.index >= end or (found and max_bytes < 0):
                break
            found.append(entry)
        return found

    def append(self, entries: Sequence[Entry]) -> None:
        """Append, in place of what the log has at or after the first of them."""
        first = entries[0].index
        if first <= self.committed:
            raise AssertionError(
                f"entry {entries[0]} would replace one committed at {self.committed}"
            )
        if first > self.last_index + 1:
            raise AssertionError(f"entry {entries[0]} leaves a gap after {self.last_index}")
        if self._unstable and first > self._unstable[0].index:
            del self._unstable[first - self._unstable[0].index :]
            self._unstable.extend(entries)
        else:
            self._unstable = list(entries)
        self._handed_out = min(self._handed_out, len(self._unstable) - len(entries))
        while self._configurations[-1][0] >= first:
            self._configurations.pop()
        self._configurations.extend(
            (entry.index, Configuration.decode(entry.data))
            for entry in entries
            if entry.kind is EntryKind.CONFIGURATION
        )

    def append_missing(self, previous: Index, entries: Sequence[Entry]) -> Index:
        """Append those of a leader's entries that are missing here; returns the last one's index.

        What is already there stays, and so does what follows it: the message may be
        an old one, and truncating by it could remove entries that were promised.
        """
        for position, entry in enumerate(entries):
            if not self.matches(Position(entry.index, entry.term)):
                self.append(entries[position:])
                break
        return Index(previous + len(entries))

    def probable_match(self, index: Index, term: Term) -> Position:
        """The last position at or before the index with a term that is not above the given one.

        Either side can skip whole terms with it on the way back to where the logs meet.
        """
        index = min(index, self.last_index)
        while index > 0:
            try:
                here = self.term(index)
            except Compacted:
                break
            if here <= term:
                return Position(index, here)
            index = Index(index - 1)
        return Position(index, Term(0))

    def commit_to(self, index: Index) -> bool:
        """Raise the commit index; returns whether it rose. It never falls."""
        if index <= self.committed:
            return False
        if index > self.last_index:
            raise AssertionError(f"commit {index} lies beyond the last entry {self.last_index}")
        self.committed = index
        self._forget_old_configurations()
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """Let the snapshot be all that there is: it has been committed elsewhere."""
        if snapshot.last.index <= self.committed:
            raise AssertionError(f"a snapshot at {snapshot.last} for {self.committed} committed")
        self._snapshot = snapshot
        self._stored = _Emptied(snapshot)
        self._unstable = []
        self._handed_out = 0
        self._configurations = [(snapshot.last.index, snapshot.configuration)]
        self.committed = self.applied = snapshot.last.index

    @property
    def has_snapshot(self) -> bool:
        """Whether there is a snapshot that the host has not been given to install yet."""
        return self._snapshot is not None

    def take_snapshot(self) -> Snapshot | None:
        snapshot, self._snapshot = self._snapshot, None
        return snapshot

    def installed(self) -> None:
        """The host has installed the snapshot that it took, on the disk and in the state."""
        if self._snapshot is None:  # else another one has come meanwhile
            self._stored = self._disk

    def take_unstable(self) -> tuple[Entry, ...]:
        """The entries that the host has not been given to write yet."""
        entries = tuple(self._unstable[self._handed_out :])
        self._handed_out = len(self._unstable)
        return entries

    @property
    def has_untaken(self) -> bool:
        return self._handed_out < len(self._unstable)

    def stable(self, through: Entry) -> None:
        """The host has fsynced what it was given, through this entry.

        If a new leader has replaced the entry meanwhile, what was fsynced is not what
        the log holds now, and counts for nothing.
        """
        if not self._unstable or not (
            self._unstable[0].index <= through.index <= self._unstable[-1].index
        ):
            return
        position = through.index - self._unstable[0].index
        if self._unstable[position].term != through.term:
            return
        del self._unstable[: position + 1]
        self._handed_out = max(0, self._handed_out - position - 1)

    def _forget_old_configurations(self) -> None:
        """Keep the last committed one, which can hold again, and those after it."""
        while len(self._configurations) > 1 and self._configurations[1][0] <= self.committed:
            del self._configurations[0]


class _Emptied:
    """How the stored log reads once the snapshot is installed: it begins after it, and is empty."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def first_index(self) -> Index:
        return Index(self._snapshot.last.index + 1)

    def last_index(self) -> Index:
        return self._snapshot.last.index

    def term(self, index: Index) -> Term:
        if index != self._snapshot.last.index:
            raise Compacted
        return self._snapshot.last.term

    def entries(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        raise Compacted(f"[{low}, {high}) of at most {max_bytes} bytes")

    def configurations(self) -> Sequence[tuple[Index, Configuration]]:
        return [(self._snapshot.last.index, self._snapshot.configuration)]
