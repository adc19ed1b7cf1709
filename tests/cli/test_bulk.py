"""Records of files and pipes: read ahead by a bounded amount, and written in bulk, in order."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import kvorum
from kvorum import KV
from kvorum.cli import bulk
from kvorum.cli.records import Record
from kvorum.errors import InvalidArgument, KvorumError, LimitExceeded
from tests.support.eventually import eventually

T = TypeVar("T")


async def stream(records: Iterable[Record], *, then: KvorumError | None = None) -> Any:
    for record in records:
        yield record
    if then is not None:
        raise then


def numbered(count: int) -> list[Record]:
    return [Record(f"k{number % 700}", b"%d" % number) for number in range(count)]


@pytest.fixture
async def kv() -> AsyncIterator[KV]:
    async with kvorum.open("memory:", type="bytes") as kv:
        yield kv


async def write(kv: KV, records: Any) -> list[Record]:
    acknowledged: list[Record] = []
    await bulk.write_records(kv, records, in_flight=4, on_acknowledged=acknowledged.append)
    return acknowledged


async def content(kv: KV) -> dict[str, bytes]:
    return {entry.key: entry.value async for entry in kv.scan()}


async def test_every_record_is_written_and_reported_once_in_order(kv: KV) -> None:
    records = numbered(3000)
    assert await write(kv, stream(records)) == records
    assert await content(kv) == {record.key: record.value for record in records}


async def test_a_record_that_can_never_be_written_ends_it(kv: KV) -> None:
    records = [*numbered(600), Record("k" * 10_000, b""), *numbered(600)]
    with pytest.raises(LimitExceeded, match="10000 bytes; at most 8192"):
        await write(kv, stream(records))
    assert len(await content(kv)) >= 600


async def test_what_came_before_a_malformed_line_is_written(kv: KV) -> None:
    with pytest.raises(InvalidArgument, match="line 51"):
        await write(kv, stream(numbered(50), then=InvalidArgument("line 51: not JSON")))
    assert len(await content(kv)) == 50


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
