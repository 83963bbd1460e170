"""While nothing has touched the FC layers, a model trains as the CNN does, bit for bit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import classifier, through_a_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch_fixtures import in_form, with_integers

import convfc
from convfc.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMS = ["patch", "weight"]


def converted(form: str) -> nn.Module:
    """A model as `to_fc` makes it by default."""
    return convfc.to_fc(classifier(), form=form)


def losses(
    model: nn.Module, steps: int = 50, run: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> list[float]:
    """The losses of training on the same batches."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = []
    for _ in range(steps):
        x = torch.randn(4, 3, 16, 16, generator=generator)
        y = torch.randint(0, 5, (4,), generator=generator)
        loss = nn.functional.cross_entropy((run or nn.Module.__call__)(model, x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def in_bfloat16(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y: Tensor = model(x)
    return y


def checkpointed(model: Any, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(model[:5], x, use_reentrant=False)
    z: Tensor = model[5:](y)
    return z


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "run", [None, in_bfloat16, checkpointed], ids=["plain", "bf16", "checkpoint"]
)
def test_fifty_steps_give_the_losses_of_the_cnn(run: Any, form: str) -> None:
    expected = losses(classifier(), run=run)
    assert losses(converted(form), run=run) == expected
    assert expected[-1] != expected[0]


def test_a_memory_format_given_later_is_that_of_the_cnn() -> None:
    model, fc, x = classifier(), converted("patch"), torch.randn(2, 3, 16, 16)
    for form in (torch.channels_last, torch.contiguous_format):
        ours, theirs = (m.to(memory_format=form).eval()[:5](x) for m in (fc, model))
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert fc[0].weight_channels_last is (form is torch.channels_last)
    assert converted("patch").to(torch.float64)[0].weight_channels_last is False


class Noting(nn.Module):
    """A parametrization that says when it is computed."""

    def __init__(self, note: Callable[..., None]) -> None:
        super().__init__()
        self.note = note

    def forward(self, weight: Tensor) -> Tensor:
        self.note()
        return weight.clone()


def tagged(child: Any, note: Callable[..., None]) -> Callable[[], object]:
    """A weight of a class that sees what is computed with it."""

    class Tagged(nn.Parameter):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            note()
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs or {})

    plain, child.weight = child.weight, Tagged(child.weight.detach())
    return lambda: setattr(child, "weight", plain)


def parametrized(child: Any, note: Callable[..., None]) -> Callable[[], object]:
    parametrize.register_parametrization(child, "weight", Noting(note))
    return lambda: parametrize.remove_parametrizations(child, "weight")


def of_another_class(child: Any, note: Callable[..., None]) -> Callable[[], object]:
    class Noted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            note()
            return super().forward(x)

    child.__class__ = Noted
    return lambda: setattr(child, "__class__", nn.Linear)


def forward_on_the_instance(child: Any, note: Callable[..., None]) -> Callable[[], object]:
    child.forward = lambda x: (note(), nn.Linear.forward(child, x))[1]
    return lambda: delattr(child, "forward")


def hook(register: str) -> Any:
    """A hook of the child itself, or of all modules, that notes calls of the child."""

    def touch(child: Any, note: Callable[..., None]) -> Callable[[], object]:
        def noted(module: nn.Module, *_: Any) -> None:
            if module is child:
                note()

        owner = nn.modules.module if "module" in register else child
        handle = getattr(owner, register)(noted)
        return handle.remove  # type: ignore[no-any-return]

    return touch


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
TOUCHES: dict[str, Any] = {
    **{f"{kind}": hook(f"register_{kind}") for kind in HOOKS},
    **{f"module_{kind}": hook(f"register_module_{kind}") for kind in HOOKS},
    "weight-class": tagged,
    "parametrized": parametrized,
    "class": of_another_class,
    "instance-forward": forward_on_the_instance,
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", TOUCHES)
def test_a_touch_counts_from_the_next_call_to_the_last(kind: str, groups: int) -> None:
    layer = with_integers(nn.Conv2d(4, 6, 3, groups=groups))
    after = in_form(layer, "untouched")
    x = torch.randint(-3, 4, (2, 4, 5, 5)).double().requires_grad_()
    seen: list[int] = []

    def agree() -> None:
        ours, theirs = after(x), layer(x)
        assert torch.equal(ours, theirs)
        found, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs))
        assert torch.equal(found, expected)

    agree()
    undo = TOUCHES[kind](after.children_fc[-1], lambda: seen.append(1))
    agree()
    assert seen
    undo()
    seen.clear()
    agree()
    assert not seen


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_what_pytorch_refuses_is_said_as_the_fc_form_says_it(layer: Any) -> None:
    after = in_form(layer(3, 4, 3), "untouched")
    with pytest.raises(ShapeError, match=r"expected \(N, 3, size 0, size 1\)"):
        after(torch.zeros(1, 4, 5, 5))
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        after(torch.zeros(1, 3, 5, 5, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_tracer_is_shown_m() -> None:
    after, x = in_form(nn.Conv2d(3, 4, 3), "untouched"), torch.randn(1, 3, 5, 5)
    graph = str(torch.jit.trace(after, x).inlined_graph)  # type: ignore[no-untyped-call]
    assert "linear" in graph
    assert "convolution" not in graph


def test_by_m_k_the_losses_are_rounded_otherwise() -> None:
    ours, theirs = losses(in_form(classifier(), "patch"), 5), losses(classifier(), 5)
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_an_average_of_weights_and_a_file(form: str) -> None:
    model, expected = converted(form), classifier()
    averages = [AveragedModel(model), AveragedModel(expected)]
    for one, average in zip((model, expected), averages, strict=True):
        losses(one, 3)
        average.update_parameters(one)
        losses(one, 3)
        average.update_parameters(one)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(averages[0].eval()(x), averages[1].eval()(x))
    state = through_a_file(model.state_dict(), weights_only=True)
    fresh = converted(form)
    fresh.load_state_dict(state)
    assert losses(fresh, 2) == losses(copy.deepcopy(expected), 2)


def in_a_process(rank: int, folder: Path) -> None:
    """Train one of two replicas of the CNN, then one of its FC network; write their losses."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = [
        losses(DistributedDataParallel(model), 4) for model in (classifier(), converted("patch"))
    ]
    torch.save(found, folder / f"losses-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)
def test_two_processes_give_the_losses_of_the_cnn(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(in_a_process, args=(tmp_path,), nprocs=2)
    for rank in (0, 1):
        theirs, ours = torch.load(tmp_path / f"losses-{rank}")
        assert ours == theirs
