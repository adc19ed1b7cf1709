"""Requests of unary calls: few are read at a time, and slow ones hold up no others."""

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from kvorum import limits
from kvorum.errors import InvalidArgument, Overloaded
from kvorum_node.admission import Budget
from kvorum_node.services import arrival
from kvorum_node.services.arrival import Arrivals
from tests.support.eventually import eventually

ROOM = 3


class Caller:
    """A unary call whose request comes when the test lets it."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.is_read = False
        self.request: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        context: Any = SimpleNamespace(read=self._read)
        self.task = asyncio.create_task(arrivals.receive(context))

    async def _read(self) -> object:
        self.is_read = True
        return await self.request


@pytest.fixture
def budget() -> Budget:
    return Budget("MAX_ARRIVAL_BYTES", ROOM * limits.MAX_MESSAGE_BYTES)


@pytest.fixture
def arrivals(budget: Budget) -> Arrivals:
    return Arrivals(budget)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not there is slow."""
    monkeypatch.setattr(arrival, "GRACE_SECONDS", 0.01)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "GRACE_SECONDS", 3600.0)


async def test_few_are_read_at_a_time(arrivals: Arrivals, never: None) -> None:
    callers = [Caller(arrivals) for _ in range(limits.MAX_ARRIVING_REQUESTS + 2)]
    await eventually(lambda: sum(one.is_read for one in callers) == limits.MAX_ARRIVING_REQUESTS)
    for _ in range(10):
        await asyncio.sleep(0)
    assert sum(one.is_read for one in callers) == limits.MAX_ARRIVING_REQUESTS
    for number, one in enumerate(callers):
        one.request.set_result(b"%d" % number)
    assert await asyncio.gather(*(one.task for one in callers)) == [
        b"%d" % number for number in range(len(callers))
    ]


async def test_slow_ones_leave_their_places_and_are_counted(
    budget: Budget, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ARRIVING_REQUESTS", ROOM)
    arrivals = Arrivals(budget)
    slow = [Caller(arrivals) for _ in range(ROOM)]
    await eventually(lambda: budget.reserved_bytes == ROOM * limits.MAX_MESSAGE_BYTES)
    many = [Caller(arrivals) for _ in range(2 * limits.MAX_ARRIVING_REQUESTS)]
    for one in many:
        one.request.set_result(b"small")
    assert await asyncio.gather(*(one.task for one in many)) == [b"small"] * len(many)
    for one in slow:
        one.request.set_result(b"large")
        assert await one.task == b"large"
    assert budget.reserved_bytes == 0


async def test_too_many_slow_ones_are_refused_unread(
    arrivals: Arrivals, budget: Budget, soon: None
) -> None:
    slow = [Caller(arrivals) for _ in range(ROOM)]
    await eventually(lambda: budget.reserved_bytes == ROOM * limits.MAX_MESSAGE_BYTES)
    refused = Caller(arrivals)
    with pytest.raises(Overloaded) as caught:
        await refused.task
    assert caught.value.metadata["limit"] == "MAX_ARRIVAL_BYTES"
    assert refused.request.cancelled()
    for one in slow:
        one.task.cancel()
    await asyncio.wait([one.task for one in slow])
    assert budget.reserved_bytes == 0


async def test_a_caller_who_is_gone_leaves_nothing(
    arrivals: Arrivals, budget: Budget, never: None
) -> None:
    callers = [Caller(arrivals) for _ in range(limits.MAX_ARRIVING_REQUESTS)]
    await eventually(lambda: all(one.is_read for one in callers))
    for one in callers:
        one.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one.task
    other = Caller(arrivals)
    other.request.set_result(b"x")
    assert await other.task == b"x"


async def test_a_call_needs_a_request(arrivals: Arrivals) -> None:
    caller = Caller(arrivals)
    caller.request.set_result(grpc.aio.EOF)
    with pytest.raises(InvalidArgument):
        await caller.task
