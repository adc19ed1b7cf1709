"""A call until it is answered, and the clock that ends it.

A pending call is in one place at a time: its `home`, a dict of calls by id. It
gets a new id for every attempt, so that a late answer to an earlier one finds
nobody. A write that has an origin keeps it in every attempt, so that the store
knows it again.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from kvorum import limits
from kvorum.backends.window import Window
from kvorum.errors import DeadlineExceeded, KvorumError, TooStale
from kvorumpb.v1.kv_pb2 import Call, Consistency, Origin, Reply

RESOLUTION_SECONDS: Final = 0.01
"""A deadline is noticed this much late at most: calls of the same moment share a timer."""


class PendingCall:
    """One call on its way. Owned by its backend, awaited by its caller."""

    __slots__ = (
        "anywhere",
        "attempts",
        "bucket",
        "call",
        "deadline",
        "future",
        "home",
        "id",
        "is_write",
        "lost",
        "origin",
        "request",
        "sent",
        "sent_at",
        "timeout_seconds",
        "too_stale",
        "window",
    )

    def __init__(self, call: Call, timeout_seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.timeout_seconds = timeout_seconds
        self.deadline = loop.time() + timeout_seconds
        self.future: asyncio.Future[Reply] = loop.create_future()
        self.id = 0
        self.home: dict[int, PendingCall] | None = None
        self.bucket: set[PendingCall] | None = None
        self.attempts = 0
        self.request = call.WhichOneof("request")
        """The field of the call that it is in."""
        self.is_write = _is_write(call, self.request)
        self.window: Window | None = None
        self.origin: Origin | None = None
        """The part of the call that says whose write it is, and which."""
        self.sent = False
        """True from the moment in which a node may have seen it, until one says it did nothing."""
        self.sent_at = 0.0
        self.lost = False
        """True once an attempt was sent, and nobody can say what became of it."""
        self.anywhere = _is_stale_read(call, self.request)
        """True if any node may answer."""
        self.too_stale: TooStale | None = None
        """Why the leader is asked after all."""

    @property
    def maybe_applied(self) -> bool:
        """True if nobody can say whether this write happened, or still will."""
        return self.is_write and (self.sent or self.lost)

    def number(self, window: Window) -> None:
        """Let the write be the next one of the window."""
        match self.request:
            case "put":
                origin = self.call.put.origin
            case "delete":
                origin = self.call.delete.origin
            case "txn":
                origin = self.call.txn.origin
            case request:
                raise AssertionError(f"{request} is no write")
        origin.client_id = window.client_id
        origin.sequence = window.take()
        self.window, self.origin = window, origin

    def settle(self) -> None:
        """Leave the window, if the write is in one: its number will not be sent any more."""
        if self.window is not None and self.origin is not None:
            self.window.settle(self.origin.sequence)
        self.window = self.origin = None

    def prepare(self, now: float) -> None:
        """Write into the call what the node is to know of this attempt."""
        remaining_ms = int((self.deadline - now) * 1000)
        self.call.id = self.id
        self.call.timeout_ms = min(max(remaining_ms, 1), limits.MAX_CALL_TIMEOUT_MS)
        if self.window is not None and self.origin is not None:
            self.origin.acknowledged = self.window.acknowledged

    def start(self, now: float) -> None:
        """Make the call ready to be handed over: from here on a node may see it."""
        self.prepare(now)
        self.hand_over(now)

    def hand_over(self, now: float) -> None:
        """From here on a node may have seen the whole of it."""
        self.sent = True
        self.sent_at = now

    def move(self, home: "dict[int, PendingCall] | None", new_id: int = 0) -> None:
        """Leave the present home for another, under a new id, or for none."""
        if self.home is not None:
            self.home.pop(self.id, None)
        self.home = home
        self.id = new_id
        if home is not None:
            home[new_id] = self

    def succeed(self, reply: Reply) -> None:
        if not self.future.done():
            self.future.set_result(reply)

    def fail(self, error: KvorumError, cause: BaseException | None = None) -> None:
        if not self.future.done():
            error.__cause__ = cause
            self.future.set_exception(error)

    def expired(self, where: str) -> DeadlineExceeded:
        """Describe running out of time; `where` says what was waited for."""
        doubt = "; the write may or may not be applied" if self.maybe_applied else ""
        return DeadlineExceeded(
            f"not answered within {self.timeout_seconds:g} s: {where}{doubt}",
            maybe_applied=self.maybe_applied,
        )


class Registration(PendingCall):
    """Makes a client id known, with which writes are numbered.

    Every attempt draws an id of its own. Were one that was not answered repeated with its
    id, a late copy of it could bring back a client that was forgotten, without its results.
    """

    __slots__ = ("client_id",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        call = Call()
        call.register_client.SetInParent()
        super().__init__(call, limits.DEFAULT_TIMEOUT_SECONDS, loop)
        self.client_id = 0
        """That of the last attempt."""

    def start(self, now: float) -> None:
        super().start(now)
        # So many that nobody else draws it.
        self.client_id = secrets.randbits(64) or 1
        self.call.register_client.client_id = self.client_id


def _is_write(call: Call, request: str | None) -> bool:
    match request:
        case "get" | "list" | "register_client":  # registering twice does no harm
            return False
        case "txn":
            transaction = call.txn.transaction
            return any(
                operation.WhichOneof("operation") not in ("get", "list")
                for branch in (transaction.operations, transaction.otherwise)
                for operation in branch
            )
        case _:
            return True


def _is_stale_read(call: Call, request: str | None) -> bool:
    match request:
        case "get":
            return call.get.consistency == Consistency.STALE
        case "list":
            return call.list.consistency == Consistency.STALE
        case _:
            return False


class Deadlines:
    """Expires calls. Adding and removing one costs a set operation, not a timer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_expired: Callable[[PendingCall], None]
    ) -> None:
        self._loop = loop
        self._on_expired = on_expired
        self._buckets: dict[int, set[PendingCall]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def add(self, pending: PendingCall) -> None:
        slot = int(pending.deadline / RESOLUTION_SECONDS) + 1
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = set()
            self._timers[slot] = self._loop.call_at(slot * RESOLUTION_SECONDS, self._expire, slot)
        bucket.add(pending)
        pending.bucket = bucket

    def discard(self, pending: PendingCall) -> None:
        if pending.bucket is not None:
            pending.bucket.discard(pending)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._buckets.clear()

    def _expire(self, slot: int) -> None:
        del self._timers[slot]
        for pending in self._buckets.pop(slot):
            self._on_expired(pending)
