"""The forms of a CONV layer: patch, weight and unrolled, what computes them, and which is which."""
