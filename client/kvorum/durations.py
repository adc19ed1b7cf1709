"""Lengths of time: what a caller may give, and the milliseconds that travel.

Rule of this file: a length of time is seconds or a timedelta, and at least a
millisecond. 0 is no length: on the wire it means for ever, which a caller says by
leaving it out. The parameters are objects: a caller without a type checker may give anything.
"""

from datetime import timedelta

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded

Duration = float | timedelta
"""Seconds, or a timedelta."""


def encode_ttl(ttl: object) -> int:
    """The milliseconds of a time to live; 0, which is for ever, for None.

    Raises `InvalidArgument`, or `LimitExceeded` if it is more than a hundred years.
    """
    return 0 if ttl is None else encode_duration("ttl", ttl)


def encode_duration(name: str, length: object) -> int:
    """The milliseconds of what a caller knows by this name. Raises like `encode_ttl`."""
    return _milliseconds(name, length, "MAX_TTL_MS", limits.MAX_TTL_MS)


def encode_window(window: object) -> int:
    """The milliseconds of a rate limit's window. Raises like `encode_ttl`, beyond 366 days."""
    return _milliseconds("window", window, "MAX_RATE_WINDOW_MS", limits.MAX_RATE_WINDOW_MS)


def to_seconds(milliseconds: int) -> float:
    return milliseconds / 1000


def _milliseconds(name: str, given: object, limit: str, maximum: int) -> int:
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    # A NaN is no number of seconds either: it compares as neither more nor less.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0.001:
        raise InvalidArgument(
            f"{name} is a number of seconds from 0.001, or a timedelta, not {given!r}"
        )
    if seconds > to_seconds(maximum):
        raise LimitExceeded(
            f"{name} is {given!r}, more than {maximum // 86_400_000:,} days",
            limit=limit,
            maximum=maximum,
            # Infinity has no milliseconds.
            actual=round(seconds * 1000) if seconds < limits.MAX_INTEGER else limits.MAX_INTEGER,
        )
    return round(seconds * 1000)
