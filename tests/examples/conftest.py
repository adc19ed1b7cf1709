"""The reference application as its users start it: a process of its own, on a free port."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import kvorum
from kvorum import limits
from kvorum.cli.processes import free_ports

ROOT = Path(__file__).parents[2]
START_SECONDS = 60


@contextlib.asynccontextmanager
async def running_shop(target: str | None, log: Path) -> AsyncIterator[str]:
    """`python -m examples.shop`, until it has ended; yields its address."""
    [port] = free_ports(1)
    environment = {name: text for name, text in os.environ.items() if name != "KVORUM_TARGET"}
    if target is not None:
        environment["KVORUM_TARGET"] = target
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it is started, and not waited for
            [sys.executable, "-m", "examples.shop", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        await _answers(address, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            ended = await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            ended = process.wait()
    text = log.read_text()  # noqa: ASYNC240 - a few lines
    assert ended == 0, text
    assert "Traceback" not in text, text


async def _answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with asyncio.timeout(START_SECONDS), httpx.AsyncClient() as client:
        while True:
            assert process.poll() is None, log.read_text()  # noqa: ASYNC240 - as above
            try:
                await client.get(f"{address}/static/shop.css")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.fixture(params=["memory", pytest.param("cluster", marks=pytest.mark.cluster)])
def shop_target(request: pytest.FixtureRequest) -> str | None:
    """An empty store. None: as the one command starts it."""
    if request.param == "memory":
        return None
    target: str = request.getfixturevalue("local_cluster").target
    with kvorum.open_sync(target, timeout=30) as kv:
        while kv.delete_range(start="", limit=limits.MAX_RANGE_RECORDS):
            pass
    return target


@pytest.fixture
async def shop(shop_target: str | None, tmp_path: Path) -> AsyncIterator[str]:
    async with running_shop(shop_target, tmp_path / "shop.log") as address:
        yield address
