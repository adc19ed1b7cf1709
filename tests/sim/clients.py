"""Simulated clients: they call nodes over the network, give up, and tell the oracle.

Each client has a few calls under way at most, sends them together, and goes on when
all have come to an end. What it may conclude from an error is what kvorum's own client
concludes (kvorum.status): refused, so that a retry would be safe, or in doubt. An answer
that does not come in time leaves a write in doubt. A retry is nothing but the next call.

Keys are few, and every value put is unique.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from kvorum.errors import NotLeader, OperationFailed
from kvorum.status import from_status
from kvorum_node.raft.types import NodeId, node_name
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    DeleteOperation,
    GetOperation,
    Operation,
    PutOperation,
    Transaction,
)
from kvorumpb.v1.kv_pb2 import (
    Call,
    DeleteRequest,
    GetRequest,
    ListRequest,
    PutRequest,
    Reply,
    TxnRequest,
)
from tests.sim import oracle
from tests.sim.host import Host
from tests.sim.network import Network
from tests.sim.oracle import Oracle
from tests.sim.scheduler import MILLISECOND, Scheduler

KEYS: Final = (b"a", b"b", b"c")
COUNTERS: Final = (b"m", b"n")
PATIENCE_TICKS: Final = (3, 8, 20, 60)


@dataclass(slots=True)
class Operated:
    """One operation, as its client sees it: times in microseconds, None as long as it is open."""

    client: int
    request: Call
    transaction: Transaction | None
    """What it comes to in the log; None for a read."""
    called_us: int
    floor: int
    returned_us: int | None = None
    reply: Reply | None = None
    """Of what was carried out."""
    refused: bool = False
    """It changed nothing."""
    in_doubt: bool = False
    """A write that may take effect at any later time, or a read that was never answered."""


@dataclass(slots=True)
class _Session:
    """What was sent together, and what of it is still open."""

    number: int
    target: NodeId
    think_us: int
    """How long the client rests afterwards, on average."""
    open: dict[int, Operated]


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
        self._target: NodeId | None = None
        self._session: _Session | None = None
        self._sessions = 0
        self._calls = 0
        self._tick_us = tick_us
        self._seen: dict[bytes, int] = {}  # the revision of each key that was last read
        scheduler.after(random.randint(0, think_us), self._begin)

    # Asking.

    def _begin(self) -> None:
        if self.active:
            # Reads are asked alone as a rule: with a write, they would wait for its answer.
            reads = self._random.random() < 0.5
            count = 1 if reads else self._random.choice((1, 1, 2, 3))
            self._send([self._operation(read=reads) for _ in range(count)])

    def _operation(self, *, read: bool) -> Operated:
        self._calls += 1
        request, transaction = self._draw(self._calls, read=read)
        done = Operated(
            self.number, request, transaction, self._scheduler.now_us, self._oracle.floor()
        )
        self._history.append(done)
        return done

    def _send(self, operations: list[Operated]) -> None:
        self._sessions += 1
        target = self._target
        if target is None or target not in self._hosts:
            target = self._random.choice(sorted(self._hosts))
        session = _Session(
            self._sessions, target, self.think_us, {one.request.id: one for one in operations}
        )
        self._session = session
        self._note("client", self.number, "calls", node_name(target), sorted(session.open))
        host = self._hosts[target]
        link_back = (target, -self.number)

        def emit(replies: Iterable[Reply]) -> None:
            taken = list(replies)
            self._network.send(link_back, taken, lambda some: self._hears(session, some), once=True)

        calls = [one.request for one in operations]
        self._network.send(
            (-self.number, target), calls, lambda some: host.asked(some, emit), once=True
        )
        patience = self._random.choice(PATIENCE_TICKS)
        self._scheduler.after(patience * self._tick_us, self._give_up, session)

    def _draw(self, call: int, *, read: bool) -> tuple[Call, Transaction | None]:
        random = self._random
        key = random.choice(KEYS)
        kind = random.uniform(0.0, 0.4) if read else random.uniform(0.35, 1.0)
        timeout_us = random.choice(PATIENCE_TICKS) * self._tick_us
        request = Call(id=call, timeout_ms=timeout_us // MILLISECOND)
        if kind < 0.35:
            request.get.CopyFrom(GetRequest(key=random.choice((*KEYS, *COUNTERS))))
            return request, None
        if kind < 0.4:
            request.list.CopyFrom(ListRequest(prefix=b""))
            return request, None
        value = b"c%d-%d" % (self.number, call)
        put = Operation(put=PutOperation(key=key, value=value))
        if kind < 0.6:
            request.put.CopyFrom(PutRequest(key=key, value=value))
            return request, Transaction(operations=[put])
        if kind < 0.66:
            request.delete.CopyFrom(DeleteRequest(key=key))
            return request, Transaction(operations=[Operation(delete=DeleteOperation(key=key))])
        transaction = self._draw_transaction(key, put)
        request.txn.CopyFrom(TxnRequest(transaction=transaction))
        return request, transaction

    def _draw_transaction(self, key: bytes, put: Operation) -> Transaction:
        random = self._random
        other = KEYS[(KEYS.index(key) + 1) % len(KEYS)]
        counter = random.choice(COUNTERS)
        get = Operation(get=GetOperation(key=other))
        add = Operation(add=AddOperation(key=counter, amount=random.choice((1, 1, -2, 2**62))))
        match random.randrange(6):
            case 0 | 1:  # compare and set
                check = Check(key=key, revision=self._seen.get(key, 0))
                return Transaction(checks=[check], operations=[put], otherwise=[get])
            case 2:
                return Transaction(operations=[get, put])
            case 3:
                return Transaction(operations=[add])
            case 4:
                return Transaction(operations=[put, add])
            case _:  # an add to a text fails, and undoes the put
                wrong = Operation(add=AddOperation(key=other, amount=1))
                check = Check(key=counter, exists=random.random() < 0.8)
                return Transaction(checks=[check], operations=[put, wrong], otherwise=[get])

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
        operated.returned_us = self._scheduler.now_us
        if not reply.HasField("error"):
            self.counts["answered"] += 1
            operated.reply = reply
            self._target = session.target
            self._judge(operated, reply)
            return
        error = from_status(reply.error, write=operated.transaction is not None)
        self.counts[type(error).__name__] += 1
        if isinstance(error, OperationFailed):
            operated.refused = True  # it changed nothing; the error does not say at which revision
        elif error.maybe_applied:
            self._target = None
            self._doubt(operated)
        else:
            operated.refused = True
            if operated.transaction is not None:
                self._oracle.refused(operated.transaction)
            leader = error.metadata.get("leader", "") if isinstance(error, NotLeader) else ""
            self._target = NodeId(int(leader[1:])) if leader else None
            if leader:
                session.think_us = 0  # it knows where to go

    def _judge(self, operated: Operated, reply: Reply) -> None:
        floor, transaction = operated.floor, operated.transaction
        match reply.WhichOneof("outcome"):
            case "get":
                key = operated.request.get.key
                found = reply.get.HasField("record")
                value = oracle.value_of(reply.get.record) if found else None
                self._seen[key] = 0 if value is None else value.revision
                self._oracle.read(key, value, reply.get.revision, floor)
            case "list":
                records = {one.key: oracle.value_of(one) for one in reply.list.records}
                self._oracle.listed(records, reply.list.revision, floor)
            case "txn":
                assert transaction is not None
                result = reply.txn.result
                self._oracle.written(transaction, result.revision, floor, oracle.told(result))
            case "put":
                assert transaction is not None
                self._oracle.written(transaction, reply.put.revision, floor, None)
            case _:
                assert transaction is not None
                gone = oracle.Expected(True, None, None, [("delete", reply.delete.deleted)], {})
                self._oracle.written(transaction, reply.delete.revision, floor, gone)

    def _give_up(self, session: _Session) -> None:
        if session is self._session:
            self.counts["given up"] += 1
            if self._random.random() < 0.5:
                self._target = None
            for operated in session.open.values():
                self._doubt(operated)
            self._rest(session)

    def _doubt(self, operated: Operated) -> None:
        operated.in_doubt, operated.returned_us = True, None
        self.counts["in doubt"] += 1

    def _rest(self, session: _Session) -> None:
        self._session = None
        self._scheduler.after(self._random.randint(0, 2 * session.think_us), self._begin)


def _gist(reply: Reply) -> str:
    return reply.error.message if reply.HasField("error") else reply.WhichOneof("outcome") or ""
