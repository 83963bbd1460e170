"""Network morphism: other layers, the same function; on CONV layers because each is an FC layer.

============== ==================================================================================
`morph`        `Morph`: what every morph returns
`certify`      its certificate, change by change; how large the sums are is in `magnitude`
`deepening`    a layer more that starts as the identity; what comes next, in `following`
`depth`        two layers whose composition is one; the linear algebra, in `products`
`kernel`       a larger kernel
`activation`   activations that start as the identity, and that learn how strong they are
`subnet`       a chain of layers, or branches that are added up, for one layer
`factoring`    low rank, the inverse move
`site`         the place in a model where these six work, and `taps`, the layer as numbers
`widening`     more filters, or units: which copy which is in `mapping`, what follows in `plan`
`reading`      who makes and who reads the units of a model: the spaces of `channels`, through the
               operations of `moves` and `operations`, in the graph of `tracing`
`fclayer`      rows and columns of a layer's FC matrix
============== ==================================================================================

Sources: Net2Net (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) and Network Morphism (Wei, Wang,
Rui & Chen 2016, arXiv 1603.01670).
"""

from convfc.extras import needing

with needing():
    from convfc.methods.morphism.activation import IdentityStart, morph_activation
    from convfc.methods.morphism.deepening import deepen
    from convfc.methods.morphism.depth import morph_depth
    from convfc.methods.morphism.factoring import Factored, factor
    from convfc.methods.morphism.kernel import morph_kernel
    from convfc.methods.morphism.morph import Change, Morph, finish
    from convfc.methods.morphism.subnet import ParallelSum, morph_subnet
    from convfc.methods.morphism.widening import widen

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
