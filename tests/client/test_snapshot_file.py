"""The file of a snapshot: nothing that was altered, cut off or added to passes for one."""

import io
import struct
from hashlib import blake2b
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.snapshot_file import (
    MAX_PAYLOAD_BYTES,
    SnapshotFile,
    SnapshotFileDamaged,
    SnapshotWriter,
)
from kvorumpb.v1.cluster_pb2 import BackupHeader, BackupTrailer

HEADER = BackupHeader(cluster_id="c", node="n2", index=812, term=4, revision=700)
CHUNKS = (b"first", b"second chunk", b"\0" * 40)
CONTENT = b"".join(CHUNKS)
TRAILER = BackupTrailer(
    checksum=blake2b(CONTENT, digest_size=32).digest(),
    content_bytes=len(CONTENT),
    content_hash=b"h" * 32,
    record_count=3,
)


def write(*chunks: bytes, trailer: BackupTrailer = TRAILER) -> bytes:
    sink = io.BytesIO()
    writer = SnapshotWriter(sink, HEADER)
    for chunk in chunks:
        writer.chunk(chunk)
    writer.finish(trailer)
    assert writer.bytes_written == len(sink.getvalue())
    return sink.getvalue()


FILE = write(*CHUNKS)


def frames(*frames: tuple[bytes, bytes], beginning: bytes = FILE[:20]) -> bytes:
    """A file of these tags and payloads, written out once more."""
    data, checksum = beginning, crc32(beginning)
    for tag, payload in frames:
        frame = tag + struct.pack(">I", len(payload)) + payload
        checksum = crc32(frame, checksum)
        data += frame + struct.pack(">I", checksum)
    return data


def read(data: bytes) -> tuple[BackupHeader, bytes, BackupTrailer]:
    file = SnapshotFile(io.BytesIO(data), "a.snap")
    content = b"".join(file.chunks())
    assert file.bytes_read == len(data)
    return file.header, content, file.trailer


def refused(data: bytes) -> str:
    """Why the file is none."""
    with pytest.raises(SnapshotFileDamaged) as raised:
        read(data)
    assert raised.value.message.startswith("a.snap ")
    assert "\n" not in raised.value.message
    return raised.value.message


def test_what_was_written_is_read() -> None:
    assert read(FILE) == (HEADER, CONTENT, TRAILER)


def test_the_format_is_what_its_page_says() -> None:
    """Another version may have to read it: it is not free to be improved."""
    drawn = frames(
        (b"H", HEADER.SerializeToString()),
        *((b"C", chunk) for chunk in CHUNKS),
        (b"T", TRAILER.SerializeToString()),
        beginning=b"kvorum snapshot\n" + struct.pack(">I", 1),
    )
    assert drawn == FILE


def test_a_source_that_gives_little_at_a_time_is_read_to_its_end() -> None:
    """As a pipe behind a buffer does."""
    file = SnapshotFile(io.BufferedReader(io.BytesIO(FILE), buffer_size=3), "stdin")
    assert b"".join(file.chunks()) == CONTENT


def test_wherever_it_breaks_off_it_is_refused() -> None:
    for size in range(len(FILE)):
        refused(FILE[:size])


def test_whatever_bit_is_altered_it_is_refused() -> None:
    for position in range(len(FILE)):
        for bit in range(8):
            altered = bytearray(FILE)
            altered[position] ^= 1 << bit
            refused(bytes(altered))


@given(
    st.integers(0, len(FILE) - 1),
    st.integers(0, len(FILE)),
    st.binary(max_size=30),
)
def test_whatever_is_replaced_removed_or_put_in_it_is_refused(
    start: int, size: int, inserted: bytes
) -> None:
    data = FILE[:start] + inserted + FILE[start + size :]
    if data != FILE:
        refused(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "a.snap is no snapshot of kvorum"),
        (b"kvorum snapshot", "a.snap is no snapshot of kvorum"),
        (b"PK\3\4" + FILE, "a.snap is no snapshot of kvorum"),
        (FILE[:18], "a.snap breaks off at byte 18"),
        (FILE[:-1], f"a.snap breaks off at byte {len(FILE) - 1}"),
        (FILE[:16] + struct.pack(">I", 2) + FILE[20:], "has format 2, and this version knows 1"),
        (FILE + b"\n", "the file goes on after its trailer"),
        (FILE[:20] + b"H\xff\xff\xff\xff" + FILE[25:], "a frame claims 4,294,967,295 bytes"),
        (FILE[:25] + b"?" + FILE[26:], "a checksum does not match"),
    ],
)
def test_it_is_said_what_is_wrong_and_where(data: bytes, why: str) -> None:
    assert why in refused(data)


CHUNK, HEAD, END = (
    (b"C", CONTENT),
    (b"H", HEADER.SerializeToString()),
    (b"T", TRAILER.SerializeToString()),
)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (frames(CHUNK, HEAD, END), "b'C' stands where the header has to be"),
        (frames(HEAD, HEAD, CHUNK, END), "b'H' stands where content or trailer"),
        (frames(HEAD, CHUNK, (b"?", b"")), "b'?' stands where content or trailer"),
        (frames(HEAD, END), "the content is not what the trailer says"),
        (frames(HEAD, CHUNK, CHUNK, END), "the content is not what the trailer says"),
        (frames((b"H", b"\xff"), CHUNK, END), "no BackupHeader that can be read"),
        (frames(HEAD, CHUNK, (b"T", b"\xff")), "no BackupTrailer that can be read"),
        (frames((b"H", b""), CHUNK, END), "does not say where in the log"),
    ],
)
def test_whole_frames_in_a_wrong_order_are_no_snapshot(data: bytes, why: str) -> None:
    assert why in refused(data)


def test_what_a_file_holds_is_not_known_before_its_end() -> None:
    file = SnapshotFile(io.BytesIO(FILE), "a.snap")
    next(file.chunks())
    with pytest.raises(AssertionError):
        file.trailer  # noqa: B018 - it is asked for


@pytest.mark.parametrize("chunks", [CHUNKS[:2], (*CHUNKS, b"more"), (b"First", *CHUNKS[1:])])
def test_what_does_not_arrive_as_it_was_sent_is_not_finished(chunks: tuple[bytes, ...]) -> None:
    with pytest.raises(SnapshotFileDamaged, match="damaged on its way"):
        write(*chunks)


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(AssertionError):
        write(bytes(MAX_PAYLOAD_BYTES + 1))
