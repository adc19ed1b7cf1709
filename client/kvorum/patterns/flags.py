"""Features on for some, known without asking: a copy of all flags, kept by a watch.

    NAME:FLAG     {"percentage", "users", "where", "variants", "weights", "enabled", "salt", ...}

What a flag says to whom is in flag_rules.py. Rules of this file:

- The copy is one revision of the store, whole, and goes from one to the next: nothing is left
  out between loading and watching, as the watch begins at the revision that was loaded.
- Whoever asks never waits. When nothing is heard, the answers go on, and say how old they are.
- How old the copy is, is measured by the clock of the event loop: it is a distance, and decides
  nothing but what is said about it.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar, cast

from kvorum import keys, limits
from kvorum.arguments import check_revision, check_timeout
from kvorum.durations import Duration, encode_ttl, to_seconds
from kvorum.entry import Entry
from kvorum.errors import (
    Closed,
    Compacted,
    DeadlineExceeded,
    DecodeError,
    InvalidArgument,
    KvorumError,
    UnknownFlag,
)
from kvorum.kv import KV
from kvorum.patterns import flag_rules
from kvorum.patterns.flag_rules import Context, Decision, Flag, Reason, Scalar
from kvorum.watching import Changes, Watch

T = TypeVar("T")

DEFAULT_STALE_SECONDS: Final = 15.0
"""Three times as long as the store needs to say that nothing has changed."""
_PAUSE_SECONDS: Final = 0.5
"""Between two attempts to load the flags anew."""

Asking = Context | Mapping[str, Any] | None
"""Who asks: a `Context`, or attributes with a `user_id` among them."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a flag says, why, and how well that is known."""

    flag: str
    enabled: bool
    variant: str | None
    """"on" or "off" for a flag without variants; None if it has some, and is off."""
    value: Any
    """Of the variant; the default if there is none."""
    decided_by: Reason
    """What of the flag has decided; ERROR if it could not be asked."""
    bucket: int | None
    """Of the user, from 0 to 999,999: on if it is below 10,000 times the percentage."""
    revision: int
    """Of the store, at which the flags are known."""
    staleness: float
    """Seconds since the store was heard."""
    stale: bool
    error: KvorumError | None = None
    """Why the flag could not be asked: `UnknownFlag`, `DecodeError` or `InvalidArgument`."""

    @property
    def reason(self) -> Reason:
        """`decided_by`, or STALE if the copy may be old."""
        return Reason.STALE if self.stale and self.error is None else self.decided_by


class _Copy(NamedTuple):
    """The flags, at one revision. One that cannot be read is there as its error."""

    flags: Mapping[str, Flag | DecodeError]
    revision: int


class FeatureFlags:
    """Feature flags, evaluated where they are asked for.

        async with FeatureFlags(kv) as flags:
            await flags.set("checkout", percentage=10, users=["alice"])
            if flags.is_enabled("checkout", {"user_id": "bob"}): ...

    Guarantee: the copy is the flags as they were at `revision`, and follows the store: over the
    loss of nodes and connections, in order, no change left out. When the cluster is away, answers
    go on, and `is_stale` says so, once nothing was heard for `stale_after` (seconds, or a
    timedelta, above 5 s: so often the store is heard when nothing changes).

    Cost: one round trip per 1,000 flags, and a watch, to enter; nothing to ask; one round trip for
    `set` and `delete`. `set`, `update`, `delete`, `get` and `list` do not need it to be entered.
    """

    def __init__(
        self, kv: KV, name: str = "flag", *, stale_after: Duration = DEFAULT_STALE_SECONDS
    ) -> None:
        self._kv = kv
        self._prefix = keys.prefix(keys.check_name(name, "a set of feature flags"))
        self._stale_seconds = to_seconds(encode_ttl(stale_after))
        if self._stale_seconds * 1000 <= limits.DEFAULT_PROGRESS_INTERVAL_MS:
            raise InvalidArgument(
                f"stale_after is {stale_after!r}; a store that is well is heard each "
                f"{to_seconds(limits.DEFAULT_PROGRESS_INTERVAL_MS):g} s: give more"
            )
        self._copy: _Copy | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard_at = -math.inf
        self._news = asyncio.Condition()
        self._watch: Watch[bytes] | None = None
        self._following: asyncio.Task[None] | None = None
        self._has_ended = False

    # Asking.

    def is_enabled(self, name: str, context: Asking = None, *, default: bool | None = None) -> bool:
        """Whether the flag is on for the context.

        If that cannot be said, the `default`, or without one: `UnknownFlag`, `DecodeError` if what
        is stored is no flag, `InvalidArgument` for a context that is none.
        """
        explained = self.explain(name, context)
        if explained.error is None:
            return explained.enabled
        if default is None:
            raise explained.error
        return default

    def value(self, name: str, context: Asking, default: T) -> T:
        """The value of the variant that the context has.

        The `default` if the flag has variants and is off, if it is not known, or if the value is of
        another type than the `default`; `explain` says which. A flag without variants is True
        or False.
        """
        return cast("T", self.explain(name, context, default).value)

    def explain(self, name: str, context: Asking = None, default: Any = None) -> Explanation:
        """What the flag says to the context, and why. Nothing is raised for a flag or a context."""
        copy = self._known()
        try:
            decision = flag_rules.decide(self._flag(copy, name), flag_rules.read_context(context))
            value = default if decision.variant is None else decision.value
            _check_value(self._prefix + name, value, default)
            error = None
        except KvorumError as failure:
            error, value = failure, default
            decision = Decision(False, None, None, Reason.ERROR, None)
        staleness = self.staleness
        return Explanation(
            flag=name,
            enabled=decision.enabled,
            variant=decision.variant,
            value=value,
            decided_by=decision.reason,
            bucket=decision.bucket,
            revision=copy.revision,
            staleness=staleness,
            stale=staleness > self._stale_seconds,
            error=error,
        )

    @property
    def revision(self) -> int:
        """Of the store, at which the flags are known; 0 before they are loaded."""
        return 0 if self._copy is None else self._copy.revision

    @property
    def staleness(self) -> float:
        """Seconds since the store was heard; infinity before the flags are loaded."""
        return math.inf if self._loop is None else self._loop.time() - self._heard_at

    @property
    def is_stale(self) -> bool:
        """Whether the store has not been heard for `stale_after`."""
        return self.staleness > self._stale_seconds

    async def wait_for(self, revision: int, *, timeout: float | None = None) -> None:
        """Wait until the copy has come to a revision: that of `set`, to read what was written.

        The revision of another write is known after 5 seconds at most. `DeadlineExceeded` if it
        has not come; `Closed` if it cannot come any more.
        """
        self._known()
        check_revision(revision)
        seconds = limits.DEFAULT_TIMEOUT_SECONDS if timeout is None else check_timeout(timeout)
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(lambda: self.revision >= revision or self._has_ended)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the feature flags are at revision {self.revision}, and have not come to "
                f"{revision} within {seconds:g} s"
            ) from None
        if self.revision < revision:
            raise Closed("the feature flags follow the store no more")

    # Writing.

    async def set(
        self,
        name: str,
        *,
        percentage: float = 0,
        users: Iterable[str] = (),
        where: Mapping[str, Iterable[Scalar]] | None = None,
        variants: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        enabled: bool = True,
        salt: str | None = None,
        description: str = "",
        revision: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a flag, in place of what it was; returns the revision.

        It is on for the `users` of the list, for contexts `where` each attribute has one of its
        values, and for a `percentage` of all others; for nobody if none of them is given. `Flag`
        has all fields. Buckets depend on the `salt`, which is the name if it is left out.

        With `revision` (0: it is absent) only if the flag is still at it; `Conflict` otherwise.
        So of two who change what they have read, one learns of the other.
        """
        flag = flag_rules.make(
            name,
            percentage=percentage,
            users=users,
            where=where or {},
            variants=variants or {},
            weights=weights or {},
            enabled=enabled,
            salt=salt,
            description=description,
        )
        return await self._kv.put(
            self._prefix + name, flag.encode(), revision=revision, type="bytes", timeout=timeout
        )

    async def update(
        self,
        name: str,
        *,
        percentage: float | None = None,
        users: Iterable[str] | None = None,
        where: Mapping[str, Iterable[Scalar]] | None = None,
        variants: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        enabled: bool | None = None,
        salt: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write some fields of a flag, and leave the others as they are; returns the revision.

        Two who update at the same time lose nothing of each other. Two round trips, and two more
        for each conflict. `UnknownFlag` if there is none.
        """
        key = self._key(name)
        # What is wrong is said before anything is read, and an iterator is gone through but once.
        given = flag_rules.make(
            name,
            percentage=0 if percentage is None else percentage,
            users=() if users is None else users,
            where={} if where is None else where,
            variants={},
            weights={},
            enabled=True,
            salt=salt,
            description="",
        )
        async for attempt in self._kv.transaction(timeout=timeout):
            async with attempt as txn:
                entry = await txn.get(key, type="bytes")
                if entry is None:
                    raise _unknown(name)
                old = self._decode(entry)
                new = flag_rules.make(
                    name,
                    percentage=old.percentage if percentage is None else percentage,
                    users=old.users if users is None else given.users,
                    where=old.where if where is None else given.where,
                    variants=old.variants if variants is None else variants,
                    weights=old.weights if weights is None else weights,
                    enabled=old.enabled if enabled is None else enabled,
                    salt=old.salt if salt is None else salt,
                    description=old.description if description is None else description,
                )
                txn.put(key, new.encode(), type="bytes")
        written = attempt.revision
        return 0 if written is None else written

    async def delete(
        self, name: str, *, revision: int | None = None, timeout: float | None = None
    ) -> bool:
        """Remove a flag, and return whether it was there; with `revision`, like `KV.delete`."""
        return await self._kv.delete(self._key(name), revision=revision, timeout=timeout)

    async def get(self, name: str, *, timeout: float | None = None) -> Flag | None:
        """Read a flag from the store; None if there is none. `DecodeError` if it is no flag."""
        entry = await self._kv.get(self._key(name), type="bytes", timeout=timeout)
        return None if entry is None else self._decode(entry)

    async def list(self, *, timeout: float | None = None) -> tuple[Flag, ...]:
        """Read all flags from the store, by name. `DecodeError` if one of them is no flag."""
        copy = await self._read(timeout)
        for flag in copy.flags.values():
            if isinstance(flag, DecodeError):
                raise flag
        return tuple(cast("Mapping[str, Flag]", copy.flags).values())

    # Following.

    async def __aenter__(self) -> Self:
        if self._following is not None:
            raise InvalidArgument("these feature flags were entered already: make new ones")
        self._loop = asyncio.get_running_loop()
        watch = await self._load()
        self._following = self._loop.create_task(self._follow(watch), name="kvorum flags")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Follow the store no more; what is known can still be asked."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            await self._end()  # a task that was cancelled before it began has not

    async def _load(self) -> Watch[bytes]:
        """Take a new copy, and return the watch that begins where it ends."""
        while True:
            asked_at = self._now()
            try:
                copy = await self._read(None)
                self._watch = watch = await self._begin(copy.revision)
            except Compacted:  # the pages took longer than the store remembers
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            await self._take(copy, asked_at)
            return watch

    async def _begin(self, since: int) -> Watch[bytes]:
        watch = self._kv.watch(self._prefix, since=since, type="bytes")
        try:
            await watch.begin()
        except BaseException:  # cancelled, too
            await watch.close()
            raise
        return watch

    async def _read(self, timeout: float | None) -> _Copy:
        flags: dict[str, Flag | DecodeError] = {}
        cursor = None
        while True:
            page = await self._kv.list(
                self._prefix,
                limit=limits.DEFAULT_PAGE_RECORDS,
                cursor=cursor,
                snapshot=True,
                type="bytes",
                timeout=timeout,
            )
            flags.update((self._name(entry.key), self._decode_any(entry)) for entry in page)
            if page.complete:
                return _Copy(flags, page.revision)
            cursor = page.cursor

    async def _follow(self, watch: Watch[bytes]) -> None:
        try:
            while True:
                try:
                    async with watch:
                        async for changes in watch.revisions(progress=True):
                            await self._take(self._changed(changes), self._now())
                except Closed:
                    raise
                except KvorumError:
                    # Compacted, or a store that was restored from before: nothing leads from
                    # this copy to the next one.
                    watch = await self._load_again()
        except Closed:
            pass
        finally:
            await self._end()

    async def _end(self) -> None:
        """Let the watch go, and tell those who wait. May be repeated."""
        self._has_ended = True
        if self._watch is not None:
            await self._watch.close()
        async with self._news:
            self._news.notify_all()

    async def _load_again(self) -> Watch[bytes]:
        while True:
            try:
                return await self._load()
            except Closed:
                raise
            except KvorumError:  # the cluster is away: the copy tells that it is stale
                await asyncio.sleep(_PAUSE_SECONDS)

    def _changed(self, changes: Changes[bytes]) -> _Copy:
        known = self._known()
        if not changes.changes:
            return _Copy(known.flags, max(known.revision, changes.revision))
        flags = dict(known.flags)
        for change in changes:
            name = self._name(change.key)
            if change.entry is None:
                flags.pop(name, None)
            else:
                flags[name] = self._decode_any(change.entry)
        return _Copy(flags, changes.revision)

    async def _take(self, copy: _Copy, heard_at: float) -> None:
        self._copy, self._heard_at = copy, heard_at
        async with self._news:
            self._news.notify_all()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _known(self) -> _Copy:
        if self._copy is None:
            raise InvalidArgument("feature flags are loaded by `async with`: enter them first")
        return self._copy

    def _flag(self, copy: _Copy, name: str) -> Flag:
        flag = copy.flags.get(name)
        if flag is None:
            raise _unknown(name)
        if isinstance(flag, DecodeError):
            raise flag
        return flag

    def _key(self, name: str) -> str:
        return self._prefix + keys.check_name(name, "a feature flag")

    def _name(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _decode(self, entry: Entry[bytes]) -> Flag:
        return flag_rules.decode(entry.key, self._name(entry.key), entry.value, entry.revision)

    def _decode_any(self, entry: Entry[bytes]) -> Flag | DecodeError:
        try:
            return self._decode(entry)
        except DecodeError as error:
            return error


def _unknown(name: str) -> UnknownFlag:
    return UnknownFlag(f"there is no feature flag {name!r}", flag=name)


def _check_value(key: str, value: object, default: object) -> None:
    """Raise `DecodeError` if the value is not of the type of the default, unless that is None."""
    if default is None:
        return
    wanted: tuple[type, ...] = (type(default),)
    if wanted == (float,):
        wanted = (float, int)
    if not isinstance(value, wanted) or isinstance(value, bool) is not isinstance(default, bool):
        what = type(default).__name__
        raise DecodeError(
            f"the flag {key!r} has a value that is {type(value).__name__}, not {what}",
            key=key,
            type=what,
        )
