"""Rate limits: three ways to count what was taken, and to say when there is room again.

Rules: integers only, so that every node decides alike; time is log time, in whole
milliseconds; what a limit costs is bounded by its state, and a state by its limit.

A window is half open: what was taken at t is in it through t + window_ms - 1. A cost of 0
always has room. Validation refuses what a limit never has room for; should it be in the
log, it is denied, with the longest wait there is.

A state remembers the setting that it was counted by, and a limit may be asked with another
one at any time:

    limit, burst   hold at once for all that was counted
    window_ms      the same: a log looks at the times, a counter places each count in its new
                   window as late as it may have been taken, a level counts the same share of
                   a cell, rounded up
    algorithm      what another algorithm has counted is not counted

How a state is read never depends on when, and each is forgotten when its own setting says
that it counts for nothing. So `retry_after_ms` and `reset_after_ms` stay exact, whether
or not a sweep has removed the state meanwhile.

    state = algorithm u8 | CRC32 of all else u32 | numbers, each a varint
    SLIDING_LOG      window_ms, newest time, newest - oldest time, taken at the newest,
                     taken before, then for each earlier time from the oldest on: its distance
                     to the next one * 2 + (1 if a count follows, otherwise it is 1), count
    SLIDING_COUNTER  window_ms, time, taken in its fixed window, taken in the one before
    GCRA             window_ms, limit, time, level in 1/window_ms of a cell

It has a checksum, since the times of a log are not looked through at every use.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol, Self
from zlib import crc32

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine.commands import UnknownInstruction
from kvorumpb.v1.command_pb2 import RateLimit, RateLimitState

NEVER_MS: Final = limits.MAX_INTEGER
"""How long to wait for what can never be."""

ALGORITHMS: Final = frozenset(
    (RateLimit.SLIDING_LOG, RateLimit.SLIDING_COUNTER, RateLimit.GCRA),
)
"""Those that this version knows."""

_SEAL: Final = struct.Struct(">BI")


@dataclass(frozen=True, slots=True)
class Taken:
    """What comes of one limit."""

    result: RateLimitState
    """If it is taken from: `allowed` says whether it can be."""

    untaken: RateLimitState
    """If it is not, because it or another one of the operation has no room. What the limit
    was to forget (`reset`), it has not forgotten then."""

    changes: bool
    """It can be taken from, and that changes what is kept."""

    state: bytes
    """What to keep then; empty if nothing need be kept."""

    expire_time_ms: int
    """When the state means nothing any more."""


def take(limit: RateLimit, state: bytes, now_ms: int) -> Taken:
    """Decide about one limit, by the state that was kept (empty: none) and log time.

    Raises UnknownInstruction if the algorithm is not one of this version, and StorageError if
    the state is damaged.
    """
    if limit.algorithm not in ALGORITHMS:
        raise UnknownInstruction(f"rate limit of algorithm {limit.algorithm}")
    if limit.limit < 1 or limit.window_ms < 1:
        none = RateLimitState(retry_after_ms=NEVER_MS)
        return Taken(none, none, False, state, 0)
    held = _load(limit, state, now_ms)
    counted = _nothing(limit) if limit.reset else held
    wait_ms = _wait_ms(counted, limit, now_ms)
    untaken = RateLimitState(
        allowed=not wait_ms,
        remaining=held.remaining(limit, now_ms),
        retry_after_ms=wait_ms,
        reset_after_ms=_whole_after_ms(held, limit, now_ms),
    )
    if limit.cost and not wait_ms:
        counted = counted.taking(limit, now_ms)
    elif wait_ms or not limit.reset:
        return Taken(untaken, untaken, False, state, held.expire_time_ms)
    result = RateLimitState(
        allowed=True,
        remaining=counted.remaining(limit, now_ms),
        reset_after_ms=_whole_after_ms(counted, limit, now_ms),
    )
    kept = counted.encode() if limit.cost else b""
    return Taken(result, untaken, kept != state, kept, counted.expire_time_ms)


class _Counted(Protocol):
    """What one algorithm has counted."""

    @property
    def expire_time_ms(self) -> int:
        """When it counts for nothing, by the setting that it was counted by; 0: it does now."""

    def remaining(self, limit: RateLimit, now_ms: int) -> int:
        """How much could be taken."""

    def room_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        """How long until there is room for the cost, which is not 0, nor more than ever fits."""

    def whole_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        """How long until nothing counts any more."""

    def taking(self, limit: RateLimit, now_ms: int) -> Self:
        """This with the cost."""

    def encode(self) -> bytes:
        """What `_load` reads."""


def _wait_ms(counted: _Counted, limit: RateLimit, now_ms: int) -> int:
    """How long until there is room for the cost; 0 if there is."""
    if not limit.cost:
        return 0
    if not 0 < limit.cost <= _capacity(limit):
        return NEVER_MS
    return min(counted.room_after_ms(limit, now_ms), _forgotten_after_ms(counted, now_ms))


def _whole_after_ms(counted: _Counted, limit: RateLimit, now_ms: int) -> int:
    return min(counted.whole_after_ms(limit, now_ms), _forgotten_after_ms(counted, now_ms))


def _forgotten_after_ms(counted: _Counted, now_ms: int) -> int:
    return max(counted.expire_time_ms - now_ms, 0)


def _capacity(limit: RateLimit) -> int:
    """How much the limit has room for when it is whole."""
    return (limit.burst or limit.limit) if limit.algorithm == RateLimit.GCRA else limit.limit


# Sliding log


@dataclass(frozen=True, slots=True)
class _Log:
    """Each time at which something was taken, and how much.

    The newest and the sums are apart from the others, so that what leaves at the old end and
    what is added at the new one is looked at, and nothing in between.
    """

    window_ms: int
    newest_ms: int = 0
    oldest_ms: int = 0
    newest: int = 0
    """How much was taken at the newest time."""
    older: int = 0
    """... and before it, together."""
    runs: bytes = b""
    """... one by one, from the oldest on."""

    @classmethod
    def load(cls, body: bytes) -> "_Log":
        (window_ms, newest_ms, span_ms, newest, older), end = _numbers(body, 5)
        return cls(window_ms, newest_ms, newest_ms - span_ms, newest, older, body[end:])

    @property
    def expire_time_ms(self) -> int:
        return self.newest_ms + self.window_ms if self.newest else 0

    def remaining(self, limit: RateLimit, now_ms: int) -> int:
        return max(limit.limit - self.newest - self.older, 0)

    def room_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        needed = self.newest + self.older + limit.cost - limit.limit
        if needed <= 0:
            return 0
        return max(self._gone_with(needed) + limit.window_ms - now_ms, 0)

    def whole_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        return max(self.newest_ms + limit.window_ms - now_ms, 0) if self.newest else 0

    def taking(self, limit: RateLimit, now_ms: int) -> "_Log":
        if not self.newest:
            return _Log(limit.window_ms, now_ms, now_ms, limit.cost)
        if now_ms <= self.newest_ms:
            return replace(self, window_ms=limit.window_ms, newest=self.newest + limit.cost)
        return _Log(
            window_ms=limit.window_ms,
            newest_ms=now_ms,
            oldest_ms=self.oldest_ms,
            newest=limit.cost,
            older=self.older + self.newest,
            runs=self.runs + _run(self.newest, now_ms - self.newest_ms),
        )

    def encode(self) -> bytes:
        span_ms = self.newest_ms - self.oldest_ms
        numbers = (self.window_ms, self.newest_ms, span_ms, self.newest, self.older)
        return _seal(RateLimit.SLIDING_LOG, numbers, self.runs)

    def after(self, time_ms: int) -> "_Log":
        """What was taken after the time."""
        if self.oldest_ms > time_ms:
            return self
        if self.newest_ms <= time_ms:
            return _Log(self.window_ms)
        oldest_ms, older, end = self.oldest_ms, self.older, 0
        while oldest_ms <= time_ms:
            count, distance_ms, end = _read_run(self.runs, end)
            oldest_ms += distance_ms
            older -= count
        return replace(self, oldest_ms=oldest_ms, older=older, runs=self.runs[end:])

    def _gone_with(self, needed: int) -> int:
        """The time with which so much leaves the window; all, if that is not enough."""
        time_ms, end = self.oldest_ms, 0
        while end < len(self.runs):
            count, distance_ms, end = _read_run(self.runs, end)
            needed -= count
            if needed <= 0:
                return time_ms
            time_ms += distance_ms
        return self.newest_ms


def _run(count: int, distance_ms: int) -> bytes:
    """A time at which something was taken: how much, and how far it is to the next one."""
    if count == 1:
        return _varint(distance_ms << 1)
    return _varint(distance_ms << 1 | 1) + _varint(count)


def _read_run(runs: bytes, begin: int) -> tuple[int, int, int]:
    """Count, distance to the next one, and where that begins."""
    first, end = _read_varint(runs, begin)
    if not first & 1:
        return 1, first >> 1, end
    count, end = _read_varint(runs, end)
    return count, first >> 1, end


# Sliding counter


@dataclass(frozen=True, slots=True)
class _Counter:
    """How much was taken in the fixed window of a time, and in the one before that.

    Fixed windows begin at the multiples of their length. The one before counts by the share
    of it that the sliding window still has; so the whole is a fraction over window_ms, and
    is compared as such.
    """

    window_ms: int
    at_ms: int = 0
    current: int = 0
    previous: int = 0

    @property
    def expire_time_ms(self) -> int:
        begin_ms = self.at_ms - self.at_ms % self.window_ms
        if self.current:
            return begin_ms + 2 * self.window_ms
        return begin_ms + self.window_ms if self.previous else 0

    def remaining(self, limit: RateLimit, now_ms: int) -> int:
        window_ms = limit.window_ms
        current, previous = self._by(window_ms, now_ms)
        counted = current * window_ms + previous * (window_ms - now_ms % window_ms)
        return max(limit.limit * window_ms - counted, 0) // window_ms

    def room_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        window_ms, room = limit.window_ms, limit.limit - limit.cost
        current, previous = self._by(window_ms, now_ms)
        elapsed_ms = now_ms % window_ms
        if current <= room:
            return max(_faded_ms(previous, room - current, window_ms) - elapsed_ms, 0)
        return window_ms - elapsed_ms + _faded_ms(current, room, window_ms)

    def whole_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        current, previous = self._by(limit.window_ms, now_ms)
        windows = 2 if current else 1 if previous else 0
        return windows * limit.window_ms - now_ms % limit.window_ms if windows else 0

    def taking(self, limit: RateLimit, now_ms: int) -> "_Counter":
        current, previous = self._by(limit.window_ms, now_ms)
        return _Counter(limit.window_ms, now_ms, current + limit.cost, previous)

    def encode(self) -> bytes:
        numbers = (self.window_ms, self.at_ms, self.current, self.previous)
        return _seal(RateLimit.SLIDING_COUNTER, numbers)

    def _by(self, window_ms: int, now_ms: int) -> tuple[int, int]:
        """What was taken in the fixed window of now, and in the one before."""
        number = now_ms // window_ms
        before_ms = self.at_ms - self.at_ms % self.window_ms - 1
        counts = {number: 0, number - 1: 0}
        for taken, latest_ms in ((self.current, self.at_ms), (self.previous, before_ms)):
            if latest_ms // window_ms in counts:
                counts[latest_ms // window_ms] += taken
        return counts[number], counts[number - 1]


def _faded_ms(previous: int, room: int, window_ms: int) -> int:
    """How far into a fixed window what was taken in the one before counts for `room` at most."""
    return max(window_ms - room * window_ms // previous, 0) if previous else 0


# Generic cell rate algorithm


@dataclass(frozen=True, slots=True)
class _Level:
    """GCRA as the continuous-state leaky bucket (ITU-T I.371, annex A).

    The theoretical arrival time is when the bucket is empty. The level is kept instead: it
    drains by `limit` a millisecond and rises by window_ms for each cell, so it is an
    integer whatever the emission interval is, and means the same under another limit.
    """

    window_ms: int
    limit: int
    at_ms: int = 0
    level: int = 0

    @property
    def expire_time_ms(self) -> int:
        return self.at_ms + _divided_up(self.level, self.limit) if self.level else 0

    def remaining(self, limit: RateLimit, now_ms: int) -> int:
        room = _capacity(limit) * limit.window_ms - self._by(limit, now_ms)
        return max(room, 0) // limit.window_ms

    def room_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        room = (_capacity(limit) - limit.cost) * limit.window_ms
        return max(_divided_up(self._by(limit, now_ms) - room, limit.limit), 0)

    def whole_after_ms(self, limit: RateLimit, now_ms: int) -> int:
        return _divided_up(self._by(limit, now_ms), limit.limit)

    def taking(self, limit: RateLimit, now_ms: int) -> "_Level":
        level = self._by(limit, now_ms) + limit.cost * limit.window_ms
        return _Level(limit.window_ms, limit.limit, now_ms, level)

    def encode(self) -> bytes:
        numbers = (self.window_ms, self.limit, self.at_ms, self.level)
        return _seal(RateLimit.GCRA, numbers)

    def _by(self, limit: RateLimit, now_ms: int) -> int:
        """The level now, in 1/window_ms of a cell, both as the limit has them."""
        level = self.level
        if self.window_ms != limit.window_ms:
            level = _divided_up(level * limit.window_ms, self.window_ms)
        return max(level - limit.limit * (now_ms - self.at_ms), 0)


def _divided_up(number: int, by: int) -> int:
    return -(-number // by)


# What is kept


def _nothing(limit: RateLimit) -> _Counted:
    match limit.algorithm:
        case RateLimit.SLIDING_LOG:
            return _Log(limit.window_ms)
        case RateLimit.SLIDING_COUNTER:
            return _Counter(limit.window_ms)
        case RateLimit.GCRA:
            return _Level(limit.window_ms, limit.limit)
        case unexpected:
            raise AssertionError(f"a limit of the algorithm {unexpected} is taken from")


def _load(limit: RateLimit, state: bytes, now_ms: int) -> _Counted:
    """What the state has counted and still counts, for the limit as it is now."""
    nothing = _nothing(limit)
    if not state:
        return nothing
    algorithm, body = _unseal(state)
    if algorithm != limit.algorithm:
        return nothing
    held: _Counted
    try:
        match algorithm:
            case RateLimit.SLIDING_LOG:
                held = _Log.load(body)
            case RateLimit.SLIDING_COUNTER:
                held = _Counter(*_numbers(body, 4)[0])
            case _:
                held = _Level(*_numbers(body, 4)[0])
    except IndexError as error:
        raise _damaged() from error
    if held.expire_time_ms <= now_ms:
        return nothing
    return held.after(now_ms - limit.window_ms) if isinstance(held, _Log) else held


def _seal(algorithm: int, numbers: Iterable[int], rest: bytes = b"") -> bytes:
    body = b"".join(map(_varint, numbers)) + rest
    return _SEAL.pack(algorithm, crc32(body, algorithm)) + body


def _unseal(state: bytes) -> tuple[int, bytes]:
    """Algorithm and body."""
    if len(state) < _SEAL.size:
        raise _damaged()
    algorithm, checksum = _SEAL.unpack_from(state)
    body = state[_SEAL.size :]
    if algorithm not in ALGORITHMS or crc32(body, algorithm) != checksum:
        raise _damaged()
    return algorithm, body


def _damaged() -> StorageError:
    return StorageError(
        "the state of a rate limit is damaged: the disk has altered it; replace this node"
    )


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the last byte is below 128."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(data: bytes, begin: int) -> tuple[int, int]:
    """The number, and where the next one begins. Raises IndexError if it has no end."""
    byte = data[begin]
    if byte < 0x80:
        return byte, begin + 1
    number, shift, end = byte & 0x7F, 7, begin + 1
    while True:
        byte = data[end]
        end += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, end
        shift += 7


def _numbers(body: bytes, count: int) -> tuple[list[int], int]:
    """So many varints, and where they end."""
    numbers, end = [], 0
    for _ in range(count):
        number, end = _read_varint(body, end)
        numbers.append(number)
    return numbers, end
