"""What each operation of a transaction does to the records.

Rules: an operation works on the records as the ones before it have left them, and
either gives a result or undoes the whole transaction (OperationFailed). What it costs
is bounded, whatever is stored.
"""

from typing import Final, assert_never

from kvorum import limits
from kvorum_node.machine.checks import bounds, too_many_records
from kvorum_node.machine.commands import UnknownInstruction
from kvorum_node.machine.rate_limits import Taken, take
from kvorum_node.machine.working import OperationFailed, Working
from kvorumpb.v1.command_pb2 import (
    AddOperation,
    AddResult,
    DeleteOperation,
    DeleteRangeOperation,
    DeleteRangeResult,
    DeleteResult,
    GetResult,
    ListOperation,
    ListResult,
    Operation,
    OperationError,
    OperationResult,
    PutOperation,
    PutResult,
    RateLimitOperation,
    RateLimitResult,
    TouchOperation,
    TouchResult,
)

# Results that are always the same are made once; a message copies what it is given.
_PUT: Final = OperationResult(put=PutResult())
_DELETED: Final = OperationResult(delete=DeleteResult(deleted=True))
_NOT_DELETED: Final = OperationResult(delete=DeleteResult(deleted=False))
_ABSENT: Final = OperationResult(get=GetResult())
_TOUCHED: Final = OperationResult(touch=TouchResult(touched=True))
_NOT_TOUCHED: Final = OperationResult(touch=TouchResult(touched=False))

_LONGEST_INTEGER: Final = len(str(limits.MIN_INTEGER))


def operate(operation: Operation, working: Working) -> OperationResult:
    """Carry out one operation. Raises OperationFailed and UnknownInstruction."""
    match operation.WhichOneof("operation"):
        case "put":
            return _put(operation.put, working)
        case "get":
            return _get(operation.get.key, working)
        case "delete":
            return _delete(operation.delete, working)
        case "add":
            return _add(operation.add, working)
        case "list":
            return _list(operation.list, working)
        case "delete_range":
            return _delete_range(operation.delete_range, working)
        case "touch":
            return _touch(operation.touch, working)
        case "rate_limit":
            return _rate_limit(operation.rate_limit, working)
        case None:
            raise UnknownInstruction("an operation of no kind")
        case unexpected:
            assert_never(unexpected)


def _put(put: PutOperation, working: Working) -> OperationResult:
    key = put.key
    current = working.read(key)
    result = _PUT
    if put.return_previous and current is not None:
        result = OperationResult(put=PutResult(previous=working.found(key, current)))
    working.write(
        key,
        put.value,
        current=current,
        expire_time_ms=(
            working.expire_after(put.ttl_ms)
            if current is None or not put.keep_ttl
            else current.expire_time_ms
        ),
        metadata=put.metadata,
        index_entries=put.index_entries,
    )
    return result


def _get(key: bytes, working: Working) -> OperationResult:
    record = working.read(key)
    if record is None:
        return _ABSENT
    return OperationResult(get=GetResult(record=working.found(key, record)))


def _delete(delete: DeleteOperation, working: Working) -> OperationResult:
    key = delete.key
    current = working.read(key)
    if current is None:
        return _NOT_DELETED
    result = _DELETED
    if delete.return_previous:
        previous = working.found(key, current)
        result = OperationResult(delete=DeleteResult(deleted=True, previous=previous))
    working.remove(key)
    return result


def _add(add: AddOperation, working: Working) -> OperationResult:
    key = add.key
    current = working.read(key)
    before = 0 if current is None else _integer(current.value)
    value = _sum(add, before)
    result = OperationResult(add=AddResult(value=value, applied=value - before))
    if add.amount and value == before:
        return result  # it stands at a bound: nothing is added, nothing is written
    working.write(
        key,
        str(value).encode(),
        current=current,
        expire_time_ms=(
            working.expire_after(add.ttl_ms) if current is None else current.expire_time_ms
        ),
        metadata=b"" if current is None else current.metadata,
        index_entries=() if current is None else current.index_entries,
    )
    return result


def _sum(add: AddOperation, before: int) -> int:
    """The value after the addition, within its bounds."""
    wanted = before + add.amount
    low = add.min if add.HasField("min") else limits.MIN_INTEGER
    high = add.max if add.HasField("max") else limits.MAX_INTEGER
    # A value beyond a bound is not dragged to it, but may come nearer.
    value = max(min(wanted, max(high, before)), min(low, before))
    if value != wanted and not add.saturate:
        if limits.MIN_INTEGER <= wanted <= limits.MAX_INTEGER:
            bound = f"more than the max {high}" if wanted > value else f"less than the min {low}"
            raise OperationFailed(
                OperationError.OUT_OF_BOUNDS,
                f"adding {add.amount} to {before} would give {wanted}, {bound}",
                value=before,
            )
        raise OperationFailed(
            OperationError.INTEGER_OVERFLOW,
            f"adding {add.amount} would give {wanted}, beyond the range of int64",
        )
    return value


def _list(request: ListOperation, working: Working) -> OperationResult:
    result = ListResult()
    maximum = request.limit or limits.DEFAULT_PAGE_RECORDS
    for key, record in working.scan(*bounds(request.range), reverse=request.reverse):
        if len(result.records) == maximum:
            result.more = True
            break
        if not working.look():
            raise too_many_records()
        result.records.append(working.found(key, record, keys_only=request.keys_only))
    return OperationResult(list=result)


def _delete_range(request: DeleteRangeOperation, working: Working) -> OperationResult:
    """With a limit, this also ends where a transaction may remove no more."""
    maximum = request.limit or limits.MAX_RANGE_RECORDS
    result = DeleteRangeResult()
    for key, record in working.scan(*bounds(request.range)):
        if result.deleted == maximum or not working.remove_of_range(key, record):
            if not request.limit:
                raise too_many_records()
            result.more = True
            break
        result.deleted += 1
    return OperationResult(delete_range=result)


def _touch(touch: TouchOperation, working: Working) -> OperationResult:
    current = working.read(touch.key)
    if current is None:
        return _NOT_TOUCHED
    working.touch(touch.key, current, working.expire_after(touch.ttl_ms))
    return _TOUCHED


def _rate_limit(request: RateLimitOperation, working: Working) -> OperationResult:
    """Take from all limits or from none: who is denied leaves everything as it is."""
    taken: list[Taken] = []
    changed: dict[bytes, Taken] = {}
    for limit in request.limits:
        key = limit.key
        state = changed[key].state if key in changed else working.limit(key)
        if not working.look(len(state) // limits.RATE_LIMIT_LOOK_BYTES):
            raise too_many_records()
        one = take(limit, state, working.log_time_ms)
        taken.append(one)
        if one.changes:
            changed[key] = one
    allowed = all(one.result.allowed for one in taken)
    if allowed:
        for key, one in changed.items():
            working.keep_limit(key, one.state, one.expire_time_ms)
    states = [one.result if allowed else one.untaken for one in taken]
    return OperationResult(rate_limit=RateLimitResult(allowed=allowed, states=states))


def _integer(value: bytes) -> int:
    """The int64 whose one and only decimal text is `value`: no plus, no padding, no -0."""
    if len(value) <= _LONGEST_INTEGER:
        try:
            number = int(value)
        except ValueError:
            pass
        else:
            in_range = limits.MIN_INTEGER <= number <= limits.MAX_INTEGER
            if in_range and str(number).encode() == value:
                return number
    raise OperationFailed(
        OperationError.NOT_AN_INTEGER,
        "the value is not an integer: add needs the decimal text of an int64, such as -7",
    )
