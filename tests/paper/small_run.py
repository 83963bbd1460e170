"""The experiment with few filters, trained once; and reports whose figures are not drawn."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import pytest
from commands import call
from matplotlib.figure import Figure
from typer.testing import Result

from convfc.paper.experiment import PaperSettings

EPOCHS = 2
FILTERS = 4


@contextlib.contextmanager
def few_filters() -> Iterator[None]:
    """Let runs have 4 filters, not 128: half a million weights, not 17.

    Two whole batches are their images, so that every network is compiled for one size only.
    """
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(PaperSettings.named, images=256, filters=FILTERS)
        patch.setattr(PaperSettings, "named", small)
        yield


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Let figures be files without a picture: to draw those of a report takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, handle, **_: handle.write(b"<svg/>"))
        yield


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """Networks with few filters, and reports without pictures."""
    with few_filters(), undrawn():
        yield


def reproduce(folder: pathlib.Path) -> Result:
    """Run the experiment, or resume it, in this process."""
    options = f"--epochs {EPOCHS} --no-cost --name {folder.name} --resume --runs-dir"
    return call("reproduce", *options.split(), str(folder.parent))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """The folder of a finished run of everything but the costs, and what it told."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with few_filters(), undrawn():
        outcome = reproduce(folder)
    assert outcome.exit_code == 0, outcome.output
    return folder, outcome.stdout
