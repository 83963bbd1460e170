"""The explorer as one HTML file: module, stylesheet and state inside, and nothing from anywhere."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from convfc.files import replacing

__all__ = ["asset", "document", "page", "policy", "write_page"]

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
<div id="convfc-explorer"></div>
<noscript>This page computes what it shows, so it needs JavaScript.</noscript>
<script type="application/json" id="convfc-state">{state}</script>
{script}
</body>
</html>
"""


@functools.cache
def asset(name: str) -> str:
    """Return a file of the bundle: ``explorer.js`` or ``explorer.css``.

    Examples
    --------
    >>> len(asset("explorer.js")) + len(asset("explorer.css")) < 300_000
    True
    """
    folder = importlib.resources.files("convfc.explorer") / "static"
    return (folder / name).read_text(encoding="utf-8")


def page(state: Mapping[str, Any] | None = None) -> str:
    """Return the page as one file that makes no request.

    Its Content-Security-Policy allows the module and the stylesheet inside, by their hashes, and
    pictures that it makes itself; nothing else.

    Parameters
    ----------
    state : mapping, optional
        From `convfc.explorer.state.explorer_state`; if not given, it opens with the paper's
        experiment, or with what its address says.

    Examples
    --------
    >>> text = page()
    >>> "default-src 'none'" in text, "http-equiv" in text
    (True, True)
    """
    script, style = asset("explorer.js"), asset("explorer.css")
    # In a script element nothing ends it but its own end tag.
    script = script.replace("</script", r"<\/script").replace("<!--", r"<\!--")
    rules = policy(script=f"'{_hash(script)}'", style=f"'{_hash(style)}'")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
    return document(
        state,
        meta=meta,
        style=f"<style>{style}</style>",
        script=f'<script type="module">{script}</script>',
    )


def document(state: Mapping[str, Any] | None, *, style: str, script: str, meta: str = "") -> str:
    """Return the HTML around a state, with these elements for stylesheet and module."""
    title = "convfc: a convolution is a matrix product"
    if state and state.get("title"):
        title = f"{state['title']} – convfc"
    # No text in the state may end the element that it stands in.
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return _DOCUMENT.format(
        policy=meta, title=html.escape(title), style=style, script=script, state=text
    )


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
