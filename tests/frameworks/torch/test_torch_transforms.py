"""torch.compile, torch.export, torch.func, autocast and autograd through both forms."""

from __future__ import annotations

import copy

import pytest
import torch
from conv_cases import CASES, ConvCase, case, integers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.autograd import gradcheck, gradgradcheck
from torch_fixtures import in_form

FORMS = ("patch", "weight")
MANY = case(nn.Conv2d, (40, 80, 3), 7, 6, groups=40, padding=1)
# Dilated, a pointwise layer, 'same', the other modes, groups, windows side by side, transposed.
TRACED = [CASES[i] for i in (1, 2, 8, 11, 13, 19, 25)] + [MANY]
OPEN = [CASES[i] for i in (4, 8, 11, 18, 26)] + [MANY]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
    ).double()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", TRACED, ids=str)
def test_compile_in_one_graph(case: ConvCase, form: str) -> None:
    layer = case.layer()
    compiled = torch.compile(in_form(layer, form), backend="eager", fullgraph=True)
    for batch in (2, 3, 5):
        x = case.x(batch=batch)
        assert torch.equal(compiled(x), layer(x))


def test_compiled_gradients_are_exact() -> None:
    case = CASES[13]
    layer = case.layer()
    after = in_form(layer, "patch")
    compiled = torch.compile(after, backend="aot_eager", fullgraph=True)
    x, z = case.x().requires_grad_(), case.x().requires_grad_()
    compiled(x).square().sum().backward()
    layer(z).square().sum().backward()
    assert torch.equal(x.grad, z.grad)
    grads = torch.cat([fc.weight.grad for fc in after.fc])
    assert torch.equal(after.to_weight(grads), layer.weight.grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", TRACED, ids=str)
def test_export_with_any_batch(case: ConvCase, form: str) -> None:
    layer = case.layer()
    after = in_form(layer, form)
    program = torch.export.export(
        after, (case.x(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    assert torch.equal(program.module()(case.x(batch=5)), layer(case.x(batch=5)))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if form == "patch":
        assert any(("einsum" if case is MANY else "linear") in name for name in names)
        assert not any("conv" in name for name in names)


def other_sizes(case: ConvCase) -> list[Tensor]:
    """Inputs that differ in every size that may be open, among them odd and even ones."""
    return [
        integers((batch, case.args[0], *[size + more for size in case.size]))
        for batch, more in ((2, 3), (3, 4), (5, 8), (4, 5))
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", OPEN, ids=str)
def test_export_with_every_size_open(case: ConvCase, form: str) -> None:
    layer = case.layer()
    inputs = other_sizes(case)
    dims = dict.fromkeys((0, *range(2, inputs[0].dim())), torch.export.Dim.AUTO)
    ranges = []
    for model in (layer, in_form(layer, form)):
        program = torch.export.export(nn.Sequential(model), (inputs[1],), dynamic_shapes=(dims,))
        ranges.append(sorted(map(str, program.range_constraints.values())))
        for x in inputs:
            assert torch.equal(program.module()(x), layer(x))
    assert ranges[0] == ranges[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", OPEN, ids=str)
def test_one_compilation_serves_every_size(case: ConvCase, form: str) -> None:
    layer = case.layer()
    counts = []
    for model in (layer, in_form(layer, form)):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
        for x in other_sizes(case):
            assert torch.equal(compiled(x), layer(x))
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", TRACED, ids=str)
def test_vmap_over_inputs_and_over_weights(case: ConvCase, form: str) -> None:
    layer = case.layer()
    after = in_form(layer, form)
    x = case.x(batch=4)
    assert torch.equal(torch.vmap(after)(x), layer(x))
    stacked = torch.stack([x, x + 1])
    assert torch.equal(torch.vmap(after)(stacked), torch.stack([layer(x), layer(x + 1)]))
    parameters = dict(after.named_parameters())
    two = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    both = torch.vmap(lambda p: torch.func.functional_call(after, p, (x,)))(two)
    assert torch.equal(both, torch.stack([layer(x), 2 * layer(x)]))


@pytest.mark.parametrize("form", FORMS)
def test_per_sample_gradients(form: str) -> None:
    model = network()
    after = in_form(model, form)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(after, parameters, (sample[None],)).square().sum()

    parameters = {name: p.detach() for name, p in after.named_parameters()}
    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(len(x)):
        model.zero_grad()
        model(x[index : index + 1]).square().sum().backward()
        want = copy.deepcopy(after)
        want.load_state_dict({n: p.grad for n, p in model.named_parameters()}, strict=False)
        for name, value in want.named_parameters():
            torch.testing.assert_close(grads[name][index], value.detach())


# PyTorch itself still makes its forward-mode formulas with torch.jit.script.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_and_hessians(form: str) -> None:
    model = network()
    after = in_form(model, form)
    x, v = torch.randn(2, 1, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jvp(after, (x,), (v,)), torch.func.jvp(model, (x,), (v,)))
    small = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh()).double()
    after = in_form(small, form)
    x = torch.randn(1, 1, 4, dtype=torch.float64)
    hessians = [torch.func.hessian(lambda z, f=f: f(z).sum())(x) for f in (small, after)]
    torch.testing.assert_close(*hessians)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [*CASES[1::6], CASES[14], MANY], ids=str)
def test_first_and_second_derivatives(case: ConvCase, form: str) -> None:
    after = in_form(case.layer(), form)
    parameters = dict(after.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        for name, value in zip(parameters, values, strict=True):
            owner, _, last = name.rpartition(".")
            module = after.get_submodule(owner)
            module._parameters[last] = value
        return after(x)

    leaves = [torch.randn_like(t).requires_grad_() for t in (case.x(batch=1), *parameters.values())]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], MANY], ids=str)
def test_autocast(case: ConvCase, dtype: torch.dtype, form: str) -> None:
    layer = case.layer(torch.float32)
    after = in_form(layer, form)
    x = case.x(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y, z = layer(x), after(x)
        assert after(x.requires_grad_()).dtype == dtype
    assert y.dtype == z.dtype == dtype
    assert torch.equal(y, z)
    with torch.autocast("cpu", dtype=dtype):
        after(x).sum().backward()
        grad, x.grad = x.grad, None
        layer(x).sum().backward()
    assert torch.equal(grad, x.grad)
    assert all(p.grad.dtype == torch.float32 for p in after.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_fake_and_meta_tensors(form: str) -> None:
    model = network()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    shape = model(x).shape
    with torch.device("meta"):
        meta = network()
    assert in_form(meta, form)(x.to("meta")).shape == shape
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        after = in_form(model, form)
        assert after(mode.from_tensor(x)).shape == shape


@pytest.mark.parametrize("form", FORMS)
def test_threads_of_training_and_inference_mode(form: str) -> None:
    model = network()
    after = in_form(model, form)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.inference_mode():
        y = after(x)
    torch.testing.assert_close(y, model(x).detach())
    torch.testing.assert_close(after(x), model(x))  # nothing of inference mode is left
