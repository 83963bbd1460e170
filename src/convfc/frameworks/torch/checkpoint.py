"""Weights from a file in the safetensors format, which holds numbers only: nothing is run."""

from __future__ import annotations

import pathlib

from torch import nn

from convfc.errors import DataError, MissingDependencyError

__all__ = ["load_weights"]

_MOST = 3
"""Names of tensors that a message shows."""


def load_weights(model: nn.Module, path: pathlib.Path) -> None:
    """Load all tensors of a model from a safetensors file, by name.

    Parameters
    ----------
    model : nn.Module
    path : pathlib.Path

    Raises
    ------
    DataError
        If there is no such file, if it is in another format, or if its tensors are not those of the
        model: then nothing in the model changes.
    MissingDependencyError
        If safetensors is not installed.

    Examples
    --------
    >>> load_weights(nn.Linear(2, 1), pathlib.Path("no.safetensors"))
    Traceback (most recent call last):
    ...
    convfc.errors.DataError: no.safetensors: there is no such file. Remedy: check the path
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            "reading weights needs the package safetensors, which is not installed",
            remedy="pip install 'convfc[torch]'",
        ) from error
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="check the path")
    try:
        given = load_file(path)
    except SafetensorError as error:
        raise DataError(
            f"this is no safetensors file ({error})",
            where=str(path),
            remedy="write one with safetensors.torch.save_file; other formats are not read, "
            "because loading them may run code",
        ) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
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
    model.load_state_dict(given)


def _some(names: list[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")
