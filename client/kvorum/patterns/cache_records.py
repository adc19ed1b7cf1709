"""What a cache keeps in the store, and each round trip that reads or writes it.

    cache:NAME:e:KEY    an entry: the value; its metadata is JSON with the generation of each of its
                        tags as it was captured, and whether it is stale at its end
    cache:NAME:f:KEY    null: such an entry is fresh yet
    cache:NAME:t:TAG    null; the generation of a tag is the revision of this record, 0 if absent
    cache:NAME:l:KEY    null: a lease, somebody computes the value

KEY and TAG are escaped. Rules of this file:

- To invalidate a tag is to put its record anew. An entry is good if none of its tags has another
  generation than the captured one.
- Generations are captured with the lease, before a computation begins, and its value is stored
  only if they, and the lease, are what they were. `set` and `delete` take the lease away. So
  nothing from before any of them is stored after it, however slow the computation was.
- A tag's record lives as long as an entry may (`max_ttl`), and a lease no longer. So a tag without
  a record was not invalidated in the lifetime of any entry, nor since any lease was taken.
- What time it is, is said by the store: something is over if its record is absent.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from kvorum import keys, limits
from kvorum.atomic import Atomic
from kvorum.codecs import Codec, ValueType, codec_of, decode_value
from kvorum.durations import Duration, to_seconds
from kvorum.entry import Entry
from kvorum.errors import (
    Compacted,
    Conflict,
    DecodeError,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
)
from kvorum.kv import KV

T = TypeVar("T")

REMEMBERED_KEYS: Final = 10_000
"""Of how many entries a cache remembers what has to be read along with them."""


class Writes(Protocol):
    """What `kv.atomic()` and `kv.transaction()` give: something to put into."""

    def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: Duration | None = None,
        type: Literal["json"] | None = None,
    ) -> object:
        """Like `KV.put`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a value is to be stored."""

    key: str
    tags: tuple[str, ...]
    ttl_ms: int
    """For how long it is fresh."""
    stale_ms: int
    """For how long it may be served after that."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """What one read has found, at one revision."""

    revision: int
    entry_revision: int
    """Of the entry as it is stored, whether it is good or not; 0 if there is none."""
    entry: Entry[T] | None
    """The entry, if its value is of the type."""
    is_valid: bool
    """It is there, and no tag of it was invalidated since."""
    is_fresh: bool
    """It is valid, and its time is not over."""
    lease_seconds: float | None
    """For how long somebody else may compute the value, at most; None if nobody does."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Leave to compute a value, which nobody else has meanwhile."""

    revision: int
    generations: Mapping[str, int]
    """Of each tag of the value, when the lease was taken."""


class _Metadata(NamedTuple):
    """What is kept beside a value."""

    captured: Mapping[str, int]
    """The generation of each tag when the computation began."""
    turns_stale: bool

    def encode(self) -> bytes:
        written: dict[str, Any] = {}
        if self.captured:
            written["tags"] = self.captured
        if self.turns_stale:
            written["stale"] = True
        return json.dumps(written, separators=(",", ":")).encode() if written else b""

    @classmethod
    def of(cls, entry: Entry[Any] | None) -> "_Metadata":
        written = {} if entry is None or not entry.metadata else json.loads(entry.metadata)
        return cls(written.get("tags", {}), written.get("stale", False))


class Records(Generic[T]):
    """The records of one cache."""

    def __init__(
        self, kv: KV, name: str, *, max_ttl_ms: int, lease_ms: int, type: ValueType | None
    ) -> None:
        self._kv = kv
        self._name = name
        self._max_ttl_seconds = to_seconds(max_ttl_ms)
        self._lease_seconds = to_seconds(lease_ms)
        self._codec: Codec[T] = codec_of(kv.value_type if type is None else type)
        self._remembered: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        """By key, the other records that say whether its entry is good, as it was seen last."""

    async def look(self, key: str, tags: Iterable[str], timeout: float | None) -> Seen[T]:
        """Read an entry, and what says whether it is good.

        What that is, is known when the entry was read: so it takes a second round trip, if this
        is neither remembered nor among the tags.
        """
        known = dict.fromkeys((*map(self._tag, tags), *self._remembered.get(key, ())))
        while True:
            reading = self._kv.atomic().get(self._entry(key), type="bytes")
            reading.get(self._lease(key), type="json")
            for other in known:
                reading.get(other, type="json")
            result = await reading.commit(timeout=timeout)
            stored, lease, *others = result.results
            metadata = _Metadata.of(stored)
            needed = [self._tag(tag) for tag in metadata.captured]
            if metadata.turns_stale:
                needed.append(self._fresh(key))
            if known.keys() >= set(needed):
                break
            known |= dict.fromkeys(needed)
        self._remember(key, tuple(needed))
        found = dict(zip(known, map(_generation, others), strict=True))
        entry = self._decode(stored)
        is_valid = entry is not None and all(
            found[self._tag(tag)] in (0, then) for tag, then in metadata.captured.items()
        )
        return Seen(
            revision=result.revision,
            entry_revision=_generation(stored),
            entry=entry,
            is_valid=is_valid,
            is_fresh=is_valid and (not metadata.turns_stale or found[self._fresh(key)] != 0),
            lease_seconds=_length_seconds(lease),
        )

    async def acquire(self, plan: Plan, seen: Seen[T], timeout: float | None) -> Lease:
        """Take the lease. `Conflict` if another one has it, or the entry is not what was seen."""
        taking = self._kv.atomic().check(self._entry(plan.key), revision=seen.entry_revision)
        taking.check(self._lease(plan.key), exists=False)
        taking.put(self._lease(plan.key), None, ttl=self._lease_seconds, type="json")
        result = await self._read_tags(taking, plan.tags).commit(timeout=timeout)
        return Lease(result.revision, _generations(plan.tags, result.results[1:]))

    async def fill(self, plan: Plan, value: T, lease: Lease, timeout: float | None) -> bool:
        """Store the value and give the lease back, if that and the tags are what they were."""
        filling = self._kv.atomic().check(self._lease(plan.key), revision=lease.revision)
        for tag, generation in lease.generations.items():
            filling.check(self._tag(tag), revision=generation)
        self._put_entry(filling, plan, value, lease.generations).delete(self._lease(plan.key))
        try:
            await filling.commit(timeout=timeout)
        except Conflict:
            return False
        return True

    async def release(self, key: str, lease: Lease, timeout: float | None) -> None:
        """Give the lease back without a value."""
        try:
            await self._kv.delete(self._lease(key), revision=lease.revision, timeout=timeout)
        except KvorumError:
            return  # it is not ours any more, or else it comes to its end by itself

    async def await_release(self, key: str, since: int, seconds: float) -> None:
        """Return when the lease may be over: then the store has to be asked."""
        watch = self._kv.watch(key=self._lease(key), since=since, puts=False, keys_only=True)
        try:
            async with asyncio.timeout(seconds), watch:
                await anext(watch)
        except (TimeoutError, Compacted):
            return

    async def set(self, plan: Plan, value: T, timeout: float | None) -> bool:
        """Store a value; if one of its tags is invalidated meanwhile, remove the entry instead."""
        writing = self._kv.atomic()
        generations: dict[str, int] = {}
        if plan.tags:
            read = await self._read_tags(self._kv.atomic(), plan.tags).commit(timeout=timeout)
            generations = _generations(plan.tags, read.results)
            for tag in plan.tags:
                writing.check(self._tag(tag), unchanged_since=read.revision)
        self._put_entry(writing, plan, value, generations).delete(self._lease(plan.key))
        writing.otherwise().delete(self._entry(plan.key)).delete(self._lease(plan.key))
        return (await writing.commit(timeout=timeout)).succeeded

    async def delete(self, key: str, timeout: float | None) -> bool:
        deleting = self._kv.atomic().delete(self._entry(key)).delete(self._lease(key))
        deleted: bool = (await deleting.commit(timeout=timeout)).results[0]
        return deleted

    def invalidate_in(self, writes: Writes, tags: Iterable[str]) -> None:
        for tag in tags:
            writes.put(self._tag(tag), None, ttl=self._max_ttl_seconds, type="json")

    def _read_tags(self, reading: Atomic, tags: Iterable[str]) -> Atomic:
        for tag in tags:
            reading.get(self._tag(tag), type="json")
        return reading

    def _put_entry(
        self, writing: Atomic, plan: Plan, value: T, generations: Mapping[str, int]
    ) -> Atomic:
        if plan.stale_ms:
            writing.put(self._fresh(plan.key), None, ttl=to_seconds(plan.ttl_ms), type="json")
        return writing.put(
            self._entry(plan.key),
            value,
            ttl=to_seconds(plan.ttl_ms + plan.stale_ms),
            metadata=_Metadata(generations, plan.stale_ms > 0).encode(),
            type=self._codec,
        )

    def _decode(self, stored: Entry[Any] | None) -> Entry[T] | None:
        """One of another type is none: a new version of a program begins with an empty cache."""
        if stored is None:
            return None
        try:
            return replace(stored, value=decode_value(stored.value, self._codec, stored.key))
        except DecodeError:
            return None

    def _remember(self, key: str, others: tuple[str, ...]) -> None:
        self._remembered.pop(key, None)
        if others:
            self._remembered[key] = others
            if len(self._remembered) > REMEMBERED_KEYS:
                self._remembered.popitem(last=False)

    def _entry(self, key: str) -> str:
        return f"cache:{self._name}:e:{keys.escape(key)}"

    def _fresh(self, key: str) -> str:
        return f"cache:{self._name}:f:{keys.escape(key)}"

    def _tag(self, tag: str) -> str:
        return f"cache:{self._name}:t:{keys.escape(tag)}"

    def _lease(self, key: str) -> str:
        return f"cache:{self._name}:l:{keys.escape(key)}"


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Each of them once. A caller without a type checker may give anything."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidArgument(f"tags are several: give [{tags!r}], not {tags!r}")
    checked = tuple(tags)
    for tag in checked:
        keys.escape(tag)
    return tuple(dict.fromkeys(checked))


def check_room(key: str, tags: Iterable[str]) -> None:
    """Raise `LimitExceeded` if so many tags are not kept beside a value, whatever generations."""
    size = len(_Metadata(dict.fromkeys(tags, limits.MAX_INTEGER), turns_stale=True).encode())
    if size > limits.MAX_METADATA_BYTES:
        raise LimitExceeded(
            f"the tags of {key!r} take {size:,} bytes; at most {limits.MAX_METADATA_BYTES:,} are "
            "allowed: use fewer or shorter ones",
            limit="MAX_METADATA_BYTES",
            maximum=limits.MAX_METADATA_BYTES,
            actual=size,
        )


def _generations(tags: Iterable[str], records: Iterable[Entry[Any] | None]) -> dict[str, int]:
    return dict(zip(tags, map(_generation, records), strict=True))


def _generation(record: Entry[Any] | None) -> int:
    return 0 if record is None else record.revision


def _length_seconds(lease: Entry[Any] | None) -> float | None:
    if lease is None or lease.expires_at is None:
        return None
    return (lease.expires_at - lease.updated_at).total_seconds()
