"""`kvorum import | export`: many records as lines of JSON (records.py)."""

import os
import stat
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from kvorum import limits
from kvorum.cli import bulk, console, records
from kvorum.cli.data import STDIN, TargetOption, TimeoutOption, choose_target, with_store
from kvorum.patterns.batch import CHUNK_ITEMS, DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT

if TYPE_CHECKING:
    from kvorum import KV

REFRESH_RECORDS: Final = 100
"""How many records go by between two looks at the progress bar, which is not free."""


def import_(
    file: Annotated[str, typer.Argument(help="A file of JSON lines; `-` reads stdin.")],
    *,
    in_flight: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_IN_FLIGHT,
            help=f"How many chunks of up to {CHUNK_ITEMS} may be under way.",
        ),
    ] = DEFAULT_IN_FLIGHT,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Write the records of a file of JSON lines.

    Each line is {"key": "...", "value": ...}; "text" or "base64" (strings) stand
    in place of "value" for what is not JSON. A line may also have "ttl" (the seconds that
    the key lives from its import on; without it, for ever), "metadata_base64" (a string),
    and "index_entries": [{"index": "...", "value": "...", "unique": false}, ...].

    Lines are written in chunks, each of them once, over lost connections and leaders. A malformed
    line ends the import with its number; the lines before it are written. To import the file
    again is safe, as long as nobody else writes its keys: it sets the same values, and begins the
    times to live anew.
    """
    chosen = choose_target(target)
    source = open_source(file)
    with _progress("importing", size_of(source)) as progress:

        async def count_bytes(lines: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
            async for line in lines:
                progress.bytes += len(line)
                yield line

        async def work(kv: "KV") -> None:
            lines = count_bytes(bulk.read_lines(source))
            await bulk.write_records(
                kv,
                bulk.read_records(lines),
                in_flight=in_flight,
                on_acknowledged=lambda _: progress.count(),
            )

        with_store(chosen, timeout, work)


def export(
    prefix: Annotated[str, typer.Argument(help="Keys that begin so; all keys if empty.")] = "",
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to a file, not to stdout.")
    ] = None,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print every record as a line of JSON.

    `kvorum import` reads the lines back to the same bytes, metadata and index entries
    included. Pages are read one after the other: a key that changes meanwhile is as it was
    when its page was read. "ttl" is how many seconds the key had left then; they count on from
    when it is imported, wherever that is. Revisions and versions begin anew there, and rate
    limits are left out.
    """
    with _open_sink(output) as sink, _progress("exporting", None) as progress:

        async def work(kv: "KV") -> None:
            cursor, complete = None, False
            while not complete:
                page = await kv.list(
                    prefix, limit=limits.DEFAULT_PAGE_RECORDS, cursor=cursor, type="bytes"
                )
                for entry in page:
                    line = records.format_record(records.of_entry(entry, page.at))
                    sink.write(line)
                    progress.bytes += len(line)
                    progress.count()
                cursor, complete = page.cursor, page.complete
            sink.flush()

        with_store(target, timeout, work)


class _Counter:
    """The progress of a transfer; shown now and then."""

    def __init__(self, display: Progress, total_bytes: int | None) -> None:
        self.records = 0
        self.bytes = 0
        self._display = display
        self._task = display.add_task("", total=total_bytes)

    def count(self) -> None:
        self.records += 1
        if self.records % REFRESH_RECORDS == 0:
            self.show()

    def show(self) -> None:
        self._display.update(self._task, completed=self.bytes, description=f"{self.records:,}")


@contextmanager
def _progress(verb: str, total_bytes: int | None) -> Iterator[_Counter]:
    """Show progress on stderr, and at the end, however it comes, how many records it was."""
    columns = [SpinnerColumn(), TextColumn(f"{verb} {{task.description}} records")]
    if total_bytes is not None:
        columns += [BarColumn(), TaskProgressColumn()]
    terminal = console.err()
    display = Progress(
        *columns,
        TimeElapsedColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )
    counter = _Counter(display, total_bytes)
    try:
        with display:
            yield counter
    finally:
        done = f"{verb.removesuffix('ing')}ed"
        terminal.print(f"{done} {counter.records:,} record{'' if counter.records == 1 else 's'}")


def open_source(name: str) -> BinaryIO:
    """The file, or stdin; the caller closes it."""
    if name == STDIN:
        # Not sys.stdin's own buffer: a thread that waits in it would block the exit.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    return Path(name).open("rb")


@contextmanager
def _open_sink(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
    else:
        with path.open("wb") as file:
            yield file


def size_of(source: BinaryIO) -> int | None:
    """The bytes to read; None if that cannot be known."""
    facts = os.fstat(source.fileno())
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None
