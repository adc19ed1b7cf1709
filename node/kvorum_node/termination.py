"""How a process is told to end, and that it does.

    SIGTERM, SIGINT    from the first moment on: what has not begun to serve ends at once,
                       what serves leaves in good order; a second one skips the courtesies
    the bound          from the moment it begins to leave, for whatever reason: a process that
                       has not ended by then is ended. What it has acknowledged is on its
                       disk; what a disk that hangs still has to do cannot be waited for

A process in a container has the pid 1, and there a signal without a handler is ignored.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeVar

HANDOVER_SECONDS: Final = 5.0
"""How long a leader tries to hand leadership over."""

GRACE_SECONDS: Final = 2.0
"""How long calls under way may take to finish after that."""

DRAIN_SECONDS: Final = 20.0
"""The bound: those two, the farewell to peers, and a flush of the state; well within the 30 s
that Kubernetes gives before it kills."""

T = TypeVar("T")

logger = logging.getLogger("kvorum.node")


class ToldToStop(Exception):
    """What was under way is not wanted any more."""


class Termination:
    """The signals of one process, while it is entered, which is on its event loop."""

    def __init__(self, name: str, *, told: Callable[[], None]) -> None:
        """`told` is called at once when the process is told to stop."""
        self._name = name
        self._on_told = told
        self._told, self._again = asyncio.Event(), asyncio.Event()
        self._bound: threading.Timer | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bound is not None:
            self._bound.cancel()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    async def unless_told(self, work: Awaitable[T]) -> T:
        """What the work returns or raises; it is cancelled when the process is told to stop.

        Raises:
            ToldToStop
        """
        working, told = asyncio.ensure_future(work), asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait((working, told), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ToldToStop
            return working.result()
        finally:
            told.cancel()
            working.cancel()
            await asyncio.gather(working, told, return_exceptions=True)

    async def wait_told(self) -> None:
        await self._told.wait()

    async def wait_told_again(self) -> None:
        await self._again.wait()

    def begin_bound(self) -> None:
        """The process ends within DRAIN_SECONDS from now on, in whatever way."""
        if self._bound is None:
            self._bound = threading.Timer(DRAIN_SECONDS, self._give_up)
            self._bound.daemon = True
            self._bound.start()

    def _on_signal(self) -> None:
        if self._told.is_set():
            self._again.set()
        else:
            self._told.set()
            self._on_told()

    def _give_up(self) -> None:
        logger.critical(
            "%s has not ended within %.0f s, and is ended: what it has acknowledged is on its disk",
            self._name,
            DRAIN_SECONDS,
        )
        end_now(1)


def end_now(status: int) -> None:
    """End the process as it is: nothing is closed, and no thread is waited for."""
    logging.shutdown()
    os._exit(status)
