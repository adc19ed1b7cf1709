"""Keys with a time to live: every call to them noted, and judged by the clock of who called.

    put, touch      the key expires `ttl` seconds after the call took effect
    get             it has expired, or it has not
    ttl             it expires in so many seconds

Each answer bounds the instant at which the key expires, on the one clock that all clients
share; so does each write that may have been the last before it. The answer is right if
one of them agrees, give or take EARLY_SECONDS and LATE_SECONDS. No clock of a node is asked.

What the tolerance is made of (node/kvorum_node/log_clock.py): a leader whose clock is wrong
slews by 1/2000; a takeover loses what the quickest message of the old leader was late by, which
is much only if it has led for a moment, while packets were lost or the new one was stopped; a
start of all nodes goes on from clocks that were stored when they were off by 100 ms.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

from kvorum import KV
from kvorum.errors import KvorumError
from tests.support.histories import CallOutcome

LEASES: Final = "t"
"""How their keys begin."""
EARLY_SECONDS: Final = 0.5
LATE_SECONDS: Final = 3.0
SLEW: Final = 1 / 2000
SHOWN: Final = 5


class Kind(Enum):
    PUT = "put"
    TOUCH = "touch"
    GET = "get"
    TTL = "ttl"


@dataclass(frozen=True, slots=True)
class LeaseCall:
    """One call. What was not asked for, or not answered, is None."""

    client: str
    kind: Kind
    key: str
    invoked: float
    returned: float
    outcome: CallOutcome
    error: str = ""
    ttl: float | None = None
    """Seconds that were asked for."""
    value: str | None = None
    """What was put, or read."""
    revision: int | None = None
    """Of a put that was acknowledged."""
    found: bool | None = None
    """Whether the key was there."""
    left: float | None = None
    """Seconds that a `ttl` has answered."""
    lifetime: float | None = None
    """Of what was read: from when it was written to when it expires, by log time."""

    def __str__(self) -> str:
        asked = "" if self.ttl is None else f" for {self.ttl:g} s"
        answers = ("absent" if self.found is False else None, self.value, self.left)
        told = self.error or ", ".join(str(one) for one in answers if one is not None)
        return (
            f"[{self.invoked:.4f} .. {self.returned:.4f}] {self.client}:"
            f" {self.kind.value} {self.key}{asked} -> {self.outcome.value} {told}"
        )


class LeaseRecorder:
    """Calls a store, one call at a time, and notes each, also one that raises."""

    def __init__(self, kv: KV, *, client: str, note: Callable[[LeaseCall], None]) -> None:
        self._kv = kv
        self._client = client
        self._note = note

    async def put(self, key: str, value: str, ttl: float) -> None:
        async def call() -> dict[str, Any]:
            return {"revision": await self._kv.put(key, value, ttl=ttl)}

        await self._record(Kind.PUT, key, call(), ttl=ttl, value=value)

    async def touch(self, key: str, ttl: float) -> None:
        async def call() -> dict[str, Any]:
            return {"found": await self._kv.touch(key, ttl)}

        await self._record(Kind.TOUCH, key, call(), ttl=ttl)

    async def get(self, key: str) -> None:
        async def call() -> dict[str, Any]:
            entry = await self._kv.get(key)
            if entry is None:
                return {"found": False}
            assert entry.expires_at is not None, f"{key} was put with a ttl, and has none"
            lifetime = (entry.expires_at - entry.updated_at).total_seconds()
            return {"found": True, "value": entry.value, "lifetime": lifetime}

        await self._record(Kind.GET, key, call())

    async def ttl(self, key: str) -> None:
        async def call() -> dict[str, Any]:
            left = await self._kv.ttl(key)
            assert left is not None, f"{key} was put with a ttl, and has none"
            return {"found": left > 0, "left": left or None}

        await self._record(Kind.TTL, key, call())

    async def _record(
        self,
        kind: Kind,
        key: str,
        call: Awaitable[dict[str, Any]],
        *,
        ttl: float | None = None,
        value: str | None = None,
    ) -> None:
        content: dict[str, Any] = {"ttl": ttl, "value": value}
        outcome, error = CallOutcome.UNKNOWN, "Cancelled"
        invoked = time.monotonic()
        try:
            content.update(await call)
            outcome, error = CallOutcome.RETURNED, ""
        except KvorumError as failure:
            error = f"{type(failure).__name__}: {failure}"
            if not failure.maybe_applied:
                outcome = CallOutcome.FAILED
        finally:  # a call that is cancelled is noted, too: it may have been sent
            returned = time.monotonic()
            noted = LeaseCall(self._client, kind, key, invoked, returned, outcome, error)
            self._note(replace(noted, **content))


def to_line(call: LeaseCall) -> str:
    content = asdict(call) | {"kind": call.kind.value, "outcome": call.outcome.value}
    return json.dumps({name: value for name, value in content.items() if value is not None})


def from_line(line: str) -> LeaseCall:
    content = json.loads(line)
    return LeaseCall(
        **content | {"kind": Kind(content["kind"]), "outcome": CallOutcome(content["outcome"])}
    )


def load(path: Path) -> list[LeaseCall]:
    """Read a file; a last line that was cut off while it was written is not a call."""
    text = path.read_text("utf-8")
    return [from_line(line) for line in text[: text.rfind("\n") + 1].splitlines()]


# What the calls show.


@dataclass(slots=True)
class LeaseFigures:
    """How much was seen, and how exact it was."""

    writes: int = 0
    """Puts and touches that were acknowledged."""
    found: int = 0
    expired: int = 0
    """How often a key was absent for which a write had been acknowledged."""
    most_early_seconds: float = 0.0
    """By how much an answer was before the time that no tolerance has widened."""
    most_late_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Span:
    """Between which two instants something is."""

    earliest: float
    latest: float


@dataclass(slots=True)
class _Judging:
    figures: LeaseFigures = field(default_factory=LeaseFigures)
    early: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    lifetimes: list[str] = field(default_factory=list)


def look_into_leases(calls: Sequence[LeaseCall]) -> tuple[LeaseFigures, list[str]]:
    """The figures, and what is wrong."""
    by_key: dict[str, list[LeaseCall]] = defaultdict(list)
    for call in calls:
        if call.outcome is not CallOutcome.FAILED:
            by_key[call.key].append(call)
    judging = _Judging()
    for of_key in by_key.values():
        _look_into_key(sorted(of_key, key=lambda call: call.invoked), judging)
    findings = [
        f"{len(which)} {what}: " + "".join(which[:SHOWN])
        for what, which in (
            ("answers say that a key has expired early", judging.early),
            ("answers say that a key has expired late, or not at all", judging.late),
            ("answers have a value that was replaced, or that nobody wrote", judging.stale),
            ("entries have another lifetime than was asked for", judging.lifetimes),
        )
        if which
    ]
    figures = judging.figures
    if not figures.writes or not figures.found or not figures.expired:
        findings.append("no key was seen to live, and to expire: the run shows nothing")
    return figures, findings


def _look_into_key(calls: Sequence[LeaseCall], judging: _Judging) -> None:
    writes = [call for call in calls if _writes(call)]
    for call in calls:
        if call.outcome is CallOutcome.RETURNED and _writes(call):
            judging.figures.writes += 1
        span = _answered(call)
        if span is None:
            continue
        last, is_written = _last_before(call, writes)
        if call.found:
            judging.figures.found += 1
        elif is_written:
            judging.figures.expired += 1
        if call.value is not None and call.kind is Kind.GET:
            _look_at_value(call, writes, judging)
        _look_at_time(call, span, last, is_written, judging)


def _writes(call: LeaseCall) -> bool:
    """It has set the time, or may have."""
    return call.kind is Kind.PUT or (call.kind is Kind.TOUCH and call.found is not False)


def _answered(call: LeaseCall) -> _Span | None:
    """When the key expires, by the answer to a read; what a touch says of before is one, too."""
    if call.found is None:
        return None
    if not call.found:
        return _Span(-math.inf, call.returned)
    if call.left is None:
        return _Span(call.invoked, math.inf)
    return _Span(call.invoked + call.left, call.returned + call.left)


def _last_before(read: LeaseCall, writes: Sequence[LeaseCall]) -> tuple[Sequence[LeaseCall], bool]:
    """Those writes of which each may be the last before it, and whether one of them is certain."""
    candidates = [call for call in writes if call is not read and call.invoked <= read.returned]
    before = [
        call
        for call in candidates
        if call.outcome is CallOutcome.RETURNED and call.returned < read.invoked
    ]
    # A write that had returned before another began, which has returned before the read, is gone.
    replaced_before = max((call.invoked for call in before), default=-math.inf)
    last = [
        call
        for call in candidates
        if call.outcome is CallOutcome.UNKNOWN or call.returned >= replaced_before
    ]
    return last, bool(before)


def _look_at_time(
    read: LeaseCall,
    answered: _Span,
    last: Sequence[LeaseCall],
    is_written: bool,
    judging: _Judging,
) -> None:
    if not last or (not read.found and not is_written):
        # Nobody may have written it yet. That it is there then, is found by its value.
        return
    spans = list(_expiries(last))
    early = min(max(0.0, span.earliest - answered.latest) for span in spans)
    late = min(max(0.0, answered.earliest - span.latest) for span in spans)
    # A span may be right for one side only: what counts is one that is right for both.
    fits = any(
        span.earliest - EARLY_SECONDS <= answered.latest
        and answered.earliest <= span.latest + LATE_SECONDS
        for span in spans
    )
    figures = judging.figures
    figures.most_early_seconds = max(figures.most_early_seconds, early)
    figures.most_late_seconds = max(figures.most_late_seconds, late)
    if not fits:
        kind = judging.early if early >= late else judging.late
        kind.append(_shown(read, last, f"by {max(early, late):.3f} s"))


def _expiries(writes: Iterable[LeaseCall]) -> Iterator[_Span]:
    for write in writes:
        assert write.ttl is not None
        # One that was not answered may take effect whenever its messages arrive.
        returned = write.returned if write.outcome is CallOutcome.RETURNED else math.inf
        yield _Span(write.invoked + write.ttl * (1 - SLEW), returned + write.ttl * (1 + SLEW))


def _look_at_value(read: LeaseCall, writes: Sequence[LeaseCall], judging: _Judging) -> None:
    """A touch leaves the value, and changes when it expires."""
    puts, _ = _last_before(read, [call for call in writes if call.kind is Kind.PUT])
    written = [put for put in puts if put.value == read.value]
    if not written:
        judging.stale.append(_shown(read, puts, "none of these"))
        return
    touched = any(
        call.kind is Kind.TOUCH
        and call.invoked <= read.returned
        and (call.outcome is CallOutcome.UNKNOWN or call.returned >= written[0].invoked)
        for call in writes
    )
    if not touched and written[0].ttl != read.lifetime:
        judging.lifetimes.append(_shown(read, written, f"it lives for {read.lifetime} s"))


def _shown(read: LeaseCall, last: Sequence[LeaseCall], what: str) -> str:
    lines = [f"{read}  ({what})", *(f"    after {write}" for write in last)]
    return "".join(f"\n    {line}" for line in lines)
