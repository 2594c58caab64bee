"""Stored answers as calibration needs them: score, verdict, and how likely it was that each is here.

Read from a store or from the rows of an export. What is stored is no mirror of the traffic: flagged answers are stored
always, the others with the sample rate, and reviewers label the flagged ones first. The weights undo that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sqlalchemy import select

from fastrm_monitor.errors import DataError
from fastrm_monitor.records.models import Case, CasePicture
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import score_of

RIGHT = {"correct": 1.0, "wrong": 0.0, "not_grounded": 0.0}
"""Verdicts that say whether an answer is right. One that rests on the wrong part of the picture counts as wrong, since
it would be right by luck; an unsure one is left out."""


_OWN = "case "
"""Before the id of an answer whose picture is unknown, in place of a picture's id."""


@dataclass(frozen=True, eq=False)
class Answers:
    """S stored answers of one model and proxy, whose scores are of one source.

    Attributes:
        score: float (S,), before any recalibration.
        shown: float (S,), the confidence that they were served with.
        right: float (S,), 1, 0, or NaN where there is no usable verdict.
        flagged: bool (S,).
        sampled: bool (S,), drawn into the random sample.
        rate: float (S,), probability of that draw.
        picture: S ids; answers about one picture are not independent.
        model: name of the model.
        proxy_version: of the proxy.
        source: what the scores are, see `scoring.recalibration`.
    """

    score: np.ndarray
    shown: np.ndarray
    right: np.ndarray
    flagged: np.ndarray
    sampled: np.ndarray
    rate: np.ndarray
    picture: np.ndarray
    model: str
    proxy_version: str
    source: str

    def __len__(self) -> int:
        return len(self.score)

    @cached_property
    def labelled(self) -> np.ndarray:
        """Bool (S,), those with a usable verdict."""
        known: np.ndarray = np.isfinite(self.right)
        return known

    @property
    def pictures_unknown(self) -> int:
        """Answers whose picture is unknown; each counts as one about a picture of its own."""
        return int(np.char.startswith(self.picture.astype(str), _OWN).sum())

    def where(self, chosen: np.ndarray) -> Answers:
        """Some of them, bool (S,) or row numbers."""
        columns = ("score", "shown", "right", "flagged", "sampled", "rate", "picture")
        return Answers(
            **{name: getattr(self, name)[chosen] for name in columns},
            model=self.model,
            proxy_version=self.proxy_version,
            source=self.source,
        )

    @cached_property
    def weights(self) -> np.ndarray:
        """Float (S,): how many answers of the traffic each labelled one stands for; 0 for the others.

        1 / (P(stored) P(labelled)), Horvitz and Thompson 1952. P(stored) is 1 for a flagged answer and the sample rate
        for another, whether or not the flagged one was drawn too. P(labelled) is the share of labelled ones among the
        flagged and among the others, which takes for granted that reviewers chose at random within each.
        """
        stored = np.where(self.flagged, 1.0, np.maximum(self.rate, 1e-9))
        known = np.ones(len(self))
        for part in (self.flagged, ~self.flagged):
            if part.any():
                known[part] = max(self.labelled[part].mean(), 1e-9)
        weights: np.ndarray = np.where(self.labelled, 1 / (stored * known), 0.0)
        return weights


def from_store(store: Store, *, model: str | None = None, proxy_version: str | None = None) -> Answers:
    """The answers of a store, of the model and proxy that have the newest case unless told otherwise.

    Raises:
        DataError: there are none.
        StoreError: the database failed.
    """
    scored = [Case.confidence.is_not(None)]
    with store.session() as session:
        newest = select(Case.model, Case.proxy_version).where(*scored)
        if model is not None:
            newest = newest.where(Case.model == model)
        if proxy_version is not None:
            newest = newest.where(Case.proxy_version == proxy_version)
        found = session.execute(newest.order_by(Case.id.desc()).limit(1)).one_or_none()
        if found is None:
            raise DataError(f"The store {store.safe_url} has no scored answers of that model and proxy: serve some.")
        wanted = (
            select(
                Case.case_id,
                Case.confidence,
                Case.calibrated,
                Case.features,
                Case.verdict,
                Case.flagged,
                Case.sampled,
                Case.sample_rate,
                Case.model,
                Case.proxy_version,
                CasePicture.sha256,
            )
            .outerjoin(CasePicture, (CasePicture.case_key == Case.id) & (CasePicture.position == 0))
            .where(*scored, Case.model == found.model, Case.proxy_version == found.proxy_version)
            .order_by(Case.id)
        )
        rows: list[Mapping[str, Any]] = [{**row, "id": row["case_id"]} for row in session.execute(wanted).mappings()]
    return from_rows(rows, store.safe_url)


def from_rows(rows: Iterable[Mapping[str, Any]], name: str) -> Answers:
    """The answers of an export's rows (docs/dashboard.md); of several models or proxies the last row's.

    Args:
        rows: with id, confidence, calibrated, features, verdict, flagged, sampled, sample_rate, sha256, model and
            proxy_version.
        name: of the file, for messages.

    Raises:
        DataError: there are none, or a row lacks something.
    """
    read = []
    for number, row in enumerate(rows, 1):
        try:
            if row["confidence"] is None:
                continue
            score, source = score_of(row["features"], float(row["confidence"]), bool(row["calibrated"]))
            key = (str(row["model"]), str(row["proxy_version"]), source)
            right = RIGHT.get(row["verdict"] or "", np.nan)
            rest = (bool(row["flagged"]), bool(row["sampled"]), float(row["sample_rate"]))
            read.append(
                (key, (score, float(row["confidence"]), right, *rest), str(row["sha256"] or f"{_OWN}{row['id']}"))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"Row {number} of {name} is no exported case ({error!r}): make it with `fastrm-monitor export`."
            ) from None
    if not read:
        raise DataError(f"{name} has no scored answers: export some with `fastrm-monitor export --all`.")
    last = read[-1][0]
    own = [(numbers, picture) for key, numbers, picture in read if key == last]
    table = np.array([numbers for numbers, _ in own], float)  # (S, 6)
    return Answers(
        score=table[:, 0],
        shown=table[:, 1],
        right=table[:, 2],
        flagged=table[:, 3] > 0,
        sampled=table[:, 4] > 0,
        rate=table[:, 5],
        picture=np.array([picture for _, picture in own]),
        model=last[0],
        proxy_version=last[1],
        source=last[2],
    )
