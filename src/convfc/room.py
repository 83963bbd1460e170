"""`Room`: what convfc asks of a framework, and the verbs on models that it gives in return.

A framework is one class. It says what the parts of a model are, which of them are CONV layers and
in which form, what stands in the way of converting one, how one is made of another, and how a model
is copied and run. Which layers are chosen, what is refused or listed and in which words, what is
copied and what is not, the walk of a certificate and its verdict are the same for all frameworks,
and stand here. What a framework does not have stays as it is in this class, and is refused by name.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convfc.certificate import Certificate, LayerCertificate, NetworkCertificate
from convfc.errors import ArgumentError, Refusal, ShapeError, UnsupportedModel
from convfc.inspection import Inspection
from convfc.layer import ConvLayer, Order
from convfc.networks import Networks, Pair, Pairs, compare_networks, find_pairs
from convfc.places import (
    Chosen,
    Where,
    nothing_to_convert,
    place_in_words,
    refuse_or_list,
    selector,
    walk,
    warn,
)
from convfc.sizes import one_of

LinearMap: TypeAlias = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""From a batch of inputs to one of outputs, or back."""
LayerForm: TypeAlias = Literal["patch", "weight"]
"""The forms that take inputs of every size."""
FCForm: TypeAlias = Literal["patch", "weight", "unrolled"]
"""The forms of FC layers."""
Groups: TypeAlias = Literal["auto", "separate", "batched"]
Product: TypeAlias = Literal["auto", "matrix"]
"""How the patch form computes M K: by the native convolution until a tool touches it, or always."""

MOST_SEPARATE = 32
"""Up to so many groups each gets an FC layer of its own, which every tool knows; beyond, one layer
for all groups is faster to make and to call."""

_NO_FC = "cannot be turned into an FC layer"


class Wanted(NamedTuple):
    """How FC layers are to be made."""

    form: FCForm
    separate: bool | None = None
    """Whether every group has an FC layer of its own; None: if they are at most `MOST_SEPARATE`."""
    product: Product = "auto"


class Room(ABC):
    """A framework; see "How to add a framework" in CONTRIBUTING."""

    name: str
    """As users write it."""
    kind: str
    """What its models are, in messages: "a torch.nn.Module"."""

    # Single layers.

    @abstractmethod
    def owns(self, thing: object) -> bool:
        """Say whether a model or a layer is the framework's."""

    @abstractmethod
    def order_of(self, layer: Any) -> Order:
        """Return how a layer lays out inputs and outputs: channels_first or channels_last."""

    @abstractmethod
    def read_layer(
        self, layer: Any, input_size: Sequence[int], *, differentiable: bool = False
    ) -> ConvLayer:
        """Read a CONV layer, for an input of this spatial size."""

    def linear_maps(
        self, layer: ConvLayer, input_size: Sequence[int]
    ) -> tuple[LinearMap, LinearMap] | None:
        """Return the framework's own convolution with a layer's filters, and its adjoint, if any.

        Functions of NumPy arrays ``(b, c, *spatial)`` and ``(b, f, *output)``.
        """
        return None

    # The parts of a model.

    @abstractmethod
    def children(self, part: Any) -> Mapping[str, Any]:
        """Return the parts of a model or of a part, by name."""

    @abstractmethod
    def form_of(self, part: Any) -> Literal["native"] | FCForm | None:
        """Return the form in which a part is a CONV layer; None if it is none."""

    def places(self, model: Any) -> dict[str, Any]:
        """Return every place of a model that holds a part: a shared one stands at several."""
        return walk(model, self.children)

    # From CONV to FC.

    @abstractmethod
    def obstacles(
        self, model: Any, layers: Mapping[str, Any], form: FCForm, *, inplace: bool
    ) -> dict[str, Refusal]:
        """Return the CONV layers that cannot get a form, by place, with the reason."""

    @abstractmethod
    def make_fc(self, model: Any, layers: Mapping[str, Any], wanted: Wanted) -> dict[int, Any]:
        """Make FC layers of a model's CONV layers, by place; a shared one stands at several.

        Returned is, by ``id``, what takes a layer's place, if it is another object. Layers that
        share a parameter go on sharing it.
        """

    def unreachable(self, model: Any) -> dict[str, Refusal]:
        """Return the places whose convolutions no conversion reaches."""
        return {}

    def sizes(
        self, model: Any, layers: Mapping[str, Any], example: Any
    ) -> tuple[dict[int, Any], dict[str, Refusal], dict[str, Refusal]]:
        """Return what a run on an example says of layers that are to be unrolled.

        That is what `make_unrolled` needs of each, by ``id``; the layers that cannot be unrolled,
        by place; and those that are not called.
        """
        raise self._lacks("unroll", model)

    def check_memory(
        self, layers: Mapping[str, Any], sizes: Mapping[int, Any], memory: float | None
    ) -> None:
        """Raise a `MemoryBudgetError` if unrolled layers do not fit."""
        raise NotImplementedError

    def make_unrolled(self, layers: Sequence[Any], sizes: Sequence[Any]) -> dict[int, Any]:
        """Make unrolled layers; the answer is that of `make_fc`."""
        raise NotImplementedError

    # From FC to CONV.

    @abstractmethod
    def back_obstacles(
        self, model: Any, layers: Mapping[str, Any], *, inplace: bool, project: bool
    ) -> dict[str, Refusal]:
        """Return the FC layers that cannot be CONV layers again, by place, with the reason."""

    @abstractmethod
    def make_conv(self, layers: Mapping[str, Any], *, project: bool) -> dict[int, Any]:
        """Make CONV layers of FC layers, by place; the answer is that of `make_fc`."""

    def unwrapped(self, model: Any, *, inplace: bool) -> tuple[Any, bool]:
        """Return the model without what a tool has wrapped around it, and whether it is ours."""
        return model, inplace

    def whole_back(self, model: Any, where: Where, *, inplace: bool) -> Any | None:
        """Return the CONV network that a simplified network was; None of any other."""
        return None

    @abstractmethod
    def rounds_inputs(self, layer: Any) -> bool:
        """Say whether an FC layer is quantised so that it rounds its input, too."""

    # Copies.

    @abstractmethod
    def copied(self, model: Any, layers: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Return a copy of a model, and the copies of these parts of it."""

    @abstractmethod
    def exchanged(self, model: Any, new: Mapping[int, Any]) -> Any:
        """Put new parts into the places of old ones, by their ``id``; return the model."""

    def stays(self, form: str | None) -> bool:
        """Say whether a layer that gets a form, or gives it up, stays the same object."""
        return False

    # Certificates.

    @abstractmethod
    def networks(self, before: Any, after: Any, x: Any) -> Networks:
        """Return two models that are compared on an input, or refuse what cannot be."""

    def pair(self, name: str, before: Any, after: Any) -> Pair | None:
        """Return a place of two networks where one of them has a CONV layer, to be compared.

        None if convfc can read neither side.
        """
        raise NotImplementedError

    def certified_whole(
        self, before: Any, after: Any, run: Networks
    ) -> tuple[list[LayerCertificate], NetworkCertificate] | None:
        """Compare a network with what it was simplified to; None if it was not."""
        return None

    @abstractmethod
    def version(self) -> str:
        """Return name and version of the framework, for certificates."""

    @abstractmethod
    def inspect(self, model: Any, x: Any = None) -> Inspection:
        """List every CONV layer of a model; see `convfc.inspect`."""

    # What every framework has of this.

    def inspected(self, model: Any, x: Any) -> tuple[Inspection, Any]:
        """Inspect a model on an input, with a batch axis of 1 before it where it only runs so.

        Returned is the input that it ran on, too.
        """
        try:
            return self.inspect(model, x), x
        except ShapeError:
            with contextlib.suppress(ShapeError, TypeError, LookupError):  # no arrays either
                one = _one_of_a_batch(x)
                return self.inspect(model, one), one
            raise

    def to_fc(
        self,
        model: Any,
        *,
        form: str = "patch",
        where: Where = None,
        strict: bool = True,
        inplace: bool = False,
        groups: str = "auto",
        product: str = "auto",
    ) -> Any:
        """Return the model with its CONV layers as FC layers; see `convfc.to_fc`."""
        wanted = _wanted(form, groups, product)
        taken = self.taken_back(model, wanted.form, where, strict=strict, inplace=inplace)
        model, chosen, inplace = taken
        found, left = self.found(model, wanted.form, where, chosen, inplace=inplace)
        refuse_or_list(left, _NO_FC, strict=strict)
        ready = {name: layer for name, layer in found.items() if name not in left}
        if inplace and not self.stays(form) and any(one is model for one in ready.values()):
            raise _cannot_become_another("CONV")
        if not inplace:
            model, copies = self.copied(model, list(ready.values()))
            ready = dict(zip(ready, copies, strict=True))
        return self.exchanged(model, self.make_fc(model, ready, wanted))

    def unroll(
        self,
        model: Any,
        example: Any,
        *,
        where: Where = None,
        strict: bool = True,
        memory: float | None = None,
    ) -> Any:
        """Return the model with each CONV layer as one FC layer; see `convfc.unroll`."""
        model, chosen, ours = self.taken_back(
            model, "unrolled", where, strict=strict, inplace=False
        )
        found, left = self.found(model, "unrolled", where, chosen, inplace=ours)
        sizes: dict[int, Any] = {}
        idle: dict[str, Refusal] = {}
        if not (left and strict):
            ready = {name: layer for name, layer in found.items() if name not in left}
            sizes, more, idle = self.sizes(model, ready, example)
            left |= more
            called = any(id(layer) in sizes for layer in ready.values())
            if not (called and strict):
                # What the model does not call is a reason if nothing else is left.
                left, idle = left | idle, {}
        refuse_or_list(left, _NO_FC, strict=strict)
        refuse_or_list(idle, "", strict=False)
        ready = {name: layer for name, layer in found.items() if name not in left | idle}
        self.check_memory(ready, sizes, memory)
        once = list({id(layer): layer for layer in ready.values()}.values())
        needed = [sizes[id(layer)] for layer in once]
        if not ours:
            model, once = self.copied(model, once)
        return self.exchanged(model, self.make_unrolled(once, needed))

    def to_conv(
        self,
        model: Any,
        *,
        where: Where = None,
        strict: bool = True,
        inplace: bool = False,
        project: bool = False,
    ) -> Any:
        """Return the model with its FC layers as CONV layers; see `convfc.to_conv`."""
        model, inplace = self.unwrapped(model, inplace=inplace)
        whole = self.whole_back(model, where, inplace=inplace)
        if whole is not None:
            return whole
        chosen = selector(where)
        forms = {
            name: part
            for name, part in self.places(model).items()
            if self.form_of(part) not in (None, "native")
        }
        layers = {name: layer for name, layer in forms.items() if chosen(name, layer)}
        if not layers:
            raise nothing_to_convert("layer in patch, weight or unrolled form", where, forms)
        left = self.back_obstacles(model, layers, inplace=inplace, project=project)
        refuse_or_list(left, "cannot become a CONV layer", strict=strict)
        ready = {name: layer for name, layer in layers.items() if name not in left}
        if inplace and any(
            layer is model and not self.stays(self.form_of(layer)) for layer in ready.values()
        ):
            raise _cannot_become_another("FC")
        rounded = [place_in_words(name) for name, one in ready.items() if self.rounds_inputs(one)]
        if rounded:
            warn(
                f"{', '.join(rounded)}: only the rounded weights come back: the quantised FC layer "
                "rounds its input as well, which a CONV layer does not, so that outputs differ a "
                "little"
            )
        if not inplace:
            model, copies = self.copied(model, list(ready.values()))
            ready = dict(zip(ready, copies, strict=True))
        return self.exchanged(model, self.make_conv(ready, project=project))

    def taken_back(
        self, model: Any, form: FCForm, where: Where, *, strict: bool, inplace: bool
    ) -> tuple[Any, Chosen, bool]:
        """Return the model with chosen layers of other forms as CONV layers.

        Returned are also what is chosen in it, and whether it may be changed.
        """
        chosen = selector(where)
        places = self.places(model)
        names = {name for name, part in places.items() if chosen(name, part)}
        others = {
            name for name in names if self.form_of(places[name]) not in (None, "native", form)
        }
        if not others:
            return model, chosen, inplace
        back = self.to_conv(
            model, where=lambda name, _: name in others, strict=strict, inplace=inplace
        )
        # A factored layer goes back as a sequence of two.
        inside = tuple(f"{name}." if name else "" for name in others)
        return back, lambda name, _: name in names or name.startswith(inside), True

    def found(
        self, model: Any, form: FCForm, where: Where, chosen: Chosen, *, inplace: bool
    ) -> tuple[dict[str, Any], dict[str, Refusal]]:
        """Return the CONV layers to be converted, by name, and those that cannot be, with reasons.

        Raises
        ------
        NothingToConvert
            If there is neither.
        """
        places = self.places(model)
        layers = {name: part for name, part in places.items() if self.form_of(part) is not None}
        found = {
            name: part
            for name, part in layers.items()
            if self.form_of(part) == "native" and chosen(name, part)
        }
        out_of_reach = {
            name: refusal
            for name, refusal in self.unreachable(model).items()
            if chosen(name, places[name])
        }
        if not found and not out_of_reach:
            already = any(chosen(name, part) for name, part in layers.items())
            raise nothing_to_convert(
                "CONV layer" + (f" that is not in {form} form already" if already else ""),
                where,
                layers,
            )
        left = self.obstacles(model, found, form, inplace=inplace)
        for name, refusal in out_of_reach.items():
            left.setdefault(name, refusal)
        return found, left

    def verify(self, before: Any, after: Any, x: Any, *, seed: int = 0) -> Certificate:
        """Compare two networks, layer by layer and as wholes; see `convfc.verify`."""
        run = self.networks(before, after, x)
        found = Pairs()
        with run.undisturbed():
            whole = self.certified_whole(before, after, run)
            if whole is None:
                found = find_pairs(self, before, after)
                output, layers = run.measure(before, found.pairs, seed)
                network = compare_networks(before, after, output, found, run)
            else:
                layers, network = whole
        return Certificate(
            layers=tuple(layers),
            network=network,
            unconverted=tuple(found.unconverted),
            missing=tuple(found.missing),
            framework=self.version(),
            seed=seed,
        )

    # What a framework may lack.

    def simplify(self, model: Any, example: Any, **options: Any) -> Any:
        """Return a whole network as FC layers and ReLU; see `convfc.simplify`."""
        raise self._lacks("simplify", model)

    def to_fully_convolutional(self, model: Any, example: Any, **options: Any) -> Any:
        """Return the model with its head as CONV layers; see `convfc.to_fully_convolutional`."""
        raise self._lacks("to_fully_convolutional", model)

    def convert_optimizer_state(self, optimizer: Any, before: Any, after: Any) -> dict[str, Any]:
        """Return an optimizer's state for the other form; see `convfc.convert_optimizer_state`."""
        raise self._lacks("convert_optimizer_state", before)

    def load_weights(self, model: Any, path: Any) -> str:
        """Load the weights of a file into a model; return what was cast, as a sentence."""
        raise self._lacks("--weights", model)

    def examples(self, model: Any, shapes: Sequence[Sequence[int]]) -> list[Any]:
        """Return what a model is tried on: random inputs of these shapes, or of those it says."""
        if not shapes:
            raise ArgumentError(
                "it is not known what this model is called with",
                where="input",
                remedy="give the shape of its input, as in --input 1,3,224,224, or an npz file",
            )
        rng = np.random.default_rng(0)
        return [tuple(rng.standard_normal(shape, np.float32) for shape in shapes)]

    def layer_input(self, model: Any, place: str, x: Any) -> Any:
        """Return what the layer at a place first receives when the model is called with x."""
        raise self._lacks("explore", model)

    def to_onnx(self, model: Any, example: Any) -> Any:
        """Return the model as an `onnx_ir.Model`, for inputs of the sizes of an example."""
        raise self._lacks("convert", model)

    def _lacks(self, verb: str, model: Any) -> UnsupportedModel:
        return UnsupportedModel(
            f"convfc's {verb} takes no models of {self.name}",
            where="model",
            got=type(model).__name__,
            remedy=f"the verbs that take models of {self.name} are in convfc's documentation",
        )


def _one_of_a_batch(x: Any) -> Any:
    """Return an input with a batch axis of 1 in front of each array."""
    if isinstance(x, Mapping):
        return {name: array[None] for name, array in x.items()}
    return tuple(array[None] for array in x) if isinstance(x, tuple) else x[None]


def _wanted(form: Any, groups: Any, product: Any) -> Wanted:
    """Read the options of `to_fc`."""
    one_of(
        "form",
        form,
        LayerForm,
        what="there is no such form",
        remedy="'patch' puts an FC layer in the layer's place, 'weight' keeps the layer and makes "
        "its parameter 2-D; one FC layer of the layer's whole matrix is made by convfc.unroll",
    )
    one_of(
        "groups",
        groups,
        Groups,
        what="there is no such way to hold groups",
        remedy="'separate' gives every group an FC layer, 'batched' holds all groups in one "
        f"weight, 'auto' takes the first up to {MOST_SEPARATE} groups",
    )
    if groups == "separate" and form != "patch":
        why = "holds all groups of a layer in one matrix"
        raise _not_in(form, why, "groups", groups, "'auto' or 'batched'")
    one_of(
        "product",
        product,
        Product,
        what="there is no such product",
        remedy="'auto' leaves it to the framework's convolution while nothing has touched the FC "
        "layer, 'matrix' always computes M K",
    )
    if product == "matrix" and form != "patch":
        why = "runs the framework's convolution and has no M"
        raise _not_in(form, why, "product", product, "'auto'")
    return Wanted(form, None if groups == "auto" else groups == "separate", product)


def _not_in(form: str, why: str, where: str, got: str, expected: str) -> ArgumentError:
    return ArgumentError(
        f"the {form} form {why}",
        where=where,
        expected=f"{expected}, or form='patch'",
        got=f"{got!r}, form={form!r}",
        remedy="leave it out",
    )


def _cannot_become_another(kind: str) -> ArgumentError:
    return ArgumentError(
        f"the model is itself the {kind} layer, which cannot become another object",
        where="inplace",
        remedy="use the model that is returned, without inplace=True",
    )
