"""The members of a group, and how they change: joint consensus.

    voters  ──enter──▶  voters && outgoing  ──leave──▶  voters

A change of voters takes two entries in the log (dissertation, section 4.3). The first
makes the group *joint*: whatever is decided then needs a majority of the new voters
and one of the outgoing. The second completes the change. Learners get the log, and
neither vote nor count, so a change that leaves the voters alone takes one entry.

Rules: a configuration holds from the moment its entry is appended, committed or not;
an entry carries the whole configuration, so the one that holds is that of the last
such entry in the log. Nothing here knows of logs or leaders: membership.py decides
when a change may begin.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from google.protobuf.message import DecodeError

from kvorum_node.raft.types import NodeId, node_name
from kvorum_node.unknown_fields import has_unknown_fields
from kvorumpb.v1.command_pb2 import GroupConfiguration

NOBODY: Final[frozenset[NodeId]] = frozenset()
_NO_ID: Final = NodeId(0)


class ImpossibleChange(ValueError):
    """The change does not lead from this configuration to another one; the text says why."""


@dataclass(frozen=True, slots=True)
class AddVoter:
    """Make the node a voter: a new one, or a learner."""

    node: NodeId
    address: str = ""


@dataclass(frozen=True, slots=True)
class AddLearner:
    """Make the node a learner: a new one, or a voter.

    With `join`, the leader makes a voter of it once it has caught up.
    """

    node: NodeId
    address: str = ""
    join: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    """Let the node be a member no longer. Its id never comes back."""

    node: NodeId


Change = AddVoter | AddLearner | Remove


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who is a member, and as what."""

    voters: frozenset[NodeId] = NOBODY
    outgoing: frozenset[NodeId] = NOBODY
    """The voters before the change that is under way; nobody outside of one."""

    learners: frozenset[NodeId] = NOBODY
    next_learners: frozenset[NodeId] = NOBODY
    """Outgoing voters that will be learners: as long as they vote, they are none."""

    joining: frozenset[NodeId] = NOBODY
    """Learners that are to become voters once they have caught up."""

    addresses: Mapping[NodeId, str] = field(default_factory=dict[NodeId, str], hash=False)
    """Of all members: host:port."""

    last_id: NodeId = _NO_ID
    """The highest id that a member ever had."""

    @classmethod
    def of(cls, addresses: Mapping[NodeId, str]) -> "Configuration":
        """The voters that a group begins with."""
        return cls(
            voters=frozenset(addresses),
            addresses=dict(addresses),
            last_id=max(addresses, default=_NO_ID),
        )

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def all_voters(self) -> frozenset[NodeId]:
        """Everybody whose vote is asked for."""
        return self.voters | self.outgoing

    @property
    def members(self) -> frozenset[NodeId]:
        """Everybody who gets the log."""
        return self.voters | self.outgoing | self.learners

    def has_removed(self, node: NodeId) -> bool:
        """Whether the node was a member once, and is none: ids are never used again."""
        return node <= self.last_id and node not in self.members

    def __str__(self) -> str:
        text = f"voters {_names(self.voters)}"
        if self.outgoing:
            text += f" && {_names(self.outgoing)}"
        if self.learners:
            text += f" learners {_names(self.learners)}"
        if self.next_learners:
            text += f" next learners {_names(self.next_learners)}"
        if self.joining:
            text += f" joining {_names(self.joining)}"
        return text

    # What leads from one configuration to the next.

    def change_in_one_step(self, changes: Iterable[Change]) -> "Configuration":
        """Carry out changes in one step, which must leave all voters but one as they are.

        A majority of the voters before and one of the voters after have a member in
        common then (dissertation, section 4.1).

        Raises:
            ImpossibleChange
        """
        if self.is_joint:
            raise ImpossibleChange("a change of members is under way")
        changed = _changed(self, changes)
        if len(self.voters ^ changed.voters) > 1:
            raise ImpossibleChange("more than one voter would change without joint consensus")
        return changed

    def enter_joint(self, changes: Iterable[Change]) -> "Configuration":
        """Carry out changes, and keep the voters before them as outgoing.

        Raises:
            ImpossibleChange
        """
        if self.is_joint:
            raise ImpossibleChange("a change of members is under way")
        if not self.voters:
            raise ImpossibleChange("there are no voters to decide on the change")
        return _changed(replace(self, outgoing=self.voters), changes)

    def leave_joint(self) -> "Configuration":
        """Let the outgoing voters go.

        Raises:
            ImpossibleChange
        """
        if not self.is_joint:
            raise ImpossibleChange("no change of members is under way")
        left = replace(
            self,
            outgoing=NOBODY,
            learners=self.learners | self.next_learners,
            next_learners=NOBODY,
        )
        return _without_strangers(left)

    # As the data of an entry.

    def encode(self) -> bytes:
        """A serialised GroupConfiguration, the same bytes for the same configuration."""

        def members(nodes: frozenset[NodeId]) -> list[GroupConfiguration.Member]:
            return [
                GroupConfiguration.Member(id=node, address=self.addresses.get(node, ""))
                for node in sorted(nodes)
            ]

        return GroupConfiguration(
            voters=members(self.voters),
            learners=members(self.learners),
            outgoing=members(self.outgoing),
            next_learners=sorted(self.next_learners),
            joining=sorted(self.joining),
            last_id=self.last_id,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes) -> "Configuration":
        """Raises DecodeError if the data is no configuration, or one of a later version.

        A configuration holds as soon as it is appended: with a part of it, this node would count
        votes in another way than the others.
        """
        message = GroupConfiguration.FromString(data)
        if has_unknown_fields(message):
            raise DecodeError("the configuration has a field that this version does not know")
        members = (*message.voters, *message.learners, *message.outgoing)
        return cls(
            voters=_ids(one.id for one in message.voters),
            outgoing=_ids(one.id for one in message.outgoing),
            learners=_ids(one.id for one in message.learners),
            next_learners=_ids(message.next_learners),
            joining=_ids(message.joining),
            addresses={NodeId(one.id): one.address for one in members},
            last_id=NodeId(message.last_id),
        )


def _changed(configuration: Configuration, changes: Iterable[Change]) -> Configuration:
    for change in changes:
        configuration = _with(configuration, change)
    if not configuration.voters:
        raise ImpossibleChange("no voter would be left")
    return _without_strangers(configuration)


def _with(before: Configuration, change: Change) -> Configuration:
    node, alone = change.node, frozenset({change.node})
    changed = replace(
        before,
        voters=before.voters - alone,
        learners=before.learners - alone,
        next_learners=before.next_learners - alone,
        joining=before.joining - alone,
    )
    if isinstance(change, Remove):
        return changed
    changed = replace(
        changed,
        addresses={**before.addresses, node: change.address or before.addresses.get(node, "")},
        last_id=max(before.last_id, node),
    )
    if isinstance(change, AddVoter):
        return replace(changed, voters=changed.voters | alone)
    if change.join:
        changed = replace(changed, joining=changed.joining | alone)
    if node in before.outgoing:  # it votes until the change is complete
        return replace(changed, next_learners=changed.next_learners | alone)
    return replace(changed, learners=changed.learners | alone)


def _without_strangers(configuration: Configuration) -> Configuration:
    """Without the addresses of those who are no members."""
    addresses, members = configuration.addresses, configuration.members
    return replace(
        configuration,
        addresses={node: addresses[node] for node in sorted(addresses) if node in members},
    )


def _ids(numbers: Iterable[int]) -> frozenset[NodeId]:
    return frozenset(NodeId(number) for number in numbers)


def _names(nodes: Iterable[NodeId]) -> str:
    return ", ".join(node_name(node) for node in sorted(nodes))
