"""The README's results are those of the run that is kept in docs/, and of no other."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from convfc.runs.reporting import number

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
KEPT = ROOT / "docs" / "paper-run"


def _updater(path="docs/update_runs.py"):
    spec = importlib.util.spec_from_file_location("update", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_block_is_made_from_the_kept_report():
    updater = _updater()
    block = updater.readme_block((KEPT / "report.md").read_text("utf-8"))
    assert updater.with_block(README, block) == README
    assert "convfc reproduce --paper" in block


def test_speed_is_that_of_the_kept_benchmark():
    updater = _updater("benchmarks/update_readme.py")
    block = updater.readme_block((ROOT / "benchmarks/results/torch.md").read_text("utf-8"))
    assert updater.with_block(README, block) == README
    assert block.count("| geometric mean |") == 2
    kept = json.loads((ROOT / "benchmarks/results/torch.json").read_text("utf-8"))
    assert all(f"{name} {version}" in block for name, version in kept["versions"].items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "key",
    [
        "output_difference_mean",
        "output_difference_printed",
        "weight_difference",
        "max_loss_difference",
    ],
)
def test_numbers_are_those_of_the_results(optimizer, key):
    results = json.loads((KEPT / "results.json").read_text("utf-8"))
    block = README.partition("<!-- paper-run:begin -->")[2].partition("<!-- paper-run:end -->")[0]
    fc, control = (number(results[optimizer][pair][key]) for pair in ("fc", "control"))
    assert results["epochs"] == 400
    assert f"| {fc} | {control} |" in block


def test_installing_the_experiment_does_not_install_torch():
    """`make reproduce` installs the extra ``paper`` and nothing else."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    wanted, seen = ["paper"], set()
    while wanted:
        extra = wanted.pop()
        for requirement in extras[extra]:
            seen.add(requirement.split(">=")[0])
            if requirement.startswith("convfc["):
                wanted.append(requirement[len("convfc[") : -1])
    assert "keras" in seen
    assert not {name for name in seen if name.startswith(("torch", "tensorflow"))}
