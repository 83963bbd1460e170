"""A whole CONV layer as one linear map on the flattened input: a matrix, or free of one.

============== ==================================================================================
`matrix`       the matrix, dense or sparse, and the bias as a vector
`estimate`     how large the matrix would be, and whether it fits
`pattern`      where the matrix has entries, and which weights each of them holds
`matrixfree`   the same map as a SciPy operator that holds nothing but the filters
`nearest`      the way back: the closest convolution to a matrix, dense or sparse
`conv1d`       an N-dimensional convolution as one 1-D convolution
============== ==================================================================================
"""

from convfc.operators.conv1d import Conv1dForm, as_conv1d
from convfc.operators.estimate import MatrixEstimate, matrix_estimate
from convfc.operators.matrix import conv_matrix, conv_offset
from convfc.operators.matrixfree import ConvOperator, conv_operator
from convfc.operators.nearest import NearestConv, nearest_conv

__all__ = [
    "Conv1dForm",
    "ConvOperator",
    "MatrixEstimate",
    "NearestConv",
    "as_conv1d",
    "conv_matrix",
    "conv_offset",
    "conv_operator",
    "matrix_estimate",
    "nearest_conv",
]
