"""PatchConv: the patch form, a CONV layer as one small FC layer shared by all patches."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from convfc.errors import GeometryError, ShapeError, UnsupportedLayer
from convfc.frameworks.torch.forms.blocks import Unbuilt, conv_by_blocks, conv_by_module
from convfc.frameworks.torch.forms.calls import Convolution, by_class
from convfc.frameworks.torch.forms.children import (
    FC,
    Survey,
    as_parameter,
    in_a_transform,
    in_front,
    inner_layer,
    is_untouched,
    move_attributes,
    no_new_parameter,
    plain_linear,
    survey,
    taken,
    transforming,
)
from convfc.frameworks.torch.forms.formats import (
    channels_last,
    in_format,
    is_channels_last,
    likely_output_format,
    native_output_format,
)
from convfc.frameworks.torch.forms.grouped import GroupedLinear
from convfc.frameworks.torch.forms.shown import Role, Shown, as_plain, as_shown, weight_of
from convfc.frameworks.torch.forms.whole import joined_with_gradients, lay_together
from convfc.frameworks.torch.forms.windows import (
    Axis,
    open_windows,
    patches_at_once,
    plan,
)
from convfc.frameworks.torch.read import (
    attributes_of,
    geometry_of,
    is_registered,
    matrix_to_weight,
    overridden,
    own_class,
    read_registered,
    weight_to_matrix,
)
from convfc.frameworks.torch.running import in_mode, sum_of_bits
from convfc.geometry import ConvGeometry
from convfc.room import MOST_SEPARATE, Product


class PatchConv(nn.Module):
    """A CONV layer in patch form: ``fc``, a plain ``nn.Linear``, applied to every row of M.

    The child is called as a module on the patch matrix ``(N, L, k)``, so whatever works on
    ``nn.Linear`` works on it: hooks, other types of weight, another module in its place. While
    nothing has touched it, PyTorch's own convolution computes the same product without M, to the
    bits of the CONV layer. Attributes are those of the CONV layer, and count as they are when the
    layer is called.

    A subclass of PyTorch's layers with a forward of its own runs that forward; the convolution in
    it is the FC child's. A weight that is computed before every call (weight norm, pruning) is
    computed as before, and given to the FC child.

    Parameters
    ----------
    conv : nn.Module
        One of PyTorch's six CONV layers. Its bias and its hooks move over; see `to_fc`, which
        checks it first.
    separate : bool, optional
        Whether every group of a layer with groups gets a Linear ``(k, f / groups)`` of its own, in
        a ``ModuleList``, instead of one `GroupedLinear`; by default where there are 32 groups or
        fewer.
    product : {"auto", "matrix"}, optional
        "matrix" computes M K even while nothing has touched the FC child.

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

    native: Any
    product: Product
    weight_shape: tuple[int, ...]
    weight_channels_last: bool
    transposed: bool
    groups: int
    padding_mode: str

    def __init__(
        self, conv: nn.Module, *, separate: bool | None = None, product: Product = "auto"
    ) -> None:
        nn.Module.__init__(self)  # nothing of a class from `patch_of` between
        move_attributes(conv, self)
        self.added: tuple[str, ...] = ()
        if is_registered(conv):
            read = {**read_registered(conv), "padding_mode": "zeros"}
            self.added = tuple(name for name in read if name not in vars(self))
            vars(self).update({name: read[name] for name in self.added})
        with in_mode(conv, lambda _: False):  # spectral norm takes a step wherever it is read
            weight: Any = conv.weight
        bias = conv._parameters.get("bias")
        if parametrize.is_parametrized(conv):
            self._modules["parametrizations"] = conv._modules["parametrizations"]
        self.native, self.product = own_class(conv), product
        self.own_forward = overridden(self.native) is not None
        self.changes_weight = False  # whether a forward was seen to convolve with another than it
        self.weight_shape = tuple(weight.shape)
        self.weight_channels_last = is_channels_last(weight)
        groups, matrix = self.groups, self.to_matrix(weight.detach())
        computed = conv._parameters.get("weight") is None
        grad = None if computed or weight.grad is None else self.to_matrix(weight.grad)
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
        for child in self.children_fc if computed else ():
            vars(child)["weight"] = child._parameters.pop("weight").detach()  # type: ignore[union-attr]
        self.shown_bits = self._shown_bits()
        self.fc.train(self.training)

    def _lay_together(self, *, shared: bool = False) -> None:
        """Give the parameters of the groups one memory each, for weight and for bias."""
        if not isinstance(self._modules.get("fc"), nn.ModuleList):
            return
        found = survey(self.fc)
        lay_together(found.weights or [], shared=shared)
        lay_together([bias for bias in found.biases if bias is not None], shared=shared)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the parameters, each of which then has a memory of its own.

        ``.to(memory_format=...)`` passes over weights of two axes: what it would do to the CONV
        weight is asked of a weight like it.
        """
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        self._lay_together()
        last = channels_last(self.spatial_ndim)
        if last is not torch.contiguous_format:
            now = last if self.weight_channels_last else torch.contiguous_format
            like = torch.empty((2,) * len(self.weight_shape)).contiguous(memory_format=now)
            self.weight_channels_last = is_channels_last(fn(like))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy or a pickle, in which each parameter has its own memory."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lay_together(shared=True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; weight and bias are those of the FC children."""
        if name == "weight" and "weight" in vars(self):
            vars(self)["weight"] = value  # a hook has computed it, for the call that follows
            return
        if name in ("weight", "bias"):
            raise no_new_parameter(name, "patch form", "its FC child: layer.fc")
        super().__setattr__(name, value)

    def share_weight(self, other: PatchConv) -> None:
        """Use another layer's FC weight as one's own: two CONV layers that shared theirs."""
        for mine, theirs in zip(self.children_fc, other.children_fc, strict=True):
            mine.weight = theirs.weight

    def put_children(self, fc: nn.Module) -> None:
        """Put other FC children in place, which keep what a tool has made of them.

        The FC layer in each of them holds this layer's weight and bias from now on.
        """
        own = self.children_fc
        for part in fc.modules():
            if type(part) in FC and "weight" in vars(part):  # that is computed, elsewhere
                part.register_parameter("weight", nn.Parameter(vars(part).pop("weight")))
        self.fc = fc
        for child, (_, layer) in zip(own, self._inner_layers() or (), strict=False):
            layer.weight, layer.bias = child.weight, child.bias

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

    def holds_computed_weight(self) -> bool:
        """Say whether the FC children are given a computed weight, unhooked, and none was written.

        What they show is the weight as it was when the layer was converted: a tool that writes into
        it, such as PEFT when it merges, changes nothing.
        """
        found = self._survey()
        return self.is_computed and found.untouched and not self._was_written()

    def _was_written(self) -> bool:
        """Say whether what the FC children show of a computed weight has been changed."""
        shown = self._shown_bits()
        return bool(shown) and shown != self.shown_bits

    def _shown_bits(self) -> list[int]:
        """Return a sum of the bits of what the FC children show of a computed weight."""
        held = [vars(child).get("weight") for child in self.children_fc]
        return [int(sum_of_bits(t)) for t in held if t is not None and not t.is_meta]

    def matrix(self) -> Tensor:
        """Return the FC weight ``(f, k)`` of plain FC children, through which gradients flow.

        Raises
        ------
        UnsupportedLayer
            If a tool has put something else in their place.
        """
        return joined_with_gradients(self._plain(self._survey())).flatten(0, -2)

    def _survey(self) -> Survey:
        """Look at the FC children; of one nn.Linear for all groups the weight is none of M's.

        A weight that a tool computes before every call is no longer the layer's.
        """
        fc: Any = self._modules["fc"]  # found through __getattr__, it takes time at every call
        found = survey(fc)
        if self.groups > 1 and type(fc) is nn.Linear:
            return found._replace(weights=None, bare=False)
        if found.weights is None and found.bare and not self.is_computed:
            return found._replace(bare=False)
        return found

    def _plain(self, found: Survey) -> list[Tensor]:
        """Return the weights of the FC children if they are the weight of a CONV layer."""
        if found.weights is None:
            raise self._not_plain()
        return found.weights

    def _not_plain(self) -> UnsupportedLayer:
        """Return why the weight cannot be told."""
        kinds = ", ".join(sorted({type(fc).__name__ for fc in self.children_fc}))
        return UnsupportedLayer(
            "the FC layer has no plain weight of its own any more",
            where="fc",
            expected="nn.Linear" if self.groups == 1 else "nn.Linear or GroupedLinear",
            got=kinds,
            remedy="read the weight from the tool's module, or take the model back with "
            "convfc.to_conv",
        )

    @property
    def is_computed(self) -> bool:
        """Whether the weight is computed before every call, by a hook or a parametrization."""
        return "weight" in vars(self) or "parametrizations" in self._modules

    @property
    def weight(self) -> Tensor:
        """The weight in the CONV layer's layout: what is written into it reaches the FC weight.

        A convolution that is given it, of whatever forward, is computed by the FC child.
        """
        return self._shown("weight", self.to_weight)  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the FC children, shape ``(f,)``, or None if none of them has one."""
        if len(self.children_fc) == 1 and type(self.fc) in FC:
            return self.fc.bias  # type: ignore[return-value]
        return self._shown("bias", _itself)

    def _shown(
        self, name: str, there: Callable[[Tensor], Tensor], calls: list[str] | None = None
    ) -> Tensor | None:
        """Return weight or bias as a user sees it; with ``calls``, as the layer's own forward does.

        ``calls`` notes its convolutions.
        """
        found, inside = self._survey(), calls is not None
        alone = found.weights is None and not self.is_computed and self._inner_layers() is None
        wrapped = alone or not (found.bare or inside)
        role = Role(self, name, wrapped=wrapped, touched=not found.untouched, calls=calls)
        if alone:
            return self._stands_for(name, role)
        if name == "weight" and self.is_computed:
            steps: Any = self._modules.get("parametrizations")
            weight: Tensor = vars(self)["weight"] if steps is None else steps["weight"]()
            return as_shown(weight, None, role._replace(own=False))
        return self._joined(name, found, there, role, with_gradient=not inside)

    def _stands_for(self, name: str, role: Role) -> Tensor:
        """Return what stands for a weight or bias that nobody holds: a tool's FC part has its own.

        Good for a convolution, which the FC children compute.
        """
        held = next((t for t in self.fc.parameters() if t.is_floating_point()), torch.zeros(()))
        if transforming():
            raise self._not_plain()
        filters = self.weight_shape[1] * self.groups if self.transposed else self.weight_shape[0]
        shape = self.weight_shape if name == "weight" else (filters,)
        return as_shown(
            torch.zeros((), dtype=held.dtype, device=held.device).expand(shape), None, role
        )

    def _joined(
        self,
        name: str,
        found: Survey,
        there: Callable[[Tensor], Tensor],
        role: Role | None = None,
        *,
        with_gradient: bool = True,
    ) -> Tensor | None:
        """Return weight or bias of all FC children as one tensor, in the CONV layer's layout."""
        parts = self._held_parts(name, found)
        held = [part for part in parts if part is not None]
        if not held:
            return None
        if len(held) < len(parts):
            return _whole(self._held_parts("weight", found), parts)  # type: ignore[arg-type]
        if any(map(in_a_transform, held)) and (self._is_wrapped() or found.hooked):
            raise self._not_plain()
        if name == "weight":
            back = partial(self._blocks_of, held[0])
            return weight_of(held, there, back, role, with_gradient=with_gradient)
        if len(held) == 1:
            return held[0] if role is None else as_shown(held[0], None, role)
        return weight_of(held, _itself, _itself, role, with_gradient=with_gradient)

    def _is_wrapped(self) -> bool:
        """Say whether a tool has put something else in the place of an FC layer."""
        return any(type(fc) not in FC or "forward" in vars(fc) for fc in self.children_fc)

    def _blocks_of(self, like: Tensor, weight: Tensor) -> Tensor:
        """Return a weight in the CONV layer's layout as the FC children hold it."""
        return self.to_matrix(weight).reshape(-1, *like.shape[1:])

    def _held_parts(self, name: str, found: Survey) -> list[Tensor | None]:
        """Return weight or bias of every FC child, or of the FC layer that a tool has wrapped."""
        if found.weights is not None:
            return found.weights if name == "weight" else found.biases  # type: ignore[return-value]
        layers = self._inner_layers()
        if layers is None:
            raise self._not_plain()
        return [getattr(layer, name) for _, layer in layers]

    def _inner_layers(self) -> list[tuple[str, Any]] | None:
        """Return of every FC child the FC layer in it, and its name there; None if one has none."""
        first, second, *kernel = self.weight_shape
        children = self.children_fc
        columns = math.prod(kernel) * (first // self.groups if self.transposed else second)
        rows = (second if self.transposed else first // self.groups) * self.groups
        size = rows // len(children), columns
        found = [inner_layer(child, size, computed=self.is_computed) for child in children]
        layers = [one for one in found if one is not None]
        return layers if len(layers) == len(children) else None

    def _held(self) -> dict[str, Tensor]:
        """Return weight and bias by name, as far as the FC children have them as a layer has."""
        found = self._survey()
        if not found.bare:
            return {}
        names = ("weight", "bias") if found.weights is not None else ("bias",)
        held = {name: self._joined(name, found, self.to_weight) for name in names}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def _loaded(self) -> dict[str, Tensor]:
        """Return weight and bias by name, as far as a CONV layer's state is loaded into them.

        A module in the place of an FC layer may take the state of one as well: see `RandomLinear`.
        """
        children: list[Any] = self.children_fc
        if not all(hasattr(child, "linear_state") for child in children):
            return self._held()
        states = [child.linear_state() for child in children]
        held = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        return {**held, "weight": self.to_weight(held["weight"])}

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return a weight in the CONV layer's layout as an FC weight ``(f, k)``."""
        return weight_to_matrix(weight, transposed=self.transposed, groups=self.groups)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Return an FC weight, or its blocks, in the CONV layer's layout: a view if possible."""
        return matrix_to_weight(
            matrix.flatten(0, -2), self.weight_shape, transposed=self.transposed, groups=self.groups
        )

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the CONV layer returns, in the same memory format.

        Parameters
        ----------
        input : Tensor, shape (N, c, *spatial) or (c, *spatial)
        args, kwargs
            What the CONV layer takes besides: of a transposed one, ``output_size``.

        Raises
        ------
        ShapeError, GeometryError
            If the input does not fit the layer.
        """
        if self.is_computed or self.own_forward:
            if "torch._dynamo" not in sys.modules:  # then nothing is compiled
                return self._by_own_forward(input, *args, **kwargs)  # type: ignore[no-any-return]
            from convfc.frameworks.torch.forms.compiler import uncompiled

            return uncompiled(self._by_own_forward, input, *args, **kwargs)  # type: ignore[no-any-return]
        if self.product == "auto" and not in_a_transform(input):
            held = self._held_untouched()
            if held is not None:
                try:
                    weight = self._native_weight(held[0])
                    return by_class(self.native, self, input, weight, held[1], *args, **kwargs)
                except RuntimeError:
                    self._check(input)  # which says more, and takes time
                    raise
        batched = self._check(input)
        found = self._survey()
        whole = input if batched else input.unsqueeze(0)
        y = self._by_matrix(whole, self._extra(whole, *args, **kwargs), found)
        return y if batched else y.squeeze(0)

    def _by_own_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the layer's own class; its convolutions are the FC children's."""
        native = self.as_native()
        if self.is_computed and self._was_written():
            raise UnsupportedLayer(
                "a tool has written into the weight of its FC part, which is computed before every "
                "call",
                where="fc",
                remedy="make the weight permanent before to_fc (torch.nn.utils.parametrize."
                "remove_parametrizations, remove_weight_norm, prune.remove)",
            )
        y = pytree.tree_map_only(Shown, as_plain, native.forward(*args, **kwargs))
        found = self._survey()
        if not native._calls and (self._is_wrapped() or found.hooked):
            raise UnsupportedLayer(
                "its forward has not convolved with its weight, so that its FC part was not called",
                where=self.native.__name__,
                remedy="merge or remove what a tool has put on its FC part, or take the layer back "
                "with convfc.to_conv",
            )
        return y

    def _held_untouched(self) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias of the FC children, joined, while nothing has touched them."""
        fc = self._modules["fc"]
        if self.groups == 1 and is_untouched(fc):  # type: ignore[arg-type]
            held = fc._parameters  # type: ignore[union-attr]
            return held["weight"], held["bias"]  # type: ignore[return-value]
        found = self._survey()
        if not found.untouched:
            return None
        weights = self._plain(found)
        return joined_with_gradients(weights), _whole(weights, found.biases)

    def _untouched(self, found: Survey, x: Tensor) -> bool:
        """Say whether PyTorch's own convolution may stand for the FC children, on this input."""
        return self.product == "auto" and found.untouched and not in_a_transform(x)

    def as_native(self) -> Any:
        """Return the layer as its own class knows it: with the same attributes, and its methods."""
        layer = object.__new__(_stand_in(self.native))
        object.__setattr__(layer, "__dict__", vars(self))
        object.__setattr__(layer, "_patch", self)
        object.__setattr__(layer, "_calls", [])
        return layer

    def __getattr__(self, name: str) -> Any:
        """Return a parameter, buffer or part, or a method of the CONV layer's class."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            native = vars(self).get("native")
            if native is None or name.startswith("__") or not hasattr(native, name):
                raise
        return getattr(self.as_native(), name)

    def seen_inside(self, name: str, calls: list[str]) -> Tensor | None:
        """Return weight or bias as the layer's own forward sees it, in the memory format it had."""
        return self._shown(name, self._native_weight if name == "weight" else _itself, calls)

    def _native_weight(self, matrix: Tensor) -> Tensor:
        """Return an FC weight as the CONV layer's, laid out in memory as that was."""
        if self.transposed or self.weight_channels_last:
            return self._laid_out(self.to_weight(matrix))
        return matrix.reshape(-1, *self.weight_shape[1:])

    def _laid_out(self, weight: Tensor) -> Tensor:
        if not self.weight_channels_last and weight.is_contiguous():
            return weight
        last = channels_last(self.spatial_ndim)
        return in_format(weight, last if self.weight_channels_last else torch.contiguous_format)

    def convolve(self, call: Convolution, plain: Convolution) -> Tensor:
        """Compute a convolution that is given this layer's weight: by the FC child, on M.

        ``plain`` is the call with plain tensors. A weight or a bias that is not just the FC
        child's takes the place of it in this call.
        """
        weight, bias, asked = plain.weight, call.bias, call.weight._role  # type: ignore[attr-defined]
        if asked.calls is not None:
            asked.calls.append("convolution")
        found = self._survey()
        fits = (plain.groups, plain.transposed) == (self.groups, self.transposed)
        fits = fits and weight.numel() == math.prod(self.weight_shape)
        if self._untouched(found, plain.x) or (found.untouched and not fits):
            return plain._replace(weight=self._laid_out(weight)).by_pytorch()
        if not fits:
            raise self._not_plain()
        given: dict[str, Tensor | None] = {}
        if not asked.own:
            self.changes_weight |= not self.is_computed
            given["weight"] = self.to_matrix(weight)
        role = getattr(bias, "_role", None)
        mine = bias is self.bias if role is None else (role.layer is self and role.own)
        if not mine:
            given["bias"] = plain.bias
        batched = plain.x.dim() == plain.spatial_ndim + 2
        x = plain.x if batched else plain.x.unsqueeze(0)
        y = self._by_child(x, plain.geometry(), found, partial(self._rows_of, given))
        return y if batched else y.squeeze(0)

    def _rows_of(self, given: dict[str, Tensor | None], patches: Tensor) -> Tensor:
        """Return the FC layer's outputs with another weight or bias in its place."""
        if not given:
            return self.rows(patches)
        layers, children = self._inner_layers(), self.children_fc
        if layers is None:
            raise self._not_plain()
        parts = {name: _parts_of(t, layers, name) for name, t in given.items()}
        columns = patches.chunk(len(children), dim=-1)
        outputs = []
        for number, ((name, _), child) in enumerate(zip(layers, children, strict=True)):
            inner = f"{name}." if name else ""
            named: Any = {inner + key: part[number] for key, part in parts.items()}
            outputs.append(torch.func.functional_call(child, named, (columns[number],)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def _by_matrix(self, x: Tensor, extra: Sequence[int] | None, found: Survey) -> Tensor:
        """Compute M K, by the attributes of PyTorch's own forward."""
        if torch.compiler.is_compiling():
            from convfc.frameworks.torch.forms.compiler import constant_rules

            windows, axes = open_windows(x, *constant_rules(attributes_of(self, extra)))
            return self._in_one_call(
                x, patches_at_once(windows, axes, self.groups), axes, self.rows
            )
        geometry = geometry_of(self, tuple(map(operator.index, x.shape[2:])), extra)
        if not found.weights or found.hooked or in_a_transform(x) or _autocast(x) is not None:

            def convolve(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
                return by_class(self.native, self, x, self._native_weight(matrix), bias)

            return self._by_child(x, geometry, found, self.rows, convolve)
        memory_format = self._output_format(x, geometry)
        weights, biases = found.weights, found.biases
        if any(bias is None for bias in biases):
            biases = [_whole(weights, biases)]
        if isinstance(self.fc, GroupedLinear):
            weights = [weights[0].flatten(0, 1)]
        return conv_by_blocks(x, weights, biases, geometry, memory_format=memory_format)

    def _by_child(
        self,
        x: Tensor,
        geometry: ConvGeometry,
        found: Survey,
        rows: Callable[[Tensor], Tensor],
        convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    ) -> Tensor:
        """Call the FC children on M: in one call, or block by block where that is the same.

        Where nothing but products with M is asked for, ``convolve`` computes them, and M is not
        built: PyTorch's own convolution, with what an FC layer has as weight and bias.
        """
        seen = found.hooked or in_a_transform(x)
        multiplied = convolve is not None and self.product == "auto" and found.multiplied
        multiplied = multiplied and not seen and geometry.groups == 1 and not self.transposed
        # Where another class of tensors is at work, `Unbuilt` is not asked.
        multiplied = multiplied and torch._C._is_torch_function_enabled()
        if seen or found.whole or multiplied:
            axes = plan(geometry, tuple(map(operator.index, x.shape[2:])))
            build = partial(patches_at_once, axes=axes, groups=geometry.groups)
            if not multiplied or convolve is None:
                return self._in_one_call(x, build(x), axes, rows)
            shape = (len(x), math.prod([axis.positions for axis in axes]), geometry.taps)
            return self._in_one_call(x, Unbuilt.of(x, shape, build, convolve), axes, rows)
        narrow = _autocast(x)
        x = x if narrow is None else x.to(narrow)
        memory_format = self._output_format(x, geometry)
        return conv_by_module(x, rows, geometry, geometry.out_channels, memory_format=memory_format)

    def _in_one_call(
        self,
        x: Tensor,
        matrix: Tensor,
        axes: Sequence[Axis],
        rows: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Call the FC children once on all of M, with operations that PyTorch can trace."""
        y = rows(matrix)
        y = y.transpose(1, 2).unflatten(2, tuple([axis.positions for axis in axes]))
        last = self.weight_channels_last
        return in_format(y, likely_output_format(x, self.padding_mode, weight_channels_last=last))

    def _output_format(self, x: Tensor, geometry: ConvGeometry) -> torch.memory_format:
        last = self.weight_channels_last
        return native_output_format(x, geometry, self.padding_mode, weight_channels_last=last)

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
        bias = self.bias if self._survey().bare else ...
        shown: Any = SimpleNamespace(**vars(self), bias=bias)
        if not issubclass(self.native, _ConvNd):
            return f"{self.native.__name__}: {', '.join(map(str, self.weight_shape))}"
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
        for name, own in self._loaded().items():
            tensor = taken(state_dict, prefix + name, own.detach(), messages)
            if tensor is None:
                continue
            if name == "weight":
                tensor = self.to_matrix(tensor)
            if isinstance(self.fc, nn.ModuleList):
                parts = enumerate(tensor.chunk(self.groups))
                state_dict.update({f"{prefix}fc.{group}.{name}": part for group, part in parts})
            else:
                like = self.fc._parameters.get(name)
                tensor = tensor if like is None else tensor.reshape(like.shape)
                state_dict[f"{prefix}fc.{name}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _extra(self, x: Tensor, output_size: Sequence[int] | None = None) -> Sequence[int] | None:
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


def by_matrix(model: nn.Module) -> nn.Module:
    """Have every layer in patch form compute M K from now on; return the model."""
    for part in model.modules():
        if isinstance(part, PatchConv):
            part.product = "matrix"
    return model


@cache
def patch_of(native: Any) -> type[PatchConv]:
    """Return the patch form whose objects are of a CONV layer's class, too.

    For layers of which a forward asks ``isinstance(layer, nn.Conv2d)``. All that they do is
    `PatchConv`'s.
    """
    body = {"__module__": __name__, "__reduce_ex__": _reduce}
    return type(f"Patch{native.__name__}", (PatchConv, native), body)


def _reduce(self: PatchConv, protocol: Any) -> Any:
    """Pickle as the CONV layer's class and the state: a class of `patch_of` has no place."""
    return _unpickled, (self.native,), self.__getstate__()  # type: ignore[no-untyped-call]


def _unpickled(native: Any) -> PatchConv:
    """Make a layer that is given its state afterwards."""
    return object.__new__(patch_of(native))


@cache
def _stand_in(cls: Any) -> type[nn.Module]:
    """Return a subclass whose objects are layers in patch form, seen as their own class.

    They share the attributes of the layer in patch form. Only weight and bias are its FC child's.
    """

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            setattr(self._patch, name, value)  # which refuses, or takes what a hook has computed
        else:
            super(made, self).__setattr__(name, value)

    body = {
        "__slots__": ("_patch", "_calls"),
        "__module__": cls.__module__,
        "__setattr__": set_attribute,
        "weight": property(lambda self: self._patch.seen_inside("weight", self._calls)),
        "bias": property(lambda self: self._patch.seen_inside("bias", self._calls)),
    }
    made: type[nn.Module] = type(cls.__name__, (cls,), body)
    return made


def _parts_of(
    whole: Tensor | None, layers: Sequence[tuple[str, nn.Module]], name: str
) -> Sequence[Tensor | None]:
    """Return the parts of a weight (f, k) or a bias (f,) that belong to the FC layers."""
    if whole is None:
        return [None] * len(layers)
    parts = whole.chunk(len(layers))
    return [
        part.reshape(layer.weight.shape) if name == "weight" else part  # type: ignore[arg-type]
        for part, (_, layer) in zip(parts, layers, strict=True)
    ]


def _autocast(x: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast has a convolution of this input computed, if it does."""
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return None
    wanted = x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if wanted else None


def _itself(whole: Tensor) -> Tensor:
    return whole


def _whole(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """Return the biases of all groups as one, with zeros where a group has none; None if none."""
    if len(biases) == 1 or all(bias is None for bias in biases):
        return biases[0]
    held = [
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(held)


def _chunks(
    value: Tensor, like: nn.Parameter, grad: Tensor | None, groups: int
) -> list[nn.Parameter]:
    """Return one parameter per group, each with its part of a value and of its gradient."""
    grads = [None] * groups if grad is None else grad.chunk(groups)
    parts = zip(value.chunk(groups), grads, strict=True)
    return [as_parameter(part, like, own) for part, own in parts]
