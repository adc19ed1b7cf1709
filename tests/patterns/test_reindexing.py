"""Indexes that come to records which are there: found when all are, and nothing else is changed."""

import asyncio
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest

import kvorum
from kvorum import KV, Conflict, DeadlineExceeded, DecodeError, IndexEntry, IndexIncomplete
from kvorum.patterns import Collection, Difference, Index, Reindexed, Unique, UniqueConflict
from kvorum.patterns import reindexing as module
from tests.support.eventually import DEADLINE_SECONDS

OLD = {"email": Unique("email")}
NEW = {"email": Unique("email"), "name": Unique("name"), "city": Index("city")}


class Crash(Exception):
    """The program ends here."""


def old(kv: KV) -> Collection[Any]:
    return Collection(kv, "user", indexes=OLD)


def new(kv: KV) -> Collection[Any]:
    return Collection(kv, "user", indexes=NEW)


def user(number: int, **fields: object) -> dict[str, object]:
    named = {"email": f"{number}@x", "name": f"n{number}", "city": f"c{number % 3}"}
    return {**named, **fields}


async def fill(users: Collection[Any], count: int) -> None:
    await asyncio.gather(*(users.create(f"{number:04}", user(number)) for number in range(count)))


async def differences(users: Collection[Any]) -> list[Difference]:
    return [found async for found in users.verify()]


async def is_complete(users: Collection[Any], index: str) -> bool:
    try:
        await users.find(index)
    except IndexIncomplete:
        return False
    return True


async def test_an_index_that_is_new_is_not_found_by_before_it_is_built(kv: KV) -> None:
    await fill(old(kv), 5)
    users = new(kv)
    assert await is_complete(users, "email")
    for index in ("name", "city"):
        assert not await is_complete(users, index)
    with pytest.raises(IndexIncomplete) as raised:
        await users.get_by("name", "n1")
    assert raised.value.metadata == {"collection": "user", "index": "name"}
    with pytest.raises(IndexIncomplete):
        await users.count("city")
    with pytest.raises(IndexIncomplete):
        await anext(users.scan("city"))
    assert len(await differences(users)) == 5
    assert await users.reindex() == Reindexed(seen=5, total=5, changed=5, conflicts=())
    assert [entry.key for entry in await users.find("city", "c1")] == ["0001", "0004"]
    assert await differences(users) == []
    assert await is_complete(new(kv), "name")


async def test_nothing_but_the_index_entries_is_changed(kv: KV) -> None:
    users = new(kv)
    strange = b'{ "email":"e", "name" : "a", "\xc3\xa4": 1.50 }'  # as no encoder here writes it
    mine = IndexEntry("mine", "x")
    await kv.put(
        users.key("1"), strange, ttl=timedelta(hours=1), metadata=b"m", index_entries=[mine],
        type="bytes",
    )  # fmt: skip
    before = await kv.get(users.key("1"), type="bytes")
    assert (await users.reindex()).changed == 1
    after = await kv.get(users.key("1"), type="bytes")
    assert before is not None
    assert after is not None
    assert after.value == strange
    assert (after.metadata, after.expires_at) == (b"m", before.expires_at)
    assert after.created_revision == before.created_revision
    assert mine in after.index_entries
    assert await users.count("name", "a") == 1


async def test_what_was_there_before_any_collection_is_not_found_before_it_is_built(kv: KV) -> None:
    await kv.put("user:1", user(1))
    for index in NEW:
        assert not await is_complete(new(kv), index)
    await new(kv).create("2", user(2))
    assert not await is_complete(new(kv), "city")
    assert (await new(kv).reindex()).changed == 1
    assert await is_complete(new(kv), "city")


async def test_more_records_than_can_be_counted_are_built(kv: KV) -> None:
    await fill(old(kv), 3)
    read = kv.list

    async def slow(*arguments: Any, count: bool = False, **rest: Any) -> Any:
        if count:
            raise DeadlineExceeded("too many to be counted in time")
        return await read(*arguments, **rest)

    with patch.object(kv, "list", slow):
        assert await new(kv).reindex() == Reindexed(seen=3, total=None, changed=3, conflicts=())


async def test_records_that_are_right_are_left_alone(kv: KV) -> None:
    users = new(kv)
    await fill(users, 5)
    revisions = [entry.revision async for entry in users.scan()]
    assert await users.reindex() == Reindexed(5, 5, 0, ())
    assert [entry.revision async for entry in users.scan()] == revisions


async def test_entries_of_an_index_that_is_not_defined_any_more_go(kv: KV) -> None:
    await fill(new(kv), 3)
    users = old(kv)
    assert (await users.reindex()).changed == 3
    assert len(await kv.list(index="user:city")) == 0
    assert not await is_complete(new(kv), "city")


async def test_two_that_want_one_value_are_reported_and_the_rest_is_built(kv: KV) -> None:
    users = old(kv)
    for number in range(4):
        await users.create(str(number), user(number, name="same" if number % 2 else f"{number}"))
    users = new(kv)
    found = await users.reindex()
    assert found.conflicts == (UniqueConflict(index="name", value="same", id="3", owner="1"),)
    assert (found.seen, found.changed) == (4, 4)
    assert not await is_complete(users, "name")
    assert [entry.key for entry in await users.find("city", "c0")] == ["0", "3"]
    [difference] = await differences(users)
    assert (difference.id, difference.surplus) == ("3", ())
    assert difference.missing == (IndexEntry("name", "same", unique=True),)
    await users.update("3", {"name": "other"})
    assert await users.reindex() == Reindexed(4, 4, 0, ())
    assert await is_complete(users, "name")


async def test_a_record_may_lose_several_places(kv: KV) -> None:
    indexes = {"a": Unique("a"), "b": Unique("b"), "c": Index("c")}
    things = Collection(kv, "thing", indexes=indexes)
    for number in range(3):
        await kv.put(things.key(str(number)), {"a": 1, "b": number // 2, "c": 5})
    found = await things.reindex()
    assert sorted(one.index for one in found.conflicts) == ["a", "a", "b"]
    assert len({(one.index, one.id) for one in found.conflicts}) == 3
    [owner] = {one.owner for one in found.conflicts if one.index == "a"}
    assert [entry.key for entry in await kv.list(index="thing:a")] == [things.key(owner)]
    assert await things.count("c", 5) == 3


@pytest.fixture
def small_pages() -> Any:
    with patch.object(module, "PAGE_RECORDS", 10):
        yield


@pytest.mark.usefixtures("small_pages")
async def test_it_tells_how_far_it_has_come(kv: KV) -> None:
    await fill(old(kv), 25)
    told: list[Reindexed] = []

    async def tell(progress: Reindexed) -> None:
        told.append(progress)

    await new(kv).reindex(progress=tell)
    assert [(one.seen, one.total, one.changed) for one in told] == [
        (10, 25, 10),
        (20, 25, 20),
        (25, 25, 25),
    ]


async def crash_after(users: Collection[Any], pages: int) -> None:
    """Reindex so many pages, and no more."""
    told = 0

    async def crash(progress: Reindexed) -> None:
        nonlocal told
        told += 1
        if told == pages:
            raise Crash

    with pytest.raises(Crash):
        await users.reindex(progress=crash)


@pytest.mark.usefixtures("small_pages")
async def test_a_run_that_was_broken_off_is_taken_up(kv: KV) -> None:
    await fill(old(kv), 45)
    await crash_after(new(kv), 3)
    assert not await is_complete(new(kv), "city")
    told: list[int] = []

    async def tell(progress: Reindexed) -> None:
        told.append(progress.seen)

    users = new(kv)
    assert (await users.reindex(progress=tell)).changed == 45
    assert told == [40, 45]
    assert await differences(users) == []
    assert await is_complete(users, "city")


@pytest.mark.usefixtures("small_pages")
async def test_a_conflict_that_the_broken_off_run_has_found_counts(kv: KV) -> None:
    users = old(kv)
    for number in range(25):
        await users.create(f"{number:02}", user(number, name="same" if number < 2 else str(number)))
    await crash_after(new(kv), 1)
    assert (await new(kv).reindex()).conflicts == ()
    assert not await is_complete(new(kv), "name")
    assert await is_complete(new(kv), "city")
    assert len((await new(kv).reindex(restart=True)).conflicts) == 1


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("how", ["restart", "definition"])
async def test_a_run_begins_anew(kv: KV, how: str) -> None:
    await fill(old(kv), 25)
    await crash_after(new(kv), 1)
    more = NEW if how == "restart" else {**NEW, "both": Index(("city", "name"))}
    users: Collection[Any] = Collection(kv, "user", indexes=more)
    told: list[int] = []

    async def tell(progress: Reindexed) -> None:
        told.append(progress.seen)

    await users.reindex(progress=tell, restart=how == "restart")
    assert told == [10, 20, 25]
    assert await differences(users) == []


@pytest.mark.usefixtures("small_pages")
async def test_of_two_runs_the_one_that_began_last_goes_on(kv: KV) -> None:
    await fill(old(kv), 25)

    async def overtake(progress: Reindexed) -> None:
        await new(kv).reindex()

    with pytest.raises(Conflict, match="another one has begun"):
        await new(kv).reindex(progress=overtake)
    assert await is_complete(new(kv), "city")
    assert await differences(new(kv)) == []


async def test_a_program_that_begins_to_write_without_an_index_makes_it_incomplete(kv: KV) -> None:
    await fill(new(kv), 2)
    assert await is_complete(new(kv), "city")
    await old(kv).find("email")
    assert await is_complete(new(kv), "city")  # it has only read
    await old(kv).update("0000", {"city": "new"})
    users = new(kv)
    assert not await is_complete(users, "city")
    assert await is_complete(users, "email")
    assert (await users.reindex()).changed == 1
    assert [entry.key for entry in await users.find("city", "new")] == ["0000"]


@pytest.mark.usefixtures("small_pages")
async def test_a_program_with_other_indexes_ends_a_run(kv: KV) -> None:
    await fill(old(kv), 25)

    async def roll_back(progress: Reindexed) -> None:
        await old(kv).put("0000", user(0))

    with pytest.raises(Conflict, match="a program with other indexes"):
        await new(kv).reindex(progress=roll_back)
    assert not await is_complete(new(kv), "city")


async def test_an_index_that_becomes_unique_is_built(kv: KV) -> None:
    unique = {**NEW, "city": Unique("city")}
    await fill(new(kv), 3)
    users: Collection[Any] = Collection(kv, "user", indexes=unique)
    assert not await is_complete(users, "city")
    assert (await users.reindex()).changed == 3
    with pytest.raises(kvorum.UniqueViolation):
        await users.create("9", {"city": "c1"})


async def test_writers_go_on_meanwhile(kv: KV) -> None:
    """Those with the new definition; whoever is first, nothing of what they write is lost."""
    await fill(old(kv), 300)
    users = new(kv)
    done = False
    written = 0

    async def write(first: int) -> None:
        nonlocal written
        while not done:
            for number in range(first, 300, 40):
                await users.update(f"{number:04}", {"city": f"w{written}"})
                written += 1

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    try:
        await users.reindex()
        before = written
        async with asyncio.timeout(DEADLINE_SECONDS):
            while written < before + 8:  # noqa: ASYNC110 - of several tasks
                await asyncio.sleep(0.001)
    finally:
        done = True
        await asyncio.gather(*writers)
    assert await differences(users) == []
    cities = {entry.key: entry.value["city"] async for entry in users.scan()}
    assert {entry.key: entry.index_value async for entry in users.scan("city")} == cities
    assert sum(city.startswith("w") for city in cities.values()) == 32


async def test_a_write_between_read_and_write_is_not_taken_back(kv: KV) -> None:
    await fill(old(kv), 1)
    users, again = new(kv), new(kv)
    calls = 0

    async def interfere(key: str) -> None:
        await again.update("0000", {"city": "newer"})

    put = module.Reindexing._put_again

    async def late(self: Any, txn: Any, key: str, *rest: Any) -> None:
        nonlocal calls
        calls += 1
        await put(self, txn, key, *rest)
        if calls == 1:
            await interfere(key)

    with patch.object(module.Reindexing, "_put_again", late):
        await users.reindex()
    assert calls == 2
    assert [entry.value["city"] for entry in await users.find("city")] == ["newer"]


async def test_what_cannot_be_read_ends_it_and_is_named(kv: KV) -> None:
    users = new(kv)
    await users.create("1", user(1))
    await kv.put(users.key("2"), "no json", type="text")
    with pytest.raises(DecodeError) as raised:
        await users.reindex()
    assert raised.value.key == users.key("2")
    strict = Collection[Any](kv, "strict", indexes={"n": Index(lambda one: one["n"])})
    await kv.put(strict.key("a:b"), {})
    with pytest.raises(KeyError) as missing:
        await strict.reindex()
    assert missing.value.__notes__ == ["the record is strict 'a:b'"]
