"""PyTorch's room: reads, builds and replaces its layers. Only this room imports torch.

CONTRIBUTING.md has the plan of its files and rooms.
"""

from __future__ import annotations

from convfc.extras import needing

with needing():
    import torch as _torch  # noqa: F401 (where it is missing, the error names the extra)

from convfc.frameworks.torch.export import fc_decompositions
from convfc.frameworks.torch.forms.grouped import GroupedLinear
from convfc.frameworks.torch.forms.patch import PatchConv

__all__ = ["GroupedLinear", "PatchConv", "fc_decompositions"]
