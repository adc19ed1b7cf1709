"""Which indexes of a collection can be trusted to find every record.

    collection:user    {"indexes": {"email": {"unique": true, "fields": ["email"],
                                              "complete": true}},
                        "reindexing": null, or how far that has come}

An index is complete if the collection was empty when it was first used with it, or if
`reindex` has come to its end. Every write by this definition keeps it so. Who begins to write by
another one, without the index, says here that it is not complete any more.

The catalog is read once, and not before each page: so a page by index costs one round trip.
"""

from typing import TYPE_CHECKING, Any

from kvorum.entry import Entry
from kvorum.errors import Conflict, IndexIncomplete
from kvorum.patterns.indexes import Schema

if TYPE_CHECKING:
    from kvorum.kv import KV


class Catalog:
    """What one program knows of the indexes of a collection."""

    def __init__(self, kv: "KV", schema: Schema) -> None:
        self._kv = kv
        self._schema = schema
        self._is_open = False
        self._complete: set[str] = set()

    async def open(self, timeout: float | None) -> None:
        """Before the first write: say what it does not keep complete, or lets nobody complete."""
        while not self._is_open:
            entry = await self._read(timeout)
            if entry is not None:
                kept = self._kept(entry.value)
                if kept != entry.value:
                    try:
                        await self._kv.put(
                            entry.key, kept, revision=entry.revision, type="json", timeout=timeout
                        )
                    except Conflict:
                        continue
            self._is_open = True

    async def require(self, index: str, timeout: float | None) -> None:
        """Raise `IndexIncomplete` if the index may lack a record."""
        if index in self._complete:
            return
        await self._read(timeout)
        if index not in self._complete:
            name = self._schema.name
            raise IndexIncomplete(
                f"the index {index!r} of {name!r} does not have every record: reindex it first",
                collection=name,
                index=index,
            )

    def know(self, catalog: dict[str, Any]) -> None:
        """Take over what the store says, or was told."""
        indexes = self._kept(catalog)["indexes"]
        self._complete = {name for name, index in indexes.items() if index["complete"]}

    async def _read(self, timeout: float | None) -> Entry[Any] | None:
        """Read the catalog. If there is none, there is one afterwards if there are no records."""
        kv, key = self._kv, self._schema.catalog_key
        entry = await kv.get(key, type="json", timeout=timeout)
        if entry is None:
            definition = self._schema.definition()
            indexes = {name: {**index, "complete": True} for name, index in definition.items()}
            catalog = {"indexes": indexes, "reindexing": None}
            empty = kv.atomic().check_range(self._schema.prefix, exists=False)
            empty.check(key, exists=False).put(key, catalog, type="json")
            try:
                await empty.commit(timeout=timeout)
            except Conflict:  # it has records, or another program was faster
                entry = await kv.get(key, type="json", timeout=timeout)
            else:
                self.know(catalog)
                return None
        self.know({"indexes": {}, "reindexing": None} if entry is None else entry.value)
        return entry

    def _kept(self, catalog: dict[str, Any]) -> dict[str, Any]:
        """What is left of the catalog when this program writes."""
        definition = self._schema.definition()
        indexes = {}
        for name, index in catalog["indexes"].items():
            same = definition.get(name) == {"unique": index["unique"], "fields": index["fields"]}
            indexes[name] = {**index, "complete": index["complete"] and same}
        reindexing = catalog["reindexing"]
        if reindexing is not None and reindexing["indexes"] != definition:
            reindexing = None
        return {"indexes": indexes, "reindexing": reindexing}
