"""Rate limits."""

from dataclasses import dataclass

from kvorumpb.v1.command_pb2 import RateLimit, RateLimitState


@dataclass(frozen=True, slots=True)
class Taken:
    """What comes of one limit."""

    result: RateLimitState
    """If it is taken from: `allowed` says whether it can be."""

    untaken: RateLimitState
    """If it is not, because it or another one of the operation has no room."""

    state: bytes
    """What to keep if it is taken from; empty if nothing need be kept."""

    expire_time_ms: int
    """When the state means nothing any more."""


def take(limit: RateLimit, state: bytes, now_ms: int) -> Taken:
    """Decide about one limit, by the state that was kept (empty: none) and log time."""
    del limit, state, now_ms
    return Taken(RateLimitState(allowed=True), RateLimitState(), b"", 0)
