"""Values that live for a while: there until their time is over, and absent then."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

import kvorum
from kvorum import KV, Compacted, Conflict, DecodeError, InvalidArgument, LimitExceeded
from kvorum.patterns import Expiring
from tests.support.compaction import compact
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.round_trips import RoundTrips


async def test_a_value_lives_for_its_time(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=timedelta(minutes=5))
    revision = await carts.put("ann", {"items": 1})
    entry = await carts.get("ann")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("ann", {"items": 1}, revision)
    assert entry.expires_at == entry.updated_at + timedelta(minutes=5)
    ttl = await carts.ttl("ann")
    assert ttl is not None
    assert 290 < ttl <= 300
    assert await carts.get("bob") is None
    assert await carts.ttl("bob") == 0.0


async def test_it_is_gone_for_every_reader_when_its_time_is_over(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=0.02)
    await carts.put("ann", 1)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await carts.get("ann") is not None:  # noqa: ASYNC110 - log time sets no event
            await asyncio.sleep(0.002)
    assert (await kv.list("expiring:")).entries == ()
    assert await carts.ttl("ann") == 0.0
    assert await carts.touch("ann") is False
    assert await carts.persist("ann") is False
    assert await carts.delete("ann") is False
    await carts.put("ann", 2, ttl=100, exists=False)


async def test_each_call_is_one_round_trip(kv: KV, round_trips: RoundTrips) -> None:
    carts = Expiring(kv, "cart", ttl=100)
    await carts.put("ann", 1)
    round_trips.reset()
    await carts.put("ann", 2)
    await carts.get("ann")
    await carts.get("ann", touch=True)
    await carts.touch("ann")
    await carts.persist("ann")
    await carts.ttl("ann")
    await carts.delete("ann")
    assert round_trips.requests == ["put", "get", "txn", "txn", "txn", "list", "delete"]


async def test_a_touch_slides_the_expiry_and_writes_no_value(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=1000)
    revision = await carts.put("ann", 1, ttl=10)
    for read_or_touch in (carts.get("ann", touch=True), carts.touch("ann")):
        await read_or_touch
        ttl = await carts.ttl("ann")
        assert ttl is not None
        assert ttl > 10
        assert await carts.touch("ann", 10)
    entry = await carts.get("ann", touch=True)
    assert entry is not None
    assert (entry.key, entry.revision, entry.version) == ("ann", revision, 1)
    assert await carts.get("bob", touch=True) is None


async def test_what_persists_stays(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=100)
    await carts.put("ann", 1)
    assert await carts.persist("ann")
    assert await carts.ttl("ann") is None
    entry = await carts.get("ann")
    assert entry is not None
    assert entry.expires_at is None
    assert await carts.delete("ann")


async def test_a_put_may_depend_on_what_is_there(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=100)
    await carts.put("ann", 1, exists=False)
    with pytest.raises(Conflict):
        await carts.put("ann", 2, exists=False)
    await carts.put("ann", 3, exists=True)
    with pytest.raises(Conflict):
        await carts.put("bob", 1, exists=True)


async def test_what_expires_is_told_with_what_it_was(kv: KV) -> None:
    carts, other = Expiring(kv, "cart", ttl=0.05), Expiring(kv, "other", ttl=0.05)
    since = await carts.put("deleted", 0, ttl=1000)
    await carts.delete("deleted")
    await carts.put("kept", 0, ttl=1000)
    await other.put("a", 0)
    await asyncio.gather(*(carts.put(f"a:{at}", {"n": at}) for at in range(20)))
    told = {}
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for change in carts.expired(since=since):
            assert change.kind == "expire"
            assert change.previous is not None
            assert change.previous.key == change.key
            assert change.key not in told
            told[change.key] = change.previous.value
            if len(told) == 20:
                break
    assert told == {f"a:{at}": {"n": at} for at in range(20)}


async def test_bytes_are_told_of_whatever_their_type_was(kv: KV) -> None:
    numbers, raw = Expiring(kv, "n", ttl=0.05), Expiring(kv, "n", ttl=0.05, type="bytes")
    since = await raw.put("a", b"\xff") - 1
    await numbers.put("b", 5, ttl=1)
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(DecodeError) as raised:
            await anext(numbers.expired(since=since))
        assert raised.value.key == "expiring:n:a"
    told = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for change in raw.expired(since=since):
            assert change.previous is not None
            told.append((change.key, change.previous.value))
            if len(told) == 2:
                break
    assert told == [("a", b"\xff"), ("b", b"5")]


async def test_expiries_that_are_forgotten_are_said_to_be(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=100)
    since = await carts.put("ann", 1)
    await compact(kv, await carts.put("ann", 2))

    async def expired() -> None:
        """The node that is asked may not have forgotten yet: then nothing comes for a while."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await anext(carts.expired(since=since - 1))

    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(Compacted):
            await expired()


async def test_keys_may_be_any_text(kv: KV) -> None:
    carts = Expiring(kv, "cart", ttl=100)
    for key in ("a", "a:b", "a%3Ab", "a\0", "ü"):
        await carts.put(key, key)
    for key in ("a", "a:b", "a%3Ab", "a\0", "ü"):
        entry = await carts.get(key)
        assert entry is not None
        assert (entry.key, entry.value) == (key, key)
    with pytest.raises(InvalidArgument):
        await carts.get("")


async def test_values_have_the_type_of_the_namespace(kv: KV) -> None:
    text, raw_bytes = (
        Expiring(kv, "v", ttl=100, type="text"),
        Expiring(kv, "v", ttl=100, type="bytes"),
    )
    await text.put("a", "ü")
    for touch in (False, True):
        as_text, as_bytes = await text.get("a", touch=touch), await raw_bytes.get("a", touch=touch)
        assert as_text is not None
        assert as_bytes is not None
        assert (as_text.value, as_bytes.value) == ("ü", "ü".encode())
    with pytest.raises(DecodeError):
        await Expiring(kv, "v", ttl=100).get("a")
    async with kvorum.open("memory:", type="bytes") as raw:
        namespace = Expiring(raw, "v", ttl=100)
        await namespace.put("a", b"\xff")
        assert (await raw.get("expiring:v:a")) is not None


def test_what_cannot_be_is_refused_at_once(memory: KV) -> None:
    with pytest.raises(InvalidArgument):
        Expiring(memory, "a:b", ttl=1)
    for ttl in (0, -1, None, "5"):
        with pytest.raises(InvalidArgument):
            Expiring(memory, "a", ttl=ttl)  # type: ignore[arg-type]  # no length of time
    with pytest.raises(LimitExceeded):
        Expiring(memory, "a", ttl=timedelta(days=40_000))
