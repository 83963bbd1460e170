"""PyTorch's room: reads, builds and replaces its layers. Only this room imports torch."""

from __future__ import annotations

from torch import nn

from convfc.frameworks.torch.inspect import inspect
from convfc.frameworks.torch.layers import PatchConv
from convfc.frameworks.torch.restore import to_conv
from convfc.frameworks.torch.rewrite import to_fc
from convfc.frameworks.torch.verify import verify

__all__ = ["PatchConv", "inspect", "owns", "to_conv", "to_fc", "verify"]


def owns(model: object) -> bool:
    """Say whether a model is PyTorch's.

    Examples
    --------
    >>> owns(nn.ReLU())
    True
    """
    return isinstance(model, nn.Module)
