"""Calls to a cluster: to its leader, wherever that is.

    waiting ──(a leader is known)──> a session: unsent ──> in flight ──> answered
       ^                                           │
       └────────── not applied: to be repeated ────┘

Everything that happens, happens in `_steer`: it looks at what is known, and puts
it in order. It is called after each event (a call, an answer, a node's word
about the leader, the end of a stream) and every PACE_SECONDS while calls are
under way. While a leader is there and answers, the only stream is the one to
it. Otherwise all nodes are asked: each holds a stream, on which it tells of a
new leader as soon as there is one.

Which calls are repeated: all, until their deadline. What was certainly not applied and
reads can be sent again in any case. A write can because the store knows it by its client
and number (`window.py`), and applies it once. So the first write waits until the store
knows the client, and a write that would be too far ahead of the oldest one under way
waits for that. Two things are left to a caller who wants to know:

- that time ran out while an answer was missing (`DeadlineExceeded.maybe_applied`);
- that the store has forgotten the client meanwhile, as it does when there are very many:
  `OutcomeUnknown` for what was sent before and may have been applied then. What was not,
  is sent anew by a new client.

What a node refuses, and what was lost twice, is repeated within a budget that all calls share
(`retries.py`). Nothing is sent to two nodes for the sake of speed, a write least of all: a call
is on one stream at a time. Only a read leaves a stream that still owes its answer.

A read that may be stale goes to whoever answers, the leader or not: mostly the leader, as
its stream is there. A node that is too far behind for it sends it on to the leader.
"""

import asyncio
import logging
import random
from collections.abc import Iterable
from itertools import count
from typing import Final

import grpc.aio

from kvorum.backends.leadership import LeaderView
from kvorum.backends.pending import Deadlines, PendingCall, Registration
from kvorum.backends.retries import RETRIES_PER_SECOND, RetryBudget, backoff_seconds, jitter
from kvorum.backends.session import Session
from kvorum.backends.watching import ClusterFeed, ClusterWatches
from kvorum.backends.window import Window
from kvorum.channels import Channels
from kvorum.errors import (
    ClientForgotten,
    Closed,
    DeadlineExceeded,
    KvorumError,
    NoLeader,
    NoNodeReachable,
    NotLeader,
    OutcomeUnknown,
    QuotaExceeded,
    ShuttingDown,
    TooStale,
)
from kvorum.status import from_status, retry_delay_seconds
from kvorumpb.v1.kv_pb2 import Call, Leadership, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch

PACE_SECONDS: Final = 0.05
"""How often an unreachable node, or one that does not lead, is tried again."""
STAGGER_SECONDS: Final = 0.005
"""Between the first words to the nodes: mostly the first of them already knows the leader."""
PATIENCE_SECONDS: Final = 0.5
"""How long a leader may take to connect, or to answer anything, before the others are asked."""
GRACE_SECONDS: Final = 1.0
"""How long a former leader that still answers may take over the writes it was sent: the new one
knows of them, but may not keep all of what they returned."""

logger = logging.getLogger("kvorum.client")


class _Node:
    """One address: the stream that is open to it, and how it fared."""

    __slots__ = ("address", "asked_at", "failed", "refused_until", "retry_at", "session")

    def __init__(self, address: str) -> None:
        self.address = address
        self.session: Session | None = None
        self.asked_at = 0.0
        self.retry_at = 0.0
        self.failed = False
        """True if the last attempt to open a stream did not succeed."""
        self.refused_until = 0.0

    def open_session(self, now: float) -> Session | None:
        """Return a stream that can take calls; None while the node says it does not lead."""
        if self.session is None or not self.session.is_open or now < self.refused_until:
            return None
        return self.session

    def is_coming(self, now: float) -> bool:
        """Tell whether it is worth waiting for: it is being connected, and has not failed."""
        if self.session is None:
            return not self.failed
        return not (self.session.is_open or self.failed) and now < self.asked_at + PATIENCE_SECONDS


class ClusterBackend:
    """The calls of one store, and the streams to its nodes."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._loop = asyncio.get_running_loop()
        names = list(addresses)
        # Many clients with the same list do not all begin with the same node.
        random.shuffle(names)
        self._nodes = {address: _Node(address) for address in names}
        self._channels = Channels()
        self._view = LeaderView()
        self._leader: Session | None = None
        self._led_at = ""
        """The address that calls went to last."""
        self._proven: Session | None = None
        """Led when it was asked, whatever address the nodes give for the leader."""
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._ids = count(1)
        self._calls: set[PendingCall] = set()
        self._window: Window | None = None
        self._registration: Registration | None = None
        self._unnumbered: dict[int, PendingCall] = {}
        """Writes that wait for a window, or for room in it."""
        self._waiting: dict[int, PendingCall] = {}
        self._delayed: dict[int, PendingCall] = {}
        self._held_back: dict[int, PendingCall] = {}
        """Repetitions that wait for the budget."""
        self._budget = RetryBudget(self._loop.time())
        self._is_warned = False
        """The log has that repetitions are held back."""
        self._deadlines = Deadlines(self._loop, self._expire)
        self._pace: asyncio.TimerHandle | None = None
        self._stagger: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        """When the last stream that has ended was last heard from."""
        self._last_failure: Exception | None = None
        self._closed = False
        self._watches = ClusterWatches(lambda: self._nodes, self.call)
        self._steer()

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        if self._closed:
            raise Closed("the store is closed")
        pending = PendingCall(call, timeout_seconds, self._loop)
        self._calls.add(pending)
        self._deadlines.add(pending)
        self._route(pending)
        if self._pace is None:
            self._keep_pace()
        try:
            return await pending.future
        finally:
            self._calls.discard(pending)
            self._deadlines.discard(pending)
            pending.move(None)
            pending.settle()
            if self._unnumbered and not self._closed:
                self._number_waiting()

    def watch(self, begin: BeginWatch, *, timeout_seconds: float) -> ClusterFeed:
        return self._watches.open(begin, timeout_seconds)

    async def close(self) -> None:
        self._closed = True
        await self._watches.close()
        for timer in (self._pace, self._stagger):
            if timer is not None:
                timer.cancel()
        self._deadlines.close()
        for pending in self._calls:
            pending.fail(Closed("the store was closed", maybe_applied=pending.maybe_applied))
        if self._registration is not None:
            self._registration.fail(Closed("the store was closed"))
        for session in self._sessions:
            session.abort()
        if self._sessions:
            await asyncio.wait(self._sessions.values())
        # Nothing of gRPC is kept: while there is anything, the process cannot fork (channels.py).
        self._leader = self._proven = self._last_failure = None
        self._nodes.clear()
        await self._channels.close()

    # What the sessions say.

    def on_leadership(self, session: Session, leadership: Leadership) -> None:
        """A node says who leads."""
        self._nodes[session.address].failed = False
        if session is self._leader and leadership.term >= self._view.term and not leadership.leader:
            self._view.disclaim()
        self._observe(leadership.term, leadership.leader, leadership.address)
        for address in leadership.members:
            self._meet(address)
        self._steer()

    def on_reply(self, session: Session, pending: PendingCall, reply: Reply) -> None:
        """A node answers a call."""
        if reply.HasField("error"):
            self._on_error(session, pending, reply)
            return
        if self._leader is None and not pending.anywhere:
            self._prove(session)
        pending.succeed(reply)
        self._on_answer()

    def _on_answer(self) -> None:
        self._budget.reward()
        if self._held_back:
            self._release()

    def _on_error(self, session: Session, pending: PendingCall, reply: Reply) -> None:
        is_write = pending.is_write
        error = from_status(reply.error, write=is_write)
        match error:
            case NotLeader() | NoLeader() | ShuttingDown():
                self._refuse(session, error)
                self._repeat(pending)
                self._steer()
            case TooStale() if pending.anywhere:
                pending.anywhere, pending.too_stale = False, error
                self._repeat(pending)
                self._steer()
            case KvorumError(retryable=True):
                self._repeat_later(pending, retry_delay_seconds(reply.error))
            case OutcomeUnknown() | DeadlineExceeded():
                pending.lost = is_write
                self._repeat_later(pending, None)
            case QuotaExceeded() if pending.lost:
                # It speaks for this attempt alone.
                self._repeat_later(pending, None)
            case ClientForgotten():
                self._on_forgotten(pending, error)
            case _:
                # An answer, and of nobody's concern but the caller's: it may name keys and values.
                pending.fail(error)
                self._on_answer()
                return
        self._last_failure = error

    def _on_forgotten(self, pending: PendingCall, error: ClientForgotten) -> None:
        """The store does not know the client: a new one goes on with what was not applied."""
        if pending.window is self._window:
            logger.warning("the store has forgotten this client, which goes on as a new one")
            self._window = None
            if self._unnumbered:
                self._register()
        if pending.lost:
            doubt = OutcomeUnknown(
                "the store has forgotten this client before the write was answered: it may or may"
                " not be applied"
            )
            pending.fail(doubt, error)
        else:
            pending.settle()
            self._repeat_later(pending, None)

    def _refuse(self, session: Session, error: KvorumError) -> None:
        """A node says that it does not lead, and perhaps who does."""
        self._nodes[session.address].refused_until = self._loop.time() + PACE_SECONDS
        term = self._view.term
        if session is self._proven:
            self._proven = None
        if session.address == self._view.address:
            self._view.disclaim()
            # Whoever leads instead leads a later term; at least the next.
            term += 1
        address = error.metadata.get("address", "")
        if address and address != session.address:
            self._observe(term, error.metadata.get("leader", ""), address)

    def _prove(self, session: Session) -> None:
        """A node has done what only the leader does."""
        node = self._nodes[session.address]
        if node.open_session(self._loop.time()) is session:
            self._proven = session
            self._steer()

    def _observe(self, term: int, leader: str, address: str) -> None:
        if term > self._view.term:
            self._proven = None
        self._view.observe(term, leader, address)
        if self._view.address:
            self._meet(self._view.address)

    def _meet(self, address: str) -> None:
        """Remember a node that others have named: those of the target may all be replaced."""
        if address not in self._nodes:
            self._nodes[address] = _Node(address)

    # Where calls go.

    def _route(self, pending: PendingCall) -> None:
        if pending.is_write and pending.window is None and not self._number(pending):
            return
        session = self._find_any() if pending.anywhere else self._leader
        if session is not None:
            session.submit(pending)
        else:
            self._repeat(pending)
            self._steer()

    def _number(self, pending: PendingCall) -> bool:
        """Give the write its number, or let it wait for one."""
        window = self._window
        if window is None or window.is_full or self._unnumbered:
            pending.sent = False
            pending.move(self._unnumbered, next(self._ids))
            if window is None:
                self._register()
            return False
        pending.number(window)
        return True

    def _number_waiting(self) -> None:
        window = self._window
        while self._unnumbered and window is not None and not window.is_full:
            pending = next(iter(self._unnumbered.values()))
            pending.move(None)
            pending.number(window)
            self._route(pending)

    def _register(self) -> None:
        if self._registration is None:
            self._registration = Registration(self._loop)
            self._deadlines.add(self._registration)
            self._registration.future.add_done_callback(self._on_registered)
            self._route(self._registration)

    def _on_registered(self, future: "asyncio.Future[Reply]") -> None:
        registration, self._registration = self._registration, None
        if registration is None:
            raise AssertionError("nobody was to be registered")
        self._deadlines.discard(registration)
        registration.move(None)
        error = future.exception()
        if error is None:
            self._window = Window(registration.client_id)
            self._number_waiting()
        elif isinstance(error, DeadlineExceeded | NoNodeReachable):
            if self._unnumbered:
                self._register()
        elif isinstance(error, KvorumError):
            for pending in tuple(self._unnumbered.values()):
                pending.fail(error)

    def _repeat(self, pending: PendingCall) -> None:
        pending.sent = False
        pending.move(self._waiting, next(self._ids))

    def _repeat_later(self, pending: PendingCall, asked_seconds: float | None) -> None:
        delay = backoff_seconds(pending.attempts, asked_seconds)
        pending.attempts += 1
        pending.sent = False
        pending.move(self._delayed, next(self._ids))
        self._loop.call_later(delay, self._resume, pending)

    def _resume(self, pending: PendingCall) -> None:
        if pending.home is self._delayed:
            pending.move(self._held_back, next(self._ids))
            self._release()

    def _release(self) -> None:
        """Repeat as many calls as the budget allows, those that wait longest first."""
        now = self._loop.time()
        while self._held_back and self._budget.take(now):
            self._route(next(iter(self._held_back.values())))
        if self._held_back and not self._is_warned:
            logger.warning(
                "the cluster refuses calls%s: no more than %d a second are repeated, and one for"
                " each that is answered",
                _because(self._last_failure),
                RETRIES_PER_SECOND,
            )
        self._is_warned = bool(self._held_back) or (self._is_warned and not self._budget.is_full)

    def _keep_pace(self) -> None:
        if self._calls or self._registration is not None:
            self._pace = self._loop.call_later(jitter(PACE_SECONDS), self._keep_pace)
            self._steer()
            self._release()
        else:
            self._pace = None

    def _steer(self) -> None:
        """Bring streams and calls in line with what is known of the leader."""
        if self._closed:
            return
        now = self._loop.time()
        self._leader = self._find_leader(now)
        if self._leader is None:
            self._ask_all(now)
            self._let_anybody_read()
            self._probe(now)
            return
        if self._leader.address != self._led_at:
            self._led_at = self._leader.address
            logger.info("calls go to %s: %s", self._led_at, str(self._view))
        if self._leader.silent_for() > PATIENCE_SECONDS:
            self._ask_all(now)
            self._let_anybody_read()
        else:
            self._retire_others(self._leader)
        for pending in tuple(self._waiting.values()):
            self._leader.submit(pending)

    def _let_anybody_read(self) -> None:
        """Give the reads that any node may answer to one that does."""
        session = self._find_any()
        if session is None:
            return
        waiting = tuple(self._waiting.values())
        if self._leader is not None and session is not self._leader:
            waiting += self._leader.give_away_reads()
        for pending in waiting:
            if pending.anywhere:
                session.submit(pending)

    def _find_any(self) -> Session | None:
        """A stream to a node that answers: the leader's, if it does, since that one is there."""
        if self._leader is not None and self._leader.silent_for() <= PATIENCE_SECONDS:
            return self._leader
        sessions = [node.session for node in self._nodes.values() if node.session is not None]
        answering = [session for session in sessions if session.is_open]
        return min(answering, key=Session.silent_for, default=self._leader)

    def _find_leader(self, now: float) -> Session | None:
        named = self._nodes.get(self._view.address)
        session = named.open_session(now) if named is not None else None
        return session or self._proven

    def _ask_all(self, now: float) -> None:
        """Open a stream to each node that has none: to the leader at once, to others in turn."""
        idle = [node for node in self._nodes.values() if node.session is None]
        for node in idle:
            if now < node.retry_at:
                continue
            if node.address == self._view.address:
                self._open(node, now)
            elif self._stagger is None:
                self._open(node, now)
                self._stagger = self._loop.call_later(STAGGER_SECONDS, self._ask_next)

    def _ask_next(self) -> None:
        self._stagger = None
        if self._leader is None or self._calls:
            self._steer()

    def _probe(self, now: float) -> None:
        """With no leader in reach, try one waiting call on each node that could be it.

        So the leader is found behind an address of which the nodes do not know,
        as when ports are forwarded.
        """
        named = self._nodes.get(self._view.address)
        if named is not None and named.is_coming(now):
            return
        for node in self._nodes.values():
            session = node.open_session(now)
            if session is None or not session.is_idle:
                continue
            pending = next((one for one in self._waiting.values() if not one.anywhere), None)
            if pending is not None:
                session.submit(pending)

    # Streams.

    def _open(self, node: _Node, now: float) -> None:
        session = node.session = Session(
            node.address, self._channels.to(node.address), self, self._ids
        )
        node.asked_at = now
        self._sessions[session] = self._loop.create_task(
            self._serve(node, session), name=f"kvorum session to {node.address}"
        )

    async def _serve(self, node: _Node, session: Session) -> None:
        cause: Exception | None = None
        try:
            cause = await session.run()
        finally:
            del self._sessions[session]
            self._on_ended(node, session, cause)

    def _on_ended(self, node: _Node, session: Session, cause: Exception | None) -> None:
        if node.session is session:
            node.session = None
        if session is self._proven:
            self._proven = None
        if session is self._leader:
            self._leader = None
        self._heard_at = max(self._heard_at, session.heard_at)
        if cause is not None:
            self._last_failure = cause
            if session.is_open:
                logger.warning("lost the connection to %s%s", node.address, _because(cause))
            elif not node.failed:
                logger.warning("cannot reach %s%s", node.address, _because(cause))
            node.failed = not session.is_open
            # Counted from the attempt: after a stream that lasted, the next one follows at once.
            node.retry_at = node.asked_at + jitter(PACE_SECONDS)
        for pending in tuple(session.in_flight.values()):
            if pending.lost:
                # It may be what breaks the streams, or the node breaks all of them.
                self._repeat_later(pending, None)
            else:
                pending.lost = True
                self._repeat(pending)
        self._take_back(session)
        self._steer()

    def _retire_others(self, leader: Session) -> None:
        for node in self._nodes.values():
            session = node.session
            if session is not None and session is not leader:
                node.session = None
                if session is self._proven:
                    self._proven = None
                self._take_back(session)
                silent = session.silent_for() > PATIENCE_SECONDS
                session.retire(grace_seconds=0.0 if silent else GRACE_SECONDS)

    def _take_back(self, session: Session) -> None:
        """Let everything on the stream wait for another one, but for the writes that were sent."""
        reads = [pending for pending in session.in_flight.values() if not pending.is_write]
        for pending in (*reads, *session.not_handed_over()):
            self._repeat(pending)

    def _expire(self, pending: PendingCall) -> None:
        if pending.too_stale is not None:
            pending.fail(pending.too_stale)
            return
        nodes = ", ".join(self._nodes)
        cause = self._last_failure
        began_at = pending.deadline - pending.timeout_seconds
        heard_at = max(self._heard_at, *(session.heard_at for session in self._sessions), 0.0)
        if pending.sent or pending.lost or heard_at >= began_at:
            error: KvorumError = pending.expired(f"{self._view}; asked {nodes}{_because(cause)}")
        else:
            error = NoNodeReachable(
                f"no node answered within {pending.timeout_seconds:g} s: "
                f"asked {nodes}{_because(cause)}",
                nodes=tuple(self._nodes),
            )
        logger.debug("gave up a %s: %s", pending.call.WhichOneof("request"), error)
        pending.fail(error, cause)


def _because(cause: Exception | None) -> str:
    if cause is None:
        return ""
    text = cause.details() if isinstance(cause, grpc.aio.AioRpcError) else str(cause)
    return f" ({text or type(cause).__name__})"
