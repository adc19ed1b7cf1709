"""Putting, getting, listing and adding on each kind of store; and what is refused."""

import asyncio

import pytest

import kvorum
from kvorum import (
    KV,
    Conflict,
    DecodeError,
    IndexEntry,
    IntegerOverflow,
    InvalidArgument,
    InvalidCursor,
    LimitExceeded,
    NotAnInteger,
    limits,
)


@pytest.fixture
def kv(store: KV) -> KV:
    return store


async def test_put_get_delete(kv: KV) -> None:
    first = await kv.put("a", {"x": [1, None]})
    second = await kv.put("a", "two")
    entry = await kv.get("a")
    assert entry is not None
    assert entry == kvorum.Entry("a", "two", second, first, 2, entry.updated_at)
    assert await kv.delete("a") is True
    assert await kv.delete("a") is False
    assert await kv.get("a") is None


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


async def test_a_cancelled_call_leaves_a_working_store(kv: KV) -> None:
    for _ in range(50):
        task = asyncio.create_task(kv.put("a", 1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert await kv.add("n") == 1


async def test_what_is_at_its_limit_is_stored(kv: KV) -> None:
    indexes = [IndexEntry(f"i{n}", "v") for n in range(limits.MAX_INDEX_ENTRIES - 2)]
    indexes.append(IndexEntry("i" * limits.MAX_INDEX_NAME_BYTES, ""))
    indexes.append(IndexEntry("i", bytes(limits.MAX_INDEX_VALUE_BYTES)))
    await kv.put(
        "k" * limits.MAX_KEY_BYTES,
        1,
        ttl=limits.MAX_TTL_MS / 1000,
        metadata=bytes(limits.MAX_METADATA_BYTES),
        index_entries=iter(indexes),
    )
    built = kv.atomic()
    for number in range(limits.MAX_TRANSACTION_OPERATIONS):
        built.put(f"n{number}", number)
    assert len((await built.commit()).results) == limits.MAX_TRANSACTION_OPERATIONS
