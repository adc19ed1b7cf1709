"""The judge goes red: each finding is provoked by evidence that differs in one thing from good."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.client import LEDGER
from tests.chaos.judge import Content, Event, Evidence, Stall, judge, longest_gap
from tests.support.histories import CallOutcome, Record
from tests.support.linearizability import UNKNOWN, Operation, Unknown
from tests.support.linearizability_kvorum import (
    Committed,
    Get,
    KvorumOperation,
    Put,
    Response,
    Seen,
    Step,
    Transaction,
)


def record(
    invoked: float,
    step: Step,
    response: Response | Unknown,
    outcome: CallOutcome = CallOutcome.RETURNED,
) -> Record:
    operation: KvorumOperation = Operation(
        "c1", Transaction((step,)), response, invoked, invoked + 0.5
    )
    return Record(operation, outcome, "" if outcome is CallOutcome.RETURNED else "NoLeader: none")


GOOD = Evidence(
    records=[
        record(0, Put("k", "a"), Committed(1, (None,))),
        record(1, Put(f"{LEDGER}1", "x"), Committed(2, (None,))),
        record(2, Put(f"{LEDGER}2", "y"), UNKNOWN, CallOutcome.UNKNOWN),
        record(3, Put(f"{LEDGER}3", "z"), UNKNOWN, CallOutcome.FAILED),
        record(4, Get("k"), Committed(None, (Seen("a", 1, 1, 1),))),
        record(9, Put("k", "b"), Committed(4, (None,))),
    ],
    events=[Event("kill-leader", "n1", struck=4.5, repaired=6, recovered=9.5)],
    ledger={f"{LEDGER}1": "x", f"{LEDGER}2": "y"},
    contents={"n1": Content(4, "aa"), "n2": Content(4, "aa")},
    accidents=[],
)


def findings(**changes: Any) -> Sequence[str]:
    judgement = judge(replace(GOOD, **changes))
    assert judgement.passed == (not judgement.findings)
    return judgement.findings


def test_good_evidence_passes() -> None:
    judgement = judge(GOOD)
    assert judgement.passed
    assert judgement.calls == {"returned": 4, "unknown": 1, "failed": 1}
    assert judgement.errors == {"NoLeader": 2}
    assert (judgement.acknowledged_writes, judgement.lost_writes) == (1, 0)
    assert judgement.stalls == {"kill-leader": Stall(1, 1.5, 5.0, 3.5)}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a lost write": (
        {"ledger": {f"{LEDGER}2": "y"}},
        f"1 acknowledged writes are lost: {LEDGER}1",
    ),
    "another value": (
        {"ledger": {f"{LEDGER}1": "of nobody"}},
        f"1 acknowledged writes are lost: {LEDGER}1",
    ),
    "a write that was said to have failed": (
        {"ledger": {**GOOD.ledger, f"{LEDGER}3": "z"}},
        "1 writes took effect although the client was told that they had not",
    ),
    "a key of nobody": (
        {"ledger": {**GOOD.ledger, f"{LEDGER}9": "q"}},
        f"1 keys hold what nobody wrote: {LEDGER}9",
    ),
    "a stale read": (
        {"records": [*GOOD.records, record(20, Get("k"), GOOD.records[4].operation.response)]},
        "the history is not shown to be linearizable",
    ),
    "revisions against time": (
        {"records": [*GOOD.records, record(20, Put("j", "c"), Committed(3, (None,)))]},
        "revisions contradict time: revision 4 was reached already",
    ),
    "nodes that differ": (
        {"contents": {"n1": Content(4, "aa"), "n2": Content(4, "bb")}},
        "the nodes hold different data",
    ),
    "a node that lags": (
        {"contents": {"n1": Content(4, "aa"), "n2": Content(3, "aa")}},
        "the nodes hold different data",
    ),
    "nothing compared": ({"contents": {}}, "the nodes were not compared"),
    "an accident": ({"accidents": ["n1 ended by itself"]}, "n1 ended by itself"),
    "no fault": ({"events": []}, "no fault struck: the run shows nothing"),
    "no call": ({"records": [], "ledger": {}}, "no call returned: the run shows nothing"),
    "no ledger": (
        {"records": GOOD.records[:1], "ledger": {}},
        "no write to the ledger was acknowledged",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=WRONG)
def test_each_wrong_is_found(changes: dict[str, Any], expected: str) -> None:
    assert any(finding.startswith(expected) for finding in findings(**changes)), findings(**changes)


def test_what_is_undecided_does_not_pass() -> None:
    judgement = judge(GOOD, max_steps=1)
    assert not judgement.passed
    assert "undecided after 1 steps" in judgement.findings[0]


@pytest.mark.parametrize(
    ("instants", "start", "end", "longest"),
    [
        ([], 1, 4, 3),
        ([2.0, 3.0], 1, 2.5, 1),
        ([0.0, 6.0], 1, 4, 5),  # it began within, and ended after it
        ([2.0, 2.5], 1, 8, 5.5),
    ],
)
def test_the_longest_gap(
    instants: Sequence[float], start: float, end: float, longest: float
) -> None:
    assert longest_gap(instants, start, end) == longest
