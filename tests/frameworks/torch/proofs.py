"""What the tests of verify share: what a proof is."""

from __future__ import annotations

from convfc.certificate import Certificate, LayerCertificate

QUANTITIES = {"output", "input", "weight", "bias"}


def only(certificate: Certificate) -> LayerCertificate:
    (layer,) = certificate.layers
    return layer


def assert_proven(certificate: Certificate) -> None:
    """It holds, and not because nothing was compared."""
    assert certificate.holds, str(certificate)
    for layer in certificate.layers:
        biased = len(layer.weights) == 2
        quantities = QUANTITIES if biased else QUANTITIES - {"bias"}
        assert layer.own.keys() == layer.float64.keys() == quantities
        assert layer.exact.identical is True
        for comparison in layer.float64.values():
            assert comparison.dtype == "float64"
            assert comparison.ratio is not None
            assert comparison.ratio <= 1
    for output in certificate.network.outputs:
        assert output.float64 is not None
        assert output.rounding is not None
