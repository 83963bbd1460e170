"""Whole models: each layer at the size that it sees; the table; the figure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import convfc
from convfc.errors import MemoryBudgetError, NotConverged, NothingToConvert
from convfc.methods import spectrum
from convfc.methods.spectrum.figure import draw_models, draw_spectra, save_spectra
from convfc.methods.spectrum.models import spectra_table


def model() -> nn.Sequential:
    torch.manual_seed(0)
    twice = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), twice, nn.MaxPool2d(2), twice, nn.Conv2d(4, 16, 1, stride=2)
    )


@pytest.fixture(scope="module")
def spectra() -> list[spectrum.LayerSpectrum]:
    return spectrum.layer_spectra(model(), np.zeros((1, 9, 9), np.float32), k=4, smallest=True)


def test_a_layer_has_a_row_for_each_size_that_it_sees(spectra: list) -> None:
    assert [(s.name, s.input_size) for s in spectra] == [
        ("0", (9, 9)),
        ("1", (9, 9)),
        ("1", (4, 4)),
        ("4", (4, 4)),
    ]
    layers = model()
    for found in spectra:
        layer = layers[int(found.name)]
        assert np.array_equal(
            found.own.values, spectrum.singular_values(layer, found.input_size, 4).values
        )
        whole = spectrum.singular_values(layer, found.input_size, boundary="circular")
        assert np.array_equal(found.circular.values, whole.values)
        every = spectrum.singular_values(layer, found.input_size)
        assert found.smallest.values[0] == pytest.approx(every.values[-1], abs=1e-12)
        assert found.condition_number == pytest.approx(every.condition_number, rel=1e-9)
        assert found.ratio == found.norm / found.own.reshaped_norm


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_every_form_has_the_same_values(spectra: list, form: str) -> None:
    converted = convfc.to_fc(model(), form=form)
    found = spectrum.layer_spectra(converted, torch.zeros(1, 1, 9, 9), layers=["0"])
    assert [s.name for s in found] == ["0"]
    assert found[0].norm == spectra[0].norm


def test_the_progress_tells_what_comes() -> None:
    told: list[tuple[int, int, str]] = []
    x = torch.zeros(1, 1, 8, 8)
    spectrum.layer_spectra(model(), x, boundary="own", progress=lambda *what: told.append(what))
    assert told == [(0, 4, "0"), (1, 4, "1"), (2, 4, "1"), (3, 4, "4")]


def test_a_batch_axis_is_put_before_where_the_model_needs_one() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))  # takes nothing without
    (found,) = spectrum.layer_spectra(net, torch.zeros(1, 6, 5), boundary="own")
    assert found.input_size == (6, 5)


def test_a_layer_that_is_called_twice_on_one_size_is_decomposed_once() -> None:
    layer = nn.Conv2d(2, 2, 1)
    found = spectrum.layer_spectra(nn.Sequential(layer, layer), torch.zeros(1, 2, 4, 4))
    assert [s.name for s in found] == ["0"]


def test_more_values_than_there_are_or_than_fit() -> None:
    """On a circle that the stride does not divide some have to do; with the own padding none."""
    layer = nn.Conv2d(1, 1, 3, stride=2, padding=1)
    (found,) = spectrum.layer_spectra(layer, torch.zeros(1, 1, 5, 5), k=99)
    assert len(found.own.values) == found.own.count == 9
    large = nn.Conv2d(2, 2, 3, stride=2)
    (found,) = spectrum.layer_spectra(large, torch.zeros(2, 99, 99), boundary="circular", k=2)
    assert (found.circular.method, len(found.circular.values)) == ("lanczos", 2)
    with pytest.raises(MemoryBudgetError, match="iterations are for a few"):
        spectrum.layer_spectra(large, torch.zeros(2, 99, 99), boundary="own", k=30000)


def test_the_table_has_a_line_for_each_layer(spectra: list) -> None:
    text = spectra_table(spectra).text(200)
    lines = text.split("\n")
    assert lines[0].split() == ["layer", "in", "σ", "max", "σ", "min", "cond.", "‖K‖", "method"]
    first = spectra[0]
    numbers = (first.norm, first.smallest.values[0], first.condition_number)
    numbers += (first.own.reshaped_norm,)
    assert lines[1].split() == ["0", "9×9", *(f"{n:.4g}" for n in numbers), "dense"]
    assert [line.split()[0] for line in lines[1:5]] == ["0", "1", "1", "4"]
    assert "inf" in lines[4]  # 1 × 1 with stride 2 does not read all elements
    assert "°" not in text


def test_the_table_marks_what_is_known_on_a_circle_only(spectra: list) -> None:
    one = replace(spectra[0], smallest=None)
    circle = one.circular
    least, condition = f"{circle.values[-1]:.4g}°", f"{circle.condition_number:.4g}°"
    for layer, norm in (
        (one, f"{one.norm:.4g}"),
        (replace(one, own=None), f"{circle.values[0]:.4g}°"),
    ):
        text = spectra_table([layer]).text(200)
        assert text.split("\n")[1].split()[2:5] == [norm, least, condition]
        assert text.endswith("°: of the layer on a circle.")


def test_a_model_without_conv_layers_is_refused() -> None:
    with pytest.raises(NothingToConvert, match="no CONV layer was called; got no CONV layers"):
        spectrum.layer_spectra(nn.Sequential(nn.Linear(3, 3)), torch.zeros(1, 3))


def test_what_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, which: str = "largest", **__: object) -> spectrum.SingularValues:
        if which == "smallest":
            raise NotConverged("too slow")
        return spectrum.SingularValues(np.array([2.0]), "lanczos", 1e-3, (9, 9), 1.0)

    monkeypatch.setattr("convfc.methods.spectrum.models.singular_values", refused)
    (found,) = spectrum.layer_spectra(nn.Conv1d(1, 1, 1), torch.zeros(1, 1, 9), smallest=True)
    assert found.note == "smallest: too slow"
    assert np.isnan(found.condition_number)
    assert found.to_dict()["condition_number"] is None
    assert "too slow" in spectra_table([found]).text(120)


def overlaps(figure: Figure) -> list[str]:
    """Names of titles, legend and labels that lie on each other."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    outside = [*figure.legends, figure._supxlabel]
    boxes = {str(thing): thing.get_window_extent(renderer) for thing in outside}
    boxes |= {panel.get_title(): panel.get_tightbbox(renderer) for panel in figure.axes}
    return [
        f"{one} on {other}"
        for place, (one, box) in enumerate(boxes.items())
        for other in list(boxes)[place + 1 :]
        if box.overlaps(boxes[other])
    ]


def test_the_figure_shows_every_layer(spectra: list) -> None:
    figure = draw_spectra(spectra, "a model")
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["0", "1", "1", "4"]
    for panel, found in zip(panels, spectra, strict=True):
        curve, points, *_ = panel.lines
        assert curve.get_ydata()[0] == found.circular.values[0]
        assert np.array_equal(
            points.get_ydata(), np.where(found.own.values > 0, found.own.values, np.nan)
        )
        shown = curve.get_ydata()
        assert all(a >= b for a, b in pairwise(shown[~np.isnan(shown)]))
    assert overlaps(figure) == []


def test_several_models_have_a_panel_each_and_a_table_with_their_names(spectra: list) -> None:
    circle = [replace(layer, own=None, smallest=None) for layer in spectra[:2]]
    models = {"a" * 50: [s.to_dict() for s in spectra], "b": [s.to_dict() for s in circle]}
    figure = draw_models(models, "two models")
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["…" + "a" * 33, "b"]
    for panel, found in zip(panels, (spectra, circle), strict=True):
        kernels, norms = (list(line.get_ydata()) for line in panel.lines)
        assert norms == [layer.norm for layer in found]
        assert kernels == [layer.best.reshaped_norm for layer in found]
    assert overlaps(figure) == []
    rows = [(name, layer) for name, layers in models.items() for layer in layers]
    table = spectra_table([layer for _, layer in rows], [name for name, _ in rows])
    assert table.columns[0].cells == ("a" * 50,) * 4 + ("b",) * 2
    # What is read from a file is told as what was computed.
    for name, layers in (("a" * 50, spectra), ("b", circle)):
        alone = spectra_table(layers)
        cells = [
            c
            for c, n in zip(table.columns[3].cells, table.columns[0].cells, strict=True)
            if n == name
        ]
        assert tuple(cells) == alone.columns[2].cells


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_same_spectra_give_the_same_file(spectra: list, tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save_spectra(spectra[:1], tmp_path / folder / name, "a model")
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
