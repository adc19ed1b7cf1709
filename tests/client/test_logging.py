"""What the client library writes to the log, and what never comes there."""

import asyncio
import logging
import subprocess
import sys

import pytest

import kvorum
from kvorum import KV, DeadlineExceeded, NoNodeReachable, Overloaded
from kvorum.backends import retries
from kvorum.errors import ClientForgotten
from tests.client.conftest import Nodes, backend_of, target_of
from tests.client.test_cluster import first, silent
from tests.support.eventually import eventually

SECRETS = ("a-key", "a-value", "some-metadata")


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kvorum")


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    records = [one for one in caplog.records if one.name == "kvorum.client"]
    return [one.getMessage() for one in records if one.levelno == level]


async def test_who_leads(nodes: Nodes, kv: KV, caplog: pytest.LogCaptureFixture) -> None:
    n1, n2, _ = nodes
    await kv.put("a", 1)
    for node in nodes:
        node.follow(n2, term=2)
    await eventually(lambda: n1.open_streams == 0)
    await kv.put("a", 1)
    assert lines(caplog, logging.INFO) == [
        f"calls go to {n1.address}: n1 ({n1.address}) leads term 1",
        f"calls go to {n2.address}: n2 ({n2.address}) leads term 2",
    ]
    assert lines(caplog, logging.WARNING) == []


async def test_a_lost_connection_once(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    n1, _, _ = nodes
    async with kvorum.open(target_of(n1)) as kv:
        await kv.put("a", 1)
        n1.break_streams()
        await kv.put("a", 1)
        await n1.stop()
        await eventually(lambda: not backend_of(kv)._sessions)
        with pytest.raises(NoNodeReachable):
            await kv.put("a", 1, timeout=0.5)
    broken, stopped, refused = lines(caplog, logging.WARNING)
    assert broken == f"lost the connection to {n1.address} (scripted to break)"
    assert stopped.startswith(f"lost the connection to {n1.address} (")
    assert refused.startswith(f"cannot reach {n1.address} (")


async def test_that_repetitions_are_held_back_once(
    nodes: Nodes, kv: KV, caplog: pytest.LogCaptureFixture
) -> None:
    nodes[0].script = lambda _: Overloaded("busy")
    count = 3 * retries.MAX_TOKENS
    calls = [kv.get(f"k{i}", timeout=1) for i in range(count)]
    await asyncio.gather(*calls, return_exceptions=True)
    [held_back] = lines(caplog, logging.WARNING)
    assert held_back.startswith("the cluster refuses calls (busy): no more than 10 a second are")
    given_up = lines(caplog, logging.DEBUG)
    assert len(given_up) == count
    assert given_up[0].startswith("gave up a get: not answered within 1 s: n1 ")


async def test_a_forgotten_client(nodes: Nodes, kv: KV, caplog: pytest.LogCaptureFixture) -> None:
    nodes[0].script = first(lambda _: ClientForgotten("unknown client"))
    await kv.put("a", 1)
    assert lines(caplog, logging.WARNING) == [
        "the store has forgotten this client, which goes on as a new one"
    ]


async def test_no_key_and_no_value(nodes: Nodes, kv: KV, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    n1, _, _ = nodes
    await kv.put("a-key", "a-value", metadata=b"some-metadata")
    n1.script = lambda call: kvorum.UniqueViolation("a-value is taken by a-key")
    with pytest.raises(kvorum.UniqueViolation):
        await kv.put("a-key", "a-value")
    n1.script = first(lambda _: Overloaded("busy"), then=silent)
    with pytest.raises(DeadlineExceeded):
        await kv.put("a-key", "a-value", metadata=b"some-metadata", timeout=0.2)
    n1.break_streams()
    await eventually(lambda: lines(caplog, logging.WARNING))
    assert [one for one in SECRETS if one in caplog.text] == []


def test_a_program_that_sets_up_no_logging_is_not_written_to() -> None:
    code = (
        "import kvorum\n"
        "kv = kvorum.open_sync('kvorum://127.0.0.1:1', timeout=0.2)\n"
        "try: kv.get('a')\n"
        "except kvorum.NoNodeReachable: print('not reachable')\n"
        "kv.close()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.stdout, ran.stderr) == ("not reachable\n", "")
