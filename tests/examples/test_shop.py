"""The bookshop, over HTTP: what its users do, and what some of them try."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from kvorum.cli.local_cluster import LocalCluster
from tests.examples.conftest import running_shop

PASSWORD = "correct horse battery"
GENJI = "/books/the-tale-of-genji"  # there is one


class Visitor:
    """Somebody with a browser, as far as forms and cookies go."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def see(self, path: str) -> str:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def send(self, path: str, **fields: str) -> httpx.Response:
        origin = str(self.client.base_url).rstrip("/")
        return await self.client.post(path, data=fields, headers={"Origin": origin})

    async def sign_up(self, name: str, **more: str) -> httpx.Response:
        email = f"{re.sub('[^a-z]', '', name.lower())}@example.org"
        return await self.send("/signup", name=name, email=email, password=PASSWORD, **more)

    async def order(self, path: str) -> str:
        """The order form of a book's page."""
        found = re.search(r'name="order" value="([^"]+)"', await self.see(path))
        assert found
        return found[1]


@asynccontextmanager
async def visitor(address: str) -> AsyncIterator[Visitor]:
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        yield Visitor(client)


def number(name: str, page: str) -> int:
    found = re.search(rf'id="{name}">(\d+)<', page)
    assert found, page
    return int(found[1])


async def test_a_day_in_the_shop(shop: str) -> None:
    async with visitor(shop) as ann, visitor(shop) as bob, visitor(shop) as nobody:
        # Ann is the first, and owns the shop. Her name is text, and no markup.
        answer = await ann.sign_up("<b>Ann</b>")
        assert (answer.status_code, answer.headers["Location"]) == (303, "/account")
        account = await ann.see("/account")
        assert "&lt;b&gt;Ann&lt;/b&gt;" in account
        assert "<b>Ann" not in account
        assert (await nobody.sign_up("b ann b")).status_code == 409
        assert (await nobody.client.get("/account")).headers["Location"] == "/login"

        # Bob comes by invitation, and owns nothing.
        answer = await ann.send("/account/invite")
        link = re.search(
            r"/signup\?invitation=([\w-]+)<", await ann.see(answer.headers["Location"])
        )
        assert link
        assert "&lt;b&gt;Ann&lt;/b&gt; invites you" in await bob.see(
            f"/signup?invitation={link[1]}"
        )
        await bob.sign_up("Bob", invitation=link[1])
        assert "invited by &lt;b&gt;Ann" in await bob.see("/members")
        assert (await bob.client.get("/desk")).status_code == 403
        assert (await bob.send("/desk/picks", percentage="100")).status_code == 403

        # Both want the only copy of one book. Who sends a form twice buys once.
        assert (await nobody.send(f"{GENJI}/buy", order="1")).headers["Location"] == "/login"
        orders = {one: await one.order(GENJI) for one in (ann, bob)}
        answers = await asyncio.gather(
            *(one.send(f"{GENJI}/buy", order=order) for one, order in orders.items())
        )
        went = sorted(answer.headers["Location"] for answer in answers)
        assert went == ["/account", f"{GENJI}?sold_out=1"]
        assert "Sold out" in await ann.see(GENJI)
        order = await bob.order("/books/kindred")
        for _ in range(3):
            await bob.send("/books/kindred/buy", order=order)
        page = await bob.see("/books/kindred")
        assert (number("left", page), number("views", page)) == (8, 2)

        # A new book is there at once, though the list is cached; so is the pick of the day.
        assert "Ficciones" not in await bob.see("/")
        lines = "Ficciones; Jorge Luis Borges; 9; 2\n<i>; &; 1.5; 1"
        answer = await ann.send("/desk/books", books=lines)
        assert answer.headers["Location"] == "/desk?taken=2"
        home = await bob.see("/")
        assert "Ficciones" in home
        assert "&lt;i&gt;" in home
        answer = await ann.send("/desk/books", books="Ulysses; James Joyce; ?; 1")
        assert (answer.status_code, "line 1" in answer.text) == (422, True)
        assert 'id="pick"' not in home
        await ann.send("/desk/picks", percentage="100")
        assert 'id="pick"' in await bob.see("/")
        await ann.send("/desk/picks", percentage="0")
        assert 'id="pick"' not in await bob.see("/")

        # Ann logs in elsewhere, ends that session from here, and logs out.
        async with visitor(shop) as elsewhere:
            await elsewhere.send("/login", email=" BANNB@example.org", password=PASSWORD)
            assert "Bought" in await elsewhere.see("/account")
            [end] = re.findall(r'action="(/account/sessions/[^"]+/end)"', await ann.see("/account"))
            await ann.send(end)
            assert (await elsewhere.client.get("/account")).status_code == 303
        token = ann.client.cookies["session"]
        await ann.send("/logout")
        ann.client.cookies.set("session", token)
        assert (await ann.client.get("/account")).status_code == 303


async def test_what_is_refused(shop: str) -> None:
    async with visitor(shop) as eve:
        cross_site: list[dict[str, str]] = [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site", "Origin": shop},
            {"Sec-Fetch-Site": "same-site"},
        ]
        for headers in cross_site:
            answer = await eve.client.post("/logout", headers=headers)
            assert answer.status_code == 403
        for cookie in ("x", "A" * 64, "%", "ü"):
            made_up = [(b"cookie", f"session={cookie}".encode())]
            assert (await eve.client.get("/", headers=made_up)).status_code == 200
        assert (await eve.client.get("/books/none")).status_code == 404
        assert (await eve.client.get("/nothing")).status_code == 404
        assert (await eve.send("/login")).status_code == 422
        await eve.sign_up("eve")
        assert (await eve.client.get("/members?after=xyz")).headers["Location"] == "/members"
        tries = [
            await eve.send("/login", email="ann@example.org", password="guess") for _ in range(6)
        ]
        assert [one.status_code for one in tries] == [403] * 5 + [429]
        assert 0 < int(tries[5].headers["Retry-After"]) <= 300


async def test_members_come_in_pages(shop: str) -> None:
    names = [f"Member {letter}" for letter in "abcdefghijk"]
    async with AsyncExitStack() as stack:
        visitors = [await stack.enter_async_context(visitor(shop)) for _ in names]
        for one, name in zip(visitors, names, strict=True):
            await one.sign_up(name)
        first = await visitors[0].see("/members")
        following = re.search(r'id="next" href="([^"]+)"', first)
        assert following
        second = await visitors[0].see(following[1])
        assert 'id="next"' not in second
        found = re.findall(r"Member [a-k]", first.split("<main>")[1]) + re.findall(
            r"Member [a-k]", second.split("<main>")[1]
        )
        assert set(names) <= set(found)


@pytest.mark.cluster
async def test_two_processes_are_one_shop(local_cluster: LocalCluster, tmp_path: Path) -> None:
    target = local_cluster.target
    async with (
        running_shop(target, tmp_path / "1.log") as one,
        running_shop(target, tmp_path / "2.log") as other,
        visitor(one) as here,
        visitor(other) as there,
    ):
        await here.sign_up("Dora")
        there.client.cookies.set("session", here.client.cookies["session"])
        assert "Dora" in await there.see("/account")
        views = number("views", await here.see("/books/invisible-cities"))
        assert number("views", await there.see("/books/invisible-cities")) == views + 1
