"""What operations take and give beside keys, values and entries."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from kvorum.durations import Duration

Algorithm = Literal["sliding_log", "sliding_counter", "gcra"]
"""How a rate limit counts: see `RateLimit`."""


class Sum(int):
    """What `add` returns: an int, the value after the addition, that also knows `applied`."""

    applied: int
    """What was added: less than was asked for if the sum was saturated."""

    def __new__(cls, value: int, applied: int) -> Self:
        self = super().__new__(cls, value)
        self.applied = applied
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # copies keep `applied`
        return int(self), self.applied


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit on how often something may happen, decided by the store's clock, log time.

    It is counted under a key of its own, beside the records: no record has it, and
    it disappears by itself once it is whole again. Ask for a key with the same limit,
    window and algorithm each time.
    """

    key: str | bytes

    limit: int
    """How many in a window, up to `limits.MAX_RATE_LIMIT`."""

    window: Duration
    """Seconds, or a timedelta, up to 366 days."""

    algorithm: Algorithm = "sliding_log"
    """`sliding_log` is exact: no window, wherever it begins, has more than `limit`, of at most
    `limits.MAX_SLIDING_LOG_LIMIT`. `sliding_counter` keeps two numbers, and weighs the last
    window by its share. `gcra` spaces evenly, after a burst."""

    cost: int = 1
    """How much this takes. 0 takes nothing, and tells how the limit stands."""

    burst: int | None = None
    """`gcra` alone: how many may come at once, at most `limit`, which it is if left out."""

    reset: bool = False
    """Forget what was counted before this."""


@dataclass(frozen=True, slots=True)
class RateLimitState:
    """How one limit stands."""

    allowed: bool
    """This limit had room."""

    remaining: int
    """How much could be taken now, after this."""

    retry_after: float
    """Seconds until this limit has room for the same cost again; 0 if it had."""

    reset_after: float
    """Seconds until the limit is whole again, if nothing is taken meanwhile."""


@dataclass(frozen=True, slots=True)
class RateLimitResult:
    """What `rate_limit` decided: all limits were taken from, or none. It is true if allowed."""

    allowed: bool
    """Every limit had room."""

    states: tuple[RateLimitState, ...]
    """One for each limit, in order."""

    @property
    def remaining(self) -> int:
        """The least that is left of a limit."""
        return min(state.remaining for state in self.states)

    @property
    def retry_after(self) -> float:
        """Seconds until all limits have room; 0 if they had."""
        return max(state.retry_after for state in self.states)

    @property
    def reset_after(self) -> float:
        """Seconds until all limits are whole again."""
        return max(state.reset_after for state in self.states)

    def __bool__(self) -> bool:
        return self.allowed

    def __iter__(self) -> Iterator[RateLimitState]:
        return iter(self.states)
