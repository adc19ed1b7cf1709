"""Raft, section 5.1: terms are the clock by which members notice that they are out of date."""

import pytest

from kvorum_node.raft.messages import Message
from tests.support.raft_group import Host, is_candidate, is_follower, is_leader
from tests.support.raft_messages import (
    accepted,
    append,
    heartbeat,
    heartbeat_reply,
    rejected,
    request_vote,
    timeout_now,
    vote,
    whole,
)

NEWER = [
    pytest.param(append(7), 2, id="append"),
    pytest.param(heartbeat(7), 2, id="heartbeat"),
    pytest.param(request_vote(7, transfer=True), None, id="vote request"),
    pytest.param(vote(7, granted=False), None, id="vote refused"),
    pytest.param(vote(7, granted=False, pre=True), None, id="pre-vote refused"),
    pytest.param(accepted(7, 0), None, id="append reply"),
    pytest.param(heartbeat_reply(7), None, id="heartbeat reply"),
]


@pytest.mark.parametrize(("message", "leader"), NEWER)
def test_5_1_a_follower_takes_a_higher_term_from_a_message(
    message: Message, leader: int | None
) -> None:
    """Whoever sees a larger term than its own makes it its own."""
    host = Host(term=1)
    host.follow(leader=3, term=1)

    host.step(message)

    assert host.raft.term == 7
    assert is_follower(host.raft, leader)


@pytest.mark.parametrize(("message", "leader"), NEWER)
def test_5_1_a_candidate_takes_a_higher_term_and_steps_back(
    message: Message, leader: int | None
) -> None:
    """A candidate that learns of a newer term is a follower from then on."""
    host = Host()
    host.stand()
    assert is_candidate(host.raft)

    host.step(message)

    assert host.raft.term == 7
    assert is_follower(host.raft, leader)


@pytest.mark.parametrize(("message", "leader"), NEWER)
def test_5_1_a_leader_takes_a_higher_term_and_steps_down(
    message: Message, leader: int | None
) -> None:
    """A leader that learns of a newer term is a follower from then on."""
    host = Host()
    host.lead()
    assert is_leader(host.raft)

    host.step(message)

    assert host.raft.term == 7
    assert is_follower(host.raft, leader)


def test_5_1_a_higher_term_forgets_the_vote_of_the_older_one() -> None:
    """A vote belongs to one term: in a new one the member is free again, and both are kept."""
    host = Host(term=1, vote=3)

    host.step(heartbeat(2, sender=2))
    ready = host.cycle()

    assert ready.hard_state is not None
    assert (ready.hard_state.term, ready.hard_state.vote) == (2, None)
    assert ready.must_sync


@pytest.mark.parametrize(
    "stale",
    [
        append(3, "2@1", "3@3", commit=2),
        heartbeat(3, commit=2),
        request_vote(3, "9@3"),
        vote(3),
        accepted(3, 2),
        rejected(3, 2, "1@1"),
        heartbeat_reply(3, read_round=9),
        timeout_now(3),
    ],
    ids=lambda message: type(message).__name__,
)
@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_5_1_a_message_of_an_older_term_is_rejected(stale: Message, role: str) -> None:
    """A request with an older term is turned down: it changes nothing.

    The answer, where there is one, tells the sender the newer term, and nothing that
    it could take for success.
    """
    host = Host(log="1@1 2@1", term=4)
    if role == "follower":
        host.follow(leader=3, term=4)
    elif role == "candidate":
        host.stand()
    else:
        host.lead()
    term, log, before = host.raft.term, whole(host.raft.log), type(host.raft.role)

    said = host.ask(stale)

    assert type(host.raft.role) is before
    assert (host.raft.term, whole(host.raft.log), host.raft.log.committed) == (term, log, 0)
    assert said in ([], [heartbeat_reply(term, sender=1, to=2)])
