"""What a client believes about the leader."""

from kvorum.backends.leadership import LeaderView


def test_the_highest_term_wins() -> None:
    view = LeaderView()
    view.observe(3, "n1", "a1")
    view.observe(2, "n2", "a2")
    assert (view.term, view.leader, view.address) == (3, "n1", "a1")
    view.observe(4, "n3", "a3")
    assert (view.term, view.leader, view.address) == (4, "n3", "a3")


def test_a_term_without_a_leader_gets_one() -> None:
    view = LeaderView()
    view.observe(3, "", "")
    assert view.address == ""
    view.observe(3, "n1", "a1")
    assert view.address == "a1"


def test_a_node_that_knows_no_leader_does_not_unseat_one() -> None:
    view = LeaderView()
    view.observe(3, "n1", "a1")
    view.observe(3, "", "")
    assert view.address == "a1"


def test_a_higher_term_without_a_leader_does() -> None:
    view = LeaderView()
    view.observe(3, "n1", "a1")
    view.observe(4, "", "")
    assert (view.term, view.address) == (4, "")


def test_a_leader_that_steps_down_is_not_believed_to_lead_that_term_again() -> None:
    view = LeaderView()
    view.observe(3, "n1", "a1")
    view.disclaim()
    view.observe(3, "n1", "a1")
    assert view.address == ""
    view.observe(4, "n1", "a1")
    assert view.address == "a1"


def test_it_can_be_read() -> None:
    view = LeaderView()
    assert str(view) == "no leader known at term 0"
    view.observe(3, "n1", "h1:7100")
    assert str(view) == "n1 (h1:7100) leads term 3"
