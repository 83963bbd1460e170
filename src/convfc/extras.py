"""Packages that only some parts of convfc need, and the pip line for each that is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from convfc.errors import MissingDependencyError

PIP: Mapping[str, str] = {
    **dict.fromkeys(("typer", "rich"), "'convfc[cli]'"),
    **dict.fromkeys(("torch", "safetensors"), "'convfc[torch]'"),
    **dict.fromkeys(("anywidget", "traitlets", "PIL"), "'convfc[explorer]'"),
    **dict.fromkeys(("keras", "jax", "mlxtend", "jinja2", "markdown_it"), "'convfc[paper]'"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime"), "'convfc[onnx]'"),
    "matplotlib": "'convfc[spectrum]'",
    "laplace": "'convfc[study]'",
    **dict.fromkeys(("dask", "distributed"), "'convfc[sweep]'"),
    # In no extra, but named in the help of the commands:
    "torchvision": "'convfc[torch]' torchvision",
    "tensorflow": "'convfc[paper]' tensorflow",
    "onnxscript": "'convfc[onnx]' onnxscript",  # what PyTorch's exporter is written with
}
"""A module that may be missing, and what pip has to install: the smallest extra that has it."""


def missing(
    module: str, extra: str | None = None, *, where: str | None = None, otherwise: str = ""
) -> MissingDependencyError:
    """Return the error with the pip line that brings a module of `PIP`, as it is imported.

    ``extra`` is that of the caller, which brings other things that it needs as well; ``where`` says
    what needs the module, ``otherwise`` what else to do.
    """
    wanted = PIP[module] if extra is None else f"'convfc[{extra}]'"
    return MissingDependencyError(
        f"the package {module} is not installed",
        where=where,
        remedy=f"pip install {wanted}" + (f", or {otherwise}" if otherwise else ""),
    )


@contextlib.contextmanager
def needing(
    extra: str | None = None, *, where: str | None = None, otherwise: str = ""
) -> Iterator[None]:
    """Import optional packages; where one is not installed, raise what `missing` returns.

    An installed package that cannot be imported raises its own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # A missing torch._C, or a module that torch needs, is not a missing torch: it is broken.
        if error.name is None or error.name not in PIP:
            raise
        raise missing(error.name, extra, where=where, otherwise=otherwise) from error
