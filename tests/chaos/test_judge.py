"""The judge goes red: each finding is provoked by evidence that differs in one thing from good."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.client import LEDGER
from tests.chaos.judge import Content, Counters, Event, Evidence, Stall, judge, longest_gap
from tests.chaos.leases import (
    EARLY_SECONDS,
    LATE_SECONDS,
    Kind,
    LeaseCall,
    LeaseFigures,
    look_into_leases,
)
from tests.chaos.watches import AFTERWARDS, END, LATE, WATCHED, Kept, Told, ToldChange, WatchFigures
from tests.support.histories import CallOutcome, Record
from tests.support.linearizability import UNKNOWN, Operation, Unknown
from tests.support.linearizability_kvorum import (
    Add,
    Committed,
    Delete,
    Get,
    KvorumOperation,
    Put,
    Response,
    Seen,
    Step,
    Transaction,
    Value,
)


def record(
    invoked: float,
    step: Step | Sequence[Step],
    response: Response | Unknown,
    outcome: CallOutcome = CallOutcome.RETURNED,
    *,
    client: str = "c1",
) -> Record:
    steps = tuple(step) if isinstance(step, Sequence) else (step,)
    operation: KvorumOperation = Operation(
        client, Transaction(steps), response, invoked, invoked + 0.5
    )
    return Record(operation, outcome, "" if outcome is CallOutcome.RETURNED else "NoLeader: none")


def afterwards(key: str, seen: Seen | None) -> Record:
    return record(30, Get(key), Committed(None, (seen,)), client=AFTERWARDS)


def lease(
    invoked: float,
    kind: Kind,
    outcome: CallOutcome = CallOutcome.RETURNED,
    **content: Any,
) -> LeaseCall:
    return LeaseCall("c1", kind, "t1", invoked, invoked + 0.5, outcome, **content)


PUT, TOUCH, GET, TTL = Kind.PUT, Kind.TOUCH, Kind.GET, Kind.TTL
IN_DOUBT = CallOutcome.UNKNOWN

LEASES = [
    lease(11, PUT, ttl=3.0, value="v", revision=7),
    lease(12, GET, found=True, value="v", lifetime=3.0),
    lease(13, TTL, found=True, left=1.2),
    lease(13.5, TOUCH, found=True, ttl=2.0),
    lease(15, GET, found=True, value="v", lifetime=4.7),
    lease(16.5, GET, found=False),
]


def kept(value: Value, revision: int, expires_at: float | None = None, version: int = 1) -> Kept:
    return Kept(value, revision, revision - version + 1, version, expires_at)


def put(key: str, record: Kept, previous: Kept | None = None) -> ToldChange:
    return ToldChange("put", key, record, previous)


def told(revision: int, *changes: ToldChange, at: float | None = None) -> Told:
    return Told(revision, 100.0 + revision if at is None else at, changes)


K1 = kept("a", 1)
K4 = Kept("b", 4, 1, 2, None)
EXPIRY = told(8, ToldChange("expire", "t1", None, kept("v", 7, 107.9)))
HISTORY = [
    told(1, put("k", K1)),
    told(2, put(f"{LEDGER}1", kept("x", 2))),
    told(3, put(f"{LEDGER}2", kept("y", 3))),
    told(4, put("k", K4, K1)),
    told(5, put("n", kept(1, 5))),
    told(6, put("p1", kept("both", 6)), put("p2", kept("both", 6))),
    told(7, put("t1", kept("v", 7, 110.0))),
    EXPIRY,
    told(9, put("d", kept("gone", 9))),
    told(10, ToldChange("delete", "d", None, kept("gone", 9))),
    told(11, *(put(key, kept(key, 11)) for key in END)),
]


def part(history: Sequence[Told], prefix: str) -> list[Told]:
    parts = [
        replace(one, changes=tuple(c for c in one.changes if c.key.startswith(prefix)))
        for one in history
    ]
    return [one for one in parts if one.changes]


def watches(history: Sequence[Told]) -> dict[str, Sequence[Told]]:
    """All of them are told the same."""
    return {
        LATE: history,
        **{name: part(history, prefix) for name, prefix in WATCHED.items()},
    }


def other(*changed: Told) -> dict[str, Sequence[Told]]:
    """A history in which these revisions are different."""
    by_revision = {one.revision: one for one in changed}
    return watches([by_revision.get(one.revision, one) for one in HISTORY])


COUNTED = afterwards("n", Seen(1, 5, 5, 1))
GOOD = Evidence(
    records=[
        record(0, Put("k", "a"), Committed(1, (None,))),
        record(1, Put(f"{LEDGER}1", "x"), Committed(2, (None,))),
        record(2, Put(f"{LEDGER}2", "y"), UNKNOWN, CallOutcome.UNKNOWN),
        record(3, Put(f"{LEDGER}3", "z"), UNKNOWN, CallOutcome.FAILED),
        record(4, Get("k"), Committed(None, (Seen("a", 1, 1, 1),))),
        record(9, Put("k", "b"), Committed(4, (None,))),
        record(10, Add("n", 1), Committed(None, (1,))),
        record(10, Add("n", 1), UNKNOWN, CallOutcome.UNKNOWN),
        record(10.8, [Put("p1", "both"), Put("p2", "both")], Committed(6, (None, None))),
        record(18, Put("d", "gone"), Committed(9, (None,))),
        record(19, Delete("d"), Committed(None, (True,))),
        afterwards("k", Seen("b", 4, 1, 2)),
        afterwards("d", None),
        COUNTED,
        record(31, [Put(key, key) for key in END], Committed(11, (None,) * len(END))),
    ],
    events=[Event("kill-leader", "n1", struck=4.5, repaired=6, recovered=9.5)],
    ledger={f"{LEDGER}1": "x", f"{LEDGER}2": "y"},
    contents={"n1": Content(11, "aa"), "n2": Content(11, "aa")},
    leases=LEASES,
    watches=watches(HISTORY),
    accidents=[],
)


def with_counted(seen: Seen | None, *, doubt: bool = True) -> list[Record]:
    """The evidence with another counter at the end."""
    records = [
        one for one in GOOD.records if doubt or one.operation.request.operations != (Add("n", 1),)
    ]
    if not doubt:
        records.append(record(10, Add("n", 1), Committed(None, (1,))))
    return [one if one is not COUNTED else afterwards("n", seen) for one in records]


def findings(**changes: Any) -> Sequence[str]:
    judgement = judge(replace(GOOD, **changes))
    assert judgement.passed == (not judgement.findings)
    return judgement.findings


def test_good_evidence_passes() -> None:
    judgement = judge(GOOD)
    assert judgement.passed
    assert judgement.calls == {"returned": 18, "unknown": 2, "failed": 1}
    assert judgement.errors == {"NoLeader": 3}
    assert (judgement.acknowledged_writes, judgement.lost_writes) == (1, 0)
    assert judgement.counters == Counters(counters=1, acknowledged=1, in_doubt=1)
    assert judgement.leases == LeaseFigures(writes=2, found=4, expired=1)
    told = {"all": 11, "pairs": 2, "leases": 3, "late": 11}
    assert judgement.watches == WatchFigures(
        told, changes=14, expiries=1, writes=7, log_time_stray_seconds=20.5
    )
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
        "revisions contradict time: revision 9 was reached already",
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
    "no call": (
        {"records": [], "leases": [], "ledger": {}},
        "no call returned: the run shows nothing",
    ),
    "an add that is lost": (
        {"records": with_counted(None)},
        "1 counters are wrong: n is 0, and has to be from 1 to 2",
    ),
    "an add that has counted twice": (
        {"records": with_counted(Seen(2, 5, 5, 1), doubt=False)},
        "1 counters are wrong: n is 2, and has to be 1",
    ),
    "more than was in doubt": (
        {"records": with_counted(Seen(3, 5, 5, 1))},
        "1 counters are wrong: n is 3, and has to be from 1 to 2",
    ),
    "a counter that nobody has read": (
        {"records": [one for one in GOOD.records if one is not COUNTED]},
        "1 counters are wrong: n is None",
    ),
    "no add that was acknowledged": (
        {"records": GOOD.records[:6]},
        "no add was acknowledged: the run shows nothing",
    ),
    "an early expiry": (
        {"leases": [*LEASES, lease(12.5, GET, found=False)]},
        "1 answers say that a key has expired early",
    ),
    "no expiry": (
        {"leases": [*LEASES[:-1], lease(21, GET, found=True, value="v", lifetime=4.7)]},
        "1 answers say that a key has expired late",
    ),
    "another value under a key that expires": (
        {"leases": [*LEASES, lease(12, GET, found=True, value="w", lifetime=3.0)]},
        "1 answers have a value that was replaced, or that nobody wrote",
    ),
    "no key that expires": (
        {"leases": []},
        "no key was seen to live, and to expire: the run shows nothing",
    ),
    "a revision that is left out": (
        {"watches": watches([*HISTORY[:3], *HISTORY[4:]])},
        "1 times the watch of all was told out of order, or not all:\n    3 is followed by 5",
    ),
    "a beginning that is left out": (
        {"watches": watches(HISTORY[1:])},
        "1 times the watch of all was told out of order, or not all:\n    0 is followed by 2",
    ),
    "a revision that comes twice": (
        {"watches": watches([*HISTORY[:4], HISTORY[3], *HISTORY[4:]])},
        "1 times the watch of all was told out of order, or not all:\n    revision 4 comes after 4",
    ),
    "revisions out of order": (
        {"watches": {**GOOD.watches, LATE: [HISTORY[1], HISTORY[0], *HISTORY[2:]]}},
        "3 times the watch of late was told out of order",
    ),
    "log time that runs backwards": (
        {"watches": other(replace(HISTORY[5], at=104.0))},
        "1 times the watch of all was told out of order, or not all:\n    revision 6 is of 104.0",
    ),
    "a change that was not asked for": (
        {"watches": {**GOOD.watches, "pairs": HISTORY[4:]}},
        "7 times the watch of pairs was told out of order",
    ),
    "a gap in one watch": (
        {"watches": {**GOOD.watches, "pairs": part(HISTORY[6:], "p")}},
        "1 revisions were told to the watch of pairs otherwise than to that of all",
    ),
    "a split revision": (
        {
            "watches": {
                **GOOD.watches,
                "pairs": [told(6, HISTORY[5].changes[0]), *part(HISTORY[6:], "p")],
            }
        },
        "1 revisions were told to the watch of pairs otherwise than to that of all",
    ),
    "half of a transaction": (
        {"watches": other(told(6, HISTORY[5].changes[0]))},
        "1 writes were not told as they were acknowledged:\n    revision 6",
    ),
    "another value than was acknowledged": (
        {"watches": other(told(7, put("t1", kept("w", 7, 110.0))))},
        "1 writes were not told as they were acknowledged:\n    revision 7",
    ),
    "an add that is not told": (
        {"watches": other(told(5, put(f"{LEDGER}2", kept("y", 5, version=2), kept("y", 3))))},
        "1 writes were not told as they were acknowledged:\n    n was 1 for 1 acknowledged adds",
    ),
    "a delete that nobody has made": (
        {"records": [one for one in GOOD.records if one.operation.invoked != 19]},
        "1 writes were not told as they were acknowledged:\n    d was deleted 0 times",
    ),
    "a write that had failed, and is told": (
        {"watches": other(told(3, put(f"{LEDGER}3", kept("z", 3))))},
        "1 changes were told that nobody has made, or that had failed",
    ),
    "something else before": (
        {"watches": other(told(4, put("k", K4, kept("c", 1))))},
        "1 changes do not follow from those before:\n    revision 4, put k: it had",
    ),
    "a write that was applied twice": (
        {"watches": other(told(4, put("k", K4._replace(version=3), K1)))},
        "1 changes do not follow from those before:\n    revision 4, put k: it has",
    ),
    "an expiry that comes twice": (
        {"watches": other(replace(EXPIRY, changes=EXPIRY.changes * 2))},
        "1 changes do not follow from those before:\n    revision 8, expire t1: it had None",
    ),
    "an expiry before its time": (
        {"watches": other(replace(EXPIRY, at=107.5))},
        "1 changes do not follow from those before:\n    revision 8, expire t1: it expires at",
    ),
    "an expiry that is not told": (
        {"watches": other(told(8, put(f"{LEDGER}2", kept("y", 8, version=6), kept("y", 3))))},
        "1 keys have a time to live, and were not told to have expired:\n    t1",
    ),
    "an end that is another": (
        {"records": [*GOOD.records, afterwards("k", Seen("a", 1, 1, 1))]},
        "1 keys were told to be otherwise than they are:\n    k: ",
    ),
    "a watch that hangs": (
        {"watches": {**GOOD.watches, "leases": part(HISTORY[:-1], "t")}},
        "the watch of leases has not come to the end",
    ),
    "no watch": ({"watches": {}}, "the watches were told of no write, or of no expiry"),
    "no ledger": (
        {"records": GOOD.records[:1], "ledger": {}},
        "no write to the ledger was acknowledged",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=WRONG)
def test_each_wrong_is_found(changes: dict[str, Any], expected: str) -> None:
    assert any(finding.startswith(expected) for finding in findings(**changes)), findings(**changes)


CERTAIN = [lease(0, PUT, ttl=10.0, value="v", revision=1)]
DOUBTFUL = [*CERTAIN, lease(2, PUT, IN_DOUBT, ttl=1.0, value="w")]
TOUCHED = [*CERTAIN, lease(2, TOUCH, found=True, ttl=20.0)]
REPLACED = [*TOUCHED, lease(3, PUT, ttl=1.0, value="w", revision=2)]
RACING = [*CERTAIN, lease(2, TOUCH, found=True, ttl=1.0), lease(2.1, TOUCH, found=True, ttl=20.0)]
WAITED = [
    *CERTAIN,
    lease(2, TOUCH, found=False, ttl=1.0),
    lease(2, TOUCH, CallOutcome.FAILED, ttl=1.0),
]


@pytest.mark.parametrize(
    ("writes", "read", "wrong"),
    [
        (CERTAIN, lease(9.4 - EARLY_SECONDS, GET, found=False), "early"),
        (CERTAIN, lease(9.6 - EARLY_SECONDS, GET, found=False), ""),
        (CERTAIN, lease(10.4 + LATE_SECONDS, TTL, found=True, left=0.1), ""),
        (CERTAIN, lease(10.6 + LATE_SECONDS, TTL, found=True, left=0.1), "late"),
        (CERTAIN, lease(4, TTL, found=True, left=4.9), "early"),
        (CERTAIN, lease(4, TTL, found=True, left=6.0), ""),
        (CERTAIN, lease(4, TTL, found=True, left=9.9), "late"),
        (CERTAIN, lease(4, GET, found=True, value="v", lifetime=9.0), "lifetime"),
        (CERTAIN, lease(4, TOUCH, found=False, ttl=5.0), "early"),
        (CERTAIN, lease(20, TOUCH, found=True, ttl=5.0), "late"),
        (DOUBTFUL, lease(4, GET, found=False), ""),
        (DOUBTFUL, lease(4, TTL, found=True, left=6.0), ""),
        (TOUCHED, lease(11, GET, found=False), "early"),
        (TOUCHED, lease(21, GET, found=True, value="v", lifetime=22.0), ""),
        (REPLACED, lease(5, GET, found=False), ""),
        (REPLACED, lease(9, GET, found=True, value="w", lifetime=1.0), "late"),
        (REPLACED, lease(3.6, GET, found=True, value="v", lifetime=22.0), "value"),
        (REPLACED, lease(3.2, GET, found=True, value="v", lifetime=22.0), ""),
        (RACING, lease(4, GET, found=False), ""),
        (RACING, lease(20, TTL, found=True, left=2.0), ""),
        (WAITED, lease(11, GET, found=False), "early"),
    ],
)
def test_when_a_key_expires(writes: list[LeaseCall], read: LeaseCall, wrong: str) -> None:
    """A read is judged by each write that may be the last one before it."""
    _, found = look_into_leases([*writes, read])
    found = [one for one in found if "shows nothing" not in one]
    assert [wrong in one for one in found] == [True] * bool(wrong), found


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
