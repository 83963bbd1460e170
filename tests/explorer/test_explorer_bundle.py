"""The committed bundle is what its sources make, and its sources name no registry."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

import pytest
from browser import lacking

WEB = pathlib.Path(__file__).parents[2] / "src/convfc/explorer/web"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The sources beside a copy of the bundle, as they are in the package."""
    if shutil.which("node") is None or not (WEB / "node_modules/esbuild").is_dir():
        lacking("there is nothing to build the explorer with; remedy: make explorer")
    copy = tmp_path_factory.mktemp("explorer")
    shutil.copytree(WEB.parent / "static", copy / "static")
    shutil.copytree(WEB, copy / "web", ignore=shutil.ignore_patterns("node_modules"))
    (copy / "web/node_modules").symlink_to(WEB / "node_modules")
    return copy / "web"


def check(web: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "build.mjs", "--check"],  # noqa: S607
        cwd=web,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_committed_bundle_is_what_the_sources_make(web: pathlib.Path) -> None:
    result = check(web)
    assert result.returncode == 0, result.stderr
    assert "explorer.js" in result.stdout


@pytest.mark.parametrize("source", ["src/model/geometry.js", "styles/explorer.css"])
def test_a_bundle_that_is_older_than_its_sources_is_found(web: pathlib.Path, source: str) -> None:
    path = web / source
    before = path.read_text("utf-8")
    added = "\n.stale { color: red }\n" if path.suffix == ".css" else '\nconsole.log("stale");\n'
    path.write_text(before + added, "utf-8")
    try:
        result = check(web)
    finally:
        path.write_text(before, "utf-8")
    assert result.returncode != 0
    assert "run npm run build" in result.stderr


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text("utf-8"))
    assert set(lock["packages"][""]["devDependencies"]) == {"axe-core", "esbuild"}
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
