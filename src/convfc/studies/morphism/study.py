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
from convfc.studies import images
from convfc.studies.morphism.report import ROLES, figures, find, summary
from convfc.studies.torch_training import (
    StudySettings,
    load_weights,
    score,
    seeded_torch,
    train,
    weights_of,
)

FACTOR = 2
WIDENED = ("0", "3")
DEEPENED = "3"


@dataclass(frozen=True)
class MorphismSettings(StudySettings):
    """What decides the numbers of this study."""

    study: ClassVar[str] = "morphism"

    epochs: int = 6  # of the teacher, of the student, and of the teacher trained on
    seeds: int = 5  # how often all is done, with other first weights, orders of images and morphs

    @property
    def scratch_epochs(self) -> int:
        """Epochs from first weights: as many as teacher and student have had together."""
        return 2 * self.epochs


def parts(settings: MorphismSettings) -> list[Part]:
    """Return all parts, one seed after the other."""
    found = []
    for number in range(settings.seeds):
        begun = (f"teacher-{number}",)
        found += [
            Part(f"teacher-{number}", _teach, steps=settings.epochs),
            Part(f"on-{number}", _teach_on, begun, settings.epochs),
            Part(f"student-{number}", _study, begun, settings.epochs),
            Part(f"scratch-{number}", _start_anew, (), settings.scratch_epochs),
        ]
    return found


def teacher(seed: int) -> nn.Sequential:
    """Return the teacher before its training: two CONV layers with pooling, two FC layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )


def student_of(model: nn.Module, example: torch.Tensor, seed: int) -> list[Morph]:
    """Return the morphs from a teacher to its student, in their order; the last is the student.

    Both CONV layers get twice the filters, and another one follows. The copies get random shares of
    what reads them, so they differ from the first step on without noise.
    """
    morphs: list[Morph] = []
    for name in WIDENED:
        before = morphs[-1].model if morphs else model
        options: Any = {"factor": FACTOR, "split": "random", "seed": seed_of(seed, name)}
        morphs.append(widen(before, name, example=example, **options))
    morphs.append(deepen(morphs[-1].model, DEEPENED, example=example, seed=seed))
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
    settings = work.settings
    return torch.from_numpy(
        images.load_digits(settings.images, settings.seed).validation.images[:8]
    )


def _learn(work: Work, model: nn.Module, epochs: int, order: str) -> Result:
    """Train a model and keep its curves on the test and its weights."""
    settings = work.settings
    digits = images.load_digits(settings.images, settings.seed)
    curves, seconds = train(
        model,
        digits.training,
        work,
        epochs=epochs,
        watch=lambda network: score(network, digits.test),
        seed=seed_of(settings.seed, order, _number(work)),
        told="test_accuracy",
    )
    numbers: dict[str, Any] = {name: values.tolist() for name, values in curves.items()}
    numbers["weights"] = sum(p.numel() for p in model.parameters())
    numbers["images"] = digits.description
    return Result(numbers, {}, {"training": seconds}, weights_of(model))


def _teach(work: Work) -> Result:
    return _learn(work, _first(work), work.settings.epochs, "teacher")


def _teach_on(work: Work) -> Result:
    return _learn(work, _taught(work), work.settings.epochs, "order")


def _study(work: Work) -> Result:
    """Morph the teacher and train the student, whose images come in the order of `_teach_on`."""
    morphs = student_of(_taught(work), _example(work), work.seed)
    found = _learn(work, morphs[-1].model, work.settings.epochs, "order")
    numbers = {"morphs": [_told(morph) for morph in morphs]}
    return replace(found, numbers={**found.numbers, **numbers})


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
    return _learn(work, model, work.settings.scratch_epochs, "order")


def _told(morph: Morph) -> Mapping[str, Any]:
    """Return what the report says of a morph."""
    certificate = morph.certificate
    ratios = [c.ratio for layer in certificate.layers for c in layer.own.values()]
    exact = [layer.exact.identical for layer in certificate.layers]
    return {
        "what": morph.what,
        "noise": morph.noise,
        "holds": certificate.holds,
        "failures": list(certificate.failures),
        "ratio": max((ratio for ratio in ratios if ratio is not None), default=0.0),
        "integers": all(one is not False for one in exact) and any(one for one in exact),
        "difference": max(o.difference for o in certificate.network.outputs),
    }


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
    figures=lambda run: figures(run.results),
    findings=lambda run: find(run.results),
    template=(importlib.resources.files(__package__) / "report.md.j2").read_text("utf-8"),
    summary=summary,
    surroundings=seeded_torch,
)
