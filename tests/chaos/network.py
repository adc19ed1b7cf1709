"""What the faults ask of a network: for each direction between two nodes, how good it is.

Two networks do that: `namespaces.py`, where every node has a network of its own and packets
are dropped by the kernel, and `proxies.py`, where nodes reach one another through this
process. Clients reach every node in both, whatever the nodes suffer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Quality:
    """How packets fare on their way from one node to another."""

    blocked: bool = False
    loss: float = 0.0
    """The share that is lost, 0 to 1."""
    delay_ms: int = 0


BLOCKED: Final = Quality(blocked=True)

Qualities = Mapping[tuple[str, str], Quality]
"""By (sender, recipient); whatever is not there is perfect."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node lives."""

    name: str
    address: str
    """By which other nodes and clients know it."""
    listen: str
    """Where it listens; answers are to be had there whatever the network suffers."""
    prefix: tuple[str, ...] = ()
    """What a command begins with to run there."""


class Network(Protocol):
    @property
    def kind(self) -> str:
        """For the report."""
        ...

    @property
    def places(self) -> Mapping[str, Place]:
        """By the name of the node; more than a cluster begins with."""
        ...

    @property
    def lacks_delay(self) -> str:
        """Why it cannot delay packets; "" if it can."""
        ...

    async def set(self, qualities: Qualities) -> None:
        """Make the network so, in place of what it was."""
        ...


def between(names: tuple[str, ...], others: tuple[str, ...]) -> dict[tuple[str, str], Quality]:
    """Both directions between two sides, blocked."""
    return {
        pair: BLOCKED for one in names for other in others for pair in ((one, other), (other, one))
    }
