"""Records that are found by more than their id.

    users = Collection(kv, "user", indexes={
        "email": Unique("email"),
        "city": Index("city"),
    })
    await users.create("1", {"name": "Alice", "email": "alice@example.org", "city": "Rome"})
    alice = await users.get_by("email", "alice@example.org")
    page = await users.find("city", "Rome")

What it writes:

    user:1             a record, under its escaped id; the store keeps its index entries with it,
                       in the indexes "user:email" and "user:city"
    collection:user    which indexes are complete, and how far `reindex` has come (catalog.py)

Rule of this file: a record and its index entries are one put. There is nothing else that could
be left half done, or be forgotten when a record is replaced, removed, or expires.
"""

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from kvorum.codecs import Typed
from kvorum.durations import Duration
from kvorum.entry import Entry, IndexEntry, Page
from kvorum.errors import Conflict, InvalidArgument, UniqueViolation
from kvorum.limits import DEFAULT_PAGE_RECORDS
from kvorum.patterns.catalog import Catalog
from kvorum.patterns.indexes import Index, IndexValue, Schema
from kvorum.patterns.reindexing import Difference, Progress, Reindexed, Reindexing, differences

if TYPE_CHECKING:
    from kvorum.kv import KV
    from kvorum.transaction import Transaction

T = TypeVar("T")

Bound = IndexValue
"""A value of an index; of tuples, the first values are enough."""


class Collection(Generic[T]):
    """Records of one kind, each with an id, and found under what `indexes` says.

    Record and index entries are written together: no reader, and no crash, finds one without the
    other, and expiry takes both. Of many who want one value of a `Unique` index, one gets it, and
    the others get `UniqueViolation`, which has the index, the value, and the owner's id.

    A write or a read costs one round trip, `update` two; an index entry costs the store a row, a
    unique one two. A `Collection` asks one round trip more, once, which indexes are complete
    (and another one if nobody has used the collection before): make it once in a program.

    Entries and errors have ids as they were given, and the names of indexes as in `indexes`.
    Values are written and read as `type` says, which is what `KV.put` takes; without it, as the
    store was opened. A record has at most `limits.MAX_INDEX_ENTRIES` index entries.

    All programs that write have one definition. To add an index to records that are there, let
    all of them have the new one, then `reindex`: until that has ended, `get_by` and `find` with
    the index are `IndexIncomplete`. A program that begins to write without an index makes it so,
    too. An index whose function comes to say something else needs a new name.
    """

    @overload
    def __init__(
        self: "Collection[str]",
        kv: "KV",
        name: str,
        *,
        indexes: Mapping[str, Index] = ...,
        type: Literal["text"],
    ) -> None: ...

    @overload
    def __init__(
        self: "Collection[T]",
        kv: "KV",
        name: str,
        *,
        indexes: Mapping[str, Index] = ...,
        type: Typed[T],
    ) -> None: ...

    @overload
    def __init__(
        self: "Collection[Any]",
        kv: "KV",
        name: str,
        *,
        indexes: Mapping[str, Index] = ...,
        type: Any = ...,
    ) -> None: ...

    def __init__(
        self,
        kv: "KV",
        name: str,
        *,
        indexes: Mapping[str, Index] | None = None,
        type: Any = None,
    ) -> None:
        self._kv = kv
        self._schema = Schema(name, indexes or {})
        self._catalog = Catalog(kv, self._schema)
        self._type = type

    def key(self, id: str) -> str:
        """The key of a record in the store: for `KV.touch`, watches and transactions."""
        return self._schema.key(id)

    def index_entries(self, value: T) -> list[IndexEntry]:
        """What the store is to keep with this value, for a put in a transaction of your own.

        kv.atomic().put(users.key("1"), alice, index_entries=users.index_entries(alice))
        """
        return self._schema.entries(value)

    async def create(
        self, id: str, value: T, *, ttl: Duration | None = None, timeout: float | None = None
    ) -> int:
        """Write a new record, and return its revision.

        Raises `Conflict` if there is one with this id, `UniqueViolation` if another one has a
        value that is to be unique. `ttl` is in seconds, or a timedelta.
        """
        return await self.put(id, value, ttl=ttl, exists=False, timeout=timeout)

    async def put(
        self,
        id: str,
        value: T,
        *,
        ttl: Duration | None = None,
        keep_ttl: bool = False,
        revision: int | None = None,
        exists: bool | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write a record in place of the one with this id, if any, and return its revision.

        `ttl`, `keep_ttl`, and the conditions `revision` and `exists` are those of `KV.put`.
        """
        await self._catalog.open(timeout)
        try:
            return await self._kv.put(
                self._schema.key(id),
                value,
                ttl=ttl,
                keep_ttl=keep_ttl,
                index_entries=self._schema.entries(value),
                revision=revision,
                exists=exists,
                type=self._type,
                timeout=timeout,
            )
        except UniqueViolation as error:
            raise self._schema.violation(error, value) from None
        except Conflict as error:
            raise self._conflict(id, error) from None

    async def update(
        self,
        id: str,
        change: Callable[[T], T] | Mapping[str, Any],
        *,
        timeout: float | None = None,
    ) -> int | None:
        """Change a record; return the new revision, or None if there is no such record.

        `change` has the fields that get new values; or is a function from the value to the new
        one, which runs again if somebody else has written the record meanwhile. Time to live and
        metadata stay. Raises `UniqueViolation`; `Conflict` after as many attempts as
        `KV.transaction` makes.
        """
        await self._catalog.open(timeout)
        written: T | None = None

        async def body(txn: "Transaction") -> "Transaction | None":
            nonlocal written
            entry: Entry[T] | None = await txn.get(self._schema.key(id), type=self._type)
            if entry is None:
                return None
            written = _changed(entry.value, change)
            txn.put(
                entry.key,
                written,
                keep_ttl=True,
                metadata=entry.metadata,
                index_entries=self._schema.entries(written, kept=entry.index_entries),
                type=self._type,
            )
            return txn

        try:
            txn = await self._kv.transaction(timeout=timeout).run(body)
        except UniqueViolation as error:
            raise self._schema.violation(error, written) from None
        except Conflict as error:
            raise self._conflict(id, error) from None
        return None if txn is None else txn.revision

    async def delete(
        self, id: str, *, revision: int | None = None, timeout: float | None = None
    ) -> bool:
        """Remove a record, and return whether it was there. With `revision`, like `KV.delete`."""
        try:
            return await self._kv.delete(self._schema.key(id), revision=revision, timeout=timeout)
        except Conflict as error:
            raise self._conflict(id, error) from None

    async def get(self, id: str, *, timeout: float | None = None) -> Entry[T] | None:
        """Read a record; None if there is none with this id."""
        key = self._schema.key(id)
        entry: Entry[T] | None = await self._kv.get(key, type=self._type, timeout=timeout)
        return None if entry is None else self._schema.entry(entry)

    async def get_by(
        self, index: str, value: IndexValue, *, timeout: float | None = None
    ) -> Entry[T] | None:
        """Read the record that has a value of a unique index; None if there is none."""
        if not self._schema.index_of(index).unique:
            raise InvalidArgument(f"the index {index!r} is not unique: find gives all records")
        page = await self.find(index, value, limit=1, timeout=timeout)
        return page.entries[0] if page.entries else None

    async def list(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        reverse: bool = False,
        snapshot: bool = False,
        timeout: float | None = None,
    ) -> Page[T]:
        """Read up to `limit` records, in the order of their ids; as `KV.list` does.

        The order is that of their escaped text: a colon, a percent sign and NUL sort like one
        percent sign.
        """
        page: Page[T] = await self._kv.list(
            self._schema.prefix,
            limit=limit,
            cursor=cursor,
            reverse=reverse,
            snapshot=snapshot,
            type=self._type,
            timeout=timeout,
        )
        return self._page(page)

    async def find(
        self,
        index: str,
        value: IndexValue | EllipsisType = ...,
        *,
        start: Bound | None = None,
        end: Bound | None = None,
        prefix: Bound | None = None,
        limit: int = 100,
        cursor: str | None = None,
        reverse: bool = False,
        timeout: float | None = None,
    ) -> Page[T]:
        """Read up to `limit` records in the order of an index, one round trip a page.

        Those with exactly this `value`; or from `start` (included) to `end` (excluded); or with a
        `prefix`: of text, or the first values of tuples; or all that the index has. A record
        with several values comes once for each that is asked for. Cursors are as in `KV.list`.
        """
        selection = self._schema.selection(index, value, start, end, prefix)
        await self._catalog.require(index, timeout)
        page: Page[T] = await self._kv.list(
            limit=limit,
            cursor=cursor,
            reverse=reverse,
            type=self._type,
            timeout=timeout,
            **selection,
        )
        return self._page(page)

    async def scan(
        self,
        index: str | None = None,
        value: IndexValue | EllipsisType = ...,
        *,
        start: Bound | None = None,
        end: Bound | None = None,
        prefix: Bound | None = None,
        page_size: int = DEFAULT_PAGE_RECORDS,
        reverse: bool = False,
    ) -> AsyncIterator[Entry[T]]:
        """Iterate over all records, or all that `find` would return, page by page."""
        selection = await self._select(index, value, start, end, prefix, timeout=None)
        async for entry in self._kv.scan(
            page_size=page_size, reverse=reverse, type=self._type, **selection
        ):
            yield self._schema.entry(entry)

    async def count(
        self,
        index: str | None = None,
        value: IndexValue | EllipsisType = ...,
        *,
        start: Bound | None = None,
        end: Bound | None = None,
        prefix: Bound | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many records there are, or how many `find` would return; no value travels.

        One round trip, but the store looks at each of them: `count` of `KV.list`.
        """
        selection = await self._select(index, value, start, end, prefix, timeout=timeout)
        page: Page[None] = await self._kv.list(
            limit=1, keys_only=True, count=True, timeout=timeout, **selection
        )
        return page.count or 0

    async def reindex(
        self,
        *,
        progress: Progress | None = None,
        restart: bool = False,
        timeout: float | None = None,
    ) -> Reindexed:
        """Give every record the index entries that the definition says, and no others.

        For an index that is new to records that are there. It may run while the collection is
        used, and may be repeated: one record after the other, each as it is by then, keeping
        value, metadata and expiry. A run that was broken off is taken up where it was, unless the
        definition has changed, or with `restart`.

        Two records that want one value of a unique index are reported, with both ids; the one that
        comes later is not found under it, and the index stays incomplete: repair one of them, and
        reindex again. Others become complete.

        Reads all values once, and writes those that differ, two round trips each; `progress` is
        awaited after each page of them. `timeout` is that of each call. Raises `Conflict` if
        another run was begun meanwhile. A value that is not of the type, or that a function of an
        index cannot take, ends it with that error, which names the record.
        """
        run = Reindexing(self._kv, self._schema, self._catalog, self._type, timeout)
        return await run.run(progress, restart=restart)

    async def verify(self) -> AsyncIterator[Difference]:
        """Iterate over the records whose index entries are not what the definition says.

        Reads all values. There are none once an index is complete, unless something else than
        a collection with this definition has written; `reindex` with `restart` repairs them.
        """
        async for found in differences(self._kv, self._schema, self._type):
            yield found

    def __repr__(self) -> str:
        return f"<Collection {self._schema.name!r}, indexes: {', '.join(self._schema.indexes)}>"

    async def _select(
        self,
        index: str | None,
        value: object,
        start: object,
        end: object,
        prefix: object,
        *,
        timeout: float | None,
    ) -> dict[str, Any]:
        if index is not None:
            selection = self._schema.selection(index, value, start, end, prefix)
            await self._catalog.require(index, timeout)
            return selection
        if value is not ... or (start, end, prefix) != (None, None, None):
            raise InvalidArgument("a value, a prefix, a start or an end are of an index: name it")
        return {"prefix": self._schema.prefix}

    def _page(self, page: Page[T]) -> Page[T]:
        return dataclasses.replace(page, entries=tuple(map(self._schema.entry, page.entries)))

    def _conflict(self, id: str, error: Conflict) -> Conflict:
        message = error.message.replace(repr(self._schema.key(id)), f"{self._schema.name} {id!r}")
        return Conflict(message, check=error.check, key=id)


def _changed(value: T, change: Callable[[T], T] | Mapping[str, Any]) -> T:
    changed: Any
    if isinstance(change, Mapping):
        changed = _with_fields(value, change)
    elif callable(change):
        changed = change(value)
        if changed is None:
            raise InvalidArgument("the function of an update returns the new value, and not None")
    else:
        raise InvalidArgument(
            f"an update takes a mapping of fields, or a function, not {change.__class__.__name__}"
        )
    return changed  # type: ignore[no-any-return]  # it is like `value`


def _with_fields(value: Any, fields: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {**value, **fields}
    kind = value.__class__.__name__
    try:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(value, **fields)
        if hasattr(value, "__replace__"):  # what models have for copy.replace
            return value.__replace__(**fields)
    except (TypeError, ValueError):  # which may show the values
        names = ", ".join(map(str, fields))
        raise InvalidArgument(
            f"{kind} does not take these fields, or their values: {names}"
        ) from None
    raise InvalidArgument(f"fields of {kind} cannot be given new values: give a function")
