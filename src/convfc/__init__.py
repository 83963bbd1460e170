"""convfc: convolutional layers as the fully connected layers they are equal to.

It implements Ma & Lu, *An Equivalence of Fully Connected Layer and Convolutional Layer* (2017,
arXiv:1712.01252). Importing it imports NumPy, SciPy and array-api-compat only.
"""

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
from convfc.convert import convert_optimizer_state, inspect, to_conv, to_fc, verify
from convfc.explorer import explore
from convfc.geometry import ConvGeometry
from convfc.indexmap import IndexMap, index_map
from convfc.inspection import Inspection
from convfc.layer import ConvLayer
from convfc.methods.spectrum import singular_values
from convfc.operators import (
    as_conv1d,
    conv_matrix,
    conv_offset,
    conv_operator,
    matrix_estimate,
    nearest_conv,
)

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
    "rows_to_output",
    "singular_values",
    "to_conv",
    "to_fc",
    "verify",
]
