"""A run's folder made of random numbers: the files of a finished run without the training."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from convfc.paper.experiment import PaperSettings
from convfc.runs.folder import Result, RunFolder
from convfc.runs.sealed import write_sealed

DEAD = {
    "outputs": 784,
    "dead_at_start": 1,
    "dead_at_end": 730,
    "wrongly_dead": 551,
    "val_loss": 0.08,
    "val_loss_of_dead": 0.06,
    "val_loss_of_zeros": 0.11,
    "val_loss_of_mean_image": 0.07,
}


def make_run(
    folder: pathlib.Path,
    *,
    optimizers: Sequence[str] = ("sgd", "adam"),
    epochs: int = 8,
    filters: int = 128,
    control: bool = True,
    control_difference: float = 0.0,
    companion: bool = True,
    float64_rounding: float = 2.0**-53,
    cost: bool = True,
) -> pathlib.Path:
    """Write a finished run with ``epochs`` epochs; what is left out is absent, not empty."""
    random = np.random.default_rng(7)
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    start = random.uniform(-0.6, 0.6, (16, filters)).astype(np.float32)
    results: dict[str, Any] = {
        "epochs": epochs,
        "dtype": "float32",
        "backend": "jax",
        "seed": 3,
        "versions": {"python": "3.11.7", "keras": "3.15.0"},
        "machine": {"processor": "some CPU", "cores": 2, "system": "Linux x86_64"},
        "seconds": {},
        "cost": synthetic_cost() if cost else None,
        "gradient": {"size": 1e-3, "rounding": 1e-9},
        "dead_outputs": {optimizer: dict(DEAD) for optimizer in optimizers},
    }
    trained = [("float32", optimizer, epochs) for optimizer in optimizers]
    if companion:
        trained.append(("float64", "adam", max(1, epochs // 4)))
    for dtype, optimizer, length in trained:
        unit = float64_rounding if dtype == "float64" else 2.0**-24
        noise = unit * (1e4 if optimizer == "adam" else 1)
        steps = random.normal(0, 1e-2, (length, 16, filters))
        steps_apart = noise * random.normal(0, 1, (length, 16, filters))
        pairs = {"cnn": steps, "fc": steps + steps_apart}
        if control and dtype == "float32":
            pairs["control"] = steps + steps_apart + control_difference
        for network, moves in pairs.items():
            walk = np.concatenate([start[None], start + np.cumsum(moves, axis=0)])
            losses = 0.1 * np.exp(-np.arange(1, length + 1) / 5) + 0.05
            name = f"{dtype}-{optimizer}-{network}"
            numbers = {"loss": losses.tolist(), "val_loss": (losses + 0.01).tolist()}
            run.part(name).save(Result(numbers, {"first_layer": walk.astype(dtype)}))
            results["seconds"][name] = {"training": 0.5 * length}
        found = {
            "output_difference_mean": float(random.uniform(1, 9) * noise),
            "output_difference_printed": float(random.uniform(1, 9) * noise / 30),
            "weight_difference": float(random.uniform(1, 9) * noise),
            "max_loss_difference": float(random.uniform(1, 9) * noise / 100),
        }
        if dtype == "float64":
            results["float64"] = {optimizer: {"fc": found | {"epochs": length}}}
            continue
        results[optimizer] = {"fc": found}
        if control:
            results[optimizer]["control"] = dict.fromkeys(found, control_difference)
    settings = PaperSettings(
        name=folder.name,
        epochs=epochs,
        float64_epochs=max(1, epochs // 4) if companion else 0,
        optimizers=tuple(optimizers),
        seed=3,
        filters=filters,
    )
    write_sealed(folder / "settings.json", settings.as_json(), [])
    run.write_results(results | {"settings": settings.as_json()})
    return folder


def results_of(folder: pathlib.Path) -> dict[str, Any]:
    return dict(RunFolder(folder).read().results)


def synthetic_cost() -> dict[str, Any]:
    """Costs with a method absent, a figure null, and a peak of memory that cannot be."""

    def row(name: str, value: int) -> dict[str, Any]:
        sizes = {"batch": 16, "image": 28, "channels": 1, "filters": 128, "kernel": 4, "stride": 2}
        sizes[name] = value
        positions = ((sizes["image"] - sizes["kernel"]) // sizes["stride"] + 1) ** 2
        size = sizes["batch"] * positions * sizes["kernel"] ** 2 * 4
        work = size / 1e9
        return {
            "value": value,
            **sizes,
            "methods": {
                "direct sliding": {"seconds": 20 * work, "peak_bytes": size},
                "product": {"seconds": 2 * work, "peak_bytes": 9 * size},
                "product in row blocks": {"seconds": 2.5 * work, "peak_bytes": 3 * size},
                "native": {"seconds": work, "peak_bytes": 2 * size},
            },
            "patch_matrix_bytes": size,
            "input_bytes": sizes["batch"] * sizes["image"] ** 2 * 4,
            "output_bytes": size // 2,
        }

    axes = {
        "image": [row("image", value) for value in (28, 56, 112)],
        "kernel": [row("kernel", value) for value in (2, 4, 8)],
        "batch": [row("batch", value) for value in (1, 16, 128)],
    }
    del axes["image"][-1]["methods"]["direct sliding"]
    axes["batch"][-1]["methods"]["product"] = {"seconds": None, "peak_bytes": None}
    axes["kernel"][0]["methods"]["native"]["peak_bytes"] = 16  # less than the output: impossible
    return {"machine": "a machine of the tests", "axes": axes}
