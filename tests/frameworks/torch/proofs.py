"""What the tests of verify share: what a proof is, and in which dtypes."""

from __future__ import annotations

import pytest
import torch
from networks import Block, network

from convfc.certificate import Certificate, LayerCertificate

__all__ = ["DTYPES", "MARKS", "Block", "assert_proven", "network", "only"]

MARKS = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]
QUANTITIES = {"output", "input", "weight", "bias"}
DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def only(certificate: Certificate) -> LayerCertificate:
    (layer,) = certificate.layers
    return layer


def assert_proven(certificate: Certificate, *, dtype: torch.dtype = torch.float32) -> None:
    """It holds, and not because nothing was compared."""
    assert certificate.holds, str(certificate)
    for layer in certificate.layers:
        biased = len(layer.weights) == 2
        quantities = QUANTITIES if biased else QUANTITIES - {"bias"}
        assert layer.own.keys() == layer.float64.keys() == quantities
        assert layer.exact.identical is True
        for comparison in layer.float64.values():
            assert comparison.dtype == ("complex128" if dtype.is_complex else "float64")
            assert comparison.ratio is not None
            assert comparison.ratio <= 1
    for output in certificate.network.outputs:
        assert output.float64 is not None
        assert output.rounding is not None
