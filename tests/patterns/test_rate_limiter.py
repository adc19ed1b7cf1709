"""Rate limiters: what they let pass, what they say, what they cost; all three algorithms."""

import asyncio
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

import kvorum
from kvorum import KV, InvalidArgument, LimitExceeded, limits
from kvorum.model import Algorithm
from kvorum.patterns import RateDecision, RateLimiter, RateStanding
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.round_trips import RoundTrips

ALGORITHMS: tuple[Algorithm, ...] = ("sliding_log", "sliding_counter", "gcra")
EXACT: tuple[Algorithm, ...] = ("sliding_log", "gcra")
"""They promise a number: within a window, or as a burst."""
HOUR = timedelta(hours=1)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of its own for each test: what limits have counted is no record, and stays in a cluster."""
    return str(request.node.name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_limit_lets_so_many_pass(
    kv: KV, name: str, round_trips: RoundTrips, algorithm: Algorithm
) -> None:
    limiter = RateLimiter(kv, name, limit=3, window=HOUR, algorithm=algorithm)
    await kv.get("warm up")
    round_trips.reset()
    decisions = [await limiter.check("ann") for _ in range(5)]
    assert round_trips.count == 5
    assert [bool(one) for one in decisions] == [True, True, True, False, False]
    assert [one.remaining for one in decisions] == [2, 1, 0, 0, 0]
    assert all(one.limit == 3 and one.name == name for one in decisions)
    assert [one.retry_after > 0 for one in decisions] == [False, False, False, True, True]
    assert all(0 < one.reset_after <= 7200 for one in decisions)
    assert await limiter.check("bob"), "another identifier has its own"


async def test_times_are_those_of_the_store(kv: KV, name: str) -> None:
    limiter = RateLimiter(kv, name, limit=3, window=60)
    await kv.put("a", 1)
    entry = await kv.get("a")
    decision = await limiter.check("ann")
    after = await kv.put("a", 2)
    later = await kv.get("a")
    assert entry is not None
    assert later is not None
    assert later.revision == after
    at = decision.reset_at - timedelta(seconds=decision.reset_after)
    assert entry.updated_at <= at <= later.updated_at
    assert decision.reset_after == 60


@pytest.mark.parametrize("algorithm", EXACT)
async def test_of_200_at_once_exactly_100_pass(kv: KV, name: str, algorithm: Algorithm) -> None:
    limiter = RateLimiter(kv, name, limit=100, window=HOUR, algorithm=algorithm)
    decisions = await asyncio.gather(*(limiter.check("ann") for _ in range(200)))
    assert sum(map(bool, decisions)) == 100
    assert sorted(one.remaining for one in decisions if one) == list(range(100))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_cost_is_taken_whole_or_not(kv: KV, name: str, algorithm: Algorithm) -> None:
    limiter = RateLimiter(kv, name, limit=10, window=HOUR, algorithm=algorithm)
    assert (await limiter.check("ann", 8)).remaining == 2
    refused = await limiter.check("ann", cost=3)
    assert (refused.allowed, refused.remaining) == (False, 2)
    assert (await limiter.check("ann", cost=2)).remaining == 0
    for cost in (11, -1, True):
        with pytest.raises(InvalidArgument):
            await limiter.check("ann", cost=cost)


async def test_gcra_spaces_what_comes_after_a_burst(kv: KV, name: str) -> None:
    limiter = RateLimiter(kv, name, limit=3600, window=HOUR, algorithm="gcra", burst=2)
    decisions = [await limiter.check("ann") for _ in range(3)]
    assert [bool(one) for one in decisions] == [True, True, False]
    assert 0 < decisions[2].retry_after <= 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_look_takes_nothing(
    kv: KV, name: str, round_trips: RoundTrips, algorithm: Algorithm
) -> None:
    limiter = RateLimiter(kv, name, limit=5, window=HOUR, algorithm=algorithm)
    await limiter.check("ann", 2)
    round_trips.reset()
    standing = await limiter.peek("ann")
    assert round_trips.count == 1
    assert type(standing) is RateStanding
    assert (standing.name, standing.limit, standing.remaining) == (name, 5, 3)
    assert standing.reset_after > 0
    assert (await limiter.peek("ann")).remaining == 3
    assert (await limiter.peek("nobody")).reset_after == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_reset_forgets_one_identifier(kv: KV, name: str, algorithm: Algorithm) -> None:
    limiter = RateLimiter(kv, name, limit=1, window=HOUR, algorithm=algorithm)
    for who in ("ann", "bob"):
        await limiter.check(who)
    await limiter.reset("ann")
    assert await limiter.check("ann")
    assert not await limiter.check("bob")


async def test_several_limits_are_taken_from_together_or_not_at_all(
    kv: KV, name: str, round_trips: RoundTrips
) -> None:
    users = RateLimiter(kv, "user" + name, limit=10, window=HOUR)
    addresses = RateLimiter(kv, "ip" + name, limit=2, window=60, algorithm="gcra")
    await kv.get("warm up")
    round_trips.reset()
    checks = [(users, "ann", 3), (addresses, "::1", 1)]
    first = await RateLimiter.check_all(checks)
    assert round_trips.count == 1
    assert first
    assert first.refused_by == ()
    assert first.retry_after == 0
    assert [one.remaining for one in first.decisions] == [7, 1]
    assert first.tightest.name == "ip" + name
    await RateLimiter.check_all(checks)
    refused = await RateLimiter.check_all(checks)
    assert not refused
    assert refused.refused_by == ("ip" + name,)
    assert 0 < refused.retry_after <= 30
    assert refused.tightest == refused.decisions[1]
    assert [one.allowed for one in refused.decisions] == [True, False]
    assert (await users.peek("ann")).remaining == 4, "a refusal takes from no limit"


async def test_checks_that_cannot_be_made_together_are_refused(
    kv: KV, name: str, memory: KV
) -> None:
    here = RateLimiter(kv, name, limit=1, window=1)
    there = RateLimiter(memory, "api", limit=1, window=1)
    for checks in ([], [(here, "a", 1), (there, "a", 1)], [(here, "a", 1), (here, "a", 1)]):
        with pytest.raises(InvalidArgument):
            await RateLimiter.check_all(checks)
    with pytest.raises(LimitExceeded):
        await RateLimiter.check_all([(here, f"{at}", 1) for at in range(17)])
    assert await here.check("a")


async def test_a_limit_is_part_of_a_transaction(kv: KV, name: str) -> None:
    limiter = RateLimiter(kv, name, limit=1, window=HOUR)
    result = await kv.atomic().put("a", 1).rate_limit(limiter.rule("ann")).commit()
    assert result.results[1].allowed
    assert not await limiter.check("ann")


async def test_its_state_is_no_record_and_disappears(kv: KV, name: str) -> None:
    limiter = RateLimiter(kv, name, limit=2, window=0.02)
    assert (await limiter.check("ann")).reset_after == 0.02
    assert (await kv.list("")).entries == ()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await limiter.peek("ann")).remaining < 2:  # noqa: ASYNC110 - log time sets no event
            await asyncio.sleep(0.005)


async def test_identifiers_may_be_any_text_and_do_not_meet(kv: KV, name: str) -> None:
    limiter = RateLimiter(kv, name, limit=1, window=HOUR)
    for identifier in ("a", "a:b", "a%3Ab", "a\0", "ü", " "):
        assert await limiter.check(identifier)
    with pytest.raises(InvalidArgument):
        await limiter.check("")
    with pytest.raises(LimitExceeded):
        await limiter.check("x" * limits.MAX_KEY_BYTES)


def test_what_cannot_be_is_refused_at_once(memory: KV) -> None:
    with pytest.raises(InvalidArgument):
        RateLimiter(memory, "a:b", limit=1, window=1)
    with pytest.raises(InvalidArgument):
        RateLimiter(memory, "a", limit=0, window=1)
    with pytest.raises(InvalidArgument):
        RateLimiter(memory, "a", limit=1, window=0)
    with pytest.raises(InvalidArgument):
        RateLimiter(memory, "a", limit=1, window=1, burst=1)
    with pytest.raises(InvalidArgument):
        RateLimiter(memory, "a", limit=1, window=1, algorithm="x")  # type: ignore[arg-type]  # no algorithm
    with pytest.raises(LimitExceeded):
        RateLimiter(memory, "a", limit=limits.MAX_SLIDING_LOG_LIMIT + 1, window=1)
    with pytest.raises(LimitExceeded):
        RateLimiter(memory, "a", limit=1, window=timedelta(days=367))


@dataclass
class Log:
    """The definition of a sliding log: all that was taken, in a list."""

    limit: int
    window: timedelta
    taken: list[tuple[datetime, int]]

    def used(self, at: datetime) -> int:
        return sum(cost for when, cost in self.taken if when > at - self.window)

    def decide(self, at: datetime, cost: int) -> tuple[bool, int, float, float]:
        """Allowed, remaining, retry_after and reset_after, in seconds."""
        allowed = self.used(at) + cost <= self.limit
        if allowed:
            self.taken.append((at, cost))
        ends = sorted(when + self.window for when, _ in self.taken if when > at - self.window)
        room = [at, *ends]
        retry_at = at if allowed else next(t for t in room if self.used(t) + cost <= self.limit)
        remaining = self.limit - self.used(at)
        return allowed, remaining, (retry_at - at).total_seconds(), (room[-1] - at).total_seconds()


@pytest.mark.parametrize("seed", range(3))
async def test_a_sliding_log_equals_its_model(kv: KV, name: str, seed: int) -> None:
    """At the times that the store has decided by, which the answers give away."""
    chance = random.Random(seed)
    limiter = RateLimiter(kv, name, limit=8, window=0.05)
    model = Log(8, timedelta(seconds=0.05), [])
    passed = refused = 0
    for _ in range(300):
        cost = chance.choice((1, 1, 1, 2, 8))
        decision: RateDecision = await limiter.check("ann", cost)
        at = decision.reset_at - timedelta(seconds=decision.reset_after)
        expected = model.decide(at, cost)
        told = (decision.allowed, decision.remaining, decision.retry_after, decision.reset_after)
        assert told == expected
        passed += decision.allowed
        refused += not decision.allowed
        await asyncio.sleep(chance.choice((0, 0, 0, 0.002, 0.01)))
    assert passed > 20
    assert refused > 5


async def test_a_refusal_changes_nothing() -> None:
    """A store that is refused often is whole again as soon as one that was asked once."""
    async with kvorum.open("memory:") as kv:
        limiter = RateLimiter(kv, "api", limit=1, window=60)
        first = await limiter.check("ann")
        refused = [await limiter.check("ann") for _ in range(100)]
        assert {one.reset_at for one in refused if not one} == {first.reset_at}
