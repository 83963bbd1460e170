"""A CONV layer of PyTorch as one matrix: reading it, and matrices that are tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from convfc.errors import UnsupportedLayer
from convfc.frameworks.torch.layers import PatchConv, is_conv_layer
from convfc.frameworks.torch.read import CONV_CLASSES, Obstacle, conv_layer, obstacle, own_forward
from convfc.layer import ConvLayer

__all__ = ["read_layer"]


def read_layer(
    module: nn.Module, input_size: Sequence[int], *, differentiable: bool = False
) -> ConvLayer:
    """Read a CONV layer in any form: native, patch or weight form, parametrized or not.

    Raises
    ------
    UnsupportedLayer
        If it is no CONV layer, has no size yet, or a forward of its own.

    Examples
    --------
    >>> read_layer(nn.Conv1d(2, 3, 5), (9,)).filters.shape
    torch.Size([3, 5, 2])
    """
    blocked = _unreadable(module)
    if blocked is not None:
        raise UnsupportedLayer(
            f"{blocked.reason}; it cannot be read as one convolution",
            where=type(module).__name__,
            expected="a Conv1d ... ConvTranspose3d of torch.nn, or a form that convfc gave it",
            remedy=blocked.remedy,
        )
    return conv_layer(module, input_size, differentiable=differentiable)


def _unreadable(module: nn.Module) -> Obstacle | None:
    if isinstance(module, PatchConv):
        return None
    if not is_conv_layer(module):
        return Obstacle("it is no CONV layer", "give one layer of the model, such as model.conv1")
    if not isinstance(module, CONV_CLASSES):
        return obstacle(module)
    return own_forward(module)
