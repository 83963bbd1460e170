"""verify for a simplified network: made again of the first one, whose calls are run with numbers.

What is compared, and by which bounds, is in `convfc.mlp.stages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from convfc.comparing import wide
from convfc.frameworks.keras import backend, models
from convfc.frameworks.keras.certify import KerasNetworks
from convfc.frameworks.keras.copies import input_layers
from convfc.frameworks.keras.simplification import build, dtype_of, other_parts, read, values
from convfc.measure import Numbers
from convfc.mlp.simplified import record_of
from convfc.mlp.stages import Again, Side


def made_again(run: KerasNetworks, before: Any, after: Any) -> Again:
    """Make again what a network was simplified to."""
    record = record_of(after)
    assert record is not None, "asked before"  # noqa: S101
    programs = read(before, run.x, record.options)
    with backend.precision("float64"), backend.wide_numbers():
        again, parts = build(programs.final, "float64", input_layers(after)[0].name)

    def side(numbers: Numbers | None, network: Any) -> Side:
        found = list(map(models.to_numpy, run(before, numbers, values)))
        named = {value: found[n] for value, n in programs.original.tensors.items()}
        layers = {layer.name: _in_numpy(layer) for layer in network.layers}
        return Side(programs, named, parts, layers)

    def sides() -> Iterator[Side]:
        yield side(None, after)
        if dtype_of(before) != "float64":
            yield side(wide, again)

    differences = other_parts(again, after)
    return Again(programs, again, differences, sides, "Dense", "the same layers, in this order")


def _in_numpy(layer: Any) -> Any:
    """Return the function of a layer, of NumPy's arrays."""
    return backend.wide_numbers()(lambda x: models.to_numpy(layer(x)))
