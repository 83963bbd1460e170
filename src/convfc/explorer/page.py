"""The explorer as one HTML file that asks for nothing else, and on the loopback interface.

The server has a fixed set of answers in memory. No request names a file: what there is to be asked
for is made when it starts. Only this machine can ask, and only by the name that it was told (a page
of another host that makes its name point here is refused).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import metadata
from typing import Any

from convfc.errors import RunError
from convfc.files import replacing
from convfc.printable import printable

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{policy}<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
{style}
</head>
<body>
<div id="convfc-explorer"{site}></div>
<noscript>This page computes what it shows, so it needs JavaScript.</noscript>
<script type="application/json" id="convfc-state">{state}</script>
{script}
</body>
</html>
"""


@functools.cache
def asset(name: str) -> str:
    """Return a file of the bundle: ``explorer.js`` or ``explorer.css``."""
    folder = importlib.resources.files("convfc.explorer") / "static"
    return (folder / name).read_text(encoding="utf-8")


def page(state: Mapping[str, Any] | None = None) -> str:
    """Return the page as one file that makes no request: its policy allows only what is inside."""
    script, style = asset("explorer.js"), asset("explorer.css")
    # In a script element nothing ends it but its own end tag.
    script = script.replace("</script", r"<\/script").replace("<!--", r"<\!--")
    rules = policy(script=f"'{_hash(script)}'", style=f"'{_hash(style)}'")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
    module = f'<script type="module">{script}</script>'
    return document(state, meta=meta, style=f"<style>{style}</style>", script=module)


def document(state: Mapping[str, Any] | None, *, style: str, script: str, meta: str = "") -> str:
    """Return the HTML around a state, with these elements for stylesheet and module."""
    given = (state or {}).get("title")
    title = f"{given} – convfc" if given else "convfc: a convolution is a matrix product"
    # No text in the state may end the element that it stands in.
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    public = site()
    return _DOCUMENT.format(
        policy=meta,
        title=html.escape(title),
        style=style,
        script=script,
        state=text,
        site=f' data-site="{html.escape(public)}"' if public else "",
    )


def site() -> str | None:
    """Return where the page is public: below the address of the documentation, in a release."""
    urls = metadata("convfc").get_all("Project-URL") or []
    found = dict(url.split(", ", 1) for url in urls).get("Documentation")
    return found and f"{found.rstrip('/')}/explorer/index.html"


def policy(*, script: str, style: str) -> str:
    """Return a Content-Security-Policy that allows these sources and pictures of the page's own."""
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def write_page(path: pathlib.Path, state: Mapping[str, Any] | None = None) -> None:
    """Write the page, whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as handle:
        handle.write(page(state).encode())


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


HOST = "127.0.0.1"

_HEADERS = {
    "Content-Security-Policy": policy(script="'self'", style="'self'") + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ExplorerServer(ThreadingHTTPServer):
    """Serves the page of one state until it is stopped."""

    daemon_threads = True
    # After Ctrl-C the system keeps the port for a minute, for what is late; another server on it is
    # still refused. On Windows the same word would let two servers share it.
    allow_reuse_address = os.name != "nt"
    allow_reuse_port = False

    def __init__(self, state: Mapping[str, Any] | None = None, port: int = 0) -> None:
        text = document(
            state,
            style='<link rel="stylesheet" href="explorer.css">',
            script='<script type="module" src="explorer.js"></script>',
        )
        self.answers = {
            "/": ("text/html", text.encode()),
            "/explorer.js": ("text/javascript", asset("explorer.js").encode()),
            "/explorer.css": ("text/css", asset("explorer.css").encode()),
            "/state.json": ("application/json", json.dumps(state, allow_nan=False).encode()),
            "/favicon.ico": ("image/x-icon", b""),
        }
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise RunError(
                f"the port cannot be used ({error.strerror})",
                where=f"port {port}",
                remedy="leave --port out for a free one",
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line what went wrong; that a tab was closed or reloaded is not an error."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            sys.stderr.write(f"Error: {type(error).__name__}: {printable(error)}\n")

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers from the table of its server."""

    server: ExplorerServer
    server_version = "convfc"
    sys_version = ""
    timeout = 10
    """Seconds that a request may keep its thread waiting."""

    def do_GET(self) -> None:
        """Answer with the body."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer without it."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in {f"{HOST}:{port}", f"localhost:{port}"}:
            self.send_error(HTTPStatus.FORBIDDEN, "Ask for it by its address")
            return
        found = self.server.answers.get(self.path.partition("?")[0])
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, content = found
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Send the headers that every answer has, errors too."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""
