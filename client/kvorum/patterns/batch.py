"""Many keys at a time: all at once, or as many as there are.

    batch_get       the entries of up to 1,024 keys, at one revision
    batch_put       writes items, batch_delete removes keys:
                      atomic    all or nothing, at one revision, up to a transaction's limit
                      in bulk   any number, in chunks, several of which are under way

Writes no keys but those it is given.

How bulk works: items are gathered into chunks, and each chunk is one transaction. So many
chunks are under way at a time; what comes meanwhile makes the next ones, and what is there
while nothing is under way is sent at once. If an item of a chunk cannot be written, the chunk is
halved until that item is alone. Chunks are settled in the order of their items: so what was
told as done has no gap, and the number of it is where to go on.

Rules of this file: items with the same key are written in their order. What is in memory is what
is under way. An item's own failure is a result; what stops the rest is raised.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar, cast, overload

from kvorum import limits
from kvorum.arguments import check_count
from kvorum.atomic import Atomic
from kvorum.codecs import Key, Typed, ValueType, codec_of, decode_key, encode_key, encode_value
from kvorum.durations import Duration
from kvorum.entry import Entry, IndexEntry
from kvorum.errors import (
    BatchInterrupted,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    OperationFailed,
)
from kvorum.kv import KV

T = TypeVar("T")

CHUNK_ITEMS: Final = 512
"""Few enough that the store remembers the answer of a chunk (MAX_REMEMBERED_RESULT_BYTES), should
it have to be sent again."""
CHUNK_BYTES: Final = 512 * limits.KIB
"""Half of what travels in one message. A larger item is a chunk alone."""
DEFAULT_IN_FLIGHT: Final = 8
MAX_IN_FLIGHT: Final = 64
MAX_KEPT_FAILURES: Final = 1_000
"""In a `BatchResult`, the first ones; `on_progress` is told of all."""


@dataclass(frozen=True, slots=True)
class Put:
    """An item to write that has more than a key and a value: what `KV.put` takes."""

    key: Key
    value: Any
    ttl: Duration | None = None
    metadata: bytes | None = None
    index_entries: tuple[IndexEntry, ...] | None = None


Item = tuple[Key, Any] | Put
Items = Mapping[str, Any] | Mapping[bytes, Any] | Iterable[Item] | AsyncIterable[Item]
Keys = Iterable[Key] | AsyncIterable[Key]


@dataclass(frozen=True, slots=True)
class BatchEntries(Generic[T]):
    """What `batch_get` has found."""

    revision: int
    """At which all were read."""

    entries: dict[str, Entry[T] | None]
    """Each key that was asked for, in that order; None if it is absent."""

    @property
    def found(self) -> dict[str, Entry[T]]:
        return {key: entry for key, entry in self.entries.items() if entry is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(key for key, entry in self.entries.items() if entry is None)


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item."""

    position: int
    """Its place among the items, from 0."""

    key: str

    changed: bool
    """It was written; of a delete: the key was there."""

    error: KvorumError | None = None
    """Why it could not be written; the others were."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch has come, and what has become of the items since it was last told."""

    done: int
    """So many items from the first on are settled: to go on from here, `skip` them."""

    failed: int
    """Of those of this run, so many could not be written."""

    results: tuple[ItemResult, ...]


@dataclass(slots=True)
class BatchResult:
    """What a batch has done."""

    done: int = 0
    """Items that are settled, those that were skipped included: all of them, at the end."""

    changed: int = 0
    """Items that were written; of deletes: keys that were there."""

    failed: int = 0
    """Items that could not be written."""

    failures: list[ItemResult] = field(default_factory=list)
    """These, and why; the first 1,000 of them."""

    revision: int = 0
    """The newest at which it wrote; 0 if it did not."""


OnProgress = Callable[[BatchProgress], Awaitable[object]]


@overload
async def batch_get(
    kv: KV, keys: Keys, *, type: Literal["text"], timeout: float | None = None
) -> BatchEntries[str]: ...


@overload
async def batch_get(
    kv: KV, keys: Keys, *, type: Literal["bytes"], timeout: float | None = None
) -> BatchEntries[bytes]: ...


@overload
async def batch_get(
    kv: KV, keys: Keys, *, type: Typed[T], timeout: float | None = None
) -> BatchEntries[T]: ...


@overload
async def batch_get(
    kv: KV, keys: Keys, *, type: ValueType | None = None, timeout: float | None = None
) -> BatchEntries[Any]: ...


async def batch_get(
    kv: KV, keys: Keys, *, type: ValueType | None = None, timeout: float | None = None
) -> BatchEntries[Any]:
    """Read the entries of up to 1,024 keys, all at one revision, in one round trip.

    `LimitExceeded` for more keys, before anything is sent, and `ResultTooLarge` for entries
    of more than `limits.MAX_RESULT_BYTES` together. What can be listed, is read by `KV.scan`.
    """
    wanted: dict[str, None] = {}
    atomic = kv.atomic()
    async for given in _iterate(keys):
        key = decode_key(encode_key(given))
        if key not in wanted:
            wanted[key] = None
            _check_limit("MAX_TRANSACTION_OPERATIONS", len(wanted), "keys")
            atomic.get(key, type=type)
    if not wanted:
        raise InvalidArgument("batch_get was given no keys")
    answer = await atomic.commit(timeout=timeout)
    return BatchEntries(answer.revision, dict(zip(wanted, answer.results, strict=True)))


async def batch_put(
    kv: KV,
    items: Items,
    *,
    atomic: bool = False,
    ttl: Duration | None = None,
    type: ValueType | None = None,
    skip: int = 0,
    in_flight: int = DEFAULT_IN_FLIGHT,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> BatchResult:
    """Write items: a mapping, or (async) iterable, of keys and values, or of `Put`.

    `atomic`: all of them at one revision, or none, in one round trip. `LimitExceeded` before
    anything is sent if they are more than `limits.MAX_TRANSACTION_OPERATIONS`, or come to more
    than `limits.MAX_TRANSACTION_BYTES`; raises like `KV.put`.

    Otherwise in bulk: any number, `in_flight` chunks of up to 512 at a time, each item by
    itself. One that cannot be written, as its value is not of the `type` or another record has
    its unique index value, is among the `failures`, and the others are written. `on_progress` is
    awaited with a `BatchProgress` for each chunk, in the order of the items. What stops the whole
    (no leader until the `timeout`, which is that of a chunk; a full disk) is raised as
    `BatchInterrupted`, whose `done` is to be given to `skip` to go on. What the items raise
    themselves is raised once those before it are written.

    `skip` leaves out so many items. What was under way when a batch ended may be written or not,
    and is written again by the next one: let no one else write these keys meanwhile.
    """
    codec = codec_of(kv.value_type if type is None else type)

    def encode(position: int, given: Item) -> _Item:
        put = given if isinstance(given, Put) else Put(*_pair(given))
        key, value = encode_key(put.key), encode_value(put.value, codec, put.key)
        size = len(key) + len(value) + _size_beside(put)

        def write(atomic: Atomic) -> None:
            atomic.put(
                key,
                value,
                ttl=ttl if put.ttl is None else put.ttl,
                metadata=put.metadata,
                index_entries=put.index_entries,
                type="bytes",
            )

        return _Item(position, decode_key(key), size, write)

    source = items.items() if isinstance(items, Mapping) else items
    batch = _Batch(
        kv, encode, skip=skip, in_flight=in_flight, on_progress=on_progress, timeout=timeout
    )
    return await (batch.at_once(source) if atomic else batch.in_bulk(source))


async def batch_delete(
    kv: KV,
    keys: Keys,
    *,
    atomic: bool = False,
    skip: int = 0,
    in_flight: int = DEFAULT_IN_FLIGHT,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> BatchResult:
    """Remove keys, like `batch_put`: `changed` counts those that were there.

    A whole prefix or range is removed by `KV.delete_range`, without its keys.
    """

    def encode(position: int, given: Key) -> _Item:
        key = encode_key(given)
        return _Item(position, decode_key(key), len(key), lambda atomic: atomic.delete(key))

    batch = _Batch(
        kv, encode, skip=skip, in_flight=in_flight, on_progress=on_progress, timeout=timeout
    )
    return await (batch.at_once(keys) if atomic else batch.in_bulk(keys))


@dataclass(slots=True)
class _Item:
    """An item on its way, and what becomes of it."""

    position: int
    key: str
    size: int
    write: Callable[[Atomic], object] | None
    """Puts it into a transaction; None if it cannot be written."""
    error: KvorumError | None = None
    changed: bool = False

    def fail(self, error: KvorumError) -> None:
        # The traceback would hold the value for as long as the result is kept.
        self.error = error.with_traceback(None)

    @property
    def result(self) -> ItemResult:
        return ItemResult(self.position, self.key, self.changed, self.error)


class _Chunk:
    """Items that share a transaction: each key once."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.keys: set[str] = set()
        self.size = 0

    def has_room_for(self, item: _Item) -> bool:
        return item.key not in self.keys and self.size + item.size <= CHUNK_BYTES

    def append(self, item: _Item) -> None:
        self.items.append(item)
        self.keys.add(item.key)
        self.size += item.size


class _Batch:
    """One call of `batch_put` or `batch_delete`."""

    def __init__(
        self,
        kv: KV,
        encode: Callable[[int, Any], _Item],
        *,
        skip: int,
        in_flight: int,
        on_progress: OnProgress | None,
        timeout: float | None,
    ) -> None:
        if not 1 <= check_count("in_flight", in_flight) <= MAX_IN_FLIGHT:
            raise InvalidArgument(f"in_flight is an int from 1 to {MAX_IN_FLIGHT}")
        self._kv = kv
        self._encode = encode
        self._skip = check_count("skip", skip)
        self._in_flight = in_flight
        self._on_progress = on_progress
        self._timeout = timeout
        self._result = BatchResult(done=skip)
        self._gathering = _Chunk()
        self._running: dict[asyncio.Task[None], _Chunk] = {}
        self._newest: asyncio.Task[None] | None = None

    async def at_once(self, source: Iterable[Any] | AsyncIterable[Any]) -> BatchResult:
        """All in one transaction, or none."""
        chunk = _Chunk()
        atomic = self._kv.atomic()
        async for position, given in self._unsettled(source):
            item = self._encode(position, given)
            chunk.append(item)
            _check_limit("MAX_TRANSACTION_OPERATIONS", len(chunk.items), "items")
            _check_limit("MAX_TRANSACTION_BYTES", chunk.size, "bytes")
            if item.write is not None:
                item.write(atomic)
        if chunk.items:
            await self._commit(atomic, chunk.items)
            await self._tell(chunk)
        return self._result

    async def in_bulk(self, source: Iterable[Any] | AsyncIterable[Any]) -> BatchResult:
        """Each item by itself, many of them under way."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                failure = await self._feed(source)
        except ExceptionGroup as failures:
            # The first one has ended the rest.
            cause = failures.exceptions[0]
            if not isinstance(cause, KvorumError):
                raise cause from None
            done = self._result.done
            raise BatchInterrupted(f"{cause} (skip={done} goes on)", done=done) from cause
        if failure is not None:
            raise failure
        return self._result

    async def _feed(self, source: Iterable[Any] | AsyncIterable[Any]) -> Exception | None:
        """Take all items, and return what the source has failed with."""
        failure = None
        try:
            async for position, given in self._unsettled(source):
                await self._take(self._encode_or_fail(position, given))
        except asyncio.CancelledError:
            self._gathering = _Chunk()  # or else the last of those under way would begin with it
            raise
        except Exception as error:  # noqa: BLE001 - of whatever kind, what came before it is written
            failure = error
        await self._send_when_there_is_room()
        return failure

    async def _unsettled(
        self, source: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncIterator[tuple[int, Any]]:
        position = 0
        async for given in _iterate(source):
            if position >= self._skip:
                yield position, given
            position += 1
        if position < self._skip:
            raise InvalidArgument(f"there are {position:,} items, and {self._skip:,} to skip")

    def _encode_or_fail(self, position: int, given: Any) -> _Item:
        try:
            return self._encode(position, given)
        except InvalidArgument as error:
            item = _Item(position, _name(given), 0, None)
            item.fail(error)
            return item

    async def _take(self, item: _Item) -> None:
        if not self._gathering.has_room_for(item):
            await self._send_when_there_is_room()
        self._gathering.append(item)
        if len(self._gathering.items) == CHUNK_ITEMS:
            await self._send_when_there_is_room()
        elif not self._running:
            self._send()

    async def _send_when_there_is_room(self) -> None:
        while len(self._running) >= self._in_flight:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        self._send()
        await asyncio.sleep(0)  # it leaves before the next one is gathered

    def _send(self) -> None:
        """Begin with what was gathered, if that is anything."""
        chunk = self._gathering
        if not chunk.items:
            return
        self._gathering = _Chunk()
        earlier = [
            task for task, other in self._running.items() if not other.keys.isdisjoint(chunk.keys)
        ]
        task = self._tasks.create_task(self._settle(chunk, earlier, self._newest))
        self._running[task] = chunk
        self._newest = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not self._running and not task.cancelled() and task.exception() is None:
            self._send()

    async def _settle(
        self,
        chunk: _Chunk,
        earlier: list[asyncio.Task[None]],
        before: asyncio.Task[None] | None,
    ) -> None:
        """Write a chunk, after those `earlier` ones that write its keys; tell it after `before`."""
        if earlier:
            await asyncio.wait(earlier)
        await self._write(chunk.items)
        if before is not None:
            await asyncio.wait([before])
        await self._tell(chunk)

    async def _write(self, items: list[_Item]) -> None:
        atomic = self._kv.atomic()
        sent = []
        for item in items:
            if item.write is not None:
                try:
                    item.write(atomic)
                except InvalidArgument as error:
                    item.fail(error)
                else:
                    sent.append(item)
        try:
            if sent:
                await self._commit(atomic, sent)
        except (OperationFailed, InvalidArgument) as error:
            if len(sent) == 1:
                sent[0].fail(error)
            else:
                middle = len(sent) // 2
                await self._write(sent[:middle])
                await self._write(sent[middle:])

    async def _commit(self, atomic: Atomic, items: list[_Item]) -> None:
        answer = await atomic.commit(timeout=self._timeout)
        for item, outcome in zip(items, answer.results, strict=True):
            item.changed = outcome is not False  # a put has its revision
        if any(item.changed for item in items):
            self._result.revision = max(self._result.revision, answer.revision)

    async def _tell(self, chunk: _Chunk) -> None:
        result = self._result
        failed = [item.result for item in chunk.items if item.error is not None]
        result.done = chunk.items[-1].position + 1
        result.changed += sum(item.changed for item in chunk.items)
        result.failed += len(failed)
        result.failures += failed[: MAX_KEPT_FAILURES - len(result.failures)]
        if self._on_progress is not None:
            results = tuple(item.result for item in chunk.items)
            await self._on_progress(BatchProgress(result.done, result.failed, results))


async def _iterate(source: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        async for one in source:
            yield one
    else:
        for one in source:
            yield one


def _size_beside(put: Put) -> int:
    """Of what a record has beside key and value."""
    try:
        entries = sum(len(one.index) + len(one.value) for one in put.index_entries or ())
        return len(put.metadata or b"") + entries
    except (AttributeError, TypeError):
        return 0  # it is refused when it is put into a transaction


def _pair(given: object) -> tuple[Key, Any]:
    match given:
        case (key, value):
            return cast("Key", key), value
        case _:
            raise InvalidArgument("an item is a pair of a key and a value, or a Put")


def _name(given: object) -> str:
    """The key of an item that is wrong, as far as there is one."""
    match given:
        case Put(key=key) | (key, _) | (str() | bytes() as key):
            return decode_key(key) if isinstance(key, bytes) else str(key)
        case _:
            return ""


def _check_limit(name: str, actual: int, what: str) -> None:
    maximum: int = getattr(limits, name)
    if actual > maximum:
        raise LimitExceeded(
            f"a batch at once has up to {maximum:,} {what}: leave out atomic=True, or split it",
            limit=name,
            maximum=maximum,
            actual=actual,
        )
