"""Waiting on conditions: a test says what it waits for, and never how long something takes."""

import asyncio
from collections.abc import Callable

DEADLINE_SECONDS = 60.0
"""Far more than anything takes on a busy machine: only a test that fails waits for so long."""


async def eventually(condition: Callable[[], object]) -> None:
    """Return once the condition holds; fail if it does not for DEADLINE_SECONDS."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)
