"""Gives every record of a collection the index entries that the definition says, while it is used.

Page by page: a record whose entries differ is written again, with the same value, metadata and
expiry, by a transaction that starts over if somebody else has written it meanwhile. So no write
is ever taken back, and it can be done as often as one likes.

How far it has come is kept in the catalog after each page, by a put that expects the catalog as
this run has left it. So a run goes on where a crashed one has stopped; and of two at a time, the
one that began last goes on, and the other meets a `Conflict`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kvorum.entry import Entry, IndexEntry, Page
from kvorum.errors import Conflict, DeadlineExceeded, UniqueViolation
from kvorum.patterns.catalog import Catalog
from kvorum.patterns.indexes import Place, Schema

if TYPE_CHECKING:
    from kvorum.kv import KV
    from kvorum.transaction import Transaction

PAGE_RECORDS: Final = 256
"""Looked at, and written again at once if need be, before the catalog is told."""


@dataclass(frozen=True, slots=True)
class UniqueConflict:
    """Two records want the same value of a unique index; the owner is found under it."""

    index: str
    value: str
    id: str
    """The record that is not found under the value."""
    owner: str
    """The id of the one that is."""


@dataclass(frozen=True, slots=True)
class Reindexed:
    """How far `reindex` has come; what it returns in the end, and tells `progress` before that."""

    seen: int
    """Records looked at, those of a crashed run before this one included."""

    total: int | None
    """Records that there were when this run began; None if they are too many to be counted in
    the time that a call may take."""

    changed: int
    """Records that had other index entries than they should."""

    conflicts: tuple[UniqueConflict, ...]
    """Found by this run. An index with conflicts is not complete when it ends."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The index entries of a record are not what the definition says."""

    id: str

    missing: tuple[IndexEntry, ...]
    """Of the collection's indexes, with values as they are stored, like those of an `Entry`."""

    surplus: tuple[IndexEntry, ...]


Progress = Callable[[Reindexed], Awaitable[None]]


class Reindexing:
    """One run."""

    def __init__(
        self, kv: "KV", schema: Schema, catalog: Catalog, type: Any, timeout: float | None
    ) -> None:
        self._kv = kv
        self._schema = schema
        self._catalog = catalog
        self._type = type
        self._timeout = timeout
        self._revision = 0
        """Of the catalog, as this run has left it."""
        self._indexes: dict[str, Any] = {}
        """What the catalog says of them."""
        self._cursor: str | None = None
        self._seen = self._changed = 0
        self._total: int | None = None
        self._conflicts: list[UniqueConflict] = []
        self._conflicted: set[str] = set()
        """Indexes that have conflicts; those that a crashed run has found included."""

    async def run(self, progress: Progress | None, *, restart: bool) -> Reindexed:
        await self._begin(restart=restart)
        while True:
            page: Page[Any] = await self._kv.list(
                self._schema.prefix,
                limit=PAGE_RECORDS,
                cursor=self._cursor,
                type=self._type,
                timeout=self._timeout,
            )
            await self._repair(page.entries)
            self._seen += len(page)
            self._cursor = page.cursor
            if page.complete:
                break
            await self._save(self._indexes, self._state())
            if progress is not None:
                await progress(self._report())
        await self._end()
        if progress is not None:
            await progress(self._report())
        return self._report()

    async def _begin(self, *, restart: bool) -> None:
        """Take up what a crashed run has left, if it was to do the same."""
        kv, schema = self._kv, self._schema
        await self._catalog.open(self._timeout)
        with suppress(DeadlineExceeded):
            count = await kv.list(
                schema.prefix, limit=1, keys_only=True, count=True, timeout=self._timeout
            )
            self._total = count.count
        entry = await kv.get(schema.catalog_key, type="json", timeout=self._timeout)
        if entry is not None:
            self._revision, self._indexes = entry.revision, entry.value["indexes"]
            left = entry.value["reindexing"]
            if left is not None and left["indexes"] == schema.definition() and not restart:
                self._cursor = left["cursor"]
                self._seen, self._changed = left["seen"], left["changed"]
                self._conflicted = set(left["conflicted"])
        await self._save(self._indexes, self._state())

    async def _repair(self, entries: Sequence[Entry[Any]]) -> None:
        """Write those again that are not found under what they should be."""
        differing = [entry.key for entry in entries if difference(self._schema, entry) is not None]
        try:
            async with asyncio.TaskGroup() as group:
                for key in differing:
                    group.create_task(self._write_again(key))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _write_again(self, key: str) -> None:
        """Until it has all its entries, or all but those that others have."""
        taken: set[IndexEntry] = set()
        wanted: list[Any] = []
        while True:
            try:
                await self._kv.transaction(timeout=self._timeout).run(
                    lambda txn: self._put_again(txn, key, taken, wanted)
                )
            except UniqueViolation as error:
                place = self._schema.taken(error, wanted[-1])
                if place is None:
                    raise
                taken.add(place.entry)
                self._note_conflict(place, key, error.owner)
            else:
                self._changed += bool(wanted)
                return

    async def _put_again(
        self, txn: "Transaction", key: str, taken: set[IndexEntry], wanted: list[Any]
    ) -> None:
        """Write the record as it is, with the entries it should have, but for those `taken`.

        The value is appended to `wanted` if there is something to write.
        """
        wanted.clear()
        stored = await txn.get(key, type="bytes")  # not a byte of the value is to change
        read = await txn.get(key, type=self._type)
        if stored is None or read is None:
            return
        entries = self._schema.entries(read.value, kept=stored.index_entries)
        entries = [entry for entry in entries if entry not in taken]
        if set(entries) == set(stored.index_entries):
            return
        wanted.append(read.value)
        txn.put(
            key,
            stored.value,
            keep_ttl=True,
            metadata=stored.metadata,
            index_entries=entries,
            type="bytes",
        )

    def _note_conflict(self, place: Place, key: str, owner: str) -> None:
        self._conflicted.add(place.index)
        self._conflicts.append(
            UniqueConflict(
                index=place.index,
                value=str(place.value),
                id=self._schema.id_of(key),
                owner=self._schema.id_of(owner),
            )
        )

    async def _end(self) -> None:
        """Say which indexes are complete, and forget those that are not defined any more."""
        indexes = {
            name: {**index, "complete": name not in self._conflicted}
            for name, index in self._schema.definition().items()
        }
        await self._save(indexes, None)
        self._catalog.know({"indexes": indexes, "reindexing": None})

    async def _save(self, indexes: dict[str, Any], state: dict[str, Any] | None) -> None:
        key = self._schema.catalog_key
        try:
            self._revision = await self._kv.put(
                key,
                {"indexes": indexes, "reindexing": state},
                revision=self._revision,
                type="json",
                timeout=self._timeout,
            )
        except Conflict as error:
            raise Conflict(
                f"{self._schema.name!r} is not reindexed by this run any more: another one has "
                "begun, or a program with other indexes has begun to write",
                check=error.check,
                key=key,
            ) from None

    def _state(self) -> dict[str, Any]:
        return {
            "indexes": self._schema.definition(),
            "cursor": self._cursor,
            "seen": self._seen,
            "changed": self._changed,
            "conflicted": sorted(self._conflicted),
        }

    def _report(self) -> Reindexed:
        return Reindexed(self._seen, self._total, self._changed, tuple(self._conflicts))


async def differences(kv: "KV", schema: Schema, type: Any) -> AsyncIterator[Difference]:
    """Look at every record."""
    async for entry in kv.scan(schema.prefix, page_size=PAGE_RECORDS, type=type):
        found = difference(schema, entry)
        if found is not None:
            yield found


def difference(schema: Schema, entry: Entry[Any]) -> Difference | None:
    """What is wrong with the index entries of a record, as it came from the store."""
    try:
        wanted = schema.entries(entry.value, kept=entry.index_entries)
    except Exception as error:
        error.add_note(f"the record is {schema.name} {schema.id_of(entry.key)!r}")
        raise
    missing = [one for one in wanted if one not in entry.index_entries]
    surplus = [one for one in entry.index_entries if one not in wanted]
    if not missing and not surplus:
        return None
    return Difference(schema.id_of(entry.key), schema.own(missing), schema.own(surplus))
