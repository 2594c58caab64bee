"""Answers become cases: nothing that a user, a model or a picture holds loses one."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

import fastrm_monitor
from fastrm_monitor import guard
from fastrm_monitor.records.cases import interest, make_case
from fastrm_monitor.records.images import prepare, unpack_map
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text
from fastrm_monitor.types import Answer, Assessment, RelevanceMap

MAP = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)


def picture():
    return Image.new("RGB", (30, 20), (255, 0, 0))


def answer(**changes):
    values = {
        "request_id": "r-1",
        "model": "llava",
        "question": "what colour?",
        "text": "red",
        "pictures": (picture,),
        "started_ns": 1_767_323_044_000_000_000,
        "ended_ns": 1_767_323_045_123_456_789,
        "input_tokens": 600,
        "output_tokens": 2,
        "user_key": "u",
    }
    return Answer(**{**values, **changes})


def assessment(**changes):
    values = {
        "request_id": "r-1",
        "maps": (RelevanceMap(MAP, (0.0, -0.25, 1.0, 1.25)),),
        "entropy": 0.5,
        "features": {"map_entropy": np.float32(0.5), "map_max": 1},
        "confidence": 0.25,
        "calibrated": True,
        "flagged": True,
        "reason": "low_confidence",
        "threshold": 0.4,
        "proxy_version": "abc",
        "scoring_seconds": 0.001,
        "sampled": False,
        "sample_rate": 0.05,
        "case_id": "11111111-2222-3333-4444-555555555555",
    }
    return Assessment(**{**values, **changes})


@pytest.fixture
def failures():
    return []


@pytest.fixture
def make(failures):
    def make(answer, assessment, mode="thumbnail", **ids):
        ids = {"trace_id": None, "span_id": None, **ids}
        return make_case(answer, assessment, server="host:1", picture_mode=mode, failed=failures.append, **ids)

    return make


@pytest.fixture
def back(tmp_path):
    """Write a case and read it from another store of the same file."""
    url = f"sqlite:///{tmp_path / 'store.db'}"

    def back(case):
        with Store(url) as store:
            store.add([case])
        with Store(url) as store, store.session() as session:
            read = session.scalars(select(Case)).one()
            assert len(read.pictures) == len(read.pictures)
            return read

    return back


def test_everything_is_stored(make, back, failures):
    """Every field of the answer and the assessment that a case has comes back from the store."""
    case = back(make(answer(), assessment(), trace_id="a" * 32, span_id="b" * 16))
    columns = {column.name: getattr(case, column.name) for column in Case.__table__.columns}
    assert columns == {
        "id": 1,
        "case_id": "11111111-2222-3333-4444-555555555555",
        "created_at": datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC),
        "request_id": "r-1",
        "user_key": "u",
        "server": "host:1",
        "model": "llava",
        "question": "what colour?",
        "answer": "red",
        "confidence": 0.25,
        "calibrated": True,
        "threshold": 0.4,
        "entropy": 0.5,
        "features": {"map_entropy": 0.5, "map_max": 1.0},
        "flagged": True,
        "reason": "low_confidence",
        "sampled": False,
        "sample_rate": 0.05,
        "proxy_version": "abc",
        "library_version": fastrm_monitor.__version__,
        "scoring_seconds": 0.001,
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "interest": pytest.approx(0.4),  # the threshold is 0.15 away, of 0.25 at which nothing is interesting any more
        "policy": None,
        "verdict": None,
        "version": 0,
    }
    (stored,) = case.pictures
    expected = prepare(picture(), "thumbnail")
    assert (stored.width, stored.height, stored.sha256) == (30, 20, expected.sha256)
    assert (stored.media_type, stored.content) == ("image/png", expected.content)
    assert (stored.rows, stored.columns, stored.region) == (2, 3, [0.0, -0.25, 1.0, 1.25])
    assert np.allclose(unpack_map(stored.relevance, stored.rows, stored.columns), MAP, atol=5e-4)
    assert failures == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"confidence": 0.4}, 1.0),  # at the threshold
        ({"confidence": 0.5}, 0.6),
        ({"confidence": 0.9}, 0.0),  # farther than a threshold would ever move
        ({"calibrated": False}, None),  # that confidence was held against nothing
        ({"threshold": None}, None),
        ({"threshold": None, "features": {"token_probability": 0.9, "map_entropy": 0.8}}, 0.7),  # sure, rests on 0.2
        ({"threshold": None, "features": {"token_probability": 0.1, "grounding": 0.9, "map_entropy": 0.9}}, 0.8),
        (
            {"confidence": 0.5, "features": {"token_probability": 0.9, "map_entropy": 0.1}},
            0.6,
        ),  # the larger of 0.6 and 0
        ({"confidence": 0.9, "reason": "low_token_probability", "features": {"token_probability": 0.35}}, 0.8),
        ({"threshold": None, "features": {"token_probability": math.nan, "map_entropy": 0.5}}, None),
        ({"confidence": None, "features": {}}, None),
    ],
)
def test_interest(changes, expected):
    """The larger of closeness to the threshold and disagreement of map and answer; nothing where neither is known."""
    assert interest(assessment(**changes)) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("hostile", "stored"),
    [
        ("'; DROP TABLE cases; --", "'; DROP TABLE cases; --"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("a\x00b\x00", "ab"),
        ("\u202eright to left\u202c \u200b", "\u202eright to left\u202c \u200b"),
        ("👩🏽‍🚒 日本語 é e\u0301", "👩🏽‍🚒 日本語 é e\u0301"),
        ("lone \ud83d high, \ude00 low", "lone \ufffd high, \ufffd low"),
        ("pair \ud83d\ude00", "pair 😀"),
        ("\ufeff line\r\n\ttab \x1b[31m", "\ufeff line\r\n\ttab \x1b[31m"),
        ("", ""),
        ("x" * 200_000, "x" * 200_000),
    ],
)
def test_hostile_texts(make, back, hostile, stored):
    """Question and answer are stored as written, except for NUL characters and lone surrogates."""
    case = back(make(answer(question=hostile, text=hostile, user_key=hostile[:9]), assessment()))
    assert (case.question, case.answer) == (stored, stored)
    assert case.user_key == clean_text(hostile[:9], 255)


def test_long_names_are_cut(make, back):
    """Names that are longer than their columns are cut, since PostgreSQL would refuse the case."""
    long = "é" * 999
    case = back(make(answer(request_id=long, model=long, user_key=long), assessment(reason=long, proxy_version=long)))
    lengths = [len(getattr(case, name)) for name in ("request_id", "model", "user_key", "reason", "proxy_version")]
    assert lengths == [255, 255, 255, 64, 64]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(make, back, value):
    """A score that is not finite is stored as unknown, and the features keep the others."""
    case = back(
        make(
            answer(),
            assessment(confidence=value, entropy=value, threshold=value, features={"a": value, "b": 0.5}),
        )
    )
    assert (case.confidence, case.entropy, case.threshold, case.features) == (None, None, None, {"b": 0.5})


def test_numpy_numbers(make, back):
    """NumPy's numbers and truth values are stored like Python's."""
    case = back(
        make(answer(), assessment(confidence=np.float64(0.25), sample_rate=np.float32(0.5), flagged=np.bool_(True)))
    )
    assert (case.confidence, case.sample_rate, case.flagged) == (0.25, 0.5, True)


def test_picture_that_fails_does_not_lose_the_case(make, back, failures, monkeypatch):
    """The other pictures and every map are kept, and the failure is counted once."""
    monkeypatch.setattr(guard, "_last_logged", {})

    def gone():
        raise OSError("closed")

    maps = tuple(RelevanceMap(MAP * scale) for scale in (1, 0.5))
    case = back(make(answer(pictures=(gone, picture)), assessment(maps=maps)))
    first, second = case.pictures
    assert (first.content, first.sha256, first.width, first.height, first.media_type) == (None,) * 5
    assert second.content is not None
    assert [unpack_map(p.relevance, 2, 3).max() for p in case.pictures] == [1.0, 0.5]
    assert failures == ["picture"]


@pytest.mark.parametrize(
    ("pictures", "failed"),
    [((), []), ((picture,), ["picture"]), ((picture, picture, picture), ["picture"] * 3)],
)
def test_maps_without_their_pictures(make, back, failures, pictures, failed):
    """When pictures and maps differ in number, all maps are kept, and none over a picture that may be another."""
    maps = tuple(RelevanceMap(MAP * scale) for scale in (1, 0.5))
    case = back(make(answer(pictures=pictures), assessment(maps=maps)))
    assert [p.position for p in case.pictures] == [0, 1]
    assert [unpack_map(p.relevance, 2, 3).max() for p in case.pictures] == [1.0, 0.5]
    assert [p.content for p in case.pictures] == [None, None]
    assert failures == failed


@pytest.mark.parametrize(("mode", "has_hash", "has_content"), [("none", False, False), ("hash", True, False)])
def test_picture_modes(make, back, mode, has_hash, has_content):
    """The picture mode decides what is stored of a picture; the map is stored in all."""
    (stored,) = back(make(answer(), assessment(), mode)).pictures
    assert (stored.sha256 is not None, stored.content is not None) == (has_hash, has_content)
    assert len(stored.relevance) == 12


def test_case_without_an_id_gets_one(make):
    """An assessment without a case id makes a case with a new one each time."""
    first, second = (make(answer(), assessment(case_id=None)).case_id for _ in range(2))
    assert len(first) == 36
    assert first != second
