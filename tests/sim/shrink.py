"""Makes a failing run smaller: fewer events, fewer kinds of faults, fewer faults.

Greedy: whatever can be left out while the same rule is broken stays out. What remains is a
Plan like any other, so that one command repeats it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.sim.plan import Plan
from tests.sim.simulation import Simulation, Violation

Stop = Callable[[], bool]


def failure_of(plan: Plan) -> tuple[Violation | None, frozenset[int]]:
    """How the run of the plan fails, if it does, and the faults that began in it."""
    simulation = Simulation(plan)
    try:
        simulation.run()
    except Violation as violation:
        return violation, frozenset(simulation.faults.begun)
    return None, frozenset(simulation.faults.begun)


def shrink(violation: Violation, *, enough: Stop) -> Violation:
    """The failure of the smallest plan that was found before it was `enough`."""
    best, begun = failure_of(violation.plan)
    if best is None:
        raise AssertionError(f"the run of {violation.plan} does not repeat itself")
    improved = True
    while improved and not enough():
        improved = False
        for smaller in _smaller(best, begun):
            if enough():
                break
            found, began = failure_of(smaller)
            if found is not None and found.rule == violation.rule:
                best, begun, improved = found, began, True
                break
    return best


def _smaller(violation: Violation, begun: frozenset[int]) -> Iterator[Plan]:
    plan = violation.plan
    if violation.event < plan.events:
        yield replace(plan, events=violation.event)
    if violation.event > plan.events:  # it failed after healing: less may have led there
        for part in (4, 2):
            if plan.events // part:
                yield replace(plan, events=plan.events // part)
    for kind in sorted(plan.kinds):
        yield replace(plan, kinds=plan.kinds - {kind})
    numbers = sorted(begun)
    size = len(numbers) // 2
    while size:
        for first in range(0, len(numbers), size):
            left_out = frozenset(numbers[first : first + size])
            yield replace(plan, without=plan.without | left_out)
        size //= 2
