"""Weights from a file in the safetensors format, which holds numbers only: nothing is run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convfc.comparing import dtype_name
from convfc.errors import DataError, DtypeError
from convfc.extras import needing
from convfc.printable import printable

_MOST = 3
"""Names of tensors that a message shows."""


def load_weights(model: nn.Module, path: pathlib.Path) -> str:
    """Load all tensors of a model from a safetensors file, by name.

    Returns which floating-point numbers were cast to the model's, as a sentence; empty if none.
    Where the file is not right, a `DataError` or `DtypeError` is raised and nothing is changed.
    """
    with needing(where=str(path)):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="check the path")
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise DataError(
            f"this is not a safetensors file ({error})",
            where=str(path),
            remedy="write one with safetensors.torch.save_file; other formats are not read, "
            "because loading them may run code",
        ) from error
    own = model.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    shapes = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    wrong = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown to the model": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(shapes),
    }
    if any(wrong.values()):
        raise DataError(
            "these are not the model's tensors: "
            + "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names),
            where=str(path),
            remedy="give the factory the arguments that the weights were trained with, as in "
            "--arg num_classes=10",
        )
    cast = _cast(own, given, path)
    model.load_state_dict(given)
    return cast


def _cast(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: pathlib.Path) -> str:
    """Return which tensors are rounded to the model's dtype, or raise where that would not do."""
    changed: dict[tuple[str, str], list[str]] = {}
    refused: list[str] = []
    for name in sorted(own):
        before, after = given[name], own[name].dtype
        if before.dtype == after:
            continue
        names = dtype_name(before.dtype), dtype_name(after)
        same = _kind(before.dtype) == _kind(after)
        if same and after.is_floating_point:
            changed.setdefault(names, []).append(name)
        elif not same or before.tolist() != before.to(after).tolist():  # counts of other widths
            refused.append(f"{name} {names[0]} instead of {names[1]}")
    if refused:
        raise DtypeError(
            "these are not the model's kinds of numbers",
            where=str(path),
            expected="floating-point numbers for floating-point numbers, and all others as they "
            "are in the model",
            got=_some(refused),
            remedy="save what the numbers stand for: quantised weights times their scale, of "
            "complex ones the part that is meant, as in tensor.to(torch.float32)",
        )
    return "; ".join(
        f"cast from {before} to {after}: {_some(names)}"
        for (before, after), names in changed.items()
    )


def _kind(dtype: torch.dtype) -> tuple[bool, ...]:
    """Return what tells kinds of numbers apart; one kind holds two numbers in each element."""
    packed = dtype_name(dtype).endswith("_x2")
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool, packed


def _some(names: list[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(map(printable, names[:_MOST])) + (f" and {more} more" if more > 0 else "")
