"""The study of uncertainty: its scores, and a report whose words follow the numbers."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from convfc.methods import uncertainty
from convfc.runs.folder import FinishedRun, Result, RunFolder
from convfc.runs.progress import Display
from convfc.runs.study import Part, Work, report_text
from convfc.studies.images import Images
from convfc.studies.torch_training import lenet
from convfc.studies.uncertainty import methods
from convfc.studies.uncertainty import study as parts
from convfc.studies.uncertainty.methods import (
    ANGLES,
    MEASURES,
    METHODS,
    groups_of,
    loss_of,
    score_table,
    untrained,
)
from convfc.studies.uncertainty.methods import UncertaintySettings as Settings
from convfc.studies.uncertainty.report import sorted_out, summary
from convfc.studies.uncertainty.study import STUDY

TITLES = [method.title for key, method in METHODS.items() if key != "plain"]


def cell(value: float, gain: int, measure: str) -> dict[str, float]:
    """A number with an interval that says better (1), worse (-1) or nothing (0)."""
    sign = gain * MEASURES[measure][1]
    low, high = {1: (0.01, 0.03), -1: (-0.03, -0.01), 0: (-0.01, 0.01)}[sign]
    return {"value": value, "difference": (low + high) / 2, "low": low, "high": high}


def made_up(gain: int = 1) -> dict[str, Any]:
    """Results that nobody measured: every method better than none, or worse, or neither."""
    plain = {m: {"value": 0.5} if m != "auroc_mutual" else None for m in MEASURES}
    table = {"plain": plain} | {
        key: {measure: cell(0.5 + 0.01 * gain, gain, measure) for measure in MEASURES}
        for key in METHODS
        if key != "plain"
    }
    for key in table.keys() - {"plain"}:
        table[key]["auroc_mutual"]["value"] = 0.9
    wrong = [1 if angle in (0, 15, 165, 180) else 7 for angle in ANGLES]
    turned = {
        key: {"class": wrong, "confidence": [0.9 if key == "plain" else 0.6] * len(ANGLES)}
        for key in METHODS
    }
    one = {"holds": True, "failures": [], "ratio": 0.1, "integers": True, "difference": 1e-7}
    seconds = {key: {"training": 2.0} for key in METHODS if key != "laplace"}
    seconds |= {f"predict-{key}": {"sampling": 10.0, "training": 1.0} for key in METHODS}
    seconds["predict-plain"]["sampling"] = 0.1
    return {
        "images": "some digits",
        "weights": 44426,
        "letters": 320,
        "moved": 300,
        "table": table,
        "turned": turned,
        "rates": {"0.fc": 0.05, "3.fc": 0.2, "7": 0.3, "9": 0.08},
        "drawn": {key: dict(one) for key in ("kernels", "taps", "concrete", "gaussian")},
        "settings": Settings.named().as_json(),
        "seconds": seconds,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "machine": {"processor": "some CPU", "cores": 2, "system": "Linux x86_64"},
    }


def text_of(results: dict[str, Any]) -> str:
    return report_text(STUDY, FinishedRun(RunFolder(pathlib.Path("run")), results))


@pytest.mark.parametrize(
    ("gain", "kind", "words"),
    [
        (1, "better", "better with {}"),
        (-1, "worse", "better with none; worse with {}"),
        (0, "same", "better with none; not told apart: {}"),
    ],
)
def test_methods_are_sorted_by_their_intervals(gain: int, kind: str, words: str) -> None:
    results = made_up(gain)
    for measure in MEASURES:
        found = sorted_out(results["table"], measure)
        assert found.pop(kind) == TITLES
        assert set(map(tuple, found.values())) == {()}
    told = f"- **Likelihood of the digits (NLL):** {words.format(', '.join(TITLES))}.\n"
    assert told in text_of(results)
    # An interval that touches zero says nothing.
    results["table"]["taps"]["nll"] |= {"low": -0.03, "high": 0.0}
    assert "MC dropout (taps)" in sorted_out(results["table"], "nll")["same"]


def test_table_has_the_numbers_with_their_marks() -> None:
    large = {measure for measure, (_, sign) in MEASURES.items() if sign == 1}
    assert large == {"accuracy", "auroc_entropy", "auroc_mutual", "moved_accuracy"}
    text = text_of(made_up(1))
    for words in (
        "| no method |  |",  # its settings, in the table of methods
        "| no method | 50.0 % | 0.500 | 50.0 % | 0.500 | 0.500 | – | 2.0 | 0.10 |",
        "| Concrete Dropout | 51.0 % ▲ | 0.510 ▲ | 51.0 % ▲ | 0.510 ▲ | 0.510 ▲ | 0.900 ▲ | 2.0",
        "| 3.0 | 10.00 |",  # Laplace needs a trained network first
        "take 100 to 100 times the time",
        "CONV layer 0 0.05 (down), CONV layer 3 0.2 (up), FC layer 7 0.3 (up)",
    ):
        assert words in text
    assert "| Laplace (Kronecker) | 49.0 % ▼ | 0.490 ▼ |" in text_of(made_up(-1))


def test_mutual_information_is_praised_only_where_it_is_better() -> None:
    results = made_up()
    assert "with every method the mutual information" in text_of(results)
    results["table"]["taps"]["auroc_mutual"]["value"] = 0.1
    text = text_of(results)
    assert "with MC dropout (taps) it does not" in text
    assert "with every method the mutual information" not in text
    for key in results["table"].keys() - {"plain"}:
        results["table"][key]["auroc_mutual"]["value"] = 0.1
    assert "with no method does the mutual information" in text_of(results)


def test_the_turned_one_is_told_as_it_was() -> None:
    results = made_up()
    text = text_of(results)
    sure = "mean confidence of 90 %. Less sure at these angles: 60 % with MC dropout (kernels), "
    assert "takes the 1 for 7 at 30, 45, 60," in text
    assert sure in text
    assert "Not less sure" not in text
    results["turned"]["laplace"]["confidence"] = [0.95] * len(ANGLES)
    assert "Not less sure: 95 % with Laplace (Kronecker)." in text_of(results)
    results["turned"]["plain"]["class"] = [1] * len(ANGLES)
    assert "takes it for a 1 at every angle" in text_of(results)


def test_a_broken_certificate_is_not_hidden() -> None:
    results = made_up()
    text = text_of(results)
    assert "every network that was drawn is certified" in text
    assert "does not hold" not in text
    results["drawn"]["gaussian"] |= {"holds": False, "failures": ["0: another bit"]}
    text = text_of(results)
    assert "*not* certified to be the same function as CONV layers: Bayes by Backprop" in text
    assert "| Bayes by Backprop | does not hold |" in text
    assert "- 0: another bit" in text


def test_command_and_summary() -> None:
    assert Settings.command(made_up()["settings"]) == "convfc reproduce --study uncertainty"
    other = Settings.named(seed=3, samples=7, epochs=2, images=30)
    words = "convfc reproduce --study uncertainty --epochs 2 --seed 3 --images 30 --samples 7"
    assert Settings.command(other.as_json()) == words
    lines = summary(made_up()).text(160).splitlines()
    assert [line.split("  ")[0] for line in lines[1:7]] == ["no method", *TITLES]


# --- the numbers ---


def predictions(seed: int, sure: float) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    found = {}
    for name, count in (("test", 60), ("letters", 40), ("moved", 30)):
        p = np.full((count, 10), (1 - sure) / 9)
        p[np.arange(count), np.arange(count) % 10] = sure
        found |= {
            f"{name}.mean": p,
            f"{name}.entropy": random.random(count),
            f"{name}.mutual": random.random(count),
        }
    return found


LABELS = {"test": np.arange(60) % 10, "moved": np.arange(30) % 10}


def test_scores_are_those_of_the_method_and_its_difference_from_none() -> None:
    given = {"plain": predictions(0, 0.5), "taps": predictions(1, 0.8)}
    table = score_table(given, LABELS, draws=50)
    values = {m: table["taps"][m]["value"] for m in MEASURES}  # type: ignore[index]
    taps, auroc = given["taps"], uncertainty.out_of_distribution_auroc
    test, moved = ((taps[f"{name}.mean"], LABELS[name]) for name in ("test", "moved"))
    assert values == {
        "accuracy": 1.0,
        "nll": uncertainty.negative_log_likelihood(*test),
        "ece": uncertainty.calibration(*test).ece,
        "brier": uncertainty.brier_score(*test),
        "auroc_entropy": auroc(taps["test.entropy"], taps["letters.entropy"]),
        "auroc_mutual": auroc(taps["test.mutual"], taps["letters.mutual"]),
        "moved_accuracy": 1.0,
        "moved_nll": uncertainty.negative_log_likelihood(*moved),
        "moved_ece": uncertainty.calibration(*moved).ece,
    }
    assert table["plain"]["auroc_mutual"] is None
    # Without a method there is only the entropy to compare the mutual information with.
    plain = auroc(given["plain"]["test.entropy"], given["plain"]["letters.entropy"])
    assert table["taps"]["auroc_mutual"]["difference"] == values["auroc_mutual"] - plain  # type: ignore[index]


def test_every_image_alike_leaves_no_doubt() -> None:
    given = {"plain": predictions(0, 0.5), "taps": predictions(0, 0.8)}
    table = score_table(given, LABELS, draws=50)
    nll: Any = table["taps"]["nll"]
    assert [nll["low"], nll["high"]] == pytest.approx([nll["difference"]] * 2, rel=1e-12)
    assert sorted_out(table, "nll")["better"] == ["MC dropout (taps)"]
    table = score_table({"plain": given["plain"], "taps": given["plain"]}, LABELS, draws=50)
    for measure in set(MEASURES) - {"auroc_mutual"}:
        assert sorted_out(table, measure)["same"] == ["MC dropout (taps)"]


def test_the_bootstrap_covers_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal coins: the interval of their difference contains 0 about 95 times in 100."""
    monkeypatch.setattr(methods, "MEASURES", {"accuracy": MEASURES["accuracy"]})
    covered = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        given = {}
        for key in ("plain", "taps"):
            given[key] = predictions(seed, 0.5)
            right = random.random(60) < 0.8
            p = np.full((60, 10), 0.05)
            p[np.arange(60), np.where(right, LABELS["test"], (LABELS["test"] + 1) % 10)] = 0.55
            given[key]["test.mean"] = p
        table = score_table(given, LABELS, seed=seed, draws=100)
        covered += "MC dropout (taps)" in sorted_out(table, "accuracy")["same"]
    assert covered >= 34  # less has a probability of 0.3 % for a coin of 95 %


# --- the networks ---


def test_all_methods_start_with_the_same_weights() -> None:
    settings = Settings.named()
    plain = untrained("plain", settings)
    x = torch.rand(2, 1, 28, 28)
    for key in ("kernels", "taps", "concrete", "gaussian"):
        mean = uncertainty.mean_network(untrained(key, settings))
        assert torch.equal(mean[0].fc.weight.flatten(), plain[0].weight.flatten())
        assert mean(x).shape == (2, 10)


def test_the_divergence_counts_images() -> None:
    model = untrained("gaussian", Settings.named()).eval()
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        value = loss_of("gaussian", 3000)(model, x, y)
        cross = nn.functional.cross_entropy(model(x), y)
        assert value == cross + uncertainty.kl(model) / 3000
        plain = lenet(0)
        assert loss_of("plain", 3000)(plain, x, y) == nn.functional.cross_entropy(plain(x), y)


def test_learned_rates_take_longer_steps_and_nothing_is_left_out() -> None:
    model = untrained("concrete", Settings.named())
    usual, logits = groups_of(model)
    assert (usual["lr"], logits["lr"], len(logits["params"])) == (0.001, 0.01, 4)
    found = {id(p) for group in (usual, logits) for p in group["params"]}
    assert found == {id(p) for p in model.parameters()}
    assert len(groups_of(lenet(0))) == 1


# --- the parts ---


def work_on(folder: pathlib.Path, name: str, results: dict[str, Result]) -> Work:
    settings = Settings.named(images=30, samples=2)
    display, run = Display(Console(file=io.StringIO()), "parts", "step"), RunFolder(folder)
    display.plan({name: 3}, set(), {name: 1})
    for key, result in results.items():
        run.part(key).save(result)
    return Work(
        settings, Part(name, parts._predict_laplace, ("plain",), 3), 5, results, run, display, 0
    )


def test_draws_of_laplace_resume_to_the_same_bits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"test": 4, "letters": 2, "moved": 2, "turned": 2}
    random = np.random.default_rng(0)
    few = {
        name: Images(random.random((count, 1, 28, 28), np.float32), np.ones(count, np.int64))
        for name, count in counts.items()
    }
    monkeypatch.setattr(parts, "questions", lambda settings: few)
    monkeypatch.setattr(parts, "_LAPLACE_BATCH", 4)
    weights = lenet(0).state_dict().items()
    plain = {"plain": Result(weights={n: v.numpy() for n, v in weights})}
    with torch.random.fork_rng(devices=[]):
        whole = parts._predict_laplace(work_on(tmp_path / "whole", "predict-laplace", plain))
        torch.manual_seed(1)
        step = Work.step

        def stopping(work: Work, done: int, told: str = "", state: Any = None) -> None:
            step(work, done, told, state)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Work, "step", stopping)
            with pytest.raises(KeyboardInterrupt):
                parts._predict_laplace(work_on(tmp_path / "again", "predict-laplace", plain))
        work = work_on(tmp_path / "again", "predict-laplace", plain)
        assert (work.files.load_checkpoint() or {})["draws"].shape == (2, 4, 10)
        torch.manual_seed(2)
        again = parts._predict_laplace(work)
    assert whole.arrays.keys() == again.arrays.keys()
    for key, array in whole.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[key], strict=True)
    assert whole.arrays["test.mean"].shape == (4, 10)
    assert again.seconds["sampling"] > 0


def test_a_network_without_a_method_has_no_mutual_information() -> None:
    found = parts._evaluated(lenet(0).eval(), torch.rand(5, 1, 28, 28))
    assert not found.mutual_information.any()
    assert torch.equal(found.predictive_entropy, found.expected_entropy)
    assert (found.mean.sum(dim=1) - 1).abs().max() <= 10 * torch.finfo(torch.float64).eps


def test_draws_of_probabilities_are_taken_apart_as_predict_does() -> None:
    network = uncertainty.to_bayesian(lenet(0), "dropout", rate=0.3)
    expected = uncertainty.predict(network, torch.rand(4, 1, 28, 28), samples=6, keep=True)
    assert expected.draws is not None
    found = uncertainty.Prediction.of(torch.softmax(expected.draws.double(), dim=2))
    # The same sums of six numbers below 1, in another order.
    bound = 30 * torch.finfo(torch.float64).eps
    assert (found.mean - expected.mean).abs().max() <= bound
    for name in ("predictive_entropy", "mutual_information"):
        assert (getattr(found, name) - getattr(expected, name)).abs().max() <= 30 * bound


def test_all_seeds_are_told_beside_the_first() -> None:
    """One measure is better in every seed, one in two of three."""
    results = made_up()
    assert "Over all seeds" not in text_of(results)
    results["tables"] = [made_up()["table"] for _ in range(3)]
    for number, table in enumerate(results["tables"]):
        table["taps"]["nll"]["value"] = 0.2 + number / 10
        table["taps"]["accuracy"] |= {"value": 0.9 + number / 100}
    results["tables"][1]["taps"]["accuracy"]["difference"] = -0.001
    text = text_of(results)
    section = text.split("## Over all seeds")[1].split("## On moved")[0]
    (row,) = (line for line in section.splitlines() if line.startswith("| MC dropout (taps) |"))
    assert row.startswith(
        "| MC dropout (taps) | 91.0 (90.0 to 92.0) % | 0.300 (0.200 to 0.400) ▲ |"
    )
    assert "those of the first of 3 seeds" in text
    assert "One training was done per method" not in text
    assert "The first of 3 seeds" in summary(results).text(300)


def test_seeds_are_parts_of_their_own_and_can_be_added() -> None:
    one, three = (Settings.named("u", images=30, samples=2, seeds=n) for n in (1, 3))
    first, every = ({part.name: part for part in STUDY.parts(s)} for s in (one, three))
    assert first.keys() < every.keys()
    assert len(every) == 3 * (len(first) - 1) + 1
    assert {"kernels", "kernels-1", "predict-laplace-2", "scores-2", "drawn"} <= every.keys()
    assert every["predict-laplace-2"].needs == ("plain-2",)
    # A run with one seed goes on as the same run with more; not the other way round, or with other
    # settings. What one seed had was written before there were more.
    assert "seeds" not in one.as_json()
    assert three.outdated(one.as_json()) == []
    assert one.outdated(three.as_json()) is None
    assert three.outdated(one.as_json() | {"epochs": 3}) is None
    weights = [untrained("plain", three, number).state_dict()["0.weight"] for number in (0, 1, 2)]
    assert torch.equal(weights[0], untrained("plain", one).state_dict()["0.weight"])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
