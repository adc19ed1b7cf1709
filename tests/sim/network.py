"""The simulated network: what is sent may be lost, come twice, late, or in another order.

Rules: a link is a direction, from one end to another. An end is a node's id, or a
negative number for a client. What is on its way when a link breaks is lost, or held
back and delivered late, as a lost packet that is sent again would be.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from tests.sim.scheduler import MILLISECOND, SECOND, Scheduler

Link = tuple[int, int]
Deliver = Callable[[Any], None]


class Network:
    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.mean_delay_us = MILLISECOND
        self.loss = 0.0
        self.duplication = 0.0
        self.late = 0.0
        """How likely something comes very late: up to `late_us`."""
        self.late_us = SECOND
        self.ordered = False
        """Whether a link keeps the order of what is sent over it."""
        self.counts: Counter[str] = Counter()
        self._scheduler = scheduler
        self._random = random
        self._broken: Counter[Link] = Counter()
        self._last_arrival_us: dict[Link, int] = {}

    def send(
        self,
        link: Link,
        what: Any,
        deliver: Deliver,
        lost: Deliver | None = None,
        *,
        once: bool = False,
    ) -> None:
        """Have `deliver` called with it, or else `lost`.

        With `once` it never comes twice, as a request on a stream never does.
        """
        random = self._random
        if self.loss and random.random() < self.loss:
            self._lose(what, lost)
            return
        self._travel(link, what, deliver, lost)
        if self.duplication and not once and random.random() < self.duplication:
            self.counts["duplicated"] += 1
            self._travel(link, what, deliver, None)

    def break_links(self, links: Iterable[Link]) -> None:
        """Break links; each has to be mended as often as it was broken."""
        self._broken.update(links)

    def mend_links(self, links: Iterable[Link]) -> None:
        for link in links:
            self._broken[link] -= 1
            if not self._broken[link]:
                del self._broken[link]

    def is_broken(self, link: Link) -> bool:
        return link in self._broken

    def calm(self, *, mean_delay_us: int) -> None:
        """Mend all links, and let nothing go wrong any more but what is still under way."""
        self.mean_delay_us = min(self.mean_delay_us, mean_delay_us)
        self._broken.clear()
        self.loss = self.duplication = self.late = 0.0

    def _travel(self, link: Link, what: Any, deliver: Deliver, lost: Deliver | None) -> None:
        random, scheduler = self._random, self._scheduler
        delay_us = 50 + int(random.expovariate(1.0) * self.mean_delay_us)
        if self.late and random.random() < self.late:
            self.counts["late"] += 1
            delay_us += random.randint(0, self.late_us)
        if self.ordered:
            arrival_us = max(scheduler.now_us + delay_us, self._last_arrival_us.get(link, 0))
            self._last_arrival_us[link] = arrival_us
            delay_us = arrival_us - scheduler.now_us
        scheduler.after(delay_us, self._arrive, link, what, deliver, lost)

    def _arrive(self, link: Link, what: Any, deliver: Deliver, lost: Deliver | None) -> None:
        if link in self._broken:
            if self._random.random() < 0.2:
                self.counts["held back"] += 1
                delay_us = self._random.randint(0, self.late_us)
                self._scheduler.after(delay_us, self._arrive, link, what, deliver, lost)
            else:
                self._lose(what, lost)
            return
        deliver(what)

    def _lose(self, what: Any, lost: Deliver | None) -> None:
        self.counts["lost"] += 1
        if lost is not None:
            self._scheduler.after(self.mean_delay_us, lost, what)
