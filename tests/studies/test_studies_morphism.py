"""The study of morphism: a student that is its teacher, and a report whose words follow."""

from __future__ import annotations

import copy
import pathlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from convfc.certificate import (
    Certificate,
    Comparison,
    ExactTest,
    LayerCertificate,
    NetworkCertificate,
    OutputComparison,
)
from convfc.runs.folder import FinishedRun, RunFolder
from convfc.runs.study import report_text
from convfc.studies.morphism.report import summary
from convfc.studies.morphism.study import STUDY, student_of, teacher
from convfc.studies.morphism.study import MorphismSettings as Settings
from convfc.studies.torch_training import certified

EPOCHS = 4


def curve(length: int, loss: float, accuracy: float) -> dict[str, Any]:
    """A training that ends with these numbers, and got there along a line."""
    steps = [n / (length - 1) for n in range(length)]
    return {
        "loss": [1.0] * (length - 1),
        "test_loss": [2.0 + (loss - 2.0) * s for s in steps[:-1]] + [loss],
        "test_accuracy": [0.5 + (accuracy - 0.5) * s for s in steps[:-1]] + [accuracy],
        "weights": 100,
        "images": "some digits",
    }


def made_up(
    *,
    student: tuple[float, float] = (0.1, 0.97),
    on: tuple[float, float] = (0.15, 0.96),
    scratch: tuple[float, float] = (0.2, 0.95),
    seeds: int = 3,
) -> dict[str, Any]:
    """Results that nobody measured; each network ends with (loss, accuracy)."""
    morph = {
        "what": "0: widened", "noise": 0.0, "holds": True, "failures": [],
        "ratio": 0.2, "integers": True, "difference": 1e-7,
    }  # fmt: skip
    run = {
        "teacher": curve(3, 0.3, 0.9),
        "on": curve(EPOCHS + 1, *on),
        "student": curve(EPOCHS + 1, *student),
        "scratch": curve(EPOCHS + 3, *scratch),
    }
    for role in ("on", "student"):
        run[role]["test_loss"][0], run[role]["test_accuracy"][0] = 0.3, 0.9
    run["student"]["morphs"] = [morph]
    return {
        "images": "some digits",
        "runs": [copy.deepcopy(run) for _ in range(seeds)],
        "settings": Settings.named(epochs=EPOCHS, seeds=seeds).as_json(),
        "versions": {"python": "3.11.7"},
        "machine": {"processor": "some CPU", "cores": 2, "system": "Linux x86_64"},
    }


def text_of(results: dict[str, Any]) -> str:
    return report_text(STUDY, FinishedRun(RunFolder(pathlib.Path("run")), results))


@pytest.mark.parametrize(
    ("student", "word"), [((0.1, 0.97), "better"), ((0.9, 0.6), "worse")], ids=["better", "worse"]
)
def test_a_student_is_called_what_it_is(student: tuple[float, float], word: str) -> None:
    text = text_of(made_up(student=student))
    assert f"the student's accuracy is {word} in all 3 seeds, its loss {word} in all 3 se" in text
    assert f"For equal steps the student ends {word} than its own layers from scratch" in text
    assert f"For equal steps the student ends {word} than its teacher" in text
    longer = "It does so even if the run from scratch is given the teacher's steps as well."
    assert (longer in text) == ("ends better" in text) == (word == "better")


def test_a_gain_that_is_only_the_teachers_time_is_called_so() -> None:
    text = text_of(made_up(student=(0.3, 0.95), scratch=(0.1, 0.97)))
    assert "its own layers from scratch, in loss and accuracy, in every seed" in text
    assert "what the student gains is the time in which the teacher was trained" in text


def test_one_seed_that_is_otherwise_is_counted() -> None:
    results = made_up()
    results["runs"][1]["student"]["test_loss"][-1] = 5.0
    text = text_of(results)
    assert "its loss better in 2 of 3 seeds, worse in 1" in text
    assert "for equal steps, the student's loss is better in 2 of 3 seeds, worse in 1; its" in text
    assert "For equal steps the student ends better than its own layers" not in text


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        # Of the longer run from scratch, the value after as many epochs as the student's.
        (
            [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]] * 3,
            (
                "| student's layers from scratch, 4 | 100 | 50.0 % |",
                "| student's layers from scratch, 6 | 100 | 70.0 % |",
                "| student's layers from scratch, 4 | +47.00 points (+47.00 to +47.00) |",
            ),
        ),
        ([[0.1, 0.2, 0.3, *[0.99] * 4]] * 3, ("From scratch that takes 90 steps, counted",)),
        ([[0.1] * 7] * 3, ("From scratch no seed gets there within 180 steps.",)),
        ([[0.99] * 7] * 3, ("From scratch that takes 0 steps",)),
        ([[0.1] * 7, *[[0.1, *[0.99] * 6]] * 2], ("1 of 3 seeds do not get there within 180",)),
    ],
    ids=["equal-steps", "third-epoch", "never", "at-once", "one-never"],
)
def test_from_scratch_after_equal_steps_and_until_the_students_first_epoch(
    accuracies: list[list[float]], words: tuple[str, ...]
) -> None:
    results = made_up()
    for run, values in zip(results["runs"], accuracies, strict=True):
        run["scratch"]["test_accuracy"] = values
    text = text_of(results)
    assert all(each in text for each in words)


def test_step_zero_is_measured() -> None:
    results = made_up()
    text = text_of(results)
    assert "the largest difference over 3 seeds is 0, at a loss of 0.3." in text
    # The sign of a loss is that of the gain.
    assert "| teacher trained on, 4 more | +1.00 points (+1.00 to +1.00) | -0.0500 (" in text
    results["runs"][2]["student"]["test_loss"][0] = 0.3 + 2**-10
    text = text_of(results)
    assert "the largest difference over 3 seeds is 0.000977, at a loss of 0.3." in text
    assert "Accuracies are the same" in text
    results["runs"][2]["student"]["test_accuracy"][0] = 0.8
    assert "Accuracies are not all the same" in text_of(results)


def test_a_broken_certificate_is_not_hidden() -> None:
    results = made_up()
    text = text_of(results)
    assert "every morph of every seed holds" in text
    assert "No noise was added." in text
    broken = {"holds": False, "failures": ["0: another function"], "integers": False, "noise": 0.05}
    results["runs"][1]["student"]["morphs"][0] |= broken
    text = text_of(results)
    for words in (
        "not every morph holds",
        "| 0: widened | 2 of 3 | 0.2 | others, or no test |",
        "- 0: another function",
        "Noise of 0.05 of the weights' standard deviation",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("tests", "integers"),
    [
        ([ExactTest("float32")] * 2, True),
        ([ExactTest("float32"), ExactTest(why_not="random")], True),
        ([ExactTest("float32"), ExactTest("float32", differing=("output",))], False),
        ([ExactTest(why_not="random")] * 2, False),
    ],
    ids=["same", "one-not-tested", "differing", "none-tested"],
)
def test_a_certificate_is_told_by_its_worst_numbers(tests: list[ExactTest], integers: bool) -> None:
    own = Comparison("output", "float32", terms=3, difference=1e-7, ratio=0.25)
    first, second = (LayerCertificate(name, ("conv", "patch"), exact=test)
                     for name, test in zip("03", tests, strict=True))  # fmt: skip
    layers = (
        replace(first, own={"output": own, "input": replace(own, ratio=None)}),
        replace(second, own={"output": replace(own, ratio=0.5)}),
    )
    outputs = tuple(OutputComparison("", "float32", difference, 0.1) for difference in (1e-6, 1e-7))
    certificate = Certificate(layers, NetworkCertificate(outputs))
    assert certified(certificate) == {
        "holds": certificate.holds,
        "failures": list(certificate.failures),
        "ratio": 0.5,
        "integers": integers,
        "difference": 1e-6,
    }


def test_one_seed_has_no_spread_and_the_summary_is_short() -> None:
    text = text_of(made_up(seeds=1))
    assert "One seed: no spread can be given." in text
    assert "better in the one seed" in text
    assert "(median)" not in text
    words = "convfc reproduce --study morphism --epochs 4 --seeds 3"
    assert Settings.command(made_up()["settings"]) == words
    lines = summary(made_up()).text(120).splitlines()
    first = [line.split(" ")[0] for line in lines[1:6]]
    assert first == ["teacher,", "teacher", "student,", "student's", "student's"]
    assert "3 seeds: median (least to most)" in lines[-1]


def test_the_student_is_wider_and_deeper_and_the_same_function() -> None:
    model = teacher(3)
    x = torch.rand(4, 1, 28, 28)
    morphs = student_of(model, x, seed=1)
    assert [morph.certificate.holds for morph in morphs] == [True] * 3
    student = morphs[-1].model
    convs = [part for part in student.modules() if isinstance(part, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(1, 16), (16, 32), (32, 32)]
    # Copies get random shares: no two input channels are read alike.
    reading = convs[1].weight.detach().transpose(0, 1).flatten(1)
    assert len(torch.unique(reading, dim=0)) == 16
    again = student_of(teacher(3), x, seed=1)[-1].model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in student.state_dict().items())
    # Teachers differ by seed alone, and leave the user's random numbers as they are.
    state = torch.get_rng_state()
    assert not torch.equal(model[0].weight, teacher(2)[0].weight)
    assert torch.equal(torch.get_rng_state(), state)
