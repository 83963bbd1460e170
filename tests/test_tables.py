"""Texts as a terminal is given them, and tables that fit its width without cutting a name."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from convfc.printable import printable
from convfc.tables import Column, TextTable, fold

NAMES = ("stem", "features.denseblock4.denselayer16.conv2", "a.b")
TABLE = TextTable(
    (
        Column("layer", NAMES),
        Column("size", ("224×224", "7×7", ""), spare=1),
        Column("numbers", ("1", "22", "333"), right=True),
        Column("more", ("x" * 12,) * 3, spare=2),
        Column("nothing", ("", "", "")),
    ),
    ("A note that is not very long, but longer than some of the widths.",),
)


def rich_text(table: TextTable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(table)
    return console.file.getvalue()


def test_plain_text() -> None:
    assert TABLE.text(120) == "\n".join(
        [
            "layer                                    size     numbers  more",
            "stem                                     224×224        1  xxxxxxxxxxxx",
            "features.denseblock4.denselayer16.conv2  7×7           22  xxxxxxxxxxxx",
            "a.b                                                   333  xxxxxxxxxxxx",
            "",
            "A note that is not very long, but longer than some of the widths.",
        ]
    )


@pytest.mark.parametrize("draw", [TextTable.text, rich_text], ids=["plain", "rich"])
@pytest.mark.parametrize("width", [44, 56, 57, 73, 120])
def test_it_fits_and_every_name_is_whole(draw, width: int) -> None:
    text = draw(TABLE, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    first = lines[0].index("numbers") if "size" not in lines[0] else lines[0].index("size")
    joined = "".join(line[:first].strip() for line in lines)
    assert all(name in joined for name in NAMES)
    left_out = ", ".join(title for title in ("more", "size") if title not in lines[0])
    told = f"Left out for width: {left_out}." in text.replace("\n", " ")
    assert told == bool(left_out)


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (74, "layer size numbers more"),
        (56, "layer size numbers more"),  # 24 for the names, 32 for the rest with its gaps
        (55, "layer size numbers"),
        (41, "layer numbers"),
        (10, "layer numbers"),  # what is left is never left out
    ],
)
def test_names_fold_first_then_columns_go(width: int, titles: str) -> None:
    assert TABLE.text(width).splitlines()[0].split() == titles.split()


def test_an_empty_table_is_its_notes() -> None:
    table = TextTable((Column("layer", ()),), ("nothing",))
    assert table.text(80) == "nothing"
    assert rich_text(table, 80) == "nothing\n"
    assert table.html() == "<div><table></table><div>nothing</div></div>"


@pytest.mark.parametrize("width", [1, 24, 25, 40])
def test_folding_keeps_every_character_and_breaks_after_dots_only(width: int) -> None:
    lines = fold(NAMES[1], width).split("\n")
    assert "".join(lines).replace("  ", "") == NAMES[1]
    assert all(line.endswith(".") for line in lines[:-1])
    parts = max(len(part) + 3 for part in NAMES[1].split("."))
    assert all(len(line) <= max(width, parts) for line in lines)
    assert (len(lines) == 1) == (width >= len(NAMES[1]))
    assert fold("aa.bb\n= cc.dd", 4) == "aa.\n  bb\n= cc.\n  dd"  # every line by itself


def test_html_is_escaped_and_has_every_column_that_says_something() -> None:
    table = TextTable((Column("<b>", ("<script>alert(1)</script>", "a&b")),), ("<i>",))
    text = table.html()
    assert set(re.findall(r"</?(\w+)", text)) == {"div", "table", "tr", "th", "td"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "a&amp;b" in text
    text = TABLE.html()
    assert re.findall(r"<th[^>]*>(\w+)</th>", text) == ["layer", "size", "numbers", "more"]
    assert text.count("<tr>") == 4
    assert text.count("text-align:right") == 4


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


@pytest.mark.parametrize("draw", [TextTable.text, rich_text], ids=["plain", "rich"])
def test_no_text_is_a_command_to_a_terminal(draw) -> None:
    table = TextTable((Column("layer", (f"{COMMAND}\n= twice", "a" * 2_000_000)),), (COMMAND,))
    text = draw(table, 500)
    assert text.replace("\n", "").isprintable()
    assert text.count(r"\x1b]52;c;b3duZWQ=\x07") == 2
    assert "= twice" in [line.strip() for line in text.splitlines()]
    assert "a (2,000,000 characters)" in text
    assert len(text) < 5000
