"""A whole CONV layer as one linear map on the flattened input: a matrix, or free of one.

============== ==================================================================================
`matrix`       the matrix, dense or sparse, its size beforehand, and the bias as a vector
`matrixfree`   the same map as a SciPy operator that holds nothing but the filters
`nearest`      the way back: the closest convolution to a matrix
`conv1d`       an N-dimensional convolution as one 1-D convolution
============== ==================================================================================
"""

from convfc.operators.matrix import conv_matrix, conv_offset

__all__ = ["conv_matrix", "conv_offset"]
