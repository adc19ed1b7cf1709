"""Pages: complete, in order, bounded, and as cheap in the middle as at the start."""

from collections.abc import Iterator

import pytest

from kvorum import limits
from kvorum.errors import InvalidCursor
from kvorum_node.machine import Machine
from kvorum_node.raft.types import GroupId
from kvorum_node.storage.engine import Engine, Family
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import KeyRange, Record
from kvorumpb.v1.kv_pb2 import ListRequest, ListResponse
from tests.support.commands import KEYS, delete, put, run, run_one, transaction


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


def test_every_page_reads_itself_and_one_record_more() -> None:
    engine = _CountingEngine()
    machine = Machine(engine, GroupId(1))
    _fill(machine, [b"k%05d" % number for number in range(1000)])
    scanned = []
    for _ in _pages(machine, ListRequest(page_size=10)):
        scanned.append(engine.scanned)
        engine.scanned = 0
    assert scanned == [11] * 99 + [10]
