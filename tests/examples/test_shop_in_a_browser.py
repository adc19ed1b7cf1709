"""The bookshop in a real browser, at the width of a desk and of a phone.

Skipped where neither chromium nor Chrome is installed. With KVORUM_SCREENSHOTS, a directory, the
pages are left there to be looked at.
"""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.examples.conftest import running_shop

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = {"desktop": (1280, 800), "phone": (375, 667)}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium"
)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        await browser.close()


@pytest.mark.parametrize("width", WIDTHS)
async def test_somebody_signs_up_and_buys(browser: Browser, tmp_path: Path, width: str) -> None:
    across, down = WIDTHS[width]
    pictures = Path(os.environ.get("KVORUM_SCREENSHOTS", tmp_path))
    complaints: list[str] = []

    async def look(name: str) -> None:
        await page.screenshot(path=pictures / f"{width}-{name}.png", full_page=True)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= across, f"{name} is {wide} pixels wide"

    async with running_shop(None, tmp_path / "shop.log") as address:
        page: Page = await browser.new_page(viewport={"width": across, "height": down})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(address)
        await expect(page.get_by_role("heading", name="Books")).to_be_visible()
        await look("home")

        await page.get_by_role("link", name="Sign up").click()
        await page.get_by_label("Name").fill("Ann")
        await page.get_by_label("E-mail").fill("ann@example.org")
        await page.get_by_label("Password").fill("correct horse battery")
        await look("signup")
        await page.get_by_role("button", name="Sign up").click()
        await expect(page.get_by_role("heading", name="Ann")).to_be_visible()

        await page.get_by_role("link", name="Kvorum Books").click()
        await page.get_by_role("link", name="Kindred").click()
        await look("book")
        await page.get_by_role("button", name="Buy").click()
        await expect(page.get_by_text("Kindred")).to_be_visible()
        await page.get_by_role("button", name="Make a link").click()
        await expect(page.get_by_text("signup?invitation=")).to_be_visible()
        await look("account")

        await page.get_by_role("link", name="Desk").click()
        await page.get_by_label("Shown to").fill("100")
        await page.get_by_role("button", name="Set").click()
        await look("desk")
        await page.get_by_role("link", name="Kvorum Books").click()
        await expect(page.get_by_text("Pick of the day")).to_be_visible()
        await look("pick")
        await page.get_by_role("link", name="Members").click()
        await look("members")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("link", name="Log in")).to_be_visible()
    assert complaints == []
