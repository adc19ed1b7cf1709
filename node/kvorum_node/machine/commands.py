"""From an entry's data to commands, all of which this version knows.

Rule: an entry is understood as a whole or not at all. Nothing of it runs before
every command, check and operation in it, in both branches, has been recognised, with each
of their fields, so that a node stops at the same entry whatever its state and whichever
branch would have run.

Why fields as well: a newer version may add one to a put, which this version would parse,
keep, and not carry out. To look for such a field in each message costs as much as all else
here, so it is done for those entries only that have one: what is left when everything unknown
is taken away is as long as the entry was, or shorter. (An encoding may be longer for another
reason. Then it is looked at message by message, and so is a large entry, as to measure a
message is to encode it.)
"""

from typing import Final

from google.protobuf.message import DecodeError

from kvorum import limits
from kvorum.errors import StorageError
from kvorum_node.machine.rate_limits import ALGORITHMS
from kvorum_node.raft.types import Entry
from kvorum_node.unknown_fields import has_unknown_fields
from kvorumpb.v1.command_pb2 import CommandBatch, Operation, Transaction

FORMAT: Final = 2
"""CommandBatch.format: the instruction set that this version writes."""

UNDERSTOOD: Final = (1, FORMAT)
"""Those that it reads."""


class UnknownCommand(StorageError):
    """A committed entry holds what this version cannot carry out; the node must stop."""

    reason = "UNKNOWN_COMMAND"


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
    for position, command in enumerate(batch.commands):
        kind = command.WhichOneof("command")
        if kind is None or (kind == "transaction" and not _is_known(command.transaction)):
            raise UnknownCommand(
                f"command {position} of entry {entry} holds an instruction that this version "
                "does not know. The node stops; run the version that the other nodes run"
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
    if len(data) <= limits.MAX_BATCH_BYTES:
        batch.DiscardUnknownFields()
        if batch.ByteSize() == len(data):
            return True
        batch = CommandBatch.FromString(data)
    return not has_unknown_fields(batch)


def _is_known(transaction: Transaction) -> bool:
    for operation in transaction.operations:
        if not _is_known_operation(operation):
            return False
    # Absent from most transactions; asking is cheaper than iterating over nothing.
    if checks := transaction.checks:
        for check in checks:
            if check.WhichOneof("condition") is None:
                return False
    if otherwise := transaction.otherwise:
        for operation in otherwise:
            if not _is_known_operation(operation):
                return False
    return True


def _is_known_operation(operation: Operation) -> bool:
    kind = operation.WhichOneof("operation")
    if kind == "rate_limit":
        return all(limit.algorithm in ALGORITHMS for limit in operation.rate_limit.limits)
    return kind is not None
