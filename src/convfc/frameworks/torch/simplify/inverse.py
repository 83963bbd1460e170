"""A simplified network as the CONV network that it was, also after a tool has changed its numbers.

FC layers with the numbers that they were made with are the original network, bit for bit. An FC
layer with other numbers is A' = P C Q, where C is the matrix of one CONV or FC layer and P and Q
are what had been multiplied to it (a BatchNorm, an average pooling, ...), which stay as they are.
The filters are those with the least squares ``|A' - P C Q|``, next to the old ones where more than
one would do; the bias is found in the same way, in the layer or in the BatchNorm behind it. If
A' is of that form, up to rounding, the result computes what the changed network computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convfc.errors import NotAConvolution, UnsupportedLayer
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.read import matrix_to_weight
from convfc.frameworks.torch.running import deep_copy
from convfc.frameworks.torch.simplify.emit import emit
from convfc.frameworks.torch.simplify.simplified import Plan, Simplified, record_of
from convfc.frameworks.torch.simplify.values import Affine, Value, numbers, topological
from convfc.operators.pattern import matrix_pattern
from convfc.rounding import UNIT_ROUNDOFF, gamma

_PATCH = (
    "go on with the FC layers, or train and prune with form='patch', whose weight is that of a "
)
_REMEDY = _PATCH + "convolution whatever its numbers; project=True takes the closest convolution"


def restore(model: nn.Module, *, project: bool = False) -> nn.Module:
    """Return the CONV network that a simplified network was."""
    record = record_of(model)
    if record is None:
        raise UnsupportedLayer(
            "it has no record of the network that it was",
            where="model",
            expected="what to_fc(model, form='unrolled', simplify=True) returns",
            got=type(model).__name__,
        )
    return _Way(model, record, project).back()


@dataclass(frozen=True, eq=False)
class _Changed:
    """An affine value whose FC layers have other numbers; by source, those with another matrix."""

    value: Affine
    matrices: dict[Value, npt.NDArray[Any]]
    offset: npt.NDArray[Any]
    names: str


class _Path(NamedTuple):
    """The affine layers that a matrix is the product of, the last one first."""

    steps: tuple[tuple[Affine, Value], ...]

    def product(self, first: int, last: int, size: int) -> Any:
        """Return the product of the matrices of some steps."""
        whole = sparse.eye_array(size, format="csr")
        for value, source in self.steps[first:last]:
            whole = whole @ value.terms[source]
        return whole


class _Way:
    """The way back of one network."""

    def __init__(self, model: nn.Module, record: Simplified, project: bool) -> None:
        self.model, self.record, self.project = model, record, project
        self.plan = record.plan()
        self.result = deep_copy(record.original)
        like = next(model.parameters(), torch.empty(0, dtype=record.dtype))
        self.dtype, self.device = like.dtype, like.device

    def back(self) -> nn.Module:
        """Compare, solve where something has changed, and check the solution."""
        changed = self._changed()
        for one in changed:
            if self.plan.states:
                raise UnsupportedLayer(
                    "its numbers have changed, and it carries values beside what it computes",
                    where=one.names,
                    expected="the numbers that it was made with",
                    remedy="let tools change a network with branches='add'",
                )
            for source, matrix in one.matrices.items():
                self._solve_weight(one, source, matrix)
        for one in changed:
            self._solve_bias(one)
        if changed and not self.project:
            self._check(changed)
        result: nn.Module = self.result.to(self.device, self.dtype)
        return result

    def _changed(self) -> list[_Changed]:
        """Return what is not as it was made."""
        meta = torch.device("meta")
        parts = emit(self.plan.final, dtype=self.record.dtype, device=meta).parts
        found = []
        for value, own in parts.items():
            if not isinstance(value, Affine):
                continue
            matrices, offset, another = {}, value.offset, False
            for source, name in own.items():
                layer = self._layer(name)
                matrix = value.terms[source]  # type: ignore[index]
                if layer.weight.shape != matrix.shape:
                    raise UnsupportedLayer(
                        "it has another size than it was made with",
                        where=name,
                        expected=matrix.shape,
                        got=tuple(layer.weight.shape),
                        remedy="a layer that a tool has made smaller is no CONV layer any more",
                    )
                if not _holds(layer.weight.detach(), matrix, self.record.dtype):
                    matrices[source] = numbers(_dense(layer.weight))
                if layer.bias is not None:
                    made = _rounded(value.offset, self.record.dtype, layer.bias)
                    if not torch.equal(layer.bias, made):
                        offset, another = numbers(layer.bias), True
            if matrices or another:
                names = " + ".join(own.values())
                found.append(_Changed(value, matrices, offset, names))  # type: ignore[arg-type]
        return found

    def _layer(self, name: str) -> nn.Linear:
        part: Any = self.model
        for step in name.split("."):
            part = getattr(part, step, None)
        if type(part) is not nn.Linear or set(part._parameters) != {"weight", "bias"}:
            raise UnsupportedLayer(
                f"a {type(part).__name__} stands in the place of an nn.Linear",
                where=name,
                expected="an nn.Linear with plain weights",
                remedy="merge the tool's adapters into it, and remove parametrizations, first",
            )
        return part

    def _paths(self, plan: Plan, value: Value, stops: set[Value]) -> Iterator[_Path]:
        """Yield every way from a value of the original down to the values that it is made of."""
        stack: list[tuple[Value, tuple[tuple[Affine, Value], ...]]] = [(value, ())]
        while stack:
            at, steps = stack.pop()
            if steps and (at in stops or not isinstance(at, Affine)):
                yield _Path(steps)
            elif isinstance(at, Affine):
                stack += [(source, (*steps, (at, source))) for source in at.terms]

    def _stage(self, plan: Plan, one: _Changed) -> tuple[Affine, list[_Path]]:
        """Return the original's value and its paths: the same in every plan of this network."""
        number = topological(self.plan.final.output).index(one.value)
        value = topological(plan.final.output)[number]
        assert isinstance(value, Affine)  # noqa: S101
        raw = plan.merged.before[value]
        stops = {plan.merged.before[source] for source in value.terms}
        return value, list(self._paths(plan, raw, stops))

    def _solve_weight(self, one: _Changed, source: Value, matrix: npt.NDArray[Any]) -> None:
        """Find the weight of the one layer that a matrix was made of."""
        raw = self.plan.merged.before[source]
        paths = [p for p in self._stage(self.plan, one)[1] if p.steps[-1][1] is raw]
        layers = [i for i, (step, _) in enumerate(paths[0].steps) if _has_weight(step.layer)]
        if len(paths) != 1 or len(layers) != 1:
            raise UnsupportedLayer(
                "its numbers have changed, and it was made of "
                + ("several branches" if len(paths) > 1 else f"{len(layers)} layers with weights"),
                where=one.names,
                expected="one CONV or FC layer, and what is fixed",
                remedy=_PATCH,
            )
        (at,) = layers
        step, inside = paths[0].steps[at]
        self._check_single(step.layer, one)
        family = family_of(step, inside)
        before = paths[0].product(0, at, one.value.size)
        behind = paths[0].product(at + 1, len(paths[0].steps), inside.size)
        layer: Any = self._own(step.layer)
        weight = least_squares(family, before, behind, matrix)
        layer.weight.data.copy_(family.tensor(weight).to(layer.weight))

    def _solve_bias(self, one: _Changed) -> None:
        """Find the bias of the layer, or of the BatchNorm behind it, that makes the offset."""
        plan = self._planned()
        value, paths = self._stage(plan, one)
        rest = one.offset - value.offset
        if np.all(np.abs(rest) <= self._offset_bound(value, plan)):
            return
        for path in paths:
            for at, (step, _) in enumerate(path.steps):
                layer: Any = self._own_of(step.layer)
                if layer is None or getattr(layer, "bias", None) is None:
                    continue
                each = step.size // len(layer.bias)
                if isinstance(layer, nn.Linear):
                    spread = sparse.vstack([sparse.eye_array(len(layer.bias))] * each)
                else:
                    spread = sparse.kron(sparse.eye_array(len(layer.bias)), np.ones((each, 1)))
                table = (path.product(0, at, value.size) @ sparse.csr_array(spread)).toarray()
                more = np.linalg.lstsq(table, rest)[0]
                layer.bias.data += torch.from_numpy(more).to(layer.bias)
                return

    def _check(self, changed: list[_Changed]) -> None:
        """Refuse what the solution does not compute, up to rounding."""
        plan = self._planned()
        unit = UNIT_ROUNDOFF[str(self.dtype).removeprefix("torch.")]
        for one in changed:
            value, paths = self._stage(plan, one)
            order = list(one.value.terms)
            for source, matrix in one.matrices.items():
                twin = list(value.terms)[order.index(source)]
                raw = plan.merged.before[twin]
                (path,) = [p for p in paths if p.steps[-1][1] is raw]
                size = np.abs(np.eye(value.size))
                terms = 4  # each of the two matrices is rounded, each weight, and the check
                for step, inside in path.steps:
                    size = size @ abs(step.terms[inside])
                    terms += int(np.diff(step.terms[inside].indptr).max(initial=0))
                away = np.abs(matrix - value.terms[twin].toarray())
                # Normwise, as least squares are known (Higham, chapter 20).
                bound = gamma(terms, unit) * max(size.max(initial=0), np.abs(matrix).max(initial=0))
                self._refuse(one, "weight", away - bound, away)
            away = np.abs(one.offset - value.offset)
            self._refuse(one, "bias", away - self._offset_bound(value, plan), away)

    def _refuse(self, one: _Changed, what: str, excess: Any, away: Any) -> None:
        if excess.size and excess.max() > 0:
            index = np.unravel_index(int(excess.argmax()), excess.shape)
            place = [int(i) for i in index]
            raise NotAConvolution(
                f"the {what} at {place} is not that of the layers that it was made of: the "
                f"closest one is {away[index]:.3g} away",
                where=one.names,
                remedy=_REMEDY,
            )

    def _offset_bound(self, value: Affine, plan: Plan) -> npt.NDArray[Any]:
        """Return what rounding may do to an offset."""
        unit = UNIT_ROUNDOFF[str(self.dtype).removeprefix("torch.")]
        moduli: dict[Value, npt.NDArray[Any]] = {}
        longest = 4
        stops = {plan.merged.before[source] for source in value.terms}
        raw = plan.merged.before[value]
        for at in topological(raw, stops):
            if at in stops or not isinstance(at, Affine):
                moduli[at] = np.zeros(at.size)
                continue
            moduli[at] = at.offset_modulus + sum(
                abs(matrix) @ moduli[source] for source, matrix in at.terms.items()
            )
            longest += (
                at.roundings
                + 1
                + max((int(np.diff(m.indptr).max(initial=0)) for m in at.terms.values()), default=0)
            )
        return np.asarray(gamma(longest, unit) * (moduli[raw] + np.abs(value.offset)))

    def _planned(self) -> Plan:
        """Return the plan of the result as it is now, merged as the original was."""
        record = self.record
        return replace(record, original=self.result).plan()

    def _own(self, layer: Any) -> nn.Module:
        """Return the result's layer that is a layer of the original."""
        name = next(n for n, part in self.record.original.named_modules() if part is layer)
        return self.result.get_submodule(name)

    def _own_of(self, layer: Any) -> nn.Module | None:
        """Return the result's own layer, if it is one with a bias that can be set."""
        known = isinstance(layer, (nn.Linear, _BatchNorm)) or (
            layer is not None and form_of(layer) in ("native", "weight")
        )
        return layer if known and "bias" in layer._parameters else None

    def _check_single(self, layer: Any, one: _Changed) -> None:
        """Refuse a layer that stands in more than one place, or has no weight to set."""
        uses = [
            value
            for value in topological(self.plan.original.output)
            if isinstance(value, Affine) and value.layer is layer
        ]
        if len(uses) != 1 or "weight" not in layer._parameters:
            raise UnsupportedLayer(
                "its numbers have changed, and the layer that it was made of "
                + ("is called more than once" if len(uses) > 1 else "has a weight of another kind"),
                where=one.names,
                remedy=_PATCH,
            )


def _dense(t: Tensor) -> Tensor:
    t = t.detach()
    return t if t.layout is torch.strided else t.to_dense()


def _rounded(values: npt.NDArray[Any], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return numbers as they were made, in the dtype and on the device of others."""
    return torch.from_numpy(values).to(dtype).to(like.device, like.dtype)


def _holds(weight: Tensor, matrix: Any, dtype: torch.dtype) -> bool:
    """Say whether a weight still has the numbers that it was made with; nothing dense is made."""
    if weight.layout is not torch.strided:
        rows = weight.to_sparse_csr()
        index = [torch.from_numpy(a.astype(np.int64)) for a in (matrix.indptr, matrix.indices)]
        return (
            torch.equal(rows.crow_indices().cpu(), index[0])
            and torch.equal(rows.col_indices().cpu(), index[1])
            and torch.equal(rows.values(), _rounded(matrix.data, dtype, rows.values()))
        )
    entries = sparse.coo_array(matrix)
    values = _rounded(entries.data, dtype, weight)
    rows, columns = (torch.from_numpy(a.astype(np.int64)) for a in entries.coords)
    there = weight[rows.to(weight.device), columns.to(weight.device)]
    return torch.equal(there, values) and bool(
        torch.count_nonzero(weight) == torch.count_nonzero(values)
    )


def _has_weight(layer: Any) -> bool:
    return layer is not None and not isinstance(layer, _BatchNorm)


# Least squares ------------------------------------------------------------------------------------
#
# The weight of a layer whose matrix is known with fixed matrices multiplied to it on both sides.
#
# The matrices C(w) that a layer can have are a linear family in its weight w. It is known by C, by
# its adjoint (the sum of all entries that hold a weight), and by the weight that the layer has.

_ROUNDS = 4  # of iterative refinement: each one gains about half of the digits of float64


class Family(Protocol):
    """The matrices that a layer can have."""

    start: npt.NDArray[Any]
    apart: bool

    def matrix(self, weight: npt.NDArray[Any]) -> Any:
        """Return C(w), sparse."""

    def adjoint(self, matrix: Any) -> npt.NDArray[Any]:
        """Return, by weight, the sum of the entries that hold it in C(w)."""

    def tensor(self, weight: npt.NDArray[Any]) -> Tensor:
        """Return a weight in the layer's own shape."""


class Linears:
    """All matrices of an ``nn.Linear``: one weight for each of the rows that it is called on."""

    def __init__(self, layer: nn.Linear, columns: int) -> None:
        self.shape, self.rows = layer.weight.shape, columns // layer.in_features
        self.start = numbers(layer.weight).ravel()
        self.apart = True

    def matrix(self, weight: npt.NDArray[Any]) -> Any:
        """Return C(w), sparse."""
        one = sparse.csr_array(weight.reshape(self.shape))
        return sparse.kron(sparse.eye_array(self.rows), one, format="csr")

    def adjoint(self, matrix: Any) -> npt.NDArray[Any]:
        """Return, by weight, the sum of its entries."""
        f, c = self.shape
        blocks = [matrix[i * f : (i + 1) * f, i * c : (i + 1) * c] for i in range(self.rows)]
        total = sum(blocks[1:], start=blocks[0])
        dense = total.toarray() if sparse.issparse(total) else total
        return np.asarray(dense).ravel()

    def tensor(self, weight: npt.NDArray[Any]) -> Tensor:
        """Return a weight in the layer's own shape."""
        return torch.from_numpy(weight.reshape(self.shape))


class Convolutions:
    """All matrices of a CONV layer's geometry."""

    def __init__(self, layer: Any, size: tuple[int, ...]) -> None:
        own = read_layer(layer, size)
        self.pattern = matrix_pattern(own.geometry, size, "channels_first")
        self.indices, self.indptr = self.pattern.indices(), self.pattern.indptr()
        self.start, self.layer = numbers(own.filters).ravel(), layer
        self.apart = not self.pattern.repeats
        self.rows = np.repeat(np.arange(self.pattern.shape[0]), np.diff(self.indptr))

    def matrix(self, weight: npt.NDArray[Any]) -> Any:
        """Return C(w), sparse."""
        filters = weight.reshape(self.pattern.geometry.filters_shape)
        values = self.pattern.values(filters)
        return sparse.csr_array((values, self.indices, self.indptr), shape=self.pattern.shape)

    def adjoint(self, matrix: Any) -> npt.NDArray[Any]:
        """Return, by weight, the sum of its entries."""
        values = np.asarray(matrix[self.rows, self.indices]).ravel()
        return np.asarray(self.pattern.fold(values)).ravel()

    def tensor(self, weight: npt.NDArray[Any]) -> Tensor:
        """Return a weight in the layer's own shape."""
        geometry = self.pattern.geometry
        table = torch.from_numpy(weight.reshape(geometry.out_channels, -1))
        shape = self.layer.weight.shape
        return matrix_to_weight(
            table, shape, transposed=geometry.transposed, groups=geometry.groups
        )


def family_of(step: Affine, inside: Value) -> Family:
    """Return the matrices that the layer of an affine value could have."""
    if isinstance(step.layer, nn.Linear):
        return Linears(step.layer, inside.size)
    return Convolutions(step.layer, step.input_size)


def least_squares(
    family: Family, before: Any, behind: Any, wanted: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return the weight w with the least squares |wanted - P C(w) Q|, next to the family's own.

    Where each entry of the matrix is a multiple of one weight, by a weighted mean. Else by
    conjugate gradients on the normal equations, from the old weight on, with refinement: in
    directions that the matrix says nothing about the weight stays as it was.
    """
    left, right = before.T @ before, behind @ behind.T
    n = len(family.start)
    weight: npt.NDArray[Any] = family.start.copy()

    def normal(w: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = family.adjoint(sparse.csr_array(left @ family.matrix(w) @ right))
        return found

    if family.apart and _is_diagonal(left) and _is_diagonal(right):
        total = family.adjoint(np.asarray(before.T @ wanted @ behind.T))
        share = normal(np.ones(n))
        np.divide(total, share, out=weight, where=share > 0)
        return weight
    equations = linalg.LinearOperator((n, n), matvec=normal, dtype=np.float64)
    for _ in range(_ROUNDS):
        rest = wanted - (before @ family.matrix(weight) @ behind).toarray()
        goal = family.adjoint(before.T @ rest @ behind.T)
        step, _ = linalg.cg(equations, goal, rtol=1e-14, maxiter=4 * n)
        weight += step
    return weight


def _is_diagonal(matrix: Any) -> bool:
    entries = sparse.coo_array(matrix)
    rows, columns = entries.coords
    return bool((entries.data[rows != columns] == 0).all())
