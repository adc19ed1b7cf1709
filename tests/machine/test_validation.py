"""Every limit: at it, one above, and at zero. Every refusal says what and where."""

from collections.abc import Callable
from typing import Any

import pytest

from kvorum import limits
from kvorum.errors import InvalidArgument, LimitExceeded, NamespaceNotFound
from kvorum_node.validation import (
    validate_get,
    validate_key,
    validate_list,
    validate_namespace,
    validate_transaction,
    validate_value,
)
from kvorumpb.v1.command_pb2 import Check, KeyRange, Operation, Transaction
from kvorumpb.v1.kv_pb2 import Consistency, GetRequest, IndexSelection, ListRequest
from tests.support.commands import add, at_revision, delete, exists, get, put, transaction

LONGEST_KEY = b"k" * limits.MAX_KEY_BYTES
LARGEST_VALUE = bytes(limits.MAX_VALUE_BYTES)

EVERY_USE_OF_A_KEY: dict[str, Callable[[bytes], Transaction]] = {
    "get": lambda key: transaction(get(key)),
    "put": lambda key: transaction(put(key)),
    "delete": lambda key: transaction(delete(key)),
    "add": lambda key: transaction(add(key)),
    "otherwise": lambda key: transaction(put(b"a"), otherwise=[put(key)]),
    "check of revision": lambda key: transaction(checks=[at_revision(key, 1)]),
    "check of existence": lambda key: transaction(checks=[exists(key)]),
    "second operation": lambda key: transaction(put(b"a"), get(key)),
}


def _assert_limit(raised: pytest.ExceptionInfo[LimitExceeded], limit: str, actual: int) -> None:
    maximum = getattr(limits, limit)
    assert raised.value.metadata == {
        "limit": limit,
        "maximum": str(maximum),
        "actual": str(actual),
    }
    assert f"{maximum:,}" in raised.value.message
    assert not raised.value.retryable


@pytest.mark.parametrize("name", ["", "default"])
def test_the_default_namespace_has_two_names(name: str) -> None:
    validate_namespace(name)


@pytest.mark.parametrize("name", ["other", "Default", " ", "default\0", "x" * 10_000])
def test_there_is_no_other_namespace(name: str) -> None:
    with pytest.raises(NamespaceNotFound, match="this version serves 'default' alone") as raised:
        validate_namespace(name)
    assert raised.value.metadata == {"namespace": name[:48]}
    assert len(raised.value.message) < 200


@pytest.mark.parametrize("key", [b"k", b"\0", b"\xff", LONGEST_KEY])
def test_a_key_within_its_limit(key: bytes) -> None:
    validate_key(key)


def test_a_key_above_its_limit() -> None:
    with pytest.raises(LimitExceeded, match="shorten it, or use a hash of it") as raised:
        validate_key(LONGEST_KEY + b"k")
    _assert_limit(raised, "MAX_KEY_BYTES", limits.MAX_KEY_BYTES + 1)
    assert f"'{'k' * 48}'…" in raised.value.message
    assert len(raised.value.message) < 250


def test_an_empty_key() -> None:
    with pytest.raises(InvalidArgument, match="a key is empty") as raised:
        validate_key(b"")
    assert not isinstance(raised.value, LimitExceeded)


@pytest.mark.parametrize("value", [b"", LARGEST_VALUE], ids=["empty", "largest"])
def test_a_value_within_its_limit(value: bytes) -> None:
    validate_value(value, key=b"a")


def test_a_value_above_its_limit_names_its_key() -> None:
    with pytest.raises(LimitExceeded, match=r"of 'photo:é\\udcff\\n' has .* split it") as raised:
        validate_value(
            LARGEST_VALUE + b"\0", key="photo:é\udcff\n".encode(errors="surrogateescape")
        )
    _assert_limit(raised, "MAX_VALUE_BYTES", limits.MAX_VALUE_BYTES + 1)


@pytest.mark.parametrize("use", EVERY_USE_OF_A_KEY.values(), ids=EVERY_USE_OF_A_KEY.keys())
def test_every_key_of_a_transaction_is_checked(use: Callable[[bytes], Transaction]) -> None:
    validate_transaction(use(LONGEST_KEY))
    with pytest.raises(LimitExceeded) as raised:
        validate_transaction(use(LONGEST_KEY + b"k"))
    _assert_limit(raised, "MAX_KEY_BYTES", limits.MAX_KEY_BYTES + 1)
    with pytest.raises(InvalidArgument, match="a key is empty"):
        validate_transaction(use(b""))


@pytest.mark.parametrize("otherwise", [False, True])
def test_every_value_of_a_transaction_is_checked(otherwise: bool) -> None:
    def use(value: bytes) -> Transaction:
        if otherwise:
            return transaction(get(b"a"), otherwise=[put(b"a", value)])
        return transaction(put(b"a", value))

    validate_transaction(use(LARGEST_VALUE))
    validate_transaction(use(b""))
    with pytest.raises(LimitExceeded, match="value of 'a'") as raised:
        validate_transaction(use(LARGEST_VALUE + b"\0"))
    _assert_limit(raised, "MAX_VALUE_BYTES", limits.MAX_VALUE_BYTES + 1)


def test_the_largest_single_put_is_within_the_limit_of_a_transaction() -> None:
    """Why a transaction of one operation is not measured."""
    largest = transaction(put(LONGEST_KEY, LARGEST_VALUE))
    assert largest.ByteSize() < limits.MAX_TRANSACTION_BYTES
    validate_transaction(largest)


def test_an_empty_transaction() -> None:
    with pytest.raises(InvalidArgument, match="the transaction is empty: add an operation"):
        validate_transaction(Transaction())


@pytest.mark.parametrize(
    "only",
    [
        transaction(checks=[exists(b"a")]),
        transaction(get(b"a")),
        transaction(otherwise=[put(b"a")]),
    ],
    ids=["checks", "operations", "otherwise"],
)
def test_a_transaction_of_one_part_is_not_empty(only: Transaction) -> None:
    validate_transaction(only)


def test_checks_and_both_branches_count_together() -> None:
    third = limits.MAX_TRANSACTION_OPERATIONS // 3

    def of(count: int) -> Transaction:
        return transaction(
            *(put(b"%d" % number) for number in range(third)),
            checks=[exists(b"a")] * third,
            otherwise=[get(b"a")] * (count - 2 * third),
        )

    validate_transaction(of(limits.MAX_TRANSACTION_OPERATIONS))
    above = limits.MAX_TRANSACTION_OPERATIONS + 1
    with pytest.raises(LimitExceeded, match="split it into several transactions") as raised:
        validate_transaction(of(above))
    _assert_limit(raised, "MAX_TRANSACTION_OPERATIONS", above)


def test_the_bytes_of_a_transaction() -> None:
    def of(size: int) -> Transaction:
        half = limits.MAX_TRANSACTION_BYTES // 2
        filled = transaction(put(b"a", bytes(half)), put(b"b", bytes(half - 1000)))
        filled.operations[1].put.value = bytes(half - 1000 + size - filled.ByteSize())
        assert filled.ByteSize() == size
        return filled

    validate_transaction(of(limits.MAX_TRANSACTION_BYTES))
    above = limits.MAX_TRANSACTION_BYTES + 1
    with pytest.raises(LimitExceeded, match="split it into several transactions") as raised:
        validate_transaction(of(above))
    _assert_limit(raised, "MAX_TRANSACTION_BYTES", above)


@pytest.mark.parametrize(
    ("unset", "message"),
    [
        (transaction(put(b"a"), Operation()), r"operations\[1\] .* set get, put, delete, add"),
        (transaction(put(b"a"), otherwise=[Operation()]), r"otherwise\[0\]"),
        (transaction(checks=[exists(b"a"), Check(key=b"b")]), "check 1, of 'b', .* set revision"),
    ],
)
def test_what_is_of_no_kind(unset: Transaction, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        validate_transaction(unset)


@pytest.mark.parametrize("revision", [0, 1, 2**63 - 1])
def test_a_check_of_a_revision(revision: int) -> None:
    validate_transaction(transaction(checks=[at_revision(b"a", revision)]))


@pytest.mark.parametrize("revision", [-1, -(2**63)])
def test_a_check_of_a_negative_revision(revision: int) -> None:
    with pytest.raises(InvalidArgument, match=f"'a' at revision {revision}: .* 0 for absent"):
        validate_transaction(transaction(checks=[at_revision(b"a", revision)]))


@pytest.mark.parametrize("first", [put(b"a"), add(b"a"), delete(b"a")])
@pytest.mark.parametrize("second", [put(b"a"), add(b"a"), delete(b"a")])
def test_two_writes_to_one_key_in_a_branch(first: Operation, second: Operation) -> None:
    with pytest.raises(InvalidArgument, match=r"operations\[2\] .* writes 'a' a second time"):
        validate_transaction(transaction(first, get(b"a"), second))
    with pytest.raises(InvalidArgument, match=r"otherwise\[1\] .* writes 'a' a second time"):
        validate_transaction(transaction(put(b"b"), otherwise=[first, second]))


def test_a_key_may_be_read_often_and_written_in_each_branch() -> None:
    validate_transaction(
        transaction(
            get(b"a"),
            put(b"a"),
            get(b"a"),
            put(b"b"),
            checks=[exists(b"a"), at_revision(b"a", 1)],
            otherwise=[put(b"a"), get(b"a")],
        )
    )


def _range(start: bytes, end: bytes) -> ListRequest:
    return ListRequest(range=KeyRange(start=start, end=end))


@pytest.mark.parametrize(
    "request_",
    [
        ListRequest(),
        ListRequest(prefix=b""),
        ListRequest(prefix=LONGEST_KEY),
        _range(b"", b""),
        _range(b"b", b""),
        _range(b"", b"a"),
        _range(b"a", b"b"),
        _range(b"a", b"a"),
        _range(LONGEST_KEY, LONGEST_KEY),
        ListRequest(page_size=0),
        ListRequest(page_size=1),
        ListRequest(page_size=limits.MAX_PAGE_RECORDS),
    ],
)
def test_a_list_within_its_limits(request_: ListRequest) -> None:
    validate_list(request_)


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (ListRequest(prefix=LONGEST_KEY + b"k"), "the prefix"),
        (_range(LONGEST_KEY + b"k", b""), "the start of the range"),
        (_range(b"a", LONGEST_KEY + b"k"), "the end of the range"),
    ],
)
def test_a_bound_of_a_list_is_at_most_a_key(request_: ListRequest, what: str) -> None:
    with pytest.raises(LimitExceeded, match=what) as raised:
        validate_list(request_)
    _assert_limit(raised, "MAX_KEY_BYTES", limits.MAX_KEY_BYTES + 1)


def test_a_range_that_ends_before_its_start() -> None:
    with pytest.raises(InvalidArgument, match="ends at 'a', before its start 'b': swap them"):
        validate_list(_range(b"b", b"a"))


@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_a_negative_page_size(size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"page size is {size}: give 1 to 10,000") as raised:
        validate_list(ListRequest(page_size=size))
    assert not isinstance(raised.value, LimitExceeded)


@pytest.mark.parametrize("size", [limits.MAX_PAGE_RECORDS + 1, 2**31 - 1])
def test_a_page_size_above_its_limit(size: int) -> None:
    with pytest.raises(LimitExceeded, match=r"follow the cursor \(page_token\)") as raised:
        validate_list(ListRequest(page_size=size))
    _assert_limit(raised, "MAX_PAGE_RECORDS", size)


def _index(**values: Any) -> ListRequest:
    return ListRequest(index=IndexSelection(index="i", **values))


LONGEST_VALUE = b"v" * limits.MAX_INDEX_VALUE_BYTES


@pytest.mark.parametrize(
    "request_",
    [
        _index(),
        _index(value=b""),
        _index(value=LONGEST_VALUE),
        _index(prefix=LONGEST_VALUE),
        _index(range=KeyRange(start=LONGEST_VALUE, end=LONGEST_VALUE)),
        _index(range=KeyRange(start=b"b")),
        ListRequest(index=IndexSelection(index="i" * limits.MAX_INDEX_NAME_BYTES)),
    ],
)
def test_a_list_by_index_within_its_limits(request_: ListRequest) -> None:
    validate_list(request_)


@pytest.mark.parametrize(
    "request_",
    [
        _index(value=LONGEST_VALUE + b"v"),
        _index(prefix=LONGEST_VALUE + b"v"),
        _index(range=KeyRange(start=LONGEST_VALUE + b"v")),
        _index(range=KeyRange(end=LONGEST_VALUE + b"v")),
    ],
)
def test_a_value_of_an_index_above_its_limit(request_: ListRequest) -> None:
    with pytest.raises(LimitExceeded, match="the index value 'vvvv") as raised:
        validate_list(request_)
    _assert_limit(raised, "MAX_INDEX_VALUE_BYTES", limits.MAX_INDEX_VALUE_BYTES + 1)


def test_the_name_of_an_index() -> None:
    with pytest.raises(InvalidArgument, match="the name of an index is empty"):
        validate_list(ListRequest(index=IndexSelection(value=b"v")))
    for name in ("i" * (limits.MAX_INDEX_NAME_BYTES + 1), "é" * 129):
        with pytest.raises(LimitExceeded, match="shorten it") as raised:
            validate_list(ListRequest(index=IndexSelection(index=name)))
        _assert_limit(raised, "MAX_INDEX_NAME_BYTES", len(name.encode()))


def test_a_range_of_values_that_ends_before_its_start() -> None:
    with pytest.raises(InvalidArgument, match="values ends at 'a', before its start 'b': swap"):
        validate_list(_index(range=KeyRange(start=b"b", end=b"a")))


@pytest.mark.parametrize("mode", [{"revision": 1}, {"snapshot": True}])
def test_an_index_has_no_past(mode: Any) -> None:
    with pytest.raises(InvalidArgument, match="by index reads the newest state only"):
        validate_list(ListRequest(index=IndexSelection(index="i"), **mode))


def _validate(request: GetRequest | ListRequest) -> None:
    if isinstance(request, GetRequest):
        request.key = b"k"
        validate_get(request)
    else:
        validate_list(request)


@pytest.mark.parametrize("kind", [GetRequest, ListRequest])
def test_how_new_a_read_is_to_be(kind: type[GetRequest] | type[ListRequest]) -> None:
    for revision in (0, 1, 2**63 - 1):
        _validate(kind(revision=revision))
    with pytest.raises(InvalidArgument, match=r"the revision is -1: .* 0 for the newest"):
        _validate(kind(revision=-1))
    for consistency in Consistency.values():
        _validate(kind(consistency=consistency))
    _validate(kind(consistency=Consistency.STALE, max_staleness_ms=1))
    for other in (Consistency.LINEARIZABLE, Consistency.LEASE):
        with pytest.raises(InvalidArgument, match="only a read with the consistency STALE"):
            _validate(kind(consistency=other, max_staleness_ms=1))
    with pytest.raises(InvalidArgument, match="the consistency is 4, which this node does not"):
        _validate(kind.FromString(kind(consistency=4).SerializeToString()))  # type: ignore[arg-type]  # what is tested
    with pytest.raises(InvalidArgument, match="the staleness is -1 ms"):
        _validate(kind(max_staleness_ms=-1))


@pytest.mark.parametrize("key", [b"", LONGEST_KEY + b"k"])
def test_a_get_has_a_key(key: bytes) -> None:
    validate_get(GetRequest(key=LONGEST_KEY))
    with pytest.raises(InvalidArgument):
        validate_get(GetRequest(key=key))
