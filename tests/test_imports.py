"""Importing convfc costs NumPy only, and what leans on what: no circle anywhere in the house."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import python

import convfc

HOUSE = Path(convfc.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
CORE_DEPENDENCIES = {"numpy", "scipy", "array_api_compat"}
# Imported when rich asks a table how it looks: then rich is there; and when a bar is wanted.
WHEN_ASKED = {"tables.py": {"rich"}, "progress.py": {"rich"}}
FRAMEWORKS = {
    "torch",
    "jax",
    "keras",
    "tensorflow",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "matplotlib",
    "mlxtend",
    "typer",
    "rich",
    "anywidget",
    "traitlets",
    "PIL",
}
MODULES = sorted(path.relative_to(HOUSE) for path in HOUSE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES}, key=str)


def rows(title: str) -> list[list[str]]:
    """A plan, which stands in CONTRIBUTING alone: the names in each row, from the ground up."""
    section = CONTRIBUTING.read_text("utf-8").split(title)[1].split("\n### ")[0]
    found = re.findall(r"^\| (`[\w/.]+`(?:, `[\w/.]+`)*) \|", section, flags=re.MULTILINE)
    return [row.strip("`").split("`, `") for row in found]


ROWS = [name for row in rows("## The house") for name in row]
TORCH = Path("frameworks/torch")
TORCH_ROWS = {name: n for n, row in enumerate(rows("### The PyTorch room")) for name in row}
CORE = {*ROWS[: ROWS.index("frameworks/")], "convert.py", "__init__.py"}


def unit_of(path: Path, folder: Path = Path()) -> str:
    """What stands in a folder and holds a module: the module itself, or a room, as "room/"."""
    first, *rest = path.relative_to(folder).parts
    return f"{first}/" if rest else first


def imported(path: Path) -> set[str]:
    """Every module, or name of one, that a file imports, anywhere in it, by its full name."""
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


@cache
def modules_imported(path: Path) -> set[Path]:
    """The modules of the house that a file imports; of a name, the module that has it."""
    found = set()
    for name in imported(path):
        first, *parts = name.split(".")
        if first == "convfc":
            ways = ["/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
            files = (Path(file) for way in ways for file in (f"{way}.py", f"./{way}/__init__.py"))
            found.add(next(file for file in files if (HOUSE / file).is_file()))
    return found - {path}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when all that leans on nothing has been taken away, in turns."""
    while leaves := {unit for unit, below in graph.items() if not below & graph.keys()}:
        graph = {unit: below for unit, below in graph.items() if unit not in leaves}
    return sorted(graph)


def test_the_house_in_contributing_is_the_house_that_stands():
    files = {path.name for path in MODULES if len(path.parts) == 1} - {"__init__.py"}
    rooms = {f"{path.parts[0]}/" for path in MODULES if path.name == "__init__.py"} - {
        "__init__.py/"
    }
    assert sorted(ROWS) == sorted(files | rooms)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_up_the_table_of_the_house(path: Path):
    here = unit_of(path)
    if here == "__init__.py":
        return  # it stands above them all
    own = ROWS.index(here)
    for other in map(unit_of, modules_imported(path)):
        if other == "__init__.py":
            # `from convfc import im2col`: the package's public names, from the upper rows only.
            assert own > ROWS.index("frameworks/"), f"{path} imports convfc itself"
        elif other != here:
            assert ROWS.index(other) < own, f"{path} imports {other}, which is below it"


def test_the_pytorch_room_in_contributing_is_the_one_that_stands():
    inside = {unit_of(path, TORCH) for path in MODULES if path.is_relative_to(TORCH)}
    assert TORCH_ROWS.keys() == inside - {"__init__.py"}


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.is_relative_to(TORCH) and m != TORCH / "__init__.py"], ids=str
)
def test_imports_go_up_the_table_of_the_pytorch_room(path: Path):
    own = TORCH_ROWS[unit_of(path, TORCH)]
    for other in modules_imported(path):
        if other.is_relative_to(TORCH) and unit_of(other, TORCH) != "__init__.py":
            assert TORCH_ROWS[unit_of(other, TORCH)] <= own, f"{path} imports {other}"


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_no_circle_among_what_stands_in_one_folder(folder: Path):
    """Among rooms, and among the files of a room: `__init__.py` is the face of the others."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if path.is_relative_to(folder) and unit_of(path, folder) != "__init__.py":
            here = unit_of(path, folder)
            inside = (other for other in modules_imported(path) if other.is_relative_to(folder))
            units = {unit_of(other, folder) for other in inside}
            graph.setdefault(here, set()).update(units - {here, "__init__.py"})
    assert not circle(graph), f"a circle of imports: {circle(graph)}"


@pytest.mark.parametrize("path", [path for path in MODULES if unit_of(path) in CORE], ids=str)
def test_the_core_imports_numpy_scipy_and_array_api_compat_only(path: Path):
    roots = {name.split(".")[0] for name in imported(path)}
    allowed = CORE_DEPENDENCIES | {"convfc"} | WHEN_ASKED.get(unit_of(path), set())
    assert roots - sys.stdlib_module_names <= allowed


def test_the_reader_of_imports_sees_imports_and_circles():
    """It would be no test if the parser found nothing."""
    assert "convfc.geometry.ConvGeometry" in imported(Path("algorithm1.py"))
    assert {Path("geometry.py"), Path("indexmap.py")} <= modules_imported(Path("algorithm1.py"))
    assert Path("__init__.py") in modules_imported(Path("cli/inspect.py"))
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


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


@pytest.mark.parametrize(
    "command", ["", "reproduce", "explore", "inspect", "spectrum", "convert", "verify"]
)
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


KERAS = "m = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)]); convfc.to_fc(m)"
SIMPLIFIED = {
    "import tensorflow": "RunError triton: TensorFlow is",
    f"import keras; {KERAS}": "True",
}


@pytest.mark.long
@pytest.mark.parametrize("first", SIMPLIFIED)
def test_a_model_of_pytorch_is_converted_after_tensorflow(first: str):
    """After which PyTorch's compiler crashes; Keras imports it with its first layer."""
    if not all(map(find_spec, ("tensorflow", "triton"))):
        pytest.skip("without TensorFlow and triton together nothing crashes")
    ended = python(
        "-c",
        f"""
import sys, convfc, torch
{first}
assert "tensorflow" in sys.modules
model, x = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, bias=False)), torch.ones(1, 1, 8, 8)
torch.nn.init.ones_(model[0].weight)
fc = convfc.to_fc(model)
assert convfc.verify(model, fc, x).holds
convfc.to_conv(fc), convfc.inspect(model, x), convfc.unroll(model, x)
assert "torch._dynamo" not in sys.modules
try:
    print(torch.equal(convfc.simplify(model, x)(x), model(x)))
except convfc.errors.ConvfcError as error:
    print(type(error).__name__, error)
""",
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(SIMPLIFIED[first])
