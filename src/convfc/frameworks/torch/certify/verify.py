"""verify for PyTorch: two networks side by side, on the input that each layer really receives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from convfc.certificate import Certificate, LayerCertificate
from convfc.errors import ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.certify.engine import Call, measure
from convfc.frameworks.torch.certify.networks import Runner, compare_networks, measure_calls
from convfc.frameworks.torch.certify.pairs import (
    Pair,
    Pairs,
    UnrolledLayer,
    find_pairs,
    has_own_weights,
    runs_own_forward,
)
from convfc.frameworks.torch.certify.simplified import certify_simplified, simplified_record
from convfc.frameworks.torch.forms.factors import DISTRIBUTED, is_distributed
from convfc.frameworks.torch.read import geometry_of
from convfc.frameworks.torch.running import check_has_numbers


def verify(before: nn.Module, after: nn.Module, x: Any, *, seed: int = 0) -> Certificate:
    """Compare two networks, their CONV layers in whatever form one by one; see `convfc.verify`.

    A network that `convfc.to_fc` has simplified is compared stage by stage; see `simplified`.

    Both networks are left as they are: everything runs on copies, without autocast, and the random
    number generators are put back. Hooks of the networks run with the copies; hooks around a CONV
    layer itself are no part of the comparison of that layer. What is compared in float64 needs a
    device that has it.
    """
    for name, model in (("before", before), ("after", after)):
        _check(name, model)
    run = Runner((before, after), x)
    for value in tree_leaves((run.args, run.kwargs)):
        if isinstance(value, Tensor) and value.is_meta:
            raise ShapeError(
                "an input on the meta device has a shape and no numbers",
                where="x",
                got=tuple(value.shape),
                remedy="give real numbers: torch.randn(x.shape)",
            )
    found = Pairs()
    layers: list[LayerCertificate] = []
    with run.undisturbed():
        if simplified_record(before, after) is not None:
            layers, network = certify_simplified(before, after, run)
        elif simplified_record(after, before) is not None:
            layers, network = certify_simplified(after, before, run, backwards=True)
        else:
            found = find_pairs(before, after)
            output, measured = measure_calls(before, found.pairs, run, seed)
            for pair, calls in zip(found.pairs, measured, strict=True):
                layers += calls or _measure_unreached(pair, seed)
            network = compare_networks(before, after, output, found, run)
    return Certificate(
        layers=tuple(layers),
        network=network,
        unconverted=tuple(found.unconverted),
        missing=tuple(found.missing),
        framework=f"torch {torch.__version__}",
        seed=seed,
    )


def _measure_unreached(pair: Pair, seed: int) -> list[LayerCertificate]:
    """Compare a pair that the network does not call on this input, on random numbers."""
    sides = (pair.before, pair.after)
    layer = next((one for one in sides if has_own_weights(one) or runs_own_forward(one)), None)
    if layer is None or not hasattr(layer, "kernel_size"):
        error = "it is not called; expected a call on this input, got none"
        return [LayerCertificate(pair.name, pair.forms, errors=(error,))]
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    unrolled = [side for side in (pair.before, pair.after) if isinstance(side, UnrolledLayer)]
    if unrolled:
        record = unrolled[0].record
        size: tuple[int, ...] = (1, record.geometry.in_channels, *record.input_size)
    elif weight.dim() == 2:
        size = (1, weight.shape[1])
    else:
        geometry = geometry_of(layer, (1,) * (weight.dim() - 2))
        # Large enough for the kernel, and for every padding mode.
        spatial = [
            d * (k - 1) + 3 + 2 * max(0, *pad)
            for k, d, pad in zip(
                geometry.kernel_size, geometry.dilation, geometry.padding, strict=True
            )
        ]
        size = (1, geometry.in_channels, *spatial)
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(weight)
    note = f"not called on this input, so compared on random numbers of shape {size}"
    return [measure(one, seed=seed, notes=(note,)) for one in pair.on(Call(x))]


def _check(name: str, model: nn.Module) -> None:
    """Refuse what is not a network, or none yet, or has no numbers to compare."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(
            "no PyTorch model",
            where=name,
            expected="a torch.nn.Module",
            got=type(model).__name__,
            remedy="give both networks as torch modules",
        )
    for place, parameter in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(parameter):
            raise UnsupportedLayer(
                "a lazy layer that has no size yet",
                where=f"{name}: {place}",
                remedy="run the model once on an input",
            )
        if is_distributed(parameter):
            where = f"{name}: {place.rpartition('.')[0]}" if "." in place else name
            raise DISTRIBUTED._replace(where=where).error(UnsupportedLayer)
    check_has_numbers(model, name)
