"""The singular values of a CONV layer: of the linear map that it is, not of its reshaped kernel.

============== ==================================================================================
`singular`     ``singular_values``, which way it takes, and what follows from them
`algorithms`   the ways: K where windows do not overlap, Fourier, LAPACK, iterations
`models`       every layer of a model, at the size that it sees
`figure`       the distribution of the values, drawn
`lipschitz`    PyTorch layers held to norm 1, and a bound for a network
============== ==================================================================================
"""

from typing import TYPE_CHECKING, Any

from convfc.methods.spectrum.models import LayerSpectrum, layer_spectra
from convfc.methods.spectrum.singular import (
    SingularValues,
    condition_number,
    effective_rank,
    singular_values,
)

if TYPE_CHECKING:
    from convfc.methods.spectrum.lipschitz import LipschitzBound, lipschitz_bound, spectral_norm

__all__ = [
    "LayerSpectrum",
    "LipschitzBound",
    "SingularValues",
    "condition_number",
    "effective_rank",
    "layer_spectra",
    "lipschitz_bound",
    "singular_values",
    "spectral_norm",
]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from convfc.methods.spectrum import lipschitz

    return getattr(lipschitz, name)
