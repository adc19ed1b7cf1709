"""What simulated clients ask: calls drawn at random, of every kind that there is.

Rules: keys are few, so that calls meet; every value that is put is unique, so that a write
is known by what it says; the counter of a rate limit is always asked with one setting, as
the model knows no other. A plain repertoire is what the search of history.py understands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from kvorumpb.v1.command_pb2 import (
    AddOperation,
    Check,
    DeleteOperation,
    DeleteRangeOperation,
    GetOperation,
    IndexEntry,
    KeyRange,
    ListOperation,
    Operation,
    PutOperation,
    RateLimit,
    RateLimitOperation,
    TouchOperation,
    Transaction,
)
from kvorumpb.v1.kv_pb2 import (
    Call,
    Consistency,
    DeleteRequest,
    GetRequest,
    IndexSelection,
    ListRequest,
    PutRequest,
    TxnRequest,
)

KEYS: Final = (b"a", b"b", b"c")
COUNTERS: Final = (b"m", b"n")
LEASES: Final = (b"x", b"y")
"""Keys that mostly expire."""
INDEX_VALUES: Final = (b"0", b"1", b"10")
RANGES: Final = (
    KeyRange(),
    KeyRange(start=b"a", end=b"c"),
    KeyRange(start=b"b"),
    KeyRange(start=b"x", end=b"y\0"),
)
TTL_TICKS: Final = (1, 4, 15, 40, 100)
APART_BYTES: Final = 25
"""A value of so many bytes lies by itself here; an integer never does."""


@dataclass(slots=True)
class Seen:
    """What a client may refer to."""

    revisions: dict[bytes, int]
    """Of each key, as it was last read."""
    revision: int = 0
    """Of the store, the newest one heard of."""
    oldest: int = 0
    """The oldest that can be read."""


class Repertoire:
    def __init__(self, random: Random, client: int, tick_ms: int, *, plain: bool) -> None:
        self._random = random
        self._client = client
        self._tick_ms = tick_ms
        self._plain = plain

    def read(self, call: int, seen: Seen) -> Call:
        random = self._random
        request = Call(id=call)
        if random.random() < 0.75:
            request.get.CopyFrom(GetRequest(key=self._any_key()))
        elif self._plain or random.random() < 0.3:
            request.list.CopyFrom(ListRequest(prefix=b""))
        else:
            request.list.CopyFrom(self._list())
        if self._plain:
            return request
        asked = request.get if request.HasField("get") else request.list
        if random.random() < 0.15 and not request.list.HasField("index"):
            asked.revision = self._past_revision(seen)
        elif random.random() < 0.1:
            asked.consistency = Consistency.STALE
        return request

    def write(self, call: int, seen: Seen) -> tuple[Call, Transaction]:
        """A call, and what it comes to in the log."""
        random = self._random
        request = Call(id=call)
        value = b"c%d-%d" % (self._client, call)
        if call % 5 == 0:
            value = value.ljust(APART_BYTES, b".")
        kind = random.random()
        if kind < 0.4:
            put = self._put(random.choice(self._keys()), value)
            request.put.CopyFrom(
                PutRequest(
                    key=put.key,
                    value=put.value,
                    ttl_ms=put.ttl_ms,
                    metadata=put.metadata,
                    index_entries=put.index_entries,
                )
            )
            return request, Transaction(operations=[Operation(put=put)])
        if kind < 0.5:
            key = random.choice(self._keys())
            request.delete.CopyFrom(DeleteRequest(key=key))
            return request, Transaction(operations=[Operation(delete=DeleteOperation(key=key))])
        if self._plain or kind < 0.7:
            transaction = self._plain_transaction(value, seen)
        else:
            transaction = self._rich_transaction(value, seen)
        request.txn.CopyFrom(TxnRequest(transaction=transaction))
        return request, transaction

    # Reads.

    def _past_revision(self, seen: Seen) -> int:
        random = self._random
        return max(
            1, random.choice((seen.revision - random.randrange(4), seen.oldest, seen.revision + 2))
        )

    def _list(self) -> ListRequest:
        random = self._random
        request = ListRequest(
            page_size=random.choice((0, 1, 2, 3)),
            reverse=random.random() < 0.3,
            keys_only=random.random() < 0.3,
            count=random.random() < 0.2,
        )
        if random.random() < 0.3:
            request.index.CopyFrom(self._index_selection())
            return request
        request.snapshot = random.random() < 0.5
        request.range.CopyFrom(random.choice(RANGES))
        return request

    def _index_selection(self) -> IndexSelection:
        random = self._random
        selection = IndexSelection(index=random.choice(("i", "u")))
        match random.randrange(4):
            case 0:
                selection.value = random.choice(INDEX_VALUES)
            case 1:
                selection.prefix = b"1"
            case 2:
                selection.range.CopyFrom(KeyRange(start=b"1", end=b"2"))
            case _:
                pass
        return selection

    # Writes.

    def _keys(self) -> Sequence[bytes]:
        return KEYS if self._plain else (*KEYS, *LEASES)

    def _any_key(self) -> bytes:
        return self._random.choice((*self._keys(), *COUNTERS))

    def _ttl_ms(self) -> int:
        return self._random.choice(TTL_TICKS) * self._tick_ms

    def _put(self, key: bytes, value: bytes) -> PutOperation:
        random = self._random
        put = PutOperation(key=key, value=value)
        if self._plain:
            return put
        if random.random() < (0.9 if key in LEASES else 0.15):
            put.ttl_ms = self._ttl_ms()
        if random.random() < 0.3:
            unique = random.random() < 0.5
            index = "u" if unique else "i"
            entry = IndexEntry(index=index, value=random.choice(INDEX_VALUES), unique=unique)
            put.index_entries.append(entry)
        if random.random() < 0.1:
            put.metadata = b"m"
        return put

    def _plain_transaction(self, value: bytes, seen: Seen) -> Transaction:
        random = self._random
        key = random.choice(KEYS)
        put = Operation(put=PutOperation(key=key, value=value))
        other = KEYS[(KEYS.index(key) + 1) % len(KEYS)]
        counter = random.choice(COUNTERS)
        get = Operation(get=GetOperation(key=other))
        add = Operation(add=AddOperation(key=counter, amount=random.choice((1, 1, -2, 2**62))))
        match random.randrange(6):
            case 0 | 1:  # compare and set
                check = Check(key=key, revision=seen.revisions.get(key, 0))
                return Transaction(checks=[check], operations=[put], otherwise=[get])
            case 2:
                return Transaction(operations=[get, put])
            case 3:
                return Transaction(operations=[add])
            case 4:
                return Transaction(operations=[put, add])
            case _:  # an add to a text fails, and undoes the put
                wrong = Operation(add=AddOperation(key=other, amount=1))
                check = Check(key=counter, exists=random.random() < 0.8)
                return Transaction(checks=[check], operations=[put, wrong], otherwise=[get])

    def _rich_transaction(self, value: bytes, seen: Seen) -> Transaction:
        """Up to three operations, each on a key of its own: no branch may write a key twice."""
        random = self._random
        keys = random.sample((*KEYS, *LEASES), 3)
        operations = [
            self._operation(key, b"%s.%d" % (value, number))
            for number, key in enumerate(keys[: random.choice((1, 1, 2, 3))])
        ]
        checks = [self._check(seen) for _ in range(random.choice((0, 0, 1, 2)))]
        otherwise = [self._operation(keys[0], value + b"!")] if checks else []
        if random.random() < 0.3:
            operations.append(self._add())
        if random.random() < 0.2:
            operations.append(self._rate_limit())
        return Transaction(checks=checks, operations=operations, otherwise=otherwise)

    def _operation(self, key: bytes, value: bytes) -> Operation:
        random = self._random
        match random.randrange(8):
            case 0 | 1 | 2:
                put = self._put(key, value)
                put.return_previous = random.random() < 0.5
                return Operation(put=put)
            case 3 | 4:
                ttl_ms = 0 if random.random() < 0.1 else self._ttl_ms()
                return Operation(touch=TouchOperation(key=key, ttl_ms=ttl_ms))
            case 5:
                previous = random.random() < 0.5
                return Operation(delete=DeleteOperation(key=key, return_previous=previous))
            case 6:
                listed = ListOperation(
                    range=random.choice(RANGES),
                    limit=random.choice((0, 1, 2)),
                    reverse=random.random() < 0.5,
                    keys_only=random.random() < 0.5,
                )
                return Operation(list=listed)
            case _:
                emptied = DeleteRangeOperation(
                    range=random.choice(RANGES[1:]), limit=random.choice((0, 1))
                )
                return Operation(delete_range=emptied)

    def _check(self, seen: Seen) -> Check:
        random = self._random
        key = self._any_key()
        check = Check(key=key)
        if random.random() < 0.3:
            check = Check(range=random.choice(RANGES))
        match random.randrange(5):
            case 0:
                check.revision = seen.revisions.get(key, 0)
            case 1:
                check.exists = random.random() < 0.6
            case 2:
                check.version = random.randrange(3)
            case _:
                check.unchanged_since = max(0, seen.revision - random.randrange(3))
        return check

    def _add(self) -> Operation:
        random = self._random
        add = AddOperation(key=random.choice(COUNTERS), amount=random.choice((1, 3, -5, 2**62)))
        if random.random() < 0.6:
            add.min, add.max = -2, 10
        add.saturate = random.random() < 0.5
        if random.random() < 0.2:
            add.ttl_ms = self._ttl_ms()
        return Operation(add=add)

    def _rate_limit(self) -> Operation:
        random = self._random
        limits = [
            RateLimit(
                key=key,
                algorithm=RateLimit.SLIDING_LOG,
                limit=3,
                window_ms=10 * self._tick_ms,
                cost=random.choice((0, 1, 1, 2)),
                reset=random.random() < 0.1,
            )
            for key in random.sample((b"r", b"s"), random.choice((1, 2)))
        ]
        return Operation(rate_limit=RateLimitOperation(limits=limits))
