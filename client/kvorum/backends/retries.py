"""How often calls are repeated that a cluster refuses.

Each call waits before its next attempt, longer every time. That bounds one call, and a
thousand of them would still hammer a cluster in trouble. So all calls of a store share a
budget. A repetition takes a token. An answer brings one back, and time brings RETRIES_PER_SECOND.
So while everything is refused, the store sends MAX_TOKENS repetitions and then a few a second,
however many calls wait; while some calls are answered, it repeats one for each answer. When the
cluster has recovered, a repetition that is answered pays for the next: what waits is sent in
the measure in which it is answered.

No call fails for want of a token: a write is sent again until its fate is known, or its
time is out. First attempts cost nothing: how many there are, the program decides.
"""

import random
from typing import Final

MIN_BACKOFF_SECONDS: Final = 0.01
MAX_BACKOFF_SECONDS: Final = 0.2
"""Before the attempts of one call, if the node does not ask for more."""
MAX_TOKENS: Final = 100
RETRIES_PER_SECOND: Final = 10


def jitter(seconds: float) -> float:
    """Spread clients that were set off by the same event."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - nothing depends on its secrecy


def backoff_seconds(attempts: int, asked_seconds: float | None) -> float:
    """How long to wait after so many repetitions, and if the node asks for so long."""
    backoff = min(MIN_BACKOFF_SECONDS * 2 ** min(attempts, 10), MAX_BACKOFF_SECONDS)
    return jitter(max(backoff, asked_seconds or 0.0))


class RetryBudget:
    """The tokens of one store. Pure: it is told the time."""

    def __init__(self, now: float) -> None:
        self._tokens: float = MAX_TOKENS
        self._refilled_at = now

    def take(self, now: float) -> bool:
        """Take the token of a repetition, if there is one."""
        self._put(RETRIES_PER_SECOND * (now - self._refilled_at))
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def reward(self) -> None:
        """A node has answered a call."""
        self._put(1)

    @property
    def is_full(self) -> bool:
        return self._tokens == MAX_TOKENS

    def _put(self, tokens: float) -> None:
        self._tokens = min(self._tokens + tokens, MAX_TOKENS)
