"""`kvorum compact`, and what `kvorum status` says when there is no room: as a person sees it."""

import json
from typing import Self

import pytest

from kvorum import FutureRevision, KvorumError
from kvorum import admin as admin_module
from kvorum.admin import Survey
from kvorumpb.v1 import cluster_pb2
from tests.support.command_line import kvorum

TARGET = {"KVORUM_TARGET": "kvorum://h1:1,h2:1"}
FULL = cluster_pb2.Alarm(kind=cluster_pb2.Alarm.QUOTA, node="n2", message="n2 is [full]")


class FakeAdmin:
    """Is asked for compactions, and knows two nodes, the second of which is full."""

    oldest_revision = 0
    error: KvorumError | None = None
    asked: list[int]

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, addresses: tuple[str, ...]) -> "FakeAdmin":
        assert addresses == ("h1:1", "h2:1")
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def compact(self, revision: int, *, timeout: float) -> int:
        del timeout
        self.asked.append(revision)
        if self.error is not None:
            raise self.error
        return max(revision, self.oldest_revision)

    async def survey(self, *, timeout: float) -> Survey:
        del timeout
        leader = cluster_pb2.GetStatusResponse(
            name="n1",
            role=cluster_pb2.LEADER,
            oldest_revision=7,
            store_bytes=12_345_678,
            quota_bytes=2_000_000_000,
            free_bytes=34_500_000_000,
            min_free_bytes=256_000_000,
            alarms=[FULL],
        )
        follower = cluster_pb2.GetStatusResponse(name="n2", alarms=[FULL])
        return Survey.of([("h1:1", leader), ("h2:1", follower)])


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> FakeAdmin:
    fake = FakeAdmin()
    monkeypatch.setattr(admin_module, "ClusterAdmin", fake)
    return fake


def test_it_says_what_can_be_read(admin: FakeAdmin) -> None:
    ran = kvorum("compact", "5", env=TARGET)
    assert (ran.status, ran.out) == (0, "revision 5 is the oldest that can be read now\n")
    admin.oldest_revision = 9
    ran = kvorum("compact", "5", env=TARGET)
    assert ran.out == "older ones were forgotten before: revision 9 is the oldest\n"
    assert json.loads(kvorum("compact", "12", "--json", env=TARGET).out) == {"oldest_revision": 12}
    assert admin.asked == [5, 5, 12]


def test_a_revision_that_cannot_be_is_an_error(admin: FakeAdmin) -> None:
    for impossible in ("0", "-5", "x", str(2**63)):
        assert kvorum("compact", impossible, env=TARGET).status == 2
    admin.error = FutureRevision("revision 7 is not there yet; the newest is 3")
    ran = kvorum("compact", "7", env=TARGET)
    assert (ran.status, ran.err) == (1, "error: revision 7 is not there yet; the newest is 3\n")


def test_status_says_once_that_writes_are_refused(admin: FakeAdmin) -> None:
    ran = kvorum("status", env=TARGET)
    assert ran.out.count("writes are refused: n2 is [full]. Deletes and `kvorum compact`") == 1
    rows = json.loads(kvorum("status", "--json", env=TARGET).out)["nodes"]
    assert [row["alarms"] for row in rows] == [["n2 is [full]"]] * 2
    assert (rows[0]["store_bytes"], rows[0]["quota_bytes"]) == (12_345_678, 2_000_000_000)
    assert (rows[0]["free_bytes"], rows[0]["min_free_bytes"]) == (34_500_000_000, 256_000_000)
    assert rows[1]["free_bytes"] is None


def test_status_shows_how_much_room_there_is(admin: FakeAdmin) -> None:
    lines = [" ".join(line.split()) for line in kvorum("status", env=TARGET).out.splitlines()]
    assert "n1 7 12.3 MB 2.0 GB 34.5 GB none" in lines
    assert "n2 0 0 bytes none quota" in lines  # the alarm is of n2 alone, though n1 says so, too
