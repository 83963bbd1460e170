"""The parts of the study: for each seed a teacher, its student, and two to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from convfc.errors import UnsupportedModel
from convfc.methods.morphism import Morph, deepen, widen
from convfc.studies import data
from convfc.studies.folder import Array, Result
from convfc.studies.runner import Part, Work, seed_of
from convfc.studies.settings import StudySettings
from convfc.studies.training import load_weights, score, train, weights_of

__all__ = ["ROLES", "Settings", "parts", "student_of", "teacher"]

ROLES = ("teacher", "on", "student", "scratch")
"""The teacher; the teacher trained on; the student; the student's layers from first weights."""

FACTOR = 2
WIDENED = ("0", "3")
DEEPENED = "3"


@dataclass(frozen=True)
class Settings(StudySettings):
    """What decides the numbers of this study.

    Attributes
    ----------
    epochs : int
        Of the teacher, of the student, and of the teacher trained on.
    seeds : int
        How often all is done, with other first weights, orders of images and morphs.
    """

    study: ClassVar[str] = "morphism"

    epochs: int = 6
    threads: int = 1
    seeds: int = 5

    @property
    def scratch_epochs(self) -> int:
        """Epochs from first weights: as many as teacher and student have had together."""
        return 2 * self.epochs


def parts(settings: Settings) -> list[Part]:
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
    """Return the teacher: two CONV layers with pooling, two FC layers.

    Parameters
    ----------
    seed : int
        Of its first weights; PyTorch's global generator is left as it was.

    Examples
    --------
    >>> teacher(0)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
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

    Both CONV layers get twice the filters, and behind the second comes another one. The copies get
    random shares of what reads them: they differ from the first step on, and no noise is needed.

    Parameters
    ----------
    model : nn.Module
        A trained `teacher`; not changed.
    example : Tensor, shape (n, 1, 28, 28)
    seed : int
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
    return int(work.name.rpartition("-")[2])


def _first(work: Work) -> nn.Sequential:
    """Return the teacher of this seed before its training."""
    return teacher(seed_of(work.settings.seed, "weights", _number(work)))


def _taught(work: Work) -> nn.Sequential:
    """Return the trained teacher of this seed."""
    model = _first(work)
    (result,) = work.results.values()
    stored = result.arrays.items()
    load_weights(model, {n[6:]: a for n, a in stored if n.startswith("model.")})
    return model


def _example(work: Work) -> torch.Tensor:
    """Return the images on which the morphs are certified."""
    settings = work.settings
    return torch.from_numpy(data.load_digits(settings.images, settings.seed).validation.images[:8])


def _learn(work: Work, model: nn.Module, epochs: int, order: str) -> Result:
    """Train a model and keep its curves on the test and its weights."""
    settings = work.settings
    digits = data.load_digits(settings.images, settings.seed)
    curves, seconds = train(
        model,
        digits.training,
        work,
        epochs=epochs,
        watch=lambda network: score(network, digits.test),
        seed=seed_of(settings.seed, order, _number(work)),
        told="test_accuracy",
    )
    arrays: dict[str, Array] = {f"model.{n}": a for n, a in weights_of(model).items()}
    numbers: dict[str, Any] = {name: values.tolist() for name, values in curves.items()}
    numbers["weights"] = sum(p.numel() for p in model.parameters())
    return Result(numbers | {"images": digits.description}, arrays, {"training": seconds})


def _teach(work: Work) -> Result:
    return _learn(work, _first(work), work.settings.epochs, "teacher")


def _teach_on(work: Work) -> Result:
    return _learn(work, _taught(work), work.settings.epochs, "order")


def _study(work: Work) -> Result:
    """Morph the teacher and train the student, whose images come in the order of `_teach_on`."""
    morphs = student_of(_taught(work), _example(work), work.seed)
    found = _learn(work, morphs[-1].model, work.settings.epochs, "order")
    numbers = {"morphs": [_told(morph) for morph in morphs]}
    return Result({**found.numbers, **numbers}, found.arrays, found.seconds)


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
