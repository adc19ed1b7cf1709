"""Records as the engine holds them: a serialised Record without its key, under its key.

The key is left out on disk because the storage key says it, and put back in
whatever leaves the machine.
"""

from google.protobuf.message import DecodeError

from kvorum.errors import StorageError
from kvorumpb.v1.command_pb2 import Record


def load(record: Record, key: bytes, stored: bytes) -> None:
    """Fill the empty record from what the engine holds under the key.

    Raises StorageError if that is no record: the disk has altered it.
    """
    try:
        record.MergeFromString(stored)
    except DecodeError as error:
        raise StorageError(
            f"what is stored under the key {key[:48]!r} is not a record: the disk has altered it; "
            "replace this node"
        ) from error


def read(key: bytes, stored: bytes) -> Record:
    """The record that the engine holds under the key, with its key. Raises like `load`."""
    record = Record(key=key)
    load(record, key, stored)
    return record


def without_value(record: Record) -> Record:
    """A copy that lacks value and metadata, for whoever asks for keys only."""
    return Record(
        key=record.key,
        revision=record.revision,
        created_revision=record.created_revision,
        version=record.version,
        expire_time_ms=record.expire_time_ms,
        update_time_ms=record.update_time_ms,
        index_entries=record.index_entries,
    )
