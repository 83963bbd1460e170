"""What `test_laws` asks of a framework, and each framework's answers.

The laws know no framework. They make a network of one CONV layer out of NumPy arrays, convert it
with convfc's own verbs, run it, and look at what comes out, as NumPy arrays again. To hold a
framework to them, write a subclass of `Adapter` here: it is found by itself, and every law runs on
every form that it names. Import the framework in this file only.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pathlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np
import onnx
import onnx_models
import torch
from conv_cases import HYPER_PARAMETERS, integers
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor, nn
from torch.nn.utils import prune, skip_init
from torch.nn.utils.parametrizations import weight_norm

import convfc
from convfc import ConvGeometry
from convfc.errors import ConvfcError, ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.frameworks.keras import backend

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """A form of FC layers: the verb that makes it, and what it keeps of a CONV layer."""

    name: str
    verb: str
    options: Mapping[str, Any] = field(default_factory=dict)
    example: bool = False
    """Whether the verb needs an example."""
    layers: bool = True
    """Whether each CONV layer becomes one FC layer, with its hooks; not a product of layers."""
    state: bool = True
    """Whether the state dict is the CONV network's, and the layer's settings can be changed."""

    def __str__(self) -> str:
        return self.name


class Refusal(NamedTuple):
    """What is refused: a network, where it says so, and the class of the error."""

    make: Callable[[], Any]
    place: str
    x: np.ndarray
    error: type[ConvfcError] = UnsupportedLayer
    inplace: bool = True
    """Whether it is refused in place, too."""


class Adapter:
    """A framework, as the laws see it.

    Arrays come and go in the framework's own order of axes. Numbers that NumPy has no dtype for
    (bfloat16) come back as wider ones, which changes none of them.
    """

    name: str
    order: str = "channels_last"
    """Of the axes of inputs and outputs; ``"channels_first"`` is ``(b, c, *spatial)``."""
    dtypes: tuple[str, ...] = ("float32",)
    """In which sums of a few hundred are exact on integers up to 4."""
    exact: str = "float32"
    """The one of them in which sums of many thousands are, too."""
    forms: tuple[Form, ...] = ()
    copies: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
    """The ways in which users copy a model, each a function of the model."""
    differentiates: bool = True
    """Whether it has gradients; without them the laws of gradients are left out."""
    wrong_size: tuple[type[Exception], str] = (
        ShapeError,
        r"^x: the FC layer is .*expected .*\. Remedy: ",
    )
    """What a form that is made for one size raises on an input of another."""
    compiles: bool = False
    """Whether every new layer is compiled, which takes seconds: laws try one of each kind only."""
    warnings: tuple[str, ...] = ()
    """What the framework itself warns of, as pytest's ``filterwarnings`` takes it."""

    # What a subclass writes.

    def layer(self, geometry: ConvGeometry, dtype: str, *, bias: bool) -> Any | None:
        """Return a new network of one CONV layer; None if the framework has no such layer."""
        raise NotImplementedError

    def fill(self, model: Any, filters: np.ndarray, bias: np.ndarray | None) -> Any:
        """Give the layer these numbers, filters ``(f, *kernel, c / groups)``; return the model."""
        raise NotImplementedError

    def networks(self) -> dict[str, Callable[[], tuple[Any, np.ndarray]]]:
        """Return what makes small networks on small integers, by name, each with an input."""
        return {}

    def run(self, model: Any, x: np.ndarray) -> np.ndarray:
        """Return the output of a model; x is converted to the model's dtype."""
        raise NotImplementedError

    def gradients(self, model: Any, x: np.ndarray, dy: np.ndarray) -> Arrays:
        """Return the gradient of the input as ``"x"``, and those of the parameters by name."""
        raise NotImplementedError

    def parameters(self, model: Any) -> Arrays:
        """Return what the gradients but ``"x"`` are gradients of."""
        raise NotImplementedError

    def gradients_held(self, model: Any) -> Arrays | None:
        """Return what the parameters hold after `gradients`; None if they hold nothing."""
        return None

    def state(self, model: Any) -> Arrays:
        """Return the model's state, as it is saved."""
        raise NotImplementedError

    def load(self, model: Any, state: Arrays) -> None:
        """Load a state; another set of names is an error."""
        raise NotImplementedError

    def write(self, model: Any, state: Arrays) -> None:
        """Write in place into what the framework gives as the state of the model."""
        raise NotImplementedError

    def settings(self, model: Any) -> Any:
        """Return all else that makes the model: classes, hyper-parameters, dtypes; to compare."""
        raise NotImplementedError

    def change(self, model: Any, geometry: ConvGeometry) -> None:
        """Give the one layer, native or of a form that has settings, those of a geometry."""
        raise NotImplementedError

    def hook(
        self,
        model: Any,
        before: Callable[[np.ndarray], np.ndarray],
        after: Callable[[np.ndarray], np.ndarray],
    ) -> Callable[[], None] | None:
        """Let functions change input and output of the one layer; return what removes them.

        None if the framework has no hooks.
        """
        return None

    def refused(self, form: Form) -> dict[str, Refusal]:
        """Return what `to_fc` refuses in this form."""
        return {}

    def refused_back(self, form: Form) -> dict[str, Refusal]:
        """Return what a tool has made of the form so that `to_conv` refuses it."""
        return {}

    def calm(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which laws run: one thread, the same random numbers."""
        return contextlib.nullcontext()

    # What the laws have for all frameworks.

    def __str__(self) -> str:
        return self.name

    def convert(self, model: Any, form: Form, x: np.ndarray, **options: Any) -> Any:
        """Return a model in a form; an example is of the size of x."""
        example = (self.example(model, x),) if form.example else ()
        return getattr(convfc, form.verb)(model, *example, **form.options, **options)

    def example(self, model: Any, x: np.ndarray) -> Any:
        """Return x as `to_fc` and `verify` take it with this model."""
        return x

    def ordered(self, x: np.ndarray) -> np.ndarray:
        """Return ``(b, *spatial, c)`` in the framework's order."""
        return np.moveaxis(x, -1, 1) if self.order == "channels_first" else x

    def canonical(self, y: np.ndarray) -> np.ndarray:
        """Return an output as ``(b, *spatial, f)``."""
        return np.moveaxis(y, 1, -1) if self.order == "channels_first" else y

    def snapshot(self, model: Any) -> Any:
        """Return all that is to be the same afterwards, to the bit."""
        state = {name: array.tobytes() for name, array in self.state(model).items()}
        return self.settings(model), list(state), state


def adapters() -> list[Adapter]:
    """Return one adapter of each class, in the order in which they are written."""
    return [cls() for cls in Adapter.__subclasses__()]


class OwnForward(nn.Conv2d):
    """Its forward is its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


class OwnCall(nn.Conv2d):
    """More than its forward is its own."""

    def __call__(self, input: Tensor) -> Any:
        return super().__call__(input).abs()


class AsksForClass(nn.Module):
    """Its forward takes another way for what is not a CONV layer."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*sizes)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) if isinstance(self.conv, nn.Conv2d) else x


class Twice(nn.Module):
    """One layer on inputs of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.conv(x))
        return y


def _numpy(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor's numbers; NumPy has no bfloat16, and float32 has all of it."""
    if isinstance(tensor, nn.UninitializedParameter):
        return np.zeros(0)
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy().copy()


def _through_a_file(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class TorchAdapter(Adapter):
    """PyTorch."""

    name = "torch"
    order = "channels_first"
    dtypes = ("float64", "float32", "bfloat16", "float16", "complex64", "complex128")
    exact = "float64"
    forms = (
        Form("patch", "to_fc", {"form": "patch", "product": "matrix"}),
        Form("patch by PyTorch", "to_fc", {"form": "patch"}),
        Form("weight", "to_fc", {"form": "weight"}),
        Form("unrolled", "unroll", example=True, state=False),
        Form("simplified", "simplify", example=True, layers=False, state=False),
    )
    copies = MappingProxyType(
        {
            "deepcopy": copy.deepcopy,
            "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 (our own)
            "file": _through_a_file,
        }
    )
    warnings = (
        "ignore:Using padding='same' with even kernel:UserWarning",
        "ignore:Complex modules are a new feature:UserWarning",
    )

    def layer(self, geometry: ConvGeometry, dtype: str, *, bias: bool) -> Any | None:
        g = geometry
        same = [(d * (k - 1)) for d, k in zip(g.dilation, g.kernel_size, strict=True)]
        padding: Any = tuple(low for low, _ in g.padding)
        if any(low != high for low, high in g.padding):
            if g.transposed or g.padding != tuple((n // 2, n - n // 2) for n in same):
                return None
            padding = "same"
            if set(g.stride) != {1}:
                return None
        if g.flip or g.spatial_ndim > 3:
            return None
        rest: dict[str, Any] = {
            "stride": g.stride,
            "padding": padding,
            "dilation": g.dilation,
            "groups": g.groups,
            "padding_mode": g.padding_mode,
            "bias": bias,
            "dtype": getattr(torch, dtype),
        }
        if g.transposed:
            rest["output_padding"] = g.output_padding
        cls = getattr(nn, f"Conv{'Transpose' * g.transposed}{g.spatial_ndim}d")
        # Without random numbers, which other tests may draw.
        layer = skip_init(cls, g.in_channels, g.out_channels, g.kernel_size, **rest)
        return nn.Sequential(layer)

    def fill(self, model: Any, filters: np.ndarray, bias: np.ndarray | None) -> Any:
        layer = model[0]
        weight = torch.from_numpy(np.moveaxis(filters, -1, 1).copy())
        if layer.transposed:  # (c, f / groups, *kernel)
            weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))
        return model

    def networks(self) -> dict[str, Callable[[], tuple[Any, np.ndarray]]]:
        return {"conv-norm-conv-up": self._network}

    def _network(self) -> tuple[Any, np.ndarray]:
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            nn.BatchNorm2d(4, eps=0.0),
            nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 2, stride=2),
        )
        with torch.no_grad():
            for seed, tensor in enumerate([*model.parameters(), model[1].running_mean]):
                tensor.copy_(integers(tensor.shape, seed=seed))
        x = np.random.default_rng(0).integers(-2, 3, (2, 3, 6, 5))
        return model.double().eval(), x

    def run(self, model: Any, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return _numpy(model(self.example(model, x)))

    def gradients(self, model: Any, x: np.ndarray, dy: np.ndarray) -> Arrays:
        given = self.example(model, x).requires_grad_()
        model.zero_grad()
        model(given).backward(torch.from_numpy(dy).to(given.dtype))
        assert given.grad is not None
        return {"x": _numpy(given.grad), **(self.gradients_held(model) or {})}

    def parameters(self, model: Any) -> Arrays:
        return {name: _numpy(p) for name, p in model.named_parameters()}

    def gradients_held(self, model: Any) -> Arrays | None:
        return {name: _numpy(p.grad) for name, p in model.named_parameters() if p.grad is not None}

    def state(self, model: Any) -> Arrays:
        return {name: _numpy(value) for name, value in model.state_dict().items()}

    def load(self, model: Any, state: Arrays) -> None:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})

    def write(self, model: Any, state: Arrays) -> None:
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(state[name]))

    def settings(self, model: Any) -> Any:
        modules = [
            (
                name,
                type(part).__qualname__,
                part.training,
                sorted(vars(part)),
                {key: vars(part)[key] for key in HYPER_PARAMETERS if key in vars(part)},
                len(part._forward_hooks),
                len(part._forward_pre_hooks),
            )
            for name, part in model.named_modules()
        ]
        parameters = [
            (name, p.dtype, tuple(p.shape), p.stride(), p.requires_grad)
            for name, p in model.named_parameters()
            if not isinstance(p, nn.UninitializedParameter)
        ]
        return modules, parameters

    def change(self, model: Any, geometry: ConvGeometry) -> None:
        other = self.layer(geometry, "float32", bias=True)
        assert other is not None
        for name in HYPER_PARAMETERS:
            setattr(model[0], name, vars(other[0])[name])

    def hook(
        self,
        model: Any,
        before: Callable[[np.ndarray], np.ndarray],
        after: Callable[[np.ndarray], np.ndarray],
    ) -> Callable[[], None] | None:
        def pre(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
            return torch.from_numpy(before(_numpy(args[0])))

        def post(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return torch.from_numpy(after(_numpy(y)))

        handles = model[0].register_forward_pre_hook(pre), model[0].register_forward_hook(post)
        return lambda: [handle.remove() for handle in handles] and None

    def example(self, model: Any, x: np.ndarray) -> Any:
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        return torch.from_numpy(np.ascontiguousarray(x)).to(dtype)

    def refused(self, form: Form) -> dict[str, Refusal]:
        x = np.zeros((1, 3, 8, 8))

        def conv(*parts: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(3, 3, 3), *parts)

        def hooked() -> nn.Module:
            model = conv(nn.Conv2d(3, 3, 3))
            model[1].register_forward_hook(lambda module, args, y: 2 * y)
            return model

        def with_a_part(name: str) -> nn.Module:
            model = conv(nn.Conv2d(3, 3, 3))
            model[1].add_module(name, nn.Identity())
            return model

        def closed_in() -> nn.Module:
            inner = nn.Conv2d(3, 3, 3)
            model = conv(inner)
            model.again = lambda x: 2 * inner(x)
            return model

        def shared() -> nn.Module:
            model = conv(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
            model[2].extra = model[1].weight
            return model

        if not form.layers:
            return {
                "hooks": Refusal(hooked, "1", x),
                "no affine map": Refusal(lambda: conv(nn.LayerNorm(6)), "1", x),
                "batch statistics": Refusal(
                    lambda: conv(nn.BatchNorm2d(3)), "1", x, UnsupportedModel
                ),
                "closed in": Refusal(closed_in, "1", x),
            }
        found = {
            "no size yet": Refusal(lambda: conv(nn.LazyConv2d(3, 3)), "1", x),
            "a part named fc": Refusal(lambda: with_a_part("fc"), "1", x),
            "shared": Refusal(shared, "1", x),
            # In weight form the layer stays the same object.
            "closed in": Refusal(closed_in, "1", x, inplace=form.name != "weight"),
        }
        if form.name.startswith("patch"):
            found["a call of its own"] = Refusal(lambda: conv(OwnCall(3, 3, 3)), "1", x)
        else:
            found["own forward"] = Refusal(lambda: conv(OwnForward(3, 3, 3)), "1", x)
            found["computed"] = Refusal(lambda: conv(weight_norm(nn.Conv2d(3, 3, 3))), "1", x)
        if form.example:
            found["two sizes"] = Refusal(Twice, "conv", x)
            found["its class"] = Refusal(lambda: AsksForClass(3, 3, 3), "conv", x)
            found["a part"] = Refusal(lambda: with_a_part("observer"), "1", x)
        return found

    def refused_back(self, form: Form) -> dict[str, Refusal]:
        x = np.zeros((1, 3, 8, 8))

        def model() -> Any:
            return self.convert(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3)), form, x)

        def replaced() -> nn.Module:
            found = model()
            if form.name.startswith("patch"):
                found[1].fc = nn.Bilinear(2, 2, 2)
            elif form.name == "unrolled":
                found[1][1] = nn.Bilinear(2, 2, 2)
            else:
                found[[type(part) for part in found].index(nn.Linear)] = nn.Bilinear(2, 2, 2)
            return found

        def mixed() -> nn.Module:
            found = self.convert(nn.Sequential(nn.Conv2d(40, 40, 3, groups=40)), form, x)
            found[0].fc = nn.Linear(360, 40)
            return found

        def pruned() -> nn.Module:
            found = model()
            prune.l1_unstructured(found[1].parametrizations.weight, "original", amount=0.5)
            return found

        def moved() -> nn.Module:
            found = model()
            with torch.no_grad():
                found[1][1].weight[0, -1] += 1  # which filter 0 does not read at position 0
            return found

        if form.name == "weight":
            return {"pruned": Refusal(pruned, "1", x)}
        found = {"replaced": Refusal(replaced, "2" if not form.layers else "1", x)}
        if form.name.startswith("patch"):
            found["one for all groups"] = Refusal(mixed, "0", x)
        if form.name == "unrolled":
            found["no convolution"] = Refusal(moved, "1", x)
        return found

    @contextlib.contextmanager
    def calm(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        yield
        torch.set_num_threads(threads)


def _saved(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        return keras.saving.load_model(path)


class KerasAdapter(Adapter):
    """Keras, on the backend of this process."""

    name = "keras"
    dtypes = ("float32", "bfloat16")
    forms = (
        # The product by Keras's own convolution is in test_keras_forms.py.
        Form("patch", "to_fc", {"form": "patch", "product": "matrix"}),
        Form("weight", "to_fc", {"form": "weight"}),
    )
    copies = MappingProxyType({"deepcopy": copy.deepcopy, "file": _saved})
    compiles = True

    def layer(self, geometry: ConvGeometry, dtype: str, *, bias: bool) -> Any | None:
        g = geometry
        options = self._options(g)
        if options is None:
            return None
        options |= {"use_bias": bias, "dtype": dtype}
        name = f"Conv{g.spatial_ndim}D{'Transpose' * g.transposed}"
        if 1 < g.groups == g.in_channels and g.spatial_ndim < 3:
            name = f"DepthwiseConv{g.spatial_ndim}D"
            options["depth_multiplier"] = g.out_channels // g.in_channels
        else:
            options["filters"] = g.out_channels
            options |= {} if g.transposed else {"groups": g.groups}
        layer = getattr(keras.layers, name)(kernel_size=g.kernel_size, name="conv", **options)
        size = (*(None,) * g.spatial_ndim, g.in_channels)
        return keras.Sequential([keras.Input(size, name="x"), layer], name="network")

    def _options(self, g: ConvGeometry) -> dict[str, Any] | None:
        """Return the arguments that a geometry has in Keras, if it has them there."""
        same = [d * (k - 1) for d, k in zip(g.dilation, g.kernel_size, strict=True)]
        padding = "valid"
        if any(map(any, g.padding)):
            words = {
                "same": tuple((n // 2, n - n // 2) for n in same),
                "causal": tuple((n, 0) for n in same),
            }
            known = (word for word, pads in words.items() if pads == g.padding)
            padding = next(known, "none")
            if set(g.stride) != {1} or (padding == "causal" and g.spatial_ndim > 1):
                return None
        options = {"strides": g.stride, "dilation_rate": g.dilation, "padding": padding}
        if g.transposed:
            more = [max(s - e, 0) for s, e in zip(g.stride, g.effective_kernel_size, strict=True)]
            if g.groups > 1 or padding != "valid" or set(g.dilation) != {1}:
                return None
            options["output_padding"] = g.output_padding if any(g.output_padding) else None
            if not any(g.output_padding) and any(more):
                return None
        both = max(g.stride) > 1 and max(g.dilation) > 1
        depthwise = g.groups == g.in_channels > 1 and len(set(g.stride)) > 1
        unknown = padding == "none" or g.padding_mode != "zeros" or g.flip or both or depthwise
        return None if unknown or g.spatial_ndim > 3 else options

    def fill(self, model: Any, filters: np.ndarray, bias: np.ndarray | None) -> Any:
        layer = model.layers[0]
        kernel = np.moveaxis(filters, 0, -1)  # (*kernel, c / groups, f)
        if isinstance(layer, _DEPTHWISE):
            kernel = kernel.reshape(layer.kernel.shape)
        elif "Transpose" in type(layer).__name__:
            kernel = kernel.swapaxes(-1, -2)
        layer.set_weights([kernel, *([] if bias is None else [bias])])
        return model

    def networks(self) -> dict[str, Callable[[], tuple[Any, np.ndarray]]]:
        return {"shared-nested-separable": self._network}

    def _network(self) -> tuple[Any, np.ndarray]:
        layers, x = keras.layers, keras.Input((6, 5, 3))
        twice = layers.Conv2D(3, 3, padding="same", activation="relu", name="twice")
        h = layers.BatchNormalization(epsilon=0.0, name="norm")(twice(twice(x)))
        inner = keras.Sequential(
            [layers.SeparableConv2D(4, 3, strides=2, padding="same", name="apart"), layers.ReLU()],
            name="inner",
        )
        y = layers.Conv2DTranspose(2, 2, strides=2, padding="same", name="up")(inner(h))
        model = keras.Model(x, y)
        numbers = np.random.default_rng(0)
        model.set_weights([numbers.integers(-2, 3, tuple(w.shape)) for w in model.weights])
        model.get_layer("norm").moving_variance.assign(np.full(3, 4.0))
        return model, numbers.integers(-2, 3, (2, 6, 5, 3))

    def run(self, model: Any, x: np.ndarray) -> np.ndarray:
        # On JAX as one program; its operations by themselves are run in test_keras_forms.py.
        return _as_numpy(backend.compiled(model, model)(self.example(model, x)))

    def gradients(self, model: Any, x: np.ndarray, dy: np.ndarray) -> Arrays:
        y, pull = backend.pullback(model, self.example(model, x))
        dx, *others = map(_as_numpy, pull(keras.ops.convert_to_tensor(dy, y.dtype)))
        return {"x": dx, **dict(zip(self.parameters(model), others, strict=True))}

    def parameters(self, model: Any) -> Arrays:
        found = enumerate(model.trainable_variables)
        return {f"{number} {one.name}": _as_numpy(one.value) for number, one in found}

    def state(self, model: Any) -> Arrays:
        """Return what Keras writes into a file of weights."""
        found: Arrays = {}
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.weights.h5")
            model.save_weights(path)
            with h5py.File(path) as file:
                names: list[str] = []
                file.visit(names.append)
                for name in (name for name in names if isinstance(file[name], h5py.Dataset)):
                    role = {"0": "weight", "1": "bias"}.get(name.rpartition("/")[2], "")
                    found[f"{name} {role}"] = file[name][()]
        return found

    def load(self, model: Any, state: Arrays) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.weights.h5")
            model.save_weights(path)
            with h5py.File(path, "r+") as file:
                for name, array in state.items():
                    file[name.partition(" ")[0]][...] = array
            model.load_weights(path)

    write = load

    def settings(self, model: Any) -> Any:
        return (
            [type(one).__qualname__ for one in model._flatten_layers()],
            json.dumps(model.get_config(), default=str),
            [(one.name, one.dtype, tuple(one.shape), one.trainable) for one in model.variables],
        )

    def change(self, model: Any, geometry: ConvGeometry) -> None:
        options, layer = self._options(geometry), model.layers[0]
        assert options is not None
        for name, value in options.items():
            setattr(layer, name, value)

    def example(self, model: Any, x: np.ndarray) -> Any:
        return keras.ops.convert_to_tensor(np.ascontiguousarray(x), model.layers[-1].compute_dtype)

    def refused(self, form: Form) -> dict[str, Refusal]:
        x = np.zeros((1, 8, 8, 3))

        def conv(*layers: Any) -> Any:
            return keras.Sequential(
                [keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, name="first"), *layers]
            )

        def quantised() -> Any:
            model = conv(keras.layers.Conv2D(3, 3, name="second"))
            model.layers[1].enable_lora(1)
            return model

        return {
            "own call": Refusal(lambda: conv(OwnConv2D(3, 3, name="own")), "own", x),
            "its own LoRA": Refusal(quantised, "second", x),
            "a function": Refusal(lambda: conv(CallsConv(name="calls")), "calls", x),
        }

    def refused_back(self, form: Form) -> dict[str, Refusal]:
        def replaced() -> Any:
            model = convfc.to_fc(
                keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, name="conv")])
            )
            model.layers[0].fc = keras.layers.EinsumDense("abc,cd->abd", (None, 3))
            return model

        x = np.zeros((1, 8, 8, 3))
        return {"replaced": Refusal(replaced, "conv", x)} if form.name != "weight" else {}


_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@keras.saving.register_keras_serializable(package="tests")
class OwnConv2D(keras.layers.Conv2D):
    """Its call is its own."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.abs(super().call(inputs))


@keras.saving.register_keras_serializable(package="tests")
class CallsConv(keras.layers.Layer):
    """It convolves by a function."""

    def build(self, input_shape: Any) -> None:
        self.filters = self.add_weight(shape=(3, 3, input_shape[-1], 2))

    def call(self, inputs: Any) -> Any:
        return keras.ops.conv(inputs, self.filters)


def _as_numpy(tensor: Any) -> np.ndarray:
    """Return a copy of a tensor's numbers; float32 has every number of bfloat16."""
    wide = keras.ops.cast(tensor, "float32") if "bfloat16" in str(tensor.dtype) else tensor
    return np.array(keras.ops.convert_to_numpy(wide))


class OnnxAdapter(Adapter):
    """ONNX, run by onnxruntime."""

    name = "onnx"
    order = "channels_first"
    dtypes = ("float32", "float16")
    differentiates = False
    wrong_size = InvalidArgument, "Dimension mismatch"
    forms = (
        Form("patch", "to_fc", {"form": "patch"}, state=False),
        Form("unrolled", "unroll", example=True, state=False),
    )
    copies = MappingProxyType(
        {
            "deepcopy": copy.deepcopy,
            "file": lambda model: onnx.ModelProto.FromString(model.SerializeToString()),
        }
    )

    def layer(self, geometry: ConvGeometry, dtype: str, *, bias: bool) -> Any | None:
        attributes = onnx_models.attributes_of(geometry)
        if attributes is None:
            return None
        weight = onnx_models.weight_of(np.zeros(geometry.filters_shape, dtype), geometry)
        open_ = [f"n{axis}" for axis in range(geometry.spatial_ndim)]
        return onnx_models.conv_model(
            attributes.pop("op"),
            ["batch", geometry.in_channels, *open_],
            weight,
            np.zeros(geometry.out_channels, dtype) if bias else None,
            **attributes,
        )

    def fill(self, model: Any, filters: np.ndarray, bias: np.ndarray | None) -> Any:
        (node,) = model.graph.node
        if node.op_type == "ConvTranspose":  # (c, f / groups, *kernel)
            (groups,) = (one.i for one in node.attribute if one.name == "group")
            by_group = filters.reshape(groups, -1, *filters.shape[1:])
            weight = np.moveaxis(by_group, -1, 1).reshape(-1, *by_group.shape[1:-1])
        else:
            weight = np.moveaxis(filters, -1, 1)
        arrays = {"W weight": weight} | ({} if bias is None else {"B bias": bias})
        self.write(model, arrays)
        return model

    def networks(self) -> dict[str, Callable[[], tuple[Any, np.ndarray]]]:
        x = onnx_models.integers((1, 3, 6, 5))
        return {"conv-norm-conv-up": lambda: (onnx_models.network(), x)}

    def run(self, model: Any, x: np.ndarray) -> np.ndarray:
        return onnx_models.run(model, self.example(model, x))[0]

    def example(self, model: Any, x: np.ndarray) -> Any:
        kind = model.graph.input[0].type.tensor_type.elem_type
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))

    def state(self, model: Any) -> Arrays:
        roles = {"W": "weight", "B": "bias"}
        return {
            f"{tensor.name} {roles.get(tensor.name[0], '')}": numpy_helper.to_array(tensor).copy()
            for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name)
        }

    def load(self, model: Any, state: Arrays) -> None:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for key, array in state.items():
            name = key.partition(" ")[0]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensors[name].data_type)
            tensors[name].CopyFrom(numpy_helper.from_array(array.astype(dtype), name))

    write = load

    def settings(self, model: Any) -> Any:
        found = onnx_models.plain(model)
        for tensor in found.graph.initializer:
            tensor.ClearField("raw_data")
        return found.SerializeToString(deterministic=True)

    def refused(self, form: Form) -> dict[str, Refusal]:
        def model(*nodes: Any, **options: Any) -> Any:
            weight = numpy_helper.from_array(onnx_models.integers((3, 3, 3, 3)), "W")
            infos = [
                onnx.helper.make_tensor_value_info(name, 1, ["b", 3, "h", "w"]) for name in "xy"
            ]
            first = onnx.helper.make_node("Conv", ["x", "W"], ["a"], "first")
            second = onnx.helper.make_node(*nodes, **options)
            graph = onnx.helper.make_graph(
                [first, second], "network", infos[:1], infos[1:], [weight]
            )
            opsets = [onnx.helper.make_opsetid(*one) for one in (("", 17), ("com.microsoft", 1))]
            return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)

        x = np.zeros((1, 3, 8, 8))
        sized = {"strides": [2, 2], "output_shape": [13, 14]}
        up = ("ConvTranspose", ["a", "W"], ["y"], "second")
        fused = ("FusedConv", ["a", "W"], ["y"], "second")
        computed = ("Conv", ["a", "a"], ["y"], "second")
        return {
            "a padding that is not known": Refusal(lambda: model(*up, **sized), "second", x),
            "a fused operator": Refusal(lambda: model(*fused, domain="com.microsoft"), "second", x),
            "a weight of no known shape": Refusal(lambda: model(*computed), "second", x),
        }

    def refused_back(self, form: Form) -> dict[str, Refusal]:
        def changed() -> Any:
            found = convfc.to_fc(onnx_models.network(), where="up")
            (product,) = (node for node in found.graph.node if node.op_type == "MatMul")
            product.op_type = "MatMulInteger"
            return found

        return {"changed": Refusal(changed, "up", np.zeros((1, 3, 8, 8)))}
