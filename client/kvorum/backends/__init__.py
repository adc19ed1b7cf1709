"""Where calls are carried out: in this process, or by a cluster.

    cluster.py     which node a call goes to, and what happens if it fails
    session.py     one stream to one node
    parts.py       large calls and replies on it
    leadership.py  who leads, as far as nodes have said
    retries.py     how often calls are repeated that a cluster refuses
    window.py      the numbers of writes, by which the store applies each of them once
    embedded.py    a store in this process
    pending.py     a call until it is answered, and its deadline
    watching.py    a watch, wherever in the cluster it is served
    feeds.py       what a watch is told, put together; a watch in this process

The two speak the same messages and run the same state machine; nothing above
this seam knows which one it has.
"""

import logging
from typing import Protocol

from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch, Changes, Progress

# A program that sets up no logging is not written to.
logging.getLogger("kvorum").addHandler(logging.NullHandler())


class Feed(Protocol):
    """What one watch is told: each revision once, whole, and in order.

    Once it has failed, it fails for ever. A caller that is cancelled misses nothing.
    """

    async def begin(self) -> int:
        """Begin, if it has not begun; returns the revision after which all is told."""
        ...

    async def next(self) -> Changes | Progress:
        """Wait for the next revision, or for the word that nothing has changed through one."""
        ...

    async def close(self) -> None:
        """End it: whoever waits fails with `Closed`. May be repeated."""
        ...


class Backend(Protocol):
    """Carries out calls until it is closed."""

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        """Return the reply of a call that succeeded; raise a `KvorumError` for one that failed.

        The backend sets the call's id, its timeout and the origin of a write, and repeats
        it as long as it has no answer, until `timeout_seconds` are over: a write is applied
        once all the same. A call is used once.
        """
        ...

    def watch(self, begin: BeginWatch, *, timeout_seconds: float) -> Feed:
        """Prepare a watch, which has so long to begin. Without `after_revision`, it begins
        at the revision that the store has then.
        """
        ...

    async def close(self) -> None:
        """Fail calls and watches under way with `Closed`, and release everything.

        May be repeated.
        """
        ...
