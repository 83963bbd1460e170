"""A model made again with other layers in some places.

A layer that becomes another one in place (`forms`) needs none of this. But a matrix is several
layers, and a graph cannot be given another layer: it holds the nodes of its layers' calls.
`keras.models.clone_model` builds the graph again, nested models and shared layers included, and
asks for each layer; so names, inputs and outputs stay. What it does not copy, weights and flags,
is copied here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from convfc.extras import needing

with needing():
    import keras

from convfc.comparing import first_words, words
from convfc.errors import UnsupportedLayer, UnsupportedModel
from convfc.frameworks.keras import models
from convfc.frameworks.keras.read import numbers
from convfc.mlp.simplified import ATTRIBUTE

RECORDS = ("convfc_unrolled", ATTRIBUTE)
"""Attributes in which what convfc has made remembers what it was; copies have them, too."""

_SUBCLASSED = (
    "build it as a keras.Sequential or with keras.Model(inputs, outputs), whose calls Keras knows"
)


def copy_of(model: Any) -> Any:
    """Return a copy of a model: of its graph, or as Keras saves one whose forward is its own."""
    if model.built and (is_graph(model) or not isinstance(model, keras.Model)):
        return rebuilt(model, {})
    with keras.saving.custom_object_scope(models.own_classes(model)):
        try:
            return copy.deepcopy(model)
        except Exception as error:
            raise UnsupportedModel(
                f"it cannot be copied ({words(error)})",
                where=model.name,
                remedy="give its class a get_config, or convert it itself, with inplace=True",
            ) from error


def is_graph(model: Any) -> bool:
    """Say whether a layer is a model whose calls Keras knows: Sequential, or Functional."""
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call
    functional = isinstance(model, keras.Function) and isinstance(model, keras.Model)
    return functional and type(model).call.__module__.startswith("keras.")


def check_is_graph(model: Any) -> None:
    """Refuse a model whose forward is its own, and one that has no weights yet."""
    if isinstance(model, keras.Model) and not is_graph(model):
        raise UnsupportedModel(
            "its forward is written in its class, so that no layer in it can be exchanged",
            where="model",
            expected="a Sequential or Functional model, or one layer",
            got=type(model).__name__,
            remedy=_SUBCLASSED,
        )
    if not model.built:
        raise UnsupportedModel(
            "it has no weights yet",
            where="model",
            got=model.name,
            remedy="call it once on an input, or begin it with keras.Input(shape)",
        )


def rebuilt(model: Any, new: Mapping[int, Any]) -> Any:
    """Return a copy of a model with other layers in the places of some, by their ``id``.

    Everything else is a copy with the same names, weights, flags and policies, compiled for the
    same loss; its optimizer starts anew.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer
        If a model or a layer in it cannot be made again; the message names it.
    """
    if id(model) in new:
        return new[id(model)]
    check_is_graph(model)
    copies: list[tuple[Any, Any]] = []

    def made(layer: Any) -> Any:
        if isinstance(layer, keras.layers.Layer):
            copies.append((layer, _same_kind(layer)))
            return copies[-1][1]
        return layer.__class__.from_config(layer.get_config())

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if any(layer is one for one in new.values()):
            kwargs.pop("mask", None)  # a Sequential is called with one, a CONV layer knows none
        return layer(*args, **kwargs)

    flags = [(part, part.trainable) for layer in new.values() for part in _parts(layer)]
    if isinstance(model, keras.Model):
        inside = {id(layer): layer for layer in _models(model) if id(layer) not in new}
        reached = {id(layer) for one in (model, *inside.values()) for layer in one.layers}
        _check_reached(model, new.keys() - reached)
        cache = dict(new)  # what Keras finds there it does not ask for
        cache |= {key: made(layer) for key, layer in inside.items() if not is_graph(layer)}
        graph = {} if isinstance(model, keras.Sequential) else {"call_function": call}
        with _not_compiled(model, *inside.values()):  # Keras would read its loss from a text
            whole = keras.models.clone_model(
                model, clone_function=made, recursive=True, cache=cache, **graph
            )
        inner = ((layer, cache[key]) for key, layer in inside.items() if is_graph(layer))
        graphs = [(model, whole), *inner]
    else:
        whole, graphs = made(model), []
        whole.build_from_config(model.get_build_config())
    for layer, other in copies:
        _copy_weights(layer, other)
    for layer, other in graphs:
        _finish(layer, other)
    for layer, other in (*graphs, *copies):
        for name in RECORDS:
            if name in vars(layer):
                vars(other)[name] = vars(layer)[name]
        pairs = zip(_parts(layer), _parts(other), strict=True) if (layer, other) in copies else ()
        flags += [(theirs, mine.trainable) for mine, theirs in pairs]
    # A layer hands its flag on to what is inside it: so from the outside in, numbers last.
    wanted = [(other, layer.trainable) for layer, other in graphs] + flags
    for part, flag in sorted(wanted, key=lambda one: not isinstance(one[0], keras.layers.Layer)):
        if part.trainable != flag:
            part.trainable = flag
    return whole


def copied(layer: Any) -> Any:
    """Return a copy of one layer, with its weights."""
    return rebuilt(layer, {})


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Leave what a run changes, such as the seeds of a dropout that is always on, as it was."""
    before = [(state, numbers(state)) for state in model.non_trainable_variables]
    try:
        yield
    finally:
        for state, held in before:
            if not np.array_equal(numbers(state), held, equal_nan=held.dtype.kind == "f"):
                state.assign(held)


@contextmanager
def _not_compiled(*models: Any) -> Iterator[None]:
    """Have some models look as if they were not compiled."""
    compiled = [one for one in models if one.compiled]
    for one in compiled:
        vars(one)["compiled"] = False
    try:
        yield
    finally:
        for one in compiled:
            vars(one)["compiled"] = True


def _compile_alike(model: Any, copied: Any) -> None:
    """Compile a copy with the model's loss, and an optimizer and metrics that start anew."""

    def anew(one: Any) -> Any:
        kinds = (keras.optimizers.Optimizer, keras.metrics.Metric)
        return type(one).from_config(one.get_config()) if isinstance(one, kinds) else one

    settings = dict(model._compile_config.config)
    copied.compile(**keras.tree.map_structure(anew, settings))


def _same_kind(layer: Any) -> Any:
    """Return a layer of the same class and settings, as yet without weights."""
    if type(layer) is keras.layers.Lambda:  # its function would be read from bytes
        return keras.layers.Lambda(
            layer.function,
            output_shape=getattr(layer, "_output_shape", None),
            mask=layer.mask,
            arguments=dict(layer.arguments),
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    try:
        return layer.__class__.from_config(layer.get_config())
    except Exception as error:
        raise UnsupportedLayer(
            f"a {type(layer).__name__} cannot be made again from its settings: "
            f"{first_words(error) or type(error).__name__}",
            where=f"layer {layer.name}",
            remedy="give its class get_config and from_config, as Keras's own layers have them",
        ) from error


def _finish(model: Any, copied: Any) -> None:
    """Give a graph's copy what building the graph again leaves out."""
    for mine, theirs in zip(input_layers(model), input_layers(copied), strict=True):
        theirs.name = mine.name  # Keras names it after its tensor
    if copied.dtype_policy != model.dtype_policy:  # it casts what it is called with
        copied.dtype_policy = model.dtype_policy
    if model.compiled:
        _compile_alike(model, copied)


def input_layers(model: Any) -> list[Any]:
    """Return the layers that name a graph's inputs."""
    return [one for one in model._layers if isinstance(one, keras.layers.InputLayer)]


def _models(model: Any) -> Iterator[Any]:
    """Yield the models that a model calls as layers, the outer ones first."""
    for layer in model.layers if is_graph(model) else ():
        if isinstance(layer, keras.Model):
            yield layer
            yield from _models(layer)


def _check_reached(model: Any, missing: set[int]) -> None:
    """Refuse layers that stand where only the class of what holds them knows of them."""
    if not missing:
        return
    for holder in (model, *_models(model)):
        for layer in holder.layers:
            inside = [one for one in layer._flatten_layers() if id(one) in missing]
            if inside and not is_graph(layer):
                raise UnsupportedLayer(
                    f"it stands in a {type(layer).__name__}, whose own class calls it, and cannot "
                    "be exchanged there",
                    where=f"layer {inside[0].name} of {layer.name}",
                    remedy="leave it out with where=, or write what holds it as a keras.Sequential "
                    "or a Functional model",
                )
    raise UnsupportedLayer(
        "a layer that is to be exchanged is not in the model's graph",
        where=f"model {model.name}",
        remedy=_SUBCLASSED,
    )


def _copy_weights(layer: Any, copy: Any) -> None:
    """Copy every number of a layer, to the last bit."""
    mine, theirs = layer.variables, copy.variables
    if [v.shape for v in mine] != [v.shape for v in theirs]:
        raise UnsupportedLayer(
            f"a {type(layer).__name__} has other weights than its settings say: "
            f"{len(mine)}, made again {len(theirs)}",
            where=f"layer {layer.name}",
            remedy="take out what has been added to it, such as LoRA, or give its class a "
            "get_config that says it all",
        )
    for source, target in zip(mine, theirs, strict=True):
        target.assign(keras.ops.copy(source.value))  # on JAX, training frees what it was given
    if hasattr(copy, "finalize_state"):  # Normalization computes with what it makes of its weights
        copy.finalize_state()


def _parts(layer: Any) -> list[Any]:
    """Return a layer, what is inside it, and its weights: what has a flag that it is trained."""
    return [*layer._flatten_layers(), *layer.weights]
