"""The simulator misses guards that are taken away: those that it misses soon, on every test run.

`make sim-mutants` shows the same of all of them.
"""

import pytest

from tests.sim.mutants import MUTANTS, seeds_until_found
from tests.sim.plan import Plan
from tests.sim.simulation import Simulation

SOON = {
    "answer-before-the-time",
    "any-log-wins",
    "apply-a-retry",
    "catch-up-from-the-newest",
    "change-before-the-last-one",
    "commit-by-counting",
    "compact-one-more",
    "drop-what-has-no-room",
    "forget-the-vote",
    "install-without-clients",
    "keep-the-first-expiry",
    "keep-truncated-configurations",
    "lead-by-the-wall-clock",
    "learners-count",
    "leave-at-once",
    "promise-before-the-sync",
    "refuse-what-is-in-doubt",
    "run-what-was-acknowledged",
    "skip-what-a-snapshot-brings",
    "sweep-what-the-proposer-has-seen",
    "tell-in-pieces",
    "vote-twice",
}


@pytest.mark.parametrize("name", sorted(SOON))
def test_a_guard_that_is_gone_is_missed(name: str) -> None:
    [mutant] = [one for one in MUTANTS if one.name == name]

    assert seeds_until_found(mutant, range(100), events=3000) is not None
    # And it is the mutant that was found, not the seed.
    assert Simulation(Plan(0, 500)).run().counts["committed"] > 0
