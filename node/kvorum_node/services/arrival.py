"""Requests of unary calls as they arrive: few at a time, for each of them may be large.

gRPC says how large a message is when it is there as a whole, and gives it to a unary
handler only then. So the unary methods are served as if they took a stream (to the caller
it is the same), which is read here: until then, no more of a request is in memory than
flow control lets in. A request takes one of a few places while it is read. One that is not
there within a moment is large, or on a slow way: it leaves its place to the next one, and
counts as the largest message until it is there. If there is no room for another such one,
it is refused, and the rest of it is not read.
"""

import asyncio
from typing import Any, Final

import grpc.aio

from kvorum import limits
from kvorum.errors import InvalidArgument, Overloaded
from kvorum_node.admission import Budget, Reservation

GRACE_SECONDS: Final = 0.05
"""A small request is there by then, or else with the next look at the network."""


Context = grpc.aio.ServicerContext[Any, Any]


class Arrivals:
    """Reads the requests of one node's unary calls."""

    def __init__(self, budget: Budget) -> None:
        """The budget is that of requests which take a while."""
        self._budget = budget
        self._places = asyncio.Semaphore(limits.MAX_ARRIVING_REQUESTS)

    async def receive(self, context: Context) -> bytes:
        """Read the one message of a unary call.

        Not from the handler's iterator, which would keep the message as long as itself.

        Raises:
            Overloaded: as many slow ones are arriving as there is room for.
            InvalidArgument: there is none.
        """
        await self._places.acquire()
        arrival = _Arrival(self._places, self._budget)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if arrival.refusal is None:
                raise
            arrival.task.uncancel()
            raise arrival.refusal from None
        finally:
            arrival.end()
        if not isinstance(message, bytes):
            raise InvalidArgument("the call has no request")
        return message


class _Arrival:
    """Watches over one message until it has come."""

    __slots__ = ("_budget", "_place", "_reservation", "_timer", "refusal", "task")

    def __init__(self, places: asyncio.Semaphore, budget: Budget) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - every handler is one
        self.task = task
        self.refusal: Overloaded | None = None
        self._place: asyncio.Semaphore | None = places
        self._budget = budget
        self._reservation: Reservation | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(GRACE_SECONDS, self._look_again)

    def end(self) -> None:
        self._timer.cancel()
        self._leave_place()
        if self._reservation is not None:
            self._reservation.release()

    def _look_again(self) -> None:
        """If it was the loop that had no time, the message is there, and has its turn now."""
        self._timer = asyncio.get_running_loop().call_later(GRACE_SECONDS / 10, self._count)

    def _count(self) -> None:
        try:
            self._reservation = self._budget.reserve(limits.MAX_MESSAGE_BYTES)
        except Overloaded as error:
            self.refusal = error
            self.task.cancel()
        else:
            self._leave_place()

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.release()
            self._place = None
