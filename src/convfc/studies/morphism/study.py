"""The study itself: what the runner is given."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Any

from convfc.studies.folder import Result
from convfc.studies.morphism.figures import figures
from convfc.studies.morphism.findings import find, summary
from convfc.studies.morphism.parts import ROLES, Settings, parts
from convfc.studies.runner import Study

__all__ = ["SETTINGS", "STUDY"]

SETTINGS = Settings


def _results(settings: Settings, found: Mapping[str, Result]) -> dict[str, Any]:
    """Return what ``results.json`` holds of this study."""
    return {
        "images": found["teacher-0"].numbers["images"],
        "runs": [
            {role: dict(found[f"{role}-{number}"].numbers) for role in ROLES}
            for number in range(settings.seeds)
        ],
    }


STUDY = Study(
    name="morphism",
    packages=("mlxtend",),
    parts=parts,
    results=_results,
    figures=figures,
    findings=find,
    template=(importlib.resources.files(__package__) / "report.md.j2").read_text("utf-8"),
    summary=summary,
)
