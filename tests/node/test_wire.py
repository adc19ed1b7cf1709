"""Raft messages on the wire: every kind, every field, there and back."""

from dataclasses import fields

import pytest

from kvorum_node import wire
from kvorum_node.raft import messages
from kvorum_node.raft.configuration import Configuration
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
from kvorum_node.raft.types import Entry, EntryKind, GroupId, Index, NodeId, Position, Term
from kvorum_node.snapshots import Chunk, Header
from kvorum_node.wire import NotUnderstood
from kvorumpb.v1 import raft_pb2

GROUP = GroupId(7)
SENDER, RECIPIENT, TERM = NodeId(2), NodeId(3), Term(4)
HIGHEST = 2**64 - 1
MEMBERS = Configuration.of({SENDER: "h2:7100", RECIPIENT: "h3:7100"})
KINDS = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type)
    and issubclass(kind, Message)
    and kind not in (Message, InstallSnapshot)  # which is not for the wire
]


def request_vote(*, pre: bool = False, transfer: bool = False) -> RequestVote:
    return RequestVote(
        sender=SENDER,
        recipient=RECIPIENT,
        term=TERM,
        last=Position(Index(11), Term(3)),
        pre=pre,
        transfer=transfer,
    )


def append_entries(*entries: Entry) -> AppendEntries:
    return AppendEntries(
        sender=SENDER,
        recipient=RECIPIENT,
        term=TERM,
        previous=Position(Index(11), Term(3)),
        entries=entries,
        commit=Index(10),
    )


MESSAGES: list[Message] = [
    request_vote(),
    request_vote(pre=True),
    request_vote(transfer=True),
    RequestVoteReply(sender=SENDER, recipient=RECIPIENT, term=TERM, granted=True),
    RequestVoteReply(sender=SENDER, recipient=RECIPIENT, term=TERM, granted=False, pre=True),
    append_entries(),
    append_entries(
        Entry(Index(12), Term(3), EntryKind.COMMANDS, b"\x00data\xff"),
        Entry(Index(13), Term(4)),
        Entry(Index(14), Term(4), EntryKind.COMMANDS),
        Entry(Index(15), Term(4), EntryKind.CONFIGURATION, MEMBERS.encode()),
    ),
    AppendEntriesReply(sender=SENDER, recipient=RECIPIENT, term=TERM, index=Index(14)),
    AppendEntriesReply(
        sender=SENDER,
        recipient=RECIPIENT,
        term=TERM,
        index=Index(14),
        hint=Position(Index(9), Term(2)),
    ),
    # "There is nothing that could match" is a rejection, and must not turn into an acceptance.
    AppendEntriesReply(
        sender=SENDER,
        recipient=RECIPIENT,
        term=TERM,
        index=Index(14),
        hint=Position(Index(0), Term(0)),
    ),
    Heartbeat(
        sender=SENDER,
        recipient=RECIPIENT,
        term=TERM,
        commit=Index(9),
        read_round=8,
        committed=Index(12),
        echo=2**40,
    ),
    HeartbeatReply(sender=SENDER, recipient=RECIPIENT, term=TERM, read_round=8, clock=2**40),
    TimeoutNow(sender=SENDER, recipient=RECIPIENT, term=TERM),
]


def sent(message: Message) -> raft_pb2.RaftMessage:
    return raft_pb2.RaftMessage.FromString(wire.encode(GROUP, message).SerializeToString())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_a_message_survives_the_round_trip(message: Message) -> None:
    arrived = sent(message)
    assert arrived.group == GROUP
    assert wire.decode(arrived) == message


def test_every_kind_of_message_is_among_them() -> None:
    assert {type(one) for one in MESSAGES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_every_field_has_had_another_value_than_its_default(kind: type[Message]) -> None:
    """A field that is never set would survive a round trip that forgets it."""
    for field in fields(kind):
        values = {getattr(one, field.name) for one in MESSAGES if type(one) is kind}
        assert any(value for value in values), f"{kind.__name__}.{field.name}"


def test_every_kind_of_entry_is_among_them() -> None:
    appends = [one for one in MESSAGES if isinstance(one, AppendEntries)]
    assert {entry.kind for one in appends for entry in one.entries} == set(EntryKind)


def test_a_snapshots_header_and_chunks_survive_the_round_trip() -> None:
    header = Header(GROUP, SENDER, RECIPIENT, TERM, Position(Index(9), Term(3)), MEMBERS)
    hello = raft_pb2.PeerHello(cluster_id="c", sender=SENDER, recipient=RECIPIENT, address="h2:1")
    arrived = raft_pb2.SnapshotMessage.FromString(
        wire.encode_header(header, hello).SerializeToString()
    )
    assert arrived.header.hello == hello
    assert wire.decode_header(arrived.header) == header
    for chunk in (Chunk(b"\x00data\xff", 2**32 - 1), Chunk(b"", 7, last=True)):
        message = wire.encode_chunk(chunk).SerializeToString()
        assert wire.decode_chunk(raft_pb2.SnapshotMessage.FromString(message).chunk) == chunk


def test_the_message_that_a_node_makes_for_itself_has_no_wire_form() -> None:
    install = InstallSnapshot(
        sender=SENDER,
        recipient=RECIPIENT,
        term=TERM,
        last=Position(Index(9), Term(3)),
        configuration=Configuration(),
    )
    with pytest.raises(AssertionError, match="InstallSnapshot"):
        wire.encode(GROUP, install)


def test_the_largest_numbers_fit() -> None:
    message = append_entries(Entry(Index(HIGHEST), Term(HIGHEST)))
    message = AppendEntries(
        sender=NodeId(HIGHEST),
        recipient=NodeId(HIGHEST),
        term=Term(HIGHEST),
        previous=Position(Index(HIGHEST - 1), Term(HIGHEST)),
        entries=message.entries,
        commit=Index(HIGHEST),
    )
    assert wire.decode(sent(message)) == message


def test_a_kind_that_a_newer_node_sends_is_nothing() -> None:
    known = sent(MESSAGES[0])
    known.ClearField("request_vote")
    unknown = known.SerializeToString() + b"\xaa\x06\x02\x08\x01"  # field 101, a message
    assert wire.decode(raft_pb2.RaftMessage.FromString(unknown)) is None


def test_an_entry_of_an_unknown_kind_is_refused_and_not_taken_for_another() -> None:
    arrived = sent(append_entries(Entry(Index(12), Term(3))))
    arrived.append_entries.entries[0].kind = raft_pb2.LogEntry.Kind.ValueType(9)
    with pytest.raises(NotUnderstood, match="entry 12@3 is of the unknown kind 9"):
        wire.decode(arrived)


# Field 15, a varint: of the configuration, and of a member.
LATER_FIELD = b"\x78\1"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        MEMBERS.encode() + LATER_FIELD,
        MEMBERS.encode() + b"\x0a\4\x08\4" + LATER_FIELD,
    ],
    ids=["garbage", "a later field", "a later field of a member"],
)
def test_a_configuration_that_is_none_or_a_later_one_is_not_passed_on(data: bytes) -> None:
    entry = Entry(Index(12), Term(3), EntryKind.CONFIGURATION, data)
    with pytest.raises(NotUnderstood, match="entry 12@3 is no configuration"):
        wire.decode(sent(append_entries(entry)))
    with pytest.raises(NotUnderstood, match="the snapshot at 9@3 has no configuration"):
        wire.decode_header(raft_pb2.SnapshotHeader(last_index=9, last_term=3, configuration=data))
