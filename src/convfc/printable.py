"""Texts that come from files and models, made safe for a terminal."""

from __future__ import annotations

_WORD, _LINE = 400, 4000
"""Characters of a word, and of the whole, that are shown."""


def printable(text: object) -> str:
    """Return a text as one line: what is not printable is escaped, what is long is shortened.

    A file can hold names that are commands to a terminal, or that fill its screen.
    """
    escaped = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )
    return _short(" ".join(_short(word, _WORD) for word in escaped.split(" ")), _LINE)


def _short(text: str, most: int) -> str:
    """Return the head and the tail of what is longer."""
    if len(text) <= most:
        return text
    half = most // 2 - 20
    return f"{text[:half]} … {text[-half:]} ({len(text):,} characters)"
