"""PatchConv: the patch form, a CONV layer as one small FC layer shared by all patches."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from convfc.errors import GeometryError, ShapeError, UnsupportedLayer
from convfc.frameworks.torch.forms.blocks import conv_by_blocks, conv_by_module
from convfc.frameworks.torch.forms.children import (
    Survey,
    as_parameter,
    in_a_transform,
    in_front,
    move_attributes,
    no_new_parameter,
    plain_linear,
    survey,
    taken,
)
from convfc.frameworks.torch.forms.formats import (
    in_format,
    is_channels_last,
    likely_output_format,
    native_output_format,
)
from convfc.frameworks.torch.forms.grouped import MOST_SEPARATE, GroupedLinear
from convfc.frameworks.torch.forms.whole import joined_with_gradients, lay_together, weight_of
from convfc.frameworks.torch.forms.windows import (
    Rule,
    open_rules,
    open_windows,
    patches_by_plan,
    plan,
)
from convfc.frameworks.torch.read import (
    attributes_of,
    geometry_from,
    geometry_of,
    matrix_to_weight,
    own_class,
    weight_to_matrix,
)


class PatchConv(nn.Module):
    """A CONV layer in patch form: ``fc``, a plain ``nn.Linear``, applied to every row of M.

    The child is called as a module on the patch matrix ``(N, L, k)``, so whatever works on
    ``nn.Linear`` works on it: hooks, other types of weight, another module in its place. (While it
    is a plain Linear without hooks, a faster product takes its weight directly.) Attributes are
    those of the CONV layer, and count as they are when the layer is called.

    Parameters
    ----------
    conv : nn.Module
        One of PyTorch's six CONV layers. Its bias and its hooks move over; see `to_fc`, which
        checks it first.
    separate : bool, optional
        Whether every group of a layer with groups gets a Linear ``(k, f / groups)`` of its own, in
        a ``ModuleList``, instead of one `GroupedLinear`; by default where there are 32 groups or
        fewer.

    Attributes
    ----------
    fc : nn.Linear, nn.ModuleList or GroupedLinear
        Or what a tool has put in its place.
    native : type
        The class to go back to.
    weight_shape : tuple of int
        Of the CONV layer's weight.
    weight_channels_last : bool
        Whether that weight was in channels-last format.

    Examples
    --------
    >>> layer = PatchConv(nn.Conv2d(3, 8, 4, stride=2))
    >>> type(layer.fc) is nn.Linear, layer.fc.weight.shape
    (True, torch.Size([8, 48]))
    >>> layer(torch.zeros(1, 3, 28, 28)).shape
    torch.Size([1, 8, 13, 13])
    >>> PatchConv(nn.Conv2d(96, 96, 3, groups=96)).fc
    GroupedLinear(in_features=864, out_features=96, groups=96, bias=True)
    """

    native: type[nn.Module]
    weight_shape: tuple[int, ...]
    weight_channels_last: bool
    transposed: bool
    groups: int
    padding_mode: str

    def __init__(self, conv: nn.Module, *, separate: bool | None = None) -> None:
        super().__init__()
        move_attributes(conv, self)
        weight, bias = conv._parameters["weight"], conv._parameters["bias"]
        assert weight is not None, "to_fc refuses layers without one"  # noqa: S101
        self.native = own_class(conv)
        self.weight_shape = tuple(weight.shape)
        self.weight_channels_last = is_channels_last(weight)
        groups, matrix = self.groups, self.to_matrix(weight.detach())
        grad = None if weight.grad is None else self.to_matrix(weight.grad)
        separate = groups <= MOST_SEPARATE if separate is None else separate
        if groups == 1:
            self.fc: nn.Module = plain_linear(as_parameter(matrix, weight, grad), bias)
        elif separate:
            weights = _chunks(matrix, weight, grad, groups)
            biases: Sequence[nn.Parameter | None] = [None] * groups
            if bias is not None:
                biases = _chunks(bias.detach(), bias, bias.grad, groups)
            self.fc = nn.ModuleList(map(plain_linear, weights, biases))
            self._lay_together()
        else:
            blocks = (groups, -1, matrix.shape[1])
            grad = None if grad is None else grad.reshape(blocks)
            self.fc = GroupedLinear(as_parameter(matrix.reshape(blocks), weight, grad), bias)
        self.fc.train(self.training)

    def _lay_together(self, *, shared: bool = False) -> None:
        """Give the parameters of the groups one memory each, for weight and for bias."""
        if not isinstance(self._modules.get("fc"), nn.ModuleList):
            return
        found = survey(self.fc)
        lay_together(found.weights or [], shared=shared)
        lay_together([bias for bias in found.biases if bias is not None], shared=shared)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the parameters, each of which then has a memory of its own."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._lay_together()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy or a pickle, in which each parameter has its own memory."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lay_together(shared=True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; weight and bias are those of the FC children."""
        if name in ("weight", "bias"):
            raise no_new_parameter(name, "patch form", "its FC child: layer.fc")
        super().__setattr__(name, value)

    def share_weight(self, other: PatchConv) -> None:
        """Use another layer's FC weight as one's own: two CONV layers that shared theirs."""
        for mine, theirs in zip(self.children_fc, other.children_fc, strict=True):
            mine.weight = theirs.weight

    @property
    def spatial_ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.weight_shape) - 2

    @property
    def children_fc(self) -> list[nn.Module]:
        """The FC children: one, or one per group."""
        return list(self.fc) if isinstance(self.fc, nn.ModuleList) else [self.fc]

    def is_plain(self) -> bool:
        """Say whether every FC child is exactly an FC layer with plain weights, unhooked.

        Only then may its weight be used without calling it.
        """
        found = self._survey()
        return found.weights is not None and not found.hooked

    def holds_conv_weight(self) -> bool:
        """Say whether the FC children hold the weight of a CONV layer, hooked or not."""
        return self._survey().weights is not None

    def matrix(self) -> Tensor:
        """Return the FC weight ``(f, k)`` of plain FC children, through which gradients flow.

        Raises
        ------
        UnsupportedLayer
            If a tool has put something else in their place.
        """
        return joined_with_gradients(self._plain(self._survey())).flatten(0, -2)

    def _survey(self) -> Survey:
        """Look at the FC children; of one nn.Linear for all groups the weight is none of M's."""
        found = survey(self.fc)
        other = self.groups > 1 and type(self.fc) is nn.Linear
        return found._replace(weights=None) if other else found

    def _plain(self, found: Survey) -> list[Tensor]:
        """Return the weights of the FC children if they are the weight of a CONV layer."""
        if found.weights is None:
            kinds = ", ".join(sorted({type(fc).__name__ for fc in self.children_fc}))
            raise UnsupportedLayer(
                "the FC layer has no plain weight of its own any more",
                where="fc",
                expected="nn.Linear" if self.groups == 1 else "nn.Linear or GroupedLinear",
                got=kinds,
                remedy="read the weight from the tool's module, or take the model back with "
                "convfc.to_conv",
            )
        return found.weights

    @property
    def weight(self) -> Tensor:
        """The weight in the CONV layer's layout: what is written into it reaches the FC weight."""
        return self._weight_and_bias()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias of plain FC children, shape ``(f,)``, or None if none of them has one."""
        return self._weight_and_bias()[1]

    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Return both in the CONV layer's layout, from one look at the FC children."""
        found = self._survey()
        weights, biases = self._plain(found), found.biases

        def back(weight: Tensor) -> Tensor:
            return self.to_matrix(weight).reshape(-1, *weights[0].shape[1:])

        weight = weight_of(weights, self.to_weight, back)
        if len(biases) == 1 or any(bias is None for bias in biases):
            return weight, _whole(weights, biases)
        return weight, weight_of(biases, lambda whole: whole, lambda whole: whole)  # type: ignore[arg-type]

    def _held(self) -> dict[str, Tensor]:
        """Return weight and bias by name; neither if a tool has changed the FC layer."""
        if not self.holds_conv_weight():
            return {}
        weight, bias = self._weight_and_bias()
        return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return a weight in the CONV layer's layout as an FC weight ``(f, k)``."""
        return weight_to_matrix(weight, transposed=self.transposed, groups=self.groups)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Return an FC weight, or its blocks, in the CONV layer's layout: a view if possible."""
        return matrix_to_weight(
            matrix.flatten(0, -2), self.weight_shape, transposed=self.transposed, groups=self.groups
        )

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return what the CONV layer returns, in the same memory format.

        Parameters
        ----------
        input : Tensor, shape (N, c, *spatial) or (c, *spatial)
        output_size : sequence of int, optional
            Of transposed layers, as PyTorch's take it.

        Raises
        ------
        ShapeError, GeometryError
            If the input does not fit the layer.
        """
        batched = self._check(input)
        whole = input if batched else input.unsqueeze(0)
        extra = self._extra(whole, output_size)
        found = self._survey()
        if found.hooked or found.whole or in_a_transform(whole):
            y = self._in_one_call(whole, extra)
        else:
            y = self._in_blocks(whole, extra, found)
        return y if batched else y.squeeze(0)

    def _in_one_call(self, input: Tensor, extra: Sequence[int] | None) -> Tensor:
        """Call the FC layer once on all of M, with operations that PyTorch can trace."""
        x, attributes = input, attributes_of(self, extra)
        if torch.compiler.is_compiling():
            x, axes = open_windows(x, *_constant_rules(attributes))
        else:
            axes = plan(geometry_from(*attributes), tuple(map(operator.index, x.shape[2:])))
        rows = self.rows(patches_by_plan(x, axes, self.groups))
        y = rows.transpose(1, 2).unflatten(2, tuple([axis.positions for axis in axes]))
        last = self.weight_channels_last
        return in_format(
            y, likely_output_format(input, self.padding_mode, weight_channels_last=last)
        )

    def _in_blocks(self, x: Tensor, extra: Sequence[int] | None, found: Survey) -> Tensor:
        """Walk M in blocks; take the weight itself where the FC layer is plain."""
        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        geometry = geometry_of(self, x.shape[2:], extra)
        memory_format = native_output_format(
            x, geometry, self.padding_mode, weight_channels_last=self.weight_channels_last
        )
        if autocast or found.weights is None:
            out = geometry.out_channels
            return conv_by_module(x, self.rows, geometry, out, memory_format=memory_format)
        weights, biases = found.weights, found.biases
        if any(bias is None for bias in biases):
            biases = [_whole(weights, biases)]
        if isinstance(self.fc, GroupedLinear):
            weights = [weights[0].flatten(0, 1)]
        return conv_by_blocks(x, weights, biases, geometry, memory_format=memory_format)

    def rows(self, patches: Tensor) -> Tensor:
        """Return the FC layer's outputs ``(N, L, f)`` of rows of M, ``(N, L, groups * k)``."""
        if not isinstance(self.fc, nn.ModuleList):
            out: Tensor = self.fc(patches)
            return out
        parts = patches.chunk(self.groups, dim=-1)
        return torch.cat([fc(part) for fc, part in zip(self.fc, parts, strict=True)], dim=-1)

    def extra_repr(self) -> str:
        """Return the CONV layer's own description."""
        # What a tool has put there shows itself.
        bias = self.bias if self.holds_conv_weight() else ...
        shown: Any = SimpleNamespace(**vars(self), bias=bias)
        return f"{self.native.__name__}: {_ConvNd.extra_repr(shown)}"

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the CONV layer's state while the FC children are plain: ``weight`` and ``bias``.

        A tool's own module in their place is saved as that module saves itself.
        """
        state, held = super().state_dict(*args, **kwargs), self._held()
        prefix = args[1] if len(args) > 1 else kwargs.get("prefix", "")
        keep = args[2] if len(args) > 2 else kwargs.get("keep_vars", False)
        entries = {prefix + name: t if keep else t.detach() for name, t in held.items()}
        return in_front(state, entries, prefix, f"{prefix}fc.") if held else state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        messages = args[-1] if args else kwargs["error_msgs"]
        for name, own in self._held().items():
            tensor = taken(state_dict, prefix + name, own.detach(), messages)
            if tensor is None:
                continue
            if name == "weight":
                tensor = self.to_matrix(tensor)
            if isinstance(self.fc, nn.ModuleList):
                parts = enumerate(tensor.chunk(self.groups))
                state_dict.update({f"{prefix}fc.{group}.{name}": part for group, part in parts})
            else:
                state_dict[f"{prefix}fc.{name}"] = tensor.reshape(self.fc._parameters[name].shape)  # type: ignore[union-attr]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _extra(self, x: Tensor, output_size: Sequence[int] | None) -> Sequence[int] | None:
        """Return this call's output padding, as PyTorch's own method works it out."""
        if not self.transposed or output_size is None:
            return None
        me: Any = self
        rest = (me.stride, me.padding, me.kernel_size, self.spatial_ndim, me.dilation)
        return _ConvTransposeNd._output_padding(me, x, list(output_size), *rest)

    def _check(self, x: Tensor) -> bool:
        """Return whether the input has a batch axis, after checking that it fits."""
        ndim = self.spatial_ndim
        channels = self.weight_shape[0 if self.transposed else 1]
        channels = channels if self.transposed else channels * self.groups
        if x.dim() not in (ndim + 1, ndim + 2) or x.shape[-ndim - 1] != channels:
            sizes = ", ".join(f"size {axis}" for axis in range(ndim))
            raise ShapeError(
                "the input does not fit the layer",
                where=f"{self.native.__name__} in patch form",
                expected=f"(N, {channels}, {sizes}) or ({channels}, {sizes})",
                got=tuple(x.shape),
                remedy="check the channels and the number of axes",
            )
        # A compiler calls PyTorch's own padding, which refuses by itself.
        if self.padding_mode == "circular" and not torch.compiler.is_compiling():
            pairs = geometry_of(self, x.shape[-ndim:]).padding
            for axis, (size, pair) in enumerate(zip(x.shape[-ndim:], pairs, strict=True)):
                if max(pair) > size:
                    raise GeometryError(
                        "circular padding goes round the input more than once on "
                        f"axis {axis}, which PyTorch does not do",
                        where="padding",
                        expected=f"at most {size} on each side",
                        got=pair,
                        remedy="use less padding, or a larger input",
                    )
        return x.dim() == ndim + 2


def _whole(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """Return the biases of all groups as one, with zeros where a group has none; None if none."""
    if all(bias is None for bias in biases):
        return None
    held = [
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return held[0] if len(held) == 1 else torch.cat(held)


def _chunks(
    value: Tensor, like: nn.Parameter, grad: Tensor | None, groups: int
) -> list[nn.Parameter]:
    """Return one parameter per group, each with its part of a value and of its gradient."""
    grads = [None] * groups if grad is None else grad.chunk(groups)
    parts = zip(value.chunk(groups), grads, strict=True)
    return [as_parameter(part, like, own) for part, own in parts]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_rules(attributes: tuple[Any, ...]) -> tuple[str, tuple[Rule, ...]]:
    """Return how a layer pads and reads, which a compiler takes as a constant."""
    return open_rules(geometry_from(*attributes))
