"""What rate limits count, as the names of their algorithms say it: every time that was taken at.

The setting of a key never changes in the model, but its algorithm.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from kvorumpb.v1.command_pb2 import RateLimit


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken from a rate limit."""

    algorithm: RateLimit.Algorithm.ValueType
    times: tuple[int, ...]
    """Each once for each that it cost."""
    expire_time_ms: int


def has_room(limit: RateLimit, times: tuple[int, ...], now: int) -> bool:
    return not limit.cost or counted(limit, times, now) + limit.cost <= limit.limit


def counted(limit: RateLimit, times: tuple[int, ...], now: int) -> Fraction:
    """How much of what was taken at these times counts now, as the algorithm's name says."""
    window = limit.window_ms
    match limit.algorithm:
        case RateLimit.SLIDING_LOG:
            return Fraction(sum(time + window > now for time in times))
        case RateLimit.SLIDING_COUNTER:
            current = sum(time // window == now // window for time in times)
            previous = sum(time // window == now // window - 1 for time in times)
            return current + previous * (1 - Fraction(now % window, window))
        case _:
            level, last = Fraction(0), 0
            for time in times:
                level = max(level - Fraction(limit.limit * (time - last), window), Fraction(0)) + 1
                last = time
            return max(level - Fraction(limit.limit * (now - last), window), Fraction(0))


def taken(limit: RateLimit, times: tuple[int, ...]) -> Taken:
    """What the limit keeps, until it counts for nothing."""
    window, last = limit.window_ms, times[-1]
    match limit.algorithm:
        case RateLimit.SLIDING_LOG:
            expire_time_ms = last + window
        case RateLimit.SLIDING_COUNTER:
            expire_time_ms = last - last % window + 2 * window
        case _:
            expire_time_ms = last + ceil(counted(limit, times, last) * window / limit.limit)
    return Taken(limit.algorithm, times, expire_time_ms)
