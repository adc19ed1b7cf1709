"""Changes of members, as the leader carries them out (dissertation, chapter 4).

    change_members ─▶ joint entry appended ─▶ committed ─▶ leave entry appended ─▶ committed

Rules: one change at a time, and none before an entry of the leader's own term is
committed: without the second, two leaders in turn could each change the members
without knowing of the other's change, and two disjoint majorities would follow
(dissertation, 4.1, and the correction of 2015 on raft-dev). The leader of the moment
completes whatever change it finds committed, whoever began it.

A learner has *caught up* when it has the log as it stood an election time-out ago: so
it can keep up, and what it still lacks does not hold up anybody for long (compare
section 4.2.1). Learners that are `joining` are made voters then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvorum_node.raft.configuration import (
    AddLearner,
    AddVoter,
    Change,
    Configuration,
    ImpossibleChange,
    Remove,
)
from kvorum_node.raft.progress import ProgressState
from kvorum_node.raft.quorum import is_quorum
from kvorum_node.raft.types import ChangeRefused, NodeId, node_name

if TYPE_CHECKING:
    from kvorum_node.raft.core import Raft
    from kvorum_node.raft.leader import Leader


def plan(raft: Raft, role: Leader, changes: Sequence[Change], *, force: bool) -> Configuration:
    """The configuration that carries out the changes.

    Raises:
        ChangeRefused
    """
    configuration = raft.configuration
    if not role.established:
        raise ChangeRefused("the leader has not committed an entry of its own term yet")
    if raft.members_are_changing:
        raise ChangeRefused("another change of members is under way")
    for change in changes:
        _check_sense(configuration, change)
        _check_has_begun(role, change)
    try:
        planned = configuration.enter_joint(changes)
        if planned.voters == configuration.voters:
            planned = configuration.change_in_one_step(changes)
    except ImpossibleChange as error:
        raise ChangeRefused(str(error)) from None
    if planned == configuration:
        raise ChangeRefused("it would change nothing")
    if not force:
        _check_quorum(raft, role, planned)
    return planned


def complete(raft: Raft) -> Configuration | None:
    """The configuration that completes a change, if one is due."""
    configuration = raft.configuration
    if not configuration.is_joint or raft.log.configuration_index > raft.log.committed:
        return None
    return configuration.leave_joint()


def promotions(raft: Raft, role: Leader) -> list[Change]:
    """The learners that are to become voters now."""
    configuration = raft.configuration
    return [
        AddVoter(node)
        for node in sorted(configuration.joining & configuration.learners)
        if _has_caught_up(raft, role, node)
    ]


def is_out(raft: Raft) -> bool:
    """Whether this leader is no voter any more, by a change that is complete."""
    return (
        raft.node not in raft.configuration.voters
        and not raft.configuration.is_joint
        and raft.log.configuration_index <= raft.log.committed
    )


def _check_sense(configuration: Configuration, change: Change) -> None:
    node, name = change.node, node_name(change.node)
    known = node in configuration.members
    if isinstance(change, Remove):
        if not known:
            raise ChangeRefused(f"{name} is no member")
        return
    if not known and node <= configuration.last_id:
        raise ChangeRefused(
            f"{name} was a member once, or was passed over, and is not used again: a new member's"
            f" number is above {configuration.last_id}"
        )
    if isinstance(change, AddVoter) and node in configuration.voters:
        raise ChangeRefused(f"{name} is a voter already")
    if isinstance(change, AddLearner) and node in configuration.learners:
        raise ChangeRefused(f"{name} is a learner already")
    if known and change.address not in ("", configuration.addresses[node]):
        raise ChangeRefused(f"{name} is a member at {configuration.addresses[node]}")
    for other, address in configuration.addresses.items():
        if other != node and address and address == change.address:
            raise ChangeRefused(f"{address} is the address of {node_name(other)}")


def _check_has_begun(role: Leader, change: Change) -> None:
    """Refuse to make a voter of a learner that may never have been started.

    It could not be started any more: a voter that has nothing has lost what it had.
    """
    progress = role.progress.get(change.node)
    if isinstance(change, AddVoter) and progress is not None and progress.match == 0:
        raise ChangeRefused(
            f"{node_name(change.node)} has not taken anything of the log yet: start it first"
        )


def _check_quorum(raft: Raft, role: Leader, planned: Configuration) -> None:
    """Refuse what might leave the group without a majority that can commit."""
    for node in sorted(planned.voters - raft.configuration.voters):
        if not _has_caught_up(raft, role, node):
            raise ChangeRefused(
                f"{node_name(node)} has not caught up with the log: as a voter it might hold up"
                " every write until it has",
                endangers_quorum=True,
            )
    alive = {node for node, progress in role.progress.items() if progress.is_alive}
    alive.add(raft.node)
    if not is_quorum(Configuration(voters=planned.voters), alive):
        silent = ", ".join(node_name(node) for node in sorted(planned.voters - alive))
        raise ChangeRefused(
            f"of the {len(planned.voters)} voters after it, {silent} cannot be reached now: the"
            " others would be no majority, and nothing could be written",
            endangers_quorum=True,
        )


def _has_caught_up(raft: Raft, role: Leader, node: NodeId) -> bool:
    progress = role.progress.get(node)
    if progress is None or not progress.is_alive:
        return False
    needed = raft.log.last_index if role.log_end_before is None else role.log_end_before
    return progress.state is ProgressState.REPLICATE and progress.match >= needed
