"""Equal hashes mean equal states, whatever engine holds them."""

import random
import struct
from collections.abc import Iterable
from hashlib import blake2b

import pytest

from kvorum.errors import StorageError
from kvorum_node.machine import HASH_FORMAT, ContentHash, ContentHasher, Machine, content_hash
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, Term
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.layout import EventKind, ExpiryKind
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    IndexEntry,
    Operation,
    PutOperation,
    Record,
    Verification,
)
from tests.support.commands import (
    add,
    delete,
    entry,
    put,
    random_entries,
    run,
    run_one,
    transaction,
)

GROUP = GroupId(1)
SPACE = layout.Space(GROUP, 0)

Row = tuple[Family, bytes, bytes]


def _finish(hasher: ContentHasher) -> ContentHash:
    while (content := hasher.step()) is None:
        pass
    return content


def _hash(machine: Machine) -> ContentHash:
    return _finish(machine.content_hash())


def _digest(*rows: bytes) -> bytes:
    return blake2b(b"\x01" + b"".join(rows), digest_size=32).digest()


def _row(tag: bytes, key: bytes, body: bytes) -> bytes:
    """A row as it goes into the hash, written out once more."""
    return tag + struct.pack(">II", len(key), len(body)) + key + body


def _number(name: bytes, number: int) -> bytes:
    return _row(b"M", name, struct.pack(">q", number))


def test_nothing_has_a_hash_too(machine: Machine) -> None:
    assert _hash(machine) == ContentHash(Index(0), 0, _digest(), 0)


def test_the_hash_is_over_all_families_in_the_order_of_tags_and_keys(machine: Machine) -> None:
    index_entries = [
        IndexEntry(index="i", value=b"v"),
        IndexEntry(index="u", value=b"w", unique=True),
    ]
    operation = Operation(
        put=PutOperation(key=b"a", value=b"1", ttl_ms=9, metadata=b"m", index_entries=index_entries)
    )
    machine.apply([entry(1, transaction(operation), log_time_ms=70)])
    machine.apply(
        [entry(2, transaction(delete(b"a")), transaction(put(b"b", b"2")), log_time_ms=72)]
    )
    first = (
        struct.pack(">qqqqqII?", 1, 1, 1, 79, 70, 1, 1, False)
        + b"1m"
        + struct.pack(">II?", 1, 1, False)
        + b"iv"
        + struct.pack(">II?", 1, 1, True)
        + b"uw"
    )
    second = struct.pack(">qqqqqII?", 3, 3, 1, 0, 72, 1, 0, False) + b"2"
    rows = [
        _row(b"D", b"b", second),
        _row(b"H", layout.history_key(1), layout.encode_event(EventKind.PUT, 70, b"a")),
        _row(b"H", layout.history_key(2), layout.encode_event(EventKind.DELETE, 72, b"a")),
        _row(b"H", layout.history_key(3), layout.encode_event(EventKind.PUT, 72, b"b")),
        _row(b"K", layout.version_key(b"a", 1), b""),
        _row(b"K", layout.version_key(b"a", 2), first),
        _row(b"K", layout.version_key(b"b", 3), b""),
        _number(b"applied", 2),
        _number(b"log_time_ms", 72),
        _number(b"revision", 3),
    ]
    assert _hash(machine) == ContentHash(Index(2), 3, _digest(*rows), 1)


def test_every_history_counts() -> None:
    histories = [
        [put(b"a", b"1")],
        [put(b"a", b"2")],
        [put(b"b", b"1")],
        [put(b"a", b"1"), put(b"a", b"1")],
        [put(b"x"), put(b"a", b"1"), delete(b"x")],
        [put(b"a", b"1"), put(b"a\x01", b"")],
    ]
    hashes = set()
    for group, history in enumerate(histories, start=1):
        each = Machine(MemoryEngine(), GroupId(group))
        run(each, *(transaction(operation) for operation in history))
        hashes.add(_hash(each).digest)
    assert len(hashes) == len(histories)


RECORD = Record(
    value=b"value",
    revision=7,
    created_revision=3,
    version=2,
    expire_time_ms=99,
    update_time_ms=55,
    metadata=b"metadata",
    index_entries=[
        IndexEntry(index="i", value=b"v"),
        IndexEntry(index="j", value=b"w", unique=True),
    ],
)

STATE: list[Row] = [
    (Family.CLIENT, layout.client_key(5, Index(3)), b"results"),
    (Family.DATA, b"a", RECORD.SerializeToString()),
    (Family.DATA, b"empty", b""),
    (Family.EXPIRY, layout.expiry_key(99, ExpiryKind.RECORD, b"a"), b""),
    (Family.HISTORY, layout.history_key(7), layout.encode_event(EventKind.PUT, 55, b"a")),
    (Family.INDEX, layout.index_key("i", b"v", b"a"), b""),
    (Family.INDEX, layout.unique_key("j", b"w"), b"a"),
    (Family.KEYS, layout.version_key(b"a", 3), b""),
    (Family.KEYS, layout.version_key(b"a", 7), RECORD.SerializeToString()),
    (Family.LIMIT, b"a", layout.encode_limit(99, b"state")),
    *(
        (Family.META, name, struct.pack(">q", 7))
        for name in (
            layout.META_APPLIED,
            layout.META_LOG_TIME_MS,
            layout.META_OLDEST_REVISION,
            layout.META_REVISION,
            layout.META_TRIMMED_REVISION,
        )
    ),
    (Family.VALUE, layout.version_key(b"a", 7), b"large"),
]
"""A row of each kind."""


def _hash_of_rows(rows: Iterable[Row]) -> bytes:
    engine = MemoryEngine()
    batch = Batch()
    for family, key, value in rows:
        batch.put(family, SPACE.prefix + key, value)
    engine.write(batch)
    return _finish(ContentHasher(engine, SPACE, Index(7), 7)).digest


def _with_record(change: Record, family: Family) -> list[Row]:
    return [
        (
            one,
            key,
            change.SerializeToString()
            if one is family and value == RECORD.SerializeToString()
            else value,
        )
        for one, key, value in STATE
    ]


def _altered(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_the_state_has_a_row_of_each_family() -> None:
    assert {family for family, _, _ in STATE} == set(layout.STATE_FAMILIES)


@pytest.mark.parametrize("number", range(len(STATE)), ids=[f"{f.name} {k!r}" for f, k, _ in STATE])
def test_each_row_counts_and_each_byte_of_its_key(number: int) -> None:
    family, key, value = STATE[number]
    others = STATE[:number] + STATE[number + 1 :]
    hashes = [_hash_of_rows(STATE), _hash_of_rows(others)]
    hashes += [
        _hash_of_rows([*others, (family, _altered(key, position), value)])
        for position in range(len(key))
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "number",
    [n for n, (f, _, value) in enumerate(STATE) if value and f not in (Family.DATA, Family.KEYS)],
)
def test_each_byte_of_what_is_of_our_own_layout_counts(number: int) -> None:
    family, key, value = STATE[number]
    others = STATE[:number] + STATE[number + 1 :]
    hashes = [_hash_of_rows(STATE), _hash_of_rows([*others, (family, key, value + b"\0")])]
    hashes += [
        _hash_of_rows([*others, (family, key, _altered(value, position))])
        for position in range(len(value))
    ]
    assert len(set(hashes)) == len(hashes)


CHANGES = [
    Record(value=b"valuf"),
    Record(value=b"valuem", metadata=b"etadata"),
    Record(revision=8),
    Record(created_revision=4),
    Record(version=3),
    Record(expire_time_ms=98),
    Record(update_time_ms=54),
    Record(metadata=b"metadatb"),
    Record(index_entries=[IndexEntry(index="k", value=b"x")]),
]
"""Laid over the record."""


@pytest.mark.parametrize("family", [Family.DATA, Family.KEYS])
def test_every_field_of_a_record_counts(family: Family) -> None:
    hashes = [_hash_of_rows(STATE)]
    for change in CHANGES:
        changed = Record()
        changed.CopyFrom(RECORD)
        changed.MergeFrom(change)
        hashes.append(_hash_of_rows(_with_record(changed, family)))
    for position, entry_change in ((0, IndexEntry(index="x")), (1, IndexEntry(value=b"x"))):
        changed = Record()
        changed.CopyFrom(RECORD)
        changed.index_entries[position].MergeFrom(entry_change)
        hashes.append(_hash_of_rows(_with_record(changed, family)))
    for position in (0, 1):
        changed = Record()
        changed.CopyFrom(RECORD)
        changed.index_entries[position].unique = not changed.index_entries[position].unique
        hashes.append(_hash_of_rows(_with_record(changed, family)))
    assert len(set(hashes)) == len(hashes)


def test_how_protobuf_has_written_a_record_does_not_count() -> None:
    """Another version may order the fields in another way."""
    fields, value = RECORD.SerializeToString(), Record(value=b"value").SerializeToString()
    reordered = fields.replace(value, b"", 1) + value
    assert reordered != fields
    assert Record.FromString(reordered) == RECORD
    rows = [
        (family, key, reordered if stored == fields else stored) for family, key, stored in STATE
    ]
    assert _hash_of_rows(rows) == _hash_of_rows(STATE)


def test_what_is_no_record_has_no_hash() -> None:
    for family in (Family.DATA, Family.KEYS):
        with pytest.raises(StorageError, match="is not a record"):
            _hash_of_rows([(family, layout.version_key(b"a", 1), b"\x12\xff")])


def test_the_hash_does_not_depend_on_the_engine_the_group_or_the_space(machine: Machine) -> None:
    other = Machine(MemoryEngine(), GroupId(7))
    for number in range(20):
        for each in (machine, other):
            run_one(each, put(b"k%d" % (number % 7), b"v%d" % number), add(b"n", number))
    assert _hash(machine) == _hash(other)
    engine = MemoryEngine()
    batch = Batch()
    for family, key, value in STATE:
        batch.put(family, SPACE.other.prefix + key, value)
    engine.write(batch)
    elsewhere = _finish(ContentHasher(engine, SPACE.other, Index(7), 7))
    assert elsewhere.digest == _hash_of_rows(STATE)
    assert elsewhere.record_count == 2


def test_the_view_is_the_one_at_the_start(machine: Machine) -> None:
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(2000)))
    expected = _hash(machine)
    hashing, untouched = machine.content_hash(), machine.content_hash()
    assert hashing.step() is None
    run_one(machine, put(b"k0000", b"new"), delete(b"k1999"), put(b"k1500", b"new"))
    assert _finish(hashing) == expected
    assert _finish(untouched) == expected
    assert _hash(machine) != expected


def test_a_hasher_that_is_given_up_pins_nothing(engine: Engine) -> None:
    machine = Machine(engine, GROUP)
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(2000)))
    hasher = machine.content_hash()
    assert hasher.step() is None
    hasher.close()
    if isinstance(engine, MemoryEngine):
        assert len(engine._scans) == 0


def test_a_slice_ends_after_so_many_rows(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "SLICE_ROWS", 10)
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(8)))
    assert _steps(machine) == 3, "a record, its event and what was before it; two numbers"


def test_a_slice_ends_after_so_many_bytes(machine: Machine) -> None:
    value = bytes(content_hash.SLICE_BYTES // 2)
    run(machine, *(transaction(put(b"k%d" % number, value)) for number in range(5)))
    assert _steps(machine) == 3


def test_a_record_larger_than_a_slice_is_one(machine: Machine) -> None:
    value = bytes(2 * content_hash.SLICE_BYTES)
    run_one(machine, put(b"a", value), put(b"b", value), put(b"c"))
    assert _steps(machine) == 3


def _steps(machine: Machine) -> int:
    hasher = machine.content_hash()
    steps = 1
    while hasher.step() is None:
        steps += 1
    return steps


# Verifications in the log.


def _verified(entries: Iterable[Entry], source: random.Random) -> list[Entry]:
    """Verifications among the commands, alone and with others, at any place."""
    command = Command(verification=Verification(format=HASH_FORMAT))
    piece = CommandBatch(commands=[command]).SerializeToString()
    found = []
    for each in entries:
        data = each.data
        if each.kind is EntryKind.COMMANDS and source.random() < 0.2:
            data = piece + data if source.random() < 0.5 else data + piece
        found.append(Entry(each.index, Term(1), each.kind, data))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_all_batchings_hash_the_same_at_the_same_index(engine: Engine, seed: int) -> None:
    entries = _verified(random_entries(random.Random(seed), 120), random.Random(seed))

    def hashes(machine: Machine, longest: int) -> list[ContentHash]:
        """Each of them finished only after everything else: the view is pinned."""
        pinned: list[ContentHasher] = []
        machine.on_verification = pinned.append
        source, rest = random.Random(seed), entries
        while rest:
            length = source.randint(1, longest)
            machine.apply(rest[:length])
            rest = rest[length:]
        return [_finish(each) for each in pinned]

    expected = hashes(Machine(engine, GROUP), 1)
    assert len(expected) > 10
    assert len({each.digest for each in expected}) == len(expected)
    for longest in (2, 17, 120):
        assert hashes(Machine(MemoryEngine(), GROUP), longest) == expected
