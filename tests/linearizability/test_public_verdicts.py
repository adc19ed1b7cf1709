"""The checker against histories that others have recorded and judged, and against altered ones."""

from dataclasses import replace

import pytest

from tests.linearizability.public_histories import (
    DATA,
    register_history,
    register_verdicts,
    string_history,
    string_verdicts,
)
from tests.support.linearizability import UNKNOWN, Outcome, check
from tests.support.linearizability_models import Get, Read, Register, Strings

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the public histories are not there: {DATA}"
)

NEVER_WRITTEN = 99


def expected(is_linearizable: bool) -> Outcome:
    return Outcome.LINEARIZABLE if is_linearizable else Outcome.VIOLATION


def test_every_register_history_gets_its_verdict() -> None:
    verdicts = register_verdicts()
    assert (len(verdicts), sum(verdicts.values())) == (102, 23)
    found = {name: check(register_history(name), Register()).outcome for name in verdicts}
    assert found == {name: expected(verdict) for name, verdict in verdicts.items()}


def test_every_history_of_strings_gets_its_verdict() -> None:
    verdicts = string_verdicts()
    assert (len(verdicts), sum(verdicts.values())) == (6, 3)
    found = {name: check(string_history(name), Strings()).outcome for name in verdicts}
    assert found == {name: expected(verdict) for name, verdict in verdicts.items()}


def test_a_read_of_a_value_that_nobody_wrote_is_seen_wherever_it_is() -> None:
    good = [name for name, verdict in register_verdicts().items() if verdict]
    altered = 0
    for name in good:
        history = register_history(name)
        for position, operation in enumerate(history):
            if operation.request == Read() and operation.response is not UNKNOWN:
                wrong = [*history]
                wrong[position] = replace(operation, response=NEVER_WRITTEN)
                assert check(wrong, Register()).outcome is Outcome.VIOLATION, (name, position)
                altered += 1
    assert altered > 20 * len(good)


def test_a_get_of_more_than_was_appended_is_seen_wherever_it_is() -> None:
    history = string_history("c10-ok.txt")
    altered = 0
    for position, operation in enumerate(history):
        if isinstance(operation.request, Get) and isinstance(operation.response, str):
            wrong = [*history]
            wrong[position] = replace(operation, response=operation.response + "x 99 0 y")
            assert check(wrong, Strings()).outcome is Outcome.VIOLATION, position
            altered += 1
    assert altered > 100


def test_an_explanation_ends_with_what_cannot_be() -> None:
    history = [op for op in string_history("c01-ok.txt") if op.request.key == "0"]
    *_, last = (op for op in history if isinstance(op.request, Get) and op.response)
    wrong = [replace(op, response="of nobody") if op is last else op for op in history]
    verdict = check(wrong, Strings())
    assert verdict.outcome is Outcome.VIOLATION
    assert verdict.explanation.splitlines()[-1].endswith("Get(key='0') -> of nobody")
