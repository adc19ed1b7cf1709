"""What type checkers see of sessions. mypy is the test, as in test_client_typing.py."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, assert_type

from kvorum import KV
from kvorum.patterns import Session, SessionPage, SessionStore


async def sessions_have_types(kv: KV) -> None:
    sessions = SessionStore(kv, ttl=60, lifetime=timedelta(days=1), name="admin")
    token, session = await sessions.create("alice", data={"a": 1})
    assert_type(token, str)
    assert_type(session, Session)
    assert_type(session.data, Mapping[str, Any])
    assert_type(session.expires_at, datetime)
    assert_type(await sessions.get(token, timeout=1), Session | None)
    assert_type(await sessions.refresh(token), Session | None)
    assert_type(await sessions.update(token, {"b": 1}, remove=["a"], c=2), Session | None)
    assert_type(await sessions.rotate(token), str | None)
    assert_type(await sessions.of_user("alice", limit=5), SessionPage)
    assert_type(await sessions.destroy(token), bool)
    assert_type(await sessions.destroy_one("alice", session.id), bool)
    assert_type(await sessions.destroy_all("alice"), int)
    SessionStore(kv)  # type: ignore[call-arg]  # how long?


def test_the_checked_functions_are_there() -> None:
    assert sessions_have_types.__name__ in globals()
