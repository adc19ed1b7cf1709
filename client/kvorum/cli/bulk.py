"""Reading records from files and pipes, and writing them in bulk.

Rules of this file: records of the same key are written in their order; what
waits is bounded; a record is reported as acknowledged when it is written, and
never otherwise.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import TYPE_CHECKING, BinaryIO, Final

from kvorum.cli.records import Record, parse_record
from kvorum.errors import BatchInterrupted, InvalidArgument
from kvorum.patterns.batch import BatchProgress, Put, batch_put

if TYPE_CHECKING:
    from kvorum import KV

PATIENCE_SECONDS: Final = 60.0
"""How long one chunk of records is sent again before the whole gives up."""
BLOCK_BYTES: Final = 64 * 1024
READ_AHEAD_BLOCKS: Final = 4


async def write_records(
    kv: "KV",
    records: AsyncIterable[Record],
    *,
    in_flight: int,
    on_acknowledged: Callable[[Record], None],
) -> None:
    """Put every record, in chunks, at most `in_flight` of them at a time.

    Raises:
        InvalidArgument: `records` raised it; all records before it have been written.
        KvorumError: a record cannot be written, or was not within PATIENCE_SECONDS.
    """
    under_way: deque[Record] = deque()

    async def items() -> AsyncIterator[Put]:
        async for record in records:
            under_way.append(record)
            yield Put(
                record.key,
                record.value,
                ttl=record.ttl,
                metadata=record.metadata or None,
                index_entries=record.index_entries or None,
            )

    async def tell(progress: BatchProgress) -> None:
        for result in progress.results:
            if result.error is not None:
                raise result.error
            on_acknowledged(under_way.popleft())

    try:
        await batch_put(
            kv,
            items(),
            type="bytes",
            in_flight=in_flight,
            on_progress=tell,
            timeout=PATIENCE_SECONDS,
        )
    except BatchInterrupted as interrupted:
        raise interrupted.__cause__ or interrupted from None


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
