"""Network morphism: other layers, the same function; on CONV layers because each is an FC layer.

============== ==================================================================================
`morph`        `Morph`: what every morph returns
`certify`      its certificate, change by change; how large the sums are is in `magnitude`
`widen`        more filters, or units: which copy which is in `mapping`
`reading`      who makes and who reads the units of a model: spaces of `channels`, with `moves`
               and `operations`
`fclayer`      rows and columns of a layer's FC matrix
============== ==================================================================================

Sources: Net2Net (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) and Network Morphism (Wei, Wang,
Rui & Chen 2016, arXiv 1603.01670).
"""

from convfc.methods.morphism.morph import Change, Morph, finish
from convfc.methods.morphism.widen import widen

__all__ = ["Change", "Morph", "finish", "widen"]
