"""What a process says of itself to whoever looks after it: does it live, is it ready?

    alive   it would do nothing but harm to restart it. It is not alive once its event loop,
            or the driver in one turn with its disk, has not come on for STUCK_SECONDS. Whether
            there is a quorum, a leader, or a quick answer has no part in that: a restart would
            bring none of them. Nor has how long it takes to start.
    ready   it is of use to clients: it knows a leader, freshly, has caught up, and is neither
            starting nor ending. If not, each reason is given in words.

Rules of this file. What is counted is counted by the event loop in *looks*, one a second, so
that time in which the process stood still as a whole (a suspended machine) condemns nobody.
All that other threads read is one value, replaced as a whole: they can ask whatever the
event loop is doing.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from kvorum.errors import KvorumError
from kvorum_node import exposition
from kvorum_node.node import Node
from kvorum_node.raft.leader import Leader

LOOK_SECONDS: Final = 1.0

STUCK_SECONDS: Final = 120.0
"""After how long without progress a process is not alive.

A disk may hang for a minute and come back (a volume that moves, a storage array that fails
over), perhaps for all members at once. To kill them for it would add the replay of their
logs to the outage; and meanwhile the cluster does without the node, as its leadership ends
after an election time-out. Linux calls a task hung after the same time."""

SILENT_SECONDS: Final = 5.0
"""A loop that has not come on for so long is of no use to clients."""

ANSWER_SECONDS: Final = 1.0
"""How long a loop that looks stuck is given to prove the contrary."""

METRICS_SECONDS: Final = 5.0
"""How long the event loop may take until it has made the metrics."""

MAX_LAG_ENTRIES: Final = 1_000
"""So many entries that are known to be committed may wait to be applied."""

MIN_BEHIND_SECONDS: Final = 5.0
BEHIND_ELECTION_TIMEOUTS: Final = 5
"""A follower may lack what was committed within so long: five election time-outs, and at least
five seconds."""


class Unanswered(Exception):
    """There are no metrics now; the message says why."""


class Probes:
    """Of one process. Made, and changed, on the event loop; asked in any thread."""

    def __init__(
        self,
        name: str,
        *,
        election_timeout_seconds: float = 1.0,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        """Begin as a process that starts. `name` is whose it is, as far as that is known."""
        self.is_ready = False
        self.is_ending = False
        self._name = name
        self._behind_seconds = max(
            MIN_BEHIND_SECONDS, BEHIND_ELECTION_TIMEOUTS * election_timeout_seconds
        )
        self._stuck_seconds = stuck_seconds
        self._loop = asyncio.get_running_loop()
        self._node: Node | None = None
        self._phase: str | None = f"{name} is starting"
        self._changed = asyncio.Event()
        self._forget_node: Callable[[], None] = lambda: None
        self._looked_at = time.monotonic()
        self._ticked_at = 0.0
        self._looks_in_turn = 0
        self._why_not_ready: tuple[str, ...] = (self._phase,)

    # On the event loop.

    def starting(self, doing: str) -> None:
        """The node is not there yet, because of this."""
        self._phase = f"{self._name} is starting: {doing}"
        self.look()

    def serving(self, node: Node) -> None:
        """The node is there, and has been started."""
        self._node, self._name = node, str(node)
        if not self.is_ending:  # it may have been told to stop just now
            self._phase = None
        self._forget_node = node.listen(self._see)
        self.look()

    def ending(self) -> None:
        """The process was told to stop, or must."""
        self.is_ending = True
        self._phase = f"{self._name} is shutting down"
        self.look()

    def close(self) -> None:
        """The node is there no more. What was asked of the loop may never be answered."""
        self._forget_node()
        self._node = None

    async def run(self) -> None:
        """Look, once a second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """The loop comes on. Does the driver?"""
        self._looked_at = time.monotonic()
        node = self._node
        if node is None or self._phase is not None:  # an end has a bound of its own
            self._looks_in_turn = 0
        elif node.group.ticked_at != self._ticked_at:
            self._ticked_at, self._looks_in_turn = node.group.ticked_at, 0
        else:
            self._looks_in_turn += 1
        self._see()

    def _see(self) -> None:
        """Notice whether the node is ready, and let those know who wait for a change."""
        before = self.is_ready, self.is_ending
        if self._phase is not None or self._node is None:
            self._why_not_ready = (self._phase or f"{self._name} is starting",)
        else:
            self._why_not_ready = tuple(why_not_ready(self._node, self._behind_seconds))
        self.is_ready = not self._why_not_ready
        if before != (self.is_ready, self.is_ending):
            self._changed.set()
            self._changed = asyncio.Event()

    @property
    def change(self) -> asyncio.Event:
        """Is set once the node is ready, or is no more, or ends. Take it before you look."""
        return self._changed

    # In any thread but that of the event loop.

    def why_not_alive(self) -> list[str]:
        """Empty if it is alive. Takes a moment only where it is about to be condemned."""
        silent = time.monotonic() - self._looked_at
        if silent > self._stuck_seconds and not self._loop_answers():
            return [f"the event loop has not come on for {silent:.0f} s"]
        in_turn = self._looks_in_turn * LOOK_SECONDS
        if in_turn > self._stuck_seconds:
            return [f"the driver has been in one turn for {in_turn:.0f} s: its disk hangs"]
        return []

    def why_not_ready(self) -> list[str]:
        """Each reason in words; empty if it is ready."""
        why = list(self._why_not_ready)
        silent = time.monotonic() - self._looked_at
        if silent > SILENT_SECONDS:
            why.append(f"the event loop has not come on for {silent:.0f} s")
        return why

    def metrics(self) -> bytes:
        """In Prometheus' text format, made on the event loop.

        Raises:
            Unanswered: the loop has not answered in time.
        """
        made: Future[bytes] = Future()

        def make() -> None:
            if not made.set_running_or_notify_cancel():
                return
            try:
                made.set_result(exposition.render(self._node))
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                made.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(make)
            return made.result(METRICS_SECONDS)
        except TimeoutError:
            made.cancel()
            raise Unanswered(
                f"the event loop has not answered within {METRICS_SECONDS:.0f} s"
            ) from None

    def _loop_answers(self) -> bool:
        answered = threading.Event()
        self._loop.call_soon_threadsafe(answered.set)
        return answered.wait(ANSWER_SECONDS)


def why_not_ready(node: Node, behind_seconds: float) -> list[str]:
    """What keeps a node that serves from being of use to clients."""
    raft, group = node.group.raft, node.group
    why = []
    if node.id in raft.configuration.joining:
        why.append(f"{node} is joining: it is no voter yet")
    elif node.id not in raft.configuration.members:
        why.append(f"{node} is no member, as far as it knows")
    if not node.hears_leader():
        why.append(f"{node} hears no leader")
    elif not isinstance(raft.role, Leader):
        try:
            group.require_fresh(round(behind_seconds * 1000))
        except KvorumError as error:
            why.append(str(error))
    elif not raft.role.established:
        why.append(f"{node} leads, and no majority has confirmed it yet")
    lag = raft.log.committed - group.machine.applied
    if lag > MAX_LAG_ENTRIES:
        why.append(f"{node} has {lag:,} committed entries to apply")
    return why
