"""Random logs against a model that is too simple to be wrong.

The model is a dict, copied before each transaction and thrown away if it fails.
Now and then the machine is dropped and made anew on what its disk holds; after a
crash the log is applied again from there, as a node does.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from kvorum_node.machine import Machine
from kvorum_node.raft.types import Entry
from kvorumpb.v1.command_pb2 import (
    Check,
    Operation,
    OperationError,
    Record,
    Transaction,
    TransactionResult,
)
from kvorumpb.v1.kv_pb2 import ListRequest
from tests.machine.conftest import GROUP, Disk
from tests.support.commands import KEYS, entry, noop, random_transaction

STEPS = 3000


@dataclass(frozen=True, slots=True)
class _Cell:
    value: bytes
    revision: int
    created_revision: int
    version: int

    def record(self, key: bytes) -> Record:
        return Record(
            key=key,
            value=self.value,
            revision=self.revision,
            created_revision=self.created_revision,
            version=self.version,
        )


class _Failed(Exception):
    def __init__(self, reason: OperationError.Reason.ValueType) -> None:
        super().__init__(reason)
        self.reason = reason


class _Model:
    def __init__(self) -> None:
        self.cells: dict[bytes, _Cell] = {}
        self.revision = 0

    def run(self, transaction: Transaction) -> TransactionResult:
        failed = [
            position for position, check in enumerate(transaction.checks) if not self._holds(check)
        ]
        result = TransactionResult(succeeded=not failed, revision=self.revision)
        if failed:
            result.failed_check = failed[0]
        cells, wrote = dict(self.cells), False
        for position, operation in enumerate(
            transaction.otherwise if failed else transaction.operations
        ):
            try:
                wrote |= self._operate(cells, operation, result)
            except _Failed as failure:
                del result.results[:]
                result.succeeded = False
                result.error.reason = failure.reason
                result.error.operation = position
                return result
        if wrote:
            self.cells = cells
            self.revision += 1
            result.revision = self.revision
        return result

    def _holds(self, check: Check) -> bool:
        cell = self.cells.get(check.key)
        if check.HasField("exists"):
            return check.exists is (cell is not None)
        return check.revision == (cell.revision if cell else 0)

    def _operate(
        self, cells: dict[bytes, _Cell], operation: Operation, result: TransactionResult
    ) -> bool:
        """Carry it out on the cells; True if it wrote."""
        answer = result.results.add()
        if operation.HasField("get"):
            answer.get.SetInParent()
            if cell := cells.get(operation.get.key):
                answer.get.record.CopyFrom(cell.record(operation.get.key))
            return False
        if operation.HasField("delete"):
            answer.delete.deleted = cells.pop(operation.delete.key, None) is not None
            return answer.delete.deleted
        if operation.HasField("put"):
            answer.put.SetInParent()
            self._write(cells, operation.put.key, operation.put.value)
            return True
        cell = cells.get(operation.add.key)
        if cell is not None and cell.value in (b"", b"text", b"+1"):
            raise _Failed(OperationError.NOT_AN_INTEGER)
        total = (int(cell.value) if cell else 0) + operation.add.amount
        if total.bit_length() > 63 and total != -(2**63):
            raise _Failed(OperationError.INTEGER_OVERFLOW)
        answer.add.value = total
        self._write(cells, operation.add.key, b"%d" % total)
        return True

    def _write(self, cells: dict[bytes, _Cell], key: bytes, value: bytes) -> None:
        new = self.revision + 1
        if key in cells:
            cells[key] = replace(
                cells[key], value=value, revision=new, version=cells[key].version + 1
            )
        else:
            cells[key] = _Cell(value, new, new, 1)


def _without_messages(results: Sequence[TransactionResult]) -> list[TransactionResult]:
    for result in results:
        assert bool(result.error.message) == result.HasField("error")
        if result.HasField("error"):
            result.error.message = ""
    return list(results)


def _check_reads(machine: Machine, model: _Model, source: random.Random) -> None:
    key = source.choice(KEYS)
    cell = model.cells.get(key)
    assert machine.get(key) == (cell.record(key) if cell else None)
    prefix = source.choice((b"", b"user:", b"\xff", key[:1]))
    request = ListRequest(prefix=prefix, page_size=source.randint(1, 7))
    listed: list[Record] = []
    while True:
        response = machine.list(request)
        assert response.revision == model.revision
        assert 0 < len(response.records) <= request.page_size or not listed
        listed += response.records
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert listed == [
        model.cells[key].record(key) for key in sorted(model.cells) if key.startswith(prefix)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_machine_agrees_with_the_model(disk: Disk, seed: int) -> None:
    source, model, log = random.Random(seed), _Model(), list[Entry]()
    answers: list[list[TransactionResult]] = []
    machine, applied_again = Machine(disk.engine, GROUP), 0
    while len(log) < STEPS:
        for _ in range(source.randint(1, 5)):
            transactions = [
                random_transaction(source, model.revision) for _ in range(source.randint(0, 4))
            ]
            index = len(log) + 1
            log.append(entry(index, *transactions) if transactions else noop(index))
            answers.append([model.run(each) for each in transactions])
        _catch_up(machine, log, answers)
        assert machine.revision == model.revision
        _check_reads(machine, model, source)
        if source.random() < 0.05:
            disk.restart()
            machine = Machine(disk.engine, GROUP)
            assert machine.applied == len(log)
        if source.random() < 0.01:
            disk.crash()
            machine = Machine(disk.engine, GROUP)
            applied_again += _catch_up(machine, log, answers)
    assert applied_again > 0
    reached = {result.error.reason for each in answers for result in each}
    # What is too large to be returned is not for a model of small values.
    assert reached == {*OperationError.Reason.values()} - {OperationError.RESULT_TOO_LARGE}


def _catch_up(
    machine: Machine, log: Sequence[Entry], answers: Sequence[list[TransactionResult]]
) -> int:
    """Apply the rest of the log, and compare the results; the number of entries applied."""
    start = machine.applied
    results = machine.apply(log[start:])
    assert [_without_messages(each) for each in results] == answers[start:]
    return len(results)
