"""Chromium, driven by Playwright: pages that ask nobody but the service, and say when something is wrong."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
OFFLINE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SERIOUS = ("serious", "critical")
PATIENCE_MS = 30_000
"""As in the other tests: the machine may be busy."""
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Of one module, and no longer: while Playwright runs, nothing else in this process can begin an event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page at a service, watched."""

    page: Page
    url: str
    asked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Every request since the last check went to the service; no script failed, was blocked or complained."""
        elsewhere = [each for each in self.asked if not each.startswith((f"{self.url}/", "data:", "blob:"))]
        wrong, self.asked[:], self.wrong[:] = list(self.wrong), [], []
        assert (elsewhere, wrong) == ([], [])


@contextlib.contextmanager
def opened(chromium: Browser, url: str) -> Iterator[Tab]:
    """A tab with cookies of its own."""
    url = url.rstrip("/")
    context = chromium.new_context(base_url=url, accept_downloads=True)
    tab = Tab(context.new_page(), url)
    context.on("request", lambda request: tab.asked.append(request.url))
    context.on("weberror", lambda error: tab.wrong.append(str(error.error)))
    context.on("console", lambda said: tab.wrong.append(said.text) if _is_wrong(said) else None)
    tab.page.set_default_timeout(PATIENCE_MS)
    try:
        yield tab
    finally:
        context.close()
    tab.check()


def _is_wrong(said: ConsoleMessage) -> bool:
    """The browser itself reports answers such as the 401 of nobody signed in; our scripts report nothing."""
    return said.type in ("error", "warning") and "the server responded with a status of" not in said.text


def sign_in(page: Page, key: str) -> None:
    """As whoever's key it is, from whoever was signed in before."""
    page.context.clear_cookies()
    page.goto("about:blank")
    page.goto("/")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation").wait_for()


def findings(page: Page, only: list[str] | None = None) -> list[str]:
    """Findings that axe calls serious or critical, on the page as it is; of these rules only, or of all."""
    options = {"resultTypes": ["violations"], **({"runOnly": only} if only else {})}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0].get('failureSummary', '')}"
        for each in found
        if each["impact"] in SERIOUS
    ]


def beyond_the_screen(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))
