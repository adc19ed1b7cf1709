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
from kvorum.errors import InvalidArgument, StorageError

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
    try:
        from kvorum_node import survivor as module  # noqa: PLC0415 - imports all of the node
        from kvorum_node.config import check_address  # noqa: PLC0415 - of the node, too
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kvorum"):
            raise
        raise StorageError(f"recovering needs {error.name}: pip install 'kvorum[node]'") from None
    try:
        address = check_address(advertise) if advertise else ""
    except ValueError as error:
        raise InvalidArgument(f"--advertise: {error}") from None
    found = module.examine(data_dir)
    if not force_new_cluster:
        _show(found, data_dir, as_json=as_json)
        return
    if not yes:
        console.err().print(escape(_consequences(found)), soft_wrap=True)
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
        f"{member['name']} {member['address']} ({member['kind']})"
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
    console.err().print(
        "\n" + escape(ADVICE.format(command=shlex.join(command))), end="", soft_wrap=True
    )


def _consequences(found: "Survivor") -> str:
    others = sorted(found.configuration.members - {found.node})
    return CONSEQUENCES.format(
        name=_name(found.node),
        commit=found.hard_state.commit,
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
        "commit_index": found.hard_state.commit,
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
