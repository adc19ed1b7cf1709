"""Snapshot files of machines, made without a node."""

import io
from hashlib import blake2b

from kvorum.snapshot_file import SnapshotFile, SnapshotWriter
from kvorum_node.machine import Machine
from kvorumpb.v1.cluster_pb2 import BackupHeader, BackupTrailer
from tests.support.snapshots import hash_of, snapshot_of


def header_of(machine: Machine, term: int = 1) -> BackupHeader:
    return BackupHeader(
        cluster_id="old",
        node="n2",
        version="0",
        index=machine.applied,
        term=term,
        revision=machine.revision,
        log_time_ms=machine.log_time_ms,
        taken_at_ms=1_700_000_000_000,
    )


def trailer_of(machine: Machine, content: bytes) -> BackupTrailer:
    held = hash_of(machine)
    return BackupTrailer(
        checksum=blake2b(content, digest_size=32).digest(),
        content_bytes=len(content),
        content_hash=held.digest,
        record_count=held.record_count,
    )


def written(
    header: BackupHeader, content: bytes, trailer: BackupTrailer, chunk_bytes: int = 200
) -> bytes:
    """The file, with content in chunks of this size."""
    sink = io.BytesIO()
    writer = SnapshotWriter(sink, header)
    for start in range(0, len(content), chunk_bytes):
        writer.chunk(content[start : start + chunk_bytes])
    writer.finish(trailer)
    return sink.getvalue()


def file_of(machine: Machine, chunk_bytes: int = 200) -> bytes:
    content = snapshot_of(machine)
    return written(header_of(machine), content, trailer_of(machine, content), chunk_bytes)


def opened(data: bytes) -> SnapshotFile:
    return SnapshotFile(io.BytesIO(data), "a.snap")
