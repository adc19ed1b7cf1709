"""The keys and records on the disk: what is where, and that damage is seen."""

import pytest

from kvorum.errors import StorageError
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import (
    Entry,
    EntryKind,
    GroupId,
    HardState,
    Index,
    NodeId,
    Position,
    Term,
)
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Family

GROUP, OTHER = GroupId(1), GroupId(2)
SPACE = layout.Space(GROUP, 0)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"a\xfe\xff\xff", b"a\xff"),
        (b"\x00", b"\x01"),
        (b"\xff\xff", None),
        (b"", None),
    ],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes | None) -> None:
    assert layout.prefix_end(prefix) == end
    if end is not None:
        assert prefix + b"\xff" * 9 < end


def test_every_family_has_a_tag_of_its_own() -> None:
    assert {family.name: bytes(family) for family in Family} == {
        "LOG": b"L",
        "CLIENT": b"C",
        "DATA": b"D",
        "EXPIRY": b"X",
        "HISTORY": b"H",
        "INDEX": b"I",
        "KEYS": b"K",
        "LIMIT": b"R",
        "META": b"M",
        "VALUE": b"V",
    }
    assert all(len(family) == 1 and b"\x00" < family < b"\xff" for family in Family)


def test_the_bytes_on_the_disk_do_not_change() -> None:
    """What an older version wrote must be found: these are not free to be improved."""
    assert layout.data_key(SPACE, b"user:1") == b"\0\0\0\1\0user:1"
    assert layout.data_key(SPACE.other, b"user:1") == b"\0\0\0\1\1user:1"
    assert layout.meta_key(SPACE, layout.META_APPLIED) == b"\0\0\0\1\0applied"
    assert layout.meta_key(SPACE, layout.META_REVISION) == b"\0\0\0\1\0revision"
    assert layout.meta_key(SPACE, layout.META_LOG_TIME_MS) == b"\0\0\0\1\0log_time_ms"
    assert layout.space_key(GROUP) == b"\0\0\0\1space"
    assert layout.staged_key(GROUP) == b"\0\0\0\1staged"
    assert layout.clock_key(GROUP) == b"\0\0\0\1clock"
    clock = layout.ClockReading(258, -2)
    assert layout.encode_clock(clock).hex() == "0000000000000102" + "fffffffffffffffe"
    assert layout.decode_clock(layout.encode_clock(clock)) == clock
    full = layout.ClockReading(258, -2, 7, "ab")
    assert layout.encode_clock(full) == layout.encode_clock(clock) + bytes(7) + b"\7ab"
    assert layout.decode_clock(layout.encode_clock(full)) == full
    assert layout.encode_space(SPACE.other) == b"\1"
    key = layout.entry_key(GROUP, Index(258))
    assert key == b"\0\0\0\1e\0\0\0\0\0\0\1\2"
    value = layout.encode_entry(key, Entry(Index(258), Term(3), EntryKind.COMMANDS, b"data"))
    assert value.hex() == "52117a06" + "0000000000000003" + "01" + b"data".hex()
    assert layout.hard_state_key(GROUP) == b"\0\0\0\1h"
    assert layout.start_key(GROUP) == b"\0\0\0\1s"
    key = layout.configuration_key(GROUP)
    assert key == b"\0\0\0\1c"
    configuration = Configuration.of({NodeId(1): "a:1"})
    value = layout.encode_configuration(key, Index(258), configuration)
    assert value.hex() == "3ae362bb" + "0000000000000102" + configuration.encode().hex()


def test_entries_are_in_the_order_of_their_indexes() -> None:
    indexes = [Index(n) for n in (0, 1, 255, 256, 65535, 65536, 2**63)]
    keys = [layout.entry_key(GROUP, index) for index in indexes]
    assert keys == sorted(keys)
    assert [layout.entry_index(key) for key in keys] == indexes
    start, end = layout.entry_range(GROUP)
    assert end is not None
    assert all(start <= key < end for key in keys)
    others = [
        layout.configuration_key(GROUP),
        layout.hard_state_key(GROUP),
        layout.start_key(GROUP),
        layout.entry_key(OTHER, Index(0)),
    ]
    assert not any(start <= key < end for key in others)


@pytest.mark.parametrize("space", [SPACE, SPACE.other, layout.Space(GroupId(2**32 - 1), 1)])
def test_a_range_of_user_keys_stays_within_its_space(space: layout.Space) -> None:
    for start, end in (space.range, layout.data_range(space, b"", None)):
        assert start <= layout.data_key(space, b"") < end
        assert start <= layout.data_key(space, b"\xff" * 20) < end
        for stranger in (space.other, layout.Space(OTHER, 0), layout.Space(OTHER, 1)):
            assert not start <= layout.data_key(stranger, b"") < end
            assert not start <= layout.data_key(stranger, b"\xff" * 20) < end
        assert not start <= layout.space_key(space.group) < end
        assert not start <= layout.staged_key(space.group) < end
    prefix = space.prefix
    assert layout.data_range(space, b"a", b"b") == (prefix + b"a", prefix + b"b")
    assert layout.without_prefix(layout.data_key(space, b"a\0b")) == b"a\0b"


def test_the_state_is_all_but_the_log() -> None:
    assert {*layout.STATE_FAMILIES, Family.LOG} == set(Family)
    assert Family.LOG not in layout.STATE_FAMILIES
    assert list(layout.STATE_FAMILIES) == sorted(layout.STATE_FAMILIES)


@pytest.mark.parametrize("value", [b"", b"\2", b"\0\0"])
def test_a_space_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(StorageError, match=r"group 1 is said to be in the space .*replace"):
        layout.decode_space(GROUP, value)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(Index(1), Term(1)),
        Entry(Index(2**40), Term(2**40), EntryKind.COMMANDS, bytes(range(256))),
    ],
)
def test_an_entry_comes_back(entry: Entry) -> None:
    key = layout.entry_key(GROUP, entry.index)
    assert layout.decode_entry(key, layout.encode_entry(key, entry)) == entry


@pytest.mark.parametrize(
    "state",
    [HardState(), HardState(Term(5), NodeId(3), Index(7)), HardState(Term(5), None, Index(7))],
)
def test_a_hard_state_comes_back(state: HardState) -> None:
    key = layout.hard_state_key(GROUP)
    assert layout.decode_hard_state(key, layout.encode_hard_state(key, state)) == state


def test_a_start_comes_back() -> None:
    key, start = layout.start_key(GROUP), Position(Index(9), Term(2))
    assert layout.decode_start(key, layout.encode_start(key, start)) == start


def test_a_configuration_comes_back() -> None:
    key = layout.configuration_key(GROUP)
    configuration = Configuration.of({NodeId(1): "a:1", NodeId(3): "c:1"})
    value = layout.encode_configuration(key, Index(9), configuration)
    assert layout.decode_configuration(key, value) == (9, configuration)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\0" * 8 + b"\xff"])
def test_a_configuration_that_cannot_be_read_is_refused(content: bytes) -> None:
    key = layout.configuration_key(GROUP)
    with pytest.raises(StorageError, match="configuration of the group is none"):
        layout.decode_configuration(key, layout.seal(key, content))


def test_no_flipped_bit_is_believed() -> None:
    key = layout.entry_key(GROUP, Index(5))
    value = layout.encode_entry(key, Entry(Index(5), Term(2), EntryKind.COMMANDS, b"data"))
    for position in range(len(value) * 8):
        altered = bytearray(value)
        altered[position // 8] ^= 1 << position % 8
        with pytest.raises(StorageError, match="checksum"):
            layout.decode_entry(key, bytes(altered))


@pytest.mark.parametrize("length", range(17))
def test_no_shortened_record_is_believed(length: int) -> None:
    key = layout.entry_key(GROUP, Index(5))
    value = layout.encode_entry(key, Entry(Index(5), Term(2), EntryKind.COMMANDS, b"data"))
    with pytest.raises(StorageError, match="checksum"):
        layout.decode_entry(key, value[:length])


def test_a_record_that_was_moved_is_not_believed() -> None:
    key = layout.entry_key(GROUP, Index(5))
    value = layout.encode_entry(key, Entry(Index(5), Term(2)))
    for elsewhere in (layout.entry_key(GROUP, Index(6)), layout.entry_key(OTHER, Index(5))):
        with pytest.raises(StorageError, match="checksum"):
            layout.decode_entry(elsewhere, value)


def test_an_entry_of_an_unknown_kind_is_not_skipped() -> None:
    key = layout.entry_key(GROUP, Index(5))
    content = layout.unseal(key, layout.encode_entry(key, Entry(Index(5), Term(2))))
    with pytest.raises(StorageError, match=r"5@2 is of kind 99.*newer version"):
        layout.decode_entry(key, layout.seal(key, content[:8] + b"\x63" + content[9:]))
