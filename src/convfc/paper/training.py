"""Train one network with Keras's own ``fit``, so that it can be stopped and resumed to the bit."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    import keras

from convfc.errors import RunError
from convfc.paper import networks
from convfc.paper.data import Digits
from convfc.paper.runs import LEARNING_RATES, Task
from convfc.paper.trained import Epoch, NetworkFolder, State

__all__ = ["Batches", "train"]

Array = NDArray[np.floating[Any]]

CHECKPOINT_SECONDS = 30.0
"""Training time that a kill may cost, at least."""

CHECKPOINT_SHARE = 0.02
"""The share of the time that writing checkpoints may take, at most."""


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """All batches of all epochs, in an order that depends on the seed and the epoch alone.

    Batch ``i`` is a function of ``i``: nothing is remembered from epoch to epoch, so that a resumed
    run, or a framework that fetches ahead, sees the same batches.

    Parameters
    ----------
    inputs, targets : ndarray
        One row per image.
    seed : int
        Seed of the order.
    batch_size : int
        Images in a batch; the last of an epoch may be smaller.
    first, last : int
        Epochs ``first`` to ``last - 1``, counted from 0.
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


def train(
    task: Task,
    digits: Digits,
    initial: networks.Weights,
    folder: NetworkFolder,
    *,
    epochs: int,
    batch_size: int = 128,
    seed: int = 0,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_start: Callable[[int], None] = lambda epoch: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> None:
    """Train a network to its last epoch, from its newest checkpoint if there is one.

    Keras has to be in the precision of the task (``convfc.frameworks.keras.backend.precision``).

    Parameters
    ----------
    task : Task
        Network, optimizer and precision.
    digits : Digits
        What it learns from.
    initial : Weights
        Where it starts.
    folder : NetworkFolder
        Where its checkpoints and files go.
    epochs, batch_size, seed : int
        Length of the training, and the order of the images.
    checkpoint_seconds : float
        Least wall time between two checkpoints, in seconds.
    on_start : callable
        Called once with the number of epochs that a checkpoint already holds.
    on_epoch : callable
        Called after each epoch.

    Raises
    ------
    RunError
        The checkpoint belongs to another network.
    """
    model = networks.build(task.network, initial)
    model.compile(optimizer=_optimizer(task.optimizer), loss="mse")
    model.optimizer.build(model.trainable_variables)
    state = folder.load_checkpoint()
    if state is None:
        state = State((), (), (networks.read_first(model),))
    else:
        _restore(model, state, folder)
    recorder = _Recorder(state, folder, checkpoint_seconds, on_epoch)
    done = len(state.history)
    on_start(done)

    training = digits.training.astype(task.dtype)
    validation = digits.validation.astype(task.dtype)
    batches = Batches(
        networks.network_input(task.network, training),
        training,
        seed=seed,
        batch_size=batch_size,
        first=done,
        last=epochs,
    )
    if done < epochs:
        with _ctrl_c_remembered() as raise_if_pressed:
            recorder.raise_if_pressed = raise_if_pressed
            model.fit(
                batches,
                steps_per_epoch=batches.per_epoch,
                initial_epoch=done,
                epochs=epochs,
                validation_data=(networks.network_input(task.network, validation), validation),
                validation_batch_size=batch_size,
                callbacks=[recorder],
                # Batches come shuffled; Keras would mix them across epochs.
                shuffle=False,
                verbose=0,
            )
    final = networks.read_weights(model)
    folder.finish(
        recorder.history, recorder.trajectory, {"first": final.first, "second": final.second}
    )
    # A network with Adam's state holds 200 MB; let it go before the next one comes.
    del model, recorder, batches
    keras.utils.clear_session(free_memory=False)
    gc.collect()


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the history and the first layer's weights, and writes checkpoints now and then."""

    def __init__(
        self,
        state: State,
        folder: NetworkFolder,
        checkpoint_seconds: float,
        on_epoch: Callable[[Epoch], None],
    ) -> None:
        super().__init__()
        self.history = list(state.history)
        self.trajectory = list(state.trajectory)
        self._folder = folder
        self._on_epoch = on_epoch
        self._pause = checkpoint_seconds
        self._next_checkpoint = time.monotonic() + checkpoint_seconds
        self._began = 0.0
        self.raise_if_pressed: Callable[[], None] = lambda: None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        del epoch, logs
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.raise_if_pressed()
        seconds = time.perf_counter() - self._began
        values = logs or {}
        line = Epoch(epoch + 1, float(values["loss"]), float(values["val_loss"]), seconds)
        self.history.append(line)
        self.trajectory.append(networks.read_first(self.model))
        if time.monotonic() >= self._next_checkpoint and epoch + 1 < self.params["epochs"]:
            self._write_checkpoint()
        self._on_epoch(line)

    def _write_checkpoint(self) -> None:
        began = time.monotonic()
        arrays = [keras.ops.convert_to_numpy(v.value) for v in _variables(self.model)]
        self._folder.save_checkpoint(State(arrays, self.history, self.trajectory))
        now = time.monotonic()
        # On a slow disk checkpoints come less often, so that their share of the time stays small.
        self._next_checkpoint = now + (
            max(self._pause, (now - began) / CHECKPOINT_SHARE) if self._pause else 0
        )


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


def _optimizer(name: str) -> keras.optimizers.Optimizer:
    """Return the optimizer of Section 5; Adam at Keras's defaults, as in the authors' program."""
    optimizers = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    return optimizers[name](learning_rate=LEARNING_RATES[name])


def _variables(model: keras.Model) -> list[keras.Variable]:
    """Return all that training changes, in an order that is the same in every process."""
    return [*model.weights, *model.optimizer.variables]


def _restore(model: keras.Model, state: State, folder: NetworkFolder) -> None:
    """Give a compiled model the variables of a checkpoint."""
    variables = _variables(model)
    shapes = [tuple(variable.shape) for variable in variables]
    found = [value.shape for value in state.variables]
    if shapes != found:
        raise RunError(
            "the checkpoint belongs to another network",
            where=str(folder.path),
            expected=f"variables of shapes {shapes}",
            got=found,
            remedy="remove this folder, and continue with --resume",
        )
    for variable, value in zip(variables, state.variables, strict=True):
        variable.assign(value)
