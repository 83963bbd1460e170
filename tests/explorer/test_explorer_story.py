"""The laws of the story: each picture can be shown, is short, and checks what it asks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from convfc import conv_matrix, im2col
from convfc.explorer.state import state_layer
from convfc.rounding import gamma, unit_roundoff

if TYPE_CHECKING:
    from model import Model

FIVE = np.array(
    [[1, 1, 8, 7, 3], [0, 2, 9, 6, 0], [1, 1, 7, 8, 2], [0, 2, 8, 7, 1], [1, 0, 6, 8, 1]]
)
WINDOWS = np.lib.stride_tricks.sliding_window_view(FIVE, (3, 3)).reshape(9, 9)
UPRIGHT = np.tile([-1, 0, 1], 3)
EDGES = WINDOWS @ UPRIGHT
SUMS = WINDOWS.sum(1)


def select(**patch: Any) -> dict[str, Any]:
    return {"select": [patch]}


STEPS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "numbers": [
        (select(element=2), select(element=int(FIVE.argmax()))),
        (select(element=3), {"edit": ["input", 7, 0]}),
    ],
    "filter": [
        (
            {**select(p=1), "answer": int(SUMS[1])},
            {**select(p=0), "answer": int(EDGES[0])},
        )
    ],
    "slide": [
        (select(p=3), select(p=1)),
        ({"answer": int(EDGES[0])}, {"answer": int(EDGES[1])}),
    ],
    "rows": [(select(p=3, q=2), select(p=4, q=8))],
    "columns": [(select(p=7), select(f=1))],
    "reshape": [({"answer": 3}, {"answer": 1 * 3 + 2})],
    "sizes": [({"set": [{"stride": [2, 1]}]}, {"set": [{"stride": [2, 2]}]})],
    "matrix": [
        (select(p=2, f=0, element=4), select(p=2, f=0, element=0)),
        ({"answer": 225}, {"answer": 9}),
    ],
    "tools": [(select(f=1), {"press": True}), ({"press": True, **select(f=3)}, select(f=2))],
}
"""For each task what is wrong, and what is done then and is right: written down by hand."""


@pytest.fixture(scope="module")
def story(model: Model) -> dict[str, Any]:
    return model.ask("story")


@pytest.fixture(scope="module")
def told(model: Model, story: dict[str, Any]) -> dict[str, Any]:
    """Every picture with what somebody does in it."""
    return {
        chapter["id"]: model.ask("told", n, STEPS[chapter["id"]])
        for n, chapter in enumerate(story["chapters"], 1)
    }


def texts(words: Any) -> list[str]:
    """Return all texts of a table."""
    if isinstance(words, str):
        return [words]
    inside = words.values() if isinstance(words, dict) else words
    return [text for part in inside for text in texts(part)]


def test_there_are_nine_pictures_that_can_be_shown(story: dict[str, Any]) -> None:
    assert [chapter["id"] for chapter in story["chapters"]] == list(STEPS)
    assert len(STEPS) == 9
    assert list(story["words"]["chapters"]) == list(STEPS)
    for chapter in story["chapters"]:
        assert chapter["numbers"]["problems"] == [], chapter["id"]
        assert chapter["frame"] in {*chapter["parts"], "T"}
        tasks = story["words"]["chapters"][chapter["id"]]["tasks"]
        assert len(tasks) == chapter["tasks"] == len(STEPS[chapter["id"]])


def test_no_text_has_more_than_forty_words(story: dict[str, Any]) -> None:
    for text in texts(story["words"]):
        assert 1 <= len(text.split()) <= 40, text


@pytest.mark.parametrize("chapter", STEPS)
def test_a_picture_knows_what_is_wrong_and_what_is_right(
    told: dict[str, Any], chapter: str
) -> None:
    for said in told[chapter]["said"]:
        assert said["before"] is not True
        assert said["wrong"] is not True
        assert said["right"] is True
        for text in (said["ask"], said["hint"] or "", said["done"]):
            assert not re.search(r"[{}]|undefined|NaN|null", text), text
        if said["wrong"]:
            assert said["hint"].startswith("Not yet: ")


def test_hints_help(told: dict[str, Any]) -> None:
    def hints(chapter: str) -> list[str]:
        return [said["hint"] for said in told[chapter]["said"]]

    products = WINDOWS * UPRIGHT
    assert f"adds up to {products[1, :3].sum()}." in hints("filter")[0]
    plus, minus = products[1].clip(0).sum(), -products[1].clip(None, 0).sum()
    assert f"up to {plus}, the negative ones to −{minus}." in hints("slide")[1]
    assert "row 3 is the window that starts in row 1, column 0." in hints("rows")[0]
    assert f"row 7 of M times column 0 of K is {EDGES[7]}." in hints("columns")[0]
    assert "row 3 becomes row 1, column 0." in hints("reshape")[0]
    assert "the output is 2 × 3 now." in hints("sizes")[0]


def test_what_is_to_be_predicted_is_covered_until_it_is(
    story: dict[str, Any], told: dict[str, Any]
) -> None:
    """In the output, in Y, in the arithmetic, and in what is said aloud."""
    for chapter, known in (("filter", []), ("slide", [0])):
        numbers = next(one["numbers"] for one in story["chapters"] if one["id"] == chapter)
        asked = told[chapter]["said"][-1]["shown"]  # the last thing before it is revealed
        seen = [int(EDGES[p]) if p in known else None for p in range(9)]
        for shown in (numbers, asked):
            assert shown["values"] == shown["sums"] == seen
            assert shown["planes"] == [seen]
        assert asked["said"].endswith("sum ?.")
    assert told["filter"]["after"]["values"] == [int(EDGES[0]), *[None] * 8]
    assert told["slide"]["after"]["values"] == EDGES.tolist()


def test_each_picture_says_what_is_so(story: dict[str, Any], told: dict[str, Any]) -> None:
    states = {chapter["id"]: chapter["state"] for chapter in story["chapters"]}
    for chapter, state in states.items():
        layer, x = state_layer(state)
        assert np.array_equal(np.asarray(x)[..., 0], FIVE), chapter
        if chapter != "numbers":
            assert np.array_equal(im2col(np.asarray(x)[None], layer.geometry)[0], WINDOWS)
    assert (FIVE.max() == FIVE).sum() == 1
    # The output finds both edges of the stroke.
    plane = EDGES.reshape(3, 3)
    assert (plane[:, :2] > 0).all()
    assert (plane[:, 2] < 0).all()
    # The number that is to be found stands in Y once.
    asked = told["columns"]["said"][0]["ask"]
    assert f"Find {SUMS[7]} in Y" in asked
    assert [*EDGES, *SUMS].count(SUMS[7]) == 1
    # T.
    layer, _ = state_layer(states["matrix"])
    T = np.asarray(conv_matrix(layer, (5, 5), layout="dense"))
    assert T.shape == (9, 25)
    assert T.size == 225
    assert (np.sort(T, axis=1)[:, -9:] == np.arange(1, 10)).all()
    assert (np.count_nonzero(T, axis=1) == 9).all()
    assert T[2, 0] == 0 != T[2, 4]


def test_low_rank_is_the_nearest_matrix_of_rank_one(
    story: dict[str, Any], told: dict[str, Any]
) -> None:
    before = np.reshape(story["chapters"][-1]["numbers"]["filters"], (4, 9)).T
    U, s, V = np.linalg.svd(before)
    nearest = s[0] * np.outer(U[:, 0], V[0])
    first, last = (said["shown"]["filters"] for said in told["tools"]["said"])
    found = np.reshape(first, (4, 9)).T
    # Some 60 sums of 9 products: their rounding, as a share of the largest number.
    assert np.abs(found - nearest).max() <= gamma(60 * 9, unit_roundoff("float64")) * s[0]
    made = WINDOWS @ before
    moved = np.abs(WINDOWS @ found - made).max() / np.abs(made).max()
    assert f"more than {100 * moved:.0f} % of" in told["tools"]["said"][0]["done"]
    assert moved < 0.15
    # One filter alone is negative on the left and positive on the right.
    upright = [(np.sign(w) == np.sign([-1, -1, 1, 1])).all() for w in np.reshape(last, (4, 4, 4))]
    assert upright == [False, False, True, False]


@pytest.mark.parametrize("story_of", ["0", "10", "01", "1.5", "x", "", "<b>", "-1"])
def test_an_address_of_no_picture_says_so(model: Model, story_of: str) -> None:
    visit = model.ask("visit", f"#1;story={story_of}")
    assert "it has 1 to 9" in visit["notes"][0]


def test_an_address_leads_to_each_picture(model: Model, story: dict[str, Any]) -> None:
    for n, chapter in enumerate(story["chapters"], 1):
        found = model.ask("address", chapter["begins"])
        assert found["address"] == f"#1;story={n}"
        assert found["notes"] == []
        assert found["before"] == found["after"]
