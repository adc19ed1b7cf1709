"""A node that was not given a name: it is whoever its data directory says.

With a new directory it waits, for ever, until one of two things happens:

    a cluster is found at `join`     the node has itself added, and is who it is told to be
    an identity appears              made in the directory by `kvorum init`, say

What is to be done next is decided by one pure function, `decide`, again and again, from what
the members say at the moment. Rules:

1  An empty directory alone never begins a cluster. Nodes that are started all at once, and
   find nobody, wait: or each that was cut off from the others would begin one of its own.
2  A name is only ever taken from the answer to the own request to be added. The log gives
   each name once, so nobody has it who has run before, nor another process that waits at
   the same address. A member that is found at the address is not taken over, whether it
   was ever started or not: nobody knows that for sure, as a new leader has heard of nothing
   yet. It is replaced. (An answer that is lost, or a crash before the directory is there,
   leaves such a member behind; so they do not pile up.)
3  A member is replaced only if it is silent: it does not answer, and the leader, which is
   the one to carry out the removal, has heard nothing from it for two election time-outs.
   Whoever says here that it is gone may have been deposed without knowing it; it is believed
   only so far as to ask. What would endanger the quorum is refused by the leader.
4  A directory of one cluster is not started in the midst of another one.
5  Who was removed stays removed: a directory that says so is left alone, and the node ends.
   To come back by itself would undo what somebody has decided, while a cluster is being made
   smaller for instance. To remove the directory is to say that it may.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import SystemRandom
from typing import Final

from kvorum.admin import STATUS_TIMEOUT_SECONDS, ClusterAdmin, Survey
from kvorum.errors import DataDirectoryMismatch, KvorumError
from kvorum_node.config import NodeConfig, parse_name
from kvorum_node.storage.data_directory import Identity, is_open, prepare, stored_identity
from kvorumpb.v1 import cluster_pb2

LOOK_SECONDS: Final = 1.0
"""How long a name may take to be resolved; and how long those at `join` may take to say of which
cluster they are, before a node that has an identity starts without their answer."""

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
"""Between two looks: doubled each time."""

_CHANGE_SECONDS: Final = 15.0
"""How long a change of members may take until the node looks again whether it was made."""

_LOG_SECONDS: Final = 60.0
"""How often the same reason to wait is logged."""

logger = logging.getLogger("kvorum.node")


@dataclass(frozen=True, slots=True)
class Be:
    """The directory says who the node is."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Join:
    """Ask the leader for a name of its own."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Ask the leader to remove this member, which had the address before."""

    member: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now."""

    why: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The node must not run with this directory."""

    why: str


Decision = Be | Join | Replace | Wait | Refuse


def decide(found: Identity | None, survey: Survey, address: str) -> Decision:
    """What a node is to do next.

    Args:
        found: whose its data directory is; None if it is new.
        survey: what those at `join` say, and the members that they name.
        address: host:port of the node, under which the others are to know it.
    """
    if found is not None:
        return _keep(found, survey)
    clusters = {one.cluster_id for one in survey.answers.values()}
    if not clusters:
        return Wait(
            "no node answers there. To begin a new cluster, run `kvorum init` for the data"
            " directory of one node; the others join it then"
        )
    if len(clusters) > 1:
        return Wait(f"the nodes there are of different clusters: {_listing(survey)}")
    view = survey.led_view
    if view is None:
        return Wait(f"no node leads: {_listing(survey)}. Is a majority of the voters running?")
    if view.members_changing:
        return Wait("another change of members is under way")
    member = next((one for one in view.members if one.address == address), None)
    if member is None:
        return Join()
    if survey.view_of(member.name) is not None:
        return Wait(
            f"{address} is the address of {member.name}, which answers: another process runs with"
            " its data directory"
        )
    if member.active:
        return Wait(
            f"{address} is the address of {member.name}, from which {view.name} has heard lately:"
            " it may be running"
        )
    return Replace(member.name)


def _keep(found: Identity, survey: Survey) -> Be | Refuse:
    """Its own cluster may be down, all of it; then nobody can contradict the directory."""
    answers = survey.answers.values()
    led = next((one for one in answers if one.role == cluster_pb2.LEADER), None)
    if led is None or any(one.cluster_id == found.cluster_id for one in answers):
        return Be(found)
    return Refuse(
        f"the data directory is that of {found}, but the nodes at join are of another cluster,"
        f" {led.cluster_id}, which {led.name} leads. Was the node started with the volume of"
        " another one, or was `kvorum init` run twice? If nothing in the directory is needed, empty"
        " it: then the node joins them"
    )


async def identify(
    config: NodeConfig, *, report: Callable[[str], None] = lambda why: None
) -> Identity:
    """Return who the node is. Takes as long as it takes; may be cancelled at any time.

    Args:
        report: is told again and again what the node waits for.

    Raises:
        DataDirectoryMismatch: the directory is of another cluster than those at `join`.
        StorageError: it cannot be read.
    """
    waiting = _Waiting(config, report)
    has_waited = False
    while True:
        found = stored_identity(config.data_dir)
        if (found is None or has_waited) and is_open(config.data_dir):
            step: Identity | str | None = f"another process is at work in {config.data_dir}"
        else:
            step = await _take_step(config, found)
        if isinstance(step, Identity):
            return step
        if step is not None:
            has_waited = True
            await waiting.pause(step)


async def _take_step(config: NodeConfig, found: Identity | None) -> Identity | str | None:
    """Look, decide, and act. Returns who the node is, what it waits for, or None to look again."""
    timeout = STATUS_TIMEOUT_SECONDS if found is None else LOOK_SECONDS
    async with ClusterAdmin(await _resolve(config.join)) as admin:
        match decide(found, await admin.survey(timeout=timeout), config.address):
            case Be(identity):
                return identity
            case Refuse(why):
                raise DataDirectoryMismatch(f"{config.data_dir} cannot be used here: {why}")
            case Wait(why):
                return why
            case decision:
                try:
                    # Or else a disk that is not usable would cost a name at each restart.
                    prepare(config.data_dir)
                    return await _carry_out(decision, config.address, admin)
                except KvorumError as error:  # refused, or in doubt: the next look will tell
                    return str(error)


async def _carry_out(
    decision: Join | Replace, address: str, admin: ClusterAdmin
) -> Identity | None:
    """Ask the leader, who may refuse. Returns who the node is, if that is decided now."""
    match decision:
        case Join():
            cluster_id, name = await admin.join(address, timeout=_CHANGE_SECONDS)
            logger.info("%s joins the cluster %s", name, cluster_id)
            return Identity(cluster_id, parse_name(name))
        case Replace(member):
            await admin.remove_silent_member(member, address, timeout=_CHANGE_SECONDS)
            logger.warning(
                "%s was the member at %s. It does not run, and its data directory is not here: it"
                " was removed, and a new member takes its place",
                member,
                address,
            )
            return None


async def _resolve(addresses: Iterable[str]) -> list[str]:
    """All that the addresses stand for: behind one name there may be every node.

    They may be of different clusters, which whoever asks one of them does not notice.
    """
    loop = asyncio.get_running_loop()
    resolved: dict[str, None] = {}
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError:  # a time-out, too: the name may be known later
            found = []
        for family, *_, place in found:
            ip = f"[{place[0]}]" if family == socket.AF_INET6 else place[0]
            resolved[f"{ip}:{port}"] = None
    return list(resolved)


class _Waiting:
    """How long to pause, and when to say for what."""

    def __init__(self, config: NodeConfig, report: Callable[[str], None]) -> None:
        self._where = ", ".join(config.join)
        self._report = report
        self._said: dict[str, float] = {}
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._uniform = SystemRandom().uniform

    async def pause(self, why: str) -> None:
        """Nodes that were started at once do not ask at once again and again."""
        self._report(why)
        now = asyncio.get_running_loop().time()
        self._said = {one: at for one, at in self._said.items() if now < at + _LOG_SECONDS}
        if why not in self._said:
            self._said[why] = now
            logger.info("this node waits to take part in the cluster at %s: %s", self._where, why)
        await asyncio.sleep(self._uniform(0.5, 1.0) * self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)


def _listing(survey: Survey) -> str:
    return ", ".join(
        f"{address} is {one.name} of {one.cluster_id}" for address, one in survey.answers.items()
    )
