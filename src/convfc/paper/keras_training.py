"""Train one network with Keras's own ``fit``, so that it can be stopped and resumed to the bit."""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    import keras

from convfc.errors import RunError
from convfc.paper import keras_networks as networks
from convfc.paper.data import Digits
from convfc.paper.optimizers import MOMENTUM, WITH_EPSILON
from convfc.runs.folder import Result
from convfc.runs.study import Work

Array = NDArray[Any]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """All batches of the epochs ``first`` to ``last - 1``; the last one of each may be smaller.

    Batch ``i`` is a function of seed and ``i``: nothing is remembered from epoch to epoch, so that
    a resumed run, or a framework that fetches ahead, sees the same batches.
    """

    def __init__(
        self, inputs: Array, targets: Array, *, seed: int, batch_size: int, first: int, last: int
    ) -> None:
        super().__init__()
        self._inputs, self._targets = inputs, targets
        self._seed, self._batch_size = seed, batch_size
        self._first, self._last = first, last
        self.per_epoch = -(-len(inputs) // batch_size)

    @property
    def num_batches(self) -> int:
        """Batches of all epochs together."""
        return self.per_epoch * (self._last - self._first)

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        epoch, batch = divmod(index, self.per_epoch)
        order = np.random.default_rng([self._seed, self._first + epoch]).permutation(
            len(self._inputs)
        )
        chosen = order[batch * self._batch_size : (batch + 1) * self._batch_size]
        return self._inputs[chosen], self._targets[chosen]


def train(work: Work, digits: Digits, initial: networks.Weights, rate: float) -> Result:
    """Train the network that the part is named after, in Keras's current precision.

    It goes on from its checkpoint. ``first_layer`` begins before training: (epochs + 1, 16, 128).
    """
    dtype, optimizer, network = work.part.name.split("-")
    settings, epochs = work.settings, work.part.steps
    model = networks.build(network, initial)
    model.compile(optimizer=_optimizer(optimizer, rate, settings.epsilon), loss="mse")
    model.optimizer.build(model.trainable_variables)
    saved = work.files.load_checkpoint()
    if saved is not None:
        _restore(model, saved, work)
    recorder = _Recorder(work, saved or {"first_layer": networks.read_first(model)[None]})
    done = len(recorder.loss)
    work.start(done)

    training = digits.training.astype(dtype)
    validation = digits.validation.astype(dtype)
    batches = Batches(
        networks.network_input(network, training),
        training,
        seed=settings.seed,
        batch_size=settings.batch_size,
        first=done,
        last=epochs,
    )
    with _ctrl_c_remembered() as recorder.raise_if_pressed:
        model.fit(
            batches,
            steps_per_epoch=batches.per_epoch,
            initial_epoch=done,
            epochs=epochs,
            validation_data=(networks.network_input(network, validation), validation),
            validation_batch_size=settings.batch_size,
            callbacks=[recorder],
            # Batches come shuffled; Keras would mix them across epochs.
            shuffle=False,
            verbose=0,
        )
    result = Result(
        {"loss": recorder.loss, "val_loss": recorder.val_loss},
        {"first_layer": np.stack(recorder.first_layer)},
        {"training": recorder.seconds},
        vars(networks.read_weights(model)),
    )
    # A network with Adam's state holds 200 MB; let it go before the next one comes.
    del model, recorder, batches
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    return result


def _optimizer(name: str, rate: float, epsilon: float | None) -> keras.optimizers.Optimizer:
    """Return one of Keras's optimizers, with its own numbers where none are given."""
    kinds = keras.optimizers
    made = {
        "sgd": kinds.SGD,
        "momentum": functools.partial(kinds.SGD, momentum=MOMENTUM),
        "adam": kinds.Adam,
        "adamw": kinds.AdamW,
        "rmsprop": kinds.RMSprop,
        "muon": getattr(kinds, "Muon", None),
    }[name]
    if made is None:
        raise RunError(
            "this version of Keras has no Muon",
            where="optimizer muon",
            got=keras.__version__,
            remedy="pip install --upgrade keras",
        )
    given = {} if epsilon is None or name not in WITH_EPSILON else {"epsilon": epsilon}
    return made(learning_rate=rate, **given)


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the losses and the first layer's weights, and says when an epoch is done."""

    def __init__(self, work: Work, saved: Mapping[str, Array]) -> None:
        super().__init__()
        self.loss: list[float] = np.array(saved.get("loss", ())).tolist()
        self.val_loss: list[float] = np.array(saved.get("val_loss", ())).tolist()
        self.first_layer = list(saved["first_layer"])
        self.seconds = float(saved.get("seconds", 0))
        self._work = work
        self._began = 0.0
        self.raise_if_pressed: Callable[[], None] = lambda: None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        del epoch, logs
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.raise_if_pressed()
        self.seconds += time.perf_counter() - self._began
        loss, val_loss = (float((logs or {})[kind]) for kind in ("loss", "val_loss"))
        self.loss.append(loss)
        self.val_loss.append(val_loss)
        self.first_layer.append(networks.read_first(self.model))
        told = f"loss {loss:.6f}, validation loss {val_loss:.6f}"
        self._work.step(epoch + 1, told, self._state)

    def _state(self) -> dict[str, Array]:
        """Return everything that a training needs to go on, as arrays."""
        variables = _variables(self.model).items()
        return {
            "loss": np.array(self.loss),
            "val_loss": np.array(self.val_loss),
            "first_layer": np.stack(self.first_layer),
            "seconds": np.array(self.seconds),
            **{name: np.asarray(keras.ops.convert_to_numpy(v.value)) for name, v in variables},
        }


@contextlib.contextmanager
def _ctrl_c_remembered() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed and got lost.

    Keras waits for the numbers of an epoch inside a bare ``except``, and that is where ``fit``
    spends much of its time: about every second Ctrl-C ends there.
    """
    former = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not (main and callable(former)):
        yield lambda: None
        return
    handle = former
    pressed = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.set()
        handle(number, frame)

    def raise_if_pressed() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield raise_if_pressed
    finally:
        signal.signal(signal.SIGINT, former)


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Return all that training changes, under names that are the same in every process."""
    variables = [*model.weights, *model.optimizer.variables]
    return {f"variable_{number:03d}": variable for number, variable in enumerate(variables)}


def _restore(model: keras.Model, saved: Mapping[str, Array], work: Work) -> None:
    """Give a compiled model the variables of a checkpoint."""
    variables = _variables(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: value.shape for name, value in saved.items() if name.startswith("variable")}
    if shapes != found:
        raise RunError(
            "the checkpoint belongs to another network",
            where=str(work.files.checkpoint),
            expected=f"variables of shapes {list(shapes.values())}",
            got=list(found.values()),
            remedy="remove this file, and continue with --resume",
        )
    for name, variable in variables.items():
        variable.assign(saved[name])
