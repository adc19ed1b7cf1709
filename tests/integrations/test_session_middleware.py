"""A cookie leads to its session, or to none; and a log-in is one that nobody has prepared."""

import logging
from http.cookies import SimpleCookie

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import kvorum
from kvorum import KV, InvalidArgument, NoNodeReachable
from kvorum.integrations.starlette import (
    STORE_IS_AWAY,
    RequestSession,
    SessionMiddleware,
    service_unavailable,
)
from kvorum.patterns import SessionStore
from tests.integrations.asgi import client_of
from tests.support.round_trips import RoundTrips


def session_of(request: Request) -> RequestSession:
    session: RequestSession = request.state.session
    return session


async def login(request: Request) -> Response:
    session = await session_of(request).login(request.path_params["user"], {"theme": "dark"})
    return JSONResponse(session.id)


async def logout(request: Request) -> Response:
    await session_of(request).logout()
    return JSONResponse(None)


async def rotate(request: Request) -> Response:
    return JSONResponse(await session_of(request).rotate() is not None)


async def add(request: Request) -> Response:
    session = await session_of(request).update({"cart": request.path_params["what"]})
    return JSONResponse(dict(session.data))


async def whoami(request: Request) -> Response:
    session = await session_of(request).load()
    return JSONResponse(None if session is None else [session.user, dict(session.data)])


async def public(request: Request) -> Response:
    return JSONResponse("public")


async def current(request: Request) -> Response:
    session = session_of(request)
    return JSONResponse([session.user, dict(session.data)])


def application() -> Starlette:
    return Starlette(
        routes=[
            Route("/login/{user}", login),
            Route("/logout", logout),
            Route("/rotate", rotate),
            Route("/add/{what}", add),
            Route("/whoami", whoami),
            Route("/current", current),
            Route("/public", public),
        ]
    )


@pytest.fixture
def store(kv: KV) -> SessionStore:
    return SessionStore(kv, ttl=1800)


@pytest.fixture
def app(store: SessionStore) -> ASGIApp:
    return SessionMiddleware(application(), store=store)


def cookie_of(answer: httpx.Response) -> str:
    return SimpleCookie(answer.headers["Set-Cookie"])["session"].value


async def test_a_log_in_sets_a_cookie_that_scripts_and_other_sites_do_not_get(
    app: ASGIApp,
) -> None:
    async with client_of(app) as client:
        answer = await client.get("/login/ann")
        set_cookie = answer.headers["Set-Cookie"]
        assert (await client.get("/whoami")).json() == ["ann", {"theme": "dark"}]
    attributes = {one.strip().lower() for one in set_cookie.split(";")[1:]}
    assert attributes == {"httponly", "secure", "samesite=lax", "path=/"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Vary"] == "Cookie"


async def test_a_request_that_does_not_ask_for_its_session_costs_nothing(
    app: ASGIApp, round_trips: RoundTrips
) -> None:
    async with client_of(app) as client:
        await client.get("/login/ann")
        round_trips.reset()
        answer = await client.get("/public")
        assert round_trips.count == 0
        assert "Vary" not in answer.headers
        answer = await client.get("/whoami")
        assert round_trips.requests == ["list"]
        assert "Set-Cookie" not in answer.headers


async def test_an_eager_session_is_there_without_await(
    store: SessionStore, round_trips: RoundTrips
) -> None:
    app = SessionMiddleware(application(), store=store, eager=True)
    async with client_of(app) as client:
        assert (await client.get("/current")).json() == [None, {}]
        assert round_trips.count == 0  # without a cookie there is nothing to ask for
        await client.get("/login/ann")
        round_trips.reset()
        assert (await client.get("/current")).json() == ["ann", {"theme": "dark"}]
    assert round_trips.requests == ["list"]


async def test_a_lazy_session_says_that_it_was_not_loaded(app: ASGIApp) -> None:
    async with client_of(app) as client:
        with pytest.raises(InvalidArgument, match="await load"):
            await client.get("/current")


async def test_a_session_that_is_due_is_let_live_on_in_two_round_trips(
    kv: KV, store: SessionStore, app: ASGIApp, round_trips: RoundTrips
) -> None:
    async with client_of(app) as client:
        name = (await client.get("/login/ann")).json()
        await kv.delete(f"session:{name}:refreshed")
        round_trips.reset()
        assert (await client.get("/whoami")).json() is not None
        assert round_trips.requests == ["list", "txn"]


async def test_a_log_in_makes_a_prepared_session_worthless(
    app: ASGIApp, store: SessionStore
) -> None:
    async with client_of(app) as client, client_of(app) as attacker:
        await attacker.get("/add/book")
        fixed = attacker.cookies["session"]
        client.cookies.set("session", fixed)
        answer = await client.get("/login/ann")
        assert cookie_of(answer) != fixed
        assert await store.get(fixed) is None
        assert (await attacker.get("/whoami")).json() is None
        # The cart of somebody who was not logged in goes on.
        client.cookies.clear()
        client.cookies.set("session", cookie_of(answer))
        assert (await client.get("/whoami")).json() == ["ann", {"cart": "book", "theme": "dark"}]


async def test_a_log_in_takes_nothing_from_another_user(app: ASGIApp, store: SessionStore) -> None:
    async with client_of(app) as client:
        first = cookie_of(await client.get("/login/ann"))
        await client.get("/add/book")
        await client.get("/login/bob")
        assert (await client.get("/whoami")).json() == ["bob", {"theme": "dark"}]
        assert await store.get(first) is None


async def test_a_log_out_ends_the_session_and_takes_the_cookie_back(
    app: ASGIApp, store: SessionStore
) -> None:
    async with client_of(app) as client:
        token = cookie_of(await client.get("/login/ann"))
        answer = await client.get("/logout")
        assert "max-age=0" in answer.headers["Set-Cookie"].lower()
        assert "session" not in client.cookies
        assert await store.get(token) is None


async def test_a_rotated_session_goes_on_under_another_token(
    app: ASGIApp, store: SessionStore
) -> None:
    async with client_of(app) as client:
        old = cookie_of(await client.get("/login/ann"))
        new = cookie_of(await client.get("/rotate"))
        assert new != old
        assert await store.get(old) is None
        assert (await client.get("/whoami")).json() == ["ann", {"theme": "dark"}]


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "A" * 64, "%00", "a" * 5_000, "ümlaut", '"quoted', "\\", "=;=", "session=session"],
)
async def test_a_cookie_that_was_made_up_is_as_good_as_none(app: ASGIApp, cookie: str) -> None:
    async with client_of(app) as client:
        header = [(b"cookie", f"session={cookie}".encode())]
        answer = await client.get("/whoami", headers=header)
        assert (answer.status_code, answer.json()) == (200, None)
        assert (await client.get("/logout", headers=header)).status_code == 200
        assert (await client.get("/rotate", headers=header)).json() is False
        assert (await client.get("/add/book", headers=header)).json() == {"cart": "book"}


async def test_every_altered_character_makes_a_cookie_worthless(app: ASGIApp) -> None:
    async with client_of(app) as client:
        token = cookie_of(await client.get("/login/ann"))
        client.cookies.clear()
        for position in range(len(token)):
            other = "A" if token[position] != "A" else "B"
            altered = token[:position] + other + token[position + 1 :]
            answer = await client.get("/whoami", headers={"Cookie": f"session={altered}"})
            assert (answer.status_code, answer.json()) == (200, None)


async def test_an_answer_for_a_session_that_is_gone_leaves_the_cookie_alone(
    app: ASGIApp,
) -> None:
    """Another request of the same browser may just have got a new one."""
    async with client_of(app) as client:
        old = cookie_of(await client.get("/login/ann"))
        await client.get("/login/ann")
        answer = await client.get("/whoami", headers={"Cookie": f"session={old}"})
        assert answer.json() is None
        assert "Set-Cookie" not in answer.headers


async def test_tokens_are_in_no_log_and_no_repr(
    app: ASGIApp, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with client_of(app) as client:
            token = cookie_of(await client.get("/login/ann"))
            await client.get("/whoami")
            await client.get("/rotate")
            await client.get("/logout")
            session = RequestSession(store, token)
            assert token not in repr(session)
            assert "dark" not in repr(session)
    assert token not in caplog.text


async def test_a_store_that_is_away_is_503_for_an_eager_session_and_an_error_for_a_lazy_one() -> (
    None
):
    async with kvorum.open("kvorum://127.0.0.1:1", timeout=0.2) as away:
        store = SessionStore(away, ttl=1800)
        async with kvorum.open("memory:") as kv:
            token, _ = await SessionStore(kv, ttl=1800).create("ann")
        cookie = {"Cookie": f"session={token}"}
        async with client_of(SessionMiddleware(application(), store=store, eager=True)) as client:
            answer = await client.get("/public", headers=cookie)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        async with client_of(SessionMiddleware(application(), store=store)) as client:
            with pytest.raises(NoNodeReachable):
                await client.get("/whoami", headers=cookie)
        handled = Starlette(
            routes=[Route("/whoami", whoami)],
            exception_handlers=dict.fromkeys(STORE_IS_AWAY, service_unavailable),
        )
        async with client_of(SessionMiddleware(handled, store=store)) as client:
            assert (await client.get("/whoami", headers=cookie)).status_code == 503


async def test_fastapi_with_a_store_that_the_lifespan_makes(store: SessionStore) -> None:
    app = FastAPI()
    app.add_middleware(
        SessionMiddleware,
        store=lambda connection: connection.app.state.sessions,
        cookie="__Host-session",
        max_age=3600,
    )
    app.state.sessions = store

    @app.post("/login")
    async def log_in(request: Request) -> str:
        await session_of(request).login("ann")
        return "welcome"

    @app.get("/")
    async def root(request: Request) -> str | None:
        session = await session_of(request).load()
        return None if session is None else session.user

    async with client_of(app) as client:
        answer = await client.post("/login")
        assert answer.headers["Set-Cookie"].startswith("__Host-session=")
        assert "max-age=3600" in answer.headers["Set-Cookie"].lower()
        assert (await client.get("/")).json() == "ann"


@pytest.mark.parametrize(
    "options",
    [
        {"same_site": "none", "secure": False},
        {"cookie": "__Host-session", "secure": False},
        {"cookie": "__Host-session", "path": "/shop"},
    ],
)
def test_cookies_that_browsers_refuse_are_refused(
    store: SessionStore, options: dict[str, str]
) -> None:
    with pytest.raises(InvalidArgument):
        SessionMiddleware(application(), store=store, **options)  # type: ignore[arg-type]  # on purpose
