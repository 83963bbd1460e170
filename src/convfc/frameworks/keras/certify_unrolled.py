"""verify for a layer in unrolled form: its matrix runs, and is held against the CONV layer."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from convfc.extras import needing

with needing():
    import keras

from convfc.comparing import dtype_name
from convfc.frameworks.keras import backend, models, unrolled
from convfc.frameworks.keras.certify import KerasPair, LayerSides
from convfc.measure import Call, Numbers, Side, Sides


class UnrolledPair(KerasPair):
    """A place where one of two models has an unrolled layer."""

    def on(self, call: Call) -> list[Sides]:
        """Return the pair on one input, for `measure`."""
        return [_Unrolled(self, call)]


class _Unrolled(LayerSides):
    """Two layers on one input: for what is known of a layer, an unrolled one is a CONV layer."""

    def __init__(self, pair: UnrolledPair, call: Call) -> None:
        self.real: dict[int, Any] = {}
        wrong = []
        sides = []
        for part in (pair.before, pair.after):
            side = part
            if unrolled.unrolled_of(part):
                refusal = unrolled.back_obstacle(part)
                wrong += [] if refusal is None else [refusal.reason]
                with warnings.catch_warnings():  # of how far away the closest convolution is
                    warnings.simplefilter("ignore")
                    side = unrolled.make_conv(part, project=True)
                self.real[id(side)] = part
            sides.append(side)
        super().__init__(KerasPair(pair.name, *sides), call)
        self.forms = pair.forms
        self.errors += wrong

    def made(self, numbers: Numbers | None) -> tuple[Side, Side]:
        first, second = (
            _in_numbers(self.real[id(part)], numbers)
            if id(part) in self.real
            else self._layer(part, numbers)
            for part in self.parts
        )
        return partial(self._run, first), partial(self._run, second)

    def _in_conv_layout(self, layer: Any, gradients: list[Any]) -> dict[str, Any]:
        record = unrolled.unrolled_of(layer)
        if record is None:
            found: dict[str, Any] = super()._in_conv_layout(layer, gradients)
            return found
        names = ("depthwise weight", "weight", "bias")[-1 - len(record.steps) :]
        return dict(zip(names, unrolled.folded(record, gradients), strict=False))


def _in_numbers(layer: Any, numbers: Numbers | None) -> Any:
    """Return an unrolled layer with other numbers, without its activation."""
    record, dense = unrolled.unrolled_of(layer), unrolled.dense_of(layer)
    held = [np.asarray(models.to_numpy(one.value)) for part in dense for one in part.weights]
    policy: Any = dense[0].dtype_policy.name
    if numbers is not None:
        held = [numbers(one) for one in held]
        policy = dtype_name(numbers(np.zeros(1, held[0].dtype)).dtype)
    with backend.wide_numbers():
        parts = [
            type(part).from_config({**part.get_config(), "dtype": policy, "trainable": True})
            for part in layer.layers[: 2 + len(dense)]
        ]
        shape = layer.input_shape[1:]
        made = keras.Sequential([keras.Input(shape, dtype=policy), *parts])
        made.dtype_policy = keras.DTypePolicy(policy)
        made.set_weights(held)
    vars(made).update({unrolled.ATTRIBUTE: record, "activation": keras.activations.linear})
    return made
