"""Which studies there are, and what each of them needs to be installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from convfc.extras import needing

if TYPE_CHECKING:
    from convfc.runs.study import Study

_EVERY = ("torch", "mlxtend", "matplotlib", "jinja2", "markdown_it")
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "uncertainty": (*_EVERY, "laplace"),
    "morphism": _EVERY,
}
"""Names of the studies, and the modules without which each does not run."""


def load_study(name: str) -> Study:
    """Return a study; a package that it needs and that is missing is an error."""
    for module in PACKAGES[name]:
        with needing("study", where=f"study {name}"), warnings.catch_warnings():
            # laplace-torch imports what PyTorch calls deprecated; it is not ours to mend.
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            importlib.import_module(module)
    study: Study = importlib.import_module(f"convfc.studies.{name}.study").STUDY
    return study
