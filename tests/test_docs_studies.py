"""The reports of the studies in docs/ say what their numbers say, and show their pictures."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from convfc.studies.catalogue import PACKAGES, load_study

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "studies"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """docs/update_runs.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("update_runs", ROOT / "docs" / "update_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_study_has_its_report() -> None:
    assert {path.parent.name for path in KEPT.glob("*/report.md")} == set(PACKAGES)


@pytest.mark.parametrize("study", PACKAGES)
def test_the_kept_report_is_made_from_the_kept_numbers(program: ModuleType, study: str) -> None:
    kept = (KEPT / study / "report.md").read_text("utf-8")
    assert program.study_report(KEPT / study) == kept, "run python docs/update_runs.py"


@pytest.mark.parametrize("study", PACKAGES)
def test_another_number_is_another_report(program: ModuleType, study: str, tmp_path: Path) -> None:
    text = (KEPT / study / "results.json").read_text("utf-8")
    (tmp_path / "results.json").write_text(text.replace("0.9", "0.8"), "utf-8")
    assert program.study_report(tmp_path) != program.study_report(KEPT / study)


@pytest.mark.parametrize("study", PACKAGES)
def test_the_kept_run_is_the_ordinary_one(study: str) -> None:
    settings = load_study(study).settings
    results = json.loads((KEPT / study / "results.json").read_text("utf-8"))
    assert results["settings"] == settings.named().as_json()
    kept = json.loads((KEPT / study / "settings.json").read_text("utf-8"))
    assert results["settings"].items() <= kept.items()


@pytest.mark.parametrize("study", PACKAGES)
def test_pictures_are_those_of_the_report(study: str) -> None:
    text = (KEPT / study / "report.md").read_text("utf-8")
    shown = set(re.findall(r"\((figures/[\w-]+\.png)\)", text))
    kept = {f"figures/{path.name}" for path in (KEPT / study / "figures").iterdir()}
    assert shown == kept


def test_taking_a_run_copies_its_report_and_nothing_large(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "parts").mkdir()
    (run / "settings.json").write_text('{"study": "morphism"}')
    for name in ("report.md", "results.json", "figures/a.png", "figures/a.svg", "parts/a.npz"):
        (run / name).write_text(name)
    monkeypatch.setattr(program, "STUDIES", tmp_path / "studies")
    place = program.take(run)
    assert place == tmp_path / "studies" / "morphism"
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert files == {"report.md", "results.json", "settings.json", "figures/a.png"}
