"""What tests of the cache share: a source that they hold back, and another program's store."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import kvorum
from kvorum import KV
from tests.support.eventually import DEADLINE_SECONDS

SHORT_SECONDS = 0.3
"""A time to live that a test waits for the end of."""


class Source:
    """Where values come from: it counts, and each computation waits until it is let go."""

    def __init__(self, *, open: bool = True) -> None:
        self.computations = 0
        self.cancelled = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        if open:
            self.go.set()

    async def compute(self) -> int:
        self.computations += 1
        number = self.computations
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


@pytest.fixture
async def other(kv: KV, target: str) -> AsyncIterator[KV]:
    """The same store as another program has it open, if it can be."""
    if not target.startswith("kvorum:"):
        yield kv
        return
    async with kvorum.open(target, timeout=30) as other:
        yield other


async def keys_of(kv: KV, prefix: str = "cache:") -> list[str]:
    return [entry.key async for entry in kv.scan(prefix)]


async def eventually_true(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - it asks the store
            await asyncio.sleep(0.01)
