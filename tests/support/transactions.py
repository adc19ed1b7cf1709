"""Bodies of transactions for tests."""

from collections.abc import Awaitable, Callable

from kvorum import KV, Transaction


async def value_of(kv: KV | Transaction, key: str) -> object:
    entry = await kv.get(key)
    return None if entry is None else entry.value


async def increment(txn: Transaction) -> int:
    entry = await txn.get("n")
    value: int = 1 if entry is None else entry.value + 1
    txn.put("n", value)
    return value


class Counted:
    """A body, and how often it has run."""

    def __init__(self, body: Callable[[Transaction], Awaitable[object]]) -> None:
        self.runs = 0
        self._body = body

    async def __call__(self, txn: Transaction) -> object:
        self.runs += 1
        return await self._body(txn)
