"""Applications and their clients, without a network."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from httpx import ASGITransport
from starlette.types import ASGIApp


@asynccontextmanager
async def client_of(
    app: ASGIApp, address: str = "192.0.2.1", scheme: str = "https"
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at an address, as far as cookies go."""
    transport = ASGITransport(app, client=(address, 50_000))
    async with httpx.AsyncClient(transport=transport, base_url=f"{scheme}://shop.test") as client:
        yield client
