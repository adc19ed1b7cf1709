"""What must stay together beyond the limit of a value, in chunks.

    await chunked.put(kv, "video:1", data)          # bytes, or an async iterable of them
    async for part in chunked.read(kv, "video:1"): ...

Keys that it writes; <key> is escaped, <g> a generation, <n> counts from 0:

    chunked:<key>             the head, JSON: generation, chunks, chunk_bytes, size_bytes, sha256
    chunked-write:<key>       that a write has begun; its revision is the generation
    chunk:<key>:<g>:<n>       bytes

How it stays whole. A write puts its chunks under a generation of its own, where nobody looks
yet, and then switches the head in one transaction. That gives the new chunks the life of the
head, and ends that of the old ones. Before it, the new ones have a time to live: so a writer
that crashes, at whatever moment, leaves nothing behind for long. A reader reads all chunks at the
revision at which it saw the head: overwritten, deleted and expired ones are in the store's
history for as long as it is kept; and after that those that are still there, which are the same.
"""

import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import asdict, dataclass
from typing import Final

from kvorum import limits
from kvorum.codecs import Codec, encode_key
from kvorum.durations import Duration, encode_duration, encode_ttl
from kvorum.errors import (
    Compacted,
    Conflict,
    DeadlineExceeded,
    DecodeError,
    InvalidArgument,
    LimitExceeded,
)
from kvorum.keys import build, escape
from kvorum.kv import KV

DEFAULT_CHUNK_BYTES: Final = 1 * limits.MIB
"""Small enough that other calls hardly notice it."""
MAX_CHUNK_BYTES: Final = 16 * limits.MIB
MAX_CHUNKS: Final = (limits.MAX_TRANSACTION_OPERATIONS - 8) // 2
"""508: the transaction of the switch touches all chunks, those of before and those of now."""

WRITE_SECONDS: Final = 3600
"""How long a write may take, unless it is told otherwise."""
_ATTEMPTS: Final = limits.DEFAULT_TRANSACTION_ATTEMPTS
_NOW: Final = 0.001
"""The shortest time to live."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of the data without reading it."""

    generation: int
    """Another one after each write."""

    chunks: int
    chunk_bytes: int
    """Of each chunk but the last, which has what is left."""

    size_bytes: int
    """Of the data."""

    sha256: str
    """Of the data, in hexadecimal."""


_HEAD: Final = Codec[Head](
    "the head of chunks",
    lambda head: json.dumps(asdict(head)).encode(),
    lambda data: Head(**json.loads(data)),
)


async def put(
    kv: KV,
    key: str,
    data: bytes | AsyncIterable[bytes],
    *,
    ttl: Duration | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    within: Duration = WRITE_SECONDS,
    timeout: float | None = None,
) -> int:
    """Write the data, and return the revision from which on it is what a reader finds.

    Whoever reads meanwhile finds what was there before, whole. If several write, the last one to
    be done stays. Takes a round trip for each chunk and three more, and holds two chunks in
    memory; `timeout` is that of a round trip.

    Args:
        data: parts of it may have any size.
        ttl: how long it is to live, counted from the end of the write; None is for ever.
        chunk_bytes: from 1 to `MAX_CHUNK_BYTES`. There are at most `MAX_CHUNKS` chunks, and
            `LimitExceeded` beyond that: as much as 8 GB of data.
        within: how long the write may take, `DeadlineExceeded` if it takes longer. What a
            writer has left that crashed goes after it.
    """
    _check(key, data, chunk_bytes)
    encode_ttl(ttl)
    encode_duration("within", within)
    # A revision is a number that the store gives once.
    generation = await kv.put(_write(key), b"", ttl=within, type="bytes", timeout=timeout)
    digest, size, count = hashlib.sha256(), 0, 0
    async for chunk in _cut(key, data, chunk_bytes):
        _check_count(key, count + 1)
        name = _chunk(key, generation, count)
        await kv.put(name, chunk, ttl=within, type="bytes", timeout=timeout)
        digest.update(chunk)
        size, count = size + len(chunk), count + 1
    written = Head(generation, count, chunk_bytes, size, digest.hexdigest())
    return await _switch(kv, key, written, ttl, timeout)


async def get(kv: KV, key: str, *, timeout: float | None = None) -> bytes | None:
    """The data, all of it in memory; None if the key is absent. Raises like `read`."""
    found = await _find(kv, key, timeout)
    if found is None:
        return None
    return b"".join([part async for part in _read(kv, key, *found, timeout)])


async def read(kv: KV, key: str, *, timeout: float | None = None) -> AsyncIterator[bytes]:
    """Iterate over the data, a chunk at a time; over nothing if the key is absent.

    It is that of one write, whatever happens meanwhile. Takes a round trip for the head and one
    for each chunk (two, of a reader slower than history is long); `timeout` is that
    of a round trip. Raises `Compacted` if what it reads was overwritten, deleted or expired so
    long ago that the store has forgotten it, and `DecodeError` if it is not what was written; the
    last part comes when that is known.
    """
    found = await _find(kv, key, timeout)
    if found is not None:
        async for part in _read(kv, key, *found, timeout):
            yield part


async def head(kv: KV, key: str, *, timeout: float | None = None) -> Head | None:
    """What is known of the data; None if the key is absent. One round trip."""
    found = await _find(kv, key, timeout)
    return None if found is None else found[0]


async def delete(kv: KV, key: str, *, timeout: float | None = None) -> bool:
    """Remove the data, and return whether there was any. Two round trips."""
    return await _switch(kv, key, None, None, timeout) != 0


async def _switch(
    kv: KV, key: str, new: Head | None, ttl: Duration | None, timeout: float | None
) -> int:
    """Put the head in the place of what is there; return the revision, or 0 if there is neither."""
    name = _head(key)
    for attempts_left in reversed(range(_ATTEMPTS)):
        entry = await kv.get(name, type=_HEAD, timeout=timeout)
        if entry is None and new is None:
            return 0
        change = kv.atomic().check(name, revision=0 if entry is None else entry.revision)
        if entry is not None:
            for chunk in _chunks(key, entry.value):
                change.touch(chunk, _NOW)
        if new is None:
            change.delete(name)
        else:
            change.put(name, new, ttl=ttl, type=_HEAD).delete(_write(key))
            for chunk in _chunks(key, new):
                change = change.persist(chunk) if ttl is None else change.touch(chunk, ttl)
            if new.chunks:
                # The first one to be written is the first one to go.
                change.check(_chunk(key, new.generation, 0), exists=True)
        try:
            return (await change.commit(timeout=timeout)).revision
        except Conflict as conflict:
            if conflict.key != name:
                raise DeadlineExceeded(
                    f"writing {key!r} took longer than its chunks were to live: nothing has "
                    "changed; give it more time by `within`"
                ) from None
            if not attempts_left:
                raise
    raise AssertionError("the last attempt returns or raises")


async def _find(kv: KV, key: str, timeout: float | None) -> tuple[Head, int] | None:
    """The head, and a revision at which its chunks can be read."""
    name = _head(key)
    page = await kv.list(start=name, end=name + "\0", limit=1, type=_HEAD, timeout=timeout)
    return (page.entries[0].value, page.revision) if page.entries else None


async def _read(
    kv: KV, key: str, head: Head, revision: int, timeout: float | None
) -> AsyncIterator[bytes]:
    digest = hashlib.sha256()
    for number, name in enumerate(_chunks(key, head)):
        part = await _part(kv, name, revision, timeout)
        digest.update(part)
        is_last = number == head.chunks - 1
        if len(part) != (
            head.size_bytes - number * head.chunk_bytes if is_last else head.chunk_bytes
        ):
            raise _damaged(key, f"chunk {number} of {head.chunks} is missing, or has another size")
        if is_last and digest.hexdigest() != head.sha256:
            raise _damaged(key, "the checksum is another one")
        yield part


async def _part(kv: KV, name: str, revision: int, timeout: float | None) -> bytes:
    """A chunk as it was at the revision; nothing if it is missing."""
    try:
        entry = await kv.get(name, revision=revision, type="bytes", timeout=timeout)
    except Compacted:
        # No chunk is written twice: if it is still there, it is the same.
        entry = await kv.get(name, type="bytes", timeout=timeout)
        if entry is None:
            raise
    return b"" if entry is None else entry.value


async def _cut(key: str, data: bytes | AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The data in parts of the size; the last one has what is left."""
    if isinstance(data, bytes):
        for start in range(0, len(data), size):
            yield data[start : start + size]
        return
    waiting = bytearray()
    async for part in data:
        if not _is_bytes(part):
            raise _no_bytes(key, part)
        for start in range(0, len(part), size):
            waiting += part[start : start + size]
            if len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
    if waiting:
        yield bytes(waiting)


def _check(key: str, data: object, chunk_bytes: object) -> None:
    if (
        isinstance(chunk_bytes, bool)
        or not isinstance(chunk_bytes, int)
        or not 1 <= chunk_bytes <= MAX_CHUNK_BYTES
    ):
        raise InvalidArgument(
            f"chunk_bytes is an int from 1 to {MAX_CHUNK_BYTES}, not {chunk_bytes!r}"
        )
    encode_key(_chunk(key, limits.MAX_INTEGER, MAX_CHUNKS))  # none of its keys is longer
    if isinstance(data, bytes):
        _check_count(key, -(-len(data) // chunk_bytes))
    elif not isinstance(data, AsyncIterable):
        raise _no_bytes(key, data)


def _check_count(key: str, chunks: int) -> None:
    if chunks > MAX_CHUNKS:
        raise LimitExceeded(
            f"the data of {key!r} has {chunks} chunks or more; at most {MAX_CHUNKS} are "
            f"allowed: give a larger chunk_bytes, up to {MAX_CHUNK_BYTES}",
            limit="MAX_CHUNKS",
            maximum=MAX_CHUNKS,
            actual=chunks,
        )


def _head(key: str) -> str:
    return build("chunked", escape(key))


def _write(key: str) -> str:
    return build("chunked-write", escape(key))


def _chunk(key: str, generation: int, number: int) -> str:
    return build("chunk", escape(key), generation, number)


def _chunks(key: str, head: Head) -> list[str]:
    return [_chunk(key, head.generation, number) for number in range(head.chunks)]


def _is_bytes(given: object) -> bool:
    return isinstance(given, bytes)


def _no_bytes(key: str, given: object) -> InvalidArgument:
    return InvalidArgument(
        f"the data of {key!r} is bytes or an async iterable of them, not {given.__class__.__name__}"
    )


def _damaged(key: str, what: str) -> DecodeError:
    return DecodeError(
        f"the data of {key!r} is not what was written: {what}", key=key, type="chunked"
    )
