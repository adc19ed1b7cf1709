"""What type checkers see of chunked data. mypy and pyright are the test: `make check` runs them."""

from collections.abc import AsyncIterator
from typing import assert_type

from kvorum import KV
from kvorum.patterns import chunked


async def data_is_bytes_or_a_stream_of_them(kv: KV, parts: AsyncIterator[bytes]) -> None:
    assert_type(await chunked.put(kv, "a", b"data", ttl=60), int)
    assert_type(await chunked.put(kv, "a", parts, chunk_bytes=1, within=60), int)
    assert_type(await chunked.get(kv, "a"), bytes | None)
    assert_type(chunked.read(kv, "a"), AsyncIterator[bytes])
    assert_type(await chunked.head(kv, "a"), chunked.Head | None)
    assert_type(await chunked.delete(kv, "a", timeout=1), bool)
    await chunked.put(kv, "a", "text")  # type: ignore[arg-type]  # no bytes


def test_the_checked_functions_are_there() -> None:
    assert data_is_bytes_or_a_stream_of_them.__name__ in globals()
