"""Forwards that ask for the class of their CONV layers, which the FC layers are of as well."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conv_cases import integers
from networks import assert_same_state, net, through_a_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import weight_norm
from torch_fixtures import in_form, with_integers

import convfc
from convfc.errors import UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch import PatchConv
from convfc.frameworks.torch.forms.form import form_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("one_thread")
X = (2, 2, 8, 8)


class Padded(nn.Conv2d):
    """A forward of its own, and a method that others call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    def twice(self, x: Tensor) -> Tensor:
        return 2 * self(x)


class Marked:
    """No module, but a class of CONV layers."""


class MarkedConv(Marked, nn.Conv2d): ...


class Subsampling(nn.Module):
    """As in speech models: the lengths of a batch go through the CONV layers with it."""

    def __init__(self) -> None:
        super().__init__()
        more = [nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.Conv2d(4, 3, 1), nn.ReLU()]
        first = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.layers = nn.ModuleList([first, nn.ReLU(), *more])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                lengths = (lengths + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0]
                lengths = lengths + 1
                assert layer.weight.dim() == 4  # shown, whatever holds it
                x = x * (torch.arange(x.shape[2])[:, None] < lengths[:, None, None, None])
        return x, lengths


KINDS = (nn.Conv1d, nn.Conv2d)
EITHER = nn.Conv1d | nn.Conv2d


def is_conv(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def by_helper(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if is_conv(m.layer) else x


def by_case(m: Any, x: Tensor) -> Tensor:
    match m.layer:
        case nn.Conv2d(groups=1):
            return m.layer(x)
    return x


def by_base(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if isinstance(m.layer, _ConvNd) else x


def by_tuple(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if isinstance(m.layer, KINDS) else x


def by_union(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if issubclass(type(m.layer), EITHER) else x


def by_mark(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) if isinstance(m.layer, Marked) else x


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return function(*args)

    return run


def of_padded(m: Any, x: Tensor) -> Tensor:
    return m.layer.twice(x) if isinstance(m.layer, Padded) else x


ASKING: dict[str, tuple[Callable[..., Any], type[nn.Module]]] = {
    "helper": (by_helper, nn.Conv2d),
    "case": (by_case, nn.Conv2d),
    "base": (by_base, nn.Conv2d),
    "tuple": (by_tuple, nn.Conv2d),
    "union": (by_union, nn.Conv2d),
    "decorated": (decorated(by_tuple), nn.Conv2d),
    "decorated-method": (decorated(lambda m, x: m.asks(x)), nn.Conv2d),
    "no-grad": (torch.enable_grad()(by_helper), nn.Conv2d),
    "of-the-users": (of_padded, Padded),
    "no-module": (by_mark, MarkedConv),
}


@pytest.fixture(params=ASKING)
def asking(request: pytest.FixtureRequest) -> nn.Module:
    forward, cls = ASKING[request.param]
    model = net(forward, layer=cls(2, 3, 3))
    type(model).asks = by_tuple  # a method, which one of the forwards calls
    return with_integers(model)


@pytest.fixture
def model() -> nn.Module:
    return with_integers(Subsampling())


@pytest.fixture
def given() -> tuple[Tensor, Tensor]:
    return integers(X), torch.tensor([8, 5])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_equal(ours: nn.Module, theirs: nn.Module, given: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(ours(*given), theirs(*given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["patch", "untouched", "batched", "weight"])
def test_however_it_is_asked_the_fc_layer_is_of_the_class(asking: nn.Module, form: str) -> None:
    x = integers(X)
    assert asking(x).shape[1] == 3  # and not the other way
    if form == "weight" and isinstance(asking.layer, Padded):
        with pytest.raises(UnsupportedLayer, match="forward of its own"):
            in_form(asking, form)
        return
    fc = in_form(asking, form)
    assert torch.equal(fc(x), asking(x))
    assert isinstance(fc.layer, type(asking.layer))
    if form != "weight":
        assert form_of(fc.layer) == "patch"
        assert type(fc.layer.fc) is nn.Linear
    back = convfc.to_conv(fc)
    assert type(back.layer) is type(asking.layer)
    assert_same_state(back, asking)


def test_a_layer_that_nobody_asks_for_is_of_no_other_class(model: nn.Module) -> None:
    whole = nn.Sequential(nn.Conv2d(2, 2, 1), Subsampling())
    assert type(convfc.to_fc(whole)[0]) is PatchConv
    kinds = [type(part).__name__ for part in convfc.to_fc(model).layers]
    assert kinds == ["PatchConv2d", "ReLU", "PatchConv2d", "PatchConv2d", "ReLU"]


@pytest.mark.parametrize("form", ["patch", "untouched"])
def test_it_is_the_patch_form_in_everything(
    model: nn.Module, given: tuple[Tensor, Tensor], form: str
) -> None:
    fc = in_form(model, form)
    assert_equal(fc, model, given)
    copies = (fc, copy.deepcopy(fc), pickle.loads(pickle.dumps(fc)), through_a_file(fc))  # noqa: S301
    for one in copies:
        assert [type(a) for a in one.layers] == [type(a) for a in fc.layers]
        assert_same_state(one, model)
        assert_equal(one, model, given)
        one.load_state_dict(model.state_dict())
        model.load_state_dict(one.state_dict())
        certificate = convfc.verify(model, one, given)
        assert certificate.holds, str(certificate)
        assert [layer.forms for layer in certificate.layers] == [("native", "patch")] * 3
        assert [row.form for row in convfc.inspect(one, given)] == ["patch"] * 3
        assert_same_state(convfc.to_conv(one), model)
    with torch.no_grad():
        fc.layers[0].fc.weight[0, 0] += 1
        copies[1].layers[2].weight.mul_(2)
    assert not convfc.verify(model, fc, given).holds
    assert not convfc.verify(model, copies[1], given).holds
    assert convfc.verify(model, copies[2], given).holds


def test_its_gradients_are_exact(model: nn.Module, given: tuple[Tensor, Tensor]) -> None:
    fc = in_form(model, "patch")
    for one in (model, fc):
        y, _ = one(*given)
        y.backward(integers(y.shape, seed=1))
    back = convfc.to_conv(fc, inplace=True)
    for ours, theirs in zip(back.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("form", ["patch", "untouched", "weight"])
def test_a_compiler_answers_the_same(
    model: nn.Module, given: tuple[Tensor, Tensor], form: str
) -> None:
    compiled = torch.compile(in_form(model, form), backend="eager", fullgraph=True)
    assert_equal(compiled, model, given)


def test_a_computed_weight_and_a_hook(given: tuple[Tensor, Tensor]) -> None:
    model = Subsampling().eval()
    model.layers[0] = weight_norm(model.layers[0])
    given = given[0].float(), given[1]
    fc = convfc.to_fc(model)
    assert isinstance(fc.layers[0], nn.Conv2d)
    assert_equal(copy.deepcopy(fc), model, given)
    fc.layers[2].fc[1].register_forward_hook(lambda m, args, y: y + 1)
    assert not torch.equal(fc(*given)[0], model(*given)[0])
    assert_same_state(convfc.to_conv(convfc.to_fc(model)), model)


TYPES: dict[str, Callable[..., Any]] = {
    "is": lambda m, x: m.layer(x) if type(m.layer) is nn.Conv2d else x,
    "class": lambda m, x: m.layer(x) if m.layer.__class__ == nn.Conv2d else x,
    "in": lambda m, x: m.layer(x) if type(m.layer) in (nn.Conv1d, nn.Conv2d) else x,
    "not-in": lambda m, x: x if type(m.layer) not in KINDS else m.layer(x),
}
NO_TYPES: dict[str, Callable[..., Any]] = {
    "other-words": lambda m, x: (type(m.layer).__name__, by_helper(m, x), nn.Conv2d is None)[1],
    "another-type": lambda m, x: m.layer(x) if type(m.layer) is not nn.Conv1d else x,
}


@pytest.mark.parametrize("forward", TYPES.values(), ids=TYPES)
def test_a_question_for_the_very_type_is_refused(forward: Callable[..., Any]) -> None:
    model = net(forward, layer=nn.Conv2d(2, 3, 3))
    text = r"^layer: the forward of Net asks for the class.* ask with isinstance instead"
    for form in ("patch", "weight"):
        with pytest.raises(UnsupportedLayer, match=text):
            convfc.to_fc(model, form=form)
    with pytest.raises(UnsupportedLayer, match=r"^layer: the forward of Net asks"):
        convfc.unroll(model, torch.zeros(X))
    model.layer = Padded(2, 3, 3)  # the answer is no, before and after
    assert type(convfc.to_fc(model).layer) is PatchConv


@pytest.mark.parametrize("forward", NO_TYPES.values(), ids=NO_TYPES)
def test_what_no_type_of_the_layer_is_compared_with_is_no_question(
    forward: Callable[..., Any],
) -> None:
    model = with_integers(net(forward, layer=nn.Conv2d(2, 3, 3)))
    assert torch.equal(in_form(model, "patch")(integers(X)), model(integers(X)))


def test_what_is_several_layers_or_another_class_is_refused(
    model: nn.Module, given: tuple[Tensor, Tensor]
) -> None:
    text = r"^layers\.0: the forward of Subsampling asks for the class of its CONV layers"
    with pytest.raises(UnsupportedLayer, match=text + r".*\(nor can layers\.2, layers\.3\)"):
        convfc.unroll(model, given)
    with pytest.raises(UnsupportedLayer, match=text):
        convfc.unroll(convfc.to_fc(model), given)
    fc = convfc.to_fc(model)
    fc.layers[0].fc = nn.Sequential(nn.Linear(18, 2), nn.Linear(2, 4)).double()
    with pytest.raises(UnsupportedLayer, match=text + ", and it would be several.*one nn.Linear"):
        convfc.to_conv(fc)
    with pytest.warns(UnsupportedLayerWarning, match=r"layers\.0 \(the forward of Subsampling"):
        back = convfc.to_conv(fc, strict=False)
    assert [form_of(back.layers[place]) for place in (0, 2, 3)] == ["patch", "native", "native"]
    assert_equal(back, fc, given)
