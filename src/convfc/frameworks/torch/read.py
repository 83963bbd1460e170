"""Reading PyTorch's CONV layers: what is one, what it computes, and in which layout.

A layer is read from its present attributes and the present shape of its weight, as its forward
reads them, never from what its constructor was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from convfc.errors import GeometryError, Refusal
from convfc.geometry import ConvGeometry
from convfc.layer import ConvLayer
from convfc.registry import REGISTERED

CONV_CLASSES: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""PyTorch's CONV layers, whose forwards convfc knows."""


def is_registered(module: nn.Module) -> bool:
    """Say whether a module is of a class that a user has registered."""
    return type(module) in REGISTERED and not isinstance(module, _ConvNd)


def read_registered(module: nn.Module) -> dict[str, Any]:
    """Return what a user's reader says of a layer, with PyTorch's defaults for the rest."""
    return {"groups": 1, "transposed": False, **REGISTERED[type(module)](module)}


def layout_of(module: Any) -> dict[str, Any]:
    """Return what says, beside its shape, how a layer's weight is laid out; None of a Linear."""
    if is_registered(module):
        read = read_registered(module)
        return {name: read[name] for name in ("transposed", "groups")}
    return {name: getattr(module, name, None) for name in ("transposed", "groups")}


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that the user gave a layer, under the one that a parametrization adds."""
    cls = type(module)
    if not parametrize.is_parametrized(module):
        return cls
    # The layer's class, but where a tool has made one of that, as fully_shard does.
    names: Any = module.parametrizations
    made = (c for c in cls.__mro__ if any(isinstance(vars(c).get(n), property) for n in names))
    return next(made).__bases__[0]


def native_class(module: nn.Module) -> type[nn.Module]:
    """Return the one of `CONV_CLASSES` that a layer is."""
    return next(cls for cls in CONV_CLASSES if isinstance(module, cls))


def obstacle(module: nn.Module, *, patch: bool = False) -> Refusal | None:
    """Return why a CONV layer cannot be converted; None if it can.

    A layer that computes exactly what PyTorch's own forward computes, from a weight that is a plain
    parameter, is known from its attributes. In ``patch`` form a layer runs the forward of its own
    class, and its weight may be computed before every call.
    """
    if isinstance(module, LazyModuleMixin):
        return Refusal(
            "its weight has no size yet", "run the model once on an input, which makes the layer"
        )
    if is_registered(module):
        weight = module._parameters.get("weight")
        if not patch or weight is None or weight.dim() < 3:
            return Refusal(
                "it is registered, and no more is known of it than its parameter weight",
                "convert it to patch form, with a CONV weight as its parameter",
            )
    elif not isinstance(module, CONV_CLASSES):
        return Refusal("its forward is its own", "build it from torch.nn's CONV layers")
    if "fc" in module._modules or "fc" in vars(module):
        return Refusal("it has a part named fc already", "rename that part")
    if patch:
        return _own_call(module) or _own_weight(module, computed=True)
    return own_forward(module) or _own_weight(module)


_METHODS = ("forward", "_conv_forward", "_output_padding", "__call__")


@cache
def overridden(cls: Any) -> str | None:
    """Return the first method in which a subclass of a CONV layer computes something else."""
    native = next((base for base in CONV_CLASSES if issubclass(cls, base)), nn.Module)
    names = (n for n in _METHODS if getattr(cls, n, None) is not getattr(native, n, None))
    return next(names, None)


def own_forward(module: nn.Module) -> Refusal | None:
    """Return what a layer does in another way than PyTorch's own; None if nothing."""
    cls: Any = own_class(module)
    name = overridden(cls) or next((n for n in _METHODS if n in vars(module)), None)
    if name is not None:
        return Refusal(
            f"its class {cls.__name__} has a {name} of its own",
            "convert it to patch form (convfc.to_fc), which runs it, or leave it out with where=",
        )
    return None


def _own_call(module: nn.Module) -> Refusal | None:
    """Return what of a layer is not in its class's forward, which goes with it to another form."""
    weight = module._parameters.get("weight")
    twins = (n for n, p in module._parameters.items() if p is weight is not None and n != "weight")
    if (twin := next(twins, None)) is not None:
        return Refusal(
            f"its weight is also its parameter {twin}", "let its forward read one of the two only"
        )
    name = next((n for n in _METHODS if n in vars(module)), None)
    if name is None and type(module).__call__ is nn.Module.__call__:
        return None
    return Refusal(
        f"it has a {name or '__call__'} of its own, beside the forward of its class",
        "put it into the class's forward, or leave the layer out with where=",
    )


def _own_weight(module: nn.Module, *, computed: bool = False) -> Refusal | None:
    """Return why the weight of a layer is not simply its parameter, or computed where it may be."""
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        if computed and [*parametrized] == ["weight"]:
            return None
        names = ", ".join(parametrized)
        return Refusal(
            f"its {names} is computed by a parametrization",
            "torch.nn.utils.parametrize.remove_parametrizations first, and parametrize the FC "
            "child afterwards",
        )
    weight = module._parameters.get("weight")
    if computed and isinstance(vars(module).get("weight"), Tensor) and "bias" in module._parameters:
        return None
    if weight is None:
        return Refusal(
            "its weight is not a parameter but computed before every call",
            "make it permanent first (torch.nn.utils.prune.remove, remove_weight_norm, "
            "remove_spectral_norm)",
        )
    if type(weight) is not nn.Parameter:
        return Refusal(
            f"its weight is a {type(weight).__name__}, not a plain parameter",
            "convert the model first and let the tool work on the FC child afterwards",
        )
    return None


def geometry_of(
    module: nn.Module, input_size: Sequence[int], output_padding: Sequence[int] | None = None
) -> ConvGeometry:
    """Return what a layer computes on an input of this spatial size, from its present attributes.

    ``padding="same"`` is made explicit for the size. An ``output_padding`` is that of one call of a
    transposed layer, instead of the layer's own.
    """
    return geometry_from(*attributes_of(module, output_padding))


def attributes_of(
    module: nn.Module, output_padding: Sequence[int] | None = None
) -> tuple[Any, ...]:
    """Return what `geometry_of` makes a geometry of, as plain values: a compiler's constants."""
    channels, filters, *kernel = _weight_sizes(module)
    transposed, groups = bool(module.transposed), module.groups
    if output_padding is None:
        output_padding = module.output_padding if transposed else 0  # type: ignore[assignment]
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        # The native forward pads by this list and does not look at `padding` any more.
        reverse: list[int] = list(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
        padding = tuple(zip(reverse[::2], reverse[1::2], strict=True))[::-1]
    return (
        (channels, filters, tuple(kernel)),
        hashable(module.stride),
        hashable(padding),
        hashable(module.dilation),
        groups,
        module.padding_mode,
        transposed,
        hashable(output_padding),
    )


@lru_cache(maxsize=1024)
def geometry_from(
    sizes: tuple[int, int, tuple[int, ...]],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: Any,
    transposed: bool,
    output_padding: Any,
) -> ConvGeometry:
    """Return the geometry of `attributes_of` a layer."""
    channels, filters, kernel = sizes
    if padding == "valid":
        padding = 0
    if padding == "same":  # PyTorch adds the odd element at the end, whatever the input size
        strides = stride if isinstance(stride, tuple) else (stride,)
        if any(step != 1 for step in strides):
            raise GeometryError(
                "padding='same' goes with stride 1 only, in PyTorch",
                where="stride",
                expected=1,
                got=stride,
                remedy="give the padding as numbers",
            )
        apart = dilation if isinstance(dilation, tuple) else (dilation,) * len(kernel)
        totals = [d * (k - 1) for d, k in zip(apart, kernel, strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    return ConvGeometry(
        channels,
        filters,
        kernel,
        stride=_one_or_all(stride),
        padding=_one_or_all(padding),
        dilation=_one_or_all(dilation),
        groups=groups,
        padding_mode=padding_mode,
        transposed=transposed,
        output_padding=_one_or_all(output_padding),
    )


def weight_to_matrix(weight: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """Return the FC weight ``(f, k)`` of a CONV weight: the filter matrix K, transposed.

    The weight is as PyTorch keeps it: ``(f, c / groups, *kernel)``; transposed ``(c, f / groups,
    *kernel)``. Columns are in PyTorch's order ``(c / groups, *kernel)``: of a layer that is not
    transposed, ``weight.flatten(1)``, which shows its memory.
    """
    matrix: Tensor = _exchanged(weight, transposed, groups).flatten(1)
    return matrix


def matrix_to_weight(
    matrix: Tensor, weight_shape: Sequence[int], *, transposed: bool, groups: int
) -> Tensor:
    """Return the CONV weight of an FC weight, in PyTorch's layout: `weight_to_matrix` inverted.

    ``weight_shape`` is the CONV weight's; as many filters as the matrix has rows are made.
    """
    first, second, *kernel = weight_shape
    per_group = first // groups if transposed else second
    return _exchanged(matrix.unflatten(1, (per_group, *kernel)), transposed, groups)


def weight_to_filters(weight: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """Return a CONV weight as convfc's filters ``(f, *kernel, c / groups)``."""
    return _exchanged(weight, transposed, groups).movedim(1, -1)


def filters_to_weight(filters: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """Return filters as a CONV weight, in PyTorch's layout: `weight_to_filters` inverted."""
    return _exchanged(filters.movedim(-1, 1), transposed, groups)


def _exchanged(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """Exchange filters and channels inside every group, if transposed; twice is as it was."""
    if not transposed:
        return weight
    by_group: Tensor = weight.unflatten(0, (groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def conv_layer(
    module: nn.Module,
    input_size: Sequence[int],
    name: str = "",
    *,
    differentiable: bool = False,
) -> ConvLayer:
    """Read a layer into convfc's own terms, for one spatial input size.

    ``differentiable`` keeps filters and bias in PyTorch's graph, so that gradients reach the layer.
    """
    geometry = geometry_of(module, input_size)
    weight: Any = module.weight
    bias: Any = module.bias
    if not differentiable:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    filters = weight_to_filters(weight, transposed=geometry.transposed, groups=geometry.groups)
    return ConvLayer(geometry, filters, bias, name)


def _weight_sizes(module: nn.Module) -> tuple[int, ...]:
    """Return (c, f, *kernel) of a layer: what its weight is, whatever its attributes say."""
    weight = module._parameters.get("weight")
    # A PatchConv has no weight of its own, a weight-form layer computes it.
    sizes: Any = getattr(module, "weight_shape", None) if weight is None else weight.shape
    sizes = module.weight.shape if sizes is None else sizes
    return sizes_of_weight(sizes, module.groups, transposed=bool(module.transposed))  # type: ignore[arg-type]


def sizes_of_weight(shape: Sequence[int], groups: int, *, transposed: bool) -> tuple[int, ...]:
    """Return (c, f, *kernel) of a CONV weight of this shape."""
    first, second, *kernel = shape
    return (first, second * groups, *kernel) if transposed else (second * groups, first, *kernel)


def hashable(value: Any) -> Any:
    """Return lists, and lists of lists, as tuples: users set both."""
    return tuple(map(hashable, value)) if isinstance(value, (list, tuple)) else value


def _one_or_all(value: Any) -> Any:
    """Return a tuple of one number as that number: PyTorch spreads it over the axes."""
    single = isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], int)
    return value[0] if single else value
