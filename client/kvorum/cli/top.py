"""`kvorum top`: what every node is doing, again and again.

Rules of this file: a terminal is drawn in place and left as it was, whatever ends the command;
a pipe gets one plain frame after the other, or one JSON object a line. What does not fit
is cut, never wrapped. A node that does not answer stays, with the reason.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kvorum.cli import console, node_view
from kvorum.cli.data import FAILED, ClusterOption, JsonOption, choose_target, cluster_addresses
from kvorum.cli.readings import LATENCIES, RATES, Node, Reading, problems, read

STATUS_TIMEOUT_SECONDS: Final = 1.0
"""Of one node. Those that hang delay a reading by up to twice as much."""

WIDE: Final = 100
"""From so many columns on, there is room for all quantiles."""

NARROW_LATENCIES: Final = (
    ("read", 0.5),
    ("read", 0.99),
    ("write", 0.5),
    ("write", 0.99),
    ("sync", 0.99),
    ("apply", 0.99),
)
WIDE_LATENCIES: Final = tuple((kind, share) for kind in LATENCIES for share in (0.5, 0.99))
HEADINGS: Final = {"read": "read", "write": "write", "sync": "fsync", "apply": "apply"}


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two readings.")] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Read twice, an interval apart, print that, and end.")
    ] = False,
    as_json: JsonOption = False,
    target: ClusterOption = None,
) -> None:
    """Show what every node is doing: roles, rates, latencies, room. Ends with q or Ctrl-C.

    With --once, exit status 1 if no node answers.
    """
    addresses = cluster_addresses(choose_target(target))
    try:
        reading = asyncio.run(_run(addresses, interval, once=once, as_json=as_json))
    except KeyboardInterrupt:
        return  # it came before the loop did
    if once and (reading is None or not reading.answers):
        raise typer.Exit(FAILED)


async def _run(
    addresses: tuple[str, ...], interval: float, *, once: bool, as_json: bool
) -> Reading | None:
    """Show readings until told to end. Returns the last one."""
    last: Reading | None = None

    async def show_all() -> None:
        nonlocal last
        with _display(once=once, as_json=as_json) as show:
            async for last in _readings(addresses, interval, once=once):
                show(last)

    with _told_to_end() as told:
        showing, ending = asyncio.ensure_future(show_all()), asyncio.ensure_future(told.wait())
        await asyncio.wait((showing, ending), return_when=asyncio.FIRST_COMPLETED)
        for task in (showing, ending):
            task.cancel()
        await asyncio.wait((showing, ending))
        if not showing.cancelled():
            showing.result()
    return last


async def _readings(
    addresses: tuple[str, ...], interval: float, *, once: bool
) -> AsyncIterator[Reading]:
    """One reading after the other; with `once`, the second alone."""
    from kvorum.admin import ClusterAdmin  # noqa: PLC0415 - imports grpc

    loop = asyncio.get_running_loop()
    before: Reading | None = None
    async with ClusterAdmin(addresses) as admin:
        while True:
            began = loop.time()
            reading = read(await admin.survey(timeout=STATUS_TIMEOUT_SECONDS), before)
            if before is not None or not once:
                yield reading
            if before is not None and once:
                return
            before = reading
            await asyncio.sleep(max(0.0, began + interval - loop.time()))


@contextmanager
def _told_to_end() -> Iterator[asyncio.Event]:
    """Set by q, Ctrl-C or SIGTERM. The terminal is as before when this ends."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, told.set)
    try:
        with _keys(lambda keys: told.set() if not keys or keys in b"qQ" else None):
            yield told
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextmanager
def _keys(pressed: Callable[[bytes], None]) -> Iterator[None]:
    """Hear the keys as they are pressed, if there is a keyboard; nothing, if it is gone."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield
        return
    import termios  # noqa: PLC0415 - where there are terminals
    import tty  # noqa: PLC0415 - the same

    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, lambda: pressed(os.read(keyboard, 64)))
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _display(*, once: bool, as_json: bool) -> Iterator[Callable[[Reading], None]]:
    """How to show a reading."""
    out = console.out()
    if as_json:
        yield lambda reading: print(json.dumps(_describe(reading)), flush=True)
    elif once or not out.is_terminal:

        def print_frame(reading: Reading) -> None:
            out.print(_frame(reading, out.width))
            sys.stdout.flush()

        yield print_frame
    else:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            yield lambda reading: live.update(_frame(reading, out.width), refresh=True)


def _describe(reading: Reading) -> dict[str, Any]:
    return {
        "at": _now().isoformat(timespec="milliseconds"),
        "leader": reading.leader,
        "term": reading.term,
        "nodes": [node.describe() for node in reading.nodes],
    }


def _now() -> datetime:
    return datetime.now().astimezone()


def _frame(reading: Reading, width: int) -> RenderableType:
    nodes = reading.nodes
    leader = f"leader {reading.leader}" if reading.leader else "no leader"
    title = Text.assemble(
        ("kvorum top", "bold"),
        f"  {_now():%H:%M:%S}  ",
        (leader, "green" if reading.leader else "bold red"),
        "" if reading.term is None else f"  term {reading.term}",
        f"  {len(reading.answers)} of {len(nodes)} nodes answer",
    )
    parts: list[RenderableType] = [
        title,
        "",
        _positions(nodes),
        "",
        _activity(nodes, WIDE_LATENCIES if width >= WIDE else NARROW_LATENCIES),
        Text("latencies of the interval, in ms", style="dim"),
        "",
    ]
    parts += [Text(f"alarm: {one}", style="bold red") for one in node_view.alarms(reading.answers)]
    parts += [Text(one, style="red") for one in problems(nodes)]
    for part in parts:
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts)


def _positions(nodes: tuple[Node, ...]) -> Table:
    numbers = ("term", "commit", "to apply", "behind", "watches", "store", "log")
    table = console.new_table("name", "role", *numbers, "alarms", numbers=numbers, cut=["name"])
    for node in nodes:
        status = node.status
        if status is None:
            name = escape(node.name or node.address)
            behind = node_view.cell(node.behind)
            table.add_row(name, "[red]unreachable[/]", "", "", "", behind, "", "", "", "")
            continue
        own = [alarm for alarm in status.alarms if alarm.node == status.name]
        table.add_row(
            escape(node.name),
            node_view.role_markup(node_view.role(status)),
            str(status.term),
            f"{status.commit_index:,}",
            f"{node.to_apply:,}",
            "" if node.behind is None else f"{node.behind:,}",
            f"{status.watches:,}",
            decimal(status.store_bytes),
            decimal(status.log_bytes),
            "[bold red]yes[/]" if own else "none",
        )
    return table


def _activity(nodes: tuple[Node, ...], latencies: tuple[tuple[str, float], ...]) -> Table:
    rates = ("reads/s", "writes/s", "told/s", "errors/s")
    headings = [f"{HEADINGS[kind]}\np{round(share * 100)}" for kind, share in latencies]
    table = console.new_table("name", *rates, *headings, numbers=(*rates, *headings), cut=["name"])
    for node in nodes:
        if node.status is not None:
            table.add_row(
                escape(node.name),
                *(_rate(node.rate(counter)) for counter in RATES),
                *(_milliseconds(node.latency_ms(kind, share)) for kind, share in latencies),
            )
    return table


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value == float("inf"):
        return ">13 s"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
