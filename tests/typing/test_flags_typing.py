"""What type checkers see of feature flags. mypy is the test, as in test_client_typing.py."""

from typing import Any, assert_type

from kvorum import KV
from kvorum.patterns import Context, Explanation, FeatureFlags, Flag, Reason


async def flags_have_types(kv: KV) -> None:
    async with FeatureFlags(kv, "flag", stale_after=30) as flags:
        assert_type(flags, FeatureFlags)
        revision = await flags.set("a", percentage=10, users=["b"], where={"plan": ["pro", 1]})
        assert_type(revision, int)
        assert_type(await flags.update("a", percentage=0.5), int)
        assert_type(await flags.wait_for(revision), None)
        assert_type(flags.is_enabled("a", {"user_id": "b", "plan": "pro"}), bool)
        assert_type(flags.value("a", Context("b"), 5), int)
        assert_type(flags.value("a", None, "red"), str)
        explained = flags.explain("a")
        assert_type(explained, Explanation)
        assert_type(explained.reason, Reason)
        assert_type(explained.value, Any)
        assert_type(await flags.list(), tuple[Flag, ...])
        assert_type(await flags.get("a"), Flag | None)
        assert_type(await flags.delete("a", revision=revision), bool)
        flags.is_enabled("a", "alice")  # type: ignore[arg-type]  # no context


def test_the_checked_functions_are_there() -> None:
    assert flags_have_types.__name__ in globals()
