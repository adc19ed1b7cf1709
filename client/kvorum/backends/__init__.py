"""Where calls are carried out: in this process, or by a cluster.

    cluster.py     which node a call goes to, and what happens if it fails
    session.py     one stream to one node
    leadership.py  who leads, as far as nodes have said
    window.py      the numbers of writes, by which the store applies each of them once
    embedded.py    a store in this process
    pending.py     a call until it is answered, and its deadline

The two speak the same messages and run the same state machine; nothing above
this seam knows which one it has.
"""

from typing import Protocol

from kvorumpb.v1.kv_pb2 import Call, Reply


class Backend(Protocol):
    """Carries out calls until it is closed."""

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        """Return the reply of a call that succeeded; raise a `KvorumError` for one that failed.

        The backend sets the call's id, its timeout and the origin of a write, and repeats
        it as long as it has no answer, until `timeout_seconds` are over: a write is applied
        once all the same. A call is used once.
        """
        ...

    async def close(self) -> None:
        """Fail the calls under way with `Closed`, and release everything. May be repeated."""
        ...
