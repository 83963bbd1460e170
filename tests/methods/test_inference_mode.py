"""What methods make of a network inside `torch.inference_mode` can be trained afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from convfc.methods import morphism, uncertainty

pytestmark = pytest.mark.usefixtures("seed_zero")

X = torch.ones(2, 1, 6, 6)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 3)
    )


def morph(name: str, **options: object) -> Callable[[nn.Module], nn.Module]:
    return lambda model: getattr(morphism, name)(model, "0", example=X, **options).model


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "widen": morph("widen", width=4),
    "deepen": morph("deepen"),
    "kernel": morph("morph_kernel", kernel_size=5),
    "depth": morph("morph_depth", activation=None),
    "subnet": morph("morph_subnet", branches=[[(3, None)], [(1, None)]]),
    "activation": morph("morph_activation"),
    "factor": morph("factor", rank=1),
    "bayesian": lambda model: uncertainty.to_bayesian(model, "gaussian"),
    "sample": lambda model: uncertainty.sample(uncertainty.to_bayesian(model, "gaussian")),
    "mean": lambda model: uncertainty.mean_network(uncertainty.to_bayesian(model, "concrete")),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_training_works(name: str) -> None:
    model = network()
    with torch.inference_mode():
        after = METHODS[name](model)
    assert not any(p.is_inference() for p in after.parameters())
    torch.optim.SGD(after.parameters(), lr=0.1).step(lambda: after(X).sum().backward())
    assert all(p.grad is not None for p in after.parameters())
