"""Records as the engine holds them: a serialised Record without its key, under its key.

The key is left out on disk because the storage key says it, and put back in
whatever leaves the machine. A large value is left out, too, and lies in VALUE under the key
and the revision of its write: the record moves to history without it, and it goes when
history forgets the record. Whoever needs the value of a record that was read completes it.
"""

from google.protobuf.message import DecodeError

from kvorum.errors import StorageError
from kvorum_node.machine.tables import Table
from kvorum_node.storage import layout
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


def complete(record: Record, key: bytes, values: Table) -> Record:
    """Fetch the value, if it lies by itself. Returns the record. Raises StorageError."""
    if record.value_apart:
        record.value = value_apart(record, key, values)
        record.ClearField("value_apart")
    return record


def value_apart(record: Record, key: bytes, values: Table) -> bytes:
    """The value of a record, which lies by itself. Raises StorageError."""
    value = values.get(layout.version_key(key, record.revision))
    if value is None:
        raise StorageError(
            f"the value of {key[:48]!r} at revision {record.revision} is not there: the disk"
            " has lost it; replace this node"
        )
    return value


def keep(record: Record, key: bytes, values: Table) -> bytes:
    """What is to be stored under the key; a large value is put where it lies by itself."""
    if len(record.value) < layout.MIN_APART_BYTES:
        return record.SerializeToString()
    values.put(layout.version_key(key, record.revision), record.value)
    kept = without_value(record)
    kept.metadata, kept.value_apart = record.metadata, True
    return kept.SerializeToString()


def forget(stored: bytes, key: bytes, values: Table) -> None:
    """The record is stored no more: remove its value, if it lies by itself."""
    record = Record()
    load(record, key, stored)
    if record.value_apart:
        values.delete(layout.version_key(key, record.revision))


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
