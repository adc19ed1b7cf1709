"""`kvorum recover`: looking into the data directory of a node that is not running.

What is done to it, and in which order, is in kvorum_node/survivor.py.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from kvorum.cli import console
from kvorum.cli.data import JsonOption
from kvorum.errors import InvalidArgument

if TYPE_CHECKING:
    from kvorum_node.survivor import Survivor

ADVICE = """\
With a majority of the voters: start them, and nothing is lost. Without one, look into
the directory of every survivor in this way, and compare their last entries, index@term.
The highest term, and among equals the highest index, has the most. On that one only:

  {command}
"""

CONSEQUENCES = """\
This makes {name} a cluster of its own.
- Writes that were acknowledged by others, and had not reached {name}, are lost.
- Entries after {commit}, which may never have been acknowledged, become permanent.
- {others} must never be started again: delete their data directories.
"""

SOLE_VOTER_ADVICE = """\
{name} is the only voter of its cluster, and needs nobody else: start it.
"""

SOLE_VOTER_CONSEQUENCES = """\
{name} is the only voter of its cluster already: this gives the cluster another id, and no write
is lost. {others} must never be started again: delete their data directories.
"""

EMBEDDED_ADVICE = """\
This is the store of a program, which opens it as a directory. To serve it as a cluster from
now on, with all that is in it, end the program and give the store an address:

  {command} --advertise HOST:PORT
"""

EMBEDDED_CONSEQUENCES = """\
This makes the store a cluster, whose only member is {name}. Nothing is lost. Programs then
reach it as kvorum://{address}, and cannot open the directory any more.
"""

DONE = """\
{name} is the only member of the new cluster {cluster}. Start it, and add the others anew,
with empty data directories:

  {start}
  kvorum member add HOST:PORT --target kvorum://{address}
"""


def recover(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Of a node that survived, and is not running.")
    ],
    *,
    force_new_cluster: Annotated[
        bool,
        typer.Option("--force-new-cluster", help="Make it a cluster of one. May lose writes."),
    ] = False,
    advertise: Annotated[
        str,
        typer.Option(metavar="host:port", help="Where others reach the node, if not as before."),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a node's data directory holds, or begin a new cluster with it.

    For when a majority of the voters is lost for good.
    """
    with console.needing_node("recovering"):
        from kvorum_node import survivor as module  # noqa: PLC0415 - imports all of the node
        from kvorum_node.config import check_member_address  # noqa: PLC0415 - of the node, too
    try:
        address = check_member_address(advertise) if advertise else ""
    except ValueError as error:
        raise InvalidArgument(f"--advertise: {error}") from None
    found = module.examine(data_dir)
    if not force_new_cluster:
        _show(found, data_dir, as_json=as_json)
        return
    if not yes and (address or found.address):  # without one it is refused, whatever the answer
        console.err().print(escape(_consequences(found, address)), soft_wrap=True)
        typer.confirm("Do it?", abort=True, err=True)
    made = module.force_new_cluster(data_dir, address=address)
    if as_json:
        print(json.dumps(_describe(made), indent=2))
        return
    name = _name(made.node)
    start = ["kvorum", "node", name, "--data-dir", str(data_dir), "--listen", made.address]
    text = DONE.format(
        name=name,
        cluster=made.identity.cluster_id,
        start=shlex.join(start),
        address=made.address,
    )
    console.out().print(escape(text), end="", soft_wrap=True)


def _show(found: "Survivor", data_dir: Path, *, as_json: bool) -> None:
    described = _describe(found)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    members = [
        " ".join(filter(None, (member["name"], member["address"], f"({member['kind']})")))
        for member in described["members"]
    ]
    table = console.new_table("", "")
    table.show_header = False
    for label, value in (
        ("node", described["name"]),
        ("cluster", described["cluster_id"]),
        ("last entry", described["last"]),
        ("term", described["term"]),
        ("committed", described["commit_index"]),
        ("applied", f"{described['applied_index']} (revision {described['revision']})"),
        ("members", "\n".join(members) or "none that it has heard of"),
    ):
        table.add_row(label, escape(str(value)))
    console.out().print(table)
    command = ["kvorum", "recover", "--data-dir", str(data_dir), "--force-new-cluster"]
    text = _advice(found).format(name=_name(found.node), command=shlex.join(command))
    console.err().print("\n" + escape(text), end="", soft_wrap=True)


def _advice(found: "Survivor") -> str:
    if found.is_embedded:
        return EMBEDDED_ADVICE
    return SOLE_VOTER_ADVICE if found.is_sole_voter else ADVICE


def _consequences(found: "Survivor", address: str) -> str:
    others = sorted(found.configuration.members - {found.node})
    if found.is_embedded:
        text = EMBEDDED_CONSEQUENCES
    else:
        text = SOLE_VOTER_CONSEQUENCES if found.is_sole_voter else CONSEQUENCES
    return text.format(
        name=_name(found.node),
        address=address,
        commit=found.committed,
        others=", ".join(map(_name, others)) or "Other nodes of the old cluster",
    )


def _describe(found: "Survivor") -> dict[str, Any]:
    configuration = found.configuration
    kinds = {
        **dict.fromkeys(configuration.outgoing, "leaving"),
        **dict.fromkeys(configuration.learners, "learner"),
        **dict.fromkeys(configuration.voters, "voter"),
    }
    return {
        "name": _name(found.node),
        "cluster_id": found.identity.cluster_id,
        "last": str(found.last),
        "last_index": found.last.index,
        "last_term": found.last.term,
        "term": found.hard_state.term,
        "commit_index": found.committed,
        "applied_index": found.applied,
        "revision": found.revision,
        "members": [
            {
                "name": _name(member),
                "address": configuration.addresses.get(member, ""),
                "kind": kinds[member],
            }
            for member in sorted(kinds)
        ],
    }


def _name(node: int) -> str:
    return f"n{node}"
