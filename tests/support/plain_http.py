"""HTTP as a probe speaks it, and as nobody should."""

import asyncio
import http.client
import socket
from dataclasses import dataclass

from tests.support.eventually import DEADLINE_SECONDS

SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str
    headers: dict[str, str]

    @property
    def lines(self) -> list[str]:
        return self.body.splitlines()


def ask_now(address: str, path: str, method: str = "GET", seconds: float = SECONDS) -> Answer:
    """Ask in this thread."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=seconds)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read().decode()
        return Answer(answer.status, body, dict(answer.getheaders()))
    finally:
        connection.close()


async def ask(address: str, path: str, method: str = "GET") -> Answer:
    """Ask in another thread, so that the event loop goes on."""
    return await asyncio.to_thread(ask_now, address, path, method)


async def until(address: str, path: str, status: int, *words: str) -> Answer:
    """The first answer with this status and these words; fails if there is none in time."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                answer = await ask(address, path)
            except OSError:
                pass
            else:
                if answer.status == status and all(word in answer.body for word in words):
                    return answer
            await asyncio.sleep(0.02)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def exchange(address: str, request: bytes) -> bytes:
    """Send what is no request perhaps, and read until the other side has had enough."""
    with connect(address) as peer:
        received = b""
        try:
            peer.sendall(request)
            while part := peer.recv(65_536):
                received += part
        except OSError:  # it has closed the connection before all was sent
            pass
        return received
