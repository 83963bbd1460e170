"""ONNX: models of standard operators, with their CONV nodes as matrix products.

============ ====================================================================================
`build`      nodes in front of a node, spelled as its opset has them; sizes, known or not
`read`       what a CONV node computes, and the parts of a model
`matrices`   the matrix of a whole CONV layer, and what it holds
`linear`     what MatMul and Gemm with a constant compute
`products`   M and the product M K as nodes
`forms`      a CONV node as the nodes of its FC layer, and back
`pointwise`  MatMul and Gemm as 1 x 1 CONV nodes
`certify`    `verify`: onnxruntime runs both models, and each layer apart
`unrolled`   a CONV node as one Gemm
`inspection` `inspect`
`files`      models in files: what is refused, and how one is written whole
`inputs`     inputs that are made up for a model
`room`       ONNX as a `Room`
============ ====================================================================================
"""
