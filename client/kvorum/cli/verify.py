"""`kvorum verify`: do all members of a cluster hold the same?"""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from kvorum.cli import console
from kvorum.cli.data import FAILED, ClusterOption, JsonOption, choose_target, cluster_addresses

if TYPE_CHECKING:
    from kvorum.verification import Verification

TIMEOUT_SECONDS: Final = 300.0
SHOWN_DIGITS: Final = 16
"""Of the hash in the summary; `--json` has all of it."""

STYLES: Final = {"same": "green", "corrupt": "bold red", "unknown": "yellow"}


def verify(
    *,
    as_json: JsonOption = False,
    target: ClusterOption = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for members that lag, or hash.")
    ] = TIMEOUT_SECONDS,
) -> None:
    """Have all members compare what they hold.

    A minority that holds something else is stopped by this, and has to be replaced. Exit
    status 1 if there is one, or if no majority holds the same. A member that is down is
    unknown, which is no failure.
    """
    with console.err().status("the members hash what they hold"):
        found = asyncio.run(_verify(choose_target(target), timeout))
    if as_json:
        print(json.dumps(_describe(found), indent=2))
    else:
        _print(found)
    if not found.is_sound:
        raise typer.Exit(FAILED)


async def _verify(target: str, timeout_seconds: float) -> "Verification":
    from kvorum.admin import ClusterAdmin  # noqa: PLC0415 - imports grpc

    async with ClusterAdmin(cluster_addresses(target)) as admin:
        return await admin.verify(timeout=timeout_seconds)


def _describe(found: "Verification") -> dict[str, object]:
    """What `--json` shows; null is what nobody knows."""
    known = bool(found.hash)
    return {
        "sound": found.is_sound,
        "index": found.index,
        "revision": found.revision if known else None,
        "record_count": found.record_count if known else None,
        "hash": found.hash.hex() or None,
        "members": {name: str(verdict) for name, verdict in found.members.items()},
    }


def _print(found: "Verification") -> None:
    table = console.new_table("name", "state")
    for name, verdict in found.members.items():
        table.add_row(escape(name), f"[{STYLES[verdict]}]{verdict}[/]")
    out = console.out()
    out.print(table)
    if found.hash:
        out.print(
            f"\nat index {found.index}, revision {found.revision}: {found.record_count:,} records,"
            f" hash {found.hash.hex()[:SHOWN_DIGITS]}...",
            soft_wrap=True,
        )
    else:
        console.print_error(
            f"no majority of the voters has said that it holds the same at index {found.index}:"
            " nobody was stopped. The log of the leader says who holds what"
        )
    corrupt = [name for name, verdict in found.members.items() if verdict == "corrupt"]
    for name in corrupt:
        console.print_error(
            f"{name} holds something else than the majority, and stops. Add a new member with"
            " `kvorum member add HOST:PORT`, and remove this one with"
            f" `kvorum member remove {name}`"
        )
