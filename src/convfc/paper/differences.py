"""The numbers of Section 5: how far apart two trained networks are, and what became of the CNN."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    import keras

from convfc.paper import networks
from convfc.paper.data import Digits
from convfc.paper.runs import RunFolder, Settings, Task
from convfc.paper.trained import NetworkFolder

__all__ = ["compare", "dead_outputs", "run_results"]

Array = NDArray[np.floating[Any]]

PAIRS = {"fc": "cnn", "control": "fc"}
"""Which network each one is compared with: the FC network with the CNN, the control with that."""


def run_results(run: RunFolder, settings: Settings, digits: Digits, dtype: str) -> dict[str, Any]:
    """Return the comparison of all networks of one precision: ``{optimizer: {network: numbers}}``.

    Keras has to be in that precision. The numbers are those of :func:`compare`.
    """
    tasks = [task for task in settings.tasks if task.dtype == dtype]
    results: dict[str, Any] = {}
    for task in tasks:
        other = PAIRS.get(task.network)
        if other is not None:
            pair = (Task(dtype, task.optimizer, other), task)
            results.setdefault(task.optimizer, {})[task.network] = compare(run, pair, digits)
    return results


def compare(run: RunFolder, pair: tuple[Task, Task], digits: Digits) -> dict[str, float]:
    """Return how far apart two finished networks are.

    V and U are the outputs of the first layers on the new images, before ReLU, computed by the
    layers themselves in the precision of the run; their difference is summed in float64.

    Parameters
    ----------
    run : RunFolder
        The run that holds both.
    pair : tuple of Task
        The two networks.
    digits : Digits
        Its new images are used.

    Returns
    -------
    dict
        ``output_difference_mean``: the mean over the images of ``||V_n - U_n||_F``, as the authors'
        program computes it; ``output_difference_printed``: ``||V - U||_F / n`` of the whole, as the
        paper prints it; ``weight_difference``: ``||W_cnn - W_fc||_F`` of the first layer;
        ``max_loss_difference``: the largest difference of a training or validation loss.
    """
    folders = [run.network(task) for task in pair]
    first = [folder.weights()["first"] for folder in folders]
    v, u = (
        networks.first_layer_output(task.network, weights, digits.new)
        for task, weights in zip(pair, first, strict=True)
    )
    difference = v.astype(np.float64) - u
    losses = [
        np.array([(e.loss, e.val_loss) for e in folder.history()], np.float64) for folder in folders
    ]
    return {
        "output_difference_mean": float(np.linalg.norm(difference, axis=(1, 2)).mean()),
        "output_difference_printed": float(np.linalg.norm(difference.ravel()) / len(difference)),
        "weight_difference": float(np.linalg.norm(first[0].astype(np.float64) - first[1])),
        "max_loss_difference": float(np.abs(losses[0] - losses[1]).max()),
    }


def dead_outputs(
    folder: NetworkFolder, network: str, initial: networks.Weights, digits: Digits
) -> dict[str, float]:
    """Return how many final ReLUs are zero on every validation image, and what that costs.

    A final ReLU that is zero on all images has no gradient, so it stays zero. Where no image has
    ink that is right; elsewhere its pixel is lost.

    Parameters
    ----------
    folder : NetworkFolder
        A finished network.
    network : str
        Its kind: cnn, fc or control.
    initial : Weights
        Where its training started.
    digits : Digits
        Its training and validation images are used.

    Returns
    -------
    dict
        ``outputs``; ``dead_at_start`` and ``dead_at_end``; ``wrongly_dead``, those dead at the end
        whose pixel is not zero in every validation image; ``val_loss`` at the end and
        ``val_loss_of_dead``, the part of it that the dead outputs cause; and for comparison the
        validation losses of two constant answers, ``val_loss_of_zeros`` and
        ``val_loss_of_mean_image`` (the mean training image).
    """
    weights = folder.weights()
    final = networks.Weights(weights["first"], weights["second"])
    dtype = final.first.dtype
    images = digits.validation.astype(dtype)
    inputs = networks.network_input(network, images)
    targets = images.reshape(len(images), -1).astype(np.float64)

    outputs = []
    for state in (initial, final):
        model = networks.build(network, state)
        prediction = keras.ops.convert_to_numpy(model(inputs))
        outputs.append(prediction.reshape(targets.shape).astype(np.float64))
        del model
        keras.utils.clear_session()
    dead_at_start, dead_at_end = ((output == 0).all(axis=0) for output in outputs)
    inked = (targets != 0).any(axis=0)
    squares = (outputs[1] - targets) ** 2
    mean_image = digits.training.astype(np.float64).mean(axis=0).ravel()
    return {
        "outputs": int(targets.shape[1]),
        "dead_at_start": int(dead_at_start.sum()),
        "dead_at_end": int(dead_at_end.sum()),
        "wrongly_dead": int((dead_at_end & inked).sum()),
        "val_loss": float(squares.mean()),
        "val_loss_of_dead": float(squares[:, dead_at_end].sum() / squares.size),
        "val_loss_of_zeros": float((targets**2).mean()),
        "val_loss_of_mean_image": float(((targets - mean_image) ** 2).mean()),
    }
