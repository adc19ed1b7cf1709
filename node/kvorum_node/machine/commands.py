"""From an entry's data to commands, all of which this version knows.

Rule: an entry is understood as a whole or not at all. Nothing of it runs before every
field in it has been recognised, in both branches, so that a node stops at the same entry
whatever its state and whichever branch would have run. Whatever a newer version adds is a
field to this one: a kind of command, operation or check, or something in a put, which this
version would parse, keep, and not carry out.

Two things are no fields: a new value of an enum, and a choice that was left open, which
validation refuses. They stop the node where they would be carried out (UnknownInstruction).
Where they would not be, no version does anything. Either way the engine has nothing of the entry.
"""

from typing import Final

from google.protobuf.message import DecodeError

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.raft.types import Entry
from kvorum_node.unknown_fields import has_unknown_fields, is_all_known
from kvorumpb.v1.command_pb2 import CommandBatch

FORMAT: Final = 2
"""CommandBatch.format: the instruction set that this version writes."""

UNDERSTOOD: Final = (1, FORMAT)
"""Those that it reads."""


class UnknownCommand(StorageError):
    """A committed entry holds what this version cannot carry out; the node must stop."""

    reason = "UNKNOWN_COMMAND"


class UnknownInstruction(Exception):
    """What is to be carried out now is nothing that this version knows."""


def decode_batch(entry: Entry) -> CommandBatch:
    """The commands of an entry of kind COMMANDS. Raises UnknownCommand."""
    try:
        batch = CommandBatch.FromString(entry.data)
    except DecodeError as error:
        raise UnknownCommand(
            f"entry {entry} is not a batch of commands: its {len(entry.data):,} bytes cannot be "
            "decoded. The node stops, since it cannot skip what other nodes may have applied"
        ) from error
    if batch.format not in UNDERSTOOD:
        raise UnknownCommand(
            f"entry {entry} has format {batch.format}, and this version knows 1 to {FORMAT}. "
            "The node stops; run the version that the other nodes run"
        )
    if not _has_known_fields(batch, entry.data):
        raise UnknownCommand(
            f"a command of entry {entry} has a field that this version does not know. The node "
            "stops, since it cannot skip what other nodes may have carried out; run the version "
            "that they run"
        )
    return batch


def _has_known_fields(batch: CommandBatch, data: bytes) -> bool:
    """Whether the batch that was made of the data has every field of it; it may lose them."""
    if len(data) <= limits.MAX_BATCH_BYTES:  # to measure a large one is to copy it
        if is_all_known(batch, data):
            return True
        batch = CommandBatch.FromString(data)
    return not has_unknown_fields(batch)
