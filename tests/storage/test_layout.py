"""The keys and records on the disk: what is where, and that damage is seen."""

import pytest

from kvorum.errors import StorageError
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
        "DATA": b"D",
        "META": b"M",
    }
    assert all(len(family) == 1 and b"\x00" < family < b"\xff" for family in Family)


def test_the_bytes_on_the_disk_do_not_change() -> None:
    """What an older version wrote must be found: these are not free to be improved."""
    assert layout.data_key(GROUP, b"user:1") == b"\0\0\0\1user:1"
    assert layout.meta_key(GROUP, layout.META_APPLIED) == b"\0\0\0\1applied"
    assert layout.meta_key(GROUP, layout.META_REVISION) == b"\0\0\0\1revision"
    assert layout.meta_key(GROUP, layout.META_LOG_TIME_MS) == b"\0\0\0\1log_time_ms"
    key = layout.entry_key(GROUP, Index(258))
    assert key == b"\0\0\0\1e\0\0\0\0\0\0\1\2"
    value = layout.encode_entry(key, Entry(Index(258), Term(3), EntryKind.COMMANDS, b"data"))
    assert value.hex() == "52117a06" + "0000000000000003" + "01" + b"data".hex()
    assert layout.hard_state_key(GROUP) == b"\0\0\0\1h"
    assert layout.start_key(GROUP) == b"\0\0\0\1s"
    assert layout.configuration_key(GROUP) == b"\0\0\0\1c"


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


def test_a_range_of_user_keys_stays_within_its_group() -> None:
    start, end = layout.data_range(GROUP, b"", None)
    assert end is not None
    assert start <= layout.data_key(GROUP, b"") < end
    assert start <= layout.data_key(GROUP, b"\xff" * 20) < end
    assert not start <= layout.data_key(OTHER, b"") < end
    assert layout.data_range(GROUP, b"a", b"b") == (b"\0\0\0\1a", b"\0\0\0\1b")
    assert layout.user_key(layout.data_key(GROUP, b"a\0b")) == b"a\0b"
    last = GroupId(2**32 - 1)
    assert layout.data_range(last, b"", None) == (b"\xff" * 4, None)


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
