"""The exceptions themselves, and how a wrong geometry is refused: value, rule and remedy."""

from __future__ import annotations

import inspect
import pickle

import pytest

from convfc import ConvGeometry, errors
from convfc.errors import ConvfcError, GeometryError

BUILTIN = {
    "ArgumentError": ValueError,
    "GeometryError": ValueError,
    "ShapeError": ValueError,
    "DtypeError": TypeError,
    "OutOfRangeError": IndexError,
    "MemoryBudgetError": MemoryError,
    "MissingDependencyError": ImportError,
    "DataError": OSError,
    "RunError": RuntimeError,
}


@pytest.mark.parametrize(("name", "builtin"), BUILTIN.items(), ids=str)
def test_each_exception_is_ours_and_the_builtin_it_refines(name: str, builtin: type):
    exception = getattr(errors, name)
    assert issubclass(exception, ConvfcError)
    assert issubclass(exception, builtin)


def test_all_lists_every_exception():
    defined = {
        name
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and thing.__module__ == errors.__name__
    }
    assert set(errors.__all__) == defined
    assert BUILTIN.keys() <= defined


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "it broke"),
        ({"where": "stride"}, "stride: it broke"),
        ({"expected": "1 or more"}, "it broke; expected 1 or more"),
        ({"got": 0}, "it broke; got 0"),
        ({"remedy": "mend it"}, "it broke. Remedy: mend it"),
        (
            {"where": "stride", "expected": "1 or more", "got": 0, "remedy": "mend it"},
            "stride: it broke; expected 1 or more; got 0. Remedy: mend it",
        ),
    ],
    ids=["what", "where", "expected", "got", "remedy", "all"],
)
def test_the_message_joins_what_where_expected_got_remedy(parts: dict, message: str):
    assert str(ConvfcError("it broke", **parts)) == message


COMMAND = "\x1b]0;owned\x07\n"


@pytest.mark.parametrize("part", ["what", "where", "expected", "got", "remedy"])
def test_what_came_from_a_file_is_no_command_to_a_terminal(part: str):
    error = ConvfcError(**{"what": "it broke", part: f"{COMMAND}{'a' * 2_000_000}"})
    assert str(error).isprintable()
    assert r"\x1b]0;owned\x07\n" in str(error)
    assert "(2,000,0" in str(error)
    assert len(str(error)) < 1000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 (our own bytes)


@pytest.mark.parametrize("name", ["ConvfcError", *BUILTIN])
def test_exceptions_survive_the_trip_between_processes(name: str):
    exception = getattr(errors, name)("it broke", where="stride", got=0)
    there_and_back = pickle.loads(pickle.dumps(exception))  # noqa: S301 (our own bytes)
    assert type(there_and_back) is type(exception)
    assert str(there_and_back) == "stride: it broke; got 0"


ALLOWED = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2)}
TRANSPOSED = {"transposed": True, "stride": 2}

REFUSED = {  # what is changed in ALLOWED: what the message must say
    "in_channels=0": ({"in_channels": 0}, r"in_channels: .*expected 1 or more; got 0\. Remedy"),
    "in_channels=-2": ({"in_channels": -2}, r"in_channels: .*got -2\. Remedy"),
    "in_channels=2.5": ({"in_channels": 2.5}, r"in_channels: .*not an integer.*got 2\.5"),
    "in_channels=True": ({"in_channels": True}, r"in_channels: .*not an integer.*got True"),
    "in_channels='4'": ({"in_channels": "4"}, r"in_channels: .*not an integer.*got '4'"),
    "out_channels=0": ({"out_channels": 0}, r"out_channels: .*expected 1 or more; got 0"),
    "out_channels=None": ({"out_channels": None}, r"out_channels: .*not an integer.*got None"),
    "kernel_size=(3,0)": ({"kernel_size": (3, 0)}, r"kernel_size\[1\]: .*1 or more; got 0"),
    "kernel_size=(3,2.0)": ({"kernel_size": (3, 2.0)}, r"kernel_size\[1\]: .*integer.*got 2\.0"),
    "kernel_size=3": ({"kernel_size": 3}, r"kernel_size: .*one size per spatial axis; got 3"),
    "kernel_size=()": ({"kernel_size": ()}, r"kernel_size: .*one size per spatial axis; got \(\)"),
    "stride=0": ({"stride": 0}, r"stride: .*expected 1 or more; got 0\. Remedy"),
    "stride=(1,-1)": ({"stride": (1, -1)}, r"stride\[1\]: .*expected 1 or more; got -1"),
    "stride=2.5": ({"stride": 2.5}, r"stride: .*not an integer.*got 2\.5"),
    "stride=True": ({"stride": True}, r"stride: .*not an integer.*got True"),
    "stride=3axes": ({"stride": (1, 2, 3)}, r"stride: .*2 spatial axes; expected 2 numbers.*got"),
    "dilation=0": ({"dilation": 0}, r"dilation: .*expected 1 or more; got 0"),
    "dilation=1.0": ({"dilation": 1.0}, r"dilation: .*not an integer.*got 1\.0"),
    "padding=-1": ({"padding": -1}, r"padding: .*expected 0 or more; got -1.*crop the input"),
    "padding=(1,-1)": ({"padding": (1, -1)}, r"padding\[1\]: .*expected 0 or more; got -1"),
    "padding=pair-1": ({"padding": ((0, -1), (0, 0))}, r"padding.*expected 0 or more; got -1"),
    "padding=0.5": ({"padding": 0.5}, r"padding: .*got 0\.5"),
    "padding='same'": (
        {"padding": "same"},
        r"padding: .*explicit.*got 'same'.*ConvGeometry\.valid",
    ),
    "padding=1pair": ({"padding": ((1, 2),)}, r"padding: .*expected 2 pairs \(low, high\)"),
    "padding=triple": ({"padding": ((1, 2, 3), (1, 2))}, r"padding: .*2 pairs \(low, high\)"),
    "groups=0": ({"groups": 0}, r"groups: .*expected 1 or more; got 0"),
    "groups=3": ({"groups": 3}, r"groups: .*in_channels; expected a divisor of 4; got 3.*multiple"),
    "groups=4": ({"groups": 4}, r"groups: .*out_channels; expected a divisor of 6; got 4"),
    "groups=2.0": ({"groups": 2.0}, r"groups: .*not an integer.*got 2\.0"),
    "padding_mode='wrap'": (
        {"padding_mode": "wrap"},
        r"padding_mode: .*zeros \| reflect \| replicate \| circular; got 'wrap'",
    ),
    "padding_mode=None": ({"padding_mode": None}, r"padding_mode: .*got None"),
    "output_padding=1": ({"output_padding": 1}, r"output_padding: .*transposed.*Remedy: set"),
    "transposed-op2-s2": (
        {**TRANSPOSED, "output_padding": 2},
        r"output_padding: .*axis 0; expected below max\(stride, dilation\) = 2; got 2",
    ),
    "transposed-op=-1": ({**TRANSPOSED, "output_padding": -1}, r"output_padding: .*got -1"),
    "transposed-reflect": (
        {**TRANSPOSED, "padding_mode": "reflect"},
        r"padding_mode: .*transposed.*expected 'zeros'; got 'reflect'",
    ),
    "flip='no'": ({"flip": "no"}, r"flip: .*got 'no'"),
    "transposed=2": ({"transposed": 2}, r"transposed: .*got 2"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_geometry_that_no_convolution_has_is_refused(change: dict, message: str):
    assert ConvGeometry(**ALLOWED)
    with pytest.raises(GeometryError, match=message):
        ConvGeometry(**{**ALLOWED, **change})


def test_output_padding_may_reach_the_larger_of_stride_and_dilation():
    geometry = ConvGeometry(1, 1, (2,), transposed=True, dilation=3, output_padding=2)
    assert geometry.output_size((4,)) == (9,)
    with pytest.raises(GeometryError, match=r"expected below max\(stride, dilation\) = 3; got 3"):
        ConvGeometry(1, 1, (2,), transposed=True, dilation=3, output_padding=3)


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


def test_transposed_same_works_out_its_output_padding_itself():
    with pytest.raises(GeometryError, match=r"output_padding: .*got"):
        ConvGeometry.same(1, 1, (3,), stride=2, input_size=(4,), transposed=True, output_padding=1)


def test_same_refuses_a_side_that_does_not_exist():
    with pytest.raises(GeometryError, match=r"odd: .*upper.*lower.*got 'left'"):
        ConvGeometry.same(1, 1, (2,), input_size=(5,), odd="left")
