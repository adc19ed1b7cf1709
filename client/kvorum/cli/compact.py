"""`kvorum compact`: forget what the store was like before a revision."""

import asyncio
import json
from typing import Annotated

import typer

from kvorum import limits
from kvorum.cli import console
from kvorum.cli.data import ClusterOption, JsonOption, choose_target, cluster_addresses


def compact(
    revision: Annotated[
        int,
        typer.Argument(min=1, max=limits.MAX_INTEGER, help="Stays the oldest that can be read."),
    ],
    *,
    as_json: JsonOption = False,
    target: ClusterOption = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to find the leader and to be answered.")
    ] = 30.0,
) -> None:
    """Forget history before a revision: it makes room after deletes.

    The store does so by itself with what is older than --history-seconds of its nodes.
    Room comes back to the disk a little later.
    """
    oldest = asyncio.run(_compact(choose_target(target), revision, timeout))
    if as_json:
        print(json.dumps({"oldest_revision": oldest}))
    elif oldest == revision:
        console.out().print(f"revision {oldest} is the oldest that can be read now")
    else:
        console.out().print(f"older ones were forgotten before: revision {oldest} is the oldest")


async def _compact(target: str, revision: int, timeout_seconds: float) -> int:
    from kvorum.admin import ClusterAdmin  # noqa: PLC0415 - imports grpc

    async with ClusterAdmin(cluster_addresses(target)) as admin:
        return await admin.compact(revision, timeout=timeout_seconds)
