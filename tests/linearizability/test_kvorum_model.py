"""The model of kvorum: what a correct store does passes, and each kind of wrong is seen."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.linearizability.simulated import Simulated
from tests.support.linearizability import UNKNOWN, Operation, Outcome, Unknown, check
from tests.support.linearizability_kvorum import (
    Add,
    Check,
    Committed,
    Delete,
    Get,
    Kvorum,
    KvorumOperation,
    Put,
    Refused,
    Response,
    Result,
    Seen,
    Step,
    Transaction,
    revisions_out_of_order,
)


class History:
    """Operations one after the other, a second each, unless a test says otherwise."""

    def __init__(self) -> None:
        self.operations: list[KvorumOperation] = []

    def add(
        self,
        response: Response | Unknown,
        *steps: Step,
        checks: Sequence[Check] = (),
        invoked: float | None = None,
        returned: float | None = None,
    ) -> "History":
        start = 2.0 * len(self.operations) if invoked is None else invoked
        end = start + 1 if returned is None else returned
        request = Transaction(steps, tuple(checks))
        self.operations.append(Operation("c1", request, response, start, end))
        return self

    def outcome(self) -> Outcome:
        return check(self.operations, Kvorum()).outcome


def done(revision: int | None, *results: Result) -> Committed:
    return Committed(revision, results)


def put_twice() -> History:
    return History().add(done(1, None), Put("k", "a")).add(done(2, None), Put("k", "b"))


GOOD = {
    "written and read": put_twice().add(done(None, Seen("b", 2, 1, 2)), Get("k")),
    "deleted and created anew": put_twice()
    .add(done(None, True), Delete("k"))
    .add(done(3, False), Delete("k"))
    .add(done(4, None), Put("k", "c"))
    .add(done(4, Seen("c", 4, 4, 1)), Get("k")),
    "added": History().add(done(None, 5), Add("n", 5)).add(done(2, 4), Add("n", -1)),
    "a sum that was not acknowledged": History()
    .add(UNKNOWN, Add("n", 1))
    .add(done(None, 2), Add("n", 1))
    .add(done(None, Seen(2, 2, 1, 2)), Get("n")),
    "a check by revision": put_twice().add(
        done(3, None), Put("k", "c"), checks=[Check("k", revision=2)]
    ),
    "a check that does not hold": put_twice().add(
        Refused(1), Put("k", "c"), checks=[Check("k", exists=True), Check("k", revision=1)]
    ),
    "a lost write that was read": put_twice()
    .add(UNKNOWN, Put("k", "c"))
    .add(done(None, Seen("c", 3, 1, 3)), Get("k")),
    "a lost write that was overwritten": put_twice()
    .add(UNKNOWN, Put("k", "c"))
    .add(done(4, None), Put("k", "d"))
    .add(done(None, Seen("d", 4, 1, 4)), Get("k")),
    "two keys at once": History()
    .add(done(1, None, None), Put("k", "a"), Put("j", "b"))
    .add(done(1, Seen("a", 1, 1, 1), Seen("b", 1, 1, 1)), Get("k"), Get("j")),
    "a lost write refuses a check": put_twice()
    .add(UNKNOWN, Put("k", "c"))
    .add(Refused(0), Put("k", "d"), checks=[Check("k", revision=2)]),
}
BAD = {
    "a lost acknowledged write": put_twice().add(done(None, Seen("a", 1, 1, 1)), Get("k")),
    "a write that vanished": put_twice().add(done(None, None), Get("k")),
    "a write that was applied twice": put_twice().add(done(None, Seen("b", 2, 1, 3)), Get("k")),
    "a lost write that was applied twice": put_twice()
    .add(UNKNOWN, Put("k", "c"))
    .add(done(5, None), Put("k", "d"))
    .add(done(None, Seen("d", 5, 1, 5)), Get("k")),
    "another revision than was acknowledged": put_twice().add(
        done(None, Seen("b", 3, 1, 2)), Get("k")
    ),
    "created at another revision": put_twice().add(done(None, Seen("b", 2, 2, 2)), Get("k")),
    "a revision that falls": put_twice().add(done(2, None), Put("k", "c")),
    "a sum that was added twice": History()
    .add(done(1, 1), Add("n", 1))
    .add(done(3, 3), Add("n", 1)),
    "a check that held and should not": put_twice().add(
        done(3, None), Put("k", "c"), checks=[Check("k", revision=1)]
    ),
    "a check that should have held": put_twice().add(
        Refused(0), Put("k", "c"), checks=[Check("k", revision=2)]
    ),
    "an earlier check that did not hold": put_twice().add(
        Refused(1), Put("k", "c"), checks=[Check("k", exists=False), Check("k", revision=1)]
    ),
    "deleted what was not there": History().add(done(None, True), Delete("k")),
    "read before it was written": History()
    .add(done(None, Seen("a", 1, 1, 1)), Get("k"))
    .add(UNKNOWN, Put("k", "a")),
    "a torn transaction": History()
    .add(UNKNOWN, Put("k", "a"), Put("j", "b"))
    .add(done(1, Seen("a", 1, 1, 1), None), Get("k"), Get("j")),
    "the parts of a torn transaction, read apart": History()
    .add(UNKNOWN, Put("k", "a"), Put("j", "b"))
    .add(done(None, Seen("a", 1, 1, 1)), Get("k"))
    .add(done(None, None), Get("j")),
    "a value of nobody": put_twice().add(done(None, Seen("x", 2, 1, 2)), Get("k")),
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_right(history: History) -> None:
    assert history.outcome() is Outcome.LINEARIZABLE
    assert revisions_out_of_order(history.operations) == ""


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_wrong(history: History) -> None:
    assert history.outcome() is Outcome.VIOLATION


def test_revisions_follow_time_across_keys() -> None:
    history = History().add(done(2, None), Put("k", "a")).add(done(1, None), Put("j", "b"))
    assert history.outcome() is Outcome.LINEARIZABLE  # each key by itself
    assert "revision 2 was reached already" in revisions_out_of_order(history.operations)


def test_a_read_tells_of_a_revision_too() -> None:
    history = History().add(UNKNOWN, Put("k", "a")).add(done(None, Seen("a", 7, 7, 1)), Get("k"))
    history.add(done(7, None), Put("j", "b"))
    assert "revision 7 was reached already" in revisions_out_of_order(history.operations)


def test_a_revision_is_given_once() -> None:
    history = History().add(done(1, None), Put("k", "a"), invoked=0, returned=2)
    history.add(done(1, None), Put("j", "b"), invoked=1, returned=3)
    assert "revision 1 was given twice" in revisions_out_of_order(history.operations)


@pytest.mark.parametrize("seed", range(8))
def test_what_a_correct_store_does_is_right(seed: int) -> None:
    history = Simulated(random.Random(seed), lost=0.15).history(400)
    verdict = check(history, Kvorum())
    assert verdict.outcome is Outcome.LINEARIZABLE, verdict.explanation
    assert revisions_out_of_order(history) == ""


def alterations(seen: Seen) -> list[Seen]:
    """None of these was there when the record was."""
    return [
        seen._replace(value="of nobody"),
        seen._replace(revision=seen.revision + 1),
        seen._replace(version=seen.version + 1),
        seen._replace(created_revision=seen.created_revision - 1),
    ]


@pytest.mark.parametrize(("seed", "lost"), [(1, 0.0), (2, 0.0), (3, 0.15), (4, 0.15)])
def test_every_altered_read_is_seen(seed: int, lost: float) -> None:
    history = Simulated(random.Random(seed), lost=lost).history(80)
    altered = 0
    for position, operation in enumerate(history):
        match operation:
            case Operation(
                request=Transaction((Get("j" | "k"),)),
                response=Committed(_, (Seen() as seen,)) as response,
            ):
                # Where writes are lost, other revisions and versions may be right as well.
                for wrong_seen in alterations(seen)[: None if lost == 0 else 1]:
                    wrong = [*history]
                    wrong_response = replace(response, results=(wrong_seen,))
                    wrong[position] = replace(operation, response=wrong_response)
                    assert check(wrong, Kvorum()).outcome is Outcome.VIOLATION, wrong[position]
                    altered += 1
    assert altered > 10
