"""Pages: complete, in order, bounded, and as cheap in the middle as at the start.

What past revisions and snapshots hold is in test_past.py.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from kvorum import limits
from kvorum.errors import Compacted, InvalidCursor
from kvorum_node.machine import Machine, listing
from kvorum_node.raft.types import GroupId
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import KeyRange, Operation, Record
from kvorumpb.v1.kv_pb2 import IndexSelection, ListRequest, ListResponse
from tests.support.commands import (
    KEYS,
    compact,
    delete,
    indexed,
    put,
    run,
    run_one,
    sweep,
    touch,
    transaction,
)


def _fill(machine: Machine, keys: list[bytes], value: bytes = b"v") -> None:
    run(machine, *(transaction(put(key, value)) for key in keys))


def _keys(response: ListResponse) -> list[bytes]:
    return [record.key for record in response.records]


def _pages(machine: Machine, request: ListRequest) -> Iterator[ListResponse]:
    """All pages of the list, following the tokens."""
    request = ListRequest.FromString(request.SerializeToString())
    while True:
        response = machine.list(request)
        yield response
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def test_records_come_with_their_keys_in_the_order_of_their_bytes(machine: Machine) -> None:
    _fill(machine, [b"b", b"a", b"\xff", b"a\x00", b"B"])
    response = machine.list(ListRequest())
    assert _keys(response) == [b"B", b"a", b"a\x00", b"b", b"\xff"]
    assert response.revision == 5
    assert not response.next_page_token
    assert response.records[1] == Record(
        key=b"a", value=b"v", revision=2, created_revision=2, version=1
    )


def test_an_empty_store_is_one_empty_last_page(machine: Machine) -> None:
    assert machine.list(ListRequest()) == ListResponse()


@pytest.mark.parametrize(
    "prefix", [b"", b"user:", b"user:\xff", b"\xff", b"\xff\xff", b"\x00", b"none", b"user:a"]
)
@pytest.mark.parametrize("page_size", [1, 3, 100])
def test_a_prefix_selects_exactly_its_keys(machine: Machine, prefix: bytes, page_size: int) -> None:
    _fill(machine, list(KEYS))
    request = ListRequest(prefix=prefix, page_size=page_size)
    listed = [key for page in _pages(machine, request) for key in _keys(page)]
    assert listed == sorted(key for key in KEYS if key.startswith(prefix))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (b"", b""),
        (b"b", b""),
        (b"", b"user:"),
        (b"a", b"b"),
        (b"a", b"b\x00"),
        (b"user:\xff", b"user:\xff\xff\xff"),
        (b"\xff\xff\xff", b""),
        (b"m", b"m"),
    ],
)
def test_a_range_includes_its_start_and_excludes_its_end(
    machine: Machine, start: bytes, end: bytes
) -> None:
    _fill(machine, list(KEYS))
    request = ListRequest(range=KeyRange(start=start, end=end), page_size=2)
    listed = [key for page in _pages(machine, request) for key in _keys(page)]
    assert listed == sorted(key for key in KEYS if start <= key and (not end or key < end))


@pytest.mark.parametrize(
    ("count", "page_size", "sizes"),
    [(10, 5, [5, 5]), (11, 5, [5, 5, 1]), (9, 5, [5, 4]), (5, 5, [5]), (1, 1, [1]), (2, 1, [1, 1])],
)
def test_a_full_last_page_says_that_it_is_the_last(
    machine: Machine, count: int, page_size: int, sizes: list[int]
) -> None:
    _fill(machine, [b"k%03d" % number for number in range(count)])
    pages = list(_pages(machine, ListRequest(prefix=b"k", page_size=page_size)))
    assert [len(page.records) for page in pages] == sizes


def test_the_default_page_size(machine: Machine) -> None:
    _fill(machine, [b"k%05d" % number for number in range(limits.DEFAULT_PAGE_RECORDS + 1)])
    sizes = [len(page.records) for page in _pages(machine, ListRequest())]
    assert sizes == [limits.DEFAULT_PAGE_RECORDS, 1]


def test_the_largest_page_size(machine: Machine) -> None:
    _fill(machine, [b"k%05d" % number for number in range(limits.MAX_PAGE_RECORDS + 1)])
    request = ListRequest(page_size=limits.MAX_PAGE_RECORDS)
    assert [len(page.records) for page in _pages(machine, request)] == [limits.MAX_PAGE_RECORDS, 1]


def test_a_page_ends_before_it_is_too_large(machine: Machine) -> None:
    value = bytes(limits.MAX_PAGE_BYTES // 4)
    _fill(machine, [b"k%d" % number for number in range(7)], value)
    pages = list(_pages(machine, ListRequest()))
    assert [len(page.records) for page in pages] == [3, 3, 1]
    assert all(page.ByteSize() < limits.MAX_PAGE_BYTES for page in pages)


def test_a_record_larger_than_a_page_is_a_page_alone(machine: Machine) -> None:
    _fill(machine, [b"a", b"c", b"d"])
    _fill(machine, [b"b"], bytes(limits.MAX_PAGE_BYTES + 1))
    assert [_keys(page) for page in _pages(machine, ListRequest())] == [
        [b"a"],
        [b"b"],
        [b"c", b"d"],
    ]


def test_a_key_that_stays_is_neither_skipped_nor_repeated(machine: Machine) -> None:
    _fill(machine, [b"b", b"d", b"f", b"h"])
    first = machine.list(ListRequest(page_size=2))
    run_one(machine, put(b"a"), delete(b"d"), put(b"d\x00"), put(b"e"), delete(b"h"))
    second = machine.list(ListRequest(page_size=9, page_token=first.next_page_token))
    assert _keys(first) + _keys(second) == [b"b", b"d", b"d\x00", b"e", b"f"]
    assert (first.revision, second.revision) == (4, 5)


def test_a_page_may_follow_with_another_size(machine: Machine) -> None:
    _fill(machine, [b"a", b"b", b"c", b"d"])
    first = machine.list(ListRequest(page_size=1))
    second = machine.list(ListRequest(page_size=2, page_token=first.next_page_token))
    assert _keys(second) == [b"b", b"c"]


def test_a_token_goes_on_after_a_key_of_the_largest_size(machine: Machine) -> None:
    longest = b"k" * limits.MAX_KEY_BYTES
    _fill(machine, [longest, b"z"])
    assert [_keys(page) for page in _pages(machine, ListRequest(page_size=1))] == [
        [longest],
        [b"z"],
    ]


def test_a_list_stays_within_its_group(engine: Engine, machine: Machine) -> None:
    _fill(Machine(engine, GroupId(2)), [b"other"])
    _fill(machine, [b"\xff\xff", b"a"])
    assert _keys(machine.list(ListRequest())) == [b"a", b"\xff\xff"]
    assert _keys(machine.list(ListRequest(prefix=b"\xff"))) == [b"\xff\xff"]


def test_a_token_of_another_selection_is_refused(machine: Machine) -> None:
    _fill(machine, [b"a1", b"a2", b"b1", b"b2"])
    token = machine.list(ListRequest(prefix=b"a", page_size=1)).next_page_token
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        machine.list(ListRequest(prefix=b"b", page_token=token))
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        machine.list(ListRequest(page_token=token))
    same = ListRequest(range=KeyRange(start=b"a", end=b"b"), page_token=token)
    assert _keys(machine.list(same)) == [b"a2"]


# Directions, and what is left out.


@pytest.mark.parametrize("page_size", [1, 3, 100])
@pytest.mark.parametrize("prefix", [b"", b"user:", b"user:\xff", b"\xff\xff", b"none"])
def test_backwards(machine: Machine, prefix: bytes, page_size: int) -> None:
    _fill(machine, list(KEYS))
    request = ListRequest(prefix=prefix, page_size=page_size, reverse=True)
    pages = list(_pages(machine, request))
    listed = [key for page in pages for key in _keys(page)]
    assert listed == sorted((key for key in KEYS if key.startswith(prefix)), reverse=True)
    assert all(len(page.records) == page_size for page in pages[:-1])


def test_keys_only_leaves_out_values_and_metadata_and_nothing_else(machine: Machine) -> None:
    value = bytes(limits.MAX_PAGE_BYTES)
    entries = [indexed("email", b"a@b", unique=True)]
    written = put(b"a", value, ttl_ms=5, metadata=b"m", entries=entries)
    run_one(machine, written, put(b"b", value), log_time_ms=10)
    page = machine.list(ListRequest(keys_only=True))
    assert page.records[0] == Record(
        key=b"a",
        revision=1,
        created_revision=1,
        version=1,
        expire_time_ms=15,
        update_time_ms=10,
        index_entries=entries,
    )
    assert _keys(page) == [b"a", b"b"]  # their values would not fit one page


def test_what_has_expired_is_passed_over(machine: Machine) -> None:
    _fill(machine, [b"b"])
    run_one(machine, put(b"a", ttl_ms=5), put(b"c", ttl_ms=10), log_time_ms=100)
    request = ListRequest(page_size=1, count=True)

    def listed() -> list[tuple[list[bytes], int]]:
        return [(_keys(page), page.count) for page in _pages(machine, request)]

    run(machine, log_time_ms=104)
    assert listed() == [([b"a"], 3), ([b"b"], 3), ([b"c"], 3)]
    run(machine, log_time_ms=105)
    assert listed() == [([b"b"], 2), ([b"c"], 2)]
    run(machine, log_time_ms=110)
    assert listed() == [([b"b"], 1)]


def test_all_pages_of_a_snapshot_agree_on_what_has_expired(machine: Machine) -> None:
    run_one(machine, put(b"a"), put(b"b", ttl_ms=5), put(b"c", ttl_ms=10), log_time_ms=100)
    request = ListRequest(page_size=1, snapshot=True)
    run(machine, log_time_ms=105)
    first = machine.list(request)
    assert (_keys(first), first.log_time_ms) == ([b"a"], 105)
    run(machine, log_time_ms=200)
    request.page_token = first.next_page_token
    for swept in (False, True):
        if swept:
            sweep(machine)
        second = machine.list(request)
        assert (_keys(second), second.log_time_ms) == ([b"c"], 105)
        assert not second.next_page_token


def test_a_token_of_a_snapshot_says_its_revision(machine: Machine) -> None:
    _fill(machine, [b"a", b"b", b"c"])
    request = ListRequest(page_size=1, snapshot=True, revision=2)
    request.page_token = machine.list(request).next_page_token
    assert _keys(machine.list(request)) == [b"b"]
    request.revision = 0
    assert _keys(machine.list(request)) == [b"b"]
    request.revision = 3
    with pytest.raises(InvalidCursor, match="a snapshot at revision 2, not 3"):
        machine.list(request)


# Under writes.


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_under_writes_a_key_that_stays_is_neither_skipped_nor_repeated(
    machine: Machine, seed: int, by_index: bool, reverse: bool
) -> None:
    source = random.Random(seed)

    def write(key: bytes) -> Operation:
        return put(key, entries=[indexed("last", key[-1:])])

    for key in KEYS:
        run_one(machine, write(key))
    request = ListRequest(page_size=2, reverse=reverse)
    if by_index:
        request.index.index = "last"
    stayed, found = set(KEYS), []
    for page in _pages(machine, request):
        found.extend(_keys(page))
        for key in source.sample(KEYS, 3):
            if source.random() < 0.3:
                run_one(machine, delete(key))
                stayed.discard(key)
            else:
                run_one(machine, write(key))
    assert len(found) == len(set(found))
    assert set(found) >= stayed


# By index.


def _fill_index(machine: Machine, index: str, values: Mapping[bytes, Sequence[bytes]]) -> None:
    for key, of_key in values.items():
        run_one(machine, put(key, b"v" + key, entries=[indexed(index, each) for each in of_key]))


INDEXED = {
    b"k1": [b"a", b"b"],
    b"k2": [b"a\0", b""],
    b"k3": [b"a", b"\xff"],
    b"k0": [b"a", b"a\0\1", b"ab"],
    b"k": [b"\0", b"\0\xff"],
}


@pytest.mark.parametrize("page_size", [1, 2, 100])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("selected", "wanted"),
    [
        (IndexSelection(), lambda value: True),
        (IndexSelection(value=b"a"), lambda value: value == b"a"),
        (IndexSelection(value=b""), lambda value: value == b""),
        (IndexSelection(value=b"\0"), lambda value: value == b"\0"),
        (IndexSelection(value=b"nothing"), lambda value: False),
        (IndexSelection(prefix=b"a"), lambda value: value.startswith(b"a")),
        (IndexSelection(prefix=b"a\0"), lambda value: value.startswith(b"a\0")),
        (IndexSelection(prefix=b"\xff"), lambda value: value.startswith(b"\xff")),
        (IndexSelection(range=KeyRange(start=b"a", end=b"ab")), lambda v: b"a" <= v < b"ab"),
        (IndexSelection(range=KeyRange(start=b"a\0")), lambda value: value >= b"a\0"),
        (IndexSelection(range=KeyRange(end=b"a")), lambda value: value < b"a"),
    ],
    # Not the address of a function: two workers must agree on the name of a test.
    ids=lambda one: None if callable(one) else str(one),
)
def test_by_index(
    machine: Machine,
    selected: IndexSelection,
    wanted: Callable[[bytes], bool],
    reverse: bool,
    page_size: int,
) -> None:
    _fill_index(machine, "i", INDEXED)
    _fill_index(machine, "i2", {b"other": [b"a", b"b"]})
    request = ListRequest(index=selected, reverse=reverse, page_size=page_size, count=True)
    request.index.index = "i"
    expected = sorted(
        ((value, key) for key, values in INDEXED.items() for value in values if wanted(value)),
        reverse=reverse,
    )
    pages = list(_pages(machine, request))
    assert [
        (value, record.key)
        for page in pages
        for value, record in zip(page.index_values, page.records, strict=True)
    ] == expected
    assert all(record.value == b"v" + record.key for page in pages for record in page.records)
    assert {page.count for page in pages} == {len(expected)}
    assert len(pages) == max(1, -(-len(expected) // page_size))


def test_an_index_follows_its_records(machine: Machine) -> None:
    request = ListRequest(index=IndexSelection(index="i"), count=True)

    def found() -> tuple[list[tuple[bytes, bytes]], int]:
        page = machine.list(request)
        keys = _keys(page)
        return list(zip(page.index_values, keys, strict=True)), page.count

    run_one(machine, put(b"a", ttl_ms=5, entries=[indexed("i", b"1", unique=True)]))
    run_one(machine, put(b"b", entries=[indexed("i", b"2"), indexed("j", b"2")]))
    assert found() == ([(b"1", b"a"), (b"2", b"b")], 2)
    run_one(machine, put(b"b", entries=[indexed("i", b"0")]))
    assert found() == ([(b"0", b"b"), (b"1", b"a")], 2)
    run(machine, log_time_ms=5)  # it has expired, and its entry is still stored
    assert found() == ([(b"0", b"b")], 1)
    run_one(machine, put(b"a", entries=[indexed("i", b"3")]))
    assert found() == ([(b"0", b"b"), (b"3", b"a")], 2)
    run_one(machine, delete(b"b"), delete(b"a"))
    assert found() == ([], 0)


def test_a_token_of_another_index_is_refused(machine: Machine) -> None:
    _fill_index(machine, "i", INDEXED)
    request = ListRequest(index=IndexSelection(index="i"), page_size=1)
    request.page_token = machine.list(request).next_page_token
    request.index.index = "j"
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        machine.list(request)
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        machine.list(ListRequest(page_token=request.page_token))


# In slices.


def _steps(
    machine: Machine,
    request: ListRequest,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[ListResponse, int]:
    """The response, and in how many slices it was made; `meanwhile` happens between them."""
    response = ListResponse()
    listing = machine.begin_list(request, response)
    steps = 1
    while not listing.step():
        meanwhile()
        steps += 1
    return response, steps


def _every_way(machine: Machine) -> list[ListRequest]:
    """All kinds of lists of all records, with a count."""
    by_index = ListRequest(index=IndexSelection(index="i"))
    kinds = [
        ListRequest(),
        ListRequest(revision=machine.revision),
        ListRequest(snapshot=True),
        by_index,
    ]
    for kind in kinds:
        kind.page_size, kind.count = 3, True
    backwards = [ListRequest.FromString(kind.SerializeToString()) for kind in kinds]
    for kind in backwards:
        kind.reverse = True
    return kinds + backwards


def test_a_count_is_made_in_slices_and_of_one_moment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SLICE_RECORDS", 10)

    def write(key: bytes) -> Operation:
        return put(key, ttl_ms=1_000_000, entries=[indexed("i", key[-2:])])

    run(machine, *(transaction(write(b"k%03d" % number)) for number in range(95)))
    source = random.Random(1)

    def meanwhile() -> None:
        key = b"k%03d" % source.randrange(130)
        operation = source.choice((write(key), delete(key), touch(key, 1)))
        run_one(machine, operation, log_time_ms=machine.log_time_ms + 1)
        if source.random() < 0.3:
            sweep(machine)

    for request in _every_way(machine):
        expected = machine.list(request)
        response, steps = _steps(machine, request, meanwhile)
        assert response == expected
        assert steps >= response.count // 10 >= 5


def test_a_slice_ends_after_so_many_bytes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SLICE_BYTES", 4000)  # larger values are not read for a count
    _fill(machine, [b"k%d" % number for number in range(9)], bytes(2000))
    response, steps = _steps(machine, ListRequest(page_size=1, count=True))
    assert (response.count, steps) == (9, 5)


def test_a_page_is_left_and_taken_up_again_where_much_has_expired(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SLICE_RECORDS", 10)
    keys = [b"k%03d" % number for number in range(100)]
    entries = [indexed("i", b"same")]
    run(machine, *(transaction(put(key, ttl_ms=5, entries=entries)) for key in keys))
    _fill(machine, [b"k050x", b"k090x"])
    run_one(machine, put(b"k050x", entries=entries), put(b"k090x", entries=entries))
    run(machine, log_time_ms=5)
    for request in _every_way(machine):
        if request.revision:
            continue  # there they are, as they were not swept
        request.count = False
        response, steps = _steps(machine, request, lambda: sweep(machine, 1))
        expected = [b"k050x", b"k090x"]
        assert _keys(response) == (expected[::-1] if request.reverse else expected)
        assert 3 <= steps <= 12


def test_what_is_compacted_in_the_middle_is_said_or_read_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SLICE_RECORDS", 10)
    entries = [indexed("i", b"same")]
    run(machine, *(transaction(put(b"k%03d" % at, entries=entries)) for at in range(50)))
    for request in _every_way(machine):
        done: list[int] = []

        def compact_once(done: list[int] = done) -> None:
            if not done:
                run_one(machine, put(b"new%d" % machine.revision, entries=entries))
                compact(machine, machine.revision)
                done.append(machine.revision)

        if request.revision or request.snapshot:
            with pytest.raises(Compacted) as raised:
                _steps(machine, request, compact_once)
            assert raised.value.oldest_revision == machine.revision
        else:
            response, _ = _steps(machine, request, compact_once)
            assert response.revision == machine.revision
            assert response == machine.list(request)


# What they cost.


class _CountingEngine(MemoryEngine):
    """Counts the records that scans give out."""

    def __init__(self) -> None:
        super().__init__()
        self.scanned = 0

    def scan(
        self, family: Family, start: bytes, end: bytes | None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for pair in super().scan(family, start, end, reverse=reverse):
            self.scanned += 1
            yield pair


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_every_page_reads_itself_and_one_record_more(reverse: bool, by_index: bool) -> None:
    engine = _CountingEngine()
    machine = Machine(engine, GroupId(1))
    keys = [b"k%05d" % number for number in range(1000)]
    run(machine, *(transaction(put(key, entries=[indexed("i", key)])) for key in keys))
    request = ListRequest(page_size=10, reverse=reverse)
    if by_index:
        request.index.index = "i"
    scanned = []
    engine.scanned = 0
    for _ in _pages(machine, request):
        scanned.append(engine.scanned)
        engine.scanned = 0
    assert scanned == [11] * 99 + [10]
