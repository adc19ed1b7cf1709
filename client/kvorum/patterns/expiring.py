"""Values that live for a while, and are gone then, for everyone at once.

    expiring:NAME:KEY      the value, with a time to live

Thin over `KV`, which has all of it: this gives a namespace, one `ttl` for it, and the watch of
what has expired.

Rule of this file: no clock is read here, and nothing is deleted because of one.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar, overload

from kvorum import keys
from kvorum.codecs import Codec, Typed, ValueType, codec_of
from kvorum.durations import Duration, encode_ttl
from kvorum.entry import Entry
from kvorum.errors import InvalidArgument
from kvorum.kv import KV
from kvorum.watching import Change

T = TypeVar("T")


class Expiring(Generic[T]):
    """Values under keys of their own, each of which lives for `ttl` (seconds, or a timedelta).

    Guarantee: a value is there until its time is over, and absent from then on, for every
    reader, by log time: no clock of a client or a follower counts, a failover leaves the time
    that is left as it is, and what was written anew meanwhile is never taken for the old
    value. Cost: one round trip for each method; one write for each but `get` (without
    `touch`) and `ttl`. Limits: from a millisecond to a hundred years; the event of an expiry
    may come later than the expiry, if very many expire at once.
    """

    @overload
    def __init__(
        self: "Expiring[str]", kv: KV, name: str, *, ttl: Duration, type: Literal["text"]
    ) -> None: ...

    @overload
    def __init__(
        self: "Expiring[bytes]", kv: KV, name: str, *, ttl: Duration, type: Literal["bytes"]
    ) -> None: ...

    @overload
    def __init__(
        self: "Expiring[T]", kv: KV, name: str, *, ttl: Duration, type: Typed[T]
    ) -> None: ...

    @overload
    def __init__(
        self: "Expiring[Any]", kv: KV, name: str, *, ttl: Duration, type: ValueType | None = None
    ) -> None: ...

    def __init__(self, kv: KV, name: str, *, ttl: Duration, type: ValueType | None = None) -> None:
        self._kv = kv
        self._prefix = keys.prefix("expiring", keys.check_name(name, "an expiring namespace"))
        self._ttl = _check_ttl(ttl)
        self._codec: Codec[T] = codec_of(kv.value_type if type is None else type)

    async def put(
        self,
        key: str,
        value: T,
        *,
        ttl: Duration | None = None,
        exists: bool | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a value that lives from now on, and return the revision.

        It lives for the `ttl` of the namespace, or for this one. With `exists`, only if there is
        a living value, or none; `Conflict` otherwise.
        """
        return await self._kv.put(
            self._key(key),
            value,
            ttl=self._ttl if ttl is None else ttl,
            exists=exists,
            type=self._codec,
            timeout=timeout,
        )

    async def get(
        self, key: str, *, touch: bool = False, timeout: float | None = None
    ) -> Entry[T] | None:
        """Read an entry, with the key as it is here; None if it is absent, or its time is over.

        With `touch`, it lives for the `ttl` of the namespace from now on, in the same round
        trip: sliding expiry. That is a write.
        """
        name = self._key(key)
        if touch:
            atomic = self._kv.atomic().touch(name, self._ttl).get(name, type=self._codec)
            entry = (await atomic.commit(timeout=timeout)).results[1]
        else:
            entry = await self._kv.get(name, type=self._codec, timeout=timeout)
        return None if entry is None else replace(entry, key=key)

    async def touch(
        self, key: str, ttl: Duration | None = None, *, timeout: float | None = None
    ) -> bool:
        """Let a value live so long from now, and return whether it is there.

        It is no write of the value: revision and version stay, and nobody is told.
        """
        chosen = self._ttl if ttl is None else ttl
        return await self._kv.touch(self._key(key), chosen, timeout=timeout)

    async def persist(self, key: str, *, timeout: float | None = None) -> bool:
        """Let a value stay for ever, and return whether it is there."""
        return await self._kv.persist(self._key(key), timeout=timeout)

    async def ttl(self, key: str, *, timeout: float | None = None) -> float | None:
        """Return how many seconds a value has left: None if it stays, 0.0 if it is absent."""
        return await self._kv.ttl(self._key(key), timeout=timeout)

    async def delete(self, key: str, *, timeout: float | None = None) -> bool:
        """Remove a value, and return whether it was there."""
        return await self._kv.delete(self._key(key), timeout=timeout)

    async def expired(self, *, since: int | None = None) -> AsyncIterator[Change[T]]:
        """Tell of each value that has expired: `previous` is what it was.

        In order, each once, over failovers too; nothing of what was deleted, or written over
        in time. From the revision `since` on (that of a put, or of the last change that was
        dealt with), or from when the first one is waited for. `Compacted` like `KV.watch`, and
        `DecodeError` for a value of another type, which ends it: a namespace of the type "bytes"
        tells of all.
        """
        watch = self._kv.watch(
            self._prefix, since=since, previous=True, puts=False, deletes=False, type=self._codec
        )
        async with watch:
            async for change in watch:
                previous = change.previous
                key = keys.unescape(change.key.removeprefix(self._prefix))
                yield replace(
                    change,
                    key=key,
                    previous=None if previous is None else replace(previous, key=key),
                )

    def __repr__(self) -> str:
        return f"<Expiring {self._prefix} {self._ttl}>"

    def _key(self, key: str) -> str:
        return self._prefix + keys.escape(key)


def _check_ttl(ttl: Duration) -> Duration:
    if not encode_ttl(ttl):
        raise InvalidArgument("an expiring namespace has a ttl")
    return ttl
