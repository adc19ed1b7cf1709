"""The budgets of large calls and replies: who gets in, who waits, and what is given back."""

import asyncio

import pytest

from kvorum import limits
from kvorum.errors import Overloaded
from kvorum_node.admission import Admission, Budget
from tests.support.eventually import DEADLINE_SECONDS

NEVER_SECONDS = 3600.0


def budget(maximum_bytes: int = 100) -> Budget:
    return Budget("LIMIT", maximum_bytes)


def test_what_fits_is_reserved_until_it_is_released() -> None:
    some = budget()
    first, second = some.reserve(60), some.reserve(40)
    assert some.is_exhausted
    with pytest.raises(Overloaded) as caught:
        some.reserve(1)
    assert caught.value.metadata == {"limit": "LIMIT", "maximum": "100"}
    first.release()
    first.release()  # once is enough
    assert some.reserved_bytes == 40
    second.release()
    assert some.reserved_bytes == 0


def test_something_larger_than_the_budget_is_admitted_alone() -> None:
    some = budget()
    alone = some.reserve(150)
    with pytest.raises(Overloaded):
        some.reserve(1)
    alone.release()
    some.reserve(1)
    with pytest.raises(Overloaded):
        some.reserve(150)


def test_what_is_in_memory_already_counts_whether_there_is_room_or_not() -> None:
    some = budget()
    taken = some.take(90)
    taken.resize(120)
    assert some.reserved_bytes == 120
    taken.release()
    assert some.reserved_bytes == 0


async def test_those_who_wait_get_in_in_their_order() -> None:
    some = budget()
    holder = some.reserve(100)
    first = some.wait(60, timeout_seconds=NEVER_SECONDS)
    second = some.wait(50, timeout_seconds=NEVER_SECONDS)
    third = some.wait(10, timeout_seconds=NEVER_SECONDS)
    assert not first.done()
    holder.release()
    assert first.done()
    assert not second.done()
    assert not third.done()  # it would fit, but must not overtake
    first.result().release()
    assert second.done()
    assert third.done()
    assert some.reserved_bytes == 60


async def test_who_comes_later_does_not_overtake_those_who_wait() -> None:
    some = budget()
    some.reserve(50)
    some.wait(60, timeout_seconds=NEVER_SECONDS)
    with pytest.raises(Overloaded):
        some.reserve(10)


async def test_a_wait_that_is_cancelled_holds_nothing_and_holds_up_nobody() -> None:
    some = budget()
    holder = some.reserve(100)
    given_up = some.wait(60, timeout_seconds=NEVER_SECONDS)
    other = some.wait(60, timeout_seconds=NEVER_SECONDS)
    given_up.cancel()
    holder.release()
    assert (await other).size_bytes == some.reserved_bytes == 60


async def test_a_wait_ends_and_lets_the_next_one_in() -> None:
    some = budget()
    some.reserve(50)
    too_large = some.wait(60, timeout_seconds=0.01)
    other = some.wait(50, timeout_seconds=NEVER_SECONDS)
    with pytest.raises(Overloaded):
        await too_large
    async with asyncio.timeout(DEADLINE_SECONDS):
        await other


def test_what_is_admitted_fits_among_what_may_be_uncommitted() -> None:
    """Or else a call would be refused when all of its bytes have come."""
    admission = Admission()
    assert admission.calls.maximum_bytes <= limits.MAX_UNCOMMITTED_BYTES
    for one in (admission.calls, admission.replies):
        assert one.maximum_bytes >= 2 * limits.MAX_MESSAGE_BYTES
