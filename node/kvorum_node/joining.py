"""The first start of a node: which cluster its new data directory is to belong to.

    cluster    the node is one of those that the cluster begins with, and asks nobody
    join       the node was made a member of a running cluster, and asks that one for
               its id, and whether it really is a member. Without a name, it has itself
               made one: nameless.py

Rule of this file: a new directory is never knowingly given to a node that has run
before. What that node had promised, a vote or an entry on its disk, was lost with its
old directory; as if nothing had happened it could vote twice in a term, and entries
that were acknowledged could be forgotten. Such a node is replaced under a new name.
One of the first members asks nobody, and is found out by the first peer that knows its
old directory (`Node.admit`).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from kvorum.admin import PAUSE_SECONDS, ClusterAdmin, Status
from kvorum.errors import KvorumError, NoLeader
from kvorum_node import nameless
from kvorum_node.config import NodeConfig
from kvorum_node.storage.data_directory import Identity, stored_identity
from kvorumpb.v1 import cluster_pb2

JOIN_SECONDS: Final = 30.0
"""How long the members may take to answer, and to agree on a leader."""

logger = logging.getLogger("kvorum.node")


class CannotJoin(KvorumError):
    """The node cannot take part with a new data directory; the message says what to do."""

    reason = "CANNOT_JOIN"


async def identify(
    config: NodeConfig, *, report: Callable[[str], None] = lambda why: None
) -> Identity:
    """Return who the node is: by its data directory, and at its first start by its settings.

    Args:
        report: is told what a node without a name waits for, again and again.

    Raises:
        As first_identity and nameless.identify.
    """
    if config.join and not config.name:
        return await nameless.identify(config, report=report)
    found = stored_identity(config.data_dir)
    if found is None:
        return await first_identity(config)
    return Identity(found.cluster_id, config.node_id) if config.name else found


async def first_identity(config: NodeConfig) -> Identity:
    """Return whose the new data directory of a node with a name is to be.

    Raises:
        CannotJoin: the node is no member, or has run before, or was not told where its
            cluster is.
        NoNodeReachable: none of the members to join answers.
        NoLeader: none of them leads: without a majority nobody can be sure who is a member.
        InvalidTarget: they are of several clusters.
    """
    if config.cluster:
        return Identity(config.cluster_id, config.node_id)
    if config.join:
        return Identity(await _ask(config), config.node_id)
    name = config.name or "it"
    raise CannotJoin(
        f"{config.data_dir} holds no node yet: its first start needs the setting cluster (to begin"
        f" a cluster) or join (to take part in a running one). If {name} has run before, its"
        f" disk is lost: add a new member in its place, and then remove {name}"
    )


async def _ask(config: NodeConfig) -> str:
    """The id of the cluster that has made this node a member."""
    logger.info("%s asks %s for its cluster", config.name, ", ".join(config.join))
    async with ClusterAdmin(config.join) as admin:
        view = await _led_view(admin)
    _refuse_unless_new_member(config, view)
    return view.cluster_id


async def _led_view(admin: ClusterAdmin) -> Status:
    """What the leader says: others may not have heard of this member, or of how far it was."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + JOIN_SECONDS
    while True:
        await admin.find_leader(timeout=max(PAUSE_SECONDS, deadline - loop.time()))
        survey = await admin.survey()
        survey.refuse_several_clusters()
        if survey.led_view is not None:
            return survey.led_view
        if loop.time() >= deadline:
            raise NoLeader(f"no leader goes on answering: asked {', '.join(admin.addresses)}")
        await asyncio.sleep(PAUSE_SECONDS)


def _refuse_unless_new_member(config: NodeConfig, view: Status) -> None:
    member = next((one for one in view.members if one.name == config.name), None)
    if member is None:
        namesake = next((one for one in view.members if one.address == config.address), None)
        if namesake is not None:
            raise CannotJoin(
                f"{config.name} is no member of the cluster {view.cluster_id}: the member at"
                f" {config.address} is {namesake.name}. Start it under that name"
            )
        raise CannotJoin(
            f"{config.name} is no member of the cluster {view.cluster_id}. Add it first, with"
            f" `kvorum member add {config.address} --target {_target(config)}`, and start it under"
            " the name that this prints"
        )
    if member.address != config.address:
        raise CannotJoin(
            f"{config.name} was made a member with the address {member.address}, and would run at"
            f" {config.address}: start it with --advertise {member.address}, or remove it and add"
            " it with the right address"
        )
    if member.kind != cluster_pb2.Member.LEARNER or member.match_index > 0:
        raise CannotJoin(
            f"{config.name} has run before, with another data directory than {config.data_dir}."
            " If that one was lost, so was what the node had promised, and it must not come back:"
            f" add a new member with `kvorum member add HOST:PORT --target {_target(config)}`, and"
            f" remove this one with `kvorum member remove {config.name}`"
        )


def _target(config: NodeConfig) -> str:
    return f"kvorum://{','.join(config.join)}"
