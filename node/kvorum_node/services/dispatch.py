"""Calls in, replies out: the one way by which every client request reaches the state machine.

The session stream, the unary methods and the store embedded in a process all end
here. A set of calls costs one log entry for its writes and one read round for
its reads, however many they are; a call that is refused does not touch the others.

Nothing is decided about data here: validation/ says what a request may be, the
state machine what it does, and kvorum/status.py how an error travels.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from kvorum import limits
from kvorum.errors import (
    ClientForgotten,
    DeadlineExceeded,
    IntegerOverflow,
    InvalidArgument,
    KvorumError,
    NotAnInteger,
    OutOfBounds,
    Overloaded,
    RangeTooLarge,
    ResultForgotten,
    ResultTooLarge,
    ShuttingDown,
    UniqueViolation,
)
from kvorum.status import to_status
from kvorum_node import validation
from kvorum_node.admission import Admission
from kvorum_node.figures import Calls, Figures, clock
from kvorum_node.group import Group
from kvorum_node.machine import Listing
from kvorum_node.space import takes_space
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    OperationError,
    Transaction,
    TransactionResult,
)
from kvorumpb.v1.kv_pb2 import (
    Call,
    Consistency,
    DeleteRequest,
    GetRequest,
    GetResponse,
    ListRequest,
    PutRequest,
    Reply,
    TxnRequest,
)

Answer = Reply | Callable[[], Reply | None]
"""A reply, or how to make it: a read is carried out then, and again if it is asked for again. What
takes long gives None, and is answered later."""

Emit = Callable[[Iterable[Answer]], None]

_OPERATION_ERRORS: dict[int, type[KvorumError]] = {
    OperationError.NOT_AN_INTEGER: NotAnInteger,
    OperationError.INTEGER_OVERFLOW: IntegerOverflow,
    OperationError.RESULT_TOO_LARGE: ResultTooLarge,
    OperationError.OUT_OF_BOUNDS: OutOfBounds,
    OperationError.UNIQUE_VIOLATION: UniqueViolation,
    OperationError.RANGE_TOO_LARGE: RangeTooLarge,
    OperationError.CLIENT_FORGOTTEN: ClientForgotten,
    OperationError.RESULT_FORGOTTEN: ResultForgotten,
    OperationError.ENTRY_TOO_LARGE: Overloaded,
}


class _Asked(NamedTuple):  # made for every write: a frozen dataclass takes thrice as long
    """What is kept of a write until its answer: not the call, or else its value would be."""

    call: int
    """The id of the call."""
    request: str | None
    """The field of the call that it is in."""
    reading: bool
    """It may return records."""


@dataclass(slots=True)
class _Message:
    """What calls have in common that came together."""

    began: float
    """When they arrived, by `figures.clock`."""
    deadline: float
    """On the event loop's clock."""
    emit: Emit
    later: int = 0
    """Lists that take long, since this was looked at: they are answered by themselves."""


class Dispatcher:
    """Serves the calls of one node's clients."""

    def __init__(
        self, group: Group, admission: Admission | None = None, figures: Figures | None = None
    ) -> None:
        """Serve calls of a group. Without an admission, what they return is not counted."""
        self._group = group
        self._admission = admission or Admission()
        self._figures = figures or Figures()
        self._draining = False
        self._closed = False
        self._reading_transactions = 0
        self._long_lists: set[asyncio.Task[None]] = set()
        self._slices = asyncio.Lock()

    def drain(self) -> None:
        """Refuse calls from now on; those under way go on."""
        self._draining = True

    async def close(self) -> None:
        """Also give up the lists under way: they are answered with an error."""
        self._draining = self._closed = True
        if self._long_lists:
            await asyncio.wait(self._long_lists)

    def dispatch(self, calls: Iterable[Call], emit: Emit, *, known: bool = False) -> None:
        """Start the calls. `emit` is given each one's answer exactly once, at once or in parts.

        It may make the replies of reads when it has room for them, so that their records
        wait for nobody in memory. Only a list that takes long is carried out in a task of its
        own, and its reply is emitted when it is done.

        Args:
            calls: as they came.
            emit: see above.
            known: none of them has a field that this version does not know: do not look.
        """
        loop = asyncio.get_running_loop()
        began = clock()
        refused: list[Reply] = []
        reads: list[Call] = []
        writes: list[_Asked] = []
        commands = CommandBatch()
        shortage = self._group.shortage()
        timeout_ms = 0
        for call in calls:
            try:
                if self._draining:
                    raise ShuttingDown("the node is shutting down")
                if not known:
                    validation.validate_known(call, "the call")
                if shortage is not None and takes_space(call):
                    raise shortage
                request = call.WhichOneof("request")
                if only_reads(call):
                    _validate_read(call)
                    reads.append(call)
                else:
                    reading = request == "txn" and _returns_records(call.txn.transaction)
                    if reading and self._may_read_no_more():
                        raise _too_many_reading_transactions()
                    _add_command(call, request, commands)
                    writes.append(_Asked(call.id, request, reading))
                    self._reading_transactions += reading
            except KvorumError as error:
                refused.append(Reply(id=call.id, error=to_status(error)))
                (self._figures.reads if only_reads(call) else self._figures.writes).refuse(
                    error.code
                )
            timeout_ms = max(timeout_ms, call.timeout_ms or limits.MAX_CALL_TIMEOUT_MS)
        deadline = loop.time() + min(timeout_ms, limits.MAX_CALL_TIMEOUT_MS) / 1000
        if writes:
            self._write(writes, commands, _Message(began, deadline, emit))
        if reads:
            self._read_by_consistency(reads, _Message(began, deadline, emit))
        if refused:
            emit(refused)

    async def execute(self, calls: Sequence[Call]) -> list[Reply]:
        """Serve the calls and return their replies, in any order. Raises nothing of its own."""
        replies: list[Reply] = []
        count = len(calls)
        done = asyncio.get_running_loop().create_future()

        def collect(some: Iterable[Answer]) -> None:
            replies.extend(made(some))
            if len(replies) == count and not done.done():
                done.set_result(None)

        self.dispatch(calls, collect)
        del calls  # their values are in the log, or on the way there
        if count:
            await done
        return replies

    def _may_read_no_more(self) -> bool:
        """Whether transactions return as much as may be: it cannot be made again."""
        too_many = self._reading_transactions >= limits.MAX_READING_TRANSACTIONS
        return too_many or self._admission.replies.is_exhausted

    def _write(self, asked: list[_Asked], commands: CommandBatch, message: _Message) -> None:
        data = commands.SerializeToString()
        if len(data) > limits.MAX_TRANSACTION_BYTES and len(asked) > 1:
            # What becomes one entry has to fit one message to a peer.
            half = len(asked) // 2
            for part in (slice(half), slice(half, None)):
                some = CommandBatch(commands=commands.commands[part])
                self._write(asked[part], some, message)
            return
        reading = sum(one.reading for one in asked)
        try:
            future = self._group.submit(data, len(asked), deadline=message.deadline)
        except KvorumError as error:
            self._reading_transactions -= reading
            self._figures.writes.refuse(error.code, len(asked))
            message.emit(_refusals([one.call for one in asked], error))
            return

        def answer(future: asyncio.Future[list[TransactionResult]]) -> None:
            self._reading_transactions -= reading
            figures, error = self._figures.writes, future.exception()
            figures.seconds.observe(clock() - message.began, len(asked))
            if error is None:
                message.emit(
                    [
                        _result_reply(one.call, one.request, result, figures)
                        for one, result in zip(asked, future.result(), strict=True)
                    ]
                )
            else:
                message.emit(_refusals([one.call for one in asked], error, figures))

        future.add_done_callback(answer)

    def _read_by_consistency(self, calls: list[Call], message: _Message) -> None:
        linearizable: list[Call] = []
        lease: list[Call] = []
        stale: list[Call] = []
        for call in calls:
            if call.WhichOneof("request") == "txn":
                linearizable.append(call)
                continue
            request = _read_request(call)
            match request.consistency:
                case Consistency.STALE if request.max_staleness_ms and self._group.leads:
                    lease.append(call)  # it leads as far as it knows: that must be recent
                case Consistency.STALE:
                    stale.append(call)
                case Consistency.LEASE:
                    lease.append(call)
                case _:
                    linearizable.append(call)
        if linearizable:
            self._read(linearizable, message, lease=False)
        if lease:
            self._read(lease, message, lease=True)
        if stale:
            message.emit(self._answers(stale, message, self._stale_reply))

    def _read(self, calls: list[Call], message: _Message, *, lease: bool) -> None:
        figures = self._figures.reads
        try:
            future = self._group.read(deadline=message.deadline, lease=lease)
        except KvorumError as error:
            figures.refuse(error.code, len(calls))
            message.emit(_refusals([call.id for call in calls], error))
            return

        def answer(future: asyncio.Future[None]) -> None:
            error = future.exception()
            if error is None:
                message.emit(self._answers(calls, message, self._read_reply))
            else:
                figures.seconds.observe(clock() - message.began, len(calls))
                message.emit(_refusals([call.id for call in calls], error, figures))

        future.add_done_callback(answer)

    def _answers(
        self, calls: list[Call], message: _Message, make: Callable[[Call, _Message], Reply | None]
    ) -> Iterator[Answer]:
        """How to answer reads: each is made before the next one is asked for."""
        for call in calls:
            yield partial(make, call, message)
        count, message.later = len(calls) - message.later, 0
        self._figures.reads.seconds.observe(clock() - message.began, count)

    def _stale_reply(self, call: Call, message: _Message) -> Reply | None:
        try:
            self._group.require_fresh(_read_request(call).max_staleness_ms)
        except KvorumError as error:
            self._figures.reads.errors[error.code] += 1
            return Reply(id=call.id, error=to_status(error))
        return self._read_reply(call, message)

    def _read_reply(self, call: Call, message: _Message) -> Reply | None:
        """The reply, or None if it takes long: then it is emitted when it is done."""
        reply = Reply(id=call.id)
        try:
            match call.WhichOneof("request"):
                case "get":
                    self._get(call.get, reply.get)
                case "txn":
                    result = self._group.machine.read(call.txn.transaction)
                    return _result_reply(call.id, "txn", result, self._figures.reads)
                case _ if not self._list(call.list, reply, message):
                    return None
        except KvorumError as error:
            self._figures.reads.errors[error.code] += 1
            reply.error.CopyFrom(to_status(error))
        return reply

    def _get(self, request: GetRequest, response: GetResponse) -> None:
        machine = self._group.machine
        record = machine.get(request.key, revision=request.revision)
        response.revision = request.revision or machine.revision
        response.log_time_ms = machine.log_time_ms
        if record is not None:
            response.record.CopyFrom(record)

    def _list(self, request: ListRequest, reply: Reply, message: _Message) -> bool:
        """Fill the reply. False if that takes long: then it is emitted when it is done."""
        if request.count and len(self._long_lists) >= limits.MAX_LONG_LISTS:
            raise _too_many_long_lists()
        listing = self._group.machine.begin_list(request, reply.list)
        reply.list.now_ms = max(self._group.now_ms(), self._group.machine.log_time_ms)
        if not request.count:
            if listing.step():
                return True
            if len(self._long_lists) >= limits.MAX_LONG_LISTS:
                raise _too_many_long_lists()
        message.later += 1
        task = asyncio.create_task(self._finish(listing, reply, message))
        self._long_lists.add(task)
        task.add_done_callback(self._long_lists.discard)
        return False

    async def _finish(self, listing: Listing, reply: Reply, message: _Message) -> None:
        """Work on the list slice by slice: the node goes on between two of them."""
        now = asyncio.get_running_loop().time
        try:
            while not await self._step(listing):
                if self._closed:
                    raise ShuttingDown("the node stopped before the list was complete")
                if now() >= message.deadline:
                    raise DeadlineExceeded("time ran out before the list was complete")
        except KvorumError as error:
            self._figures.reads.errors[error.code] += 1
            reply.error.CopyFrom(to_status(error))
        self._figures.reads.seconds.observe(clock() - message.began)
        message.emit([reply])

    async def _step(self, listing: Listing) -> bool:
        """A slice of one list at a turn of the event loop, however many there are."""
        async with self._slices:
            await asyncio.sleep(0)
            return listing.step()


def only_reads(call: Call) -> bool:
    """Whether the call needs no entry in the log: it is a read, whatever its checks decide."""
    match call.WhichOneof("request"):
        case "get" | "list":
            return True
        case "txn":
            return all(
                operation.WhichOneof("operation") in ("get", "list")
                for branch in (call.txn.transaction.operations, call.txn.transaction.otherwise)
                for operation in branch
            )
        case _:
            return False


def _add_command(call: Call, request: str | None, commands: CommandBatch) -> None:
    """Add the command of a write. Raises InvalidArgument, and adds nothing then."""
    match request:
        case "txn":
            _validate_transaction(call.txn)
            command = _command_of(call.txn, commands)
            command.transaction.CopyFrom(call.txn.transaction)
        case "put":
            asked = call.put
            validation.validate_namespace(asked.namespace)
            validation.validate_put(asked)
            put = _command_of(asked, commands).transaction.operations.add().put
            put.key, put.value = asked.key, asked.value
            # Absent from most puts, and setting them costs as much as the rest.
            if asked.ttl_ms:
                put.ttl_ms = asked.ttl_ms
            if asked.metadata:
                put.metadata = asked.metadata
            if asked.index_entries:
                put.index_entries.extend(asked.index_entries)
            if asked.keep_ttl:
                put.keep_ttl = True
        case "delete":
            validation.validate_namespace(call.delete.namespace)
            validation.validate_key(call.delete.key)
            command = _command_of(call.delete, commands)
            command.transaction.operations.add().delete.key = call.delete.key
        case "register_client":
            validation.validate_namespace(call.register_client.namespace)
            validation.validate_client(call.register_client.client_id)
            command = commands.commands.add(client_id=call.register_client.client_id)
            command.register_client.SetInParent()
        case _:
            raise InvalidArgument("the call has no request that this version knows")


def _command_of(
    request: PutRequest | DeleteRequest | TxnRequest, commands: CommandBatch
) -> Command:
    """Add a command that says who makes the write. Raises InvalidArgument, and adds none then."""
    if not request.HasField("origin"):
        return commands.commands.add()
    origin = request.origin
    validation.validate_origin(origin)
    command = commands.commands.add()
    command.client_id = origin.client_id
    command.sequence = origin.sequence
    command.acknowledged = origin.acknowledged
    return command


def _returns_records(transaction: Transaction) -> bool:
    """Whether it may return records beside those that it replaces, which are bounded."""
    return any(
        operation.WhichOneof("operation") in ("get", "list")
        for branch in (transaction.operations, transaction.otherwise)
        for operation in branch
    )


def _too_many_reading_transactions() -> Overloaded:
    return Overloaded(
        "the node has as many transactions which return records under way as it may; try again"
        " soon",
        limit="MAX_READING_TRANSACTIONS",
        maximum=limits.MAX_READING_TRANSACTIONS,
    )


def _too_many_long_lists() -> Overloaded:
    return Overloaded(
        "the node works on as many lists that count, or pass over many expired records, as it"
        " may; try again soon",
        limit="MAX_LONG_LISTS",
        maximum=limits.MAX_LONG_LISTS,
    )


def made(answers: Iterable[Answer]) -> list[Reply]:
    """The replies, of reads as they are now. What takes long is left out, and comes later."""
    replies = (one if isinstance(one, Reply) else one() for one in answers)
    return [reply for reply in replies if reply is not None]


def _read_request(call: Call) -> GetRequest | ListRequest:
    return call.get if call.WhichOneof("request") == "get" else call.list


def _validate_read(call: Call) -> None:
    match call.WhichOneof("request"):
        case "get":
            validation.validate_namespace(call.get.namespace)
            validation.validate_get(call.get)
        case "list":
            validation.validate_namespace(call.list.namespace)
            validation.validate_list(call.list)
        case _:
            _validate_transaction(call.txn)


def _validate_transaction(request: TxnRequest) -> None:
    validation.validate_namespace(request.namespace)
    validation.validate_transaction(request.transaction)


def _result_reply(
    call: int, request: str | None, result: TransactionResult, figures: Calls
) -> Reply:
    reply = Reply()
    reply.id = call
    if result.HasField("error"):
        error = _error_of(result.error)
        figures.errors[error.code] += 1
        reply.error.CopyFrom(to_status(error))
        return reply
    match request:
        case "txn":
            reply.txn.result.CopyFrom(result)
        case "put":
            reply.put.revision = result.revision
        case "register_client":
            reply.register_client.SetInParent()
        case _:
            reply.delete.revision = result.revision
            reply.delete.deleted = result.results[0].delete.deleted
    return reply


def _error_of(error: OperationError) -> KvorumError:
    """What kv.proto says of the error: its reason, and what goes with it as metadata."""
    kind = _OPERATION_ERRORS[error.reason]
    match error.reason:
        case OperationError.CLIENT_FORGOTTEN | OperationError.RESULT_FORGOTTEN:
            return kind(error.message)
        case OperationError.ENTRY_TOO_LARGE:
            return kind(
                error.message,
                limit="MAX_ENTRY_REPLACED_BYTES",
                maximum=limits.MAX_ENTRY_REPLACED_BYTES,
            )
        case OperationError.UNIQUE_VIOLATION:
            return kind(
                error.message,
                operation=error.operation,
                index=error.entry.index,
                value=_text(error.entry.value),
                owner=_text(error.owner),
            )
        case OperationError.OUT_OF_BOUNDS:
            return kind(error.message, operation=error.operation, value=error.value)
        case _:
            return kind(error.message, operation=error.operation)


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def _refusals(calls: list[int], error: BaseException, figures: Calls | None = None) -> list[Reply]:
    """The same answer to all of them, which is counted if `figures` are given."""
    known = error if isinstance(error, KvorumError) else KvorumError(str(error))
    if figures is not None:
        figures.errors[known.code] += len(calls)
    status = to_status(known)
    return [Reply(id=call, error=status) for call in calls]
