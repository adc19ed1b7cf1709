"""What a run has shown: is every history linearizable, is anything lost, do the nodes agree?

Rule of this file: a run that did nothing proves nothing. No call, no fault, or a verdict that
was not reached are findings like a lost write.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.client import LEDGER
from tests.chaos.leases import LeaseCall, LeaseFigures, look_into_leases
from tests.chaos.watches import Told, WatchFigures, last_reads, look_into_watches
from tests.support.histories import CallOutcome, Record, operations
from tests.support.linearizability import MAX_STEPS, Outcome, Verdict, check
from tests.support.linearizability_kvorum import (
    Add,
    Get,
    Kvorum,
    Put,
    revisions_out_of_order,
)

SHOWN: Final = 5
"""How many of a kind a finding names."""


@dataclass(frozen=True, slots=True)
class Event:
    """One fault. Times in seconds on the clock of the histories."""

    fault: str
    what: str
    struck: float
    repaired: float
    recovered: float
    """When a write had succeeded after the repair."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a node holds at the end."""

    revision: int
    hash: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a run has left."""

    records: Sequence[Record]
    events: Sequence[Event]
    ledger: Mapping[str, object]
    """What the store holds of it at the end."""
    contents: Mapping[str, Content]
    leases: Sequence[LeaseCall]
    watches: Mapping[str, Sequence[Told]]
    """By their names: what each was told."""
    accidents: Sequence[str]
    """What went wrong on the way: nodes that ended by themselves, what came too late."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Adds to counters; each counter has been read at the end."""

    counters: int
    acknowledged: int
    in_doubt: int
    """Such an add may have counted, and may not."""


@dataclass(frozen=True, slots=True)
class Judgement:
    findings: Sequence[str]
    """What is wrong; nothing if the run has passed."""
    verdict: Verdict
    calls: Mapping[str, int]
    """By outcome."""
    errors: Mapping[str, int]
    """By the name of the error."""
    acknowledged_writes: int
    """To the ledger."""
    lost_writes: int
    counters: Counters
    leases: LeaseFigures
    watches: WatchFigures
    stalls: Mapping[str, "Stall"] = field(default_factory=dict)
    """By fault."""

    @property
    def passed(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class Stall:
    """How long nobody's write was acknowledged, at most, and how often the fault struck."""

    times: int
    longest_fault_seconds: float
    longest_seconds: float
    longest_after_repair_seconds: float


def judge(evidence: Evidence, *, max_steps: int = MAX_STEPS) -> Judgement:
    """Look at everything; `max_steps` as for `check`."""
    findings = [*evidence.accidents]
    calls: list[Record | LeaseCall] = [*evidence.records, *evidence.leases]
    outcomes = Counter(call.outcome.value for call in calls)
    errors = Counter(call.error.partition(":")[0] for call in calls if call.error)
    if not outcomes[CallOutcome.RETURNED.value]:
        findings.append("no call returned: the run shows nothing")
    if not evidence.events:
        findings.append("no fault struck: the run shows nothing")
    history = operations(evidence.records)
    verdict = check(history, Kvorum(), max_steps=max_steps)
    if verdict.outcome is not Outcome.LINEARIZABLE:
        findings.append(f"the history is not shown to be linearizable: {verdict.explanation}")
    if out_of_order := revisions_out_of_order(history):
        findings.append(f"revisions contradict time: {out_of_order}")
    acknowledged, lost = _look_into_ledger(evidence, findings)
    counters = _look_into_counters(evidence, findings)
    leases, wrong_leases = look_into_leases(evidence.leases)
    watches, wrong_watches = look_into_watches(evidence.watches, evidence.records, evidence.leases)
    findings += [*wrong_leases, *wrong_watches]
    if not evidence.contents:
        findings.append("the nodes were not compared")
    elif len(set(evidence.contents.values())) > 1:
        findings.append(f"the nodes hold different data: {dict(evidence.contents)}")
    return Judgement(
        findings=findings,
        verdict=verdict,
        calls=outcomes,
        errors=errors,
        acknowledged_writes=acknowledged,
        lost_writes=lost,
        counters=counters,
        leases=leases,
        watches=watches,
        stalls=_stalls(evidence),
    )


def _look_into_ledger(evidence: Evidence, findings: list[str]) -> tuple[int, int]:
    """How many writes to it were acknowledged, and how many of those are gone."""
    by_outcome: dict[CallOutcome, dict[str, object]] = {outcome: {} for outcome in CallOutcome}
    for record in evidence.records:
        for step in record.operation.request.operations:
            if isinstance(step, Put) and step.key.startswith(LEDGER):
                by_outcome[record.outcome][step.key] = step.value
    acknowledged = by_outcome[CallOutcome.RETURNED]
    lost = sorted(k for k, value in acknowledged.items() if evidence.ledger.get(k) != value)
    refused = sorted(evidence.ledger.keys() & by_outcome[CallOutcome.FAILED].keys())
    asked_for = set().union(*by_outcome.values())
    foreign = sorted(evidence.ledger.keys() - asked_for)
    for what, keys in (
        ("acknowledged writes are lost", lost),
        ("writes took effect although the client was told that they had not", refused),
        ("keys hold what nobody wrote", foreign),
    ):
        if keys:
            findings.append(f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}")
    if not acknowledged:
        findings.append("no write to the ledger was acknowledged: the run shows nothing")
    return len(acknowledged), len(lost)


def _look_into_counters(evidence: Evidence, findings: list[str]) -> Counters:
    """Each has what was acknowledged, and beyond that no more than what is in doubt."""
    sums: dict[CallOutcome, Counter[str]] = {outcome: Counter() for outcome in CallOutcome}
    adds: Counter[CallOutcome] = Counter()
    for record in evidence.records:
        for step in record.operation.request.operations:
            if isinstance(step, Add):
                sums[record.outcome][step.key] += step.amount
                adds[record.outcome] += 1
    counters = sums[CallOutcome.RETURNED].keys() | sums[CallOutcome.UNKNOWN].keys()
    found = {key: 0 if seen is None else seen.value for key, seen in last_reads(evidence.records)}
    wrong = []
    for key in sorted(counters):
        least = sums[CallOutcome.RETURNED][key]
        most = least + sums[CallOutcome.UNKNOWN][key]
        value = found.get(key)
        if not isinstance(value, int) or not least <= value <= most:
            expected = str(least) if least == most else f"from {least} to {most}"
            wrong.append(f"{key} is {value}, and has to be {expected}")
    if wrong:
        findings.append(f"{len(wrong)} counters are wrong: {'; '.join(wrong[:SHOWN])}")
    if not adds[CallOutcome.RETURNED]:
        findings.append("no add was acknowledged: the run shows nothing")
    return Counters(len(counters), adds[CallOutcome.RETURNED], adds[CallOutcome.UNKNOWN])


def _stalls(evidence: Evidence) -> dict[str, Stall]:
    """For each kind of fault the longest time without an acknowledged write while it had effect."""
    answers = sorted(_acknowledgements(evidence.records))
    found: dict[str, list[tuple[float, float, float]]] = {}
    for event in evidence.events:
        found.setdefault(event.fault, []).append(
            (
                event.repaired - event.struck,
                longest_gap(answers, event.struck, event.recovered),
                longest_gap(answers, event.repaired, event.recovered),
            )
        )
    return {
        fault: Stall(len(times), *(max(column) for column in zip(*times, strict=True)))
        for fault, times in sorted(found.items())
    }


def _acknowledgements(records: Iterable[Record]) -> Iterable[float]:
    for record in records:
        steps = record.operation.request.operations
        if record.outcome is CallOutcome.RETURNED and not all(isinstance(s, Get) for s in steps):
            yield record.operation.returned


def longest_gap(instants: Sequence[float], start: float, end: float) -> float:
    """Between the start, the instants (sorted) from then on, and the first one after the end."""
    first = bisect.bisect_left(instants, start)
    last = bisect.bisect_left(instants, end)
    within = [start, *instants[first : last + 1]]
    if last >= len(instants):
        within.append(max(end, within[-1]))
    return max((after - before for before, after in itertools.pairwise(within)), default=0.0)
