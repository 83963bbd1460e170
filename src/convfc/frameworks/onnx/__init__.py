"""ONNX: files and models of standard operators, with their CONV nodes as matrix products."""
