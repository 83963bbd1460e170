"""ConvGeometry: its forms, its sizes (Eq. (5)-(7)), the named paddings, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from math import ceil, prod

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, EXPERIMENT, FIGURE_6, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from strategies import MODES, cases

from convfc import ConvGeometry, conv_as_matmul
from convfc.errors import GeometryError

PADDINGS = [
    (0, ((0, 0), (0, 0))),
    (2, ((2, 2), (2, 2))),
    ([1, 0], ((1, 1), (0, 0))),
    (((1, 0), (2, 3)), ((1, 0), (2, 3))),
    ([[1, 0], [2, 3]], ((1, 0), (2, 3))),
]


@pytest.mark.parametrize(("padding", "expected"), PADDINGS, ids=str)
def test_padding_is_kept_as_one_low_high_pair_per_axis(padding, expected):
    assert ConvGeometry(1, 1, (3, 2), padding=padding).padding == expected


def test_integers_serve_every_axis_and_become_plain_tuples():
    geometry = ConvGeometry(
        np.int64(4), 6, [3, 2, 1], stride=2, dilation=list(np.arange(1, 4)), groups=np.int32(2)
    )
    assert geometry.kernel_size == (3, 2, 1)
    assert geometry.stride == (2, 2, 2)
    assert geometry.dilation == (1, 2, 3)
    assert geometry.output_padding == (0, 0, 0)
    assert geometry.output_size(np.array([9, 9, 9])) == (4, 4, 5)
    numbers = [geometry.in_channels, geometry.groups, *geometry.kernel_size, *geometry.dilation]
    assert {type(number) for number in numbers} == {int}


def test_equal_geometries_are_equal_and_hash_alike_however_they_were_written():
    one = ConvGeometry(2, 3, (3, 3), stride=2, padding=1)
    other = ConvGeometry(2, 3, [3, 3], stride=(2, 2), padding=((1, 1), (1, 1)))
    assert one == other
    assert hash(one) == hash(other)
    assert one != replace(one, flip=True)


def test_a_geometry_is_frozen_and_replace_checks_again():
    geometry = ConvGeometry(2, 3, (3, 3), stride=2)
    with pytest.raises(FrozenInstanceError, match="stride"):
        geometry.stride = (1, 1)
    assert replace(geometry, stride=1).stride == (1, 1)
    with pytest.raises(ValueError, match=r"stride: .*expected 1 or more; got 0"):
        replace(geometry, stride=0)


def test_sizes_of_the_papers_figure_6_and_experiment():
    for subject, out, rows in ((FIGURE_6, (7, 7), 49), (EXPERIMENT, (13, 13), 169)):
        assert subject.geometry.output_size((28, 28)) == out
        assert subject.geometry.patch_matrix_shape(1000, (28, 28)) == (1000, rows, 16)


@pytest.mark.parametrize("subject", CASES, ids=str)
def test_properties_follow_from_their_definitions(subject: Case):
    g = subject.geometry
    axes = zip(g.kernel_size, g.dilation, strict=True)
    assert g.spatial_ndim == len(subject.input_size)
    assert g.effective_kernel_size == tuple(len(range(0, (k - 1) * d + 1)) for k, d in axes)
    assert g.filters_shape == subject.filters_shape
    assert g.taps == prod(subject.filters_shape[1:])
    assert g.filter_matrix_shape == (g.taps, g.out_channels)


@given(cases())
def test_output_size_counts_the_places_of_the_kernel(subject: Case):
    g, n = subject.geometry, subject.input_size
    expected = oracle.output_size(g, n)
    assert g.output_size(n) == expected
    assert g.patch_matrix_shape(5, n) == (5, prod(expected), g.groups * g.taps)


# The relationships of Dumoulin & Visin (2016), A guide to convolution arithmetic for deep learning.
sizes = st.integers(1, 40)
kernels = st.integers(1, 9)


@given(sizes, kernels)
def test_the_named_paddings_have_the_positions_of_their_relationships(i, k):
    assert ConvGeometry.valid(1, 1, (k,)).output_size((i + k,)) == (i + 1,)  # relationship 1
    half = ConvGeometry.half(1, 1, (k,))
    assert half.padding == ((k // 2, k // 2),)
    assert half.output_size((i,)) == (i + (k % 2 == 0),)  # relationships 2 and 3
    assert ConvGeometry.full(1, 1, (k,)).output_size((i,)) == (i + k - 1,)  # relationship 4


@pytest.mark.parametrize("name", ["valid", "half", "full"])
def test_a_dilated_kernel_is_padded_as_the_wide_kernel_it_stands_for(name):
    make = getattr(ConvGeometry, name)
    wide = make(2, 4, (7, 3), stride=2, groups=2)
    dilated = make(2, 4, (4, 2), dilation=(2, 2), stride=2, groups=2)
    assert replace(dilated, kernel_size=(7, 3), dilation=1) == wide
    assert dilated.output_size((9, 8)) == wide.output_size((9, 8))


@pytest.mark.parametrize("odd", ["upper", "lower"])
@given(
    st.lists(
        st.tuples(sizes, kernels, st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3
    )
)
def test_same_is_tensorflows_and_onnxs_rule(odd, axes):
    size, kernel, stride, dilation = (tuple(values) for values in zip(*axes, strict=True))
    geometry = ConvGeometry.same(
        1, 1, kernel, stride=stride, dilation=dilation, input_size=size, odd=odd
    )
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    rule = {"upper": "SAME", "lower": "SAME_LOWER"}[odd]
    assert geometry.padding == tuple(lax.padtype_to_pads(size, window, stride, rule))
    assert geometry.output_size(size) == tuple(
        ceil(n / s) for n, s in zip(size, stride, strict=True)
    )


@settings(max_examples=12)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_transposed_same_is_jaxs(n, k, s, d):
    geometry = ConvGeometry.same(1, 1, (k,), stride=s, dilation=d, input_size=(n,), transposed=True)
    x, filters, _ = Case(geometry, (n,)).integers()
    expected = lax.conv_transpose(
        jnp.asarray(x, jnp.int32),
        jnp.asarray(np.flip(np.moveaxis(filters, 0, -1), axis=0), jnp.int32),
        strides=(s,),
        padding="SAME",
        rhs_dilation=(d,),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    assert geometry.output_size((n,)) == (n * s,)
    assert conv_as_matmul(x, filters, geometry).tolist() == expected.tolist()


@pytest.mark.parametrize(("n", "k", "s"), [(5, 4, 1), (4, 5, 2), (3, 1, 3)])
def test_transposed_same_lower_cuts_the_other_side(n, k, s):
    rest = {"stride": s, "input_size": (n,), "transposed": True}
    upper, lower = (ConvGeometry.same(1, 1, (k,), odd=o, **rest) for o in ("upper", "lower"))
    assert lower.padding == tuple(pair[::-1] for pair in upper.padding)
    assert lower.output_size((n,)) == (n * s,)


@pytest.mark.parametrize("name", ["valid", "half", "full", "same"])
def test_a_named_padding_does_not_take_padding_as_well(name):
    size = {"input_size": (5,)} if name == "same" else {}
    with pytest.raises(GeometryError, match=r"padding: .*got \(\(1, 1\),\).*leave padding out"):
        getattr(ConvGeometry, name)(1, 1, (3,), padding=1, **size)


@pytest.mark.parametrize("mode", MODES)
def test_without_padding_there_is_one_mode(mode):
    plain = ConvGeometry(2, 3, (3, 2))
    same = ConvGeometry(2, 3, (3, 2), padding=[(0, 0), (0, 0)], padding_mode=mode)
    assert same == plain
    padded = ConvGeometry(2, 3, (3, 2), padding=(0, 1), padding_mode=mode)
    assert padded.padding_mode == mode
    assert replace(padded, padding=(0, 0)) == plain


@pytest.mark.parametrize("mode", MODES)
def test_a_constructor_that_works_out_the_padding_passes_the_rest_on(mode):
    rest = {"padding_mode": mode, "groups": 2, "flip": mode == "zeros"}
    half = ConvGeometry.half(4, 8, (3,), **rest)
    assert half == ConvGeometry(4, 8, (3,), padding=1, **rest)
    full = ConvGeometry.full(4, 8, (3,), **rest)
    assert full == ConvGeometry(4, 8, (3,), padding=2, **rest)
    same = ConvGeometry.same(4, 8, (4,), input_size=(9,), **rest)
    assert same == ConvGeometry(4, 8, (4,), padding=[(1, 2)], **rest)
    assert ConvGeometry.valid(4, 8, (3,), **rest) == ConvGeometry(
        4, 8, (3,), **{**rest, "padding_mode": "zeros"}
    )


# What is refused: value, rule and remedy.

ALLOWED = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2)}
TRANSPOSED = {"transposed": True, "stride": 2}

REFUSED = [  # what is changed in ALLOWED, and what the message must say
    ({"in_channels": 0}, r"in_channels: .*expected 1 or more; got 0\. Remedy"),
    ({"in_channels": True}, r"in_channels: .*not an integer.*got True"),
    ({"out_channels": -2}, r"out_channels: .*expected 1 or more; got -2"),
    ({"kernel_size": (3, 0)}, r"kernel_size\[1\]: .*1 or more; got 0"),
    ({"kernel_size": 3}, r"kernel_size: .*one size per spatial axis; got 3"),
    ({"stride": 0}, r"stride: .*expected 1 or more; got 0\. Remedy"),
    ({"stride": (1, 2, 3)}, r"stride: .*2 spatial axes; expected 2 numbers.*got"),
    ({"dilation": 0}, r"dilation: .*expected 1 or more; got 0"),
    ({"padding": -1}, r"padding: .*expected 0 or more; got -1.*crop the input"),
    ({"padding": ((0, -1), (0, 0))}, r"padding.*expected 0 or more; got -1"),
    ({"padding": 0.5}, r"padding: .*got 0\.5"),
    ({"padding": "same"}, r"padding: .*explicit.*got 'same'.*ConvGeometry\.valid"),
    ({"padding": ((1, 2),)}, r"padding: .*expected 2 pairs \(low, high\)"),
    ({"padding": ((1, 2, 3), (1, 2))}, r"padding: .*2 pairs \(low, high\)"),
    ({"groups": 0}, r"groups: .*expected 1 or more; got 0"),
    ({"groups": 3}, r"groups: .*in_channels; expected a divisor of 4; got 3.*multiple"),
    ({"groups": 4}, r"groups: .*out_channels; expected a divisor of 6; got 4"),
    ({"padding_mode": "wrap"}, r"padding_mode: .*'zeros' or .*'circular'; got 'wrap'.*padding=0"),
    ({"output_padding": 1}, r"output_padding: .*transposed.*Remedy: set"),
    (
        {**TRANSPOSED, "dilation": 3, "output_padding": 3},
        r"output_padding: .*axis 0; expected below max\(stride, dilation\) = 3; got 3",
    ),
    ({**TRANSPOSED, "output_padding": -1}, r"output_padding: .*got -1"),
    ({**TRANSPOSED, "padding_mode": "reflect"}, r"padding_mode: .*zeros; got 'reflect'"),
    ({"flip": "no"}, r"flip: .*got 'no'"),
    ({"transposed": 2}, r"transposed: .*got 2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_a_geometry_that_no_convolution_has_is_refused(change: dict, message: str):
    assert ConvGeometry(**ALLOWED)
    with pytest.raises(GeometryError, match=message):
        ConvGeometry(**{**ALLOWED, **change})


def test_output_padding_may_reach_the_larger_of_stride_and_dilation():
    geometry = ConvGeometry(1, 1, (2,), transposed=True, dilation=3, output_padding=2)
    assert geometry.output_size((4,)) == (9,)


REFUSED_SIZES = {
    "too-small": (
        {},
        (4, 1),
        r"kernel_size: .*larger than the padded input on axis 1; .*at most 1 \+ 0 \+ 0; got 2",
    ),
    "too-small-padded": (
        {"padding": ((0, 1), (0, 0)), "dilation": 2},
        (3, 9),
        r"kernel_size: .*axis 0; .*at most 3 \+ 0 \+ 1; got 5.*Remedy: use a larger input",
    ),
    "reflect": (
        {"padding": ((0, 0), (1, 2)), "padding_mode": "reflect"},
        (5, 2),
        r"padding: reflection .*axis 1; expected at most 1 .*got \(1, 2\).*replicate",
    ),
    "nothing-left": (
        {"transposed": True, "padding": ((3, 2), (0, 0))},
        (3, 3),
        r"padding: .*cuts away the whole transposed output.*axis 0; .*got 5",
    ),
    "axes": ({}, (5,), r"input_size: .*2 spatial axes; expected 2 numbers; got \(5,\)"),
    "zero": ({}, (0, 5), r"input_size\[0\]: .*expected 1 or more; got 0"),
    "float": ({}, (5, 5.0), r"input_size\[1\]: .*not an integer.*got 5\.0"),
    "integer": ({}, 5, r"input_size: .*got 5"),
}


@pytest.mark.parametrize(("change", "size", "message"), REFUSED_SIZES.values(), ids=REFUSED_SIZES)
def test_an_input_size_that_does_not_fit_is_refused(change: dict, size, message: str):
    geometry = ConvGeometry(**{**ALLOWED, **change})
    with pytest.raises(GeometryError, match=message):
        geometry.output_size(size)
    with pytest.raises(GeometryError, match=message):
        geometry.patch_matrix_shape(1, size)


@pytest.mark.parametrize("low_high", [(1, 1), (1, 0), (0, 1)], ids=str)
def test_reflection_reaches_as_far_as_the_input_less_its_edge(low_high):
    geometry = ConvGeometry(1, 1, (1,), padding=(low_high,), padding_mode="reflect")
    assert geometry.output_size((2,)) == (2 + sum(low_high),)
    with pytest.raises(GeometryError, match=r"padding: reflection .*expected at most 0"):
        geometry.output_size((1,))


def test_same_refuses_what_it_works_out_itself_and_a_side_that_does_not_exist():
    with pytest.raises(GeometryError, match=r"output_padding: .*got"):
        ConvGeometry.same(1, 1, (3,), stride=2, input_size=(4,), transposed=True, output_padding=1)
    with pytest.raises(GeometryError, match=r"odd: .*upper.*lower.*got 'left'"):
        ConvGeometry.same(1, 1, (2,), input_size=(5,), odd="left")
