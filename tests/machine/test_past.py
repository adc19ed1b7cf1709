"""The store as it was: against a model that keeps a copy of every revision."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from kvorum.errors import Compacted, FutureRevision
from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId
from kvorum_node.storage.engine import Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import KeyRange, Record
from kvorumpb.v1.kv_pb2 import ListRequest
from tests.support.commands import (
    KEYS,
    compact,
    delete,
    put,
    run,
    run_one,
    sweep,
    touch,
    transaction,
)


class Held(NamedTuple):
    """What a key holds, but for its expiry: a touch has no revision."""

    value: bytes
    revision: int
    created_revision: int
    version: int


@dataclass
class Model:
    """The rules once more, in dicts."""

    records: dict[bytes, Held] = field(default_factory=dict)
    expiry: dict[bytes, int] = field(default_factory=dict)
    revisions: list[dict[bytes, Held]] = field(default_factory=lambda: [{}])
    """By revision, all that was stored then: what had expired and was not swept, too."""
    now: int = 0
    oldest: int = 0

    @property
    def newest(self) -> int:
        return len(self.revisions) - 1

    def is_live(self, key: bytes) -> bool:
        return key in self.records and not 0 < self.expiry.get(key, 0) <= self.now

    def live(self) -> dict[bytes, Held]:
        return {key: held for key, held in self.records.items() if self.is_live(key)}

    def put(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        at = len(self.revisions)
        if self.is_live(key):
            before = self.records[key]
            self.records[key] = Held(value, at, before.created_revision, before.version + 1)
        else:
            self.records[key] = Held(value, at, at, 1)
        self.expiry[key] = self.now + ttl_ms if ttl_ms else 0
        self._end_revision()

    def delete(self, key: bytes) -> None:
        if self.is_live(key):
            del self.records[key], self.expiry[key]
            self._end_revision()

    def touch(self, key: bytes, ttl_ms: int) -> None:
        if self.is_live(key):
            self.expiry[key] = self.now + ttl_ms if ttl_ms else 0

    def sweep(self, limit: int) -> None:
        due = sorted((at, key) for key, at in self.expiry.items() if 0 < at <= self.now)[:limit]
        for _, key in due:
            del self.records[key], self.expiry[key]
        if due:
            self._end_revision()

    def compact(self, revision: int) -> None:
        self.oldest = max(self.oldest, revision)

    def _end_revision(self) -> None:
        self.revisions.append(dict(self.records))


def _held(record: Record) -> Held:
    return Held(record.value, record.revision, record.created_revision, record.version)


def _change(source: random.Random, machine: Machine, model: Model) -> None:
    """One change to both."""
    model.now += source.choice((0, 0, 1, 10))
    key, value = source.choice(KEYS), source.choice((b"", b"1", b"two"))
    ttl_ms = source.choice((0, 0, 5, 30))
    match source.choice(("put", "put", "put", "delete", "touch", "sweep", "compact")):
        case "put":
            model.put(key, value, ttl_ms)
            run_one(machine, put(key, value, ttl_ms=ttl_ms), log_time_ms=model.now)
        case "delete":
            model.delete(key)
            run_one(machine, delete(key), log_time_ms=model.now)
        case "touch":
            model.touch(key, ttl_ms)
            run_one(machine, touch(key, ttl_ms), log_time_ms=model.now)
        case "sweep":
            limit = source.choice((1, 2, 100))
            model.sweep(limit)
            sweep(machine, limit, log_time_ms=model.now)
        case _:
            if source.random() < 0.2:
                revision = source.randint(model.newest // 2, model.newest)
                model.compact(revision)
                compact(machine, revision, source.choice((1, 3, 100)))
    run(machine, log_time_ms=model.now)  # time goes on without a write, too
    assert machine.revision == model.newest


def _random_request(source: random.Random) -> ListRequest:
    request = ListRequest(page_size=source.choice((1, 2, 3, 50)), reverse=source.random() < 0.5)
    bounds = sorted(source.sample(KEYS, 2))
    match source.choice(("all", "prefix", "range", "open")):
        case "prefix":
            request.prefix = source.choice((b"user:", b"user:\xff", b"\xff\xff", b"\x00", b"a"))
        case "range":
            request.range.CopyFrom(KeyRange(start=bounds[0], end=bounds[1]))
        case "open":
            request.range.CopyFrom(KeyRange(start=bounds[0]))
        case _:
            pass
    return request


def _selected(request: ListRequest, records: dict[bytes, Held]) -> list[tuple[bytes, Held]]:
    start, end = request.range.start, request.range.end
    return sorted(
        (
            (key, held)
            for key, held in records.items()
            if key.startswith(request.prefix) and start <= key and (not end or key < end)
        ),
        reverse=request.reverse,
    )


@dataclass
class _Snapshot:
    """A list of which pages are read now and then."""

    request: ListRequest
    revision: int
    expected: list[tuple[bytes, Held]]
    found: list[tuple[bytes, Held]] = field(default_factory=list)

    def read_page(self, machine: Machine) -> bool:
        """False once there are no more pages."""
        response = machine.list(self.request)
        self.found.extend((record.key, _held(record)) for record in response.records)
        self.request.page_token = response.next_page_token
        assert response.revision == self.revision
        assert response.count == len(self.expected)
        return bool(response.next_page_token)


def _begin_snapshot(source: random.Random, model: Model) -> _Snapshot:
    request = _random_request(source)
    request.snapshot = request.count = True
    revision, records = model.newest, model.live()
    if source.random() < 0.3 and model.oldest < model.newest:
        revision = request.revision = source.randint(model.oldest + 1, model.newest)
        records = model.revisions[revision]
    return _Snapshot(request, revision, _selected(request, records))


def _advance(source: random.Random, machine: Machine, model: Model, open_: list[_Snapshot]) -> None:
    """Read a page of one of the snapshots."""
    one = source.choice(open_)
    if one.revision < model.oldest:
        with pytest.raises(Compacted) as raised:
            one.read_page(machine)
        assert raised.value.oldest_revision == model.oldest
        open_.remove(one)
    elif not one.read_page(machine):
        assert one.found == one.expected
        open_.remove(one)


def _pages(machine: Machine, request: ListRequest) -> Iterator[list[Record]]:
    request = ListRequest.FromString(request.SerializeToString())
    while True:
        response = machine.list(request)
        yield list(response.records)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


@pytest.mark.parametrize("seed", range(4))
def test_every_revision_stays_what_it_was(machine: Machine, seed: int) -> None:
    source, model = random.Random(seed), Model()
    open_: list[_Snapshot] = []
    compacted = complete = 0
    for _ in range(250):
        _change(source, machine, model)
        if len(open_) < 5:
            begun = _begin_snapshot(source, model)
            if begun.read_page(machine):
                open_.append(begun)
            else:
                assert begun.found == begun.expected
        before, gone = len(open_), sum(one.revision < model.oldest for one in open_)
        if open_:
            _advance(source, machine, model, open_)
        ended = before - len(open_)
        compacted += gone - sum(one.revision < model.oldest for one in open_)
        complete += ended

        revision = source.randint(0, model.newest)
        request = _random_request(source)
        request.revision = revision
        key = source.choice(KEYS)
        if 0 < revision < model.oldest:
            with pytest.raises(Compacted):
                machine.list(request)
            with pytest.raises(Compacted):
                machine.get(key, revision=revision)
            continue
        expected = model.revisions[revision] if revision else model.live()
        pages = list(_pages(machine, request))
        listed = [(record.key, _held(record)) for page in pages for record in page]
        assert listed == _selected(request, expected)
        record = machine.get(key, revision=revision)
        assert (None if record is None else _held(record)) == expected.get(key)
    assert complete - compacted > 15
    assert compacted > 0


def test_the_revision_is_between_the_oldest_and_the_newest(machine: Machine) -> None:
    for number in range(5):
        run_one(machine, put(b"k", b"%d" % number))
    compact(machine, 3)
    reads: list[Callable[[int], object]] = [
        lambda revision: machine.get(b"k", revision=revision),
        lambda revision: machine.list(ListRequest(revision=revision)),
    ]
    for read in reads:
        for revision in (3, 4, 5):
            read(revision)
        with pytest.raises(Compacted) as gone:
            read(2)
        assert gone.value.metadata == {"revision": "2", "oldest_revision": "3"}
        with pytest.raises(FutureRevision) as future:
            read(6)
        assert future.value.metadata == {"revision": "6", "newest_revision": "5"}


class _CountingEngine(MemoryEngine):
    """Counts scans, and the rows that they give out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.scans = 0

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self.scans += 1
        return self._counted(super().scan(family, start, end, reverse=reverse))

    def _counted(self, pairs: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for pair in pairs:
            self.rows += 1
            yield pair


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("where", [0.01, 0.5, 0.99])
def test_a_page_costs_what_it_holds_however_often_its_keys_were_written(
    reverse: bool, where: float
) -> None:
    costs: dict[int, list[tuple[int, int]]] = {}
    keys, page_size = 30, 5
    for versions in (40, 400):
        engine = _CountingEngine()
        machine = Machine(engine, GroupId(1))
        for _ in range(versions):
            run(machine, *(transaction(put(b"k%03d" % number)) for number in range(keys)))
        revision = max(keys, int(machine.revision * where))  # all keys are there
        request = ListRequest(revision=revision, page_size=page_size, reverse=reverse)
        costs[versions] = []
        engine.rows = engine.scans = 0
        for page in _pages(machine, request):
            assert all(revision - keys < record.revision <= revision for record in page)
            costs[versions].append((engine.rows, engine.scans))
            engine.rows = engine.scans = 0
        assert len(costs[versions]) == keys // page_size
    for few, many in zip(costs[40], costs[400], strict=True):
        for rows, scans in (few, many):
            assert rows <= 16 * (page_size + 1)
            assert scans <= 4 * (page_size + 1)
