"""The package's exceptions: what is wrong, where, what was expected, what came, and the remedy."""

from __future__ import annotations

from typing import NamedTuple

from convfc.printable import printable

__all__ = [
    "ArgumentError",
    "ConvfcError",
    "DataError",
    "Diverged",
    "DtypeError",
    "FactoryError",
    "GeometryError",
    "MemoryBudgetError",
    "MissingDependencyError",
    "NotAConvolution",
    "NotConverged",
    "NothingToConvert",
    "OutOfRangeError",
    "Refusal",
    "RunError",
    "ShapeError",
    "UnsupportedLayer",
    "UnsupportedLayerWarning",
    "UnsupportedModel",
    "UnsupportedOptimizer",
]


class ConvfcError(Exception):
    """Base of every exception that convfc raises on purpose; its message is one line.

    Parameters
    ----------
    what : str
        What is wrong, as a sentence without its full stop.
    where : str, optional
        The argument, layer or file that it concerns.
    expected, got : object, optional
        The rule in short, and the value that broke it.
    remedy : str, optional
        What to do instead.

    Examples
    --------
    >>> print(ConvfcError("a size below one", where="stride", got=0, remedy="use 1 or more"))
    stride: a size below one; got 0. Remedy: use 1 or more
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
    ) -> None:
        message = what if where is None else f"{where}: {what}"
        if expected is not None:
            message += f"; expected {expected}"
        if got is not None:
            message += f"; got {got}"
        if remedy is not None:
            message += f". Remedy: {remedy}"
        super().__init__(printable(message))  # it may name what a file holds

    def __reduce__(self) -> tuple[object, ...]:
        # Said, as Dask (with tblib) otherwise packs exceptions in a way that a MemoryError refuses.
        return type(self), self.args, self.__dict__


class Refusal(NamedTuple):
    """Why something cannot be done, and what to do instead: an error before it is raised."""

    reason: str
    remedy: str
    where: str = ""
    cause: Exception | None = None

    def error(self, kind: type[ConvfcError], consequence: str = "") -> ConvfcError:
        """Return the exception to raise, with what cannot be done for this reason."""
        what = f"{self.reason}; {consequence}" if consequence else self.reason
        made = kind(what, where=self.where or None, remedy=self.remedy)
        made.__cause__ = self.cause
        return made


class ArgumentError(ConvfcError, ValueError):
    """A value that an argument cannot have, by itself or with the other arguments."""


class GeometryError(ConvfcError, ValueError):
    """A geometry that no convolution has, or an input size that it does not fit."""


class ShapeError(ConvfcError, ValueError):
    """An array whose rank or sizes do not match the geometry."""


class DtypeError(ConvfcError, TypeError):
    """An array of a kind, or a pair of dtypes, that has no exact product here."""


class OutOfRangeError(ConvfcError, IndexError):
    """A row, column or element that the index map does not have."""


class MemoryBudgetError(ConvfcError, MemoryError):
    """A patch matrix larger than the memory it may take."""


class MissingDependencyError(ConvfcError, ImportError):
    """An optional package that this command or function needs is not installed."""


class DataError(ConvfcError, OSError):
    """A data set that cannot be read or downloaded."""


class RunError(ConvfcError, RuntimeError):
    """An experiment's folder that cannot be started, resumed or finished."""


class Diverged(RunError):
    """A training whose numbers are no longer finite."""


class FactoryError(ConvfcError, ValueError):
    """A ``module:factory`` that does not exist, or that cannot be called with these arguments."""


class UnsupportedModel(ConvfcError, TypeError):
    """An object that is not a model of any framework that convfc knows."""


class UnsupportedLayer(ConvfcError, TypeError):
    """A layer that cannot be converted without changing what it computes."""


class UnsupportedOptimizer(ConvfcError, TypeError):
    """An optimizer's state that cannot be carried to the same model in another form."""


class NothingToConvert(ConvfcError, ValueError):
    """A model, or a choice of its layers, without anything of the kind asked for."""


class NotAConvolution(ConvfcError, ValueError):
    """A matrix that is not a convolution of the geometry: an entry does not fit."""


class NotConverged(ConvfcError, RuntimeError):
    """An iteration that ended before its result was accurate enough."""


class UnsupportedLayerWarning(UserWarning):
    """Layers that were not converted, or not converted as a whole."""
