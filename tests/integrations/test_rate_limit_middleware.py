"""Requests beyond a limit get 429; the headers are those of the draft."""

import logging
from collections.abc import Iterable
from math import ceil

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocket

import kvorum
from kvorum import KV, InvalidArgument
from kvorum.integrations.starlette import (
    Check,
    RateLimitMiddleware,
    client_address,
    too_many_requests,
)
from kvorum.patterns import RateDecisions, RateLimiter
from tests.integrations.asgi import client_of
from tests.support.round_trips import RoundTrips


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


def application() -> Starlette:
    return Starlette(routes=[Route("/", hello), WebSocketRoute("/echo", echo)])


async def test_a_request_within_its_limit_costs_one_round_trip_and_says_what_is_left(
    kv: KV, round_trips: RoundTrips
) -> None:
    limiter = RateLimiter(kv, "api", limit=2, window=60)
    async with client_of(RateLimitMiddleware(application(), limiter=limiter)) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, "hello")
    assert answer.headers["RateLimit-Policy"] == '"api";q=2;w=60'
    assert answer.headers["RateLimit"] == '"api";r=1;t=60'
    assert "Retry-After" not in answer.headers
    assert round_trips.requests == ["txn"]


async def test_a_request_beyond_it_gets_429_with_whole_seconds_rounded_up(kv: KV) -> None:
    waits: list[float] = []

    def refusal(connection: HTTPConnection, decisions: RateDecisions) -> Response:
        waits.append(decisions.retry_after)
        return too_many_requests(connection, decisions)

    limited = RateLimitMiddleware(
        application(), limiter=RateLimiter(kv, "api", limit=1, window=60.5), refusal=refusal
    )
    async with client_of(limited) as client:
        await client.get("/")
        answer = await client.get("/")
    assert answer.status_code == 429
    whole = str(ceil(waits[0]))
    assert answer.headers["Retry-After"] == whole
    assert answer.headers["RateLimit"] == f'"api";r=0;t={whole}'
    # 60.5 is no whole number of seconds, as the parameter has to be.
    assert answer.headers["RateLimit-Policy"] == '"api";q=1'
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["violated-policies"] == ["api"]


async def test_clients_are_told_apart(kv: KV) -> None:
    limited = RateLimitMiddleware(application(), limiter=RateLimiter(kv, "api", limit=1, window=60))
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
        async with client_of(limited, address) as client:
            assert (await client.get("/")).status_code == 200
            assert (await client.get("/")).status_code == 429
    async with client_of(limited, "2001:db8::2") as client:  # of the same network
        assert (await client.get("/")).status_code == 429


async def test_who_is_not_identified_is_not_limited(kv: KV, round_trips: RoundTrips) -> None:
    limiter = RateLimiter(kv, "api", limit=1, window=60)
    limited = RateLimitMiddleware(
        application(), limiter=limiter, identify=lambda connection: connection.headers.get("key")
    )
    async with client_of(limited) as client:
        for _ in range(3):
            answer = await client.get("/")
            assert answer.status_code == 200
            assert "RateLimit" not in answer.headers
    assert round_trips.count == 0


async def test_several_limits_are_taken_from_together_or_not_at_all(
    kv: KV, round_trips: RoundTrips
) -> None:
    users = RateLimiter(kv, 'a "user"', limit=5, window=60)
    addresses = RateLimiter(kv, "address", limit=2, window=1000, algorithm="gcra")

    def checks(connection: HTTPConnection) -> Iterable[Check]:
        yield users, "ann", 1
        yield addresses, client_address(connection), 1

    async with client_of(RateLimitMiddleware(application(), checks=checks)) as client:
        answers = [await client.get("/") for _ in range(3)]
    assert round_trips.count == 3
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    policy = r'"a \"user\"";q=5;w=60, "address";q=2;w=1000'
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {policy}
    assert answers[2].json()["violated-policies"] == ["address"]
    assert 400 <= int(answers[2].headers["Retry-After"]) <= 500
    assert (await users.peek("ann")).remaining == 3  # the refused one took nothing


async def test_limits_within_limits_are_all_told(kv: KV) -> None:
    inner = RateLimitMiddleware(application(), limiter=RateLimiter(kv, "in", limit=1, window=60))
    outer = RateLimitMiddleware(inner, limiter=RateLimiter(kv, "out", limit=2, window=60))
    async with client_of(outer) as client:
        answer = await client.get("/")
        assert answer.headers["RateLimit"] == '"in";r=0;t=60, "out";r=1;t=60'
        answer = await client.get("/")
        assert (answer.status_code, answer.json()["violated-policies"]) == (429, ["in"])
        answer = await client.get("/")
        assert (answer.status_code, answer.json()["violated-policies"]) == (429, ["out"])
        assert len(answer.headers.get_list("Retry-After")) == 1


async def test_the_application_sees_the_decisions_and_may_refuse_in_its_own_words(kv: KV) -> None:
    async def left(request: Request) -> Response:
        decisions: RateDecisions = request.state.rate_limits
        return PlainTextResponse(str(decisions.tightest.remaining))

    def sorry(connection: HTTPConnection, decisions: RateDecisions) -> Response:
        return PlainTextResponse("sorry", 429)

    limited = RateLimitMiddleware(
        Starlette(routes=[Route("/", left)]),
        limiter=RateLimiter(kv, "api", limit=1, window=60),
        refusal=sorry,
    )
    async with client_of(limited) as client:
        assert (await client.get("/")).text == "0"
        answer = await client.get("/")
    assert (answer.status_code, answer.text) == (429, "sorry")
    assert "Retry-After" in answer.headers


async def test_a_store_that_is_away_lets_pass_or_refuses_as_was_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with kvorum.open("kvorum://127.0.0.1:1") as away:
            limiter = RateLimiter(away, "api", limit=1, window=60)
            allows = RateLimitMiddleware(application(), limiter=limiter, timeout=0.2)
            refuses = RateLimitMiddleware(
                application(), limiter=limiter, timeout=0.2, on_unavailable="refuse"
            )
            async with client_of(allows) as client:
                answers = [await client.get("/") for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert "RateLimit" not in answers[0].headers
            async with client_of(refuses) as client:
                answer = await client.get("/")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    said = [record.getMessage() for record in caplog.records if "rate limits" in record.message]
    assert [message.partition(": the store")[2][:30] for message in said] == [
        " is away, requests pass unlimi",
        " is away, requests are refused",
    ]


async def test_a_fault_of_the_program_is_none_of_the_store(kv: KV) -> None:
    limiter = RateLimiter(kv, "api", limit=1, window=60)
    costly = RateLimitMiddleware(application(), checks=lambda connection: [(limiter, "a", 2)])
    async with client_of(costly) as client:
        with pytest.raises(InvalidArgument):
            await client.get("/")
    with pytest.raises(InvalidArgument, match="not both"):
        RateLimitMiddleware(application())
    with pytest.raises(InvalidArgument, match="allow or refuse"):
        RateLimitMiddleware(application(), limiter=limiter, on_unavailable="maybe")  # type: ignore[arg-type]  # on purpose


async def test_fastapi_with_a_limiter_that_the_lifespan_makes(kv: KV) -> None:
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limiter=lambda connection: connection.app.state.limiter)

    @app.get("/")
    async def root() -> str:
        return "hello"

    app.state.limiter = RateLimiter(kv, "api", limit=1, window=60)
    async with client_of(app) as client:
        assert (await client.get("/")).json() == "hello"
        assert (await client.get("/")).status_code == 429


async def test_a_websocket_is_limited_when_it_is_opened(kv: KV) -> None:
    limiter = RateLimiter(kv, "socket", limit=1, window=60)
    limited = RateLimitMiddleware(application(), limiter=limiter)
    opened = await messages_of_websocket(limited)
    assert [message["type"] for message in opened] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]
    assert (b"ratelimit", b'"socket";r=0;t=60') in opened[0]["headers"]
    [refused] = await messages_of_websocket(limited)
    assert (refused["type"], refused["code"]) == ("websocket.close", 1013)


async def messages_of_websocket(app: ASGIApp) -> list[Message]:
    """What a server would be told by the application, for a client that listens."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/echo",
        "headers": [],
        "query_string": b"",
        "client": ("192.0.2.1", 50_000),
        "subprotocols": [],
    }
    await app(scope, receive, send)
    return sent
