"""One Session stream to one node.

Rules of coalescing: a call that finds nothing in flight is sent at once, together
with what else was made in the same turn of the event loop. What arrives while the
last message is not answered in full forms the next one: a message costs each end
about as much as twenty calls in it. It leaves SEND_INTERVAL_SECONDS after the
last message at the latest, so that one slow call holds up no other. A message
that flow control holds back holds back the next one. A call above limits.MAX_BATCH_BYTES
travels in parts (parts.py), one with each message: the small calls do not wait for it.

A session does not decide anything: it tells its owner what it hears, and leaves
behind what was not answered when it ended.
"""

import asyncio
from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Final, Protocol

import grpc.aio

from kvorum import limits
from kvorum.backends.parts import LargeCalls, ReplyAssembly
from kvorum.backends.pending import PendingCall
from kvorumpb.v1.kv_pb2 import Call, Leadership, Reply, SessionRequest, SessionResponse

SEND_INTERVAL_SECONDS: Final = 0.004

_METHOD: Final = "/kvorumpb.v1.KV/Session"


class SessionOwner(Protocol):
    """Who hears what the node says."""

    def on_leadership(self, session: "Session", leadership: Leadership) -> None: ...

    def on_reply(self, session: "Session", pending: PendingCall, reply: Reply) -> None: ...


class Session:
    """Carries calls to a node, and its answers back."""

    def __init__(
        self, address: str, channel: grpc.aio.Channel, owner: SessionOwner, ids: "count[int]"
    ) -> None:
        self.address: Final = address
        self.unsent: Final[dict[int, PendingCall]] = {}
        self.in_flight: Final[dict[int, PendingCall]] = {}
        self.is_open = False
        """True once the node has answered: before that, nothing is sent."""
        self._owner = owner
        self._ids = ids
        self._loop = asyncio.get_running_loop()
        self._stream = channel.stream_stream(
            _METHOD,
            request_serializer=SessionRequest.SerializeToString,
            response_deserializer=SessionResponse.FromString,
        )()
        self._wake = asyncio.Event()
        self._large = LargeCalls(self.in_flight, wake=self._wake.set)
        self._arriving = ReplyAssembly()
        self._sent_at = 0.0
        self._written_at = 0.0
        self.heard_at = 0.0
        """When the node last said anything, by the loop's clock."""
        self._owed_since: float | None = None
        """When calls were sent that others were asked for since, without a word from the node."""
        self._first_of_last = 0
        self._unanswered_of_last = 0
        self._given_up = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, pending: PendingCall) -> None:
        """Send the call as soon as the rules of coalescing allow it."""
        pending.move(self.unsent, next(self._ids))
        # In between these two, the writer already knows what it waits for.
        if len(self.unsent) in (1, limits.MAX_BATCH_CALLS):
            self._wake.set()

    def silent_for(self) -> float:
        """For how many seconds the node has owed an answer without saying anything.

        Or else has taken nothing of a large call.
        """
        if self._owed_since is not None:
            since = self._owed_since
        elif self.in_flight:
            since = next(iter(self.in_flight.values())).sent_at
        elif self._large.is_sending:
            since = self._written_at
        else:
            return 0.0
        return self._loop.time() - max(self.heard_at, since)

    def give_away_reads(self) -> tuple[PendingCall, ...]:
        """The reads that another node may answer; this one goes on owing an answer."""
        given = tuple(one for one in self.in_flight.values() if one.anywhere)
        if given and self._owed_since is None:
            self._owed_since = given[0].sent_at
        return given + tuple(one for one in self.unsent.values() if one.anywhere)

    @property
    def is_idle(self) -> bool:
        """Whether no call is on the session."""
        return not (self.unsent or self.in_flight or self._large.waiting)

    def not_handed_over(self) -> Iterator[PendingCall]:
        """The calls that the node cannot have carried out."""
        return chain(tuple(self.unsent.values()), tuple(self._large.waiting.values()))

    def retire(self, *, grace_seconds: float) -> None:
        """Send nothing more; end when the node has answered everything, or after the grace."""
        self._given_up = True
        self._wake.set()
        self._loop.call_later(grace_seconds if self.in_flight else 0.0, self.abort)

    def abort(self) -> None:
        """End now."""
        self._given_up = True
        self._stream.cancel()

    async def run(self) -> Exception | None:
        """Serve until the stream ends, and return why; None if it was given up here.

        After `abort` it ends with CancelledError: so gRPC reports a stream cancelled on this side.
        """
        writer = asyncio.create_task(self._write(), name=f"kvorum writer to {self.address}")
        cause: Exception | None = ConnectionResetError(f"{self.address} ended the stream")
        try:
            while isinstance(response := await self._stream.read(), SessionResponse):
                self._hear(response)
        except grpc.aio.AioRpcError as error:
            cause = error.with_traceback(None)  # which would keep the stream (channels.py)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._stream.cancel()
            writer.cancel()
            await asyncio.wait([writer])
        return None if self._given_up else cause

    def _hear(self, response: SessionResponse) -> None:
        self.heard_at = self._loop.time()
        self._owed_since = None
        if response.HasField("leadership") or not self.is_open:
            self.is_open = True
            self._owner.on_leadership(self, response.leadership)
        for reply in response.replies:
            self._settle(reply)
        if response.HasField("part"):
            assembled = self._arriving.take(response.part)
            if assembled is not None:
                self._settle(assembled)
        if self.unsent:
            self._wake.set()

    def _settle(self, reply: Reply) -> None:
        if not self._large.answered(reply.id) and reply.id >= self._first_of_last:
            self._unanswered_of_last -= 1
        pending = self.in_flight.get(reply.id) or self._large.waiting.get(reply.id)
        if pending is not None:
            pending.move(None)
            self._owner.on_reply(self, pending, reply)

    async def _write(self) -> None:
        try:
            while not self._given_up:
                request = self._next_message()
                if request is None:
                    self._wake.clear()
                    await self._wake.wait()
                else:
                    await self._stream.write(request)
                    self._written_at = self._loop.time()
            await self._stream.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is over; the reader learns why.
            return

    def _next_message(self) -> SessionRequest | None:
        """Take what may leave now, or see to it that the writer wakes when something may."""
        if not self.is_open:
            return None
        now = self._loop.time()
        calls = self._take(now) if self._may_take(now) else []
        part = self._large.next_part(now)
        if calls:
            self._sent_at = now
            self._first_of_last = calls[0].id
            self._unanswered_of_last = len(calls)
        return SessionRequest(calls=calls, part=part) if calls or part is not None else None

    def _may_take(self, now: float) -> bool:
        """Tell whether calls may leave; if some must wait, the writer will be woken."""
        if not self.unsent:
            return False
        due = self._sent_at + SEND_INTERVAL_SECONDS
        if self._unanswered_of_last and now < due and len(self.unsent) < limits.MAX_BATCH_CALLS:
            if self._timer is None:
                self._timer = self._loop.call_at(due, self._on_timer)
            return False
        return True

    def _take(self, now: float) -> list[Call]:
        calls: list[Call] = []
        size = 0
        for pending in tuple(islice(self.unsent.values(), limits.MAX_BATCH_CALLS)):
            if pending.future.done():
                pending.move(None)
                continue
            size_bytes = pending.call.ByteSize()
            if size_bytes > limits.MAX_BATCH_BYTES:
                self._large.add(pending)
                continue
            size += size_bytes
            if size > limits.MAX_BATCH_BYTES:
                break
            pending.move(self.in_flight, pending.id)
            pending.start(now)
            calls.append(pending.call)
        return calls

    def _on_timer(self) -> None:
        self._timer = None
        self._wake.set()
