"""Packages that only some parts of convfc need: without one, the pip line that brings it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from convfc.errors import MissingDependencyError

PIP: Mapping[str, str] = {
    **dict.fromkeys(("typer", "rich"), "'convfc[cli]'"),
    **dict.fromkeys(("torch", "safetensors"), "'convfc[torch]'"),
    **dict.fromkeys(("anywidget", "traitlets", "PIL"), "'convfc[explorer]'"),
    **dict.fromkeys(("keras", "jax", "mlxtend", "jinja2", "markdown_it"), "'convfc[paper]'"),
    "matplotlib": "'convfc[spectrum]'",
    "laplace": "'convfc[study]'",
    # In no extra, but named in the help of the commands:
    "torchvision": "'convfc[torch]' torchvision",
    "tensorflow": "'convfc[paper]' tensorflow",
}
"""A module that may be missing, and what pip has to install: the smallest extra that has it."""


def missing(
    module: str, extra: str | None = None, *, where: str | None = None, otherwise: str = ""
) -> MissingDependencyError:
    """Return the error that says which pip line brings a module of `PIP`.

    Parameters
    ----------
    module : str
        As it is imported.
    extra : str, optional
        The extra of who asks, which brings other things that it needs as well.
    where : str, optional
        What it is needed for.
    otherwise : str
        Another way out.

    Examples
    --------
    >>> print(missing("torch"))
    the package torch is not installed. Remedy: pip install 'convfc[torch]'
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

    What a package that is there fails to import itself is not for us to explain, and passes.

    Examples
    --------
    >>> with needing("spectrum"):
    ...     import matplotlib
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # Not torch._C, or what torch itself needs: there is a torch then, and it is broken.
        if error.name is None or error.name not in PIP:
            raise
        raise missing(error.name, extra, where=where, otherwise=otherwise) from error
