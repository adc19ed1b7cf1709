"""What a seed decides before a run begins: the cluster, the network, the clients, the faults.

Faults have numbers. Each is drawn from the seed and its number alone, so that leaving one
out leaves the others as they are; that is how a failing run is made smaller (shrink.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

WEIGHTS: Final[dict[str, int]] = {
    "crash": 12,
    "crash leader": 6,
    "power loss": 2,
    "stop": 5,
    "pause": 6,
    "pause leader": 5,
    "isolate": 5,
    "isolate leader": 6,
    "overthrow": 5,
    "split": 6,
    "one way": 7,
    "ring": 3,
    "slow disk": 5,
    "sync error": 2,
    "write error": 2,
    "clock rate": 4,
    "clock jump": 3,
    "wall clock": 3,
    "loss": 5,
    "duplication": 5,
    "delay": 5,
    "transfer": 6,
    "lose disks": 3,
    "change members": 40,
}
"""Every kind of fault, and how often it is drawn."""

OUTLASTED: Final = frozenset({"overthrow", "isolate leader", "pause leader"})
"""Those that last until the others have elected another leader, or nothing would come of them."""

KINDS: Final = tuple(WEIGHTS)


@dataclass(frozen=True, slots=True)
class Fault:
    number: int
    kind: str
    begins: float
    """In ticks, as all that is drawn here: what matters is how long an election takes."""
    lasts: float
    seed: str
    """Of all that it draws when it begins: whom it hits, and how hard."""


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    events: int
    kinds: frozenset[str] = frozenset(KINDS)
    """Faults of other kinds are left out."""
    without: frozenset[int] = field(default_factory=frozenset[int])
    """Faults with these numbers are left out."""

    def random(self, what: str) -> Random:
        """A source of chance of its own for one part of the run."""
        return Random(f"{self.seed} {what}")

    def faults(self) -> Iterator[Fault]:
        """All faults of the run, in order: without end, if there are any."""
        if not self.kinds:
            return
        random = self.random("faults")
        mean_gap = random.choice((6, 12, 25, 50))
        weights = [weight * random.choice((0, 1, 1, 1, 4)) or 0.01 for weight in WEIGHTS.values()]
        now, number = 0.0, 0
        while True:
            now += random.expovariate(1.0) * mean_gap
            [kind] = random.choices(KINDS, weights)
            lasts = random.choice((4, 15, 40, 80)) * random.random()
            if kind in OUTLASTED:
                lasts += 15
            if kind in self.kinds and number not in self.without:
                yield Fault(number, kind, now, lasts, f"{self.seed} fault {number}")
            number += 1
