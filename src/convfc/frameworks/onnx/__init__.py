"""ONNX: models of standard operators, with their CONV nodes as matrix products.

============ ====================================================================================
`build`      nodes in front of a node, spelled as its opset has them; sizes, known or not
`read`       what a CONV node computes, and the parts of a model
`matrices`   the matrix of a whole CONV layer, and what it holds
`linear`     what MatMul and Gemm with a constant compute
`products`   M and the product M K as nodes
`forms`      a CONV node as the nodes of its FC layer, and back
`images`     MatMul and Gemm as 1 x 1 CONV nodes, and 1-D CONV nodes as 2-D ones
`certify`    `verify`: onnxruntime runs both models, and each layer apart
`unrolled`   a CONV node as one Gemm
`inspection` `inspect`
`files`      models in files: what is refused, and how one is written whole
`inputs`     inputs that are made up for a model
`profiles`   the operators that a target takes
`room`       ONNX as a `Room`
============ ====================================================================================
"""

from convfc.extras import needing

with needing():
    import onnx as _onnx  # noqa: F401 (where one is missing, the error names the extra)
    import onnx_ir as _onnx_ir  # noqa: F401
    import onnxruntime as _onnxruntime  # type: ignore[import-untyped]  # noqa: F401
