"""Texts from files and models, as a terminal is given them."""

from __future__ import annotations

import pytest

from convfc.printable import printable

COMMAND = "\x1b]52;c;b3duZWQ=\x07"  # sets a terminal's clipboard


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe σ 卷积 🙂 × … \\x1b", "größe σ 卷积 🙂 × … \\x1b"),
        (COMMAND, r"\x1b]52;c;b3duZWQ=\x07"),
        ("a\nb\rc\td\0e\x7f", r"a\nb\rc\td\x00e\x7f"),
        ("\x9b2J\x85\u2028", r"\x9b2J\x85\u2028"),  # C1 controls, and a line's end of Unicode's
        ("abc\u202eexe", r"abc\u202eexe"),  # turns what follows round
        ("\ud800", r"\ud800"),  # half of a pair: no encoding has it
        ("", ""),
        (7, "7"),
    ],
    ids=["unicode", "command", "ascii", "c1", "direction", "surrogate", "empty", "number"],
)
def test_what_is_not_printable_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown == printable(shown)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a" + "b" * 1_999_998 + "z", "2,000,000"),
        ("a " * 1_000_000 + "z", "2,000,001"),
        ("a" + "\x1b" * 1_000 + "z", "4,002"),
        ("a" * 401, "401"),
        ("a" * 399 + " " + "b" * 400, None),
        (" ".join(["a" * 9] * 400), None),
        (" ".join(["a" * 9] * 401), "4,009"),
    ],
    ids=["word", "words", "escapes", "401", "400", "3999", "4009"],
)
def test_what_is_long_keeps_its_head_and_tail(text: str, count: str | None) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    if count is None:
        assert shown == text
    else:
        assert len(shown) <= 4000
        assert shown.startswith(text[0])
        assert shown.endswith(f"{text[-1]} ({count} characters)")
