"""The singular values of a CONV layer: of the linear map that it is, not of its reshaped kernel.

============== ==================================================================================
`singular`     ``singular_values``, which way it takes, and what follows from them
`algorithms`   the ways: K where windows do not overlap, Fourier, LAPACK, iterations
`models`       every layer of a model, at the size that it sees
`figure`       the distribution of the values, drawn
`bounds`       the norm from below and from above, each proven; sums that are rounded upwards
`lipschitz`    PyTorch layers held to norm 1
`rules`        how far each operation of a network of PyTorch stretches at most
`networks`     a Lipschitz bound of a whole network, and the radius that it certifies
`verified`     its certificate: stretches that are measured, none above the bound
============== ==================================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from convfc.methods.spectrum.bounds import NormBounds, norm_bounds
from convfc.methods.spectrum.models import LayerSpectrum, layer_spectra
from convfc.methods.spectrum.singular import (
    SingularValues,
    condition_number,
    effective_rank,
    singular_values,
)

if TYPE_CHECKING:
    from convfc.methods.spectrum.lipschitz import spectral_norm
    from convfc.methods.spectrum.networks import LipschitzBound, lipschitz_bound
    from convfc.methods.spectrum.verified import LipschitzCertificate, verify_bound

__all__ = [
    "LayerSpectrum",
    "LipschitzBound",
    "LipschitzCertificate",
    "NormBounds",
    "SingularValues",
    "condition_number",
    "effective_rank",
    "layer_spectra",
    "lipschitz_bound",
    "norm_bounds",
    "singular_values",
    "spectral_norm",
    "verify_bound",
]

_TORCH = {
    **{"LipschitzBound": "networks", "lipschitz_bound": "networks", "spectral_norm": "lipschitz"},
    **{"LipschitzCertificate": "verified", "verify_bound": "verified"},
}
"""What needs PyTorch, and where it is."""


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is first asked for."""
    if name not in _TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_TORCH[name]}"), name)
