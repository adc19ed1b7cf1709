"""The simulator misses guards that are taken away: those that it misses soon, on every test run.

`make sim-mutants` shows the same of all of them.
"""

import pytest

from tests.sim.mutants import MUTANTS, seeds_until_found
from tests.sim.plan import Plan
from tests.sim.simulation import Simulation

SOON = {
    "any-log-wins",
    "change-before-the-last-one",
    "commit-by-counting",
    "commit-without-own-sync",
    "forget-the-vote",
    "keep-truncated-configurations",
    "learners-count",
    "leave-at-once",
    "promise-before-the-sync",
    "refuse-what-is-in-doubt",
    "vote-twice",
}


@pytest.mark.parametrize("name", sorted(SOON))
def test_a_guard_that_is_gone_is_missed(name: str) -> None:
    [mutant] = [one for one in MUTANTS if one.name == name]

    assert seeds_until_found(mutant, range(100), events=3000) is not None
    # And it is the mutant that was found, not the seed.
    assert Simulation(Plan(0, 500)).run().counts["committed"] > 0
