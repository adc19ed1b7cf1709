"""The pytest plugin, as the tests of another program use it: each in a pytest of its own."""

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import pytest
import kvorum

async def test_a_store_is_empty(kv):
    assert (await kv.list()).entries == ()
    await kv.put("a", 1)

async def test_and_so_is_the_next_one(kv):
    assert (await kv.list()).entries == ()
    assert isinstance(kv, kvorum.KV)

def test_without_a_loop(sync_kv):
    assert sync_kv.get("a") is None
    sync_kv.put("a", 1)
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\nasyncio_mode = auto\n")
    pytester.makepyfile(SUITE)
    return pytester


@pytest.mark.parametrize("target", ["memory", "directory"])
def test_stores_are_empty_for_each_test(suite: pytest.Pytester, target: str) -> None:
    ran = suite.runpytest_subprocess(f"--kvorum-target={target}")
    ran.assert_outcomes(passed=3)


def test_the_plugin_says_what_it_has(suite: pytest.Pytester) -> None:
    ran = suite.runpytest_subprocess("--fixtures", "-q")
    for name in ("kv ", "sync_kv ", "kvorum_cluster "):
        ran.stdout.fnmatch_lines([f"{name}*kvorum/testing.py*"])


@pytest.mark.cluster
def test_the_same_tests_run_on_a_real_cluster(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_harm="""
import asyncio

async def test_a_leader_may_die(kv, kvorum_cluster):
    leader = kvorum_cluster.leader()
    await asyncio.to_thread(kvorum_cluster.kill, leader)
    await kv.put("a", 1)

def test_it_is_whole_again(sync_kv, kvorum_cluster):
    assert kvorum_cluster.leader() in kvorum_cluster.nodes
    assert len(kvorum_cluster.nodes) == 3
    assert sync_kv.get("a") is None
"""
    )
    ran = suite.runpytest_subprocess("--kvorum-target=cluster")
    ran.assert_outcomes(passed=5)


def test_a_target_that_is_none_is_refused(suite: pytest.Pytester) -> None:
    ran = suite.runpytest_subprocess("--kvorum-target=moon")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["*invalid choice: 'moon'*"])


def test_what_is_missing_is_said(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        """
import sys

sys.modules["psutil"] = None
"""
    )
    suite.makepyfile("def test_cluster(kvorum_cluster): pass")
    ran = suite.runpytest_subprocess()
    ran.assert_outcomes(errors=1)
    ran.stdout.fnmatch_lines(['*kvorum_cluster needs the node: pip install "kvorum[[]node]"*'])
