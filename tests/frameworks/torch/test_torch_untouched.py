"""While nothing has touched the FC layers, a model trains as the CNN does, bit for bit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import classifier, through_a_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch_fixtures import in_form

import convfc

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


def in_a_process(rank: int, folder: Path, form: str | None) -> None:
    """Train one of two replicas, and write its losses."""
    store = torch.distributed.FileStore(str(folder / f"store-{form}"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = classifier() if form is None else converted(form)
    found = losses(DistributedDataParallel(model), 4)
    torch.save(found, folder / f"losses-{form}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)
def test_two_processes_give_the_losses_of_the_cnn(tmp_path: Path) -> None:
    for form in (None, "patch"):
        torch.multiprocessing.spawn(in_a_process, args=(tmp_path, form), nprocs=2)
    for rank in (0, 1):
        ours, theirs = (torch.load(tmp_path / f"losses-{form}-{rank}") for form in ("patch", None))
        assert ours == theirs
