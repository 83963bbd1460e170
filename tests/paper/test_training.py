"""Training: the order of batches, the control, and resuming to the same bits."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import keras
import numpy as np
import pytest

from convfc.errors import RunError
from convfc.paper import data, networks
from convfc.paper.runs import Task
from convfc.paper.trained import NetworkFolder
from convfc.paper.training import Batches, train

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

    from convfc.paper.trained import Epoch

IMAGES, BATCH = 48, 20


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load(count=IMAGES)


@pytest.fixture(scope="module")
def initial() -> networks.Weights:
    return networks.initial_weights(0)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, digits: data.Digits, initial: networks.Weights
) -> Callable[[str, str], NetworkFolder]:
    """Networks trained for three epochs without interruption, each trained once."""
    place = tmp_path_factory.mktemp("whole")

    def trained(optimizer: str, network: str) -> NetworkFolder:
        task = Task("float32", optimizer, network)
        folder = NetworkFolder(place / task.name)
        if not folder.finished:
            train(task, digits, initial, folder, epochs=3, batch_size=BATCH)
        return folder

    return trained


def assert_same(folder: NetworkFolder, other: NetworkFolder) -> None:
    for name in ("first", "second"):
        np.testing.assert_array_equal(folder.weights()[name], other.weights()[name], strict=True)
    np.testing.assert_array_equal(folder.trajectory(), other.trajectory(), strict=True)
    assert losses(folder) == losses(other)


def losses(folder: NetworkFolder) -> list[tuple[int, float, float]]:
    return [(line.epoch, line.loss, line.val_loss) for line in folder.history()]


def test_each_epoch_holds_every_image_once_in_an_order_of_its_own() -> None:
    inputs = np.arange(10.0)
    batches = Batches(inputs, -inputs, seed=5, batch_size=4, first=0, last=3)
    assert (batches.per_epoch, batches.num_batches) == (3, 9)
    orders = []
    for epoch in range(3):
        pairs = [batches[3 * epoch + n] for n in range(3)]
        assert [len(x) for x, _ in pairs] == [4, 4, 2]
        assert all(np.array_equal(x, -y) for x, y in pairs)
        orders.append(np.concatenate([x for x, _ in pairs]).tolist())
        assert sorted(orders[-1]) == inputs.tolist()
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    inputs = np.arange(50.0)
    options = {"batch_size": 8, "last": 6}
    whole = Batches(inputs, inputs, seed=1, first=0, **options)
    later = Batches(inputs, inputs, seed=1, first=4, **options)
    other = Batches(inputs, inputs, seed=2, first=0, **options)
    backwards = [later[n][0] for n in reversed(range(later.num_batches))]
    for n, batch in enumerate(reversed(backwards)):
        np.testing.assert_array_equal(batch, whole[4 * whole.per_epoch + n][0])
    assert not np.array_equal(whole[0][0], other[0][0])


def test_fit_sees_the_batches_in_their_order(
    tmp_path: pathlib.Path,
    digits: data.Digits,
    initial: networks.Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    original = Batches.__getitem__

    def watched(self: Batches, index: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append(index)
        return original(self, index)

    monkeypatch.setattr(Batches, "__getitem__", watched)
    folder = NetworkFolder(tmp_path / "n")
    train(Task("float32", "sgd", "cnn"), digits, initial, folder, epochs=2, batch_size=BATCH)
    # Keras may look at the first batch beforehand and fetch ahead, but the rest comes in order.
    order = list(dict.fromkeys(seen))
    assert order == sorted(order) == list(range(6))


def test_loss_is_the_mean_squared_error_of_the_digits(
    whole: Callable[[str, str], NetworkFolder], digits: data.Digits
) -> None:
    folder = whole("sgd", "cnn")
    model = networks.build("cnn", networks.Weights(**folder.weights()))
    output = keras.ops.convert_to_numpy(model(digits.validation.astype("float32")))
    exact = np.mean((output.astype(np.float64) - digits.validation) ** 2)
    # 784 squares and IMAGES means are added in float32, each rounding at most once.
    terms = 784 + IMAGES + 3
    unit = np.finfo(np.float32).eps / 2
    bound = 2 * terms * unit / (1 - terms * unit) * exact
    assert abs(folder.history()[-1].val_loss - exact) <= bound


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_control_is_the_fc_network_to_the_bit(
    whole: Callable[[str, str], NetworkFolder], optimizer: str
) -> None:
    assert_same(whole(optimizer, "control"), whole(optimizer, "fc"))


def test_training_changes_the_weights_and_lowers_the_loss(
    whole: Callable[[str, str], NetworkFolder], initial: networks.Weights
) -> None:
    folder = whole("adam", "cnn")
    trajectory = folder.trajectory()
    assert trajectory.shape == (4, 16, 128)
    np.testing.assert_array_equal(trajectory[0], initial.first)
    np.testing.assert_array_equal(trajectory[-1], folder.weights()["first"])
    assert all(np.any(a != b) for a, b in itertools.pairwise(trajectory))
    history = folder.history()
    assert [line.epoch for line in history] == [1, 2, 3]
    assert history[-1].loss < history[0].loss
    assert all(line.seconds > 0 for line in history)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_ctrl_c_and_resume_give_the_same_bits(
    tmp_path: pathlib.Path,
    digits: data.Digits,
    initial: networks.Weights,
    whole: Callable[[str, str], NetworkFolder],
    optimizer: str,
) -> None:
    task = Task("float32", optimizer, "cnn")
    folder = NetworkFolder(tmp_path / task.name)

    def stop(line: Epoch) -> None:
        if line.epoch == 2:
            raise KeyboardInterrupt

    options = {"epochs": 3, "batch_size": BATCH, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        train(task, digits, initial, folder, on_epoch=stop, **options)
    assert not folder.finished
    assert [path.name for path in folder.path.iterdir()] == ["checkpoint-000002"]
    started: list[int] = []
    train(task, digits, initial, folder, on_start=started.append, **options)
    assert started == [2]
    assert_same(folder, whole(optimizer, "cnn"))
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == ["first_layer.npz", "history.csv", "sha256.json", "weights.npz"]


def test_ctrl_c_is_not_lost_where_keras_drops_it(
    tmp_path: pathlib.Path,
    digits: data.Digits,
    initial: networks.Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keras has a bare ``except`` around its waiting; training ends with the epoch all the same."""
    original = keras.Model.evaluate

    def interrupted(self: keras.Model, *args: object, **options: object) -> object:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **options)

    monkeypatch.setattr(keras.Model, "evaluate", interrupted)
    folder = NetworkFolder(tmp_path / "n")
    epochs: list[Epoch] = []
    task = Task("float32", "sgd", "fc")
    # A shell's job in the background ignores Ctrl-C, and so would these tests in one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(task, digits, initial, folder, epochs=2, batch_size=BATCH, on_epoch=epochs.append)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert epochs == []
    assert not folder.finished


KILLED = """
    import pathlib, sys, time
    from convfc.paper import data, networks
    from convfc.paper.runs import Task
    from convfc.paper.trained import NetworkFolder
    from convfc.paper.training import train

    def slowly(line):
        time.sleep(60 if line.epoch == 2 else 0)

    train(Task("float32", "adam", "fc"), data.load(count={images}), networks.initial_weights(0),
          NetworkFolder(pathlib.Path(sys.argv[1])), epochs=3, batch_size={batch},
          checkpoint_seconds=0, on_epoch=slowly)
"""


def test_kill_and_resume_give_the_same_bits(
    tmp_path: pathlib.Path,
    digits: data.Digits,
    initial: networks.Weights,
    whole: Callable[[str, str], NetworkFolder],
) -> None:
    folder = NetworkFolder(tmp_path / "killed")
    program = textwrap.dedent(KILLED.format(images=IMAGES, batch=BATCH))
    process = subprocess.Popen([sys.executable, "-c", program, str(folder.path)])  # noqa: S603
    try:
        deadline = time.monotonic() + 240
        while not (folder.path / "checkpoint-000002").exists():
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint within 240 s"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not folder.finished
    started: list[int] = []
    train(
        Task("float32", "adam", "fc"),
        digits,
        initial,
        folder,
        epochs=3,
        batch_size=BATCH,
        on_start=started.append,
    )
    assert started == [2]
    assert_same(folder, whole("adam", "fc"))


def test_checkpoint_of_another_network_is_refused(
    tmp_path: pathlib.Path, digits: data.Digits, initial: networks.Weights
) -> None:
    def stop(line: Epoch) -> None:
        raise KeyboardInterrupt

    folder = NetworkFolder(tmp_path / "mixed")
    options = {"epochs": 2, "batch_size": BATCH}
    with pytest.raises(KeyboardInterrupt):
        train(
            Task("float32", "sgd", "fc"),
            digits,
            initial,
            folder,
            checkpoint_seconds=0,
            on_epoch=stop,
            **options,
        )
    with pytest.raises(RunError, match=r"belongs to another network.*Remedy: remove this folder"):
        train(Task("float32", "adam", "fc"), digits, initial, folder, **options)
