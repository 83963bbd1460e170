"""Network morphism: other layers, the same function; on CONV layers because each is an FC layer.

What works on a layer of a model, and on the graph of a model, lives in the PyTorch room; what needs
no more than `to_fc`, an FC method and `to_conv` stands here, as `factor` does.

Every morph is called as ``morph(model, name, example=x, ...)`` and returns a `Morph`: a new model
of the same class, with the same hooks, modes and ``requires_grad``, and a certificate.

- ``model``, an `nn.Module`, stays as it is.
- ``name`` is the place of a CONV or FC layer, empty for a model that is the layer itself.
- ``example`` is one input: a tuple holds several arguments, a dict keyword arguments. The model is
  run on it, in evaluation mode; it shows the shapes, and the certificate is made on it.
- ``seed`` is that of all random numbers; the global generators stay as they are.

They raise `NothingToConvert` if no part has this name, `UnsupportedLayer` if it is not a layer that
can be morphed, `DtypeError` if its weight is complex, `ShapeError` if the model does not run on the
example, and `ArgumentError` for an option without meaning, each before anything is changed.

Sources: Net2Net (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) and Network Morphism (Wei, Wang,
Rui & Chen 2016, arXiv 1603.01670).
"""

from convfc.extras import needing

with needing():
    from convfc.frameworks.torch.morphism.certify import Morph
    from convfc.frameworks.torch.morphism.identity import IdentityStart, deepen, morph_activation
    from convfc.frameworks.torch.morphism.kernels import (
        ParallelSum,
        morph_depth,
        morph_kernel,
        morph_subnet,
    )
    from convfc.frameworks.torch.morphism.widening import widen
    from convfc.methods.morphism.factoring import Factored, factor

__all__ = [
    "Factored",
    "IdentityStart",
    "Morph",
    "ParallelSum",
    "deepen",
    "factor",
    "morph_activation",
    "morph_depth",
    "morph_kernel",
    "morph_subnet",
    "widen",
]
