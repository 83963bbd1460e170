"""The laws that every framework obeys in every form: framework x form x case x law.

What a framework is, `adapters` says; nothing here names one. A case is a geometry on an input size,
its numbers are NumPy arrays; a new hyper-parameter is under the laws with one more case.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import oracle
import pytest
from adapters import Adapter, Form, Refusal, adapters
from cases import Case, case

import convfc
from convfc.errors import ConvfcError, NothingToConvert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from convfc import ConvGeometry

ADAPTERS = adapters()
FORMS = [(adapter, form) for adapter in ADAPTERS for form in adapter.forms]
pytestmark = [
    pytest.mark.filterwarnings(warning) for adapter in ADAPTERS for warning in adapter.warnings
]

# Square kernels and equal sizes, where a mistake could hide behind a shape.
PLAIN = case(
    (6, 6), (3, 3), c=4, f=4, groups=2, stride=(1, 2), padding=((1, 1), (2, 2)), dilation=(1, 2)
)
TURNED = case((4, 4), (3, 3), f=4, transposed=True, stride=(2, 3), padding=1, output_padding=(0, 1))
# More groups than the ones that each get an FC layer of their own: one filter per channel, or two.
MANY = case((4, 3), (3, 2), c=40, f=40, groups=40, stride=(1, 2), padding=1, dilation=(2, 1))
MANY_TURNED = case((2, 3), (2, 2), transposed=True, c=40, f=80, groups=40, stride=(2, 1))
LAYERS = [
    case((4, 3), (1, 1), c=3, f=2),
    case((5, 4), (3, 2)),
    case((5, 4), (3, 3), padding=1),
    case((5, 4), (3, 3), stride=2),
    case((6, 7), (3, 2), dilation=(2, 3)),
    case((4, 5), (2, 3), c=6, f=4, groups=2),
    case((4, 4), (3, 3), c=3, f=3, groups=3, padding=1),  # depthwise
    case((4, 4), (3, 2), c=2, f=6, groups=2),  # depthwise, three filters to a channel
    case((4, 5), (2, 4), padding=((0, 1), (1, 2))),  # "same", with an odd element
    case((6, 4), (2, 2), stride=2),  # kernel == stride: a patch embedding
    case((5, 4), (3, 3), padding=2, padding_mode="reflect"),
    case((4, 3), (3, 3), padding=((2, 2), (1, 1)), padding_mode="replicate", stride=2),
    case((5, 6), (3, 3), c=4, f=2, groups=2, padding=1, padding_mode="circular", dilation=2),
    case((6, 5), (3, 2), c=3, f=4, stride=(2, 1), padding=((1, 1), (2, 2)), dilation=(1, 2)),
    case((9,), (5,), c=4, f=6, groups=2, stride=2, padding=2, padding_mode="replicate"),
    case((4, 3, 3), (2, 1, 3), padding=((1, 1), (0, 0), (1, 1)), dilation=(1, 2, 1)),
    case((5,), (3,), transposed=True, stride=2, output_padding=1),
    case((4, 3), (3, 3), transposed=True),
    case((3, 3), (3, 2), transposed=True, c=4, f=6, groups=2, dilation=2, padding=1),
    case((3, 4), (3, 2), transposed=True, c=3, stride=(2, 3), padding=1, output_padding=(1, 2)),
    case((3, 2, 2), (2, 2, 2), transposed=True, c=2, f=2, groups=2, stride=2, output_padding=1),
]
FEW = [PLAIN, TURNED, MANY, LAYERS[14], LAYERS[16]]
# For frameworks that have no padding in numbers, or no dilation beside a stride.
STRIDED = case((6, 6), (3, 3), c=4, f=4, groups=2, stride=(2, 1))
DILATED = case((7, 6), (3, 2), c=3, f=4, dilation=(2, 3))
PADDED = case((6, 6), (3, 4), c=3, f=4, padding=((1, 1), (1, 2)))
TURNED_WHOLE = case((4, 3), (3, 3), f=4, transposed=True, stride=2)
DEEP = case((4, 4), (3, 2), c=40, f=40, groups=40)
INSTEAD = {PLAIN: STRIDED, TURNED: TURNED_WHOLE, MANY: DEEP}
"""What a framework is asked instead of a layer that it does not have."""
LAYERS += [PLAIN, TURNED, MANY, MANY_TURNED]
WITHOUT_BIAS = [LAYERS[3], LAYERS[19], MANY]
KINDS = {"plain": PLAIN, "transposed": TURNED, "many-groups": MANY}


def setting(**changes: Any) -> Callable[[ConvGeometry], ConvGeometry]:
    return lambda geometry: replace(geometry, **changes)


SETTINGS_CHANGED: dict[str, tuple[Case, Callable[[ConvGeometry], ConvGeometry]]] = {
    "stride": (PLAIN, setting(stride=(2, 1))),
    "padding": (PLAIN, setting(padding=((2, 2), (1, 1)))),
    "dilation": (PLAIN, setting(dilation=(2, 1))),
    "dilation at the same size": (PLAIN, setting(dilation=(2, 1), padding=((2, 2), (1, 1)))),
    "dilation of many groups": (MANY, setting(dilation=(1, 2))),
    "padding mode": (PLAIN, setting(padding_mode="circular")),
    "stride of a transposed layer": (TURNED, setting(stride=(3, 2))),
    "padding of a transposed layer": (TURNED, setting(padding=0)),
    "output padding": (TURNED, setting(output_padding=(1, 0))),
    # For frameworks that have none of these.
    "stride alone": (STRIDED, setting(stride=(1, 2))),
    "dilation alone": (DILATED, setting(dilation=(3, 2))),
    "padding left out": (PADDED, setting(padding=0)),
    "stride of a transposed layer alone": (TURNED_WHOLE, setting(stride=3)),
}


EACH_KIND = pytest.mark.parametrize("kind", KINDS)


class Numbers(NamedTuple):
    """An input, filters and a bias, in the canonical layout."""

    x: np.ndarray
    filters: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True)
class Subject:
    """A layer in a framework and in a form of it."""

    adapter: Adapter
    form: Form
    case: Case
    biased: bool = True

    def __str__(self) -> str:
        return f"{self.adapter}-{self.form}-{self.case}" + "-nobias" * (not self.biased)

    def integers(self, dtype: str, seed: int = 0) -> Numbers:
        """Numbers of which every sum is exact in the dtype."""
        arrays = [array.astype(float) for array in self.case.integers(seed)]
        if "complex" in dtype:
            arrays = [array + 1j * np.roll(array, 1) for array in arrays]
        return self._without(arrays)

    def reals(self, seed: int = 0) -> Numbers:
        """Numbers with other bits in every digit, a minus zero among them."""
        arrays = list(self.case.reals(seed))
        for array in arrays:
            array.flat[0] = -0.0
        return self._without(arrays)

    def _without(self, arrays: list[np.ndarray]) -> Numbers:
        x, filters, bias = arrays
        return Numbers(x, filters, bias if self.biased else None)

    def model(self, numbers: Numbers, dtype: str = "float32", case: Case | None = None) -> Any:
        """A network of this one layer."""
        geometry = (case or self.case).geometry
        model = self.adapter.layer(geometry, dtype, bias=self.biased)
        return self.adapter.fill(model, numbers.filters, numbers.bias)

    def pair(self, numbers: Numbers, dtype: str = "float32") -> tuple[Any, Any, np.ndarray]:
        """The network, what it is in this form, and an input in the framework's order."""
        model, x = self.model(numbers, dtype), self.adapter.ordered(numbers.x)
        return model, self.adapter.convert(model, self.form, x), x


@cache
def exists(adapter: Adapter, case: Case, dtype: str = "float32") -> bool:
    return adapter.layer(case.geometry, dtype, bias=True) is not None


def had(adapter: Adapter, cases: Iterable[Case]) -> Iterator[Case]:
    """The cases that a framework has, or what stands for them."""
    kinds = [*INSTEAD, LAYERS[0]]
    for wanted in (c for c in cases if c in kinds or not adapter.compiles):
        one = wanted if exists(adapter, wanted) else INSTEAD.get(wanted)
        if one is not None and exists(adapter, one):
            yield one


def settings_changed(adapter: Adapter, form: Form) -> dict[str, Any]:
    """Layers that a framework has, each with a change that makes another one of its layers."""
    instead = not exists(adapter, PLAIN)
    return {
        name: (case, change)
        for name, (case, change) in SETTINGS_CHANGED.items()
        if name.endswith(("alone", "left out")) == instead
        and exists(adapter, case)
        and exists(adapter, replace(case, geometry=change(case.geometry)))
    }


def subjects(cases: list[Case], keep: Callable[[Form], bool] = lambda form: True) -> list[Any]:
    found = [
        Subject(adapter, form, case)
        for adapter, form in FORMS
        for case in had(adapter, cases)
        if keep(form)
    ]
    found += [
        replace(one, biased=False)
        for one in found
        if one.case in WITHOUT_BIAS and not one.adapter.compiles
    ]
    return [pytest.param(subject, id=str(subject)) for subject in found]


def one_layer_each(form: Form) -> bool:
    return form.layers


def of_forms(values: Callable[[Adapter, Form], dict[str, Any]]) -> list[Any]:
    """Parameters of all forms, each with one of its values, by name."""
    return [
        pytest.param(adapter, form, value, id=f"{adapter}-{form}-{name}")
        for adapter, form in FORMS
        for name, value in values(adapter, form).items()
    ]


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """To the bit, with the sign of zero and in the same dtype."""
    if one is None or other is None:
        return one is other
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert same(found[name], array), name


def exactly(cases: list[Case]) -> list[Any]:
    """Each of them in the one dtype in which all sums are exact."""
    return [
        pytest.param(*one.values, one.values[0].adapter.exact, id=one.id) for one in subjects(cases)
    ]


def differentiable(parameters: list[Any]) -> list[Any]:
    """Those of frameworks that have gradients."""
    return [one for one in parameters if one.values[0].adapter.differentiates]


def with_dtypes(cases: list[Case]) -> list[Any]:
    """Each of them in all other dtypes."""
    return [
        pytest.param(*one.values, dtype, id=f"{one.id}-{dtype}")
        for one in subjects(cases)
        for dtype in one.values[0].adapter.dtypes
        if dtype != one.values[0].adapter.exact
    ]


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for adapter in ADAPTERS:
            stack.enter_context(adapter.calm())
        yield


# The adapter itself: its layer is the case's convolution, or every law is about something else.


@pytest.mark.parametrize(
    ("adapter", "case"),
    [
        pytest.param(adapter, case, id=f"{adapter}-{case}")
        for adapter in ADAPTERS
        for case in LAYERS
        if exists(adapter, case)
    ],
)
def test_the_framework_s_layer_is_the_definition(adapter: Adapter, case: Case) -> None:
    x, filters, bias = case.integers()
    model = adapter.fill(adapter.layer(case.geometry, adapter.exact, bias=True), filters, bias)
    y = adapter.canonical(adapter.run(model, adapter.ordered(x)))
    assert np.array_equal(y, oracle.conv(x, filters, case.geometry, bias))


# Law 1: on integers the form computes what the layer computes, to the bit.


@pytest.mark.parametrize(("subject", "dtype"), exactly(LAYERS) + with_dtypes(FEW[:3]))
def test_equal_on_integers(subject: Subject, dtype: str) -> None:
    adapter = subject.adapter
    model, converted, x = subject.pair(subject.integers(dtype), dtype)
    before = adapter.snapshot(model)
    y = adapter.run(model, x)
    found = adapter.run(converted, x)
    assert (found.dtype, found.shape) == (y.dtype, y.shape)
    assert np.array_equal(found, y)
    assert y.any()
    assert np.array_equal(adapter.run(converted, x[:1]), y[:1])
    assert adapter.snapshot(model) == before  # converting leaves the model as it was


@pytest.mark.parametrize(
    ("adapter", "form", "network"), of_forms(lambda adapter, form: adapter.networks())
)
def test_a_network_is_equal_on_integers(
    adapter: Adapter, form: Form, network: Callable[[], tuple[Any, np.ndarray]]
) -> None:
    model, x = network()
    converted = adapter.convert(model, form, x)
    assert np.array_equal(adapter.run(converted, x), adapter.run(model, x))
    listed = [(row.name, row.form) for row in convfc.inspect(model).rows]
    kinds = {row.form for row in convfc.inspect(converted).rows}
    if form.layers:
        assert kinds == {form.options.get("form", form.name)}
        assert [row.name for row in convfc.inspect(converted).rows] == [name for name, _ in listed]
    else:
        assert not kinds


@pytest.mark.parametrize("subject", subjects(FEW))
def test_an_input_of_another_size(subject: Subject) -> None:
    """A matrix for one size refuses it; what is made for all sizes computes it."""
    adapter, numbers = subject.adapter, subject.integers(subject.adapter.exact)
    model, converted, x = subject.pair(numbers, adapter.exact)
    larger = adapter.ordered(np.pad(numbers.x, [(0, 0), *[(0, 1)] * (numbers.x.ndim - 2), (0, 0)]))
    assert np.array_equal(adapter.run(converted, x), adapter.run(model, x))
    if subject.form.example:
        error, words = adapter.wrong_size
        with pytest.raises(error, match=words):
            adapter.run(converted, larger)
    else:
        assert np.array_equal(adapter.run(converted, larger), adapter.run(model, larger))


@pytest.mark.parametrize(
    ("adapter", "form", "change"),
    of_forms(lambda adapter, form: settings_changed(adapter, form) if form.state else {}),
)
def test_a_changed_setting_counts(
    adapter: Adapter, form: Form, change: tuple[Case, Callable[[ConvGeometry], ConvGeometry]]
) -> None:
    """What is set on the form is what the layer computes from then on, also taken back."""
    subject = Subject(adapter, form, change[0])
    numbers = subject.integers(adapter.exact)
    _, converted, x = subject.pair(numbers, adapter.exact)
    changed = replace(subject.case, geometry=change[1](subject.case.geometry))
    model = subject.model(numbers, adapter.exact, changed)
    adapter.change(converted, changed.geometry)
    y = adapter.run(model, x)
    assert np.array_equal(adapter.run(converted, x), y)
    back = convfc.to_conv(converted)
    assert adapter.snapshot(back) == adapter.snapshot(model)
    assert np.array_equal(adapter.run(back, x), y)


# Law 2: so do the gradients of input, filters and bias.


@pytest.mark.parametrize(
    ("subject", "dtype"), differentiable(exactly(LAYERS) + with_dtypes(FEW[:3]))
)
def test_gradients_are_exact_on_integers(subject: Subject, dtype: str) -> None:
    """Of x entry by entry; of K and b as what they are, linear maps of any other K and b.

    The parameters p of a form are a linear function of K and b, so that for all others
    <dp, p(K', b')> = <dK, K'> + <db, b'>, whatever their layout.
    """
    adapter, numbers = subject.adapter, subject.integers(dtype)
    model, converted, x = subject.pair(numbers, dtype)
    dy = np.random.default_rng(1).integers(-3, 4, adapter.run(model, x).shape)
    expected, found = (adapter.gradients(one, x, dy) for one in (model, converted))
    assert np.array_equal(found["x"], expected["x"])
    for seed in range(2 if dtype == adapter.exact else 0):
        drawn = np.random.default_rng(seed + 2)
        filters = 2 * drawn.integers(-512, 512, numbers.filters.shape) + 1.0  # none of them zero
        bias = None if numbers.bias is None else 2 * drawn.integers(-512, 512, len(filters)) + 1.0
        other = subject.pair(Numbers(numbers.x, filters, bias), dtype)[:2]
        sides = [
            sum(
                (gradients[name] * parameter).sum()
                for name, parameter in adapter.parameters(one).items()
            )
            for gradients, one in zip((expected, found), other, strict=True)
        ]
        assert sides[0] == sides[1]


@pytest.mark.parametrize("subject", differentiable(subjects(LAYERS, one_layer_each)))
def test_gradients_come_back_with_the_layer(subject: Subject) -> None:
    adapter, dtype = subject.adapter, subject.adapter.exact
    model, converted, x = subject.pair(subject.integers(dtype), dtype)
    dy = np.random.default_rng(1).integers(-3, 4, adapter.run(model, x).shape)
    adapter.gradients(model, x, dy)
    adapter.gradients(converted, x, dy)
    expected = adapter.gradients_held(model)
    back = convfc.to_conv(converted, inplace=True)
    assert back is converted
    found = adapter.gradients_held(back)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


# Law 3: what has not changed comes back bit for bit.


@pytest.mark.parametrize(("subject", "dtype"), exactly(LAYERS) + with_dtypes(FEW[:3]))
def test_it_comes_back_bit_for_bit(subject: Subject, dtype: str) -> None:
    adapter = subject.adapter
    model, converted, x = subject.pair(subject.reals(), dtype)
    kept = adapter.snapshot(converted)
    back = convfc.to_conv(converted)
    assert adapter.snapshot(back) == adapter.snapshot(model)
    assert same(adapter.run(back, x), adapter.run(model, x))
    assert adapter.snapshot(converted) == kept  # taking a copy back leaves the form as it was


@pytest.mark.parametrize("subject", subjects(FEW, one_layer_each))
def test_changed_numbers_come_back(subject: Subject) -> None:
    """Twice the parameters are those of twice the layer."""
    adapter, dtype = subject.adapter, subject.adapter.exact
    model, converted, x = subject.pair(subject.integers(dtype), dtype)
    state = adapter.state(converted)
    adapter.write(converted, {name: 2 * array for name, array in state.items()})
    back = convfc.to_conv(converted)
    assert np.array_equal(adapter.run(back, x), 2 * adapter.run(model, x))
    assert adapter.settings(back) == adapter.settings(model)


@pytest.mark.parametrize(
    ("adapter", "form", "network"), of_forms(lambda adapter, form: adapter.networks())
)
def test_a_network_comes_back_bit_for_bit(
    adapter: Adapter, form: Form, network: Callable[[], tuple[Any, np.ndarray]]
) -> None:
    model, x = network()
    back = convfc.to_conv(adapter.convert(model, form, x))
    assert adapter.snapshot(back) == adapter.snapshot(model)


# Law 4: the certificate holds, with every layer exact.


@pytest.mark.parametrize(
    ("subject", "dtype"),
    exactly(LAYERS) + with_dtypes(FEW[1:2]),
)
def test_verify_holds(subject: Subject, dtype: str) -> None:
    adapter = subject.adapter
    model, converted, x = subject.pair(subject.reals(), dtype)
    kept = [adapter.snapshot(one) for one in (model, converted)]
    pairs = [(model, converted), (converted, model)]
    kinds = {*INSTEAD, *INSTEAD.values()}
    for pair in pairs if subject.case in kinds else pairs[:1]:
        certificate = convfc.verify(*pair, adapter.example(model, x))
        assert certificate.holds, str(certificate)
        (layer,) = certificate.layers
        assert layer.own["output"].ratio is not None
        assert layer.float64["output"].ratio is not None
        if subject.form.layers:
            parameters = {"weight"} | ({"bias"} if subject.biased else set())
            quantities = {"output"} | ({"input"} | parameters if adapter.differentiates else set())
            assert layer.own.keys() == layer.float64.keys() == quantities
            assert layer.exact.identical is True
            assert {weight.quantity for weight in layer.weights} == parameters
    assert [adapter.snapshot(one) for one in (model, converted)] == kept


@pytest.mark.parametrize(
    ("adapter", "form", "network"), of_forms(lambda adapter, form: adapter.networks())
)
def test_verify_holds_of_a_network(
    adapter: Adapter, form: Form, network: Callable[[], tuple[Any, np.ndarray]]
) -> None:
    model, x = network()
    certificate = convfc.verify(model, adapter.convert(model, form, x), adapter.example(model, x))
    assert certificate.holds, str(certificate)
    if form.layers:
        names = [row.name for row in convfc.inspect(model).rows]
        assert sorted({layer.name for layer in certificate.layers}) == sorted(names)
        assert all(layer.exact.identical for layer in certificate.layers)


# Law 5: the certificate says no to each single corruption.


def one_entry(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Change one number that is not zero."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        index = np.flatnonzero(array)[-2:][0]
        array.flat[index] *= factor
        return array

    return change


def last_bit(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    index = np.flatnonzero(array)[-2:][0]
    array.flat[index] = np.nextafter(array.flat[index], np.float32(np.inf), dtype=np.float32)
    return array


def exchanged(array: np.ndarray) -> np.ndarray:
    return array[[1, 0, *range(2, len(array))]]


def one_channel(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array[:-1], 1.001 * array[-1:]])


NUMBERS_CHANGED: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "a weight entry": ("weight", one_entry(1.001)),
    "the last bit of a weight": ("weight", last_bit),
    "a bias entry": ("bias", one_entry(1.001)),
}
FILTERS_CHANGED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "two filters exchanged": exchanged,
    "an output channel scaled": one_channel,
}


def refuted(adapter: Adapter, model: Any, other: Any, x: np.ndarray) -> bool:
    """Whether the certificate says no in both directions."""
    given = adapter.example(model, x)
    return not any(convfc.verify(*pair, given).holds for pair in ((model, other), (other, model)))


@EACH_KIND
@pytest.mark.parametrize(
    ("adapter", "form", "change"), of_forms(lambda adapter, form: NUMBERS_CHANGED)
)
def test_verify_says_no_to_a_number(
    adapter: Adapter,
    form: Form,
    change: tuple[str, Callable[[np.ndarray], np.ndarray]],
    kind: str,
) -> None:
    """Of the form's own state: in the unrolled form this is one entry of the matrix."""
    (case,) = had(adapter, [KINDS[kind]])
    subject, (which, corrupt) = Subject(adapter, form, case), change
    model, converted, x = subject.pair(subject.reals())
    state = adapter.state(converted)
    (name,) = (name for name in state if name.endswith(which))
    adapter.write(converted, {**state, name: corrupt(state[name])})
    assert refuted(adapter, model, converted, x)


@EACH_KIND
@pytest.mark.parametrize(
    ("adapter", "form", "corrupt"), of_forms(lambda adapter, form: FILTERS_CHANGED)
)
def test_verify_says_no_to_filters(
    adapter: Adapter, form: Form, corrupt: Callable[[np.ndarray], np.ndarray], kind: str
) -> None:
    (case,) = had(adapter, [KINDS[kind]])
    subject = Subject(adapter, form, case)
    numbers = subject.reals()
    model, x = subject.model(numbers), adapter.ordered(numbers.x)
    other = subject.model(numbers._replace(filters=corrupt(numbers.filters)))
    assert refuted(adapter, model, adapter.convert(other, form, x), x)


@pytest.mark.parametrize(("adapter", "form", "change"), of_forms(settings_changed))
def test_verify_says_no_to_a_setting(
    adapter: Adapter, form: Form, change: tuple[Case, Callable[[ConvGeometry], ConvGeometry]]
) -> None:
    """Changed in the form, if it keeps settings; else it is made of a changed layer."""
    case, corrupt = change
    subject = Subject(adapter, form, case)
    numbers = subject.reals()
    model, converted, x = subject.pair(numbers)
    changed = replace(case, geometry=corrupt(case.geometry))
    if form.state:
        adapter.change(converted, changed.geometry)
    else:
        converted = adapter.convert(subject.model(numbers, case=changed), form, x)
    assert refuted(adapter, model, converted, x)


# Law 6: hooks on the layer see and change the same.


@pytest.mark.parametrize("when", ["before converting", "after converting", "and taken back"])
@pytest.mark.parametrize("subject", subjects(FEW, one_layer_each))
def test_hooks_see_and_change_the_same(subject: Subject, when: str) -> None:
    adapter, dtype = subject.adapter, subject.adapter.exact
    numbers = subject.integers(dtype)
    model, other = (subject.model(numbers, dtype) for _ in range(2))
    x = adapter.ordered(numbers.x)
    seen: list[np.ndarray] = []

    def before(x: np.ndarray) -> np.ndarray:
        seen.append(x.copy())
        return x + 1

    def after(y: np.ndarray) -> np.ndarray:
        seen.append(y.copy())
        return 2 * y

    plain = adapter.run(model, x)
    if adapter.hook(model, before, after) is None:
        pytest.skip(f"{adapter} has no hooks")
    if when == "before converting":
        remove = adapter.hook(other, before, after)
        converted = adapter.convert(other, subject.form, x)
        in_place = None
    else:
        converted = adapter.convert(other, subject.form, x)
        remove = adapter.hook(converted, before, after)
        in_place = convfc.to_conv(converted, inplace=True) if when == "and taken back" else None
    seen.clear()
    y = adapter.run(model, x)
    assert not np.array_equal(y, plain)
    assert np.array_equal(adapter.run(converted, x), y)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == 2
    assert all(map(np.array_equal, first, second))
    if when != "before converting":
        assert remove is not None
        remove()
        assert np.array_equal(adapter.run(converted, x), plain)
        assert in_place is None or in_place is converted


# Law 7: the state goes both ways, and what is written into it in place is the layer's.


@pytest.mark.parametrize("subject", subjects(LAYERS))
def test_the_state_goes_both_ways(subject: Subject) -> None:
    adapter, dtype = subject.adapter, subject.adapter.exact
    model, converted, x = subject.pair(subject.integers(dtype), dtype)
    other, other_converted, _ = subject.pair(subject.integers(dtype, seed=1), dtype)
    y = adapter.run(model, x)
    assert not np.array_equal(adapter.run(other_converted, x), y)
    adapter.load(other_converted, adapter.state(converted))
    assert np.array_equal(adapter.run(other_converted, x), y)
    assert_same(adapter.state(other_converted), adapter.state(converted))
    if subject.form.state:
        assert_same(adapter.state(converted), adapter.state(model))
        again = adapter.convert(other, subject.form, x)
        adapter.load(again, adapter.state(model))
        assert np.array_equal(adapter.run(again, x), y)
        adapter.load(other, adapter.state(converted))
        assert np.array_equal(adapter.run(other, x), y)


@pytest.mark.parametrize("subject", subjects(LAYERS))
def test_what_is_written_into_the_state_is_the_layer_s(subject: Subject) -> None:
    adapter, dtype = subject.adapter, subject.adapter.exact
    model, converted, x = subject.pair(subject.integers(dtype), dtype)
    other, other_converted, _ = subject.pair(subject.integers(dtype, seed=1), dtype)
    adapter.write(converted, adapter.state(other_converted))
    assert np.array_equal(adapter.run(converted, x), adapter.run(other, x))
    assert_same(adapter.state(converted), adapter.state(other_converted))
    assert not np.array_equal(adapter.run(model, x), adapter.run(other, x))


# Laws 8 and 9: copies and pickles are equal and independent, and come back.


def copied(adapter: Adapter, form: Form) -> dict[str, Any]:
    return {
        f"{how}-{case}": (copy, case)
        for how, copy in adapter.copies.items()
        for case in had(adapter, FEW[:3])
    }


@pytest.mark.parametrize(("adapter", "form", "how"), of_forms(copied))
def test_copies_are_equal_and_independent(
    adapter: Adapter, form: Form, how: tuple[Callable[[Any], Any], Case]
) -> None:
    copy, case = how
    subject = Subject(adapter, form, case)
    model, converted, x = subject.pair(subject.reals())
    y = adapter.run(converted, x)
    other = copy(converted)
    assert other is not converted
    assert adapter.snapshot(other) == adapter.snapshot(converted)
    assert same(adapter.run(other, x), y)
    assert adapter.snapshot(convfc.to_conv(other)) == adapter.snapshot(model)
    adapter.write(other, {name: 0 * array for name, array in adapter.state(other).items()})
    assert not adapter.run(other, x).any()
    assert same(adapter.run(converted, x), y)
    adapter.write(converted, {name: 2 * array for name, array in adapter.state(other).items()})
    assert not adapter.run(copy(converted), x).any()


# Law 10: what is refused is refused with class, place and remedy, and left as it was.


def assert_refused(refusal: Refusal, adapter: Adapter, act: Callable[[Any], Any]) -> None:
    model = refusal.make()
    kept = adapter.snapshot(model)
    with pytest.raises(ConvfcError) as caught:
        act(model)
    assert type(caught.value) is refusal.error
    what, _, remedy = str(caught.value).partition(". Remedy: ")
    assert what.startswith(f"{refusal.place}: ")
    assert remedy
    assert adapter.snapshot(model) == kept


def refused(adapter: Adapter, form: Form) -> dict[str, Any]:
    found = adapter.refused(form).items()
    copied = {name: (refusal, {}) for name, refusal in found}
    in_place = {
        f"{name}, in place": (refusal, {"inplace": True})
        for name, refusal in found
        if form.verb == "to_fc" and refusal.inplace
    }
    return copied | in_place


@pytest.mark.parametrize(("adapter", "form", "given"), of_forms(refused))
def test_a_refusal_names_its_place_and_leaves_the_model(
    adapter: Adapter, form: Form, given: tuple[Refusal, dict[str, Any]]
) -> None:
    refusal, options = given
    assert_refused(
        refusal, adapter, lambda model: adapter.convert(model, form, refusal.x, **options)
    )


@pytest.mark.parametrize(
    ("adapter", "form", "refusal"), of_forms(lambda adapter, form: adapter.refused_back(form))
)
def test_a_refusal_to_take_back_does_so_too(adapter: Adapter, form: Form, refusal: Refusal) -> None:
    assert_refused(refusal, adapter, convfc.to_conv)


@pytest.mark.parametrize(
    ("adapter", "form"), [pytest.param(*pair, id="-".join(map(str, pair))) for pair in FORMS]
)
def test_what_is_converted_already_is_nothing_to_convert(adapter: Adapter, form: Form) -> None:
    (case,) = had(adapter, [PLAIN])
    subject = Subject(adapter, form, case)
    model, converted, x = subject.pair(subject.reals())
    kept = adapter.snapshot(converted)
    with pytest.raises(NothingToConvert, match=r"^model: the model has no .* already\. Remedy: "):
        adapter.convert(converted, form, x)
    with pytest.raises(NothingToConvert, match=r"^model: the model has no .* form\. Remedy: "):
        convfc.to_conv(model)
    assert adapter.snapshot(converted) == kept
