"""Page tokens: where a list goes on, in a form that says if it was tampered with.

    version u8 | group u32 | selection 8 bytes | last key returned | checksum 8 bytes

in URL-safe base64 without padding. Integers are big-endian. `selection` is a
digest of the range listed, and the checksum is over all before it; both are
BLAKE2b. In every version the first byte is the version and the last eight are
the checksum, so that a token of a newer node is known as such, and not taken
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

VERSION: Final = 1

_HEAD: Final = struct.Struct(">BI8s")
_DIGEST_BYTES: Final = 8
_SMALLEST: Final = _HEAD.size + _DIGEST_BYTES
_LONGEST_TEXT: Final = (_SMALLEST + limits.MAX_KEY_BYTES) * 4 // 3 + 1

_REMEDY: Final = "pass on the token of the page before exactly as it came, or start again without"


@dataclass(frozen=True, slots=True)
class Selection:
    """The keys of a list: from start (included) to end (excluded; None is beyond the last).

    A prefix and the range that it stands for are the same selection.
    """

    group: GroupId
    start: bytes
    end: bytes | None

    def digest(self) -> bytes:
        hasher = blake2b(digest_size=_DIGEST_BYTES, person=b"kvorum.selection")
        hasher.update(len(self.start).to_bytes(8, "big"))
        hasher.update(self.start)
        hasher.update(self.end or b"")
        return hasher.digest()

    def contains(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)


def encode(last: bytes, selection: Selection) -> str:
    """The token of the page after the one that ended with the key `last`."""
    content = _HEAD.pack(VERSION, selection.group, selection.digest()) + last
    return urlsafe_b64encode(content + _checksum(content)).rstrip(b"=").decode("ascii")


def decode(token: str, selection: Selection) -> bytes:
    """The last key of the page before. Raises InvalidCursor unless made for this selection."""
    raw = _from_base64(token)
    if len(raw) < _SMALLEST:
        raise InvalidCursor(f"the page token is cut short: {_REMEDY}")
    content = raw[:-_DIGEST_BYTES]
    if raw[-_DIGEST_BYTES:] != _checksum(content):
        raise InvalidCursor(f"the page token was altered or cut short: {_REMEDY}")
    if content[0] != VERSION:
        raise InvalidCursor(
            f"the page token has version {content[0]}, and this node reads {VERSION}: another "
            "version of kvorum made it; start again without it"
        )
    _, group, digest = _HEAD.unpack_from(content)
    if group != selection.group:
        raise InvalidCursor(f"the page token belongs to a list of another namespace: {_REMEDY}")
    last = content[_HEAD.size :]
    if digest != selection.digest() or not selection.contains(last):
        raise InvalidCursor(
            f"the page token belongs to a list of another prefix or range: {_REMEDY}"
        )
    return last


def _from_base64(token: str) -> bytes:
    if len(token) > _LONGEST_TEXT:
        raise InvalidCursor(f"the page token is longer than any that was given out: {_REMEDY}")
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor(f"the page token is no page token: {_REMEDY}") from error
    # The decoder skips what is not of its alphabet, and the bits left over in the last letter.
    if urlsafe_b64encode(raw).rstrip(b"=") != token.encode():
        raise InvalidCursor(f"the page token was altered: {_REMEDY}")
    return raw


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES, person=b"kvorum.pagetoken").digest()
