"""The pages of the shop: forms, cookies, errors, and who may do what.

What changes something is a POST, and comes from our own pages (`from_our_pages`). It ends with a
redirection, so that a page that is loaded anew repeats nothing.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from examples.shop.shop import LIFETIME, Shop, SoldOut
from kvorum import KV, InvalidArgument, InvalidCursor, UniqueViolation
from kvorum.integrations.starlette import (
    STORE_IS_AWAY,
    RateLimitMiddleware,
    RequestSession,
    SessionMiddleware,
    client_address,
)
from kvorum.patterns import RateDecisions, Session

HERE = Path(__file__).parent
PAGES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(default_response_class=HTMLResponse)


def from_our_pages(request: Request) -> None:
    """Refuse forms of other sites (OWASP: Fetch Metadata, with Origin for browsers without).

    It needs no token in the forms, and protects the log-in too, which has no session yet. A
    program that is no browser sends neither header, and brings no cookies of anybody.
    """
    if request.method in ("GET", "HEAD"):
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None and origin is not None:
        is_ours = urlsplit(origin).netloc == request.headers.get("Host")
    else:
        is_ours = site in (None, "same-origin", "none")
    if not is_ours:
        raise HTTPException(403, "This form comes from another site.")


def the_shop(request: Request) -> Shop:
    shop: Shop = request.app.state.shop
    return shop


async def the_member(request: Request) -> Session:
    """Who is logged in; others are sent to log in."""
    session = await cookie(request).load()
    if session is None or session.user is None:
        raise HTTPException(303, headers={"Location": "/login"})
    return session


async def the_owner(member: Annotated[Session, Depends(the_member)]) -> Session:
    if not member.data["owner"]:
        raise HTTPException(403, "That is for the owner of the shop.")
    return member


OurShop = Annotated[Shop, Depends(the_shop)]
Member = Annotated[Session, Depends(the_member)]
Owner = Annotated[Session, Depends(the_owner)]
Text = Annotated[str, Form(min_length=1, max_length=200)]
Invitation = Annotated[str, Form(max_length=200)]
Password = Annotated[str, Form(min_length=8, max_length=200)]


@router.get("/")
async def home(request: Request, shop: OurShop) -> Response:
    session = await cookie(request).load()
    picks = shop.sees_picks(session.user if session else None)
    return await page(request, "home.html", books=await shop.books(), picks=picks)


@router.get("/books/{book}")
async def look(request: Request, shop: OurShop, book: str, sold_out: bool = False) -> Response:
    found = await shop.look_at(book)
    if found is None:
        raise HTTPException(404, "We do not have this book.")
    order = secrets.token_urlsafe(9)
    return await page(request, "book.html", id=book, page=found, order=order, sold_out=sold_out)


@router.post("/books/{book}/buy")
async def buy(shop: OurShop, member: Member, book: str, order: Text) -> Response:
    try:
        await shop.buy(str(member.user), book, order)
    except SoldOut:
        return go_to(f"/books/{book}?sold_out=1")
    return go_to("/account")


@router.get("/signup")
async def sign_up_form(request: Request, shop: OurShop, invitation: str = "") -> Response:
    inviter = await shop.invitations.get(invitation) if invitation else None
    return await page(request, "signup.html", inviter=inviter, invitation=invitation)


@router.post("/signup")
async def sign_up(  # noqa: PLR0917 - called by FastAPI, by name
    request: Request,
    shop: OurShop,
    name: Text,
    email: Text,
    password: Password,
    invitation: Invitation = "",
) -> Response:
    attempt = await shop.may_try(email, client_address(request))
    if not attempt:
        return too_often(request, attempt)
    try:
        user = await shop.sign_up(name, email, password, invitation)
    except UniqueViolation:
        taken = "Somebody has signed up with this e-mail address."
        return await page(request, "signup.html", 409, error=taken, invitation=invitation)
    await cookie(request).login(user, {"name": name, "owner": await shop.is_owner(user)})
    return go_to("/account")


@router.get("/login")
async def log_in_form(request: Request) -> Response:
    return await page(request, "login.html")


@router.post("/login")
async def log_in(request: Request, shop: OurShop, email: Text, password: Text) -> Response:
    attempt = await shop.may_try(email, client_address(request))
    if not attempt:
        return too_often(request, attempt)
    user = await shop.log_in(email, password)
    if user is None:
        return await page(request, "login.html", 403, error="That is not right. Try again.")
    data = {"name": user.value["name"], "owner": await shop.is_owner(user.key)}
    await cookie(request).login(user.key, data)
    return go_to("/account")


@router.post("/logout")
async def log_out(request: Request) -> Response:
    await cookie(request).logout()
    return go_to("/")


@router.get("/account")
async def account(request: Request, shop: OurShop, member: Member, code: str = "") -> Response:
    user = str(member.user)
    books, orders = await shop.books(), await shop.orders(user)
    return await page(
        request,
        "account.html",
        orders=[books.get(order, {"title": order}) for order in orders],
        sessions=await shop.sessions.of_user(user),
        link=f"{request.base_url}signup?invitation={code}" if code else None,
    )


@router.post("/account/invite")
async def invite(shop: OurShop, member: Member) -> Response:
    return go_to(f"/account?code={await shop.invite(member.data['name'])}")


@router.post("/account/sessions/{id}/end")
async def end_session(shop: OurShop, member: Member, id: str) -> Response:
    await shop.sessions.destroy_one(str(member.user), id)
    return go_to("/account")


@router.get("/members")
async def members(request: Request, shop: OurShop, member: Member, after: str = "") -> Response:
    try:
        found = await shop.members.page(after)
    except InvalidCursor:
        return go_to("/members")
    return await page(request, "members.html", members=found)


@router.get("/desk")
async def desk(request: Request, shop: OurShop, owner: Owner, taken: int = 0) -> Response:
    return await desk_page(request, shop, taken=taken)


@router.post("/desk/books")
async def import_books(
    request: Request,
    shop: OurShop,
    owner: Owner,
    books: Annotated[str, Form(max_length=100_000)],
) -> Response:
    try:
        return go_to(f"/desk?taken={await shop.import_books(books)}")
    except InvalidArgument as error:  # a line that is none, or more than an atomic batch takes
        return await desk_page(request, shop, 422, error=str(error), text=books)


@router.post("/desk/picks")
async def show_picks(
    shop: OurShop, owner: Owner, percentage: Annotated[int, Form(ge=0, le=100)]
) -> Response:
    await shop.show_picks_to(percentage)
    return go_to("/desk")


def cookie(request: Request) -> RequestSession:
    session: RequestSession = request.state.session
    return session


async def page(request: Request, name: str, status: int = 200, /, **context: Any) -> Response:
    """A page with the visitor's name at the top; None if nobody is logged in."""
    visitor = await cookie(request).load()
    return HTMLResponse(
        PAGES.get_template(name).render(visitor=visitor, **context), status, HEADERS
    )


async def desk_page(request: Request, shop: Shop, status: int = 200, /, **context: Any) -> Response:
    picks = await shop.flags.get("picks")
    percentage = picks.percentage if picks else 0
    return await page(request, "desk.html", status, percentage=percentage, **context)


def go_to(path: str) -> Response:
    return RedirectResponse(path, 303, HEADERS)


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """A page that needs neither a session nor the store."""
    text = PAGES.get_template("problem.html").render(message=message)
    return HTMLResponse(text, status, {**HEADERS, **(headers or {})})


def too_often(connection: HTTPConnection, decisions: RateDecisions) -> Response:
    seconds = ceil(decisions.retry_after)
    message = f"That was too often. Try again in {seconds} seconds."
    return problem(429, message, {"Retry-After": str(seconds)})


async def refused(request: Request, error: Exception) -> Response:
    """What a page has refused: as a page, or as the redirection that it is."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as it was registered for
    return problem(error.status_code, error.detail, dict(error.headers or {}))


async def not_filled_in(request: Request, error: Exception) -> Response:
    return problem(422, "Something in the form is missing, or too long.")


async def store_is_away(request: Request, error: Exception) -> Response:
    return problem(503, "The shop is closed for a moment. Try again.", {"Retry-After": "1"})


def limited(connection: HTTPConnection) -> str | None:
    """Pages are limited by address; what belongs to them is not."""
    is_part = connection.url.path.startswith("/static/")
    return None if is_part else client_address(connection)


def create_app(kv: KV, *, secure_cookies: bool = True) -> FastAPI:
    """The shop as an ASGI application, over a store that is open as long as it runs."""
    shop = Shop(kv)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with shop:
            yield

    app = FastAPI(
        title="Kvorum Books",
        lifespan=lifespan,
        dependencies=[Depends(from_our_pages)],
        openapi_url=None,
        exception_handlers={
            HTTPException: refused,
            RequestValidationError: not_filled_in,
            **dict.fromkeys(STORE_IS_AWAY, store_is_away),
        },
    )
    app.state.shop = shop
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.add_middleware(
        SessionMiddleware,
        store=shop.sessions,
        max_age=int(LIFETIME.total_seconds()),
        secure=secure_cookies,
    )
    # The last one is the first that a request meets.
    app.add_middleware(
        RateLimitMiddleware, limiter=shop.requests, identify=limited, refusal=too_often
    )
    return app
