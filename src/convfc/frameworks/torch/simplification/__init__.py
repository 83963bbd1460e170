"""A whole CONV network as a plain MLP: FC layers and activations, nothing else.

What is done with it between reading and making is in `convfc.mlp`.

============ ====================================================================================
`simplified` the verb, the reading of a network, and what the result remembers
`trace`      the model, run once, as calls of ATen's operators
`operations` what each of them does to a value: a table, open for registration
`emit`       the modules
`unchanged`  the CONV network again, if the numbers are still its own
============ ====================================================================================
"""

from convfc.frameworks.torch.simplification.operations import OPERATIONS
from convfc.frameworks.torch.simplification.simplified import simplify
from convfc.frameworks.torch.simplification.unchanged import restore

__all__ = ["OPERATIONS", "restore", "simplify"]
