"""Large calls and replies of one session, in parts (kv.proto, CallPart and ReplyPart).

A few calls are under way at a time, from their first part to their answer; the others wait
for their turn. A call of which the last part has not been handed over cannot have been
carried out: it is in `waiting` until then, as if nothing of it had been sent.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from kvorum import limits
from kvorum.backends.pending import PendingCall
from kvorumpb.v1.kv_pb2 import CallPart, Reply, ReplyPart


class _Outgoing:
    """A call whose parts are being handed over."""

    __slots__ = ("data", "id", "pending", "sent")

    def __init__(self, pending: PendingCall) -> None:
        self.pending = pending
        self.id = pending.id
        self.data = pending.call.SerializeToString()
        self.sent = 0


class LargeCalls:
    """The large calls of one session."""

    def __init__(self, in_flight: dict[int, PendingCall], *, wake: Callable[[], None]) -> None:
        """Make one without calls.

        Args:
            in_flight: where a call goes when its last part is handed over.
            wake: called when there may be a part to be handed over.
        """
        self.waiting: Final[dict[int, PendingCall]] = {}
        self._in_flight = in_flight
        self._wake = wake
        self._under_way: set[int] = set()
        self._outgoing: _Outgoing | None = None

    @property
    def is_sending(self) -> bool:
        """Whether a call is handed over in a part, and not as a whole."""
        return self._outgoing is not None

    def add(self, pending: PendingCall) -> None:
        """Take over a call, with the id that it has."""
        pending.move(self.waiting, pending.id)

    def next_part(self, now: float) -> CallPart | None:
        """What is to be handed over next; None if nothing is, for now."""
        outgoing = self._outgoing = self._outgoing or self._begin(now)
        if outgoing is None:
            return None
        if self.waiting.get(outgoing.id) is not outgoing.pending:
            # Answered early, expired, or given up by its caller.
            self._outgoing = None
            return CallPart(id=outgoing.id, abandoned=True)
        start, end = outgoing.sent, outgoing.sent + limits.MAX_PART_BYTES
        part = CallPart(id=outgoing.id, data=outgoing.data[start:end])
        if not start:
            part.total_bytes = len(outgoing.data)
        outgoing.sent = end
        if end >= len(outgoing.data):
            self._outgoing = None
            outgoing.pending.move(self._in_flight, outgoing.id)
            outgoing.pending.hand_over(now)
        return part

    def answered(self, call: int) -> bool:
        """Note that a call of the session was answered; returns whether it was a large one."""
        if self.waiting:
            self._wake()
        was_large = call in self._under_way
        self._under_way.discard(call)
        return was_large

    def _begin(self, now: float) -> _Outgoing | None:
        """Begin with the next call, if one may have its turn."""
        # Without those whose callers did not wait for the answer.
        self._under_way &= self.waiting.keys() | self._in_flight.keys()
        if not self.waiting or len(self._under_way) >= limits.MAX_LARGE_CALLS:
            return None
        pending = next(iter(self.waiting.values()))
        pending.prepare(now)
        pending.future.add_done_callback(self._on_settled)
        self._under_way.add(pending.id)
        return _Outgoing(pending)

    def _on_settled(self, _: asyncio.Future[Reply]) -> None:
        """Let the next one have its turn, also if nobody has answered this one."""
        self._wake()


class ReplyAssembly:
    """Replies that arrive in parts, until they are whole."""

    def __init__(self) -> None:
        self._data: dict[int, bytearray] = {}
        self._missing: dict[int, int] = {}

    def take(self, part: ReplyPart) -> Reply | None:
        """Add a part; returns the reply if that was the last one."""
        if part.total_bytes:
            self._data[part.id] = bytearray()
            self._missing[part.id] = part.total_bytes
        if part.id not in self._data:
            return None
        self._data[part.id] += part.data
        self._missing[part.id] -= len(part.data)
        if self._missing[part.id] > 0:
            return None
        del self._missing[part.id]
        data = self._data.pop(part.id)
        return Reply.FromString(data)  # type: ignore[arg-type]  # any buffer will do
