"""Changes of members against the case files of etcd-io/raft.

The files lie beside the project's folder (shared/data/confchange), with a description and
their licence. The cases of a file follow one another: each changes what the one before
has left, or is refused and changes nothing. `v1` makes a voter of 1, `l1` a learner, and
`r1` removes it. Four things are written there and mean nothing here:

    autoleave        a joint configuration is always left automatically
    u1               an update of what is kept about a member is no change of members
    v0 l0 r0         no member has the id 0
    1: StateProbe    what a leader knows of a member has tests of its own (test_progress.py)
"""

import re

import pytest

from kvorum_node.raft.configuration import (
    AddLearner,
    AddVoter,
    Change,
    Configuration,
    ImpossibleChange,
    Remove,
)
from kvorum_node.raft.types import NodeId
from tests.support.case_files import Case, cases, needs_case_files

pytestmark = needs_case_files("confchange")

CASES = cases("confchange")
REFUSALS = {
    "config is already joint": "a change of members is under way",
    "can't apply simple config change in joint config": "a change of members is under way",
    "can't leave a non-joint config": "no change of members is under way",
    "can't make a zero-voter config joint": "there are no voters to decide on the change",
    "removed all voters": "no voter would be left",
    "more than one voter changed without entering joint config": (
        "more than one voter would change without joint consensus"
    ),
}


def changes_of(case: Case) -> list[Change]:
    kinds = {"v": AddVoter, "l": AddLearner, "r": Remove}
    return [
        kinds[word[0]](NodeId(int(word[1:])))
        for word in " ".join(case.input).split()
        if word[0] != "u" and word[1:] != "0"
    ]


def carried_out(case: Case, before: Configuration) -> Configuration:
    match case.directive:
        case "simple":
            return before.change_in_one_step(changes_of(case))
        case "enter-joint":
            return before.enter_joint(changes_of(case))
        case "leave-joint":
            return before.leave_joint()
    raise AssertionError(f"{case} is a {case.directive}")


def result_of(case: Case, before: Configuration) -> tuple[Configuration, str]:
    """The configuration after the case, and what it would print."""
    try:
        after = carried_out(case, before)
    except ImpossibleChange as error:
        return before, str(error)
    return after, written(after)


def written(configuration: Configuration) -> str:
    """The configuration as the files write it."""

    def names(nodes: frozenset[NodeId]) -> str:
        return f"({' '.join(map(str, sorted(nodes)))})"

    text = f"voters={names(configuration.voters)}"
    if configuration.is_joint:
        text += f"&&{names(configuration.outgoing)}"
    if configuration.learners:
        text += f" learners={names(configuration.learners)}"
    if configuration.next_learners:
        text += f" learners_next={names(configuration.next_learners)}"
    return text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_change_of_the_case(case: Case) -> None:
    configuration = Configuration()
    for earlier in CASES:
        if earlier.file == case.file and earlier.number < case.number:
            configuration, _ = result_of(earlier, configuration)
    expected = re.sub(r" autoleave$", "", case.output[0])
    assert result_of(case, configuration)[1] == REFUSALS.get(expected, expected)


def test_no_case_is_left_out() -> None:
    assert len(CASES) == 58
