"""What watches are told while nodes fail, written down, and held against all that is known.

    all       every key, from revision 0 on, with what was there before
    pairs     the keys that transactions write two at a time
    leases    the keys with a time to live
    late      every key, by a watch that begins at the end, and reads history

`all` has each revision from 1 to END, so it tells the whole history of the store: each change
follows from those before it, and every other watch is a part of it. What clients were
told of their writes is compared with it, and it with what is read at the end.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvorum import KV, Changes
from kvorum.entry import Entry
from tests.chaos.leases import LEASES, Kind, LeaseCall
from tests.support.histories import CallOutcome, Record
from tests.support.linearizability_kvorum import Add, Committed, Delete, Get, Put, Seen, Value

PAIRS: Final = "p"
WATCHED: Final = {"all": "", "pairs": PAIRS, "leases": LEASES}
"""The prefixes, by the names of the watches of the watcher process."""
LATE: Final = "late"
END: Final = tuple(f"{prefix}:end" for prefix in WATCHED.values())
"""Written together when all is over: each watch is told of one of them at least, and ends."""
SHOWN: Final = 5


class Kept(NamedTuple):
    """A record as it was told."""

    value: Value
    revision: int
    created_revision: int
    version: int
    expires_at: float | None
    """In seconds of log time."""


class ToldChange(NamedTuple):
    kind: str
    key: str
    record: Kept | None
    previous: Kept | None


@dataclass(frozen=True, slots=True)
class Told:
    """One revision."""

    revision: int
    at: float
    """Seconds of log time."""
    changes: tuple[ToldChange, ...]


async def write_down(kv: KV, prefix: str, note: Callable[[Told], None]) -> None:
    """Watch from the beginning to END. The client goes on by itself, whatever happens."""
    async with kv.watch(prefix, since=0, previous=True) as watch:
        async for changes in watch.revisions():
            note(_told(changes))
            if any(change.key in END for change in changes):
                return


def _told(changes: Changes[Any]) -> Told:
    return Told(
        changes.revision,
        changes.at.timestamp(),
        tuple(
            ToldChange(change.kind, change.key, _kept(change.entry), _kept(change.previous))
            for change in changes
        ),
    )


def _kept(entry: Entry[Any] | None) -> Kept | None:
    if entry is None:
        return None
    expires_at = None if entry.expires_at is None else entry.expires_at.timestamp()
    return Kept(entry.value, entry.revision, entry.created_revision, entry.version, expires_at)


def to_line(told: Told) -> str:
    return json.dumps([told.revision, told.at, told.changes])


def load(path: Path) -> list[Told]:
    """Read a file; a last line that was cut off while it was written is left out."""
    text = path.read_text("utf-8")
    return [_from_line(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _from_line(line: str) -> Told:
    revision, at, changes = json.loads(line)
    return Told(
        revision,
        at,
        tuple(
            ToldChange(kind, key, record and Kept(*record), previous and Kept(*previous))
            for kind, key, record, previous in changes
        ),
    )


# What they show.


@dataclass(slots=True)
class WatchFigures:
    revisions: dict[str, int] = field(default_factory=dict)
    """By watch, how many it was told."""
    changes: int = 0
    """By the watch of all keys."""
    expiries: int = 0
    writes: int = 0
    """Acknowledged ones that were looked for."""
    log_time_stray_seconds: float = 0.0
    """How far log time has moved against the clock of the clients in the whole run, at least."""


@dataclass(slots=True)
class Writes:
    """What clients know of their writes."""

    at: dict[int, dict[str, Value | None]] = field(default_factory=dict)
    """By revision, what each key was given; None if it was deleted."""
    times: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By revision, when the call was made and when it returned."""
    possible: set[tuple[str, Value]] = field(default_factory=set)
    """All puts that were acknowledged, or are in doubt."""
    sums: dict[str, list[Value]] = field(default_factory=lambda: defaultdict(list))
    """By counter, what acknowledged adds have returned."""
    deletes: Counter[str] = field(default_factory=Counter)
    """By key, how often it was deleted, as far as that was acknowledged."""
    doubtful_deletes: Counter[str] = field(default_factory=Counter)


def writes_of(records: Iterable[Record], leases: Iterable[LeaseCall]) -> Writes:
    writes = Writes()
    for record in records:
        if record.outcome is not CallOutcome.FAILED:
            _note_transaction(record, writes)
    for call in leases:
        if call.kind is Kind.PUT and call.outcome is not CallOutcome.FAILED:
            assert call.value is not None
            writes.possible.add((call.key, call.value))
            if call.revision is not None:
                writes.at[call.revision] = {call.key: call.value}
                writes.times[call.revision] = (call.invoked, call.returned)
    return writes


def _note_transaction(record: Record, writes: Writes) -> None:
    operation = record.operation
    response = operation.response
    steps = operation.request.operations
    acknowledged = isinstance(response, Committed)
    results = (response.results if isinstance(response, Committed) else None) or [None] * len(steps)
    written: dict[str, Value | None] = {}
    for step, result in zip(steps, results, strict=True):
        match step:
            case Put(key, value):
                written[key] = value
                if acknowledged or record.outcome is CallOutcome.UNKNOWN:
                    writes.possible.add((key, value))
            case Add(key) if acknowledged:
                assert isinstance(result, int)
                written[key] = result
                writes.sums[key].append(result)
            case Delete(key) if acknowledged:
                if result:
                    written[key] = None
                    writes.deletes[key] += 1
            case Delete(key) if record.outcome is CallOutcome.UNKNOWN:
                writes.doubtful_deletes[key] += 1
            case _:
                pass
    if isinstance(response, Committed) and response.revision is not None and written:
        writes.at[response.revision] = written
        writes.times[response.revision] = (operation.invoked, operation.returned)


def look_into_watches(
    watches: Mapping[str, Sequence[Told]], records: Sequence[Record], leases: Sequence[LeaseCall]
) -> tuple[WatchFigures, list[str]]:
    """The figures, and what is wrong."""
    figures = WatchFigures({name: len(told) for name, told in watches.items()})
    findings: list[str] = []
    for name in (*WATCHED, LATE):
        told = watches.get(name, ())
        if not told or not any(change.key in END for change in told[-1].changes):
            findings.append(f"the watch of {name} has not come to the end")
        findings += _look_at_order(name, told)
    everything = watches.get("all", ())
    history = _History()
    for one in everything:
        history.follow(one)
    findings += _some("changes do not follow from those before", history.wrong)
    for name in (*WATCHED, LATE):
        findings += _look_at_part(name, watches.get(name, ()), everything)
    writes = writes_of(records, leases)
    findings += _look_for_writes(writes, everything)
    findings += _look_at_the_end(history, records)
    figures.changes = sum(len(one.changes) for one in everything)
    figures.expiries = history.expiries
    figures.writes = len(writes.at)
    figures.log_time_stray_seconds = _stray(writes, everything)
    if not figures.writes or not figures.expiries:
        findings.append("the watches were told of no write, or of no expiry: the run shows nothing")
    return figures, findings


def _some(what: str, which: Sequence[str]) -> list[str]:
    if not which:
        return []
    return [f"{len(which)} {what}:" + "".join(f"\n    {one}" for one in which[:SHOWN])]


def _look_at_order(name: str, told: Sequence[Told]) -> list[str]:
    """Revisions rise, time does not go back, and nothing is told that was not asked for."""
    prefix = WATCHED.get(name, "")
    wrong = []
    reached, time = 0, 0.0
    for one in told:
        if one.revision <= reached:
            wrong.append(f"revision {one.revision} comes after {reached}")
        if one.at < time:
            wrong.append(f"revision {one.revision} is of {one.at}, and one before of {time}")
        if not prefix and one.revision > reached + 1:
            wrong.append(f"{reached} is followed by {one.revision}: each has changed something")
        wrong += [
            f"{change.key} does not begin with {prefix}"
            for change in one.changes
            if not change.key.startswith(prefix)
        ]
        reached, time = max(reached, one.revision), max(time, one.at)
    return _some(f"times the watch of {name} was told out of order, or not all", wrong)


class _History:
    """The store as the changes make it. An expiry comes once for each time a key expires."""

    def __init__(self) -> None:
        self.state: dict[str, Kept] = {}
        self.wrong: list[str] = []
        self.expiries = 0

    def follow(self, told: Told) -> None:
        for change in told.changes:
            before = self.state.pop(change.key, None)
            if wrong := self._contradiction(told, change, before):
                self.wrong.append(f"revision {told.revision}, {change.kind} {change.key}: {wrong}")
            if change.record is not None:
                self.state[change.key] = change.record
            self.expiries += change.kind == "expire"

    def _contradiction(self, told: Told, change: ToldChange, before: Kept | None) -> str:
        record, previous = change.record, change.previous
        # A touch moves the time, and is not told.
        if (previous and previous[:-1]) != (before and before[:-1]):
            return f"it had {before}, and is told to have had {previous}"
        match change.kind:
            case "put" if record is not None:
                created = told.revision if before is None else before.created_revision
                version = 1 if before is None else before.version + 1
                if record[1:4] != (told.revision, created, version):
                    return f"it has {record} after {before}"
            case "delete" | "expire" if record is not None or previous is None:
                return "nothing was there, or something is"
            case "delete":
                pass
            case "expire" if previous is not None:
                if previous.expires_at is None or previous.expires_at > told.at:
                    return f"it expires at {previous.expires_at}, and it is {told.at}"
            case _:
                return "there is no such change"
        return ""


def _look_at_part(name: str, told: Sequence[Told], everything: Sequence[Told]) -> list[str]:
    """The same changes as in `all`, and those of a revision together."""
    expected = _by_revision(everything, WATCHED.get(name, ""))
    heard = _by_revision(told)
    wrong = [
        f"revision {revision}: {heard.get(revision)}, and not {expected.get(revision)}"
        for revision in sorted(expected.keys() | heard.keys())
        if heard.get(revision) != expected.get(revision)
    ]
    return _some(f"revisions were told to the watch of {name} otherwise than to that of all", wrong)


def _by_revision(told: Iterable[Told], prefix: str = "") -> dict[int, Told]:
    """What was told of a prefix, without the time to live of what was put.

    That is the one which a touch has set, if the watch was told after the touch.
    """
    found = {}
    for one in told:
        changes = tuple(
            change
            if change.record is None
            else change._replace(record=change.record._replace(expires_at=None))
            for change in one.changes
            if change.key.startswith(prefix)
        )
        if changes:
            found[one.revision] = replace(one, changes=changes)
    return found


def _look_for_writes(writes: Writes, everything: Sequence[Told]) -> list[str]:
    """What was acknowledged is told once, whole, and where it was said to be; and nothing else."""
    told_at = {one.revision: {change.key: change for change in one.changes} for one in everything}
    missing = []
    for revision, written in sorted(writes.at.items()):
        told = {
            key: None if change.record is None else change.record.value
            for key, change in told_at.get(revision, {}).items()
        }
        if told != written:
            missing.append(f"revision {revision}: {told}, and {written} was acknowledged")
    told_sums: dict[str, Counter[Value]] = defaultdict(Counter)
    deletes: Counter[str] = Counter()
    foreign = []
    for one in everything:
        for change in one.changes:
            if change.kind == "delete":
                deletes[change.key] += 1
            if change.record is None:
                continue
            value = change.record.value
            if isinstance(value, int):
                told_sums[change.key][value] += 1
            elif (change.key, value) not in writes.possible:
                foreign.append(f"revision {one.revision}: {change.key} is {value[:40]!r}")
    for key, sums in writes.sums.items():
        missing += [
            f"{key} was {value} for {count} acknowledged adds, and told {told_sums[key][value]} x"
            for value, count in Counter(sums).items()
            if told_sums[key][value] != count
        ]
    missing += [
        f"{key} was deleted {writes.deletes[key]} times, {writes.doubtful_deletes[key]} deletes are"
        f" in doubt, and {deletes[key]} were told"
        for key in sorted(writes.deletes.keys() | deletes.keys())
        if not 0 <= deletes[key] - writes.deletes[key] <= writes.doubtful_deletes[key]
    ]
    return [
        *_some("writes were not told as they were acknowledged", missing),
        *_some("changes were told that nobody has made, or that had failed", foreign),
    ]


def _look_at_the_end(history: _History, records: Sequence[Record]) -> list[str]:
    """What was told comes to what was read when all was over."""
    differing = []
    for key, seen in last_reads(records):
        kept = history.state.get(key)
        if (kept and Seen(*kept[:4])) != seen:
            differing.append(f"{key}: {kept} was told, and {seen} is read")
    ends = {key for key in history.state if key.startswith(LEASES)} - {*END}
    return [
        *_some("keys were told to be otherwise than they are", differing),
        *_some("keys have a time to live, and were not told to have expired", sorted(ends)),
    ]


AFTERWARDS: Final = "afterwards"
"""The client that reads all keys when the others have ended."""


def last_reads(records: Iterable[Record]) -> Iterator[tuple[str, Seen | None]]:
    for record in records:
        response = record.operation.response
        if record.operation.client != AFTERWARDS or not isinstance(response, Committed):
            continue
        for step, result in zip(
            record.operation.request.operations, response.results or (), strict=False
        ):
            if isinstance(step, Get):
                yield step.key, result if isinstance(result, Seen) else None


def _stray(writes: Writes, everything: Sequence[Told]) -> float:
    """Log time minus the clients' clock lies between two bounds for each write: how they move."""
    bounds = [
        (told.at - returned, told.at - invoked)
        for told in everything
        if told.revision in writes.times
        for invoked, returned in [writes.times[told.revision]]
    ]
    if not bounds:
        return 0.0
    return max(0.0, max(low for low, _ in bounds) - min(high for _, high in bounds))
