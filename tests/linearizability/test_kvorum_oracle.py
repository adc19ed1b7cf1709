"""The model of kvorum against trying everything on a store of the simplest form.

The model may miss what only shows across keys that no operation connects; it must never see
a violation where there is none.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tests.linearizability.simulated import Simulated, Store
from tests.support.linearizability import UNKNOWN, Outcome, check
from tests.support.linearizability_kvorum import (
    Committed,
    Kvorum,
    KvorumOperation,
    Seen,
    revisions_out_of_order,
)


def orders(history: Sequence[KvorumOperation]) -> Iterator[Sequence[KvorumOperation]]:
    """All orders that time allows, with and without each unknown operation."""
    known = [op for op in history if op.response is not UNKNOWN]
    unknown = [op for op in history if op.response is UNKNOWN]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if all(end(later) >= earlier.invoked for earlier, later in pairs(order)):
                    yield order


def pairs(
    order: Sequence[KvorumOperation],
) -> Iterator[tuple[KvorumOperation, KvorumOperation]]:
    return itertools.combinations(order, 2)


def end(operation: KvorumOperation) -> float:
    return math.inf if operation.response is UNKNOWN else operation.returned


def fits(order: Sequence[KvorumOperation]) -> bool:
    store = Store()
    for operation in order:
        answer = store.carry_out(operation.request)
        match operation.response:
            case Committed(None, results) if isinstance(answer, Committed):
                if results != answer.results:
                    return False
            case told if told is not UNKNOWN and told != answer:
                return False
    return True


def forget_revision(operation: KvorumOperation) -> KvorumOperation:
    """As `KV.get`, `delete` and `add` answer, which do not tell it."""
    if isinstance(operation.response, Committed):
        return replace(operation, response=replace(operation.response, revision=None))
    return operation


def falsify(history: list[KvorumOperation], chance: random.Random) -> None:
    position = chance.randrange(len(history))
    operation = history[position]
    match operation.response:
        case Committed(revision, (Seen() as seen,)):
            wrong = chance.choice(
                [
                    seen._replace(version=seen.version + 1),
                    seen._replace(revision=seen.revision - 1),
                    seen._replace(value="of nobody"),
                ]
            )
            history[position] = replace(operation, response=Committed(revision, (wrong,)))
        case Committed(int(revision), results):
            shifted = Committed(revision + chance.choice([-1, 1]), results)
            history[position] = replace(operation, response=shifted)
        case _:
            history[position] = replace(operation, invoked=operation.invoked + 3)


def test_the_model_agrees_with_trying_everything() -> None:
    chance = random.Random(7)
    right = wrong = found = 0
    for _ in range(400):
        history = Simulated(chance, lost=0.2).history(6)
        history = [forget_revision(op) if chance.random() < 0.3 else op for op in history]
        if chance.random() < 0.7:
            falsify(history, chance)
        outcome = check(history, Kvorum()).outcome
        seen = outcome is Outcome.VIOLATION or revisions_out_of_order(history) != ""
        assert outcome is not Outcome.UNDECIDED
        if any(fits(order) for order in orders(history)):
            right += 1
            assert not seen, history
        else:
            wrong += 1
            found += seen
    assert right > 100
    assert wrong > 100
    assert found > 0.7 * wrong
