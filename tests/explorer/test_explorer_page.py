"""The page as one file: what it may load, and that nothing in it can break out of its element."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convfc import ConvGeometry
from convfc.explorer import page as page_module
from convfc.explorer.page import asset, document, page, policy, write_page
from convfc.explorer.state import explorer_state

if TYPE_CHECKING:
    import pathlib

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


def test_the_policy_comes_before_all_that_it_rules() -> None:
    tags = [tag for tag, given, _ in Read(page(state())).elements if "charset" not in given]
    assert tags[:3] == ["html", "head", "meta"]
    assert page().index("http-equiv") < page().index("<style>") < page().index("<script")


def test_nothing_in_the_page_loads_anything() -> None:
    for _, given, _ in Read(page(state())).elements:
        loading = {"src", "href", "srcset", "action", "data", "poster", "style"} & given.keys()
        assert not loading
        assert not [name for name in given if name.startswith("on")]


def test_the_bundle_names_no_other_host() -> None:
    """But for the name of SVG's language, which nobody asks for."""
    for name in ("explorer.js", "explorer.css"):
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", asset(name)))
        assert hosts <= {"http://www.w3.org"}
    assert not re.search(r"url\((?!['\"]?data:)|@import", asset("explorer.css"))


def test_the_bundle_is_small() -> None:
    assert sum(len(asset(name).encode()) for name in ("explorer.js", "explorer.css")) < LIMIT


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


def test_numbers_come_through_bit_for_bit() -> None:
    given = state()
    found = np.array(Read(page(given)).state["filters"])
    assert found.tobytes() == np.array(given["filters"]).tobytes()


def test_without_a_state_there_is_none() -> None:
    assert Read(page()).state is None


def test_a_module_cannot_end_its_element(monkeypatch: pytest.MonkeyPatch) -> None:
    module = 'const end = "</script>", comment = "<!-- <script>";'
    monkeypatch.setattr(page_module, "asset", lambda name: module if name.endswith("js") else "")
    read = Read(page())
    (text,) = [text for given, text in read.all("script") if given.get("type") == "module"]
    assert text == r'const end = "<\/script>", comment = "<\!-- <script>";'
    assert read.rules["script-src"] == [hashed(text)]


def test_infinity_is_not_written() -> None:
    given = state() | {"filters": [float("inf")] * 18}
    with pytest.raises(ValueError, match="not JSON compliant"):
        page(given)


def test_policy_of_other_sources() -> None:
    assert policy(script="'self'", style="'self'").startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; "
    )
    assert "http-equiv" not in document(None, style="", script="")


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
