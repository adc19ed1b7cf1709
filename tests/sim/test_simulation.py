"""Whole runs: the real node under faults, from fixed seeds, and what they are worth."""

import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from tests.sim.plan import KINDS, Plan
from tests.sim.simulation import Outcome, Simulation

ROOT = Path(__file__).parents[2]
EVENTS = 3000
SEEDS = range(64)
BATCH = 8

outcomes: dict[int, Outcome] = {}
"""Of the runs below, for the tests that look at all of them together."""


def outcome_of(seed: int) -> Outcome:
    if seed not in outcomes:
        outcomes[seed] = Simulation(Plan(seed, EVENTS)).run()
    return outcomes[seed]


@pytest.mark.parametrize("first", SEEDS[::BATCH])
def test_what_must_hold_holds_under_faults_and_a_healed_cluster_makes_progress(first: int) -> None:
    for seed in range(first, first + BATCH):
        assert outcome_of(seed).counts["committed"] > 0


def test_the_runs_are_worth_something() -> None:
    """What they are to be safe from does happen in them, and work is done meanwhile."""
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        counts += outcome_of(seed).counts

    missing = [kind for kind in KINDS if not counts[f"fault {kind}"]]
    assert missing == []
    runs = len(SEEDS)
    assert counts["terms"] > 2 * runs
    assert counts["committed"] > 40 * runs
    assert counts["client answered"] > 80 * runs
    assert counts["client in doubt"] > runs
    assert counts["starts"] > 5 * runs
    assert counts["ended by its disk"] > 3
    assert counts["snapshot completed"] > runs / 2
    assert counts["snapshot broken"] > 3
    assert counts["change completed"] > runs / 2
    assert counts["change refused"] > 3
    assert counts["removed"] > 3
    assert counts["history linearizable"] > 0
    assert counts["settled"] > 3
    assert counts["client sent again"] > 5 * runs
    assert counts["client answered again"] > runs / 2
    assert counts["client ResultForgotten"] > 3
    assert counts["client ClientForgotten"] > 3
    assert counts["client Compacted"] > 3
    assert counts["log times compared"] > 10 * runs
    assert counts["log times compared at takeovers"] > 10
    assert counts["watcher changes"] > 10 * runs
    assert counts["watcher parts"] > runs / 2
    assert counts["watcher moved"] > 10
    assert counts["watcher Compacted"] > 3


def test_faults_that_are_left_out_do_not_happen() -> None:
    kinds = frozenset({"crash", "isolate"})
    counts: Counter[str] = Counter()
    for seed in range(6):
        counts += Simulation(Plan(seed, EVENTS, kinds)).run().counts

    happened = {name for name in counts if name.startswith("fault ")}
    assert happened == {"fault crash", "fault isolate"}


TRACE_OF = """
from tests.sim.plan import Plan
from tests.sim.simulation import Simulation
simulation = Simulation(Plan({seed}, {events}), keep_trace=True)
simulation.run()
print("\\n".join(simulation.story()))
"""


def trace_in_a_process(seed: int, hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    code = TRACE_OF.format(seed=seed, events=EVENTS)
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True
    )
    return ran.stdout


@pytest.mark.parametrize("seed", [2, 5])
def test_the_same_seed_gives_the_same_run_byte_for_byte_in_any_process(seed: int) -> None:
    simulation = Simulation(Plan(seed, EVENTS), keep_trace=True)
    simulation.run()
    here = ("\n".join(simulation.story()) + "\n").encode()

    assert len(here.splitlines()) > EVENTS
    for hash_seed in ("1", "4711"):
        there = trace_in_a_process(seed, hash_seed)
        assert sha256(there).hexdigest() == sha256(here).hexdigest()


def test_another_seed_gives_another_run() -> None:
    one, other = (Simulation(Plan(seed, 300), keep_trace=True) for seed in (1, 2))
    one.run()
    other.run()

    assert one.story() != other.story()
