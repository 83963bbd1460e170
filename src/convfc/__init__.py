"""convfc: convolutional layers as the fully connected layers they are equal to.

It implements Ma & Lu, *An Equivalence of Fully Connected Layer and Convolutional Layer* (2017,
arXiv:1712.01252). Importing it imports NumPy and array-api-compat only; SciPy comes with the first
use of what needs it.
"""

import typing as _typing

from convfc.algorithm1 import (
    col2im,
    conv_as_matmul,
    filters_to_matrix,
    im2col,
    matrix_to_filters,
    patch_product,
    rows_to_output,
)
from convfc.certificate import Certificate
from convfc.convert import (
    convert_optimizer_state,
    inspect,
    simplify,
    to_conv,
    to_fc,
    to_fully_convolutional,
    unroll,
    verify,
)
from convfc.explorer import explore
from convfc.geometry import ConvGeometry
from convfc.indexmap import IndexMap, index_map
from convfc.inspection import Inspection
from convfc.layer import ConvLayer
from convfc.registry import register_layer

if _typing.TYPE_CHECKING:
    from convfc.methods.spectrum import singular_values
    from convfc.operators import (
        as_conv1d,
        conv_matrix,
        conv_offset,
        conv_operator,
        matrix_estimate,
        nearest_conv,
    )
else:

    def __getattr__(name: str) -> object:
        """Import what SciPy comes with when it is asked for: that takes longer than all above."""
        import importlib
        import sys

        if name not in (*__all__, "methods", "operators"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        spectrum = name in ("methods", "singular_values")
        room = importlib.import_module(f"convfc.{'methods.spectrum' if spectrum else 'operators'}")
        return getattr(room, name) if name in __all__ else sys.modules[f"convfc.{name}"]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "methods", "operators"})


__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ConvGeometry",
    "ConvLayer",
    "IndexMap",
    "Inspection",
    "__version__",
    "as_conv1d",
    "col2im",
    "conv_as_matmul",
    "conv_matrix",
    "conv_offset",
    "conv_operator",
    "convert_optimizer_state",
    "explore",
    "filters_to_matrix",
    "im2col",
    "index_map",
    "inspect",
    "matrix_estimate",
    "matrix_to_filters",
    "nearest_conv",
    "patch_product",
    "register_layer",
    "rows_to_output",
    "simplify",
    "singular_values",
    "to_conv",
    "to_fc",
    "to_fully_convolutional",
    "unroll",
    "verify",
]
