"""`kvorum get | put | delete | list | add | status`: the store from a shell.

Rules of this file: what a terminal shows is made for reading; what goes into a
pipe is the data itself, and `--json` is for scripts.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape
from rich.text import Text

import kvorum
from kvorum import codecs, limits
from kvorum.cli import console, node_view, records
from kvorum.cli.cluster_file import ClusterFile, NoClusterHere, default_directory
from kvorum.errors import DecodeError, InvalidArgument, InvalidTarget, KvorumError
from kvorum.target import Cluster, parse_target

if TYPE_CHECKING:
    from kvorum import KV, Entry, Page
    from kvorum.admin import Status, Survey

T = TypeVar("T")

STDIN: Final = "-"
FAILED: Final = 1
PREVIEW_BYTES: Final = 200
"""Of a value in a table; `get` shows it whole."""

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        envvar="KVORUM_TARGET",
        help="kvorum://host:port,... or a data directory; the local cluster in ./.kvorum if unset.",
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        envvar="KVORUM_TARGET",
        help="kvorum://host:port,...; the local cluster in ./.kvorum if unset.",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.001, help="Seconds that a call may take, its retries included.")
]
KeyArgument = Annotated[str, typer.Argument(help="The key.")]
RevisionOption = Annotated[
    int | None, typer.Option(min=1, help="Read the store as it was at this revision.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TtlOption = Annotated[
    float | None, typer.Option("--ttl", metavar="SECONDS", help="Let the key expire after so long.")
]


def choose_target(given: str | None) -> str:
    """The target that was given, or the local cluster that `kvorum cluster` would take.

    Raises:
        InvalidTarget: there is neither.
    """
    if given is not None:
        return given
    try:
        return ClusterFile.read(default_directory()).target
    except NoClusterHere:
        raise InvalidTarget(
            "no store to talk to: give --target kvorum://host:port,... (or KVORUM_TARGET), or"
            " start a local cluster here with `kvorum cluster up`"
        ) from None


def with_store(target: str | None, timeout: float, work: "Callable[[KV], Awaitable[T]]") -> T:
    """Open the store, do the work, close the store."""
    chosen = choose_target(target)

    async def session() -> T:
        async with kvorum.open(chosen, timeout=timeout) as kv:
            return await work(kv)

    return asyncio.run(session())


def get(
    key: KeyArgument,
    *,
    revision: RevisionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole entry.")] = False,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print the value of a key.

    A pipe gets its bytes as they are stored, without a newline. Exit status 1
    if there is no such key.
    """
    entry = with_store(target, timeout, lambda kv: kv.get(key, revision=revision, type="bytes"))
    if entry is None:
        console.err().print(f"no key {escape(repr(key))}", soft_wrap=True)
        raise typer.Exit(FAILED)
    if as_json:
        write(records.dump_line(describe(entry)))
    elif sys.stdout.isatty():
        _print_value(entry)
    else:
        write(entry.value)


def put(
    key: KeyArgument,
    value: Annotated[
        str, typer.Argument(help="The value; `-` reads it from stdin. Negative: put KEY -- -5.")
    ],
    *,
    as_text: Annotated[bool, typer.Option("--text", help="Store it as UTF-8 text.")] = False,
    as_bytes: Annotated[bool, typer.Option("--bytes", help="Store its bytes as they are.")] = False,
    ttl: TtlOption = None,
    if_revision: Annotated[
        int | None, typer.Option(metavar="REVISION", help="Only if the key is at this revision.")
    ] = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is none.")] = False,
    as_json: JsonOption = False,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Write a value to a key, and print the revision.

    VALUE is stored as JSON: itself if it is JSON, a JSON string otherwise. Without --ttl
    the key stays for ever, even if it was to expire. Exit status 1 if a condition is not met.
    """
    if as_text and as_bytes:
        raise typer.BadParameter("give --text or --bytes, not both")
    if if_absent and if_revision is not None:
        raise typer.BadParameter("give --if-revision or --if-absent, not both")
    given = sys.stdin.buffer.read() if value == STDIN else value.encode(errors="surrogateescape")
    data = given if as_bytes else _encode_text(given, key, as_json=not as_text)
    exists = False if if_absent else None
    revision = with_store(
        target,
        timeout,
        lambda kv: kv.put(key, data, ttl=ttl, revision=if_revision, exists=exists, type="bytes"),
    )
    if as_json:
        write(records.dump_line({"revision": revision}))
    else:
        console.out().print(f"revision {revision}")


def delete(
    key: Annotated[str | None, typer.Argument(help="The key.")] = None,
    *,
    prefix: Annotated[
        str | None, typer.Option(help="Instead of one key, all that begin so, at once.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", min=1, max=limits.MAX_RANGE_RECORDS, help="Of a prefix: at most."
        ),
    ] = None,
    as_json: JsonOption = False,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Remove a key, or the keys with a prefix. Exit status 1 if there was none."""
    if (key is None) == (prefix is None):
        raise typer.BadParameter("give a KEY or --prefix")
    if key is not None:
        if limit is not None:
            raise typer.BadParameter("--limit goes with --prefix")
        deleted = int(with_store(target, timeout, lambda kv: kv.delete(key)))
        missing = f"no key {key!r}"
    else:
        deleted = with_store(target, timeout, lambda kv: kv.delete_range(prefix, limit=limit))
        missing = f"no key begins with {prefix!r}"
    if as_json:
        write(records.dump_line({"deleted": deleted}))
    elif deleted:
        console.out().print("deleted" if prefix is None else f"deleted {deleted}")
    else:
        console.err().print(escape(missing), soft_wrap=True)
    if not deleted:
        raise typer.Exit(FAILED)


def list_(
    prefix: Annotated[
        str, typer.Argument(help="Keys (of an index: values) that begin so; all if empty.")
    ] = "",
    *,
    index: Annotated[str | None, typer.Option(help="List by the values of this index.")] = None,
    value: Annotated[str | None, typer.Option(help="With --index: exactly this value.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=limits.MAX_PAGE_RECORDS, help="At most.")
    ] = 100,
    cursor: Annotated[str | None, typer.Option(help="Go on where a page ended.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="From last to first.")] = False,
    keys_only: Annotated[
        bool, typer.Option("--keys-only", "--keys", help="Print only the keys.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", help="Count all that is selected, too: on stderr.")
    ] = False,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print a page of keys and their values.

    In the order of the keys, or of the values of the index. A pipe gets key, tab, value
    on each line.
    """
    page = with_store(
        target,
        timeout,
        lambda kv: kv.list(
            prefix,
            index=index,
            value=value,
            limit=limit,
            cursor=cursor,
            reverse=reverse,
            keys_only=keys_only,
            count=count,
            revision=revision,
            type="bytes",
        ),
    )
    if as_json:
        _print_page_as_json(page, keys_only=keys_only)
    else:
        _print_page(page, keys_only=keys_only)


def _print_page_as_json(page: "Page[Any]", *, keys_only: bool) -> None:
    entries = [{"key": entry.key} if keys_only else describe(entry) for entry in page.entries]
    facts: dict[str, Any] = {
        "cursor": page.cursor,
        "complete": page.complete,
        "revision": page.revision,
    }
    if page.count is not None:
        facts["count"] = page.count
    write(records.dump_line({"entries": entries, **facts}))


def _print_page(page: "Page[Any]", *, keys_only: bool) -> None:
    if keys_only:
        write(b"".join(codecs.encode_key(entry.key) + b"\n" for entry in page.entries))
    elif sys.stdout.isatty():
        table = console.new_table("key", "value", "revision", numbers=["revision"])
        for entry in page.entries:
            table.add_row(
                Text(_printable(codecs.encode_key(entry.key))),
                Text(preview(entry)),
                str(entry.revision),
            )
        console.out().print(table)
    else:
        for entry in page.entries:
            write(codecs.encode_key(entry.key) + b"\t" + entry.value + b"\n")
    if page.count is not None:
        console.err().print(f"count: {page.count}")
    if not page.complete:
        console.err().print(f"more: --cursor {page.cursor}", soft_wrap=True)


def add(
    key: KeyArgument,
    amount: Annotated[int, typer.Argument(help="May be negative: add k -- -5.")] = 1,
    *,
    low: Annotated[int | None, typer.Option("--min", help="The sum may not be less.")] = None,
    high: Annotated[int | None, typer.Option("--max", help="The sum may not be more.")] = None,
    saturate: Annotated[
        bool, typer.Option("--saturate", help="Stop at a bound, instead of failing.")
    ] = False,
    ttl: TtlOption = None,
    as_json: JsonOption = False,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Add to an integer (0 if the key is absent), and print the sum.

    --ttl counts if the key was absent.
    """
    total = with_store(
        target,
        timeout,
        lambda kv: kv.add(key, amount, min=low, max=high, saturate=saturate, ttl=ttl),
    )
    if as_json:
        write(records.dump_line({"value": total, "applied": total.applied}))
    else:
        print(total)


def status(
    *,
    as_json: JsonOption = False,
    target: ClusterOption = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for a node.")] = 2.0,
) -> None:
    """Show what every node of the target says about itself.

    Exit status 1 if none answers.
    """
    survey = asyncio.run(_ask_nodes(choose_target(target), timeout))
    if as_json:
        rows = [_status_row(address, outcome) for address, outcome in survey.outcomes.items()]
        print(json.dumps({"nodes": rows}, indent=2))
    else:
        _print_survey(survey)
    if not survey.answers:
        raise typer.Exit(FAILED)


async def _ask_nodes(target: str, timeout_seconds: float) -> "Survey":
    from kvorum.admin import ClusterAdmin  # noqa: PLC0415 - imports grpc

    async with ClusterAdmin(cluster_addresses(target)) as admin:
        return await admin.survey(timeout=timeout_seconds)


def cluster_addresses(target: str) -> tuple[str, ...]:
    """The addresses of nodes in a target; InvalidTarget if it is no cluster."""
    parsed = parse_target(target)
    if not isinstance(parsed, Cluster):
        raise InvalidTarget(f"{target} is no cluster: only kvorum:// targets have nodes")
    return parsed.addresses


def _status_row(address: str, outcome: "Status | KvorumError") -> dict[str, Any]:
    problem = str(outcome) if isinstance(outcome, KvorumError) else None
    status = None if isinstance(outcome, KvorumError) else outcome
    return {
        "address": address,
        "name": status.name if status else None,
        "role": node_view.role(status),
        "leader": status.leader or None if status else None,
        **node_view.counters(status),
        "log_bytes": status.log_bytes if status else None,
        **node_view.space(status),
        "version": status.version if status else None,
        "problem": problem,
    }


def _print_survey(survey: "Survey") -> None:
    numbers = node_view.COUNTER_HEADINGS
    table = console.new_table(
        "address", "name", "role", *numbers, "version", numbers=numbers, cut=["address"]
    )
    problems = []
    for address, outcome in survey.outcomes.items():
        if isinstance(outcome, KvorumError):
            table.add_row(address, "", "[red]unreachable[/]")
            problems.append(str(outcome))
            continue
        table.add_row(
            address,
            outcome.name,
            node_view.role_markup(node_view.role(outcome)),
            *map(node_view.cell, node_view.counters(outcome).values()),
            outcome.version,
        )
    console.out().print(table)
    if survey.answers:
        sizes = node_view.SPACE_HEADINGS[1:-1]
        room = console.new_table(*node_view.SPACE_HEADINGS, numbers=sizes)
        for status in survey.answers.values():
            room.add_row(*node_view.space_row(status))
        console.out().print()
        console.out().print(room)
    node_view.print_alarms(survey.answers.values())
    for problem in problems:
        console.err().print(escape(problem), soft_wrap=True)


def describe(entry: "Entry[bytes]") -> dict[str, Any]:
    """The entry as an object for JSON."""
    return {
        **records.describe(records.of_entry(entry, None)),
        "revision": entry.revision,
        "created_revision": entry.created_revision,
        "version": entry.version,
        "updated_at": show_instant(entry.updated_at),
        "expires_at": None if entry.expires_at is None else show_instant(entry.expires_at),
        **({} if entry.index_value is None else {"index_value": entry.index_value}),
    }


def show_instant(at: datetime) -> str:
    """A time as the command line writes it: to the millisecond, as the store counts."""
    return at.isoformat(timespec="milliseconds")


def _encode_text(given: bytes, key: str, *, as_json: bool) -> bytes:
    """What to store for a value that was given as text."""
    try:
        text = given.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the value is not UTF-8 ({error}); store it with --bytes") from None
    if not as_json:
        return given
    try:
        value = codecs.decode_value(given, codecs.JSON, key)
    except DecodeError:
        value = text
    return codecs.encode_value(value, codecs.JSON, key)


def _print_value(entry: "Entry[bytes]") -> None:
    """Print a value for a reader."""
    try:
        value = codecs.decode_value(entry.value, codecs.JSON, entry.key)
    except DecodeError:
        console.out().print(Text(_printable(entry.value)), soft_wrap=True)
    else:
        console.out().print_json(data=value, ensure_ascii=False)


def preview(entry: "Entry[bytes]") -> str:
    """The value as text, cut to what is worth to be seen in a list."""
    text = _printable(entry.value[:PREVIEW_BYTES])
    return text if len(entry.value) <= PREVIEW_BYTES else f"{text}... ({len(entry.value)} bytes)"


def _printable(data: bytes) -> str:
    """Text that cannot steer the terminal: what is no printable character is escaped."""
    text = data.decode(errors="backslashreplace")
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode()
        for one in text
    )


def write(data: bytes) -> None:
    """Write bytes to stdout, after what was printed as text."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
