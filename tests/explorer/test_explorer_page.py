"""The page as one file and on the loopback interface; its bundle is what its sources make."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html.parser
import http.client
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import PATIENCE, WEB, lacking

from convfc import ConvGeometry
from convfc.errors import RunError
from convfc.explorer import page as page_module
from convfc.explorer.page import (
    HOST,
    ExplorerServer,
    asset,
    page,
    write_page,
)
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

LIMIT = 300_000  # bytes of module and stylesheet together
STATE_ID = "convfc-state"


class Read(html.parser.HTMLParser):
    """A page as a browser reads it: every element with its attributes, and the text inside it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside = False
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            tag, attributes, text = self.elements.pop()
            self.elements.append((tag, attributes, text + data))

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]

    @property
    def state(self) -> Any:
        (text,) = [text for given, text in self.all("script") if given.get("id") == STATE_ID]
        return json.loads(text)

    @property
    def rules(self) -> dict[str, list[str]]:
        (content,) = [
            given["content"] or ""
            for given, _ in self.all("meta")
            if given.get("http-equiv") == "Content-Security-Policy"
        ]
        return {name: sources for name, *sources in map(str.split, content.split(";"))}


def state(title: str = "", source: str = "") -> dict[str, Any]:
    geometry = ConvGeometry(1, 2, (3, 3))
    filters = np.random.default_rng(0).normal(size=geometry.filters_shape)
    return explorer_state(filters, np.eye(5)[..., None], geometry, title=title, source=source)


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- one file ---


def test_the_policy_allows_the_two_hashes_and_nothing_else() -> None:
    read = Read(page())
    (module,) = [text for given, text in read.all("script") if given.get("type") == "module"]
    ((_, style),) = read.all("style")
    assert read.rules == {
        "default-src": ["'none'"],
        "script-src": [hashed(module)],
        "style-src": [hashed(style)],
        "img-src": ["data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    # It comes before all that it rules, and nothing loads anything.
    assert page().index("http-equiv") < page().index("<style>") < page().index("<script")
    for _, given, _ in read.elements:
        assert not {"src", "href", "srcset", "action", "data", "poster", "style"} & given.keys()
        assert not [name for name in given if name.startswith("on")]


def test_the_bundle_is_small_and_names_no_other_host() -> None:
    """But for the name of SVG's language, which nobody asks for, and the link to the paper."""
    for name in ("explorer.js", "explorer.css"):
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", asset(name)))
        assert hosts <= {"http://www.w3.org", "https://arxiv.org"}
    assert sum(len(asset(name).encode()) for name in ("explorer.js", "explorer.css")) < LIMIT
    assert not re.search(r"url\((?!['\"]?data:)|@import", asset("explorer.css"))


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "<!-- <script>",
    "</title><img src=x onerror=alert(1)>",
    "]]>",
    "quotes \" and ' and & and \\ and \u2028\u2029",
    "{policy} {0} %s",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_state_breaks_out_of_its_element(text: str) -> None:
    given = state(title=text, source=text)
    read = Read(page(given))
    assert read.state == given
    assert [title for _, title in read.all("title")] == [f"{text} – convfc"]
    plain = [(tag, attributes) for tag, attributes, _ in Read(page(state("plain"))).elements]
    assert [(tag, attributes) for tag, attributes, _ in read.elements] == plain


def test_numbers_must_be_finite() -> None:
    given = state()
    assert Read(page()).state is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        page(given | {"filters": [float("inf")] * 18})


def test_a_module_cannot_end_its_element(monkeypatch: pytest.MonkeyPatch) -> None:
    module = 'const end = "</script>", comment = "<!-- <script>";'
    monkeypatch.setattr(page_module, "asset", lambda name: module if name.endswith("js") else "")
    read = Read(page())
    (text,) = [text for given, text in read.all("script") if given.get("type") == "module"]
    assert text == r'const end = "<\/script>", comment = "<\!-- <script>";'
    assert read.rules["script-src"] == [hashed(text)]


def test_a_page_is_written_whole_or_not_at_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "folder" / "out.html"
    write_page(path, state("first"))
    assert path.read_text(encoding="utf-8") == page(state("first"))

    def fails(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(page_module, "page", fails)
    with pytest.raises(KeyboardInterrupt):
        write_page(path, state("second"))
    assert Read(path.read_text(encoding="utf-8")).state["title"] == "first"
    assert [file.name for file in path.parent.iterdir()] == ["out.html"]


# --- the bundle ---


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The sources beside a copy of the bundle, as they are in the package."""
    if shutil.which("node") is None or not (WEB / "node_modules/esbuild").is_dir():
        lacking("there is nothing to build the explorer with; remedy: make explorer")
    copy = tmp_path_factory.mktemp("explorer")
    shutil.copytree(WEB.parent / "static", copy / "static")
    shutil.copytree(WEB, copy / "web", ignore=shutil.ignore_patterns("node_modules"))
    (copy / "web/node_modules").symlink_to(WEB / "node_modules")
    return copy / "web"


def test_a_bundle_that_is_older_than_its_sources_is_found(web: pathlib.Path) -> None:
    def check() -> subprocess.CompletedProcess[str]:
        command = ["node", "build.mjs", "--check"]
        return subprocess.run(  # noqa: S603
            command, cwd=web, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    result = check()
    assert result.returncode == 0, result.stderr
    assert "explorer.js" in result.stdout
    for source, added in (
        ("src/model/geometry.js", 'console.log("stale");'),
        ("styles/explorer.css", ".stale { color: red }"),
    ):
        before = (web / source).read_text("utf-8")
        (web / source).write_text(f"{before}\n{added}\n", "utf-8")
        result = check()
        (web / source).write_text(before, "utf-8")
        assert result.returncode != 0
        assert "run npm run build" in result.stderr


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text("utf-8"))
    assert set(lock["packages"][""]["devDependencies"]) == {"axe-core", "esbuild"}
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


# --- the server: a fixed table of answers on the loopback interface, and nothing else ---


KINDS = {
    "/": "text/html",
    "/explorer.js": "text/javascript",
    "/explorer.css": "text/css",
    "/state.json": "application/json",
    "/favicon.ico": "image/x-icon",
}
STATE = explorer_state(np.ones((2, 3, 1)), np.arange(7.0)[:, None], ConvGeometry(1, 2, (3,)))


@contextlib.contextmanager
def running(server: ExplorerServer) -> Iterator[ExplorerServer]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server() -> Iterator[ExplorerServer]:
    with running(ExplorerServer(STATE)) as made:
        yield made


def ask(
    server: ExplorerServer, path: str, method: str = "GET", host: str | None = "own"
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as it stands: a client would tidy the path and add a Host."""
    port = server.server_address[1]
    names = {"own": f"{HOST}:{port}", "localhost": f"localhost:{port}"}
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    if host is not None:
        connection.putheader("Host", names.get(host, host))
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body


def test_answers_are_the_bundle_and_the_state(server: ExplorerServer) -> None:
    assert sorted(server.answers) == sorted(KINDS)
    for path, kind in KINDS.items():
        status, headers, body = ask(server, path)
        assert status == 200
        assert headers["content-type"] == f"{kind}; charset=utf-8"
        assert int(headers["content-length"]) == len(body)
    assert ask(server, "/explorer.js")[2].decode() == asset("explorer.js")
    assert ask(server, "/explorer.css")[2].decode() == asset("explorer.css")
    assert json.loads(ask(server, "/state.json")[2]) == STATE
    text = ask(server, "/?anything=1")[2].decode()
    assert '<script type="module" src="explorer.js">' in text
    assert '<link rel="stylesheet" href="explorer.css">' in text
    # Only this machine can ask.
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


@pytest.mark.parametrize("path", ["/", "/nothing"])
def test_head_is_get_without_its_body(server: ExplorerServer, path: str) -> None:
    (status, headers, _), (again, without, _) = ask(server, path), ask(server, path, "HEAD")
    assert again == status
    assert without["content-length"] == headers["content-length"]
    # A client of HTTP would not look for a body: read what comes over the line.
    with socket.create_connection(server.server_address[:2], timeout=PATIENCE) as line:
        port = server.server_address[1]
        line.sendall(f"HEAD {path} HTTP/1.0\r\nHost: {HOST}:{port}\r\n\r\n".encode())
        sent = line.makefile("rb").read()
    assert sent.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "path",
    [
        "/static/explorer.js",
        "/explorer.js/",
        "//etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/../../../../../../etc/passwd",
        "/%65xplorer.js",
        "/<script>alert(1)</script>",
        "http://127.0.0.1/explorer.js",
    ],
)
def test_nothing_else_is_there(server: ExplorerServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert b"root:" not in body
    assert b"alert" not in body


def test_there_is_nothing_but_reading(server: ExplorerServer) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"):
        assert ask(server, "/", method)[0] == 501, method


def test_a_page_of_another_name_is_refused(server: ExplorerServer) -> None:
    for host in ("evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", None):
        status, _, body = ask(server, "/state.json", host=host)
        assert status == 403, host
        assert b"filters" not in body
    assert ask(server, "/", host="localhost")[0] == 200  # this machine's own name will do


@pytest.mark.parametrize(("path", "host"), [("/", "own"), ("/nothing", "own"), ("/", "evil")])
def test_every_answer_has_the_headers_that_protect(
    server: ExplorerServer, path: str, host: str
) -> None:
    _, headers, _ = ask(server, path, host=host)
    rules = dict(rule.split(maxsplit=1) for rule in headers["content-security-policy"].split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    protecting = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
    assert headers.items() >= protecting.items()
    assert "access-control-allow-origin" not in headers
    assert "Python" not in headers["server"]


def test_a_port_in_use_is_explained() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            RunError, match=rf"^port {port}: the port cannot be used \(.*\)\. Remedy: leave --port"
        ):
            ExplorerServer(port=port)
    with ExplorerServer() as first, pytest.raises(RunError, match="cannot be used"):
        ExplorerServer(port=first.server_address[1])


class Noting(ExplorerServer):
    """Says when a request has ended in an error."""

    def __init__(self) -> None:
        super().__init__(STATE)
        self.failed = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        super().handle_error(request, client_address)
        self.failed.set()


@contextlib.contextmanager
def asking(server: ExplorerServer, text: str) -> Iterator[socket.socket]:
    """A line to the server with these words sent."""
    with socket.create_connection(server.server_address[:2], timeout=PATIENCE) as line:
        line.sendall(text.encode())
        yield line


def whole(server: ExplorerServer) -> str:
    return f"GET / HTTP/1.0\r\nHost: {HOST}:{server.server_address[1]}\r\n\r\n"


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_tab_that_is_closed_is_no_error(reset: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """In the middle of an answer that is too long to be on its way as a whole."""
    server = Noting()
    with running(server):
        server.answers["/"] = ("text/html", b"x" * 50_000_000)
        with asking(server, whole(server)) as line:
            assert line.recv(9) == b"HTTP/1.0 "
            if reset:  # which sends a reset in the place of an end
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert server.failed.wait(PATIENCE)
        assert ask(server, "/state.json")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_any_other_error_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    server = Noting()
    with running(server):
        server.answers["/"] = ("text/html", None)  # type: ignore[assignment]
        with asking(server, whole(server)) as line:
            assert line.makefile("rb").read() == b""
        assert server.failed.wait(PATIENCE)
        assert ask(server, "/state.json")[0] == 200
    said = "Error: TypeError: object of type 'NoneType' has no len()\n"
    assert capfd.readouterr() == ("", said)


@pytest.mark.parametrize("half", ["", "GET / HT", "GET / HTTP/1.0\r\nHost: 127."], ids=repr)
def test_half_a_request_does_not_keep_its_thread(
    half: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(ExplorerServer(STATE)) as server:
        assert 5 <= server.RequestHandlerClass.timeout <= 30  # seconds, and not minutes
        monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
        with asking(server, half) as line:
            assert line.recv(1) == b""
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(PATIENCE)
                assert not thread.is_alive()
        assert ask(server, "/state.json")[0] == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not keep the port")
def test_a_server_that_was_stopped_is_started_on_its_port_at_once() -> None:
    with running(ExplorerServer(STATE)) as server:
        port = server.server_address[1]
        with asking(server, whole(server)) as line:  # the server is the first to close: it waits
            assert line.makefile("rb").read()
    with running(ExplorerServer(STATE, port)) as again:
        assert ask(again, "/state.json")[0] == 200
