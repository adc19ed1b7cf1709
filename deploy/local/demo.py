"""The demo (`make demo`): real data, a killed leader, nothing lost.

Starts three nodes on free ports in a temporary directory, imports the Unicode
Character Database that comes with Python, kills the leader in the middle of it,
queries the result, brings the dead node back, and proves that all nodes hold
the same data and that every acknowledged write is there. Meanwhile it watches: a
prefix, of which each change must be told once, and a key with a time to live, which
the failover must neither shorten nor prolong. `demonstrate` is the story; the steps
follow in its order.

Exit status 0 if all of it held, 1 with a message if not, 130 if interrupted.
The nodes are ended in every case.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import kvorum
from kvorum import KV, Change, codecs, limits
from kvorum.admin import ClusterAdmin
from kvorum.cli import bulk, console
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster, NodeReport
from kvorum.cli.records import Record
from kvorum.errors import KvorumError
from kvorum.verification import Verdict

ELECTION_TIMEOUT_MS: Final = 1000
IN_FLIGHT: Final = 4
PREFIX: Final = "ucd:codepoint:"
EMOJI_PREFIX: Final = f"{PREFIX}1F4"
PAGE: Final = 100
WATCHED_PREFIX: Final = f"{PREFIX}1"
"""Of what the leader acknowledges before it dies, and of what its successor does."""
SESSION: Final = "session:demo"
SESSION_SECONDS: Final = 6.0
EARLY_SECONDS: Final = 0.5
"""By this process's clock a key may seem to expire so much too early: the nodes have others."""
PATIENCE_SECONDS: Final = 60.0
CATCH_UP_SECONDS: Final = 60.0
SHOWN_CATEGORIES: Final = 7
MIN_RECORDS: Final = 4 * limits.MAX_TRANSACTION_OPERATIONS
"""With fewer, half of them need not be acknowledged while the last tenth is held back."""
INTERRUPTED: Final = 130


class DemoFailed(Exception):
    """Something did not hold; the message says what."""


class Acknowledgements:
    """Every write that the cluster has acknowledged, and the silences between them."""

    def __init__(self, progress: Callable[[int], None], *, notify_at: int) -> None:
        self.values: dict[str, bytes] = {}
        self.half_way = asyncio.Event()
        self.killed_after = 0
        self.stall_seconds = 0.0
        """The longest time without an acknowledgement that ended after the kill."""
        self._progress = progress
        self._notify_at = notify_at
        self._last = time.perf_counter()

    def __call__(self, record: Record) -> None:
        now = time.perf_counter()
        if self.killed_after:
            self.stall_seconds = max(self.stall_seconds, now - self._last)
        self._last = now
        self.values[record.key] = record.value
        self._progress(len(self.values))
        if len(self.values) == self._notify_at:
            self.half_way.set()

    def mark_kill(self) -> None:
        self.killed_after = len(self.values)


@dataclass(frozen=True, slots=True)
class Session:
    """A key with a time to live, as it was put."""

    put_at: float
    """By the clock of this process, before the put was sent."""
    revision: int
    expires_at: datetime


class Witness:
    """Two watches from before the import on, over whatever happens to the nodes."""

    def __init__(self, kv: KV) -> None:
        self.told: list[Change[Any]] = []
        """Of the watched prefix."""
        self.expired_at = 0.0
        """When the end of the session was heard, by the clock of this process."""
        self._prefix = kv.watch(WATCHED_PREFIX, keys_only=True)
        self._session = kv.watch(key=SESSION, previous=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._of_session: list[Change[Any]] = []

    async def hear(self, count: int) -> list[Change[Any]]:
        """Wait until so many changes were told; return all that were."""
        await self._until(lambda: len(self.told) >= count)
        return self.told

    async def hear_end(self) -> list[Change[Any]]:
        """Wait until the session is over; return all that was told of it."""
        await self._until(lambda: self.expired_at > 0)
        return self._of_session

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition() and time.monotonic() < deadline:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def _hear_prefix(self) -> None:
        async for change in self._prefix:
            self.told.append(change)

    async def _hear_session(self) -> None:
        async for change in self._session:
            self._of_session.append(change)
            if change.kind != "put":
                self.expired_at = time.monotonic()

    async def __aenter__(self) -> Self:
        await self._prefix.begin()
        await self._session.begin()
        self._tasks = [
            asyncio.create_task(self._hear_prefix()),
            asyncio.create_task(self._hear_session()),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._prefix.close()
        await self._session.close()


async def demonstrate(cluster: LocalCluster, characters: Sequence[int], out: Console) -> None:
    """The story."""
    with step(out, "Starting three nodes"):
        await cluster.up(nodes=3, base_port=0, flags=_flags())
    out.print(f"  {cluster.target}")

    # Time enough for each put to be sent until it is answered: one that is begun anew is two.
    async with kvorum.open(cluster.target, timeout=PATIENCE_SECONDS) as kv, Witness(kv) as witness:
        out.print(f"\nImporting {len(characters):,} characters, {IN_FLIGHT} chunks in flight")
        started = time.perf_counter()
        acknowledged, dead, session = await import_over_a_failover(kv, cluster, characters, out)
        import_seconds = time.perf_counter() - started
        out.print(
            f"  {dead} led, and was killed after {acknowledged.killed_after:,} writes;"
            " the import went on"
        )

        await look_up(kv, out)
        await page_through(kv, characters, out)
        await count_categories(kv, characters, out)
        await watch_it_expire(witness, session, dead, out)

        with step(out, f"Restarting {dead}"):
            restarted = time.perf_counter()
            await cluster.restart(dead)
        with step(out, f"Waiting until {dead} has caught up"):
            await catch_up(cluster, dead)
            catch_up_seconds = time.perf_counter() - restarted
        with step(out, "Comparing the content of the three nodes"):
            content_hash = await compare_contents(cluster, len(characters))
        with step(out, "Looking for every acknowledged write"):
            await verify_acknowledged(kv, acknowledged.values, len(characters))
        with step(out, "Comparing what the watch has told with what is there"):
            told = await verify_told(kv, witness)

    _print_figures(
        out,
        {
            "records": f"{len(characters):,}",
            "writes per second, failover included": f"{len(characters) / import_seconds:,.0f}",
            "longest write stall at the failover": f"{acknowledged.stall_seconds * 1000:,.0f} ms",
            "... in election time-outs": (
                f"{acknowledged.stall_seconds * 1000 / ELECTION_TIMEOUT_MS:.2f}"
                f" x {ELECTION_TIMEOUT_MS:,} ms"
            ),
            f"{dead} restarted and caught up in": f"{catch_up_seconds:.1f} s",
            "content of n1, n2 and n3": f"the same, {content_hash[:16]}...",
            "acknowledged writes lost": "0",
            f"changes of {WATCHED_PREFIX}*, each told once": f"{told:,}",
        },
    )


async def import_over_a_failover(
    kv: KV, cluster: LocalCluster, characters: Sequence[int], out: Console
) -> tuple[Acknowledgements, str, Session]:
    """Import all characters, and kill the leader when half of them are acknowledged.

    Shortly before, it acknowledges the session: the next leader has to know when that ends.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(TextColumn(" "), *columns, console=out) as progress:
        task = progress.add_task("", total=len(characters))

        def show(count: int) -> None:
            if count % PAGE == 0 or count == len(characters):
                progress.update(task, completed=count)

        acknowledged = Acknowledgements(show, notify_at=len(characters) // 2)

        async def kill_the_leader() -> tuple[str, Session]:
            await acknowledged.half_way.wait()
            leader = await cluster.leader()
            session = await begin_session(kv)
            cluster.kill(leader)
            acknowledged.mark_kill()
            return leader, session

        killing = asyncio.create_task(kill_the_leader())
        try:
            await bulk.write_records(
                kv,
                _records(characters, killing),
                in_flight=IN_FLIGHT,
                on_acknowledged=acknowledged,
            )
            dead, session = await killing
        finally:
            killing.cancel()
    require(
        acknowledged.killed_after < len(characters), "the import was over before the leader died"
    )
    require(
        len(acknowledged.values) == len(characters),
        f"{len(acknowledged.values):,} of {len(characters):,} writes were acknowledged",
    )
    return acknowledged, dead, session


async def begin_session(kv: KV) -> Session:
    """Put the key that will expire."""
    put_at = time.monotonic()
    revision = await kv.put(SESSION, {"user": "demo"}, ttl=SESSION_SECONDS)
    entry = await kv.get(SESSION)
    if entry is None or entry.expires_at is None:
        raise DemoFailed(f"{SESSION} was put with a time to live, and is {entry}")
    return Session(put_at, revision, entry.expires_at)


async def look_up(kv: KV, out: Console) -> None:
    """By code point."""
    out.print("\nBy code point")
    for character in "A√":
        key = key_of(ord(character))
        entry = await kv.get(key)
        found = None if entry is None else entry.value
        expected = describe(ord(character))
        require(found == expected, f"{key} holds {found!r}, not {expected!r}")
        out.print(f"  {key}  {expected['name']}", markup=False)


async def page_through(kv: KV, characters: Sequence[int], out: Console) -> None:
    """By prefix, page by page, each page with the cursor of the one before."""
    keys: list[str] = []
    pages, cursor = 0, None
    while True:
        page = await kv.list(EMOJI_PREFIX, limit=PAGE, cursor=cursor)
        keys += [entry.key for entry in page.entries]
        pages, cursor = pages + 1, page.cursor
        if page.complete:
            break
    expected = sorted(key for key in map(key_of, characters) if key.startswith(EMOJI_PREFIX))
    require(keys == expected, f"{EMOJI_PREFIX}* lists {len(keys)} keys, not {len(expected)}")
    out.print(f"\nBy prefix\n  {EMOJI_PREFIX}*  {len(keys)} characters on {pages} pages of {PAGE}")


async def count_categories(kv: KV, characters: Sequence[int], out: Console) -> None:
    """Counts per category, from a scan of the store, against what Python knows."""
    counts: Counter[str] = Counter()
    async for entry in kv.scan(PREFIX):
        counts[entry.value["category"]] += 1
    expected = Counter(unicodedata.category(chr(point)) for point in characters)
    require(counts == expected, f"the categories count {counts}, not {expected}")
    shown = "  ".join(f"{name} {n:,}" for name, n in counts.most_common(SHOWN_CATEGORIES))
    out.print(f"\nBy category\n  {shown}, and {len(counts) - SHOWN_CATEGORIES} more\n")


async def watch_it_expire(witness: Witness, session: Session, dead: str, out: Console) -> None:
    """The session ends when the dead leader has said it would, and the watch tells of it."""
    with out.status(f"Waiting until {SESSION} expires"):
        told = await witness.hear_end()
    require_expired(told, session)
    lived = witness.expired_at - session.put_at
    require(
        lived >= SESSION_SECONDS - EARLY_SECONDS,
        f"{SESSION} was to live {SESSION_SECONDS:g} s, and lived {lived:.2f} s",
    )
    out.print(
        "With a time to live\n"
        f"  {SESSION}  was put for {SESSION_SECONDS:g} s before {dead} died,"
        f" and expired after {lived:.1f} s\n"
    )


def require_expired(told: Sequence[Change[Any]], session: Session) -> None:
    """It was put and then expired, not before its time, which nobody has changed."""
    kinds = [change.kind for change in told]
    require(kinds == ["put", "expire"], f"of {SESSION} the watch has told {kinds}")
    put, end = told
    require(put.revision == session.revision, f"{SESSION} was put at another revision")
    before = end.previous
    require(
        before is not None and before.expires_at == session.expires_at,
        f"{SESSION} was to expire at {session.expires_at}, and was changed: {before}",
    )
    require(
        end.at >= session.expires_at,
        f"{SESSION} expired at {end.at}, and was to live until {session.expires_at}",
    )


async def catch_up(cluster: LocalCluster, name: str) -> None:
    """Wait until the node has applied all that its leader has."""
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while True:
        reports = await cluster.status()
        leader = next((report for report in reports if report.leads), None)
        own = next(report for report in reports if report.node.name == name)
        if leader is not None and _applied(own) == _applied(leader) is not None:
            return
        require(
            time.monotonic() < deadline,
            f"{name} has not caught up after {CATCH_UP_SECONDS:.0f} s: it is at {_applied(own)},"
            f" the leader at {_applied(leader) if leader else 'nowhere'} (index, revision)",
        )
        await asyncio.sleep(0.05)


async def compare_contents(cluster: LocalCluster, count: int) -> str:
    """The hash of what the nodes hold, which is the same on each of them."""
    async with ClusterAdmin(node.address for node in cluster.nodes) as admin:
        found = await admin.verify()
    differing = {name for name, verdict in found.members.items() if verdict is not Verdict.SAME}
    require(found.is_sound and not differing, f"the nodes differ: {dict(found.members)}")
    require(found.record_count == count, f"the nodes hold {found.record_count} records")
    return found.hash.hex()


async def verify_acknowledged(kv: KV, acknowledged: dict[str, bytes], count: int) -> None:
    """Every acknowledged write is there with its value, and nothing else is."""
    found = {entry.key: entry.value async for entry in kv.scan("", type="bytes")}
    lost = [key for key, value in acknowledged.items() if found.get(key) != value]
    require(not lost, f"{len(lost)} acknowledged writes are lost or changed, such as {lost[:3]}")
    require(len(found) == count, f"the store holds {len(found):,} records, not {count:,}")


async def verify_told(kv: KV, witness: Witness) -> int:
    """The watch has told each change of its prefix once, in order; returns how many."""
    stored = {entry.key: entry.revision async for entry in kv.scan(WATCHED_PREFIX, keys_only=True)}
    require_told_once(await witness.hear(len(stored)), stored)
    return len(stored)


def require_told_once(told: Sequence[Change[Any]], stored: Mapping[str, int]) -> None:
    """Each key was put once, at the revision that it is stored with, and told once, in order."""
    revisions = [change.revision for change in told]
    require(revisions == sorted(revisions), "the watch has told changes out of order")
    twice = [key for key, n in Counter(change.key for change in told).items() if n > 1]
    require(not twice, f"the watch has told {len(twice)} changes twice, such as {twice[:3]}")
    heard = {change.key: change.revision for change in told if change.kind == "put"}
    missed = [key for key, revision in stored.items() if heard.get(key) != revision]
    require(not missed, f"the watch has missed {len(missed)} changes, such as {missed[:3]}")
    require(len(heard) == len(told) == len(stored), "the watch has told what never happened")


def named_characters() -> list[int]:
    """The code points of all assigned characters that have a name."""
    return [point for point in range(sys.maxunicode + 1) if unicodedata.name(chr(point), "")]


def key_of(point: int) -> str:
    """Where the store keeps a character."""
    return f"{PREFIX}{point:04X}"


def describe(point: int) -> dict[str, Any]:
    """What the store keeps of a character."""
    character = chr(point)
    return {
        "name": unicodedata.name(character),
        "category": unicodedata.category(character),
        "bidirectional": unicodedata.bidirectional(character),
        "decomposition": unicodedata.decomposition(character),
        "combining": unicodedata.combining(character),
        "mirrored": bool(unicodedata.mirrored(character)),
    }


def require(condition: bool, message: str) -> None:
    """Raise DemoFailed with the message unless the condition holds."""
    if not condition:
        raise DemoFailed(message)


@contextmanager
def step(out: Console, what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    started = time.perf_counter()
    with out.status(what):
        yield
    out.print(f"{what}: [green]done[/] in {time.perf_counter() - started:.1f} s")


def _flags() -> list[str]:
    return ["--election-timeout-ms", str(ELECTION_TIMEOUT_MS)]


async def _records(
    characters: Sequence[int], killing: asyncio.Future[Any]
) -> AsyncIterator[Record]:
    """The last tenth only once the leader is dead: the import must not be over before."""
    for number, point in enumerate(characters):
        if number == len(characters) * 9 // 10:
            await asyncio.shield(killing)
        key = key_of(point)
        yield Record(key, codecs.encode_value(describe(point), codecs.JSON, key))


def _applied(report: NodeReport) -> tuple[int, int] | None:
    status = report.status
    return None if status is None else (status.applied_index, status.revision)


def _print_figures(out: Console, figures: dict[str, str]) -> None:
    table = console.new_table("figure", "", numbers=[""])
    for name, value in figures.items():
        table.add_row(name, value)
    out.print()
    out.print(table)


def _print_logs(cluster: LocalCluster, out: Console) -> None:
    """The last words of the nodes, whose directory is about to vanish."""
    try:
        nodes = cluster.nodes
    except NoClusterHere:
        return
    for node in nodes:
        out.print(f"[bold]the end of {node.name}'s log[/]")
        out.print("\n".join(cluster.log_tail(node.name)), markup=False, soft_wrap=True)


async def _until_terminated(story: Awaitable[None]) -> None:
    """Run the story; SIGTERM ends it as Ctrl-C does."""
    task = asyncio.ensure_future(story)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, help="import only the first so many characters")
    limit: int | None = parser.parse_args().records
    if limit is not None and limit < MIN_RECORDS:
        parser.error(f"--records: {limit} are too few to lose a leader on the way: {MIN_RECORDS:,}")

    out = console.out()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kvorum-demo-") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            asyncio.run(_until_terminated(demonstrate(cluster, named_characters()[:limit], out)))
        except (DemoFailed, KvorumError) as error:
            console.print_error(str(error))
            _print_logs(cluster, console.err())
            return 1
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print_error("interrupted")
            return INTERRUPTED
        finally:
            with console.err().status("stopping the nodes"):
                _end(cluster)
    out.print(f"\n[green]Everything held[/], in {time.perf_counter() - started:.0f} s.")
    return 0


def _end(cluster: LocalCluster) -> None:
    """Stop the nodes, with force if the courteous way is cut short."""
    try:
        asyncio.run(cluster.down())
    except NoClusterHere:
        return
    except BaseException:
        cluster.kill_all()
        raise


if __name__ == "__main__":
    sys.exit(main())
