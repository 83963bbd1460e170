"""Fixtures of the tests in a real browser: one browser per file, one fresh page per test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from browser import ARGUMENTS, Explorer, Watch, find_browser, lacking, missing

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser. It ends with the file: Playwright's event loop must not meet other tests."""
    if reason := missing():
        lacking(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def open_context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Make fresh profiles: no cookie, nothing stored, nothing of an earlier test."""
    opened = []

    def make(**options: Any) -> BrowserContext:
        options = {"viewport": {"width": 1280, "height": 800}, **options}
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        opened.append(context)
        return context

    yield make
    for context in opened:
        context.close()


@pytest.fixture
def open_page(
    open_context: Callable[..., BrowserContext], tmp_path: pathlib.Path
) -> Iterator[Callable[..., Explorer]]:
    """Open the page as a file; afterwards it must have made no request and no error."""
    from convfc.explorer.page import page as whole_page

    watches = []

    def make(
        state: dict[str, Any] | None = None,
        *,
        address: str = "",
        guided: bool = False,
        **options: Any,
    ) -> Explorer:
        file = tmp_path / f"explorer-{len(watches)}.html"
        file.write_text(whole_page(state), encoding="utf-8")
        page = open_context(**options).new_page()
        watches.append(Watch(page))
        page.goto(file.as_uri() + address)
        explorer = Explorer(page).ready()
        if not guided:  # the guide of the first visit covers what a test wants to press
            explorer.act("guide-close")
        return explorer

    yield make
    for watch in watches:
        watch.check()
        assert len(watch.requests) == 1, "only the file itself is asked for"


@pytest.fixture
def explorer(open_page: Callable[..., Explorer]) -> Explorer:
    """The page as it opens for everybody: the experiment, 1280 pixels wide, light."""
    return open_page()
