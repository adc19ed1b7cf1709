"""`kvorum cluster ...`: what is printed about a local cluster.

Everything that happens to the nodes is in local_cluster.py.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape

from kvorum.cli import console, node_view
from kvorum.cli import member as member_commands
from kvorum.cli.cluster_file import (
    DEFAULT_DIRECTORY,
    DIRECTORY_VARIABLE,
    LocalClusterError,
    default_directory,
)
from kvorum.errors import MembershipChangeRefused

if TYPE_CHECKING:
    from kvorum.cli.local_cluster import LocalCluster, NodeReport
    from kvorumpb.v1 import cluster_pb2

T = TypeVar("T")

MAX_NODES: Final = 9
FOLLOW_SECONDS: Final = 0.2
CUT_OFF: Final = "cut off"
STATE_STYLES: Final = {"running": "green", "paused": "yellow", "dead": "red", CUT_OFF: "yellow"}

app = typer.Typer(help="Nodes on this machine: start, watch, disturb and stop them.")

DirectoryOption = Annotated[
    Path, typer.Option("--dir", envvar=DIRECTORY_VARIABLE, help="The cluster's directory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
NodeArgument = Annotated[str, typer.Argument(help="The node: n1, n2, ..., or `leader`.")]


@app.command()
def up(
    *,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=MAX_NODES, help="How many; 3 for a new cluster.")
    ] = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    base_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            envvar="KVORUM_CLUSTER_BASE_PORT",
            help="n1 listens here, n2 on the next; 7101. 0: any free ports.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a cluster, or what is dead of it; return once a write has succeeded.

    Safe to repeat: running nodes are left alone, and data is kept.
    """
    cluster = _cluster(directory)

    async def start() -> "tuple[list[str], list[NodeReport]]":
        started = await cluster.up(nodes=nodes, base_port=base_port)
        return started, await cluster.status()

    started, reports = _run_with_spinner("starting the nodes", start)
    if as_json:
        _print_json(cluster, reports, started=started)
        return
    out = console.out()
    before = [report for report in reports if report.node.name not in started]
    if started:
        out.print(f"[green]started[/] {', '.join(started)}")
    for report in before:
        out.print(f"{report.node.name} was already {report.state.value}")
    table = console.new_table("name", "address", "admin", "role", "pid", "data dir", "log file")
    for report in reports:
        node = report.node
        table.add_row(
            node.name,
            node.address,
            node.admin,
            node_view.role_markup(node_view.role(report.status)) or _state_markup(report),
            node_view.cell(report.pid),
            escape(console.show_path(node.data_dir)),
            escape(console.show_path(node.log_file)),
        )
    out.print()
    out.print(table)
    _print_next_steps(cluster)


@app.command()
def status(*, directory: DirectoryOption = DEFAULT_DIRECTORY, as_json: JsonOption = False) -> None:
    """Show what each node is doing."""
    cluster = _cluster(directory)
    reports = asyncio.run(cluster.status())
    if as_json:
        _print_json(cluster, reports)
        return
    cut_off = cluster.cut_off
    numbers = (*node_view.COUNTER_HEADINGS, "pid")
    table = console.new_table(
        "name", "address", "state", "role", *numbers, numbers=numbers, cut=["address"]
    )
    for report in reports:
        table.add_row(
            report.node.name,
            report.node.address,
            _state_markup(report, cut_off),
            node_view.role_markup(node_view.role(report.status)),
            *map(node_view.cell, node_view.counters(report.status).values()),
            node_view.cell(report.pid),
        )
    console.out().print(table)
    node_view.print_alarms(report.status for report in reports)
    for report in reports:
        if report.problem:
            console.err().print(f"{report.node.name}: {escape(report.problem)}", soft_wrap=True)


@app.command()
def add(*, directory: DirectoryOption = DEFAULT_DIRECTORY, as_json: JsonOption = False) -> None:
    """Add a node, and start it; return once it is a voter."""
    cluster = _cluster(directory)
    before = {node.name for node in cluster.nodes}

    def report(member: "cluster_pb2.Member", lag: int) -> None:
        spinner.update(member_commands.waiting_text(member, lag))

    with console.err().status("adding a node") as spinner:
        try:
            name = asyncio.run(cluster.add(report))
        except KeyboardInterrupt:
            spinner.stop()
            _say_what_is_left(cluster, before)
            raise typer.Exit(member_commands.INTERRUPTED) from None
    if as_json:
        _print_json(cluster, asyncio.run(cluster.status()), added=name)
        return
    node = cluster.node(name)
    out = console.out()
    out.print(f"[green]{name}[/] runs at {node.address}, and is a voter")


@app.command()
def remove(
    node: NodeArgument,
    *,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Leave its data directory and log file.")
    ] = False,
    force: member_commands.ForceOption = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Remove a member for ever, and its data; return once its process has ended.

    Works for a dead node too: to replace one, `add` first, then `remove` it.
    """
    cluster = _cluster(directory)
    name = _resolve(cluster, node) if node == "leader" else node
    is_here = any(one.name == name for one in cluster.nodes)
    try:
        obeyed = _run_with_spinner(
            f"removing {name}", lambda: cluster.remove(name, force=force, keep_data=keep_data)
        )
    except MembershipChangeRefused as error:
        member_commands.explain_refusal(error)
        raise typer.Exit(1) from None
    if not obeyed:
        console.err().print(f"{name} did not hear of it, and was stopped")
    data = "data kept" if keep_data else "data deleted"
    done = data if is_here else "a member of which there is nothing here"
    console.out().print(f"removed {escape(name)}, {done}")


@app.command()
def kill(node: NodeArgument, *, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """End a node with SIGKILL, as a crash would."""
    cluster = _cluster(directory)
    name = _resolve(cluster, node)
    cluster.kill(name)
    console.out().print(f"killed {name}; bring it back with `kvorum cluster restart {name}`")


@app.command()
def pause(node: NodeArgument, *, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Freeze a node (SIGSTOP): to the others it looks as if cut off."""
    cluster = _cluster(directory)
    name = _resolve(cluster, node)
    cluster.pause(name)
    console.out().print(f"paused {name}; let it go on with `kvorum cluster resume {name}`")


@app.command()
def resume(node: NodeArgument, *, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Let a paused node go on (SIGCONT)."""
    cluster = _cluster(directory)
    name = _resolve(cluster, node)
    cluster.resume(name)
    console.out().print(f"resumed {name}")


@app.command()
def restart(node: NodeArgument, *, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Start a dead node, or stop (SIGTERM) and start a live one; wait until it answers."""
    cluster = _cluster(directory)
    name = _resolve(cluster, node)
    _run_with_spinner(f"restarting {name}", lambda: cluster.restart(name))
    console.out().print(f"restarted {name}")


@app.command("rolling-restart")
def rolling_restart(*, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Restart one node after the other, the leader last; the cluster serves meanwhile.

    A node is stopped when all are up and have caught up, and not before.
    """
    cluster = _cluster(directory)
    from kvorum.cli import rolling_restart as rolling  # noqa: PLC0415 - psutil and grpc

    def report(name: str, is_ready: bool) -> None:
        if is_ready:
            spinner.stop()  # its line is on the other stream
            console.out().print(f"restarted {name}, and it has caught up")
        else:
            spinner.update(f"restarting {name}")
            spinner.start()

    with console.err().status("waiting until every node has caught up") as spinner:
        asyncio.run(rolling.rolling_restart(cluster, report))


@app.command()
def partition(
    nodes: Annotated[
        list[str], typer.Argument(help="The nodes of one side: n1, n2, ..., or `leader`.")
    ],
    *,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Cut nodes off from the others; clients still reach them all. Linux, and root.

    It replaces the partition that was, and lasts until `heal` or `down`, over
    restarts of the nodes, too.
    """
    cluster = _cluster(directory)
    names = [_resolve(cluster, node) for node in nodes]
    others = cluster.partition(names)
    console.out().print(
        f"cut {_enumerate(names)} off from {_enumerate(others)}; end it with `kvorum cluster heal`"
    )


@app.command()
def heal(*, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """End a partition. Safe to repeat."""
    healed = _cluster(directory).heal()
    console.out().print(
        f"healed: {_enumerate(healed)} can reach the others again"
        if healed
        else "no node was cut off"
    )


@app.command()
def down(
    *,
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Remove the data, the logs and the cluster, too.")
    ] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Heal, and stop every node (SIGTERM; SIGKILL if it has not ended after 25 s)."""
    cluster = _cluster(directory)
    names = [node.name for node in cluster.nodes]
    killed = _run_with_spinner("stopping the nodes", lambda: cluster.down(wipe=wipe))
    if killed:
        console.err().print(f"killed after the grace period: {', '.join(killed)}")
    done = "stopped, data removed" if wipe else "stopped, data kept"
    console.out().print(f"{', '.join(names)}: {done}")


@app.command()
def logs(
    node: Annotated[str | None, typer.Argument(help="n1, n2, ..., or `leader`; else all.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of each.")] = 20,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Print the last log lines, of one node or of all."""
    cluster = _cluster(directory)
    chosen = list(cluster.nodes) if node is None else [cluster.node(_resolve(cluster, node))]
    # Where each file ends is taken before its lines are printed: following then
    # repeats a line at worst, and misses none.
    ends = {one.name: one.log_file.stat().st_size for one in chosen if one.log_file.exists()}
    for one in chosen:
        _print_log_lines(one.name, cluster.log_tail(one.name, lines), label=node is None)
    while follow:
        time.sleep(FOLLOW_SECONDS)
        for one in chosen:
            new, ends[one.name] = _read_lines_from(one.log_file, ends.get(one.name, 0))
            _print_log_lines(one.name, new, label=node is None)


def _say_what_is_left(cluster: "LocalCluster", before: Collection[str]) -> None:
    """After an interruption of `add`: how far it came, and how to go on."""
    added = next((node for node in cluster.nodes if node.name not in before), None)
    if added is None:
        console.err().print(
            "interrupted. If the cluster has a new member already, `kvorum member list` shows it"
            f" as {member_commands.NOT_STARTED}: give it up with `kvorum cluster remove NAME`",
            soft_wrap=True,
        )
    elif cluster.state(added.name).value == "dead":
        console.err().print(
            f"interrupted. {added.name} is a member, and does not run: go on with"
            f" `kvorum cluster restart {added.name}`, or give it up with"
            f" `kvorum cluster remove {added.name}`",
            soft_wrap=True,
        )
    else:
        member_commands.say_it_goes_on(added.name)


def _cluster(directory: Path) -> "LocalCluster":
    try:
        from kvorum.cli.local_cluster import LocalCluster  # noqa: PLC0415 - psutil and grpc
    except ModuleNotFoundError as error:
        raise LocalClusterError(
            f"a local cluster needs {error.name}: pip install 'kvorum[node]'"
        ) from None
    return LocalCluster(directory)


def _resolve(cluster: "LocalCluster", name: str) -> str:
    """The name of the node that is meant, checked."""
    return asyncio.run(cluster.leader()) if name == "leader" else cluster.node(name).name


def _enumerate(names: Sequence[str]) -> str:
    """`n1`, `n1 and n2`, `n1, n2 and n3`."""
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} and {last}" if first else last


def _run_with_spinner(message: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with console.err().status(message):
        return asyncio.run(work())


def _row(report: "NodeReport", cut_off: Collection[str]) -> dict[str, Any]:
    """The node as `--json` shows it; null is what it did not say."""
    node = report.node
    return {
        "name": node.name,
        "address": node.address,
        "admin": node.admin,
        "cut_off": node.name in cut_off,
        "state": report.state.value,
        "role": node_view.role(report.status),
        **node_view.counters(report.status),
        **node_view.space(report.status),
        "pid": report.pid,
        "data_dir": str(node.data_dir.absolute()),
        "log_file": str(node.log_file.absolute()),
        "problem": report.problem or None,
    }


def _state_markup(report: "NodeReport", cut_off: Collection[str] = ()) -> str:
    is_cut_off = report.node.name in cut_off and report.state.value == "running"
    state = CUT_OFF if is_cut_off else report.state.value
    return f"[{STATE_STYLES[state]}]{state}[/]"


def _print_json(cluster: "LocalCluster", reports: "Sequence[NodeReport]", **more: Any) -> None:
    cut_off = cluster.cut_off
    rows = [_row(report, cut_off) for report in reports]
    print(json.dumps({"target": cluster.target, **more, "nodes": rows}, indent=2))


def _print_next_steps(cluster: "LocalCluster") -> None:
    here = cluster.directory.absolute() == default_directory().absolute()
    target = "" if here else f" --target {cluster.target}"
    directory = "" if here else f" --dir {console.show_path(cluster.directory)}"
    console.out().print(
        "\nTry:\n"
        f"  kvorum put greeting hello{escape(target)}\n"
        f"  kvorum get greeting{escape(target)}\n"
        f"  kvorum cluster kill leader{escape(directory)}\n"
        f"  kvorum cluster status{escape(directory)}\n"
        "From Python:\n"
        f'  kv = await kvorum.open("{escape(cluster.target)}")',
        soft_wrap=True,
    )


def _print_log_lines(name: str, lines: Sequence[str], *, label: bool) -> None:
    out = console.out()
    for line in lines:
        prefix = f"[cyan]{name}[/] " if label else ""
        out.print(f"{prefix}{escape(line)}", soft_wrap=True)


def _read_lines_from(path: Path, offset: int) -> tuple[list[str], int]:
    """The whole lines after the offset, and where they end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(offset if offset <= size else 0)
            start = file.tell()
            content = file.read()
    except FileNotFoundError:
        return [], 0
    whole = content[: content.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), start + len(whole)
