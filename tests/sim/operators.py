"""What people do to a cluster: add, promote and remove members, and replace lost ones.

They speak to whoever takes itself for the leader, follow the rules that operators are
given (a lost disk means a new id), and otherwise do what comes to their mind: several
changes at once, members that never started, the leader itself.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Protocol

from kvorum.errors import KvorumError, MembershipChangeRefused
from kvorum_node.members import ChangeOfMembers
from kvorum_node.raft.configuration import (
    AddLearner,
    AddVoter,
    Change,
    Configuration,
    Remove,
)
from kvorum_node.raft.types import NodeId
from tests.sim.host import Host, Process

MOST_MEMBERS = 6
PATIENCE_SECONDS = 2.0


class Surroundings(Protocol):
    hosts: dict[NodeId, Host]
    lost: dict[NodeId, Host]
    """Whose disks are gone for good."""

    def add_host(self, node: NodeId) -> None: ...
    def note(self, *what: object) -> None: ...


class Operators:
    def __init__(self, around: Surroundings) -> None:
        self.counts: Counter[str] = Counter()
        self._around = around
        self._at_work = True

    def go_home(self) -> None:
        """Ask for nothing any more, not even for what was decided and is not said yet.

        Who is chosen to stay dead is so by the configurations of that moment.
        """
        self._at_work = False

    def change_members(self, leader: Process, random: Random) -> None:
        """Ask the leader for a change, and start the nodes that it adds."""
        configuration = leader.group.raft.configuration
        changes = self._draw(configuration, random)
        force = not self._around.lost and random.random() < 0.1
        if changes:
            leader.call(self._ask, leader, changes, force)

    def _draw(self, configuration: Configuration, random: Random) -> list[Change]:
        lost = sorted(configuration.members & self._around.lost.keys())
        if lost:
            remove: list[Change] = [Remove(random.choice(lost))]
            replace: list[Change] = [_new(configuration, join=True), *remove]
            return random.choice((remove, replace, replace[:1]))
        members, learners = sorted(configuration.members), sorted(configuration.learners)

        def join() -> list[Change]:
            return [_new(configuration, join=True)]

        kinds: list[Callable[[], list[Change]]] = [
            lambda: [Remove(random.choice(members))],
            lambda: [AddVoter(random.choice(learners or members))],
            lambda: [AddLearner(random.choice(members), join=random.random() < 0.5)],
            lambda: [Remove(random.choice(members)), AddVoter(random.choice(members))],
        ]
        if len(members) < MOST_MEMBERS:
            kinds += [
                join,
                join,
                join,
                lambda: [_new(configuration, join=False)],
                lambda: [*join(), Remove(random.choice(members))],
                lambda: [_as_voter(configuration)],
            ]
        return random.choice(kinds)()

    def _ask(self, leader: Process, changes: list[Change], force: bool) -> None:
        if not self._at_work:
            return
        self._around.note("change of members", leader.host, changes, force)
        try:
            change = leader.group.change_members(
                changes, force=force, deadline=leader.time() + PATIENCE_SECONDS
            )
        except MembershipChangeRefused:
            self.counts["refused"] += 1
        except KvorumError:
            self.counts["no leader"] += 1
        else:
            self.counts["begun"] += 1
            change.add_done_callback(self._settled)
            for one in changes:
                if not isinstance(one, Remove) and one.node not in self._around.lost:
                    self._around.add_host(one.node)

    def _settled(self, change: ChangeOfMembers) -> None:
        self.counts["completed" if change.exception() is None else "in doubt"] += 1


def _new(configuration: Configuration, *, join: bool) -> AddLearner:
    node = NodeId(configuration.last_id + 1)
    return AddLearner(node, address_of(node), join=join)


def _as_voter(configuration: Configuration) -> AddVoter:
    node = NodeId(configuration.last_id + 1)
    return AddVoter(node, address_of(node))


def address_of(node: NodeId) -> str:
    return f"host{node}:7100"
