"""The server: a fixed table of answers on the loopback interface, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convfc import ConvGeometry
from convfc.errors import RunError
from convfc.explorer.page import HOST, ExplorerServer, asset
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {
    "/": "text/html",
    "/explorer.js": "text/javascript",
    "/explorer.css": "text/css",
    "/state.json": "application/json",
    "/favicon.ico": "image/x-icon",
}
STATE = explorer_state(np.ones((2, 3, 1)), np.arange(7.0)[:, None], ConvGeometry(1, 2, (3,)))


@pytest.fixture(scope="module")
def server() -> Iterator[ExplorerServer]:
    with ExplorerServer(STATE) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def ask(
    server: ExplorerServer, path: str, method: str = "GET", host: str | None = "own"
) -> tuple[int, dict[str, str], bytes]:
    """Send one request as it stands: a client would tidy the path and add a Host."""
    port = server.server_address[1]
    names = {"own": f"{HOST}:{port}", "localhost": f"localhost:{port}"}
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    if host is not None:
        connection.putheader("Host", names.get(host, host))
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body


@pytest.mark.parametrize("path", KINDS)
def test_what_there_is_to_be_asked_for(server: ExplorerServer, path: str) -> None:
    status, headers, body = ask(server, path)
    assert status == 200
    assert headers["content-type"] == f"{KINDS[path]}; charset=utf-8"
    assert int(headers["content-length"]) == len(body)
    assert sorted(server.answers) == sorted(KINDS)


def test_answers_are_the_bundle_and_the_state(server: ExplorerServer) -> None:
    assert ask(server, "/explorer.js")[2].decode() == asset("explorer.js")
    assert ask(server, "/explorer.css")[2].decode() == asset("explorer.css")
    assert json.loads(ask(server, "/state.json")[2]) == STATE
    text = ask(server, "/?anything=1")[2].decode()
    assert '<script type="module" src="explorer.js">' in text
    assert '<link rel="stylesheet" href="explorer.css">' in text


@pytest.mark.parametrize("path", ["/", "/explorer.js", "/nothing"])
def test_head_is_get_without_its_body(server: ExplorerServer, path: str) -> None:
    (status, headers, _), (again, without, _) = ask(server, path), ask(server, path, "HEAD")
    assert again == status
    assert without["content-length"] == headers["content-length"]
    # A client of HTTP would not look for a body: read what comes over the line.
    with socket.create_connection(server.server_address[:2], timeout=10) as line:
        port = server.server_address[1]
        line.sendall(f"HEAD {path} HTTP/1.0\r\nHost: {HOST}:{port}\r\n\r\n".encode())
        sent = line.makefile("rb").read()
    assert sent.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "path",
    [
        "/explorer.html",
        "/static/explorer.js",
        "/explorer.js/",
        "//etc/passwd",
        "/../explorer.js",
        "/..%2f..%2fetc%2fpasswd",
        "/../../../../../../etc/passwd",
        "/%65xplorer.js",
        "/Explorer.js",
        "/state.json/../state.py",
        "/<script>alert(1)</script>",
        "http://127.0.0.1/explorer.js",
        "*",
    ],
)
def test_nothing_else_is_there(server: ExplorerServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert b"root:" not in body
    assert b"alert" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"])
def test_there_is_nothing_but_reading(server: ExplorerServer, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "localhost.evil.example", None]
)
def test_a_page_of_another_name_is_refused(server: ExplorerServer, host: str | None) -> None:
    status, _, body = ask(server, "/state.json", host=host)
    assert status == 403
    assert b"filters" not in body


def test_this_machines_own_name_will_do(server: ExplorerServer) -> None:
    assert ask(server, "/", host="localhost")[0] == 200


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
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers
    assert "Python" not in headers["server"]


OPENED: list[str] = []
WATCHING = threading.Event()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and WATCHING.is_set():
        OPENED.append(str(arguments[0]))


def test_no_request_opens_a_file(server: ExplorerServer) -> None:
    sys.addaudithook(_note)  # which stays; it listens only here
    WATCHING.set()
    try:
        for path in (*KINDS, "/nothing", "/../../../../../../etc/passwd", "//etc/passwd"):
            ask(server, path)
        seen = list(OPENED)
        with open(__file__, encoding="utf-8"):  # noqa: PTH123
            pass
    finally:
        WATCHING.clear()
    assert seen == []
    assert [__file__] == OPENED, "the watch sees what is opened"


def test_only_this_machine_can_ask(server: ExplorerServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_a_port_in_use_is_explained() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            RunError, match=rf"^port {port}: the port cannot be used \(.*\)\. Remedy: leave --port"
        ):
            ExplorerServer(port=port)


def test_two_servers_do_not_share_a_port() -> None:
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
def running(server: ExplorerServer) -> Iterator[ExplorerServer]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@contextlib.contextmanager
def asking(server: ExplorerServer, text: str) -> Iterator[socket.socket]:
    """A line to the server with these words sent."""
    with socket.create_connection(server.server_address[:2], timeout=10) as line:
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
        assert server.failed.wait(10)
        assert ask(server, "/state.json")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_any_other_error_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    server = Noting()
    with running(server):
        server.answers["/"] = ("text/html", None)  # type: ignore[assignment]
        with asking(server, whole(server)) as line:
            assert line.makefile("rb").read() == b""
        assert server.failed.wait(10)
        assert ask(server, "/state.json")[0] == 200
    said = "Error: TypeError: object of type 'NoneType' has no len()\n"
    assert capfd.readouterr() == ("", said)


@pytest.mark.parametrize("half", ["", "GET / HT", "GET / HTTP/1.0\r\nHost: 127."], ids=repr)
def test_half_a_request_does_not_keep_its_thread(
    half: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(ExplorerServer(STATE)) as server:
        monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
        with asking(server, half) as line:
            assert line.recv(1) == b""
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(5)
                assert not thread.is_alive()
        assert ask(server, "/state.json")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_request_has_seconds_and_not_minutes(server: ExplorerServer) -> None:
    assert 5 <= server.RequestHandlerClass.timeout <= 30


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not keep the port")
def test_a_server_that_was_stopped_is_started_on_its_port_at_once() -> None:
    with running(ExplorerServer(STATE)) as server:
        port = server.server_address[1]
        with asking(server, whole(server)) as line:  # the server is the first to close: it waits
            assert line.makefile("rb").read()
    with running(ExplorerServer(STATE, port)) as again:
        assert ask(again, "/state.json")[0] == 200
