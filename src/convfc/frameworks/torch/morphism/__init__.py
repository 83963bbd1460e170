"""Network morphism: other layers, the same function; on CONV layers because each is an FC layer.

Sources: Net2Net (Chen, Goodfellow & Shlens 2015, arXiv 1511.05641) and Network Morphism (Wei, Wang,
Rui & Chen 2016, arXiv 1603.01670).
"""
