"""Each bound of a rate limit: at it, one above, and at zero."""

from collections.abc import Callable

import pytest

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded
from kvorum_node.machine.rate_limits import take
from kvorum_node.validation import validate_rate_limit
from kvorumpb.v1.command_pb2 import RateLimit, RateLimitOperation

LOG, COUNTER, GCRA = RateLimit.SLIDING_LOG, RateLimit.SLIDING_COUNTER, RateLimit.GCRA
ALL = pytest.mark.parametrize("algorithm", [LOG, COUNTER, GCRA], ids=["log", "counter", "gcra"])

LONGEST_KEY = b"k" * limits.MAX_KEY_BYTES
WHERE = "operations[3]"


def _limit(
    algorithm: RateLimit.Algorithm.ValueType = LOG,
    limit: int = 10,
    *,
    key: bytes = b"user:1",
    window_ms: int = 1000,
    cost: int = 1,
    burst: int = 0,
) -> RateLimit:
    return RateLimit(
        key=key, algorithm=algorithm, limit=limit, window_ms=window_ms, cost=cost, burst=burst
    )


def _accept(*rate_limits: RateLimit) -> None:
    """It passes, and what passes has room when it is whole."""
    validate_rate_limit(RateLimitOperation(limits=rate_limits), WHERE, set())
    for limit in rate_limits:
        assert take(limit, b"", 0).result.allowed


def _refuse(match: str, *rate_limits: RateLimit) -> None:
    with pytest.raises(InvalidArgument, match=match) as raised:
        validate_rate_limit(RateLimitOperation(limits=rate_limits), WHERE, set())
    assert not isinstance(raised.value, LimitExceeded)
    assert len(raised.value.message) < 250


def _exceed(match: str, name: str, actual: int, *rate_limits: RateLimit) -> None:
    maximum = getattr(limits, name)
    with pytest.raises(LimitExceeded, match=match) as raised:
        validate_rate_limit(RateLimitOperation(limits=rate_limits), WHERE, set())
    assert raised.value.metadata == {
        "limit": name,
        "maximum": str(maximum),
        "actual": str(actual),
    }
    assert f"{maximum:,}" in raised.value.message
    assert len(raised.value.message) < 250


def test_how_many_limits_an_operation_has() -> None:
    many = [_limit(key=b"%d" % number) for number in range(limits.MAX_RATE_LIMITS + 1)]
    _refuse(r"operations\[3\] of the transaction has no rate limit: add at least one")
    _accept(many[0])
    _accept(*many[:-1])
    _exceed(
        r"operations\[3\] .* leave some out", "MAX_RATE_LIMITS", limits.MAX_RATE_LIMITS + 1, *many
    )


@pytest.mark.parametrize("key", [b"k", b"\0", b"\xff", LONGEST_KEY])
def test_a_key_within_its_limit(key: bytes) -> None:
    _accept(_limit(key=key))


def test_a_key_beyond_its_limit() -> None:
    _refuse(r"a key of a rate limit in operations\[3\] is empty", _limit(key=b""))
    _refuse("is empty", _limit(), _limit(key=b""))
    _exceed(
        f"the rate limit '{'k' * 48}'… .* shorten it, or use a hash",
        "MAX_KEY_BYTES",
        limits.MAX_KEY_BYTES + 1,
        _limit(key=LONGEST_KEY + b"k"),
    )


def test_a_key_that_is_no_text_is_shown_as_well_as_it_can_be() -> None:
    _refuse(r"'é\\udcff\\n' allows 0", _limit(limit=0, key=b"\xc3\xa9\xff\n"))


def test_a_key_twice() -> None:
    _accept(_limit(key=b"a"), _limit(key=b"b"))
    _refuse(
        r"operations\[3\] .* the rate limit 'a' a second time: give it once",
        _limit(key=b"a"),
        _limit(key=b"b"),
        _limit(COUNTER, 7, key=b"a"),
    )


def test_an_algorithm_that_is_none() -> None:
    later = RateLimit.FromString(_limit().SerializeToString() + bytes([2 << 3, 4]))
    assert later.algorithm == 4
    for limit, number in ((_limit(RateLimit.ALGORITHM_UNSPECIFIED), 0), (later, 4)):
        _refuse(f"'user:1' has the algorithm {number}, which is none .* set SLIDING_LOG", limit)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(LOG, "MAX_SLIDING_LOG_LIMIT"), (COUNTER, "MAX_RATE_LIMIT"), (GCRA, "MAX_RATE_LIMIT")],
)
def test_the_limit(algorithm: RateLimit.Algorithm.ValueType, name: str) -> None:
    maximum = getattr(limits, name)
    for limit in (1, maximum):
        _accept(_limit(algorithm, limit))
    for limit in (0, -1, limits.MIN_INTEGER):
        _refuse(
            f"'user:1' allows {limit}: give a limit of at least 1",
            _limit(algorithm, limit, cost=0),
        )
    for limit in (maximum + 1, limits.MAX_INTEGER):
        helps = "use SLIDING_COUNTER or GCRA" if algorithm == LOG else "count in larger units"
        _exceed(helps, name, limit, _limit(algorithm, limit))


@ALL
def test_the_window(algorithm: RateLimit.Algorithm.ValueType) -> None:
    for window_ms in (1, limits.MAX_RATE_WINDOW_MS):
        _accept(_limit(algorithm, window_ms=window_ms))
    for window_ms in (0, -1, limits.MIN_INTEGER):
        _refuse(
            f"'user:1' has a window of {window_ms} ms: give at least 1",
            _limit(algorithm, window_ms=window_ms),
        )
    for window_ms in (limits.MAX_RATE_WINDOW_MS + 1, limits.MAX_INTEGER):
        _exceed(
            "'user:1' has a window of .* shorten it",
            "MAX_RATE_WINDOW_MS",
            window_ms,
            _limit(algorithm, window_ms=window_ms),
        )


@ALL
def test_the_cost(algorithm: RateLimit.Algorithm.ValueType) -> None:
    for cost in (0, 1, 10):
        _accept(_limit(algorithm, cost=cost))
    for cost in (-1, limits.MIN_INTEGER):
        _refuse(f"the cost {cost} at the rate limit 'user:1' is", _limit(algorithm, cost=cost))
    for cost in (11, limits.MAX_INTEGER):
        _refuse("'user:1' ever has room for, which is 10: take", _limit(algorithm, cost=cost))


def test_the_cost_at_a_burst() -> None:
    for cost in (0, 1, 4):
        _accept(_limit(GCRA, cost=cost, burst=4))
    _refuse("'user:1' ever has room for, which is 4", _limit(GCRA, cost=5, burst=4))


def test_the_burst() -> None:
    for burst in (0, 1, 10):
        _accept(_limit(GCRA, burst=burst))
    for burst in (11, -1, limits.MIN_INTEGER, limits.MAX_INTEGER):
        _refuse(
            f"'user:1' has a burst of {burst:,}: give 1 to its limit, 10, or 0",
            _limit(GCRA, burst=burst, cost=0),
        )


@pytest.mark.parametrize("algorithm", [LOG, COUNTER])
@pytest.mark.parametrize("burst", [1, 10, -1])
def test_only_gcra_has_a_burst(algorithm: RateLimit.Algorithm.ValueType, burst: int) -> None:
    _accept(_limit(algorithm, burst=0))
    _refuse("'user:1' has a burst, which only GCRA has", _limit(algorithm, burst=burst))


@ALL
def test_a_reset_is_like_any_other(algorithm: RateLimit.Algorithm.ValueType) -> None:
    def reset(cost: int) -> RateLimit:
        limit = _limit(algorithm, cost=cost)
        limit.reset = True
        return limit

    _accept(reset(0))
    _accept(reset(10))
    _refuse("ever has room for", reset(11))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: _limit(key=b""),
        lambda: _limit(RateLimit.ALGORITHM_UNSPECIFIED),
        lambda: _limit(limit=0),
        lambda: _limit(window_ms=0),
        lambda: _limit(cost=-1),
        lambda: _limit(burst=1),
    ],
    ids=["key", "algorithm", "limit", "window", "cost", "burst"],
)
def test_every_limit_of_an_operation_is_looked_at(wrong: Callable[[], RateLimit]) -> None:
    with pytest.raises(InvalidArgument):
        validate_rate_limit(RateLimitOperation(limits=[_limit(key=b"good"), wrong()]), WHERE, set())
