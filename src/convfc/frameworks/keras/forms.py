"""The FC forms of one of Keras's CONV layers, in place: the object stays, its class is swapped.

So whatever holds the layer goes on holding it: a functional graph, a nested or shared model, an
attribute of a subclassed one. ``keras.models.clone_model`` refuses subclassed models, and the nodes
of a functional graph are Keras's own business. Swapping works alike on every backend.

An FC class has the name of the CONV class, since Keras names the groups of a weight file by it: the
weights of a CNN load into its FC network, and the other way round. A saved model is loaded by any
process that has imported this module (Keras imports nothing on behalf of a file).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import Refusal, ShapeError, UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.keras import read
from convfc.frameworks.keras.grouped import (
    MOST_SEPARATE,
    GroupedDense,
    KernelConstraint,
    KernelRegularizer,
    to_kernel,
    to_matrix,
)
from convfc.frameworks.keras.products import known_size, patches

Form: TypeAlias = Literal["patch", "weight"]
"""What `to_form` makes of a CONV layer."""
Product: TypeAlias = Literal["auto", "matrix"]
"""Whether Keras's own convolution may compute the product while nothing has touched K."""

FC = (keras.layers.Dense, GroupedDense)
"""The FC layers that `to_form` makes."""

_SETTINGS = ("form", "separate", "product", "parts", "given")
_CONVS = (*read.KNOWN, *read.SEPARABLE)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Of a layer that computes with PyTorch."""


class Part(NamedTuple):
    """One convolution of a layer; most layers have one, a separable one has two."""

    weight: str
    """Its kernel, as the CONV class calls it."""
    kind: str
    """What its regulariser and its constraint are named after."""
    fc: str
    """Where its FC layers stand in the patch form."""
    matrix: str
    """Where its FC matrix stands in the weight form."""
    shape: tuple[int, ...]
    """Of its kernel."""
    filters: int
    groups: int
    bias: bool
    """Whether the layer's bias is added to its outputs."""
    transposed: bool

    @property
    def taps(self) -> int:
        """Number k of columns of one group's M."""
        return math.prod(self.shape) // self.filters

    def to_matrix(self, kernel: Any, groups: int) -> Any:
        """Return its kernel as one matrix, or as one for each of its groups."""
        return to_matrix(kernel, self.filters, transposed=self.transposed, groups=groups)

    def to_kernel(self, matrix: Any) -> Any:
        """Return one matrix, or one for each of its groups, as its kernel."""
        return to_kernel(matrix, self.shape, transposed=self.transposed)


def form_of(layer: Any) -> Literal["native"] | Form | None:
    """Return the form in which a layer is a CONV layer; None if it is none.

    A subclass of Keras's CONV layers is native, whatever its call computes.
    """
    if isinstance(layer, FCForm):
        return layer.form
    return "native" if isinstance(layer, _CONVS) else None


def obstacle(layer: Any) -> Refusal | None:
    """Return why a CONV layer cannot become an FC layer, or None."""
    refusal = read.obstacle(layer)
    if refusal is not None or isinstance(layer, FCForm):
        return refusal
    where = f"layer {layer.name}"
    if getattr(layer, "lora_enabled", False):
        return Refusal(
            "it has LoRA factors of the CONV kernel",
            "convert first, then enable_lora: the FC layers take it",
            where,
        )
    if layer.quantization_mode is not None:
        return Refusal(
            f"it is quantised ({layer.quantization_mode})",
            "convert first, then quantize: the FC layers take it",
            where,
        )
    return None


def to_form(
    layer: Any, form: Form, *, separate: bool | None = None, product: Product = "auto"
) -> None:
    """Give a built CONV layer an FC form, in place; a layer in another form is taken back first.

    Parameters
    ----------
    layer : keras.layers.Layer
    form : {"patch", "weight"}
        ``"patch"``: its child ``fc`` is a ``keras.layers.Dense``, called on the patch matrix
        ``(b, L, k)``; of a separable layer there is ``depthwise_fc`` as well. ``"weight"``: it
        runs Keras's convolution, but its variable is the FC matrix ``(k, f)``: ``matrix``, and
        ``depthwise_matrix``.
    separate : bool, optional
        Whether every group gets a Dense of its own, in a list, instead of one `GroupedDense`; by
        default where there are 32 groups or fewer, and no regulariser or constraint that acts on
        them together.
    product : {"auto", "matrix"}
        "matrix" computes M K even while nothing has touched the FC layers.

    Raises
    ------
    UnsupportedLayer
        If the layer cannot be converted; see `obstacle`.
    """
    refusal = obstacle(layer) or _apart_obstacle(layer, form, separate)
    if refusal is not None:
        raise refusal.error(UnsupportedLayer)
    if isinstance(layer, FCForm):
        to_native(layer)
    settings = {"form": form, "separate": separate, "product": product}
    _take_form(layer, fc_class(type(layer)), settings)


def back_obstacle(layer: Any) -> Refusal | None:
    """Return why a layer in FC form cannot become a CONV layer, or None."""
    if layer.form == "weight":
        return None
    for part in layer.parts:
        children = layer.fc_layers(part)
        if len(children) not in {1, part.groups}:
            what = f"its {part.fc} has {len(children)} FC layers for {part.groups} groups"
            return Refusal(what, "give every group one", f"layer {layer.name}")
        for child in children:
            if found := _misfit(layer, part, child):
                remedy = f"put a Dense in its place that computes the same: layer.{part.fc} = ..."
                return Refusal(found, remedy, f"layer {layer.name}")
    return None


def to_native(layer: Any) -> None:
    """Make a layer in FC form the CONV layer again that it was, in place.

    LoRA of its FC layers is folded in; int8 weights come back rounded, with a warning.

    Raises
    ------
    UnsupportedLayer
        If a tool has put something else in the place of an FC layer; see `back_obstacle`.
    """
    if (refusal := back_obstacle(layer)) is not None:
        raise refusal.error(UnsupportedLayer)
    if any(child.quantization_mode == "int8" for child in layer.all_fc_layers()):
        warnings.warn(
            f"{layer.name}: only the rounded weights come back: the quantised Dense rounds its "
            "input as well, which a CONV layer does not, so that outputs differ a little",
            UnsupportedLayerWarning,
            stacklevel=2,
        )
    parts, patch = layer.parts, layer.form == "patch"
    kernels = [(_from(layer.kernel_of(part)), _trains(layer, part)) for part in parts]
    bias, trains = layer.bias, any(child.bias.trainable for child in _biased(layer))
    with _open(layer):
        layer.__class__ = layer.native
        for part in parts:
            _forget(layer, part.fc if patch else part.matrix)
        for name in _SETTINGS:
            vars(layer).pop(name)
        for part, (kernel, trainable) in zip(parts, kernels, strict=True):
            made = _weight(layer, part.kind, part.weight, part.shape, kernel, trainable=trainable)
            setattr(layer, _attribute(layer, part), made)
        if patch:
            layer.bias = None
        if patch and bias is not None:
            value, shape = _from(bias), (parts[-1].filters,)
            layer.bias = _weight(layer, "bias", "bias", shape, value, trainable=trains)
        _put_bias_last(layer)


class FCForm:
    """A CONV layer in FC form, under the class that it had: what the FC classes have in common."""

    native: type
    form: Form
    separate: bool | None
    product: Product
    parts: tuple[Part, ...]
    given: dict[str, Any] | None

    def __init__(
        self,
        *args: Any,
        form: Form = "patch",
        separate: bool | None = None,
        product: Product = "auto",
        children: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        vars(self).update(form=form, separate=separate, product=product, given=children)

    def build(self: Any, input_shape: Any) -> None:
        """Build the CONV layer, and give it its form."""
        made, given = type(self), self.given
        self.__class__ = made.native
        try:
            made.native.build(self, input_shape)
            _take_form(self, made, {name: vars(self)[name] for name in _SETTINGS[:3]})
        finally:
            self.__class__ = made
        if given:
            with _open(self):
                for name, configs in given.items():
                    read_back = keras.saving.deserialize_keras_object
                    children = [read_back(config) for config in configs]
                    alone = not isinstance(getattr(self, name), list)
                    setattr(self, name, children[0] if alone else children)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; another FC layer may be put in the place of one."""
        if name not in ("fc", "depthwise_fc"):
            super().__setattr__(name, value)
            return
        with _open(self):
            if hasattr(self, name):
                _forget(self, name)
            super().__setattr__(name, value)

    def fc_layers(self, part: Part) -> list[Any]:
        """Return the FC layers of a part: one, or one per group; none in the weight form."""
        fc = getattr(self, part.fc, [])
        return list(fc) if isinstance(fc, list) else [fc]

    def all_fc_layers(self) -> list[Any]:
        """Return the FC layers of all parts."""
        return [child for part in self.parts for child in self.fc_layers(part)]

    def kernel_of(self, part: Part) -> Any:
        """Return a kernel in the CONV layout, as the FC layers have it: with LoRA, dequantised."""
        if self.form == "weight":
            return part.to_kernel(getattr(self, part.matrix))
        matrices = [_matrix(child) for child in self.fc_layers(part)]
        return part.to_kernel(matrices[0] if len(matrices) == 1 else keras.ops.stack(matrices))

    @property
    def bias(self) -> Any:
        """The bias, ``(f,)``, or None."""
        if self.form == "weight":
            return vars(self)["bias"]
        biases = [child.bias for child in self.fc_layers(self.parts[-1])]
        if len(biases) == 1 or biases[0] is None:
            return biases[0]
        return keras.ops.concatenate([_tensor(bias) for bias in biases])

    def is_untouched(self) -> bool:
        """Say whether Keras's own convolution may stand for the FC layers."""
        return all(
            _is_as_made(child)
            and "call" not in vars(child)
            and not any(vars(child).get(name) for name in _HOOKS)
            for child in self.all_fc_layers()
        )

    def holds_kernels(self) -> bool:
        """Say whether the FC layers hold the kernels of a CONV layer, LoRA aside."""
        return self.form == "weight" or not any(
            child.quantization_mode or _misfit(self, part, child)
            for part in self.parts
            for child in self.fc_layers(part)
        )

    def call(self: Any, inputs: Any) -> Any:
        """Return what the CONV layer returns.

        Raises
        ------
        ShapeError
            If M is needed, in a graph that does not know the size of the input.
        """
        if self.form == "weight" or (self.product == "auto" and self.is_untouched()):
            return self.native.call(self, inputs)
        ops, first = keras.ops, self.data_format == "channels_first"
        x = ops.moveaxis(inputs, 1, -1) if first else inputs
        size = known_size(x.shape, f"layer {self.name}")
        geometry = read.geometry_of(self, self.parts[0].shape, size)
        rows = patches(x, geometry)
        for part in self.parts:  # the second, of kernel size 1, reads the rows of the first as M
            rows = self._multiplied(part, rows)
        outputs = ops.reshape(rows, (-1, *geometry.output_size(size), rows.shape[-1]))
        outputs = ops.moveaxis(outputs, -1, 1) if first else outputs
        return outputs if self.activation is None else self.activation(outputs)

    def _multiplied(self, part: Part, rows: Any) -> Any:
        """Return the product of M with the FC layers of a part."""
        children = self.fc_layers(part)
        if len(children) == 1:
            return children[0](rows)
        shares = keras.ops.split(rows, len(children), axis=-1)
        outputs = [child(share) for child, share in zip(children, shares, strict=True)]
        return keras.ops.concatenate(outputs, axis=-1)

    def enable_lora(self, rank: int, *args: Any, **kwargs: Any) -> None:
        """Enable LoRA on the FC layers: what ``keras.layers.Dense.enable_lora`` takes.

        Raises
        ------
        UnsupportedLayer
            In the weight form, and where one layer holds all groups.
        """
        children = self.all_fc_layers()
        if not children or not all(hasattr(child, "enable_lora") for child in children):
            raise UnsupportedLayer(
                "there is no Dense here that takes LoRA",
                where=f"layer {self.name}",  # type: ignore[attr-defined]
                remedy="use the patch form, with a Dense for every group (separate)",
            )
        for child in children:
            child.enable_lora(rank, *args, **kwargs)

    def save_own_variables(self: Any, store: Any) -> None:
        """Save what the CONV layer would save; if the FC layers are quantised, they save all."""
        whole = self.built and self.holds_kernels()
        self._tell_children(whole)
        if whole:
            for key, (tensor, _) in self._saved():
                store[key] = tensor

    def load_own_variables(self: Any, store: Any) -> None:
        """Load what `save_own_variables` saves, of a CONV layer as well; LoRA starts anew."""
        whole = self.built and self.holds_kernels()
        self._tell_children(whole)
        if not whole:
            return
        saved = dict(self._saved())
        if len(saved) != len(store.keys()):
            raise ShapeError(
                "another number of variables",
                where=f"layer {self.name}",
                expected=f"{len(saved)}: its kernel, and its bias if it has one",
                got=len(store.keys()),
                remedy="load the weights of this model, or of the CNN that it was",
            )
        for key, (tensor, assign) in saved.items():
            value = keras.ops.convert_to_tensor(store[key])
            if tuple(value.shape) != tuple(tensor.shape):
                raise ShapeError(
                    "another shape",
                    where=f"layer {self.name}",
                    expected=tuple(tensor.shape),
                    got=tuple(value.shape),
                    remedy="load the weights of this model, or of the CNN that it was",
                )
            assign(value)

    def _tell_children(self, whole: bool) -> None:
        """Have the FC layers leave saving and loading to this layer, or not."""
        for child in self.all_fc_layers():
            for name in ("save_own_variables", "load_own_variables"):
                if whole:
                    vars(child)[name] = _nothing
                elif vars(child).get(name) is _nothing:
                    del vars(child)[name]

    def _saved(self) -> Iterator[tuple[str, tuple[Any, Callable[[Any], None]]]]:
        """Return what the CONV class saves, by its keys, and how each is assigned."""
        tensors: list[tuple[Any, Callable[[Any], None]]] = [
            (self.kernel_of(part), partial(_assign_kernel, self, part)) for part in self.parts
        ]
        if self.bias is not None:
            tensors.append((self.bias, partial(_assign_bias, self)))
        return ((str(n), pair) for n, pair in enumerate(tensors))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the CONV layer and the form, as plain JSON values."""
        form = {"form": self.form, "separate": self.separate, "product": self.product}
        config = {**super().get_config(), **form}  # type: ignore[misc]
        children = self.given
        if self.built and not all(map(_is_as_made, self.all_fc_layers())):  # type: ignore[attr-defined]
            write = keras.saving.serialize_keras_object
            children = {part.fc: [write(c) for c in self.fc_layers(part)] for part in self.parts}
        return config if children is None else {**config, "children": children}


@cache
def fc_class(native: type) -> Any:
    """Return the class of a CONV class's layers in FC form: one, which has its name.

    A class that is not Keras's own is registered under its module, for `keras.saving.load_model` in
    a process that has called this function with it.
    """
    names = [weight for weight, *_ in _convolutions(native)]
    body: dict[str, Any] = {"native": native, "__module__": __name__, "__doc__": FCForm.__doc__}
    for n, name in enumerate(names):
        body[name] = property(lambda self, n=n: self.kernel_of(self.parts[n]))
    made = type(native.__name__, (FCForm, native), body)
    name = native.__name__ if native in _CONVS else f"{native.__module__}.{native.__qualname__}"
    return keras.saving.register_keras_serializable(package="convfc", name=name)(made)


def _convolutions(native: type) -> list[tuple[str, str, str, str]]:
    """Return the first fields of the parts of a CONV class."""
    whole = ("kernel", "kernel", "fc", "matrix")
    if issubclass(native, read.SEPARABLE):
        depthwise = ("depthwise_kernel", "depthwise", "depthwise_fc", "depthwise_matrix")
        return [depthwise, ("pointwise_kernel", "pointwise", *whole[2:])]
    if issubclass(native, read.DEPTHWISE):
        return [("kernel", "depthwise", *whole[2:])]
    return [whole]


def _parts(layer: Any) -> tuple[Part, ...]:
    """Return the parts of a native layer that is built."""
    found = []
    names = _convolutions(type(layer))
    for n, fields in enumerate(names):
        shape = tuple(getattr(layer, fields[0]).shape)
        depthwise = isinstance(layer, read.DEPTHWISE) or len(names) > n + 1
        transposed = isinstance(layer, read.TRANSPOSED)
        filters, groups = shape[-1], getattr(layer, "groups", 1)
        if depthwise:
            filters, groups = shape[-1] * shape[-2], shape[-2]
        elif transposed:
            filters = shape[-2]
        last = n + 1 == len(names)
        found.append(Part(*fields, shape, filters, groups, last, transposed))
    return tuple(found)


def _take_form(layer: Any, made: Any, settings: dict[str, Any]) -> None:
    """Give a native layer its form and its class: the part of `to_form` that changes it."""
    parts, bias = _parts(layer), layer.bias
    kernels = [getattr(layer, _attribute(layer, part)) for part in parts]
    patch = settings["form"] == "patch"
    with _open(layer):
        for part in parts:
            _forget(layer, _attribute(layer, part))
        if patch:
            _forget(layer, "bias")
        layer.__class__ = made
        vars(layer).update({**settings, "parts": parts, "given": None})
        for part, kernel in zip(parts, kernels, strict=True):
            if patch:
                setattr(layer, part.fc, _children(layer, part, kernel, bias if part.bias else None))
                continue
            value = _from(kernel, partial(part.to_matrix, groups=1))
            shape, trains = (part.taps, part.filters), kernel.trainable
            matrix = _weight(layer, part.kind, part.matrix, shape, value, part, trainable=trains)
            setattr(layer, part.matrix, matrix)
        _put_bias_last(layer)


def _children(layer: Any, part: Part, kernel: Any, bias: Any) -> Any:
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
        "bias_initializer": _from(bias, partial(_share, part=part, group=group)),
        "kernel_initializer": _from(kernel, partial(_block, part=part, group=group)),
        **_acting(layer, part.kind, "kernel", part),
        **(_acting(layer, "bias", "bias") if part.bias else {}),
    }
    if group is None and part.groups > 1:
        child = GroupedDense(part.filters, part.groups, **options)
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


def _from(source: Any, change: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return an initialiser that gives the value of a variable or tensor, changed.

    A variable that is made while Keras only looks at shapes has its value later. Its own value is
    read: ``.value`` would be cast by the precision of a layer that is being called.
    """

    def initialize(shape: Any, dtype: Any = None) -> Any:
        value = source._value if isinstance(source, keras.Variable) else source
        return change(keras.ops.cast(keras.ops.stop_gradient(value), dtype))

    return initialize


def _weight(
    layer: Any,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    initializer: Any,
    part: Part | None = None,
    *,
    trainable: bool,
) -> Any:
    """Add a variable to a layer, with what acts on it in the CONV layer."""
    acting = {key.split("_")[1]: each for key, each in _acting(layer, kind, "a", part).items()}
    made = layer.add_weight(
        name=name, shape=shape, initializer=initializer, dtype=layer.dtype, **acting
    )
    made.trainable = trainable
    return made


def _acting(layer: Any, kind: str, of: str, part: Part | None = None) -> dict[str, Any]:
    """Return the regulariser and the constraint of a weight, of a part's for its FC layer."""
    found = {}
    for name, made in (("regularizer", KernelRegularizer), ("constraint", KernelConstraint)):
        inner = getattr(layer, f"{kind}_{name}")
        wrapped = part is not None and inner is not None
        found[f"{of}_{name}"] = made(inner, part.shape, part.transposed) if wrapped else inner
    return found


def _acts(layer: Any, part: Part) -> bool:
    """Say whether anything acts on the weights of all groups together."""
    kinds = (part.kind, "bias") if part.bias else (part.kind,)
    return any(each is not None for kind in kinds for each in _acting(layer, kind, "").values())


def _may_be_apart(layer: Any, part: Part) -> bool:
    return part.groups <= MOST_SEPARATE and not _acts(layer, part)


def _apart_obstacle(layer: Any, form: Form, separate: bool | None) -> Refusal | None:
    """Return why the groups of a layer cannot be apart, if that is asked for."""
    parts = getattr(layer, "parts", None) or _parts(layer)
    if form == "weight" or not separate or not any(p.groups > 1 and _acts(layer, p) for p in parts):
        return None
    return Refusal(
        "a regulariser or a constraint acts on all groups together",
        "leave out separate: one GroupedDense holds them",
        f"layer {layer.name}",
    )


def _attribute(layer: Any, part: Part) -> str:
    """Return where a native layer keeps the variable of a kernel."""
    return f"_{part.weight}" if isinstance(layer, read.PLAIN) else part.weight


@contextlib.contextmanager
def _open(layer: Any) -> Iterator[None]:
    """Let variables and layers be added to a layer that is built, as Keras's enable_lora does."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        with keras.name_scope(layer.name, caller=layer):
            yield
    finally:
        if locked:
            layer._tracker.lock()
    layer._post_build()  # on PyTorch, the layer's list of parameters


def _forget(layer: Any, name: str) -> None:
    """Remove a variable, a layer or a list of layers from a layer."""
    held = getattr(layer, name)
    for each in held if isinstance(held, list) else [held]:
        if isinstance(each, keras.Variable):
            layer._untrack_variable(each)
        else:
            layer._tracker.untrack(each)
    super(keras.layers.Layer, layer).__delattr__(name)  # Layer's own collects garbage every time


def _put_bias_last(layer: Any) -> None:
    """Have the bias, if a layer has one of its own, stand last among its weights."""
    bias = vars(layer).get("bias")
    if bias is not None:
        trainable, bias.trainable = bias.trainable, True
        layer._untrack_variable(bias)
        layer._track_variable(bias)
        bias.trainable = trainable


def _is_as_made(child: Any) -> bool:
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


def _misfit(layer: Any, part: Part, child: Any) -> str | None:
    """Return why an FC layer does not hold its share of a CONV layer's kernel, or None."""
    apart = isinstance(getattr(layer, part.fc), list)
    filters, groups = (part.filters // part.groups, 1) if apart else (part.filters, part.groups)
    if type(child) not in FC:
        return f"a {type(child).__name__} has taken the place of a Dense"
    if not child.built:
        return "its FC layer has no weights yet"
    if child.quantization_mode not in (None, "int8"):
        return f"its FC layer is quantised ({child.quantization_mode})"
    if "call" in vars(child) or not _is_linear(child):
        return "its FC layer has a call or an activation of its own"
    if (child.bias is not None) != (part.bias and layer.use_bias):
        return f"its FC layer has {'no' if child.bias is None else 'a'} bias, unlike the CONV layer"
    shape = (part.taps, filters) if groups == 1 else (groups, part.taps, filters // groups)
    if tuple(child._kernel.shape) != shape:
        return f"its FC kernel is {tuple(child._kernel.shape)}, not {shape}"
    return None


def _matrix(child: Any) -> Any:
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
        return _tensor(child.kernel)
    ops = keras.ops
    kernel = ops.divide(ops.cast(child._kernel, child.compute_dtype), child.kernel_scale)
    if child.lora_enabled:
        kernel += (
            child.lora_alpha
            / child.lora_rank
            * ops.matmul(child.lora_kernel_a, child.lora_kernel_b)
        )
    return kernel


def _tensor(variable: Any) -> Any:
    """Return the value of a variable: on TensorFlow, Keras joins tensors only."""
    return keras.ops.reshape(variable, variable.shape)


def _trains(layer: Any, part: Part) -> bool:
    """Say whether a kernel trains, of itself or by what is folded into it."""
    if layer.form == "weight":
        return bool(getattr(layer, part.matrix).trainable)
    return any(
        child.quantization_mode is not None
        or child._kernel.trainable
        or (getattr(child, "lora_enabled", False) and child.lora_kernel_b.trainable)
        for child in layer.fc_layers(part)
    )


def _biased(layer: Any) -> list[Any]:
    return [child for child in layer.all_fc_layers() if child.bias is not None]


def _assign_kernel(layer: Any, part: Part, value: Any) -> None:
    """Give a part of a layer in FC form the kernel of a CONV layer; LoRA starts anew."""
    if layer.form == "weight":
        getattr(layer, part.matrix).assign(part.to_matrix(value, 1))
        return
    for child, group in _with_groups(layer, part):
        child._kernel.assign(_block(value, part, group))
        if getattr(child, "lora_enabled", False):
            for factor in (child.lora_kernel_a, child.lora_kernel_b):
                factor.assign(keras.ops.zeros(factor.shape))


def _assign_bias(layer: Any, value: Any) -> None:
    """Give a layer in FC form the bias of a CONV layer."""
    if layer.form == "weight":
        layer.bias.assign(value)
        return
    part = layer.parts[-1]
    for child, group in _with_groups(layer, part):
        child.bias.assign(_share(value, part, group))


def _with_groups(layer: Any, part: Part) -> list[tuple[Any, int | None]]:
    """Return each FC layer of a part with its group; None if it is that of all groups."""
    children = layer.fc_layers(part)
    apart = isinstance(getattr(layer, part.fc), list)
    return [(child, g if apart else None) for g, child in enumerate(children)]


def _nothing(store: Any) -> None:
    """Stand for saving and loading of an FC layer: the layer that it belongs to does it."""


for _native in _CONVS:
    fc_class(_native)  # a saved model is loaded by the names that are registered here
