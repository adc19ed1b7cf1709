"""The state machine: what committed entries do to the records of one group.

Every node applies the same entries in the same order to the same state, and must
come to the same state and the same answers, byte for byte. So this package is
pure: no clock, randomness, event loop, network or logging. Its only inputs are
committed entries and the engine that holds what earlier ones left behind; time
comes with the entry.

How a write passes through, in the order to read the files:

    commands.py      an entry's data becomes commands, or stops the node, also at a field
                     that it does not know (kvorum_node/unknown_fields.py)
    execution.py     commands run one after the other, each atomic, on an overlay
    clients.py       a write that comes again is answered and not run
    machine.py       the overlay and where it leads to (standing.py) go to the engine
                     in one batch
    listing.py       pages of records, with cursor.py for the place to go on from
    history.py       a record as it was at an earlier revision, and past.py a range of them
    content_hash.py  proof that two nodes hold the same
    snapshot.py      the whole state as a stream, and a stream as a state

The machine trusts what is in the log: requests are checked before they are
proposed (kvorum_node/validation). What it does not trust is its own ability to
understand the log: an instruction that it does not know stops the node, since to
skip it would let this node's state part from that of the others without a word.

"""

from kvorum_node.machine.commands import FORMAT, UnknownCommand
from kvorum_node.machine.commit import Event
from kvorum_node.machine.content_hash import HASH_FORMAT, ContentHash, ContentHasher, RowHasher
from kvorum_node.machine.history import History, PastEvent
from kvorum_node.machine.listing import Listing
from kvorum_node.machine.machine import Machine, Transition
from kvorum_node.machine.snapshot import Decoder, SnapshotDamaged, SnapshotReader, Staging

__all__ = [
    "FORMAT",
    "HASH_FORMAT",
    "ContentHash",
    "ContentHasher",
    "Decoder",
    "Event",
    "History",
    "Listing",
    "Machine",
    "PastEvent",
    "RowHasher",
    "SnapshotDamaged",
    "SnapshotReader",
    "Staging",
    "Transition",
    "UnknownCommand",
]
