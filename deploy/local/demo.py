"""The demo (`make demo`): real data, a killed leader, nothing lost.

Starts three nodes on free ports in a temporary directory, imports the Unicode
Character Database that comes with Python, kills the leader in the middle of it,
queries the result, brings the dead node back, and proves that all nodes hold
the same data and that every acknowledged write is there. `demonstrate` is the
story; the steps follow in its order.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import kvorum
from kvorum import KV, codecs
from kvorum.admin import ClusterAdmin, Verdict
from kvorum.cli import bulk, console
from kvorum.cli.cluster_file import NoClusterHere
from kvorum.cli.local_cluster import LocalCluster, NodeReport
from kvorum.cli.records import Record
from kvorum.errors import KvorumError

ELECTION_TIMEOUT_MS: Final = 1000
IN_FLIGHT: Final = 256
PREFIX: Final = "ucd:codepoint:"
EMOJI_PREFIX: Final = f"{PREFIX}1F4"
PAGE: Final = 100
CATCH_UP_SECONDS: Final = 60.0
SHOWN_CATEGORIES: Final = 8
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


async def demonstrate(cluster: LocalCluster, characters: Sequence[int], out: Console) -> None:
    """The story."""
    with step(out, "Starting three nodes"):
        await cluster.up(nodes=3, base_port=0, flags=_flags())
    out.print(f"  {cluster.target}")

    async with kvorum.open(cluster.target) as kv:
        out.print(f"\nImporting {len(characters):,} characters, {IN_FLIGHT} writes in flight")
        started = time.perf_counter()
        acknowledged, dead = await import_over_a_failover(kv, cluster, characters, out)
        import_seconds = time.perf_counter() - started
        out.print(
            f"  {dead} led, and was killed after {acknowledged.killed_after:,} writes;"
            " the import went on"
        )

        await look_up(kv, out)
        await page_through(kv, characters, out)
        await count_categories(kv, characters, out)

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
        },
    )


async def import_over_a_failover(
    kv: KV, cluster: LocalCluster, characters: Sequence[int], out: Console
) -> tuple[Acknowledgements, str]:
    """Import all characters, and kill the leader when half of them are acknowledged."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(TextColumn(" "), *columns, console=out) as progress:
        task = progress.add_task("", total=len(characters))

        def show(count: int) -> None:
            if count % IN_FLIGHT == 0 or count == len(characters):
                progress.update(task, completed=count)

        acknowledged = Acknowledgements(show, notify_at=len(characters) // 2)

        async def kill_the_leader() -> str:
            await acknowledged.half_way.wait()
            leader = await cluster.leader()
            cluster.kill(leader)
            acknowledged.mark_kill()
            return leader

        killing = asyncio.create_task(kill_the_leader())
        try:
            await bulk.write_records(
                kv, _records(characters), in_flight=IN_FLIGHT, on_acknowledged=acknowledged
            )
            dead = await killing
        finally:
            killing.cancel()
    require(
        acknowledged.killed_after < len(characters), "the import was over before the leader died"
    )
    require(
        len(acknowledged.values) == len(characters),
        f"{len(acknowledged.values):,} of {len(characters):,} writes were acknowledged",
    )
    return acknowledged, dead


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


async def _records(characters: Sequence[int]) -> AsyncIterator[Record]:
    for point in characters:
        key = key_of(point)
        yield Record(key, codecs.encode_value(describe(point), "json", key))


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
