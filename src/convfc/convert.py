"""The four verbs on whole models: to_fc, to_conv, verify, inspect.

Each finds the framework that owns the model and hands over to that framework's room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convfc.registry import room_of

if TYPE_CHECKING:
    from convfc.certificate import Certificate
    from convfc.inspection import Inspection

__all__ = ["inspect", "to_conv", "to_fc", "verify"]


def to_fc(
    model: Any,
    *,
    form: str = "patch",
    inplace: bool = False,
    where: Any = None,
    strict: bool = True,
    block_diagonal: bool = False,
) -> Any:
    """Return the model with its CONV layers as the FC layers that they equal (Section 4).

    Every ``Conv1d``, ``Conv2d``, ``Conv3d`` and their transposed kin, with every hyper-parameter.
    Nothing is converted wrongly or passed over in silence: what cannot be converted is refused by
    name. Hooks stay, shared layers stay shared, and state dicts of the original load into the
    result and the other way round.

    Parameters
    ----------
    model : torch.nn.Module
        A bare CONV layer counts as a model.
    form : {"patch", "weight"}
        ``"patch"``: the layer becomes a module whose child ``fc`` is exactly an ``nn.Linear``,
        called on the patch matrix ``(N, L, k)``: for tools that look for, hook or replace FC
        layers. ``"weight"``: the layer stays and runs the native convolution, but its parameter is
        the FC matrix ``(f, k)``: for tools that look at weights only, such as the optimizer Muon.
    inplace : bool
        Whether to change the given model instead of a copy.
    where : function, str or list of str, optional
        Which layers: a function of name and module, or names such as ``"layer4.*"``.
    strict : bool
        Whether to refuse a model with a convolution that cannot be converted. If False, such a
        convolution is left as it is, and all of them are listed in one `UnsupportedLayerWarning`.
    block_diagonal : bool
        With groups, one ``nn.Linear`` with a block-diagonal weight instead of one per group.

    Returns
    -------
    torch.nn.Module
        Of the same class, but for a bare CONV layer.

    Raises
    ------
    UnsupportedModel
        If no framework owns the model.
    UnsupportedLayer
        If strict, for a layer with a forward of its own, an uninitialised one, a functional
        convolution, TorchScript; the message says where, and what to do.
    NothingToConvert
        If ``where`` selects no CONV layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), nn.Flatten())
    >>> fc = to_fc(cnn)
    >>> type(fc[0].fc) is nn.Linear, fc[0].fc.weight.shape
    (True, torch.Size([8, 16]))
    >>> images = torch.randint(-9, 10, (2, 1, 28, 28)).float()
    >>> bool(((fc(images) - cnn(images)).abs() < 1e-4).all())
    True
    """
    return room_of(model).to_fc(
        model,
        form=form,
        inplace=inplace,
        where=where,
        strict=strict,
        block_diagonal=block_diagonal,
    )


def to_conv(
    model: Any,
    *,
    inplace: bool = False,
    where: Any = None,
    strict: bool = True,
    example: Any = None,
) -> Any:
    """Return the model with its FC forms as CONV layers again; also plain FC layers as CONV layers.

    Takes back what `to_fc` made, to the original classes and bit for bit, also after a tool has
    worked on the FC part: changed weights, a LoRA merged or not, a factored
    ``Sequential(Linear, Linear)`` (two CONV layers), a quantised Linear (dequantised).

    With ``example=``, plain ``nn.Linear`` layers that read a feature map become CONV layers too, a
    classifier's head behind ``Flatten`` included: a network trained on images of one size then runs
    on larger ones, and gives a map of scores. This is known from CS231n as "converting FC layers to
    CONV layers". Without padding (and without ``ceil_mode``) the map is the network slid over the
    image, at every position; with padding it is so away from the borders only.

    Parameters
    ----------
    model : torch.nn.Module
    inplace, where, strict
        As for `to_fc`.
    example : Tensor or tuple, optional
        An input of the size that the model was made for; a tuple holds several arguments.

    Returns
    -------
    torch.nn.Module
        A `PeftModel` is unloaded. A model whose own forward flattens the feature map becomes a
        `torch.fx.GraphModule` with the same parts and the same state dict keys.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer
        If something cannot be taken back; the message names it.
    NothingToConvert
        If the model holds no FC form and no example is given.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU())
    >>> back = to_conv(to_fc(cnn))
    >>> type(back[0]) is nn.Conv2d, torch.equal(back[0].weight, cnn[0].weight)
    (True, True)
    """
    return room_of(model).to_conv(
        model, inplace=inplace, where=where, strict=strict, example=example
    )


def verify(before: Any, after: Any, x: Any, *, seed: int = 0) -> Certificate:
    """Prove that two models compute the same function: measure, and compare with theory.

    For every converted layer, on the input that it really receives: the differences of outputs and
    of gradients against the a-priori rounding bound (Higham, *Accuracy and Stability*, chapter 3),
    the same in float64, and a test on integers that must agree to the bit. For the whole network:
    the difference in its own dtype and in float64.

    Parameters
    ----------
    before, after : torch.nn.Module
        Of the same framework, for instance a model and `to_fc` of it.
    x : Tensor, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.
    seed : int
        Of the random cotangents.

    Returns
    -------
    Certificate
        With ``.holds``, ``.layers``, ``.to_dict()``; printed, it is a table. Networks that differ
        raise nothing: the certificate says no.

    Raises
    ------
    UnsupportedModel
        If no framework owns one of the models.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU())
    >>> verify(cnn, to_fc(cnn), torch.randn(2, 1, 28, 28)).holds
    True
    """
    room = room_of(before, "before")
    room_of(after, "after")
    certificate: Certificate = room.verify(before, after, x, seed=seed)
    return certificate


def inspect(model: Any, x: Any = None) -> Inspection:
    """List every CONV layer of a model and the FC layer that it equals.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor, tuple or dict, optional
        An input, of tensors or arrays: with it, sizes, multiplications and bytes are known, and
        functional convolutions are found where they are called.

    Returns
    -------
    Inspection
        Printed, it is a table; ``.rows``, ``.totals`` and ``.to_dict()`` are the data.

    Raises
    ------
    UnsupportedModel
        If no framework owns the model.
    UnsupportedLayer
        If it is to be run, and holds layers that have not been initialised.
    ShapeError
        If it cannot be run on ``x``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> found = inspect(nn.Sequential(nn.Conv2d(1, 8, 4, stride=2)), torch.zeros(1, 1, 28, 28))
    >>> len(found.rows)
    1
    """
    inspection: Inspection = room_of(model).inspect(model, x)
    return inspection
