"""Rate limits and sessions for Starlette, FastAPI, and whatever else speaks ASGI.

    app.add_middleware(RateLimitMiddleware, limiter=api, identify=client_address)
    app.add_middleware(SessionMiddleware, store=sessions, cookie="session")

Both are plain ASGI middleware: they buffer nothing, and start no task. What they work with may
be given as it is, or as a function of the connection, where the store is opened by the
lifespan of the application: `store=lambda connection: connection.app.state.sessions`.

The headers are those of draft-ietf-httpapi-ratelimit-headers-10:

    RateLimit-Policy: "api";q=100;w=60      what is allowed: q in w seconds
    RateLimit: "api";r=99;t=60              r are left; all of them again in t seconds

Rule of this file: a cookie is text from outside. Whatever it holds, it is a session or none.
"""

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Any, Final, Literal
from urllib.parse import quote

from kvorum.errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    InvalidToken,
    KvorumError,
    OutcomeUnknown,
    QuotaExceeded,
    StorageError,
    Unavailable,
)
from kvorum.integrations import missing
from kvorum.patterns import RateDecision, RateDecisions, RateLimiter, Session, SessionStore

try:
    from starlette.datastructures import MutableHeaders
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocketClose
except ImportError as error:
    raise missing("starlette", error) from error

log = logging.getLogger(__name__)

Check = tuple[RateLimiter, str, int]
"""A limiter, an identifier, and a cost."""

STORE_IS_AWAY: Final = (
    Unavailable,
    DeadlineExceeded,
    OutcomeUnknown,
    QuotaExceeded,
    StorageError,
    Closed,
)
"""The errors that say that the store cannot answer now, and nothing about the request."""

DEFAULT_CHECK_SECONDS: Final = 1.0
"""How long a request waits for its rate limits."""
RETRY_SECONDS: Final = 1
"""What a client is told to wait for where the store is away."""
QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""The problem type of a refusal, of the same draft (RFC 9457)."""

_TRY_AGAIN_LATER: Final = 1013
"""The close code of a WebSocket; one that was not accepted becomes a response 403."""


def client_address(connection: HTTPConnection) -> str:
    """Who asks, by address; of IPv6 the network of 64 bits, as each client has one of its own.

    Behind a proxy, let the server find the client (`uvicorn --proxy-headers`, with
    `--forwarded-allow-ips`): a header that is believed from everybody is a limit for nobody.
    Those without an address share one.
    """
    if connection.client is None:
        return "unknown"
    host = connection.client.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return host


def service_unavailable(connection: HTTPConnection, error: Exception) -> Response:
    """503, to be tried again: also as a handler of errors of the store.

    for kind in STORE_IS_AWAY:
        app.add_exception_handler(kind, service_unavailable)
    """
    detail = {"title": "Service Unavailable", "status": 503}
    return JSONResponse(
        detail,
        503,
        {"Retry-After": str(RETRY_SECONDS), "Cache-Control": "no-store"},
        "application/problem+json",
    )


def too_many_requests(connection: HTTPConnection, decisions: RateDecisions) -> Response:
    """429, as a problem with the names of the limits that had no room."""
    problem = {
        "type": QUOTA_EXCEEDED,
        "title": "Too Many Requests",
        "status": 429,
        "violated-policies": list(decisions.refused_by),
    }
    return JSONResponse(problem, 429, media_type="application/problem+json")


class RateLimitMiddleware:
    """Limits how often each client may ask; one round trip a request.

    One limit, by `limiter` and `identify`, which names the client, or gives None for one who is
    not limited; or several, by `checks`, which gives what is to be taken for a request, from all
    or from none:

        def checks(connection):
            yield connection.app.state.addresses, client_address(connection), 1
            if user := connection.headers.get("x-api-key"):
                yield connection.app.state.users, user, 1

    What is within its limits has the headers `RateLimit` and `RateLimit-Policy` on its response;
    a request beyond them gets 429 with `Retry-After` in whole seconds, rounded up, and the
    application is not asked. `refusal` makes another response of it: a page, say. The application
    sees the decisions as `request.state.rate_limits`. A WebSocket is limited when it is
    opened. All else passes.

    When the store has not answered within `timeout` seconds, or cannot: with
    `on_unavailable="allow"` the request passes unlimited and without the headers, with
    "refuse" it gets 503. The log says when that begins and ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limiter: RateLimiter | Callable[[HTTPConnection], RateLimiter] | None = None,
        identify: Callable[[HTTPConnection], str | None] = client_address,
        checks: Callable[[HTTPConnection], Iterable[Check]] | None = None,
        on_unavailable: Literal["allow", "refuse"] = "allow",
        timeout: float = DEFAULT_CHECK_SECONDS,
        refusal: Callable[[HTTPConnection, RateDecisions], Response] = too_many_requests,
    ) -> None:
        if (limiter is None) is (checks is None):
            raise InvalidArgument("a rate limit needs a limiter or checks, and not both")
        if on_unavailable not in ("allow", "refuse"):
            raise InvalidArgument(f"on_unavailable is allow or refuse, not {on_unavailable!r}")
        self._app = app
        self._checks = checks or self._check_one
        self._limiter, self._identify = limiter, identify
        self._allows = on_unavailable == "allow"
        self._timeout = timeout
        self._refusal = refusal
        self._is_away = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        checks = list(self._checks(connection))
        if not checks:
            await self._app(scope, receive, send)
            return
        try:
            decisions = await RateLimiter.check_all(checks, timeout=self._timeout)
        except STORE_IS_AWAY as error:
            self._note(error)
            answer = self._app if self._allows else service_unavailable(connection, error)
            await _answer(answer, scope, receive, send)
            return
        self._note(None)
        connection.state.rate_limits = decisions
        headers = _rate_limit_headers([limiter for limiter, _, _ in checks], decisions)
        answer = self._app
        if not decisions:
            answer = refusal = self._refusal(connection, decisions)
            refusal.headers["Retry-After"] = str(max(1, ceil(decisions.retry_after)))
        await _answer(answer, scope, receive, _with_headers(send, headers))

    def _check_one(self, connection: HTTPConnection) -> Iterable[Check]:
        identifier = self._identify(connection)
        if identifier is None or self._limiter is None:
            return []
        limiter = self._limiter
        if not isinstance(limiter, RateLimiter):
            limiter = limiter(connection)
        return [(limiter, identifier, 1)]

    def _note(self, error: KvorumError | None) -> None:
        """Log a change, and not each request."""
        if error is not None and not self._is_away:
            does = "pass unlimited" if self._allows else "are refused"
            log.warning("rate limits: the store is away, requests %s: %s", does, error)
        elif error is None and self._is_away:
            log.warning("rate limits: the store is back")
        self._is_away = error is not None


class RequestSession:
    """The session of one request, as `request.state.session`: the cookie, and what it leads to.

    What changes it sets the cookie of the response: so call it before the response begins.
    """

    def __init__(self, store: SessionStore, token: str | None) -> None:
        self._store = store
        self._token = token
        self._session: Session | None = None
        self._is_loaded = False
        self._is_new = False

    async def load(self) -> Session | None:
        """The session, which lives on by that; None if there is none. It is read once."""
        if not self._is_loaded:
            if self._token is not None:
                try:
                    self._session = await self._store.refresh(self._token)
                except InvalidToken:  # cut, altered, or of somebody's invention
                    self._session = None
            self._is_loaded = True
        return self._session

    @property
    def current(self) -> Session | None:
        """The session as it was loaded. `InvalidArgument` if it was not."""
        if not self._is_loaded:
            raise InvalidArgument("the session is not loaded: await load(), or use eager=True")
        return self._session

    @property
    def user(self) -> str | None:
        """Who is logged in, of the loaded session; None if nobody is."""
        return None if self.current is None else self.current.user

    @property
    def data(self) -> Mapping[str, Any]:
        """What the loaded session holds; empty if there is none."""
        return {} if self.current is None else self.current.data

    async def login(self, user: str, data: Mapping[str, Any] | None = None) -> Session:
        """Begin a session of this user, under a token that nobody has known before.

        What was there before ends; the data of a session in which nobody had logged in, such
        as a cart, goes on into the new one.
        """
        old, old_token = await self.load(), self._token
        kept = old.data if old is not None and old.user is None else {}
        session = await self._begin(user, {**kept, **(data or {})})
        if old is not None and old_token is not None:
            await self._store.destroy(old_token)
        return session

    async def update(
        self, fields: Mapping[str, Any] | None = None, /, *, remove: Iterable[str] = ()
    ) -> Session:
        """Set and remove fields of the data; without a session, one begins that is nobody's.

        Fields that others change at the same time stay.
        """
        found = None
        if await self.load() is not None and self._token is not None:
            found = self._session = await self._store.update(self._token, fields, remove=remove)
        return found or await self._begin(None, fields or {})

    async def rotate(self) -> Session | None:
        """Give the session another token, when rights change; None if there is none."""
        if await self.load() is None or self._token is None:
            return None
        token = await self._store.rotate(self._token)
        if token is None:
            self._session = None
        else:
            self._token, self._is_new = token, True
        return self._session

    async def logout(self) -> None:
        """End the session, and take the cookie back."""
        await self.load()
        token, session = self._token, self._session
        self._token, self._session, self._is_new = None, None, True
        if token is not None and session is not None:
            await self._store.destroy(token)

    def __repr__(self) -> str:
        return f"<RequestSession {self._session!r}>"

    async def _begin(self, user: str | None, data: Mapping[str, Any]) -> Session:
        self._token, session = await self._store.create(user, data=data)
        self._session, self._is_new = session, True
        return session


class SessionMiddleware:
    """Gives each request its session: `request.state.session`, a `RequestSession`.

    It is read when the application first loads it, and with `eager` before the application is
    asked, so that `request.state.session.user` is there without await. One round trip; two
    when a tenth of the idle time is gone, and the session is let live on. A request that does
    not ask for its session costs nothing.

    A cookie that was altered, or whose session is gone, is as good as none. When the store is
    away, an eager request gets 503, and otherwise `load` raises what the store does.

    The cookie is HttpOnly, SameSite=Lax, Secure, and for the whole host, if nothing else is said.
    `max_age`, in seconds, lets it outlive the browser: take the `lifetime` of the store, which
    decides in any case. Cookies do not tell who has sent a form: against forgery, check
    `Origin` or `Sec-Fetch-Site` of what changes something; SameSite is a second line.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: SessionStore | Callable[[HTTPConnection], SessionStore],
        cookie: str = "session",
        eager: bool = False,
        max_age: int | None = None,
        path: str = "/",
        domain: str | None = None,
        secure: bool = True,
        same_site: Literal["lax", "strict", "none"] = "lax",
    ) -> None:
        if same_site == "none" and not secure:
            raise InvalidArgument("browsers take SameSite=None from Secure cookies only")
        if cookie.startswith("__Host-") and (not secure or path != "/" or domain is not None):
            raise InvalidArgument(f"{cookie!r} has to be secure, with the path / and no domain")
        self._app = app
        self._store = store
        self._cookie = cookie
        self._eager = eager
        self._max_age = max_age
        self._options: dict[str, Any] = {
            "path": path,
            "domain": domain,
            "secure": secure,
            "httponly": True,
            "samesite": same_site,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        store = self._store
        if not isinstance(store, SessionStore):
            store = store(connection)
        session = RequestSession(store, connection.cookies.get(self._cookie))
        connection.state.session = session
        if self._eager:
            try:
                await session.load()
            except STORE_IS_AWAY as error:
                await _answer(service_unavailable(connection, error), scope, receive, send)
                return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                self._set_cookie(message, session)
            await send(message)

        await self._app(scope, receive, send_with_cookie)

    def _set_cookie(self, message: Message, session: RequestSession) -> None:
        """Set it if the token has changed, and take it back after a log-out.

        Not if its session is gone: another request of this browser may have logged in meanwhile,
        and must not lose its new cookie to the answer for the old one.
        """
        headers = MutableHeaders(scope=message)
        if session._is_loaded:  # noqa: SLF001 - both are of this file
            headers.add_vary_header("Cookie")
        if not session._is_new:  # noqa: SLF001 - as above
            return
        response = Response()
        if session._token is None:  # noqa: SLF001 - as above
            response.delete_cookie(self._cookie, **self._options)
        else:
            response.set_cookie(
                self._cookie,
                session._token,  # noqa: SLF001 - as above
                max_age=self._max_age,
                **self._options,
            )
        headers.append("Set-Cookie", response.headers["Set-Cookie"])
        headers.setdefault("Cache-Control", "no-store")


async def _answer(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """By the application; or by a response, which a WebSocket has no room for."""
    if isinstance(answer, Response) and scope["type"] == "websocket":
        answer = WebSocketClose(_TRY_AGAIN_LATER)
    await answer(scope, receive, send)


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Beside those of the application, which may have limits of its own: they are lists."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            found = MutableHeaders(scope=message)
            for name, value in headers.items():
                found.append(name, value)
        await send(message)

    return send_with_headers


def _rate_limit_headers(
    limiters: Iterable[RateLimiter], decisions: RateDecisions
) -> dict[str, str]:
    return {
        "RateLimit-Policy": ", ".join(map(_policy, limiters)),
        "RateLimit": ", ".join(map(_standing, decisions.decisions)),
    }


def _policy(limiter: RateLimiter) -> str:
    quota = f"{_name(limiter.name)};q={limiter.limit}"
    # A window that is no whole number of seconds has no place in the header.
    return f"{quota};w={int(limiter.window)}" if limiter.window.is_integer() else quota


def _standing(decision: RateDecision) -> str:
    return f"{_name(decision.name)};r={decision.remaining};t={ceil(decision.reset_after)}"


def _name(name: str) -> str:
    """As a String of RFC 9651: printable ASCII, with its quotes and backslashes escaped."""
    text = quote(name, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"\\")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
