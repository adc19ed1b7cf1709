"""Majorities and joint majorities against the case files of etcd-io/raft.

The files lie beside the project's folder (shared/data/quorum), with a description and
their licence. A case is a directive with its arguments, `----`, and a drawing whose last
line is the result; `∞` is "everything", which a majority of nobody has agreed to.
"""

import re

import pytest

from kvorum_node.raft.configuration import Configuration
from kvorum_node.raft.quorum import EVERYTHING, VoteResult, reached, vote_result
from kvorum_node.raft.types import NodeId
from tests.support.case_files import Case, cases, needs_case_files

pytestmark = needs_case_files("quorum")

CASES = cases("quorum")
COMMITS = [case for case in CASES if case.directive == "committed"]
VOTES = [case for case in CASES if case.directive == "vote"]
RESULTS = {
    "VoteWon": VoteResult.WON,
    "VotePending": VoteResult.PENDING,
    "VoteLost": VoteResult.LOST,
}


def configuration_of(case: Case) -> Configuration:
    return Configuration(
        voters=frozenset(nodes(case.argument("cfg"))),
        outgoing=frozenset(nodes(case.argument("cfgj"))),
    )


def nodes(argument: list[str]) -> list[NodeId]:
    """`(1,2)`; `zero` is a configuration of nobody."""
    return [NodeId(int(word)) for word in argument if word != "zero"]


def members_of(case: Case) -> list[NodeId]:
    """Those whom the listed numbers and votes belong to: each once, as they are named first."""
    return list(dict.fromkeys(nodes(case.argument("cfg")) + nodes(case.argument("cfgj"))))


@pytest.mark.parametrize("case", COMMITS, ids=str)
def test_the_committed_index_of_the_case(case: Case) -> None:
    indexes = {
        node: int(word)
        for node, word in zip(members_of(case), case.argument("idx"), strict=True)
        if word != "_"
    }
    last = re.sub(r"<.*>", "", case.output[-1])
    expected = EVERYTHING if last == "∞" else int(last)
    assert reached(configuration_of(case), indexes) == expected


@pytest.mark.parametrize("case", VOTES, ids=str)
def test_the_vote_of_the_case(case: Case) -> None:
    votes = {
        node: word == "y"
        for node, word in zip(members_of(case), case.argument("votes"), strict=True)
        if word != "_"
    }
    assert vote_result(configuration_of(case), votes) is RESULTS[case.output[-1]]


def test_no_case_is_left_out() -> None:
    assert len(COMMITS) + len(VOTES) == len(CASES) == 127
