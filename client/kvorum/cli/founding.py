"""`kvorum init`, and what it shares with `kvorum snapshot restore`: the first node of a cluster.

What is done to the directory, and in which order, is in kvorum_node/founding.py.
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
    from kvorum_node.founding import Founded
    from kvorum_node.raft.types import NodeId

START = """\
{name} is the only member of the new cluster {cluster}. Start it, and add others:

  {start}
  kvorum member add HOST:PORT --target kvorum://{address}
"""

DataDirOption = Annotated[
    Path, typer.Option("--data-dir", envvar="KVORUM_DATA_DIR", help="New, or empty.")
]
AddressOption = Annotated[
    str,
    typer.Option(
        metavar="host:port", envvar="KVORUM_ADVERTISE", help="Where others reach the node."
    ),
]
NameOption = Annotated[str, typer.Option(help="What to call the node.")]


def init(
    data_dir: DataDirOption,
    advertise: AddressOption,
    *,
    name: NameOption = "n1",
    as_json: JsonOption = False,
) -> None:
    """Begin a cluster in an empty directory: this node is its only member, until others join.

    The cluster gets an id that no other one has. `kvorum node` on the directory then needs no
    --cluster. For several first members at once, give that to each instead.
    """
    module, node, address = first_member("beginning a cluster", name, advertise)
    print_start(module.begin(data_dir, node=node, address=address), data_dir, as_json=as_json)


def first_member(doing: str, name: str, advertise: str) -> "tuple[Any, NodeId, str]":
    """The module that begins clusters, and the member, checked.

    Raises:
        StorageError: what it needs is not installed.
        InvalidArgument: the name or the address is none.
    """
    with console.needing_node(doing):
        from kvorum_node import founding  # noqa: PLC0415 - imports all of the node
        from kvorum_node.config import check_member_address, parse_name  # noqa: PLC0415 - same
    try:
        node = parse_name(name)
    except ValueError as error:
        raise InvalidArgument(f"--name: {error}") from None
    try:
        address = check_member_address(advertise)
    except ValueError as error:
        raise InvalidArgument(f"--advertise: {error}") from None
    return founding, node, address


def print_start(founded: "Founded", data_dir: Path, *, as_json: bool) -> None:
    """Say what there is now, and how to go on."""
    name = f"n{founded.identity.node_id}"
    if as_json:
        facts = {
            "name": name,
            "address": founded.address,
            "cluster_id": founded.identity.cluster_id,
            "index": founded.last.index,
            "term": founded.last.term,
            "revision": founded.revision,
        }
        print(json.dumps(facts, indent=2))
        return
    start = ["kvorum", "node", name, "--data-dir", str(data_dir), "--listen", founded.address]
    text = START.format(
        name=name,
        cluster=founded.identity.cluster_id,
        start=shlex.join(start),
        address=founded.address,
    )
    console.out().print(escape(text), end="", soft_wrap=True)
