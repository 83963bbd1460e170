"""laplace-torch and bayesian-torch on the patch form: right, refused, or wrong, and why.

laplace-torch knows Conv2d as well, and is the judge of itself. Where a backend is wrong or refuses,
the documentation states it: if such a test fails, the documentation has to change.
"""

from __future__ import annotations

import copy
import functools
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convfc
from convfc.frameworks.torch.forms import blocks
from convfc.methods import uncertainty

pytestmark = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    # What laplace-torch and its backends import and call is deprecated in PyTorch.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning"),
    # BackPACK, of a layer whose parameters are its child's; asdl, of how it finds Jacobians.
    pytest.mark.filterwarnings("ignore:Extension saving to .*PatchConv:UserWarning"),
    pytest.mark.filterwarnings("ignore:ASDL backend is used:UserWarning"),
]

STRUCTURES = ("diag", "kron", "full")
REFUSALS = {  # by the number of the footnote
    "1": (AssertionError, "expects a backpropagation quantity but it is None"),
    "4": (RuntimeError, "Expected size 392 but got size 200"),  # 8 images, each of L rows
    "5": (NameError, "is not defined"),
}


def documented() -> list[Any]:
    """The table of docs/uncertainty.md: backend, structure, and what happens on the patch form."""
    page = Path(__file__).parents[2] / "docs" / "uncertainty.md"
    found = []
    for row in re.findall(r"^\| (`\w+`.*) \|$", page.read_text("utf-8"), flags=re.MULTILINE):
        names, *cells = row.split(" | ")
        if len(cells) == 3:
            found += [
                pytest.param(backend, structure, cell, id=f"{backend}-{structure}")
                for backend in re.findall(r"`(\w+)`", names)
                for structure, cell in zip(STRUCTURES, cells, strict=True)
                if cell != "not available"
            ]
    return found


ASDL = ["AsdlGGN", "AsdlEF"]


def cnn(dtype: torch.dtype = torch.float64, groups: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 25, 3),
    ).to(dtype).eval()  # fmt: skip


def images(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 13, 13, generator=generator).to(dtype)


def posterior(
    model: nn.Module, structure: str = "kron", backend: str = "CurvlinopsGGN", x: Any = None
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import laplace.curvature
        from laplace import Laplace
        from laplace.curvature import asdfghjkl
    name = asdfghjkl if backend.startswith("Asdfghjkl") else laplace.curvature
    x = images(24, 1, next(model.parameters()).dtype) if x is None else x
    y = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(1))
    options = {"subset_of_weights": "all", "hessian_structure": structure}
    found = Laplace(model, "classification", backend=getattr(name, backend), **options)
    found.fit(DataLoader(TensorDataset(x, y), batch_size=8))
    return found


def measured(model: nn.Module, structure: str, backend: str) -> Tensor:
    """The predictive variance, as the linearised network has it; of a Hessian, its eigenvalues."""
    found = posterior(model, structure, backend)
    if "Hessian" in backend:
        return torch.linalg.eigvalsh(found.H).double()
    x = images(5, 2, next(model.parameters()).dtype)
    _, variance = found._glm_predictive_distribution(x)
    assert variance.shape == (5, 3, 3)
    assert variance.diagonal(dim1=1, dim2=2).min() > 0
    return variance.double()


def apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@functools.cache
def rounding(structure: str, backend: str, groups: int = 1) -> tuple[float, Tensor]:
    """What rounding to float32 makes of the CNN's numbers; and these in float64."""
    single, double = (
        measured(cnn(dtype, groups), structure, backend) for dtype in (torch.float32, torch.float64)
    )
    return apart(single, double), double


def layer_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            part.register_forward_hook(lambda m, a, y, name=name: seen.update({name: a[0]}))
    with torch.no_grad():
        model(x)
    return seen


@pytest.mark.parametrize(("backend", "structure", "cell"), documented())
def test_the_table_of_backends_is_true(backend: str, structure: str, cell: str) -> None:
    fc = convfc.to_fc(cnn())
    refusal = next((REFUSALS[number] for number in REFUSALS if f"({number})" in cell), None)
    if refusal is not None:
        error, text = refusal
        with pytest.raises(error, match=text):
            posterior(fc, structure, backend)
        return
    gap, expected = rounding(structure, backend)
    found = apart(measured(fc, structure, backend), expected)
    assert gap > 0
    if cell.startswith("**wrong**"):
        assert found > 100 * gap
    else:
        assert cell.startswith("the same")
        assert found <= gap, "more than rounding to float32 makes of the CNN's"


# With groups the Kronecker factors are others: see below.
@pytest.mark.parametrize(
    ("backend", "structure"),
    [("CurvlinopsGGN", "diag"), ("CurvlinopsEF", "full"), ("BackPackEF", "diag")],
)
def test_with_groups_the_curvature_is_that_of_the_cnn(backend: str, structure: str) -> None:
    gap, expected = rounding(structure, backend, groups=2)
    assert apart(measured(convfc.to_fc(cnn(groups=2)), structure, backend), expected) <= gap


# Kronecker factors, on small integers.


def exact_network(groups: int) -> nn.Sequential:
    """Integers and powers of two only, L = 64 and 16 positions: every factor A is exact."""
    layers = [nn.Conv2d(2, 4, 2), nn.Conv2d(4, 4, 5, groups=groups), nn.Linear(64, 3)]
    generator = torch.Generator().manual_seed(5)
    for layer in layers:
        for parameter in layer.double().parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).double()
    layers[-1].weight.data *= 2.0**-10  # so that no probability is zero
    first, second, last = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), last).eval()


def exact_images() -> Tensor:
    return torch.randint(-2, 3, (16, 2, 9, 9), generator=torch.Generator().manual_seed(1)).double()


def input_factors(model: nn.Module, backend: str) -> list[Tensor]:
    """The factors A of all layers, as the backend adds them up."""
    found = posterior(model, "kron", backend, exact_images())
    return [factors[1] for factors in found.H_facs.kfacs if len(factors) == 2]


@pytest.mark.parametrize("backend", ["CurvlinopsGGN", "CurvlinopsEF", *ASDL])
def test_the_factor_a_is_the_cnns_with_curvlinops_and_l_times_it_with_asdl(backend: str) -> None:
    """asdl flattens the rows of M into the batch, and then divides by the images alone."""
    native = exact_network(1)
    first = input_factors(native, backend)
    second = input_factors(convfc.to_fc(native), backend)
    times = (64, 16, 1) if backend in ASDL else (1, 1, 1)
    for a, b, factor in zip(first[:2], second, times, strict=False):
        assert torch.equal(b, factor * a)
    assert torch.equal(first[-1], second[-1]), "the classifier is a Linear in both"


@pytest.mark.parametrize("backend", ["CurvlinopsGGN", "CurvlinopsEF"])
def test_with_groups_the_patch_form_has_a_factor_of_each_and_curvlinops_averages_the_patches(
    backend: str,
) -> None:
    native = exact_network(2)
    _, averaged, _ = input_factors(native, backend)
    _, *of_groups, _ = input_factors(convfc.to_fc(native), backend)
    x = layer_inputs(native, exact_images())["2"]
    patches = nn.functional.unfold(x, 5).transpose(1, 2).unflatten(2, (2, 50))

    def second_moment(rows: Tensor) -> Tensor:
        return torch.einsum("nli,nlj->ij", rows, rows) / (16 * 16)

    for group, factor in enumerate(of_groups):
        assert torch.equal(factor, second_moment(patches[:, :, group]))
    assert torch.equal(averaged, second_moment(patches.mean(2)))


def test_a_laplace_draw_goes_back_to_conv_layers() -> None:
    model = convfc.to_fc(cnn())
    found = posterior(model)
    drawn = copy.deepcopy(model)
    # laplace-torch orders a sample as the parameters of the model.
    vector = found.sample(1, generator=torch.Generator().manual_seed(3))[0]
    nn.utils.vector_to_parameters(vector, drawn.parameters())
    back = convfc.to_conv(drawn)
    assert type(back[0]) is nn.Conv2d
    assert not torch.equal(back[0].weight, cnn()[0].weight)
    assert convfc.verify(back, drawn, images(2, 4)).holds


# bayesian-torch.


def flipped(fc: nn.Module, kind: str) -> nn.Module:
    """What bayesian-torch makes of a network: every Linear, by the type."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn

    settings = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0}
    settings |= {"posterior_rho_init": -3.0, "moped_enable": True, "moped_delta": 0.5}
    dnn_to_bnn(fc, settings | {"type": kind})
    return fc


@pytest.mark.parametrize("kind", ["Reparameterization", "Flipout"])
def test_bayesian_torch_takes_the_patch_form_and_keeps_every_hyper_parameter(kind: str):
    """On the CNN itself it drops the padding mode; on FC layers there is none to drop."""
    conv = nn.Conv2d(1, 4, 3, padding=2, padding_mode="circular", dtype=torch.float32)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3))
    bayes = flipped(convfc.to_fc(model), kind)
    assert type(bayes[0].fc).__name__ == f"Linear{kind}"
    found = uncertainty.predict(bayes, torch.randn(4, 1, 8, 8), 10)
    assert found.mutual_information.min() > 0
    # Deviations of almost nothing: the mean network, through the circular padding.
    x = torch.randn(2, 1, 8, 8)
    layer = bayes[0].fc
    with torch.no_grad():
        layer.rho_weight.fill_(-40.0)
        layer.rho_bias.fill_(-40.0)
        y, native = bayes[0](x), conv(x)
        magnitude = nn.functional.conv2d(
            nn.functional.pad(x.abs(), (2, 2, 2, 2), mode="circular"),
            layer.mu_weight.abs().reshape(4, 3, 3, 1).movedim(-1, 1),
            layer.mu_bias.abs(),
        )
        assert torch.equal(layer.mu_weight.reshape(4, 3, 3, 1).movedim(-1, 1), conv.weight)
        assert ((y - native).abs() <= 2 * 12 * 2.0**-24 * magnitude).all()
        plain = flipped(nn.Sequential(copy.deepcopy(conv)), kind)
        plain[0].rho_kernel.fill_(-40.0)
        plain[0].rho_bias.fill_(-40.0)
        theirs = plain(x)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        assert (theirs - native).abs().max() > 0.01, "it keeps the padding mode now"


def held_by_linears(bayes: nn.Module, kind: str) -> nn.Module:
    """A copy in which an nn.Linear holds the numbers of each random layer: ``mu``, or ``rho``."""
    holder = copy.deepcopy(bayes)
    for name, part in list(holder.named_modules()):
        if type(part).__name__ == "LinearReparameterization":
            linear = nn.Linear(part.in_features, part.out_features, bias=part.mu_bias is not None)
            for key, p in linear.named_parameters():
                p.data = getattr(part, f"{kind}_{key}").detach().clone()
            holder.set_submodule(name, linear)
    return holder


def as_random_convs(bayes: nn.Module, cnn: nn.Module) -> nn.Module:
    """What comes home: the CNN, made random by bayesian-torch, with the numbers of the FC form."""
    home = flipped(copy.deepcopy(cnn), "Reparameterization")
    for kind in ("mu", "rho"):
        held = convfc.to_conv(held_by_linears(bayes, kind))
        for name, part in held.named_modules():
            weight = "kernel" if isinstance(part, nn.Conv2d) else "weight"
            for key, p in part.named_parameters(recurse=False):
                theirs = getattr(
                    home.get_submodule(name), f"{kind}_{key.replace('weight', weight)}"
                )
                theirs.data = p.detach().clone()
    return home


@pytest.mark.parametrize("groups", [1, 2])
def test_a_random_layer_of_bayesian_torch_comes_home_as_its_conv_layer(groups: int) -> None:
    """After a step of training: the same means and deviations, and with them the same draws."""
    native = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(4, 6, 3, dilation=2, padding=1, groups=groups, bias=False),
        nn.Flatten(), nn.Linear(6 * 4, 3),
    )  # fmt: skip
    bayes = flipped(convfc.to_fc(native), "Reparameterization")
    x = torch.randn(2, 2, 7, 7)
    optimizer = torch.optim.Adam(bayes.parameters(), lr=0.05)
    bayes(x).square().sum().backward()
    optimizer.step()

    home = as_random_convs(bayes, native)
    assert [type(part).__name__ for part in home] == [
        "Conv2dReparameterization", "ReLU", "Conv2dReparameterization", "Flatten",
        "LinearReparameterization",
    ]  # fmt: skip
    for index in (0, 2):
        children = [m for m in bayes[index].fc.modules() if hasattr(m, "mu_weight")]
        assert len(children) == (groups if index else 1)
        layer, old = home[index], native[index]
        assert (layer.groups, layer.stride, layer.dilation) == (
            old.groups,
            old.stride,
            old.dilation,
        )
        for kind in ("mu", "rho"):
            rows = torch.cat([getattr(child, f"{kind}_weight") for child in children])
            assert torch.equal(getattr(layer, f"{kind}_kernel").flatten(1), rows)
        assert not torch.equal(layer.mu_kernel, old.weight)
        # bayesian-torch's own divergence, a mean over the numbers of each layer.
        theirs = sum(child.kl_loss() for child in children) / len(children)
        assert layer.kl_loss().item() == pytest.approx(theirs.item(), rel=1e-6)
    if groups == 1:  # the children of groups draw one after the other
        draws = []
        for model in (bayes, home):
            torch.manual_seed(3)
            with torch.no_grad():
                draws.append(model(x))
        torch.testing.assert_close(*draws)

    # And out again.
    fields = {kind: copy.deepcopy(native) for kind in ("mu", "rho")}
    for kind, model in fields.items():
        for index in (0, 2):
            model[index].weight.data = getattr(home[index], f"{kind}_kernel").detach()
        found = convfc.to_fc(model)
        for ours, theirs in zip(found[2].fc.modules(), bayes[2].fc.modules(), strict=True):
            if type(ours) is nn.Linear:
                assert torch.equal(ours.weight, getattr(theirs, f"{kind}_weight"))


def test_the_divergence_of_bayesian_torch_is_a_mean_where_convfcs_is_a_sum():
    conv = nn.Conv2d(1, 4, 3, bias=False)
    theirs = flipped(convfc.to_fc(nn.Sequential(conv)), "Reparameterization")[0].fc
    ours = uncertainty.GaussianLinear(nn.Linear(9, 4, bias=False))
    with torch.no_grad():
        ours.weight_mean.copy_(theirs.mu_weight)
        ours.weight_rho.copy_(theirs.rho_weight)
    bound = 40 * torch.finfo(torch.float32).eps * ours.kl().abs()
    assert (36 * theirs.kl_loss() - ours.kl()).abs() <= bound


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_layer_of_another_library_draws_once_for_all_images_of_a_call(
    mode: str, grad: bool, monkeypatch: pytest.MonkeyPatch
):
    """M is larger than a block here, and every block would see a draw."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1024)
    bayes = flipped(convfc.to_fc(nn.Sequential(nn.Conv2d(3, 8, 3))), "Reparameterization")
    getattr(bayes, mode)()
    x = torch.ones(2, 3, 16, 16)
    with torch.set_grad_enabled(grad):
        first, second = bayes(x), bayes(x)
    # One draw gives one number at all positions, but for the rounding of 28 terms of size below 1.
    spread = (first - first[:1, :, :1, :1]).abs().max().item()
    assert spread <= 2 * 28 * 2.0**-24 * 28
    assert (first - second).abs().max() > 1e-3, "the next call draws again"
