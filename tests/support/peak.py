"""How much memory a process takes while a test does something with it."""

import asyncio
from typing import Self

import psutil


class Peak:
    """The most memory that a process had while this was entered."""

    def __init__(self, process: psutil.Process) -> None:
        self.rss_bytes = 0
        self._process = process
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            self.rss_bytes = max(self.rss_bytes, self._process.memory_info().rss)
            await asyncio.sleep(0.02)
