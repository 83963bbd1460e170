"""The FC layers in a CONV layer in patch form: made, looked at, and given other numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import UnsupportedLayer
from convfc.frameworks.keras.grouped import GroupedDense
from convfc.frameworks.keras.parts import Part, acting, is_acted_on, value_of
from convfc.room import MOST_SEPARATE

FC = (keras.layers.Dense, GroupedDense)
"""The FC layers that `to_form` makes."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Of a layer that computes with PyTorch."""


def make_children(layer: Any, part: Part, kernel: Any, bias: Any) -> Any:
    """Return the FC layers of a part, with the values of a kernel and a bias."""
    groups = part.groups
    separate = _may_be_apart(layer, part) if layer.separate is None else layer.separate
    if groups == 1 or not separate:
        return _child(layer, part, part.fc, kernel, bias)
    return [_child(layer, part, f"{part.fc}_{g}", kernel, bias, g) for g in range(groups)]


def _child(
    layer: Any, part: Part, name: str, kernel: Any, bias: Any, group: int | None = None
) -> Any:
    """Return the FC layer of all groups, or of one."""
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        policy = policy[layer.path]
    options = {
        "name": name,
        "dtype": policy,
        "autocast": layer.autocast,
        "trainable": layer.trainable,
        "use_bias": bias is not None,
        "bias_initializer": value_of(bias, partial(_share, part=part, group=group)),
        "kernel_initializer": value_of(kernel, partial(_block, part=part, group=group)),
        **acting(layer, part.kind, "kernel_", part=part),
        **(acting(layer, "bias", "bias_") if part.bias else {}),
    }
    if group is None and part.groups > 1:
        child: Any = GroupedDense(part.filters, part.groups, **options)
    else:
        units = part.filters if group is None else part.filters // part.groups
        child = keras.layers.Dense(units, **options)
    child.build((None, part.taps * (part.groups if group is None else 1)))
    # Not Keras's default, which would draw a seed; and the values are no part of a config.
    child.kernel_initializer = child.bias_initializer = keras.initializers.Zeros()
    child._kernel.trainable = kernel.trainable
    if bias is not None:
        child.bias.trainable = bias.trainable
    return child


def _block(kernel: Any, part: Part, group: int | None) -> Any:
    """Return a kernel as that of the FC layer of all groups, or of one."""
    matrix = part.to_matrix(kernel, part.groups)
    return matrix if group is None else matrix[group]


def _share(bias: Any, part: Part, group: int | None) -> Any:
    """Return a bias as that of the FC layer of all groups, or of one."""
    count = part.filters // part.groups
    return bias if group is None else bias[group * count : (group + 1) * count]


def _may_be_apart(layer: Any, part: Part) -> bool:
    return part.groups <= MOST_SEPARATE and not is_acted_on(layer, part)


def is_as_made(child: Any) -> bool:
    """Say whether an FC layer is one that `to_form` makes, and nothing more."""
    return (
        type(child) in FC
        and child.built
        and child.quantization_mode is None
        and not getattr(child, "lora_enabled", False)
        and _is_linear(child)
    )


def _is_linear(child: Any) -> bool:
    return getattr(child, "activation", None) in (None, keras.activations.linear)


def is_untouched(child: Any) -> bool:
    """Say whether Keras's own convolution may stand for an FC layer."""
    hooked = any(vars(child).get(name) for name in HOOKS)
    return is_as_made(child) and "call" not in vars(child) and not hooked


def misfit(layer: Any, part: Part, child: Any) -> str | None:
    """Return why an FC layer does not hold its share of a CONV layer's kernel, or None."""
    why = None
    apart = isinstance(getattr(layer, part.fc), list)
    filters, groups = (part.filters // part.groups, 1) if apart else (part.filters, part.groups)
    shape = (part.taps, filters) if groups == 1 else (groups, part.taps, filters // groups)
    if type(child) not in FC:
        why = f"a {type(child).__name__} has taken the place of a Dense"
    elif not child.built:
        why = "its FC layer has no weights yet"
    elif child.quantization_mode not in (None, "int8"):
        why = f"its FC layer is quantised ({child.quantization_mode})"
    elif "call" in vars(child) or not _is_linear(child):
        why = "its FC layer has a call or an activation of its own"
    elif (child.bias is not None) != (part.bias and layer.use_bias):
        why = f"its FC layer has {'no' if child.bias is None else 'a'} bias, unlike the CONV layer"
    elif tuple(child._kernel.shape) != shape:
        why = f"its FC kernel is {tuple(child._kernel.shape)}, not {shape}"
    return why


def matrix_of(child: Any) -> Any:
    """Return the kernel by which an FC layer multiplies: with LoRA, dequantised."""
    if type(child) not in FC:
        raise UnsupportedLayer(
            "the kernel of the FC layer is not known",
            where=child.name,
            expected="Dense or GroupedDense",
            got=type(child).__name__,
            remedy="read it from the layer that has taken its place",
        )
    if child.quantization_mode != "int8":
        return tensor(child.kernel)
    ops = keras.ops
    kernel = ops.divide(ops.cast(child._kernel, child.compute_dtype), child.kernel_scale)
    if child.lora_enabled:
        kernel += (
            child.lora_alpha
            / child.lora_rank
            * ops.matmul(child.lora_kernel_a, child.lora_kernel_b)
        )
    return kernel


def tensor(variable: Any) -> Any:
    """Return the value of a variable: on TensorFlow, Keras joins tensors only."""
    return keras.ops.reshape(variable, variable.shape)


def kernel_trains(layer: Any, part: Part) -> bool:
    """Say whether a kernel trains, of itself or by what is folded into it."""
    if layer.form == "weight":
        return bool(getattr(layer, part.matrix).trainable)
    return any(
        child.quantization_mode is not None
        or child._kernel.trainable
        or (getattr(child, "lora_enabled", False) and child.lora_kernel_b.trainable)
        for child in layer.fc_layers(part)
    )


def biased(layer: Any) -> list[Any]:
    """Return the FC layers that have a bias."""
    return [child for child in layer.all_fc_layers() if child.bias is not None]


def assign_kernel(layer: Any, part: Part, value: Any) -> None:
    """Give a part of a layer in FC form the kernel of a CONV layer; LoRA starts anew."""
    if layer.form == "weight":
        getattr(layer, part.matrix).assign(part.to_matrix(value, 1))
        return
    for child, group in with_groups(layer, part):
        child._kernel.assign(_block(value, part, group))
        if getattr(child, "lora_enabled", False):
            for factor in (child.lora_kernel_a, child.lora_kernel_b):
                factor.assign(keras.ops.zeros(factor.shape))


def assign_bias(layer: Any, value: Any) -> None:
    """Give a layer in FC form the bias of a CONV layer."""
    if layer.form == "weight":
        layer.bias.assign(value)
        return
    part = layer.parts[-1]
    for child, group in with_groups(layer, part):
        child.bias.assign(_share(value, part, group))


def with_groups(layer: Any, part: Part) -> list[tuple[Any, int | None]]:
    """Return each FC layer of a part with its group; None if it is that of all groups."""
    children = layer.fc_layers(part)
    apart = isinstance(getattr(layer, part.fc), list)
    return [(child, g if apart else None) for g, child in enumerate(children)]
