"""A simplified network in a certificate: made again of the first one, which is traced with numbers.

What is compared, and by which bounds, is in `convfc.mlp.stages`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from convfc.comparing import wide
from convfc.errors import ShapeError
from convfc.frameworks.torch.certify.networks import Runner
from convfc.frameworks.torch.certify.pairs import cast
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplification.emit import emit
from convfc.frameworks.torch.simplification.simplified import Read, made_of, read
from convfc.frameworks.torch.simplification.trace import Trace, trace
from convfc.frameworks.torch.simplification.unchanged import other_parts
from convfc.mlp.simplified import record_of
from convfc.mlp.stages import Again, Side, another

_CALLS = "the same calls of PyTorch's functions"


def made_again(run: Runner, before: nn.Module, after: nn.Module) -> Again:
    """Make again what a network was simplified to."""
    record = record_of(after)
    assert record is not None, "asked before"  # noqa: S101
    given = [*run.args, *run.kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise ShapeError(
            "a simplified network takes one tensor",
            where="x",
            expected="one tensor",
            got=f"{len(given)} arguments",
        )
    (x,) = given
    first, example, double = cast(deep_copy(before), wide), wide(x), True
    try:
        found = read(first, (example,), record.options, numbers=True)
    except ShapeError:
        # It makes constants of its own dtype, which is said of the network.
        first, example, double = before, x, False
        found = read(first, (example,), record.options, numbers=True)
    # Sparse, since its zeros would take most of the memory.
    again = made_of(found.programs, first, example, sparse_weights=True)
    # By value, the names of the modules that compute it: on the meta device nothing is made.
    parts = emit(found.programs.final, torch.float32, torch.device("meta")).parts

    def side(before: nn.Module, x: Tensor, after: nn.Module) -> Side:
        tensors = _run(found, before, x).tensors
        named = {v: tensors[i] for v, i in found.programs.original.tensors.items()}
        modules = after.named_modules()
        layers = {name: torch.no_grad()(module.__call__) for name, module in modules}
        return Side(found.programs, named, parts, layers)

    def sides() -> Iterator[Side]:
        yield side(before, x, after)
        if example.dtype != x.dtype:
            yield side(first, example, again)

    return Again(found.programs, again, other_parts(again, after), sides, "Linear", _CALLS, double)


def _run(found: Read, network: nn.Module, x: Tensor) -> Trace:
    """Return the run of a network on all of x: the one that was read, if it was on that."""
    if len(x) <= 2 and found.run.tensors[0].dtype == x.dtype:
        return found.run
    run = trace(network, x if len(x) > 1 else x[[0, 0]], numbers=True)
    if run.signature != found.programs.original.signature:
        raise another(_CALLS)
    return run
