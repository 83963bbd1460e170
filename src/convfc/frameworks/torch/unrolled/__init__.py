"""The unrolled form: a CONV layer as one large FC layer on the flattened input.

============== ==================================================================================
`options`      what ``to_fc`` is asked for, and what does not go together
`form`         a CONV layer as Flatten, Linear, Unflatten
`record`       what such a layer remembers
`entries`      what a matrix holds in the pattern of a CONV layer
`back`         the CONV layer again
`sparse`       weights in compressed sparse rows
============== ==================================================================================
"""
