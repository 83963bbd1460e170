"""A whole network as FC layers and activations, in terms of no framework: what `simplify` is.

============ ====================================================================================
`values`     a network as sums of matrices times vectors, and ReLUs
`maps`       affine maps, found by calling them
`pieces`     what is written with ReLU: clamps, slopes, maxima
`merge`      neighbouring affine maps multiplied; branches in one sequence
`budget`     whether the FC layers fit into memory
`simplified` the options, the programs of a network, and what is remembered of it
`stages`     the certificate, stage by stage
============ ====================================================================================

A framework's room reads a network as values, and makes its own layers of them.
"""
