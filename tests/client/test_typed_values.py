"""Values of every type, through every call that takes one, on each kind of store."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

import kvorum
from kvorum import KV, Codec, DecodeError, InvalidArgument, SyncKV
from kvorum.codecs import ValueType
from tests.support import targets
from tests.support.eventually import DEADLINE_SECONDS

kv = targets.kv
sync_kv = targets.sync_kv
target = targets.target


class User(BaseModel):
    name: str


class Point(msgspec.Struct):
    x: float


UPPER = Codec[str]("upper", lambda text: text.upper().encode(), lambda data: data.decode().lower())

VALUES: list[tuple[ValueType, Any]] = [
    ("json", {"a": [1, None]}),
    ("text", "ü"),
    ("bytes", b"\xff"),
    ("msgpack", {"at": datetime(2026, 1, 2, tzinfo=UTC), "raw": b"\xff"}),
    (User, User(name="alice")),
    (Point, Point(1.5)),
    (UPPER, "quiet"),
]


@pytest.mark.parametrize(("value_type", "value"), VALUES)
async def test_a_value_is_read_as_it_was_written(kv: KV, value_type: ValueType, value: Any) -> None:
    begin = await kv.put("a", value, type=value_type)
    await kv.put("a", value, type=value_type, exists=True)
    await (
        kv.atomic()
        .check("a", value=value, type=value_type)
        .put("b", value, type=value_type)
        .commit()
    )
    async for attempt in kv.transaction():
        async with attempt as txn:
            page = await txn.list("a", type=value_type)
            assert [entry.value for entry in page] == [value]
            txn.put("c", value, type=value_type)
            found = await txn.get("c", type=value_type)
            assert found is not None
            assert found.value == value
    entry = await kv.get("c", type=value_type)
    assert entry is not None
    assert entry.value == value
    assert [entry.value for entry in await kv.list(type=value_type)] == [value] * 3
    assert [entry.value async for entry in kv.scan(type=value_type)] == [value] * 3
    result = await kv.atomic().get("a", type=value_type).list("b", type=value_type).commit()
    assert (result.results[0].value, result.results[1].entries[0].value) == (value, value)
    async with asyncio.timeout(DEADLINE_SECONDS):
        async with kv.watch(since=begin, previous=True, type=value_type) as watch:
            change = await anext(watch)
    assert change.entry is not None
    assert change.previous is not None
    assert (change.entry.value, change.previous.value) == (value, value)
    taken = await kv.get_and_delete("a", type=value_type)
    assert taken is not None
    assert taken.value == value


@pytest.mark.parametrize(("value_type", "value"), VALUES)
def test_threads_read_it_too(sync_kv: SyncKV, value_type: ValueType, value: Any) -> None:
    sync_kv.put("a", value, type=value_type)
    entry = sync_kv.get("a", type=value_type)
    assert entry is not None
    assert entry.value == value
    assert [entry.value for entry in sync_kv.scan(type=value_type)] == [value]


@pytest.mark.parametrize(("value_type", "value"), VALUES)
async def test_a_store_has_a_type_of_its_own(
    target: str, value_type: ValueType, value: Any
) -> None:
    async with kvorum.open(target, timeout=30, type=value_type) as kv:
        await kv.put("a", value)
        entry = await kv.get("a")
        assert entry is not None
        assert entry.value == value


async def test_a_model_is_written_without_a_type_and_read_with_one(kv: KV) -> None:
    await kv.put("user:1", User(name="alice"))
    as_user, as_json = await kv.get("user:1", type=User), await kv.get("user:1")
    assert as_user is not None
    assert as_json is not None
    assert (as_user.value, as_json.value) == (User(name="alice"), {"name": "alice"})


async def test_what_cannot_be_written_is_not(kv: KV) -> None:
    revision = await kv.put("a", 1)
    for value, value_type in [
        (float("nan"), "json"),
        ({1: 2}, "json"),
        ("\ud800", "json"),
        (datetime(2026, 1, 1), "msgpack"),  # noqa: DTZ001 - a naive one is the point
        ({"name": "a"}, User),
    ]:
        given: Any = value_type
        with pytest.raises(InvalidArgument, match="'a' is not valid as"):
            await kv.put("a", value, type=given)
        with pytest.raises(InvalidArgument, match="'a' is not valid as"):
            kv.atomic().put("a", value, type=given)
        async for attempt in kv.transaction():
            async with attempt as txn:
                with pytest.raises(InvalidArgument, match="'a' is not valid as"):
                    txn.put("a", value, type=given)
    page = await kv.list()
    assert [(entry.key, entry.value, entry.revision) for entry in page] == [("a", 1, revision)]


async def test_what_is_of_another_type_is_a_decode_error(kv: KV) -> None:
    await kv.put("a", {"nick": "secret"})
    reads = [kv.get("a", type=User), kv.list(type=User), kv.get_and_delete("a", type=User)]
    for read in reads:
        with pytest.raises(DecodeError, match="the value of 'a' is not valid as User") as caught:
            await read
        assert caught.value.key == "a"
        assert "secret" not in repr(caught.value)
