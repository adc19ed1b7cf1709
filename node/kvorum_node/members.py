"""Who is in the group, as far as this node knows; and the changes of members that wait for it.

    change -> proposed at index@term -> committed, and completed by what follows it

A change is complete once a configuration that is not joint is committed at or behind
its position. The core sees to that; here are the callers who wait, each of whom is
answered exactly once: with that configuration, or with an error that says whether the
change may be carried out yet.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvorum.errors import (
    DataDirectoryLost,
    DeadlineExceeded,
    KvorumError,
    MembershipChangeRefused,
    OutcomeUnknown,
    RemovedFromCluster,
)
from kvorum_node.machine import Machine
from kvorum_node.raft.configuration import Change, Configuration
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import ChangeRefused, Index, NodeId, NotLeading, Position, node_name
from kvorum_node.storage.raft_log import RaftLogStore

ChangeOfMembers = asyncio.Future[Configuration]


@dataclass(slots=True, eq=False)
class _Change:
    position: Position
    deadline: float
    future: ChangeOfMembers

    def fail(self, error: KvorumError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Members:
    """Of one group."""

    def __init__(
        self,
        raft: Raft,
        log: RaftLogStore,
        machine: Machine,
        *,
        not_leader: Callable[[], KvorumError],
    ) -> None:
        self._raft = raft
        self._log = log
        self._machine = machine
        self._not_leader = not_leader
        self._changes: list[_Change] = []

    @property
    def configuration(self) -> Configuration:
        """The one that holds."""
        return self._raft.configuration

    @property
    def addresses(self) -> Mapping[NodeId, str]:
        """Where the members are: host:port."""
        return self._raft.configuration.addresses

    @property
    def correspondents(self) -> Mapping[NodeId, str]:
        """Whom to exchange messages with: the members, and whose removal is not committed yet.

        A leader that removes itself still needs acknowledgements for that.
        """
        return {**self._raft.committed_configuration.addresses, **self.addresses}

    def configuration_at(self, index: Index) -> Configuration:
        """The configuration as of an entry that the log holds, or as of the log's start."""
        known = self._log.configurations()
        return next((one for at, one in reversed(known) if at <= index), known[0][1])

    @property
    def without_this_node(self) -> bool:
        """Whether the group goes on without this node, and this node has applied that."""
        node = self._raft.node
        return self._raft.committed_configuration.has_removed(node) and (
            self.configuration_at(self._machine.applied).has_removed(node)
        )

    def require_silence(self, node: NodeId, address: str) -> None:
        """Raise MembershipChangeRefused unless the member at the address may be taken for gone.

        It is if this leader has heard nothing from it for two election time-outs, or, if it was
        elected since, for as long after its election.
        """
        name, role = node_name(node), self._raft.role
        if not isinstance(role, Leader):
            raise self._not_leader()
        if self.configuration.addresses.get(node) != address:
            raise MembershipChangeRefused(f"there is no member {name} at {address}")
        progress = role.progress.get(node)  # of itself, a leader has none
        if progress is None or progress.recently_active:
            raise MembershipChangeRefused(f"{name} was heard from lately: it may be running")

    def change(self, changes: Sequence[Change], *, force: bool, deadline: float) -> ChangeOfMembers:
        """Begin a change; the future gives the configuration that completes it.

        Args:
            force: even if it may leave the group without a majority that is alive.
            deadline: on the event loop's clock. A change that is not complete by then
                goes on, or is lost with its leader.

        Raises:
            MembershipChangeRefused, NotLeader, NoLeader, ShuttingDown: nothing was begun.
        """
        try:
            position = self._raft.change_members(changes, force=force)
        except NotLeading:
            raise self._not_leader() from None
        except ChangeRefused as refused:
            raise MembershipChangeRefused(
                str(refused), endangers_quorum=str(refused.endangers_quorum).lower()
            ) from None
        future: ChangeOfMembers = asyncio.get_running_loop().create_future()
        self._changes.append(_Change(position, deadline, future))
        return future

    def settle(self) -> None:
        """Answer the changes that are complete, or were replaced in the log."""
        for change in tuple(self._changes):
            if self._is_settled(change):
                self._changes.remove(change)

    def expire(self, now: float) -> None:
        for change in self._changes:
            if change.deadline <= now:
                change.fail(
                    DeadlineExceeded(
                        "outcome unknown: the change of members is not complete in time",
                        maybe_applied=True,
                    )
                )

    def close(self, why: str) -> None:
        """Settle everything that still waits."""
        changes, self._changes = self._changes, []
        for change in changes:
            change.fail(OutcomeUnknown(f"outcome unknown: the node stopped: {why}"))

    def _is_settled(self, change: _Change) -> bool:
        log, position = self._raft.log, change.position
        if change.future.done():
            return True
        if log.committed < position.index:
            return False
        if position.index < log.first_index - 1:
            change.fail(OutcomeUnknown("outcome unknown: a snapshot has replaced the log"))
        elif log.term(position.index) != position.term:
            change.fail(self._not_leader())
        elif self._raft.committed_configuration.is_joint:
            return False
        else:
            change.future.set_result(self._raft.committed_configuration)
        return True


def removed_from_cluster(node: NodeId) -> RemovedFromCluster:
    """The error that ends a node that is no member any more."""
    name = node_name(node)
    return RemovedFromCluster(
        f"{name} was removed from the cluster. Its data directory can be deleted; a node that is"
        f" to take its place needs a new name, because {name} is never used again"
    )


def data_directory_lost(node: NodeId) -> DataDirectoryLost:
    """The error that ends a node which is known to its peers by another data directory."""
    name = node_name(node)
    return DataDirectoryLost(
        f"{name} was a member with another data directory. If that one was lost, so was what {name}"
        " had promised, and acknowledged writes could be lost if it came back without: remove it"
        f" with `kvorum member remove {name}`, and add a new member with `kvorum member add"
        " HOST:PORT`. If that one still exists, start the node with it",
        node=name,
    )
