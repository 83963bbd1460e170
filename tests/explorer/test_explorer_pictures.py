"""Image files, digits and arrays as inputs: what they become, and what is said of it."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convfc import ConvGeometry
from convfc.digits import digit
from convfc.errors import ArgumentError, DataError, MissingDependencyError, ShapeError
from convfc.explorer import explorer_state
from convfc.explorer.inputs import (
    FORMATS,
    IMAGENET,
    Normalization,
    as_input,
    input_for,
    layer_in_model,
    normalization,
    read_image,
    trained_with,
)

if TYPE_CHECKING:
    import pathlib

    from model import Model

GREY = ConvGeometry(1, 2, (3, 3))
COLOUR = ConvGeometry(3, 2, (3, 3))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)


def saved(folder: pathlib.Path, pixels: Any, name: str = "photo.png", **options: Any) -> str:
    Image.fromarray(pixels).save(folder / name, **options)
    return str(folder / name)


def shades(values: np.ndarray) -> np.ndarray:
    """The 256 steps of an image that was read."""
    return np.round(np.asarray(values, np.float64) * 255, 1)


# --- images ---


def test_a_picture_in_colour_is_its_pixels(tmp_path: pathlib.Path) -> None:
    picture = as_input(saved(tmp_path, PIXELS), COLOUR)
    assert (shades(picture.values) == PIXELS).all()
    assert (picture.said, picture.span) == ("photo.png", (0.0, 1.0))
    state = explorer_state(np.ones((2, 3, 3, 3)), saved(tmp_path, PIXELS), COLOUR)
    assert (state["input"]["range"], state["source"]) == ([0.0, 1.0], "Input: photo.png")


def test_grey_and_colour_are_made_of_each_other_and_it_is_said(tmp_path: pathlib.Path) -> None:
    grey = as_input(saved(tmp_path, PIXELS), GREY)
    assert grey.said == "photo.png, its grey values"
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, rounded to a step
    assert np.abs(shades(grey.values)[..., 0] - luma).max() <= 1
    colour = as_input(saved(tmp_path, PIXELS[..., 0]), COLOUR)
    assert colour.said == "photo.png, its grey values in all channels"
    assert (shades(colour.values) == PIXELS[..., :1]).all()
    assert as_input(saved(tmp_path, PIXELS[..., 0]), GREY).said == "photo.png"


def test_all_that_is_seen_through_is_white(tmp_path: pathlib.Path) -> None:
    alpha = np.zeros((12, 18, 1), np.uint8)
    alpha[:, :9] = 255
    picture = as_input(saved(tmp_path, np.concatenate([PIXELS, alpha], axis=2)), COLOUR)
    assert picture.said == "photo.png, laid on white"
    assert (shades(picture.values)[:, :9] == PIXELS[:, :9]).all()
    assert (picture.values[:, 9:] == 1).all()


def test_sixteen_bits_keep_their_shades(tmp_path: pathlib.Path) -> None:
    deep = np.linspace(0, 65535, 12 * 18).astype(np.uint16).reshape(12, 18)
    picture = as_input(saved(tmp_path, deep), GREY)
    assert "16 bits to 8" in picture.said
    assert np.abs(shades(picture.values)[..., 0] - deep / 257).max() <= 0.6


def test_a_photograph_lies_as_it_was_taken(tmp_path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = saved(tmp_path, PIXELS, "turned.png", exif=exif)
    assert (shades(as_input(path, COLOUR).values) == np.rot90(PIXELS, -1)).all()


def test_formats_are_known_by_their_content(tmp_path: pathlib.Path) -> None:
    for kind in sorted(set(FORMATS) - {"PPM"}):
        Image.fromarray(PIXELS).save(tmp_path / "file.png", format=kind)
        assert as_input(tmp_path / "file.png", COLOUR).values.shape == (12, 18, 3), kind


def test_a_size_is_fitted_in_shape_and_then_in_size(tmp_path: pathlib.Path) -> None:
    half = np.zeros((20, 40, 3), np.uint8)
    half[:, 20:] = 200
    path = saved(tmp_path, half)
    cut = as_input(path, COLOUR, (20, 20))
    assert cut.said == "photo.png, cut and resized from 20 × 40 to 20 × 20"
    assert (shades(cut.values) == half[:, 10:30]).all()
    small = as_input(path, COLOUR, (10, 20))
    assert small.said == "photo.png, resized from 20 × 40 to 10 × 20"
    assert small.values.shape == (10, 20, 3)


def test_a_large_image_is_made_as_small_as_the_page_is(tmp_path: pathlib.Path) -> None:
    for shape, made in (((448, 300), (224, 150)), ((30, 900), (7, 224)), ((224, 5), (224, 5))):
        picture = as_input(saved(tmp_path, np.zeros(shape, np.uint8)), GREY)
        assert picture.values.shape == (*made, 1)
        assert ("resized" in picture.said) == (shape != made)


def test_a_layer_of_one_axis_reads_the_middle_row(tmp_path: pathlib.Path) -> None:
    line = ConvGeometry(1, 1, (3,))
    picture = as_input(saved(tmp_path, PIXELS[..., 0]), line)
    assert (shades(picture.values)[:, 0] == PIXELS[6, :, 0]).all()
    assert picture.said == "photo.png, its middle row"
    shorter = as_input(saved(tmp_path, PIXELS[..., 0]), line, (9,))
    assert (shades(shorter.values)[:, 0] == PIXELS[6, 1::2, 0]).all()
    assert shorter.said.endswith("its middle row, 18 to 9")


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is of so many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def half_of_a_picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()[:400]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture", "UnidentifiedImageError"),
        (b"", "UnidentifiedImageError"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", "UnidentifiedImageError"),
        (bomb(50000), "DecompressionBombError"),
        (bomb(11000), "DecompressionBombWarning"),  # of which Pillow would only warn
        (half_of_a_picture(), "OSError"),
    ],
    ids=["text", "empty", "postscript", "bomb", "less-of-a-bomb", "half"],
)
def test_what_is_no_picture_is_refused(tmp_path: pathlib.Path, content: bytes, words: str) -> None:
    (tmp_path / "odd.png").write_bytes(content)
    warnings.simplefilter("ignore")  # as most users have it; pytest restores what was
    with pytest.raises(
        DataError, match=f"odd.png: it is not an image that can be read .{words}"
    ) as e:
        read_image(tmp_path / "odd.png", 3)
    assert "Remedy: save it as PNG" in str(e.value)


def test_what_is_no_file_and_pixels_without_a_white_are_named(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(DataError, match=r"there is no such file\. Remedy: check the path"):
            read_image(path, 1)
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="no whole numbers"):
        read_image(tmp_path / "f.tiff", 1)


def test_without_pillow_the_way_out_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, PIXELS)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'convfc\[explorer\]'"):
        as_input(path, COLOUR)


# --- normalized, as models are trained ---


def test_a_normalized_picture_is_to_the_bit_what_torchvision_makes(tmp_path: pathlib.Path) -> None:
    from torchvision.transforms import functional

    path = saved(tmp_path, PIXELS)
    theirs = functional.to_tensor(Image.open(path))
    theirs = functional.normalize(theirs, IMAGENET.mean, IMAGENET.std).movedim(0, -1).numpy()
    picture = as_input(path, COLOUR, normalize=IMAGENET)
    assert picture.values.dtype == np.float32
    assert np.array_equal(picture.values, theirs)
    words = "mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225"
    assert picture.said == f"photo.png, normalized with {words}"
    low, high = picture.span or (0, 0)
    assert low <= theirs.min() < theirs.max() <= high
    for how in ("imagenet", "0.485,0.456,0.406/0.229,0.224,0.225", IMAGENET):
        state = explorer_state(np.ones((2, 3, 3, 3)), path, COLOUR, normalize=how)
        assert np.array_equal(np.float32(state["input"]["values"]), theirs.ravel()), how
        assert state["source"] == f"Input: photo.png, normalized with {words}"


def test_one_mean_is_for_all_channels_and_for_digits_too() -> None:
    plain = as_input(7, COLOUR).values
    picture = as_input(7, COLOUR, normalize=normalization("0.5/0.25"))
    assert np.array_equal(picture.values, (np.float32(plain) - np.float32(0.5)) * 4)
    assert picture.span == (-2.0, 2.0)
    assert picture.said == "a handwritten 7, normalized with mean 0.5 and std 0.25"


@pytest.mark.parametrize(
    "how", ["photo", "0.5", "0.5/0", "0.5/-1", "0.5/nan", "1,2/3", "/", "1/2/3", (1, 2, 3), 7]
)
def test_what_does_not_say_how_to_normalize_is_refused(how: Any) -> None:
    with pytest.raises(ArgumentError, match=r"normalize: this does not say how .* Remedy: write"):
        normalization(how)


def test_normalizing_goes_with_pictures_of_as_many_channels() -> None:
    with pytest.raises(ArgumentError, match=r"expected 1 of each, or one for all; got mean 0\.485"):
        as_input(7, GREY, normalize=IMAGENET)
    with pytest.raises(ArgumentError, match="normalize: an array has its own numbers"):
        explorer_state(nn.Conv2d(3, 2, 3), np.ones((3, 5, 6)), normalize="imagenet")
    with pytest.raises(ArgumentError, match="normalize: there is no picture to normalize"):
        explorer_state(nn.Conv2d(3, 2, 3), normalize="imagenet")
    with pytest.raises(ArgumentError, match="nothing says what the model was trained with"):
        explorer_state(nn.Conv2d(3, 2, 3), 7, normalize="auto")


def test_models_that_say_what_they_were_trained_with(tmp_path: pathlib.Path) -> None:
    from torchvision import models

    half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with torch.device("meta"):
        assert trained_with(models.resnet18()) == IMAGENET
        large, small = models.efficientnet_v2_l(), models.efficientnet_b0()
        # Of one module, and trained with other numbers: then the factory says which.
        assert trained_with(large) is trained_with(small) is None
        assert trained_with(large, "torchvision.models:efficientnet_v2_l") == half
        assert trained_with(small, "torchvision.models:efficientnet_b0") == IMAGENET
        bytes_ = trained_with(
            models.vgg16(), "torchvision.models:vgg16", {"weights": "IMAGENET1K_FEATURES"}
        )
        assert bytes_ is not None
        assert bytes_.std == (1 / 255,) * 3
    net = nn.Sequential(nn.Conv2d(3, 2, 3))
    assert trained_with(net) is None
    net.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # as timm's models
    assert trained_with(net) == half
    net = nn.Sequential(nn.Conv2d(3, 2, 3))
    net.name_or_path = str(tmp_path)  # as those of transformers
    assert trained_with(net) is None
    said = '{"do_normalize": %s, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    (tmp_path / "preprocessor_config.json").write_text(said % "true")
    assert trained_with(net) == half
    for text in (said % "false", "no JSON", "[1]", '"text"'):
        (tmp_path / "preprocessor_config.json").write_text(text)
        assert trained_with(net) is None, text


# --- digits ---


def test_a_digit_of_any_size_is_the_one_of_the_page(model: Model, facts: dict[str, Any]) -> None:
    for kind in range(10):
        there = facts["digits"][2 * kind]
        assert there["label"] == kind
        assert (np.round(digit(kind) * 255).astype(int).ravel() == there["pixels"]).all()
    for geometry in (GREY, COLOUR, ConvGeometry(1, 1, (3,)), ConvGeometry(3, 1, (3,))):
        ndim = geometry.spatial_ndim
        for side in (None, 9, 28, 40):
            size = None if side is None else (side, side - 2)[:ndim]
            state = explorer_state(np.ones(geometry.filters_shape), 4, geometry, input_size=size)
            there = model.ask("load", {**state, "input": {"digit": 8}})
            assert there["input"]["values"] == state["input"]["values"], (geometry, side)
            assert state["source"].startswith("Input: a handwritten 4")
            resized = side in (9, 40) or (side == 28 and ndim == 2)
            assert (" to " in state["source"]) == resized, (geometry, side)


def test_there_are_ten_digits_of_one_channel_or_three() -> None:
    for kind in (-1, 10, 1.5, "7", True, None):
        with pytest.raises(ArgumentError, match="from 0 to 9"):
            digit(kind)
    for source in ("photo.png", 3):
        for channels in (2, 64):
            with pytest.raises(ShapeError, match="--layer NAME --image FILE runs the model on the"):
                as_input(source, ConvGeometry(channels, 1, (3, 3)))


# --- arrays ---


@pytest.mark.parametrize(
    ("shape", "order", "moved"),
    [
        ((3, 5, 6), "channels_first", True),
        ((5, 6, 3), "channels_last", False),
        ((5, 6, 3), "channels_first", False),  # fits in the other order only
        ((3, 5, 6), "channels_last", True),
        ((3, 6, 3), "channels_first", True),  # fits in both: the layer's own
        ((3, 6, 3), "channels_last", False),
    ],
)
def test_channels_are_where_the_layer_has_them(
    shape: tuple[int, ...], order: str, moved: bool
) -> None:
    batch = np.arange(4 * np.prod(shape)).reshape(4, *shape)
    expected = np.moveaxis(batch[0], 0, -1) if moved else batch[0]
    for x in (batch, batch[:1], batch[0]):  # of a batch, the first
        found = as_input(x, COLOUR, order=order).values
        assert found.shape == expected.shape
        assert (found == expected).all()


def test_an_image_without_its_one_channel() -> None:
    x = np.arange(30).reshape(5, 6)
    assert (as_input(x, GREY).values == x[..., None]).all()
    assert (as_input(torch.as_tensor(x), GREY, (5, 6)).values == x[..., None]).all()


@pytest.mark.parametrize("x", [np.ones((5, 6)), np.ones((2, 2, 3, 5, 6)), np.ones((3, 0, 6)), [1]])
def test_other_arrays_do_not_fit(x: Any) -> None:
    with pytest.raises(ShapeError, match=r"does not fit the layer.*Remedy"):
        as_input(x, COLOUR, order="channels_first")


# --- models ---


def test_asking_what_reaches_a_layer_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    place, layer, reaching = layer_in_model(net, "2", torch.rand(1, 1, 8, 9))
    assert (place, layer, reaching.shape) == ("2", net[2], (1, 4, 6, 7))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("sizes", "source", "shape", "said"),
    [
        ((3, 8, 9), None, (1, 3, 8, 9), "random numbers, 3 × 8 × 9"),
        ((2, 3, 8, 9), None, (1, 3, 8, 9), "random numbers, 3 × 8 × 9"),
        ((1, 20), None, (1, 1, 20), "random numbers, 1 × 20"),
        ((1, 8, 9), 7, (1, 1, 8, 9), "a handwritten 7, 28 × 28 to 8 × 9"),
        (None, 7, (1, 3, 28, 28), "a handwritten 7"),
    ],
)
def test_inputs_of_models(
    sizes: tuple[int, ...] | None, source: Any, shape: tuple[int, ...], said: str
) -> None:
    x, words = input_for(nn.Conv2d(3, 4, 3), sizes, source)
    assert (x.shape, x.dtype, words) == (shape, np.float32, said)
    assert 0 <= x.min() < x.max() <= 1
    # Of one axis, sizes may have a batch axis.
    assert input_for(nn.Conv1d(2, 3, 3), (4, 2, 20))[0].shape == (1, 2, 20)
    with pytest.raises(ShapeError, match="one or two spatial axes; got 1,2,3,4,5"):
        input_for(nn.Conv1d(2, 3, 3), (1, 2, 3, 4, 5))
