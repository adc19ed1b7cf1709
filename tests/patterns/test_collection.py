"""A collection on each kind of store: records and what they are found under, in one round trip."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from kvorum import (
    KV,
    Codec,
    Conflict,
    Entry,
    IndexEntry,
    InvalidArgument,
    InvalidCursor,
    LimitExceeded,
    Page,
    UniqueViolation,
)
from kvorum.patterns import Collection, Index, Unique
from tests.support.round_trips import RoundTrips
from tests.support.workload import until

Call = Callable[[], Awaitable[object]]

INDEXES = {
    "email": Unique(lambda user: user["email"].casefold() if "email" in user else None),
    "city": Index("city"),
    "age": Index("age"),
    "place": Index(("city", "age")),
    "tags": Index("tags"),
}


@pytest.fixture
def users(kv: KV) -> Collection[Any]:
    return Collection(kv, "user", indexes=INDEXES)


def the(entry: Entry[Any] | None) -> Entry[Any]:
    """The entry that there is."""
    assert entry is not None
    return entry


def ids(page: Page[Any]) -> list[str]:
    return [entry.key for entry in page]


ALICE = {"email": "Alice@example.org", "city": "Rome", "age": 41, "tags": ["a", "b"]}
BOB = {"email": "bob@example.org", "city": "Rome", "age": 7, "tags": ["b"]}
CAROL = {"email": "carol@example.org", "city": "Oslo", "age": -3}


@pytest.fixture
async def three(users: Collection[Any]) -> Collection[Any]:
    for name, value in {"1": ALICE, "2": BOB, "3": CAROL}.items():
        await users.create(name, value)
    return users


async def test_a_record_is_found_by_id_and_by_what_is_unique(users: Collection[Any]) -> None:
    revision = await users.create("1", ALICE)
    entry = the(await users.get("1"))
    assert (entry.key, entry.value, entry.revision) == ("1", ALICE, revision)
    assert IndexEntry("city", "Rome") in entry.index_entries
    found = the(await users.get_by("email", "alice@example.org"))
    assert (found.key, found.value, found.revision) == ("1", ALICE, revision)
    assert await users.get("2") is None
    assert await users.get_by("email", "Alice@example.org") is None  # folding is the function's


async def test_an_id_is_any_text(users: Collection[Any]) -> None:
    names = ["a:b", "50%", "ü/é ", "\0"]
    for name in names:
        await users.create(name, {"email": name})
        assert the(await users.get_by("email", name)).key == name
        with pytest.raises(Conflict) as raised:
            await users.create(name, {})
        assert raised.value.key == name
    assert sorted(ids(await users.list())) == sorted(names)
    with pytest.raises(InvalidArgument):
        await users.create("", {})


async def test_a_duplicate_names_index_value_and_owner(three: Collection[Any]) -> None:
    mail = {"email": "ALICE@example.org"}
    writes: list[Call] = [
        lambda: three.create("a:b", mail),
        lambda: three.put("2", mail),
        lambda: three.update("2", mail),
    ]
    for write in writes:
        with pytest.raises(UniqueViolation) as raised:
            await write()
        assert (raised.value.index, raised.value.value) == ("email", "alice@example.org")
        assert raised.value.owner == "1"
        assert "user '1' has the value" in str(raised.value)
    assert await three.get("a:b") is None
    assert the(await three.get("2")).value == BOB


async def test_a_duplicate_number_is_named_as_the_number_it_is(kv: KV) -> None:
    seats = Collection(kv, "seat", indexes={"place": Unique(("row", "seat"))})
    await seats.create("a:b", {"row": 3, "seat": 14})
    with pytest.raises(UniqueViolation) as raised:
        await seats.create("2", {"row": 3, "seat": 14})
    assert (raised.value.value, raised.value.owner) == ("(3, 14)", "a:b")


async def test_an_id_is_taken_once(three: Collection[Any]) -> None:
    with pytest.raises(Conflict, match="user '1'"):
        await three.create("1", {"email": "new@example.org"})
    assert await three.get_by("email", "new@example.org") is None


async def test_a_change_takes_the_old_place_away(three: Collection[Any]) -> None:
    assert await three.update("1", {"email": "a@b.org", "city": "Oslo"}) is not None
    assert await three.get_by("email", "alice@example.org") is None
    await three.create("4", {"email": "alice@example.org"})  # it is free
    assert ids(await three.find("city", "Oslo")) == ["1", "3"]
    assert await three.update("1", lambda user: {**user, "city": None}) is not None
    assert ids(await three.find("city", "Oslo")) == ["3"]
    assert await three.update("none", {"city": "Oslo"}) is None
    await three.put("1", {})
    assert await three.get_by("email", "a@b.org") is None
    assert await three.delete("4") is True
    assert await three.delete("4") is False
    assert await three.get_by("email", "alice@example.org") is None


async def test_an_update_keeps_what_it_does_not_change(kv: KV, users: Collection[Any]) -> None:
    entries = [*users.index_entries(ALICE), IndexEntry("mine", "x")]
    await kv.put(users.key("1"), ALICE, ttl=300, metadata=b"m", index_entries=entries)
    before = the(await users.get("1"))
    await users.update("1", {"age": 42})
    after = the(await users.get("1"))
    assert after.value == {**ALICE, "age": 42}
    assert (after.expires_at, after.metadata) == (before.expires_at, b"m")
    assert before.expires_at is not None
    assert [entry.key for entry in await kv.list(index="mine")] == ["user:1"]


async def test_updates_at_once_are_all_made(three: Collection[Any]) -> None:
    def older(user: Any) -> Any:
        return {**user, "age": user["age"] + 1}

    await asyncio.gather(*(three.update("1", older) for _ in range(10)))
    assert ids(await three.find("age", 51)) == ["1"]
    assert await three.count("age") == 3


async def test_a_function_that_forgets_to_return_is_found(three: Collection[Any]) -> None:
    def forgetful(user: Any) -> Any:
        user["age"] = 5

    with pytest.raises(InvalidArgument, match="returns the new value"):
        await three.update("1", forgetful)
    assert the(await three.get("1")).value == ALICE


async def test_a_put_can_have_a_condition(three: Collection[Any]) -> None:
    entry = the(await three.get("1"))
    revision = await three.put("1", BOB | {"email": "x"}, revision=entry.revision)
    writes: list[Call] = [
        lambda: three.put("1", {}, revision=entry.revision),
        lambda: three.put("9", {}, exists=True),
        lambda: three.delete("1", revision=entry.revision),
    ]
    for late in writes:
        with pytest.raises(Conflict):
            await late()
    assert await three.delete("1", revision=revision) is True


async def test_what_expires_is_found_no_more(kv: KV, users: Collection[Any]) -> None:
    await users.create("1", ALICE, ttl=0.2)

    async def is_gone() -> bool:
        return await users.get("1") is None

    await until(is_gone)
    assert await users.get_by("email", "alice@example.org") is None
    assert ids(await users.find("city", "Rome")) == []
    await users.create("2", ALICE)  # the place is free at once
    assert the(await users.get_by("email", "alice@example.org")).key == "2"


async def test_what_is_found(three: Collection[Any]) -> None:
    assert ids(await three.find("city", "Rome")) == ["1", "2"]
    assert ids(await three.find("city")) == ["3", "1", "2"]
    assert ids(await three.find("city", prefix="Os")) == ["3"]
    assert ids(await three.find("age")) == ["3", "2", "1"]
    assert ids(await three.find("age", start=-3, end=41)) == ["3", "2"]
    assert ids(await three.find("age", start=0, reverse=True)) == ["1", "2"]
    assert ids(await three.find("place", prefix=("Rome",))) == ["2", "1"]
    assert ids(await three.find("place", start=("Rome", 8), end=("Rome", 99))) == ["1"]
    assert ids(await three.find("place", ("Rome", 7))) == ["2"]
    assert ids(await three.find("tags")) == ["1", "1", "2"]
    assert ids(await three.find("tags", "b")) == ["1", "2"]
    assert ids(await three.find("email", "bob@example.org")) == ["2"]


async def test_pages_have_cursors_of_their_own(three: Collection[Any]) -> None:
    first = await three.find("age", limit=2)
    assert not first.complete
    rest = await three.find("age", limit=2, cursor=first.cursor)
    assert (ids(first), ids(rest), rest.complete) == (["3", "2"], ["1"], True)
    with pytest.raises(InvalidCursor):
        await three.find("city", cursor=first.cursor)
    with pytest.raises(InvalidCursor):
        await three.list(cursor=first.cursor)
    page = await three.list(limit=2, reverse=True)
    assert ids(page) == ["3", "2"]
    assert ids(await three.list(limit=2, reverse=True, cursor=page.cursor)) == ["1"]


async def test_all_records_and_how_many(three: Collection[Any]) -> None:
    assert [entry.key async for entry in three.scan(page_size=2)] == ["1", "2", "3"]
    assert [entry.key async for entry in three.scan("age", start=0)] == ["2", "1"]
    assert await three.count() == 3
    assert await three.count("city", "Rome") == 2
    assert await three.count("city", prefix="X") == 0


async def test_a_search_for_nothing_is_a_mistake(three: Collection[Any]) -> None:
    nothing: Any = None
    with pytest.raises(InvalidArgument, match="NoneType"):
        await three.find("city", nothing)
    for wrong in (
        lambda: three.find("town", "Rome"),
        lambda: three.get_by("city", "Rome"),
        lambda: three.find("city", prefix=5),
        lambda: three.find("place", prefix=("Rome",), end=("Rome", 5)),
        lambda: three.count(prefix="R"),
    ):
        with pytest.raises(InvalidArgument):
            await wrong()


async def test_collections_do_not_meet(kv: KV, three: Collection[Any]) -> None:
    staff = Collection(kv, "staff", indexes={"email": Unique("email"), "city": Index("city")})
    await staff.create("1", {"email": "alice@example.org", "city": "Rome"})
    assert ids(await staff.find("city", "Rome")) == ["1"]
    assert ids(await three.find("city", "Rome")) == ["1", "2"]
    assert await staff.count() == 1


async def test_a_record_can_be_part_of_a_transaction(kv: KV, three: Collection[Any]) -> None:
    user = {"email": "dan@example.org"}
    entries = three.index_entries(user)
    await kv.atomic().put(three.key("4"), user, index_entries=entries).add("users").commit()
    assert the(await three.get_by("email", "dan@example.org")).key == "4"
    assert await kv.touch(three.key("4"), 60) is True


async def test_nothing_is_written_on_bad_input(kv: KV, users: Collection[Any]) -> None:
    many = {"tags": [str(number) for number in range(65)]}
    with pytest.raises(LimitExceeded):
        await users.create("1", many)
    with pytest.raises(LimitExceeded):
        await users.create("1", {"city": "x" * 5_000})
    with pytest.raises(InvalidArgument, match=r"'age'.*float") as raised:
        await users.create("1", {"age": 47.11})
    assert "47" not in str(raised.value)
    with pytest.raises(InvalidArgument):
        await users.create("1", {"age": object()})
    assert await users.count() == 0


async def test_times_are_in_order(kv: KV) -> None:
    notes = Collection(
        kv, "note", indexes={"day": Index(lambda one: datetime.fromisoformat(one["at"]))}
    )
    for name, at in {"a": "2026-03-01T00:00+00:00", "b": "2026-03-01T00:30+01:00"}.items():
        await notes.create(name, {"at": at})
    assert ids(await notes.find("day")) == ["b", "a"]
    assert ids(await notes.find("day", end=datetime(2026, 3, 1, tzinfo=UTC))) == ["b"]


async def test_values_are_of_the_type_that_is_given(kv: KV) -> None:
    lines = Collection(kv, "line", indexes={"length": Index(len)}, type="text")
    await lines.create("1", "four")
    [found] = await lines.find("length", 4)
    assert found.value == "four"
    await lines.update("1", str.upper)
    assert the(await kv.get("line:1", type="text")).value == "FOUR"
    with pytest.raises(InvalidArgument, match="give a function"):
        await lines.update("1", {"a": 1})


@dataclass
class Note:
    text: str
    stars: int = 0


class Person(BaseModel):
    email: str
    age: int = 0


class Point(msgspec.Struct):
    x: int
    y: int = 0


NOTES: Codec[Note] = Codec(
    "note", lambda note: json.dumps(vars(note)).encode(), lambda data: Note(**json.loads(data))
)


async def test_models_are_found_by_their_fields(kv: KV) -> None:
    people = Collection(kv, "person", indexes={"email": Unique("email")}, type=Person)
    await people.create("1", Person(email="a@b"))
    await people.update("1", {"age": 5})
    assert the(await people.get_by("email", "a@b")).value == Person(email="a@b", age=5)
    with pytest.raises(InvalidArgument):
        await people.update("1", {"age": "five"})
    points = Collection(kv, "point", indexes={"x": Index("x")}, type=Point)
    await points.create("1", Point(7))
    await points.update("1", {"x": 8})
    assert [entry.value for entry in await points.find("x", 8)] == [Point(8)]
    notes = Collection(kv, "note", indexes={"stars": Index("stars")}, type=NOTES)
    await notes.create("1", Note("text"))
    await notes.update("1", {"stars": 3})
    assert [entry.value for entry in await notes.find("stars", 3)] == [Note("text", 3)]
    assert (await notes.reindex()).changed == 0


async def test_what_it_costs(users: Collection[Any], round_trips: RoundTrips) -> None:
    await users.create("0", {})  # asks once what the store knows, and says what it is
    assert round_trips.requests == ["get", "txn", "txn"]
    for cost, operation in (
        (1, lambda: users.create("1", ALICE)),
        (1, lambda: users.put("2", BOB)),
        (1, lambda: users.get("1")),
        (1, lambda: users.get_by("email", "bob@example.org")),
        (1, lambda: users.find("city", "Rome", limit=1)),
        (1, lambda: users.list(limit=2)),
        (1, lambda: users.count("city", "Rome")),
        (2, lambda: users.update("1", {"age": 42})),
        (1, lambda: users.delete("1")),
    ):
        round_trips.reset()
        await operation()
        assert round_trips.count == cost


async def test_a_second_program_asks_once(
    kv: KV, three: Collection[Any], round_trips: RoundTrips
) -> None:
    for first in ("create", "find"):
        again = Collection(kv, "user", indexes=INDEXES)
        round_trips.reset()
        await (again.create("9", {}) if first == "create" else again.find("city", "Rome"))
        assert round_trips.count == 2
        await again.find("city", "Rome")
        assert round_trips.count == 3
    assert await three.count() == 4


def test_a_collection_is_made_outside_of_a_loop(kv: KV) -> None:
    assert repr(Collection(kv, "user", indexes=INDEXES)) == (
        "<Collection 'user', indexes: email, city, age, place, tags>"
    )


async def test_a_violation_is_told_whatever_bytes_are_in_the_value(kv: KV) -> None:
    """As of a file name that is no UTF-8: errors are text, and have it written out."""
    path = os.fsdecode(b"/tmp/\xff")
    files = Collection(kv, "file", indexes={"path": Unique(lambda _: path)})
    await files.create("1", {})
    with pytest.raises(UniqueViolation) as raised:
        await files.create("2", {})
    assert (raised.value.index, raised.value.owner) == ("path", "1")


@dataclass(frozen=True)
class Town:
    name: str


@pytest.mark.parametrize("change", [5, {"naem": "secret"}, {5: "secret"}])
async def test_a_change_that_is_none_is_refused(kv: KV, change: Any) -> None:
    towns: Collection[Town] = Collection(
        kv, "town", type=Codec("town", lambda town: town.name.encode(), lambda d: Town(d.decode()))
    )
    await towns.create("1", Town("Rome"))
    with pytest.raises(InvalidArgument) as raised:
        await towns.update("1", change)
    assert "secret" not in str(raised.value)
    entry = await towns.get("1")
    assert entry is not None
    assert (entry.value, entry.version) == (Town("Rome"), 1)
