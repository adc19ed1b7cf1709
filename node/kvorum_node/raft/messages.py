"""What members of a group say to one another.

Rules: messages are frozen values; the core emits them and never waits for an
answer; any of them may be lost, repeated, delayed or reordered. Every message
carries the sender's term, with one exception: a pre-vote, and the grant of one,
carry the term that the candidate *would* stand in.
"""

from dataclasses import dataclass
from typing import Final

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import Entry, Index, NodeId, Position, Term

NOTHING: Final = Index(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    sender: NodeId
    recipient: NodeId
    term: Term


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestVote(Message):
    """A candidate asks for a vote (Raft, section 5.2).

    With `pre`, it asks whether it would get one (dissertation, section 9.6). With
    `transfer`, the leader itself has asked for the election.
    """

    last: Position
    pre: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestVoteReply(Message):
    granted: bool
    pre: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEntries(Message):
    """Entries that follow `previous`, and how far the leader has committed (section 5.3)."""

    previous: Position
    entries: tuple[Entry, ...]
    commit: Index


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendEntriesReply(Message):
    """Accepted: the logs match through `index`.

    Rejected: they do not match at `index`; `hint` is the last position of the
    follower's log that the leader's may still match.
    """

    index: Index
    hint: Position | None = None

    @property
    def rejected(self) -> bool:
        return self.hint is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallSnapshot(Message):
    """The state after the entry `last` has arrived, and is kept beside the recipient's own.

    Made by the recipient's host when it has received the whole of a snapshot (section 7):
    what travels is the host's affair. Answered like entries through `last`.
    """

    last: Position
    configuration: Configuration
    """The one at `last`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """The leader lives. `read_round` is its newest question whether it still leads."""

    commit: Index
    """Within what the recipient certainly has."""

    read_round: int = 0
    committed: Index = NOTHING
    """How far the leader has committed, whether the recipient has that or not."""

    echo: int = 0
    """The newest `clock` that the leader has heard from the recipient; 0 is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply(Message):
    read_round: int = 0
    clock: int = 0
    """The sender's, for its own use: see `freshness.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow(Message):
    """The leader wants the recipient to stand for election at once (dissertation, section 3.10)."""
