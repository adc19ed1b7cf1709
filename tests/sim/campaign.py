"""Many runs, in several processes."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context

from tests.sim.plan import Plan
from tests.sim.simulation import Simulation, Violation

BATCH = 20
"""Plans that a worker process is given at a time."""


@dataclass(frozen=True, slots=True)
class Result:
    seeds: int
    events: int
    counts: Counter[str]
    slowest: tuple[int, int]
    """How many ticks a healed cluster took at most, and the seed of that run."""
    seconds: float
    """Of the processor."""
    failures: list[Violation]


def run_all(plans: Iterator[Plan], jobs: int, deadline: float) -> Iterator[Result]:
    """Results of batches, as they come; none is begun after the deadline."""
    # Not forked: a fork would take along locks of libraries that are not made for it.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[Result]] = set()
        while True:
            while len(running) < jobs and time.monotonic() < deadline:
                batch = [plan for _, plan in zip(range(BATCH), plans, strict=False)]
                if not batch:
                    break
                running.add(pool.submit(run_batch, batch))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def run_batch(plans: Sequence[Plan]) -> Result:
    """One after the other, whatever they end with."""
    logging.getLogger("kvorum").setLevel(logging.CRITICAL)
    counts: Counter[str] = Counter()
    events = 0
    slowest = (0, 0)
    failures = []
    began = time.process_time()
    for plan in plans:
        simulation = Simulation(plan)
        try:
            outcome = simulation.run()
        except Violation as violation:
            failures.append(violation)
        else:
            counts += outcome.counts
            slowest = max(slowest, (outcome.lively_ticks, plan.seed))
        events += simulation.scheduler.events
    seconds = time.process_time() - began
    return Result(len(plans), events, counts, slowest, seconds, failures)
