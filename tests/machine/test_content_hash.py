"""Equal hashes mean equal records, whatever engine holds them."""

import struct
from hashlib import blake2b

import pytest

from kvorum_node.machine import ContentHash, ContentHasher, Machine, content_hash
from kvorum_node.raft.types import GroupId
from kvorum_node.storage.memory import MemoryEngine
from tests.support.commands import add, delete, put, run, run_one, transaction

GROUP = GroupId(1)


def _finish(hasher: ContentHasher) -> ContentHash:
    while (content := hasher.step()) is None:
        pass
    return content


def _hash(machine: Machine) -> ContentHash:
    return _finish(machine.content_hash())


def _record(key: bytes, revision: int, created: int, version: int, value: bytes) -> bytes:
    """A record as it goes into the hash, written out once more."""
    return b"".join(
        (
            struct.pack(">I", len(key)),
            key,
            struct.pack(">qqq", revision, created, version),
            struct.pack(">I", len(value)),
            value,
        )
    )


def test_nothing_has_a_hash_too(machine: Machine) -> None:
    assert _hash(machine) == ContentHash(0, blake2b(digest_size=32).digest(), 0)


def test_the_hash_is_over_the_fields_in_key_order(machine: Machine) -> None:
    run_one(machine, put(b"b", b"2"))
    run_one(machine, put(b"a", b""), put(b"\xff", b"3"))
    run_one(machine, put(b"b", b"4"), delete(b"\xff"))
    run_one(machine, delete(b"a"), put(b"a\x00", b"5"))
    content = _record(b"a\x00", 4, 4, 1, b"5") + _record(b"b", 3, 1, 2, b"4")
    assert _hash(machine) == ContentHash(4, blake2b(content, digest_size=32).digest(), 2)


def test_every_field_counts(machine: Machine) -> None:
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


def test_the_hash_does_not_depend_on_the_engine_or_the_group(machine: Machine) -> None:
    other = Machine(MemoryEngine(), GroupId(7))
    for number in range(20):
        for each in (machine, other):
            run_one(each, put(b"k%d" % (number % 7), b"v%d" % number), add(b"n", number))
    assert _hash(machine) == _hash(other)


def test_the_view_is_the_one_at_the_start(machine: Machine) -> None:
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(2000)))
    expected = _hash(machine)
    hashing, untouched = machine.content_hash(), machine.content_hash()
    assert hashing.step() is None
    run_one(machine, put(b"k0000", b"new"), delete(b"k1999"), put(b"k1500", b"new"))
    assert _finish(hashing) == expected
    assert _finish(untouched) == expected
    assert _hash(machine) != expected


def test_a_slice_ends_after_so_many_records(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_hash, "SLICE_RECORDS", 10)
    run(machine, *(transaction(put(b"k%04d" % number)) for number in range(25)))
    assert _steps(machine) == 3


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
