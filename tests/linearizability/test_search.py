"""The search itself: small histories by hand, and many random ones against trying everything."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest

from tests.support.linearizability import UNKNOWN, Operation, Outcome, Unknown, check
from tests.support.linearizability_models import (
    CompareAndSet,
    Get,
    Put,
    Read,
    Register,
    RegisterRequest,
    RegisterResponse,
    StringRequest,
    Strings,
    Write,
)

RegisterOperation = Operation[RegisterRequest, RegisterResponse]


def read(value: int | None, invoked: float, returned: float) -> RegisterOperation:
    return Operation("reader", Read(), value, invoked, returned)


def write(value: int, invoked: float, returned: float) -> RegisterOperation:
    return Operation("writer", Write(value), None, invoked, returned)


def lost(request: RegisterRequest, invoked: float) -> RegisterOperation:
    return Operation("unlucky", request, UNKNOWN, invoked)


def outcome(*history: RegisterOperation) -> Outcome:
    return check(history, Register()).outcome


GOOD = {
    "nothing": [],
    "one after the other": [write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    "a read beside a write sees the old": [write(1, 0, 1), write(2, 2, 9), read(1, 3, 4)],
    "a read beside a write sees the new": [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4)],
    "the old, then the new": [write(1, 0, 9), read(None, 1, 2), read(1, 3, 4)],
    "a lost write that never happened": [lost(Write(1), 0), read(None, 5, 6)],
    "a lost write that happened late": [lost(Write(1), 0), read(None, 5, 6), read(1, 7, 8)],
    "a lost write between two others": [
        *(write(1, 0, 1), lost(Write(2), 0), write(3, 2, 3)),
        *(read(3, 4, 5), read(2, 6, 7)),
    ],
    "two lost writes, the later one first": [
        *(lost(Write(1), 0), lost(Write(2), 1), read(2, 2, 3), read(1, 4, 5)),
    ],
    "lost writes of the same value": [
        *(lost(Write(1), 0), lost(Write(1), 4), read(1, 2, 3), write(2, 5, 6), read(1, 7, 8)),
    ],
    "a lost write that is needed later": [
        *(write(1, 0, 9), write(2, 0, 10), lost(Write(1), 0)),
        *(read(1, 11, 12), write(3, 13, 14), read(1, 15, 16)),
    ],
    "a lost compare-and-set": [write(1, 0, 1), lost(CompareAndSet(1, 2), 2), read(2, 3, 4)],
    "a lost read": [lost(Read(), 0), write(1, 1, 2)],
    "touching ends overlap": [write(1, 0, 1), read(None, 1, 2)],
}
BAD = {
    "a value of nobody": [read(1, 0, 1)],
    "the old after the write returned": [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
    "the new, then the old": [write(1, 0, 9), read(1, 1, 2), read(None, 3, 4)],
    "before it was invoked": [read(1, 0, 1), lost(Write(1), 2)],
    "a lost write that happened twice": [
        *(lost(Write(1), 0), read(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)),
    ],
    "a lost compare-and-set without its condition": [
        *(write(1, 0, 1), lost(CompareAndSet(3, 2), 2), read(2, 3, 4)),
    ],
    "both compare-and-sets succeed": [
        write(0, 0, 1),
        Operation("a", CompareAndSet(0, 1), True, 2, 5),
        Operation("b", CompareAndSet(0, 2), True, 3, 6),
    ],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_linearizable(history: Sequence[RegisterOperation]) -> None:
    assert outcome(*history) is Outcome.LINEARIZABLE


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_not_linearizable(history: Sequence[RegisterOperation]) -> None:
    assert outcome(*history) is Outcome.VIOLATION


def random_history(chance: random.Random) -> list[RegisterOperation]:
    history: list[RegisterOperation] = []
    for number in range(chance.randint(3, 6)):
        requests: list[RegisterRequest] = [
            *(Read(), Write(chance.randint(1, 2)), CompareAndSet(chance.randint(1, 2), 3)),
        ]
        request = chance.choice(requests)
        response: RegisterResponse | Unknown
        match request:
            case Read():
                response = chance.choice([None, 1, 2, 3])
            case Write():
                response = UNKNOWN if chance.random() < 0.5 else None
            case CompareAndSet():
                response = UNKNOWN if chance.random() < 0.3 else chance.random() < 0.5
        invoked = chance.random()
        returned = invoked + chance.random()
        history.append(Operation(f"c{number}", request, response, invoked, returned))
    return history


def orders(history: Sequence[RegisterOperation]) -> Iterator[Sequence[RegisterOperation]]:
    """All orders that time allows, with and without each unknown operation."""
    known = [op for op in history if op.response is not UNKNOWN]
    unknown = [op for op in history if op.response is UNKNOWN]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if all(
                    end(later) >= earlier.invoked
                    for earlier, later in itertools.combinations(order, 2)
                ):
                    yield order


def end(operation: RegisterOperation) -> float:
    return math.inf if operation.response is UNKNOWN else operation.returned


def fits(order: Sequence[RegisterOperation]) -> bool:
    model = Register()
    states = {model.initial}
    for operation in order:
        states = {
            after
            for state in states
            for after in model.step(state, operation.request, operation.response)
        }
    return bool(states)


def test_the_search_agrees_with_trying_everything() -> None:
    chance = random.Random(1)
    verdicts = []
    for number in range(600):
        history = random_history(chance)
        is_linearizable = any(fits(order) for order in orders(history))
        wanted = Outcome.LINEARIZABLE if is_linearizable else Outcome.VIOLATION
        assert outcome(*history) is wanted, (number, history)
        verdicts.append(is_linearizable)
    assert 100 < sum(verdicts) < 500  # both are common enough for the comparison to mean something


def test_what_cannot_be_decided_in_the_allowed_steps_is_said_to_be_so() -> None:
    history = [write(number, 0, 100) for number in range(12)]
    history.append(read(99, 0, 100))
    verdict = check(history, Register(), max_steps=1000)
    assert verdict.outcome is Outcome.UNDECIDED
    assert "undecided after 1000 steps" in verdict.explanation
    assert verdict.steps == 1000


def test_unknown_operations_are_counted_as_steps_too() -> None:
    history = [lost(CompareAndSet(number, number + 1), 0) for number in range(50)]
    history += [lost(Write(number), 0) for number in range(50)]
    history.append(read(99, 1, 2))
    assert check(history, Register(), max_steps=200).outcome is Outcome.UNDECIDED


def test_a_violation_wins_over_what_is_undecided() -> None:
    hard: list[Operation[StringRequest, str]] = [
        Operation("c", Put("hard", str(number)), "", 0, 100) for number in range(12)
    ]
    hard.append(Operation("c", Get("hard"), "of nobody", 0, 100))
    wrong: Operation[StringRequest, str] = Operation("c", Get("wrong"), "of nobody", 0, 1)
    assert check(hard, Strings(), max_steps=1000).outcome is Outcome.UNDECIDED
    assert check([*hard, wrong], Strings(), max_steps=1000).outcome is Outcome.VIOLATION


def test_a_long_history_takes_a_step_each() -> None:
    history = []
    for number in range(20_000):
        history += [
            write(number, 2 * number, 2 * number + 0.5),
            read(number, 2 * number + 1, 2 * number + 1.5),
        ]
    verdict = check(history, Register())
    assert (verdict.outcome, verdict.operations) == (Outcome.LINEARIZABLE, 40_000)
    assert verdict.steps == 40_000


def test_an_operation_that_takes_long_does_not_slow_the_others() -> None:
    history = [write(number, number, number + 0.5) for number in range(5_000)]
    history += [read(4_000, 0, 6_000)]
    verdict = check(history, Register())
    assert verdict.outcome is Outcome.LINEARIZABLE
    assert verdict.steps < 20_000


def test_many_lost_writes_of_one_value_are_no_burden() -> None:
    """They are as good as equal: how many took effect matters, and not which."""
    history = [lost(Write(1), number) for number in range(100)]
    for number in range(100):
        history += [write(2, 1000 + 10 * number, 1001 + 10 * number)]
        history += [read(1, 1002 + 10 * number, 1003 + 10 * number)]
    assert outcome(*history) is Outcome.LINEARIZABLE
    too_many = [write(2, 5000, 5001), read(1, 5002, 5003)]
    assert outcome(*history, *too_many) is Outcome.VIOLATION
