"""One session stream: what arrives on it, what is under way, and what waits to be written to it.

Calls and replies above limits.MAX_BATCH_BYTES travel in parts, one part a message, beside
the small ones: so a large value holds up nothing but itself. Both are counted in the budgets
of the node (admission.py) from their first byte to their last.

Rules: a call is under way until its reply has been written, so that a client that does
not read its replies is not read from either. A reply is made when there is room for it in a
message; a large one that has to wait is made again then, and is nowhere meanwhile. Whatever
a session has reserved is released when it ends.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from kvorum import limits
from kvorum.errors import InvalidArgument, KvorumError, LimitExceeded, Overloaded, Unavailable
from kvorum.status import to_status
from kvorum_node.admission import RETRY_DELAY_MS, Budget, Reservation
from kvorum_node.node import Node
from kvorum_node.raft.types import node_name
from kvorum_node.services.dispatch import Answer, Emit
from kvorum_node.unknown_fields import is_all_known
from kvorumpb.v1.kv_pb2 import (
    Call,
    CallPart,
    Leadership,
    Reply,
    SessionRequest,
    SessionResponse,
)

PATIENCE_SECONDS = limits.MAX_CALL_TIMEOUT_MS / 1000
"""How long the next part of a call may take, and a large reply may wait for its turn."""

_COUNTED_BYTES = 2 * limits.MAX_BATCH_BYTES
"""A message above this has a large call in it: a full batch and a part have less."""

FILL_SECONDS = 0.005
"""Making replies for one message ends after this: a read in a transaction may look at very much."""

_MAX_REFUSED = 64
"""Calls of which parts may still come after they were refused: of older ones, each part is told
that nothing is known of it."""

Context = grpc.aio.ServicerContext[Any, Any]


class Session:
    """Serves one stream: `take` is given each message that arrives, `write` sends the replies."""

    def __init__(self, node: Node, context: Context) -> None:
        self._node = node
        self._context = context
        self._under_way = 0
        self._arriving = Assembly(
            node.admission.calls, whole=self._start_large, refuse=self._refuse
        )
        self._replies = _Replies(node.admission.replies, wake=self._wake)
        self._leadership: Leadership | None = None
        """What is to be said of the leader with the next message."""
        self._announced: Leadership | None = None
        self._ending = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def announce(self) -> None:
        """Tell the client who leads, and where the members are."""
        raft = self._node.group.raft
        addresses = raft.configuration.addresses
        leadership = Leadership(term=raft.term, members=addresses.values())
        address = None if raft.leader is None else addresses.get(raft.leader)
        if raft.leader is not None and address is not None:
            leadership.leader = node_name(raft.leader)
            leadership.address = address
        if leadership != self._announced:
            self._announced = self._leadership = leadership
            self._filled.set()

    async def take(self, message: bytes) -> None:
        """Start the calls of a SessionRequest; waits while more are under way than may be."""
        request = SessionRequest.FromString(message)
        if request.HasField("part"):
            self._arriving.take(request.part)
        if len(message) > _COUNTED_BYTES:
            self._start_counted(request.calls, len(message))
        elif request.calls:
            known = is_all_known(request, message)
            if not known:
                request = SessionRequest.FromString(message)
            self._start(request.calls, self._emit, known=known)
        # Or else the largest of them would stay in memory as long as the wait takes.
        del message, request
        if self._under_way >= limits.MAX_SESSION_CALLS:
            self._drained.clear()
            await self._drained.wait()

    async def finish(self) -> None:
        """Wait until every call is answered, and let `write` return after the last answer."""
        self._arriving.close()
        if self._under_way:
            self._drained.clear()
            while self._under_way:
                await self._drained.wait()
                self._drained.clear()
        self._ending = True
        self._filled.set()

    def close(self) -> None:
        """Release what is reserved: the stream is over."""
        self._arriving.close()
        self._replies.close()

    async def write(self) -> None:
        """Send whatever there is to say, as soon as the stream takes it."""
        while not (self._ending and self._leadership is None and self._replies.all_taken):
            response = SessionResponse(leadership=self._leadership)
            answered = self._replies.fill(response)
            if self._leadership is None and not response.replies and not response.HasField("part"):
                if not self._replies.has_small:
                    self._filled.clear()
                    await self._filled.wait()
                await asyncio.sleep(0)
                continue
            self._leadership = None
            await self._context.write(response)
            self._under_way -= answered
            if self._under_way < limits.MAX_SESSION_CALLS // 2:
                self._drained.set()

    def _start(self, calls: Iterable[Call], emit: Emit, *, known: bool = False) -> None:
        calls = tuple(calls)
        self._under_way += len(calls)
        self._node.dispatcher.dispatch(calls, emit, known=known)

    def _start_large(self, call: Call, reservation: Reservation) -> None:
        """Start a call that came in parts."""
        self._start((call,), self._emit_and_release(reservation, 1))

    def _start_counted(self, calls: Iterable[Call], size_bytes: int) -> None:
        """Start calls that are large and came whole, if the node can take them on."""
        calls = tuple(calls)
        try:
            reservation = self._node.admission.calls.reserve(size_bytes)
        except Overloaded as error:
            for call in calls:
                self._refuse(call.id, error)
        else:
            self._start(calls, self._emit_and_release(reservation, len(calls)))

    def _refuse(self, call: int, error: KvorumError) -> None:
        self._under_way += 1
        self._emit([Reply(id=call, error=to_status(error, retry_delay_ms=RETRY_DELAY_MS))])

    def _emit_and_release(self, reservation: Reservation, count: int) -> Emit:
        """How to answer calls that hold a reservation: the last answer releases it."""
        left = count

        def emit(answers: Iterable[Answer]) -> None:
            nonlocal left
            given = list(answers)
            left -= len(given)
            if not left:
                reservation.release()
            self._emit(given)

        if not count:
            reservation.release()
        return emit

    def _emit(self, answers: Iterable[Answer]) -> None:
        self._replies.add(answers)
        self._filled.set()

    def _wake(self) -> None:
        self._filled.set()


@dataclass(slots=True)
class _ArrivingCall:
    buffer: bytearray
    reservation: Reservation
    timer: asyncio.TimerHandle
    received: int = 0


class Assembly:
    """Calls of one stream that arrive in parts, until they are whole."""

    def __init__(
        self,
        budget: Budget,
        *,
        whole: Callable[[Call, Reservation], None],
        refuse: Callable[[int, KvorumError], None],
    ) -> None:
        """Make one without calls.

        Args:
            whole: takes over a call that is complete, and what is reserved for it.
            refuse: answers a call that is not to be.
        """
        self._budget = budget
        self._whole = whole
        self._refuse = refuse
        self._calls: dict[int, _ArrivingCall] = {}
        self._refused: dict[int, int] = {}
        """Bytes that may still come of calls that were refused, oldest first."""

    def take(self, part: CallPart) -> None:
        """Add a part to its call; the first one is what the call is admitted by."""
        call = self._calls.get(part.id)
        if part.abandoned:
            self._refused.pop(part.id, None)
            self._forget(part.id)
        elif part.id in self._refused and not part.total_bytes:
            self._ignore(part)
        elif call is None:
            self._begin(part)
        elif part.total_bytes:
            self._drop(part.id, InvalidArgument(f"the call {part.id} has begun twice"))
        else:
            self._add(call, part)

    def close(self) -> None:
        """Forget everything that is not complete."""
        for call in tuple(self._calls):
            self._forget(call)
        self._refused.clear()

    def _begin(self, part: CallPart) -> None:
        total = part.total_bytes
        try:
            if not total:
                raise InvalidArgument(f"the first part of the call {part.id} gives no total_bytes")
            if total > limits.MAX_MESSAGE_BYTES:
                raise LimitExceeded(
                    f"a call has {total} bytes; at most {limits.MAX_MESSAGE_BYTES} are allowed",
                    limit="MAX_MESSAGE_BYTES",
                    maximum=limits.MAX_MESSAGE_BYTES,
                    actual=total,
                )
            # Many small ones are too many, too.
            reservation = self._budget.reserve(max(total, limits.MAX_BATCH_BYTES))
        except KvorumError as error:
            if total > len(part.data):
                self._refused[part.id] = total - len(part.data)
                if len(self._refused) > _MAX_REFUSED:
                    del self._refused[next(iter(self._refused))]
            self._refuse(part.id, error)
            return
        self._refused.pop(part.id, None)
        call = _ArrivingCall(bytearray(total), reservation, self._start_timer(part.id))
        self._calls[part.id] = call
        self._add(call, part)

    def _add(self, call: _ArrivingCall, part: CallPart) -> None:
        data = part.data
        end = call.received + len(data)
        if end > len(call.buffer):
            excess = f"the call {part.id} has more than the {len(call.buffer)} bytes it announced"
            self._drop(part.id, InvalidArgument(excess))
            return
        call.buffer[call.received : end] = data
        call.received = end
        call.timer.cancel()
        if end < len(call.buffer):
            call.timer = self._start_timer(part.id)
            return
        del self._calls[part.id]
        try:
            complete = Call.FromString(call.buffer)  # type: ignore[arg-type]  # any buffer will do
        except DecodeError:
            call.reservation.release()
            self._refuse(part.id, InvalidArgument(f"the parts of the call {part.id} are no Call"))
            return
        call.buffer = bytearray()  # the call has its own copy, and others will follow
        complete.id = part.id
        self._whole(complete, call.reservation)

    def _ignore(self, part: CallPart) -> None:
        self._refused[part.id] -= len(part.data)
        if self._refused[part.id] <= 0:
            del self._refused[part.id]

    def _start_timer(self, call: int) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(PATIENCE_SECONDS, self._expire, call)

    def _expire(self, call: int) -> None:
        late = f"nothing more of the call {call} has come for {PATIENCE_SECONDS:g} s"
        self._drop(call, Unavailable(late))

    def _drop(self, call: int, error: KvorumError) -> None:
        self._forget(call)
        self._refuse(call, error)

    def _forget(self, call: int) -> None:
        forgotten = self._calls.pop(call, None)
        if forgotten is not None:
            forgotten.timer.cancel()
            forgotten.reservation.release()


@dataclass(slots=True)
class _LargeReply:
    """A reply that travels in parts. It has its bytes, or can be made again."""

    id: int
    size_bytes: int
    make: Callable[[], Reply | None] | None = None
    data: bytes = b""
    sent: int = 0
    reservation: Reservation | None = None


class _Replies:
    """What waits to be written to one stream: small replies, and the parts of one large one."""

    def __init__(self, budget: Budget, *, wake: Callable[[], None]) -> None:
        """`wake` is called when `fill` may have more to give than before."""
        self._budget = budget
        self._wake = wake
        self._small: deque[Iterator[Answer]] = deque()
        self._large: deque[_LargeReply] = deque()
        """The first one is on its way, or waits for its turn among those of the node."""
        self._turn: asyncio.Future[Reservation] | None = None

    @property
    def all_taken(self) -> bool:
        return not self._small and not self._large

    @property
    def has_small(self) -> bool:
        """Whether `fill` has more to look at, whatever it waits for."""
        return bool(self._small)

    def add(self, answers: Iterable[Answer]) -> None:
        self._small.append(iter(answers))

    def fill(self, response: SessionResponse) -> int:
        """Add what is next to the message; returns how many replies are complete with it."""
        now = asyncio.get_running_loop().time
        size, until = 0, now() + FILL_SECONDS
        while self._small and size < limits.MAX_BATCH_BYTES:
            answer = next(self._small[0], None)
            if answer is None:
                self._small.popleft()
                continue
            reply = answer if isinstance(answer, Reply) else answer()
            if reply is None:
                break  # it takes long, and will be answered later
            data = reply.SerializeToString()  # `ByteSize` does no less
            if len(data) > limits.MAX_BATCH_BYTES:
                self._add_large(answer, reply.id, data)
                break  # making it has taken a while: others are to have their turn
            size += len(data)
            response.replies.append(reply)
            if now() >= until:
                break
        completed = self._fill_part(response)
        return len(response.replies) + completed

    def close(self) -> None:
        """Release everything that is reserved."""
        turn, self._turn = self._turn, None
        if turn is not None and not turn.cancel() and turn.exception() is None:
            turn.result().release()
        for large in self._large:
            if large.reservation is not None:
                large.reservation.release()
        self._large.clear()
        self._small.clear()

    def _add_large(self, answer: Answer, call: int, data: bytes) -> None:
        large = _LargeReply(call, len(data))
        if isinstance(answer, Reply):  # of a write: nobody can make it again
            large.data, large.reservation = data, self._budget.take(len(data))
        else:
            large.make = answer
            if not self._large:
                try:
                    large.reservation = self._budget.reserve(len(data))
                    large.data = data
                except Overloaded:
                    pass  # it is made again when there is room
        self._large.append(large)

    def _fill_part(self, response: SessionResponse) -> int:
        """Add the next part of the first large reply; returns 1 if it is the last one."""
        if not self._large:
            return 0
        large = self._large[0]
        if large.reservation is None:
            if not self._may_be_made(large):
                return 0
            reply = self._make(large)
            if not large.data:
                self._large.popleft()
                if reply is not None:
                    response.replies.append(reply)
                return 0
        response.part.id = large.id
        response.part.data = large.data[large.sent : large.sent + limits.MAX_PART_BYTES]
        if not large.sent:
            response.part.total_bytes = len(large.data)
        large.sent += limits.MAX_PART_BYTES
        if large.sent < len(large.data):
            return 0
        assert large.reservation is not None  # noqa: S101 - it has its bytes, so they are counted
        large.reservation.release()
        self._large.popleft()
        return 1

    def _may_be_made(self, large: _LargeReply) -> bool:
        """Whether the reply has its turn; if not, `wake` tells when it has."""
        if self._turn is None:
            self._turn = self._budget.wait(large.size_bytes, timeout_seconds=PATIENCE_SECONDS)
            self._turn.add_done_callback(lambda _: self._wake())
        return self._turn.done()

    def _make(self, large: _LargeReply) -> Reply | None:
        """Make the reply that has its turn; returns it if it is a small one now.

        None without data is for one that takes long now, and will be answered later.
        """
        assert self._turn is not None and large.make is not None  # noqa: S101, PT018 - as it waited
        turn, self._turn = self._turn, None
        error = turn.exception()
        if error is not None:
            assert isinstance(error, Overloaded)  # noqa: S101 - nothing else ends a wait
            return Reply(id=large.id, error=to_status(error, retry_delay_ms=RETRY_DELAY_MS))
        reservation = turn.result()
        reply = large.make()
        if reply is None:
            reservation.release()
            return None
        data = reply.SerializeToString()
        if len(data) <= limits.MAX_BATCH_BYTES:
            reservation.release()
            return reply
        reservation.resize(len(data))  # what it holds may have been written anew
        large.data, large.reservation = data, reservation
        return None
