"""The unrolled form: a CONV layer as one large FC layer on the flattened input."""
