"""Serves the shop: `python -m examples.shop`, on the store that KVORUM_TARGET names."""

import argparse
import asyncio
import ipaddress
import os
from contextlib import suppress

import uvicorn

import kvorum
from examples.shop.web import create_app


async def serve(host: str, port: int, *, behind_tls: bool) -> None:
    target = os.environ.get("KVORUM_TARGET", "memory:")
    # On this machine alone there is no TLS, and not every browser keeps secure cookies then.
    is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    async with kvorum.open(target) as kv:
        app = create_app(kv, secure_cookies=behind_tls or not is_local)
        await uvicorn.Server(uvicorn.Config(app, host=host, port=port)).serve()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.shop", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--behind-tls", action="store_true", help="cookies for https alone")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(options.host, options.port, behind_tls=options.behind_tls))


if __name__ == "__main__":
    main()
