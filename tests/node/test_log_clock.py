"""Log time between its stamps: rates, jumps and restarts, with clocks that the test sets."""

import math

import pytest

from kvorum_node.log_clock import SLEW, LogClock
from kvorum_node.storage.layout import ClockReading

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = 1_700_000_000_000


class Machine:
    """A computer: a wall clock that may be wrong, and a steady one with any beginning."""

    def __init__(self, skew_ms: int = 0, booted_ms: int = 77) -> None:
        self.wall_ms = NOW + skew_ms
        self.steady_ns = booted_ms * 1_000_000

    def wait(self, ms: float, *, rate: float = 1.0) -> None:
        self.wall_ms += round(ms)
        self.steady_ns += round(ms * rate * 1_000_000)

    def clock(
        self, stored: ClockReading | None = None, applied_ms: int = 0, boot: str = ""
    ) -> LogClock:
        return LogClock(
            boot=boot,
            wall_ms=lambda: self.wall_ms,
            steady_ns=lambda: self.steady_ns,
            stored=stored,
            applied_ms=applied_ms,
        )


def test_a_new_cluster_begins_with_the_wall_clock_of_its_leader() -> None:
    assert Machine().clock().now_ms(leads=True) == NOW


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("jump_ms", [-30 * MINUTE, 30 * MINUTE])
def test_a_wall_clock_that_is_set_does_not_move_it(leads: bool, jump_ms: int) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wait(1000)
    machine.wall_ms += jump_ms
    passed = clock.now_ms(leads=leads) - NOW
    assert abs(passed - 1000) <= 1000 // SLEW + 1


@pytest.mark.parametrize("skew_ms", [-10 * MINUTE, 10 * MINUTE])
def test_a_new_leader_goes_on_where_the_old_one_was_whatever_its_wall_clock_says(
    skew_ms: int,
) -> None:
    follower = Machine(skew_ms)
    clock = follower.clock()
    clock.observe(NOW)
    follower.wait(5000)
    assert clock.now_ms(leads=False) == NOW + 5000
    follower.wait(1000)
    taken_over = clock.now_ms(leads=True)
    assert abs(taken_over - (NOW + 6000)) <= 1


def test_what_the_leader_says_replaces_what_was_guessed() -> None:
    """The wall clock was set while the node was down: its guess is an hour ahead."""
    node = Machine(HOUR)
    clock = node.clock(stored=ClockReading(NOW, NOW))
    assert clock.now_ms(leads=False) == NOW + HOUR
    clock.follow(NOW + 3, term=1)
    node.wait(10)
    assert clock.now_ms(leads=False) == NOW + 13


def test_a_message_of_the_leader_that_was_long_on_its_way_does_not_take_it_back() -> None:
    node = Machine()
    clock = node.clock()
    clock.follow(NOW - 400, term=3)  # nothing is known yet but this, and it is late, too
    node.wait(100)
    clock.follow(NOW + 100, term=3)
    for _ in range(8):
        node.wait(1000)
        clock.follow(NOW + 100, term=3)  # packets are lost, and sent again
    assert NOW + 8080 <= clock.now_ms(leads=False) <= NOW + 8100


def test_another_leader_may_take_it_back() -> None:
    """What that one says is log time, though this node has heard better."""
    node = Machine()
    clock = node.clock()
    clock.follow(NOW, term=3)
    node.wait(1000)
    clock.follow(NOW + 400, term=4)
    assert clock.now_ms(leads=False) == NOW + 400


@pytest.mark.parametrize("rate", [1 - 1 / SLEW, 1 + 1 / SLEW])
def test_it_keeps_up_with_a_leader_that_slews(rate: float) -> None:
    node = Machine()
    clock = node.clock()
    clock.follow(NOW, term=3)
    for second in range(1, 3601):
        node.wait(900)
        clock.now_ms(leads=False)  # at every tick
        node.wait(100)
        clock.follow(round(NOW + second * 1000 * rate), term=3)
    assert abs(clock.now_ms(leads=False) - (NOW + 3_600_000 * rate)) <= 2


def test_it_is_not_behind_what_was_applied() -> None:
    node = Machine(-HOUR)
    assert node.clock(applied_ms=NOW).now_ms(leads=True) == NOW
    clock = node.clock()
    clock.observe(NOW + 5)
    assert clock.now_ms(leads=True) == NOW + 5


def test_the_first_entry_does_not_turn_back_the_leader_that_has_stamped_it() -> None:
    machine = Machine()
    clock = machine.clock()
    stamped = clock.now_ms(leads=True)
    machine.wait(40)
    clock.observe(stamped)
    assert clock.now_ms(leads=True) == NOW + 40
    assert clock.reading() is not None


def test_who_has_led_by_a_wrong_clock_and_has_committed_nothing_takes_over_what_others_have() -> (
    None
):
    machine = Machine(10 * MINUTE)
    clock = machine.clock()
    clock.now_ms(leads=True)
    machine.wait(40)
    clock.observe(NOW)
    assert clock.now_ms(leads=True) == NOW


def test_old_entries_that_are_applied_again_do_not_turn_it_back() -> None:
    node = Machine()
    clock = node.clock(stored=ClockReading(NOW, NOW - HOUR))
    clock.observe(NOW - DAY)
    assert clock.now_ms(leads=False) == NOW + HOUR


@pytest.mark.parametrize("skew_ms", [-10 * MINUTE, 0, 10 * MINUTE])
def test_over_a_restart_time_goes_on_by_what_the_own_wall_clock_has_moved(skew_ms: int) -> None:
    node = Machine(skew_ms)
    clock = node.clock()
    clock.follow(NOW, term=1)
    stored = clock.reading()
    node.wait(20 * MINUTE)
    node.steady_ns = 3  # the machine has booted
    assert node.clock(stored, applied_ms=NOW).now_ms(leads=True) == NOW + 20 * MINUTE


@pytest.mark.parametrize("jump_ms", [-DAY, DAY])
def test_while_the_machine_is_up_a_wall_clock_that_is_set_does_not_matter_over_a_restart(
    jump_ms: int,
) -> None:
    machine = Machine()
    clock = machine.clock(boot="a")
    clock.follow(NOW, term=1)
    machine.wait(10)
    stored = clock.reading()
    assert stored == ClockReading(NOW + 10, NOW + 10, machine.steady_ns, "a")
    machine.wait(5000)
    machine.wall_ms += jump_ms
    assert machine.clock(stored, boot="a").now_ms(leads=False) == NOW + 5010


@pytest.mark.parametrize("boot", ["", "b"])
def test_after_a_restart_of_the_machine_its_wall_clock_says_how_long_it_was_down(boot: str) -> None:
    stored = ClockReading(NOW, NOW, Machine().steady_ns, "a")
    machine = Machine()
    machine.wall_ms += HOUR
    assert machine.clock(stored, boot=boot).now_ms(leads=False) == NOW + HOUR


def test_a_steady_clock_that_went_backwards_is_not_followed() -> None:
    machine = Machine()
    stored = ClockReading(NOW, NOW, machine.steady_ns + 1_000_000, "a")
    assert machine.clock(stored, boot="a").now_ms(leads=False) == NOW


def test_a_reading_is_news_if_the_next_start_would_be_another() -> None:
    one = ClockReading(NOW, NOW, 0, "a")
    assert one.differs_ms(ClockReading(NOW + 70, NOW + 70, 70_000_000, "a")) == 0
    assert one.differs_ms(ClockReading(NOW + 70, NOW + 77, 70_000_000, "a")) == 7
    assert one.differs_ms(ClockReading(NOW + 70, NOW + 70, 77_000_000, "a")) == 7
    assert one.differs_ms(ClockReading(NOW, NOW, 0, "b")) == math.inf
    assert ClockReading(NOW, NOW).differs_ms(ClockReading(NOW + 70, NOW + 77)) == 7


def test_over_a_restart_with_a_wall_clock_that_went_backwards_no_time_has_passed() -> None:
    node = Machine()
    clock = node.clock()
    clock.follow(NOW + 5, term=1)
    stored = clock.reading()
    node.wall_ms -= 40 * DAY
    assert node.clock(stored).now_ms(leads=True) == NOW + 5


def test_a_wall_clock_that_nobody_has_confirmed_is_not_stored() -> None:
    clock = Machine().clock()
    assert clock.reading() is None
    clock.observe(NOW)
    assert clock.reading() == ClockReading(NOW, NOW)


@pytest.mark.parametrize("skew_ms", [-10 * MINUTE, 10 * MINUTE])
def test_it_nears_the_leaders_wall_clock_by_a_2000th_of_the_time_and_stays_there(
    skew_ms: int,
) -> None:
    leader = Machine(skew_ms)
    clock = leader.clock()
    clock.follow(NOW, term=1)
    before = clock.now_ms(leads=True)
    for _ in range(10_000):
        leader.wait(50)
        now = clock.now_ms(leads=True)
        assert 49 <= now - before <= 51
        before = now
    drifted = before - (NOW + 10_000 * 50)
    assert abs(drifted) == 10_000 * 50 // SLEW
    assert (drifted > 0) == (skew_ms > 0)
    leader.wait(2000 * 10 * MINUTE)
    assert clock.now_ms(leads=True) == leader.wall_ms
    leader.wait(DAY)
    assert clock.now_ms(leads=True) == leader.wall_ms


@pytest.mark.parametrize("rate", [1 - 1e-4, 1 + 1e-4])
def test_a_steady_clock_that_is_not_quite_steady_does_not_carry_it_away(rate: float) -> None:
    leader = Machine()
    clock = leader.clock()
    for _ in range(90 * 24):
        leader.wait(HOUR, rate=rate)
        assert abs(clock.now_ms(leads=True) - leader.wall_ms) <= 1


def test_leaders_with_clocks_minutes_apart_make_one_time() -> None:
    """Leadership goes round between wrong clocks, each second: time passes once."""
    machines = [Machine(skew) for skew in (-7 * MINUTE, 0, 9 * MINUTE)]
    clocks = [machine.clock() for machine in machines]
    log_time = clocks[0].now_ms(leads=True)
    begin, turns = log_time, 600
    for turn in range(turns):
        leader = turn % 3
        for _ in range(10):
            for machine in machines:
                machine.wait(100)
            stamped = clocks[leader].now_ms(leads=True)
            assert log_time < stamped <= log_time + 105
            log_time = stamped
            for clock in clocks:
                clock.observe(log_time)
    assert abs(log_time - begin - turns * 1000) <= turns * 1000 // SLEW + turns
