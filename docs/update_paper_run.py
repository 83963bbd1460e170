"""Take a finished run into the documentation: ``python docs/update_paper_run.py runs/paper``.

Copies the report, its pictures and its numbers to ``docs/paper-run/`` and writes the README's table
from them, so that nobody types in a result.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import sys

DOCS = pathlib.Path(__file__).parent
README = DOCS.parent / "README.md"
KEPT = DOCS / "paper-run"
_BLOCK = re.compile(r"(?<=<!-- paper-run:begin -->\n).*(?=<!-- paper-run:end -->)", re.DOTALL)


def readme_block(report: str) -> str:
    """Return what the README shows of a report: its table, and where that was computed."""
    section = report.partition("## The paper's numbers, measured again")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    facts = {
        cells[1].strip(): cells[2].strip()
        for line in report.splitlines()
        if len(cells := line.split("|")) == 4
    }
    origin = (
        f"`{command(report)}` on {facts['Machine']}; {facts['Numbers']}; {facts['Versions']}; "
        f"{facts['Images']}."
    )
    return "\n".join([*table, "", origin, ""])


def command(report: str) -> str:
    """Return the command with which the report says to repeat it."""
    lines = report.partition("## How to repeat it")[2].splitlines()
    return next(line for line in lines if line.startswith("convfc "))


def with_block(readme: str, block: str) -> str:
    """Return the README with this block between its two marks."""
    return _BLOCK.sub(lambda _: block, readme)


def main(run: pathlib.Path) -> None:
    """Copy the run and write the README."""
    pictures = KEPT / "figures"
    shutil.rmtree(KEPT, ignore_errors=True)
    pictures.mkdir(parents=True)
    for name in ("report.md", "results.json", "settings.json", "cost.json"):
        shutil.copyfile(run / name, KEPT / name)
    for picture in sorted((run / "figures").glob("*.png")):
        shutil.copyfile(picture, pictures / picture.name)
    report = (KEPT / "report.md").read_text("utf-8")
    README.write_text(with_block(README.read_text("utf-8"), readme_block(report)), "utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
