"""Writing many records: bounded in flight, and going on over a failover.

The store applies a put once, however often it is sent until time is out. Beyond that,
the put is begun anew until it is acknowledged: the writer is the only one of its keys
while it runs, so putting a value twice is the same as putting it once. Without that
condition a put that is begun anew could undo the later write of another.

Rules of this file: records of the same key are written in their order; what
waits is bounded; a put is reported as acknowledged when it has returned, and
never otherwise.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import TYPE_CHECKING, BinaryIO, Final

from kvorum.cli.records import Record, parse_record
from kvorum.errors import DeadlineExceeded, InvalidArgument, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from kvorum import KV

REPEAT_SECONDS: Final = 60.0
"""How long one put is repeated before the whole gives up."""
BLOCK_BYTES: Final = 64 * 1024
READ_AHEAD_BLOCKS: Final = 4


async def write_records(
    kv: "KV",
    records: AsyncIterable[Record],
    *,
    in_flight: int,
    on_acknowledged: Callable[[Record], None],
) -> None:
    """Put every record, at most `in_flight` at a time.

    Raises:
        InvalidArgument: `records` raised it; all records before it have been written.
        KvorumError: a put failed for good, or was not acknowledged within REPEAT_SECONDS.
    """
    slots = asyncio.Semaphore(in_flight)
    newest: dict[str, asyncio.Task[None]] = {}
    malformed: InvalidArgument | None = None

    async def write(record: Record, earlier: asyncio.Task[None] | None) -> None:
        try:
            if earlier is not None:
                await asyncio.wait([earlier])
            await _put_until_acknowledged(kv, record)
            on_acknowledged(record)
        finally:
            slots.release()
            if newest.get(record.key) is asyncio.current_task():
                del newest[record.key]

    try:
        async with asyncio.TaskGroup() as writes:
            try:
                async for record in records:
                    await slots.acquire()
                    write_it = write(record, newest.get(record.key))
                    newest[record.key] = writes.create_task(write_it)
            except InvalidArgument as error:
                malformed = error
    except ExceptionGroup as failures:
        # The first failure has cancelled the rest.
        raise failures.exceptions[0] from None
    if malformed is not None:
        raise malformed


async def read_records(lines: AsyncIterable[bytes]) -> AsyncIterator[Record]:
    """The records of lines of JSON.

    Raises:
        InvalidArgument: a line is no record; the message has its number.
    """
    number = 0
    async for line in lines:
        number += 1
        try:
            record = parse_record(line)
        except InvalidArgument as error:
            raise InvalidArgument(f"line {number}: {error}") from None
        yield record


async def read_lines(source: BinaryIO) -> AsyncGenerator[bytes, None]:
    """The lines of a file or a pipe, read ahead by a bounded amount; closes it in the end.

    A daemon thread reads, and owns the source: a pipe that stays silent holds up neither the
    answers of the store nor Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[list[bytes] | OSError] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD_BLOCKS)
    abandoned = threading.Event()

    def hand_over(block: list[bytes] | OSError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(blocks.put_nowait, block)

    def read() -> None:
        with source:
            more = True
            while more and room.acquire() and not abandoned.is_set():
                try:
                    block = source.readlines(BLOCK_BYTES)
                except OSError as error:
                    hand_over(error)
                    return
                hand_over(block)
                more = bool(block)

    threading.Thread(target=read, daemon=True, name="read-lines").start()
    try:
        while block := await blocks.get():
            if isinstance(block, OSError):
                raise block
            room.release()
            for line in block:
                yield line
    finally:
        abandoned.set()
        room.release()


async def _put_until_acknowledged(kv: "KV", record: Record) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + REPEAT_SECONDS
    while True:
        try:
            await kv.put(
                record.key,
                record.value,
                ttl=record.ttl,
                metadata=record.metadata or None,
                index_entries=record.index_entries or None,
                type="bytes",
            )
        except (OutcomeUnknown, DeadlineExceeded, Unavailable):
            if loop.time() >= give_up_at:
                raise
        else:
            return
