"""Page tokens: where a list goes on, in a form that says if it was tampered with.

    version u8 | flags u8 | group u32 | selection 8 bytes | place | position | checksum 8 bytes

    flags      1 reverse, 2 snapshot
    place      in a snapshot, where all of its pages read: revision u64 | log time u64
    position   the last key returned; of a list by index: value length u16 | value | key

in URL-safe base64 without padding. Integers are big-endian. `selection` is a
digest of what is listed, and the checksum is over all before it; both are
BLAKE2b. In every version the first byte is the version and the last eight are
the checksum, so that a token of another version is known as such, and not taken
for a damaged one.

A token is valid on any node, as it rests on nothing that a node keeps. The
checksum guards against mistakes: it is not a secret, and a token gives its
holder no right that a range in the request would not.
"""

import binascii
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from kvorum import limits
from kvorum.errors import InvalidCursor
from kvorum_node.raft.types import GroupId

VERSION: Final = 2

_REVERSE: Final = 1
_SNAPSHOT: Final = 2

_HEAD: Final = struct.Struct(">BBI8s")
_PLACE: Final = struct.Struct(">QQ")
_VALUE_LENGTH: Final = struct.Struct(">H")
_LENGTH: Final = struct.Struct(">Q")
_DIGEST_BYTES: Final = 8
_SMALLEST: Final = _HEAD.size + _DIGEST_BYTES
_LONGEST: Final = (
    _SMALLEST
    + _PLACE.size
    + _VALUE_LENGTH.size
    + limits.MAX_INDEX_VALUE_BYTES
    + limits.MAX_KEY_BYTES
)
_LONGEST_TEXT: Final = _LONGEST * 4 // 3 + 1

_CURSOR: Final = "the cursor (page_token)"
"""The client library and the protocol each have a word for it."""
_REMEDY: Final = "pass on that of the page before exactly as it came, or start again without"


@dataclass(frozen=True, slots=True)
class Selection:
    """What is listed, and how: all that a token is bound to.

    From start (included) to end (excluded; None is beyond the last): of keys, or of the
    values of an index. A prefix and the range that it stands for are the same selection.
    """

    group: GroupId
    start: bytes
    end: bytes | None
    index: str = ""
    """Its name; empty for a list of keys."""
    reverse: bool = False
    snapshot: bool = False

    def digest(self) -> bytes:
        hasher = blake2b(digest_size=_DIGEST_BYTES, person=b"kvorum.selection")
        for part in (self.index.encode(), self.start, self.end or b""):
            hasher.update(_LENGTH.pack(len(part)))
            hasher.update(part)
        return hasher.digest()

    def contains(self, position: "Position") -> bool:
        place = position.value if self.index else position.key
        return self.start <= place and (self.end is None or place < self.end)


@dataclass(frozen=True, slots=True)
class Position:
    """A record in a list."""

    key: bytes
    value: bytes = b""
    """Of a list by index: that by which it was found."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pages of a snapshot read."""

    revision: int
    log_time_ms: int
    """Which decides what has expired; 0 is what history says, and nothing beside it."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a token says."""

    last: Position
    """Of the page before."""
    place: Place | None = None
    """Of a snapshot, and of nothing else."""


def encode(cursor: Cursor, selection: Selection) -> str:
    """The token of the page after the one that ended there."""
    flags = _REVERSE * selection.reverse | _SNAPSHOT * selection.snapshot
    content = _HEAD.pack(VERSION, flags, selection.group, selection.digest())
    if cursor.place is not None:
        content += _PLACE.pack(cursor.place.revision, cursor.place.log_time_ms)
    if selection.index:
        content += _VALUE_LENGTH.pack(len(cursor.last.value)) + cursor.last.value
    content += cursor.last.key
    return urlsafe_b64encode(content + _checksum(content)).rstrip(b"=").decode("ascii")


def decode(token: str, selection: Selection) -> Cursor:
    """What the token says. Raises InvalidCursor unless it was made for this selection."""
    raw = _from_base64(token)
    content = raw[:-_DIGEST_BYTES]
    if not content:
        raise _cut_short()
    if raw[-_DIGEST_BYTES:] != _checksum(content):
        raise InvalidCursor(f"{_CURSOR} was altered or cut short: {_REMEDY}")
    if content[0] != VERSION:
        raise InvalidCursor(
            f"{_CURSOR} has version {content[0]}, and this node reads {VERSION}: another "
            "version of kvorum made it; start again without it"
        )
    try:
        _, flags, group, digest = _HEAD.unpack_from(content)
        if group != selection.group:
            raise _of_another("namespace")
        if digest != selection.digest():
            raise _of_another("prefix, range or index")
        cursor = _decode_rest(content[_HEAD.size :], flags, selection)
    except struct.error:
        raise _cut_short() from None
    if not selection.contains(cursor.last):
        raise _of_another("prefix, range or index")
    return cursor


def _decode_rest(rest: bytes, flags: int, selection: Selection) -> Cursor:
    """Place and position. Raises struct.error if they are cut short."""
    if flags & _REVERSE != _REVERSE * selection.reverse:
        raise _of_another("direction")
    if flags & _SNAPSHOT != _SNAPSHOT * selection.snapshot:
        raise _of_another("mode: in a snapshot, all pages ask for it, else none")
    place: Place | None = None
    if selection.snapshot:
        place = Place(*_PLACE.unpack_from(rest))
        rest = rest[_PLACE.size :]
    value = b""
    if selection.index:
        (length,) = _VALUE_LENGTH.unpack_from(rest)
        value = rest[_VALUE_LENGTH.size : _VALUE_LENGTH.size + length]
        rest = rest[_VALUE_LENGTH.size + length :]
    return Cursor(Position(rest, value), place)


def _of_another(what: str) -> InvalidCursor:
    return InvalidCursor(f"{_CURSOR} belongs to a list of another {what}: {_REMEDY}")


def _cut_short() -> InvalidCursor:
    return InvalidCursor(f"{_CURSOR} is cut short: {_REMEDY}")


def _from_base64(token: str) -> bytes:
    if len(token) > _LONGEST_TEXT:
        raise InvalidCursor(f"{_CURSOR} is longer than any that was given out: {_REMEDY}")
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor(f"{_CURSOR} is none: {_REMEDY}") from error
    # The decoder skips what is not of its alphabet, and the bits left over in the last letter.
    if urlsafe_b64encode(raw).rstrip(b"=") != token.encode():
        raise InvalidCursor(f"{_CURSOR} was altered: {_REMEDY}")
    return raw


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES, person=b"kvorum.pagetoken").digest()
