"""The singular values of a CONV layer: of the linear map that it is, not of its reshaped kernel.

============== ==================================================================================
`singular`     ``singular_values``, which way it takes, and what follows from them
`algorithms`   the ways: K where windows do not overlap, Fourier, LAPACK, iterations
`models`       every layer of a model, at the size that it sees
`figure`       the distribution of the values, drawn
============== ==================================================================================
"""

from convfc.methods.spectrum.models import LayerSpectrum, layer_spectra
from convfc.methods.spectrum.singular import (
    SingularValues,
    condition_number,
    effective_rank,
    singular_values,
    spectral_norm,
)

__all__ = [
    "LayerSpectrum",
    "SingularValues",
    "condition_number",
    "effective_rank",
    "layer_spectra",
    "singular_values",
    "spectral_norm",
]
