"""What every key on the disk means. The only module that builds or takes apart a key.

A key is `tag | group | rest`. The tag (one byte) is the engine's, it tells the
families of one engine apart; the group (u32) is the Raft group, 1 in this
version. Numbers are big-endian, so that the order of the bytes is the order of
the numbers.

    engine  family   tag  key after the group            value
    ------  -------  ---  -----------------------------  -------------------------------
    log     LOG      L    'c'                            configuration at the log's start
                          'e' | index u64                entry: term u64, kind u8, data
                          'h'                            hard state: term, vote, commit
                          's'                            start: index u64, term u64
    state   DATA     D    user key                       kvorumpb.v1.Record, key left empty
            META     M    'applied'                      index of the last applied entry
                          'log_time_ms'                  log time
                          'revision'                     revision of the store
    reserved for a later version:
            CLIENT   C    client id u64                  results kept for exactly-once
            HISTORY  H    revision u64 | ordinal u32     event
            INDEX    I    index | value | user key       nothing: an index entry is its key
            KEYS     K    user key | revision u64        where the key's event is in HISTORY
            EXPIRY   X    log time ms u64 | user key     nothing: due when log time is there

    (Where a user key or an index value is followed by something, its zero bytes
    are escaped, so that no key is the beginning of another.)

Start is `index@term` of the entry before the first one kept: 0@0 until the log
is cut. A missing start is 0@0, a missing hard state is that of a new node; the
vote 0 is no vote.

Every value of LOG is sealed: it begins with the CRC32 (u32) of its key and the
rest of it. A record that was altered, or that stands where another one
belongs, is refused with StorageError, never believed.
"""

import struct
from typing import Final
from zlib import crc32

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

META_APPLIED: Final = b"applied"
META_LOG_TIME_MS: Final = b"log_time_ms"
META_REVISION: Final = b"revision"

_GROUP: Final = struct.Struct(">I")
_ENTRY_KEY: Final = struct.Struct(">IcQ")
_ENTRY: Final = struct.Struct(">QB")
_HARD_STATE: Final = struct.Struct(">QQQ")
_START: Final = struct.Struct(">QQ")
_SEAL: Final = struct.Struct(">I")


def prefix_end(prefix: bytes) -> bytes | None:
    """The smallest key above all keys with the prefix; None if there is none.

    The end of the range that the prefix selects: `[prefix, prefix_end(prefix))`.
    """
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def group_prefix(group: GroupId) -> bytes:
    """What every key of the group begins with, in every family."""
    return _GROUP.pack(group)


# DATA and META


def data_key(group: GroupId, user_key: bytes) -> bytes:
    return _GROUP.pack(group) + user_key


def user_key(key: bytes) -> bytes:
    """The user's key in a key of DATA."""
    return key[_GROUP.size :]


def data_range(group: GroupId, start: bytes, end: bytes | None) -> tuple[bytes, bytes | None]:
    """The user keys from start (included) to end (excluded; None is beyond the last), in DATA."""
    prefix = _GROUP.pack(group)
    return prefix + start, prefix_end(prefix) if end is None else prefix + end


def meta_key(group: GroupId, name: bytes) -> bytes:
    """`name` is one of META_*."""
    return _GROUP.pack(group) + name


# LOG


def configuration_key(group: GroupId) -> bytes:
    return _GROUP.pack(group) + b"c"


def entry_key(group: GroupId, index: Index) -> bytes:
    return _ENTRY_KEY.pack(group, b"e", index)


def entry_index(key: bytes) -> Index:
    """The index in the key of an entry."""
    return Index(_ENTRY_KEY.unpack(key)[2])


def entry_range(group: GroupId) -> tuple[bytes, bytes | None]:
    """Where all entries of the group are."""
    prefix = _GROUP.pack(group) + b"e"
    return prefix, prefix_end(prefix)


def hard_state_key(group: GroupId) -> bytes:
    return _GROUP.pack(group) + b"h"


def start_key(group: GroupId) -> bytes:
    return _GROUP.pack(group) + b"s"


def seal(key: bytes, content: bytes) -> bytes:
    """The content as it is stored under the key: its CRC32 first."""
    return _SEAL.pack(crc32(content, crc32(key))) + content


def unseal(key: bytes, value: bytes) -> bytes:
    """The content of a sealed value; StorageError if it is not what was stored under the key."""
    content = value[_SEAL.size :]
    if len(value) < _SEAL.size or _SEAL.unpack_from(value)[0] != crc32(content, crc32(key)):
        raise StorageError(
            f"the record under {key.hex()} is damaged: its checksum does not match."
            " The disk has altered it; replace this node"
        )
    return content


def encode_entry(key: bytes, entry: Entry) -> bytes:
    return seal(key, _ENTRY.pack(entry.term, entry.kind) + entry.data)


def decode_entry(key: bytes, value: bytes) -> Entry:
    content = unseal(key, value)
    term, kind = _ENTRY.unpack_from(content)
    try:
        known_kind = EntryKind(kind)
    except ValueError:
        raise StorageError(
            f"entry {entry_index(key)}@{term} is of kind {kind}, which this version does not know."
            " A newer version wrote it; run that one"
        ) from None
    return Entry(entry_index(key), Term(term), known_kind, content[_ENTRY.size :])


def encode_hard_state(key: bytes, state: HardState) -> bytes:
    return seal(key, _HARD_STATE.pack(state.term, state.vote or 0, state.commit))


def decode_hard_state(key: bytes, value: bytes) -> HardState:
    term, vote, commit = _HARD_STATE.unpack(unseal(key, value))
    return HardState(Term(term), NodeId(vote) if vote else None, Index(commit))


def encode_start(key: bytes, start: Position) -> bytes:
    return seal(key, _START.pack(start.index, start.term))


def decode_start(key: bytes, value: bytes) -> Position:
    index, term = _START.unpack(unseal(key, value))
    return Position(Index(index), Term(term))
