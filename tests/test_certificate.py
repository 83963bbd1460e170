"""The certificate without a framework: the bound, what makes a verdict, and how it is told."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from fractions import Fraction
from typing import Any

import bounds
import numpy as np
import pytest
from rich.console import Console

from convfc.certificate import (
    Certificate,
    Comparison,
    ExactTest,
    LayerCertificate,
    NetworkCertificate,
    OutputComparison,
    WeightComparison,
)
from convfc.rounding import SMALLEST_NORMAL, UNIT_ROUNDOFF, exact_limit, gamma, rounding_bound

REAL = ("float16", "float32", "float64")
COMPLEX = ("complex64", "complex128")


def test_unit_roundoffs_are_those_that_the_tests_know():
    assert dict(UNIT_ROUNDOFF) == bounds.UNIT_ROUNDOFF
    assert UNIT_ROUNDOFF.keys() == SMALLEST_NORMAL.keys()


@pytest.mark.parametrize("terms", [1, 4608])
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_gamma_is_higham_s_or_infinite(terms: int, dtype: str):
    u = UNIT_ROUNDOFF[dtype]
    if terms * u < 1:
        exact = Fraction(terms) * Fraction(u) / (1 - Fraction(terms) * Fraction(u))
        assert gamma(terms, u) == pytest.approx(float(exact), rel=1e-15)
    else:
        assert gamma(terms, u) == math.inf
        assert rounding_bound(1.0, terms, dtype) is None


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("terms", [1, 10, 300])
def test_two_sums_stay_within_the_bound_and_one_step_more_does_not(terms: int, dtype: str):
    """Against exact arithmetic; the bound is no larger than twice the theory and the margins."""
    generator = np.random.default_rng(terms)
    a, b = generator.standard_normal((2, terms)).astype(dtype)
    up, down = a.dtype.type(0), a.dtype.type(0)
    for one, other in zip(range(terms), reversed(range(terms)), strict=True):
        up, down = up + a[one] * b[one], down + a[other] * b[other]
    exact = sum(Fraction(float(m)) * Fraction(float(k)) for m, k in zip(a, b, strict=True))
    magnitude = float(np.abs(a.astype(float)) @ np.abs(b.astype(float)))
    bound = rounding_bound(magnitude, terms, dtype)
    assert bound is not None
    assert abs(float(up) - float(down)) <= bound
    assert 2 * abs(Fraction(float(up)) - exact) <= Fraction(bound)
    stored = terms + (dtype == "float16")
    margin = 2 * terms * SMALLEST_NORMAL[dtype]
    theory = 2 * gamma(stored, UNIT_ROUNDOFF[dtype]) * magnitude
    assert theory < bound <= theory * (1 + 1e-12) + margin


@pytest.mark.parametrize("dtype", COMPLEX)
def test_the_complex_bound_covers_four_products_and_three(dtype: str):
    u, bound = UNIT_ROUNDOFF[dtype], rounding_bound(1.0, 50, dtype)
    assert bound >= 2 * max(math.sqrt(2) * gamma(100, u), math.sqrt(10) * gamma(54, u))


def test_the_bound_is_taken_element_by_element():
    magnitude = np.array([0.0, 1.0, 3.0])
    bound = rounding_bound(magnitude, 5, "float32")
    assert bound.tolist() == [rounding_bound(m, 5, "float32") for m in (0.0, 1.0, 3.0)]
    assert 0 < bound[0] < 1e-36  # what underflow may do


@pytest.mark.parametrize("dtype", REAL)
def test_integers_are_exact_up_to_the_limit_and_no_further(dtype: str):
    one, limit = np.ones(1, dtype), np.array([exact_limit(dtype)], dtype)
    assert limit - one != limit
    assert limit + one == limit


def comparison(quantity: str = "output", ratio: float | None = 0.5, **rest: Any) -> Comparison:
    return Comparison(quantity, "float32", 10, 1e-7, ratio, **rest)


GOOD_LAYER = LayerCertificate(
    "stem.conv", ("native", "patch"), (2, 64, 27), (27, 8), "float32",
    own={"output": comparison(), "input": comparison("input")},
    float64={"output": dataclasses.replace(comparison(), dtype="float64")},
    weights=(WeightComparison("weight", True, 0.0, (0,), 1.0, 1.0),),
    exact=ExactTest("float32"),
)  # fmt: skip
GOOD_OUTPUT = OutputComparison("", "float32", 1e-7, 1e-8, 1e-16, 1e-7, "float32")
GOOD = Certificate((GOOD_LAYER,), NetworkCertificate((GOOD_OUTPUT,)), framework="none 1.0")


def with_layer(**changes: Any) -> Certificate:
    return dataclasses.replace(GOOD, layers=(dataclasses.replace(GOOD_LAYER, **changes),))


def with_network(**changes: Any) -> Certificate:
    output = dataclasses.replace(GOOD_OUTPUT, **changes)
    return dataclasses.replace(GOOD, network=NetworkCertificate((output,)))


TWO = {"index": (0, 3), "before": 1, "after": 2, "bound": 0.5}
NO = {
    "own": (
        with_layer(own={"output": comparison("output", 1.01, **TWO)}),
        r"stem\.conv: output in float32 at \[0, 3\]; expected 1 within 0.5 \(2 gamma_10 B\), got 2",
    ),
    "infinite": (with_layer(own={"output": comparison(ratio=math.inf)}), "output in float32"),
    "float64": (
        with_layer(float64={"weight": comparison("weight", 2.0)}),
        r"stem\.conv: gradient of the weight in float32",
    ),
    "bits": (
        with_layer(weights=(WeightComparison("bias", False, 0.5, (3,), 1.0, 1.5),)),
        r"bias has other bits at \[3\]; expected 1, got 1.5",
    ),
    "integers": (
        with_layer(exact=ExactTest("float32", ("weight",))),
        "weight of the integer test; expected the same bits",
    ),
    "no bound": (
        with_layer(own={"output": comparison(ratio=None)}, float64={}),
        "output; expected a rounding bound, got none in any dtype",
    ),
    "nothing": (with_layer(own={}, float64={}), "expected its outputs to be compared"),
    "error": (with_layer(errors=("its output; expected 1, got 2",)), "stem.conv: its output"),
    "no layer": (dataclasses.replace(GOOD, layers=()), "no converted layer was found"),
    "missing": (dataclasses.replace(GOOD, missing=("head",)), "head: expected this layer in both"),
    "network": (
        with_network(float64=1e-6),
        "network: output in float64; expected a difference of at most 1e-07, which is what "
        "rounding to float32 makes, got 1e-06",
    ),
    "other": (
        dataclasses.replace(GOOD, network=NetworkCertificate((), ("bn.mean; expected a",))),
        "network: bn.mean; expected a",
    ),
}


@pytest.mark.parametrize(("certificate", "reason"), NO.values(), ids=NO)
def test_it_says_no_and_why(certificate: Certificate, reason: str):
    assert not certificate.holds
    assert any(re.search(reason, failure) for failure in certificate.failures)
    assert "DOES NOT HOLD" in str(certificate)


NOTED = dataclasses.replace(with_layer(notes=("other strides",) * 2), unconverted=("odd",))
YES = {
    "all": GOOD,
    "at the bound": with_layer(own={"output": comparison(ratio=1.0)}),
    "bound in float64 only": with_layer(own={"output": comparison(ratio=None)}),
    "no integers": with_layer(exact=ExactTest(why_not="a tool's layer")),
    "no float64 network": with_network(float64=None, rounding=None),
    "equal networks": with_network(float64=0.0, rounding=0.0),
    "noted": NOTED,
}


@pytest.mark.parametrize("certificate", YES.values(), ids=YES)
def test_it_says_yes(certificate: Certificate):
    assert certificate.holds
    assert certificate.failures == ()
    assert "Certificate: holds; 1 of 1 layers hold." in str(certificate)


def test_notes_are_told_once():
    notes = ("stem.conv: other strides", "odd: cannot be converted, not compared")
    assert NOTED.notes == notes
    assert str(NOTED).count("other strides") == 1


def test_a_row_tells_the_worst_ratios_and_fits_a_hundred_columns():
    long = dataclasses.replace(
        GOOD_LAYER,
        name="features.denseblock4.denselayer16.conv2",
        call=2,
        own={
            "output": comparison(ratio=0.0),
            "input": comparison("input", 0.0001),
            "weight": comparison("weight", 0.25),
            "bias": comparison("bias", 12345.6),
        },
        float64={"output": comparison(ratio=0.125), "bias": comparison("bias", 1.0004)},
    )
    text = str(dataclasses.replace(GOOD, layers=(GOOD_LAYER, long)))
    head, first, *rest = text.split("\n")
    assert " ".join(head.split()) == "layer form M K out d.in d.wt d.bias f64 ints holds"
    assert " ".join(first.split()) == "stem.conv patch 2×64×27 27×8 .500 .500 .500 same yes"
    row = " ".join(" ".join(rest[:2]).split())
    assert row == (
        "features.denseblock4. patch 2×64×27 27×8 0 <.001 .250 1e04 1.001 same NO "
        "denselayer16.conv2#2"
    )
    assert max(map(len, text.split("\n"))) <= 100


def test_json_takes_all_of_it_and_gives_it_back():
    wild = with_layer(
        own={"output": comparison(ratio=math.inf, before=1 + 2j, after=complex(3), bound=math.nan)}
    )
    data = wild.to_dict()
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data
    (layer,) = data["layers"]
    assert data["holds"] is layer["holds"] is False
    assert data["failures"] == list(wild.failures)
    output = layer["own"]["output"]
    assert [output[k] for k in ("ratio", "before", "after", "bound")] == ["inf", "(1+2j)", 3, "nan"]
    assert layer["exact"]["identical"] is True
    assert data["network"]["outputs"][0]["rounding"] == 1e-7
    assert "gamma_n B" in data["meaning"]


def test_print_and_rich_show_the_same_table(capsys: pytest.CaptureFixture[str]):
    GOOD.print()
    printed = capsys.readouterr().out
    assert printed == f"{GOOD}\n"
    screen = Console(width=100)
    with screen.capture() as capture:
        screen.print(GOOD)
    words = capture.get().replace("─", "").split()
    assert words == printed.split()
