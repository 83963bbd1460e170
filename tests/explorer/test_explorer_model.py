"""The page computes what convfc computes: hundreds of geometries through both, compared exactly."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browser import TABS
from cases import Case
from hypothesis import strategies as st
from judges import torch_layer
from model import drawn, forwards, geometry_of, settings_of, turned
from strategies import cases

from convfc import ConvGeometry, conv_as_matmul, conv_matrix, im2col, index_map
from convfc.algorithm1 import filters_to_matrix
from convfc.errors import ConvfcError

if TYPE_CHECKING:
    from model import Model

MAPS, PRODUCTS, SETTINGS, STATES = 200, 80, 300, 100


# Windows that leave the input on both sides, and paddings that go round it more than once.
BY_HAND = [
    Case(ConvGeometry(1, 1, (2,), padding=5, padding_mode="circular"), (2,)),
    Case(ConvGeometry(2, 4, (2, 3), padding=((4, 0), (1, 7)), padding_mode="replicate"), (2, 3)),
    Case(ConvGeometry(2, 2, (2, 2), padding=((3, 7), (0, 0)), padding_mode="circular"), (3, 2)),
    Case(ConvGeometry(1, 2, (1, 1), stride=3, transposed=True, output_padding=(2, 1)), (2, 2)),
    Case(ConvGeometry(3, 3, (3, 3), stride=(2, 1), groups=3, dilation=(1, 3), flip=True), (5, 8)),
]


# --- the map ---


def test_the_index_map_is_the_one_of_convfc(model: Model) -> None:
    """Eq. (8), entry by entry, asked forwards, backwards and as a whole."""
    tried = BY_HAND + drawn(cases(max_ndim=2), MAPS)
    others = 0
    for case in tried:
        own = index_map(case.geometry, case.input_size)
        where = index_map(forwards(case.geometry), case.input_size)
        found = model.ask("map", settings_of(case.geometry, case.input_size))
        rows, columns = where.shape
        flat = where.flat()
        assert (found["rows"], found["columns"]) == where.shape, case
        assert tuple(found["outputSize"]) == where.output_size, case
        assert found["taps"] == case.geometry.taps, case
        assert found["flat"] == flat.ravel().tolist(), case
        assert found["elements"] == found["flat"], case
        read = [where.element(p, q) for p in range(rows) for q in range(columns)]
        assert [c and tuple(c) for c in found["coordinates"]] == read, case
        # Column q of the page is column turn[q] of the layer's own M.
        assert np.array_equal(own.flat()[:, found["turn"]], flat), case
        others += found["turn"] != list(range(columns))
        shape = (*case.input_size, case.geometry.in_channels)
        readers = [where.readers(element) for element in np.ndindex(shape)]
        assert [[tuple(e) for e in entries] for entries in found["readers"]] == readers, case
        counts = [(len(entries), len({p for p, _ in entries})) for entries in readers]
        found_counts = [(one["entries"], one["outputs"]) for one in found["readerCounts"]]
        assert found_counts == counts, case
    assert others > MAPS // 5


def test_windows_are_drawn_where_they_read(model: Model) -> None:
    """The place on the padded grid is the element that is read.

    Of a transposed convolution the grid is spread: stride - 1 zeros between two elements.
    """
    seen = {False: 0, True: 0}
    for case in drawn(cases(max_ndim=2), 120):
        geometry = case.geometry
        found = model.ask("map", settings_of(geometry, case.input_size))
        steps = geometry.stride if geometry.transposed else (1,) * geometry.spatial_ndim
        for place, element in zip(found["padded"], found["coordinates"], strict=True):
            spread = [divmod(i, step) for i, step in zip(place, steps, strict=True)]
            hit = all(
                rest == 0 and 0 <= i < n
                for (i, rest), n in zip(spread, case.input_size, strict=True)
            )
            seen[geometry.transposed] += hit
            if hit:
                assert element[:-1] == [i for i, _ in spread], case
            elif geometry.padding_mode == "zeros":
                assert element is None, case
    assert min(seen.values()) > 1000


# --- numbers ---


def state_of(case: Case, seed: int) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
    x, filters, bias = case.integers(seed)
    state = {
        "settings": settings_of(case.geometry, case.input_size, bias=bool(seed % 2)),
        "input": {"values": x[0].ravel().tolist()},
        "filters": filters.ravel().tolist(),
        "bias": bias.tolist() if seed % 2 else None,
    }
    return state, (x[:1], filters, bias if seed % 2 else np.zeros_like(bias))


def test_numbers_are_the_ones_of_convfc(model: Model) -> None:
    """M, K, Y and a row of the one big matrix; on integers, so exactly."""
    for seed, case in enumerate(BY_HAND + drawn(cases(max_ndim=2), PRODUCTS)):
        geometry, size = case.geometry, case.input_size
        state, (x, filters, bias) = state_of(case, seed)
        L = index_map(geometry, size).shape[0]
        f = geometry.out_channels
        found = model.ask("numbers", state)
        M = im2col(x, forwards(geometry))[0]
        Y = conv_as_matmul(x, filters, geometry, bias).reshape(L, f)
        K = filters_to_matrix(turned(filters, geometry), geometry)
        assert found["problems"] == [], case
        assert found["M"] == found["entries"] == M.ravel().tolist(), case
        assert found["K"] == K.ravel().tolist(), case
        assert found["Y"] == found["sums"] == Y.ravel().tolist(), case
        assert found["planes"] == Y.T.tolist(), case
        check_subtotals(found, geometry, M, K)
        big = conv_matrix(filters, size, geometry, layout="dense")
        for row, sparse, terms in zip(
            np.asarray(big).reshape(L * f, -1), found["T"], found["terms"], strict=True
        ):
            dense = np.zeros_like(row)
            dense[[element for element, _ in sparse]] = [weight for _, weight in sparse]
            assert dense.tolist() == row.tolist(), case
            assert [x * w for _, x, w, _ in terms] == [product for *_, product in terms], case


def check_subtotals(
    found: dict[str, Any], geometry: ConvGeometry, M: np.ndarray, K: np.ndarray
) -> None:
    """What each channel adds to an output, from M and K; of many channels as many as fit."""
    k, f = K.shape
    per = geometry.in_channels // geometry.groups
    most = 6
    for at, (parts, few) in enumerate(zip(found["subtotals"], found["few"], strict=True)):
        p, filter_ = divmod(at, f)
        first = filter_ * geometry.groups // f * k
        products = (M[p, first : first + k] * K[:, filter_]).reshape(-1, per)
        assert parts == products.sum(axis=0).tolist()
        assert sum(parts) + few["bias"] == found["sums"][at]
        whole = max(1, min(per, most // len(products)))
        taps = [(t, d) for t in range(len(products)) for d in range(whole)][:most]
        assert few["terms"] == [[first + t * per + d, d] for t, d in taps]
        written = np.zeros_like(products)
        for t, d in taps:
            written[t, d] = products[t, d]
        assert few["subtotals"] == written.sum(axis=0)[:whole].tolist()
        assert few["rest"] == (products - written).sum()


@st.composite
def gradients(draw: st.DrawFn) -> tuple[Case, dict[str, Any], np.ndarray]:
    """A case, what the page says of dY, and dY."""
    case = draw(cases(max_ndim=2))
    size = (*index_map(case.geometry, case.input_size).output_size, case.geometry.out_channels)
    start = draw(st.sampled_from(["one", "ones", "zeros"]))
    dY = np.ones(size) if start == "ones" else np.zeros(size)
    if start == "one":
        dY[(0,) * len(size)] = 1  # at the chosen output, which is the first
    edits = []
    for _ in range(draw(st.integers(0, 4))):
        place = tuple(draw(st.integers(0, n - 1)) for n in size)
        dY[place] = draw(st.integers(-5, 5))
        edits = [edit for edit in edits if edit[0] != ",".join(map(str, place))]
        edits.append([",".join(map(str, place)), dY[place]])
    return case, {"start": start, "edits": edits}, dY


def test_gradients_are_those_of_autograd(model: Model) -> None:
    """dK = Mᵀ dY and dX = col2im(dY Kᵀ), on integers, so exactly."""
    judged = 0
    for seed, (case, dY, expected) in enumerate(drawn(gradients(), PRODUCTS)):
        geometry = case.geometry
        state, (x, filters, _) = state_of(case, seed)
        at = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, filters)]
        try:
            y = torch_layer(*at, geometry)
        except (RuntimeError, NotImplementedError):  # a padding that PyTorch does not know
            continue
        y.backward(torch.tensor(expected)[None])
        dx, dfilters = (np.asarray(a.grad) for a in at)
        found = model.ask("numbers", state | {"dY": dY, "selection": {"p": 0, "f": 0}})
        assert found["dX"] == dx.ravel().tolist(), case
        K = turned(dfilters, geometry).reshape(len(filters), -1)
        assert found["dK"] == K.tolist(), case
        judged += 1
    assert judged > PRODUCTS // 2


# --- rules ---


@st.composite
def any_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings as somebody may type them: those of a convolution, with one or two changed."""
    case = draw(cases(max_ndim=2))
    wanted = settings_of(case.geometry, case.input_size)
    for _ in range(draw(st.integers(0, 2))):
        field = draw(st.sampled_from([name for name in wanted if name not in ("axes", "bias")]))
        if field in ("flip", "transposed"):
            wanted[field] = draw(st.booleans())
        elif field == "mode":
            modes = ["zeros", "reflect", "replicate", "circular", "same"]
            wanted[field] = draw(st.sampled_from(modes))
        elif field == "padding":
            wanted[field][-1][1] = draw(st.sampled_from([*range(7), -1]))
        else:
            number = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 0, -1, 2.5, None]))
            wanted[field] = [*wanted[field][:-1], number] if type(wanted[field]) is list else number
    return wanted


def refused(wanted: dict[str, Any]) -> str:
    """Return why convfc refuses settings, or nothing."""
    try:
        geometry_of(wanted)
    except ConvfcError as error:
        return str(error)
    return ""


def test_the_page_refuses_exactly_what_convfc_refuses(model: Model) -> None:
    outcomes = []
    for wanted in drawn(any_settings(), SETTINGS):
        problems, reason = model.ask("problems", wanted), refused(wanted)
        assert bool(problems) == bool(reason), (wanted, problems, reason)
        assert {p["field"] for p in problems} <= set(wanted), problems
        assert all(len(p["message"].split()) > 4 for p in problems), problems
        outcomes.append(bool(reason))
    assert min(outcomes.count(True), outcomes.count(False)) > SETTINGS // 6


def test_an_odd_number_is_named_with_its_field(model: Model) -> None:
    wanted = settings_of(ConvGeometry(1, 1, (2, 2)), (6, 6))
    for field in ("size", "kernel", "stride", "dilation", "outputPadding"):
        for odd in (None, 0.5, -1, 10**6):
            (problem,) = model.ask("problems", wanted | {field: [wanted[field][0], odd]})
            assert (problem["field"], problem["axis"]) == (field, 1)
            assert "whole number" in problem["message"]
    for axes in (0, 3, 1.5, None):
        (problem,) = model.ask("problems", wanted | {"axes": axes})
        assert problem["field"] == "axes"
        assert "1 or 2" in problem["message"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"channels": 4096, "filters": 4096}, "channels"),
        ({"size": [224, 224], "channels": 80}, "channels"),
        ({"size": [200, 200], "transposed": True, "stride": [60, 60]}, "stride"),
    ],
)
def test_what_would_fill_the_memory_is_a_problem(
    model: Model, given: dict[str, Any], field: str
) -> None:
    wanted = settings_of(ConvGeometry(1, 1, (2, 2)), (6, 6))
    assert model.ask("problems", wanted) == []
    (problem,) = model.ask("problems", wanted | given)
    assert problem["field"] == field
    assert "more than the 2,000,000" in problem["message"]


# --- the numbers to start with ---


def started(model: Model, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the input and the filters that the page makes for settings."""
    found = model.ask("start", settings)
    assert not found["signed"], "a weight is -0"
    taps = (*settings["kernel"], settings["channels"] // settings["groups"])
    return (
        np.array(found["input"]).reshape(*settings["size"], settings["channels"]),
        np.array(found["filters"]).reshape(settings["filters"], *taps),
    )


@st.composite
def some_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings with many filters as well as few, of one tap as well as of many."""
    axes = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    geometry = ConvGeometry(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.one_of(st.integers(1, 8), st.integers(9, 150))),
        draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes)),
        groups=groups,
    )
    return settings_of(geometry, draw(st.lists(st.integers(4, 9), min_size=axes, max_size=axes)))


def test_no_two_filters_to_start_with_are_equal(model: Model) -> None:
    for settings in drawn(some_settings(), 60):
        _, filters = started(model, settings)
        weights = filters.reshape(len(filters), -1)
        assert len({tuple(row) for row in weights}) == len(weights), settings
        assert weights.any(axis=1).all(), settings
        assert (weights == np.round(weights)).all(), settings
        if 2 * 5 ** (weights.shape[1] - 1) >= len(weights):  # there are so many small ones
            assert np.abs(weights).max() <= 2, settings


def test_the_first_filters_are_differences_a_sum_corners_and_a_point(model: Model) -> None:
    _, filters = started(model, settings_of(ConvGeometry(1, 5, (3, 3)), (6, 6)))
    across = [[-1, 0, 1]] * 3
    assert filters[..., 0].tolist() == [
        across,
        np.transpose(across).tolist(),
        [[1] * 3] * 3,
        [[1, 0, -1], [0, 0, 0], [-1, 0, 1]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    ]
    _, filters = started(model, settings_of(ConvGeometry(1, 3, (3,)), (6,)))
    assert filters[..., 0].tolist() == [[-1, 0, 1], [1, 1, 1], [0, 1, 0]]
    _, filters = started(model, settings_of(ConvGeometry(4, 2, (1, 1)), (6, 6)))
    assert filters.reshape(2, 4).tolist() == [[1, 1, 1, 1], [-1, -1, 1, 1]]


def test_the_input_to_start_with_gives_each_filter_something(model: Model) -> None:
    for size in [(4, 4), (6, 6), (8, 5), (13, 13), (28, 28), (12,), (8,)]:
        geometry = ConvGeometry(1, 3 if len(size) > 1 else 2, (3,) * len(size))
        x, filters = started(model, settings_of(geometry, size))
        planes = conv_as_matmul(x[None], filters, geometry)[0]
        for plane in planes.reshape(-1, geometry.out_channels).T:
            _, counts = np.unique(plane, return_counts=True)
            assert counts.max() <= plane.size / 2, size
        assert all(np.diff(x, axis=axis).any() for axis in range(len(size))), size
        # Of whole numbers, and each channel has its own.
        x, _ = started(model, settings_of(ConvGeometry(6, 1, (1,) * len(size)), size))
        assert set(np.unique(x)) <= set(range(1, 10))
        assert len({channel.tobytes() for channel in np.moveaxis(x, -1, 0)}) == 6, size


def test_an_input_that_grows_shows_more_of_the_same_picture(model: Model) -> None:
    geometry = ConvGeometry(2, 1, (3, 3))
    large, _ = started(model, settings_of(geometry, (20, 17)))
    for size in ((6, 6), (4, 17), (19, 5)):
        small, _ = started(model, settings_of(geometry, size))
        assert (large[: size[0], : size[1]] == small).all()


@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (ConvGeometry(50, 1, (3, 3)), (199, 200)),
        (ConvGeometry(1, 4096, (22, 22)), (22, 22)),
        (ConvGeometry(480, 1, (64, 64), padding=28), (8, 8)),
    ],
    ids=["input", "filters", "one-filter"],
)
def test_two_million_numbers_are_made_in_a_few_steps_each(
    model: Model, geometry: ConvGeometry, size: tuple[int, ...]
) -> None:
    settings = settings_of(geometry, size)
    assert model.ask("problems", settings) == []
    assert 1_900_000 < model.ask("startSteps", settings) < 30_000_000


# --- addresses ---


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """A state as it is after some use: a preset or none, other settings, numbers, a selection."""
    case = draw(cases(max_ndim=2))
    wanted = settings_of(case.geometry, case.input_size, bias=draw(st.booleans()))
    number = st.one_of(st.integers(-9, 9), st.floats(-1e3, 1e3, allow_nan=False))

    def some(count: int) -> list[float]:
        return draw(st.lists(number, min_size=count, max_size=count))

    state: dict[str, Any] = {"settings": wanted}
    if draw(st.booleans()):
        state["preset"] = draw(st.sampled_from(["figure-3", "experiment", "dilated", "none"]))
    kind = draw(st.sampled_from(["made", "digit", "values"]))
    if kind == "digit":
        state["input"] = {"digit": draw(st.integers(0, 19))}
    elif kind == "values":
        state["input"] = {"values": some(prod(case.x_shape[1:]))}
    if draw(st.booleans()):
        state["filters"] = some(prod(case.filters_shape))
    if wanted["bias"] and draw(st.booleans()):
        state["bias"] = some(wanted["filters"])
    state["selection"] = {"p": draw(st.integers(0, 30)), "f": draw(st.integers(0, 5))}
    if draw(st.booleans()):
        state["selection"]["q"] = draw(st.integers(0, 9))
    elif draw(st.booleans()):
        state["selection"]["element"] = draw(st.integers(0, 40))
    state["view"] = {
        "tab": draw(st.sampled_from(TABS)),
        "feeds": draw(st.booleans()),
    }
    if draw(st.booleans()):
        state["training"] = draw(st.sampled_from(["0.0.sgd.1e-1.0.32", "7.4500.adam.5e-3.1.64"]))
    return state


def test_an_address_leads_back_to_where_it_was_taken(model: Model) -> None:
    cut = 0
    for state in drawn(states(), STATES):
        found = model.ask("address", state)
        before, after = found["before"], found["after"]
        if ";cut=1" in found["address"]:
            cut += 1
            assert len(found["notes"]) == 1, found["notes"]
            names = ["settings", "selection", "view"]
        else:
            assert found["notes"] == [], state
            names = ["settings", "selection", "view", "filters", "bias", "input"]
        for name in names:
            assert after[name] == before[name], (name, state, found["address"])
        assert after.get("training") == state.get("training"), found["address"]
    assert cut < STATES // 4


RUBBISH = [
    "#", "#1", "#2;k=3.3", "#1;;;", "#1;=;k", "#1;k=3.3.3", "#1;k=-1", "#1;k=1e9", "#1;n=999999.9",
    "#1;a=0", "#1;a=3", "#1;a=999999", "#1;p=1", "#1;p=1_2_3", "#1;m=__proto__", "#1;g=0",
    "#1;preset=constructor", "#1;at=NaN.NaN", "#1;at=-5.-5", "#1;at=1e99.0", "#1;at=5",
    "#1;pixel=9999999", "#1;at=0.0;pixel=9999999", "#1;digit=99", "#1;i=1,2,3", "#1;w=,,",
    "#1;i=Infinity", "#1;b=2", "#1;tab=__proto__", "#1;%", "#1;%E0%A4%A", "#1;preset=%00",
    "#1;c=4096;f=4096;k=64.64;n=224.224", "#1;t=1;o=9.9", "#1;c=6;g=4",
    "#1;dy=__proto__", "#1;e=_,__,1_,a_b_c_d,9_9_9_9,1_1_0_NaN", "#1;own=x;cut=1",
    "#1;tab=backward;dy=ones;e=1_1_0_Infinity",
    "#1;train=1.4501.sgd.1e-1.0.32", "#1;train=1.1.sgd.3e-1.0.32",
    "#1;train=1.1.toString.1e-1.0.32", "#1;train=9999999.1.sgd.1e-1.0.32",
    "#1;train=1.1.sgd.1e-1.2.16", "#1;train=",
]  # fmt: skip


def sound(found: dict[str, Any]) -> bool:
    """Say whether an address led to a convolution, or to a note that says why not."""
    if found.get("settings") is None:
        return isinstance(found["notes"], list)
    geometry_of(found["settings"])
    selection = found["selection"]
    whole = all(isinstance(selection[name], int) for name in ("p", "f"))
    return found["problems"] == [] and whole and bool(found["said"])


KEYS = [
    *"ancfkspmdgtoxbiwv",
    "preset",
    "at",
    "pixel",
    "digit",
    "tab",
    "feeds",
    "dy",
    "own",
    "train",
    "e",
    "cut",
]
PIECE = st.one_of(
    st.sampled_from([*(f"{key}=" for key in KEYS), "_", ";"]),
    st.integers(-3, 30).map(str),
    st.text(max_size=4),
)


def test_no_address_breaks_the_page(model: Model) -> None:
    pieces = st.lists(PIECE, max_size=20).map(lambda parts: "#1;" + "".join(parts))
    for address in RUBBISH + drawn(pieces, 200):
        assert sound(model.ask("visit", address)), address


def test_what_an_address_has_wrong_is_said(model: Model) -> None:
    for address, words in {
        "#7;k=3.3": "version",
        "#1;preset=mine": "mine",
        "#1;k=x": "kernel",
        "#1;k=9.9": "kernel reaches over",
        "#1;i=1,2": "36 numbers",
        "#1;at=x": "selection",
        "#1;cut=1": "too many",
        "#1;train=1.4501.sgd.1e-1.0.32": "no training of this page",
    }.items():
        assert any(words in note for note in model.ask("visit", address)["notes"]), address


# --- the model's own rules on numbers ---


def test_digits_of_the_page_are_digits_of_the_library(facts: dict[str, Any]) -> None:
    from convfc.digits import labelled_digits

    images, labels = labelled_digits()
    pixels = np.round(images[..., 0] * 255).astype(int).reshape(len(images), -1)
    known = {(int(label), row.tobytes()) for label, row in zip(labels, pixels, strict=True)}
    assert sorted(digit["label"] for digit in facts["digits"]) == sorted(list(range(10)) * 2)
    for digit in facts["digits"]:
        assert (digit["label"], np.array(digit["pixels"]).tobytes()) in known
