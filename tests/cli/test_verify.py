"""`kvorum verify`: what a person or a script is told, and the exit status."""

import json
from typing import Self

import pytest

from kvorum import NoLeader
from kvorum import admin as admin_module
from kvorum.verification import Verdict, Verification
from tests.support.command_line import Ran, kvorum

HASH = bytes(range(32))


class FakeAdmin:
    """Answers with what it is given."""

    def __init__(self) -> None:
        self.found: Verification | NoLeader = NoLeader("no node leads")
        self.addresses: tuple[str, ...] = ()
        self.timeout = 0.0

    def __call__(self, addresses: tuple[str, ...]) -> "FakeAdmin":
        self.addresses = addresses
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def verify(self, *, timeout: float) -> Verification:
        self.timeout = timeout
        if isinstance(self.found, NoLeader):
            raise self.found
        return self.found


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> FakeAdmin:
    fake = FakeAdmin()
    monkeypatch.setattr(admin_module, "ClusterAdmin", fake)
    return fake


def verify(*arguments: str) -> Ran:
    return kvorum("verify", *arguments, "--target", "kvorum://h1:1,h9")


def found(*verdicts: Verdict, digest: bytes = HASH) -> Verification:
    members = {f"n{number}": verdict for number, verdict in enumerate(verdicts, 1)}
    known = bool(digest)
    return Verification(9, 4 * known, digest, 12_000 * known, members)


def test_a_sound_cluster_is_status_0(admin: FakeAdmin) -> None:
    admin.found = found(Verdict.SAME, Verdict.SAME, Verdict.UNKNOWN)
    ran = verify("--timeout", "7")
    assert (ran.status, ran.err) == (0, "")
    assert [line.split() for line in ran.out.splitlines()[:4]] == [
        ["name", "state"],
        ["n1", "same"],
        ["n2", "same"],
        ["n3", "unknown"],
    ]
    assert ran.out.splitlines()[-1] == (
        "at index 9, revision 4: 12,000 records, hash 0001020304050607..."
    )
    assert (admin.addresses, admin.timeout) == (("h1:1", "h9:7100"), 7.0)


def test_a_corrupt_member_is_status_1_and_has_to_be_replaced(admin: FakeAdmin) -> None:
    admin.found = found(Verdict.SAME, Verdict.CORRUPT, Verdict.SAME)
    ran = verify()
    assert ran.status == 1
    assert ["n2", "corrupt"] in [line.split() for line in ran.out.splitlines()]
    assert ran.err == (
        "error: n2 holds something else than the majority, and stops. Add a new member with"
        " `kvorum member add HOST:PORT`, and remove this one with `kvorum member remove n2`\n"
    )


def test_no_majority_is_status_1(admin: FakeAdmin) -> None:
    admin.found = found(Verdict.UNKNOWN, Verdict.UNKNOWN, digest=b"")
    ran = verify()
    assert ran.status == 1
    assert "error: no majority of the voters" in ran.err
    assert "at index 9" in ran.err


def test_a_script_gets_json(admin: FakeAdmin) -> None:
    admin.found = found(Verdict.SAME, Verdict.CORRUPT)
    ran = verify("--json")
    assert (ran.status, ran.err) == (1, "")
    assert json.loads(ran.out) == {
        "sound": False,
        "index": 9,
        "revision": 4,
        "record_count": 12_000,
        "hash": HASH.hex(),
        "members": {"n1": "same", "n2": "corrupt"},
    }
    admin.found = found(Verdict.UNKNOWN, digest=b"")
    ran = verify("--json")
    assert json.loads(ran.out) == {
        "sound": False,
        "index": 9,
        "revision": None,
        "record_count": None,
        "hash": None,
        "members": {"n1": "unknown"},
    }


def test_what_cannot_be_asked_is_status_1(admin: FakeAdmin) -> None:
    ran = verify()
    assert (ran.status, ran.err) == (1, "error: no node leads\n")
