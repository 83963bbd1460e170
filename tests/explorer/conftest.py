"""Fixtures of the tests in a real browser: one browser per file, one fresh page per test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from browser import ARGUMENTS, Explorer, Watch, find_browser, lacking, missing, required

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext


# Milliseconds from the start of the navigation until everything has been drawn.
CLOCK = """
const poll = () => {
  const { explorer } = document.querySelector('.convfc-explorer') ?? {};
  if (!explorer) return requestAnimationFrame(poll);
  explorer.ready.then(() => { window.explorerReady = performance.now(); });
};
poll();
"""

# Not the first visit: the guide would cover what a test wants to press.
GUIDED = "localStorage.setItem('convfc-explorer-guide-seen', '1')"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by a mark where there is no browser: the summary then has one line for each file."""
    reason = missing()
    if reason is None or required():
        return
    skipped = pytest.mark.skip(reason=f"not tested in a browser: {reason}")
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(skipped)


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
        context.set_default_timeout(30_000)
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
        page.add_init_script(CLOCK)
        if not guided:
            page.add_init_script(GUIDED)
        watches.append(Watch(page))
        page.goto(file.as_uri() + address)
        return Explorer(page).ready()

    yield make
    for watch in watches:
        watch.check()
        assert len(set(watch.requests)) == 1, "only the file itself is asked for"


@pytest.fixture
def explorer(open_page: Callable[..., Explorer]) -> Explorer:
    """The page as it opens for everybody: the experiment, 1280 pixels wide, light."""
    return open_page()
