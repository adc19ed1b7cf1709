"""How golden scripts write what members are, say and store: in the notation of the project.

n1          a node                    3@2         a position: index 3, term 2
3@2=x       an entry with a command   3@2={...}   one with a configuration
~           nothing at all: an empty list
"""

from collections.abc import Iterable

from kvorum_node.raft.candidate import Candidate
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.core import Raft
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from kvorum_node.raft.types import Entry, EntryKind, Index, node_name


def entry(one: Entry) -> str:
    match one.kind:
        case EntryKind.NOOP:
            return str(one)
        case EntryKind.COMMANDS:
            return f"{one}={one.data.decode()}"
        case EntryKind.CONFIGURATION:
            return f"{one}={{{configuration(Configuration.decode(one.data))}}}"


def entries(several: Iterable[Entry]) -> str:
    return " ".join(map(entry, several)) or "~"


def configuration(one: Configuration) -> str:
    return str(one) if one.members else "no members"


def role(raft: Raft) -> str:
    if isinstance(raft.role, Leader):
        text = "leader"
    elif isinstance(raft.role, Candidate):
        text = "pre-candidate" if raft.role.pre else "candidate"
    elif raft.role.leader is None:
        text = "follower"
    else:
        text = f"follower of {node_name(raft.role.leader)}"
    return f"{node_name(raft.node)}: {text}, term {raft.term}"


def message(one: Message) -> str:
    """The message without its sender and its recipient."""
    match one:
        case RequestVote(last=last, pre=pre, transfer=transfer):
            what = f"last={last}" + " pre" * pre + " transfer" * transfer
        case RequestVoteReply(granted=granted, pre=pre):
            what = ("granted" if granted else "refused") + " pre" * pre
        case AppendEntries(previous=previous, entries=sent, commit=commit):
            what = f"after={previous} commit={commit} {entries(sent)}"
        case AppendEntriesReply(index=index, hint=None):
            what = f"match={index}"
        case AppendEntriesReply(index=index, hint=hint):
            what = f"no match={index} hint={hint}"
        case Heartbeat(commit=commit, read_round=number):
            what = f"commit={commit} round={number}"
        case HeartbeatReply(read_round=number):
            what = f"round={number}"
        case InstallSnapshot(last=last, configuration=members):
            what = f"last={last} {{{configuration(members)}}}"
        case TimeoutNow():
            what = ""
        case _:
            raise AssertionError(f"how is {one} written?")
    return f"{type(one).__name__} term={one.term} {what}".rstrip()


def log(raft: Raft) -> str:
    """All of the log; `|` follows what is committed."""
    start = Index(raft.log.first_index - 1)
    all_of_it = raft.log.entries(raft.log.first_index, 1 << 30)
    words = [f"(cut at {start}@{raft.log.term(start)})"] if start else []
    words += [entry(one) for one in all_of_it if one.index <= raft.log.committed]
    words += ["|", *(entry(one) for one in all_of_it if one.index > raft.log.committed)]
    return f"{node_name(raft.node)}: {' '.join(words)}"


def status(raft: Raft) -> list[str]:
    """Role, log and configuration, and what a leader knows of each other member."""
    log = f"last {raft.log.last}, committed {raft.log.committed}, applied {raft.log.applied}"
    lines = [f"{role(raft)}, {log}, {configuration(raft.configuration)}"]
    if isinstance(raft.role, Leader):
        lines += [
            f"    {node_name(member)} {progress.state.value} match={progress.match}"
            f" next={progress.next} in flight={len(progress.inflight)}"
            + " paused"
            * progress.paused
            for member, progress in raft.role.progress.items()
        ]
    return lines
