"""Exactly once: what the store has answered to each write of each client.

Rules: a write is known by its client and its sequence; its result is kept until the
client has acknowledged it; a write of a client that is not known is refused, never run.
When there are too many clients, the one that has been idle longest is forgotten.
(Raft dissertation, section 6.3.)

The windows are in memory, and each entry leaves one row a client on the disk: the
results of the client's writes in it, and how far it had acknowledged. A row goes when all
of its results are acknowledged, but for a client's newest one, which says that it is known.

    CLIENT row = log time? ...
"""

from kvorum_node.machine.tables import Table
from kvorum_node.raft.types import Index
from kvorumpb.v1.command_pb2 import TransactionResult


class Clients:
    """The clients of a group."""

    def register(self, client_id: int) -> None:
        """Know the client from here on."""

    def recall(self, client_id: int, sequence: int) -> TransactionResult | None:
        """What the write was answered, or is to be answered without running it; None: run it."""
        return None

    def remember(
        self, client_id: int, sequence: int, acknowledged: int, result: TransactionResult
    ) -> None:
        """The write has run."""

    def save(self, table: Table, index: Index) -> None:
        """Put what the commands of the entry have changed."""

    @classmethod
    def load(cls, table: Table) -> "Clients":
        return cls()
