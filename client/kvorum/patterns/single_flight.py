"""Work that is done once for all who ask for it meanwhile, within one process.

Rules of this file:

- A flight belongs to those who wait for it. Cancelling one of them ends its own waiting, and
  cancelling the last one gives the flight up.
- What is given up is the part of the work that may be broken off (`Flight.breakable`). What goes
  to the store comes to its answer: so the work always knows what it holds, and can give it back.
- Who gives a flight up waits until it has landed.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeAlias, TypeVar

from kvorum.errors import Closed

T = TypeVar("T")
R = TypeVar("R")


class Flight(Generic[T]):
    """One piece of work that is under way."""

    def __init__(self, work: "Work[T]", *, kept: bool = False) -> None:
        """Begin the work. A flight that is `kept` goes on if nobody waits for it."""
        self.is_given_up = False
        self._kept = kept
        self._waiting = 0
        self._breakable: asyncio.Task[Any] | None = None
        self.task = asyncio.create_task(work(self))
        self.task.add_done_callback(_retrieve)

    async def breakable(self, part: Coroutine[Any, Any, R]) -> R:
        """Do a part of the work that ends with `CancelledError` when the flight is given up."""
        task = asyncio.create_task(part)
        self._breakable = task
        if self.is_given_up:
            task.cancel()
        try:
            return await task
        finally:
            self._breakable = None

    async def join(self) -> T:
        """Wait for the work; return or raise what it does. `Closed` if it is closed meanwhile."""
        self._waiting += 1
        try:
            # Not `await self.task`: to cancel one of those who wait would cancel it for all.
            await asyncio.wait([self.task])
            if self.is_given_up and self.task.cancelled():
                raise Closed("the cache was closed")
            return self.task.result()
        finally:
            self._waiting -= 1
            if not self._waiting and not self._kept:
                await self.give_up()

    async def give_up(self) -> None:
        """Break the work off, and return when it has ended."""
        self.is_given_up = True
        if self._breakable is not None:
            self._breakable.cancel()
        await asyncio.wait([self.task])


Work: TypeAlias = Callable[[Flight[T]], Coroutine[Any, Any, T]]
"""What is done in a flight."""


class Flights(Generic[T]):
    """The flights of one process, by what they are for: one at a time can be joined for each."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._in_the_air: set[Flight[T]] = set()
        """Those too that were given up, and have not landed."""
        self._closed = False

    def is_under_way(self, key: str) -> bool:
        flight = self._flights.get(key)
        return flight is not None and not flight.is_given_up

    async def share(self, key: str, work: Work[T]) -> T:
        """Wait for the work that is under way for the key, or else for this one.

        Raises `Closed` after `close`.
        """
        flight = self._flights[key] if self.is_under_way(key) else self._begin(key, work)
        return await flight.join()

    def keep(self, key: str, work: Work[T]) -> None:
        """Begin work that goes on by itself; nothing must be under way for the key."""
        self._begin(key, work, kept=True)

    async def close(self) -> None:
        """Give up all flights, and return when they have landed."""
        self._closed = True
        while self._in_the_air:
            await asyncio.gather(*(flight.give_up() for flight in self._in_the_air))

    def _begin(self, key: str, work: Work[T], *, kept: bool = False) -> Flight[T]:
        if self._closed:
            raise Closed("the cache was closed")
        flight = self._flights[key] = Flight(work, kept=kept)
        self._in_the_air.add(flight)

        def land(_: "asyncio.Task[T]") -> None:
            self._in_the_air.discard(flight)
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight.task.add_done_callback(land)
        return flight


def _retrieve(task: "asyncio.Task[Any]") -> None:
    """All who waited may have been cancelled: then nobody asks how it has failed."""
    if not task.cancelled():
        task.exception()
