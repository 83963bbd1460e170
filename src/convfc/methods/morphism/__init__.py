"""Network morphism: other layers, the same function; on CONV layers because each is an FC layer.

What works on a layer of a model, and on the graph of a model, lives in the PyTorch room; what needs
no more than `to_fc`, an FC method and `to_conv` stands here, as `factor` does.

Sources: Net2Net (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) and Network Morphism (Wei, Wang,
Rui & Chen 2016, arXiv 1603.01670).
"""

from convfc.extras import needing

with needing():
    from convfc.frameworks.torch.morphism.certify import Change
    from convfc.frameworks.torch.morphism.identity import IdentityStart, deepen, morph_activation
    from convfc.frameworks.torch.morphism.kernels import (
        ParallelSum,
        morph_depth,
        morph_kernel,
        morph_subnet,
    )
    from convfc.frameworks.torch.morphism.target import Morph, finish
    from convfc.frameworks.torch.morphism.widening import widen
    from convfc.methods.morphism.factoring import Factored, factor

__all__ = [
    "Change",
    "Factored",
    "IdentityStart",
    "Morph",
    "ParallelSum",
    "deepen",
    "factor",
    "finish",
    "morph_activation",
    "morph_depth",
    "morph_kernel",
    "morph_subnet",
    "widen",
]
