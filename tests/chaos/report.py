"""The report of a run: report.json for programs, report.txt and the console for people."""

import io
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.chaos.judge import Judgement
from tests.chaos.run import Options, Outcome


def as_json(options: Options, outcome: Outcome, judgement: Judgement) -> dict[str, Any]:
    """Times of events are seconds since the start of the run."""
    events = [
        {
            **asdict(event),
            **{
                name: round(getattr(event, name) - outcome.started, 3)
                for name in ("struck", "repaired", "recovered")
            },
        }
        for event in outcome.evidence.events
    ]
    return {
        "passed": judgement.passed,
        "findings": list(judgement.findings),
        "seed": options.seed,
        "seconds": options.seconds,
        "nodes": options.nodes,
        "network": outcome.network,
        "node_flags": list(options.node_flags),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "log_lines": outcome.log_lines,
        "left_out": outcome.left_out,
        "calls": judgement.calls,
        "errors": judgement.errors,
        "acknowledged_ledger_writes": judgement.acknowledged_writes,
        "lost_ledger_writes": judgement.lost_writes,
        "counters": asdict(judgement.counters),
        "leases": asdict(judgement.leases),
        "watches": asdict(judgement.watches),
        "checker": {
            "outcome": judgement.verdict.outcome.value,
            "operations": judgement.verdict.operations,
            "partitions": judgement.verdict.partitions,
            "steps": judgement.verdict.steps,
        },
        "contents": {name: asdict(content) for name, content in outcome.evidence.contents.items()},
        "stalls": {fault: asdict(stall) for fault, stall in judgement.stalls.items()},
        "events": events,
    }


def write(options: Options, outcome: Outcome, judgement: Judgement) -> str:
    """Write both files, and return what is in the one for people."""
    content = as_json(options, outcome, judgement)
    text = as_text(options, outcome, judgement)
    (options.directory / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    (options.directory / "report.txt").write_text(text)
    return text


def as_text(options: Options, outcome: Outcome, judgement: Judgement) -> str:
    console = Console(file=io.StringIO(), width=100)
    table = Table(title=_title(options, outcome))
    table.add_column("fault")
    for column in ("times", "lasted up to", "longest stall", "after the repair"):
        table.add_column(column, justify="right")
    for fault, stall in judgement.stalls.items():
        seconds = (
            stall.longest_fault_seconds,
            stall.longest_seconds,
            stall.longest_after_repair_seconds,
        )
        table.add_row(fault, str(stall.times), *(f"{value:.2f} s" for value in seconds))
    console.print(table)
    for line in _summary(outcome, judgement):
        console.print(line, highlight=False, markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _title(options: Options, outcome: Outcome) -> str:
    return (
        f"{options.nodes} nodes, {options.seconds:.0f} s of faults, seed {options.seed},"
        f" network: {outcome.network}"
    )


def _summary(outcome: Outcome, judgement: Judgement) -> Sequence[str]:
    verdict = judgement.verdict
    errors = ", ".join(
        f"{count} {error}" for error, count in Counter(judgement.errors).most_common()
    )
    calls = ", ".join(f"{count} {name}" for name, count in judgement.calls.items())
    checked = f"{verdict.operations} operations in {verdict.partitions} partitions"
    contents = outcome.evidence.contents.values()
    writes, lost = judgement.acknowledged_writes, judgement.lost_writes
    counters, leases, watches = judgement.counters, judgement.leases, judgement.watches
    counted = (
        f"counters: {counters.counters}, {counters.acknowledged} adds acknowledged,"
        f" {counters.in_doubt} in doubt"
    )
    leased = (
        f"leases: {leases.writes} times set, {leases.found} found, {leases.expired} expired; up to"
        f" {leases.most_early_seconds:.3f} s early and {leases.most_late_seconds:.3f} s late"
    )
    revisions = ", ".join(f"{name} {count}" for name, count in watches.revisions.items())
    watched = (
        f"watches: {watches.changes} changes, {watches.expiries} expiries,"
        f" {watches.writes} acknowledged writes; revisions told: {revisions}"
    )
    return [
        f"calls: {calls}" + (f" ({errors})" if errors else ""),
        f"history: {verdict.outcome.value}, {checked}, {verdict.steps} steps",
        f"ledger: {writes} writes acknowledged, {lost} lost",
        counted,
        leased,
        watched,
        f"log time: strayed by {watches.log_time_stray_seconds:.3f} s",
        f"nodes: {len(contents)} compared, "
        + ("all hold the same" if len(set(contents)) == 1 else f"{len(set(contents))} contents"),
        f"logs: {', '.join(f'{count} {what}' for what, count in outcome.log_lines.items())}",
        *(f"left out: {fault}, {reason}" for fault, reason in outcome.left_out.items()),
        *(f"WRONG: {finding}" for finding in judgement.findings),
        "passed" if judgement.passed else "FAILED",
    ]


def remove(directory: Path, *patterns: str) -> None:
    """Remove what a run writes into its directory, and nothing else that may be there."""
    for pattern in patterns:
        for path in directory.glob(pattern):
            path.unlink()


HISTORIES: Final = ("c*.jsonl", "c*.log", "w*.jsonl", "w*.log", "n*.log")
REPORTS: Final = ("report.json", "report.txt")
