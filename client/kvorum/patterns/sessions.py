"""Logins that end when they should: by log-out, by idleness, or at last by age.

    NAME:ID:data         {"field": ...}: what the program keeps
    NAME:ID:end          there until the session is too old, if it is to end by age
    NAME:ID:life:HASH    {"user", "idle_ms", "ends", "created_ms"}: there until it was idle too long
    NAME:ID:refreshed    there for a tenth of the idle time after each refresh
    index NAME.user      USER:ID, of the life

ID is the public name of a session, HASH the SHA-256 of its token. A token is

    ID (12 bytes) | secret (32 bytes) | CRC-32 of both (4 bytes)      64 characters of base64url

so a token leads to its session, and nothing in the store leads to a token.

Rules of this file:

- A session is there as long as its life and its end are, which expire by themselves: no time
  is reckoned here. A life is made by `create` and `rotate` alone. What prolongs it touches it,
  and so never makes it: no late write brings a session back.
- The data outlives the life: it has the whole idle time from when it is written, and from when
  the life is touched. Data without a life is no session, and expires.
- All of a session is read in one list: its records at one revision, in one round trip.
"""

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final, NamedTuple, cast
from zlib import crc32

from kvorum import keys, limits
from kvorum.arguments import check_limit
from kvorum.atomic import Atomic
from kvorum.codecs import JSON
from kvorum.durations import Duration, encode_ttl, to_seconds
from kvorum.entry import Entry, IndexEntry, Page, instant
from kvorum.errors import InvalidArgument, InvalidToken, LimitExceeded
from kvorum.kv import KV
from kvorum.transaction import Transaction
from kvorum.value_models import Unfit

MAX_SESSION_BYTES: Final = 256 * limits.KIB
"""The data of one session, as JSON."""
MAX_SESSION_PAGE: Final = 100
"""Sessions in one page of those of a user: so many of the largest are within MAX_RESULT_BYTES."""
REFRESH_FRACTION: Final = 0.1
"""Of the idle time: so much has to be gone before a refresh writes."""

_ID_BYTES: Final = 12
_SECRET_BYTES: Final = 32
_ID_LENGTH: Final = 16
_SUM_BYTES: Final = 4
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{64}")


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it was read. Its repr shows no data."""

    id: str
    """16 characters that name it, in logs too: nobody can log in with them. They stay when the
    token is rotated."""

    user: str | None
    """Whose it is; None if nobody has logged in."""

    data: Mapping[str, Any] = field(repr=False)
    """What the program keeps in it. A change of this is no change of the session: `update` is."""

    created_at: datetime
    expires_at: datetime
    """From when on it is gone if it is not refreshed; by log time, as `created_at` is."""


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some sessions of a user."""

    sessions: tuple[Session, ...]

    cursor: str | None
    """Give it to the next `of_user` to go on from here; None if this is the last page."""

    complete: bool
    """True if no page follows."""

    def __iter__(self) -> Iterator[Session]:
        return iter(self.sessions)

    def __len__(self) -> int:
        return len(self.sessions)


class SessionStore:
    """Sessions that end after an idle time, and at a certain age.

        sessions = SessionStore(kv, ttl=1800, lifetime=timedelta(days=7))
        token, session = await sessions.create("alice", data={"theme": "dark"})
        session = await sessions.refresh(token)         # at each request; None: log in again
        await sessions.destroy(token)

    Guarantee: a session that was destroyed, rotated away or has expired is never there again,
    whatever was on its way meanwhile. Both ends are exact by log time. The store holds no token,
    and neither do errors and reprs.

    Cost in round trips: 1 each, and one write; `get` writes nothing; `refresh` 1, and 2 when it
    writes; `update` and `rotate` 2; `of_user` 2; `destroy_all` 2 for 100 sessions.

    `ttl` is how long a session lives without a refresh, `lifetime` how long at most; seconds, or
    a timedelta. A session keeps those that it was created with.
    """

    def __init__(
        self,
        kv: KV,
        *,
        ttl: Duration,
        lifetime: Duration | None = None,
        name: str = "session",
    ) -> None:
        self._kv = kv
        self._name = keys.check_name(name, "a session store")
        self._index = f"{self._name}.user"
        self._idle_ms = encode_ttl(ttl)
        if not self._idle_ms:
            raise InvalidArgument("a session store needs a ttl: how long a session may be idle")
        self._idle = to_seconds(self._idle_ms)
        self._lifetime = lifetime
        if lifetime is not None and encode_ttl(lifetime) < self._idle_ms:
            raise InvalidArgument(
                f"the lifetime of a session, {lifetime!r}, is shorter than its ttl, {ttl!r}"
            )

    async def create(
        self,
        user: str | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> tuple[str, Session]:
        """Begin a session; returns its token, which is for its owner alone, and the session.

        `data` is a JSON object of at most MAX_SESSION_BYTES. `LimitExceeded` if it is more.
        """
        token = _Token.new(secrets.token_bytes(_ID_BYTES))
        fields = {} if data is None else _checked(data)
        life = {"user": user, "idle_ms": self._idle_ms, "ends": self._lifetime is not None}
        atomic = self._kv.atomic()
        self._put_life(atomic, token, life)
        atomic.put(self._data(token.id), _encode(fields), ttl=self._idle, type="bytes")
        if self._lifetime is not None:
            atomic.put(self._end(token.id), True, ttl=self._lifetime, type="json")
        at = (await atomic.commit(timeout=timeout)).at
        return token.text, Session(
            id=token.id,
            user=user,
            data=fields,
            created_at=at,
            expires_at=at + timedelta(milliseconds=self._idle_ms),
        )

    async def get(self, token: str, *, timeout: float | None = None) -> Session | None:
        """Read a session; None if it is not there. `InvalidToken` if that is no token."""
        found = await self._read(_Token.parse(token), timeout)
        return None if found is None else found.session

    async def refresh(self, token: str, *, timeout: float | None = None) -> Session | None:
        """Read a session, and let it live for its whole idle time again; None if it is not there.

        It writes when a tenth of the idle time is gone, so that a request hardly ever does.
        It never lives beyond its lifetime.
        """
        parsed = _Token.parse(token)
        found = await self._read(parsed, timeout)
        if found is None or not found.is_due:
            return None if found is None else found.session
        atomic = self._when_there(parsed, found)
        atomic.touch(self._life(parsed), found.idle).touch(self._data(parsed.id), found.idle)
        self._put_refreshed(atomic, parsed, found.idle)
        result = await atomic.otherwise().commit(timeout=timeout)
        if not result.succeeded:
            return None
        return replace(found.session, expires_at=found.expires_at(result.at))

    async def update(
        self,
        token: str,
        fields: Mapping[str, Any] | None = None,
        /,
        *,
        remove: Iterable[str] = (),
        timeout: float | None = None,
        **more: Any,
    ) -> Session | None:
        """Set fields of the data, and remove some; returns the session, None if it is not there.

        Other fields stay as they are, also if somebody changes them at the same time. When
        it expires stays too: this is no refresh. `fields` are for names that are no
        identifiers, or are taken here.
        """
        parsed = _Token.parse(token)
        changes = _checked({} if fields is None else fields) | more
        removed = _names(remove)

        async def change(txn: Transaction) -> Session | None:
            # Without `refreshed`: a refresh is no reason to begin anew.
            start, end = self._prefix(parsed.id), self._refreshed(parsed.id)
            found = self._find(parsed, await txn.list(start=start, end=end, type="json"))
            if found is None:
                return None
            data = {**found.session.data, **changes}
            for name in removed:
                data.pop(name, None)
            txn.put(self._data(parsed.id), _encode(data), ttl=found.idle, type="bytes")
            return replace(found.session, data=data)

        return await self._kv.transaction(timeout=timeout).run(change)

    async def rotate(self, token: str, *, timeout: float | None = None) -> str | None:
        """Give the session another token; returns it, None if the session is not there.

        The old one is void at that moment, and the session is refreshed. To be done when
        rights change, above all at a log-in: a token that was known before is worth nothing then.
        """
        old = _Token.parse(token)
        found = await self._read(old, timeout)
        if found is None:
            return None
        new = _Token.new(urlsafe_b64decode(old.id))
        created_ms = (found.session.created_at - instant(0)) // timedelta(milliseconds=1)
        atomic = self._when_there(old, found).delete(self._life(old))
        self._put_life(atomic, new, {**found.life.value, "created_ms": created_ms})
        atomic.touch(self._data(new.id), found.idle)
        result = await atomic.otherwise().commit(timeout=timeout)
        return new.text if result.succeeded else None

    async def destroy(self, token: str, *, timeout: float | None = None) -> bool:
        """End a session, and return whether its life was there."""
        parsed = _Token.parse(token)
        destroyed = await (
            self._kv.atomic()
            .check(self._life(parsed), exists=True)
            .delete_range(self._prefix(parsed.id))
            .otherwise()
            .commit(timeout=timeout)
        )
        return destroyed.succeeded

    async def destroy_one(self, user: str, id: str, *, timeout: float | None = None) -> bool:
        """End that session of a user which has this `id`, and return whether it was there.

        For a page where users see their sessions: nobody can end one of another.
        """
        found = await self._kv.list(
            index=self._index,
            value=self._index_value(user, id),
            keys_only=True,
            timeout=timeout,
        )
        if not found.entries:
            return False
        # Whose a session is never changes, nor does its id: it may only be gone by now.
        destroyed = await (
            self._kv.atomic()
            .check_range(self._lives(id), exists=True)
            .delete_range(self._prefix(id))
            .otherwise()
            .commit(timeout=timeout)
        )
        return destroyed.succeeded

    async def destroy_all(self, user: str, *, timeout: float | None = None) -> int:
        """End all sessions of a user, and return how many they were.

        All that there are when it begins, rotated meanwhile or not, as they keep their ids; of
        those that are created meanwhile, some or none. `timeout` is that of each round trip.
        """
        destroyed = 0
        while True:
            page = await self._kv.list(
                index=self._index,
                prefix=self._index_value(user, ""),
                limit=MAX_SESSION_PAGE,
                keys_only=True,
                timeout=timeout,
            )
            if not page.entries:
                return destroyed
            atomic = self._kv.atomic()
            for entry in page:
                atomic.delete_range(self._prefix(_id_in(entry.key)))
            removed: tuple[int, ...] = (await atomic.commit(timeout=timeout)).results
            destroyed += sum(count > 0 for count in removed)
            if page.complete:
                return destroyed

    async def of_user(
        self,
        user: str,
        *,
        limit: int = MAX_SESSION_PAGE,
        cursor: str | None = None,
        timeout: float | None = None,
    ) -> SessionPage:
        """Read a page of the sessions of a user, in no particular order.

        `limit` is 1 to MAX_SESSION_PAGE; a page may be shorter and not the last, as `KV.list` has
        it. A session that ends while the page is read may be missing from it.
        """
        if check_limit(limit) > MAX_SESSION_PAGE:
            raise LimitExceeded(
                f"the limit of a page of sessions is {limit}; at most {MAX_SESSION_PAGE} go into"
                " one: go on with the page's cursor",
                limit="MAX_SESSION_PAGE",
                maximum=MAX_SESSION_PAGE,
                actual=limit,
            )
        page = await self._kv.list(
            index=self._index,
            prefix=self._index_value(user, ""),
            limit=limit,
            cursor=cursor,
            type="json",
            timeout=timeout,
        )
        if not page.entries:
            return SessionPage((), page.cursor, page.complete)
        atomic = self._kv.atomic()
        for name in (_id_in(life.key) for life in page):
            atomic.get(self._data(name), type="json").get(self._end(name), type="json")
        read = (await atomic.commit(timeout=timeout)).results
        found = (
            _found(life, data, end)
            for life, data, end in zip(page, read[::2], read[1::2], strict=True)
        )
        return SessionPage(
            tuple(one.session for one in found if one is not None), page.cursor, page.complete
        )

    def __repr__(self) -> str:
        return f"<SessionStore {self._name}>"

    async def _read(self, token: "_Token", timeout: float | None) -> "_Found | None":
        page = await self._kv.list(self._prefix(token.id), type="json", timeout=timeout)
        return self._find(token, page)

    def _find(self, token: "_Token", page: Page[Any]) -> "_Found | None":
        """The session of the token among the records of its id."""
        records = {entry.key: entry for entry in page}
        return _found(
            records.get(self._life(token)),
            records.get(self._data(token.id)),
            records.get(self._end(token.id)),
            is_due=self._refreshed(token.id) not in records,
        )

    def _when_there(self, token: "_Token", found: "_Found") -> Atomic:
        """Something to do if the session is still there then, by this token."""
        atomic = self._kv.atomic().check(self._life(token), exists=True)
        return atomic.check(self._end(token.id), exists=True) if found.end else atomic

    def _put_life(self, atomic: Atomic, token: "_Token", life: Mapping[str, Any]) -> None:
        user, idle = life["user"], to_seconds(life["idle_ms"])
        entries = [] if user is None else [self._index_entry(user, token.id)]
        atomic.put(self._life(token), life, ttl=idle, index_entries=entries, type="json")
        self._put_refreshed(atomic, token, idle)

    def _put_refreshed(self, atomic: Atomic, token: "_Token", idle: float) -> None:
        pause = max(idle * REFRESH_FRACTION, 0.001)
        atomic.put(self._refreshed(token.id), True, ttl=pause, type="json")

    def _prefix(self, id: str) -> str:
        return f"{self._name}:{id}:"

    def _data(self, id: str) -> str:
        return f"{self._name}:{id}:data"

    def _end(self, id: str) -> str:
        return f"{self._name}:{id}:end"

    def _lives(self, id: str) -> str:
        return f"{self._name}:{id}:life:"

    def _life(self, token: "_Token") -> str:
        return self._lives(token.id) + token.hash

    def _refreshed(self, id: str) -> str:
        return f"{self._name}:{id}:refreshed"

    def _index_value(self, user: str, id: str) -> str:
        return f"{keys.escape(user)}:{id}"

    def _index_entry(self, user: str, id: str) -> IndexEntry:
        return IndexEntry(self._index, self._index_value(user, id))


class _Token(NamedTuple):
    text: str

    @property
    def id(self) -> str:
        return self.text[:_ID_LENGTH]

    @property
    def hash(self) -> str:
        return sha256(self.text.encode()).hexdigest()

    @classmethod
    def new(cls, id: bytes) -> "_Token":
        body = id + secrets.token_bytes(_SECRET_BYTES)
        return cls(urlsafe_b64encode(body + _sum(body)).decode())

    @classmethod
    def parse(cls, text: object) -> "_Token":
        """Raise `InvalidToken` for what `new` has not made, or was cut or altered since."""
        if isinstance(text, str) and _TOKEN.fullmatch(text):
            written = urlsafe_b64decode(text)
            if written[-_SUM_BYTES:] == _sum(written[:-_SUM_BYTES]):
                return cls(text)
        raise InvalidToken("that is no session token: it was cut, altered, or is something else")

    def __repr__(self) -> str:
        return f"<token of {self.id}>"


class _Found(NamedTuple):
    """A session that is there."""

    session: Session
    life: Entry[Any]
    end: Entry[Any] | None
    is_due: bool
    """To be refreshed, if that is asked for."""

    @property
    def idle(self) -> float:
        """Its idle time in seconds."""
        return to_seconds(self.life.value["idle_ms"])

    def expires_at(self, refreshed_at: datetime) -> datetime:
        idle_at = refreshed_at + timedelta(milliseconds=self.life.value["idle_ms"])
        return _earlier(idle_at, self.end)


def _found(
    life: Entry[Any] | None,
    data: Entry[Any] | None,
    end: Entry[Any] | None,
    *,
    is_due: bool = False,
) -> _Found | None:
    """The session of these records; None if it is over."""
    if life is None or data is None or (end is None and life.value["ends"]):
        return None
    created_ms: int | None = life.value.get("created_ms")
    session = Session(
        id=_id_in(life.key),
        user=life.value["user"],
        data=data.value,
        # A life that was not rotated is as old as its session.
        created_at=life.updated_at if created_ms is None else instant(created_ms),
        expires_at=_earlier(life.expires_at, end),
    )
    return _Found(session, life, end, is_due)


def _earlier(idle_at: datetime | None, end: Entry[Any] | None) -> datetime:
    """When the first of both expires; a life always does."""
    times = [idle_at, None if end is None else end.expires_at]
    return min(time for time in times if time is not None)


def _id_in(key: str) -> str:
    """Of a life."""
    return key.split(keys.SEPARATOR)[1]


def _sum(body: bytes) -> bytes:
    return crc32(body).to_bytes(_SUM_BYTES)


def _checked(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"the data of a session is a mapping, not {type(data).__name__}")
    return dict(zip(_names(data), data.values(), strict=True))


def _names(names: object) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidArgument(
            f"the fields of a session are several names, not {type(names).__name__}"
        )
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise InvalidArgument(
                f"the name of a field of a session is text, not {type(name).__name__}"
            )
    return cast("list[str]", found)


def _encode(data: dict[str, Any]) -> bytes:
    """As JSON, within its limit. Errors show nothing of it."""
    try:
        encoded = JSON.encode(data)
    except Unfit as error:
        raise InvalidArgument(f"the data of a session is not valid as JSON: {error}") from None
    size = len(encoded)
    if size > MAX_SESSION_BYTES:
        raise LimitExceeded(
            f"the data of a session has {size:,} bytes as JSON; at most {MAX_SESSION_BYTES:,} are "
            "allowed: keep what is large under a key of its own",
            limit="MAX_SESSION_BYTES",
            maximum=MAX_SESSION_BYTES,
            actual=size,
        )
    return encoded
