"""Importing convfc costs NumPy only, and the modules lean on each other one way: down."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convfc

HOUSE = Path(convfc.__file__).parent

# The floors of the house, from the ground up; a module imports from its own floor or below.
FLOORS = [
    {"printable", "errors", "extras", "tables", "rounding"},
    {"sizes", "factories", "files"},
    {"geometry"},
    {"indexmap", "arrays"},
    {"stretch"},
    {"algorithm1"},
    {"layer", "certificate", "inspection"},
    {"registry"},
    {"operators"},
    {"frameworks"},
    {"convert"},
    {"drawing", "digits"},
    {"methods", "runs", "explorer"},
    {"paper", "studies"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}
CORE = {unit for units in FLOORS[: FLOOR["frameworks"]] for unit in units}
CORE |= {"convert", "__init__"}
CORE_DEPENDENCIES = {"numpy", "scipy", "array_api_compat"}
# Imported when rich asks a table how it looks: then rich is there.
WHEN_ASKED = {"tables": {"rich"}}
FRAMEWORKS = {
    "torch",
    "jax",
    "keras",
    "tensorflow",
    "onnx",
    "matplotlib",
    "mlxtend",
    "typer",
    "rich",
    "anywidget",
    "traitlets",
    "PIL",
}

MODULES = sorted(path.relative_to(HOUSE) for path in HOUSE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The floor plan's name of a module: its folder or, in the house itself, its file."""
    return path.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    package = ("convfc", *path.parts[:-1])
    names = set()
    for node in ast.walk(ast.parse((HOUSE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def units_imported(path: Path) -> set[str]:
    """The parts of the house that a file imports; a name of the package itself is ``__init__``."""
    units = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "convfc":
            units.add(parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__")
    return units


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_has_its_floor(path: Path):
    assert unit_of(path) in FLOOR, f"put {unit_of(path)} on one of the FLOORS of this test"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path):
    here = unit_of(path)
    # `from convfc import im2col` may ask for the package's public names from the upper floors only.
    public_names_allowed = FLOOR[here] > FLOOR["frameworks"]
    for unit in units_imported(path) - {here}:
        if unit == "__init__" and public_names_allowed:
            continue
        assert FLOOR[unit] <= FLOOR[here], f"{path} imports {unit}, which is above it"


def test_no_two_parts_import_each_other():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        here = unit_of(path)
        graph.setdefault(here, set()).update(units_imported(path) - {here, "__init__"})
    while leaves := {unit for unit, below in graph.items() if not below}:
        graph = {unit: below - leaves for unit, below in graph.items() if unit not in leaves}
    assert not graph, f"a circle of imports: {sorted(graph)}"


@pytest.mark.parametrize("path", [path for path in MODULES if unit_of(path) in CORE], ids=str)
def test_the_core_imports_numpy_scipy_and_array_api_compat_only(path: Path):
    roots = {name.split(".")[0] for name in imported(path)}
    allowed = CORE_DEPENDENCIES | {"convfc"} | WHEN_ASKED.get(unit_of(path), set())
    assert roots - sys.stdlib_module_names <= allowed


def test_the_reader_of_imports_sees_imports():
    """It would be no test if the parser found nothing."""
    assert "convfc.geometry.ConvGeometry" in imported(Path("algorithm1.py"))
    assert {"geometry", "algorithm1", "indexmap"} <= units_imported(Path("__init__.py"))


NEW_MODULES = """
import contextlib, sys
import numpy, array_api_compat  # with what is beneath them
before = set(sys.modules)
import convfc
if sys.argv[1:]:
    from convfc.__main__ import main
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):
        main()
print("\\n".join(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def new_modules(*arguments: str) -> set[str]:
    """What ``import convfc`` imports, and then the command; not what Python itself brings."""
    run = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-W", "error", "-c", NEW_MODULES, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split()) - sys.stdlib_module_names


def test_import_convfc_imports_no_framework_and_leaves_scipy_for_later():
    assert new_modules() - {"numpy", "array_api_compat"} == {"convfc"}


@pytest.mark.parametrize("command", ["", "reproduce", "explore", "inspect", "spectrum"])
def test_help_imports_what_prints_it_and_no_more(command: str):
    roots = new_modules(*command.split(), "--help")
    assert {"convfc", "typer"} <= roots
    assert not roots & (FRAMEWORKS - {"typer", "rich"} | {"scipy"})


@pytest.mark.parametrize(
    "name",
    ["conv_matrix", "singular_values", "operators.ConvOperator", "methods.spectrum.layer_spectra"],
)
def test_what_is_left_for_later_comes_when_it_is_asked_for(name: str):
    program = f"import sys, convfc; assert 'scipy' not in sys.modules; convfc.{name}"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)  # noqa: S603
