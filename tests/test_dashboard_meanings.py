"""What a case's numbers mean is said in sentences that are true, and nothing is said that the numbers do not bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fastrm_monitor.dashboard import findings, meanings
from fastrm_monitor.dashboard.queries import CaseView, PictureView
from fastrm_monitor.records.images import pack_map
from fastrm_monitor.records.models import Case
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.entropy import MAP_FEATURES
from fastrm_monitor.types import WHOLE, Region

Make = Callable[..., Case]

FITTED = LogisticConfidence(
    features=("token_probability", "map_entropy"),
    mean=(0.0, 0.5),
    scale=(2.0, 0.25),
    weights=(3.0, -1.0),
    intercept=0.0,
    threshold=0.5,
)


def picture(values: np.ndarray, region: Region = WHOLE) -> PictureView:
    rows, columns = values.shape
    return PictureView(64, 64, content=None, rows=rows, columns=columns, relevance=pack_map(values), region=region)


def view(make_case: Make, pictures: Sequence[PictureView] = (), **changes: object) -> CaseView:
    case = make_case(0, pictures=[], version=0, **changes)
    plain = {name: getattr(case, name) for name in CaseView.__dataclass_fields__}
    return CaseView(**{**plain, "pictures": tuple(pictures), "reviews": ()})


# --- features ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        # A map that is even on 16 of 64 patches has the entropy log 16 / log 64.
        ("map_entropy", 2 / 3, "as if it lay evenly on 16 of 64 patches"),
        ("map_entropy", 1.0, "evenly on 64 of 64 patches"),
        ("map_entropy", 0.0, "evenly on 1 of 64 patches"),
        ("map_mass", 0.125, "8.0 of 64 patches are relevant"),
        ("map_area", 3 / 64, "3 of 64 patches have a relevance of 0.5 or more"),
        ("map_max", 0.87, "with a probability of 87%"),
        ("token_probability", 0.31, "gave each token of its answer 31%"),
        ("token_entropy", float(np.log(3)), "between 3.0 equally likely"),
        ("p_ik", 0.62, "62% that it knows the answer"),
        ("grounding", 0.4, "40% of the relevance lies on what the question asks about"),
        ("evidence", 0.25, "25% that the answer fits"),
        ("patch_entropy", 0.3, "0.30 bit undecided"),
        ("map_spread", 0.1, "10% of the grid's diagonal"),
    ],
)
def test_each_feature_has_a_sentence(make_case: Make, name: str, value: float, said: str) -> None:
    """Every feature that scoring makes is said in words with its own number."""
    (row,) = meanings.features(view(make_case, [picture(np.zeros((8, 8)))], features={name: value}))
    assert said in row.meaning
    assert (row.name, row.value, row.pull) == (name, value, None)


def test_no_feature_of_scoring_is_without_words() -> None:
    """What the confidence can rest on, and what else is stored of a map, is known here by name."""
    from fastrm_monitor.lab.calibration import CONFIDENCE_FEATURES

    assert {*CONFIDENCE_FEATURES, *MAP_FEATURES} <= set(meanings._MEANINGS)


def test_unknown_feature_is_shown_by_its_name(make_case: Make) -> None:
    """A feature of another version is listed last, with its number and no sentence."""
    rows = meanings.features(view(make_case, features={"a_new_one": 1.5, "p_ik": 0.5}))
    assert [(row.title, row.meaning) for row in rows][1:] == [("a_new_one", "")]


def test_patches_are_counted_only_where_there_are_some(make_case: Make) -> None:
    """Without a stored map nothing is said of a number of patches."""
    numbers = {"map_mass": 0.5, "map_area": 0.5, "map_entropy": 0.5}
    said = [row.meaning for row in meanings.features(view(make_case, features=numbers))]
    assert not any("of 0 patches" in one for one in said)


# --- pulls ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A proxy folder with the confidence `FITTED`."""
    FITTED.save(tmp_path)
    return str(tmp_path)


# Log odds 0 and two scales above the mean entropy: pulls of 0 and -2.
NUMBERS = {"token_probability": 0.5, "map_entropy": 1.0, "map_max": 0.4}
CONFIDENCE = 1 / (1 + float(np.exp(2)))


def test_pulls_are_those_of_this_confidence(make_case: Make, folder: str) -> None:
    """Where the folder gives the case's own confidence, each feature has its exact pull, the strongest first."""
    case = view(make_case, features=NUMBERS, confidence=CONFIDENCE, calibrated=True)
    fitted, why = meanings.fitted_for(case, folder)
    assert fitted is not None
    assert why == ""
    rows = meanings.features(case, fitted)
    assert [(row.name, row.pull) for row in rows] == [
        ("map_entropy", -2.0),
        ("token_probability", 0.0),
        ("map_max", None),
    ]
    assert (
        meanings.pulls(rows, fitted)
        == "An answer with average features has 50%; this one was pulled down Map entropy (-2.00)."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"confidence": CONFIDENCE + 0.01}, "makes 0.12 of these features, so it is not the one"),
        ({"features": {"token_probability": 0.5}}, "is not the one that gave this confidence"),
        ({"calibrated": False, "confidence": 0.5}, "the number shown is the token probability as it is"),
        ({"calibrated": False, "confidence": 0.25, "features": {"map_entropy": 0.75}}, "1 less the map entropy"),
        ({"calibrated": False, "confidence": 0.3}, "no feature pulls"),
        ({"confidence": None}, ""),
        ({"features": {}}, ""),
    ],
)
def test_no_pulls_are_made_up(make_case: Make, folder: str, changes: dict[str, object], said: str) -> None:
    """A folder that does not give this very confidence explains nothing, and the page says why."""
    usual: dict[str, object] = {"features": NUMBERS, "confidence": CONFIDENCE, "calibrated": True}
    fitted, why = meanings.fitted_for(view(make_case, **{**usual, **changes}), folder)
    assert fitted is None
    assert (said in why) if said else (why == "")


def test_no_pulls_without_a_usable_folder(make_case: Make, tmp_path: Path) -> None:
    """Without a folder, with one that was never calibrated and with a broken one there is a sentence for each."""
    case = view(make_case, features=NUMBERS, confidence=CONFIDENCE, calibrated=True)
    assert "FASTRM_PROXY names the proxy folder" in meanings.fitted_for(case, None)[1]
    assert "is not the one that gave this confidence" in meanings.fitted_for(case, str(tmp_path))[1]
    (tmp_path / "confidence.json").write_text("{")
    assert "cannot be read" in meanings.fitted_for(case, str(tmp_path))[1]


# --- coverage ------------------------------------------------------------------------------------------------------


def even(region: Region) -> PictureView:
    return picture(np.full((4, 4), 0.5, np.float32), region)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([even(WHOLE)], "All of the relevance lies on the picture: the model saw all of it and no padding."),
        ([even((0.0, -0.5, 1.0, 1.5))], "50% of the relevance lies on the picture, the rest on padding."),
        ([even((0.25, 0.0, 0.75, 1.0))], "The model saw 50% of the picture."),
        (
            [even(WHOLE), even((0.0, -0.5, 1.0, 1.5))],
            "75% of the relevance lies on the pictures, the rest on padding.",
        ),
        ([picture(np.zeros((2, 2)))], ""),
        ([], ""),
        ([PictureView(8, 8, None, 2, 2, b"short", WHOLE)], ""),
    ],
)
def test_coverage(pictures: list[PictureView], said: str) -> None:
    """How much of the relevance lies on padding, and how much of the picture the model saw, follow from the regions."""
    assert meanings.coverage(pictures) == said


def test_half_a_patch_on_padding_counts_half() -> None:
    """A patch that padding cuts through counts by its area."""
    assert meanings.coverage([picture(np.array([[1.0, 0.0]]), (-0.25, 0.0, 0.75, 1.0))]).startswith("50% of")


# --- a closer look -------------------------------------------------------------------------------------------------


def look(most: tuple[str, bool], least: tuple[str, bool], correlation: float | None = 0.5) -> object:
    from fastrm_monitor.lab.closer import Look, Masked

    masked = [
        Masked(order, share, *(said if share == 0.5 else ("red", False)))  # type: ignore[arg-type]
        for order, said in (("most", most), ("least", least))
        for share in (0.25, 0.5, 0.75)
    ]
    return Look("red", (), correlation, 0.25, 0.3, tuple(masked))


@pytest.mark.parametrize(
    ("most", "least", "said", "so"),
    [
        (
            ("blue", True),
            ("red", False),
            "With the most relevant half of the picture masked the model answers “blue”; with the least relevant half "
            "masked it still answers “red”.",
            "rests on what the heatmap shows",
        ),
        (("red", False), ("blue", True), "still answers “red”; with", "something else than the heatmap"),
        (("red", False), ("red", False), "still answers “red”.", "says nothing about the map"),
        (("a", True), ("b", True), "it answers “b”.", "needs both halves"),
    ],
)
def test_masking_in_a_sentence(most: tuple[str, bool], least: tuple[str, bool], said: str, so: str) -> None:
    """The sentence is about the masked halves, and concludes no more than they show."""
    first, second = findings.masking(look(most, least))  # type: ignore[arg-type]
    assert said in first
    assert so in second


def test_masked_rows_say_changed_in_words() -> None:
    """The table has a row for each share, and says in words whether the answer changed."""
    rows = findings.masked_rows(look(("blue", True), ("red", False)))  # type: ignore[arg-type]
    assert rows == [
        ("25%", "red (same)", "red (same)"),
        ("50%", "blue (changed)", "red (same)"),
        ("75%", "red (same)", "red (same)"),
    ]


def test_agreement_in_a_sentence() -> None:
    """Both numbers are there with what they are held against; an even map has no order."""
    said = findings.agreement(look(("a", True), ("b", True)))  # type: ignore[arg-type]
    assert "Rank correlation of the two maps 0.50" in said
    assert "relevant 0.25, the proxy's from 0.50 and the teacher's from 0.30" in said
    assert "cannot be compared" in findings.agreement(look(("a", True), ("b", True), None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "again", "same"),
    [
        ("Red.", " red. ", True),
        ("A red ring\nand more", "a red ring", True),
        ("red", "red ring", False),
        ("red", "", False),
        ("", "", True),
    ],
)
def test_same_answer(stored: str, again: str, same: bool) -> None:
    """Case and blanks do not matter, and an answer that was cut short is the same as far as it goes."""
    assert findings.same_answer(stored, again) is same


def test_long_answers_are_cut() -> None:
    """An answer in a sentence has one line of a readable length."""
    assert findings.brief("one\n two") == "one two"
    assert len(findings.brief("word " * 100)) == 60
