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
    state   CLIENT   C    space | client id u64 | index    results of the client's writes in the
                                                         entry at the index: machine/clients.py
            DATA     D    space | user key               kvorumpb.v1.Record, key left empty
            HISTORY  H    space | revision | ordinal u32 event: kind u8, log time, user key
            INDEX    I    space | 'n' | index | value    nothing: an index entry is its key
                              | user key
                          space | 'u' | index | value    unique entry: user key
            KEYS     K    space | user key | revision    what the key held before the revision, as
                                                         in DATA; empty if it was absent
            META     M    space | 'applied'              index of the last applied entry
                          space | 'log_time_ms'          log time
                          space | 'oldest_revision'      oldest that can be read
                          space | 'revision'             revision of the store
                          space | 'trimmed_revision'     history through it was removed
                          'clock'                        log time and the node's own wall clock
                                                         at one moment, two of i64
                          'space'                        the space that holds the state: u8
                          'staged'                       applied index of the state that lies
                                                         whole in the other space
            LIMIT    R    space | user key               rate limit: expire time, state
            VALUE    V    space | user key | revision    value of the record that was written there,
                                                         if it is large
            EXPIRY   X    space | expire time | 'D' | key  nothing: a record that expires
                          space | expire time | 'R' | key  nothing: a rate limit that expires

A revision, a time and an index are u64. Where a user key or the name or value of an
index is followed by something, each zero byte of it is followed by 0xff, and its end
is 0x00 0x01: so no one of them is the beginning of another, and their order is kept.

A space (u8, 0 or 1) is a place for the whole state of a group. One of the two
holds it; a snapshot arrives in the other one, and takes over by a change of
'space'. A missing 'space' is 0. All families but LOG are families of the state:
but for 'clock', 'space' and 'staged', which are the node's own, whatever is in them
lies in a space, and is a part of every snapshot.

Start is `index@term` of the entry before the first one kept: 0@0 until the log
is cut. A missing start is 0@0, a missing hard state is that of a new node; the
vote 0 is no vote. The configuration at the start has the index of the entry that
brought it, which is that of the start at most; a missing one has no members.

Every value of LOG is sealed: it begins with the CRC32 (u32) of its key and the
rest of it. A record that was altered, or that stands where another one
belongs, is refused with StorageError, never believed.
"""

import math
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
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

MIN_APART_BYTES: Final = 4 * 1024
"""Values from here on are in VALUE, and not in their records: a record that is replaced or removed
moves from DATA to KEYS, and the values of all that one entry removes may be any number of bytes."""

META_APPLIED: Final = b"applied"
META_LOG_TIME_MS: Final = b"log_time_ms"
META_OLDEST_REVISION: Final = b"oldest_revision"
META_REVISION: Final = b"revision"
META_TRIMMED_REVISION: Final = b"trimmed_revision"

_GROUP: Final = struct.Struct(">I")
_STATE_PREFIX: Final = struct.Struct(">IB")
_NUMBER: Final = struct.Struct(">Q")
_EVENT_KEY: Final = struct.Struct(">QI")
_EVENT: Final = struct.Struct(">BQ")
_CLIENT_KEY: Final = struct.Struct(">QQ")
_END: Final = b"\0\1"
_CLOCK: Final = struct.Struct(">qq")
_STEADY_CLOCK: Final = struct.Struct(">q")
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


# What follows is relative to a space, as machine/tables.py has it.


class EventKind(IntEnum):
    """What an event did to its key."""

    PUT = 1
    DELETE = 2
    EXPIRE = 3
    PUT_AFTER_EXPIRE = 4
    """A put over a record that had expired, which has an event of its own before this one."""


class ExpiryKind(bytes, Enum):
    """What expires."""

    RECORD = b"D"
    LIMIT = b"R"


def terminated(part: bytes) -> bytes:
    """A part of a key that something follows: none is the beginning of another."""
    return part.replace(b"\0", b"\0\xff") + _END


def history_key(revision: int, ordinal: int = 0) -> bytes:
    """With ordinal 0, also where the events of the revision begin."""
    return _EVENT_KEY.pack(revision, ordinal)


def history_revision(history_key: bytes) -> int:
    return int(_EVENT_KEY.unpack(history_key)[0])


def split_history_key(history_key: bytes) -> tuple[int, int]:
    """Revision and ordinal."""
    revision, ordinal = _EVENT_KEY.unpack(history_key)
    return int(revision), int(ordinal)


def encode_event(kind: EventKind, log_time_ms: int, key: bytes) -> bytes:
    return _EVENT.pack(kind, log_time_ms) + key


def decode_event(value: bytes) -> tuple[EventKind, int, bytes]:
    """Kind, log time and user key."""
    try:
        kind, log_time_ms = _EVENT.unpack_from(value)
        return EventKind(kind), log_time_ms, value[_EVENT.size :]
    except (struct.error, ValueError) as error:
        raise _damaged("an event of the history") from error


def version_key(key: bytes, revision: int) -> bytes:
    """In KEYS and VALUE."""
    return terminated(key) + _NUMBER.pack(revision)


def split_version_key(stored: bytes) -> tuple[bytes, int]:
    """User key and revision of a key in KEYS."""
    key = stored[: -_NUMBER.size - len(_END)].replace(b"\0\xff", b"\0")
    return key, int(_NUMBER.unpack(stored[-_NUMBER.size :])[0])


def index_prefix(index: str) -> bytes:
    """What all entries of the index begin with; terminated values and user keys follow."""
    return b"n" + terminated(index.encode())


def index_key(index: str, value: bytes, key: bytes) -> bytes:
    return index_prefix(index) + terminated(value) + key


def index_range(index: str, start: bytes, end: bytes | None) -> tuple[bytes, bytes | None]:
    """Where the entries with values from start (included) to end (excluded) are."""
    prefix = index_prefix(index)
    return (
        prefix + terminated(start),
        prefix_end(prefix) if end is None else prefix + terminated(end),
    )


def split_index_key(stored: bytes, index: str) -> tuple[bytes, bytes]:
    """Value and user key of an entry of the index."""
    rest = stored[len(index_prefix(index)) :]
    end = rest.index(_END)  # a zero byte of the value is followed by 0xff
    return rest[:end].replace(b"\0\xff", b"\0"), rest[end + len(_END) :]


def unique_key(index: str, value: bytes) -> bytes:
    return b"u" + terminated(index.encode()) + value


def expiry_key(expire_time_ms: int, kind: ExpiryKind, key: bytes) -> bytes:
    return _NUMBER.pack(expire_time_ms) + kind + key


def expiry_bound(expire_time_ms: int) -> bytes:
    """Where what expires at this time or later begins."""
    return _NUMBER.pack(max(expire_time_ms, 0))


def split_expiry_key(stored: bytes) -> tuple[int, ExpiryKind, bytes]:
    """Expire time, what expires, and user key."""
    try:
        (expire_time_ms,) = _NUMBER.unpack_from(stored)
        kind = ExpiryKind(stored[_NUMBER.size : _NUMBER.size + 1])
    except (struct.error, ValueError) as error:
        raise _damaged("a time of expiry") from error
    return expire_time_ms, kind, stored[_NUMBER.size + 1 :]


def encode_limit(expire_time_ms: int, state: bytes) -> bytes:
    return _NUMBER.pack(expire_time_ms) + state


def decode_limit(value: bytes) -> tuple[int, bytes]:
    """Expire time and state of a rate limit."""
    try:
        return int(_NUMBER.unpack_from(value)[0]), value[_NUMBER.size :]
    except struct.error as error:
        raise _damaged("a rate limit") from error


def client_key(client_id: int, index: Index) -> bytes:
    """With index 0, also where the rows of the client begin."""
    return _CLIENT_KEY.pack(client_id, index)


def split_client_key(stored: bytes) -> tuple[int, Index]:
    client_id, index = _CLIENT_KEY.unpack(stored)
    return client_id, Index(index)


def _damaged(what: str) -> StorageError:
    return StorageError(f"{what} is damaged: the disk has altered it; replace this node")


# META


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The clocks of one moment, which a node keeps for its next start."""

    log_time_ms: int
    wall_ms: int
    """Of the node itself."""
    steady_ns: int = 0
    """Of its machine, as long as that is up."""
    boot: str = ""
    """Which start of the machine that is; empty if it cannot be told."""

    def differs_ms(self, other: "ClockReading") -> float:
        """By how much the next start would come out otherwise with the other one."""
        if self.boot != other.boot:
            return math.inf
        wall_ms = abs(self.log_time_ms - self.wall_ms - other.log_time_ms + other.wall_ms)
        steady_ms = (self.steady_ns - other.steady_ns) / 1_000_000
        log_time_ms = self.log_time_ms - other.log_time_ms
        return max(wall_ms, abs(log_time_ms - steady_ms) if self.boot else 0)


def meta_key(space: Space, name: bytes) -> bytes:
    """`name` is one of META_*."""
    return space.prefix + name


def space_key(group: GroupId) -> bytes:
    """In META, beside the spaces: their numbers are no letters."""
    return _GROUP.pack(group) + b"space"


def staged_key(group: GroupId) -> bytes:
    """In META, as the space_key."""
    return _GROUP.pack(group) + b"staged"


def clock_key(group: GroupId) -> bytes:
    """In META, as the space_key."""
    return _GROUP.pack(group) + b"clock"


def encode_clock(reading: ClockReading) -> bytes:
    clock = _CLOCK.pack(reading.log_time_ms, reading.wall_ms)
    if not reading.boot:
        return clock
    return clock + _STEADY_CLOCK.pack(reading.steady_ns) + reading.boot.encode()


def decode_clock(value: bytes) -> ClockReading:
    try:
        log_time_ms, wall_ms = _CLOCK.unpack_from(value)
        if len(value) == _CLOCK.size:
            return ClockReading(log_time_ms, wall_ms)
        (steady_ns,) = _STEADY_CLOCK.unpack_from(value, _CLOCK.size)
        boot = value[_CLOCK.size + _STEADY_CLOCK.size :].decode()
        return ClockReading(log_time_ms, wall_ms, steady_ns, boot)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged("the clock of the node") from error


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


def seal(key: bytes, *content: bytes) -> bytes:
    """The content, of which these are the parts, as it is stored under the key: its CRC32 first."""
    checksum = crc32(key)
    for part in content:
        checksum = crc32(part, checksum)
    return b"".join((_SEAL.pack(checksum), *content))


def unseal(key: bytes, value: bytes) -> bytes:
    """The content of a sealed value; StorageError if it is not what was stored under the key."""
    return bytes(_unsealed(key, value))


def _unsealed(key: bytes, value: bytes) -> memoryview:
    """As unseal, and not copied: an entry may be large."""
    content = memoryview(value)[_SEAL.size :]
    if len(value) < _SEAL.size or _SEAL.unpack_from(value)[0] != crc32(content, crc32(key)):
        raise StorageError(
            f"the record under {key.hex()} is damaged: its checksum does not match."
            " The disk has altered it; replace this node"
        )
    return content


def encode_entry(key: bytes, entry: Entry) -> bytes:
    return seal(key, _ENTRY.pack(entry.term, entry.kind), entry.data)


def decode_entry(key: bytes, value: bytes) -> Entry:
    content = _unsealed(key, value)
    term, kind = _ENTRY.unpack_from(content)
    try:
        known_kind = EntryKind(kind)
    except ValueError:
        raise StorageError(
            f"entry {entry_index(key)}@{term} is of kind {kind}, which this version does not know."
            " A newer version wrote it; run that one"
        ) from None
    return Entry(entry_index(key), Term(term), known_kind, bytes(content[_ENTRY.size :]))


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
