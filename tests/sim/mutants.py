"""Guards of the real code, each of which the simulator misses when it is gone.

    python -m tests.sim.mutants              all of them: how many seeds each takes to be found
    python -m tests.sim.mutants NAME ...     these

A mutant replaces a function of the node in this process, and nothing else. What is found
may be any rule that breaks: a guard of the log may show as a lost write, or as a node that
cannot start.

Guards that nothing can miss in a whole node are not here, but in tests/raft. A sync that is
acknowledged late, for an entry that was replaced meanwhile, does not happen to a driver that
waits for its sync before it listens again; and an append that vouches for less than the
follower's log holds is never sent by a leader that finds at once where the logs meet.
"""

import argparse
import asyncio
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from kvorum_node.driver import Driver
from kvorum_node.group import Group
from kvorum_node.log_clock import LogClock
from kvorum_node.machine import Machine, commit
from kvorum_node.machine.clients import Clients
from kvorum_node.machine.execution import Execution
from kvorum_node.raft import candidate, follower, leader, membership, quorum
from kvorum_node.raft.candidate import Candidate
from kvorum_node.raft.configuration import Change, Configuration, ImpossibleChange
from kvorum_node.raft.core import HANDLERS, Raft, Ready
from kvorum_node.raft.follower import Follower
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.log import RaftLog, Snapshot
from kvorum_node.raft.messages import (
    Heartbeat,
    InstallSnapshot,
    RequestVote,
    RequestVoteReply,
)
from kvorum_node.raft.quorum import VoteResult
from kvorum_node.raft.types import ChangeRefused, Entry, HardState, Index, NodeId
from kvorum_node.services.dispatch import Dispatcher
from kvorum_node.snapshots import Header, Snapshots
from kvorum_node.storage.engine import Batch
from kvorum_node.storage.raft_log import RaftLogStore
from kvorum_node.watches import hub
from kvorum_node.watches.hub import WatchHub
from kvorum_node.watches.watch import Watch
from tests.sim import without_guards
from tests.sim.plan import Plan
from tests.sim.simulation import Simulation, Violation

MOST_SEEDS: Final = 2000

_MISFIT: Final = re.compile(r"\b(TypeError|AttributeError|NameError)\b")
"""The node has changed, and the mutant has not: that a call fails proves nothing."""


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    guard: str
    """What is taken away."""
    owner: object
    attribute: str
    replacement: object

    @contextmanager
    def applied(self) -> Iterator[None]:
        before = vars(self.owner)[self.attribute]
        handled = [key for key, handler in HANDLERS.items() if handler is before]
        self._set(self.replacement, handled)
        try:
            yield
        finally:
            self._set(before, handled)

    def _set(self, function: Any, handled: Sequence[tuple[type, type]]) -> None:
        setattr(self.owner, self.attribute, function)
        HANDLERS.update(dict.fromkeys(handled, function))


# The core.


def _commit_by_counting(raft: Raft, role: Leader) -> None:
    _advance(raft, role, raft.log.stable_index, older_terms=True)


def _commit_without_own_sync(raft: Raft, role: Leader) -> None:
    _advance(raft, role, raft.log.last_index, older_terms=False)


def _advance(raft: Raft, role: Leader, own: Index, *, older_terms: bool) -> None:
    """As leader.advance_commit, but for what the arguments say."""
    matched = {member: progress.match for member, progress in role.progress.items()}
    matched[raft.node] = own
    index = Index(quorum.reached(raft.configuration, matched))
    if index <= raft.log.committed:
        return
    if raft.log.term(index) != raft.term and not older_terms:
        return
    raft.log.commit_to(index)
    role.established = role.established or raft.log.term(index) == raft.term
    while role.uncommitted and role.uncommitted[0][0] <= index:
        role.uncommitted_bytes -= role.uncommitted.popleft()[1]
    completed = membership.complete(raft)
    if completed is not None:
        leader._configure(raft, role, completed)
    elif membership.is_out(raft):
        leader._step_aside(raft, role)


def _always_truncate(log: RaftLog, previous: Index, entries: Sequence[Entry]) -> Index:
    beyond = [entry for entry in entries if entry.index > log.committed]
    if beyond:
        log.append(beyond)
    return Index(previous + len(entries))


def _vote_for_anybody(
    raft: Raft, role: Follower | Candidate | Leader, message: RequestVote
) -> None:
    granted = raft.log.is_up_to_date(message.last)
    raft.promise(
        RequestVoteReply(
            sender=raft.node,
            recipient=message.sender,
            term=message.term if granted else raft.term,
            granted=granted,
            pre=message.pre,
        )
    )
    if granted and not message.pre:
        raft.vote = message.sender
        role.elapsed = 0


def _heartbeat_commits_all(raft: Raft, role: Leader) -> None:
    role.since_heartbeat = 0
    for member in role.progress:
        raft.send(
            Heartbeat(
                sender=raft.node,
                recipient=member,
                term=raft.term,
                commit=raft.log.committed,
                read_round=role.reads.newest,
            )
        )


def _read_at_once(raft: Raft, role: Leader) -> None:
    raft.reads.extend(role.reads.confirmed(role.reads.newest))


def _lead_established(raft: Raft) -> None:
    """As if an entry of the own term were committed: reads and changes of members may begin."""
    _lead(raft)
    assert isinstance(raft.role, Leader)
    raft.role.established = True


_lead = leader.lead


def _reached_by_voters_alone(configuration: Configuration, values: Mapping[NodeId, int]) -> int:
    return quorum._reached(configuration.voters, values)


def _elected_by_voters_alone(
    configuration: Configuration, votes: Mapping[NodeId, bool]
) -> VoteResult:
    return quorum._vote_result(configuration.voters, votes)


def _reached_by_learners_too(configuration: Configuration, values: Mapping[NodeId, int]) -> int:
    members = replace(configuration, voters=configuration.voters | configuration.learners)
    return _reached(members, values)


_reached = quorum.reached


def _plan_whatever_is_under_way(
    raft: Raft, role: Leader, changes: Sequence[Change], *, force: bool
) -> Configuration:
    configuration = raft.configuration
    if configuration.is_joint:
        configuration = configuration.leave_joint()
    del role, force
    try:
        return configuration.enter_joint(changes)
    except ImpossibleChange as error:
        raise ChangeRefused(str(error)) from None


def _complete_at_once(raft: Raft) -> Configuration | None:
    return raft.configuration.leave_joint() if raft.configuration.is_joint else None


def _install_whatever_comes(raft: Raft, role: Follower, message: InstallSnapshot) -> None:
    follower._heard(raft, role, message.sender)
    raft.log.restore(Snapshot(message.last, message.configuration))
    follower._accept(raft, message.sender, message.last.index)


def _keep_truncated_configurations(log: RaftLog, entries: Sequence[Entry]) -> None:
    before = list(log._configurations)
    _append(log, entries)
    added = [one for one in log._configurations if one not in before]
    log._configurations = [*before, *added]


_append = RaftLog.append


# The host.


def _forget_the_vote(store: RaftLogStore, batch: Batch, hard_state: HardState) -> None:
    _save_hard_state(store, batch, replace(hard_state, vote=None))


_save_hard_state = RaftLogStore.save_hard_state


async def _promise_before_the_sync(driver: Driver, work: Mapping[Group, Ready]) -> None:
    early = {}
    for group, ready in work.items():
        driver._send(group.id, ready.promises)
        early[group] = replace(ready, promises=())
    # The core is told of the Ready that it gave out.
    await _carry_out(driver, early)


_carry_out = Driver._carry_out


async def _cut_before_the_flush(driver: Driver, group: Group, through: Index) -> None:
    batch = Batch()
    group.log.cut(batch, through)
    driver._storage.log.write(batch)
    await asyncio.sleep(0)


async def _stage_without_a_sync(
    snapshots: Snapshots, group: Group, header: Header, chunks: Any
) -> None:
    staging = group.machine.stage_snapshot()
    await snapshots._write_chunks(staging, chunks)
    staging.finish(header.last.index)


def _refuse_what_is_in_doubt(group: Group, why: str) -> None:
    del why
    proposals, group._waiters.proposals = group._waiters.proposals, {}
    for proposal in proposals.values():
        group._refuse(proposal.submissions)


def _answer_before_it_is_applied(group: Group, confirmed: Sequence[Any]) -> None:
    for state in confirmed:
        for request in state.requests:
            for read in group._waiters.reads_asked.pop(request, ()):
                if not read.future.done():
                    read.future.set_result(None)


def _always(*arguments: object) -> bool:
    del arguments
    return True


MUTANTS: Final = (
    Mutant(
        "commit-by-counting",
        "an entry of an older term is committed only by one of the leader's own",
        leader,
        "advance_commit",
        _commit_by_counting,
    ),
    Mutant(
        "commit-without-own-sync",
        "a leader counts itself with what it has synced",
        leader,
        "advance_commit",
        _commit_without_own_sync,
    ),
    Mutant(
        "always-truncate",
        "entries are truncated at a conflict only",
        RaftLog,
        "append_missing",
        _always_truncate,
    ),
    Mutant(
        "any-log-wins",
        "votes go to logs that are up to date",
        RaftLog,
        "is_up_to_date",
        _always,
    ),
    Mutant(
        "vote-twice",
        "one vote a term",
        candidate,
        "answer_request",
        _vote_for_anybody,
    ),
    Mutant(
        "forget-the-vote",
        "the vote is on the disk",
        RaftLogStore,
        "save_hard_state",
        _forget_the_vote,
    ),
    Mutant(
        "promise-before-the-sync",
        "promises wait for the sync",
        Driver,
        "_carry_out",
        _promise_before_the_sync,
    ),
    Mutant(
        "read-unconfirmed",
        "a read waits until a majority has confirmed the leader",
        leader,
        "_confirm_reads",
        _read_at_once,
    ),
    Mutant(
        "established-at-once",
        "reads and changes of members wait for an entry of the leader's own term",
        leader,
        "lead",
        _lead_established,
    ),
    Mutant(
        "read-before-it-is-applied",
        "a read waits until the state has reached its index",
        Group,
        "_answer_reads",
        _answer_before_it_is_applied,
    ),
    Mutant(
        "commit-by-half-of-joint",
        "a joint commit needs both halves",
        leader,
        "reached",
        _reached_by_voters_alone,
    ),
    Mutant(
        "elected-by-half-of-joint",
        "a joint election needs both halves",
        candidate,
        "vote_result",
        _elected_by_voters_alone,
    ),
    Mutant(
        "learners-count",
        "learners do not count",
        leader,
        "reached",
        _reached_by_learners_too,
    ),
    Mutant(
        "change-before-the-last-one",
        "one change of members at a time",
        membership,
        "plan",
        _plan_whatever_is_under_way,
    ),
    Mutant(
        "leave-at-once",
        "a joint configuration is left when it is committed",
        membership,
        "complete",
        _complete_at_once,
    ),
    Mutant(
        "install-what-is-older",
        "a snapshot older than the state is ignored",
        follower,
        "on_install_snapshot",
        _install_whatever_comes,
    ),
    Mutant(
        "heartbeat-commits-all",
        "a heartbeat commits what the follower is known to have",
        leader,
        "_send_heartbeats",
        _heartbeat_commits_all,
    ),
    Mutant(
        "keep-truncated-configurations",
        "a configuration that is truncated holds no longer",
        RaftLog,
        "append",
        _keep_truncated_configurations,
    ),
    Mutant(
        "cut-before-the-flush",
        "the log is cut after the state is synced",
        Driver,
        "_cut_log",
        _cut_before_the_flush,
    ),
    Mutant(
        "stage-without-a-sync",
        "a snapshot is synced before the core hears of it",
        Snapshots,
        "_stage",
        _stage_without_a_sync,
    ),
    Mutant(
        "refuse-what-is-in-doubt",
        "a write that may be committed yet is not called refused",
        Group,
        "_abandon",
        _refuse_what_is_in_doubt,
    ),
    Mutant(
        "apply-a-retry",
        "a write that comes again is not run again",
        Clients,
        "recall",
        without_guards.recall_nothing,
    ),
    Mutant(
        "run-what-was-acknowledged",
        "a late copy of a write is refused for ever",
        Clients,
        "recall",
        without_guards.run_what_was_acknowledged,
    ),
    Mutant(
        "install-without-clients",
        "a snapshot brings what clients were answered",
        Machine,
        "install",
        without_guards.install_without_clients,
    ),
    Mutant(
        "sweep-what-the-proposer-has-seen",
        "what has expired is decided by the log time of the sweep",
        Execution,
        "_sweep",
        without_guards.sweep_what_the_proposer_has_seen,
    ),
    Mutant(
        "keep-the-first-expiry",
        "a record expires when it was last said to",
        commit,
        "_schedule",
        without_guards.keep_the_first_expiry,
    ),
    Mutant(
        "lead-by-the-wall-clock",
        "who takes over goes on with the time of the leader before",
        LogClock,
        "now_ms",
        without_guards.lead_by_the_wall_clock,
    ),
    Mutant(
        "answer-before-the-time",
        "a read that finds something expired waits for the time in the log",
        Machine,
        "has_expiring",
        without_guards.never,
    ),
    Mutant(
        "hide-by-the-own-clock",
        "only log time hides a record",
        Dispatcher,
        "_get",
        without_guards.hide_by_the_own_clock,
    ),
    Mutant(
        "compact-one-more",
        "the oldest revision can be read, and what follows it watched",
        Execution,
        "_compact",
        without_guards.compact_one_more,
    ),
    Mutant(
        "skip-what-a-snapshot-brings",
        "watches are led through what a snapshot has brought",
        WatchHub,
        "_skip",
        without_guards.skip_nothing,
    ),
    Mutant(
        "tell-in-pieces",
        "a part of a revision is told as such",
        hub,
        "tell",
        without_guards.tell_in_pieces,
    ),
    Mutant(
        "catch-up-from-the-newest",
        "a watch goes on where it was on another node",
        WatchHub,
        "_admit",
        without_guards.catch_up_from_the_newest,
    ),
    Mutant(
        "drop-what-has-no-room",
        "a watch that may note no more is led through history",
        Watch,
        "note",
        without_guards.note_but_the_last,
    ),
)


def seeds_until_found(mutant: Mutant, seeds: Sequence[int], *, events: int) -> Violation | None:
    """How the first run fails in which the guard is missed; None if it is in none."""
    with mutant.applied():
        for seed in seeds:
            try:
                Simulation(Plan(seed, events)).run()
            except Violation as violation:
                if _MISFIT.search(violation.what):
                    raise AssertionError(f"{mutant.name} does not fit: {violation}") from violation
                return violation
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="of mutants; all if none is given")
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="at most, for each")
    parser.add_argument("--events", type=int, default=5000)
    options = parser.parse_args(arguments)
    logging.getLogger("kvorum").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    survivors = 0
    for mutant in MUTANTS:
        if options.names and mutant.name not in options.names:
            continue
        began = time.monotonic()
        found = seeds_until_found(mutant, range(options.seeds), events=options.events)
        seconds = time.monotonic() - began
        survivors += found is None
        how = "SURVIVES" if found is None else f"{found.plan.seed + 1:5} seeds  {_line(found.what)}"
        print(f"{mutant.name:32} {seconds:5.0f} s  {how}", flush=True)
    return 1 if survivors else 0


def _line(text: str) -> str:
    return " ".join(text.split())[:110]


if __name__ == "__main__":
    sys.exit(main())
