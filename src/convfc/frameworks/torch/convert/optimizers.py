"""An optimizer's state goes where the weights went: moments are laid out as their parameters are.

What an optimizer keeps for every number of a parameter (momentum, moments, their maxima) moves as
the weight does; what it keeps once per parameter (a count of steps) stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from convfc.errors import UnsupportedOptimizer
from convfc.frameworks.torch.certify.pairs import (
    HeadConv,
    UnrolledLayer,
    has_own_weights,
    runs_own_forward,
)
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.forms.grouped import GroupedLinear
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.forms.weight import steps_of
from convfc.frameworks.torch.read import layout_of, matrix_to_weight, weight_to_matrix
from convfc.mlp.simplified import record_of
from convfc.networks import Pairs

State: TypeAlias = Mapping[str, Any]
Convert: TypeAlias = Callable[[list[Tensor]], list[Tensor]]

# Factors of a matrix of moments, which have the parameter's own shape where an axis has length one.
_FACTORED = {"row_var", "col_var"}


@dataclass(frozen=True, eq=False)
class _Link:
    """Parameters of the first model, those of the second that they became, and how."""

    name: str
    sources: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    convert: Convert


def convert_optimizer_state(
    optimizer: torch.optim.Optimizer | Mapping[str, Any],
    before: nn.Module,
    after: nn.Module,
    pairs: Callable[[nn.Module, nn.Module], Pairs],
) -> dict[str, Any]:
    """Return the state dict of an optimizer for the other model; see `convfc`'s door.

    ``pairs`` says which layers of two models stand for each other.
    """
    for model in (before, after):
        if record_of(model) is not None:
            raise _no_filters("the simplified network")
    if isinstance(optimizer, torch.optim.Optimizer):
        optimized = [p for group in optimizer.param_groups for p in group["params"]]
        given: Mapping[str, Any] = optimizer.state_dict()
    else:
        given = _checked(optimizer)
        optimized = _optimized(given["param_groups"], before)
    links = _links(before, after, pairs(before, after))
    order = {id(p): place for place, p in enumerate(before.parameters())}
    for place, parameter in enumerate(optimized):
        if id(parameter) not in order:
            raise _foreign(f"its parameter {place}, {tuple(parameter.shape)},")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    key_of = dict(zip(map(id, optimized), keys, strict=True))
    place_of = {id(p): place for place, p in enumerate(after.parameters())}
    names = {id(p): name for name, p in after.named_parameters()}
    groups: list[dict[str, Any]] = []
    counted = set(keys)
    state = {key: copy.deepcopy(v) for key, v in given["state"].items() if key not in counted}
    count = 0
    for old in given["param_groups"]:
        sources, optimized = optimized[: len(old["params"])], optimized[len(old["params"]) :]
        places = [order[id(p)] for p in sources]
        if places != sorted(places):
            raise UnsupportedOptimizer(
                "its parameters stand in another order than in the model, so that the other "
                "model's cannot be put in order either",
                where=f"param_groups[{len(groups)}]",
                remedy="build its groups from model.parameters(), in that order",
            )
        targets: dict[int, tuple[Tensor, State]] = {}
        for link in dict.fromkeys(links[id(p)] for p in sources):
            if not {*map(id, link.sources)} <= {*map(id, sources)}:
                raise UnsupportedOptimizer(
                    f"it holds only some of the FC layers that {link.name} consists of",
                    where=f"param_groups[{len(groups)}]",
                    remedy="put all groups of a layer into the same group of the optimizer",
                )
            states = [given["state"].get(key_of[id(p)], {}) for p in link.sources]
            new_states = zip(link.targets, _converted(link, states), strict=True)
            targets |= {place_of[id(target)]: (target, new) for target, new in new_states}
        ordered = [targets[place] for place in sorted(targets)]
        state |= {count + n: new for n, (_, new) in enumerate(ordered) if new}
        group = {key: copy.deepcopy(value) for key, value in old.items() if key != "params"}
        if "param_names" in group:
            group["param_names"] = [names[id(target)] for target, _ in ordered]
        groups.append({**group, "params": list(range(count, count + len(ordered)))})
        count += len(ordered)
    converted = {"state": state, "param_groups": groups}
    return {key: copy.deepcopy(v) for key, v in given.items() if key not in converted} | converted


def _converted(link: _Link, states: Sequence[State]) -> list[dict[str, Any]]:
    """Return the states of a link's targets, from those of its sources."""
    if any(state.keys() != states[0].keys() for state in states):
        raise UnsupportedOptimizer(
            "the groups of one layer have states of different kinds",
            where=link.name,
            expected=", ".join(states[0]) or "none",
            got=next(", ".join(s) or "none" for s in states if s.keys() != states[0].keys()),
            remedy="train all groups of a layer with the same optimizer",
        )
    moved = {key: _values(link, key, [state[key] for state in states]) for key in states[0]}
    return [{key: values[n] for key, values in moved.items()} for n in range(len(link.targets))]


def _values(link: _Link, key: str, values: list[Any]) -> list[Any]:
    """Return one entry of the state for each target: moved with the weight, or as it is."""
    where = f"{key} of {link.name}"
    if key not in _FACTORED and all(
        type(value) in (Tensor, nn.Parameter) and value.shape == source.shape
        for value, source in zip(values, link.sources, strict=True)
    ):
        moved = link.convert([value.detach() for value in values])
        return [
            torch.empty_like(target, dtype=m.dtype, device=m.device, requires_grad=False).copy_(m)
            for target, m in zip(link.targets, moved, strict=True)
        ]
    if all(map(_is_scalar, values)):
        if any(bool(value != values[0]) for value in values):
            raise UnsupportedOptimizer(
                "the groups of one layer have different values, which cannot become one",
                where=where,
                got=", ".join(f"{value}" for value in values),
                remedy="train all groups of a layer together",
            )
        return [copy.deepcopy(values[0]) for _ in link.targets]
    value = next(v for v in values if not _is_scalar(v))
    raise UnsupportedOptimizer(
        "the optimizer keeps something else than one number per weight, or one per parameter, and "
        "nothing says how it moves",
        where=where,
        expected=f"a tensor {tuple(link.sources[0].shape)}, or a number",
        got=f"a {type(value).__name__} {tuple(getattr(value, 'shape', ()))}".removesuffix(" ()"),
        remedy="check that the optimizer belongs to the first model; if it does, begin with a new "
        "optimizer, or use one whose moments have the shape of the weights (SGD, Adam, RMSprop)",
    )


def _is_scalar(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return value is None or isinstance(value, (bool, int, float, complex, str))


def _links(before: nn.Module, after: nn.Module, pairs: Pairs) -> dict[int, _Link]:
    """Link all parameters of two models; by the ``id`` of the first one's."""
    if pairs.missing:
        raise _not_the_same(pairs.missing[0], "only one of the models has this CONV layer")
    layers: list[Any] = list(pairs.pairs)
    links = [
        link
        for pair in layers
        for link in _layer_links(pair.name or "the layer", pair.before, pair.after)
    ]
    linked = {id(p) for link in links for p in link.sources + link.targets}
    ours, theirs = (
        {name: p for name, p in _named(model).items() if id(p) not in linked}
        for model in (before, after)
    )
    for name in ours | theirs:
        mine, its = ours.get(name), theirs.get(name)
        if mine is None or its is None:
            raise _not_the_same(name, "only one of the models has this parameter")
        if mine.shape != its.shape:
            sizes = tuple(mine.shape), tuple(its.shape)
            raise _not_the_same(name, "the parameter has two sizes", *sizes)
        links.append(_Link(name, (mine,), (its,), lambda moments: moments))
    found: dict[tuple[str, int], _Link] = {}
    for link in links:
        for side, parameters in (("first", link.sources), ("second", link.targets)):
            for parameter in parameters:
                other = found.setdefault((side, id(parameter)), link)
                ends = [[*map(id, one.sources + one.targets)] for one in (link, other)]
                if ends[0] != ends[1]:
                    raise UnsupportedOptimizer(
                        f"it is one parameter with {other.name} in the {side} model, and two in "
                        "the other, whose moments are not the same",
                        where=link.name,
                        remedy="begin with a new optimizer, or untie the two before training",
                    )
    return {key: link for (side, key), link in found.items() if side == "first"}


def _layer_links(name: str, before: nn.Module, after: nn.Module) -> list[_Link]:
    """Link the weight and the bias of a layer in two forms."""
    for layer in (before, after):
        if isinstance(layer, UnrolledLayer):
            raise _no_filters(name)
        if not _is_as_converted(layer):
            raise UnsupportedOptimizer(
                "its weight is not its own parameter: a tool has changed the layer",
                where=name,
                remedy="convert the model and the optimizer's state before the tool works on it, "
                "or take its change back first",
            )
    (w, b), (w2, b2) = _parameters(before), _parameters(after)
    computed = not w and not w2  # of parameters that have the same names in both
    sizes = ((), ()) if computed else (_size(before), _size(after))
    plain = nn.Linear in (type(before), type(after))  # a head: its weight is flattened
    same = w[0].numel() == w2[0].numel() if plain else sizes[0] == sizes[1]
    if not same or sum(p.numel() for p in b) != sum(p.numel() for p in b2):
        raise _not_the_same(name, "the layer has two sizes", *(size[0] for size in sizes))

    def weights(moments: list[Tensor]) -> list[Tensor]:
        if plain:
            return [moments[0].reshape(w2[0].shape)]
        return _from_matrix(after, _matrix(before, moments))

    def biases(moments: list[Tensor]) -> list[Tensor]:
        return list(torch.cat(moments).chunk(len(b2)))

    links = [] if computed else [_Link(f"{name}.weight", w, w2, weights)]
    return [*links, _Link(f"{name}.bias", b, b2, biases)] if b else links


def _is_as_converted(layer: nn.Module) -> bool:
    """Say whether a layer's parameters are those of the CONV layer, in any layout."""
    if not runs_own_forward(layer):
        return has_own_weights(layer)
    if isinstance(layer, PatchConv):
        return layer.holds_conv_weight() or layer.holds_computed_weight()
    return True


def _parameters(layer: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the parameters that hold a layer's weight and its bias: of every group, if split."""
    if isinstance(layer, HeadConv):
        layer = layer.layer
    parts = layer.children_fc if isinstance(layer, PatchConv) else [layer]
    if form_of(layer) == "weight":
        weights = [steps_of(layer).original]
    else:
        weights = [p for part in parts if (p := part._parameters.get("weight")) is not None]
    biases = [part._parameters.get("bias") for part in parts]
    return tuple(weights), tuple(b for b in biases if b is not None)


def _size(layer: nn.Module) -> tuple[Any, ...]:
    """Return the shape of a layer's CONV weight, and what else says how it is laid out."""
    weight_shape = layer.weight_shape if isinstance(layer, PatchConv) else layer.weight.shape
    return (tuple(weight_shape), *layout_of(layer).values())  # type: ignore[arg-type]


def _matrix(layer: nn.Module, moments: list[Tensor]) -> Tensor:
    """Return moments of a layer's weight as an FC matrix ``(f, k)``."""
    if isinstance(layer, PatchConv):
        return torch.cat(moments).flatten(0, -2)
    if form_of(layer) == "weight":
        return moments[0]
    return weight_to_matrix(moments[0], **layout_of(layer))


def _from_matrix(layer: nn.Module, matrix: Tensor) -> list[Tensor]:
    """Return an FC matrix ``(f, k)`` as the parameters of a layer's weight have it."""
    if isinstance(layer, PatchConv):
        if isinstance(layer.fc, GroupedLinear):
            return [matrix.unflatten(0, (layer.groups, -1))]
        return list(matrix.chunk(layer.groups))
    if form_of(layer) == "weight":
        return [matrix]
    shape: Any = layer.weight.shape
    return [matrix_to_weight(matrix, shape, **layout_of(layer))]


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _checked(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is the state dict of an optimizer."""
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise UnsupportedOptimizer(
            "this is neither an optimizer of PyTorch nor the state dict of one",
            where="optimizer",
            expected="a torch.optim.Optimizer, or a dict with 'state' and 'param_groups'",
            got=type(state).__name__,
            remedy="a checkpoint holds it under a key of its own, such as checkpoint['optimizer']",
        )
    return state


def _optimized(groups: Sequence[Mapping[str, Any]], model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a state dict, which only counts them, belongs to."""
    if all("param_names" in group for group in groups):
        named = _named(model)
        names = [name for group in groups for name in group["param_names"]]
        unknown = [name for name in names if name not in named]
        if unknown:
            raise _foreign(f"the parameter {unknown[0]}")
        return [named[name] for name in names]
    parameters = list(model.parameters())
    count = sum(len(group["params"]) for group in groups)
    if len(groups) > 1 or count != len(parameters):
        raise UnsupportedOptimizer(
            "a state dict only counts the parameters, and it is not clear which it means",
            where="optimizer",
            expected=f"one group of the {len(parameters)} parameters of the first model",
            got=f"{count} parameters in {len(groups)} group{'s' * (len(groups) != 1)}",
            remedy="load it into an optimizer of the first model and give that, "
            "convert_optimizer_state(optimizer, before, after)",
        )
    return parameters


def _foreign(what: str) -> UnsupportedOptimizer:
    return UnsupportedOptimizer(
        f"{what} is not a parameter of the first model",
        where="optimizer",
        remedy="give the model that the optimizer was built for, then the other one",
    )


def _no_filters(where: str) -> UnsupportedOptimizer:
    return UnsupportedOptimizer(
        "the unrolled form has a number per entry of a large matrix, each with moments of its "
        "own, where a filter has one",
        where=where,
        remedy="convert to the patch or the weight form, or begin with a new optimizer",
    )


def _not_the_same(where: str, what: str, *sizes: object) -> UnsupportedOptimizer:
    expected, got = sizes or (None, None)
    return UnsupportedOptimizer(
        what,
        where=where,
        expected=expected,
        got=got,
        remedy="give a model and what convfc.to_fc or convfc.to_conv made of it",
    )
