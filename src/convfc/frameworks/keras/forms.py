"""The FC forms of one of Keras's CONV layers, in place: the object stays, its class is swapped.

So whatever holds the layer goes on holding it: a functional graph, a nested or shared model, an
attribute of a subclassed one. ``keras.models.clone_model`` refuses subclassed models, and the nodes
of a functional graph are Keras's own business. Swapping works alike on every backend.

An FC class has the name of the CONV class, since Keras names the groups of a weight file by it: the
weights of a CNN load into its FC network, and the other way round. A saved model is loaded by any
process that has imported this module (Keras imports nothing on behalf of a file).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Literal

from convfc.extras import needing

with needing():
    import keras

from convfc.errors import Refusal, ShapeError, UnsupportedLayer
from convfc.frameworks.keras import read
from convfc.frameworks.keras.children import (
    assign_bias,
    assign_kernel,
    biased,
    is_as_made,
    is_untouched,
    kernel_trains,
    make_children,
    matrix_of,
    misfit,
    tensor,
)
from convfc.frameworks.keras.models import children
from convfc.frameworks.keras.parts import (
    CONVS,
    Part,
    add_weight,
    attribute,
    convolutions,
    forget,
    is_acted_on,
    opened,
    parts_of,
    put_bias_last,
    value_of,
)
from convfc.frameworks.keras.products import known_size, patches
from convfc.places import walk
from convfc.room import LayerForm, Product

_SETTINGS = ("form", "separate", "product", "parts", "given")


def form_of(layer: Any) -> Literal["native"] | LayerForm | None:
    """Return the form in which a layer is a CONV layer; None if it is none.

    A subclass of Keras's CONV layers is native, whatever its call computes.
    """
    if isinstance(layer, FCLayer):
        return layer.form
    return "native" if isinstance(layer, CONVS) else None


def obstacle(layer: Any) -> Refusal | None:
    """Return why a CONV layer cannot become an FC layer, or None."""
    refusal = read.obstacle(layer)
    if refusal is not None or isinstance(layer, FCLayer):
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
    layer: Any, form: LayerForm, *, separate: bool | None = None, product: Product = "auto"
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
    if isinstance(layer, FCLayer):
        to_native(layer)
    settings = {"form": form, "separate": separate, "product": product}
    native: Any = type(layer)
    _take_form(layer, fc_class(native), settings)


def convs_in(model: Any) -> list[Any]:
    """Return the CONV layers of a model, in any form, once and in its order."""
    parts = walk(model, children).values()
    return list({id(part): part for part in parts if form_of(part)}.values())


def take_form_of(layer: Any, other: Any) -> None:
    """Give a CONV layer the form that another one has, if that has one and this has none."""
    if form_of(other) not in (None, "native") and form_of(layer) == "native":
        to_form(layer, other.form, separate=other.separate, product=other.product)


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
            if found := misfit(layer, part, child):
                remedy = f"put a Dense in its place that computes the same: layer.{part.fc} = ..."
                return Refusal(found, remedy, f"layer {layer.name}")
    return None


def to_native(layer: Any) -> None:
    """Make a layer in FC form the CONV layer again that it was, in place.

    LoRA of its FC layers is folded in; int8 weights come back rounded.

    Raises
    ------
    UnsupportedLayer
        If a tool has put something else in the place of an FC layer; see `back_obstacle`.
    """
    if (refusal := back_obstacle(layer)) is not None:
        raise refusal.error(UnsupportedLayer)
    parts, patch = layer.parts, layer.form == "patch"
    kernels = [(value_of(layer.kernel_of(part)), kernel_trains(layer, part)) for part in parts]
    bias, trains = layer.bias, any(child.bias.trainable for child in biased(layer))
    with opened(layer):
        layer.__class__ = layer.native
        for part in parts:
            forget(layer, part.fc if patch else part.matrix)
        for name in _SETTINGS:
            vars(layer).pop(name)
        for part, (kernel, trainable) in zip(parts, kernels, strict=True):
            made = add_weight(
                layer, part.kind, part.weight, part.shape, kernel, trainable=trainable
            )
            setattr(layer, attribute(layer, part), made)
        if patch:
            layer.bias = None
        if patch and bias is not None:
            value, shape = value_of(bias), (parts[-1].filters,)
            layer.bias = add_weight(layer, "bias", "bias", shape, value, trainable=trains)
        put_bias_last(layer)


class FCLayer:
    """A CONV layer in FC form, under the class that it had: what the FC classes have in common."""

    native: type
    form: LayerForm
    separate: bool | None
    product: Product
    parts: tuple[Part, ...]
    given: dict[str, Any] | None

    def __init__(
        self,
        *args: Any,
        form: LayerForm = "patch",
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
            with opened(self):
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
        with opened(self):
            if hasattr(self, name):
                forget(self, name)
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
        matrices = [matrix_of(child) for child in self.fc_layers(part)]
        return part.to_kernel(matrices[0] if len(matrices) == 1 else keras.ops.stack(matrices))

    @property
    def bias(self) -> Any:
        """The bias, ``(f,)``, or None."""
        if self.form == "weight":
            return vars(self)["bias"]
        biases = [child.bias for child in self.fc_layers(self.parts[-1])]
        if len(biases) == 1 or biases[0] is None:
            return biases[0]
        return keras.ops.concatenate([tensor(bias) for bias in biases])

    def is_untouched(self) -> bool:
        """Say whether Keras's own convolution may stand for the FC layers."""
        return all(map(is_untouched, self.all_fc_layers()))

    def holds_kernels(self) -> bool:
        """Say whether the FC layers hold the kernels of a CONV layer, LoRA aside."""
        return self.form == "weight" or not any(
            child.quantization_mode or misfit(self, part, child)
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
            for key, (value, _) in self._saved():
                store[key] = value

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
        for key, (own, assign) in saved.items():
            value = keras.ops.convert_to_tensor(store[key])
            if tuple(value.shape) != tuple(own.shape):
                raise ShapeError(
                    "another shape",
                    where=f"layer {self.name}",
                    expected=tuple(own.shape),
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
        saved: list[tuple[Any, Callable[[Any], None]]] = [
            (self.kernel_of(part), partial(assign_kernel, self, part)) for part in self.parts
        ]
        if self.bias is not None:
            saved.append((self.bias, partial(assign_bias, self)))
        return ((str(n), pair) for n, pair in enumerate(saved))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the CONV layer and the form, as plain JSON values."""
        form = {"form": self.form, "separate": self.separate, "product": self.product}
        config = {**super().get_config(), **form}  # type: ignore[misc]
        children = self.given
        if self.built and not all(map(is_as_made, self.all_fc_layers())):  # type: ignore[attr-defined]
            write = keras.saving.serialize_keras_object
            children = {part.fc: [write(c) for c in self.fc_layers(part)] for part in self.parts}
        return config if children is None else {**config, "children": children}


@cache
def fc_class(native: type) -> Any:
    """Return the class of a CONV class's layers in FC form: one, which has its name.

    A class that is not Keras's own is registered under its module, for `keras.saving.load_model` in
    a process that has called this function with it.
    """
    names = [weight for weight, *_ in convolutions(native)]
    body: dict[str, Any] = {"native": native, "__module__": __name__, "__doc__": FCLayer.__doc__}
    for n, name in enumerate(names):
        body[name] = property(partial(_nth_kernel, n=n))
    made = type(native.__name__, (FCLayer, native), body)
    name = native.__name__ if native in CONVS else f"{native.__module__}.{native.__qualname__}"
    return keras.saving.register_keras_serializable(package="convfc", name=name)(made)


def _nth_kernel(layer: Any, n: int) -> Any:
    return layer.kernel_of(layer.parts[n])


def _take_form(layer: Any, made: Any, settings: dict[str, Any]) -> None:
    """Give a native layer its form and its class: the part of `to_form` that changes it."""
    parts, bias = parts_of(layer), layer.bias
    kernels = [getattr(layer, attribute(layer, part)) for part in parts]
    patch = settings["form"] == "patch"
    with opened(layer):
        for part in parts:
            forget(layer, attribute(layer, part))
        if patch:
            forget(layer, "bias")
        layer.__class__ = made
        vars(layer).update({**settings, "parts": parts, "given": None})
        for part, kernel in zip(parts, kernels, strict=True):
            if patch:
                setattr(
                    layer, part.fc, make_children(layer, part, kernel, bias if part.bias else None)
                )
                continue
            value = value_of(kernel, partial(part.to_matrix, groups=1))
            shape, trains = (part.taps, part.filters), kernel.trainable
            matrix = add_weight(layer, part.kind, part.matrix, shape, value, part, trainable=trains)
            setattr(layer, part.matrix, matrix)
        put_bias_last(layer)


def _apart_obstacle(layer: Any, form: LayerForm, separate: bool | None) -> Refusal | None:
    """Return why the groups of a layer cannot be apart, if that is asked for."""
    parts = getattr(layer, "parts", None) or parts_of(layer)
    if (
        form == "weight"
        or not separate
        or not any(p.groups > 1 and is_acted_on(layer, p) for p in parts)
    ):
        return None
    return Refusal(
        "a regulariser or a constraint acts on all groups together",
        "leave out separate: one GroupedDense holds them",
        f"layer {layer.name}",
    )


def _nothing(store: Any) -> None:
    """Stand for saving and loading of an FC layer: the layer that it belongs to does it."""


for _native in CONVS:
    fc_class(_native)  # a saved model is loaded by the names that are registered here
