"""How this library connects: the one place that knows gRPC's channel options."""

from collections.abc import Sequence

import grpc.aio

from kvorum import limits

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
    ("grpc.min_reconnect_backoff_ms", 3_000),
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


def connect(address: str) -> grpc.aio.Channel:
    """Return a channel to host:port; it connects when it is first used."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)
