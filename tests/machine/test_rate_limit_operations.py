"""Rate limits in transactions: all or none, and nothing is written where there is no room."""

import random
from collections.abc import Sequence

import pytest

from kvorum.errors import StorageError
from kvorum_node.machine import FORMAT, Machine, UnknownCommand
from kvorum_node.machine.machine import Transition
from kvorum_node.raft.types import Entry, EntryKind, Index, Term
from kvorum_node.storage import layout
from kvorum_node.storage.engine import Batch, Engine, Family
from kvorum_node.storage.layout import ExpiryKind, Space
from kvorum_node.storage.memory import MemoryEngine
from kvorumpb.v1.command_pb2 import (
    Command,
    CommandBatch,
    Operation,
    OperationError,
    PutOperation,
    RateLimit,
    RateLimitOperation,
    RateLimitResult,
    Record,
    Sweep,
    Transaction,
    TransactionResult,
)
from tests.machine.conftest import GROUP, Disk
from tests.support.commands import add, entry, exists, get, put, transaction

LOG, COUNTER, GCRA = RateLimit.SLIDING_LOG, RateLimit.SLIDING_COUNTER, RateLimit.GCRA
ALGORITHMS = pytest.mark.parametrize(
    "algorithm", [LOG, COUNTER, GCRA], ids=["log", "counter", "gcra"]
)
NOW_MS = 1_700_000_000_000
SPACE = Space(GROUP, 0)


def _limit(
    key: bytes,
    limit: int = 3,
    window_ms: int = 1000,
    *,
    cost: int = 1,
    algorithm: RateLimit.Algorithm.ValueType = LOG,
    reset: bool = False,
) -> RateLimit:
    return RateLimit(
        key=key, algorithm=algorithm, limit=limit, window_ms=window_ms, cost=cost, reset=reset
    )


def _rate_limit(*rate_limits: RateLimit) -> Operation:
    return Operation(rate_limit=RateLimitOperation(limits=rate_limits))


def _run(
    machine: Machine, *operations: Operation, later_ms: int = 0, otherwise: Sequence[Operation] = ()
) -> TransactionResult:
    one = transaction(*operations, otherwise=otherwise)
    [[result]] = machine.apply([entry(machine.applied + 1, one, log_time_ms=NOW_MS + later_ms)])
    return result


def _check(machine: Machine, *rate_limits: RateLimit, later_ms: int = 0) -> RateLimitResult:
    result = _run(machine, _rate_limit(*rate_limits), later_ms=later_ms)
    assert result.succeeded
    return result.results[0].rate_limit


def _sweep(machine: Machine, *, later_ms: int, limit: int = 1000) -> TransactionResult:
    batch = CommandBatch(
        format=FORMAT, log_time_ms=NOW_MS + later_ms, commands=[Command(sweep=Sweep(limit=limit))]
    )
    index = Index(machine.applied + 1)
    data = batch.SerializeToString()
    [[result]] = machine.apply([Entry(index, Term(1), EntryKind.COMMANDS, data)])
    return result


def _state(engine: Engine, *, without_standing: bool = True) -> list[tuple[Family, bytes, bytes]]:
    """Every byte of the state, but for how far the log was applied."""
    return [
        (family, key, value)
        for family in layout.STATE_FAMILIES
        if not (without_standing and family is Family.META)
        for key, value in engine.scan(family, *SPACE.range)
    ]


def _kept(engine: Engine) -> set[bytes]:
    """The keys of all rate limits that have a state, of which each has its row of expiry."""
    kept = {
        layout.without_prefix(key): layout.decode_limit(value)[0]
        for key, value in engine.scan(Family.LIMIT, *SPACE.range)
    }
    expected = {(at_ms, ExpiryKind.LIMIT, key) for key, at_ms in kept.items()}
    for key, value in engine.scan(Family.DATA, *SPACE.range):
        record = Record.FromString(value)
        if record.expire_time_ms:
            row = (record.expire_time_ms, ExpiryKind.RECORD, layout.without_prefix(key))
            expected.add(row)
    rows = [
        layout.split_expiry_key(layout.without_prefix(key))
        for key, _ in engine.scan(Family.EXPIRY, *SPACE.range)
    ]
    assert len(rows) == len(set(rows))
    assert set(rows) == expected
    return set(kept)


@ALGORITHMS
def test_as_many_as_the_limit_and_then_none(
    machine: Machine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    """However the checks are spread over transactions, commands and entries."""
    limit = _limit(b"user", 100, 60_000, algorithm=algorithm)
    entries = [
        entry(
            index,
            *(transaction(_rate_limit(limit), get(b"a"), _rate_limit(limit)) for _ in range(5)),
            log_time_ms=NOW_MS,
        )
        for index in range(1, 21)
    ]
    results = [
        operation.rate_limit
        for results in machine.apply(entries[:7]) + machine.apply(entries[7:])
        for result in results
        for operation in (result.results[0], result.results[2])
    ]
    assert [result.allowed for result in results] == [True] * 100 + [False] * 100
    assert [result.states[0].remaining for result in results[:100]] == list(range(99, -1, -1))


def test_a_rate_limit_is_no_record_and_takes_no_revision(machine: Machine, engine: Engine) -> None:
    seen: list[Transition] = []
    machine.observer = seen.extend
    result = _run(machine, _rate_limit(_limit(b"user")))
    assert (result.revision, machine.revision) == (0, 0)
    assert machine.get(b"user") is None
    assert _run(machine, put(b"user")).revision == 1, "the same key can have both"
    assert _run(machine, _rate_limit(_limit(b"user"))).revision == 1
    assert _check(machine, _limit(b"user", cost=0)).states[0].remaining == 1
    assert [each.revision for each in seen] == [1]
    assert {family for family, _, _ in _state(engine)} == {
        Family.DATA,
        Family.HISTORY,
        Family.KEYS,
        Family.LIMIT,
        Family.EXPIRY,
    }
    assert _kept(engine) == {b"user"}


@ALGORITHMS
def test_all_are_taken_from_or_none(
    machine: Machine, engine: Engine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    user, address = _limit(b"user", algorithm=algorithm), _limit(b"ip", 5, algorithm=algorithm)
    for _ in range(3):
        assert _check(machine, user, address).allowed
    before = _state(engine)
    for order in ((user, address), (address, user)):
        denied = _check(machine, *order)
        assert not denied.allowed
        states = {limit.key: state for limit, state in zip(order, denied.states, strict=True)}
        assert (states[b"user"].allowed, states[b"user"].remaining) == (False, 0)
        assert states[b"user"].retry_after_ms > 0
        assert (states[b"ip"].allowed, states[b"ip"].remaining) == (True, 2)
        assert states[b"ip"].retry_after_ms == 0
    assert _state(engine) == before
    assert _check(machine, address, _limit(b"other", algorithm=algorithm)).allowed


@ALGORITHMS
def test_who_is_denied_writes_nothing_at_all(
    machine: Machine, engine: Engine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    full = _limit(b"full", 1, algorithm=algorithm)
    _check(machine, full)
    _check(machine, _limit(b"expired", 2, 10, algorithm=algorithm))
    before = _state(engine)
    for other in (
        _limit(b"new", algorithm=algorithm),
        _limit(b"expired", 2, 10, algorithm=algorithm),
        _limit(b"expired", 2, 10, algorithm=algorithm, cost=2, reset=True),
    ):
        assert not _check(machine, full, other, later_ms=100).allowed
        assert not _check(machine, other, full, later_ms=100).allowed
        assert _state(engine) == before
    assert machine.revision == 0
    _kept(engine)


def test_the_engine_hears_of_a_denied_check_only_that_it_was_applied() -> None:
    """Not even a row that stays as it is."""

    class Watched(MemoryEngine):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[Batch] = []

        def write(self, batch: Batch) -> None:
            self.batches.append(batch)
            super().write(batch)

    engine = Watched()
    machine = Machine(engine, GROUP)
    _check(machine, _limit(b"user", 1))
    engine.batches.clear()
    asked = (
        _limit(b"user", 1),
        _limit(b"user", 1, cost=0),
        _limit(b"none", cost=0),
        _limit(b"none", cost=0, reset=True),
    )
    for limit in asked:
        _check(machine, limit)
    _run(machine, _rate_limit(_limit(b"none")), _rate_limit(_limit(b"none", cost=0, reset=True)))
    for batch in engine.batches:
        assert {family for family, _, _ in batch.puts} == {Family.META}
        assert not batch.deletes
        assert not batch.range_deletes


def test_a_cost_of_0_reads_beside_others(machine: Machine, engine: Engine) -> None:
    _check(machine, _limit(b"a", cost=3))
    result = _check(machine, _limit(b"a", cost=0), _limit(b"b"))
    assert result.allowed, "who takes nothing always has room"
    assert [state.remaining for state in result.states] == [0, 2]
    assert _kept(engine) == {b"a", b"b"}


def test_a_limit_may_be_lowered_and_raised(machine: Machine) -> None:
    _check(machine, _limit(b"a", 10, cost=6))
    assert not _check(machine, _limit(b"a", 5)).allowed
    assert _check(machine, _limit(b"a", 7)).allowed
    assert not _check(machine, _limit(b"a", 7)).allowed


def test_the_row_of_expiry_follows_the_state(machine: Machine, engine: Engine) -> None:
    for later_ms, limit in (
        (0, _limit(b"a")),
        (0, _limit(b"a")),
        (10, _limit(b"b", algorithm=GCRA)),
        (10, _limit(b"a", algorithm=COUNTER)),
        (500, _limit(b"a", window_ms=50)),
        (2000, _limit(b"a")),
    ):
        assert _check(machine, limit, later_ms=later_ms).allowed
        assert limit.key in _kept(engine)
    record = Operation(put=PutOperation(key=b"a", value=b"", ttl_ms=1000))
    _run(machine, record, _rate_limit(_limit(b"a")), later_ms=2000)
    assert _kept(engine) == {b"a", b"b"}


@ALGORITHMS
def test_a_sweep_removes_expired_states_without_event_or_revision(
    machine: Machine, engine: Engine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    _check(machine, _limit(b"a", algorithm=algorithm), _limit(b"b", algorithm=algorithm))
    _check(machine, _limit(b"c", 3, 90_000, algorithm=algorithm))
    seen: list[Transition] = []
    machine.observer = seen.extend
    assert _sweep(machine, later_ms=2000, limit=1).revision == 0
    assert _kept(engine) == {b"b", b"c"}
    _sweep(machine, later_ms=2000, limit=1)
    assert _kept(engine) == {b"c"}
    _sweep(machine, later_ms=180_000)
    assert _kept(engine) == set()
    assert _state(engine) == []
    assert (machine.revision, seen) == (0, [])


def test_a_sweep_takes_records_and_rate_limits_in_the_order_in_which_they_expired(
    machine: Machine, engine: Engine
) -> None:
    _run(machine, Operation(put=PutOperation(key=b"r", value=b"", ttl_ms=20)))
    _check(machine, _limit(b"first", window_ms=10), _limit(b"last", window_ms=30))
    seen: list[Transition] = []
    machine.observer = seen.extend
    assert _sweep(machine, later_ms=29, limit=1).revision == 1
    assert _sweep(machine, later_ms=29).revision == 2
    assert _kept(engine) == {b"last"}
    assert [event.key for each in seen for event in each.events] == [b"r"]


@ALGORITHMS
def test_a_state_that_has_expired_means_nothing_whether_swept_or_not(
    machine: Machine, engine: Engine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    limit = _limit(b"a", 3, 1000, cost=3, algorithm=algorithm)
    _check(machine, limit)
    [(_, value)] = engine.scan(Family.LIMIT, *SPACE.range)
    expire_ms = layout.decode_limit(value)[0] - NOW_MS
    _sweep(machine, later_ms=expire_ms - 1)
    assert _kept(engine) == {b"a"}
    assert not _check(machine, limit, later_ms=expire_ms - 1).allowed
    assert _check(machine, limit, later_ms=expire_ms).allowed
    assert _kept(engine) == {b"a"}


@ALGORITHMS
def test_reset_forgets_and_takes(
    machine: Machine, engine: Engine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    _check(machine, _limit(b"a", cost=3, algorithm=algorithm))
    result = _check(machine, _limit(b"a", cost=2, algorithm=algorithm, reset=True))
    assert (result.allowed, result.states[0].remaining) == (True, 1)
    assert _kept(engine) == {b"a"}
    result = _check(machine, _limit(b"a", cost=0, algorithm=algorithm, reset=True))
    assert (result.allowed, result.states[0].remaining) == (True, 3)
    assert _kept(engine) == set()
    assert _state(engine) == []


@ALGORITHMS
def test_a_reset_leaves_what_has_expired_to_the_sweep(
    machine: Machine, engine: Engine, algorithm: RateLimit.Algorithm.ValueType
) -> None:
    """It counts for nothing already, and its row of expiry stays with it: nothing is to be done."""
    _check(machine, _limit(b"a", cost=3, algorithm=algorithm))
    before = _state(engine)
    reset = _limit(b"a", cost=0, algorithm=algorithm, reset=True)
    result = _check(machine, reset, later_ms=5_000)
    assert (result.allowed, result.states[0].remaining) == (True, 3)
    assert _state(engine) == before
    _sweep(machine, later_ms=5_000)
    assert _state(engine) == []


def test_what_is_denied_is_not_reset_and_says_how_it_stands(machine: Machine) -> None:
    _check(machine, _limit(b"a", cost=3))
    _check(machine, _limit(b"full", 1))
    result = _check(machine, _limit(b"a", reset=True), _limit(b"full", 1))
    assert not result.allowed
    reset, full = result.states
    assert (reset.allowed, reset.remaining, reset.retry_after_ms) == (True, 0, 0)
    assert reset.reset_after_ms == 1000
    assert not full.allowed
    assert not _check(machine, _limit(b"a")).allowed


def test_a_key_twice_in_one_operation_counts_one_after_the_other(
    machine: Machine, engine: Engine
) -> None:
    """Validation refuses it; should it be in the log, it takes no less than it says."""
    result = _check(machine, _limit(b"a", cost=2), _limit(b"a"))
    assert (result.allowed, [state.remaining for state in result.states]) == (True, [1, 0])
    before = _state(engine)
    assert not _check(machine, _limit(b"a", 5, cost=2), _limit(b"a", 5)).allowed
    assert _state(engine) == before


def test_a_failed_transaction_takes_nothing(machine: Machine, engine: Engine) -> None:
    _run(machine, put(b"text", b"no number"))
    before = _state(engine)
    result = _run(machine, _rate_limit(_limit(b"a")), add(b"text"))
    assert result.error.reason == OperationError.NOT_AN_INTEGER
    assert _state(engine) == before


def test_a_denied_check_is_an_answer_and_leaves_the_rest_of_the_transaction(
    machine: Machine,
) -> None:
    _check(machine, _limit(b"a", 1))
    result = _run(machine, _rate_limit(_limit(b"a", 1)), put(b"x"))
    assert result.succeeded
    assert not result.results[0].rate_limit.allowed
    assert machine.get(b"x") is not None


def test_only_the_branch_that_runs_takes(machine: Machine, engine: Engine) -> None:
    one = transaction(
        _rate_limit(_limit(b"then")),
        checks=[exists(b"none")],
        otherwise=[_rate_limit(_limit(b"else"))],
    )
    machine.apply([entry(1, one, log_time_ms=NOW_MS)])
    assert _kept(engine) == {b"else"}


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("algorithm", [0, 4, 99])
def test_an_algorithm_that_this_version_does_not_know_stops_the_node(
    machine: Machine, engine: Engine, limit: int, algorithm: int
) -> None:
    data = RateLimit(key=b"a", limit=limit, window_ms=1, cost=1).SerializeToString()
    if algorithm:
        data += bytes([2 << 3, algorithm])
    unknown = _rate_limit(_limit(b"b"), RateLimit.FromString(data))
    assert unknown.rate_limit.limits[1].algorithm == algorithm
    one = transaction(put(b"x"), unknown)
    with pytest.raises(UnknownCommand):
        machine.apply([entry(1, one, log_time_ms=NOW_MS)])
    assert _state(engine, without_standing=False) == []


def test_a_damaged_state_stops_the_node(machine: Machine, engine: Engine) -> None:
    _check(machine, _limit(b"a"))
    [(key, value)] = engine.scan(Family.LIMIT, *SPACE.range)
    for damaged in (value[:-1] + b"\x7f", value[:7]):
        batch = Batch()
        batch.put(Family.LIMIT, key, damaged)
        engine.write(batch)
        before = _state(engine, without_standing=False)
        with pytest.raises(StorageError, match="rate limit is damaged"):
            _check(machine, _limit(b"a"))
        assert _state(engine, without_standing=False) == before


# Restarts and batchings


def _random_limit(source: random.Random) -> RateLimit:
    limit = source.choice((1, 3, 8))
    return _limit(
        source.choice((b"a", b"b", b"\x00", b"\xff")),
        limit,
        source.choice((5, 40, 200)),
        cost=source.randint(0, limit),
        algorithm=source.choice((LOG, LOG, COUNTER, GCRA)),
        reset=source.random() < 0.05,
    )


def _random_transaction(source: random.Random) -> Transaction:
    operations = []
    for _ in range(source.randint(1, 3)):
        chosen = {limit.key: limit for limit in (_random_limit(source) for _ in range(3))}
        operations.append(_rate_limit(*chosen.values()))
    if source.random() < 0.2:
        operations.append(add(b"n"))
    if source.random() < 0.1:
        operations.extend((put(b"text"), add(b"text")))
    return transaction(*operations)


def _random_log(source: random.Random, count: int) -> list[Entry]:
    """Mostly transactions, now and then a sweep, by a clock that goes on in steps."""
    entries = []
    now_ms = NOW_MS
    for index in range(1, count + 1):
        now_ms += source.choice((0, 0, 1, 7, 30, 300))
        commands = [
            Command(sweep=Sweep(limit=source.randint(1, 3)))
            if source.random() < 0.2
            else Command(transaction=_random_transaction(source))
            for _ in range(source.randint(0, 3))
        ]
        batch = CommandBatch(format=FORMAT, log_time_ms=now_ms, commands=commands)
        data = batch.SerializeToString()
        entries.append(Entry(Index(index), Term(1), EntryKind.COMMANDS, data))
    return entries


@pytest.mark.parametrize("seed", range(4))
def test_the_batching_of_entries_changes_nothing(engine: Engine, seed: int) -> None:
    log = _random_log(random.Random(seed), 300)
    one_by_one = Machine(engine, GROUP)
    expected = []
    for each in log:
        expected += one_by_one.apply([each])
        _kept(engine)
    answers = [
        operation.rate_limit.allowed
        for results in expected
        for result in results
        for operation in result.results
        if operation.WhichOneof("result") == "rate_limit"
    ]
    assert answers.count(True) > 50
    assert answers.count(False) > 50
    for longest in (3, 40, 300):
        other_engine = MemoryEngine()
        other = Machine(other_engine, GROUP)
        source = random.Random(seed)
        rest, results = log, []
        while rest:
            length = source.randint(1, longest)
            results += other.apply(rest[:length])
            rest = rest[length:]
        assert results == expected
        assert _state(other_engine, without_standing=False) == _state(
            engine, without_standing=False
        )


@pytest.mark.parametrize("seed", range(2))
def test_restarts_and_crashes_change_nothing(disk: Disk, seed: int) -> None:
    log = _random_log(random.Random(seed), 150)
    undisturbed = MemoryEngine()
    expected = Machine(undisturbed, GROUP).apply(log)
    source = random.Random(seed)
    machine = Machine(disk.engine, GROUP)
    while machine.applied < len(log):
        begin = machine.applied
        results = machine.apply(log[begin : begin + source.randint(1, 10)])
        assert results == expected[begin : machine.applied]
        match source.randrange(10):
            case 0:
                disk.restart()
                machine = Machine(disk.engine, GROUP)
            case 1:
                disk.crash()
                machine = Machine(disk.engine, GROUP)
    assert _state(disk.engine, without_standing=False) == _state(
        undisturbed, without_standing=False
    )
