"""Notebooks that run on this machine, and the widget in them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from browser import PATIENCE

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page


@contextlib.contextmanager
def served(
    module: str, *arguments: str, folder: pathlib.Path, health: str, **environment: str
) -> Iterator[str]:
    """Run a notebook's server in a folder of its own, which is also its home; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", module, *arguments, "--port", str(port)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _answers(f"http://127.0.0.1:{port}{health}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _answers(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server does."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url):  # noqa: S310
                return
        except OSError:
            assert server.poll() is None, "the notebook's server has ended"
            assert time.monotonic() < until, "the notebook's server does not answer"
            time.sleep(0.1)


def ask(page: Page, expression: str) -> Any:
    """Evaluate JavaScript that knows the `store` of the first widget, wherever it stands."""
    root = page.locator(".convfc-explorer").first
    return root.evaluate(f"(root) => {{ const {{ store }} = root.explorer; return {expression}; }}")


def said(page: Page, text: str) -> Locator:
    """Wait until Python has printed something."""
    found = page.get_by_text(text)
    found.wait_for()
    return found


def becomes(page: Page, expression: str, expected: Any) -> None:
    """Wait until the widget has something in its store."""
    until = time.monotonic() + PATIENCE
    while ask(page, expression) != expected:
        assert time.monotonic() < until, f"{expression} is {ask(page, expression)}"
        page.wait_for_timeout(50)
