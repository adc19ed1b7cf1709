"""Runs simulations, and shrinks those that fail: `python -m tests.sim --help`."""

import argparse
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.sim.campaign import run_all
from tests.sim.plan import KINDS, Plan
from tests.sim.shrink import shrink
from tests.sim.simulation import Simulation, Violation


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    kinds = frozenset(KINDS if options.kinds is None else options.kinds.split(","))
    if unknown := kinds - frozenset(KINDS):
        print(f"unknown kinds of faults: {', '.join(sorted(unknown))}")
        return 2
    first, last = _seeds(options.seeds)
    plans = (
        Plan(seed, options.events, kinds, frozenset(options.without)) for seed in range(first, last)
    )
    if options.trace:
        return _tell(next(plans))
    print(f"seeds {first}:{last}, {options.events} events each", flush=True)
    began = time.monotonic()
    failures: list[Violation] = []
    total: Counter[str] = Counter()
    seeds = events = 0
    slowest = (0, 0)
    worked = 0.0
    for result in run_all(plans, options.jobs, began + options.budget_seconds):
        seeds, events = seeds + result.seeds, events + result.events
        total += result.counts
        worked += result.seconds
        slowest = max(slowest, result.slowest)
        failures += result.failures
        if failures and not options.keep_going:
            break
    seconds = time.monotonic() - began
    _summarise(total)
    print(
        f"{seeds} runs, {events} events in {seconds:.0f} s:"
        f" {worked / max(1, events) * 1e6:.0f} us of a processor per event;"
        f" after healing, seed {slowest[1]} took longest: {slowest[0]} ticks"
    )
    for failure in failures[: None if options.no_shrink else 1]:
        _report(failure, shrink_seconds=0 if options.no_shrink else 60)
    return 1 if failures or not seeds else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", help="A:B, or one seed (default: fresh ones, by the date)")
    parser.add_argument("--events", type=int, default=5000, help="a run, before it is healed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"))
    parser.add_argument("--kinds", help="faults of these kinds alone, separated by commas")
    parser.add_argument("--without", type=_numbers, default=(), help="leave these faults out")
    parser.add_argument("--trace", action="store_true", help="tell all that happens with one seed")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--keep-going", action="store_true", help="beyond the first failure")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one)


def _seeds(text: str | None) -> tuple[int, int]:
    if text is None:
        first = int(datetime.now(UTC).strftime("%Y%m%d%H%M")) * 100_000
        return first, first + 100_000
    first_text, _, last_text = text.partition(":")
    first = int(first_text)
    return first, int(last_text) if last_text else first + 1


class _Notes(logging.Handler):
    """Puts what the nodes log between what happens."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        who = getattr(record, "node", ""), getattr(record, "role", "")
        self._simulation.note("log:", *who, record.getMessage())


def _tell(plan: Plan) -> int:
    simulation = Simulation(plan, keep_trace=True)
    logger = logging.getLogger("kvorum.node")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(_Notes(simulation))
    try:
        outcome = simulation.run()
    except Violation as violation:
        print("\n".join(violation.story))
        print(violation)
        return 1
    print("\n".join(simulation.story()))
    _summarise(outcome.counts)
    return 0


def _summarise(counts: Counter[str]) -> None:
    for name in sorted(counts):
        print(f"  {name:28} {counts[name]}")


def _report(failure: Violation, *, shrink_seconds: float) -> None:
    print(f"\n{failure}\n  {command(failure.plan)}", flush=True)
    if not shrink_seconds:
        return
    deadline = time.monotonic() + shrink_seconds
    logging.getLogger("kvorum").setLevel(logging.CRITICAL)
    smallest = shrink(failure, enough=lambda: time.monotonic() > deadline)
    print("\n".join(smallest.story))
    print(f"\n{smallest}\nrepeat it, and see all of it:\n  {command(smallest.plan)} --trace")


def command(plan: Plan) -> str:
    """What repeats the run of the plan."""
    words = ["python", "-m", "tests.sim", "--seeds", str(plan.seed), "--events", str(plan.events)]
    if plan.kinds != frozenset(KINDS):
        words += ["--kinds", ",".join(sorted(plan.kinds))]
    if plan.without:
        words += ["--without", ",".join(str(number) for number in sorted(plan.without))]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
