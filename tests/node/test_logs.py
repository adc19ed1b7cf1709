"""Log lines, for people and for machines."""

import json
import logging
import re
from collections.abc import Iterator

import pytest

from kvorum_node import logs
from tests.support.driven_node import DrivenNode
from tests.support.eventually import eventually
from tests.support.raft_messages import heartbeat

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"


@pytest.fixture(autouse=True)
def own_root_logger() -> Iterator[None]:
    """Puts back what pytest has installed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


async def lines_of_a_leader(capsys: pytest.CaptureFixture[str]) -> list[str]:
    async with DrivenNode() as n1:
        await n1.lead()
        n1.hear(heartbeat(3, sender=3))
        await eventually(lambda: n1.raft.leader == 3)
    return capsys.readouterr().err.splitlines()


async def test_a_line_opens_with_who_speaks_its_role_and_where_its_log_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(level="info", json=False)
    lines = await lines_of_a_leader(capsys)
    told = [re.sub(f"^{TIME} ", "", line) for line in lines]
    assert told == [
        "info    n1 pre-candidate 0@0 knows no leader",
        "info    n1 candidate 0@0 knows no leader",
        "info    n1 leader 1@1 leads",
        "info    n1 follower 1@1 leads no more",
    ]


async def test_as_json_the_same_is_in_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", json=True)
    lines = [json.loads(line) for line in await lines_of_a_leader(capsys)]
    leads = next(line for line in lines if line["event"] == "leads")
    assert re.fullmatch(TIME, leads.pop("timestamp"))
    assert leads == {
        "level": "info",
        "event": "leads",
        "node": "n1",
        "role": "leader",
        "position": "1@1",
        "term": 1,
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_arguments_and_exceptions_are_shown(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    logs.configure(level="info", json=as_json)
    try:
        int("seven")
    except ValueError:
        logging.getLogger("kvorum.node").exception("%s at %d", "failed", 7)
    said = capsys.readouterr().err
    assert "failed at 7" in said
    assert "ValueError: invalid literal" in said
    assert "Traceback" in said
    if as_json:
        assert json.loads(said)["level"] == "error"


def test_what_is_less_important_than_the_level_is_not_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(level="warning", json=False)
    logging.getLogger("kvorum.node").info("quiet")
    logging.getLogger("kvorum.node").warning("loud")
    assert re.fullmatch(f"{TIME} warning loud\n", capsys.readouterr().err)


def test_other_libraries_are_rendered_alike(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", json=False)
    logging.getLogger("grpc._cython.cygrpc").warning("a word from %s", "grpc")
    assert re.fullmatch(f"{TIME} warning a word from grpc\n", capsys.readouterr().err)
