"""The stores in this process, through the public interface."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import kvorum
from kvorum import (
    KV,
    Closed,
    OutcomeUnknown,
    StorageError,
    limits,
)
from kvorum.backends.embedded import EmbeddedBackend
from kvorumpb.v1.kv_pb2 import Call, Reply


@pytest.fixture(params=["memory", "directory"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KV]:
    target = "memory:" if request.param == "memory" else tmp_path / "data"
    async with kvorum.open(target) as store:
        yield store


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


async def test_the_type_of_a_store(tmp_path: Path) -> None:
    async with kvorum.open("memory:", type="bytes") as kv:
        await kv.put(b"\xff", b"v")
        entry = await kv.get(b"\xff")
        assert entry is not None
        assert (entry.key, entry.value) == ("\udcff", b"v")
        assert (await kv.get(entry.key)) == entry
        result = await kv.atomic().put("b", b"w").get("b").commit()
        assert result.results[1].value == b"w"


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


async def test_a_store_that_fails_leaves_writes_in_doubt_and_no_caller_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with kvorum.open("memory:") as kv:
        backend = kv._backend
        assert isinstance(backend, EmbeddedBackend)

        async def fail(calls: list[Call]) -> list[Reply]:
            raise OSError("the disk is gone")

        monkeypatch.setattr(backend._node, "execute", fail)
        with pytest.raises(OutcomeUnknown, match="the disk is gone"):
            await kv.put("a", 1)
        with pytest.raises(StorageError, match="the disk is gone"):
            await kv.get("a")


async def test_a_closed_store_refuses_watches() -> None:
    kv = await kvorum.open("memory:")
    watch = kv.watch("a")
    await kv.close()
    with pytest.raises(Closed):
        await anext(watch)
