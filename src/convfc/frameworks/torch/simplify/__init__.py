"""A whole CONV network as a plain MLP: FC layers and activations, nothing else.

============== ==================================================================================
`reading`      the traced forward (`running`) as values (`ir`); `calls`, `maps`, `activations`,
               `pooling` say what each layer and function does to a value
`merge`        neighbouring affine maps multiplied
`carry`        branches in one sequence
`emit`         the modules
`record`       what the result remembers
`back`         the CONV network again; `solving` finds the weights that have changed
`stages`       both networks side by side, for a certificate
============== ==================================================================================
"""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from convfc.frameworks.torch.simplify import emit
from convfc.frameworks.torch.simplify.back import restore
from convfc.frameworks.torch.simplify.reading import MaxPool
from convfc.frameworks.torch.simplify.record import (
    Branches,
    Options,
    Simplified,
    attach,
    like,
    plan,
    record_of,
    remember,
)
from convfc.sizes import one_of

__all__ = ["Simplified", "record_of", "restore", "simplify"]


def simplify(
    model: nn.Module,
    example: tuple[Any, ...],
    *,
    max_pool: MaxPool = "keep",
    branches: Branches = "add",
    sparse: bool = False,
    memory: float | None = None,
) -> nn.Module:
    """Return a CONV network as a plain MLP that computes the same function.

    CONV layers (all of them), ``nn.Linear``, BatchNorm, average and global pooling, padding,
    flattening, permuting, concatenation, slicing, sums and products with constants are matrices;
    neighbouring ones are multiplied. ReLU stays; ReLU6, Hardtanh, LeakyReLU, PReLU, Hardsigmoid,
    ``clamp`` and ``abs`` are written with ReLU. Dropout and Identity are gone. Sigmoid, Tanh, GELU
    and their like stay as modules. What it computes is the model in evaluation mode.

    Products are computed in float64 and rounded to the model's dtype once; where nothing is
    multiplied, the weights have the same bits.

    Parameters
    ----------
    model : nn.Module
        It is not changed. `torch.fx` has to be able to trace it.
    example : tuple
        The arguments of one call: one tensor ``(n, *shape)``, n >= 1. The result is for this
        shape, and any n.
    max_pool : {"keep", "relu"}
        Whether max-pooling stays a module, between ``Unflatten`` and ``Flatten``, or is written
        with ReLU: max(a, b) = a + relu(b - a), for each window as a tree of pairs.
    branches : {"add", "carry"}
        ``"add"``: if the network branches, the result is a `torch.fx.GraphModule` of the modules,
        and additions. ``"carry"``: always one ``nn.Sequential``; what is needed behind a ReLU is
        carried through it, unchanged if it cannot be negative, else as relu(v) - relu(-v).
    sparse : bool
        Whether the weights are sparse tensors (compressed rows); they are almost all zeros.
    memory : float, optional
        Bytes that the weights may take, and in float64 the matrices of all layers that they are
        made of; by default what the machine has free.

    Returns
    -------
    nn.Module
        Its FC layers are exactly ``nn.Linear``, its ReLUs ``nn.ReLU``. It takes what the model
        takes: it begins with an ``nn.Flatten`` unless the example is ``(n, features)``, and ends
        with an ``nn.Unflatten`` unless the output is. A tool that reads ``Linear`` and ``ReLU``
        only is given a model for flat inputs, ``nn.Sequential(nn.Unflatten(1, shape), model)``.

    Raises
    ------
    UnsupportedLayer, UnsupportedModel
        If a part is neither affine nor an activation, or is in training mode where that makes a
        difference; the message names it.
    MemoryBudgetError
        If the matrices do not fit: told before the first is made, by the layers' sizes, and before
        neighbours are multiplied, by what the dense weights take at least.

    Notes
    -----
    An infinity or a NaN in the input spreads further than in the original, since 0 * inf is NaN.

    Examples
    --------
    >>> import torch
    >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    >>> x = torch.randint(-9, 10, (2, 1, 6, 6)).float()
    >>> mlp = simplify(nn.Sequential(*cnn, nn.Linear(16, 10)), (x,))
    >>> [type(part).__name__ for part in mlp]
    ['Flatten', 'Linear', 'ReLU', 'Linear']
    >>> mlp[1].weight.shape, mlp[3].weight.shape
    (torch.Size([64, 36]), torch.Size([10, 64]))
    """
    for name, value, kind in (("max_pool", max_pool, MaxPool), ("branches", branches, Branches)):
        one_of(name, value, get_args(kind), what="there is no such way", remedy=None)
    options = Options(max_pool, branches, sparse)
    found = plan(model, example, options, memory, to_be_made=True)
    one = like(model, example[0])
    emit.check_memory(found.final, one.dtype, sparse_weights=sparse, memory=memory)
    made = emit.emit(found.final, dtype=one.dtype, device=one.device, sparse_weights=sparse)
    attach(made.module, remember(model, example[0], one.dtype, options))
    return made.module.train(model.training)
