"""What becomes of a failing run: the smallest one that fails alike, and a command for it."""

import shlex
from contextlib import AbstractContextManager

import pytest

from tests.sim.__main__ import command, main
from tests.sim.mutants import MUTANTS
from tests.sim.plan import KINDS, Plan
from tests.sim.shrink import failure_of, shrink

EVENTS = 2000


def without_guard(name: str) -> AbstractContextManager[None]:
    [mutant] = [one for one in MUTANTS if one.name == name]
    return mutant.applied()


def test_a_failing_run_is_made_smaller_and_fails_alike() -> None:
    with without_guard("promise-before-the-sync"):
        failure, _ = failure_of(Plan(0, EVENTS))
        assert failure is not None
        smallest = shrink(failure, enough=lambda: False)
        again, begun = failure_of(smallest.plan)

    assert smallest.rule == failure.rule == "one vote a term"
    assert smallest.plan.events < EVENTS
    assert len(smallest.plan.kinds) < len(KINDS)
    assert again is not None
    assert str(again) == str(smallest)
    assert again.story == smallest.story
    assert begun == frozenset()


def test_a_run_that_does_not_fail_is_not_shrunk() -> None:
    with without_guard("promise-before-the-sync"):
        failure, _ = failure_of(Plan(0, EVENTS))
    assert failure is not None

    with pytest.raises(AssertionError, match="does not repeat itself"):
        shrink(failure, enough=lambda: False)


def test_the_command_repeats_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(0, EVENTS, frozenset({"crash", "one way"}), frozenset({3, 5}))
    words = shlex.split(command(plan))

    assert words[:3] == ["python", "-m", "tests.sim"]
    with without_guard("promise-before-the-sync"):
        expected, _ = failure_of(plan)
        status = main([*words[3:], "--trace"])
    said = capsys.readouterr().out.splitlines()

    assert expected is not None
    assert status == 1
    assert said[-1] == str(expected)


def test_the_command_line_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seeds", "1", "--kinds", "crash,earthquake"]) == 2
    assert "earthquake" in capsys.readouterr().out
