"""The log of one Raft group, on a log engine that many groups share.

Rules:
- Nothing is written here. The caller passes one Batch around the groups, writes
  it and syncs the engine once for all of them. What this object answers changes
  with the call, so the batch must be written at once, before anything is read.
- The terms and sizes of all kept entries are in memory (about 8 bytes an entry),
  and so are the configurations, and the newest entries themselves, which is what
  followers are sent: only a follower that is far behind makes the disk read.
- What the disk holds is checked before it is believed, all of it at opening. That
  takes about 8 µs an entry: half a second for 64 MiB in entries of 1 KiB.
- A caller that would leave a gap has a bug: AssertionError. A disk that shows one
  is damaged: StorageError.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from kvorum.errors import StorageError
from kvorum.limits import MIB
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.log import Compacted
from kvorum_node.raft.types import Entry, EntryKind, GroupId, HardState, Index, Position, Term
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family

CACHE_BYTES: Final = 16 * MIB
"""Of entry data, kept in memory for each group; the newest entry always is."""
CACHE_ENTRIES: Final = 65_536

_UNKNOWN: Final = (Index(0), Configuration())


class RaftLogStore:
    """What the core reads (raft/log.py, LogReader), and the writes that produce it."""

    def __init__(self, engine: Engine, group: GroupId) -> None:
        """Read the group's log from the engine, and check it.

        Raises:
            StorageError: what the engine holds is not a whole, unaltered log.
        """
        self._engine = engine
        self._group = group
        self._start = self._read_start()
        self._hard_state = self._read_hard_state()
        # That at the start first, and then that of each kept entry that has one.
        self._configurations = [self._read_configuration()]
        self._terms = _Terms(self._start)
        # _ends[i] is the size of the data of the first i kept entries, plus _ends[0].
        self._ends = array("Q", [0])
        self._cache: list[Entry] = []
        for entry in self._checked_entries():
            self._remember(entry)
        self._check_hard_state()

    # What the core reads.

    def first_index(self) -> Index:
        return Index(self._start.index + 1)

    def last_index(self) -> Index:
        return Index(self._start.index + len(self._ends) - 1)

    def term(self, index: Index) -> Term:
        """The term of the entry, or of the start.

        Raises:
            Compacted: the entry lies before the start.
            IndexError: the log ends before it.
        """
        if index < self._start.index:
            raise Compacted(f"{index} was cut from the log, which starts after {self._start}")
        if index > self.last_index():
            raise IndexError(f"{index} lies beyond the last entry {self.last_index()}")
        return self._terms.at(index)

    def entries(self, low: Index, high: Index, max_bytes: int) -> list[Entry]:
        """Entries from low (included) to high (excluded): at least one, then up to max_bytes.

        Raises:
            Compacted: low was cut.
            StorageError: the disk does not give back what was written.
        """
        if low <= self._start.index:
            raise Compacted(f"{low} was cut from the log, which starts after {self._start}")
        last = self.last_index()
        if not low < high <= last + 1:
            raise AssertionError(f"entries [{low}, {high}) of a log that ends at {last}")
        end = min(high, max(low + 1, self._index_within(low, max_bytes) + 1))
        cached_from = last + 1 - len(self._cache)
        if low >= cached_from:
            return self._cache[low - cached_from : end - cached_from]
        return self._read_entries(low, Index(end))

    def hard_state(self) -> HardState:
        return self._hard_state

    def configurations(self) -> Sequence[tuple[Index, Configuration]]:
        """Those that the log knows of, oldest first, each with the index of its entry.

        The first is the one that holds at the start of the log; it has no members, and
        the index 0, in a log that never heard of its group.
        """
        return tuple(self._configurations)

    def is_new(self) -> bool:
        """Whether nothing is known of the group: it was not bootstrapped, nor heard of."""
        return self._configurations == [_UNKNOWN] and self.last_index() == 0

    def log_bytes(self) -> int:
        """The size of the data of all kept entries."""
        return self._ends[-1] - self._ends[0]

    def index_at_bytes(self, size: int) -> Index:
        """The first entry with which the kept entries, from the oldest on, reach the size.

        The last entry if all of them together do not.
        """
        position = bisect_left(self._ends, self._ends[0] + size)
        return min(self.last_index(), Index(self._start.index + position))

    # What the caller writes.

    def bootstrap(self, batch: Batch, configuration: Configuration) -> None:
        """Give a new log its configuration, which every node of a new group begins with."""
        if not self.is_new():
            raise AssertionError(f"group {self._group} has a log already")
        self._configurations = [(Index(0), configuration)]
        self._save_first_configuration(batch)

    def append(self, batch: Batch, entries: Sequence[Entry]) -> None:
        """Append, in place of what is stored at and after the index of the first one."""
        if not entries:
            return
        first = entries[0].index
        if not self._start.index < first <= self.last_index() + 1:
            raise AssertionError(
                f"entry {entries[0]} does not join a log from {self._start} to {self.last_index()}"
            )
        if first <= self.last_index():
            self._delete(batch, first, self.last_index())
            self._truncate(first)
        for entry in entries:
            if entry.index != self.last_index() + 1 or entry.term < self._terms.last:
                raise AssertionError(
                    f"entry {entry} cannot follow {self.last_index()}@{self._terms.last}"
                )
            key = layout.entry_key(self._group, entry.index)
            batch.put(Family.LOG, key, layout.encode_entry(key, entry))
            self._remember(entry)

    def save_hard_state(self, batch: Batch, hard_state: HardState) -> None:
        key = layout.hard_state_key(self._group)
        batch.put(Family.LOG, key, layout.encode_hard_state(key, hard_state))
        self._hard_state = hard_state

    def cut(self, batch: Batch, through: Index) -> None:
        """Drop the entries up to and including `through`, which becomes the start.

        What they did must be on the disk by then, in the state. Cut many at a time:
        each cut makes the engine write out its memory to free the disk.
        """
        if not self._start.index <= through <= self.last_index():
            raise AssertionError(
                f"cut through {through} of a log from {self._start} to {self.last_index()}"
            )
        if through == self._start.index:
            return
        self._delete(batch, self.first_index(), through)
        kept = self.last_index() - through
        start = Position(through, self._terms.at(through))
        passed = bisect_right(self._configurations, through, key=_index_of)
        if passed > 1:
            del self._configurations[: passed - 1]
            self._save_first_configuration(batch)
        del self._ends[: through - self._start.index]
        if kept < len(self._cache):
            del self._cache[: len(self._cache) - kept]
        self._terms.cut(start)
        self._save_start(batch, start)

    def restore(self, batch: Batch, last: Position, configuration: Configuration) -> None:
        """Drop all entries, and begin after `last`, where the configuration holds.

        The state through `last` must be on the disk by then, beside the one that holds:
        the log decides which of them is the state (storage/recovery.py).
        """
        if last.index <= self._start.index:
            raise AssertionError(f"restore to {last} a log that starts after {self._start}")
        self._delete(batch, self.first_index(), self.last_index())
        self._ends = array("Q", [0])
        self._cache = []
        self._terms = _Terms(last)
        self._configurations = [(last.index, configuration)]
        self._save_first_configuration(batch)
        self._save_start(batch, last)

    def _save_start(self, batch: Batch, start: Position) -> None:
        self._start = start
        key = layout.start_key(self._group)
        batch.put(Family.LOG, key, layout.encode_start(key, start))

    def _save_first_configuration(self, batch: Batch) -> None:
        key = layout.configuration_key(self._group)
        value = layout.encode_configuration(key, *self._configurations[0])
        batch.put(Family.LOG, key, value)

    def _delete(self, batch: Batch, low: Index, high: Index) -> None:
        """Delete the entries from low to high, both included."""
        start = layout.entry_key(self._group, low)
        end = layout.entry_key(self._group, Index(high + 1))
        # A batch deletes before it puts, so what it puts there would come back.
        batch.puts[:] = [
            put for put in batch.puts if put[0] is not Family.LOG or not start <= put[1] < end
        ]
        batch.delete_range(Family.LOG, start, end)

    # The view in memory.

    def _remember(self, entry: Entry) -> None:
        """Take the entry in as the last one."""
        if entry.kind is EntryKind.CONFIGURATION:
            self._configurations.append((entry.index, _configuration_of(entry)))
        self._terms.append(entry)
        self._ends.append(self._ends[-1] + len(entry.data))
        self._cache.append(entry)
        cached_bytes = self._ends[-1] - self._ends[-1 - len(self._cache)]
        if cached_bytes > CACHE_BYTES or len(self._cache) > CACHE_ENTRIES:
            self._shrink_cache()

    def _shrink_cache(self) -> None:
        """Leave room for some more, so that not every append has to make room."""
        position = bisect_left(self._ends, self._ends[-1] - CACHE_BYTES * 3 // 4)
        keep = min(len(self._ends) - 1 - position, CACHE_ENTRIES * 3 // 4)
        del self._cache[: -max(1, keep)]

    def _truncate(self, first: Index) -> None:
        """Forget the entries at and after the index."""
        removed = self.last_index() + 1 - first
        del self._ends[-removed:]
        del self._cache[-removed:]
        self._terms.truncate(first)
        del self._configurations[bisect_left(self._configurations, first, key=_index_of) :]

    def _index_within(self, low: Index, max_bytes: int) -> Index:
        """The last entry so that the data from low through it is within max_bytes.

        Below low if the one at low is larger.
        """
        offset = self._start.index
        position = bisect_right(self._ends, self._ends[low - 1 - offset] + max_bytes)
        return Index(offset + position - 1)

    # The disk.

    def _read_start(self) -> Position:
        key = layout.start_key(self._group)
        value = self._engine.get(Family.LOG, key)
        return Position(Index(0), Term(0)) if value is None else layout.decode_start(key, value)

    def _read_hard_state(self) -> HardState:
        key = layout.hard_state_key(self._group)
        value = self._engine.get(Family.LOG, key)
        return HardState() if value is None else layout.decode_hard_state(key, value)

    def _read_configuration(self) -> tuple[Index, Configuration]:
        key = layout.configuration_key(self._group)
        value = self._engine.get(Family.LOG, key)
        return _UNKNOWN if value is None else layout.decode_configuration(key, value)

    def _checked_entries(self) -> Iterator[Entry]:
        """All entries on the disk, if they are the ones that must be there."""
        last = self._start
        for key, value in self._engine.scan(Family.LOG, *layout.entry_range(self._group)):
            entry = layout.decode_entry(key, value)
            if entry.index != last.index + 1:
                raise self._damaged(f"{last} is followed by {entry}, with a gap between them")
            if entry.term < last.term:
                raise self._damaged(f"{last} is followed by {entry}, of an older term")
            yield entry
            last = Position(entry.index, entry.term)

    def _check_hard_state(self) -> None:
        last = Position(self.last_index(), self._terms.last)
        if self._hard_state.commit > last.index:
            raise self._damaged(
                f"it ends at {last}, but entries through {self._hard_state.commit} were committed"
            )
        if self._hard_state.term < last.term:
            raise self._damaged(
                f"it ends at {last}, but the node has only reached term {self._hard_state.term}"
            )

    def _read_entries(self, low: Index, end: Index) -> list[Entry]:
        entries = [
            layout.decode_entry(key, value)
            for key, value in self._engine.scan(
                Family.LOG,
                layout.entry_key(self._group, low),
                layout.entry_key(self._group, end),
            )
        ]
        if [entry.index for entry in entries] != list(range(low, end)):
            raise self._damaged(f"entries [{low}, {end}) are not all there any more")
        return entries

    def _damaged(self, what: str) -> StorageError:
        return StorageError(
            f"the log of group {self._group} is damaged: {what}. The disk has lost or altered a"
            " part of it; replace this node"
        )


def _index_of(configuration: tuple[Index, Configuration]) -> Index:
    return configuration[0]


def _configuration_of(entry: Entry) -> Configuration:
    try:
        return Configuration.decode(entry.data)
    except DecodeError as error:
        raise StorageError(
            f"entry {entry} holds no configuration that this version can read."
            " A newer version wrote it; run that one"
        ) from error


class _Terms:
    """The term of every entry, as runs: terms never decrease, and few of them last long."""

    __slots__ = ("_firsts", "_terms")

    def __init__(self, start: Position) -> None:
        self._firsts = [start.index]
        self._terms = [start.term]

    @property
    def last(self) -> Term:
        return self._terms[-1]

    def at(self, index: Index) -> Term:
        return self._terms[bisect_right(self._firsts, index) - 1]

    def append(self, entry: Entry) -> None:
        if entry.term != self._terms[-1]:
            self._firsts.append(entry.index)
            self._terms.append(entry.term)

    def truncate(self, first: Index) -> None:
        """Forget the runs that begin at or after the index."""
        position = bisect_left(self._firsts, first)
        del self._firsts[position:]
        del self._terms[position:]

    def cut(self, start: Position) -> None:
        """Forget what lies before the new start."""
        position = bisect_right(self._firsts, start.index)
        self._firsts[:position] = [start.index]
        self._terms[:position] = [start.term]
