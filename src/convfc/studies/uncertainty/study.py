"""The study of uncertainty: a network on digits, and five methods that say when it does not know.

Its parts are trainings, predictions, their scores, and a network drawn from each method.
"""

from __future__ import annotations

import importlib.resources
import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from convfc.extras import needing

with needing("study"):
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

import convfc
from convfc.methods import uncertainty
from convfc.methods.uncertainty import Prediction
from convfc.runs.folder import Result
from convfc.runs.sealed import Array
from convfc.runs.study import Part, Study, Work, seed_of
from convfc.studies import images
from convfc.studies.torch_training import (
    certified,
    lenet,
    load_weights,
    seeded_torch,
    train,
    weights_of,
)
from convfc.studies.uncertainty.methods import (
    ANGLES,
    METHODS,
    UncertaintySettings,
    groups_of,
    loss_of,
    score_table,
    untrained,
)
from convfc.studies.uncertainty.report import figures, find, summary

SETS = ("test", "letters", "moved", "turned")
"""What every network is asked about; the last is the 1 at all angles."""

_LAPLACE_BATCH = 5  # the Jacobians of a batch are found together: its time grows as its square


def parts(settings: UncertaintySettings) -> list[Part]:
    """Return all parts, one seed after the other."""
    trained = [key for key in METHODS if key != "laplace"]
    asked = settings.images // 3 + settings.letters + settings.moved + len(ANGLES)
    batches, found = math.ceil(asked / _LAPLACE_BATCH), []
    for end in map(_end, range(settings.seeds)):
        found += [
            *(Part(f"{key}{end}", _train, steps=settings.epochs) for key in trained),
            *(
                Part(
                    f"predict-{key}{end}",
                    _predict,
                    (f"{key}{end}",),
                    1 if key == "plain" else 3 * settings.samples,
                )
                for key in trained
            ),
            Part(f"predict-laplace{end}", _predict_laplace, (f"plain{end}",), batches),
            Part(f"scores{end}", _score, tuple(f"predict-{key}{end}" for key in METHODS)),
        ]
    return [*found, Part("drawn", _draw, tuple(key for key in trained if key != "plain"))]


def _end(number: int) -> str:
    """Return how the names of the parts of this seed end; of the first they are the methods'."""
    return f"-{number}" if number else ""


def _which(name: str) -> tuple[str, int]:
    """Return the method and the number of the seed of a part."""
    key, _, number = name.removeprefix("predict-").partition("-")
    return key, int(number or 0)


def questions(settings: UncertaintySettings) -> dict[str, images.Images]:
    """Return the images that every network is asked about."""
    test = settings.digits.test
    # Of the whole test, however few of it are asked about: so there always is one.
    one = images.most_upright(images.load_digits(seed=settings.seed).test, 1)
    turned = images.Images(images.rotated(one, ANGLES), np.ones(len(ANGLES), np.int64))
    return {
        "test": test,
        "letters": images.render_letters(settings.letters, settings.seed),
        "moved": images.moved(test.first(settings.moved), settings.seed),
        "turned": turned,
    }


def _train(work: Work) -> Result:
    """Train one network; of learned rates, keep the course."""
    (key, number), settings = _which(work.part.name), work.settings
    digits = settings.digits
    model = untrained(key, settings, number)

    def rates(network: nn.Module) -> Mapping[str, float]:
        return uncertainty.learned_rates(network) if key == "concrete" else {}

    curves, seconds = train(
        model,
        digits.training,
        work,
        loss=loss_of(key, settings.images),
        groups=groups_of(model),
        watch=rates,
    )
    arrays = {f"curve.{name}": values for name, values in curves.items()}
    numbers: dict[str, Any] = {"images": digits.description, "loss": float(curves["loss"][-1])}
    numbers["rates"] = dict(rates(model))
    return Result(numbers, arrays, {"training": seconds}, weights_of(model))


def _trained(work: Work, name: str) -> nn.Module:
    """Return the network that the part of this name trained."""
    key, number = _which(name)
    model = untrained(key, work.settings, number)
    load_weights(model, work.weights(name))
    return model.eval()


def _predict(work: Work) -> Result:
    """Ask one network about all images: with many draws, or once if nothing in it is random."""
    (key, _), samples = _which(work.part.name), work.settings.samples
    model, asked = _trained(work, *work.part.needs), questions(work.settings)
    work.start()
    arrays: dict[str, Array] = {}
    seconds, done = 0.0, 0
    # Seconds are those of the test images alone: the same question for every method.
    for names in (("test",), ("letters", "moved"), ("turned",)):
        x = torch.from_numpy(np.concatenate([asked[name].images for name in names]))
        began = time.process_time()
        if key == "plain":
            found = _evaluated(model, x)
        else:
            found = uncertainty.predict(
                model,
                x,
                samples,
                seed=work.seed,
                keep=names == ("turned",),
                progress=lambda count, passes, _: work.step(
                    done + count * samples // (passes or count)  # noqa: B023
                ),
            )
        seconds = seconds or time.process_time() - began
        done += samples
        arrays |= _split(found, {name: len(asked[name]) for name in names})
    return Result(arrays=arrays, seconds={"sampling": seconds})


def _evaluated(model: nn.Module, x: Tensor) -> Prediction:
    """Return what a network says that is not random: all its uncertainty is aleatoric."""
    with torch.no_grad():
        logits = model(x).double()
    return Prediction.of(logits.softmax(dim=1)[None], logits[None])


def _split(found: Prediction, counts: Mapping[str, int]) -> dict[str, Array]:
    """Return the numbers of a prediction as arrays, by the set of images that they belong to."""
    arrays: dict[str, Array] = {}
    start = 0
    for name, count in counts.items():
        chosen = slice(start, start + count)
        arrays[f"{name}.mean"] = found.mean[chosen].numpy()
        arrays[f"{name}.entropy"] = found.predictive_entropy[chosen].numpy()
        arrays[f"{name}.mutual"] = found.mutual_information[chosen].numpy()
        if name == "turned" and found.draws is not None:
            arrays["turned.draws"] = found.draws.numpy()
        start += count
    return arrays


def _predict_laplace(work: Work) -> Result:
    """Fit a Laplace approximation around the trained network, in FC form, and ask it.

    The network is made linear in its weights at those that were trained (Immer et al. 2021).
    """
    with warnings.catch_warnings():
        # laplace-torch and what it stands on import and call what PyTorch calls deprecated.
        for kind in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category=kind)
        from laplace import Laplace

        settings = work.settings
        network = convfc.to_fc(_trained(work, *work.part.needs))
        training = settings.digits.training
        pairs = TensorDataset(torch.from_numpy(training.images), torch.from_numpy(training.labels))
        began = time.process_time()
        approximation: Any = Laplace(
            network, "classification", subset_of_weights="all", hessian_structure="kron"
        )
        approximation.fit(DataLoader(pairs, batch_size=250))
        approximation.prior_precision = METHODS["laplace"].options["prior_precision"]
        fitting = time.process_time() - began
        asked = questions(settings)
        x = torch.from_numpy(np.concatenate([asked[name].images for name in SETS]))
        saved = work.files.load_checkpoint() or {
            "draws": np.zeros((settings.samples, 0, 10), np.float32)
        }
        draws, sampling = [torch.from_numpy(saved["draws"])], float(saved.get("seconds", 0))
        done = draws[0].shape[1]
        work.start(done // _LAPLACE_BATCH)
        for start in range(done, len(x), _LAPLACE_BATCH):
            began = time.process_time()
            # A seed for each batch, so that a resumed run draws the same.
            generator = torch.Generator().manual_seed(seed_of(work.seed, start))
            drawn = approximation.predictive_samples(
                x[start : start + _LAPLACE_BATCH],
                pred_type="glm",
                n_samples=settings.samples,
                generator=generator,
            )
            draws.append(drawn.detach())
            sampling += time.process_time() - began
            state = {"draws": torch.cat(draws, dim=1).numpy(), "seconds": np.array(sampling)}
            work.step(start // _LAPLACE_BATCH + 1, state=lambda: state)  # noqa: B023
    sampling *= len(asked["test"]) / len(x)
    found = Prediction.of(torch.cat(draws, dim=1))
    arrays = _split(found, {name: len(asked[name]) for name in SETS})
    return Result({}, arrays, {"training": fitting, "sampling": sampling})


def _score(work: Work) -> Result:
    """Compute the table from all predictions, and what is said of the 1 at every angle."""
    work.start()
    asked = questions(work.settings)
    predictions = {_which(name)[0]: found.arrays for name, found in work.results.items()}
    labels = {name: asked[name].labels for name in ("test", "moved")}
    turned = {
        key: {
            "class": found["turned.mean"].argmax(axis=1).tolist(),
            "confidence": found["turned.mean"].max(axis=1).tolist(),
            "entropy": found["turned.entropy"].tolist(),
            "mutual": found["turned.mutual"].tolist(),
        }
        for key, found in predictions.items()
    }
    shown = {f"{name}.images": asked[name].images[:26] for name in SETS}
    table = score_table(predictions, labels, seed=work.seed)
    return Result({"table": table, "turned": turned}, shown | {"test.labels": labels["test"]})


def _draw(work: Work) -> Result:
    """Draw a network from each method, take it to CONV form, and certify that both are one."""
    work.start()
    x = torch.from_numpy(questions(work.settings)["test"].images[:8])
    numbers: dict[str, Any] = {}
    for key in work.results:
        drawn = uncertainty.sample(_trained(work, key), seed=work.seed).eval()
        certificate = convfc.verify(convfc.to_conv(drawn), drawn, x, seed=work.seed)
        numbers[key] = certified(certificate)
    return Result(numbers)


def results(settings: UncertaintySettings, found: Mapping[str, Result]) -> dict[str, Any]:
    """Return what ``results.json`` holds of this study."""
    scores = found["scores"].numbers
    every = [found[f"scores{_end(n)}"].numbers["table"] for n in range(settings.seeds)]
    own = {"tables": every} if settings.seeds > 1 else {}
    return own | {
        "images": found["plain"].numbers["images"],
        "weights": sum(p.numel() for p in lenet(0).parameters()),
        "letters": settings.letters,
        "moved": settings.moved,
        "table": scores["table"],
        "turned": scores["turned"],
        "rates": found["concrete"].numbers["rates"],
        "drawn": found["drawn"].numbers,
    }


STUDY = Study(
    settings=UncertaintySettings,
    packages=lambda settings: ("numpy", "torch", "mlxtend", "matplotlib", "laplace-torch"),
    parts=parts,
    results=results,
    figures=figures,
    findings=lambda run: find(run.results),
    template=(importlib.resources.files(__package__) / "report.md.j2").read_text("utf-8"),
    summary=summary,
    surroundings=seeded_torch,
)
