"""Progress: what a leader sends to a follower next, and how much at once."""

from kvorum_node.raft.progress import Inflight, Progress, ProgressState
from kvorum_node.raft.types import Index

START = Index(1)
PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT


def progress(
    match: int = 0,
    next_: int = 1,
    *,
    state: ProgressState = PROBE,
    max_messages: int = 3,
    max_bytes: int = 100,
) -> Progress:
    return Progress(
        match=Index(match),
        next=Index(next_),
        inflight=Inflight(max_messages, max_bytes),
        state=state,
    )


def where(follower: Progress) -> tuple[ProgressState, int, int]:
    return follower.state, follower.match, follower.next


def full(window: Inflight) -> bool:
    return window.full


def paused(follower: Progress) -> bool:
    return follower.paused


def test_the_window_is_full_at_its_number_of_messages() -> None:
    window = Inflight(max_messages=2, max_bytes=100)
    window.add(Index(1), 10)
    assert not full(window)
    window.add(Index(2), 10)
    assert full(window)

    window.acknowledge(Index(1))
    assert not full(window)
    assert len(window) == 1


def test_the_window_is_full_at_its_number_of_bytes() -> None:
    window = Inflight(max_messages=9, max_bytes=100)
    window.add(Index(1), 99)
    assert not full(window)
    window.add(Index(2), 500)  # one message may go beyond: else a large entry would never leave
    assert full(window)

    window.acknowledge(Index(1))
    assert full(window)
    window.acknowledge(Index(2))
    assert not full(window)


def test_one_acknowledgement_covers_all_messages_before_it() -> None:
    window = Inflight(max_messages=9, max_bytes=100)
    for index in (3, 6, 9):
        window.add(Index(index), 10)

    window.acknowledge(Index(2))
    assert len(window) == 3
    window.acknowledge(Index(8))
    assert len(window) == 1
    window.acknowledge(Index(99))
    assert len(window) == 0


def test_a_window_that_was_cleared_or_pushed_counts_its_bytes_anew() -> None:
    window = Inflight(max_messages=9, max_bytes=20)
    window.forget_oldest()  # of none
    window.add(Index(1), 15)
    window.add(Index(2), 15)
    window.forget_oldest()
    assert not full(window)
    window.add(Index(3), 15)
    window.clear()
    window.add(Index(4), 19)
    assert not full(window)


def test_a_probe_is_one_message_at_a_time() -> None:
    follower = progress(next_=5)
    assert not paused(follower)

    follower.sent(Index(9), 5, 50)

    assert paused(follower)
    assert follower.next == 5  # only an acceptance moves it


def test_an_accepted_probe_opens_the_pipeline() -> None:
    follower = progress(next_=5)
    follower.sent(Index(9), 5, 50)

    assert follower.accepted(Index(9), START)

    assert where(follower) == (REPLICATE, 9, 10)
    assert not paused(follower)
    assert len(follower.inflight) == 0


def test_replication_runs_ahead_of_what_is_acknowledged() -> None:
    follower = progress(match=4, next_=5, state=REPLICATE)

    for last in (6, 8, 9):
        assert not paused(follower)
        follower.sent(Index(last), 2, 10)

    assert paused(follower)
    assert where(follower) == (REPLICATE, 4, 10)
    assert follower.accepted(Index(6), START)
    assert not paused(follower)
    assert where(follower) == (REPLICATE, 6, 10)


def test_an_empty_message_takes_no_place_in_the_window() -> None:
    follower = progress(match=4, next_=5, state=REPLICATE)
    follower.due = True

    follower.sent(Index(4), 0, 0)

    assert where(follower) == (REPLICATE, 4, 5)
    assert len(follower.inflight) == 0
    assert not follower.due


def test_an_old_acceptance_is_no_news_and_takes_nothing_back() -> None:
    follower = progress(match=8, next_=12, state=REPLICATE)

    assert not follower.accepted(Index(8), START)
    assert not follower.accepted(Index(3), START)

    assert where(follower) == (REPLICATE, 8, 12)


def test_a_rejected_probe_tries_before_the_hint_and_never_before_the_match() -> None:
    follower = progress(match=0, next_=10)
    follower.sent(Index(12), 3, 30)
    assert follower.rejected(Index(9), Index(4))
    assert where(follower) == (PROBE, 0, 5)
    assert not paused(follower)

    follower = progress(match=6, next_=10)
    assert follower.rejected(Index(9), Index(2))
    assert where(follower) == (PROBE, 6, 7)

    follower = progress(match=0, next_=10)
    assert follower.rejected(Index(9), Index(50))  # a hint beyond the rejection is no help
    assert where(follower) == (PROBE, 0, 9)


def test_a_rejection_of_another_probe_than_the_last_one_is_out_of_date() -> None:
    follower = progress(match=2, next_=10)
    follower.sent(Index(12), 3, 30)

    assert not follower.rejected(Index(7), Index(0))
    assert not follower.rejected(Index(11), Index(0))

    assert where(follower) == (PROBE, 2, 10)
    assert paused(follower)


def test_a_rejection_in_the_pipeline_goes_back_to_its_hint() -> None:
    follower = progress(match=4, next_=5, state=REPLICATE)
    follower.sent(Index(9), 5, 50)

    assert follower.rejected(Index(9), Index(7))

    assert where(follower) == (PROBE, 4, 8)
    assert not paused(follower)
    assert len(follower.inflight) == 0


def test_a_rejection_of_what_has_been_matched_since_is_out_of_date() -> None:
    follower = progress(match=4, next_=9, state=REPLICATE)

    assert not follower.rejected(Index(4), Index(1))
    assert not follower.rejected(Index(2), Index(1))

    assert where(follower) == (REPLICATE, 4, 9)


def test_an_unreachable_follower_is_asked_what_it_has() -> None:
    """Perhaps only its acknowledgements were lost: it may have all that was sent."""
    follower = progress(match=4, next_=5, state=REPLICATE)
    follower.sent(Index(9), 5, 50)

    follower.unreachable()

    assert where(follower) == (PROBE, 4, 10)
    assert not paused(follower)


def test_a_late_acceptance_ends_a_probe_with_what_is_known_for_certain() -> None:
    follower = progress(match=4, next_=10)

    assert follower.accepted(Index(6), START)

    assert where(follower) == (REPLICATE, 6, 7)


def test_an_unreachable_follower_is_not_probed_again_before_a_sign_of_life() -> None:
    """The transport reports each message that it loses: answering it would never end."""
    follower = progress(match=4, next_=5)
    follower.sent(Index(9), 5, 50)

    follower.unreachable()
    assert paused(follower)

    follower.alive(Index(9))
    assert not paused(follower)


def test_a_sign_of_life_moves_a_stalled_window_by_one_message() -> None:
    follower = progress(match=4, next_=5, state=REPLICATE, max_messages=1)
    follower.sent(Index(5), 1, 10)
    assert paused(follower)

    follower.alive(Index(5))

    assert not paused(follower)
    assert follower.due
    follower.accepted(Index(5), START)
    follower.due = False
    follower.alive(Index(5))
    assert not follower.due  # it has everything


def test_a_follower_in_need_of_a_snapshot_gets_no_entries() -> None:
    follower = progress(match=4, next_=9)
    follower.needs_snapshot()

    follower.alive(Index(20))
    assert not follower.rejected(Index(8), Index(3))
    assert not follower.accepted(Index(4), Index(6))
    assert paused(follower)
    assert where(follower) == (SNAPSHOT, 4, 5)


def test_an_acceptance_ends_the_need_of_a_snapshot_only_where_the_log_goes_on() -> None:
    """One that is late, of entries from before the log's start, must not ask for a second one."""
    follower = progress(match=4, next_=9)
    follower.needs_snapshot()

    assert follower.accepted(Index(8), Index(10))
    assert where(follower) == (SNAPSHOT, 8, 9)

    assert follower.accepted(Index(9), Index(10))
    assert where(follower) == (REPLICATE, 9, 10)


def test_an_installed_snapshot_is_probed_at_once_even_if_there_is_nothing_to_send() -> None:
    """Its acknowledgement may be lost, and without traffic nothing else would ask for it."""
    follower = progress(match=4, next_=9)
    follower.needs_snapshot()

    follower.snapshot_installed(Index(20))

    assert where(follower) == (PROBE, 4, 21)
    assert not paused(follower)
    assert follower.due


def test_a_failed_snapshot_is_not_repeated_before_a_sign_of_life() -> None:
    """The follower may have got on meanwhile: so the whole log is guessed to match at first."""
    follower = progress(match=4, next_=9)
    follower.needs_snapshot()

    follower.snapshot_failed(Index(20))
    assert where(follower) == (PROBE, 4, 21)
    assert paused(follower)

    follower.alive(Index(20))
    assert not paused(follower)
    assert follower.due


def test_a_late_report_changes_nothing() -> None:
    follower = progress(match=4, next_=9)
    follower.accepted(Index(12), START)

    follower.snapshot_failed(Index(20))
    assert where(follower) == (REPLICATE, 12, 13)

    follower.snapshot_installed(Index(8))
    assert where(follower) == (REPLICATE, 12, 13)
