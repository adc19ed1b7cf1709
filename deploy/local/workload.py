"""A workload for a local cluster, to be watched while its nodes are killed, cut off and restarted.

    python deploy/local/workload.py --seconds 60

Writers put rising numbers under keys of their own, and count each write in the same
transaction; readers look for what was acknowledged before they asked. A line every five
seconds says how fast, and how long the slowest call took, as one does that has met an
election. It ends after --seconds, or with Ctrl-C, and then looks for everything that was
acknowledged.

Exit status 0 if every call was answered, and each write that was acknowledged is there
and was applied once; 1 with a message if not; 130 if interrupted twice.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console

import kvorum
from kvorum import KV
from kvorum.cli import console
from kvorum.cli.data import choose_target
from kvorum.errors import KvorumError

PREFIX: Final = "workload:"
KEYS: Final = 100
"""Of each writer, which it writes in turn."""
TIMEOUT_SECONDS: Final = 30.0
"""For a call, its repetitions included: longer than any election takes."""
LINE_SECONDS: Final = 5.0
SHOWN: Final = 3
INTERRUPTED: Final = 130


@dataclass(slots=True)
class Writer:
    """What one writer was told."""

    prefix: str
    acknowledged: dict[str, int] = field(default_factory=dict)
    """By key the newest number that was."""
    count: int = 0
    """Of acknowledged writes."""
    in_doubt: int = 0
    """Writes that were given up, and may have been applied."""

    @property
    def counter(self) -> str:
        return f"{self.prefix}count"

    async def write(self, kv: KV, number: int) -> None:
        key = f"{self.prefix}{number % KEYS:02}"
        try:
            await kv.atomic().put(key, number).add(self.counter).commit()
        except KvorumError as error:
            self.in_doubt += error.maybe_applied
            raise
        self.acknowledged[key] = number
        self.count += 1


@dataclass(slots=True)
class Complaints:
    """How many, and the first of them."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(message)

    def print(self, what: str) -> None:
        if self.count:
            more = "; ..." if self.count > SHOWN else ""
            console.print_error(f"{self.count:,} {what}: {'; '.join(self.shown)}{more}")


@dataclass(slots=True)
class Figures:
    """Of the calls since the last line, or of all."""

    writes: int = 0
    reads: int = 0
    slowest_seconds: float = 0.0

    def add(self, other: "Figures") -> None:
        self.writes += other.writes
        self.reads += other.reads
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)


class Workload:
    """Writers and readers, until `stop` is set; what they find wrong is in `broken`."""

    def __init__(self, kv: KV, run: str, writers: int) -> None:
        self.stop = asyncio.Event()
        self.broken = Complaints()
        self.failed = Complaints()
        self.lately = Figures()
        self.total = Figures()
        self.prefix = f"{PREFIX}{run}:"
        self._kv = kv
        self._writers = [Writer(f"{self.prefix}{number}:") for number in range(writers)]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for writer in self._writers:
                tasks.create_task(self._write(writer))
                tasks.create_task(self._read(writer))

    async def look_for_everything(self) -> None:
        """Compare what is stored with what was acknowledged."""
        stored = {entry.key: entry.value async for entry in self._kv.scan(self.prefix)}
        for writer in self._writers:
            for key, number in writer.acknowledged.items():
                self._require_at_least(number, key, stored.get(key))
            applied, most = stored.get(writer.counter, 0), writer.count + writer.in_doubt
            if not writer.count <= applied <= most:
                self.broken.add(
                    f"{writer.counter} counts {applied} writes; {writer.count} were acknowledged,"
                    f" {writer.in_doubt} are in doubt"
                )

    async def remove(self) -> None:
        """Leave the store as it was."""
        while await self._kv.delete_range(self.prefix, limit=1_000):
            pass

    def take_figures(self) -> Figures:
        """Of the time since this was last asked."""
        taken, self.lately = self.lately, Figures()
        self.total.add(taken)
        return taken

    async def _write(self, writer: Writer) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            if await self._time(writer.write(self._kv, number), "a write"):
                self.lately.writes += 1

    async def _read(self, writer: Writer) -> None:
        while not self.stop.is_set():
            if not writer.acknowledged:
                await asyncio.sleep(0.01)
                continue
            key = random.choice(list(writer.acknowledged))  # noqa: S311 - no secret
            if await self._time(self._read_one(writer, key), "a read"):
                self.lately.reads += 1

    async def _read_one(self, writer: Writer, key: str) -> None:
        acknowledged = writer.acknowledged[key]
        entry = await self._kv.get(key)
        self._require_at_least(acknowledged, key, None if entry is None else entry.value)

    def _require_at_least(self, acknowledged: int, key: str, found: int | None) -> None:
        """A later number may be there, of a write that is under way or in doubt."""
        if found is None or found < acknowledged:
            self.broken.add(f"{key} holds {found}; {acknowledged} was acknowledged")

    async def _time(self, call: Awaitable[None], what: str) -> bool:
        """Make the call; False if it fails."""
        began = time.perf_counter()
        try:
            await call
        except KvorumError as error:
            self.failed.add(f"{what}: {error}")
            return False
        took = time.perf_counter() - began
        self.lately.slowest_seconds = max(self.lately.slowest_seconds, took)
        return True


async def put_to_work(target: str, writers: int, seconds: float | None, out: Console) -> int:
    """Run a workload to its end; returns the exit status."""
    out.print(f"{writers} writers and {writers} readers at {target}", soft_wrap=True)
    async with kvorum.open(target, timeout=TIMEOUT_SECONDS) as kv:
        workload = Workload(kv, f"{os.getpid()}-{time.time_ns()}", writers)
        _end_by_signal(workload.stop)
        began = time.monotonic()
        working = asyncio.create_task(workload.run())
        telling = asyncio.create_task(_tell(workload, began, out))
        try:
            await _wait(workload.stop, working, seconds)
            workload.stop.set()
            await working
        finally:
            working.cancel()
            telling.cancel()
        workload.take_figures()
        with console.err().status("looking for everything that was acknowledged"):
            await workload.look_for_everything()
        if not workload.broken.count:
            await workload.remove()
    return _judge(workload, time.monotonic() - began, out)


async def _wait(stop: asyncio.Event, working: "asyncio.Task[None]", seconds: float | None) -> None:
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, working}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()


async def _tell(workload: Workload, began: float, out: Console) -> None:
    while True:
        await asyncio.sleep(LINE_SECONDS)
        figures = workload.take_figures()
        out.print(
            f"{time.monotonic() - began:5.0f} s"
            f"{figures.writes / LINE_SECONDS:9,.0f} writes/s"
            f"{figures.reads / LINE_SECONDS:9,.0f} reads/s"
            f"{figures.slowest_seconds * 1000:9,.0f} ms the slowest call"
            + (f"{workload.failed.count:6,} failed" if workload.failed.count else "")
        )


def _end_by_signal(stop: asyncio.Event) -> None:
    """SIGINT and SIGTERM end the work, a second one the check as well."""
    task = asyncio.current_task()

    def end() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)


def _judge(workload: Workload, seconds: float, out: Console) -> int:
    total = workload.total
    out.print(
        f"{total.writes:,} writes and {total.reads:,} reads in {seconds:.0f} s, the slowest call"
        f" {total.slowest_seconds * 1000:,.0f} ms"
    )
    workload.failed.print("calls failed")
    workload.broken.print("promises were broken")
    if workload.broken.count:
        return 1
    out.print("[green]Nothing that was acknowledged is lost[/], and nothing was applied twice.")
    return 1 if workload.failed.count else 0


def main() -> int:
    """Run the workload; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="end after so long; else at Ctrl-C")
    parser.add_argument("--writers", type=int, default=4, help="and as many readers (4)")
    parser.add_argument(
        "--target",
        default=os.environ.get("KVORUM_TARGET"),
        help="kvorum://host:port,...; the local cluster in ./.kvorum if unset",
    )
    given = parser.parse_args()
    try:
        target = choose_target(given.target)
        return asyncio.run(put_to_work(target, given.writers, given.seconds, console.out()))
    except KvorumError as error:
        console.print_error(str(error))
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print_error("interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
