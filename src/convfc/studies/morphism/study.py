"""The study of network morphism: how far a student gets that starts as its teacher.

For each seed there is a teacher, its student, and two networks to compare it with.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from convfc.extras import needing

with needing("study"):
    import torch
    from torch import nn

from convfc.errors import UnsupportedModel
from convfc.methods.morphism import Morph, deepen, widen
from convfc.runs.folder import Result
from convfc.runs.study import Part, Study, Work, seed_of
from convfc.studies.morphism.report import ROLES, figures, find, summary
from convfc.studies.torch_training import (
    StudySettings,
    certified,
    lenet,
    load_weights,
    score,
    seeded_torch,
    train,
    weights_of,
)


@dataclass(frozen=True)
class MorphismSettings(StudySettings):
    """What decides the numbers of this study."""

    study: ClassVar[str] = "morphism"

    epochs: int = 6  # of the teacher, of the student, and of the teacher trained on
    seeds: int = 5  # how often all is done, with other first weights, orders of images and morphs


def parts(settings: MorphismSettings) -> list[Part]:
    """Return all parts, one seed after the other."""
    found = []
    for number in range(settings.seeds):
        begun = (f"teacher-{number}",)
        found += [
            Part(f"teacher-{number}", _teach, steps=settings.epochs),
            Part(f"on-{number}", _teach, begun, settings.epochs),
            Part(f"student-{number}", _study, begun, settings.epochs),
            # As many as teacher and student have had together.
            Part(f"scratch-{number}", _start_anew, (), 2 * settings.epochs),
        ]
    return found


def teacher(seed: int) -> nn.Sequential:
    """Return the teacher before its training."""
    return lenet(seed, (8, 16), 32)


def student_of(model: nn.Module, example: torch.Tensor, seed: int) -> list[Morph]:
    """Return the morphs from a teacher to its student, in their order; the last is the student.

    Both CONV layers get twice the filters, and another one follows. The copies get random shares of
    what reads them, so they differ from the first step on without noise.
    """
    morphs: list[Morph] = []
    for name in ("0", "3"):
        before = morphs[-1].model if morphs else model
        options: Any = {"factor": 2, "split": "random", "seed": seed_of(seed, name)}
        morphs.append(widen(before, name, example=example, **options))
    morphs.append(deepen(morphs[-1].model, "3", example=example, seed=seed))
    return morphs


def _number(work: Work) -> int:
    """Return which of the seeds a part belongs to."""
    return int(work.part.name.rpartition("-")[2])


def _first(work: Work) -> nn.Sequential:
    """Return the teacher of this seed before its training."""
    return teacher(seed_of(work.settings.seed, "weights", _number(work)))


def _taught(work: Work) -> nn.Sequential:
    """Return the trained teacher of this seed."""
    model = _first(work)
    load_weights(model, work.weights(*work.part.needs))
    return model


def _example(work: Work) -> torch.Tensor:
    """Return the images on which the morphs are certified."""
    return torch.from_numpy(work.settings.digits.validation.images[:8])


def _learn(work: Work, model: nn.Module, order: str) -> Result:
    """Train a model and keep its curves on the test and its weights."""
    settings, digits = work.settings, work.settings.digits
    curves, seconds = train(
        model,
        digits.training,
        work,
        watch=lambda network: score(network, digits.test),
        seed=seed_of(settings.seed, order, _number(work)),
        told="test_accuracy",
    )
    numbers: dict[str, Any] = {name: values.tolist() for name, values in curves.items()}
    numbers["weights"] = sum(p.numel() for p in model.parameters())
    numbers["images"] = digits.description
    return Result(numbers, {}, {"training": seconds}, weights_of(model))


def _teach(work: Work) -> Result:
    """Train the teacher, or train it on."""
    if work.part.needs:
        return _learn(work, _taught(work), "order")
    return _learn(work, _first(work), "teacher")


def _study(work: Work) -> Result:
    """Morph the teacher and train the student, whose images come in the order of `_teach`."""
    morphs = student_of(_taught(work), _example(work), work.seed)
    found = _learn(work, morphs[-1].model, "order")
    told = [{"what": m.what, "noise": m.noise, **certified(m.certificate)} for m in morphs]
    return replace(found, numbers={**found.numbers, "morphs": told})


def _start_anew(work: Work) -> Result:
    """Train the student's layers from PyTorch's own first weights."""
    model = student_of(_first(work), _example(work), work.seed)[-1].model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        reset = set()
        for part in model.modules():
            if callable(renew := getattr(part, "reset_parameters", None)):
                renew()
                reset |= {id(p) for p in part.parameters(recurse=False)}
    kept = [name for name, p in model.named_parameters() if id(p) not in reset]
    if kept:
        raise UnsupportedModel(
            "a weight without first weights of its own", where=", ".join(kept), got=type(model)
        )
    return _learn(work, model, "order")


def results(settings: MorphismSettings, found: Mapping[str, Result]) -> dict[str, Any]:
    """Return what ``results.json`` holds of this study."""
    return {
        "images": found["teacher-0"].numbers["images"],
        "runs": [
            {role: dict(found[f"{role}-{number}"].numbers) for role in ROLES}
            for number in range(settings.seeds)
        ],
    }


STUDY = Study(
    settings=MorphismSettings,
    packages=lambda settings: ("numpy", "torch", "mlxtend"),
    parts=parts,
    results=results,
    figures=figures,
    findings=lambda run: find(run.results),
    template=(importlib.resources.files(__package__) / "report.md.j2").read_text("utf-8"),
    summary=summary,
    surroundings=seeded_torch,
)
