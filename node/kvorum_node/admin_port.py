"""The admin port: plain HTTP for probes and metrics, answered whatever the node is doing.

    GET /livez     200 `ok`, or 503 with what is wrong, one reason a line
    GET /readyz    the same
    GET /metrics   Prometheus' text format, or 503 with why there is none

HEAD as well; nothing else, and nothing of what the store holds, so it has no secrets and no
commands. What is true of a node is said in probes.py; here it is only carried.

waitress, the WSGI server of the Pylons project, runs in threads of its own: it answers while
the data directory is opened, and while the event loop is busy. Nobody who can reach the port
must be able to harm the node by it, so all that a client can make grow has a bound: headers,
bodies, connections, and how long each of those lasts, however slowly it speaks.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore
from waitress.server import TcpWSGIServer

from kvorum_node.probes import Probes, Unanswered

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

THREADS: Final = 4
MAX_RENDERING: Final = 2
"""Metrics may wait for the event loop; the other threads are left for the probes."""
MAX_HEADER_BYTES: Final = 8_192
MAX_BODY_BYTES: Final = 1_024
"""Of a request that should have none."""
MAX_CONNECTIONS: Final = 256
BACKLOG: Final = 64
CONNECTION_SECONDS: Final = 10.0
"""How long a connection lasts that asks for nothing, or takes longer than this to ask."""
END_SECONDS: Final = 10.0

TEXT: Final = "text/plain; charset=utf-8"
METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"


class AdminPort:
    """Answers from its making to `close`."""

    def __init__(self, listen: str, probes: Probes) -> None:
        """Listen on host:port.

        Raises:
            OSError: the port is taken, or the address is not this machine's.
        """
        # One line of log for whatever a client does would be a way to fill a disk.
        for name in ("waitress", "waitress.queue"):
            logging.getLogger(name).setLevel(logging.ERROR)
        listener = _listen(listen)
        self._sockets: dict[int, socket.socket] = {}
        self._server = _Server(
            _Application(probes),
            self._sockets,
            _sock=listener,
            bind_socket=False,
            sockinfo=(listener.family, listener.type, None, listener.getsockname()),
            threads=THREADS,
            backlog=BACKLOG,
            connection_limit=MAX_CONNECTIONS,
            max_request_header_size=MAX_HEADER_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
            channel_timeout=CONNECTION_SECONDS,
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() ends at the descriptor 1,024
            log_socket_errors=False,
            ident="kvorum",
        )
        self._thread = threading.Thread(target=self._server.run, name="kvorum-admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more. Not on the event loop, which somebody may wait for."""
        self._server.end()
        self._thread.join(END_SECONDS)
        wasyncore.close_all(self._sockets)


class _Server(TcpWSGIServer):
    """With an end, and with a bound for how long a connection may take its time."""

    _ending = False

    def end(self) -> None:
        self._ending = True
        self.pull_trigger()

    def readable(self) -> bool:
        if self._ending:
            raise SystemExit  # what ends `run`, and its threads with it
        return super().readable()

    def maintenance(self, now: float) -> None:
        """waitress looks for silence alone: a byte now and then would keep a connection."""
        channels: Any = self.active_channels  # the stub takes it for one channel
        for channel in channels.values():
            if not channel.requests and channel.creation_time < now - CONNECTION_SECONDS:
                channel.will_close = True


class _Application:
    """The pages, as a WSGI application; called in the threads of the server."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._rendering = threading.BoundedSemaphore(MAX_RENDERING)
        self._pages: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/livez": lambda: _verdict(probes.why_not_alive()),
            "/readyz": lambda: _verdict(probes.why_not_ready()),
            "/metrics": self._metrics,
        }

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        method, page = environ["REQUEST_METHOD"], self._pages.get(environ["PATH_INFO"])
        headers = []
        if page is None:
            status, kind, body = HTTPStatus.NOT_FOUND, TEXT, f"{' '.join(self._pages)}\n".encode()
        elif method not in ("GET", "HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET or HEAD\n"
            headers = [("Allow", "GET, HEAD")]
        else:
            status, kind, body = page()
        headers += [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [] if method == "HEAD" else [body]

    def _metrics(self) -> tuple[HTTPStatus, str, bytes]:
        if not self._rendering.acquire(blocking=False):
            return _unavailable(f"{MAX_RENDERING} others wait for the metrics already")
        try:
            return HTTPStatus.OK, METRICS, self._probes.metrics()
        except Unanswered as why:
            return _unavailable(str(why))
        finally:
            self._rendering.release()


def _verdict(why_not: list[str]) -> tuple[HTTPStatus, str, bytes]:
    return _unavailable(*why_not) if why_not else (HTTPStatus.OK, TEXT, b"ok\n")


def _unavailable(*why: str) -> tuple[HTTPStatus, str, bytes]:
    return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, "".join(f"{one}\n" for one in why).encode()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, _, _, _, where = found[0]
    # As gRPC does with `[::]`: IPv4 comes there, too.
    both = where[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(where[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
