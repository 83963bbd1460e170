"""What simplified networks are for: ONNX files of four operators, a solver; real networks."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import assert_same_state, net, trained
from pyscipopt import Model, quicksum
from pyscipopt_ml.exceptions import NoModel
from pyscipopt_ml.torch import add_sequential_constr
from simplified_models import NETWORKS
from torch import Tensor, fx, nn
from torch_fixtures import with_integers
from torchvision import models

import convfc
from convfc import simplify

pytestmark = pytest.mark.usefixtures("no_network")

ONLY = {"Gemm", "MatMul", "Add", "Relu"}


def flat(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Take the input, and give the output, as rows."""
    return nn.Sequential(nn.Unflatten(1, shape), model, nn.Flatten()).eval()


def exported(model: nn.Module, x: Tensor, path: Path, *, dynamo: bool) -> onnx.ModelProto:
    """Export for any number of examples, and check the file."""
    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "verbose": False}
    if dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim.DYNAMIC},)
    else:
        options["dynamic_axes"] = {"x": {0: "n"}, "y": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(model, (x,), str(path), dynamo=dynamo, **options)
    found = onnx.load(path)
    onnx.checker.check_model(found, full_check=True)
    return found


@pytest.mark.parametrize(
    ("name", "sequential", "dynamo"), [("lenet_max", True, True), ("resnet", False, False)]
)
def test_onnx_holds_products_sums_and_relus_only(
    name: str, sequential: bool, dynamo: bool, tmp_path: Path
):
    make, shape = NETWORKS[name]
    model = with_integers(make()).float()
    x = torch.randint(-2, 3, (3, *shape)).float()
    whole = flat(model, shape)
    simple = simplify(whole, x.flatten(1), max_pool="relu", sequential=sequential)
    graph = exported(simple, x.flatten(1), tmp_path / "model.onnx", dynamo=dynamo)
    assert {node.op_type for node in graph.graph.node} <= ONLY
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for images in (x, x[:1]):
        (y,) = session.run(None, {"x": images.flatten(1).numpy()})
        assert np.array_equal(y, model(images).flatten(1).detach().numpy())


def tiny() -> nn.Module:
    """A CONV network with a residual connection, a max-pooling and nine inputs."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.conv(x))
        y: Tensor = m.head(m.pool(x + torch.relu(m.same(x))).flatten(1))
        return y

    parts = {"conv": nn.Conv2d(1, 2, 2), "same": nn.Conv2d(2, 2, 1), "pool": nn.MaxPool2d(2)}
    return net(run, **parts, head=nn.Linear(2, 2))


def largest_margin(network: nn.Module, columns: int) -> tuple[float, np.ndarray]:
    """Ask SCIP for the input in {0, 1}^9 whose first score exceeds its second one the most."""
    problem = Model()
    problem.hideOutput()
    x = np.array([[problem.addVar(vtype="B", name=f"x{i}") for i in range(columns)]])
    y = np.array([[problem.addVar(lb=None, name=f"y{i}") for i in range(2)]])
    add_sequential_constr(problem, network, x, y)
    problem.setObjective(quicksum([y[0, 0], -y[0, 1]]), "maximize")
    problem.optimize()
    found = np.array([round(problem.getVal(one)) for one in x[0]])
    return problem.getObjVal(), found


def test_a_solver_that_reads_sequences_of_linear_and_relu_only_verifies_the_network():
    """Maximise over all binary images what brute force finds by trying all 512 of them.

    It reads ``nn.Sequential`` alone, which is why `simplify` has ``sequential=True``.
    """
    model = with_integers(tiny(), seed=4).float()
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9))).reshape(-1, 1, 3, 3)
    margins = (model(images) @ torch.tensor([1.0, -1.0])).detach()
    with pytest.raises(NoModel, match="Unsupported layer"):
        largest_margin(nn.Sequential(nn.Unflatten(1, (1, 3, 3)), *model.children()), 9)
    rows = flat(model, (1, 3, 3))
    graph = simplify(rows, images.flatten(1), max_pool="relu")
    assert isinstance(graph, fx.GraphModule)
    with pytest.raises(TypeError, match=r"'Simplified' has no len\(\)"):
        largest_margin(graph, 9)
    simple = simplify(rows, images.flatten(1), max_pool="relu", sequential=True)
    assert {type(part) for part in simple} == {nn.Linear, nn.ReLU}
    best, image = largest_margin(simple, 9)
    assert margins.max() > margins.median()
    assert round(best) == margins.max()
    assert margins[int("".join(map(str, image)), 2)] == margins.max()


REAL: dict[str, tuple[int, int, dict[str, Any]]] = {
    "resnet18": (12, 21, {}),
    "squeezenet1_1": (18, 28, {"sequential": True, "max_pool": "relu"}),
}


@pytest.mark.parametrize("name", REAL)
def test_torchvision_networks_there_and_back(name: str):
    torch.manual_seed(1712)
    side, layers, way = REAL[name]
    model, x = trained(models.get_model(name, weights=None)), torch.randn(1, 3, side, side)
    simple = simplify(model, x, **way)
    assert sum(type(part) is nn.Linear for part in simple.modules()) == layers
    if way:
        assert {type(part) for part in simple} == {nn.Flatten, nn.Linear, nn.ReLU}
    assert convfc.verify(model, simple, x).holds
    assert_same_state(convfc.to_conv(simple), model)
