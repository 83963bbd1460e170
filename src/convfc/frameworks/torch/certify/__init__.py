"""verify for PyTorch: pairs of layers, their measures, and the networks as a whole."""
