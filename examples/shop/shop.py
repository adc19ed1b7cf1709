"""What the shop keeps, and what it promises. All keys of the store:

user:ID                 name, e-mail, password hash     found by e-mail, which is unique
session:...             who is logged in
book:ID                 title, author, price
counter:stock:ID        how many are left; never below 0
counter:views:ID        how often its page was seen
order:USER:ORDER        what was bought; once for each order form, however often it is sent
cache:pages:...         the list of books, until a book changes
expiring:invitation:ID  who invites, for two days
flag:picks              who sees the pick of the day
shop:owner              the id of who signed up first
"""

import asyncio
import re
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

from examples.shop.passwords import hash_password, is_password
from kvorum import KV, Conflict, Entry, InvalidArgument, OutOfBounds, keys
from kvorum.patterns import (
    Cache,
    Collection,
    Counter,
    Expiring,
    FeatureFlags,
    Paginator,
    RateDecisions,
    RateLimiter,
    SessionStore,
    Unique,
    batch_put,
)

LIFETIME = timedelta(days=7)
"""Of a session, however busy it is."""

FIRST_BOOKS = """\
The Left Hand of Darkness; Ursula K. Le Guin; 9.90; 12
A Wizard of Earthsea; Ursula K. Le Guin; 8.50; 7
Invisible Cities; Italo Calvino; 11.00; 5
The Master and Margarita; Mikhail Bulgakov; 12.40; 3
Kindred; Octavia E. Butler; 10.20; 9
The Tale of Genji; Murasaki Shikibu; 24.00; 1
"""


class SoldOut(Exception):
    """There is none left."""


@dataclass(frozen=True)
class BookPage:
    """What the page of a book shows."""

    book: Mapping[str, Any]
    left: int
    views: int


class Shop:
    """The shop on a store. Enter it with `async with`; as many of them as there are processes."""

    def __init__(self, kv: KV) -> None:
        self.kv = kv
        self.users = Collection(kv, "user", indexes={"email": Unique("email")})
        self.members = Paginator(kv, keys.prefix("user"), page_size=10)
        self.sessions = SessionStore(kv, ttl=timedelta(hours=2), lifetime=LIFETIME)
        self.pages = Cache(kv, "pages", ttl=300)
        self.invitations = Expiring(kv, "invitation", ttl=timedelta(days=2))
        self.flags = FeatureFlags(kv)
        self.requests = RateLimiter(kv, "requests", limit=300, window=60, algorithm="gcra")
        self._attempts = RateLimiter(kv, "attempts", limit=5, window=300)
        self._attempts_of_address = RateLimiter(kv, "attempts-of-address", limit=50, window=300)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with self._open:
            await self._open.enter_async_context(self.pages)
            await self._open.enter_async_context(self.flags)
            await self._stock_empty_shelves()
            self._open = self._open.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    # People.

    async def sign_up(self, name: str, email: str, password: str, invitation: str = "") -> str:
        """Returns the new user's id. `UniqueViolation` if somebody has the e-mail address."""
        inviter = await self.invitations.get(invitation) if invitation else None
        user = secrets.token_urlsafe(9)
        record = {
            "name": name,
            "email": _same_for_all(email),
            "password": await hash_password(password),
            "invited_by": inviter.value if inviter else None,
        }
        await self.users.create(user, record)
        with suppress(Conflict):  # somebody was first
            await self.kv.put("shop:owner", user, exists=False)
        return user

    async def may_try(self, email: str, address: str) -> RateDecisions:
        """Counts an attempt to log in or to sign up: few for one e-mail address, more in all."""
        who = f"{_same_for_all(email)} {address}"
        return await RateLimiter.check_all(
            [(self._attempts, who, 1), (self._attempts_of_address, address, 1)]
        )

    async def log_in(self, email: str, password: str) -> Entry[Any] | None:
        """The user with this e-mail address and password."""
        user = await self.users.get_by("email", _same_for_all(email))
        stored = None if user is None else user.value["password"]
        return user if await is_password(password, stored) else None

    async def is_owner(self, user: str) -> bool:
        owner = await self.kv.get("shop:owner")
        return owner is not None and owner.value == user

    async def invite(self, name: str) -> str:
        """Returns a code that says for two days that this person invites."""
        code = secrets.token_urlsafe(9)
        await self.invitations.put(code, name)
        return code

    # Books.

    async def books(self) -> dict[str, Any]:
        """All books by id; read from the shelves when one of them has changed."""

        async def read() -> dict[str, Any]:
            shelf = keys.prefix("book")
            return {
                entry.key.removeprefix(shelf): entry.value async for entry in self.kv.scan(shelf)
            }

        found: dict[str, Any] = await self.pages.get_or_compute("books", read, tags=["books"])
        return found

    async def look_at(self, book: str) -> BookPage | None:
        """The page of a book, counted as seen; None if there is no such book."""
        found = (await self.books()).get(book)
        if found is None:
            return None
        left, views = await asyncio.gather(
            self._stock(book).get(), Counter(self.kv, "views", of=book).add()
        )
        return BookPage(found, left, views)

    async def buy(self, user: str, book: str, order: str) -> None:
        """One of the stock becomes an order: both, or neither. `SoldOut` if there is none.

        `order` is of the form: sent twice, by an impatient hand, it is one order.
        """
        key = keys.build("order", keys.escape(user), keys.escape(order))
        buying = self.kv.atomic().check(key, exists=False).put(key, {"book": book})
        self._stock(book).add_to(buying, -1, min=0)
        try:
            await buying.commit()
        except OutOfBounds:
            raise SoldOut(book) from None
        except Conflict:
            pass  # it was bought already

    async def orders(self, user: str) -> list[str]:
        """The ids of the books that a user has bought, the last hundred of them."""
        page = await self.kv.list(keys.prefix("order", keys.escape(user)), limit=100)
        return [entry.value["book"] for entry in page]

    async def import_books(self, text: str) -> int:
        """Lines of title; author; price; stock. All are taken, or none; returns how many."""
        items = self._items(text)
        await batch_put(self.kv, items, atomic=True)
        await self.pages.invalidate("books")
        return len(items) // 2

    async def show_picks_to(self, percentage: int) -> None:
        """Show the pick of the day to so many of the users, and wait until it is so here."""
        await self.flags.wait_for(await self.flags.set("picks", percentage=percentage))

    def sees_picks(self, user: str | None) -> bool:
        """No round trip: it is in every page."""
        return self.flags.is_enabled("picks", {"user_id": user}, default=False)

    async def _stock_empty_shelves(self) -> None:
        first = self.kv.atomic().check_range(keys.prefix("book"), exists=False)
        for key, value in self._items(FIRST_BOOKS).items():
            first.put(key, value)
        with suppress(Conflict):  # there are books: another process may just have put them there
            await first.commit()

    def _items(self, text: str) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for number, line in enumerate(text.strip().splitlines(), 1):
            try:
                title, author, price, left = (field.strip() for field in line.split(";"))
                book = {"title": title, "author": author, "price": f"{Decimal(price):.2f}"}
                stock = int(left)
            except (ArithmeticError, ValueError):
                raise InvalidArgument(
                    f"line {number} is not: title; author; price; stock"
                ) from None
            slug = re.sub(r"\W+", "-", title.lower()).strip("-")
            items[keys.build("book", keys.escape(slug))] = book
            items[self._stock(slug).key] = stock
        return items

    def _stock(self, book: str) -> Counter:
        return Counter(self.kv, "stock", of=book)


def _same_for_all(email: str) -> str:
    return email.strip().lower()
