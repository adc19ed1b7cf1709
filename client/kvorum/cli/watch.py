"""`kvorum watch`: changes as they happen, a line each."""

import asyncio
import errno
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from kvorum import limits
from kvorum.cli import console, data, records

if TYPE_CHECKING:
    from kvorum import KV, Change, Entry

INTERRUPTED = 130


def watch(
    prefix: Annotated[str, typer.Argument(help="Keys that begin so; all keys if empty.")] = "",
    *,
    since: Annotated[
        int | None, typer.Option(min=0, help="Begin after this revision, not with what comes now.")
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="Print what was there before, too.")
    ] = False,
    as_json: data.JsonOption = False,
    target: data.TargetOption = None,
    timeout: data.TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print the changes of keys as they happen, until Ctrl-C.

    A line each: revision, time, what happened, key, value. It goes on by itself when a node
    fails, without a gap.
    """

    async def print_changes(kv: "KV") -> None:
        async with kv.watch(prefix, since=since, previous=previous, type="bytes") as watch:
            shown = escape(repr(prefix)) if prefix else "all keys"
            console.err().print(
                f"watching {shown} after revision {watch.revision}; Ctrl-C ends it", soft_wrap=True
            )
            async for change in watch:
                line = _as_json(change) if as_json else _as_line(change)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    async def print_as_long_as_somebody_reads(kv: "KV") -> None:
        printing = asyncio.create_task(print_changes(kv), name="print changes")
        unread = asyncio.create_task(_unread(), name="unread")
        try:
            await asyncio.wait((printing, unread), return_when=asyncio.FIRST_COMPLETED)
            if not printing.done():
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            await printing
        finally:
            printing.cancel()
            unread.cancel()
            await asyncio.gather(printing, unread, return_exceptions=True)

    try:
        data.with_store(target, timeout, print_as_long_as_somebody_reads)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except asyncio.CancelledError:  # how an interrupt may look from within
        raise typer.Exit(INTERRUPTED) from None


async def _unread() -> None:
    """Return when stdout is a pipe that nobody reads any more.

    To write says so, too, but the next change may be far.
    """
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    output = _pipe()
    if output is None:
        await gone.wait()
        return
    # The end of a pipe into which we write is never there to be read: it is closed, or quiet.
    loop.add_reader(output, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(output)


def _pipe() -> int | None:
    """The descriptor of stdout, if it is a pipe."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # no file at all, within a program
        return None
    return output if stat.S_ISFIFO(os.fstat(output).st_mode) else None


def _as_json(change: "Change[bytes]") -> bytes:
    content: dict[str, Any] = {
        "revision": change.revision,
        "at": data.show_instant(change.at),
        "kind": change.kind,
        "key": change.key,
    }
    for name, entry in (("entry", change.entry), ("previous", change.previous)):
        if entry is not None:
            content[name] = data.describe(entry)
    return records.dump_line(content)


def _as_line(change: "Change[bytes]") -> bytes:
    parts = [
        str(change.revision),
        data.show_instant(change.at),
        f"{change.kind:6}",
        _shown_key(change.key),
    ]
    if change.entry is not None:
        parts.append(_shown_value(change.entry))
    if change.previous is not None:
        parts.append(f"(was {_shown_value(change.previous)})")
    return "  ".join(parts).encode(errors="backslashreplace") + b"\n"


def _shown_key(key: str) -> str:
    return key if key.isprintable() and " " not in key else json.dumps(key)


def _shown_value(entry: "Entry[bytes]") -> str:
    return data.preview(entry).replace("\n", "\\n")
