"""FC layers beside ``keras.layers.Dense``: of all groups as one, and what acts on their kernels.

A kernel is, in a CONV class, ``(*kernel, c / groups, f)``, or of a transposed one
``(*kernel, f, c)``; in FC layers it is K, ``(k, f)``, or one matrix per group,
``(groups, k, f / groups)``. Here is the one place that turns one into the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from convfc.extras import needing

with needing():
    import keras


def to_matrix(kernel: Any, filters: int, *, transposed: bool = False, groups: int = 1) -> Any:
    """Return a kernel of a CONV layer as K ``(k, f)``; with groups, ``(groups, k, f / groups)``."""
    ops = keras.ops
    matrix = ops.reshape(ops.swapaxes(kernel, -1, -2) if transposed else kernel, (-1, filters))
    if groups == 1:
        return matrix
    return ops.swapaxes(ops.reshape(matrix, (-1, groups, filters // groups)), 0, 1)


def to_kernel(matrix: Any, shape: Sequence[int], *, transposed: bool = False) -> Any:
    """Return K, or the matrices of its groups, as a kernel of this shape of a CONV layer."""
    ops = keras.ops
    if len(matrix.shape) == 3:
        groups, _, filters = matrix.shape
        matrix = ops.reshape(ops.swapaxes(matrix, 0, 1), (-1, groups * filters))
    if not transposed:
        return ops.reshape(matrix, shape)
    *sizes, filters, channels = shape
    kernel = ops.swapaxes(ops.reshape(matrix, (*sizes, channels, filters)), -1, -2)
    # By way of one axis, so that PyTorch lays it out, and adds it up, as the CONV layer's.
    return ops.reshape(ops.reshape(kernel, (-1,)), shape)


@keras.saving.register_keras_serializable(package="convfc")
class GroupedDense(keras.layers.Layer):  # type: ignore[misc]
    """FC layers side by side: each has its own share of the inputs and gives its own outputs.

    It equals one ``keras.layers.Dense`` whose kernel is block-diagonal, and holds the blocks only,
    as its ``kernel``, ``(groups, k, units / groups)``.

    Parameters
    ----------
    units : int
        Outputs of all groups together.
    groups : int
    use_bias : bool
    kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer : optional
    kernel_constraint, bias_constraint : optional
        As those of ``keras.layers.Dense``.
    **kwargs
        Those of every Keras layer.

    Examples
    --------
    >>> layer = GroupedDense(2, 2, kernel_initializer="ones")
    >>> keras.ops.convert_to_numpy(layer(keras.ops.reshape(keras.ops.arange(4.0), (1, 4)))).tolist()
    [[1.0, 5.0]]
    """

    def __init__(
        self,
        units: int,
        groups: int,
        use_bias: bool = True,
        kernel_initializer: Any = "zeros",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units, self.groups, self.use_bias = units, groups, use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights for inputs of ``groups * k`` numbers."""
        columns = cast("int", input_shape[-1]) // self.groups
        self._kernel = self.add_weight(
            name="kernel",
            shape=(self.groups, columns, self.units // self.groups),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    @property
    def kernel(self) -> Any:
        """The matrices of the groups, ``(groups, k, units / groups)``."""
        return self._kernel

    def call(self, inputs: Any) -> Any:
        """Return the outputs ``(..., units)`` of rows ``(..., groups * k)``."""
        ops, kernel = keras.ops, self.kernel
        between = inputs.shape[1:-1]
        rows = ops.reshape(inputs, (-1, *between, *kernel.shape[:2]))
        outputs = ops.reshape(
            ops.einsum("...gk,gkf->...gf", rows, kernel), (-1, *between, self.units)
        )
        return outputs if self.bias is None else ops.add(outputs, self.bias)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return ``(..., units)``."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments as plain JSON values."""
        config = {"units": self.units, "groups": self.groups, "use_bias": self.use_bias}
        for kind in ("initializer", "regularizer", "constraint"):
            serialize = getattr(keras, f"{kind}s").serialize
            for of in ("kernel", "bias"):
                config[f"{of}_{kind}"] = serialize(getattr(self, f"{of}_{kind}"))
        return {**super().get_config(), **config}


class _InConvLayout:
    """What acts on the kernel of a CONV layer, acting on the kernel of the FC layer it equals.

    On anything of another size, as LoRA's factors are, it acts as it is.
    """

    def __init__(self, inner: Any, shape: Sequence[int], transposed: bool = False) -> None:
        self.inner, self.shape, self.transposed = inner, tuple(shape), transposed

    def kernel(self, matrix: Any) -> Any:
        if math.prod(matrix.shape) != math.prod(self.shape):
            return matrix
        return to_kernel(matrix, self.shape, transposed=self.transposed)

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner)
        return {"inner": inner, "shape": list(self.shape), "transposed": self.transposed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        inner = keras.saving.deserialize_keras_object(config["inner"])
        return cls(**{**config, "inner": inner})


@keras.saving.register_keras_serializable(package="convfc")
class KernelRegularizer(_InConvLayout, keras.regularizers.Regularizer):  # type: ignore[misc]
    """The regulariser of a CONV kernel, for an FC kernel: to the bit the same loss."""

    def __call__(self, matrix: Any) -> Any:
        """Return the penalty."""
        return self.inner(self.kernel(matrix))


@keras.saving.register_keras_serializable(package="convfc")
class KernelConstraint(_InConvLayout, keras.constraints.Constraint):  # type: ignore[misc]
    """The constraint of a CONV kernel, for an FC kernel."""

    def __call__(self, matrix: Any) -> Any:
        """Return the matrix that it allows."""
        allowed = self.inner(self.kernel(matrix))
        groups = matrix.shape[0] if len(matrix.shape) == 3 else 1
        filters = matrix.shape[-1] * groups
        return to_matrix(allowed, filters, transposed=self.transposed, groups=groups)
