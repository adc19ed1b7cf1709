"""Writing many records: bounded, in order, and going on over a failover."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from kvorum import KV
from kvorum.cli import bulk
from kvorum.cli.records import Record
from kvorum.errors import (
    DeadlineExceeded,
    InvalidArgument,
    KvorumError,
    LimitExceeded,
    NoNodeReachable,
    OutcomeUnknown,
)
from tests.support.eventually import eventually

T = TypeVar("T")


class ScriptedStore:
    """A store whose puts take a while, and fail as a test tells them to."""

    def __init__(self, failures: Iterable[KvorumError] = ()) -> None:
        self.failures = list(failures)
        self.puts: list[str] = []
        self.written: list[tuple[str, bytes]] = []
        self.values: dict[str, bytes] = {}
        self.under_way = 0
        self.most_under_way = 0

    async def put(self, key: str, value: bytes, **options: object) -> int:
        nothing = {"ttl": None, "metadata": None, "index_entries": None}
        assert options == {"type": "bytes", **nothing}
        self.puts.append(key)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            # Puts overtake each other, as they may on a real stream.
            for _ in range(1 + len(self.puts) % 7):
                await asyncio.sleep(0)
            if self.failures:
                raise self.failures.pop(0)
            self.values[key] = value
            self.written.append((key, value))
        finally:
            self.under_way -= 1
        return len(self.puts)

    def as_kv(self) -> KV:
        return cast("KV", self)


async def stream(records: Iterable[Record], *, then: KvorumError | None = None) -> Any:
    for record in records:
        yield record
    if then is not None:
        raise then


def numbered(count: int) -> list[Record]:
    return [Record(f"k{number}", b"%d" % number) for number in range(count)]


async def write(store: ScriptedStore, records: Any, in_flight: int = 16) -> list[Record]:
    acknowledged: list[Record] = []
    await bulk.write_records(
        store.as_kv(), records, in_flight=in_flight, on_acknowledged=acknowledged.append
    )
    return acknowledged


async def test_every_record_is_written_and_reported_once() -> None:
    store, records = ScriptedStore(), numbered(500)
    acknowledged = await write(store, stream(records))
    assert sorted(acknowledged, key=str) == sorted(records, key=str)
    assert store.values == {record.key: record.value for record in records}


async def test_as_many_are_in_flight_as_was_asked_for_and_no_more() -> None:
    store = ScriptedStore()
    await write(store, stream(numbered(500)), in_flight=16)
    assert store.most_under_way == 16


async def test_records_of_one_key_are_written_in_their_order() -> None:
    store = ScriptedStore()
    records = [Record(f"k{number % 3}", b"%d" % number) for number in range(300)]
    await write(store, stream(records))
    for key in ("k0", "k1", "k2"):
        values = [int(value) for name, value in store.written if name == key]
        assert values == sorted(values)
    assert store.values == {"k0": b"297", "k1": b"298", "k2": b"299"}


@pytest.mark.parametrize(
    "failure",
    [
        OutcomeUnknown("the leader was lost"),
        DeadlineExceeded("time ran out", maybe_applied=True),
        NoNodeReachable("nobody", nodes=["a:1"]),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_put_in_doubt_is_repeated_until_it_is_acknowledged(failure: KvorumError) -> None:
    store = ScriptedStore([failure] * 40)
    acknowledged = await write(store, stream(numbered(100)))
    assert len(acknowledged) == 100
    assert len(store.puts) == 140


async def test_a_put_is_not_repeated_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "REPEAT_SECONDS", 0.0)
    with pytest.raises(OutcomeUnknown):
        await write(ScriptedStore([OutcomeUnknown("lost")] * 1000), stream(numbered(10)))


async def test_a_put_that_can_never_succeed_ends_it_and_leaves_nothing_under_way() -> None:
    store = ScriptedStore([LimitExceeded("too large", limit="X", maximum=1, actual=2)])
    with pytest.raises(LimitExceeded, match="too large"):
        await write(store, stream(numbered(500)))
    assert store.under_way == 0
    assert len(store.puts) < 500


async def test_what_came_before_a_malformed_line_is_written() -> None:
    store, records = ScriptedStore(), numbered(50)
    with pytest.raises(InvalidArgument, match="line 51"):
        await write(store, stream(records, then=InvalidArgument("line 51: not JSON")))
    assert len(store.values) == 50


async def collect(items: AsyncIterator[T], into: list[T]) -> None:
    async for item in items:
        into.append(item)  # noqa: PERF401 - what came before an error matters


async def test_a_malformed_line_is_named_by_its_number() -> None:
    async def lines() -> AsyncIterator[bytes]:
        yield b'{"key": "a", "value": 1}\n'
        yield b"oops\n"

    read: list[Record] = []
    with pytest.raises(InvalidArgument, match=r"^line 2: not JSON"):
        await collect(bulk.read_records(lines()), read)
    assert read == [Record("a", b"1")]


async def test_lines_are_read_to_the_last_even_without_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    expected = [b"%d\n" % number for number in range(100_000)] + [b"end"]
    path.write_bytes(b"".join(expected))
    read: list[bytes] = []
    source = path.open("rb")
    await collect(bulk.read_lines(source), read)
    assert read == expected
    await eventually(lambda: source.closed)


async def test_a_silent_pipe_can_be_given_up_at_any_time() -> None:
    reader, writer = os.pipe()
    source = os.fdopen(reader, "rb")
    waiting = asyncio.ensure_future(anext(bulk.read_lines(source)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.close(writer)
    await eventually(lambda: source.closed)


async def test_a_reader_that_is_far_ahead_ends_when_it_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"line\n" * 10 * bulk.READ_AHEAD_BLOCKS * bulk.BLOCK_BYTES)
    source = path.open("rb")
    lines = bulk.read_lines(source)
    assert await anext(lines) == b"line\n"
    await lines.aclose()
    await eventually(lambda: source.closed)


async def test_an_error_of_the_disk_is_raised_to_the_reader(tmp_path: Path) -> None:
    source = (tmp_path / "written").open("wb")
    with pytest.raises(OSError, match="read"):
        await collect(bulk.read_lines(source), [])
    await eventually(lambda: source.closed)
