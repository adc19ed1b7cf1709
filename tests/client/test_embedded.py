"""The stores in this process, through the public interface."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import kvorum
from kvorum import (
    KV,
    Closed,
    Conflict,
    DecodeError,
    IntegerOverflow,
    InvalidArgument,
    InvalidCursor,
    LimitExceeded,
    NotAnInteger,
    limits,
)


@pytest.fixture(params=["memory", "directory"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KV]:
    target = "memory:" if request.param == "memory" else tmp_path / "data"
    async with kvorum.open(target) as store:
        yield store


async def test_put_get_delete(kv: KV) -> None:
    first = await kv.put("a", {"x": [1, None]})
    second = await kv.put("a", "two")
    entry = await kv.get("a")
    assert entry is not None
    assert entry == kvorum.Entry("a", "two", second, first, 2, entry.updated_at)
    assert await kv.delete("a") is True
    assert await kv.delete("a") is False
    assert await kv.get("a") is None


async def test_what_is_too_much_at_once_has_its_turn(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many that delete large values, or read in transactions, at the same time."""
    monkeypatch.setattr(limits, "MAX_ENTRY_REPLACED_BYTES", 2_500)
    keys = [f"k{number}" for number in range(4 * limits.MAX_READING_TRANSACTIONS)]
    await asyncio.gather(*(kv.put(key, "v" * 1_000) for key in keys))
    await asyncio.gather(*(kv.atomic().list("k", limit=1).touch(key, 60).commit() for key in keys))
    assert all(await asyncio.gather(*(kv.delete(key) for key in keys)))
    assert not (await kv.list()).entries


async def test_types(kv: KV) -> None:
    await kv.put("text", "ü", type="text")
    await kv.put("bytes", b"\xff", type="bytes")
    text, data = await kv.get("text", type="text"), await kv.get("bytes", type="bytes")
    assert text is not None
    assert data is not None
    assert (text.value, data.value) == ("ü", b"\xff")
    with pytest.raises(DecodeError, match="'bytes' is not valid as json"):
        await kv.get("bytes")
    with pytest.raises(InvalidArgument, match="'xml'"):
        await kv.get("text", type="xml")  # type: ignore[call-overload]  # what is tested


async def test_the_type_of_a_store(tmp_path: Path) -> None:
    async with kvorum.open("memory:", type="bytes") as kv:
        await kv.put(b"\xff", b"v")
        entry = await kv.get(b"\xff")
        assert entry is not None
        assert (entry.key, entry.value) == ("\udcff", b"v")
        assert (await kv.get(entry.key)) == entry
        result = await kv.atomic().put("b", b"w").get("b").commit()
        assert result.results[1].value == b"w"


async def test_list_page_by_page(kv: KV) -> None:
    await asyncio.gather(*(kv.put(f"p:{i:02}", i) for i in range(10)), kv.put("q", 1))
    page = await kv.list("p:", limit=4)
    assert ([entry.value for entry in page], page.complete) == ([0, 1, 2, 3], False)
    page = await kv.list("p:", limit=6, cursor=page.cursor)
    assert ([entry.value for entry in page], page.complete) == ([4, 5, 6, 7, 8, 9], True)
    assert page.cursor is None
    page = await kv.list(start="p:03", end="p:05")
    assert [entry.value for entry in page] == [3, 4]
    assert [entry.key for entry in await kv.list(start="p:09")] == ["p:09", "q"]
    assert [entry.value async for entry in kv.scan("p:", page_size=3)] == list(range(10))
    assert [entry.value async for entry in kv.scan(end="p:02")] == [0, 1]


async def test_wrong_lists(kv: KV) -> None:
    await asyncio.gather(*(kv.put(f"p:{i}", i) for i in range(3)))
    cursor = (await kv.list("p:", limit=1)).cursor
    with pytest.raises(InvalidCursor):
        await kv.list("q:", limit=1, cursor=cursor)
    with pytest.raises(InvalidCursor):
        await kv.list("p:", cursor="nonsense")
    with pytest.raises(InvalidArgument, match="not both"):
        await kv.list("p:", start="p:1")
    with pytest.raises(InvalidArgument, match="the range is empty"):
        await kv.list(start="b", end="a")
    with pytest.raises(InvalidArgument, match="from 1, not 0"):
        await kv.list(limit=0)
    with pytest.raises(LimitExceeded) as caught:
        await kv.list(limit=limits.MAX_PAGE_RECORDS + 1)
    assert caught.value.metadata["maximum"] == str(limits.MAX_PAGE_RECORDS)


async def test_add(kv: KV) -> None:
    assert await kv.add("n") == 1
    assert await kv.add("n", -5) == -4
    entry = await kv.get("n")
    assert entry is not None
    assert entry.value == -4
    await kv.put("n", limits.MAX_INTEGER)
    with pytest.raises(IntegerOverflow):
        await kv.add("n")
    await kv.put("n", "x")
    with pytest.raises(NotAnInteger):
        await kv.add("n")
    with pytest.raises(InvalidArgument, match="64 bits"):
        await kv.add("n", 2**63)


async def test_concurrent_adds_count_each(kv: KV) -> None:
    sums = await asyncio.gather(*(kv.add("n") for _ in range(200)))
    assert sorted(sums) == list(range(1, 201))


async def test_atomic(kv: KV) -> None:
    revision = await kv.put("a", 1)
    atomic = (
        kv.atomic().check("a", revision=revision).check("b", exists=False).check("c", revision=0)
    )
    result = await atomic.put("b", 2).get("b").delete("a").delete("c").add("n", 7).get("a").commit()
    assert result.revision == revision + 1
    assert result.results[1] is not None
    at = result.results[1].updated_at
    written = kvorum.Entry("b", 2, result.revision, result.revision, 1, at)
    assert result.results == (result.revision, written, True, False, 7, None)


async def test_a_failed_check_writes_nothing(kv: KV) -> None:
    await kv.put("a", 1)
    with pytest.raises(Conflict, match="'a' did not hold") as caught:
        await kv.atomic().check("b", exists=False).check("a", exists=False).put("b", 1).commit()
    assert (caught.value.check, caught.value.key) == (1, "a")
    assert await kv.get("b") is None


async def test_a_failed_operation_writes_nothing(kv: KV) -> None:
    await kv.put("a", "text")
    with pytest.raises(NotAnInteger) as caught:
        await kv.atomic().put("b", 1).add("a").commit()
    assert caught.value.metadata["operation"] == "1"
    assert await kv.get("b") is None


async def test_wrong_atomics(kv: KV) -> None:
    with pytest.raises(InvalidArgument, match="takes one of revision, exists"):
        kv.atomic().check("a")
    with pytest.raises(InvalidArgument, match="takes one of revision, exists"):
        kv.atomic().check("a", revision=1, exists=True)
    with pytest.raises(InvalidArgument, match="a revision is"):
        kv.atomic().check("a", revision=-1)
    atomic = kv.atomic().put("a", 1)
    with pytest.raises(InvalidArgument):
        atomic.put("b", object())
    # What was refused left nothing behind in the builder.
    await atomic.commit()
    with pytest.raises(InvalidArgument, match="committed already"):
        await atomic.commit()


async def test_the_limits_of_a_transaction(kv: KV) -> None:
    atomic = kv.atomic()
    for i in range(limits.MAX_TRANSACTION_OPERATIONS):
        atomic.put(f"k{i}", i)
    assert len((await atomic.commit()).results) == limits.MAX_TRANSACTION_OPERATIONS
    atomic = kv.atomic().check("k0", exists=True)
    for i in range(limits.MAX_TRANSACTION_OPERATIONS):
        atomic.put(f"k{i}", i)
    with pytest.raises(LimitExceeded, match="1025 of 1024"):
        await atomic.commit()
    half = bytes(limits.MAX_TRANSACTION_BYTES // 2)
    with pytest.raises(LimitExceeded) as caught:
        await kv.atomic().put("a", half, type="bytes").put("b", half, type="bytes").commit()
    assert caught.value.metadata["limit"] == "MAX_TRANSACTION_BYTES"


async def test_a_directory_keeps_what_was_written(tmp_path: Path) -> None:
    async with kvorum.open(tmp_path / "data") as kv:
        revision = await kv.put("a", 1)
    async with kvorum.open(str(tmp_path / "data")) as kv:
        entry = await kv.get("a")
        assert entry is not None
        assert entry.revision == revision


async def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    async with kvorum.open(tmp_path / "data"):
        with pytest.raises(kvorum.DataDirectoryInUse):
            await kvorum.open(tmp_path / "data")


async def test_close_settles_calls_and_refuses_others() -> None:
    before = asyncio.all_tasks()
    kv = await kvorum.open("memory:")
    calls = [asyncio.create_task(kv.put(f"k{i}", i)) for i in range(10)]
    await asyncio.sleep(0)
    await asyncio.gather(kv.close(), kv.close())
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, Closed) for end in ends)
    with pytest.raises(Closed):
        await kv.get("a")
    left = asyncio.all_tasks() - before
    assert left == set()


async def test_a_cancelled_call_leaves_a_working_store(kv: KV) -> None:
    for _ in range(50):
        task = asyncio.create_task(kv.put("a", 1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert await kv.add("n") == 1
