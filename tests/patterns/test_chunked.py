"""What is larger than a value: whole at every moment, and nothing left behind."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvorum import (
    KV,
    Compacted,
    DeadlineExceeded,
    DecodeError,
    InvalidArgument,
    LimitExceeded,
    limits,
)
from kvorum.patterns import chunked
from tests.support.compaction import compact
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.round_trips import RoundTrips


def some_bytes(size: int, seed: int = 0) -> bytes:
    return bytes((number * 7 + number // 251 + seed) % 256 for number in range(size))


async def parts_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def chunks_in(kv: KV) -> set[str]:
    return {entry.key async for entry in kv.scan("chunk:", keys_only=True)}


def chunks_of(head: chunked.Head | None) -> set[str]:
    assert head is not None
    return set(chunked._chunks("a", head))


async def part_by_part(kv: KV, key: str) -> list[bytes]:
    return [part async for part in chunked.read(kv, key)]


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 300, 1234])
async def test_what_was_written_is_read(kv: KV, size: int) -> None:
    data = some_bytes(size)
    await chunked.put(kv, "a", data, chunk_bytes=100)
    assert await chunked.get(kv, "a") == data
    for part_bytes in (1, 70, 100, 250):
        await chunked.put(kv, "b", parts_of(data, part_bytes), chunk_bytes=100)
        parts = await part_by_part(kv, "b")
        assert b"".join(parts) == data
        assert [len(part) for part in parts[:-1]] == [100] * (size // 100 - (size % 100 == 0))
    head = await chunked.head(kv, "b")
    assert head is not None
    assert (head.size_bytes, head.chunks) == (size, -(-size // 100))


async def test_beyond_the_limit_of_a_value(kv: KV) -> None:
    block = some_bytes(limits.MIB)
    data = b"".join(block[number:] + block[:number] for number in range(30))
    assert len(data) > limits.MAX_VALUE_BYTES
    await chunked.put(kv, "video:1", data)
    assert await chunked.get(kv, "video:1") == data
    head = await chunked.head(kv, "video:1")
    assert head is not None
    assert head.chunks == 30
    assert await chunked.delete(kv, "video:1") is True


async def test_what_it_costs(kv: KV, round_trips: RoundTrips) -> None:
    round_trips.reset()
    await chunked.put(kv, "a", some_bytes(250), chunk_bytes=100)
    assert round_trips.count == 3 + 3
    round_trips.reset()
    await chunked.get(kv, "a")
    assert round_trips.count == 1 + 3
    round_trips.reset()
    await chunked.head(kv, "a")
    assert round_trips.count == 1
    round_trips.reset()
    await anext(chunked.read(kv, "a"))
    assert round_trips.count == 2
    round_trips.reset()
    await chunked.delete(kv, "a")
    assert round_trips.count == 2


async def test_a_stream_is_taken_as_fast_as_it_is_written(kv: KV) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(10):
            assert len(await chunks_in(kv)) >= number - 1, "more than a chunk is held"
            yield some_bytes(100, number)

    await chunked.put(kv, "a", parts(), chunk_bytes=100)
    assert len(await part_by_part(kv, "a")) == 10


async def test_an_absent_key(kv: KV) -> None:
    assert await chunked.get(kv, "a") is None
    assert await chunked.head(kv, "a") is None
    assert await part_by_part(kv, "a") == []
    assert await chunked.delete(kv, "a") is False
    await chunked.put(kv, "a", b"")
    assert await chunked.get(kv, "a") == b""
    assert await chunked.delete(kv, "a") is True
    assert await chunked.get(kv, "a") is None


@pytest.mark.parametrize("how", ["overwritten", "shortened", "deleted"])
async def test_a_reader_in_the_middle_has_the_old_whole(kv: KV, how: str) -> None:
    old = some_bytes(1000)
    await chunked.put(kv, "a", old, chunk_bytes=100)
    reading = chunked.read(kv, "a")
    parts = [await anext(reading)]
    if how == "deleted":
        await chunked.delete(kv, "a")
    else:
        new = some_bytes(1000 if how == "overwritten" else 5, seed=1)
        await chunked.put(kv, "a", new, chunk_bytes=100)
        assert await chunked.get(kv, "a") == new
    parts += [part async for part in reading]
    assert b"".join(parts) == old


async def test_a_reader_whom_history_has_left_is_told(kv: KV) -> None:
    await chunked.put(kv, "a", some_bytes(300), chunk_bytes=100)
    reading = chunked.read(kv, "a")
    await anext(reading)
    await compact(kv, await chunked.put(kv, "a", some_bytes(300, 1), chunk_bytes=100))
    with pytest.raises(Compacted):
        await anext(reading)
    assert await chunked.get(kv, "a") == some_bytes(300, 1)


async def test_what_was_replaced_goes(kv: KV) -> None:
    await chunked.put(kv, "a", some_bytes(500), chunk_bytes=100)
    await chunked.put(kv, "a", some_bytes(300, 1), chunk_bytes=100)
    expected = chunks_of(await chunked.head(kv, "a"))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await chunks_in(kv) != expected:  # noqa: ASYNC110 - log time has to pass
            await asyncio.sleep(0.01)
    assert {await kv.ttl(chunk) for chunk in expected} == {None}
    await chunked.delete(kv, "a")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await chunks_in(kv):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert [entry.key for entry in await kv.list()] == []


async def test_a_writer_that_fails_has_changed_nothing(kv: KV) -> None:
    old = some_bytes(250)
    await chunked.put(kv, "a", old, chunk_bytes=100)
    kept = await chunks_in(kv)

    async def parts() -> AsyncIterator[bytes]:
        yield some_bytes(300, 1)
        raise ConnectionResetError("the upload was cut")

    with pytest.raises(ConnectionResetError):
        await chunked.put(kv, "a", parts(), chunk_bytes=100, within=500)
    assert await chunked.get(kv, "a") == old
    left = await chunks_in(kv) - kept
    assert len(left) == 3
    for chunk in left:
        assert 0 < (await kv.ttl(chunk) or 0) <= 500


async def test_a_write_that_takes_too_long_has_changed_nothing(kv: KV) -> None:
    old = some_bytes(250)
    await chunked.put(kv, "a", old, chunk_bytes=100)
    kept = await chunks_in(kv)

    async def parts() -> AsyncIterator[bytes]:
        yield some_bytes(150, 1)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await chunks_in(kv) != kept:  # noqa: ASYNC110 - log time has to pass
                await asyncio.sleep(0.01)
        yield some_bytes(150, 1)

    with pytest.raises(DeadlineExceeded, match="'a' took longer") as caught:
        await chunked.put(kv, "a", parts(), chunk_bytes=100, within=0.2)
    assert not caught.value.maybe_applied
    assert await chunked.get(kv, "a") == old


async def test_many_writers_leave_one_whole(kv: KV) -> None:
    written = {some_bytes(450, seed) for seed in range(8)}
    await asyncio.gather(*(chunked.put(kv, "a", data, chunk_bytes=100) for data in written))
    assert await chunked.get(kv, "a") in written
    expected = chunks_of(await chunked.head(kv, "a"))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await chunks_in(kv) != expected:  # noqa: ASYNC110 - log time has to pass
            await asyncio.sleep(0.01)


async def test_a_time_to_live_is_of_all_of_it(kv: KV) -> None:
    await chunked.put(kv, "a", some_bytes(250), chunk_bytes=100, ttl=300)
    ends = {entry.expires_at async for entry in kv.scan("chunk", type="bytes") if entry.expires_at}
    assert len(ends) == 1
    assert len(await kv.list("chunk", type="bytes")) == 4
    await chunked.put(kv, "a", some_bytes(250), chunk_bytes=100)
    assert {await kv.ttl(chunk) for chunk in chunks_of(await chunked.head(kv, "a"))} == {None}


async def test_damage_is_found(kv: KV) -> None:
    await chunked.put(kv, "a", some_bytes(250), chunk_bytes=100)
    names = sorted(chunks_of(await chunked.head(kv, "a")))
    await kv.put(names[1], bytes(100), type="bytes")
    reading = chunked.read(kv, "a")
    assert [len(await anext(reading)) for _ in range(2)] == [100, 100]
    with pytest.raises(DecodeError, match="'a' is not what was written: the checksum") as caught:
        await anext(reading)
    assert caught.value.key == "a"
    for damage in (kv.delete(names[0]), kv.put(names[0], b"", type="bytes")):
        await damage
        with pytest.raises(DecodeError, match="chunk 0 of 3 is missing, or has another size"):
            await chunked.get(kv, "a")
    await kv.put("chunked:a", {"generation": 1})
    with pytest.raises(DecodeError, match="'chunked:a' is not valid as the head of chunks"):
        await chunked.get(kv, "a")


async def test_bad_input_writes_nothing(kv: KV, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "MAX_CHUNKS", 20)

    async def text() -> AsyncIterator[Any]:
        yield "text"

    data: Any
    for data in ("text", None, [b"a"]):
        with pytest.raises(InvalidArgument, match="the data of 'a' is bytes or an async iterable"):
            await chunked.put(kv, "a", data)
    for chunk_bytes in (0, chunked.MAX_CHUNK_BYTES + 1, "1"):
        wrong: Any = chunk_bytes
        with pytest.raises(InvalidArgument, match="chunk_bytes is an int"):
            await chunked.put(kv, "a", b"a", chunk_bytes=wrong)
    with pytest.raises(InvalidArgument):
        await chunked.put(kv, "", b"a")
    with pytest.raises(InvalidArgument):
        await chunked.put(kv, "a", b"a", ttl=-1)
    with pytest.raises(LimitExceeded, match="larger chunk_bytes") as caught:
        await chunked.put(kv, "a", bytes(chunked.MAX_CHUNKS + 1), chunk_bytes=1)
    assert caught.value.metadata["actual"] == str(chunked.MAX_CHUNKS + 1)
    assert len(await kv.list()) == 0
    with pytest.raises(InvalidArgument, match="the data of 'a' is bytes"):
        await chunked.put(kv, "a", text())
    with pytest.raises(LimitExceeded):
        await chunked.put(kv, "a", parts_of(bytes(chunked.MAX_CHUNKS + 1), 99), chunk_bytes=1)
    assert await chunked.get(kv, "a") is None


async def test_as_many_chunks_as_there_may_be_are_switched_at_once(memory: KV) -> None:
    kv = memory
    for seed in range(2):
        data = some_bytes(chunked.MAX_CHUNKS, seed)
        await chunked.put(kv, "a", data, chunk_bytes=1)
        assert await chunked.get(kv, "a") == data


async def test_any_text_is_a_key(kv: KV) -> None:
    await chunked.put(kv, "a:b", b"one")
    await chunked.put(kv, "a", b"two")
    await chunked.put(kv, "ü%/ ", b"three")
    assert await chunked.get(kv, "a:b") == b"one"
    assert await chunked.get(kv, "ü%/ ") == b"three"
    await chunked.delete(kv, "a")
    assert await chunked.get(kv, "a:b") == b"one"


@pytest.mark.parametrize("wrong", [{"within": None}, {"within": "1"}, {"chunk_bytes": True}])
async def test_what_no_write_can_have_is_refused(kv: KV, wrong: dict[str, Any]) -> None:
    """Without an end to its time, what a crashed writer leaves would stay."""
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        await chunked.put(kv, "k", b"data", **wrong)
    assert (await kv.list("chunk", keys_only=True)).entries == ()


async def test_a_key_that_is_too_long_for_its_chunks_is_refused_at_once(kv: KV) -> None:
    with pytest.raises(LimitExceeded):
        await chunked.put(kv, "k" * (limits.MAX_KEY_BYTES - len("chunked-write:")), b"data")
    assert (await kv.list("chunk", keys_only=True)).entries == ()


async def test_a_slow_reader_of_what_stays_needs_no_history(kv: KV) -> None:
    await chunked.put(kv, "a", some_bytes(300), chunk_bytes=100)
    reading = chunked.read(kv, "a")
    parts = [await anext(reading)]
    await kv.put("other", 1)
    await compact(kv, await kv.put("other", 2))
    parts += [part async for part in reading]
    assert b"".join(parts) == some_bytes(300)
