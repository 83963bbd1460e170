"""Take finished runs into the documentation: ``python docs/update_runs.py runs/paper``.

Copies the report, its pictures and its numbers, the paper's experiment to ``docs/paper-run/`` and a
study to ``docs/studies/``, and writes the README's table from them, so that nobody types in a
result. Without a run it writes the kept reports of the studies again, from their numbers.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys

DOCS = pathlib.Path(__file__).parent
README = DOCS.parent / "README.md"
KEPT = DOCS / "paper-run"
STUDIES = DOCS / "studies"
# The page beside a report stays with its run: here it would be a stale copy of the explorer.
_EXPLORER = re.compile(r"^\[The explorer\]\(explorer\.html\).*\n\n", re.MULTILINE)
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


def study_report(folder: pathlib.Path) -> str:
    """Return the report of a kept study, written from its ``results.json``."""
    from convfc.runs.folder import FinishedRun, RunFolder
    from convfc.runs.study import report_text
    from convfc.studies.catalogue import load_study

    results = json.loads((folder / "results.json").read_text("utf-8"))
    study = load_study(results["settings"]["study"])
    return report_text(study, FinishedRun(RunFolder(folder), results))


def take(run: pathlib.Path) -> pathlib.Path:
    """Copy the report, the pictures and the numbers of a run, and return where to."""
    study = json.loads((run / "settings.json").read_text("utf-8"))["study"]
    kept = KEPT if study == "paper" else STUDIES / study
    pictures = kept / "figures"
    shutil.rmtree(kept, ignore_errors=True)
    pictures.mkdir(parents=True)
    for name in ("report.md", "results.json", "settings.json"):
        shutil.copyfile(run / name, kept / name)
    report = (kept / "report.md").read_text("utf-8")
    (kept / "report.md").write_text(_EXPLORER.sub("", report), "utf-8")
    for picture in sorted((run / "figures").glob("*.png")):
        shutil.copyfile(picture, pictures / picture.name)
    return kept


def main(runs: list[pathlib.Path]) -> None:
    """Copy the runs, and write the README and the reports of the studies."""
    for run in runs:
        take(run)
    report = (KEPT / "report.md").read_text("utf-8")
    README.write_text(with_block(README.read_text("utf-8"), readme_block(report)), "utf-8")
    for numbers in STUDIES.glob("*/results.json"):
        (numbers.parent / "report.md").write_text(study_report(numbers.parent), "utf-8")


if __name__ == "__main__":
    main([pathlib.Path(run) for run in sys.argv[1:]])
