"""What every key on the disk means. The only module that builds or takes apart a key.

A key is `tag | group | rest`, and in the families of the state `tag | group |
space | rest`. The tag (one byte) is the engine's, it tells the families of one
engine apart; the group (u32) is the Raft group, 1 in this version. Numbers are
big-endian, so that the order of the bytes is the order of the numbers.

    engine  family   tag  key after the group            value
    ------  -------  ---  -----------------------------  -------------------------------
    log     LOG      L    'c'                            configuration at the log's start:
                                                         index u64, GroupConfiguration
                          'e' | index u64                entry: term u64, kind u8, data
                          'h'                            hard state: term, vote, commit
                          's'                            start: index u64, term u64
    state   DATA     D    space | user key               kvorumpb.v1.Record, key left empty
            META     M    space | 'applied'              index of the last applied entry
                          space | 'log_time_ms'          log time
                          space | 'revision'             revision of the store
                          'space'                        the space that holds the state: u8
                          'staged'                       applied index of the state that lies
                                                         whole in the other space
    reserved for a later version:
            CLIENT   C    space | client id u64          results kept for exactly-once
            HISTORY  H    space | revision | ordinal u32 event
            INDEX    I    space | index | value | key    nothing: an index entry is its key
            KEYS     K    space | user key | revision    where the key's event is in HISTORY
            EXPIRY   X    space | log time ms | key      nothing: due when log time is there

    (Where a user key or an index value is followed by something, its zero bytes
    are escaped, so that no key is the beginning of another. A revision and a time
    are u64.)

A space (u8, 0 or 1) is a place for the whole state of a group. One of the two
holds it; a snapshot arrives in the other one, and takes over by a change of
'space'. A missing 'space' is 0. All families but LOG are families of the state:
but for 'space' and 'staged', whatever is in them lies in a space, and is a part of
every snapshot.

Start is `index@term` of the entry before the first one kept: 0@0 until the log
is cut. A missing start is 0@0, a missing hard state is that of a new node; the
vote 0 is no vote. The configuration at the start has the index of the entry that
brought it, which is that of the start at most; a missing one has no members.

Every value of LOG is sealed: it begins with the CRC32 (u32) of its key and the
rest of it. A record that was altered, or that stands where another one
belongs, is refused with StorageError, never believed.
"""

import struct
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from google.protobuf.message import DecodeError

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
from kvorum_node.storage.engine import Family

STATE_FAMILIES: Final = tuple(sorted(family for family in Family if family is not Family.LOG))
"""Those that a group's state is in, in the order of their tags."""

META_APPLIED: Final = b"applied"
META_LOG_TIME_MS: Final = b"log_time_ms"
META_REVISION: Final = b"revision"

_GROUP: Final = struct.Struct(">I")
_STATE_PREFIX: Final = struct.Struct(">IB")
_INDEX: Final = struct.Struct(">Q")
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


# The state


@dataclass(frozen=True, slots=True)
class Space:
    """One of the two places where the state of a group can be."""

    group: GroupId
    number: int

    @property
    def prefix(self) -> bytes:
        """What every key in the space begins with, in every family of the state."""
        return _STATE_PREFIX.pack(self.group, self.number)

    @property
    def range(self) -> tuple[bytes, bytes]:
        """Where all keys of the space are, in every family of the state."""
        return self.prefix, _STATE_PREFIX.pack(self.group, self.number + 1)

    @property
    def other(self) -> "Space":
        return Space(self.group, 1 - self.number)


def without_prefix(key: bytes) -> bytes:
    """What a key of the state says beside its space; in DATA, that is the user's key."""
    return key[_STATE_PREFIX.size :]


def data_key(space: Space, user_key: bytes) -> bytes:
    return space.prefix + user_key


def data_range(space: Space, start: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    """The user keys from start (included) to end (excluded; None is beyond the last), in DATA."""
    prefix, space_end = space.range
    return prefix + start, space_end if end is None else prefix + end


def meta_key(space: Space, name: bytes) -> bytes:
    """`name` is one of META_*."""
    return space.prefix + name


def space_key(group: GroupId) -> bytes:
    """In META, beside the spaces: their numbers are no letters."""
    return _GROUP.pack(group) + b"space"


def staged_key(group: GroupId) -> bytes:
    """In META, as the space_key."""
    return _GROUP.pack(group) + b"staged"


def encode_space(space: Space) -> bytes:
    return bytes([space.number])


def decode_space(group: GroupId, value: bytes) -> Space:
    if value not in (b"\0", b"\1"):
        raise StorageError(
            f"the state of group {group} is said to be in the space {value.hex()}, which is none:"
            " the disk has altered it; replace this node"
        )
    return Space(group, value[0])


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


def encode_configuration(key: bytes, index: Index, configuration: Configuration) -> bytes:
    return seal(key, _INDEX.pack(index) + configuration.encode())


def decode_configuration(key: bytes, value: bytes) -> tuple[Index, Configuration]:
    content = unseal(key, value)
    try:
        (index,) = _INDEX.unpack_from(content)
        return Index(index), Configuration.decode(content[_INDEX.size :])
    except (struct.error, DecodeError) as error:
        raise StorageError(
            "what is stored as the configuration of the group is none: another version wrote it,"
            " or the disk has altered it; replace this node"
        ) from error


def encode_start(key: bytes, start: Position) -> bytes:
    return seal(key, _START.pack(start.index, start.term))


def decode_start(key: bytes, value: bytes) -> Position:
    index, term = _START.unpack(unseal(key, value))
    return Position(Index(index), Term(term))
