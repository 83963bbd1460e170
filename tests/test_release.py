"""What is released, used as a stranger does: installed alone, extra by extra, old and new.

`make wheel` runs this file but for the lowest versions, which take long to load: `make lowest`.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import conv_model
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, PYTEST = PYPROJECT["project"], PYPROJECT["tool"]["pytest"]["ini_options"]
SITE = "https://docs.example/convfc/"
EXAMPLES = "cli,explorer,onnx,paper,spectrum,study,sweep,torch"
"""The extras that the examples in docstrings need."""
OPTIONS = ("-o", f"doctest_optionflags={PYTEST['doctest_optionflags']}")
"""Of the examples in docstrings, as they are read here."""
LINE = r"the package {} is not installed\. .*pip install 'convfc\[{}\]'"

EXACT = """
import numpy as np, convfc
assert "site-packages" in convfc.__file__, convfc.__file__
geometry = convfc.ConvGeometry(2, 3, (3, 3))
x, k = np.arange(50.).reshape(1, 5, 5, 2), np.arange(54.).reshape(3, 3, 3, 2)
y = convfc.conv_as_matmul(x, k, geometry)
assert y[0, 1, 2, 1] == (x[0, 1:4, 2:5] * k[1]).sum(), y
assert (convfc.conv_matrix(k, (5, 5), geometry) @ x.ravel() == y.ravel()).all()
"""
NETS = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
"""


def run(*command: object, cwd: Path, status: int = 0) -> str:
    """Run a program with nothing of this environment; return all that it says, on one line."""
    own = ("PYTHON", "JAX_", "XLA_")  # what the tests set, old versions do not know
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(  # noqa: S603
        list(map(str, command)), cwd=cwd, env=kept, capture_output=True, text=True, check=False
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == status, said
    return said


class Environment:
    """A new virtual environment, in a folder that is the present one for its programs."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder = folder
        run(python, "-m", "venv", folder / "env", cwd=folder)
        self.bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")

    def install(self, *what: object) -> None:
        run(self.bin / "python", "-m", "pip", "install", "--quiet", *what, cwd=self.folder)

    def python(self, *arguments: object) -> str:
        return run(self.bin / "python", *arguments, cwd=self.folder)

    def convfc(self, *arguments: object, status: int = 0) -> str:
        return run(self.bin / "convfc", *arguments, cwd=self.folder, status=status)

    def lacks(self, module: str, extra: str, *arguments: object) -> None:
        """Check that a command names the extra that it needs."""
        said = self.convfc(*arguments, status=1)
        assert re.search(LINE.format(module, extra), said), said


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a new wheel, which is made of the new sdist, as the release makes them."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    run(sys.executable, "docs/website/address.py", SITE, cwd=folder)
    run(sys.executable, "-m", "build", cwd=folder)
    return folder / "dist"


def tracked() -> list[str]:
    """The files of the repository."""
    return run("git", "ls-files", cwd=ROOT).split()


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel alone, in which one test after the other installs more."""
    made = Environment(tmp_path_factory.mktemp("wheel"))
    made.install(wheel)
    return made


def test_the_sdist_has_the_sources_and_the_wheel_what_is_installed(dist: Path, wheel: Path):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        sources = {name.partition("/")[2] for name in file.getnames()}
    assert sources - {"PKG-INFO"} == set(tracked())
    house = {name.removeprefix("src/") for name in tracked() if name.startswith("src/convfc/")}
    house = {name for name in house if not name.startswith("convfc/explorer/web/")}
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if ".dist-info/" not in name} == house


def test_what_is_released_leads_to_its_site(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(file.read(name))
    assert told["Project-URL"] == f"Documentation, {SITE}"
    targets = re.findall(r"\]\(([^)]+)\)", told.get_payload())
    assert f"{SITE}figures/explorer.png" in targets
    assert [each for each in targets if not each.startswith("https://")] == []


@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3.13"])
def test_the_wheel_alone_computes(wheel: Path, tmp_path: Path, python: str):
    found = shutil.which(python)
    if found is None or subprocess.run([found, "-c", ""], check=False).returncode:  # noqa: S603
        pytest.skip(f"{python} is not on this machine")
    alone = Environment(tmp_path, found)
    alone.install(wheel)
    alone.python("-c", EXACT)


def test_without_the_extra_the_command_names_it(environment: Environment):
    assert re.search(LINE.format("typer", "cli"), environment.convfc(status=1))


def test_with_the_commands_each_names_the_extra_that_it_needs(
    wheel: Path, environment: Environment
):
    environment.install(f"{wheel}[cli]")
    environment.convfc("explore", "--html", "page.html")
    page = (environment.folder / "page.html").read_text("utf-8")
    assert f'data-site="{SITE}explorer/index.html"' in page
    environment.lacks("matplotlib", "paper", "reproduce", "--epochs", "1")
    environment.lacks("matplotlib", "sweep", "reproduce", "--sweep", "sweep.toml")
    environment.lacks("torch", "study", "reproduce", "--study", "uncertainty")
    environment.lacks("onnx", "onnx", "inspect", "model.onnx")
    environment.lacks("matplotlib", "spectrum", "spectrum", "a:net", "--input", "1,8,8")
    environment.lacks("PIL", "explorer", "explore", "--film", "film.gif")


def test_with_onnx_a_file_is_inspected_converted_and_certified(
    wheel: Path, environment: Environment
):
    model = conv_model("Conv", [1, 2, 9, 8], np.ones((4, 2, 3, 3), np.float32))
    onnx.save(model, environment.folder / "net.onnx")
    environment.install(f"{wheel}[onnx]")
    assert "3×3" in environment.convfc("inspect", "net.onnx")
    said = environment.convfc("convert", "net.onnx", "--output", "fc.onnx")
    assert "holds" in said
    environment.convfc("verify", "net.onnx", "fc.onnx")


def test_with_the_papers_extra_the_experiment_runs(wheel: Path, environment: Environment):
    environment.install(f"{wheel}[paper]")
    environment.convfc("reproduce", "--epochs", "1")
    (report,) = environment.folder.glob("runs/*/report.html")
    text = " ".join(report.read_text("utf-8").split())
    assert "its difference from the FC network is exactly 0 in every number" in text


def lowest(extras: str) -> list[str]:
    """What pyproject.toml declares as the lowest versions, as pip takes constraints."""
    declared = list(PROJECT["dependencies"])
    for extra in extras.split(","):
        declared += PROJECT["optional-dependencies"][extra]
    found = map(Requirement, declared)
    return [
        f"{each.name}=={bound.version}"
        for each in found
        for bound in each.specifier
        if bound.operator == ">="
    ]


def test_the_lowest_declared_versions_run_every_example(wheel: Path, tmp_path: Path):
    python = shutil.which("python3.11")
    if python is None or sys.version_info[:2] != (3, 11):
        pytest.skip("the lowest versions are those of Python 3.11, which does not run this test")
    old = Environment(tmp_path)
    (tmp_path / "lowest.txt").write_text("\n".join(lowest(EXAMPLES)))
    old.install("--constraint", "lowest.txt", f"{wheel}[{EXAMPLES}]", "pytest")
    said = old.python("-m", "pytest", "-q", "--doctest-modules", *OPTIONS, "--pyargs", "convfc")
    assert re.search(r"\d\d passed", said), said
    (tmp_path / "nets.py").write_text(NETS)
    for command in ("inspect", "spectrum"):
        assert "8×8" in old.convfc(command, "nets.py:net", "--input", "1,1,8,8")
    old.convfc("reproduce", "--epochs", "1")
