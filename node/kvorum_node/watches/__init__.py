"""Watches: who wants to hear of which keys, and how they are told, of one group on one node.

How it works, in the order to read the files:

    selection.py   which keys and kinds of changes a watch wants, and the index that finds
                   the watches of a key without looking at all of them
    watch.py       one watch: how far it has come, and the numbers of the next revisions that
                   it is to be told of
    hub.py         hears what the machine has applied, and notes the numbers at the watches.
                   Who has more to be told than numbers may wait, or begins in the past, is
                   led through the history in slices (catching_up.py)
    telling.py     a revision as updates: from the newest changes, which are kept, or from
                   history
    stream.py      the watches of one client: fills a message when the client takes one

Rules:

- A watch costs its numbers, whether or not its client reads. Values are fetched when a
  message is filled: so a client that does not read costs one message.
- A revision is noted at a watch once, in order, and the watch is told of it until its end
  before the next one begins.
- What a watch is told is the state's own history. So it survives whatever becomes of the
  node: the next node goes on from the revision.
- A node that hears no leader says nothing of its own accord: no progress marks. Clients
  take its silence for what it is, and go to another node.
"""

from kvorum_node.watches.hub import WatchHub
from kvorum_node.watches.stream import WatchStream

__all__ = ["WatchHub", "WatchStream"]
