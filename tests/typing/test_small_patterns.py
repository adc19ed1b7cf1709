"""What type checkers see of counters, limits, expiring values, pages and batches: see `make check`.

Nothing here is called; pytest only finds that the names exist.
"""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from pydantic import BaseModel

from kvorum import KV, Change, Entry, Page, Sum
from kvorum.patterns import (
    BatchEntries,
    BatchResult,
    Count,
    Counter,
    Expiring,
    Paginator,
    Put,
    RateDecision,
    RateDecisions,
    RateLimiter,
    RateStanding,
    batch_delete,
    batch_get,
    batch_put,
)


class User(BaseModel):
    """A value of a type that the program has."""

    name: str


async def counts_are_numbers(kv: KV) -> None:
    counter = Counter(kv, "c", of="x", ttl=5)
    assert_type(await counter.add(2, min=0), Sum)
    assert_type(await counter.get(), Count)
    counter.add_to(kv.atomic())
    async for attempt in kv.transaction():
        async with attempt as txn:
            counter.add_to(txn, -1, min=0)
    counter.add_to(kv)  # type: ignore[arg-type]  # no transaction


async def decisions_are_true_or_not(kv: KV) -> None:
    limiter = RateLimiter(kv, "api", limit=5, window=1, algorithm="gcra")
    assert_type(await limiter.check("ann"), RateDecision)
    assert_type(await limiter.peek("ann"), RateStanding)
    assert_type(await RateLimiter.check_all([(limiter, "ann", 1)]), RateDecisions)


async def values_have_the_type_of_their_place(kv: KV) -> None:
    texts = Expiring(kv, "t", ttl=5, type="text")
    assert_type(texts, Expiring[str])
    assert_type(await texts.get("a"), Entry[str] | None)
    assert_type(texts.expired(), AsyncIterator[Change[str]])
    await texts.put("a", b"bytes")  # type: ignore[arg-type]  # it keeps text
    assert_type(Expiring(kv, "t", ttl=5), Expiring[Any])
    assert_type(Expiring(kv, "t", ttl=5, type=User), Expiring[User])
    assert_type(await Paginator(kv, "a", type=User).page(), Page[User])
    assert_type(await batch_get(kv, ["a"], type=User), BatchEntries[User])
    assert_type(await Paginator(kv, "a", type="bytes").page(), Page[bytes])
    assert_type(Paginator(kv, index="a").pages(), AsyncIterator[Page[Any]])


async def batches_take_many_kinds_of_items(kv: KV) -> None:
    assert_type(await batch_get(kv, ["a", b"b"], type="text"), BatchEntries[str])
    assert_type((await batch_get(kv, "ab")).entries, dict[str, Entry[Any] | None])
    assert_type(await batch_put(kv, {"a": 1}), BatchResult)
    await batch_put(kv, [("a", 1), Put("b", 2, ttl=5)], atomic=True)
    await batch_put(kv, (("a", number) for number in range(5)), skip=3)
    await batch_put(kv, kv.scan("a"))  # type: ignore[arg-type]  # entries are no items
    assert_type(await batch_delete(kv, ["a", "b"]), BatchResult)


def test_the_checked_functions_are_there() -> None:
    assert batches_take_many_kinds_of_items.__name__ in globals()
