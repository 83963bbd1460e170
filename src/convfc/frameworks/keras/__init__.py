"""The room of Keras 3: its layers, its backend and precision, and the layers of the FC form.

==================== ============================================================================
`read`               what one of Keras's CONV layers computes, in convfc's own terms
`forms`              one CONV layer as an FC layer, and back, in place
`children`           the FC layers in it
`parts`              what a CONV layer consists of, and its variables
`grouped`            the FC layer of all groups as one, and the layouts of kernels
`products`           the patch matrix M with ``keras.ops``
`copies`             a model made again with other layers in some places
`unrolled`           a CONV layer as Flatten, Dense and Reshape, and back; two Dense, if separable
`certify_unrolled`   `verify` of that
`operations`         what each layer does to a value of a network: a table, open for registration
`simplification`     a whole network as Dense and ReLU
`certify_simplified` `verify` of that
`layers`             the layer that builds M, for models written by hand
`backend`            choosing a backend and a precision
==================== ============================================================================

Importing the room does not import Keras, because the choice of a backend has to come before that;
its functions are only called when the user has imported Keras.
"""
