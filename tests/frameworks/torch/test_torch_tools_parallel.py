"""Models in two processes: tensor parallelism of the FC children, and `fully_shard` (FSDP2).

PyTorch's plans for tensor parallelism know nn.Linear, and refuse CONV layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import assert_same_state, classifier
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_fixtures import with_integers

import convfc
from convfc.errors import UnsupportedLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

RANKS = (0, 1)
# Both processes begin as copies of one that has imported what takes seconds to import.
IMPORTED_ONCE = (
    "convfc.frameworks.torch",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
)
FORMS: dict[str, dict[str, Any]] = {
    "patch": {},
    "one-module-for-all-groups": {"groups": "batched"},
    "weight": {"form": "weight"},
}


# ------------------------------------------------------------------------ what the processes do


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in model.named_modules() if type(part) is nn.Linear}


def whole(model: nn.Module) -> dict[str, Any]:
    """Gather the state of a sharded model as PyTorch's documentation does it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def refusal(verb: Callable[[], Any]) -> str:
    try:
        verb()
    except (UnsupportedLayer, NotImplementedError) as error:
        return str(error)
    return "none"


def refusals(sharded: nn.Module) -> dict[str, str]:
    """What the verbs that need the whole weights say of a model without them."""
    cnn, x = classifier(), torch.zeros(1, 3, 16, 16)
    return {
        "to_conv": refusal(lambda: convfc.to_conv(sharded)),
        "verify": refusal(lambda: convfc.verify(cnn, sharded, x)),
        "verify, turned": refusal(lambda: convfc.verify(sharded, cnn, x)),
    }


def a_step(model: nn.Module) -> Tensor:
    """One step of SGD on small integers, all of whose numbers are exact; the output before it."""
    x = torch.randint(-2, 3, (2, 3, 16, 16), generator=torch.Generator().manual_seed(3)).double()
    y: Tensor = model(x)
    (y * (torch.arange(6) % 3 - 1)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return y.detach().clone()  # no tensor that is still on its way


def tensor_parallel(mesh: Any, style: str) -> dict[str, Any]:
    """The FC children of a CNN, split by columns or by rows; what they compute and learn."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    def split() -> Any:
        if style == "columns":
            return ColwiseParallel(output_layouts=Replicate())
        return RowwiseParallel(input_layouts=Replicate())

    model = convfc.to_fc(with_integers(classifier()))
    names = linears(model)
    parallelize_module(model, mesh, {name: split() for name in names})
    held = {name: tuple(linears(model)[name].weight.to_local().shape) for name in names}
    return {
        "on the CNN": refusal(lambda: parallelize_module(classifier(), mesh, {"0": split()})),
        "held": held,
        "y": a_step(model),
        "refusals": refusals(model),
        "state": whole(model),
    }


def losses(model: nn.Module, rank: int) -> list[float]:
    """Train on batches of one's own."""
    generator = torch.Generator().manual_seed(rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = []
    for _ in range(4):
        x = torch.randn(4, 3, 16, 16, generator=generator)
        y = torch.randint(0, 6, (4,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def sharded(mesh: Any, rank: int, form: str) -> dict[str, Any]:
    """A model of which each process holds half of every parameter."""
    from torch.distributed.fsdp import fully_shard

    model = classifier() if form == "native" else convfc.to_fc(classifier(), **FORMS.get(form, {}))
    parts = linears(model).values() if form == "children" else model
    for part in [*filter(lambda part: any(True for _ in part.parameters()), parts), model]:
        fully_shard(part, mesh=mesh)
    return {
        "held": [tuple(p.to_local().shape) for p in model[0].parameters()],
        "losses": losses(model, rank),
        "refusals": refusals(model) if form != "native" else {},
        "state": whole(model),
    }


def not_sharded(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(classifier())
    return {"losses": losses(model, rank), "state": model.module.state_dict()}


def in_a_process(rank: int, folder: Path) -> None:
    """Everything that needs two processes, since it takes seconds to start them."""
    from torch.distributed.device_mesh import init_device_mesh

    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    found = {style: tensor_parallel(mesh, style) for style in ("columns", "rows")}
    found |= {form: sharded(mesh, rank, form) for form in (*FORMS, "children", "native")}
    torch.save(found | {"CNN": not_sharded(rank)}, folder / f"found-{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What each of the two processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *IMPORTED_ONCE])
    torch.multiprocessing.start_processes(
        in_a_process, args=(folder,), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"found-{rank}") for rank in RANKS]


# ------------------------------------------------------------------------------------- judgement


def taken_home(state: dict[str, Tensor], **options: Any) -> nn.Module:
    """The CNN of a state that was gathered from both processes."""
    fc = convfc.to_fc(classifier().to(state["7.weight"].dtype), **options)
    fc.load_state_dict(state)
    return convfc.to_conv(fc)


def assert_refused_until_gathered(refusals: dict[str, str]) -> None:
    """In convfc's words: what it is, where, and how to gather it."""
    assert refusals.keys() == {"to_conv", "verify", "verify, turned"}
    for verb, text in refusals.items():
        where = {"to_conv": "0: ", "verify": "after: 0", "verify, turned": "before: 0"}[verb]
        assert text.startswith(where), verb
        assert "its weight is a DTensor" in text, verb
        assert "get_model_state_dict" in text, verb


@pytest.mark.parametrize("style", ["columns", "rows"])
def test_fc_children_in_two_processes_are_the_cnn_to_the_last_bit(
    style: str, found: list[dict[str, Any]]
) -> None:
    native = with_integers(classifier())
    expected = a_step(native)
    assert not torch.equal(native[0].weight, with_integers(classifier())[0].weight)
    sizes = {name: part.weight.shape for name, part in linears(convfc.to_fc(classifier())).items()}
    halved = 0 if style == "columns" else 1
    for rank in RANKS:
        ours = found[rank][style]
        assert "only support nn.Linear" in ours["on the CNN"]
        for name, held in ours["held"].items():
            whole_size = sizes[name][halved]
            assert held[halved] == (whole_size + (rank == 0)) // 2, name
        assert torch.equal(ours["y"], expected)
        assert_refused_until_gathered(ours["refusals"])
        assert_same_state(taken_home(ours["state"]), native)


@pytest.mark.parametrize("form", FORMS)
def test_sharded_parameters_give_the_losses_and_the_weights_of_the_cnn(
    form: str, found: list[dict[str, Any]]
) -> None:
    """Bit for bit: while a layer is called its parameters are whole, and nothing has touched K."""
    for process in found:
        ours, theirs = process[form], process["CNN"]
        assert sorted(ours["held"]) == [(4,), (4, 27)]
        assert ours["losses"] == theirs["losses"] == process["native"]["losses"]
        assert_refused_until_gathered(ours["refusals"])
        home = taken_home(ours["state"], **FORMS[form]).state_dict()
        for name, value in theirs["state"].items():
            if "running" not in name:  # each process has its own
                assert torch.equal(home[name], value), name


def test_sharded_fc_children_are_rounded_otherwise(found: list[dict[str, Any]]) -> None:
    """They are hooked, so that M K is computed."""
    for process in found:
        ours, theirs = process["children"], process["CNN"]
        assert sorted(ours["held"]) == [(4,), (4, 27)]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        assert_refused_until_gathered(ours["refusals"])
