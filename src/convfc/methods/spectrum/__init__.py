"""The singular values of a CONV layer: of the linear map that it is, not of its reshaped kernel.

============== ==================================================================================
`singular`     ``singular_values`` and what follows from them
`ways`         the ways to them, and which of them is taken
`values`       `SingularValues`: the values, how they were obtained, how far they may be off
`structure`    what the index map says: windows that do not overlap, operators that are periodic
`fourier`      all values of a periodic operator, one small matrix per frequency
`direct`       all values by LAPACK: of K where windows do not overlap, else of the whole matrix
`iterative`    the largest or smallest few, without a matrix
`blas`         one thread for BLAS on small matrices
`models`       every layer of a model, at the size that it sees
`figure`       the distribution of the values, drawn
============== ==================================================================================
"""

from convfc.methods.spectrum.models import LayerSpectrum, layer_spectra
from convfc.methods.spectrum.singular import (
    condition_number,
    effective_rank,
    singular_values,
    spectral_norm,
)
from convfc.methods.spectrum.values import SingularValues

__all__ = [
    "LayerSpectrum",
    "SingularValues",
    "condition_number",
    "effective_rank",
    "layer_spectra",
    "singular_values",
    "spectral_norm",
]
