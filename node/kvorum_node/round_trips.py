"""How long a message takes to a peer and back, measured by what passes anyway.

A message with heartbeats brings what the sender's clock shows. The next one in the other
direction brings that back, and how long it was held: so the other clock does not matter (as
in RTCP: RFC 3550, section 6.4.1). Each is brought back once. What is measured is the way of
small messages from event loop to event loop: gRPC and the network, no disk.
"""

from kvorum_node.figures import clock
from kvorumpb.v1.raft_pb2 import PeerNotice

_US = 1_000_000


class RoundTrips:
    """Of the messages between this process and one peer."""

    __slots__ = ("_began_us", "_heard", "_heard_at_us")

    def __init__(self) -> None:
        self._began_us = _now_us()
        self._heard = 0
        self._heard_at_us = 0

    def stamp(self, notice: PeerNotice) -> None:
        """The notice is about to leave."""
        now = _now_us()
        notice.clock_us = now
        if self._heard:
            notice.echo_us, self._heard = self._heard, 0
            notice.held_us = now - self._heard_at_us

    def hear(self, notice: PeerNotice) -> float | None:
        """A notice has come; returns the seconds of a round trip, if it ends one."""
        now = _now_us()
        if notice.clock_us:
            self._heard, self._heard_at_us = notice.clock_us, now
        if notice.echo_us < self._began_us:
            return None  # of none that was sent from here, but perhaps from an earlier process
        took = now - notice.echo_us - notice.held_us
        return took / _US if took >= 0 else None


def _now_us() -> int:
    return round(clock() * _US)
