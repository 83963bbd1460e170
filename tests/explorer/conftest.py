"""Fixtures: the page in a real browser and its model in Node, one process each for many tests."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from browser import (
    ARGUMENTS,
    WINDOW,
    Explorer,
    Steps,
    Watch,
    find_browser,
    lacking,
    missing,
    profile,
    required,
)
from model import Model, running

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from browser import OpensContext, OpensPage
    from playwright.sync_api import Browser

EXPERIMENT = "#1;preset=experiment;at=97.0"
"""What tests open where they name nothing else."""

MEDIA: dict[str, Any] = {
    "color_scheme": "light",
    "reduced_motion": "no-preference",
    "forced_colors": "none",
}
"""What can be set anew for a page that is open already, beside the size of its window."""

ENDED = contextlib.ExitStack()
"""Ends the browser."""
RUNNING: list[Browser] = []
WATCHED: list[Watch] = []
"""The page that tests use one after the other, of each a new document: at most one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by a mark where there is no browser: the summary then has one line for each file."""
    reason = missing()
    if reason is None or required():
        return
    skipped = pytest.mark.skip(reason=f"not tested in a browser: {reason}")
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(skipped)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """End the browser with its last test: Playwright's event loop must not meet other tests."""
    yield
    if nextitem is None or not nextitem.path.name.startswith("test_browser"):
        WATCHED.clear()
        RUNNING.clear()
        ENDED.close()


@pytest.fixture(scope="module")
def browser() -> Browser:
    """The browser, started for the first test that needs it."""
    if reason := missing():
        lacking(reason)
    from playwright.sync_api import sync_playwright

    if not RUNNING:
        chromium = ENDED.enter_context(sync_playwright()).chromium
        started = chromium.launch(executable_path=find_browser(), args=list(ARGUMENTS))
        RUNNING.append(ENDED.enter_context(started))
    return RUNNING[0]


@pytest.fixture
def open_context(browser: Browser) -> Iterator[OpensContext]:
    """Make fresh profiles, which end with the test."""
    with contextlib.ExitStack() as opened:
        yield lambda **options: opened.enter_context(profile(browser, **options))


def emptied(browser: Browser, **options: Any) -> Watch:
    """Return the page that was used before, empty: a new process for each would take most time."""
    from playwright.sync_api import Error

    if WATCHED:
        page = WATCHED[0].page
        try:
            page.mouse.move(0, 0)
            page.evaluate("() => localStorage.clear()")
            page.goto("about:blank", timeout=10_000)
        except Error:  # closed, or still busy with what has made its test fail
            WATCHED.clear()
            page.context.close()
    if not WATCHED:
        page = profile(browser).new_page()
        WATCHED.append(Watch(page))
    (watch,) = WATCHED
    watch.page.context.clear_permissions()
    watch.page.set_viewport_size(options.get("viewport", WINDOW))
    watch.page.emulate_media(**{name: options.get(name, usual) for name, usual in MEDIA.items()})
    watch.faults.clear()
    watch.requests.clear()
    return watch


@pytest.fixture
def open_page(
    browser: Browser, open_context: OpensContext, tmp_path: pathlib.Path
) -> Iterator[OpensPage]:
    """Open the page as a file; afterwards it must have made no request and no error."""
    from convfc.explorer.page import page as whole_page

    watches: list[Watch] = []

    def make(
        state: dict[str, Any] | None = None,
        *,
        address: str | None = None,
        counted: bool = False,
        script: str = "",
        **options: Any,
    ) -> Explorer:
        file = tmp_path / f"explorer-{len(watches)}.html"
        file.write_text(whole_page(state), encoding="utf-8")
        again = not (watches or counted or script) and {"viewport", *MEDIA} >= {*options}
        watch = emptied(browser, **options) if again else Watch(open_context(**options).new_page())
        watches.append(watch)
        explorer = Explorer(watch.page)
        if script:
            watch.page.add_init_script(script)
        if counted:
            explorer.steps = Steps(watch.page)
        if address is None:  # a picture that does not move by itself
            address = "" if state else EXPERIMENT
        watch.page.goto(file.as_uri() + address)
        return explorer.ready()

    yield make
    for watch in watches:
        watch.check()
        assert len(set(watch.requests)) == 1, "only the file itself is asked for"


@pytest.fixture
def explorer(open_page: OpensPage) -> Explorer:
    """The page on the paper's experiment, 1280 pixels wide, light."""
    return open_page()


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    """The page's model, without a page."""
    yield from running()


@pytest.fixture(scope="session")
def facts(model: Model) -> dict[str, Any]:
    """What the page knows by heart: limits, presets, digits."""
    return model.ask("facts")
