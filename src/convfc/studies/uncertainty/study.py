"""The study itself: what the runner is given."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Any

from convfc.studies.folder import Result
from convfc.studies.runner import Study
from convfc.studies.uncertainty.figures import figures
from convfc.studies.uncertainty.findings import find, summary
from convfc.studies.uncertainty.methods import Settings, lenet
from convfc.studies.uncertainty.parts import parts

__all__ = ["SETTINGS", "STUDY"]

SETTINGS = Settings


def _results(settings: Settings, found: Mapping[str, Result]) -> dict[str, Any]:
    """Return what ``results.json`` holds of this study."""
    scores = found["scores"].numbers
    return {
        "images": found["plain"].numbers["images"],
        "weights": sum(p.numel() for p in lenet(settings.seed).parameters()),
        "letters": settings.letters,
        "moved": settings.moved,
        "table": scores["table"],
        "turned": scores["turned"],
        "rates": found["concrete"].numbers["rates"],
        "drawn": found["drawn"].numbers,
    }


STUDY = Study(
    name="uncertainty",
    packages=("mlxtend", "matplotlib", "laplace-torch"),
    parts=parts,
    results=_results,
    figures=figures,
    findings=find,
    template=(importlib.resources.files(__package__) / "report.md.j2").read_text("utf-8"),
    summary=summary,
)
