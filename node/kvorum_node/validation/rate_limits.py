"""What a rate limit must be like before it is worth a log entry.

What passes here, machine/rate_limits.py can decide about:
a limit that is whole has room for its cost.
"""

from typing import Final

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded
from kvorum_node.validation.parts import shown, too_long
from kvorumpb.v1.command_pb2 import RateLimit, RateLimitOperation

_LARGEST: Final[dict[RateLimit.Algorithm.ValueType, str]] = {
    RateLimit.SLIDING_LOG: "MAX_SLIDING_LOG_LIMIT",
    RateLimit.SLIDING_COUNTER: "MAX_RATE_LIMIT",
    RateLimit.GCRA: "MAX_RATE_LIMIT",
}
"""By algorithm, the name of the highest limit."""


def validate_rate_limit(operation: RateLimitOperation, where: str, taken: set[bytes]) -> None:
    """Raises InvalidArgument or LimitExceeded.

    Args:
        operation: to be checked.
        where: names the operation.
        taken: keys of the rate limits of the operations before it; those of this one are added.
    """
    count = len(operation.limits)
    if count == 0:
        raise InvalidArgument(f"{where} of the transaction has no rate limit: add at least one")
    if count > limits.MAX_RATE_LIMITS:
        raise _exceeded(
            f"{where} of the transaction has {count:,} rate limits, more than"
            f" {limits.MAX_RATE_LIMITS}: leave some out",
            "MAX_RATE_LIMITS",
            count,
        )
    for limit in operation.limits:
        _validate_key(limit.key, where)
        if limit.key in taken:
            raise InvalidArgument(
                f"{where} of the transaction takes from the rate limit {shown(limit.key)} a"
                " second time: give it once, with the whole cost"
            )
        taken.add(limit.key)
        _validate_setting(limit)
        _validate_cost(limit)


def _validate_key(key: bytes, where: str) -> None:
    if not key:
        raise InvalidArgument(
            f"a key of a rate limit in {where} is empty: it must have at least one byte"
        )
    if len(key) > limits.MAX_KEY_BYTES:
        raise too_long("the key of the rate limit", key)


def _validate_setting(limit: RateLimit) -> None:
    name = _LARGEST.get(limit.algorithm)
    if name is None:
        raise InvalidArgument(
            f"the rate limit {shown(limit.key)} has the algorithm {limit.algorithm}, which is none"
            " that this node knows: set SLIDING_LOG, SLIDING_COUNTER or GCRA"
        )
    if limit.limit < 1:
        raise InvalidArgument(
            f"the rate limit {shown(limit.key)} allows {limit.limit}: give a limit of at least 1"
        )
    largest: int = getattr(limits, name)
    if limit.limit > largest:
        helps = (
            ": use SLIDING_COUNTER or GCRA, which do not keep each event"
            if limit.algorithm == RateLimit.SLIDING_LOG
            else ": count in larger units"
        )
        raise _exceeded(
            f"the rate limit {shown(limit.key)} allows {limit.limit:,}, more than the {largest:,}"
            f" of its algorithm{helps}",
            name,
            limit.limit,
        )
    if limit.window_ms < 1:
        raise InvalidArgument(
            f"the rate limit {shown(limit.key)} has a window of {limit.window_ms} ms: give at"
            " least 1"
        )
    if limit.window_ms > limits.MAX_RATE_WINDOW_MS:
        raise _exceeded(
            f"the rate limit {shown(limit.key)} has a window of {limit.window_ms:,} ms, more than"
            f" {limits.MAX_RATE_WINDOW_MS:,}: shorten it",
            "MAX_RATE_WINDOW_MS",
            limit.window_ms,
        )


def _validate_cost(limit: RateLimit) -> None:
    capacity = limit.limit
    if limit.burst:
        if limit.algorithm != RateLimit.GCRA:
            raise InvalidArgument(
                f"the rate limit {shown(limit.key)} has a burst, which only GCRA has: leave it out"
            )
        if not 0 < limit.burst <= limit.limit:
            raise InvalidArgument(
                f"the rate limit {shown(limit.key)} has a burst of {limit.burst:,}: give 1 to its"
                f" limit, {limit.limit:,}, or 0 for the limit"
            )
        capacity = limit.burst
    if limit.cost < 0:
        raise InvalidArgument(
            f"the cost {limit.cost} at the rate limit {shown(limit.key)} is negative: give at"
            " least 1, or 0 to read how it stands"
        )
    if limit.cost > capacity:
        raise InvalidArgument(
            f"the cost {limit.cost:,} is more than the rate limit {shown(limit.key)} ever has room"
            f" for, which is {capacity:,}: take it in parts"
        )


def _exceeded(message: str, limit: str, actual: int) -> LimitExceeded:
    maximum: int = getattr(limits, limit)
    return LimitExceeded(message, limit=limit, maximum=maximum, actual=actual)
