"""The three algorithms, each held against its definition; and what is true of all of them."""

import random
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import TypeAlias

import pytest

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine.rate_limits import NEVER_MS, Taken, take
from kvorumpb.v1.command_pb2 import RateLimit, RateLimitState

LOG, COUNTER, GCRA = RateLimit.SLIDING_LOG, RateLimit.SLIDING_COUNTER, RateLimit.GCRA
ALGORITHMS = pytest.mark.parametrize(
    "algorithm", [LOG, COUNTER, GCRA], ids=["log", "counter", "gcra"]
)

Algorithm: TypeAlias = RateLimit.Algorithm.ValueType
NOW_MS = 1_700_000_000_123
DAY_MS = 24 * 3600 * 1000


def _limit(
    algorithm: Algorithm,
    limit: int = 10,
    window_ms: int = 1000,
    *,
    cost: int = 1,
    burst: int = 0,
    reset: bool = False,
) -> RateLimit:
    return RateLimit(
        key=b"user",
        algorithm=algorithm,
        limit=limit,
        window_ms=window_ms,
        cost=cost,
        burst=burst,
        reset=reset,
    )


class Kept:
    """What the machine keeps of one limit, with sweeps now and then."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self.state = b""
        self.expire_time_ms = 0

    def peek(self, limit: RateLimit, now_ms: int, *, cost: int | None = None) -> Taken:
        """What would come of it."""
        asked = RateLimit()
        asked.CopyFrom(limit)
        if cost is not None:
            asked.cost = cost
        swept = self.expire_time_ms <= now_ms and self._source.random() < 0.5
        return take(asked, b"" if swept else self.state, now_ms)

    def take(self, limit: RateLimit, now_ms: int) -> RateLimitState:
        taken = self.peek(limit, now_ms)
        if taken.changes:
            assert taken.result.allowed
            self.state, self.expire_time_ms = taken.state, taken.expire_time_ms
            assert bool(self.state) == bool(limit.cost)
            assert not self.state or self.expire_time_ms > now_ms
        return taken.result


def _capacity(limit: RateLimit) -> int:
    return limit.burst or limit.limit


def _schedule(source: random.Random, count: int, longest_ms: int) -> Iterator[int]:
    """Times that often are equal or near, and now and then far."""
    now_ms = source.choice((0, NOW_MS))
    for _ in range(count):
        now_ms += source.choice((0, 0, 1, source.randint(0, longest_ms // 4 + 1)))
        if source.random() < 0.02:
            now_ms += source.randint(0, 3 * longest_ms)
        yield now_ms


# Sliding log


class LogModel:
    """All that was taken, in a list."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []
        self._forgotten_ms = 0

    def used(self, limit: RateLimit, now_ms: int) -> int:
        if now_ms >= self._forgotten_ms:
            return 0
        return sum(cost for at_ms, cost in self.taken if at_ms > now_ms - limit.window_ms)

    def allows(self, limit: RateLimit, now_ms: int) -> bool:
        return not limit.cost or self.used(limit, now_ms) + limit.cost <= limit.limit

    def take(self, limit: RateLimit, now_ms: int) -> RateLimitState:
        if not self.allows(limit, now_ms):
            return self._state(limit, now_ms, allowed=False)
        if limit.cost:
            first_ms = now_ms - limit.window_ms
            forgotten = now_ms >= self._forgotten_ms
            kept = [] if forgotten else [one for one in self.taken if one[0] > first_ms]
            self.taken = [*kept, (now_ms, limit.cost)]
            self._forgotten_ms = now_ms + limit.window_ms
        return self._state(limit, now_ms, allowed=True)

    def _state(self, limit: RateLimit, now_ms: int, *, allowed: bool) -> RateLimitState:
        retry_ms = reset_ms = 0
        while not allowed and not self.allows(limit, now_ms + retry_ms):
            retry_ms += 1
        while self.used(limit, now_ms + reset_ms):
            reset_ms += 1
        return RateLimitState(
            allowed=allowed,
            remaining=max(limit.limit - self.used(limit, now_ms), 0),
            retry_after_ms=retry_ms,
            reset_after_ms=reset_ms,
        )


@pytest.mark.parametrize("changing", [False, True], ids=["one setting", "changing settings"])
@pytest.mark.parametrize("seed", range(20))
def test_a_sliding_log_is_what_a_list_of_all_that_was_taken_says(seed: int, changing: bool) -> None:
    source = random.Random(seed)
    kept, model = Kept(source), LogModel()
    limit = _limit(LOG, source.randint(1, 12), source.randint(1, 40))
    allowed = denied = 0
    for now_ms in _schedule(source, 400, 40):
        if changing and source.random() < 0.1:
            limit = _limit(LOG, source.randint(1, 12), source.randint(1, 40))
        limit.cost = source.choice((0, 1, 1, 1, source.randint(1, limit.limit)))
        result = kept.take(limit, now_ms)
        assert result == model.take(limit, now_ms), (now_ms, limit)
        allowed += result.allowed
        denied += not result.allowed
    assert allowed > 20
    assert denied > 20


@pytest.mark.parametrize("seed", range(10))
def test_no_window_of_a_sliding_log_has_more_than_the_limit(seed: int) -> None:
    """Wherever the window begins; a limit that was lowered holds for what comes after it."""
    source = random.Random(seed)
    window_ms = source.randint(2, 200)
    limit = _limit(LOG, source.randint(2, 100), window_ms)
    kept, window = Kept(source), deque[tuple[int, int]]()
    fullest = 0
    for now_ms in _schedule(source, 5000, window_ms):
        limit.cost = source.choice((1, 1, 1, source.randint(1, limit.limit)))
        if source.random() < 0.01:
            limit.limit = source.randint(limit.cost, 100)
        if not kept.take(limit, now_ms).allowed:
            continue
        window.append((now_ms, limit.cost))
        while window[0][0] <= now_ms - window_ms:
            window.popleft()
        taken = sum(cost for _, cost in window)
        assert taken <= limit.limit
        fullest = max(fullest, taken)
    assert fullest > 1


def test_what_was_taken_leaves_a_sliding_log_after_exactly_its_window() -> None:
    kept = Kept(random.Random(0))
    limit = _limit(LOG, 1, 1000)
    assert kept.take(limit, NOW_MS).allowed
    assert kept.take(limit, NOW_MS + 999) == RateLimitState(retry_after_ms=1, reset_after_ms=1)
    assert kept.take(limit, NOW_MS + 1000).allowed


def test_a_sliding_log_of_the_largest_limit_keeps_within_eight_bytes_each() -> None:
    """Even if every event has a time of its own, as far apart as a window lets them be."""
    count = limits.MAX_SLIDING_LOG_LIMIT
    limit = _limit(LOG, count, limits.MAX_RATE_WINDOW_MS)
    apart_ms = limits.MAX_RATE_WINDOW_MS // count
    kept = Kept(random.Random(0))
    for number in range(count):
        assert kept.take(limit, NOW_MS + number * apart_ms).remaining == count - number - 1
    assert count < len(kept.state) <= 8 * count
    last_ms = NOW_MS + (count - 1) * apart_ms
    denied = kept.take(limit, last_ms)
    assert denied.retry_after_ms == limits.MAX_RATE_WINDOW_MS - (count - 1) * apart_ms
    assert kept.take(limit, last_ms + denied.retry_after_ms).allowed
    assert len(kept.state) <= 8 * count


def test_what_is_taken_at_one_time_takes_the_place_of_one() -> None:
    count = limits.MAX_SLIDING_LOG_LIMIT
    limit = _limit(LOG, count, 1000)
    kept = Kept(random.Random(0))
    for _ in range(count):
        assert kept.take(limit, NOW_MS).allowed
    assert not kept.take(limit, NOW_MS).allowed
    assert len(kept.state) <= 24
    kept.take(_limit(LOG, count + 5, 1000, cost=5), NOW_MS + 1)
    assert len(kept.state) <= 24


# Sliding counter


@pytest.mark.parametrize("seed", range(20))
def test_a_sliding_counter_is_its_definition(seed: int) -> None:
    """The fixed window of now, and the one before by its share; never more than the limit."""
    source = random.Random(seed)
    window_ms = source.randint(1, 50)
    limit = _limit(COUNTER, source.randint(1, 20), window_ms)
    kept = Kept(source)
    taken: dict[int, int] = {}

    def estimate(at_ms: int) -> Fraction:
        number, elapsed_ms = divmod(at_ms, window_ms)
        share = Fraction(window_ms - elapsed_ms, window_ms)
        return taken.get(number, 0) + taken.get(number - 1, 0) * share

    answers = set()
    for now_ms in _schedule(source, 600, window_ms):
        if source.random() < 0.05:
            limit.limit = source.randint(1, 20)
        limit.cost = source.choice((0, 1, 1, 1, source.randint(1, limit.limit)))
        result = kept.take(limit, now_ms)
        assert result.allowed == (not limit.cost or estimate(now_ms) + limit.cost <= limit.limit), (
            now_ms,
            limit,
        )
        answers.add(result.allowed)
        if result.allowed and limit.cost:
            number = now_ms // window_ms
            taken[number] = taken.get(number, 0) + limit.cost
            assert estimate(now_ms) <= limit.limit
        assert result.remaining == max((limit.limit - estimate(now_ms)) // 1, 0)
    assert answers == {True, False} or window_ms < 3


def test_a_changed_window_of_a_counter_places_what_was_taken_as_late_as_it_may_have_been() -> None:
    begin_ms = 1_000_000_000
    kept = Kept(random.Random(0))
    kept.take(_limit(COUNTER, 10, 1000, cost=4), begin_ms + 300)
    kept.take(_limit(COUNTER, 10, 1000, cost=3), begin_ms + 1100)
    # In fixed windows of 200 ms: 4 at 999 at the latest, 3 at 1,100.
    shorter = _limit(COUNTER, 10, 200, cost=0)
    assert [
        kept.take(shorter, begin_ms + at_ms).remaining
        for at_ms in (1100, 1150, 1151, 1199, 1200, 1300, 1399, 1400)
    ] == [5, 6, 6, 6, 7, 8, 9, 10]
    longer = _limit(COUNTER, 10, 5000, cost=0)
    assert kept.take(longer, begin_ms + 1100).remaining == 3
    assert kept.take(longer, begin_ms + 2999).remaining == 3
    assert kept.take(longer, begin_ms + 2999).reset_after_ms == 1, "forgotten by what it was"
    assert kept.take(longer, begin_ms + 3000).remaining == 10


# GCRA


@pytest.mark.parametrize("seed", range(20))
def test_gcra_is_its_theoretical_arrival_time_in_rational_numbers(seed: int) -> None:
    source = random.Random(seed)
    limit = _limit(GCRA, source.randint(1, 30), source.randint(1, 100))
    limit.burst = source.choice((0, source.randint(1, limit.limit)))
    interval = Fraction(limit.window_ms, limit.limit)
    kept = Kept(source)
    arrival = Fraction(0)
    answers = set()
    for now_ms in _schedule(source, 600, limit.window_ms):
        limit.cost = source.choice((0, 1, 1, 1, source.randint(1, _capacity(limit))))
        tolerated = _capacity(limit) * interval
        result = kept.take(limit, now_ms)
        after = max(arrival, Fraction(now_ms)) + limit.cost * interval
        assert result.allowed == (not limit.cost or after - now_ms <= tolerated), (now_ms, limit)
        answers.add(result.allowed)
        if result.allowed:
            arrival = after
        ahead = max(arrival - now_ms, Fraction(0))
        assert result.remaining == (tolerated - ahead) / interval // 1
        assert result.reset_after_ms == -(-ahead // 1)
        if not result.allowed:
            assert result.retry_after_ms == -(-(after - now_ms - tolerated) // 1)
    assert answers == {True, False} or limit.window_ms < 3


@pytest.mark.parametrize("seed", range(10))
def test_gcra_keeps_its_count_under_another_limit_and_window(seed: int) -> None:
    """As cells, which drain at the rate of the limit that asks."""
    source = random.Random(seed)
    for _ in range(200):
        before = _limit(GCRA, source.randint(1, 50), source.randint(1, 10_000))
        before.cost = source.randint(1, before.limit)
        after = _limit(GCRA, source.randint(1, 50), source.randint(1, 10_000), cost=0)
        after.burst = source.choice((0, source.randint(1, after.limit)))
        kept = Kept(source)
        kept.take(before, NOW_MS)
        later_ms = source.randint(0, 300)
        drained = Fraction(after.limit * later_ms, after.window_ms)
        cells = Fraction(before.cost)
        if NOW_MS + later_ms >= kept.expire_time_ms:
            cells = Fraction(0)
        room = _capacity(after) - max(cells - drained, Fraction(0))
        assert kept.take(after, NOW_MS + later_ms).remaining == max(room // 1, 0)


def test_gcra_has_no_drift_at_an_interval_that_is_no_whole_number_of_milliseconds() -> None:
    """Seven a second: 1,000 seconds of as many as there is room for, one at a time."""
    kept = Kept(random.Random(0))
    limit = _limit(GCRA, 7, 1000, burst=1)
    assert [
        now_ms for now_ms in range(3000) if kept.take(limit, NOW_MS + now_ms).allowed
    ] == [0, 143, 286, 429, 572, 715, 858, 1001, 1144, 1287, 1430, 1573, 1716, 1859, 2002, 2145,
         2288, 2431, 2574, 2717, 2860]  # fmt: skip
    limit.burst = 2
    taken = sum(kept.take(limit, NOW_MS + 10**6 + now_ms).allowed for now_ms in range(100_000))
    assert taken == 2 + 699


def test_a_burst_of_gcra_is_how_many_come_at_once() -> None:
    kept = Kept(random.Random(0))
    limit = _limit(GCRA, 10, 1000, burst=3)
    results = [kept.take(limit, NOW_MS) for _ in range(4)]
    assert [result.allowed for result in results] == [True, True, True, False]
    assert [result.remaining for result in results] == [2, 1, 0, 0]
    assert results[-1].retry_after_ms == 100
    assert results[-1].reset_after_ms == 300


# All of them


@ALGORITHMS
@pytest.mark.parametrize("largest", [False, True], ids=["small", "up to the largest"])
@pytest.mark.parametrize("seed", range(15))
def test_the_waits_are_exact(algorithm: Algorithm, largest: bool, seed: int) -> None:
    """Denied until 1 ms before, allowed then; whole then, and not 1 ms before.

    Whether or not settings change, states are swept, and nothing is asked meanwhile.
    """
    source = random.Random(seed)
    kept = Kept(source)
    highest = limits.MAX_SLIDING_LOG_LIMIT if algorithm == LOG else limits.MAX_RATE_LIMIT
    if not largest:
        highest = 10
    longest_ms = limits.MAX_RATE_WINDOW_MS if largest else 100

    def setting() -> RateLimit:
        made = _limit(algorithm, source.randint(1, highest), source.randint(1, longest_ms))
        if algorithm == GCRA and source.random() < 0.5:
            made.burst = source.randint(1, made.limit)
        return made

    limit = setting()
    denied = 0
    for now_ms in _schedule(source, 300, longest_ms):
        if source.random() < 0.1:
            limit = setting()
        capacity = _capacity(limit)
        limit.cost = source.choice((1, source.randint(1, capacity), max(capacity // 3, 1)))
        result = kept.take(limit, now_ms)
        if result.allowed:
            assert result.retry_after_ms == 0
        else:
            denied += 1
            assert result.retry_after_ms > 0
            retry_ms = now_ms + result.retry_after_ms
            assert not kept.peek(limit, retry_ms - 1).result.allowed, (now_ms, limit)
            assert kept.peek(limit, retry_ms).result.allowed, (now_ms, limit)
        if result.reset_after_ms:
            whole_ms = now_ms + result.reset_after_ms
            assert kept.peek(limit, whole_ms - 1, cost=0).result.remaining < capacity
            assert kept.peek(limit, whole_ms, cost=0).result == RateLimitState(
                allowed=True, remaining=capacity
            )
        else:
            assert result.remaining == capacity
        standing = kept.peek(limit, now_ms, cost=0).result
        assert standing.remaining == result.remaining
        assert standing.reset_after_ms == result.reset_after_ms
    assert denied > 10


@ALGORITHMS
@pytest.mark.parametrize("seed", range(5))
def test_a_state_means_nothing_when_it_expires(algorithm: Algorithm, seed: int) -> None:
    source = random.Random(seed)
    for _ in range(100):
        limit = _limit(algorithm, source.randint(1, 50), source.randint(1, 5000))
        limit.cost = source.randint(1, limit.limit)
        taken = take(limit, b"", NOW_MS + source.randrange(5000))
        limit.cost = 0
        whole = take(limit, b"", NOW_MS).result
        assert take(limit, taken.state, taken.expire_time_ms).result == whole
        assert take(limit, taken.state, taken.expire_time_ms - 1).result != whole


@ALGORITHMS
def test_as_much_as_there_is_room_for_can_be_taken(algorithm: Algorithm) -> None:
    """One by one, at once, and after a part was taken; and no more."""
    for costs in ([1] * 10, [10], [4, 6], [9, 1]):
        kept = Kept(random.Random(0))
        left = 10
        for cost in costs:
            left -= cost
            result = kept.take(_limit(algorithm, cost=cost), NOW_MS)
            assert result.allowed
            assert result.remaining == left
        before = kept.state
        assert not kept.take(_limit(algorithm), NOW_MS).allowed
        assert kept.state == before


@ALGORITHMS
def test_a_cost_of_0_reads_and_takes_nothing(algorithm: Algorithm) -> None:
    kept = Kept(random.Random(0))
    kept.take(_limit(algorithm, cost=10), NOW_MS)
    before = kept.state
    taken = kept.peek(_limit(algorithm, cost=0), NOW_MS)
    assert taken.result == taken.untaken
    assert taken.result.allowed
    assert taken.result.retry_after_ms == 0
    assert taken.result.remaining == 0
    assert taken.result.reset_after_ms > 0
    assert not taken.changes
    assert (taken.state, taken.expire_time_ms) == (before, kept.expire_time_ms)
    # Even if the limit was lowered below what was taken.
    lowered = kept.peek(_limit(algorithm, 3, cost=0), NOW_MS).result
    assert (lowered.allowed, lowered.remaining, lowered.retry_after_ms) == (True, 0, 0)


@ALGORITHMS
def test_untaken_is_how_the_limit_stands_without_this(algorithm: Algorithm) -> None:
    kept = Kept(random.Random(0))
    kept.take(_limit(algorithm, cost=4), NOW_MS)
    taken = kept.peek(_limit(algorithm, cost=6), NOW_MS)
    standing = kept.peek(_limit(algorithm, cost=0), NOW_MS).result
    assert (taken.result.allowed, taken.result.remaining) == (True, 0)
    assert taken.untaken == standing
    assert standing.remaining == 6
    denied = kept.peek(_limit(algorithm, cost=7), NOW_MS)
    assert denied.result == denied.untaken
    assert not denied.untaken.allowed
    assert denied.untaken.remaining == 6
    assert denied.untaken.retry_after_ms > 0
    assert not denied.changes


@ALGORITHMS
def test_a_lowered_limit_holds_at_once_and_a_raised_one_too(algorithm: Algorithm) -> None:
    kept = Kept(random.Random(0))
    kept.take(_limit(algorithm, cost=6), NOW_MS)
    lowered = kept.peek(_limit(algorithm, 5), NOW_MS).result
    assert (lowered.allowed, lowered.remaining) == (False, 0)
    raised = kept.peek(_limit(algorithm, 20), NOW_MS).result
    assert (raised.allowed, raised.remaining) == (True, 13)


@ALGORITHMS
def test_a_shortened_window_frees_at_once(algorithm: Algorithm) -> None:
    """Nobody waits for a day after the window was shortened to a second."""
    kept = Kept(random.Random(0))
    kept.take(_limit(algorithm, 10, DAY_MS, cost=10), NOW_MS)
    denied = kept.peek(_limit(algorithm, 10, 1000), NOW_MS).result
    assert not denied.allowed
    assert denied.reset_after_ms <= 2000
    assert kept.peek(_limit(algorithm, 10, 1000, cost=10), NOW_MS + 2000).result.allowed


@ALGORITHMS
def test_what_another_algorithm_has_counted_is_not_counted(algorithm: Algorithm) -> None:
    for other in {LOG, COUNTER, GCRA} - {algorithm}:
        state = take(_limit(other, cost=10), b"", NOW_MS).state
        taken = take(_limit(algorithm), state, NOW_MS)
        assert taken.result == take(_limit(algorithm), b"", NOW_MS).result
        assert taken.changes
        assert taken.state == take(_limit(algorithm), b"", NOW_MS).state


@ALGORITHMS
def test_reset_forgets_what_was_counted_before(algorithm: Algorithm) -> None:
    kept = Kept(random.Random(0))
    kept.take(_limit(algorithm, cost=10), NOW_MS)
    afresh = kept.peek(_limit(algorithm, cost=7, reset=True), NOW_MS)
    assert (afresh.result.allowed, afresh.result.remaining) == (True, 3)
    assert afresh.state == take(_limit(algorithm, cost=7), b"", NOW_MS).state
    # It would have room, but if another limit has none, it has forgotten nothing.
    assert (afresh.untaken.allowed, afresh.untaken.retry_after_ms) == (True, 0)
    assert afresh.untaken.remaining == 0
    assert afresh.untaken.reset_after_ms > 0
    emptied = kept.peek(_limit(algorithm, cost=0, reset=True), NOW_MS)
    assert emptied.result == RateLimitState(allowed=True, remaining=10)
    assert (emptied.changes, emptied.state) == (True, b"")
    assert not take(_limit(algorithm, cost=0, reset=True), b"", NOW_MS).changes


@ALGORITHMS
@pytest.mark.parametrize(
    ("limit", "window_ms", "cost", "burst"),
    [(10, 1000, 11, 0), (10, 1000, -1, 0), (0, 1000, 0, 0), (-1, 1000, 1, 0), (10, 0, 1, 0)],
    ids=["cost above", "negative cost", "no limit", "negative limit", "no window"],
)
def test_what_validation_refuses_is_denied_for_ever(
    algorithm: Algorithm, limit: int, window_ms: int, cost: int, burst: int
) -> None:
    state = take(_limit(algorithm, cost=3), b"", NOW_MS).state
    for reset in (False, True):
        for held in (b"", state):
            asked = _limit(algorithm, limit, window_ms, cost=cost, burst=burst, reset=reset)
            taken = take(asked, held, NOW_MS)
            assert not taken.result.allowed
            assert taken.result.retry_after_ms == NEVER_MS
            assert not taken.changes


def test_a_cost_above_the_burst_is_denied_for_ever() -> None:
    taken = take(_limit(GCRA, cost=4, burst=3), b"", NOW_MS)
    assert taken.result == RateLimitState(remaining=3, retry_after_ms=NEVER_MS)


# The bytes of a state

KEPT = {
    # Written down once: what is on a disk keeps its meaning for ever.
    "log": "019f89cf26e80790db95ffbc31d904059701b109960102",
    "counter": "02543da1bde80790db95ffbc31069701",
    "gcra": "030e6b2ed9e807e80790db95ffbc318827",
}


def _states() -> dict[str, bytes]:
    """One state of each algorithm, with every kind of number in it."""
    made = {}
    for name, algorithm in (("log", LOG), ("counter", COUNTER), ("gcra", GCRA)):
        kept = Kept(random.Random(0))
        for later_ms, cost in ((0, 1), (700, 150), (1300, 1), (1301, 2), (1301, 3)):
            limit = _limit(algorithm, 1000, 1000, cost=cost, burst=300 if algorithm == GCRA else 0)
            assert kept.take(limit, NOW_MS + later_ms).allowed
        made[name] = kept.state
    return made


@pytest.mark.parametrize("name", KEPT)
def test_a_state_keeps_its_form(name: str) -> None:
    assert _states()[name].hex() == KEPT[name]


@pytest.mark.parametrize("name", KEPT)
def test_every_altered_bit_of_a_state_is_noticed(name: str) -> None:
    state = _states()[name]
    for algorithm in (LOG, COUNTER, GCRA):
        limit = _limit(algorithm, 1000, 1000)
        for position in range(len(state) * 8):
            altered = bytearray(state)
            altered[position // 8] ^= 1 << position % 8
            with pytest.raises(StorageError, match="the state of a rate limit is damaged"):
                take(limit, bytes(altered), NOW_MS + 1301)
        for length in range(1, len(state)):
            with pytest.raises(StorageError, match="the state of a rate limit is damaged"):
                take(limit, state[:length], NOW_MS + 1301)
