"""verify for PyTorch: two networks side by side, on the input that each layer really receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from convfc.certificate import Certificate, LayerCertificate
from convfc.errors import ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.torch.certify.measures import Call, measure
from convfc.frameworks.torch.certify.networks import Runner, compare_networks
from convfc.frameworks.torch.certify.pairs import Pair, Pairs, find_pairs, has_own_weights
from convfc.frameworks.torch.certify.simplified import certify_simplified, simplified_record
from convfc.frameworks.torch.certify.unrolled import UnrolledLayer
from convfc.frameworks.torch.read import geometry_of
from convfc.frameworks.torch.running import check_has_numbers, random_numbers

__all__ = ["verify"]


def verify(before: nn.Module, after: nn.Module, x: Any, *, seed: int = 0) -> Certificate:
    """Compare two networks, their CONV layers in whatever form one by one; see `convfc.verify`.

    A network that `convfc.to_fc` has simplified is compared stage by stage; see `simplified`.

    Both networks are left as they are: everything runs on copies, without autocast, and the random
    number generators are put back. Hooks of the networks run with the copies; hooks around a CONV
    layer itself are no part of the comparison of that layer. What is compared in float64 needs a
    device that has it.

    Parameters
    ----------
    before, after : nn.Module
        In either direction: a CONV network and its FC form, or the other way round.
    x : Tensor, array, tuple or mapping
        One input, or the positional or keyword arguments of a call.
    seed : int
        Of the gradients and the integers that the layers are compared on.

    Returns
    -------
    Certificate

    Raises
    ------
    UnsupportedModel
        If one of the two is no module, or has no numbers since it is on the meta device.
    UnsupportedLayer
        If a lazy layer has not been initialised yet.
    ShapeError
        If the first network does not run on ``x``.

    Examples
    --------
    >>> import copy
    >>> before = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> after = copy.deepcopy(before)
    >>> verify(before, after, torch.ones(1, 3, 8, 8)).holds
    True
    >>> after[0].weight.data[0, 0, 0, 0] *= 1.001
    >>> verify(before, after, torch.ones(1, 3, 8, 8)).holds
    False
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
    with run.undisturbed():
        output = run(before)
        if simplified_record(before, after) is not None:
            layers, network = certify_simplified(before, after, run, output)
        elif simplified_record(after, before) is not None:
            layers, network = certify_simplified(after, before, run)
        else:
            found = find_pairs(before, after)
            layers = _measure_layers(before, found, run, seed)
            network = compare_networks(before, after, output, found, run)
    return Certificate(
        layers=tuple(layers),
        network=network,
        unconverted=tuple(found.unconverted),
        missing=tuple(found.missing),
        framework=f"torch {torch.__version__}",
        seed=seed,
    )


def _measure_layers(
    model: nn.Module, found: Pairs, run: Runner, seed: int
) -> list[LayerCertificate]:
    """Run a copy of the first network; at each call of a layer, compare its pairs on the spot.

    So no more than one layer's input is held at a time.
    """
    by_layer: dict[int, list[Pair]] = {}
    for pair in found.pairs:
        by_layer.setdefault(id(pair.called), []).append(pair)
    measured: dict[Pair, list[LayerCertificate]] = {pair: [] for pair in found.pairs}

    def compare_pairs(pairs: list[Pair]) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, rest, named = _input_and_rest(args, kwargs)
            with random_numbers(run.tensors):
                for pair in pairs:
                    call = Call(x.detach(), rest, named, number=len(measured[pair]))
                    measured[pair].append(measure(pair, call, seed=seed))

        return hook

    def watch(twins: dict[int, Any]) -> None:
        for key, pairs in by_layer.items():
            twins[key].register_forward_pre_hook(compare_pairs(pairs), with_kwargs=True)

    run(model, prepare=watch)
    for pair, certificates in measured.items():
        if not certificates:
            certificates.append(_measure_unreached(pair, seed))
    return [certificate for pair in found.pairs for certificate in measured[pair]]


def _input_and_rest(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return the input of a layer's call, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return kwargs[name], (), {key: value for key, value in kwargs.items() if key != name}


def _measure_unreached(pair: Pair, seed: int) -> LayerCertificate:
    """Compare a pair that the network does not call on this input, on random numbers."""
    layer = next(filter(has_own_weights, (pair.before, pair.after)), None)
    if layer is None:
        error = "it is not called; expected a call on this input, got none"
        return LayerCertificate(pair.name, pair.forms, errors=(error,))
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
    return measure(pair, Call(x), seed=seed, notes=(note,))


def _check(name: str, model: nn.Module) -> None:
    """Refuse what is no network, or none yet, or has no numbers to compare."""
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
    check_has_numbers(model, name)
