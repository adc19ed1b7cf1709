"""`kvorum snapshot save | verify | restore`: the whole state of a store in a file, and back.

The file is drawn in kvorum/snapshot_file.py. Which node a snapshot is taken from is said in
kvorum/backups.py, what a restore does in kvorum_node/founding.py.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from kvorum.cli import console, part_file
from kvorum.cli.data import STDIN, JsonOption, TargetOption, choose_target
from kvorum.cli.founding import AddressOption, DataDirOption, NameOption, first_member, print_start
from kvorum.cli.transfer import open_source, size_of
from kvorum.errors import InvalidArgument, InvalidTarget, StorageError
from kvorum.target import Cluster, Directory, parse_target

if TYPE_CHECKING:
    from kvorum.backups import Report, Saved
    from kvorum.snapshot_file import SnapshotFile
    from kvorumpb.v1.cluster_pb2 import BackupHeader, BackupTrailer

STDOUT: Final = "-"
SHOWN_DIGITS: Final = 16
"""Of the hash in the summary; `--json` has all of it."""

app = typer.Typer(help="The whole store as a file: save, verify and restore it.")

ReadFileArgument = Annotated[str, typer.Argument(help="A snapshot file; `-` reads stdin.")]


@app.command()
def save(
    file: Annotated[str, typer.Argument(help="Where to write it; `-` is stdout.")],
    *,
    node: Annotated[
        str, typer.Option(metavar="NAME", help="From this node: n2. Any that is fit if unset.")
    ] = "",
    stale: Annotated[
        bool,
        typer.Option("--stale", help="As the node has it, without asking a majority for more."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
    target: TargetOption = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to find a node that has everything.")
    ] = 30.0,
) -> None:
    """Write everything that is in the store to a file, while it is used.

    The snapshot is the state at one moment: all that was acknowledged before the command began
    is in it. The leader is asked how far that is; so this needs a majority, and --stale does
    not. The file is there when it is whole and on the disk, for its owner alone to read.
    """
    chosen = parse_target(choose_target(target))
    if file == STDOUT and (as_json or sys.stdout.isatty()):
        raise InvalidArgument("stdout gets the snapshot: direct it somewhere, and without --json")
    with _open_sink(file, force=force) as sink, _progress("saving") as progress:

        def report(done: int, total: int) -> None:
            progress.update(progress.task_ids[0], completed=done, total=max(done, total) or None)

        match chosen:
            case Cluster(addresses):
                work = _save_cluster(
                    addresses, sink, report, node=node, stale=stale, timeout=timeout
                )
            case Directory(path) if not (node or stale):
                work = _save_directory(path, sink, report)
            case _:
                raise InvalidTarget(f"{chosen} has no nodes, and nothing is lost with it")
        saved = asyncio.run(work)
    facts = _describe(saved.header, saved.trailer, saved.file_bytes)
    if as_json:
        print(json.dumps({"file": file, **facts}, indent=2))
    elif file == STDOUT:
        console.err().print(f"saved {_summary(facts)}", soft_wrap=True)
    else:
        console.out().print(f"saved {_summary(facts)} to {escape(file)}", soft_wrap=True)


@app.command()
def verify(file: ReadFileArgument, *, as_json: JsonOption = False) -> None:
    """Read all of a snapshot file, and say what it is of. Needs no node, and changes nothing.

    Structure, checksums and records are checked, and that they are what the node has hashed. Exit
    status 1 if anything is wrong, with one line that says what and where.
    """
    from kvorum_node.snapshot_check import verify as check  # noqa: PLC0415 - as all of the node

    with _open_snapshot(file) as (opened, size), _progress("verifying", size) as progress:
        task = progress.task_ids[0]
        check(opened, lambda done: progress.update(task, completed=done))
        facts = _describe(opened.header, opened.trailer, opened.bytes_read)
    if as_json:
        print(json.dumps({"file": file, **facts}, indent=2))
        return
    table = console.new_table("", "")
    table.show_header = False
    for label, value in (
        ("cluster", facts["cluster_id"]),
        ("node", f"{facts['node']}, kvorum {facts['version']}"),
        ("taken", facts["taken_at"]),
        ("log time", facts["log_time"]),
        ("position", f"{facts['index']}@{facts['term']} (revision {facts['revision']:,})"),
        ("records", f"{facts['record_count']:,}"),
        ("content", f"{facts['content_bytes']:,} bytes, hash {facts['hash'][:SHOWN_DIGITS]}..."),
    ):
        table.add_row(label, escape(value))
    console.out().print(table)
    console.err().print("it is whole", soft_wrap=True)


@app.command()
def restore(
    file: ReadFileArgument,
    data_dir: DataDirOption,
    advertise: AddressOption,
    *,
    name: NameOption = "n1",
    as_json: JsonOption = False,
) -> None:
    """Begin a new cluster with what a snapshot file holds: this node is its only member.

    The directory must be empty: nothing is ever written over data. The file is verified while it
    is read, and the state when it is written. The cluster has another id than the one that the
    snapshot was taken from, whose nodes must not run any more at addresses that clients use.
    """
    module, node, address = first_member("restoring", name, advertise)
    with _open_snapshot(file) as (opened, size), _progress("restoring", size) as progress:
        written = progress.task_ids[0]
        checked = progress.add_task("checking", total=None, visible=False)

        def check(done: int) -> None:
            total = opened.trailer.content_bytes
            progress.update(checked, completed=done, total=total, visible=True)

        founded = module.restore(
            data_dir,
            opened,
            node=node,
            address=address,
            written=lambda done: progress.update(written, completed=done),
            checked=check,
        )
        facts = _describe(opened.header, opened.trailer, opened.bytes_read)
    if not as_json:
        console.out().print(f"restored {_summary(facts)}", soft_wrap=True)
    print_start(founded, data_dir, as_json=as_json)


async def _save_cluster(
    addresses: tuple[str, ...],
    sink: BinaryIO,
    report: "Report",
    *,
    node: str,
    stale: bool,
    timeout: float,
) -> "Saved":
    from kvorum import backups  # noqa: PLC0415 - imports grpc
    from kvorum.admin import ClusterAdmin  # noqa: PLC0415 - the same

    async with ClusterAdmin(addresses) as admin:
        return await backups.save(admin, sink, report, node=node, stale=stale, timeout=timeout)


async def _save_directory(path: Path, sink: BinaryIO, report: "Report") -> "Saved":
    """Of the store of a program, which does not run."""
    from kvorum import backups  # noqa: PLC0415 - imports grpc
    from kvorum_node.embedded import EmbeddedNode  # noqa: PLC0415 - imports all of the node
    from kvorum_node.storage.data_directory import stored_identity  # noqa: PLC0415 - the same

    if stored_identity(path) is None:
        raise StorageError(f"{path} holds no store")
    node = await EmbeddedNode.open(path)
    try:
        return await backups.write(node.save_snapshot(), sink, report)
    finally:
        await node.close()


@contextmanager
def _open_sink(name: str, *, force: bool) -> Iterator[BinaryIO]:
    if name == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with part_file.created(Path(name), force=force) as file:
            yield file


@contextmanager
def _open_snapshot(name: str) -> "Iterator[tuple[SnapshotFile, int | None]]":
    """The file, and how large it is, if that can be known."""
    from kvorum.snapshot_file import SnapshotFile  # noqa: PLC0415 - imports protobuf

    with open_source(name) as source:
        yield SnapshotFile(source, "stdin" if name == STDIN else name), size_of(source)


@contextmanager
def _progress(what: str, total_bytes: int | None = None) -> Iterator[Progress]:
    """One task that counts bytes, shown on a terminal."""
    terminal = console.err()
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )
    display.add_task(what, total=total_bytes)
    with display:
        yield display


def _describe(header: "BackupHeader", trailer: "BackupTrailer", file_bytes: int) -> dict[str, Any]:
    """What `--json` shows."""
    return {
        "cluster_id": header.cluster_id,
        "node": header.node,
        "version": header.version,
        "index": header.index,
        "term": header.term,
        "revision": header.revision,
        "log_time": _time(header.log_time_ms),
        "taken_at": _time(header.taken_at_ms),
        "record_count": trailer.record_count,
        "content_bytes": trailer.content_bytes,
        "file_bytes": file_bytes,
        "hash": trailer.content_hash.hex(),
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _summary(facts: dict[str, Any]) -> str:
    return (
        f"revision {facts['revision']:,} of {facts['node']} at {facts['index']}@{facts['term']}:"
        f" {facts['record_count']:,} records, {decimal(facts['content_bytes'])}"
    )
