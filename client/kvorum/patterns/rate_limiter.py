"""So many in a window, and no more: decided by the store, by its clock.

    rate_limit:NAME:IDENTIFIER      what was counted for one user, address, ...

These are keys of rate limits, which are beside the records: `list` does not have them, they
have no history, and each disappears by itself once its limit is whole again.

Rule of this file: no clock is read here, and nothing is counted here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvorum import keys
from kvorum.durations import Duration, encode_window, to_seconds
from kvorum.errors import InvalidArgument
from kvorum.kv import KV
from kvorum.model import Algorithm, RateLimit, RateLimitState


@dataclass(frozen=True, slots=True)
class RateStanding:
    """How a limit stands for one identifier."""

    name: str
    """Of the limiter."""

    limit: int
    """How many in a window."""

    remaining: int
    """How much could be taken now."""

    reset_after: float
    """Seconds until the limit is whole again, if nothing is taken meanwhile."""

    reset_at: datetime
    """When that is, by the store's log time."""


@dataclass(frozen=True, slots=True)
class RateDecision(RateStanding):
    """Whether a limit had room, and how it stands after that. It is true if it had."""

    allowed: bool
    """The limit had room for the cost. In a check of several, nothing was taken if another
    had none."""

    retry_after: float
    """Seconds until the limit has room for the same cost; 0 if it had."""

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class RateDecisions:
    """What a check of several limits decided: all were taken from, or none. True if allowed."""

    allowed: bool
    """Every limit had room."""

    decisions: tuple[RateDecision, ...]
    """One for each limit, in order."""

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The names of the limiters that had no room."""
        return tuple(decision.name for decision in self.decisions if not decision.allowed)

    @property
    def retry_after(self) -> float:
        """Seconds until all limits have room; 0 if they had."""
        return max(decision.retry_after for decision in self.decisions)

    @property
    def tightest(self) -> RateDecision:
        """The limit to tell a client of: that it waits longest for, or that has the least left."""
        return min(self.decisions, key=lambda one: (-one.retry_after, one.remaining))

    def __bool__(self) -> bool:
        return self.allowed


class RateLimiter:
    """At most `limit` in each `window` (seconds, or a timedelta), for each identifier.

    Guarantee: each check is decided at the store, one after the other, by log time, which no
    clock of a client or a follower moves; a check that was sent again counts once. What
    "at most" means is up to the `algorithm`:

    - "sliding_log": no window, wherever it begins, has more than `limit` (up to 10,000);
    - "sliding_counter": about so, with two numbers instead of a log; it takes what the last
      window had as evenly spread;
    - "gcra": evenly spaced, after `burst` at once (`limit` if left out).

    Cost: one round trip for each method. A refusal changes nothing. Limit, window and
    algorithm belong to the name: another limit is another name.
    """

    def __init__(
        self,
        kv: KV,
        name: str,
        *,
        limit: int,
        window: Duration,
        algorithm: Algorithm = "sliding_log",
        burst: int | None = None,
    ) -> None:
        self._kv = kv
        self._name = keys.check_name(name, "a rate limiter")
        self._prefix = keys.prefix("rate_limit", name)
        self._limit = limit
        self._window = window
        self._algorithm = algorithm
        self._burst = burst
        # What is wrong with the limit is to be said here, and not at the first check.
        kv.atomic().rate_limit(self.rule("anybody"))

    @property
    def kv(self) -> KV:
        """The store that counts."""
        return self._kv

    @property
    def name(self) -> str:
        return self._name

    @property
    def limit(self) -> int:
        """How many in a window."""
        return self._limit

    @property
    def window(self) -> float:
        """How long it is, in seconds."""
        return to_seconds(encode_window(self._window))

    def rule(self, identifier: str, cost: int = 1, *, reset: bool = False) -> RateLimit:
        """What `KV.rate_limit` takes, or a transaction that is to count with all else in it."""
        return RateLimit(
            self._prefix + keys.escape(identifier),
            self._limit,
            self._window,
            self._algorithm,
            cost=cost,
            burst=self._burst,
            reset=reset,
        )

    async def check(
        self, identifier: str, cost: int = 1, *, timeout: float | None = None
    ) -> RateDecision:
        """Take `cost` for the identifier if there is room, and say so.

        `InvalidArgument` if the cost is more than there could ever be room for.
        """
        decisions = await self.check_all([(self, identifier, cost)], timeout=timeout)
        return decisions.decisions[0]

    @staticmethod
    async def check_all(
        checks: Sequence[tuple["RateLimiter", str, int]], *, timeout: float | None = None
    ) -> RateDecisions:
        """Take from all limits if all have room, and from none otherwise, in one round trip.

        Each check is a limiter, an identifier and a cost. Up to `limits.MAX_RATE_LIMITS`, all
        of one store.
        """
        if not checks:
            raise InvalidArgument("there is no limit to check")
        kv = checks[0][0].kv
        if any(limiter.kv is not kv for limiter, _, _ in checks):
            raise InvalidArgument("limiters that are checked together are of one store")
        rules = [limiter.rule(identifier, cost) for limiter, identifier, cost in checks]
        answer = await kv.atomic().rate_limit(*rules).commit(timeout=timeout)
        [result] = answer.results
        return RateDecisions(
            allowed=result.allowed,
            decisions=tuple(
                RateDecision(*_stands(limiter, state, answer.at), state.allowed, state.retry_after)
                for (limiter, _, _), state in zip(checks, result.states, strict=True)
            ),
        )

    async def peek(self, identifier: str, *, timeout: float | None = None) -> RateStanding:
        """Say how the limit stands, and take nothing."""
        rule = self.rule(identifier, cost=0)
        answer = await self._kv.atomic().rate_limit(rule).commit(timeout=timeout)
        [state] = answer.results[0].states
        return RateStanding(*_stands(self, state, answer.at))

    async def reset(self, identifier: str, *, timeout: float | None = None) -> None:
        """Forget what was counted for the identifier."""
        await self._kv.rate_limit(self.rule(identifier, cost=0, reset=True), timeout=timeout)

    def __repr__(self) -> str:
        return f"<RateLimiter {self._name}: {self._limit} in {self._window}, {self._algorithm}>"


def _stands(
    limiter: RateLimiter, state: RateLimitState, at: datetime
) -> tuple[str, int, int, float, datetime]:
    """The fields of a `RateStanding`."""
    reset_at = at + timedelta(seconds=state.reset_after)
    return limiter.name, limiter.limit, state.remaining, state.reset_after, reset_at
