"""The cache with tags: what is kept, what is invalidated, and what it costs."""

import asyncio
from datetime import timedelta

import pytest

import kvorum
from kvorum import KV, InvalidArgument, LimitExceeded, limits
from kvorum.patterns import Cache, CacheStatistics
from tests.support import caches
from tests.support.caches import SHORT_SECONDS, Source, eventually_true, keys_of
from tests.support.round_trips import RoundTrips, counting

other = caches.other


# What is kept


async def test_values_come_and_go(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    assert await pages.get("a") is None
    assert await pages.get("a", "none") == "none"
    assert await pages.set("a", {"page": 1}) is True
    assert await pages.get("a") == {"page": 1}
    assert await pages.delete("a") is True
    assert await pages.delete("a") is False
    assert await pages.get("a") is None
    await pages.set("null", None)
    assert await pages.get("null", "none") is None
    assert pages.statistics == CacheStatistics(hits=2, misses=3)


async def test_what_was_computed_is_kept_for_its_time(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source()
    assert await pages.get_or_compute("a", source.compute, ttl=SHORT_SECONDS) == 1
    assert await pages.get_or_compute("b", source.compute) == 2
    assert await pages.get_or_compute("b", source.compute) == 2
    assert 299 < (await kv.ttl("cache:pages:e:b") or 0) <= 300

    async def is_gone() -> bool:
        return await pages.get("a") is None

    await eventually_true(is_gone)
    assert await pages.get_or_compute("a", source.compute) == 3


async def test_keys_and_tags_from_outside_stay_in_their_place(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a:b%", 1, tags=["x:y"])
    await pages.invalidate("x:y", "x:y")
    assert await keys_of(kv) == ["cache:pages:e:a%3Ab%25", "cache:pages:t:x%3Ay"]
    assert await pages.get("a:b%") is None
    await Cache(kv, "other", ttl=300).set("a:b%", 2)
    assert await pages.get("a:b%") is None


async def test_values_of_each_type(kv: KV) -> None:
    texts = Cache(kv, "texts", ttl=5, type="text")
    await texts.set("a", "ü")
    assert await texts.get("a") == "ü"
    raw = Cache(kv, "raw", ttl=timedelta(seconds=5), type="bytes")
    await raw.set("a", b"\xff", tags=["t"])
    assert await raw.get("a") == b"\xff"
    await raw.invalidate("t")
    assert await raw.get("a") is None


async def test_a_value_of_another_type_is_a_miss_and_is_replaced(kv: KV) -> None:
    """As after a model has changed: a program must not fail for the time to live of its cache."""
    texts, numbers = (Cache(kv, "pages", ttl=60, type=one) for one in ("text", "json"))
    await texts.set("a", "a page", tags=["t"])
    assert await numbers.get("a", "none") == "none"

    async def compute() -> int:
        return 7

    assert await numbers.get_or_compute("a", compute, tags=["t"]) == 7
    assert await numbers.get("a") == 7
    await texts.set("a", "a page", tags=["t"])
    stale = await numbers.get_or_compute("a", compute, stale_while_revalidate=60)
    assert stale == 7
    assert numbers.statistics == CacheStatistics(hits=1, misses=3, computations=2)


async def test_what_is_wrong_is_refused_before_anything_is_computed(kv: KV) -> None:
    source = Source()
    for name in ("", "a:b"):
        with pytest.raises(InvalidArgument, match="a cache"):
            Cache(kv, name, ttl=5)
    with pytest.raises(LimitExceeded, match="max_ttl of 5 s") as raised:
        Cache(kv, "pages", ttl=6, max_ttl=5, lease=1)
    assert raised.value.metadata == {"limit": "max_ttl", "maximum": "5000", "actual": "6000"}
    with pytest.raises(LimitExceeded, match="lease: 30 s"):
        Cache(kv, "pages", ttl=5, max_ttl=5)
    pages = Cache(kv, "pages", ttl=5, max_ttl=10, lease=10)
    get = pages.get_or_compute
    with pytest.raises(LimitExceeded, match="'a': 11 s"):
        await get("a", source.compute, stale_while_revalidate=6)
    with pytest.raises(InvalidArgument, match="stale_while_revalidate is a number"):
        await get("a", source.compute, stale_while_revalidate=-1)
    with pytest.raises(InvalidArgument, match="ttl is a number"):
        await pages.set("a", 1, ttl=0)
    with pytest.raises(InvalidArgument, match="tags are several"):
        await get("a", source.compute, tags="user")
    with pytest.raises(InvalidArgument, match="part of a key"):
        await get("a", source.compute, tags=[""])
    for tags in (5, None):
        with pytest.raises(InvalidArgument, match="tags are several"):
            await get("a", source.compute, tags=tags)  # type: ignore[arg-type]  # no tags
    for tag in (5, ["t"]):
        with pytest.raises(InvalidArgument, match="part of a key"):
            await get("a", source.compute, tags=[tag])  # type: ignore[list-item]  # no tag
        with pytest.raises(InvalidArgument, match="part of a key"):
            await pages.invalidate(tag)  # type: ignore[arg-type]  # the same
    with pytest.raises(InvalidArgument, match="part of a key"):
        await get("", source.compute)
    with pytest.raises(LimitExceeded, match="the tags of 'a' take") as raised:
        await get("a", source.compute, tags=[f"tag-{number:04}" for number in range(200)])
    assert raised.value.metadata["limit"] == "MAX_METADATA_BYTES"
    with pytest.raises(LimitExceeded, match="key"):
        await get("k" * limits.MAX_KEY_BYTES, source.compute)
    with pytest.raises(InvalidArgument, match="at least one tag"):
        await pages.invalidate()
    assert source.computations == 0
    assert await keys_of(kv) == []


async def test_as_many_tags_as_there_is_room_for(kv: KV) -> None:
    pages, source = Cache(kv, "pages", ttl=300), Source()
    tags = [f"{number:04}" for number in range(150)]
    await pages.get_or_compute("a", source.compute, tags=tags)
    assert await pages.get("a") == 1
    await pages.invalidate(tags[77])
    assert await pages.get("a") is None


# Tags


async def test_an_invalidated_tag_takes_all_its_entries(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    for name, tags in {"a": ["t1"], "b": ["t1", "t2"], "c": ["t2"], "d": []}.items():
        assert await pages.set(name, name, tags=tags)
    await pages.invalidate("t1")
    assert [await pages.get(name) for name in "abcd"] == [None, None, "c", "d"]
    assert await pages.set("a", "anew", tags=["t1"])
    assert await pages.get("a") == "anew"
    await pages.invalidate("t2", "t1")
    assert [await pages.get(name) for name in "abcd"] == [None, None, None, "d"]


async def test_another_program_sees_an_invalidation_at_once(kv: KV, other: KV) -> None:
    here, there = Cache(kv, "pages", ttl=300), Cache(other, "pages", ttl=300)
    for round_ in range(20):
        await here.set("a", round_, tags=["t"])
        assert await there.get("a") == round_
        await here.invalidate("t")
        assert await there.get("a") is None


async def test_tags_of_an_entry_may_change(kv: KV, other: KV) -> None:
    here, there = Cache(kv, "pages", ttl=300), Cache(other, "pages", ttl=300)
    await here.set("a", 1, tags=["old"])
    assert await there.get("a") == 1
    await here.set("a", 2, tags=["new"])
    await here.invalidate("old")
    assert await there.get("a") == 2
    await here.invalidate("new")
    assert await there.get("a") is None


async def test_an_invalidation_is_part_of_other_writes(kv: KV, round_trips: RoundTrips) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a", 1, tags=["user:1"])
    round_trips.reset()
    atomic = kv.atomic().put("user:1", "renamed")
    pages.invalidate_in(atomic, "user:1")
    done = await atomic.commit()
    assert round_trips.count == 1
    tag = await kv.get("cache:pages:t:user%3A1")
    assert tag is not None
    assert tag.revision == done.revision
    assert await pages.get("a") is None
    await pages.set("a", 2, tags=["user:1"])
    refused = kv.atomic().check("user:1", exists=False)
    pages.invalidate_in(refused, "user:1")
    with pytest.raises(kvorum.Conflict):
        await refused.commit()
    assert await pages.get("a") == 2
    async for attempt in kv.transaction():
        async with attempt as txn:
            await txn.get("user:1")
            pages.invalidate_in(txn, "user:1")
    assert await pages.get("a") is None


async def test_what_is_under_a_tag_outlives_the_record_of_the_tag(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300, max_ttl=301, lease=5)
    await pages.invalidate("t")
    await pages.set("a", 1, tags=["t"])
    await kv.touch("cache:pages:t:t", 0.001)

    async def is_gone() -> bool:
        return await kv.get("cache:pages:t:t") is None

    await eventually_true(is_gone)
    assert await pages.get("a") == 1
    await pages.invalidate("t")
    assert await pages.get("a") is None


async def test_a_tag_of_100_000_keys_is_invalidated_by_one_small_write(
    kv: KV, round_trips: RoundTrips
) -> None:
    pages = Cache(kv, "pages", ttl=3600)
    await pages.set("0", 0, tags=["site"])
    like = await kv.get("cache:pages:e:0")
    assert like is not None
    for first in range(1, 100_000, 1_000):  # what `set` writes, many at a time
        atomic = kv.atomic()
        for n in range(first, min(first + 1_000, 100_000)):
            atomic.put(f"cache:pages:e:{n}", n, ttl=3600, metadata=like.metadata)
        await atomic.commit()
    sample = [str(n) for n in range(0, 100_000, 333)]
    assert await asyncio.gather(*map(pages.get, sample)) == [int(key) for key in sample]
    revision = await kv.put("mark", 1)
    round_trips.reset()
    await pages.invalidate("site")
    assert round_trips.requests == ["txn"]
    async with kv.watch(since=revision) as watch:
        await kv.put("mark", 2)
        assert [(await anext(watch)).key for _ in range(2)] == ["cache:pages:t:site", "mark"]
    assert (await kv.list("cache:pages:e:", limit=1, count=True)).count == 100_000
    assert await asyncio.gather(*map(pages.get, sample)) == [None] * len(sample)


# What it costs


async def test_round_trips(kv: KV, other: KV) -> None:
    source = Source()
    pages = Cache(kv, "pages", ttl=300)
    with counting(kv) as trips:
        await pages.get_or_compute("a", source.compute, tags=["t1", "t2"])
        assert trips.count == 3  # looked, leased, stored
        trips.reset()
        await pages.get_or_compute("a", source.compute, tags=["t1", "t2"])
        assert trips.count == 1
        trips.reset()
        await pages.get("a")
        assert trips.count == 1
        trips.reset()
        await pages.set("b", 1)
        assert trips.count == 1
        await pages.set("b", 1, tags=["t1"])
        assert trips.count == 3
        trips.reset()
        await pages.delete("b")
        await pages.invalidate("t1", "t2")
        assert trips.count == 2
    await pages.set("a", 5, tags=["t1"])
    fresh = Cache(other, "pages", ttl=300)
    with counting(other) as trips:
        assert await fresh.get("a") == 5
        assert trips.count == 2  # it learns which tags there are
        trips.reset()
        assert await fresh.get("a") == 5
        assert trips.count == 1


async def test_a_hit_writes_nothing(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    await pages.set("a", 1, tags=["t"])
    before = await kv.put("mark", 1)
    for _ in range(10):
        await pages.get("a")
    assert await kv.put("mark", 2) == before + 1


# The decorator, and what is shown


async def test_decorated_functions(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    asked: list[int] = []

    @pages.cached(key=lambda user, **_: f"home:{user}", tags=lambda user, **_: [f"user:{user}"])
    async def home(user: int, *, greeting: str = "hello") -> str:
        """Say hello."""
        asked.append(user)
        return f"{greeting} {user}"

    @pages.cached(key="all", tags=["user:1"], ttl=5)
    async def everyone() -> list[int]:
        asked.append(0)
        return [1, 2]

    assert home.__doc__ == "Say hello."
    assert [await home(1), await home(1), await home(2, greeting="hi")] == [
        "hello 1",
        "hello 1",
        "hi 2",
    ]
    assert [await everyone(), await everyone()] == [[1, 2]] * 2
    assert asked == [1, 2, 0]
    await pages.invalidate("user:1")
    assert [await home(1), await home(2), await everyone()] == ["hello 1", "hi 2", [1, 2]]
    assert asked == [1, 2, 0, 1, 0]


async def test_a_decorated_function_has_its_tags_each_time(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300)
    computed: list[int] = []

    @pages.cached(key=lambda page: f"page:{page}", tags=iter(["site"]))
    async def render(page: int) -> int:
        computed.append(page)
        return page

    assert [await render(page) for page in (1, 2)] == [1, 2]
    await pages.invalidate("site")
    assert [await render(page) for page in (1, 2)] == [1, 2]
    assert computed == [1, 2, 1, 2]
    with pytest.raises(InvalidArgument, match="tags are several"):
        pages.cached(key="a", tags="site")


async def test_nothing_of_a_value_is_shown(kv: KV) -> None:
    pages = Cache(kv, "pages", ttl=300, type="bytes")
    await pages.set("a", b"secret")
    assert repr(pages) == "<Cache 'pages'>"
