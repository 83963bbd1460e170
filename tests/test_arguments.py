"""A wrong argument of any public function is an `ArgumentError` that names the argument."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from inspect import isfunction, signature
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convfc
from convfc.errors import ArgumentError, UnsupportedModel
from convfc.methods import morphism, spectrum, uncertainty

CONV = nn.Conv2d(2, 4, 3, padding=1)
FILTERS = np.ones((4, 3, 3, 2))
LINEAR = nn.Linear(3, 2)
X = torch.ones(1, 2, 6, 6)
NETWORK = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
BOUND = spectrum.lipschitz_bound(NETWORK, X)


def network(of: Callable[..., Any], name: str, **arguments: Any) -> Callable[[], Any]:
    """Return the call of a morph on a layer of the network."""
    return lambda: of(NETWORK, name, example=X, **arguments)


WRONG: dict[str, list[tuple[Callable[[], Any], str]]] = {
    "as_conv1d": [(lambda: convfc.as_conv1d(FILTERS, (6, 6)), "geometry: filters alone")],
    "conv_matrix": [
        (lambda: convfc.conv_matrix(CONV, (6, 6), layout="coo"), "layout: no such"),
        (lambda: convfc.conv_matrix(CONV, (6, 6), order="last"), "order: no such"),
        (lambda: convfc.conv_matrix(CONV, (6, 6), GEOMETRY), "geometry: only filters are given"),
    ],
    "conv_offset": [(lambda: convfc.conv_offset(CONV, (6, 6), library="jax"), "library: no such")],
    "conv_operator": [(lambda: convfc.conv_operator(CONV, (6, 6), order="last"), "order: no such")],
    "explore": [(lambda: convfc.explore(x=X), "x: there is no layer that it belongs to")],
    "matrix_estimate": [
        (lambda: convfc.matrix_estimate(CONV, (6, 6), layout="coo"), "layout: no such"),
    ],
    "nearest_conv": [
        (
            lambda: convfc.nearest_conv(np.ones((4, 6)), GEOMETRY, (6,), order="last"),
            "order: no such",
        )
    ],
    "singular_values": [
        (lambda: convfc.singular_values(CONV, (6, 6), k=0), "k: a size is too small"),
        (lambda: convfc.singular_values(CONV, (6, 6), k=145), "k: the layer has fewer"),
        (lambda: convfc.singular_values(CONV, (6, 6), tolerance=2.0), "tolerance: no"),
        (lambda: convfc.singular_values(CONV, (6, 6), which="all"), "which: no such"),
    ],
    "spectral_norm": [
        (lambda: spectrum.spectral_norm(CONV, (6, 6), steps=0), "steps: a size is too small"),
    ],
    "condition_number": [
        (lambda: spectrum.condition_number(CONV, (6, 6), boundary=1), "boundary: no such"),
    ],
    "effective_rank": [
        (lambda: spectrum.effective_rank(CONV, (6, 6), boundary=1), "boundary: no such"),
    ],
    "layer_spectra": [
        (lambda: spectrum.layer_spectra(NETWORK, X, boundary=1), "boundary: no such"),
        (lambda: spectrum.layer_spectra(NETWORK, X, k=0), "k: a size is too small"),
    ],
    "to_fc": [
        (lambda: convfc.to_fc(CONV, form="fc"), "form: there is no such form"),
        (lambda: convfc.to_fc(CONV, inplace=True), "inplace: the model is itself the CONV layer"),
        (lambda: convfc.to_fc(CONV, form="unrolled"), "form: .*is made by convfc.unroll$"),
        (lambda: convfc.to_fc(CONV, groups="apart"), "groups: there is no such way to hold groups"),
    ],
    "simplify": [
        (lambda: convfc.simplify(CONV, X, max_pool="mean"), "max_pool: no such choice"),
    ],
    "to_conv": [
        (
            lambda: convfc.to_conv(convfc.to_fc(CONV), inplace=True),
            "inplace: the model is itself the FC layer",
        ),
        (
            lambda: convfc.to_conv(convfc.simplify(NETWORK, X), inplace=True),
            "inplace: a simplified network goes back as a whole",
        ),
    ],
    "deepen": [
        (network(morphism.deepen, "0", kernel_size=2), "kernel_size: an even kernel"),
        (network(morphism.deepen, "0", activation=nn.Softmax(1)), "activation: Softmax"),
    ],
    "factor": [
        (network(morphism.factor, "0"), "rank, energy: a factorisation"),
        (network(morphism.factor, "0", rank=2.5), "rank: a size is not an integer"),
        (network(morphism.factor, "0", rank=5), "rank: the filter matrix has no such rank"),
        (network(morphism.factor, "0", energy=2), "energy: a number out of its range"),
    ],
    "morph_activation": [
        (network(morphism.morph_activation, "0", activation=nn.Softmax(1)), "activation: Softmax"),
    ],
    "morph_depth": [
        (network(morphism.morph_depth, "0", activation="relu"), "activation: no such choice"),
        (network(morphism.morph_depth, "0", channels=1), "0: so few channels between"),
        (network(morphism.morph_depth, "0", kernel_sizes=3), "kernel_sizes: two layers have two"),
        (network(morphism.morph_depth, "0", kernel_sizes=(1, 1)), "kernel_sizes: no chain of ker"),
        (network(morphism.morph_depth, "3", kernel_sizes=(3, 1)), r"kernel_sizes.* has no kernel"),
    ],
    "morph_kernel": [
        (network(morphism.morph_kernel, "0", kernel_size=1), "kernel_size: a kernel cannot"),
    ],
    "morph_subnet": [
        (network(morphism.morph_subnet, "0"), "layers, branches|a sub-network is either"),
        (network(morphism.morph_subnet, "0", layers=3), "layers: this is not a chain of layers"),
        (network(morphism.morph_subnet, "0", branches=[[(1, None)]]), "no chain of kernels"),
        (network(morphism.morph_subnet, "0", branches=[[(3, None)]] * 33), "too many branches"),
    ],
    "widen": [
        (network(morphism.widen, "0"), "width: the new width is one number"),
        (network(morphism.widen, "0", width=2.5), "width: a size is not an integer"),
        (network(morphism.widen, "0", width=2), "0, width: a layer can only become wider"),
        (network(morphism.widen, "0", factor=0.5), "factor: a number out of its range"),
        (network(morphism.widen, "0", width=8, how="clone"), "how: there is no such way"),
        (network(morphism.widen, "0", width=8, how="zero", noise=0.1), "noise: new units without"),
    ],
    "to_bayesian": [
        (lambda: uncertainty.to_bayesian(NETWORK, "laplace"), "method: no such choice"),
        (lambda: uncertainty.to_bayesian(NETWORK, "dropout", prior=1.0), "dropout has no option"),
    ],
    "DropoutLinear": [(lambda: uncertainty.DropoutLinear(LINEAR, rate=2.0), "rate: a number out")],
    "ConcreteDropoutLinear": [
        (lambda: uncertainty.ConcreteDropoutLinear(LINEAR, rate=2.0), "rate: a number"),
    ],
    "GaussianLinear": [
        (lambda: uncertainty.GaussianLinear(LINEAR, initial_std=0.0), "initial_std: a number out"),
    ],
    "verify_bound": [
        (lambda: spectrum.verify_bound(NETWORK, BOUND, X, steps=0), "steps: a size is too small"),
    ],
    "register_layer": [(lambda: convfc.register_layer(CONV, dict), "cls: only a class")],
    "predict": [
        (lambda: uncertainty.predict(NETWORK, X, samples=0), "samples: a size is too small"),
        (lambda: uncertainty.predict(NETWORK, X, output="odds"), "output: no such choice"),
    ],
    "calibration": [
        (lambda: uncertainty.calibration([[0.9, 0.1]], [0], bins=0), "bins: a size is too small"),
    ],
}
GEOMETRY = convfc.ConvGeometry(1, 1, (3,))
ELSEWHERE = {
    "arrays and geometries, which have errors of their own": {
        *("ConvGeometry", "ConvLayer", "IndexMap", "col2im", "conv_as_matmul", "im2col"),
        *("filters_to_matrix", "matrix_to_filters", "patch_product", "rows_to_output", "index_map"),
        *("accuracy", "brier_score", "negative_log_likelihood", "out_of_distribution_auroc"),
    },
    "models and layers alone": {
        *("convert_optimizer_state", "inspect", "to_fully_convolutional", "unroll", "verify"),
        *("kl", "learned_rates", "lipschitz_bound", "mean_network", "norm_bounds", "sample"),
    },
    "results, which nobody but convfc makes": {
        *(
            "Certificate",
            "Inspection",
            "Calibration",
            "Prediction",
            "RegressionPrediction",
            "LayerSpectrum",
            "Morph",
        ),
        *("SingularValues", "Factored", "IdentityStart", "ParallelSum", "RandomLinear"),
        *("LipschitzBound", "LipschitzCertificate", "NormBounds"),
        "reliability_figure",
    },
}
CALLS = {
    f"{name}-{number}": call for name, calls in WRONG.items() for number, call in enumerate(calls)
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_a_wrong_argument_is_an_argument_error(call: Callable[[], Any], message: str):
    with pytest.raises(ArgumentError, match=message) as caught:
        call()
    assert type(caught.value) is ArgumentError
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 (ours)


GIVEN: dict[str, Any] = {
    "bound": BOUND,
    "example": X,
    "input_size": (6, 6),
    "kernel_size": 5,
    "method": "dropout",
    "name": "0",
    "rank": 2,
    "width": 8,
    "x": X,
}
"""What a function of the methods is given behind its model."""
OTHERS = {"None": None, "a class": nn.Conv2d, "weights": NETWORK.state_dict()}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("face", [morphism, spectrum, uncertainty], ids=lambda f: f.__name__)
def test_what_is_no_model_is_refused_by_every_method(face: ModuleType, other: str):
    functions = [
        (function, [*signature(function).parameters.values()])
        for function in (getattr(face, name) for name in face.__all__)
        if isfunction(function)
    ]
    of_models = [(f, rest) for f, (first, *rest) in functions if first.name in {"model", "layer"}]
    assert len(of_models) >= 5
    for function, rest in of_models:
        arguments = {one.name: GIVEN[one.name] for one in rest if one.name in GIVEN}
        with pytest.raises(UnsupportedModel, match=r"^(model|layer): this is (not|for) "):
            function(OTHERS[other], **arguments)


def test_every_public_function_is_called_with_a_wrong_argument():
    faces = (convfc, morphism, spectrum, uncertainty)
    public = {name for face in faces for name in face.__all__ if not name.startswith("_")}
    assert public == WRONG.keys() | set().union(*ELSEWHERE.values())
    assert not WRONG.keys() & set().union(*ELSEWHERE.values())
