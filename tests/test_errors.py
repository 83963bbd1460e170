"""The exceptions themselves: what a message is made of, and the trip between processes."""

from __future__ import annotations

import inspect
import pickle

import pytest
from tblib.pickling_support import pickle_exception

from convfc import errors
from convfc.errors import ConvfcError

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


@pytest.mark.parametrize("name", ["ConvfcError", *BUILTIN])
def test_each_exception_is_ours_and_a_builtin_and_goes_to_another_process(name: str):
    exception = getattr(errors, name)("it broke", where="stride", got=0)
    assert isinstance(exception, ConvfcError)
    assert isinstance(exception, BUILTIN.get(name, Exception))
    there_and_back = pickle.loads(pickle.dumps(exception))  # noqa: S301 (our own bytes)
    assert type(there_and_back) is type(exception)
    assert str(there_and_back) == "stride: it broke; got 0"
    unpack, packed, *_ = pickle_exception(exception)  # as Dask's workers do
    assert str(unpack(*packed)) == str(exception)


def test_all_lists_every_exception():
    defined = {
        name
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and thing.__module__ == errors.__name__
    }
    assert set(errors.__all__) == defined
    assert BUILTIN.keys() <= defined


def test_the_message_joins_what_where_expected_got_remedy():
    parts = {"where": "stride", "expected": "1 or more", "got": 0, "remedy": "mend it"}
    whole = "stride: it broke; expected 1 or more; got 0. Remedy: mend it"
    assert str(ConvfcError("it broke", **parts)) == whole
    assert str(ConvfcError("it broke")) == "it broke"


COMMAND = "\x1b]0;owned\x07\n"


@pytest.mark.parametrize("part", ["what", "where", "expected", "got", "remedy"])
def test_what_came_from_a_file_is_no_command_to_a_terminal(part: str):
    error = ConvfcError(**{"what": "it broke", part: f"{COMMAND}{'a' * 2_000_000}"})
    assert str(error).isprintable()
    assert r"\x1b]0;owned\x07\n" in str(error)
    assert "(2,000,0" in str(error)
    assert len(str(error)) < 1000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 (our own bytes)
