"""`kvorum member list | add | promote | remove`: who is a member of a cluster.

The nodes of the target are asked for the leader, and the leader is asked for the
change. A change that is under way goes on without this program: an interruption
ends the waiting, and says so.
"""

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape

from kvorum.cli import console, node_view
from kvorum.cli.data import FAILED, ClusterOption, JsonOption, choose_target, cluster_addresses
from kvorum.errors import KvorumError, MembershipChangeRefused

if TYPE_CHECKING:
    from kvorum.admin import ClusterAdmin, Survey
    from kvorumpb.v1 import cluster_pb2

T = TypeVar("T")

INTERRUPTED: Final = 130

FORCE_HINT: Final = (
    "With --force it is begun all the same. From then on the cluster needs a majority of the voters"
    " before the change, and one of those after it. While either does not answer, nobody is served"
    " and no member can be changed, nor is this taken back. If they never answer again, what is"
    " left is `kvorum recover`: docs/operations/recovering-a-lost-quorum.md."
)
NOT_STARTED: Final = "waiting to be started"

app = typer.Typer(help="The members of a cluster: show and change them.")

NameArgument = Annotated[str, typer.Argument(help="The member: n4.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Even if it may leave the cluster without a majority.")
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds to find the leader and to make the change.")
]
TIMEOUT_SECONDS: Final = 30.0


@app.command("list")
def list_(*, as_json: JsonOption = False, target: ClusterOption = None) -> None:
    """Show the members as the leader sees them.

    Exit status 1 if no node answers.
    """
    survey = asyncio.run(_with_admin(target, lambda admin: admin.survey()))
    survey.refuse_several_clusters()
    view = survey.best
    if view is None:
        for problem in survey.outcomes.values():
            console.print_error(str(problem))
        raise typer.Exit(FAILED)
    rows = [_row(member, view, survey) for member in view.members]
    missing = {
        member.name: NOT_STARTED if survey.leader and has_not_started(member) else "unreachable"
        for member in view.members
    }
    if as_json:
        facts = {"cluster_id": view.cluster_id, "leader": view.leader or None, "term": view.term}
        print(json.dumps({**facts, "members": rows}, indent=2))
        return
    numbers = ("match", "lag")
    table = console.new_table(
        "name", "address", "kind", "role", *numbers, "active", numbers=numbers, cut=["address"]
    )
    for row in rows:
        table.add_row(
            row["name"],
            escape(row["address"]),
            "learner, joining" if row["joining"] else row["kind"],
            node_view.role_markup(row["role"]) or f"[red]{missing[row['name']]}[/]",
            node_view.cell(row["match_index"]),
            node_view.cell(row["lag"]),
            {True: "yes", False: "[red]no[/]", None: ""}[row["active"]],
        )
    console.out().print(table)
    if not survey.leader:
        console.err().print(f"no node leads: these are the members that {view.name} knows of")


@app.command()
def add(
    address: Annotated[str, typer.Argument(help="host:port where the new node is to run.")],
    *,
    name: Annotated[
        str | None, typer.Option(help="What to call it; the next free name if unset.")
    ] = None,
    learner: Annotated[
        bool, typer.Option("--learner", help="It gets the data, and has no vote until promoted.")
    ] = False,
    force: ForceOption = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return once it has been started, and is a voter.")
    ] = False,
    as_json: JsonOption = False,
    target: ClusterOption = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
) -> None:
    """Add a member, and print how to start it.

    It begins as a learner, and becomes a voter by itself once it has caught up.
    """
    if learner and wait:
        raise typer.BadParameter("--learner stays a learner: there is no vote to --wait for")

    async def make(admin: "ClusterAdmin") -> tuple[str, list[str]]:
        given = await admin.add_member(
            address, name=name or "", learner=learner, force=force, timeout=timeout
        )
        return given, start_command(given, address, await admin.survey())

    given, command = _change(target, f"adding {address}", make)
    if as_json:
        facts = {"name": given, "address": address, "joining": not learner}
        print(json.dumps({**facts, "start_command": command}, indent=2))
    else:
        promise = "stays a learner until it is promoted" if learner else "becomes a voter by itself"
        console.out().print(
            f"{given} is a member; it {promise} once it has caught up. Start it with\n\n"
            f"  {escape(shlex.join(command))}\n",
            soft_wrap=True,
        )
    if wait:
        _wait_until_voter(target, given)
        if not as_json:
            console.out().print(f"{given} is a voter")


@app.command()
def promote(
    name: NameArgument,
    *,
    force: ForceOption = False,
    target: ClusterOption = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
) -> None:
    """Make a learner a voter."""
    _change(
        target,
        f"promoting {name}",
        lambda admin: admin.promote_member(name, force=force, timeout=timeout),
    )
    console.out().print(f"{escape(name)} is a voter")


@app.command()
def remove(
    name: NameArgument,
    *,
    force: ForceOption = False,
    target: ClusterOption = None,
    timeout: TimeoutOption = TIMEOUT_SECONDS,
) -> None:
    """Remove a member, which then stops by itself.

    Its name is never given again, and its data directory has served its time.
    """
    _change(
        target,
        f"removing {name}",
        lambda admin: admin.remove_member(name, force=force, timeout=timeout),
    )
    console.out().print(f"{escape(name)} is no member any more; its data directory can be deleted")


def start_command(name: str, address: str, survey: "Survey") -> list[str]:
    """How the node is started for the first time."""
    others = [one for one in known_addresses(survey) if one != address]
    return [
        *("kvorum", "node", name, "--data-dir", f"./{name}"),
        *("--listen", address, "--join", ",".join(others)),
    ]


def known_addresses(survey: "Survey") -> list[str]:
    """Where the members are, as the best informed of them says."""
    return [] if survey.best is None else [member.address for member in survey.best.members]


def has_not_started(member: "cluster_pb2.Member") -> bool:
    """Whether the leader, whose view this is, has never heard of the member."""
    return not member.active and member.match_index == 0


def waiting_text(member: "cluster_pb2.Member", lag: int) -> str:
    """What a spinner says while a learner becomes a voter."""
    if member.active:
        return f"{member.name} is catching up: {lag:,} entries to go"
    if has_not_started(member):
        return f"waiting for {member.name} to be started at {member.address}"
    return f"waiting for {member.name} to be back at {member.address}: {lag:,} entries to go"


def say_it_goes_on(name: str) -> None:
    """After an interruption of the wait for a new voter that runs."""
    console.err().print(
        f"{name} goes on, and becomes a voter once it has caught up: `kvorum member list`",
        soft_wrap=True,
    )


def explain_refusal(error: MembershipChangeRefused) -> None:
    """Print why the members stay as they are, and what could be done about it."""
    console.print_error(str(error))
    if error.endangers_quorum:
        console.err().print(FORCE_HINT, soft_wrap=True)


def _wait_until_voter(target: str | None, name: str) -> None:
    started = False

    def report(member: "cluster_pb2.Member", lag: int) -> None:
        nonlocal started
        started = not has_not_started(member)
        spinner.update(waiting_text(member, lag))

    with console.err().status(f"waiting for {name}") as spinner:
        try:
            asyncio.run(_with_admin(target, lambda admin: admin.wait_until_voter(name, report)))
        except KeyboardInterrupt:
            spinner.stop()
            if started:
                say_it_goes_on(name)
            else:
                console.err().print(
                    f"{name} is a member, {NOT_STARTED}: `kvorum member list` shows what it does,"
                    f" `kvorum member remove {name}` gives it up",
                    soft_wrap=True,
                )
            raise typer.Exit(INTERRUPTED) from None


def _change(target: str | None, message: str, make: "Callable[[ClusterAdmin], Awaitable[T]]") -> T:
    """Have a change made, and explain a refusal or a doubt."""
    try:
        with console.err().status(message):
            return asyncio.run(_with_admin(target, make))
    except MembershipChangeRefused as error:
        explain_refusal(error)
        raise typer.Exit(FAILED) from None
    except KvorumError as error:
        if not error.maybe_applied:
            raise
        why = str(error).removeprefix("outcome unknown: ")
        console.print_error(f"outcome unknown: {why}: see `kvorum member list`")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        console.err().print(
            "interrupted: a change that has begun goes on; see `kvorum member list`"
        )
        raise typer.Exit(INTERRUPTED) from None


async def _with_admin(target: str | None, work: "Callable[[ClusterAdmin], Awaitable[T]]") -> T:
    from kvorum.admin import ClusterAdmin  # noqa: PLC0415 - imports grpc

    async with ClusterAdmin(cluster_addresses(choose_target(target))) as admin:
        return await work(admin)


def _row(
    member: "cluster_pb2.Member", view: "cluster_pb2.GetStatusResponse", survey: "Survey"
) -> dict[str, Any]:
    """The member as `--json` shows it; null is what nobody could say."""
    led = survey.leader is not None
    return {
        "name": member.name,
        "address": member.address,
        "kind": node_view.kind(member),
        "joining": member.joining,
        "role": node_view.role(survey.view_of(member.name)),
        "match_index": member.match_index if led else None,
        "lag": node_view.lag(member, view) if led else None,
        "active": member.active if led else None,
    }
