"""What nodes have done between two readings of them: rates, and latencies from histograms.

Rules: a rate is of what the node itself says has passed (its uptime), so neither the way to it
nor a slow reader changes it. A node that was restarted in between, or did not answer
twice, has none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kvorum.cli import node_view
from kvorum.errors import KvorumError

if TYPE_CHECKING:
    from kvorum.admin import Status, Survey
    from kvorumpb.v1 import cluster_pb2

RATES: Final = ("reads", "writes", "changes_told", "failures")
"""Counters of Activity."""
LATENCIES: Final = ("read", "write", "sync", "apply")
"""Histograms of Activity, without `_latency`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two histograms of one process, the later one first."""

    now: "cluster_pb2.Latencies"
    before: "cluster_pb2.Latencies"

    def quantile_ms(self, share: float) -> float | None:
        """How long the share of all at most took, in milliseconds; None if there were none.

        Between two bounds, all that took so long are taken for spread evenly. What is above
        the last bound is infinite: nobody knows how long it took.
        """
        count = self.now.count - self.before.count
        if count <= 0 or list(self.now.bounds_seconds) != list(self.before.bounds_seconds):
            return None
        wanted, below, lower = share * count, 0, 0.0
        counts = zip(self.now.counts, self.before.counts, strict=True)
        for bound, (now, before) in zip(self.now.bounds_seconds, counts, strict=True):
            here = now - before
            if here and below + here >= wanted:
                return 1000 * (lower + (bound - lower) * (wanted - below) / here)
            below, lower = below + here, bound
        return float("inf")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of one reading."""

    name: str
    """Empty if nobody knows it."""
    address: str
    status: "Status | None"
    problem: str | None
    """Why there is no status."""
    behind: int | None
    """Entries of the leader's log that it is not known to have; None without a leader."""
    previous: "Status | None"
    """Of the reading before, if it is of the same process."""

    @property
    def to_apply(self) -> int | None:
        status = self.status
        return None if status is None else status.commit_index - status.applied_index

    def rate(self, counter: str) -> float | None:
        """Of a counter in RATES, a second."""
        if self.status is None or self.previous is None:
            return None
        now, before = self.status.activity, self.previous.activity
        seconds = (now.uptime_ms - before.uptime_ms) / 1000
        return float(getattr(now, counter) - getattr(before, counter)) / seconds

    def latency_ms(self, kind: str, share: float) -> float | None:
        """Of a kind in LATENCIES: what so large a share of them took at most."""
        if self.status is None or self.previous is None:
            return None
        now: cluster_pb2.Latencies = getattr(self.status.activity, f"{kind}_latency")
        before: cluster_pb2.Latencies = getattr(self.previous.activity, f"{kind}_latency")
        return Pair(now, before).quantile_ms(share)

    def describe(self) -> dict[str, Any]:
        """For JSON; null is what is not known, or has not happened."""
        status = self.status
        latencies = {
            kind: {
                name: _finite(self.latency_ms(kind, share))
                for name, share in (("p50", 0.5), ("p99", 0.99))
            }
            for kind in LATENCIES
        }
        return {
            "name": self.name or None,
            "address": self.address,
            "role": node_view.role(status),
            **node_view.counters(status),
            "behind": self.behind,
            **{f"{counter}_per_second": self.rate(counter) for counter in RATES},
            "latency_ms": latencies,
            "watches": status.watches if status else None,
            "log_bytes": status.log_bytes if status else None,
            **node_view.space(status),
            "uptime_ms": status.activity.uptime_ms if status else None,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """All nodes at a time, by name."""

    nodes: tuple[Node, ...]
    leader: str | None
    """The name of the node that leads."""
    term: int | None

    @property
    def answers(self) -> "list[Status]":
        return [node.status for node in self.nodes if node.status is not None]


def read(survey: "Survey", before: Reading | None) -> Reading:
    """What the survey has found, and what that is since the reading before."""
    leading, best = survey.led_view, survey.best
    names = {node.address: node.name for node in before.nodes} if before else {}
    behind: dict[str, int] = {}
    for status in survey.answers.values():
        names |= {member.address: member.name for member in status.members}
    if leading is not None:
        # Of a member that the leader has never heard it knows nothing, which is a match of 0.
        known = [one for one in leading.members if one.match_index or one.active]
        behind = {one.name: node_view.lag(one, leading) for one in known}
    previous = {status.name: status for status in before.answers} if before else {}
    nodes = [
        _node(address, outcome, names, behind, previous)
        for address, outcome in survey.outcomes.items()
    ]
    return Reading(
        tuple(sorted(nodes, key=lambda node: (_natural(node.name), node.address))),
        leading.name if leading is not None else None,
        best.term if best is not None else None,
    )


def _node(
    address: str,
    outcome: "Status | KvorumError",
    names: Mapping[str, str],
    behind: Mapping[str, int],
    previous: "Mapping[str, Status]",
) -> Node:
    if isinstance(outcome, KvorumError):
        name = names.get(address, "")
        return Node(name, address, None, str(outcome), behind.get(name), None)
    name = outcome.name
    return Node(name, address, outcome, None, behind.get(name), _earlier(outcome, previous))


def _earlier(status: "Status", previous: "Mapping[str, Status]") -> "Status | None":
    """The reading before of the same process, from which time has passed."""
    before = previous.get(status.name)
    if before is None or before.cluster_id != status.cluster_id:
        return None
    return before if before.activity.uptime_ms < status.activity.uptime_ms else None


def _natural(name: str) -> tuple[int, str]:
    """n2 comes before n10, and who has no name comes last."""
    digits = name.removeprefix("n")
    return (int(digits) if digits.isdecimal() else 1 << 62, name)


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return None if value is None or value == float("inf") else round(value, 3)


def problems(nodes: Iterable[Node]) -> list[str]:
    """Who does not answer, and why."""
    return [
        f"{node.name or node.address}: {node.problem}" for node in nodes if node.problem is not None
    ]
