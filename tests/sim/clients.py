"""Simulated clients: they call nodes over the network, send again or give up, and tell the oracle.

Each client has a few calls under way at most, sends them together, and goes on when
all have come to an end. What it may conclude from an error is what kvorum's own client
concludes (kvorum.status): refused, so that a retry would be safe, or in doubt. An answer
that does not come in time leaves a write in doubt.

Most writes carry an origin: then the client sends what was refused or is in doubt again,
with its number, to the same node or to another, and now and then what it has been answered.
Of what is given up it says, as of what is answered, that nobody waits for it any more. A
write without an origin is sent once.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from kvorum.errors import (
    ClientForgotten,
    Compacted,
    FutureRevision,
    KvorumError,
    NotLeader,
    OperationFailed,
    ResultForgotten,
)
from kvorum.status import from_status
from kvorum_node.raft.types import NodeId, node_name
from kvorumpb.v1.command_pb2 import OperationError, Transaction, TransactionResult
from kvorumpb.v1.kv_pb2 import (
    Call,
    Consistency,
    DeleteRequest,
    GetRequest,
    ListRequest,
    Origin,
    PutRequest,
    RegisterClientRequest,
    Reply,
    TxnRequest,
)
from tests.sim.calls import Repertoire, Seen
from tests.sim.host import Host
from tests.sim.network import Network
from tests.sim.oracle import Fits, Floor, Identity, Oracle, only_reads, same_result
from tests.sim.scheduler import MILLISECOND, Scheduler

PATIENCE_TICKS: Final = (3, 8, 20, 60)
MOST_ATTEMPTS: Final = 8

_Write = PutRequest | DeleteRequest | TxnRequest
_Read = GetRequest | ListRequest


@dataclass(slots=True, eq=False)
class Operated:
    """One operation, as its client sees it: times in microseconds, None as long as it is open."""

    client: int
    request: Call
    transaction: Transaction | None
    """What it comes to in the log; None for a read, and for a registration."""
    called_us: int
    floor: Floor
    after: tuple[bytes, bytes] | None = None
    """Of a further page of a list, the place where the last one has ended."""
    attempts: int = 0
    is_echo: bool = False
    """It has been answered before."""
    returned_us: int | None = None
    reply: Reply | None = None
    """Of what was carried out."""
    refused: bool = False
    """It changed nothing."""
    in_doubt: bool = False
    """A write that may take effect at any later time, or a read that was never answered."""
    was_in_doubt: bool = False
    """Any attempt was."""

    @property
    def origin(self) -> Origin | None:
        request = _write_request(self.request)
        return request.origin if request is not None and request.HasField("origin") else None

    @property
    def identity(self) -> Identity:
        assert self.transaction is not None
        origin = self.origin
        if origin is None:
            return self.transaction.SerializeToString()
        return (origin.client_id, origin.sequence)


@dataclass(slots=True)
class _Session:
    """What was sent together, and what of it is still open."""

    number: int
    target: NodeId
    think_us: int
    """How long the client rests afterwards, on average."""
    open: dict[int, Operated]


class _Window:
    """The numbers of the writes of one client id."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        self.is_known = False
        """Its registration was answered."""
        self.sequence = 0
        self.acknowledged = 0
        self._settled: set[int] = set()

    def next_origin(self) -> Origin:
        self.sequence += 1
        return Origin(client_id=self.client_id, sequence=self.sequence)

    def settle(self, sequence: int) -> None:
        """Nobody waits for the answer any more."""
        self._settled.add(sequence)
        while self.acknowledged + 1 in self._settled:
            self.acknowledged += 1
            self._settled.discard(self.acknowledged)


class Client:
    def __init__(
        self,
        number: int,
        *,
        scheduler: Scheduler,
        network: Network,
        hosts: dict[NodeId, Host],
        oracle: Oracle,
        random: Random,
        think_us: int,
        tick_us: int,
        plain: bool,
        history: list[Operated],
        note: Callable[..., None],
    ) -> None:
        self.number = number
        self.counts: Counter[str] = Counter()
        self.think_us = think_us
        self.active = True
        self._scheduler = scheduler
        self._network = network
        self._hosts = hosts
        self._oracle = oracle
        self._random = random
        self._history = history
        self._note = note
        self._tick_us = tick_us
        self._repertoire = Repertoire(random, number, tick_us // MILLISECOND, plain=plain)
        self._target: NodeId | None = None
        self._session: _Session | None = None
        self._sessions = 0
        self._calls = 0
        self._seen = Seen({})
        self._again: list[Operated] = []
        """What is to be sent again."""
        self._answered: Operated | None = None
        """A write that may be sent once more."""
        self._page: tuple[ListRequest, tuple[bytes, bytes]] | None = None
        """The next page of a list, and where the last one has ended."""
        self._window = self._new_window()
        scheduler.after(random.randint(0, think_us), self._begin)

    # Asking.

    def _begin(self) -> None:
        random = self._random
        operations, self._again = self._again, []
        if self.active and (not operations or random.random() < 0.3):
            # Reads are asked alone as a rule: with a write, they would wait for its answer.
            reads = random.random() < 0.5
            count = 1 if reads else random.choice((1, 1, 2, 3))
            operations += [self._read() if reads else self._write() for _ in range(count)]
        if operations:
            self._send(operations)

    def _operation(self, request: Call, transaction: Transaction | None) -> Operated:
        return Operated(
            self.number, request, transaction, self._scheduler.now_us, self._oracle.floor()
        )

    def _read(self) -> Operated:
        self._calls += 1
        self._seen.oldest = self._oracle.model.oldest_revision
        after = None
        if self._page is not None and self._random.random() < 0.7:
            listed, after = self._page
            request = Call(id=self._calls, list=listed)
        else:
            request = self._repertoire.read(self._calls, self._seen)
        self._page = None
        done = self._operation(request, None)
        done.after = after
        self._history.append(done)
        return done

    def _write(self) -> Operated:
        random, window = self._random, self._window
        if self._answered is not None and random.random() < 0.1:
            echo, self._answered = self._answered, None
            return echo
        if not window.is_known and random.random() < 0.6:
            self._calls += 1
            asked = RegisterClientRequest(client_id=window.client_id)
            return self._operation(Call(id=self._calls, register_client=asked), None)
        if random.random() < 0.01:
            window = self._window = self._new_window()
        self._calls += 1
        request, transaction = self._repertoire.write(self._calls, self._seen)
        if only_reads(transaction):
            return self._operation(request, None)
        if random.random() < (0.85 if window.is_known else 0.1):
            written = _write_request(request)
            assert written is not None
            written.origin.CopyFrom(window.next_origin())
        done = self._operation(request, transaction)
        self._history.append(done)
        return done

    def _new_window(self) -> _Window:
        return _Window(self._random.getrandbits(64) | 1)

    def _send(self, operations: list[Operated]) -> None:
        self._sessions += 1
        random, target = self._random, self._target
        if target is None or target not in self._hosts:
            target = random.choice(sorted(self._hosts))
        calls = [self._call(one) for one in operations]
        session = _Session(
            self._sessions,
            target,
            self.think_us,
            {call.id: one for call, one in zip(calls, operations, strict=True)},
        )
        self._session = session
        self._note("client", self.number, "calls", node_name(target), sorted(session.open))
        host = self._hosts[target]
        link_back = (target, -self.number)

        def emit(replies: Iterable[Reply]) -> None:
            taken = list(replies)
            self._network.send(link_back, taken, lambda some: self._hears(session, some), once=True)

        self._network.send(
            (-self.number, target), calls, lambda some: host.asked(some, emit), once=True
        )
        patience = random.choice(PATIENCE_TICKS)
        self._scheduler.after(patience * self._tick_us, self._give_up, session)

    def _call(self, operated: Operated) -> Call:
        """One more attempt: a call of its own, as it travels beside those before."""
        operated.attempts += 1
        call = Call()
        call.CopyFrom(operated.request)
        timeout_us = self._random.choice(PATIENCE_TICKS) * self._tick_us
        call.timeout_ms = timeout_us // MILLISECOND
        written = _write_request(call)
        if written is not None and written.HasField("origin"):
            window = self._window
            if not operated.is_echo and written.origin.client_id == window.client_id:
                written.origin.acknowledged = min(window.acknowledged, written.origin.sequence - 1)
        return call

    # Being answered.

    def _hears(self, session: _Session, replies: list[Reply]) -> None:
        if session is not self._session:
            return  # too late: it was given up
        self._note("client", self.number, "hears", [(one.id, _gist(one)) for one in replies])
        for reply in replies:
            operated = session.open.pop(reply.id, None)
            if operated is not None:
                self._settle(session, operated, reply)
        if not session.open:
            self._rest(session)

    def _settle(self, session: _Session, operated: Operated, reply: Reply) -> None:
        if not reply.HasField("error"):
            self.counts["answered"] += 1
            self._target = session.target
            self._judge(operated, reply)
            self._is_answered(operated, reply)
            return
        error = from_status(reply.error, write=operated.transaction is not None)
        self.counts[type(error).__name__] += 1
        match error:
            case OperationFailed():
                self._judge_failure(operated, error)
                operated.refused = True  # the error does not say at which revision
                self._is_answered(operated, None)
            case ClientForgotten() | ResultForgotten():
                self._is_forgotten(operated, error)
            case Compacted() | FutureRevision():
                asked = _read_request(operated.request)
                if asked.revision:  # a page of a snapshot names it in its token alone
                    self._oracle.unreadable(asked.revision, error, operated.floor)
                operated.refused = True
            case _:
                self._has_failed(session, operated, error)

    def _has_failed(self, session: _Session, operated: Operated, error: KvorumError) -> None:
        """It was not carried out by this attempt, or nobody knows."""
        if error.maybe_applied:
            self._target = None
            operated.was_in_doubt = True
        else:
            leader = error.metadata.get("leader", "") if isinstance(error, NotLeader) else ""
            self._target = NodeId(int(leader[1:])) if leader else None
            if leader:
                session.think_us = 0  # it knows where to go
        self._try_again(operated)

    def _try_again(self, operated: Operated) -> None:
        """Send it again, if that is safe, or give it up."""
        if operated.origin is not None and operated.attempts < MOST_ATTEMPTS:
            if self._random.random() < 0.85:
                self.counts["sent again"] += 1
                self._again.append(operated)
                return
            self.counts["given up for good"] += 1
        if operated.request.HasField("register_client"):
            if operated.was_in_doubt:
                self._window = self._new_window()
            return
        operated.returned_us = self._scheduler.now_us
        if operated.is_echo:
            return
        if operated.transaction is None:
            operated.in_doubt, operated.returned_us = True, None
        elif operated.was_in_doubt:
            self._doubt(operated)
        else:
            operated.refused = True
            self._oracle.refused(operated.identity, operated.transaction)
        self._settle_number(operated)

    def _doubt(self, operated: Operated) -> None:
        operated.in_doubt, operated.returned_us = True, None
        self.counts["in doubt"] += 1

    def _settle_number(self, operated: Operated) -> None:
        origin = operated.origin
        if origin is not None and origin.client_id == self._window.client_id:
            self._window.settle(origin.sequence)

    def _is_answered(self, operated: Operated, reply: Reply | None) -> None:
        if operated.is_echo:
            self.counts["answered again"] += 1
            return
        operated.returned_us = self._scheduler.now_us
        operated.reply = reply
        self._settle_number(operated)
        origin = operated.origin
        if origin is not None and self._random.random() < 0.3:
            echo = self._operation(operated.request, operated.transaction)
            echo.floor, echo.is_echo = operated.floor, True
            self._answered = echo

    def _is_forgotten(self, operated: Operated, error: KvorumError) -> None:
        origin, window = operated.origin, self._window
        known = origin is not None and origin.client_id == window.client_id
        acknowledged = window.acknowledged if known and operated.is_echo else 0
        if operated.is_echo and not known:
            return  # of a client id of before
        self._oracle.forgotten(operated.identity, acknowledged, error.reason)
        if operated.is_echo:
            return
        operated.refused = True  # of a client that is not known, nothing is ever applied
        if not window.is_known:
            self._window = self._new_window()

    # Judging.

    def _judge(self, operated: Operated, reply: Reply) -> None:
        request, seen = operated.request, self._seen
        is_stale = _is_stale(request)
        floor = None if is_stale else operated.floor
        match reply.WhichOneof("outcome"):
            case "get":
                self._oracle.read(request.get, reply.get, floor)
                if not is_stale and not request.get.revision:
                    found = reply.get.record.revision if reply.get.HasField("record") else 0
                    seen.revisions[request.get.key] = found
                    seen.revision = max(seen.revision, reply.get.revision)
            case "list":
                self._oracle.listed(request.list, reply.list, floor, operated.after)
                self._turn_page(request.list, reply)
            case "register_client":
                client_id = request.register_client.client_id
                self._oracle.registered(client_id)
                if client_id == self._window.client_id:
                    self._window.is_known = True
            case "txn" if operated.transaction is None:
                self._oracle.looked(request.txn.transaction, reply.txn.result, operated.floor)
            case _:
                self._judge_write(operated, _fits(reply))

    def _judge_failure(self, operated: Operated, error: OperationFailed) -> None:
        reason = OperationError.Reason.Value(error.reason)
        self._judge_write(operated, lambda result: result.error.reason == reason)

    def _judge_write(self, operated: Operated, fits: Fits) -> None:
        assert operated.transaction is not None
        self._oracle.written(operated.identity, operated.transaction, operated.floor, fits)

    def _turn_page(self, request: ListRequest, reply: Reply) -> None:
        token, records = reply.list.next_page_token, reply.list.records
        if token and records:
            page = ListRequest()
            page.CopyFrom(request)
            page.page_token = token
            values = reply.list.index_values
            self._page = page, (values[-1] if values else b"", records[-1].key)

    def _give_up(self, session: _Session) -> None:
        if session is self._session:
            self.counts["given up"] += 1
            if self._random.random() < 0.5:
                self._target = None
            for operated in session.open.values():
                operated.was_in_doubt = True
                self._try_again(operated)
            self._rest(session)

    def _rest(self, session: _Session) -> None:
        self._session = None
        self._scheduler.after(self._random.randint(0, 2 * session.think_us), self._begin)


def _write_request(call: Call) -> _Write | None:
    match call.WhichOneof("request"):
        case "put":
            return call.put
        case "delete":
            return call.delete
        case "txn":
            return call.txn
        case _:
            return None


def _read_request(call: Call) -> _Read:
    return call.get if call.HasField("get") else call.list


def _is_stale(call: Call) -> bool:
    return _read_request(call).consistency == Consistency.STALE  # of no read, it is not said


def _fits(reply: Reply) -> Fits:
    """What the result of a write is to be like if this is its answer."""

    def fits(result: TransactionResult) -> bool:
        if result.HasField("error"):
            return False
        match reply.WhichOneof("outcome"):
            case "put":
                return result.revision == reply.put.revision
            case "delete":
                return (result.revision, result.results[0].delete.deleted) == (
                    reply.delete.revision,
                    reply.delete.deleted,
                )
            case _:
                return same_result(reply.txn.result, result)

    return fits


def _gist(reply: Reply) -> str:
    return reply.error.message if reply.HasField("error") else reply.WhichOneof("outcome") or ""
