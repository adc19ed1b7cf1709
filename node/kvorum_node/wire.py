"""Raft messages and snapshots, and their protobuf twins: the only place that knows both.

Rules: nothing is decided here, and everything survives the round trip. One message
has no wire form: InstallSnapshot is what the recipient's own node makes of a stream.
Nothing is passed on of which the core or the log could make nothing.
"""

from typing import assert_never

from google.protobuf.message import DecodeError

from kvorum_node.raft import messages as raft
from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, NodeId, Position, Term
from kvorum_node.snapshots import Chunk, Header
from kvorumpb.v1 import raft_pb2 as pb


class NotUnderstood(Exception):
    """Another version of kvorum has written this; the text says what it is."""


def encode(
    group: GroupId, message: raft.Message, into: pb.RaftMessage | None = None
) -> pb.RaftMessage:
    """The message's wire form, in an empty one if it is given: an entry may be large to copy."""
    wire = pb.RaftMessage() if into is None else into
    wire.group, wire.term = group, message.term
    wire.sender, wire.recipient = message.sender, message.recipient
    match message:
        case raft.RequestVote(last=last, pre=pre, transfer=transfer):
            wire.request_vote.last_index = last.index
            wire.request_vote.last_term = last.term
            wire.request_vote.pre = pre
            wire.request_vote.transfer = transfer
        case raft.RequestVoteReply(granted=granted, pre=pre):
            wire.request_vote_reply.granted = granted
            wire.request_vote_reply.pre = pre
        case raft.AppendEntries(previous=previous, entries=entries, commit=commit):
            wire.append_entries.previous_index = previous.index
            wire.append_entries.previous_term = previous.term
            wire.append_entries.commit = commit
            for entry in entries:
                wire.append_entries.entries.add(
                    term=entry.term, kind=pb.LogEntry.Kind.ValueType(entry.kind), data=entry.data
                )
        case raft.AppendEntriesReply(index=index, hint=hint):
            wire.append_entries_reply.index = index
            if hint is not None:
                wire.append_entries_reply.rejected = True
                wire.append_entries_reply.hint_index = hint.index
                wire.append_entries_reply.hint_term = hint.term
        case raft.Heartbeat(commit=commit, read_round=read_round, committed=committed, echo=echo):
            wire.heartbeat.commit = commit
            wire.heartbeat.read_round = read_round
            wire.heartbeat.committed = committed
            wire.heartbeat.echo = echo
        case raft.HeartbeatReply(read_round=read_round, clock=clock):
            wire.heartbeat_reply.read_round = read_round
            wire.heartbeat_reply.clock = clock
        case raft.TimeoutNow():
            wire.timeout_now.SetInParent()
        case _:
            raise AssertionError(f"no wire form for {message}")
    return wire


def decode(wire: pb.RaftMessage) -> raft.Message | None:
    """The message, or None if it is of a kind that this version does not know.

    Raises:
        NotUnderstood: it brings an entry that this version must not take for another.
    """
    sender, recipient, term = NodeId(wire.sender), NodeId(wire.recipient), Term(wire.term)
    body = wire.WhichOneof("body")
    match body:
        case "request_vote":
            vote = wire.request_vote
            return raft.RequestVote(
                sender=sender,
                recipient=recipient,
                term=term,
                last=Position(Index(vote.last_index), Term(vote.last_term)),
                pre=vote.pre,
                transfer=vote.transfer,
            )
        case "request_vote_reply":
            return raft.RequestVoteReply(
                sender=sender,
                recipient=recipient,
                term=term,
                granted=wire.request_vote_reply.granted,
                pre=wire.request_vote_reply.pre,
            )
        case "append_entries":
            return _decode_append_entries(wire)
        case "append_entries_reply":
            reply = wire.append_entries_reply
            hint = Position(Index(reply.hint_index), Term(reply.hint_term))
            return raft.AppendEntriesReply(
                sender=sender,
                recipient=recipient,
                term=term,
                index=Index(reply.index),
                hint=hint if reply.rejected else None,
            )
        case "heartbeat":
            return raft.Heartbeat(
                sender=sender,
                recipient=recipient,
                term=term,
                commit=Index(wire.heartbeat.commit),
                read_round=wire.heartbeat.read_round,
                committed=Index(wire.heartbeat.committed),
                echo=wire.heartbeat.echo,
            )
        case "heartbeat_reply":
            return raft.HeartbeatReply(
                sender=sender,
                recipient=recipient,
                term=term,
                read_round=wire.heartbeat_reply.read_round,
                clock=wire.heartbeat_reply.clock,
            )
        case "timeout_now":
            return raft.TimeoutNow(sender=sender, recipient=recipient, term=term)
        case None:
            return None
        case _:
            assert_never(body)


def _decode_append_entries(wire: pb.RaftMessage) -> raft.AppendEntries:
    append = wire.append_entries
    first = append.previous_index + 1
    return raft.AppendEntries(
        sender=NodeId(wire.sender),
        recipient=NodeId(wire.recipient),
        term=Term(wire.term),
        previous=Position(Index(append.previous_index), Term(append.previous_term)),
        entries=tuple(
            _decode_entry(Index(first + offset), entry)
            for offset, entry in enumerate(append.entries)
        ),
        commit=Index(append.commit),
    )


def _decode_entry(index: Index, wire: pb.LogEntry) -> Entry:
    position = Position(index, Term(wire.term))
    try:
        kind = EntryKind(wire.kind)
    except ValueError as error:
        raise NotUnderstood(f"entry {position} is of the unknown kind {wire.kind}") from error
    if kind is EntryKind.CONFIGURATION:
        try:
            Configuration.decode(wire.data)
        except DecodeError as error:
            raise NotUnderstood(
                f"entry {position} is no configuration that this version can read"
            ) from error
    return Entry(index, position.term, kind, wire.data)


def encode_header(header: Header, hello: pb.PeerHello) -> pb.SnapshotMessage:
    return pb.SnapshotMessage(
        header=pb.SnapshotHeader(
            hello=hello,
            group=header.group,
            term=header.term,
            last_index=header.last.index,
            last_term=header.last.term,
            configuration=header.configuration.encode(),
        )
    )


def decode_header(wire: pb.SnapshotHeader) -> Header:
    """Raises NotUnderstood if its configuration is none."""
    last = Position(Index(wire.last_index), Term(wire.last_term))
    try:
        configuration = Configuration.decode(wire.configuration)
    except DecodeError as error:
        raise NotUnderstood(
            f"the snapshot at {last} has no configuration that this version can read"
        ) from error
    return Header(
        group=GroupId(wire.group),
        sender=NodeId(wire.hello.sender),
        recipient=NodeId(wire.hello.recipient),
        term=Term(wire.term),
        last=last,
        configuration=configuration,
    )


def encode_chunk(chunk: Chunk) -> pb.SnapshotMessage:
    return pb.SnapshotMessage(
        chunk=pb.SnapshotChunk(data=chunk.data, checksum=chunk.checksum, last=chunk.last)
    )


def decode_chunk(wire: pb.SnapshotChunk) -> Chunk:
    return Chunk(wire.data, wire.checksum, last=wire.last)
