"""An answer and its assessment become a row of `cases`. Called on the background thread; knows no store.

The texts are what users and models wrote, so they are stored as they are, except for what no database takes.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from PIL.Image import Image

import fastrm_monitor
from fastrm_monitor.guard import log_once
from fastrm_monitor.records.images import StoredPicture, pack_map, prepare
from fastrm_monitor.records.models import Case, CasePicture
from fastrm_monitor.records.text import clean_text
from fastrm_monitor.types import Answer, Assessment, RelevanceMap

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = StoredPicture(0, 0, None, None, None)
_NEAR = 0.25  # beyond this distance from the threshold a verdict says nothing about it
_HELD = {"low_token_probability": "token_probability", "high_map_entropy": "map_entropy"}  # reason -> what was held

_PICTURE_BYTES = 100_000
"""Of a picture whose size cannot be told: about that of an encoded one."""


def bytes_of(answer: Answer, assessment: Assessment) -> int:
    """About how many bytes an answer holds while it waits: texts, ids, maps, and what its pictures will be made of."""
    texts = (answer.question, answer.text, answer.request_id, answer.user_key, answer.model)
    held = sum(sys.getsizeof(text) for text in texts if text is not None)  # a character has 1 to 4 bytes
    maps = sum(one.values.nbytes for one in assessment.maps)
    return 2048 + held + maps + sum(map(_picture_bytes, answer.pictures))


def _picture_bytes(maker: Callable[[], Image]) -> int:
    """Of what a function holds: the object whose method it is, or the argument that is bound to it, may say so."""
    held = (maker, getattr(maker, "__self__", None), *getattr(maker, "args", ()))
    for one in held:
        if isinstance(one, Image):
            return one.width * one.height * len(one.getbands())
        for name in ("nbytes", "bytes"):
            size = getattr(one, name, None)
            if isinstance(size, int):
                return size
    return _PICTURE_BYTES


def make_case(
    answer: Answer,
    assessment: Assessment,
    *,
    server: str,
    picture_mode: str,
    trace_id: str | None,
    span_id: str | None,
    failed: Callable[[str], None],
) -> Case:
    """The case of an answer, with every relevance map and, where they can be had, the pictures.

    A picture that cannot be made is left out and counted; the case is not lost. Pictures are stored only when there are
    as many of them as maps: otherwise nobody knows which map belongs to which picture, and a map over the wrong
    picture is worse than one without. Numbers that are not finite are left out, because JSON has none.

    Args:
        answer: as it was served.
        assessment: of that answer; its `case_id` becomes the case's.
        server: name of this process.
        picture_mode: see `images.prepare`.
        trace_id: hexadecimal, of the answer's span; None without tracing.
        span_id: likewise.
        failed: told "picture" for each picture that was left out.
    """
    pictures: tuple[Callable[[], Image] | None, ...] = answer.pictures
    if len(pictures) != len(assessment.maps):
        for _ in pictures:
            failed("picture")
        pictures = (None,) * len(assessment.maps)
    return Case(
        case_id=assessment.case_id or str(uuid.uuid4()),
        created_at=_EPOCH + timedelta(microseconds=answer.ended_ns // 1000),
        request_id=clean_text(answer.request_id, 255),
        user_key=None if answer.user_key is None else clean_text(answer.user_key, 255),
        server=clean_text(server, 255),
        model=clean_text(answer.model, 255),
        question=clean_text(answer.question),
        answer=clean_text(answer.text),
        confidence=_finite(assessment.confidence),
        calibrated=bool(assessment.calibrated),
        threshold=_finite(assessment.threshold),
        entropy=_finite(assessment.entropy),
        features={name: float(value) for name, value in assessment.features.items() if math.isfinite(value)},
        flagged=bool(assessment.flagged),
        reason=None if assessment.reason is None else clean_text(assessment.reason, 64),
        sampled=bool(assessment.sampled),
        sample_rate=float(assessment.sample_rate),
        proxy_version=clean_text(assessment.proxy_version, 64),
        library_version=fastrm_monitor.__version__[:32],
        scoring_seconds=float(assessment.scoring_seconds),
        trace_id=trace_id,
        span_id=span_id,
        policy=assessment.policy,
        interest=interest(assessment),
        verdict=None,
        version=0,
        pictures=[
            _case_picture(position, relevance, picture, picture_mode, failed)
            for position, (relevance, picture) in enumerate(zip(assessment.maps, pictures, strict=True))
        ],
    )


def interest(assessment: Assessment) -> float | None:
    """How much a verdict on the answer would teach, 0 to 1: the larger of two doubts; None when neither can be had.

    *Near the threshold*, 1 - |s - t| / 0.25 and 0 beyond, where s is the number that was held against the threshold t:
    there a verdict can move the threshold, and far from it none does (uncertainty sampling, Lewis and Gale 1994).
    *Map and answer disagree*, |p - g|, where p is the token probability and g the share of the relevance that lies on
    what the question asks about (1 - map entropy where there is no grounding head): an answer that is sure of itself
    and rests on nothing, or the reverse, is one that the two cannot both be right about.
    """
    features = assessment.features
    doubts = []
    score = _HELD.get(assessment.reason or "")
    held = features.get(score) if score else assessment.confidence if assessment.calibrated else None
    if held is not None and assessment.threshold is not None:
        doubts.append(1 - abs(held - assessment.threshold) / _NEAR)
    support = features.get("grounding", 1 - features.get("map_entropy", math.nan))
    doubts.append(abs(features.get("token_probability", math.nan) - support))
    finite = [float(doubt) for doubt in doubts if math.isfinite(doubt)]
    return min(max(0.0, *finite), 1.0) if finite else None


def _case_picture(
    position: int,
    relevance: RelevanceMap,
    picture: Callable[[], Image] | None,
    mode: str,
    failed: Callable[[str], None],
) -> CasePicture:
    kept = _NOTHING
    if picture is not None:
        try:
            kept = prepare(picture(), mode)
        except Exception as error:
            failed("picture")
            log_once("fastrm-monitor: a picture could not be stored, its case is: %s", "picture", error)
    rows, columns = relevance.values.shape  # (gh, gw)
    return CasePicture(
        position=position,
        width=kept.width or None,
        height=kept.height or None,
        sha256=kept.sha256,
        media_type=kept.media_type,
        content=kept.content,
        rows=rows,
        columns=columns,
        relevance=pack_map(relevance.values),
        region=[float(edge) for edge in relevance.region],
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
