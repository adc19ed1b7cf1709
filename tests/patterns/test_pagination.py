"""Pages: complete, checked, at one revision or live, and one round trip each."""

import asyncio
import random
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from kvorum import KV, Compacted, IndexEntry, InvalidArgument, InvalidCursor, LimitExceeded
from kvorum.entry import Page
from kvorum.patterns import Paginator
from kvorum_node.storage.memory import MemoryEngine
from tests.support.compaction import compact
from tests.support.round_trips import RoundTrips


async def fill(kv: KV, count: int, prefix: str = "user:") -> list[str]:
    keys = [f"{prefix}{number:04}" for number in range(count)]
    await asyncio.gather(*(kv.put(key, number) for number, key in enumerate(keys)))
    return keys


def keys_of(page: Page[object]) -> list[str]:
    return [entry.key for entry in page]


async def test_pages_have_all_entries_in_order_for_one_round_trip_each(
    kv: KV, round_trips: RoundTrips
) -> None:
    keys = await fill(kv, 25)
    await kv.put("user;", "beyond")
    users = Paginator(kv, "user:", page_size=10)
    round_trips.reset()
    pages = [await users.page()]
    while not pages[-1].complete:
        pages.append(await users.page(pages[-1].cursor))
    assert round_trips.requests == ["list"] * 3
    assert [len(page) for page in pages] == [10, 10, 5]
    assert pages[-1].cursor is None
    found = [(entry.key, entry.value) for page in pages for entry in page]
    assert found == [(key, number) for number, key in enumerate(keys)]


@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_last_page_that_is_exactly_full_says_that_it_is_the_last(
    kv: KV, snapshot: bool
) -> None:
    await fill(kv, 20)
    users = Paginator(kv, "user:", page_size=10, snapshot=snapshot)
    first = await users.page()
    assert not first.complete
    last = await users.page(first.cursor)
    assert (len(last), last.complete, last.cursor) == (10, True, None)
    empty = await Paginator(kv, "none:", snapshot=snapshot).page()
    assert (len(empty), empty.complete) == (0, True)


async def test_what_a_client_sends_is_taken_as_near_as_it_goes(kv: KV) -> None:
    await fill(kv, 30)
    users = Paginator(kv, "user:", page_size=5, max_page_size=20)
    for size, expected in ((None, 5), (-3, 1), (0, 1), (7, 7), (20, 20), (10**9, 20)):
        assert len(await users.page(size=size)) == expected
    assert len(await users.page("")) == 5
    with pytest.raises(InvalidArgument):
        await users.page(size="7")  # type: ignore[arg-type]  # no number
    assert (await users.page(size=1, count=True)).count == 30


async def test_a_cursor_is_good_in_an_address_and_for_its_list_alone(kv: KV) -> None:
    await fill(kv, 30)
    await fill(kv, 30, "item:")
    users = Paginator(kv, "user:", page_size=5)
    cursor = (await users.page()).cursor
    assert cursor is not None
    assert re.fullmatch(r"[A-Za-z0-9_.~-]+", cursor)
    assert keys_of(await users.page(cursor, 2)) == ["user:0005", "user:0006"]
    for other in (
        Paginator(kv, "item:"),
        Paginator(kv, "user"),
        Paginator(kv, "user:", reverse=True),
        Paginator(kv, "user:", snapshot=True),
        Paginator(kv, index="user:"),
    ):
        with pytest.raises(InvalidCursor):
            await other.page(cursor)
    for at in range(len(cursor)):
        altered = cursor[:at] + ("A" if cursor[at] != "A" else "B") + cursor[at + 1 :]
        with pytest.raises(InvalidCursor):
            await users.page(altered)
    for nonsense in ("x", cursor[:-1], cursor + "A", "ü", " "):
        with pytest.raises(InvalidCursor):
            await users.page(nonsense)


async def test_by_index_in_the_order_of_its_values(kv: KV, round_trips: RoundTrips) -> None:
    for number, city in enumerate(("Ulm", "Bonn", "Rome", "Bonn", "Bari")):
        await kv.put(f"user:{number}", number, index_entries=[IndexEntry("city", city)])
    cities = Paginator(kv, index="city", page_size=2)
    found = [entry.value async for page in cities.pages() for entry in page]
    assert found == [4, 1, 3, 2, 0]
    assert [entry.value for entry in await Paginator(kv, index="city", value="Bonn").page()] == [
        1,
        3,
    ]
    begins = Paginator(kv, "B", index="city", reverse=True)
    round_trips.reset()
    assert [entry.value for entry in await begins.page()] == [3, 1, 4]
    assert round_trips.count == 1


@pytest.mark.parametrize("reverse", [False, True])
async def test_live_pages_neither_skip_nor_repeat_what_stays(kv: KV, reverse: bool) -> None:
    """While others write, delete and rewrite all around it."""
    keys = await fill(kv, 200)
    stay = keys[::2]
    done = asyncio.Event()

    async def write(seed: int) -> int:
        chance, writes = random.Random(seed), 0
        while not done.is_set():
            key = chance.choice(keys)
            if key in stay:
                await kv.put(key, "rewritten")
            elif chance.random() < 0.5:
                await kv.delete(key)
            else:
                await kv.put(f"{key}:{writes}", "new")
            writes += 1
        return writes

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]
    users = Paginator(kv, "user:", page_size=7, reverse=reverse)
    for _ in range(3):
        found = [entry.key async for page in users.pages() for entry in page]
        assert len(found) == len(set(found))
        assert found == sorted(found, reverse=reverse)
        assert [key for key in found if key in stay] == sorted(stay, reverse=reverse)
    done.set()
    assert sum(await asyncio.gather(*writers)) > 100


async def test_snapshot_pages_are_all_of_one_revision(kv: KV) -> None:
    keys = await fill(kv, 30)
    users = Paginator(kv, "user:", page_size=10, snapshot=True)
    first = await users.page()
    await asyncio.gather(*(kv.put(key, "new") for key in keys), kv.put("user:0015:a", 1))
    await kv.delete("user:0020")
    rest = [page async for page in users.pages(first.cursor)]
    assert {page.revision for page in rest} == {first.revision}
    assert [entry.value for page in (first, *rest) for entry in page] == list(range(30))


async def test_a_snapshot_that_was_compacted_is_a_clear_error(kv: KV) -> None:
    await fill(kv, 30)
    users = Paginator(kv, "user:", page_size=10, snapshot=True)
    live = Paginator(kv, "user:", page_size=10)
    first, first_live = await users.page(), await live.page()
    newest = await kv.put("user:0000", "new")
    await compact(kv, newest)
    with pytest.raises(Compacted) as raised:
        await users.page(first.cursor)
    assert raised.value.oldest_revision == newest
    assert len(await live.page(first_live.cursor)) == 10
    assert len(await users.page()) == 10


def test_what_cannot_be_is_refused_at_once(memory: KV) -> None:
    for page_size, max_page_size in ((0, 100), (None, 0), (200, 100)):
        with pytest.raises(InvalidArgument):
            Paginator(memory, "a", page_size=page_size, max_page_size=max_page_size)
    with pytest.raises(LimitExceeded):
        Paginator(memory, "a", max_page_size=10_001)
    with pytest.raises(InvalidArgument):
        Paginator(memory, value="x")
    with pytest.raises(InvalidArgument):
        Paginator(memory, index="x", snapshot=True)
    assert "20 a page" in repr(Paginator(memory, "a"))
    assert "5 a page" in repr(Paginator(memory, "a", max_page_size=5))


async def test_a_page_looks_at_what_it_holds_however_deep_it_is(memory: KV) -> None:
    """Counted in rows that the engine gives out: those of the page, and one more."""
    await fill(memory, 3_000)
    users = Paginator(memory, "user:", page_size=10)
    rows = 0
    scan = MemoryEngine.scan

    def counting(engine: MemoryEngine, *selected: Any, **options: Any) -> Iterator[Any]:
        nonlocal rows
        for row in scan(engine, *selected, **options):
            rows += 1
            yield row

    looked_at = []
    with patch.object(MemoryEngine, "scan", counting):
        async for page in users.pages():
            assert len(page) == 10
            looked_at.append(rows)
            rows = 0
    assert looked_at == [11] * 299 + [10]


@pytest.mark.parametrize("cursor", ["\ud800", "é", 5, b"x", "A" * 100_000])
async def test_whatever_a_client_sends_for_a_cursor_is_told_to_be_none(kv: KV, cursor: Any) -> None:
    with pytest.raises(InvalidCursor, match=r"^the cursor "):
        await Paginator(kv, "user:").page(cursor)
    with pytest.raises(InvalidCursor, match=r"^the cursor "):
        await kv.transaction().run(lambda txn: txn.list("user:", cursor=cursor))


async def test_a_size_is_no_truth_value(kv: KV) -> None:
    with pytest.raises(InvalidArgument):
        Paginator(kv, "user:", page_size=True)
