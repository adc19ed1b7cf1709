"""Counts that are exact, whoever counts at the same time and whatever fails.

    counter:NAME                 the count, a JSON integer         `Counter(kv, NAME)`
    counter:NAME:OF              that of one of many things        `Counter(kv, NAME, of=OF)`
    sharded_counter:NAME:SHARD   a part of the count               `ShardedCounter(kv, NAME)`

Rule of this file: an addition happens at the store. Nothing is read to be written back.
"""

import random
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Self

from kvorum import keys
from kvorum.arguments import check_amount
from kvorum.atomic import Atomic, SyncAtomic
from kvorum.durations import Duration, encode_ttl
from kvorum.entry import Entry
from kvorum.errors import InvalidArgument, NotAnInteger
from kvorum.kv import KV
from kvorum.model import Sum
from kvorum.transaction import SyncTransaction, Transaction

MAX_SHARDS: Final = 1_000
"""Of one counter: all are read, or removed, in one round trip."""


class Count(int):
    """What a counter says: an int that also knows `updated_at`."""

    updated_at: datetime | None
    """When it was last changed, by the store's log time; None if it was never."""

    def __new__(cls, value: int, updated_at: datetime | None) -> Self:
        self = super().__new__(cls, value)
        self.updated_at = updated_at
        return self

    def __getnewargs__(self) -> tuple[int, datetime | None]:  # type: ignore[override]  # copies keep `updated_at`
        return int(self), self.updated_at


Adding = Atomic | Transaction | SyncAtomic | SyncTransaction
"""What `kv.atomic()` and `kv.transaction()` give: something to add to."""


class Counter:
    """An int64 that many add to.

    Guarantee: every addition that returned counts once, also if it was sent again over a
    connection or a leader that was lost; none is lost to another. Cost: one round trip for
    each method; one write for `add` and `reset`, none for `get`. Nobody waits for anybody:
    additions to one counter that are under way together share an entry of the log.

    `of` makes a counter for one of many things, such as the address of a page. With `ttl`
    (seconds, or a timedelta) it is gone so long after it began, at 0, and begins anew with the
    next addition: a count of a day, or a quota.
    """

    def __init__(
        self, kv: KV, name: str, *, of: str | None = None, ttl: Duration | None = None
    ) -> None:
        self._kv = kv
        self._key = keys.build("counter", keys.check_name(name, "a counter"))
        if of is not None:
            self._key += keys.SEPARATOR + keys.escape(of)
        encode_ttl(ttl)  # refuses what is none
        self._ttl = ttl

    @property
    def key(self) -> str:
        """The key that holds the count."""
        return self._key

    async def add(
        self,
        n: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
        timeout: float | None = None,
    ) -> Sum:
        """Add to the count, and return what it is then.

        `OutOfBounds` if it would leave `min` to `max`, `IntegerOverflow` if it would leave
        int64, and then nothing was added. With `saturate` it stops at the bound instead:
        `applied` of the sum is what was added. A count beyond a bound may move towards it.
        """
        return await self._kv.add(
            self._key, n, min=min, max=max, saturate=saturate, ttl=self._ttl, timeout=timeout
        )

    def add_to(
        self,
        transaction: Adding,
        n: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        saturate: bool = False,
    ) -> None:
        """Add when `kv.atomic()` or an attempt of `kv.transaction()` commits, with all else in it.

        An addition that would leave its bounds undoes the whole.
        """
        transaction.add(self._key, n, min=min, max=max, saturate=saturate, ttl=self._ttl)

    async def get(self, *, timeout: float | None = None) -> Count:
        """Return the count, and when it was last changed; 0 if nobody has counted."""
        return _count([await self._kv.get(self._key, type="json", timeout=timeout)])

    async def reset(self, to: int = 0, *, timeout: float | None = None) -> Count:
        """Set the count, and return what it was: no addition falls between the two.

        Its `ttl`, if it has one, begins anew.
        """
        put = self._kv.atomic().get(self._key, type="json")
        put.put(self._key, check_amount(to), ttl=self._ttl, type="json")
        return _count([(await put.commit(timeout=timeout)).results[0]])

    def __repr__(self) -> str:
        return f"<Counter {self._key}>"


class ShardedCounter:
    """A count in parts: an addition goes to one of them by chance, `get` adds them up.

    For one very hot counter whose key should not be the one that always changes: what checks, reads
    or watches a key is disturbed by each addition to it. Additions alone need no shards: they
    never conflict, and a `Counter` takes as many of them.

    Guarantee: as of `Counter`, and `get` is the sum at one revision. Not supported: bounds, and
    the sum as the answer of an addition, as no shard knows the others. Cost: one round trip for
    each method, and one write for `add` and `reset`. The number of `shards`, up to 1,000, may be
    changed at any time.
    """

    def __init__(self, kv: KV, name: str, *, shards: int = 16) -> None:
        self._kv = kv
        self._prefix = keys.prefix("sharded_counter", keys.check_name(name, "a counter"))
        if not _is_number(shards) or not 1 <= shards <= MAX_SHARDS:
            raise InvalidArgument(f"shards is an int from 1 to {MAX_SHARDS:,}, not {shards!r}")
        self._shards = shards

    @property
    def prefix(self) -> str:
        """What the keys of all shards begin with."""
        return self._prefix

    async def add(self, n: int = 1, *, timeout: float | None = None) -> None:
        """Add to the count. `IntegerOverflow` if a shard would leave int64."""
        await self._kv.add(self._any_shard(), n, timeout=timeout)

    def add_to(self, transaction: Adding, n: int = 1) -> None:
        """Add when `kv.atomic()` or an attempt of `kv.transaction()` commits, with all else in it.

        Once in a transaction: a second addition might meet the same shard.
        """
        transaction.add(self._any_shard(), n)

    async def get(self, *, timeout: float | None = None) -> Count:
        """Return the count at one revision, and when it was last changed."""
        return _count(
            await self._kv.list(self._prefix, limit=MAX_SHARDS, type="json", timeout=timeout)
        )

    async def reset(self, to: int = 0, *, timeout: float | None = None) -> Count:
        """Set the count, and return what it was: no addition falls between the two."""
        atomic = self._kv.atomic().list(self._prefix, limit=MAX_SHARDS, type="json")
        atomic.delete_range(self._prefix).put(self._shard(0), check_amount(to), type="json")
        return _count((await atomic.commit(timeout=timeout)).results[0])

    def __repr__(self) -> str:
        return f"<ShardedCounter {self._prefix} of {self._shards}>"

    def _any_shard(self) -> str:
        return self._shard(random.randrange(self._shards))  # noqa: S311 - nothing depends on its secrecy

    def _shard(self, number: int) -> str:
        return f"{self._prefix}{number:03}"


def _count(found: Iterable[Entry[Any] | None]) -> Count:
    parts = [entry for entry in found if entry is not None]
    for part in parts:
        if not _is_number(part.value):
            raise NotAnInteger(f"the counter {part.key!r} holds no integer", key=part.key)
    return Count(
        sum(part.value for part in parts),
        max((part.updated_at for part in parts), default=None),
    )


def _is_number(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)
