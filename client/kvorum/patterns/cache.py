"""Values that are costly to compute: kept for a while, under tags, computed once at a time.

What is kept, and why a stale value is never stored, is in cache_records.py. Rule of this file: a
value is shared by the order of events alone. Nobody is given one that may be from before the call
began, unless an entry that was read since then says that it is good.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import wraps
from itertools import count
from types import TracebackType
from typing import Any, Final, Generic, Literal, ParamSpec, Self, TypeVar, cast, overload

from kvorum import keys
from kvorum.codecs import Typed, ValueType
from kvorum.durations import Duration, encode_duration, to_seconds
from kvorum.errors import Conflict, InvalidArgument, LimitExceeded
from kvorum.kv import KV
from kvorum.patterns.cache_records import Plan, Records, Seen, Writes, check_room, check_tags
from kvorum.patterns.single_flight import Flight, Flights, Work

T = TypeVar("T")
R = TypeVar("R")
D = TypeVar("D")
P = ParamSpec("P")

DEFAULT_MAX_TTL_SECONDS: Final = 86_400
DEFAULT_LEASE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What one `Cache` has done. Each `get` and `get_or_compute` is a hit, stale or a miss."""

    hits: int = 0
    stale: int = 0
    """Answered with a value past its time, which is refreshed in the background."""
    misses: int = 0
    waits: int = 0
    """Misses that waited for what was computed elsewhere, in this process or another."""
    computations: int = 0
    refused: int = 0
    """Values that were not stored: invalidated, replaced or overtaken while they were made."""
    failed_refreshes: int = 0
    """Computations in the background that have raised."""


@dataclass(frozen=True, slots=True)
class _Computed(Generic[T]):
    """A value that was computed in this process."""

    value: T
    good_for: int
    """Calls that began before this moment may have it."""


class Cache(Generic[T]):
    """Values under tags, each computed once at a time.

        pages = Cache(kv, "pages", ttl=300)
        page = await pages.get_or_compute("home", render, tags=["user:1"])
        await pages.invalidate("user:1")

    Guarantee: once `invalidate`, `delete` or `set` has returned, no call that begins later is
    given a value from before it, whoever computes how slowly, and whatever fails. Of all who miss
    a key at once, in all processes, one computes.

    Cost in round trips: a hit 1 (the first `get` of a tagged key by this object 2); a miss 3, two
    of which write; to wait for a computation elsewhere 2 and a watch; `delete` and `invalidate` 1,
    however many entries a tag has; `set` 1, with tags 2.

    `ttl` says for how long a value is fresh, where a call does not. No entry lives longer than
    `max_ttl`, on which all who use a cache have to agree. A computation may take as long as
    `lease`: after that its value is not stored, and another one begins. These are seconds, or
    timedeltas. `type` says how values are written. `close`, or the end of an `async with`, ends
    refreshes in the background; a cache without any needs neither.
    """

    @overload
    def __init__(
        self: "Cache[str]",
        kv: KV,
        name: str,
        *,
        ttl: Duration,
        max_ttl: Duration = DEFAULT_MAX_TTL_SECONDS,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        type: Literal["text"],
    ) -> None: ...

    @overload
    def __init__(
        self: "Cache[bytes]",
        kv: KV,
        name: str,
        *,
        ttl: Duration,
        max_ttl: Duration = DEFAULT_MAX_TTL_SECONDS,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        type: Literal["bytes"],
    ) -> None: ...

    @overload
    def __init__(
        self: "Cache[T]",
        kv: KV,
        name: str,
        *,
        ttl: Duration,
        max_ttl: Duration = DEFAULT_MAX_TTL_SECONDS,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        type: Typed[T],
    ) -> None: ...

    @overload
    def __init__(
        self: "Cache[Any]",
        kv: KV,
        name: str,
        *,
        ttl: Duration,
        max_ttl: Duration = DEFAULT_MAX_TTL_SECONDS,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        type: ValueType | None = None,
    ) -> None: ...

    def __init__(
        self,
        kv: KV,
        name: str,
        *,
        ttl: Duration,
        max_ttl: Duration = DEFAULT_MAX_TTL_SECONDS,
        lease: Duration = DEFAULT_LEASE_SECONDS,
        type: ValueType | None = None,
    ) -> None:
        self._kv = kv
        self._name = keys.check_name(name, "a cache")
        self._max_ttl_ms = encode_duration("max_ttl", max_ttl)
        self._ttl_ms = self._within("ttl", encode_duration("ttl", ttl))
        self._records: Records[T] = Records(
            kv,
            name,
            max_ttl_ms=self._max_ttl_ms,
            lease_ms=self._within("lease", encode_duration("lease", lease)),
            type=type,
        )
        self._flights: Flights[_Computed[T] | None] = Flights()
        self._moments = count()
        self._counts: Counter[str] = Counter()

    @property
    def statistics(self) -> CacheStatistics:
        """What this object has done so far; others are not counted."""
        return CacheStatistics(**self._counts)

    @overload
    async def get(self, key: str, *, timeout: float | None = None) -> T | None: ...

    @overload
    async def get(self, key: str, default: D, *, timeout: float | None = None) -> T | D: ...

    async def get(self, key: str, default: Any = None, *, timeout: float | None = None) -> Any:
        """The value, if it is fresh; otherwise the default."""
        seen = await self._records.look(key, (), timeout)
        if seen.entry is not None and seen.is_fresh:
            self._counts["hits"] += 1
            return seen.entry.value
        self._counts["misses"] += 1
        return default

    async def set(
        self,
        key: str,
        value: T,
        *,
        tags: Iterable[str] = (),
        ttl: Duration | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value, and return whether it is there now.

        False if one of the tags was invalidated meanwhile: then there is none. A computation under
        way for the key is not stored any more. An invalidation before the call is not known here:
        if the value was computed from something that may be invalidated, use `get_or_compute`.
        """
        stored = await self._records.set(self._plan(key, tags, ttl, None), value, timeout)
        self._counts["refused"] += not stored
        return stored

    async def get_or_compute(
        self,
        key: str,
        fn: Callable[[], Awaitable[T]],
        *,
        tags: Iterable[str] = (),
        ttl: Duration | None = None,
        stale_while_revalidate: Duration | None = None,
        timeout: float | None = None,
    ) -> T:
        """The value; if it is not there, what `fn` returns, which is stored under the tags.

        Who finds it being computed waits for it. What `fn` raises is raised to all who wait in
        this process, and is not stored. If a tag is invalidated meanwhile, the value is
        not stored, and given to those alone who have asked before its computation began: to the
        others it would be stale. Within one process all who waited get the same object. `fn`
        must not ask for its own key.

        For so long as `stale_while_revalidate` says after its time, a value is returned as it is,
        and computed anew in the background. One that was invalidated never is.

        `timeout` is that of each round trip: the time that `fn` takes, or that another one takes,
        comes on top. Use `asyncio.timeout` for all of it: the last one who waits is then held up
        by the round trip that is under way, at most, as the lease has to be given back. `Closed`
        if the cache was closed, and has to compute.
        """
        plan = self._plan(key, tags, ttl, stale_while_revalidate)
        began = next(self._moments)
        seen = await self._records.look(key, plan.tags, timeout)
        if seen.entry is not None and seen.is_fresh:
            self._counts["hits"] += 1
            return seen.entry.value
        if seen.entry is not None and seen.is_valid and plan.stale_ms:
            self._counts["stale"] += 1
            self._refresh(plan, seen, fn, timeout)
            return seen.entry.value
        self._counts["misses"] += 1
        self._counts["waits"] += self._is_computed(seen, key)
        while True:
            computed = await self._flights.share(key, self._work(plan, seen, fn, timeout))
            if computed is not None and began < computed.good_for:
                return computed.value
            seen = await self._records.look(key, plan.tags, timeout)
            if seen.entry is not None and seen.is_fresh:
                return seen.entry.value

    def cached(
        self,
        *,
        key: str | Callable[..., str],
        tags: Iterable[str] | Callable[..., Iterable[str]] = (),
        ttl: Duration | None = None,
        stale_while_revalidate: Duration | None = None,
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """A decorator for async functions: their calls go through `get_or_compute`.

            @pages.cached(key=lambda user: f"home:{user}", tags=lambda user: [f"user:{user}"])
            async def home(user): ...

        `key` and `tags` are what they say, or functions of the call's arguments.
        """
        tags_of = tags if callable(tags) else check_tags(tags)

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            @wraps(function)
            async def call(*args: P.args, **kwargs: P.kwargs) -> R:
                async def compute() -> Any:
                    return await function(*args, **kwargs)

                value: Any = await self.get_or_compute(
                    key(*args, **kwargs) if callable(key) else key,
                    compute,
                    tags=tags_of(*args, **kwargs) if callable(tags_of) else tags_of,
                    ttl=ttl,
                    stale_while_revalidate=stale_while_revalidate,
                )
                return cast("R", value)

            return call

        return decorate

    async def delete(self, key: str, *, timeout: float | None = None) -> bool:
        """Remove an entry, and return whether there was one; a value under way is not stored."""
        return await self._records.delete(key, timeout)

    async def invalidate(self, *tags: str, timeout: float | None = None) -> None:
        """Invalidate all entries of these tags at once: one write for each tag."""
        writing = self._kv.atomic()
        self.invalidate_in(writing, *tags)
        await writing.commit(timeout=timeout)

    def invalidate_in(self, writes: Writes, *tags: str) -> None:
        """Invalidate together with other writes: those of a `kv.atomic()` or a transaction.

        atomic = kv.atomic().put("user:1", user)
        pages.invalidate_in(atomic, "user:1")
        await atomic.commit()
        """
        if not tags:
            raise InvalidArgument("there is nothing to invalidate: give at least one tag")
        self._records.invalidate_in(writes, check_tags(tags))

    async def close(self) -> None:
        """End what is computed here, in the background too. May be repeated."""
        await self._flights.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Cache {self._name!r}>"

    def _is_computed(self, seen: Seen[T], key: str) -> bool:
        """Somebody computes the value, here or elsewhere."""
        return seen.lease_seconds is not None or self._flights.is_under_way(key)

    def _refresh(
        self, plan: Plan, seen: Seen[T], fn: Callable[[], Awaitable[T]], timeout: float | None
    ) -> None:
        """Compute a value anew that is stale, unless somebody does."""
        work = self._work(plan, seen, fn, timeout)

        async def refresh(flight: Flight[_Computed[T] | None]) -> _Computed[T] | None:
            try:
                return await work(flight)
            except Exception as error:
                self._counts["failed_refreshes"] += 1
                # Nobody may await it: the loop says what becomes of such errors.
                message = f"a refresh of {plan.key!r} in the cache {self._name!r} failed"
                asyncio.get_running_loop().call_exception_handler(
                    {"message": message, "exception": error}
                )
                raise

        if not self._is_computed(seen, plan.key):
            self._flights.keep(plan.key, refresh)

    def _work(
        self, plan: Plan, seen: Seen[T], fn: Callable[[], Awaitable[T]], timeout: float | None
    ) -> Work[_Computed[T] | None]:
        """What a flight does: wait while somebody else computes the value, or else compute it.

        It gives None if the store is to be asked again.
        """
        records = self._records

        async def compute() -> T:
            self._counts["computations"] += 1
            return await fn()

        async def work(flight: Flight[_Computed[T] | None]) -> _Computed[T] | None:
            if seen.lease_seconds is not None:
                waiting = records.await_release(plan.key, seen.revision, seen.lease_seconds)
                await flight.breakable(waiting)
                return None
            try:
                lease = await records.acquire(plan, seen, timeout)
            except Conflict:
                return None
            stored = False
            try:
                started = next(self._moments)
                value = await flight.breakable(compute())
                sealed = next(self._moments)
                stored = await records.fill(plan, value, lease, timeout)
                self._counts["refused"] += not stored
                return _Computed(value, good_for=sealed if stored else started)
            finally:
                if not stored:
                    await records.release(plan.key, lease, timeout)

        return work

    def _plan(
        self, key: str, tags: Iterable[str], ttl: Duration | None, stale: Duration | None
    ) -> Plan:
        """Raise `InvalidArgument` or `LimitExceeded` before anything is computed or written."""
        checked = check_tags(tags)
        check_room(key, checked)
        ttl_ms = self._ttl_ms if ttl is None else encode_duration("ttl", ttl)
        stale_ms = 0 if stale is None else encode_duration("stale_while_revalidate", stale)
        self._within(f"ttl and stale_while_revalidate of {key!r}", ttl_ms + stale_ms)
        return Plan(key, checked, ttl_ms, stale_ms)

    def _within(self, what: str, milliseconds: int) -> int:
        if milliseconds > self._max_ttl_ms:
            raise LimitExceeded(
                f"{what}: {to_seconds(milliseconds):g} s; nothing of the cache {self._name!r} "
                f"lives longer than its max_ttl of {to_seconds(self._max_ttl_ms):g} s",
                limit="max_ttl",
                maximum=self._max_ttl_ms,
                actual=milliseconds,
            )
        return milliseconds
