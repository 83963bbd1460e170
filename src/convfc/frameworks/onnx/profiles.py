"""What a target takes: closed lists of operators, and whether a model holds nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from convfc.errors import UnsupportedModel
from convfc.frameworks.onnx.build import Sizes
from convfc.frameworks.onnx.read import is_1d, nodes_of

_COMMON = (
    "Add AveragePool BatchNormalization Cast Clip Concat Constant Div Elu Erf Exp Flatten Gather "
    "Gelu GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LayerNormalization "
    "LeakyRelu Max MaxPool Min Mul Neg Pad Pow PRelu ReduceMax ReduceMean ReduceSum Relu Reshape "
    "Shape Sigmoid Slice Softmax Sqrt Squeeze Sub Tanh Transpose Unsqueeze"
)
PROFILES: Mapping[str, frozenset[str]] = {
    "matmul": frozenset(f"{_COMMON} Gemm Greater MatMul".split()),
    "gemm": frozenset(["Add", "Constant", "Flatten", "Gemm", "Relu", "Reshape"]),
    "conv": frozenset(f"{_COMMON} Conv ConvTranspose".split()),
}
"""The operators of each kind of target, standard ones."""


def check_profile(model: ir.Model, profile: str) -> None:
    """Refuse a model that holds what a target does not take, by the names of its nodes."""
    found: dict[str, list[str]] = {}
    sizes = Sizes(model)
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        for node in nodes_of(part):
            standard = node.domain in ("", "ai.onnx")
            one_axis = profile == "conv" and is_1d(node, sizes)
            if not (standard and node.op_type in PROFILES[profile]) or one_axis:
                kind = node.op_type if standard else f"{node.domain}.{node.op_type}"
                kind += " of one axis" * one_axis
                name = node.name or node.outputs[0].name or "(without a name)"
                found.setdefault(kind, []).append(name)
    if found:
        raise UnsupportedModel(
            "the model has operators that such a target does not take",
            where=f"--profile {profile}",
            expected=f"only {', '.join(sorted(PROFILES[profile]))}",
            got="; ".join(f"{kind} ({_few(names)})" for kind, names in sorted(found.items())),
            remedy="make the network without them, or convert with --to and --form, which leave "
            "other nodes as they are",
        )


def _few(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
