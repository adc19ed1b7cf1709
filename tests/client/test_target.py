"""What `open` accepts, and what it says about the rest."""

from pathlib import Path

import pytest

import kvorum
from kvorum import InvalidTarget
from kvorum.target import Cluster, Directory, Memory, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("memory:", Memory()),
        ("./data", Directory(Path("data"))),
        ("/var/lib/app", Directory(Path("/var/lib/app"))),
        ("data:1", Directory(Path("data:1"))),
        (Path("x"), Directory(Path("x"))),
        ("kvorum://h1", Cluster(("h1:7100",))),
        ("kvorum://h1:1,h2,h3:65535", Cluster(("h1:1", "h2:7100", "h3:65535"))),
        ("kvorum://10.0.0.1:7101", Cluster(("10.0.0.1:7101",))),
        ("kvorum://[::1]:7101,[fe80::1]", Cluster(("[::1]:7101", "[fe80::1]:7100"))),
        ("kvorum://h1,h1:7100", Cluster(("h1:7100",))),
        ("kvorum://node-1.kv_svc.local.", Cluster(("node-1.kv_svc.local.:7100",))),
    ],
)
def test_accepts(text: str | Path, target: object) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the target is empty"),
        (None, "not NoneType"),
        (b"memory:", "not bytes"),
        ("memory:x", 'nothing may follow "memory:"'),
        ("kvorum:h1", 'lacks the "//"'),
        ("http://h1", "unknown scheme 'http'"),
        ("kvorum://", "names no host"),
        ("kvorum://h1,,h2", "empty entry"),
        ("kvorum://h1,", "empty entry"),
        ("kvorum://:7100", "no host before its port"),
        ("kvorum://h1:", "the port ''"),
        ("kvorum://h1:0", "the port '0'"),
        ("kvorum://h1:65536", "the port '65536'"),
        ("kvorum://h1:x", "the port 'x'"),
        ("kvorum://h1:-1", "the port '-1'"),
        ("kvorum://h1:७१००", "the port"),
        ("kvorum://::1", "write an IPv6 address as"),
        ("kvorum://[::1", "'\\[' without '\\]'"),
        ("kvorum://[::1]7100", "where only ':port' may stand"),
        ("kvorum://[h1]:7100", "not a host name or an address"),
        ("kvorum://h 1", "not a host name or an address"),
        ("kvorum://h1/db", "has no path: remove '/db'"),
        ("kvorum://h1?x=1", "has no query"),
        ("kvorum://h1#x", "has no fragment"),
        ("da\0ta", "null character"),
    ],
)
def test_refuses_and_says_why(text: str, message: str) -> None:
    with pytest.raises(InvalidTarget, match=message):
        kvorum.open(text)


def test_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidTarget) as caught:
        parse_target("kvorum://me:hunter2@h1:7100")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "5"])
def test_a_timeout_is_a_positive_number(timeout: float) -> None:
    with pytest.raises(kvorum.InvalidArgument, match="timeout"):
        kvorum.open("memory:", timeout=timeout)


def test_the_value_type_is_known() -> None:
    with pytest.raises(kvorum.InvalidArgument, match=r'type is "json", .*, not \'xml\''):
        kvorum.open("memory:", type="xml")  # type: ignore[arg-type]  # what is tested
