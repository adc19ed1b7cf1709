"""Simulated time: a heap of what is going to happen, taken one event at a time.

Rules: time is an integer of microseconds, and moves only when an event is taken. Two
events of one moment happen in the order in which they were planned. So a run depends
on nothing but what its actions do.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

MILLISECOND: Final = 1_000
SECOND: Final = 1_000_000

Action = Callable[..., None]


class Scheduler:
    def __init__(self) -> None:
        self.now_us = 0
        self.events = 0
        """How many were taken."""
        self._planned: list[tuple[int, int, Action, tuple[Any, ...]]] = []
        self._sequence = 0

    def after(self, delay_us: int, action: Action, *arguments: Any) -> None:
        """Plan an action; a delay below zero is none."""
        self._sequence += 1
        heappush(self._planned, (self.now_us + max(0, delay_us), self._sequence, action, arguments))

    def take(self) -> Action:
        """Let the next event happen; returns what it was. There is always one: clocks tick."""
        self.now_us, _, action, arguments = heappop(self._planned)
        self.events += 1
        action(*arguments)
        return action
