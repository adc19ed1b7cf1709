"""`kvorum top`: rates and quantiles of two readings, what is drawn, and how it ends."""

import json
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from io import StringIO
from typing import Any, Self

import pytest
from rich.console import Console

from kvorum import NoNodeReachable
from kvorum import admin as admin_module
from kvorum.admin import Status, Survey
from kvorum.cli import top as top_module
from kvorum.cli.processes import free_ports
from kvorum.cli.readings import Pair, Reading, read
from kvorum.errors import KvorumError
from kvorumpb.v1 import cluster_pb2
from kvorumpb.v1.cluster_pb2 import Latencies
from tests.support.command_line import Ran, kvorum
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.shell import command

BOUNDS = (0.001, 0.002, 0.004)


def histogram(*counts: int, above: int = 0) -> Latencies:
    return Latencies(bounds_seconds=BOUNDS, counts=counts, count=sum(counts) + above)


def status(
    number: int,
    *,
    role: cluster_pb2.Role.ValueType = cluster_pb2.FOLLOWER,
    uptime_ms: int = 10_000,
    match: tuple[int, int, int] = (0, 0, 0),
    **fields: Any,
) -> Status:
    """What nN of three says of itself."""
    members = [
        cluster_pb2.Member(
            name=f"n{one}", address=f"h{one}:7100", match_index=match[one - 1], active=True
        )
        for one in (1, 2, 3)
    ]
    values = {"term": 7, "last_index": 1_234_567, "commit_index": 1_234_567} | fields
    values.setdefault("applied_index", values["commit_index"])
    nothing = histogram(0, 0, 0)
    activity = cluster_pb2.Activity(
        uptime_ms=uptime_ms,
        read_latency=nothing,
        write_latency=nothing,
        sync_latency=nothing,
        apply_latency=nothing,
    )
    for name in list(values):
        if name in cluster_pb2.Activity.DESCRIPTOR.fields_by_name:
            value = values.pop(name)
            if isinstance(value, Latencies):
                getattr(activity, name).CopyFrom(value)
            else:
                setattr(activity, name, value)
    return Status(
        name=f"n{number}",
        cluster_id="c",
        role=role,
        leader="n1",
        members=members,
        activity=activity,
        **values,
    )


def leading(**fields: Any) -> Status:
    return status(
        1, role=cluster_pb2.LEADER, **{"match": (1_234_567, 1_234_560, 1_234_567)} | fields
    )


def survey(*outcomes: Status | KvorumError) -> Survey:
    return Survey({f"h{number}:7100": one for number, one in enumerate(outcomes, 1)})


DEAD = NoNodeReachable("h3:7100 does not answer: connection refused", nodes=["h3:7100"])


def readings(*surveys: Survey) -> list[Reading]:
    before: Reading | None = None
    made = []
    for one in surveys:
        before = read(one, before)
        made.append(before)
    return made


# Two readings.


def test_a_quantile_is_what_so_many_took_at_most_since_the_reading_before() -> None:
    pair = Pair(now=histogram(5, 104, 10), before=histogram(5, 4, 0))
    assert pair.quantile_ms(0.5) == pytest.approx(1.55)  # the 55th of the 100 within 1 to 2 ms
    assert pair.quantile_ms(0.99) == pytest.approx(2 + 2 * 8.9 / 10)
    assert pair.quantile_ms(1.0) == pytest.approx(4.0)


def test_a_quantile_above_the_last_bound_is_not_known() -> None:
    pair = Pair(now=histogram(1, 0, 0, above=1), before=histogram(0, 0, 0))
    assert pair.quantile_ms(0.5) == pytest.approx(1.0)
    assert pair.quantile_ms(0.99) == float("inf")


def test_there_is_no_quantile_of_nothing_nor_of_other_bounds() -> None:
    assert Pair(histogram(1, 2, 3), histogram(1, 2, 3)).quantile_ms(0.5) is None
    assert Pair(histogram(0, 0, 0), histogram(9, 9, 9)).quantile_ms(0.5) is None
    other = Latencies(bounds_seconds=(1.0, 2.0, 3.0), counts=(1, 1, 1), count=3)
    assert Pair(histogram(9, 9, 9), other).quantile_ms(0.5) is None


def test_a_rate_is_of_the_time_that_the_node_counts() -> None:
    _, later = readings(
        survey(leading(uptime_ms=10_000, reads=100, failures=3)),
        survey(leading(uptime_ms=14_000, reads=500, failures=5)),
    )
    assert later.nodes[0].rate("reads") == 100.0
    assert later.nodes[0].rate("failures") == 0.5
    assert later.nodes[0].rate("writes") == 0.0


def test_a_node_that_was_restarted_or_away_has_no_rate() -> None:
    first, restarted = readings(
        survey(leading(uptime_ms=10_000, reads=100)), survey(leading(uptime_ms=900, reads=4))
    )
    assert first.nodes[0].rate("reads") is None
    assert restarted.nodes[0].rate("reads") is None
    assert restarted.nodes[0].latency_ms("read", 0.5) is None
    _, _, back = readings(
        survey(leading(), status(2), status(3)),
        survey(leading(), status(2), DEAD),
        survey(leading(), status(2), status(3, uptime_ms=20_000, reads=5)),
    )
    assert back.nodes[2].rate("reads") is None


def test_how_far_nodes_are_behind() -> None:
    [only] = readings(survey(leading(), status(2, applied_index=1_234_500), DEAD))
    assert [node.behind for node in only.nodes] == [0, 7, 0]
    assert [node.to_apply for node in only.nodes] == [0, 67, None]
    [leaderless] = readings(survey(status(1), status(2)))
    assert [node.behind for node in leaderless.nodes] == [None, None]
    assert leaderless.leader is None


def test_what_a_leader_has_never_heard_of_a_member_is_not_told_as_a_number() -> None:
    led = leading(match=(1_234_567, 0, 0))
    led.members[2].active = False
    [only] = readings(survey(led, status(2), DEAD))
    assert [node.behind for node in only.nodes] == [0, 1_234_567, None]


def test_nodes_are_in_the_order_of_their_numbers_and_keep_their_names() -> None:
    tenth = status(2)
    tenth.name = "n10"
    _, later = readings(
        survey(tenth, leading(), status(3)),
        Survey({"h3:7100": DEAD, "h9:7100": DEAD, "h1:7100": DEAD}),
    )
    assert [node.name for node in later.nodes] == ["n3", "n10", ""]
    [first] = readings(survey(tenth, leading(), status(3)))
    assert [node.name for node in first.nodes] == ["n1", "n3", "n10"]


# What is drawn.


def drawn(reading: Reading, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, highlight=False).print(top_module._frame(reading, width))
    return out.getvalue().splitlines()


BUSY = {
    "reads": 150_000,
    "writes": 60_000,
    "changes_told": 2_000_000,
    "failures": 1_500,
    "read_latency": histogram(100, 10, 1),
    "write_latency": histogram(0, 0, 0, above=9),
    "sync_latency": histogram(1, 0, 0),
}


@pytest.fixture
def busy() -> Reading:
    sizes = {"store_bytes": 12_345_678_901, "log_bytes": 66_123_000, "watches": 12_345}
    alarm = cluster_pb2.Alarm(kind=cluster_pb2.Alarm.QUOTA, node="n1", message="n1 is full " * 9)
    _, later = readings(
        survey(leading(uptime_ms=1_000), status(2), status(3)),
        survey(leading(uptime_ms=2_000, **BUSY, **sizes, alarms=[alarm]), status(2), DEAD),
    )
    return later


@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_fits_its_terminal(busy: Reading, width: int) -> None:
    lines = drawn(busy, width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 15  # none goes on in a second one
    assert not any("…" in line for line in lines if not line.startswith(("alarm:", "n3: ")))
    rows = [line for line in lines if line.startswith("n1 ")]
    assert rows[0].split() == [
        *("n1", "leader", "7", "1,234,567", "0", "0", "12,345"),
        *("12.3", "GB", "66.1", "MB", "yes"),
    ]
    quantiles = ["0.6", "2.0", ">13", "s", ">13", "s"]
    quantiles += ["0.5", "1.0", "-", "-"] if width == 120 else ["1.0", "-"]
    assert rows[1].split() == ["n1", "150,000", "60,000", "2,000,000", "1,500", *quantiles]


def test_numbers_end_below_their_headings(busy: Reading) -> None:
    lines = drawn(busy, 80)
    heading = next(line for line in lines if line.startswith("name reads/s") or "reads/s" in line)
    row = next(line for line in lines if "150,000" in line)
    assert heading.index("reads/s") + len("reads/s") == row.index("150,000") + len("150,000")


def test_a_dead_node_stays_with_the_reason(busy: Reading) -> None:
    lines = drawn(busy, 120)
    assert lines[0].split()[3:] == ["leader", "n1", "term", "7", "2", "of", "3", "nodes", "answer"]
    assert ["n3", "unreachable", "0"] in [line.split() for line in lines]
    assert "n3: h3:7100 does not answer: connection refused" in lines
    [alarm] = [line for line in lines if line.startswith("alarm: n1 is full")]
    assert len(alarm) <= 120


def test_nothing_that_answers_is_a_frame_too() -> None:
    [nothing] = readings(Survey({"h9:7100": DEAD}))
    lines = drawn(nothing, 80)
    assert "no leader" in lines[0]
    assert ["h9:7100", "unreachable"] in [line.split() for line in lines]


# The command.


class FakeAdmin:
    """Answers with one survey after the other, and then with the last one."""

    def __init__(self) -> None:
        self.surveys: list[Survey] = []
        self.asked = 0
        self.before_answer: Callable[[int], None] = lambda _: None

    def __call__(self, addresses: tuple[str, ...]) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def survey(self, *, timeout: float) -> Survey:
        self.asked += 1
        self.before_answer(self.asked)
        return self.surveys[min(self.asked, len(self.surveys)) - 1]


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> FakeAdmin:
    fake = FakeAdmin()
    fake.surveys = [
        survey(leading(uptime_ms=1_000 * second, reads=100 * second), status(2), DEAD)
        for second in range(1, 9)
    ]
    monkeypatch.setattr(admin_module, "ClusterAdmin", fake)
    return fake


def top(*arguments: str) -> Ran:
    return kvorum("top", *arguments, "--interval", "0.1", "--target", "kvorum://h1,h2,h3")


def test_once_is_one_pair_of_readings(admin: FakeAdmin) -> None:
    ran = top("--once")
    assert (ran.status, ran.err, admin.asked) == (0, "", 2)
    assert "2 of 3 nodes answer" in ran.out
    assert ["n1", "100", "0", "0", "0"] in [line.split()[:5] for line in ran.out.splitlines()]
    assert "\x1b" not in ran.out


def test_once_is_status_1_if_no_node_answers(admin: FakeAdmin) -> None:
    admin.surveys = [survey(DEAD, DEAD, DEAD)]
    ran = top("--once")
    assert ran.status == 1
    assert "h3:7100 does not answer" in ran.out


def test_a_script_gets_an_object_a_line(admin: FakeAdmin) -> None:
    admin.before_answer = lambda asked: os.kill(os.getpid(), signal.SIGINT) if asked == 4 else None
    ran = top("--json")
    assert (ran.status, ran.err) == (0, "")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["nodes"][0]["reads_per_second"] for line in lines[:3]] == [None, 100.0, 100.0]
    assert (lines[0]["leader"], lines[0]["term"]) == ("n1", 7)
    first = lines[1]["nodes"][0]
    assert (first["name"], first["role"], first["commit_index"]) == ("n1", "leader", 1_234_567)
    assert first["latency_ms"]["read"] == {"p50": None, "p99": None}
    dead = lines[1]["nodes"][2]
    assert (dead["name"], dead["role"], dead["reads_per_second"]) == ("n3", None, None)
    assert dead["problem"] == DEAD.message


def test_a_pipe_gets_plain_frames_until_it_is_told_to_end(admin: FakeAdmin) -> None:
    admin.before_answer = lambda asked: os.kill(os.getpid(), signal.SIGINT) if asked == 3 else None
    ran = top()
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count("kvorum top") >= 2
    assert "\x1b" not in ran.out


def test_an_error_of_a_reading_ends_it(admin: FakeAdmin) -> None:
    def fail(_: int) -> None:
        raise KvorumError("scripted")

    admin.before_answer = fail
    ran = top()
    assert (ran.status, ran.out, ran.err) == (1, "", "error: scripted\n")


def test_only_a_cluster_has_nodes() -> None:
    ran = kvorum("top", "--target", "memory:")
    assert ran.status == 1
    assert "is no cluster" in ran.err


ALTERNATE_SCREEN, NORMAL_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"


def take_terminal() -> None:
    """Let stdin be the terminal of a new session, whose ^C is a signal."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


@pytest.mark.parametrize("end", [b"q", b"\x03", signal.SIGTERM], ids=["q", "ctrl-c", "sigterm"])
def test_a_terminal_is_left_as_it_was(end: bytes | signal.Signals) -> None:
    """Nobody answers at the target: that must not delay the end."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    target = f"kvorum://127.0.0.1:{free_ports(1)[0]}"
    process = subprocess.Popen(
        command("top", "--target", target),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509 - it does nothing but that
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    try:
        seen = b""
        while b"nodes answer" not in seen:
            seen += os.read(ours, 10_000)
        assert ALTERNATE_SCREEN in seen
        assert NORMAL_SCREEN not in seen
        if isinstance(end, bytes):
            os.write(ours, end)
        else:
            process.send_signal(end)
        assert process.wait(DEADLINE_SECONDS) == 0
        seen += os.read(ours, 10_000)
        assert NORMAL_SCREEN in seen
        assert b"Traceback" not in seen
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
