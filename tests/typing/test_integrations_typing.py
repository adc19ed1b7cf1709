"""What type checkers know about the integrations; checked by `make check`, not run."""

from collections.abc import Mapping
from typing import Any, assert_type

from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from kvorum import KV, SyncKV
from kvorum.integrations.openfeature import KvorumProvider
from kvorum.integrations.opentelemetry import instrument
from kvorum.integrations.starlette import (
    RateLimitMiddleware,
    RequestSession,
    SessionMiddleware,
    client_address,
)
from kvorum.patterns import FeatureFlags, RateLimiter, Session, SessionStore


async def use_sessions(session: RequestSession) -> None:
    assert_type(await session.load(), Session | None)
    assert_type(await session.login("ann", {"theme": "dark"}), Session)
    assert_type(await session.rotate(), Session | None)
    assert_type(session.user, str | None)
    assert_type(session.data, Mapping[str, Any])


def use_middleware(app: Starlette, store: SessionStore, limiter: RateLimiter) -> None:
    def find(connection: HTTPConnection) -> SessionStore:
        return store

    app.add_middleware(SessionMiddleware, store=store, same_site="strict")
    app.add_middleware(SessionMiddleware, store=find, eager=True)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=client_address)
    assert_type(limiter.window, float)


def use_the_rest(kv: KV, threads: SyncKV, flags: FeatureFlags) -> None:
    instrument(kv)
    instrument(threads, record_keys=True)
    assert_type(KvorumProvider(flags).resolve_boolean_details("a", False).value, bool)
