"""A simplified network in a certificate: stage by stage, since its layers are products of layers.

Nothing in it stands for one CONV layer. So it is compared where both networks have the same value:
each stage on the input that it really receives, against the a-priori bound of its products
(`stages`). And it is made again from the first network, in float64: the two have to be the same
modules, with the same numbers once these are rounded to its dtype, and the one in float64 has to
compute what the first network computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from convfc.certificate import Comparison, ExactTest, LayerCertificate, NetworkCertificate
from convfc.errors import ConvfcError, ShapeError
from convfc.frameworks.torch.certify.networks import Runner, compare_networks
from convfc.frameworks.torch.certify.pairs import Pairs, cast
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplify import Simplified, record_of, simplify
from convfc.frameworks.torch.simplify.stages import Stage, stages
from convfc.frameworks.torch.tensors import (
    compare,
    describe,
    dtype_name,
    not_finite,
    overflows,
    same_bits,
    wide,
    words,
)
from convfc.rounding import rounding_bound

__all__ = [
    "certify_simplified",
    "made_again",
    "other_parts",
    "runs_in_double",
    "simplified_record",
    "stage_certificates",
]

_NO_INTEGERS = "the weights of several layers are multiplied, with normalisation among them"
_NOTE = (
    "the simplified network's layers are products of layers: compared are the outputs of its "
    "stages, each on the first network's own values, and its numbers with those that it gets when "
    "it is made again from the first network {how}; there is no test of gradients or integers"
)
_IN_DOUBLE = "in float64, which is the one that the network's line compares in float64"
_OWN_DTYPE = "in its own dtype, since that one cannot run in float64"


def simplified_record(before: nn.Module, after: nn.Module) -> Simplified | None:
    """Return the record of the second network, if it alone is a simplified one."""
    return None if record_of(before) is not None else record_of(after)


def certify_simplified(
    before: nn.Module, after: nn.Module, run: Runner, *, backwards: bool = False
) -> tuple[list[LayerCertificate], NetworkCertificate]:
    """Compare a network and what it was simplified to: stages, numbers, outputs.

    Parameters
    ----------
    before, after : nn.Module
    run : Runner
        Of both networks.
    backwards : bool
        Whether they were given the other way round; a note says so.

    Returns
    -------
    tuple
        A certificate per stage, and the network's.
    """
    given = [*run.args, *run.kwargs.values()]
    x = given[0] if len(given) == 1 else None
    # What has no float64, since it makes constants of its own dtype, is said of the network.
    double = runs_in_double(before, run)
    layers, errors = stage_certificates(before, after, x, double=double)
    record = record_of(after)
    assert record is not None, "asked before"  # noqa: S101
    exact = after
    if not errors and isinstance(x, Tensor):
        try:
            exact = made_again(before, record, x, double=double)
            errors += other_parts(exact, after)
        except (ConvfcError, RuntimeError) as error:
            errors.append(f"it cannot be made again; expected a network, got {words(error)}")
    ours = run(before)
    network = compare_networks(before, after, ours, Pairs(), run, again=(exact, errors))
    note = _NOTE.format(how=_IN_DOUBLE if double else _OWN_DTYPE)
    notes = (note, *(("compared in the other direction",) if backwards else ()))
    return layers, replace(network, notes=(*network.notes, *notes))


def runs_in_double(model: nn.Module, run: Runner) -> bool:
    """Say whether a network can be run in float64."""
    try:
        run(model, wide)
    except ShapeError:
        return False
    return True


def stage_certificates(
    before: nn.Module, after: nn.Module, x: Any, *, double: bool = True
) -> tuple[list[LayerCertificate], list[str]]:
    """Compare a network and what it was simplified to, stage by stage.

    Parameters
    ----------
    before, after : nn.Module
        They are run as they are, in evaluation mode.
    x : Tensor
    double : bool
        Whether the first network runs in float64, in which they are compared, too.

    Returns
    -------
    tuple
        A certificate per stage; and errors, in words.
    """
    if not isinstance(x, Tensor):
        return [], ["its input; expected one tensor, which a simplified network takes, got more"]
    dtype = x.dtype
    try:
        own = list(stages(before, after, x))
        again: Sequence[Stage | None] = own
        if wide(x[:0]).dtype != dtype:
            again = [None] * len(own)
            if double:
                first, second = (cast(deep_copy(model), wide) for model in (before, after))
                again = list(stages(first, second, wide(x)))
    except (ConvfcError, RuntimeError) as error:
        return [], [f"its stages fail; expected outputs, got {words(error)}"]
    pairs = zip(own, again, strict=True)
    return [_certificate(one, other, dtype) for one, other in pairs], []


def _certificate(own: Stage, double: Stage | None, dtype: torch.dtype) -> LayerCertificate:
    first, last = own.layers[:1], own.layers[1:][-1:]
    errors = [
        f"its output; expected {describe(stage.before)}, got {describe(stage.after)}"
        for stage in (own, double)
        if stage is not None and describe(stage.before) != describe(stage.after)
    ]
    unbounded = not_finite("input, or a weight,", own.magnitude, "give finite ones of both")
    errors += [unbounded] if unbounded else []
    return LayerCertificate(
        name=own.name,
        forms=("stage", "Linear " + " to ".join((*first, *last)) if first else "stage"),
        dtype=dtype_name(dtype),
        own={} if errors else {"output": _comparison(own, dtype)},
        float64={} if errors or double is None else {"output": _comparison(double, dtype)},
        exact=ExactTest(why_not=_NO_INTEGERS),
        errors=tuple(dict.fromkeys(errors)),
    )


def _comparison(stage: Stage, dtype: torch.dtype) -> Comparison:
    """Compare a stage; the bound is that of the dtype to which the weights were rounded."""
    bound = None
    if not overflows(stage.magnitude, dtype):
        bound = rounding_bound(stage.magnitude, stage.terms, dtype_name(dtype))
    bound = None if bound is None else bound.to(stage.before.device)
    result = compare(stage.before, stage.after, bound)
    return Comparison("output", dtype_name(stage.before.dtype), stage.terms, **result)


def made_again(
    before: nn.Module, record: Simplified, x: Tensor, *, double: bool = True
) -> nn.Module:
    """Return what a network is simplified to in float64 or, where it has none, in its own dtype.

    Raises
    ------
    ConvfcError
        If it cannot be simplified.
    """
    twin = deep_copy(before)
    options = record.options
    return simplify(
        cast(twin, wide) if double else twin,
        (wide(x) if double else x,),
        max_pool=options.max_pool,
        branches=options.branches,
        sparse=options.sparse,
    ).train(before.training)


def other_parts(again: nn.Module, after: nn.Module) -> Iterator[str]:
    """Yield, in words, what a simplified network has other than when it is made again."""
    ours, theirs = (
        {name: type(part).__name__ for name, part in model.named_modules() if name}
        for model in (again, after)
    )
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            yield f"{name}; expected {ours.get(name, 'none')}, got {theirs.get(name, 'none')}"
    if isinstance(again, fx.GraphModule) and getattr(after, "code", None) != again.code:
        yield "its forward; expected that of the same network made again, got another"
    numbers, found = (
        {name: p.detach().to_dense() for name, p in model.named_parameters()}
        for model in (again, after)
    )
    for name in numbers | found:
        mine, other = numbers.get(name), found.get(name)
        if mine is not None and other is not None:
            mine = mine.to(other.dtype)
        if mine is None or other is None or describe(mine) != describe(other):
            yield f"{name}; expected {describe(mine)}, got {describe(other)}"
        elif not same_bits(mine, other):
            result = compare(mine, other, None)
            yield (
                f"{name} at {list(result['index'])}; expected {result['before']}, got "
                f"{result['after']}"
            )
