"""A CNN of Keras and the same network after ``convfc.to_fc``: time and memory, on JAX and PyTorch.

Two networks of four CONV layers, whole: ``predict`` and a training step as converted, by M K, and
as one writes it by hand, ``keras.ops.image.extract_patches`` and ``Dense``. Each backend runs in a
process of its own. All ways take turns, call by call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

from harness import (
    CORES,
    console,
    header,
    mebibytes,
    milliseconds,
    per_round,
    table,
    use_two_cores,
    write_tables,
)

BACKENDS = ("jax", "torch")
PACKAGES = ("keras", "jax", "torch")
WAYS = ("converted", "M K", "by hand")
KINDS = {"predict": "Predict", "train": "Training step"}
# Size, batch, and filters and stride of each 3 x 3 layer; 2 x 2 pooling where the size is halved.
NETWORKS: dict[str, tuple[int, int, tuple[tuple[int, int], ...], bool]] = {
    "A": (64, 64, ((32, 2), (32, 1), (64, 2), (64, 1)), False),
    "B": (32, 128, ((32, 1), (32, 1), (64, 1), (64, 1)), True),
}
TITLES = {"A": "A: 64x64x3, strides 2 and 1, batch 64", "B": "B: 32x32x3, pooling, batch 128"}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="least calls of each way")
    parser.add_argument("--seconds", type=float, default=10.0, help="about so long per table row")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/ alone")
    parser.add_argument("--in", dest="inside", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        sys.stdout.write(json.dumps(memory_of(arguments.inside, arguments.memory_of)))
        return
    if arguments.inside:
        sys.stdout.write(
            json.dumps(measured(arguments.inside, arguments.rounds, arguments.seconds))
        )
        return
    header(f"CNNs of Keras and their FC networks, on {CORES} threads", *PACKAGES)
    given = ("--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds))
    rows: dict[str, list[list[str]]] = {kind: [] for kind in KINDS}
    for backend in BACKENDS:
        for name in NETWORKS:
            with console.status(f"{name} on {backend}"):
                times = in_a_process(backend, name, *given)
                memory = {
                    way: in_a_process(backend, name, "--memory-of", way)
                    for way in ("native", *WAYS)
                }
            for kind in KINDS:
                line = [f"{TITLES[name]}, {backend}", milliseconds(times[kind]["native"])]
                line += [f"{times[kind][way]:.2f}x" for way in WAYS]
                line += [mebibytes(memory[way][kind]) for way in ("native", *WAYS)]
                rows[kind].append(line)
    columns = ["network", "native, ms", *WAYS]
    columns += [f"{way}, MiB" for way in ("native", *WAYS)]
    tables = [
        (f"{title}: time to the native CNN's, and peak memory", columns, rows[kind])
        for kind, title in KINDS.items()
    ]
    for title, names, lines in tables:
        table(title, names, lines)
    if not arguments.no_write:
        write_tables("keras", tables, PACKAGES, "float32; medians of calls side by side")


def in_a_process(backend: str, name: str, *options: str) -> Any:
    """Measure in a process of its own: a backend cannot change, and nothing has been freed."""
    command = [sys.executable, __file__, "--in", name, *options]
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(  # noqa: S603 (our own interpreter)
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def networks(name: str) -> tuple[dict[str, Any], Any, Any]:
    """Return a network in every way, compiled by Keras, and a batch of images and labels."""
    use_two_cores()
    import keras
    import numpy as np

    import convfc

    if keras.config.backend() == "torch":
        import torch

        torch.set_num_threads(CORES)
    size, batch, layers, pools = NETWORKS[name]

    class ByHand(keras.layers.Layer):  # type: ignore[misc]
        """Patches as Keras has them, and the Dense layer."""

        def __init__(self, filters: int, stride: int) -> None:
            super().__init__()
            self.stride = stride
            self.fc = keras.layers.Dense(filters, activation="relu")

        def build(self, shape: Any) -> None:
            self.fc.build((*shape[:-1], 9 * shape[-1]))

        def call(self, x: Any) -> Any:
            options = {"strides": self.stride, "padding": "same", "data_format": "channels_last"}
            return self.fc(keras.ops.image.extract_patches(x, 3, **options))

    def conv(filters: int, stride: int) -> Any:
        options = {"padding": "same", "activation": "relu", "data_format": "channels_last"}
        return keras.layers.Conv2D(filters, 3, strides=stride, **options)

    def made(layer: Any) -> Any:
        x = given = keras.Input((size, size, 3))
        for number, (filters, stride) in enumerate(layers):
            x = layer(filters, stride)(x)
            if pools and number % 2:
                x = keras.layers.MaxPooling2D(data_format="channels_last")(x)
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(x)
        return keras.Model(given, keras.layers.Dense(10, activation="softmax")(x))

    keras.utils.set_random_seed(0)
    native = made(conv)
    ways = {
        "native": native,
        "converted": convfc.to_fc(native),
        "M K": convfc.to_fc(native, product="matrix"),
        "by hand": made(ByHand),
    }
    for model in ways.values():
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    by_hand = ways["by hand"]
    by_hand.set_weights(
        [w.reshape(v.shape) for w, v in zip(native.get_weights(), by_hand.weights, strict=True)]
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, 3)).astype("float32")
    return ways, x, rng.integers(0, 10, batch)


def calls(model: Any, x: Any, y: Any) -> dict[str, Any]:
    """Return what is timed."""
    return {
        "predict": partial(model.predict_on_batch, x),
        "train": partial(model.train_on_batch, x, y),
    }


def measured(name: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the native network's seconds, and the ratios of the ways."""
    ways, x, y = networks(name)
    import statistics

    import numpy as np

    import convfc
    from convfc.paper.cost import take_turns

    expected = ways["native"].predict_on_batch(x)
    same = np.array_equal(ways["converted"].predict_on_batch(x), expected)
    proven = convfc.verify(ways["native"], ways["M K"], x[:2]).holds
    if not (same and proven and patches_are_m(x[:2])):
        raise SystemExit(f"the ways do not compute one network: {same}, {proven}")
    results: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        turns = {way: calls(model, x, y)[kind] for way, model in ways.items()}
        for call in turns.values():
            call()
        times = take_turns(turns, rounds=rounds, seconds=seconds)
        results[kind] = {"native": statistics.median(times["native"])}
        results[kind] |= {way: per_round(times[way], times["native"]) for way in WAYS}
    after = [ways[way].get_weights() for way in ("native", "converted")]
    same = all(np.array_equal(a.reshape(b.shape), b) for a, b in zip(*after, strict=True))
    if not same:
        raise SystemExit("the converted network trains to other bits")
    return results


def patches_are_m(x: Any) -> bool:
    """Say whether what is multiplied by hand is M, to the bit, for both strides."""
    import keras
    import numpy as np

    from convfc import ConvGeometry, im2col

    size = x.shape[1]
    for stride in (1, 2):
        total = (-(-size // stride) - 1) * stride + 3 - size
        pads = (total // 2, total - total // 2)
        geometry = ConvGeometry(3, 1, (3, 3), stride=stride, padding=(pads, pads))
        options = {"strides": stride, "padding": "same", "data_format": "channels_last"}
        patches = keras.ops.convert_to_numpy(keras.ops.image.extract_patches(x, 3, **options))
        if not np.array_equal(patches.reshape(len(x), -1, patches.shape[-1]), im2col(x, geometry)):
            return False
    return True


def memory_of(name: str, way: str) -> dict[str, int | None]:
    """Return how far one call of a way raises the resident set."""
    ways, x, y = networks(name)
    from convfc.runs.machine import peak_of

    found = {}
    for kind, call in calls(ways[way], x, y).items():
        call()
        found[kind] = peak_of(call)[1]
    return found


if __name__ == "__main__":
    main()
