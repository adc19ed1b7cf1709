"""How many calls a store makes: what an operation costs is a number that can be asserted."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from kvorum import KV
from kvorumpb.v1.kv_pb2 import Call, Reply


class RoundTrips:
    """The calls of one store, in order, from the moment it was made or reset."""

    def __init__(self) -> None:
        self.requests: list[str | None] = []
        """Their kinds: get, put, delete, list, txn."""

    @property
    def count(self) -> int:
        return len(self.requests)

    def reset(self) -> None:
        self.requests.clear()


@contextmanager
def counting(kv: KV) -> Iterator[RoundTrips]:
    """Count the calls of a store."""
    trips, carry = RoundTrips(), kv._backend.call

    async def call(call: Call, *, timeout_seconds: float) -> Reply:
        trips.requests.append(call.WhichOneof("request"))
        return await carry(call, timeout_seconds=timeout_seconds)

    with patch.object(kv._backend, "call", call):
        yield trips
