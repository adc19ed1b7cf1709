"""How transactions that read, think and write are carried out: optimistically.

An attempt reads the store at one revision, that of its first read, and remembers
what it has read. Its writes are kept here. When its body is done, all goes to the
store in one atomic call: a check for each key and range that was read, then the writes.
If a check does not hold, somebody else was faster, nothing was written, and the body
runs again.

Why a read at one revision: checks at the end keep wrong things from being written,
but a body that has seen half of another's write may fail, or never end, before it
gets there. And an attempt that writes nothing needs no check.

Why the end of the body does not commit by itself: `return` and `break` leave a `with`
like its end does, but cannot be taken back to run the body again. So the loop
commits, when it asks for the next attempt, and whoever leaves it has given up.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Final

from kvorum import checks, operations
from kvorum.codecs import decode_key
from kvorum.errors import Compacted, Conflict, DeadlineExceeded, InvalidArgument
from kvorum.ranges import contains
from kvorumpb.v1.command_pb2 import KeyRange, Operation, Record
from kvorumpb.v1.kv_pb2 import Call, ListResponse, Reply

FIRST_PAUSE_SECONDS: Final = 0.004
"""Before the second attempt, at most; twice as long before each further one."""
MAX_PAUSE_SECONDS: Final = 0.25


class State(Enum):
    """Where an attempt is."""

    NEW = auto()
    OPEN = auto()
    DONE = auto()
    """The body has come to its end, and the loop is to commit."""
    CONFLICT = auto()
    """The body cannot come to a good end: it is to run again."""
    OVER = auto()


class Attempt:
    """What one run of the body has read and written."""

    def __init__(self, carry: Callable[[Call], Awaitable[Reply]]) -> None:
        self.state = State.NEW
        self.revision: int | None = None
        """At which it wrote."""
        self.conflict: Conflict | None = None
        """Why the snapshot cannot be read any more."""
        self._carry = carry
        self._first_read = asyncio.Lock()
        self._snapshot: int | None = None
        """The revision of all reads, once there was one."""
        self._records: dict[bytes, Record | None] = {}
        self._ranges: list[KeyRange] = []
        self._writes: dict[bytes, Operation] = {}

    @property
    def writes(self) -> bool:
        return bool(self._writes)

    def enter(self) -> None:
        if self.state is not State.NEW:
            raise InvalidArgument("this attempt was entered before: take the next one of the loop")
        self.state = State.OPEN

    def leave(self, error: BaseException | None) -> bool:
        """Return whether the error, if any, is to be forgotten, as the body is to run again."""
        if self.conflict is not None and (error is None or isinstance(error, Exception)):
            self.state = State.CONFLICT
            return True
        self.state = State.DONE if error is None else State.OVER
        return False

    def written(self, key: bytes) -> Operation | None:
        """What this attempt is to do with the key; None if nothing."""
        self._must_be_open()
        return self._writes.get(key)

    def write(self, key: bytes, operation: Operation) -> None:
        """Do this at the commit, in place of an earlier write of the key."""
        self._must_be_open()
        self._writes[key] = operation

    async def read(self, key: bytes) -> Record | None:
        self._must_be_open()
        if key not in self._records:
            call = Call()
            call.get.key = key
            self._records[key] = _record_in(await self._ask(call))
        return self._records[key]

    async def list(self, selected: KeyRange, page_size: int, cursor: str) -> ListResponse:
        """Read a page of the range."""
        self._must_be_open()
        for key in self._writes:
            if contains(selected, key):
                raise InvalidArgument(
                    f"{decode_key(key)!r} is in the range, and is written: list before that"
                )
        call = Call()
        call.list.range.CopyFrom(selected)
        call.list.page_size, call.list.page_token = page_size, cursor
        reply = await self._ask(call)
        page = ListResponse() if reply is None else reply.list
        read = KeyRange()
        read.CopyFrom(selected)
        if page.next_page_token and page.records:
            read.end = page.records[-1].key + b"\0"
        if read not in self._ranges:
            self._ranges.append(read)
        return page

    async def commit(self) -> Conflict | None:
        """Write what was written, if what was read is as it was."""
        self.state = State.OVER
        if not self._writes:
            return None
        call = Call()
        transaction = call.txn.transaction
        for key, record in self._records.items():
            transaction.checks.add(key=key, revision=0 if record is None else record.revision)
        for selected in self._ranges:
            transaction.checks.add(range=selected, unchanged_since=self._snapshot)
        transaction.operations.extend(self._writes.values())
        operations.check_size(transaction)
        result = (await self._carry(call)).txn.result
        if not result.succeeded:
            return checks.conflict(transaction.checks[result.failed_check], result.failed_check)
        self.revision = result.revision
        return None

    async def _ask(self, call: Call) -> Reply | None:
        """Read at the revision of the first read; None if nothing was ever written there."""
        request = call.get if call.HasField("get") else call.list
        if self._snapshot is None:
            async with self._first_read:
                if self._snapshot is None:
                    reply = await self._carry(call)
                    is_get = reply.HasField("get")
                    self._snapshot = reply.get.revision if is_get else reply.list.revision
                    return reply
        if self._snapshot == 0:
            return None  # on the wire, revision 0 is the newest
        request.revision = self._snapshot
        try:
            return await self._carry(call)
        except Compacted as error:
            key = decode_key(call.get.key if call.HasField("get") else call.list.range.start)
            self.conflict = Conflict(
                f"revision {self._snapshot}, at which this transaction reads, is not kept any more;"
                " nothing was written",
                check=len(self._records) + len(self._ranges),
                key=key,
            )
            raise self.conflict from error

    def _must_be_open(self) -> None:
        if self.state is not State.OPEN:
            raise InvalidArgument("a transaction is used within its `with`, and not afterwards")


class Loop:
    """Attempts, one after the other, until one has committed, or given up."""

    def __init__(
        self,
        carry: Callable[[Call, float], Awaitable[Reply]],
        *,
        attempts: object,
        timeout_seconds: float,
    ) -> None:
        """`carry` is given a call and how many seconds it may take."""
        self._current: Attempt | None = None
        self._carry = carry
        self._maximum = _check_attempts(attempts)
        self._timeout_seconds = timeout_seconds
        self._deadline = 0.0
        self._count = 0

    @property
    def is_forgotten(self) -> bool:
        """True if a body has come to its end, and what it has written is not committed."""
        current = self._current
        return current is not None and current.state is State.DONE and current.writes

    async def advance(self) -> Attempt | None:
        """Commit the last attempt, and give the next one if there has to be one.

        Raises `Conflict` if there is to be no further one.
        """
        loop = asyncio.get_running_loop()
        if self._current is None:
            self._deadline = loop.time() + self._timeout_seconds
        else:
            conflict = await self._end(self._current)
            if conflict is None:
                return None
            pause = _pause_seconds(self._count)
            if self._count == self._maximum or loop.time() + pause >= self._deadline:
                raise Conflict(
                    f"{conflict.message} (attempt {self._count} of {self._maximum})",
                    check=conflict.check,
                    key=conflict.key,
                    range=conflict.range,
                )
            await asyncio.sleep(pause)
        self._count += 1
        self._current = Attempt(self._call)
        return self._current

    async def _end(self, attempt: Attempt) -> Conflict | None:
        match attempt.state:
            case State.NEW | State.OPEN:
                raise InvalidArgument(
                    "each attempt of a transaction is entered: async with attempt as txn"
                )
            case State.DONE:
                return await attempt.commit()
            case State.CONFLICT:
                attempt.state = State.OVER
                return attempt.conflict
            case State.OVER:
                return None

    async def _call(self, call: Call) -> Reply:
        remaining = self._deadline - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise DeadlineExceeded(
                f"the transaction has not come to its end within {self._timeout_seconds:g} s; "
                "nothing was written"
            )
        return await self._carry(call, remaining)


def has_expired(record: Record, log_time_ms: int) -> bool:
    return 0 < record.expire_time_ms <= log_time_ms


def _record_in(reply: Reply | None) -> Record | None:
    if reply is None or not reply.get.HasField("record"):
        return None
    record = reply.get.record
    # A past revision still has what has expired since.
    return None if has_expired(record, reply.get.log_time_ms) else record


def _pause_seconds(attempts: int) -> float:
    """Spread those who were in each other's way, wider each time."""
    longest = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 16))
    return random.uniform(0, longest)  # noqa: S311 - nothing depends on its secrecy


def _check_attempts(attempts: object) -> int:
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise InvalidArgument(f"attempts is an int from 1, not {attempts!r}")
    return attempts
