"""What a node does at its start about a snapshot that a crash has cut short.

A snapshot becomes the state in four steps (raft/core.py, Ready.snapshot), and the
second one decides:

    1  the snapshot is staged beside the state, and that is synced
    2  the log is restored to begin after it, and that is synced
    3  the state changes over to what was staged
    4  the state engine is synced, some time later

So a log that begins where a staged state ends wants that state, and any other
staged state is waste. Whoever finds neither state to go with the log has lost
one of the two.
"""

from kvorum.errors import StorageError
from kvorum_node.machine import Machine
from kvorum_node.storage.raft_log import RaftLogStore


def reconcile(log: RaftLogStore, machine: Machine) -> None:
    """Bring the state of a group to where its log can go on from, or refuse to.

    Raises:
        StorageError: the log or the state was lost, in whole or in part.
    """
    start = log.first_index() - 1
    if machine.applied < start and machine.staged == start:
        machine.install(machine.staged)
    if machine.applied > log.last_index():
        raise StorageError(
            f"the state has applied {machine.applied}, but the log ends at {log.last_index()}:"
            " the log was lost. Replace the node; do not start it again"
        )
    if machine.applied < start:
        raise StorageError(
            f"the state has only applied {machine.applied}, but the log begins with"
            f" {log.first_index()}: the state was lost. Replace the node"
        )
    machine.discard_staged()
