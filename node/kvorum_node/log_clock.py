"""Log time: the one time by which records expire, carried on from leader to leader.

The leader stamps it on entries; what has been applied is the machine's log time. This is
what comes after that: what log time is now, as far as this node knows.

    leads       it goes on at the rate of the node's steady clock, slewed towards its wall
                clock by at most 1/2000 of what has passed, as adjtime(3) does
    follows     what the leader says of its own (`follow`), and from there on at the
                rate of the steady clock: so whoever takes over goes on where the old leader
                was, whatever its wall clock says. What was longest on its way says least:
                of what one leader says, the message that was quickest counts
    restarts    what it was when it was last stored, and what has passed since by the steady
                clock, if the machine has been up all the time. If it has not, then how much the
                node's own wall clock has moved: a constant error of that clock does not matter,
                and the time for which the node was down counts. If the clock has gone
                backwards, none has passed

It is never behind what is applied (`observe`). A cluster's first time is the wall clock of
its first leader.

How exact that is: a takeover moves log time by no more than the way of the quickest of the
old leader's messages, some milliseconds, and the difference of two steady clocks since. A
restart of the machine adds what the wall clock was set by meanwhile. Where the leader's
wall clock is off by a minute, log time follows it within 33 hours.

Pure: the clocks are given. Times are milliseconds since the Unix epoch.
"""

from collections.abc import Callable
from typing import Final

from kvorum_node.storage.layout import ClockReading

SLEW: Final = 2000
"""One part in so many of the time that has passed may be added or left out."""

_DOUBT: Final = SLEW // 2
"""One part in so many is how far the time of a leader may fall behind what it has said: it
slews, and no two steady clocks have the same rate."""

_NS: Final = 1_000_000
"""In a millisecond. Inside, all is in nanoseconds: a slew of single milliseconds is not lost."""


class LogClock:
    def __init__(
        self,
        *,
        wall_ms: Callable[[], int],
        steady_ns: Callable[[], int],
        boot: str = "",
        stored: ClockReading | None = None,
        applied_ms: int = 0,
    ) -> None:
        """Begin, or go on.

        Args:
            wall_ms: the time of the day, which may be wrong, and may jump.
            steady_ns: counts on at one rate, whatever the wall clock is set to; if it can,
                also while the machine sleeps.
            stored: the last `reading` that was stored; None at the first start.
            applied_ms: the machine's log time.
        """
        self._wall_ms = wall_ms
        self._steady_ns = steady_ns
        self._boot = boot
        # Without a stored clock, the wall clock is what a node has. If it has led, that is what it
        # has stamped by, and the time it was down counts. If it has followed, it was killed within
        # moments of its first start (the Housekeeper stores the first reading at once), and the
        # next leader's word, or the first entry that is applied, sets it right. What is left: it
        # is elected before either, with a wall clock that is ahead. Then log time jumps there, as
        # it may at a cluster's first leader, and records expire early by so much. To begin at
        # `applied_ms` instead would never be early, and would forget, after each such kill of
        # the only node, how long it was down.
        self._known = stored is not None
        self._at_ns = steady_ns()
        now_ns = wall_ms() * _NS
        if stored is not None:
            passed_ns = now_ns - stored.wall_ms * _NS
            if boot and stored.boot == boot:
                passed_ns = self._at_ns - stored.steady_ns
            now_ns = stored.log_time_ms * _NS + max(0, passed_ns)
        self._time_ns = max(now_ns, applied_ms * _NS)
        self._led_since_ms: int | None = None
        """What log time was when this node decided it for the first time."""
        self._term: int | None = None
        """Of the leader that has been heard last, at this time of the steady clock:"""
        self._heard_ns = 0

    def now_ms(self, *, leads: bool) -> int:
        """What log time is now; `leads` says whether this node has decided it since the last call.

        To be called now and then (with every tick), so that the answer is sharp.
        """
        at_ns = self._steady_ns()
        time_ns = self._reached_ns(at_ns)
        if leads:
            if self._led_since_ms is None:
                self._led_since_ms = time_ns // _NS
            most = (time_ns - self._time_ns) // SLEW
            time_ns += min(most, max(-most, self._wall_ms() * _NS - time_ns))
        self._time_ns, self._at_ns = time_ns, at_ns
        return time_ns // _NS

    def observe(self, log_time_ms: int) -> None:
        """An entry with this time was applied: it is as late as that now, at least."""
        # Before anything is known, this is better than a wall clock that may be anywhere: but not
        # than the one by which the entry was stamped. A leader's time would go back, by as long
        # as it has waited for a majority.
        unknown = not self._known and not self._has_stamped(log_time_ms)
        if unknown or log_time_ms * _NS > self._reached_ns(self._steady_ns()):
            self._set(log_time_ms)
        self._known = True

    def follow(self, log_time_ms: int, *, term: int) -> None:
        """The leader of the term says what its own log time was when it sent this.

        Where packets are lost, that may be seconds ago: it would take the time back, and who
        takes over would let everything live for so much longer.
        """
        at_ns = self._steady_ns()
        time_ns = log_time_ms * _NS
        if term == self._term:
            doubt_ns = max(0, at_ns - self._heard_ns) // _DOUBT
            time_ns = max(time_ns, self._reached_ns(at_ns) - doubt_ns)
        self._term, self._heard_ns = term, at_ns
        self._known = True
        self._time_ns, self._at_ns = time_ns, at_ns

    def reading(self) -> ClockReading | None:
        """What to store for the next start; None as long as nothing is known but the wall clock."""
        if not self._known:
            return None
        at_ns = self._steady_ns()
        log_time_ms, wall_ms = self._reached_ns(at_ns) // _NS, self._wall_ms()
        if not self._boot:
            return ClockReading(log_time_ms, wall_ms)
        return ClockReading(log_time_ms, wall_ms, at_ns, self._boot)

    def _has_stamped(self, log_time_ms: int) -> bool:
        """Whether the time is one at which this node has decided, before anything was known."""
        return self._led_since_ms is not None and log_time_ms >= self._led_since_ms

    def _reached_ns(self, at_ns: int) -> int:
        return self._time_ns + max(0, at_ns - self._at_ns)

    def _set(self, log_time_ms: int) -> None:
        self._known = True
        self._time_ns, self._at_ns = log_time_ms * _NS, self._steady_ns()
