"""Training: the order of batches, the control, and resuming to the same bits."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import signal

import keras
import numpy as np
import pytest
from small_run import FILTERS

from convfc.errors import RunError
from convfc.paper import data
from convfc.paper import keras_networks as networks
from convfc.paper.experiment import LEARNING_RATES, PaperSettings
from convfc.paper.keras_training import Batches, train
from convfc.runs.folder import PartFiles, RunFolder
from convfc.runs.study import Part, Work

IMAGES, BATCH = 24, 10
NAME = "float32-adam-cnn"


class Watched:
    """A display that stops the training after an epoch, and knows where it started."""

    def __init__(self, stop: int = 99) -> None:
        self.started: list[int] = []
        self.epochs: list[int] = []
        self._stop = stop

    def start(self, name: str, done: int) -> None:
        self.started.append(done)

    def step(self, name: str, done: int, told: str) -> None:
        self.epochs.append(done)
        if done == self._stop:
            raise KeyboardInterrupt


def learn(
    place: pathlib.Path,
    name: str,
    digits: data.Digits,
    initial: networks.Weights,
    watched: Watched | None = None,
    *,
    epochs: int = 3,
    pause: float = 30.0,
) -> PartFiles:
    """Train a network of this name to the end, or until it is stopped."""
    settings = PaperSettings(batch_size=BATCH)
    part, run = Part(name, train, steps=epochs), RunFolder(place)
    work = Work(settings, part, 0, {}, run, watched or Watched(), pause)  # type: ignore[arg-type]
    rate = LEARNING_RATES[work.part.name.split("-")[1]]
    work.files.save(train(work, digits, initial, rate))
    return work.files


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load(count=IMAGES)


@pytest.fixture(scope="module")
def initial(small_networks: None) -> networks.Weights:
    return networks.initial_weights(0, FILTERS)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, digits: data.Digits, initial: networks.Weights
) -> tuple[PartFiles, list[int]]:
    """A network trained for three epochs without interruption, and the batches it asked for."""
    asked, original = [], Batches.__getitem__

    def watched(self: Batches, index: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(index)
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__getitem__", watched)
        return learn(tmp_path_factory.mktemp("whole"), NAME, digits, initial), asked


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
    # The order depends on seed and epoch alone.
    later = Batches(inputs, -inputs, seed=5, batch_size=4, first=2, last=3)
    backwards = [later[n][0] for n in reversed(range(later.num_batches))]
    assert np.concatenate(backwards[::-1]).tolist() == orders[2]
    other = Batches(inputs, -inputs, seed=6, batch_size=4, first=0, last=1)
    assert np.concatenate([other[n][0] for n in range(3)]).tolist() != orders[0]


def test_loss_is_the_mean_squared_error_of_the_digits(
    whole: tuple[PartFiles, list[int]], digits: data.Digits
) -> None:
    files, _ = whole
    model = networks.build("cnn", networks.Weights(**files.weights()))
    output = keras.ops.convert_to_numpy(model(digits.validation.astype("float32")))
    exact = np.mean((output.astype(np.float64) - digits.validation) ** 2)
    # 784 squares and IMAGES means are added in float32, each rounding at most once.
    terms = 784 + IMAGES + 3
    unit = np.finfo(np.float32).eps / 2
    bound = 2 * terms * unit / (1 - terms * unit) * exact
    assert abs(files.load().numbers["val_loss"][-1] - exact) <= bound


def test_training_changes_the_weights_and_lowers_the_loss(
    whole: tuple[PartFiles, list[int]], initial: networks.Weights
) -> None:
    files, asked = whole
    # Keras may look at the first batch beforehand and fetch ahead, but the rest comes in order.
    assert list(dict.fromkeys(asked)) == list(range(9))
    result = files.load()
    trajectory = result.arrays["first_layer"]
    assert trajectory.shape == (4, *initial.first.shape)
    np.testing.assert_array_equal(trajectory[0], initial.first)
    np.testing.assert_array_equal(trajectory[-1], files.weights()["first"])
    assert all(np.any(a != b) for a, b in itertools.pairwise(trajectory))
    assert [len(result.numbers[kind]) for kind in ("loss", "val_loss")] == [3, 3]
    assert result.numbers["loss"][-1] < result.numbers["loss"][0]
    assert result.seconds["training"] > 0


def test_ctrl_c_and_resume_give_the_same_bits(
    tmp_path: pathlib.Path,
    digits: data.Digits,
    initial: networks.Weights,
    whole: tuple[PartFiles, list[int]],
) -> None:
    stopped, again = Watched(stop=2), Watched()
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, NAME, digits, initial, stopped, pause=0)
    folder = tmp_path / "parts"
    assert [path.name for path in folder.iterdir()] == [f"{NAME}.checkpoint.npz"]
    files = learn(tmp_path, NAME, digits, initial, again, pause=0)
    assert again.started == [2]
    for kind in (".npz", ".weights.npz"):
        one, other = (part.path.with_suffix(kind) for part in (files, whole[0]))
        assert one.read_bytes() == other.read_bytes()
    assert files.load().numbers == whole[0].load().numbers
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{NAME}.json", f"{NAME}.npz", f"{NAME}.weights.npz"]


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
    watched = Watched()
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, "float32-sgd-fc", digits, initial, watched, epochs=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert watched.epochs == []
    assert not RunFolder(tmp_path).part("float32-sgd-fc").finished


def test_checkpoint_of_another_network_is_refused(
    tmp_path: pathlib.Path, digits: data.Digits, initial: networks.Weights
) -> None:
    files = RunFolder(tmp_path).part(NAME)
    files.save_checkpoint({"variable_000": np.zeros((16, 4), np.float32)})
    with pytest.raises(RunError, match=r"belongs to another network.*Remedy: remove this file"):
        learn(tmp_path, NAME, digits, initial)
