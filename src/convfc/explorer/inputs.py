"""What can be an input of a layer: an array, an image file, a digit, or what its model gives it.

The numbers of a picture are 0 to 1, or normalized as those that a model was trained with.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from array_api_compat import is_array_api_obj
from numpy.typing import NDArray

from convfc.arrays import as_numpy
from convfc.comparing import first_words
from convfc.convert import inspect
from convfc.digits import digit
from convfc.errors import ArgumentError, ConvfcError, DataError, NothingToConvert, ShapeError
from convfc.extras import needing
from convfc.geometry import ConvGeometry
from convfc.registry import room_of

if TYPE_CHECKING:
    from PIL.Image import Image


FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Formats that are read; none of them can do anything but hold a picture."""

LONGEST = 224
"""Elements that an axis may have on the page."""

_DEEP = 65535
"""White in an image of 16 bits."""

Source: TypeAlias = Any
"""An array, the path of an image file, or a whole number: a handwritten digit of this kind."""


class Picture(NamedTuple):
    """An input ``(*spatial, c)``, what was done to get it, and the range of its values if known."""

    values: NDArray[Any]
    said: str = ""
    span: tuple[float, float] | None = None


class Normalization(NamedTuple):
    """What a picture's numbers become, (x - mean) / std: one number per channel, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        """Say it, in a few words."""
        mean, std = (", ".join(f"{n:.6g}" for n in numbers) for numbers in self)
        return f"mean {mean} and std {std}"

    def of(self, picture: Picture) -> Picture:
        """Return a picture with its numbers normalized."""
        channels = picture.values.shape[-1]
        if len(self.mean) not in (1, channels):
            raise ArgumentError(
                "a mean and a std are needed for each channel",
                where="normalize",
                expected=f"{channels} of each, or one for all",
                got=self,
                remedy="give as many as the input has channels, as in 0.5/0.5",
            )
        # In float32, in this order: to the bit what a model's own preprocessing computes.
        mean, std = (np.asarray(numbers, np.float32) for numbers in self)
        values = (np.asarray(picture.values, np.float32) - mean) / std
        ends = np.subtract.outer([0.0, 1.0], self.mean) / self.std
        span = float(ends.min()), float(ends.max())
        return Picture(values, f"{picture.said}, normalized with {self}", span)


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of the photographs of ImageNet, red, green and blue: what most weights were trained with."""


def normalization(given: Any, known: Normalization | None = None) -> Normalization | None:
    """Read "imagenet", "auto" (what is known of the model), "MEAN/STD", or a pair (mean, std)."""
    if given is None or given == "imagenet":
        return None if given is None else IMAGENET
    if given == "auto" and known is not None:
        return known
    parts = given.split("/") if isinstance(given, str) else given
    read: list[tuple[float, ...]] = []
    with contextlib.suppress(TypeError, ValueError):
        for part in parts:
            numbers = part.split(",") if isinstance(part, str) else np.ravel(part)
            read.append(tuple(float(n) for n in numbers))
    sound = len(read) == 2 and len(read[0]) == len(read[1]) > 0
    if not sound or not all(map(math.isfinite, sum(read, ()))) or min(read[1]) <= 0:
        raise ArgumentError(
            "nothing says what the model was trained with"
            if given == "auto"
            else "this does not say how to normalize a picture",
            where="normalize",
            expected="imagenet, or MEAN/STD with a number for each channel and no std of 0",
            got=repr(given),
            remedy="write, for instance, 0.485,0.456,0.406/0.229,0.224,0.225, or 0.5/0.5",
        )
    return Normalization(*read)


def trained_with(
    model: Any, spec: str = "", arguments: Mapping[str, Any] | None = None
) -> Normalization | None:
    """Return what a model's weights were trained with, where the model or its library says it.

    timm's models say it themselves, and those of transformers in a file beside their weights;
    torchvision says it of its weights: those of a factory ``module:name`` with its arguments, or
    of the module that a model's class is from, if they agree.
    """
    said = getattr(model, "pretrained_cfg", None)
    if not isinstance(said, Mapping):
        said = _processor(getattr(model, "name_or_path", None))
    found = (
        [(said.get("mean"), said.get("std"))] if said else _of_torchvision(model, spec, arguments)
    )
    with contextlib.suppress(ArgumentError):
        return normalization(found[0]) if len(set(map(str, found))) == 1 else None
    return None


def _processor(folder: Any) -> dict[str, Any]:
    """Return mean and std of the image processor in the folder of a model of transformers."""
    if not isinstance(folder, str):
        return {}
    with contextlib.suppress(OSError, ValueError):
        text = pathlib.Path(folder, "preprocessor_config.json").read_text(encoding="utf-8")
        said = json.loads(text)
        if isinstance(said, Mapping) and said.get("do_normalize", True):
            return {"mean": said.get("image_mean"), "std": said.get("image_std")}
    return {}


def _of_torchvision(
    model: Any, spec: str, arguments: Mapping[str, Any] | None
) -> list[tuple[Any, Any]]:
    """Return mean and std of the weights that torchvision has for a model."""
    models: Any = sys.modules.get("torchvision.models")
    module = type(model).__module__
    if models is None or not module.startswith("torchvision."):
        return []
    kinds = [
        kind
        for kind in vars(sys.modules[module]).values()
        if isinstance(kind, type) and issubclass(kind, models.WeightsEnum)
        if kind.__module__ == module
    ]
    with contextlib.suppress(ValueError):  # no factory of torchvision's
        kinds = [models.get_model_weights(spec.rpartition(":")[2])]
    name = str((arguments or {}).get("weights")).rpartition(".")[2]
    chosen = [getattr(kind, name, getattr(kind, "DEFAULT", None)) for kind in kinds]
    made = [weights.transforms() for weights in chosen if weights is not None]
    return [(how.mean, how.std) for how in made if hasattr(how, "mean")]


def as_input(
    source: Source,
    geometry: ConvGeometry,
    input_size: Sequence[int] | None = None,
    *,
    order: str = "channels_last",
    normalize: Normalization | None = None,
) -> Picture:
    """Return an array, the image of a path, or a digit 0 to 9 as one input of a layer.

    An array may have the other order of axes where it fits only so, a batch axis, of which the
    first input is taken, and no channels if there is one. Images and digits are made to fit a size,
    and are normalized if it is said how.
    """
    ndim, channels = geometry.spatial_ndim, geometry.in_channels
    size = None if ndim == 1 else input_size
    if isinstance(source, (str, os.PathLike)):
        found = read_image(pathlib.Path(source), channels, size)
    elif isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        found = _digit(int(source), channels, size)
    else:
        if normalize is not None:
            raise ArgumentError(
                "an array has its own numbers",
                where="normalize",
                remedy="leave normalize out, or give the path of an image",
            )
        array = real_numbers("x", source)
        values = _one_of(array, geometry, order)
        if input_size is not None and tuple(input_size) != values.shape[:-1]:
            raise ArgumentError(
                "an array has its own size",
                where="input_size",
                expected=values.shape[:-1],
                got=tuple(input_size),
                remedy="leave input_size out, or resize the array yourself",
            )
        return Picture(values, f"an array of {' × '.join(map(str, array.shape))}")
    found = found if ndim == 2 else _middle_row(found, input_size)
    if normalize is not None:
        return normalize.of(found)
    # 256 steps: more digits would only make the page longer.
    return found._replace(values=np.round(found.values, 4))


def read_image(path: pathlib.Path, channels: int, size: Sequence[int] | None = None) -> Picture:
    """Return an image ``(height, width, channels)``, float32 from 0 to 1, grey or RGB.

    What it has beyond the shape of a size is cut off on both sides, and the rest is made smaller or
    larger; without one no side is longer than `LONGEST`.
    """
    _check_channels(str(path), channels)
    picture, said = _opened(path, channels)
    width, height = picture.size
    if size is None:
        scale = min(1.0, LONGEST / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
    if (height, width) != tuple(size):
        from PIL import ImageOps

        high, wide = size
        picture = ImageOps.fit(picture, (wide, high))
        # Whole numbers: rounding to a pixel is no other shape.
        cut = "" if abs(high * width - wide * height) <= max(height, width) else "cut and "
        said.append(f"{cut}resized from {height} × {width} to {high} × {wide}")
    values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    values = values.reshape(*values.shape[:2], channels)
    return Picture(values, ", ".join([path.name, *said]), (0.0, 1.0))


def real_numbers(name: str, values: Any) -> NDArray[Any]:
    """Return an array of any library as NumPy's, of real and finite numbers."""
    if "bfloat16" in str(getattr(values, "dtype", "")):  # float32 holds every number of it
        values = values.float() if hasattr(values, "float") else np.asarray(values, np.float32)
    try:
        array = as_numpy(values, name) if is_array_api_obj(values) else np.asarray(values)
    except (TypeError, ValueError):  # no numbers at all, or lists of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        raise DataError(
            "the page shows real numbers",
            where=name,
            got=getattr(values, "dtype", type(values).__name__),
            remedy="give an array; of complex numbers the real part, or the modulus",
        )
    wrong = array.size - int(np.isfinite(array).sum())
    if wrong:
        raise DataError(
            "a number that is not finite",
            where=name,
            got=f"{wrong} of {array.size}",
            remedy="replace infinities and NaN first, for instance with numpy.nan_to_num",
        )
    return array


def _one_of(x: NDArray[Any], geometry: ConvGeometry, order: str) -> NDArray[Any]:
    """Return one input as ``(*spatial, c)``, from a batch or none, channels at either end."""
    ndim, channels = geometry.spatial_ndim, geometry.in_channels
    if x.ndim == ndim and channels == 1:
        return x[..., None]
    one = x[0] if x.ndim == ndim + 2 and len(x) else x
    for where in ("channels_first", "channels_last")[:: 1 if order == "channels_first" else -1]:
        axis = 0 if where == "channels_first" else -1
        if one.ndim == ndim + 1 and one.shape[axis] == channels and one.size:
            return np.moveaxis(one, axis, -1)
    sizes = ", ".join(["size"] * ndim)
    axes = f"{channels}, {sizes}" if order == "channels_first" else f"{sizes}, {channels}"
    raise ShapeError(
        "the input does not fit the layer",
        where="x",
        expected=f"({axes}), with or without a batch axis before",
        got=x.shape,
        remedy="move its axes, or give the input that this layer has in its model",
    )


def _digit(kind: int, channels: int, size: Sequence[int] | None) -> Picture:
    """Return a digit of any size: every pixel the nearest one, as the page does it."""
    _check_channels(f"digit {kind}", channels)
    image, said = digit(kind), f"a handwritten {kind}"
    old = image.shape[:2]
    if size is not None and tuple(size) != old:
        said += f", {' to '.join(' × '.join(map(str, each)) for each in (old, size))}"
        image = image[np.ix_(*map(_nearest, size, old))]
    return Picture(np.repeat(np.round(image, 2), channels, axis=-1), said, (0.0, 1.0))


def _middle_row(picture: Picture, size: Sequence[int] | None) -> Picture:
    """Return a picture as an input of one axis."""
    row = picture.values[len(picture.values) // 2]
    said = f"{picture.said}, its middle row"
    if size is not None and len(row) != size[0]:
        said += f", {len(row)} to {size[0]}"
        row = row[_nearest(size[0], len(row))]
    return Picture(row, said, picture.span)


def _nearest(count: int, size: int) -> NDArray[np.int64]:
    """Return which of so many pixels are nearest to others, evenly laid over them."""
    return ((np.arange(count) + 0.5) * size / count).astype(int)


def _check_channels(where: str, channels: int) -> None:
    if channels not in (1, 3):
        raise ShapeError(
            f"an image is not an input of {channels} channels",
            where=where,
            expected="a layer of 1 channel (grey values) or 3 (red, green, blue)",
            got=channels,
            remedy="give the array that reaches this layer; for a layer inside a model, "
            "convfc explore MODULE:FACTORY --layer NAME --image FILE runs the model on the image",
        )


def _opened(path: pathlib.Path, channels: int) -> tuple[Image, list[str]]:
    """Return an image as grey values or RGB of 8 bits, upright, and what it took."""
    with needing(where=str(path)):
        from PIL import Image, ImageOps
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="check the path")
    wanted = "RGB" if channels == 3 else "L"
    said = []
    try:
        with warnings.catch_warnings():
            # Of an image that is far larger than its file lets think: not to be unpacked.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):  # Pillow would cut these off at 255
            picture = Image.fromarray((np.asarray(picture) / _DEEP * 255).round().astype(np.uint8))
            said.append("16 bits to 8")
        if picture.mode == "F":
            raise ValueError("pixels that are no whole numbers have no white")
        if picture.has_transparency_data:
            under = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(under, picture.convert("RGBA")).convert("RGB")
            said.append("laid on white")
        grey = picture.mode in ("1", "L")
        if grey != (wanted == "L"):
            said.append("its grey values in all channels" if grey else "its grey values")
        return picture.convert(wanted), said
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        OSError,  # also what is not an image at all
        SyntaxError,  # what Pillow raises for a damaged PNG
        ValueError,
    ) as error:
        raise DataError(
            f"it is not an image that can be read ({type(error).__name__}: {error})",
            where=str(path),
            expected=", ".join(FORMATS),
            remedy="save it as PNG, and not larger than a photograph",
        ) from error


def layer_in_model(model: Any, name: str | None, x: Any) -> tuple[str, Any, Any]:
    """Return a layer's place (without a name the first), the layer, and what it is called with."""
    rows = [row for row in inspect(model) if row.form in ("native", "patch", "weight")]
    names = list(dict.fromkeys(row.names[0] if row.names else row.name for row in rows))
    place = names[0] if names and name is None else name
    if place not in names:
        raise NothingToConvert(
            "the model has no such CONV layer" if names else "the model has no CONV layer",
            where="layer",
            expected=f"one of {', '.join(names)}" if names else None,
            got=name,
            remedy="convfc inspect lists the layers of a model",
        )
    room = room_of(model)
    try:
        reaching = room.layer_input(model, place, x)
    except Exception as error:  # whatever a user's model raises
        cause = error.__cause__ if isinstance(error, ShapeError) else error
        if not isinstance(cause, Exception) or isinstance(cause, ConvfcError):
            raise
        raise ShapeError(
            f"the model refuses an input of {' × '.join(map(str, x.shape[1:]))} "
            f"(its words: {first_words(cause) or type(cause).__name__})",
            where="input",
            remedy="give the size that it takes, such as --input 3,224,224",
        ) from cause
    return place, room.places(model)[place], reaching


def input_for(
    model: Any,
    sizes: Sequence[int] | None = None,
    source: Source | None = None,
    normalize: Normalization | None = None,
) -> tuple[NDArray[np.float32], str]:
    """Return an input of one sample of a model, in its order of axes, and what it is.

    That is an image or a digit fitted to the sizes, or random numbers from 0 to 1. Sizes are
    ``(c, *spatial)``, perhaps after a batch axis; without any, the first CONV layer says how many.
    """
    # The geometry of the first CONV layer; of an image, if it is not known.
    known = (row.geometry for row in inspect(model) if row.geometry is not None)
    first, size = next(known, ConvGeometry(3, 1, (1, 1))), None
    channels, ndim = first.in_channels, first.spatial_ndim
    if sizes is not None:
        if not 2 <= len(sizes) <= 4:
            raise ShapeError(
                "the page shows one or two spatial axes",
                where="input",
                got=",".join(map(str, sizes)),
                remedy="give sizes such as 3,224,224, or 1,3,224,224",
            )
        if len(sizes) != 3:  # which is (c, h, w), or (b, c, n)
            ndim = len(sizes) // 2
        channels, *size = tuple(sizes)[-ndim - 1 :]
    if source is not None:
        shape = ConvGeometry(channels, 1, (1,) * ndim)
        picture = as_input(source, shape, size, normalize=normalize)
        values = np.moveaxis(picture.values, -1, 0)[None].astype(np.float32)
        return _as_taken(model, values), picture.said
    if size is None:
        raise ShapeError(
            "the size of the model's input is not known",
            where="input",
            remedy="give --image photo.png, or --input 3,224,224",
        )
    noise = np.random.default_rng(0).random((1, channels, *size)).astype(np.float32)
    return _as_taken(model, noise), f"random numbers, {' × '.join(map(str, noise.shape[1:]))}"


def _as_taken(model: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an input ``(b, c, *spatial)`` in the order of axes of a model's first CONV layer."""
    room, rows = room_of(model), list(inspect(model))
    first = room.places(model)[rows[0].names[0]] if rows else None
    last = first is not None and room.order_of(first) == "channels_last"
    return np.moveaxis(x, 1, -1) if last else x
