"""What the integrations are tested on: a store in this process, whose round trips are counted."""

from collections.abc import AsyncIterator, Iterator

import pytest

import kvorum
from kvorum import KV
from tests.support.round_trips import RoundTrips, counting


@pytest.fixture
async def kv() -> AsyncIterator[KV]:
    async with kvorum.open("memory:") as kv:
        yield kv


@pytest.fixture
def round_trips(kv: KV) -> Iterator[RoundTrips]:
    """Those of `kv`."""
    with counting(kv) as trips:
        yield trips
