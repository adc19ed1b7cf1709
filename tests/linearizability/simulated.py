"""Histories of a correct store, made up: what overlaps, what is lost, and what was answered."""

import random

from tests.support.linearizability import UNKNOWN, Operation, Unknown
from tests.support.linearizability_kvorum import (
    Add,
    Check,
    Committed,
    Delete,
    Get,
    KvorumOperation,
    Put,
    Refused,
    Response,
    Result,
    Seen,
    Step,
    Transaction,
)


class Store:
    """What kvorum does, in its simplest form: one transaction after the other."""

    def __init__(self) -> None:
        self.revision = 0
        self.records: dict[str, Seen] = {}

    def carry_out(self, request: Transaction) -> Response:
        for position, condition in enumerate(request.checks):
            seen = self.records.get(condition.key)
            revision = 0 if seen is None else seen.revision
            if condition.revision not in (None, revision) or condition.exists not in (
                *(None, seen is not None),
            ):
                return Refused(position)
        writes = [step for step in request.operations if not isinstance(step, Get)]
        changes = any(not isinstance(s, Delete) or s.key in self.records for s in writes)
        self.revision += changes
        return Committed(self.revision, tuple(self._operate(s) for s in request.operations))

    def _operate(self, step: Step) -> Result:
        seen = self.records.get(step.key)
        match step:
            case Get():
                return seen
            case Delete():
                return self.records.pop(step.key, None) is not None
            case Put(value=value):
                self._write(step.key, value)
                return None
            case Add(amount=amount):
                before = 0 if seen is None else seen.value
                assert isinstance(before, int)
                self._write(step.key, before + amount)
                return before + amount

    def _write(self, key: str, value: str | int) -> None:
        seen = self.records.get(key)
        created = self.revision if seen is None else seen.created_revision
        version = 1 if seen is None else seen.version + 1
        self.records[key] = Seen(value, self.revision, created, version)


class Simulated:
    """A correct store, and clients whose calls overlap: its histories are right by construction."""

    def __init__(self, chance: random.Random, *, lost: float) -> None:
        self.chance = chance
        self.lost = lost
        self.store = Store()
        self.values = 0

    def history(self, length: int) -> list[KvorumOperation]:
        """Each operation takes effect within its own interval."""
        operations: list[KvorumOperation] = []
        for instant in range(length):
            response: Response | Unknown
            request = self._request()
            before, after = self.chance.uniform(0, 4), self.chance.uniform(0, 4)
            is_lost = self.chance.random() < self.lost
            if is_lost and self.chance.random() < 0.5:
                response = UNKNOWN
            else:
                response = self.store.carry_out(request)
            if is_lost:
                response = UNKNOWN
            client = f"c{instant}"
            operations.append(
                Operation(client, request, response, instant - before, instant + after)
            )
        return operations

    def _request(self) -> Transaction:
        key = self.chance.choice("jk")
        self.values += 1
        put = Put(key, f"v{self.values}")
        seen = self.store.records.get(key)
        revision = seen.revision if seen is not None else self.chance.randint(0, 3)
        match self.chance.randint(0, 9):
            case 0:
                return Transaction((Delete(key),))
            case 1:
                return Transaction((Add("n", self.chance.choice([1, 1, 5])),))
            case 2:
                return Transaction((Get("n"),))
            case 3:
                return Transaction((put,), (Check(key, revision=revision),))
            case 4:
                return Transaction((put,), (Check(key, exists=self.chance.random() < 0.5),))
            case 5:
                return Transaction((Put("j", f"v{self.values}"), Put("k", f"w{self.values}")))
            case 6 | 7:
                return Transaction((put,))
            case _:
                return Transaction((Get(key),))
