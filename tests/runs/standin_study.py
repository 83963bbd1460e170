"""A study as small as can be, with everything that a study has."""

from __future__ import annotations

import io
import os
import pathlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from convfc.runs.folder import FinishedRun, Result, RunFolder
from convfc.runs.jobs import Workers
from convfc.runs.progress import Display
from convfc.runs.study import Part, Study, Work, run_study
from convfc.studies.images import load_digits
from convfc.studies.torch_training import StudySettings, seeded_torch, train, weights_of
from convfc.tables import Column, TextTable

PARTS = ("drawn", "trained", "summed")


@dataclass(frozen=True)
class Settings(StudySettings):
    study: ClassVar[str] = "standin"
    epochs: int = 4
    images: int = 300


def network() -> nn.Module:
    """It draws random numbers while it trains, as the networks of the studies do."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.2))


def drawn(work: Work) -> Result:
    work.start()
    numbers = torch.randn(5)
    return Result({"first": numbers[0].item()}, {"all": numbers.numpy()}, {"drawing": 1.0})


def trained(work: Work) -> Result:
    model, killer = network(), work.folder.path.parent / "kill"

    def watch(net: nn.Module) -> Mapping[str, float]:
        if work.done == 2 and killer.exists():
            killer.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"norm": float(net[1].weight.detach().norm())}

    images = load_digits(work.settings.images, work.settings.seed).training
    curves, seconds = train(model, images, work, watch=watch, told="norm")
    return Result({}, curves, {"training": seconds}, weights_of(model))


def summed(work: Work) -> Result:
    work.start()
    total = sum(float(a.sum()) for result in work.results.values() for a in result.arrays.values())
    total += sum(float(a.sum()) for a in work.weights("trained").values())
    return Result({"total": total, "random": torch.rand(1).item()})


def parts(settings: Settings) -> list[Part]:
    return [
        Part("drawn", drawn),
        Part("trained", trained, steps=settings.epochs),
        Part("summed", summed, needs=("drawn", "trained")),
    ]


def figures(run: FinishedRun) -> Iterator[tuple[str, Figure]]:
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot(run.load("drawn").arrays["all"])
    yield "figure-drawn", figure


STUDY = Study(
    settings=Settings,
    packages=lambda settings: ("numpy", "torch", "mlxtend"),
    parts=parts,
    results=lambda settings, found: {"total": found["summed"].numbers["total"]},
    figures=figures,
    findings=lambda run: {"total": run.results["total"]},
    template="# A study\n\n![drawn](figures/figure-drawn.png)\n\nThe total is {{ total }}.\n",
    summary=lambda results: TextTable((Column("total", (str(results["total"]),)),)),
    surroundings=seeded_torch,
)


def run(
    folder: pathlib.Path,
    *,
    study: Study = STUDY,
    workers: Workers | None = None,
    weights: bool = True,
    **given: int | None,
) -> tuple[Any, str]:
    """Run or resume it with a checkpoint after every epoch; return the folder and what was told.

    A file named ``kill`` beside the folder kills the process that trains, once.
    """
    settings = Settings.named("run", **given)
    console = Console(file=io.StringIO(), width=200)
    with RunFolder.open(folder, settings.as_json(), resume=True) as place:
        display = Display(console, "parts", "step")
        how = {"weights": weights, "workers": workers}
        run_study(study, place, settings, display, checkpoint_seconds=0, **how)
    return place, console.file.getvalue()  # type: ignore[attr-defined]
