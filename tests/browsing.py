"""A headless Chromium for tests of pages; those are skipped where it is not installed."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of the machine, such as Debian's `chromium`. For one module: while it runs, there is an event loop."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` brings one")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=["--autoplay-policy=no-user-gesture-required"])
        yield started
        started.close()


@contextmanager
def opened(browser: Browser, page: Path, size: dict[str, int] = DESKTOP, dark: bool = False) -> Iterator[Page]:
    """A page without network; a complaint on its console or an error in its code fails the test.

    Args:
        browser: The fixture.
        page: A file.
        size: Of the window.
        dark: Whether the screen is.
    """
    complaints: list[str] = []
    context = browser.new_context(
        viewport={"width": size["width"], "height": size["height"]}, offline=True, accept_downloads=True,
        color_scheme="dark" if dark else "light", reduced_motion="reduce",
    )  # fmt: skip
    tab = context.new_page()
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.resolve().as_uri())
    yield tab
    context.close()
    assert complaints == []


def is_too_wide(tab: Page) -> bool:
    """Whether the page as a whole can be moved sideways."""
    return bool(tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def until(tab: Page, truth: str, seconds: float = 10) -> None:
    """Wait for an expression to be true; playwright's own way is what the pages' security policy forbids."""
    end = time.monotonic() + seconds
    while not tab.evaluate(truth):
        assert time.monotonic() < end, f"not true after {seconds} s: {truth}"
        tab.wait_for_timeout(30)


def seconds_of(tab: Page, selector: str) -> list[float]:
    """Durations of audio elements, once they know them."""
    every = f"[...document.querySelectorAll(`{selector}`)]"
    until(tab, f"{every}.every((one) => one.readyState > 0)")
    found: list[float] = tab.evaluate(f"{every}.map((one) => one.duration)")
    return found
