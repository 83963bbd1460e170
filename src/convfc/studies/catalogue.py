"""Which studies there are, and what each of them needs to be installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from convfc.extras import needing

if TYPE_CHECKING:
    from convfc.studies.runner import Study
    from convfc.studies.settings import StudySettings

__all__ = ["PACKAGES", "load_study"]

_EVERY = ("torch", "mlxtend", "matplotlib", "jinja2", "markdown_it")
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "uncertainty": (*_EVERY, "laplace"),
    "morphism": _EVERY,
}
"""Names of the studies, and the modules without which each does not run."""


def load_study(name: str) -> tuple[Study, type[StudySettings]]:
    """Return a study and the class of its settings.

    Parameters
    ----------
    name : str
        One of `PACKAGES`.

    Raises
    ------
    MissingDependencyError
        A package that it needs is not installed; raised before anything is written.
    """
    for module in PACKAGES[name]:
        with needing("study", where=f"study {name}"), warnings.catch_warnings():
            # laplace-torch imports what PyTorch calls deprecated; it is not ours to mend.
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            importlib.import_module(module)
    room = importlib.import_module(f"convfc.studies.{name}")
    return room.STUDY, room.SETTINGS
