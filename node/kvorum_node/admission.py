"""Which large calls and replies a node takes on: budgets of bytes, one for each direction.

A call above limits.MAX_BATCH_BYTES is admitted by its size before its bytes have come, and
refused with `Overloaded` if it does not fit beside the others. A reply above it waits its
turn: what it is made of lies on the disk meanwhile. Whoever was given a reservation releases
it, whatever happens.

What is smaller is not counted here: `limits.MAX_UNCOMMITTED_BYTES` bounds the writes among
it, and replies are made when they are written.
"""

import asyncio
from collections import deque

from kvorum import limits
from kvorum.errors import Overloaded

RETRY_DELAY_MS = 250
"""What a refused caller is asked to wait: about what a 25 MiB value takes to be committed."""


class Admission:
    """The budgets of one node."""

    def __init__(self) -> None:
        self.calls = Budget("MAX_CALL_BYTES_UNDER_WAY", limits.MAX_CALL_BYTES_UNDER_WAY)
        self.arrivals = Budget("MAX_ARRIVAL_BYTES", limits.MAX_ARRIVAL_BYTES)
        self.replies = Budget("MAX_REPLY_BYTES_UNDER_WAY", limits.MAX_REPLY_BYTES_UNDER_WAY)


class Budget:
    """Bytes to be reserved, by whoever asks first. Belongs to one event loop.

    Something larger than the budget is admitted when nothing else is.
    """

    def __init__(self, limit: str, maximum_bytes: int) -> None:
        """`limit` is the name of the maximum in kvorum.limits."""
        self.maximum_bytes = maximum_bytes
        self.reserved_bytes = 0
        self.refusals = 0
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[Reservation]]] = deque()

    @property
    def is_exhausted(self) -> bool:
        """Whether not a single byte more would be admitted."""
        return self.reserved_bytes >= self.maximum_bytes

    def reserve(self, size_bytes: int) -> "Reservation":
        """Raises Overloaded if there is no room, or others wait for it."""
        if self._waiting or not self._has_room(size_bytes):
            raise self._overloaded()
        return self.take(size_bytes)

    def take(self, size_bytes: int) -> "Reservation":
        """Reserve what is in memory already, whether there is room or not."""
        self.reserved_bytes += size_bytes
        return Reservation(self, size_bytes)

    def wait(self, size_bytes: int, *, timeout_seconds: float) -> "asyncio.Future[Reservation]":
        """Reserve as soon as there is room, in the order of the requests.

        The future fails with Overloaded after so many seconds. It may be cancelled.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reservation] = loop.create_future()
        self._waiting.append((size_bytes, future))
        timer = loop.call_later(timeout_seconds, self._expire, future)
        future.add_done_callback(lambda _: timer.cancel())
        self.admit()
        return future

    def admit(self) -> None:
        """Let those who wait have what is free."""
        while self._waiting:
            size_bytes, future = self._waiting[0]
            if not future.done():
                if not self._has_room(size_bytes):
                    return
                future.set_result(self.take(size_bytes))
            self._waiting.popleft()

    def _expire(self, future: "asyncio.Future[Reservation]") -> None:
        future.set_exception(self._overloaded())
        self.admit()

    def _has_room(self, size_bytes: int) -> bool:
        reserved = self.reserved_bytes
        return not reserved or reserved + size_bytes <= self.maximum_bytes

    def _overloaded(self) -> Overloaded:
        self.refusals += 1
        return Overloaded(
            "the node has as many large calls and replies under way as it may; try again soon",
            limit=self._limit,
            maximum=self.maximum_bytes,
        )


class Reservation:
    """Bytes of a budget, until they are released."""

    __slots__ = ("_budget", "size_bytes")

    def __init__(self, budget: Budget, size_bytes: int) -> None:
        self._budget = budget
        self.size_bytes = size_bytes

    def resize(self, size_bytes: int) -> None:
        """Hold so much from now on, whether there is room or not: it is in memory."""
        self._budget.reserved_bytes += size_bytes - self.size_bytes
        self.size_bytes = size_bytes

    def release(self) -> None:
        """Give the bytes back. May be repeated."""
        self.resize(0)
        self._budget.admit()
