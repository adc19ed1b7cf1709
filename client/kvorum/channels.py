"""How this library connects: the one place that knows gRPC's channel options.

    connect     a channel
    Channels    those of one owner, which are made anew when they fail for long

And what a fork does to gRPC: the child has none of its threads, but shares what they poll, so
that a child which uses it can stop both processes. So a child does not connect if gRPC was
running when it was forked. Once the last channel and its last stream are freed, it ends its own
threads, which a fork waits for, and a fork is safe. Therefore nothing that is closed, and no
error, may keep one of them.
"""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from weakref import WeakSet

import grpc.aio

from kvorum import limits
from kvorum.errors import Closed

FAILING_SECONDS: Final = 3.0
"""So long an attempt to connect may take, and a channel may fail before it is made anew."""

_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    # A node that vanishes without a word is noticed within 13 s, on idle streams too.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted node is found again at once. "min" is not a delay: it is how long one attempt
    # to connect may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", int(FAILING_SECONDS * 1000)),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Measuring the bandwidth costs a ping per message, about a quarter of a small one's price.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * limits.MIB),
    # Two stores in one process do not share a connection, or its fate.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Only this library knows which call may be repeated.
    ("grpc.enable_retries", 0),
)

_channels: WeakSet[grpc.aio.Channel] = WeakSet()
_inherited: list[grpc.aio.Channel] = []
"""Those of the process that this one was forked from. They are kept: to free one is to use gRPC."""
_was_running = False
"""At the last fork: also for a stream that somebody still keeps, or for another library."""
_is_lost = False
"""gRPC was running when this process was forked."""


_has_connected = False
"""Since gRPC was last seen to have no threads."""

_THREADS: Final = frozenset({"event_engine", "grpc_global_tim", "lifeguard"})
"""gRPC's own, which Python does not know, by the names that Linux has for them."""
_ENDING_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.002


def _before_fork() -> None:
    global _was_running  # noqa: PLW0603 - the child has no threads that it could count
    _was_running = any(one.name.endswith("(_poll_wrapper)") for one in threading.enumerate())
    if _has_connected and not _was_running and not _channels:
        _was_running = not _wait_for_the_end()


def _wait_for_the_end() -> bool:
    """Wait until gRPC has ended its threads; False if it does not.

    The last one of them has no name of its own: so all must be gone that are not Python's. If those
    of other libraries are there, too, the time that is given has to be enough for it.
    """
    global _has_connected  # noqa: PLW0603 - the next fork has nothing to wait for
    end = time.monotonic() + _ENDING_SECONDS
    while (names := _native_threads()) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    _has_connected = not _THREADS.isdisjoint(names)
    return not _has_connected


def _native_threads() -> list[str]:
    """The names of the threads that are not Python's; none where there is no /proc."""
    known = {str(one.native_id) for one in threading.enumerate()}
    names: list[str] = []
    for task in Path("/proc/self/task").glob("*"):
        try:
            if task.name not in known:
                names.append((task / "comm").read_text().strip())
        except OSError:  # it has ended
            continue
    return names


def _in_child() -> None:
    global _is_lost  # noqa: PLW0603 - it is a fact of the process
    _inherited.extend(_channels)
    _is_lost = _is_lost or _was_running or bool(_inherited)


os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def connect(address: str) -> grpc.aio.Channel:
    """Return a channel to host:port; it connects when it is first used.

    Raises `Closed` in a process that was forked from one with channels.
    """
    if _is_lost:
        raise Closed(
            "the process that this one was forked from had a connection open, and gRPC does not"
            " survive that: open stores after the fork, or close them before it"
        )
    global _has_connected  # noqa: PLW0603 - it is a fact of the process
    _has_connected = True
    channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    _channels.add(channel)
    return channel


class Channels:
    """One for each address, made when it is first asked for.

    Where a name is not known, as that of a pod that is not there, gRPC asks for it again after a
    time that grows to two minutes, and no option changes that. A new channel asks at once.

    What was replaced has no connection: gRPC ends it when the last call on it has let it go. Its
    `close` would look at every task of the process instead.
    """

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._failing_since: dict[str, float] = {}

    def to(self, address: str) -> grpc.aio.Channel:
        """Return the channel to host:port for a call that begins now; do not keep it.

        Raises `Closed` as `connect` does.
        """
        channel = self._channels.get(address)
        if channel is None or self._fails_for_long(address, channel):
            channel = self._channels[address] = connect(address)
            self._failing_since.pop(address, None)
        return channel

    async def close(self) -> None:
        """Close all. Calls that are under way are cancelled."""
        while self._channels:
            await self._channels.popitem()[1].close()

    def _fails_for_long(self, address: str, channel: grpc.aio.Channel) -> bool:
        if channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._failing_since.pop(address, None)
            return False
        now = time.monotonic()
        return now >= self._failing_since.setdefault(address, now) + FAILING_SECONDS
